"""Factored statistics of matrices: one number for each row and each column instead of one for each element.

    v ≈ r cᵀ / mean(r),   where r and c are the means of v over rows and columns

This is exact if v has rank one. An m x n matrix then takes m + n numbers: 4 kB instead of 1 MB for 512 x 512.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.averages import average
from gradtx.core.annotations import NonNegative, NonNegativeInt, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.fields import Field, Length
from gradtx.core.formula import per_leaf
from gradtx.core.rule import Rule
from gradtx.momentum import Step
from gradtx.numerics import abs_squared, divide, root


def factored_axes(shape: tuple[int, ...], least: int) -> tuple[int, int] | None:
    """The two longest axes, the longest last; None where one of them is shorter than `least`."""
    order = np.argsort(shape, kind="stable")
    return (int(order[-2]), int(order[-1])) if len(shape) > 1 and shape[order[-2]] >= least else None


@transform
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Unit = 0.8,
    step_offset: NonNegativeInt = 0,
    min_dim_size_to_factor: PositiveInt = 128,
    epsilon: NonNegative = 1e-30,
    *,
    eps_in_sum: bool = True,
) -> Rule:
    """Divides by the root of the average of squared gradients; for a matrix, only row and column means are kept.

        b = 1 - max(t - step_offset, 1)^(-decay_rate);   r <- b r + (1 - b) mean_row(g² + eps);   c over columns
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

    def kept(which: int) -> Field:
        def axes(shape: tuple[int, ...]) -> tuple[Any, ...]:
            pair = axes_of(shape)
            return (Length(1),) if pair is None else tuple(i for i in range(len(shape)) if i != pair[which])

        return Field(axes=axes, real=True, nonnegative=True)

    def update(u: Array, *, observed: Array, row: Array, col: Array, nu: Array, count: Array) -> Step:
        b = 1 - jnp.maximum(count - step_offset, 1) ** -decay_rate
        squares, pair = abs_squared(observed) + (epsilon if eps_in_sum else 0), axes_of(u.shape)
        if pair is None:
            nu = v = average(nu, squares, b)
        else:
            second, first = pair
            row, col = average(row, jnp.mean(squares, first), b), average(col, jnp.mean(squares, second), b)
            r, c = jnp.expand_dims(row, first), jnp.expand_dims(col, second)
            v = divide(r, jnp.maximum(jnp.mean(r, second, keepdims=True), epsilon)) * c
        v = v if eps_in_sum else jnp.maximum(v, epsilon**2)
        return divide(u, root(v)), {"row": row, "col": col, "nu": nu}

    def others(shape: tuple[int, ...]) -> tuple[Any, ...]:
        return tuple(range(len(shape))) if axes_of(shape) is None else (Length(1),)

    nu = Field(axes=others, real=True, nonnegative=True)
    return per_leaf(update, traits=("real",), row=kept(1), col=kept(0), nu=nu)


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
