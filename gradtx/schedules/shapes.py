"""The parts of schedules: the share of time that has passed, a line, half a cosine.

Lengths and boundaries are Python ints of any size, but a count is limited by its dtype: an int32 never reaches a
boundary of 2**31. The functions here compare and subtract the two without overflow.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def reached(count: Array, boundary: int) -> Array:
    """Whether `boundary` is reached; a boundary outside the dtype of the count never is."""
    return count >= boundary if boundary <= _largest(count) else jnp.zeros(count.shape, bool)


def since(count: Array, begin: int) -> Array:
    """The number of updates since `begin`, 0 before it."""
    return count.clip(begin) - begin if begin <= _largest(count) else count * 0


def rounds(count: Array, begin: int, steps: int, like: Any) -> Array:
    """The number of updates since `begin`, divided by `steps`, in the dtype of the number `like`."""
    return number(since(count, begin), like) / float(steps)


def whole_rounds(count: Array, begin: int, steps: int, like: Any) -> Array:
    """`rounds`, rounded down."""
    updates = since(count, begin)
    return number(updates // steps if steps <= _largest(count) else updates * 0, like)


def passed(count: Array, begin: int, steps: int, like: Any) -> Array:
    """The share of `steps` that has passed since `begin`, from 0 to 1, in the dtype of the number `like`."""
    if steps == 0:
        return reached(count, begin).astype(like.dtype)
    return number(since(count, begin).clip(None, min(steps, _largest(count))), like) / float(steps)


def left(count: Array, begin: int, steps: int, like: Any) -> Array:
    """The share of `steps` that is left, from 1 to exactly 0; `1 - passed` may be just above or below 0 under XLA."""
    end = min(begin + steps, _largest(count))
    beyond = begin + steps - end  # the part outside the count's dtype is added in floating point
    remaining = (end - count).clip(0, min(steps, end))
    return jnp.minimum(number(remaining, like) + float(beyond), float(steps)) / float(steps)


def number(count: Array, like: Any) -> Array:
    """The count in the dtype of the number `like`."""
    return jnp.asarray(count.astype(like.dtype))


def _largest(count: Array) -> Any:
    """The largest count of this dtype. A count beyond int32 may be a whole float, whose limit is not relevant."""
    return np.iinfo(count.dtype).max if np.issubdtype(count.dtype, np.integer) else np.inf


def line(start: Any, end: Any, share: Array) -> Array:
    """From `start` to `end` as the share goes from 0 to 1."""
    return start + (end - start) * share


def half_cosine(share: Array) -> Array:
    """From 1 to 0 along a cosine as the share goes from 0 to 1."""
    return 0.5 * (1 + jnp.cos(np.pi * share))


def refuse(condition: bool, who: str, reason: str) -> None:
    """Refuse the arguments of a schedule if the condition holds."""
    if condition:
        raise ValueError(f"gradtx.{who}: {reason}.")
