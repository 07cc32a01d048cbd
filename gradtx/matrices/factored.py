"""Factored statistics of matrices: one number for each row and each column instead of one for each element.

    v ≈ r cᵀ / mean(r),   where r and c are the means of v over rows and columns

This is exact if v has rank one. An m x n matrix then takes m + n numbers: 4 kB instead of 1 MB for 512 x 512.

- `scale_by_factored_rms`: v is an average of squared gradients (Adafactor).
- `scale_by_confidence`: v is an average of squared differences between an update and the average of updates (CAME).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.averages import average
from gradtx.core import fields
from gradtx.core.annotations import NonNegative, NonNegativeInt, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.fields import Field, Length
from gradtx.core.formula import per_leaf
from gradtx.core.rule import Rule
from gradtx.momentum import Step
from gradtx.numerics import divide, root


def factored_axes(shape: tuple[int, ...], least: int) -> tuple[int, int] | None:
    """The two longest axes, the longest last; None where one of them is shorter than `least`."""
    order = np.argsort(shape, kind="stable")
    return (int(order[-2]), int(order[-1])) if len(shape) > 1 and shape[order[-2]] >= least else None


Pairs = Callable[[tuple[int, ...]], tuple[int, int] | None]
"""A function from the shape of a leaf to its two factored axes, None for a leaf that keeps every element."""


def factors(axes_of: Pairs) -> dict[str, Any]:
    """The fields `row` and `col`: the means over the longest axis, and over the second longest."""

    def means(which: int) -> Field:
        def axes(shape: tuple[int, ...]) -> tuple[Any, ...]:
            pair = axes_of(shape)
            return (Length(1),) if pair is None else tuple(i for i in range(len(shape)) if i != pair[which])

        return Field(axes=axes, real=True, nonnegative=True)

    return {"row": means(1), "col": means(0)}


def averaged(row: Array, col: Array, squares: Array, b: Any, pair: tuple[int, int]) -> tuple[Array, Array]:
    """The averages of row and column means, with one more matrix of squares."""
    second, first = pair
    return average(row, jnp.mean(squares, first), b), average(col, jnp.mean(squares, second), b)


def product(row: Array, col: Array, pair: tuple[int, int], least: Any = 0) -> Array:
    """`r cᵀ / max(mean(r), least)`, or 0 where that is 0/0."""
    second, first = pair
    r, c = jnp.expand_dims(row, first), jnp.expand_dims(col, second)
    return divide(r, jnp.maximum(jnp.mean(r, second, keepdims=True), least)) * c


def bounded_squares(x: Array) -> Array:
    """`x²`, so far bounded that a sum over the leaf is finite; for steps that are finite after gradients of 1e20."""
    return jnp.minimum(jnp.square(x), jnp.finfo(x.dtype).max / max(x.size, 1))


@transform
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Unit = 0.8,
    step_offset: NonNegativeInt = 0,
    min_dim_size_to_factor: PositiveInt = 128,
    epsilon: NonNegative = 1e-30,
    *,
    eps_in_sum: bool = True,
    decay: Unit | None = None,
) -> Rule:
    """Divides by the root of the average of squared gradients; for a matrix, only row and column means are kept.

        b = 1 - max(t - step_offset, 1)^(-decay_rate), or decay
        r <- b r + (1 - b) mean_row(g² + eps);   c over columns
        u = g / sqrt(r cᵀ / mean(r));   other leaves: v <- b v + (1 - b) (g² + eps);   u = g / sqrt(v);   0/0 = 0

    Source: Shazeer and Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, section 7.2 for b. As optax, whose function
    of this name also accepts another decay function. PyTorch's Adafactor adds nothing to g², but uses max(mean(r), eps)
    and max(v, eps²): eps_in_sum=False.

    Args:
      factored: False keeps the average of every element, in all leaves.
      decay_rate: in [0, 1), a number or a schedule: how fast b grows towards 1.
      step_offset: the step count at which b starts again, for fine-tuning from an older state. Until then b is 0, where
        optax gives NaN.
      min_dim_size_to_factor: the minimum length of a leaf's two longest axes; smaller leaves keep every element.
      epsilon: >= 0. [gradient²], or [gradient] with eps_in_sum=False, where eps² bounds v.
      eps_in_sum: add eps to g²; False uses it as a lower bound (PyTorch).
      decay: None, or a constant b in [0, 1) in place of the growing one (CAME). The averages start at 0 and are not
        debiased.

    State: `row` and `col`, for an m x n matrix n and m numbers; `nu`, real, like the other leaves: 4 bytes per
    parameter. Fields that a leaf does not need have one element, since orbax does not save empty arrays. `count`, a
    scalar.

    Errors: ValueError for an argument outside its range; TypeError for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2).init(jnp.zeros((300, 200)))
    >>> gradtx.find(state, "row").shape, gradtx.find(state, "col").shape, gradtx.find(state, "nu").shape
    ((200,), (300,), (1,))
    """

    def axes_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
        return factored_axes(shape, min_dim_size_to_factor) if factored else None

    def update(u: Array, *, observed: Array, row: Array, col: Array, nu: Array, count: Array) -> Step:
        b = 1 - jnp.maximum(count - step_offset, 1) ** -decay_rate if decay is None else decay
        squares, pair = bounded_squares(observed) + (epsilon if eps_in_sum else 0), axes_of(u.shape)
        if pair is None:
            nu = v = average(nu, squares, b)
        else:
            row, col = averaged(row, col, squares, b, pair)
            v = product(row, col, pair, 0 if eps_in_sum else epsilon)
        v = v if eps_in_sum else jnp.maximum(v, epsilon**2)
        return divide(u, root(v)), {"row": row, "col": col, "nu": nu}

    def others(shape: tuple[int, ...]) -> tuple[Any, ...]:
        return tuple(range(len(shape))) if axes_of(shape) is None else (Length(1),)

    nu = Field(axes=others, real=True, nonnegative=True)
    return per_leaf(update, traits=("real",), **factors(axes_of), nu=nu)


@transform
def scale_by_confidence(
    b1: Unit = 0.9, decay: Unit = 0.9999, eps: NonNegative = 1e-16, min_dim_size_to_factor: PositiveInt = 1
) -> Rule:
    """Averages updates, and divides the average by how far single updates are from it.

        m <- b1 m + (1 - b1) u;   s = (u - m)² + eps;   r <- decay r + (1 - decay) mean_row(s);   c over columns
        m / sqrt(r cᵀ / mean(r));   for other leaves m itself

    Where updates agree, s is small, and the step is long; the averages start at 0 and are not debiased.

    Source: Luo et al. 2023 (arXiv 2307.02047, CAME), algorithm 2, lines 8 to 12, where s is called instability. As in
    the authors' code (came-pytorch), which factors the last two axes of a leaf with more of them; here they are the two
    longest, as in Adafactor. The same quantity, element by element and without an average in the numerator, is
    `scale_by_belief`.

    Args:
      b1: in [0, 1), a number or a schedule: the decay of the average of updates.
      decay: in [0, 1), a number or a schedule: the decay of r and c.
      eps: >= 0. [update²]
      min_dim_size_to_factor: the minimum length of a leaf's two longest axes; smaller leaves are averaged only.

    State: `mu`, like the params in at least float32: 4 bytes per parameter; `row` and `col`, for an m x n matrix n and
    m numbers, one element each in leaves without factors; `count`, a scalar.

    Errors: ValueError for an argument outside its range; TypeError for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, u = gradtx.scale_by_confidence(0.5, 0.0), jnp.array([[1.0, 2.0], [1.0, 2.0]])
    >>> tx.update(u, tx.init(u))[0]                            # m = u - m = u / 2
    Array([[1., 1.],
           [1., 1.]], dtype=float32)
    """

    def axes_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
        return factored_axes(shape, min_dim_size_to_factor)

    def update(u: Array, *, mu: Array, row: Array, col: Array) -> Step:
        mu, pair = average(mu, u, b1), axes_of(u.shape)
        if pair is None:
            return mu, {"mu": mu, "row": row, "col": col}
        row, col = averaged(row, col, bounded_squares(u - mu) + eps, decay, pair)
        return divide(mu, root(product(row, col, pair))), {"mu": mu, "row": row, "col": col}

    return per_leaf(update, traits=("real",), mu=fields.like(), **factors(axes_of))


@transform
def scale_by_param_block_rms(min_scale: NonNegative = 1e-3) -> Rule:
    """`u = g max(rms(w), min_scale)`, where rms is the root mean square of each leaf's weights.

    Source: Shazeer and Stern 2018 (arXiv 1804.04235), section 8: steps relative to the size of the weights. As optax.

    Args:
      min_scale: >= 0, a number or a schedule: a lower bound of the rms, so that zero weights can move. [params]

    State: `count`, a scalar. It needs the params. Errors: ValueError for a negative min_scale.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.scale_by_param_block_rms(), jnp.array([3.0, 4.0])
    >>> print([f"{u:.3f}" for u in tx.update(jnp.array([1.0, 2.0]), tx.init(params), params)[0]])
    ['3.536', '7.071']
    """

    def update(u: Array, *, params: Array) -> Array:
        rms = tree.norm(params).value / max(tree.number_of_elements(params), 1) ** 0.5
        return u * jnp.maximum(rms, min_scale)

    return per_leaf(update, traits=("idle", "norms"))
