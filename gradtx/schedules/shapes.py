"""The shapes that schedules are made of: a share of time, a line, half a cosine."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def passed(count: Array, begin: int, steps: int, like: Any) -> Array:
    """The share of `steps` that has passed since `begin`, from 0 to 1, in the dtype of the number `like`."""
    if steps == 0:
        return (count >= begin).astype(like.dtype)
    return jnp.clip(count - begin, 0, steps).astype(like.dtype) / steps


def left(count: Array, begin: int, steps: int, like: Any) -> Array:
    """The share of `steps` that is left, from 1 to exactly 0, which `1 - passed` may miss on either side under XLA."""
    return jnp.clip(begin + steps - count, 0, steps).astype(like.dtype) / steps


def line(start: Any, end: Any, share: Array) -> Array:
    """From `start` to `end` as the share goes from 0 to 1."""
    return start + (end - start) * share


def half_cosine(share: Array) -> Array:
    """From 1 to 0 along a cosine as the share goes from 0 to 1."""
    return 0.5 * (1 + jnp.cos(np.pi * share))


def refuse(condition: bool, who: str, reason: str) -> None:
    """Refuse the arguments of a schedule where the condition holds."""
    if condition:
        raise ValueError(f"gradtx.{who}: {reason}.")
