"""Exponentially weighted averages: the statistic that everything else reads.

    v_t = b v_{t-1} + (1 - b) x_t,   v_0 = 0

With b = 0.9 and x = 7.5, 4, 6, 8 that is 0.75, 1.075, 1.5675, 2.21075. Unrolled, the newest value has weight 0.1, the one before
0.1·0.9, then 0.1·0.9²: the weights of t values add up to 1 - b^t, not to 1, so v starts too small. Dividing by that sum is
bias correction; the uncorrected v is what is carried on.

- Momentum is this average of gradients; RMSProp divides by the root of this average of squared gradients.
- Adam is both, each with its bias corrected.

Where the decay varies in time, the weights add up to 1 minus the product of the decays. A transform keeps the mean of their
logarithms (`mean_log_decay`), which for a constant decay is log b itself, so nothing is lost against the closed form.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradtx import numerics, tree
from gradtx.core.annotations import Unit
from gradtx.core.transform import Rule, transform

PyTree = Any


def average(previous: PyTree, values: PyTree, decay: ArrayLike) -> PyTree:
    """`b v + (1 - b) x` at every leaf.

    Args:
      previous: v, the average so far: zeros at first.
      values: x, a tree of the same structure.
      decay: b, a scalar in [0, 1): the average remembers about 1 / (1 - b) values.

    >>> from gradtx import averages
    >>> averages.average(0.75, 4.0, 0.9)
    Array(1.075, dtype=float32)
    """
    return tree.map(lambda v, x, b: b * v + (1 - b) * x, previous, values, b=decay)


def average_squares(previous: PyTree, values: PyTree, decay: ArrayLike) -> PyTree:
    """`b v + (1 - b) |x|²` at every leaf; the arguments are those of `average`."""
    return tree.map(lambda v, x, b: b * v + (1 - b) * numerics.abs_squared(x), previous, values, b=decay)


def correct_bias(biased: PyTree, weight: ArrayLike) -> PyTree:
    """The average divided by the sum of its weights, `v / (1 - b^t)`.

    Args:
      biased: v, of `average`.
      weight: that sum: `numerics.total_weight(numerics.log_decay(b), t)`.

    >>> import jax.numpy as jnp
    >>> from gradtx import averages, numerics
    >>> averages.correct_bias(0.75, numerics.total_weight(numerics.log_decay(0.9), jnp.int32(1)))
    Array(7.5, dtype=float32)
    """
    return tree.map(lambda v, weight: v / weight, biased, weight=weight)


def start_weight(params: PyTree, debias: bool = True) -> dict[str, Array]:
    """The field of a state that knows the weights of an average: `mean_log_decay`, a scalar. None if not debiased."""
    return {"mean_log_decay": jnp.zeros((), tree.precision(params))} if debias else {}


def advance_weight(state: dict[str, Any], decay: ArrayLike, count: Array) -> dict[str, Array]:
    """That field after one more value."""
    return {"mean_log_decay": mean_log_decay(state["mean_log_decay"], decay, count)} if "mean_log_decay" in state else {}


def corrected(biased: PyTree, weight: dict[str, Array], count: Array) -> PyTree:
    """The average with its bias corrected, or as it is where its weights are not kept."""
    return correct_bias(biased, numerics.total_weight(weight["mean_log_decay"], count)) if weight else biased


def mean_log_decay(previous: Array, decay: ArrayLike, count: Array) -> Array:
    """The mean of log b over `count` decays, from the mean over the ones before and the newest.

    For a constant decay it is log b exactly, at every count.
    """
    newest = numerics.log_decay(decay)
    return previous.astype(newest.dtype) + (newest - previous.astype(newest.dtype)) / count.astype(newest.dtype)


@transform
def ema(decay: Unit, *, debias: bool = True) -> Rule:
    """Replaces the updates by their exponentially weighted average.

        v <- b v + (1 - b) g;   u = v / (1 - b^t), or v with debias=False                           (b = decay)

    Source: the bias correction is that of Kingma and Ba 2014 (arXiv 1412.6980), section 3; with a decay that varies, b^t is the
    product of the decays so far. optax.ema computes the same.

    Args:
      decay: b in [0, 1), a number or a schedule.
      debias: divide by the sum of the weights.

    State: `ema`, the biased average, like the params in at least float32: 4 bytes per parameter; `mean_log_decay` (with
    debias) and `count`, scalars.

    Errors: ValueError for a decay outside [0, 1).

    >>> import gradtx
    >>> tx = gradtx.ema(0.9, debias=False)
    >>> state = tx.init(0.0)
    >>> for x in [7.5, 4.0, 6.0, 8.0]:
    ...     v, state = tx.update(x, state)
    >>> print(f"{v:.5f}")
    2.21075
    """

    def init(params: PyTree) -> dict[str, Any]:
        return {"ema": tree.zeros_like(params)} | start_weight(params, debias)

    def update(updates: PyTree, state: dict[str, Any], *, count: Array) -> tuple[PyTree, dict[str, Any]]:
        biased = average(state["ema"], updates, decay)
        weight = advance_weight(state, decay, count)
        return corrected(biased, weight, count), {"ema": biased} | weight

    return Rule(init=init, update=update)
