"""Smaller steps once the loss stands still: a schedule that looks at the run instead of the clock."""

from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradtx import numerics, tree
from gradtx.core.annotations import Fraction, Interval, NonNegative, NonNegativeInt, PositiveInt, Unit
from gradtx.core.rule import Rule
from gradtx.core.transform import transform

PyTree = Any
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

    def init(params: PyTree) -> State:
        dtype = tree.precision(params)
        numbers = {"scale": 1, "best_value": jnp.finfo(dtype).max, "avg_value": 0}
        counts = ("avg_count", "plateau_count", "cooldown_count")
        return {name: jnp.full((), value, dtype) for name, value in numbers.items()} | {
            name: jnp.zeros((), jnp.int32) for name in counts
        }

    def update(updates: PyTree, state: State, *, value: ArrayLike) -> tuple[PyTree, State]:
        if jnp.shape(value):
            raise ValueError(
                f"gradtx.reduce_on_plateau.update: value has shape {jnp.shape(value)}; allowed: one number, the loss. "
                "Pass its mean."
            )
        number, weight = state["avg_count"] + 1, state["avg_count"].astype(state["avg_value"].dtype)
        mean = (weight * state["avg_value"] + jnp.asarray(value).astype(weight.dtype)) / (weight + 1)
        complete = number == numerics.within_int32(accumulation_size)
        waiting = state | {"avg_value": mean, "avg_count": number}
        judged = after(state, mean) | {"avg_value": jnp.zeros_like(mean), "avg_count": jnp.zeros_like(number)}
        new = {name: jnp.where(complete, judged[name], waiting[name]) for name in state}
        return tree.map(lambda u, scale: scale * u, updates, scale=new["scale"]), new

    def after(state: State, mean: Array) -> State:
        best, cooling = state["best_value"], state["cooldown_count"] > 0
        number = {name: x.astype(best.dtype) for name, x in (("rtol", rtol), ("atol", atol), ("factor", factor))}
        better = mean < (1 - number["rtol"]) * best - number["atol"]
        worse = jnp.where(better | cooling, 0, numerics.saturating_increment(state["plateau_count"]))
        reduce = worse >= numerics.within_int32(patience)
        smaller = jnp.where(reduce, number["factor"] * state["scale"], state["scale"])
        return {
            "scale": jnp.where(cooling, state["scale"], jnp.maximum(smaller, min_scale.astype(best.dtype))),
            "best_value": jnp.where(better, mean, best),
            "plateau_count": jnp.where(reduce, 0, worse),
            "cooldown_count": jnp.where(
                reduce, numerics.within_int32(cooldown), jnp.maximum(state["cooldown_count"] - 1, 0)
            ),
        }

    return Rule(init=init, update=update)
