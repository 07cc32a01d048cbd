"""Bounds on the params: lower <= w <= upper, element by element.

A step goes along the projected path, `min(max(w + t d, lower), upper)`. A param is fixed where it lies on a bound and
the gradient pushes it outward. The others are free, and at a minimum their gradient is 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree

PyTree = Any


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

    lower, upper = spread("lower", bounds[0], -np.inf), spread("upper", bounds[1], np.inf)
    return Box(lower, upper)


def _end(value: Any, leaf: Any) -> Array:
    real = tree.compute_dtype(leaf, real=True)
    return jnp.broadcast_to(jnp.asarray(value, real), jnp.shape(leaf))
