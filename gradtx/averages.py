"""Exponentially weighted averages: the statistic behind most methods.

    v_t = b v_{t-1} + (1 - b) x_t,   v_0 = 0

With b = 0.9 and x = 7.5, 4, 6, 8 this gives 0.75, 1.075, 1.5675, 2.21075. The newest value has weight 0.1, the one
before 0.1·0.9, then 0.1·0.9². The weights of t values add up to 1 - b^t, not to 1, so v starts too small. Dividing by
that sum is called bias correction. The state keeps the uncorrected v.

- Momentum is this average of gradients; RMSProp divides by the root of this average of squared gradients.
- Adam is both, each with its bias corrected.

The sum is accumulated in a field `weights()`, not computed as `1 - b**t`. So it is right for a decay that varies over
time, when it is 1 minus the product of the decays. And in float32 it is a hundred times more accurate, because
`1 - b**t` loses digits to cancellation (for b = 0.9999 the errors are 1e-6 and 1e-4).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from gradtx import numerics
from gradtx.core import fields
from gradtx.core.annotations import Unit
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule
from gradtx.core.storage import stored_by

Weights = dict[str, Array]
"""The summed weights of an exponentially weighted average: two numbers.

`given` is the weight that the values so far have received, `left` the weight that remains on the initial zero. They
add up to 1. Each is accurate while it is small. Two zeros mean no weights yet, so a state of zeros is a new one.
"""


def average(previous: Any, value: Any, decay: Any) -> Any:
    """`b v + (1 - b) x`.

    Args:
      previous: v, the average so far: zeros at first.
      value: x, of the same shape.
      decay: b, a scalar in [0, 1): the average spans about 1 / (1 - b) values.

    >>> from gradtx import averages
    >>> print(f"{averages.average(0.75, 4.0, 0.9):.3f}")
    1.075
    """
    return decay * previous + (1 - decay) * value


def average_squares(previous: Any, value: Any, decay: Any) -> Any:
    """`b v + (1 - b) |x|²`; the arguments are those of `average`."""
    return decay * previous + (1 - decay) * numerics.abs_squared(value)


def weights_after(weights: Weights, decay: Any) -> Weights:
    """The weights after one more value."""
    left = jnp.where(weights["given"] == 0, jnp.ones_like(weights["left"]), weights["left"])
    return {"given": decay * weights["given"] + (1 - decay), "left": decay * left}


def total(weights: Weights) -> Array:
    """The sum of the weights: `1 - b^t` for a constant decay."""
    begins = (weights["left"] > 0.5) | (weights["given"] == 0)
    return jnp.where(begins, weights["given"], 1 - weights["left"])


def debiasing(decay: Any) -> Callable[..., dict[str, Any]]:
    """The pass `once` of a formula that corrects the bias of averages with this decay.

    It updates the field `weights`, and passes two numbers to the update: `total`, which is 1 - b^t, and its inverse,
    `correction`, so that v̂ is `correction * v`.
    """

    def once(*, weights: Weights) -> dict[str, Any]:
        weights = weights_after(weights, decay)
        given = total(weights)
        # One inverse, then products: XLA divides in some programs and multiplies by an inverse in others.
        return {"weights": weights, "total": given, "correction": 1 / given}

    return once


def debiasing_each(**decays: Any) -> Callable[..., dict[str, Any]]:
    """The same for several averages: `debiasing_each(mu=b1, nu=b2)` gives `mu_correction` and `nu_correction`."""

    def once(*, weights: dict[str, Weights]) -> dict[str, Any]:
        made = {name: debiasing(decay)(weights=weights[name]) for name, decay in decays.items()}
        corrections = {f"{name}_correction": one["correction"] for name, one in made.items()}
        return {"weights": {name: one["weights"] for name, one in made.items()}} | corrections

    return once


@stored_by("accumulator_dtype")
@transform
def ema(decay: Unit, *, debias: bool = True) -> Rule:
    """Replaces the updates by their exponentially weighted average.

        v <- b v + (1 - b) g;   u = v / (1 - b^t), or v with debias=False                           (b = decay)

    Source: the bias correction is that of Kingma and Ba 2014 (arXiv 1412.6980), section 3; with a decay that varies,
    b^t is the product of the decays so far. optax.ema computes the same.

    Args:
      decay: b in [0, 1), a number or a schedule.
      debias: divide by the sum of the weights.
      accumulator_dtype: the dtype in which the average is `stored`; None for at least float32.

    State: `mean`, the biased average, like the params in at least float32: 4 bytes per parameter; `weights` (with
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

    def update(g: Array, *, mean: Array, correction: Any = 1) -> tuple[Array, dict[str, Array]]:
        mean = average(mean, g, decay)
        return correction * mean, {"mean": mean}

    if not debias:
        return per_element(update, mean=fields.like())
    return per_element(update, once=debiasing(decay), mean=fields.like(), weights=fields.weights())
