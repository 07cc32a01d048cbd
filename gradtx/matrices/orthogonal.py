"""Orthogonal directions: the step that changes the outputs of a layer most, for a bound on its spectral norm.

    g = U S Vᵀ  ->  u = U Vᵀ

All singular values become 1, so that no direction of the gradient is neglected. `orthogonalize` computes it by the
Newton-Schulz iteration.

- Muon is `scale_by_momentum(nesterov=True) >> orthogonalize() >> scale_by_shape()`.
- NorMuon adds `scale_by_neuron_rms()`: all neurons then move equally.
- Scion chooses the norm layer by layer (`scale_by_lmo`); Dion2 orthogonalizes a part of the rows at each step.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.averages import average
from gradtx.core import fields
from gradtx.core.annotations import Dtype, NonNegative, Positive, Unit
from gradtx.core.elementary import transform
from gradtx.core.formula import per_leaf, per_matrix
from gradtx.core.routing import as_matrices
from gradtx.core.rule import Rule
from gradtx.core.storage import stored
from gradtx.core.transform import Transform
from gradtx.matrices import newton_schulz
from gradtx.momentum import Step, scale_by_momentum
from gradtx.numerics import divide, root

Preconditioning = Literal["frobenius", "spectral", "aol", "schatten"]


def frobenius(x: Array) -> Array:
    """The root of the sum of squares, right even if squares overflow or underflow."""
    return tree.norm(x).value


def lengths(x: Array, axis: int) -> Array:
    """The norms of the rows (axis 1) or of the columns (axis 0)."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0)
    return largest * root(jnp.sum(divide(x, largest) ** 2, axis=axis, keepdims=True))


def orthogonal(
    x: Array,
    triples: tuple[newton_schulz.Triple, ...],
    eps: Any,
    preconditioning: Preconditioning = "frobenius",
    *,
    safety: Any = 1.0,
    eps_in_max: bool = False,
    dtype: Any = None,
) -> Array:
    """The nearest orthogonal matrix, about; see `orthogonalize`."""
    if preconditioning != "frobenius":
        x = newton_schulz.preconditioned(x, preconditioning, eps)
    elif eps_in_max:
        x = x / jnp.maximum(safety * frobenius(x), eps)
    else:
        x = divide(x, safety * frobenius(x) + eps)
    return newton_schulz.iterate(x.astype(dtype or x.dtype), triples).astype(x.dtype)


def _safety(ns_coeffs: Any, safety: Any) -> Any:
    return (1.02 if ns_coeffs == "polar_express" else 1.0) if safety is None else safety


@transform
def orthogonalize(
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = 5,
    eps: NonNegative = 1e-8,
    *,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    safety: Positive | None = None,
    eps_in_max: bool = False,
    dtype: Dtype | None = None,
) -> Rule:
    """Replaces each matrix by the nearest orthogonal one, found approximately by the Newton-Schulz iteration.

        X = g / (safety ‖g‖ + eps);   for (a, b, c) in ns_coeffs:  A = X Xᵀ,  X <- a X + (b A + c A²) X

    Source: Bernstein and Newhouse 2024 (arXiv 2409.20325), section 3, for the direction; Jordan 2024
    (github.com/KellerJordan/Muon) for the iteration. With the usual coefficients the singular values end between 0.7
    and 1.2, not at 1. A zero matrix stays zero. Where a matrix is long, three steps are done on its Gram matrix.

    Args:
      ns_coeffs: (a, b, c), or a triple for each step, or a name: "keller_jordan" (also "standard", "muon"), "you" (also
        "dion", "quintic"), "cans", "cubic", "polar_express" (see `polar_express`).
      ns_steps: the number of steps. The last triple is repeated if there are too few. None runs all triples, a single
        one five times.
      eps: >= 0, added to the norm. [gradient] PyTorch and Keller Jordan have 1e-7.
      adaptive: multiply by sum(g X), the dual norm of g, so that the step grows with the gradient.
      preconditioning: what g is divided by: its "frobenius" norm; its "spectral" norm, exactly, by a singular value
        decomposition; "aol", row by row (Boissin et al. 2025, arXiv 2512.04632); "schatten", the fourth root of the sum
        of s⁴ (Grishina et al. 2025, arXiv 2506.10935).
      safety: a factor of the Frobenius norm; None for 1.02 with "polar_express" (as modded-nanogpt and Dion), else 1.
      eps_in_max: divide by max(‖g‖, eps) instead (PyTorch).
      dtype: the dtype of the iteration; None for that of the leaf, at least float32. With "bfloat16", which PyTorch
        has, sums are in float32; X is then off by 1.4% of its Frobenius norm, here and there.

    State: `count`, a scalar.

    Errors: ValueError for a leaf that is not a matrix, an unknown name, or more triples than steps; TypeError for
    complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> g = jnp.array([[3.0, 0.0], [0.0, -1.0]])
    >>> tx = gradtx.orthogonalize("cubic", 20)
    >>> tx.update(g, tx.init(g))[0].round(3) + 0.0
    Array([[ 1.,  0.],
           [ 0., -1.]], dtype=float32)
    """
    triples = newton_schulz.coefficients("gradtx.orthogonalize", ns_coeffs, ns_steps)
    factor = _safety(ns_coeffs, safety)

    def update(g: Array) -> Array:
        x = orthogonal(g, triples, eps, preconditioning, safety=factor, eps_in_max=eps_in_max, dtype=dtype)
        return jnp.sum(g * x) * x if adaptive else x

    return per_matrix(update, stack=True, traits=("real",))


@transform
def scale_by_muon(
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = 5,
    beta: Unit = 0.95,
    eps: NonNegative = 1e-8,
    mu_dtype: Dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    weight_dimension_numbers: Any = None,
    form: Literal["debiased", "average", "sum"] = "debiased",
    safety: Positive | None = None,
    eps_in_max: bool = False,
    ns_dtype: Dtype | None = None,
) -> Transform:
    """Muon's direction: momentum, orthogonalized.

        u = orthogonalize(scale_by_momentum(g))

    Source: Jordan 2024 (github.com/KellerJordan/Muon); as optax.contrib.scale_by_muon, which works on the matrices of
    any params; in optax the default `weight_dimension_numbers=None` fails for a dict of params.

    Args:
      ns_coeffs, ns_steps, eps, adaptive, preconditioning, safety, eps_in_max: as `orthogonalize`.
      beta: in [0, 1): the decay of the momentum.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.
      nesterov: look one step ahead.
      weight_dimension_numbers: the matrices of each leaf; see `by_shape`. With None each leaf must have two axes.
      form: as `scale_by_momentum`. "debiased" is optax's, with Nadam's look-ahead; "average" and "sum" give the same
        direction as PyTorch and Keller Jordan.
      ns_dtype: the dtype of the iteration; see `orthogonalize`.

    State: that of `scale_by_momentum`: `mu`, 4 bytes per parameter, `weights` and `count`.

    Errors: those of `orthogonalize`; ValueError for a beta outside [0, 1).

    >>> import gradtx
    >>> gradtx.scale_by_muon(form="sum").expand().stages[0]
    scale_by_momentum(decay=0.95, form='sum', nesterov=True)
    """
    momentum = stored(scale_by_momentum(beta, form=form, nesterov=nesterov), mu_dtype)
    direction = momentum >> orthogonalize(
        ns_coeffs,
        ns_steps,
        eps,
        adaptive=adaptive,
        preconditioning=preconditioning,
        safety=safety,
        eps_in_max=eps_in_max,
        dtype=ns_dtype,
    )
    return direction if weight_dimension_numbers is None else as_matrices(direction, weight_dimension_numbers)


@transform
def scale_by_shape(
    weight_dimension_numbers: Any = None, consistent_rms: NonNegative | None = None, *, at_least_one: bool = True
) -> Transform:
    """Multiplies each matrix by a number that follows from its shape, (fan_in, fan_out).

        u = sqrt(max(1, fan_out / fan_in)) g,   or with consistent_rms:  u = consistent_rms sqrt(max(fan_in, fan_out)) g

    Source: as optax.contrib.scale_by_shape. The first is Keller Jordan's, for learning rates that hold at any width;
    the second, with 0.2, gives an orthogonal matrix the root mean square of Adam's updates (Liu et al. 2025, arXiv
    2502.16982).

    Args:
      weight_dimension_numbers: the matrices of each leaf; see `by_shape`. With None each leaf must have two axes.
      consistent_rms: None, or >= 0.
      at_least_one: False for sqrt(fan_out / fan_in) without the maximum (Scion, Dion).

    State: `count`, a scalar. Errors: ValueError for a leaf that is not a matrix.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_shape(), jnp.ones((1, 4))
    >>> tx.update(g, tx.init(g))[0]
    Array([[2., 2., 2., 2.]], dtype=float32)
    """
    factor = scale_by_fans(consistent_rms, at_least_one=at_least_one)
    return factor if weight_dimension_numbers is None else as_matrices(factor, weight_dimension_numbers)


@transform
def scale_by_fans(consistent_rms: NonNegative | None = None, *, at_least_one: bool = True) -> Rule:
    """The factor of `scale_by_shape`, for matrices.

    Args:
      consistent_rms, at_least_one: as `scale_by_shape`.

    State: `count`, a scalar. Errors: ValueError for a leaf that is not a matrix.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_fans(0.2), jnp.ones((1, 4))
    >>> tx.update(g, tx.init(g))[0]
    Array([[0.4, 0.4, 0.4, 0.4]], dtype=float32)
    """

    def update(g: Array) -> Array:
        fan_in, fan_out = g.shape
        if consistent_rms is not None:
            return consistent_rms * math.sqrt(max(fan_in, fan_out)) * g
        ratio = fan_out / max(fan_in, 1)
        return math.sqrt(max(1, ratio) if at_least_one else ratio) * g

    return per_matrix(update)


@transform
def scale_by_neuron_rms(decay: Unit = 0.95, eps: NonNegative = 1e-10) -> Rule:
    """Divides each neuron by the root of an average of its mean squares, and keeps the norm of the matrix.

        v <- b v + (1 - b) mean_in(g²);   h = g / (sqrt(v) + eps);   u = h ‖g‖ / ‖h‖                   (b = decay)

    A neuron is a column of a kernel (in, out). The average starts at zero and is not corrected, since its scale has no
    effect.

    Source: Li et al. 2025 (arXiv 2510.05491), algorithm 1, which has it after Muon's orthogonalization.

    Args:
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [updates]

    State: `nu`, one number for each neuron, 4 / fan_in bytes per parameter; `count`, a scalar.

    Errors: ValueError for a leaf that is not a matrix, or an argument outside its range; TypeError for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_neuron_rms(), jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> (tx.update(g, tx.init(g))[0] ** 2).round(2)
    Array([[12.5,  0. ],
           [ 0. , 12.5]], dtype=float32)
    """

    def update(g: Array, *, nu: Array) -> Step:
        nu = average(nu, jnp.mean(g * g, axis=0), decay)
        h = divide(g, (jnp.sqrt(nu) + eps)[None])
        return divide(h, frobenius(h)) * frobenius(g), {"nu": nu}

    return per_matrix(update, traits=("real",), nu=fields.sums(axis=0))


@transform
def scale_by_dion2(
    fraction: float = 0.25,
    ef_decay: Unit = 0.95,
    ns_coeffs: Any = "polar_express",
    ns_steps: int | None = 5,
    eps: NonNegative = 1e-8,
    *,
    ns_dtype: Dtype | None = None,
) -> Rule:
    """Dion2's direction: the sum of gradients, of which a part of the rows or columns is orthogonalized at each step.

        M <- M + g;   K = the ceil(fraction n) slices of M with the largest sums of |M|, along the shorter side n
        u_K = orthogonalize(M_K), and 0 elsewhere;   M_K <- ef_decay M_K

    Source: Ahn et al. 2025 (arXiv 2512.16928), algorithm 1, and github.com/microsoft/dion. Slices are selected over the
    whole matrix, also where it is sharded: the result does not depend on the mesh ("global"; the authors' default
    selects on each device). With fraction=1 it is Muon without Nesterov, with momentum ef_decay.

    Args:
      fraction: in (0, 1]: the part of the slices that move at each step.
      ef_decay: in [0, 1), a number or a schedule: what remains of the slices that have moved.
      ns_coeffs, ns_steps, eps, ns_dtype: as `orthogonalize`.

    State: `mu`, like the params in at least float32: 4 bytes per parameter; `count`, a scalar.

    Errors: ValueError for a leaf that is not a matrix, or an argument outside its range; TypeError for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_dion2(0.5), jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> tx.update(g, tx.init(g))[0] > 0.5
    Array([[ True, False, False],
           [False, False, False]], dtype=bool)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"gradtx.scale_by_dion2: fraction is {fraction!r}; it must be in (0, 1].")
    triples = newton_schulz.coefficients("gradtx.scale_by_dion2", ns_coeffs, ns_steps)
    safety = _safety(ns_coeffs, None)

    def update(g: Array, *, mu: Array) -> Step:
        mu = mu + g
        axis = 0 if g.shape[0] <= g.shape[1] else 1
        _, slices = jax.lax.top_k(jnp.sum(jnp.abs(mu), axis=1 - axis), math.ceil(fraction * g.shape[axis]))
        at: Any = slices if axis == 0 else (slice(None), slices)
        part = mu[at]
        made = orthogonal(part, triples, eps, safety=safety, dtype=ns_dtype)
        return jnp.zeros_like(g).at[at].set(made), {"mu": mu.at[at].set(ef_decay * part)}

    return per_matrix(update, stack=True, traits=("real",), mu=fields.like())


@transform
def scale_by_lmo(
    norm: Literal["spectral", "sign", "in_rms", "out_norm", "rms"] = "spectral",
    *,
    normalized: bool = True,
    at_least_one: bool = False,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = 5,
    eps: NonNegative | None = None,
    ns_dtype: Dtype | None = None,
) -> Rule:
    """The steepest direction of length 1 in a norm: Scion's linear minimization oracle, with the sign of the gradient.

        "spectral"   sqrt(fan_out / fan_in) orthogonalize(g)     hidden matrices
        "sign"       sign(g) / fan_in                            the last layer, or embeddings
        "in_rms"     each row of a kernel (in, out), the weights of one input, divided by its root mean square times
                     fan_in: one-hot inputs
        "out_norm"   each column, the weights of one output, divided by its norm and by sqrt(fan_in)
        "rms"        a leaf of any shape, divided by its root mean square: biases

    Source: Pethick et al. 2025 (arXiv 2502.07529), tables 2 to 4, and github.com/LIONS-EPFL/scion, where "in_rms" is
    ColNorm and "out_norm" RowNorm of weights (out, in), and "rms" is BiasRMS.

    Args:
      norm: one of these.
      normalized: False leaves out the factor of fan_in. The authors' default for ColNorm is False.
      at_least_one: use max(1, sqrt(fan_out / fan_in)) with "spectral".
      ns_coeffs, ns_steps, ns_dtype: as `orthogonalize`.
      eps: >= 0, added to the norms; None for 1e-7 with "spectral" and 1e-8 with the others. [gradient]

    State: `count`, a scalar. Errors: ValueError for a leaf that is not a matrix, except with "rms"; those of
    `orthogonalize`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_lmo("sign"), jnp.array([[3.0], [-1.0]])
    >>> tx.update(g, tx.init(g))[0]
    Array([[ 0.5],
           [-0.5]], dtype=float32)
    """
    triples = newton_schulz.coefficients("gradtx.scale_by_lmo", ns_coeffs, ns_steps)
    small = (1e-7 if norm == "spectral" else 1e-8) if eps is None else eps

    def spectral(g: Array) -> Array:
        scale = math.sqrt(g.shape[1] / max(g.shape[0] if normalized else 1, 1))
        made = orthogonal(g, triples, small, safety=_safety(ns_coeffs, None), dtype=ns_dtype)
        return (max(1.0, scale) if at_least_one else scale) * made

    def sign(g: Array) -> Array:
        return jnp.sign(g) / max(g.shape[0] if normalized else 1, 1)

    def in_rms(g: Array) -> Array:
        return divide(g, lengths(g, 1) * ((g.shape[0] if normalized else 1) / math.sqrt(g.shape[1])) + small)

    def out_norm(g: Array) -> Array:
        return divide(g, lengths(g, 0) * (math.sqrt(g.shape[0]) if normalized else 1) + small)

    def rms(g: Array) -> Array:
        return divide(g, frobenius(g) / math.sqrt(max(g.size, 1)) + small)

    if norm == "rms":
        return per_leaf(rms, traits=("real",))
    formulas = {"spectral": spectral, "sign": sign, "in_rms": in_rms, "out_norm": out_norm}
    return per_matrix(formulas[norm], stack=norm == "spectral", traits=("real",))
