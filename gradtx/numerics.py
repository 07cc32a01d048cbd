"""Arithmetic that is safe at the edges: roots, quotients, counters.

Zeros are common in an optimizer: a gradient that is exactly 0, an average before its first value, a decay of 0. The
value of a formula there is usually harmless, but the derivative is not: that of the root is infinite, infinity times
zero is NaN, and one NaN makes a hypergradient NaN. Each function here has the textbook value and a finite derivative:

- Adam divides by ``root(v) + eps``: ``root`` has derivative 0 at 0, the minimum of the average.
- Adagrad without eps divides 0 by 0 in a coordinate whose gradients were all 0: ``divide`` returns 0.
- A run may have more than two billion updates: ``saturating_increment`` does not wrap around.
- bfloat16 rounds 1.001 to 1, so an average with decay 0.999 would never change: with ``round_stochastically`` it
  changes correctly in the mean.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx import sharding

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_INT32_MAX = np.iinfo(np.int32).max


def one_program(function: F, *, static_argnums: int | tuple[int, ...] | None = None) -> F:
    """Compile small arithmetic as one program outside jit, instead of one per operation; inside jit it is inlined."""
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
    """``x / y``, or 0 where y is 0, with derivative 0 there: it divides by infinity instead."""
    return x / jnp.where(y == 0, jnp.inf, y)


def abs_squared(x: Array) -> Array:
    """``|x|²``, which is real for complex x too."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def branch(predicate: Array, then: Callable[..., T], otherwise: Callable[..., T], *operands: Any) -> T:
    """``then(*operands)`` if the predicate holds, else ``otherwise(*operands)``; only one of them runs.

    Outside jit this is a Python branch: nothing is compiled. Under vmap both run.
    """
    if isinstance(predicate, Tracer):
        return jax.lax.cond(predicate, then, otherwise, *operands)
    return then(*operands) if predicate else otherwise(*operands)


@one_program
def saturating_increment(count: Array) -> Array:
    """``count + 1``; the largest int32 stays as it is, instead of wrapping around to a negative number."""
    return jnp.where(count < _INT32_MAX, count + 1, count)


def within_int32(length: int) -> int:
    """A length for comparison with a counter: at most the largest int32, where counters stay."""
    return min(length, int(_INT32_MAX))


def round_stochastically(x: Array, dtype: np.dtype, key: Array) -> Array:
    """``x`` in a narrower dtype, rounded at random to one of its two neighbours so that the expectation is ``x``.

    A value that is representable in the dtype is kept, as are infinity and NaN. Beyond the dtype's largest number,
    rounding is to the nearest. The derivative is that of the expectation, 1.
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


def leaf_keys(bits: Array, leaves: list[Any]) -> tuple[Array, list[Array]]:
    """Split a key, given by its bits: the bits of the next step's key, and a key for each leaf, or shard of a leaf."""
    following, now = jax.random.split(jax.random.wrap_key_data(bits))
    keys = [sharding.own_key(jax.random.fold_in(now, i), *jax.tree.leaves(leaf)) for i, leaf in enumerate(leaves)]
    return jax.random.key_data(following), keys


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """32 random bits for each element: good enough for stochastic rounding, and ten times as fast as JAX's.

    Two rounds of a hash of the element's index, each keyed by a word of the key. The bits do not depend on how the
    array is sharded; beyond 2**32 elements they repeat. Two keys with the same second word give the same bits in a
    different order. So use it with keys from `jax.random.split`, and neither for additive noise nor for cryptography.
    """
    words = jax.random.key_data(key)
    return _mixed(_mixed(_places(shape) ^ words[0]) ^ words[1])


def _places(shape: tuple[int, ...]) -> Array:
    """The index of each element in row-major order, modulo 2**32, computed on the device that has the element."""
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
    """float32 to bfloat16, its upper half: add a random number to the lower half, then truncate it."""
    bits = jax.lax.bitcast_convert_type(x, np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    # From bfloat16's largest number on, half of its last digit is added, which rounds to the nearest.
    added = jnp.where(size < np.uint32(0x7F7F0000), random >> 16, np.uint32(0x8000))
    # An addition to NaN could carry into the exponent. With its first digit set, NaN stays NaN after the truncation.
    bits = jnp.where(size > np.uint32(0x7F800000), bits | np.uint32(0x400000), bits + added)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(np.uint16), jnp.bfloat16)


def _one_of_two(x: Array, nearest: Array, random: Array) -> Array:
    """One of the two neighbours: the larger one with a probability proportional to the distance to the smaller one."""
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
