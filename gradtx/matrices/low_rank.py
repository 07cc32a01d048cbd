"""Low-rank views of matrices: an inner transform sees a projected gradient, and keeps its averages in that size.

    r = Pᵀ g, or g P,   with a projector P of `rank` columns that is renewed every `update_proj_gap` steps

For a 4096 x 4096 matrix and rank 128, Adam's two averages take 4 MB in place of 128 MB.

- `low_rank`: the inner update is taken back, `P u` or `u Pᵀ`; P are the leading singular vectors of g (GaLore).
- `scale_by_low_rank`: g itself, scaled as the inner transform has scaled r; P is random (APOLLO).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import averages, tree
from gradtx.adaptive import scale_by_adam
from gradtx.core import fields
from gradtx.core.annotations import NonNegative, NonNegativeInt, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.fields import Field, Length
from gradtx.core.formula import per_element
from gradtx.core.routing import by_shape
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.core.views import View, through
from gradtx.matrices import lapack
from gradtx.numerics import divide, root

Side = Literal["std", "reverse_std", "left", "right"]
Proj = Literal["svd", "random"]


def projected_axis(shape: tuple[int, ...], side: Side) -> int:
    """The axis that the projector shortens; of a square matrix the first one, unless the side is "right"."""
    if side in ("left", "right"):
        return 0 if side == "left" else 1
    wanted = min(shape) if side == "std" else max(shape)
    return shape.index(wanted)


def project(x: Array, projector: Array, axis: int) -> Array:
    """`Pᵀ x`, or `x P`."""
    return projector.conj().T @ x if axis == 0 else x @ projector


def take_back(x: Array, projector: Array, axis: int) -> Array:
    """`P x`, or `x Pᵀ`."""
    return projector @ x if axis == 0 else x @ projector.conj().T


def singular_vectors(g: Array, rank: int, axis: int) -> Array:
    """The leading ones along an axis, as columns; constant for derivatives, which they lack where two values are equal.

    They do not depend on the size of g, which may be 1e-20 or 1e20.
    """
    g = jax.lax.stop_gradient(g)
    u, _, vh = lapack.svd(divide(g, jnp.max(jnp.abs(g), initial=0)))
    return u[:, :rank] if axis == 0 else vh[:rank].conj().T


def _view(up: Any, rank: int, every: int, side: Side, proj: Proj, seed: int) -> View:
    """A view of each matrix through its projector, which a refresh renews before the step."""

    def axes(shape: tuple[int, ...]) -> tuple[int, Length]:
        axis = projected_axis(shape, side)
        longest = min(shape) if proj == "svd" else shape[axis]  # as many singular vectors there are
        return axis, Length(min(rank, longest))

    def form(shape: tuple[int, ...]) -> tuple[int, ...]:
        axis, short = axes(shape)
        return (short, 1) if axis == 0 else (0, short)

    def down(x: Array, *, projector: Array) -> Array:
        return project(x, projector, projected_axis(x.shape, side))

    def decomposed(g: Array, *, projector: Array) -> dict[str, Array]:
        found = singular_vectors(g, projector.shape[1], projected_axis(g.shape, side))
        return {"projector": jnp.where(jnp.all(jnp.isfinite(found)), found, projector)}

    def drawn(g: Array, *, projector: Array, key: Array) -> dict[str, Array]:
        del g
        return {"projector": jax.random.normal(key, projector.shape, projector.dtype) / projector.shape[1] ** 0.5}

    kept: dict[str, Any] = {"projector": Field(1.0, axes=axes, diagonal=True)}
    kept |= {"key": fields.key(seed)} if proj == "random" else {}
    refresh = drawn if proj == "random" else decomposed
    return View(down, up, None, refresh, every=every, before=True, reach="matrix", form=Field(axes=form), **kept)


@transform
def low_rank(
    inner: Transform,
    rank: PositiveInt = 128,
    update_proj_gap: PositiveInt = 200,
    scale: NonNegative = 1.0,
    *,
    proj_type: Side = "reverse_std",
    proj: Proj = "svd",
    key: NonNegativeInt = 0,
) -> Rule:
    """Runs a transform on projected gradients, and takes its updates back.

        u = scale P inner(Pᵀ g), or scale inner(g P) Pᵀ
        every update_proj_gap steps P <- the leading singular vectors of g

    P starts as the first columns of the identity. A decomposition that is not finite keeps the previous P. The state of
    the inner transform stays as it is when P changes, as the authors do it, though its averages then mix two bases.

    Source: Zhao et al. 2024 (arXiv 2403.03507, GaLore), algorithm 1, with the projector of galore-torch. The singular
    vectors are from an SVD, as there and in optax: the eigenvectors of the smaller g gᵀ took 0.6 of its time, which is
    spent once in 200 steps, but lost 5% more of a float32 gradient of condition 1e6.

    Args:
      inner: a transform of the projected matrices, such as `scale_by_adam()`. It sees projected params too.
      rank: the number of columns of P, at least 1; at most the matrix's smaller length (its projected one if random).
      update_proj_gap: the number of steps from one P to the next, at least 1; the first step finds the first.
      scale: a factor >= 0, a number or a schedule; the authors use 0.25. [1]
      proj_type: which axis of a kernel (in, out) is projected: "reverse_std" the longer one (optax), "std" the shorter
        one (the authors' default), "left" the first, "right" the second. Of a square kernel the first, which is what
        the authors' "std" does to its transpose, a torch weight.
      proj: "svd", or "random": normal numbers of variance 1 / rank.
      key: the seed of random projectors, an int >= 0.

    State: `projector`, n · rank numbers for a projected axis of length n; the inner transform's state for matrices in
    which n is replaced by rank; `count`, a scalar; with proj="random" `key`, 8 bytes. It may be stored in fewer bits.

    Errors: ValueError for leaves that are not matrices (route them with `by_shape`), or an argument outside its range;
    TypeError if the inner transform evaluates functions of the params.

    Singular vectors are unique at most up to their signs. Until the second refresh no update depends on them; after it
    the averages do, so that runs on different backends differ. For hypergradients P is a constant.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.low_rank(gradtx.identity(), rank=1), jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> tx.update(g, tx.init(g))[0]
    Array([[2., 0.],
           [0., 0.]], dtype=float32)
    """

    def up(x: Array, *, projector: Array, update: Array) -> Array:
        return scale * take_back(x, projector, projected_axis(update.shape, proj_type))

    return through(_view(up, rank, update_proj_gap, proj_type, proj, key), inner)


@transform
def scale_by_low_rank(
    inner: Transform,
    rank: PositiveInt = 256,
    update_proj_gap: PositiveInt = 200,
    scale: NonNegative = 1.0,
    *,
    scale_type: Literal["channel", "tensor"] = "channel",
    proj_type: Side = "std",
    proj: Proj = "random",
    key: NonNegativeInt = 0,
) -> Rule:
    """Scales each gradient as a transform scales its projection.

        r = Pᵀ g, or g P;   s = norm(inner(r)) / (norm(r) + 1e-8);   u = g s sqrt(scale)

    The norms go over the projected axis, so that each row or column of g has its own s; or over the whole matrix.

    Source: Zhu et al. 2024 (arXiv 2412.05270, APOLLO), algorithm 1, with the root and the 1e-8 of apollo-torch. There
    rank is not limited to the length of the projected axis, and "reverse_std" with "channel" raises an error.

    Args:
      inner: a transform of the projected matrices, such as `scale_by_adam()`.
      rank: the number of columns of P, at least 1; at most the length of the axis, or with "svd" the smaller length.
      update_proj_gap: the number of steps from one P to the next, at least 1; the first step draws the first.
      scale: >= 0, a number or a schedule, of which the root is taken. [1]
      scale_type: "channel", one s for each row or column along the axis that is not projected; "tensor", one in all.
      proj_type, proj, key: as `low_rank`. Two such transforms in one composition need different seeds.

    State: as `low_rank`, with `key`.

    Errors: as `low_rank`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_low_rank(gradtx.scale(3.0)), jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> print([f"{u:.3f}" for u in jnp.diag(tx.update(g, tx.init(g))[0])])         # whatever the projector is
    ['6.000', '3.000']
    """

    def up(x: Array, *, update: Array, shown: Array) -> Array:
        axis = projected_axis(update.shape, proj_type) if scale_type == "channel" else None
        factor = tree.norm(x, axis).value / (tree.norm(shown, axis).value + 1e-8)
        return update * (root(scale) * factor)

    return through(_view(up, rank, update_proj_gap, proj_type, proj, key), inner)


@transform
def scale_by_bias_correction(b1: Unit = 0.9, b2: Unit = 0.999) -> Rule:
    """Adam's corrections as a factor of the step: `u = g sqrt(1 - b2^t) / (1 - b1^t)`.

    With it, `scale_by_momentum(b1, form="average") + scale_by_rms(b2, eps, debias=False)` is
    `scale_by_adam(b1, b2, eps, eps_hat=True)`; other transforms may stand between the two (APOLLO).

    Source: Kingma and Ba 2014 (arXiv 1412.6980), end of section 2.

    Args:
      b1, b2: decays in [0, 1), numbers or schedules: of the average of gradients, and of squares.

    State: `weights`, four numbers; `count`, a scalar. Errors: ValueError for a decay outside [0, 1).

    >>> import gradtx
    >>> tx = gradtx.scale_by_bias_correction(0.9, 0.99)
    >>> print(f"{tx.update(1.0, tx.init(0.0))[0]:.3f}")
    1.000
    """

    def update(u: Array, *, mu_correction: Array, nu_correction: Array) -> Array:
        return u * (mu_correction / root(nu_correction))

    once = averages.debiasing_each(mu=b1, nu=b2)
    return per_element(update, once=once, weights=fields.weights("mu", "nu"))


@transform
def scale_by_galore(
    rank: PositiveInt = 128,
    update_proj_gap: PositiveInt = 200,
    scale: NonNegative = 1.0,
    base_optimizer: Transform | None = None,
    *,
    weight_dimension_numbers: Any = None,
    proj_type: Side = "reverse_std",
) -> Transform:
    """A direction and scaling in a projected space, for matrices; in the full one for all other leaves.

        by_shape(matrix=low_rank(base_optimizer, rank, update_proj_gap, scale), other=base_optimizer)

    Source: as optax.contrib.scale_by_galore. See `low_rank`.

    Args:
      rank, update_proj_gap, scale, proj_type: as `low_rank`; other leaves are not scaled.
      base_optimizer: a transform without learning rate and decay; None for `scale_by_adam()`.
      weight_dimension_numbers: the matrices of each leaf; see `by_shape`.

    State: that of its parts.

    Errors: ValueError for an argument outside its range.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.scale_by_galore(8, base_optimizer=gradtx.scale_by_lion()).init(jnp.zeros((300, 200)))
    >>> gradtx.find(state, "matrix/mu").shape
    (8, 200)
    """
    base = scale_by_adam() if base_optimizer is None else base_optimizer
    matrix = low_rank(base, rank, update_proj_gap, scale, proj_type=proj_type)
    return by_shape(matrix, base, weight_dimension_numbers)
