"""Numbers that behave at the edges: roots, quotients, counters.

An optimizer meets zero everywhere: a gradient that is exactly 0, an average that has seen nothing yet, a decay of 0.
The value there is usually harmless, but the derivative is not (the root's is infinite, and infinity times zero is
NaN), and one NaN ends a hypergradient. Each function here has the textbook value and a finite derivative:

- Adam divides by ``root(v) + eps``: ``root`` has slope 0 at 0, where the average cannot fall any further.
- Adagrad without eps divides 0 by 0 in a coordinate that has never moved: ``divide`` says 0.
- A run of more than two thousand million updates is still a run: ``saturating_increment`` does not wrap.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_INT32_MAX = np.iinfo(np.int32).max


@jax.custom_jvp
def root(x: Array) -> Array:
    """Square root whose derivative at 0 is 0 instead of infinity."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = root(primals[0])
    safe = jnp.where(y > 0, y, jnp.ones_like(y))
    return y, jnp.where(y > 0, tangents[0] / (2 * safe), jnp.zeros_like(y))


def divide(x: Array, y: Array) -> Array:
    """``x / y``, and 0 where y is 0, with derivative 0 there: what is divided by infinity vanishes, its slopes too."""
    return x / jnp.where(y == 0, jnp.inf, y)


def abs_squared(x: Array) -> Array:
    """``|x|²``, real also for complex x."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def saturating_increment(count: Array) -> Array:
    """``count + 1``, staying at the largest int32 instead of wrapping to a negative number."""
    return jnp.where(count < _INT32_MAX, count + 1, count)
