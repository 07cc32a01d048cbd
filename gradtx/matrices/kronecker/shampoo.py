"""Shampoo: a matrix is divided by roots of its Gram matrices, one for its rows and one for its columns.

    L = Σ g gᵀ,   R = Σ gᵀ g,   u = L^(-1/4) g R^(-1/4)

After one step this is the polar factor of g, which Muon computes without state: all singular values become 1. Adagrad
is the same with the diagonals of L and R, and the exponents of a vector.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from gradtx.averages import Weights, total, weights_after
from gradtx.core import fields
from gradtx.core.annotations import Fraction, NonNegative, NonNegativeInt, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.fields import Field, Length
from gradtx.core.formula import per_matrix
from gradtx.core.rule import Rule
from gradtx.matrices.kronecker.decompositions import grown, kept
from gradtx.matrices.kronecker.roots import inverse_root, product
from gradtx.momentum import Step


@transform
def scale_by_shampoo(
    b2: Fraction = 1.0,
    eps: NonNegative = 1e-12,
    *,
    precondition_frequency: PositiveInt = 1,
    start_preconditioning_step: NonNegativeInt | None = None,
    exponent: NonNegative | None = None,
    max_preconditioner_dim: PositiveInt | None = None,
    debias: bool = True,
) -> Rule:
    """Multiplies a matrix by inverse roots of the averages of `g gᵀ` and `gᵀ g`.

        L <- b2 L + (1 - b2) g gᵀ;   R <- b2 R + (1 - b2) gᵀ g;   with b2 = 1 the sums, L + g gᵀ and R + gᵀ g
        P = (L / (1 - b2^t) + eps I)^(-p),   Q likewise of R, every f steps;   u = P x Q

    with f = precondition_frequency, p = exponent, and x what flows, which is g unless it is in a sum. Before the first
    roots u = x.

    Source: Gupta, Koren, Singer 2018 (arXiv 1802.09568), algorithm 1; conventions as DistributedShampoo (Shi et al.
    2023, arXiv 2309.06497): eps is added after a negative smallest eigenvalue is shifted to 0, while the paper begins
    with L = eps I. There a 1-sided form is an exponent of 0.

    Args:
      b2: the decay in [0, 1], a number or a schedule; 1 for the sum.
      eps: >= 0. [gradient²]
      precondition_frequency: f, the number of steps from one computation of the roots to the next.
      start_preconditioning_step: the first step, counted from 1, that computes roots; None for f.
      exponent: p >= 0; None for 1/(2k), where k is the number of factors: 1/4, and 1/2 for one.
      max_preconditioner_dim: a longer side has no factor, so that the matrix has one, or none; None for no limit. For
        blocks instead, see `in_blocks`.
      debias: divide L and R by the sum of their weights.

    A matrix with one row or one column is a vector: it has one factor, with p = 1/2.

    State: for an m x n matrix `left` and `left_root` with m², `right` and `right_root` with n² numbers, 8 (m² + n²)
    bytes; a side without a factor has one number. `failures`, one int32 for each matrix: how often L, R or a root
    was not finite when roots were due; then the one before is kept. `weights` and `count`, scalars.

    Errors: ValueError for an argument outside its range, and for leaves that are not matrices; TypeError for complex
    leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_shampoo(), jnp.array([[3.0, 0.0], [0.0, -0.1]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> print([[f"{x:.3f}" for x in row] for row in u])
    [['1.000', '0.000'], ['0.000', '-1.000']]
    """
    start = precondition_frequency if start_preconditioning_step is None else start_preconditioning_step

    def sides(shape: tuple[int, ...]) -> tuple[bool, bool]:
        """Whether rows and columns have a factor."""
        short = [size <= (max_preconditioner_dim or size) for size in shape]
        return shape[0] > 1 and short[0], (shape[1] > 1 or shape[0] == 1) and short[1]

    def statistics(g: Array, *old: Array) -> tuple[list[Array], Array]:
        """The averages with g, or those before if they are not finite; and whether one is not."""
        weight, news, failed = jnp.where(b2 == 1, 1, 1 - b2), list(old), jnp.zeros((), bool)
        for i, there in enumerate(sides(g.shape)):
            if there:
                news[i], bad = grown(old[i], g, i, b2, weight)
                failed |= bad
        return news, failed

    def once(*, count: Array, weights: Weights) -> dict[str, Any]:
        weights = weights_after(weights, b2)
        given = total(weights)
        due = (count == start) | ((count > start) & (count % precondition_frequency == 0))
        return {"weights": weights, "due": due, "correction": 1 / jnp.where(given == 0, 1, given)}

    def refresh(
        u: Array,
        *,
        observed: Array,
        left: Array,
        right: Array,
        left_root: Array,
        right_root: Array,
        failures: Array,
        correction: Array,
    ) -> dict[str, Array]:
        p = 0.5 / max(1, sum(sides(u.shape))) if exponent is None else exponent
        roots, (news, failed) = [left_root, right_root], statistics(observed, left, right)
        for i, there in enumerate(sides(u.shape)):
            if there:
                roots[i], bad = kept(inverse_root(correction * news[i] if debias else news[i], p, eps), roots[i])
                failed |= bad
        return {"left_root": roots[0], "right_root": roots[1], "failures": failures + failed}

    def update(u: Array, *, observed: Array, left: Array, right: Array, left_root: Array, right_root: Array) -> Step:
        (left, right), _ = statistics(observed, left, right)
        rows, columns = sides(u.shape)
        u = product(left_root, u) if rows else u
        return product(u, right_root) if columns else u, {"left": left, "right": right}

    return per_matrix(
        update,
        once=once,
        refresh=refresh,
        stack=False,
        traits=("real",),
        left=_factor(0, sides, 0.0),
        right=_factor(1, sides, 0.0),
        left_root=_factor(0, sides, 1.0),
        right_root=_factor(1, sides, 1.0),
        failures=fields.integer(),
        weights=fields.weights(),
    )


def _factor(axis: int, sides: Callable[[tuple[int, ...]], tuple[bool, bool]], start: float) -> Field:
    """A square matrix along an axis that has a factor, else one number."""

    def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (axis, axis) if sides(shape)[axis] else (Length(1), Length(1))

    return Field(start, axes=axes, low=False, diagonal=True)
