"""Exponentially weighted averages: the statistic that everything else reads.

    v_t = b v_{t-1} + (1 - b) x_t,   v_0 = 0

With b = 0.9 and x = 7.5, 4, 6, 8 that is 0.75, 1.075, 1.5675, 2.21075. Unrolled, the newest value has weight 0.1, the
one before 0.1·0.9, then 0.1·0.9²: the weights of t values add up to 1 - b^t, not to 1, so v starts too small.
Dividing by that sum is bias correction; the uncorrected v is what is carried on.

- Momentum is this average of gradients; RMSProp divides by the root of this average of squared gradients.
- Adam is both, each with its bias corrected.

That sum is kept as it grows (`Weights`): it holds for a decay that varies in time, where it is 1 minus the product of
the decays; and in float32 it is a hundred times closer to the truth than `1 - b**t`, which cancels (for b = 0.9999,
1e-6 against 1e-4).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradtx import numerics, tree
from gradtx.core import storage
from gradtx.core.annotations import Dtype, Unit
from gradtx.core.rule import Rule
from gradtx.core.transform import transform

PyTree = Any


def average(previous: PyTree, values: PyTree, decay: ArrayLike) -> PyTree:
    """`b v + (1 - b) x` at every leaf.

    Args:
      previous: v, the average so far: zeros at first.
      values: x, a tree of the same structure.
      decay: b, a scalar in [0, 1): the average remembers about 1 / (1 - b) values.

    >>> from gradtx import averages
    >>> print(f"{averages.average(0.75, 4.0, 0.9):.3f}")
    1.075
    """
    return tree.map(lambda v, x, b, c: b * v + c * x, previous, values, b=decay, c=1 - decay)


def average_squares(previous: PyTree, values: PyTree, decay: ArrayLike) -> PyTree:
    """`b v + (1 - b) |x|²` at every leaf; the arguments are those of `average`."""
    return tree.map(lambda v, x, b, c: b * v + c * numerics.abs_squared(x), previous, values, b=decay, c=1 - decay)


class Weights(NamedTuple):
    """The weights of an exponentially weighted average, summed up: two scalars.

    `given` is what the values so far have received, `left` what still lies on the zero it started from; they add up
    to 1. Each is accurate where it is small, so `total` takes the one that is. Two zeros are no weights yet, so that a
    state of zeros is a new one.
    """

    given: Array
    left: Array

    @classmethod
    def none(cls, like: PyTree) -> "Weights":
        """Nothing given yet, in the precision of a tree."""
        dtype = tree.precision(like)
        return cls(jnp.zeros((), dtype), jnp.ones((), dtype))

    def after(self, decay: ArrayLike) -> "Weights":
        """The weights after one more value."""
        return _after(self, jnp.asarray(decay))

    @property
    def total(self) -> Array:
        """The sum of the weights: `1 - b^t` for a constant decay."""
        return _total(self)

    def total_after(self, decay: ArrayLike) -> Array:
        """What the sum will be after one more value."""
        b = jnp.asarray(decay)
        return b * self.total + (1 - b)


@numerics.one_program
def _after(weights: Weights, b: Array) -> Weights:
    left = jnp.where(weights.given == 0, jnp.ones_like(weights.left), weights.left)
    return Weights(b * weights.given.astype(b.dtype) + (1 - b), b * left.astype(b.dtype))


@numerics.one_program
def _total(weights: Weights) -> Array:
    begins = (weights.left > 0.5) | (weights.given == 0)
    return jnp.where(begins, weights.given, 1 - weights.left)


def correct_bias(biased: PyTree, weights: Weights | None) -> PyTree:
    """The average divided by the sum of its weights, `v / (1 - b^t)`; without weights, the average as it is.

    Args:
      biased: v, of `average`.
      weights: `Weights.none(v)` at first, `weights.after(b)` with each value.

    >>> import jax.numpy as jnp
    >>> from gradtx import averages
    >>> weights = averages.Weights.none(0.0).after(jnp.float32(0.9))
    >>> print(f"{averages.correct_bias(0.75, weights):.4f}")
    7.5000
    """
    if weights is None:
        return biased
    # Once the inverse, then products: XLA itself divides in one program and multiplies by an inverse in another.
    return tree.map(lambda v, inverse: v * inverse, biased, inverse=1 / weights.total)


@transform
def ema(
    decay: Unit, *, debias: bool = True, accumulator_dtype: Dtype | None = None, state_dtype: Dtype | None = None
) -> Rule:
    """Replaces the updates by their exponentially weighted average.

        v <- b v + (1 - b) g;   u = v / (1 - b^t), or v with debias=False                           (b = decay)

    Source: the bias correction is that of Kingma and Ba 2014 (arXiv 1412.6980), section 3; with a decay that varies,
    b^t is the product of the decays so far. optax.ema computes the same.

    Args:
      decay: b in [0, 1), a number or a schedule.
      debias: divide by the sum of the weights.
      state_dtype: None for at least float32; jnp.bfloat16 stores the statistics in half the bytes, rounded
        stochastically (see the page on low precision).
      accumulator_dtype: another name for it, optax's.

    State: `mean`, the biased average, like the params in at least float32: 4 bytes per parameter; `weights` (with
    debias) and `count`, scalars.

    Errors: ValueError for a decay outside [0, 1), or both dtypes.

    >>> import gradtx
    >>> tx = gradtx.ema(0.9, debias=False)
    >>> state = tx.init(0.0)
    >>> for x in [7.5, 4.0, 6.0, 8.0]:
    ...     v, state = tx.update(x, state)
    >>> print(f"{v:.5f}")
    2.21075
    """
    stored = storage.one_of("ema", accumulator_dtype=accumulator_dtype, state_dtype=state_dtype)

    def init(params: PyTree) -> dict[str, Any]:
        return {"mean": tree.zeros_like(params), "weights": Weights.none(params) if debias else None}

    def update(updates: PyTree, state: dict[str, Any]) -> tuple[PyTree, dict[str, Any]]:
        biased = average(state["mean"], updates, decay)
        weights = state["weights"].after(decay) if debias else None
        return correct_bias(biased, weights), {"mean": biased, "weights": weights}

    return Rule(init=init, update=update, statistics=("mean",), state_dtype=stored)
