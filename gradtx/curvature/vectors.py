"""Trees as vectors: inner products, norms and steps, in one dtype of at least float32.

For complex leaves the inner product is that of the real and imaginary parts, `Re(conj(a) b)`. Then `<gradient, d>` is
the slope of a real function along d, as for real leaves.

Bounds on the params: lower <= w <= upper, element by element.

A step goes along the projected path, `min(max(w + t d, lower), upper)`. A param is fixed where it lies on a bound and
the gradient pushes it outward. The others are free, and at a minimum their gradient is 0.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx import numerics, sharding, tree

PyTree = Any


def dot(a: PyTree, b: PyTree) -> Array:
    """`<a, b>`, over all leaves."""
    dtype = tree.precision(a, b)
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return functools.reduce(jnp.add, [_dot(x, y).astype(dtype) for x, y in leaves], jnp.zeros((), dtype))


def gram(*vectors: PyTree) -> Array:
    """The inner products of several trees with each other, as one matrix."""
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors)
    return jnp.stack([products(rows, (len(vectors),), one) for one in vectors])


def products(rows: PyTree, lengths: tuple[int, ...], vector: PyTree) -> Array:
    """The inner products of a tree with many, which lie along first axes of these lengths in each leaf."""
    dtype = tree.precision(vector)
    leaves = jax.tree.map(lambda rows, x: _products(rows, x).astype(dtype), rows, vector)
    return functools.reduce(jnp.add, jax.tree.leaves(leaves), jnp.zeros(lengths, dtype))


def combined(factors: Array, rows: PyTree) -> PyTree:
    """The sum of many trees, each times its factor."""
    return jax.tree.map(functools.partial(_combined, factors), rows)


def _products(rows: Array, x: Array) -> Array:
    if tree.is_complex(rows):
        return _products(rows.real, x.real) + _products(rows.imag, x.imag)
    last, over = tuple(range(rows.ndim - x.ndim, rows.ndim)), tuple(range(x.ndim))
    out = sharding.replicated(x, rows.ndim - x.ndim)
    return sharding.summed(
        jax.lax.dot_general(rows, x, ((last, over), ((), ())), precision="highest", out_sharding=out)
    )


def _combined(factors: Array, rows: Array) -> Array:
    if tree.is_complex(rows):
        return jax.lax.complex(_combined(factors, rows.real), _combined(factors, rows.imag))
    over = tuple(range(factors.ndim))
    return jax.lax.dot_general(factors.astype(rows.dtype), rows, ((over, over), ((), ())), precision="highest")


def _dot(x: Array, y: Array) -> Array:
    if tree.is_complex(x):
        return _dot(x.real, y.real) + _dot(x.imag, y.imag)
    return sharding.summed(jnp.sum(x * y))


def size(a: PyTree) -> Array:
    """The largest absolute value of all elements, 0 for an empty tree; NaN if one is NaN."""
    dtype = tree.precision(a)
    sizes = [sharding.largest(jnp.max(jnp.abs(x), initial=0)).astype(dtype) for x in jax.tree.leaves(a)]
    return functools.reduce(jnp.maximum, sizes, jnp.zeros((), dtype))


def length(a: PyTree) -> Array:
    """`|a|`, over all leaves."""
    return numerics.root(dot(a, a))


def finite(a: PyTree) -> Array:
    """Whether all elements are finite."""
    return tree.all_finite(a)


def elements(a: PyTree) -> int:
    """The number of elements of all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(a))


def plus(a: PyTree, factor: Any, b: PyTree) -> PyTree:
    """`a + factor b`."""
    return tree.map(lambda x, y, k: x + k * y, a, b, k=factor)


def times(factor: Any, a: PyTree) -> PyTree:
    """`factor a`."""
    return tree.map(lambda x, k: k * x, a, k=factor)


def choose(which: Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` if `which` is true, else `b`."""
    return jax.tree.map(functools.partial(jnp.where, which), a, b)


def gradient(g: PyTree) -> PyTree:
    """The direction of steepest ascent, in at least float32. For complex params, `jax.grad` returns its conjugate."""
    return jax.tree.map(lambda x: x.conj() if tree.is_complex(x) else x, tree.to_compute_dtype(g))


def wide(a: PyTree, dtype: np.dtype[Any]) -> PyTree:
    """A tree in the precision of this real dtype, so that its leaves meet those of others; integers stay."""

    def cast(x: Any) -> Array:
        return x if tree.is_discrete(x) else jnp.asarray(x).astype(tree.compute_dtype(x, precision=dtype))

    return jax.tree.map(cast, a)


def copy(a: PyTree) -> PyTree:
    """A tree in at least float32 that shares no buffer with the params, so that both may be donated."""
    return jax.tree.map(jnp.copy, tree.to_compute_dtype(a))


def number(x: Any, dtype: np.dtype[Any]) -> Array:
    """A real number in this dtype."""
    return jnp.asarray(x).astype(dtype)


def check_number(who: str, value: Any) -> None:
    """Refuse a loss that is no number."""
    if jnp.shape(value):
        raise ValueError(f"{who}: value has shape {jnp.shape(value)}; it must be one number, the loss at the params.")


def flat(a: PyTree, dtype: np.dtype[Any] | None = None) -> Array:
    """All leaves side by side, in one real dtype: this, or that of arithmetic with them.

    On a mesh with explicit axes the vector is replicated, since JAX refuses products with one that is sharded.
    """
    dtype = tree.precision(a) if dtype is None else dtype
    leaves = [jnp.asarray(leaf).astype(dtype) for leaf in jax.tree.leaves(a)]
    return sharding.whole(tree.join(leaves)) if leaves else jnp.zeros(0, dtype)


def unflat(vector: Array, like: PyTree) -> PyTree:
    """A vector as a tree with the shapes, dtypes and shardings of another."""
    leaves, structure = jax.tree.flatten(like)
    parts, start = list[Array](), 0
    for leaf in leaves:
        part = jax.lax.dynamic_slice_in_dim(vector, start, leaf.size)
        parts.append(sharding.like(part.reshape(leaf.shape).astype(leaf.dtype), leaf))
        start += leaf.size
    return jax.tree.unflatten(structure, parts)


# Bounds ---------------------------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """The lowest and the highest values of each param."""

    lower: PyTree
    upper: PyTree

    def project(self, w: PyTree) -> PyTree:
        """The nearest point within the bounds."""
        return jax.tree.map(lambda x, low, high: jnp.clip(x, low.astype(x.dtype), high.astype(x.dtype)), w, *self)

    def path(self, w: PyTree, d: PyTree) -> PyTree:
        """A direction, without the params that it would move out of the bounds at once."""
        return tree.map(_inward, w, d, *self)

    def free(self, w: PyTree, g: PyTree) -> PyTree:
        """The gradient, 0 at the params that are fixed."""
        return tree.map(lambda x, u, low, high: -_inward(x, -u, low, high), w, g, *self)


def _inward(x: Array, d: Array, low: Array, high: Array) -> Array:
    return jnp.where((x <= low) & (d < 0) | (x >= high) & (d > 0), 0, d)


def box(who: str, bounds: Any, params: PyTree) -> Box:
    """The bounds `(lower, upper)`, each a number or None, or a tree of these like the params or an upper part of it."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"{who}: bounds is {bounds!r}; it must be a pair (lower, upper); None is no bound.")

    def spread(name: str, end: Any, open_end: float) -> PyTree:
        def over(value: Any, part: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: _end(open_end if value is None else value, leaf), part)

        try:
            return jax.tree.map(over, end, params, is_leaf=lambda value: value is None)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{who}: the {name} bound is {end!r}; it must be a number, or a tree like the params whose arrays "
                f"have their shapes: {error}"
            ) from error

    ends = Box(spread("lower", bounds[0], -np.inf), spread("upper", bounds[1], np.inf))
    _refuse_crossed(who, *bounds)
    return ends


def _refuse_crossed(who: str, lower: Any, upper: Any) -> None:
    """Refuse a lower bound above the upper one, where both are numbers, or arrays that are known."""
    if np.isscalar(lower):
        lower = jax.tree.map(lambda _: lower, upper)
    if np.isscalar(upper):
        upper = jax.tree.map(lambda _: upper, lower)
    if jax.tree.structure(lower) != jax.tree.structure(upper):
        return
    for (path, low), high in zip(tree.named_leaves(lower), jax.tree.leaves(upper), strict=True):
        known = not isinstance(low, Tracer) and not isinstance(high, Tracer)
        if known and np.any(np.asarray(low) > np.asarray(high)):
            raise ValueError(
                f"{who}: bounds at {path}: the lower bound {low} is above the upper one, {high}. Swap them."
            )


def _end(value: Any, leaf: Any) -> Array:
    real = tree.compute_dtype(leaf, real=True)
    return jnp.broadcast_to(jnp.asarray(value, real), jnp.shape(leaf))
