"""Numbers that behave at the edges: roots, quotients, counters.

An optimizer meets zero everywhere: a gradient that is exactly 0, an average that has seen nothing yet, a decay of 0.
The value there is usually harmless, but the derivative is not (the root's is infinite, and infinity times zero is
NaN), and one NaN ends a hypergradient. Each function here has the textbook value and a finite derivative:

- Adam divides by ``root(v) + eps``: ``root`` has slope 0 at 0, where the average cannot fall any further.
- Adagrad without eps divides 0 by 0 in a coordinate that has never moved: ``divide`` says 0.
- A run of more than two billion updates is still a run: ``saturating_increment`` does not wrap.
- bfloat16 cannot tell 1 from 1.001, so an average with decay 0.999 would stand still: ``round_stochastically`` lets it
  move, in the mean.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx.scoped import Scoped

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_INT32_MAX = np.iinfo(np.int32).max


def one_program(function: F, *, static_argnums: int | tuple[int, ...] | None = None) -> F:
    """Small arithmetic as one program outside jit, instead of one for each operation; inside jit it is nothing."""
    return cast(F, jax.jit(function, inline=True, static_argnums=static_argnums))


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


def branch(predicate: Array, then: Callable[..., T], otherwise: Callable[..., T], *operands: Any) -> T:
    """``then(*operands)`` where the predicate holds, else ``otherwise(*operands)``; only that one runs.

    Outside jit the predicate is looked at and the function called: nothing is compiled. (Under vmap both run.)
    """
    if isinstance(predicate, Tracer):
        return jax.lax.cond(predicate, then, otherwise, *operands)
    return then(*operands) if predicate else otherwise(*operands)


@one_program
def saturating_increment(count: Array) -> Array:
    """``count + 1``, staying at the largest int32 instead of wrapping to a negative number."""
    return jnp.where(count < _INT32_MAX, count + 1, count)


def within_int32(length: int) -> int:
    """A length for comparison with a counter, which stays at the largest int32: a longer one is taken for that."""
    return min(length, int(_INT32_MAX))


def round_stochastically(x: Array, dtype: np.dtype, key: Array) -> Array:
    """``x`` in a narrower dtype: one of its two neighbours, at random, so that the mean is ``x``.

    A value that the dtype has is kept, as are infinity and NaN; beyond the dtype's largest number rounding is to the
    nearest. The derivative is that of the mean, 1.
    """
    narrow = np.dtype(dtype)
    return _rounded_at_once(x, narrow, key) if jnp.finfo(narrow).bits < jnp.finfo(x.dtype).bits else x.astype(narrow)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(x: Array, narrow: np.dtype, key: Array) -> Array:
    bits = random_bits(key, x.shape)
    return _cut(x.astype(np.float32), bits) if narrow == jnp.bfloat16 else _one_of_two(x, x.astype(narrow), bits)


@_rounded.defjvp
def _rounded_jvp(narrow: np.dtype, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return _rounded(primals[0], narrow, primals[1]), tangents[0].astype(narrow)


# Outside jit one program instead of thirty.
_rounded_at_once = jax.jit(_rounded, static_argnums=1, inline=True)


def leaf_keys(bits: Array, tree: Any) -> tuple[Array, Iterator[Array]]:
    """From a key's bits those of the next step's key, and a key for each leaf of a tree: one call of `split`."""
    key = cast(Array, cast(Any, jax.random).wrap_key_data(bits))
    following, *keys = jax.random.split(key, 1 + len(jax.tree.leaves(tree)))
    return jax.random.key_data(following), iter(keys)


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """32 bits for each element, good enough to choose the neighbour to round to, and ten times as quick as JAX's.

    Two rounds of a hash of the element's index, each keyed by a word of the key. What an element gets does not depend
    on how the array lies on devices; beyond 2**32 elements the bits repeat. Two keys that share their second word give
    the same bits in another order. So it is for keys that come from `jax.random.split`, and neither for noise that is
    added nor for secrets.
    """
    words = jax.random.key_data(key)
    return _mixed(_mixed(_places(shape) ^ words[0]) ^ words[1])


def _places(shape: tuple[int, ...]) -> Array:
    """Each element's place in row-major order, modulo 2**32, made where the element lies."""
    if not shape:
        return jnp.zeros((), np.uint32)
    strides = [np.uint32(math.prod(shape[axis + 1 :]) % 2**32) for axis in range(len(shape))]
    along = [jax.lax.broadcasted_iota(np.uint32, shape, axis) for axis in range(len(shape))]
    return functools.reduce(jnp.add, [i if s == 1 else i * s for i, s in zip(along, strides, strict=True)])


def _mixed(x: Array) -> Array:
    """Flipping one bit of ``x`` flips each bit of the result with probability 1/2, to 1e-4.

    lowbias32 of C. Wellons 2018, "Prospecting for Hash Functions" (nullprogram.com/blog/2018/07/31).
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _cut(x: Array, random: Array) -> Array:
    """float32 to bfloat16, its upper half: a random number is added to the lower half, which is then cut off."""
    bits = jax.lax.bitcast_convert_type(x, np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    # From bfloat16's largest number on, half of its last digit, as in rounding to the nearest.
    added = jnp.where(size < np.uint32(0x7F7F0000), random >> 16, np.uint32(0x8000))
    # NaN would carry into the exponent. With the first digit set it is NaN after the cut too.
    bits = jnp.where(size > np.uint32(0x7F800000), bits | np.uint32(0x400000), bits + added)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(np.uint16), jnp.bfloat16)


def _one_of_two(x: Array, nearest: Array, random: Array) -> Array:
    """The neighbour away from zero as often as the distance to the one towards zero says."""
    narrow, size = nearest.dtype, jnp.abs(x)
    integers = np.dtype(f"uint{jnp.finfo(narrow).bits}")
    bits = jax.lax.bitcast_convert_type(jnp.abs(nearest), integers)
    one = jnp.ones_like(bits)
    below_bits = jnp.where(jnp.abs(nearest).astype(x.dtype) > size, bits - one, bits)
    below, above = (jax.lax.bitcast_convert_type(b, narrow) for b in (below_bits, below_bits + one))
    low, high = below.astype(x.dtype), above.astype(x.dtype)
    share = (size - low) / (high - low)
    uniform = (random >> 8).astype(x.dtype) * x.dtype.type(2.0**-24)
    rounded = jnp.copysign(jnp.where(uniform < share, above, below), nearest)
    return jnp.where(jnp.isfinite(nearest) & jnp.isfinite(rounded), rounded, nearest)


# Numbers that are not 0 -----------------------------------------------------------------------------------------------

_nonzero = Scoped[Any](({}, (), set[str]()))


@contextlib.contextmanager
def known_nonzero(numbers: dict[str, Any], nonzero: Collection[str]) -> Generator[set[str]]:
    """While this is open, a body runs, of whose numbers some are known not to be 0. Gives those that it asks about."""
    with _nonzero((numbers, nonzero, asked := set[str]())):
        yield asked


def is_nonzero(number: Any) -> bool:
    """Whether a hyperparameter is known not to be 0: a number that was given as one, not a schedule or a traced one.

    To be asked in a body, where the number itself has no value.
    """
    numbers, nonzero, asked = _nonzero.get()
    names = {name for name, value in numbers.items() if value is number}
    asked |= names
    return any(name in nonzero for name in names)
