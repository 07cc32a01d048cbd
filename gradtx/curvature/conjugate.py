"""Conjugate gradients: the minimum of a quadratic function from products with its matrix, also within a radius.

m(p) = <g, p> + <p, H p> / 2,   |p| <= radius
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.curvature import vectors
from gradtx.curvature.vectors import dot, plus, times

PyTree = Any
Product = Callable[[PyTree], PyTree]


class Minimum(NamedTuple):
    """The minimum that was found."""

    point: PyTree
    value: Array
    """m there, below 0."""
    at_boundary: Array
    """Whether it lies on the radius: further out, or along a direction of negative curvature, m is lower still."""
    products: Array
    """How many products it took."""


class _Loop(NamedTuple):
    p: PyTree
    residual: PyTree  # the gradient of m at p, g + H p
    direction: PyTree
    rr: Array
    done: Array
    at_boundary: Array
    products: Array


def minimum(product: Product, g: PyTree, radius: Any, tolerance: Any, limit: Any) -> Minimum:
    """The minimum of m, to a gradient of m of length `tolerance`, in at most `limit` products (Steihaug 1983)."""

    def goes_on(loop: _Loop) -> Array:
        return ~loop.done & (loop.products < limit)

    def step(loop: _Loop) -> _Loop:
        hd = product(loop.direction)
        curvature = dot(loop.direction, hd)
        a = loop.rr / jnp.where(curvature > 0, curvature, 1)
        further = plus(loop.p, a, loop.direction)
        outside = ~(curvature > 0) | ~(dot(further, further) < radius**2)
        a = jnp.where(outside, to_boundary(loop.p, loop.direction, radius), a)
        residual = plus(loop.residual, a, hd)
        rr = dot(residual, residual)
        direction = plus(times(-1.0, residual), rr / loop.rr, loop.direction)
        done = outside | (rr <= tolerance**2)
        return _Loop(plus(loop.p, a, loop.direction), residual, direction, rr, done, outside, loop.products + 1)

    rr = dot(g, g)
    no = jnp.zeros((), bool)
    start = _Loop(times(0.0, g), g, times(-1.0, g), rr, rr <= tolerance**2, no, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(goes_on, step, start)
    return Minimum(end.p, (dot(g, end.p) + dot(end.residual, end.p)) / 2, end.at_boundary, end.products)


def to_boundary(p: PyTree, d: PyTree, radius: Any) -> Array:
    """The positive a with |p + a d| = radius."""
    pd, dd = dot(p, d), dot(d, d)
    left = jnp.maximum(radius**2 - dot(p, p), 0)
    root = jnp.sqrt(pd**2 + dd * left)
    return jnp.where(pd > 0, left / (pd + root), (root - pd) / dd)


def solve(product: Product, right: PyTree) -> PyTree:
    """The x with H x = right, for a positive definite H. Linear in `right`, with derivatives."""
    eps = float(jnp.finfo(tree.precision(right)).eps)

    def of_vector(v: Array) -> Array:
        return vectors.flat(product(vectors.unflat(v, right)))

    def found(product: Callable[[Array], Array], right: Array) -> Array:
        small = 10 * eps * vectors.length(right)
        return minimum(product, -right, jnp.inf, small, 10 * right.size).point

    # One vector: JAX transposes the solution only if every leaf of `right` depends on what is differentiated.
    x = jax.lax.custom_linear_solve(of_vector, vectors.flat(right), found, symmetric=True)
    return vectors.unflat(x, right)
