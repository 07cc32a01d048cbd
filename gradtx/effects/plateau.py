"""Smaller steps once the loss stops improving: a schedule that depends on the loss instead of the step count."""

from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array

from gradtx import numerics
from gradtx.core import fields
from gradtx.core.annotations import Fraction, Interval, NonNegative, NonNegativeInt, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule

State = dict[str, Any]
Between = Annotated[Any, Interval(0, 1, closed_low=False)]


@transform
def reduce_on_plateau(
    factor: Between = 0.1,
    patience: PositiveInt = 10,
    rtol: Unit = 1e-4,
    atol: NonNegative = 0.0,
    cooldown: NonNegativeInt = 0,
    accumulation_size: PositiveInt = 1,
    min_scale: Fraction = 0.0,
) -> Rule:
    """`u = s g`; s starts at 1 and is multiplied by a factor whenever the loss has not improved for a while.

        x: the mean of `accumulation_size` losses;   better: x < (1 - rtol) best - atol, and best <- x;   worse: else
        after `patience` worse means in a row:   s <- max(factor s, min_scale); the next `cooldown` means do not count

    Source: as optax.contrib.reduce_on_plateau, and PyTorch's ReduceLROnPlateau in mode 'min', which waits for one more
    mean. If best is negative, rtol makes it easier to be better, as in both; use atol then. Unlike in optax, rtol and
    atol may both be 0, and rtol is below 1. A loss that is NaN makes its mean count as worse, and has no later effect.

    Args:
      factor: in (0, 1), a number or a schedule.
      patience: how many worse means in a row cause a reduction, at least 1.
      rtol: in [0, 1), a number or a schedule; the relative improvement of best that is required.
      atol: >= 0, a number or a schedule; the absolute improvement that is required. [loss]
      cooldown: how many means do not count after a reduction, at least 0.
      accumulation_size: how many losses make one mean, at least 1: 1 for a validation loss, more for mini-batches.
      min_scale: in [0, 1], a number or a schedule: the lower bound of s.

    State: `scale`, `best_value` (at first the largest number of its dtype), `avg_value`, `avg_count`, `plateau_count`,
    `cooldown_count` and `count`: scalars. Extra argument: `value`, the loss of this step.

    Errors: ValueError for an argument outside its range, or a value that is not one number; TypeError from update
    without `value`.

    >>> import gradtx
    >>> tx = gradtx.reduce_on_plateau(0.5, patience=2)
    >>> state = tx.init(0.0)
    >>> for value in [3.0, 2.0, 2.0, 2.0]:
    ...     u, state = tx.update(1.0, state, value=value)
    >>> u
    Array(0.5, dtype=float32)
    """

    def once(
        *,
        value: Array,
        scale: Array,
        best_value: Array,
        avg_value: Array,
        avg_count: Array,
        plateau_count: Array,
        cooldown_count: Array,
    ) -> State:
        number = avg_count + 1
        mean = (avg_count * avg_value + value) / number
        complete, cooling = number == numerics.within_int32(accumulation_size), cooldown_count > 0
        better = mean < (1 - rtol) * best_value - atol
        worse = jnp.where(better | cooling, 0, numerics.saturating_increment(plateau_count))
        reduce = worse >= numerics.within_int32(patience)
        smaller = jnp.maximum(jnp.where(reduce, factor * scale, scale), min_scale)
        rest = jnp.where(reduce, numerics.within_int32(cooldown), jnp.maximum(cooldown_count - 1, 0))
        return {
            "scale": jnp.where(complete & ~cooling, smaller, scale),
            "best_value": jnp.where(complete & better, mean, best_value),
            "avg_value": jnp.where(complete, 0, mean),
            "avg_count": jnp.where(complete, 0, number),
            "plateau_count": jnp.where(complete, jnp.where(reduce, 0, worse), plateau_count),
            "cooldown_count": jnp.where(complete, rest, cooldown_count),
        }

    numbers = {"scale": 1.0, "best_value": "largest", "avg_value": 0.0}
    kept: dict[str, Any] = {
        name: fields.integer(per="tree") for name in ("avg_count", "plateau_count", "cooldown_count")
    }
    kept |= {name: fields.scalar(start, per="tree") for name, start in numbers.items()}
    return per_element(lambda u, *, scale: scale * u, once=once, value=fields.argument(), **kept)
