"""PSGD-Kron: a matrix is multiplied by learned factors, which need neither eigenvalues nor roots.

    u = Qlᵀ Ql g Qrᵀ Qr

The factors follow the gradient of a criterion whose minimum whitens: there the covariance of u is the identity. A step
multiplies them by a triangular matrix that is close to the identity, so that they stay invertible.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics
from gradtx.core import fields
from gradtx.core.annotations import Fraction, NonNegative, Positive, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.fields import Field, Length
from gradtx.core.formula import per_matrix
from gradtx.core.rule import Rule
from gradtx.matrices import lapack
from gradtx.matrices.kronecker.roots import product, transposed

Factors = tuple[Array, Array]
DAMPING = 2.0**-11.5
"""The root of float32's machine epsilon: the share of noise in what the factors are fitted to."""


@transform
def scale_by_kron(
    preconditioner_update_probability: Fraction | None = None,
    max_size_triangular: PositiveInt = 8192,
    min_ndim_triangular: PositiveInt = 2,
    memory_save_mode: Literal["one_diag", "all_diag"] | None = None,
    momentum_into_precond_update: bool = True,
    preconditioner_lr: NonNegative = 0.1,
    preconditioner_init_scale: Positive = 1.0,
    *,
    balance_probability: Fraction = 0.01,
    seed: int = 0,
) -> Rule:
    """Multiplies a matrix from both sides by factors that are fitted to the gradients.

        G = x + 2^-11.5 mean|x| V;   A = Ql G Qrᵀ;   B = Ql^-ᵀ V Qr^-1              (V: random normal numbers)
        Ql <- Ql - μ triu(A Aᵀ - B Bᵀ) Ql / |A Aᵀ + B Bᵀ|;   Qr likewise with Aᵀ A and Bᵀ B
        u = Qlᵀ Ql x Qrᵀ Qr                                                         (μ = preconditioner_lr)

    with x what flows, and |.| a lower bound of the spectral norm. A diagonal factor is a vector: of A Aᵀ only the
    diagonal is used, and |.| is its largest element.

    Source: Li 2018 (arXiv 1512.04202) and 2022 (arXiv 2211.04422), as psgd-jax 0.2.9 (evanatyourservice), whose
    `scale_by_kron` has the momentum and the limit inside as well: see `kron`. The "probability" is a period there too:
    the factors are updated when the steps since the last update reach its inverse. Departures: a zero gradient leaves
    the factors as they are, where they grow without limit there; each matrix is balanced by its own chance; a matrix
    with one row or one column is a vector; a batch of matrices has factors for each.

    Args:
      preconditioner_update_probability: p in [0, 1], a number or a schedule: the factors are updated every 1/p steps.
        None for `exp(-0.001 (t - 500))`, at most 1 and at least 0.03.
      max_size_triangular: a longer side has a diagonal factor.
      min_ndim_triangular: with 2, vectors have a diagonal factor; with 1 a triangular one.
      memory_save_mode: "one_diag": the longer side has a diagonal factor; "all_diag": both; None: neither.
      momentum_into_precond_update: fit the factors to what flows; False: to the gradient that came in.
      preconditioner_lr: μ >= 0, a number or a schedule.
      preconditioner_init_scale: > 0, what both factors multiply x by at first, before it is squared.
      balance_probability: in [0, 1]: how often an update is preceded by giving both factors the same largest element.
      seed: of the random numbers.

    `update` accepts `probe=`, a tree like the params, in place of V, to reproduce others' runs.

    State: for an m x n matrix `left` with m² and `right` with n² numbers, a diagonal one with m or n; 4 bytes each.
    `failures`, one int32 for each matrix: how often new factors were not finite, so that the previous ones were kept.
    `counter`, `key` and `count`, scalars.

    Errors: ValueError for an argument outside its range, and for leaves that are not matrices; TypeError for complex
    leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.scale_by_kron(memory_save_mode="one_diag").init(jnp.zeros((3, 5)))
    >>> gradtx.find(state, "left").shape, gradtx.find(state, "right").shape
    ((3, 3), (5,))
    """

    def forms(shape: tuple[int, ...]) -> "Forms":
        return Forms.of(shape, max_size_triangular, min_ndim_triangular, memory_save_mode)

    def factor(axis: int, start: Any) -> Field:
        def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
            found = forms(shape)
            own = axis if found.fitted[axis] else Length(1)
            return (own, own) if found.triangular[axis] else (own,)

        return Field(start, axes=axes, low=False, diagonal=True)

    def once(*, count: Array, counter: Array) -> dict[str, Any]:
        p = preconditioner_update_probability
        p = jnp.clip(jnp.exp(-0.001 * (count - 500)), 0.03, 1.0) if p is None else p
        counter = numerics.saturating_increment(counter)
        due = counter >= 1 / p
        return {"counter": jnp.where(due, 0, counter), "due": due}

    def refresh(
        u: Array, *, observed: Array, left: Array, right: Array, failures: Array, key: Array, probe: Any = None
    ) -> dict[str, Array]:
        x, old, found = u if momentum_into_precond_update else observed, (left, right), forms(u.shape)
        if not x.size:
            return {"left": left, "right": right, "failures": failures}
        for_balance, for_probe = jax.random.split(key)
        v = jax.random.normal(for_probe, x.shape, x.dtype) if probe is None else probe
        g = x + DAMPING * jnp.mean(jnp.abs(x)) * v
        even = balanced(old) if all(found.fitted) else old
        balances = jax.random.uniform(for_balance, dtype=x.dtype) < balance_probability
        new = fitted((jnp.where(balances, even[0], left), jnp.where(balances, even[1], right)), g, v, preconditioner_lr)
        finite = jnp.isfinite(new[0]).all() & jnp.isfinite(new[1]).all()
        kept = [
            jnp.where(finite & (x != 0).any(), a, b) if there else b
            for a, b, there in zip(new, old, found.fitted, strict=True)
        ]
        return {"left": kept[0], "right": kept[1], "failures": failures + ~finite}

    def update(u: Array, *, left: Array, right: Array) -> Array:
        return preconditioned((left, right), u)

    return per_matrix(
        update,
        once=once,
        refresh=refresh,
        stack=False,
        traits=("real",),
        left=factor(0, 1.0),
        right=factor(1, preconditioner_init_scale),  # of a scale only the product of both matters
        failures=fields.integer(),
        counter=fields.integer(per="tree"),
        key=fields.key(seed),
        probe=fields.argument("leaf"),
    )


class Forms(NamedTuple):
    """For rows and columns: whether they have a factor that is fitted, and whether it is triangular."""

    fitted: tuple[bool, bool]
    triangular: tuple[bool, bool]

    @classmethod
    def of(cls, shape: tuple[int, ...], max_size: int, min_ndim: int, save: str | None) -> "Forms":
        rows, columns = shape
        there = rows > 1, columns > 1 or rows == 1
        diagonal = {None: (False, False), "one_diag": (rows > columns, rows <= columns), "all_diag": (True, True)}[save]
        enough = (rows > 1) + (columns > 1) >= min_ndim
        one, other = (enough and 1 < size <= max_size and not flat for size, flat in zip(shape, diagonal, strict=True))
        return cls(there, (one, other))


def balanced(factors: Factors) -> Factors:
    """Both factors with the same largest element, and the same product."""
    one, other = (jnp.max(jnp.abs(q)) for q in factors)
    mean = jnp.sqrt(one) * jnp.sqrt(other)
    return factors[0] * (mean / one), factors[1] * (mean / other)


def fitted(factors: Factors, g: Array, v: Array, step: Any) -> Factors:
    """The factors after one step of this size, for the gradient g and the probe v."""
    a, b = on_both_sides(times, factors, g), on_both_sides(divided, factors, v)
    largest = jnp.maximum(jnp.max(jnp.abs(a)), jnp.max(jnp.abs(b)))  # the step does not change with the unit of both
    a, b = numerics.divide(a, largest), numerics.divide(b, largest)
    return moved(factors[0], a, b, step), moved(factors[1], transposed(a), transposed(b), step)


def moved(q: Array, a: Array, b: Array, step: Any) -> Array:
    """One factor after a step: `q - step triu(a aᵀ - b bᵀ) q / |a aᵀ + b bᵀ|`."""
    if q.ndim == 1:
        one, other = jnp.sum(a * a, axis=1), jnp.sum(b * b, axis=1)
        return q - step * numerics.divide(one - other, jnp.max(one + other)) * q
    one, other = product(a, transposed(a)), product(b, transposed(b))
    return q - product(step * numerics.divide(jnp.triu(one - other), norm_lower_bound(one + other)), q)


def norm_lower_bound(a: Array) -> Array:
    """A lower bound of the largest eigenvalue of a symmetric matrix without negative ones, usually within 6% of it."""
    largest = jnp.max(jnp.abs(a))
    a = numerics.divide(a, largest)
    x = a @ a[jnp.argmax(jnp.sum(a * a, axis=1))]
    return largest * jnp.linalg.norm(a @ numerics.divide(x, jnp.linalg.norm(x)))


def preconditioned(factors: Factors, x: Array) -> Array:
    """`Qlᵀ Ql x Qrᵀ Qr`."""

    def twice(q: Array, x: Array) -> Array:
        return (q * q)[:, None] * x if q.ndim == 1 else product(transposed(q), product(q, x))

    return on_both_sides(twice, factors, x)


def times(q: Array, x: Array) -> Array:
    """`q x` with a triangular or a diagonal factor."""
    return q[:, None] * x if q.ndim == 1 else product(q, x)


def divided(q: Array, x: Array) -> Array:
    """`q^-ᵀ x` with a triangular or a diagonal factor."""
    return x / q[:, None] if q.ndim == 1 else lapack.divided_by_transpose(q, x)


def on_both_sides(function: Callable[[Array, Array], Array], factors: Factors, x: Array) -> Array:
    """`f(Ql, x)`, then the same with Qr and the transposed matrix."""
    left, right = factors
    return transposed(function(right, transposed(function(left, x))))
