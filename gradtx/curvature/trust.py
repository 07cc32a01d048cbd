"""Trust regions: whether a step of a model is taken, and the radius within which the next model is trusted.

    ratio = (loss(w) - loss(w + p)) / (m(0) - m(p))           how much of the promised decrease came

A step is taken if some of it came. Where the model was good up to the radius, the radius becomes twice the step. Where
it was poor, it shrinks to the minimum of the loss along the step, by a parabola (Moré 1978; MINPACK).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from gradtx.core import fields
from gradtx.curvature import vectors
from gradtx.curvature.linesearches import KEPT

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
    return vectors.choose(taken, step.point, vectors.times(0.0, step.point)), kept
