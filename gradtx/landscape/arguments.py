"""The checks of what a test function is given: a point, and the numbers that define the function."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def read_number(who: str, name: str, value: Any, least: float, kind: type) -> Any:
    """An int or a finite float of at least `least`, as a `kind`; else TypeError or ValueError."""
    kinds, words = ((int, np.integer), "an int") if kind is int else ((int, float, np.number), "a finite number")
    said = f"{who}: {name} is {value!r}; it must be {words}, at least {least}."
    if isinstance(value, bool | complex | np.complexfloating) or not isinstance(value, kinds):
        raise TypeError(said)
    if not least <= value < math.inf:
        raise ValueError(said)
    return kind(value)


def read_point(who: str, x: Any, dimension: int, resizable: bool) -> Array:
    """One point, an array of `dimension` real floating-point numbers; else TypeError or ValueError."""
    try:
        point = jnp.asarray(x)
    except (TypeError, ValueError):
        said = f"{who}: x is {x!r:.60}, a {type(x).__name__}; it must be an array of {dimension} floats."
        raise TypeError(said) from None
    if not jnp.issubdtype(point.dtype, jnp.floating):
        fix = "Take its real part: x.real." if point.dtype.kind == "c" else "Make it float: jnp.asarray(x, float)."
        raise TypeError(f"{who}: x has dtype {point.dtype}; allowed: real floating-point numbers. {fix}")
    if point.shape != (dimension,):
        fix = "For many: jax.vmap." + (" For another length: replace(dimension=...)." if resizable else "")
        raise ValueError(f"{who}: x has shape {point.shape}; allowed: ({dimension},), one point. {fix}")
    return point
