"""Smaller steps once the loss stands still: a schedule that looks at the run instead of the clock."""

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
    """`u = s g`; s, which is 1 at first, is multiplied by a factor whenever the loss has not improved for a while.

        x: the mean of `accumulation_size` values;   better: x < (1 - rtol) best - atol, and best <- x;   worse: others
        after `patience` worse ones in a row:   s <- max(factor s, min_scale), and `cooldown` ones are not counted

    Source: as optax.contrib.reduce_on_plateau, and PyTorch's ReduceLROnPlateau in mode 'min', which waits for one more.
    Where best is negative, rtol makes it easier to be better, as in both: use atol. Other than in optax rtol and atol
    may both be 0, and rtol is below 1. A value that is NaN is worse, as is a mean with one in it, and is forgotten.

    Args:
      factor: in (0, 1), a number or a schedule.
      patience: how many worse ones it takes, at least 1.
      rtol: in [0, 1), a number or a schedule; the share of best that counts as better.
      atol: >= 0, a number or a schedule. [loss]
      cooldown: how many means are not counted after a reduction, at least 0.
      accumulation_size: how many values make one mean, at least 1: 1 for a validation loss, more for minibatches.
      min_scale: in [0, 1], a number or a schedule: s does not fall below.

    State: `scale`, `best_value` (the largest number of its dtype before there is one), `avg_value`, `avg_count`,
    `plateau_count`, `cooldown_count` and `count`: scalars. Extra argument: `value`, the loss of this step.

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
