"""Trust regions: whether a step of a model is taken, and the radius within which the next model is trusted.

    ratio = (loss(w) - loss(w + p)) / (m(0) - m(p))           how much of the promised decrease came

A step is taken if some of it came. Where the model was good up to the radius, the radius becomes twice the step. Where
it was poor, it shrinks to the minimum of the loss along the step, by a parabola (Moré 1978; MINPACK).

Conjugate gradients: the minimum of a quadratic function from products with its matrix, also within a radius.

m(p) = <g, p> + <p, H p> / 2,   |p| <= radius
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics, tree
from gradtx.core import fields
from gradtx.curvature import vectors
from gradtx.curvature.linesearches import KEPT
from gradtx.curvature.vectors import dot, plus, times

PyTree = Any
State = dict[str, Any]

FIELDS = {"radius": fields.scalar(0.0, per="tree"), **KEPT}
"""What these methods keep. A radius of 0 is not yet known."""


class Step(NamedTuple):
    """A step to the minimum of a model within the radius."""

    point: PyTree
    length: Array
    model: Array
    """m(p) - m(0), below 0."""
    slope: Array
    """<gradient, p>."""
    at_boundary: Array


def first_radius(state: State, initial: Any, size: Array) -> Array:
    """The radius; at first `initial` times the size of the params, or `initial` if they are 0."""
    return jnp.where(state["radius"] > 0, state["radius"], initial * jnp.where(size > 0, size, 1))


def settled(
    state: State, radius: Array, step: Step, before: tuple[Array, PyTree], after: tuple[Array, PyTree], size: Array
) -> tuple[PyTree, State]:
    """The update, and the state after it; `before` and `after` are the losses and gradients, `size` that of the params.

    A step that promises less than the rounding of the loss is judged by the gradient.
    """
    eps = jnp.finfo(radius.dtype).eps
    (value, grad), (there, grad_there) = before, after
    sound = jnp.isfinite(there) & vectors.finite(grad_there)
    actual = jnp.where(sound, value - there, -jnp.inf)
    ratio = jnp.where(step.model < 0, actual / -step.model, 0)
    lost = (-step.model <= 100 * eps * jnp.abs(value)) & sound
    flatter = vectors.dot(grad_there, grad_there) < vectors.dot(grad, grad)
    ratio = jnp.where(lost, jnp.where(flatter, 1.0, 0.0), ratio)
    # The minimum of the parabola through both losses and the slope.
    shorter = jnp.clip(0.5 * step.slope / (step.slope + jnp.where(sound, actual, 0)), 0.1, 0.5)
    shorter = jnp.where(actual >= 0, 0.5, jnp.where(sound, shorter, 0.1))
    known = jnp.where(state["radius"] > 0, radius, jnp.minimum(radius, step.length))
    good = (ratio >= 0.75) & step.at_boundary
    larger = jnp.where(good, jnp.maximum(known, 2 * step.length), known)
    new_radius = jnp.where(ratio <= 0.25, shorter * jnp.minimum(known, 10 * step.length), larger)
    taken = sound & (ratio >= 1e-4)
    stuck = ~taken & (step.length <= eps * size)
    kept = {
        "radius": new_radius,
        "value": jnp.where(taken, there, value),
        "grad": vectors.choose(taken, grad_there, grad),
        "evaluations": state["evaluations"] + 1,
        "failures": jnp.where(taken, 0, state["failures"] + jnp.where(stuck, 2, 0)),
    }
    return vectors.choose(taken, step.point, jax.tree.map(jnp.zeros_like, step.point)), kept


# Conjugate gradients --------------------------------------------------------------------------------------------------

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
    """The minimum of m, to a gradient of m of length `tolerance`, in at most `limit` products (Steihaug 1983).

    It is found as that of m / |g|: the squares of a huge or tiny g would overflow or vanish.
    """
    size = vectors.length(g)
    unit = numerics.divide(jnp.ones_like(size), size)
    g, tolerance = times(unit, g), unit * tolerance

    def goes_on(loop: _Loop) -> Array:
        return ~loop.done & (loop.products < limit)

    def step(loop: _Loop) -> _Loop:
        hd = times(unit, product(loop.direction))
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
    value = size * (dot(g, end.p) + dot(end.residual, end.p)) / 2
    return Minimum(end.p, value, end.at_boundary, end.products)


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
