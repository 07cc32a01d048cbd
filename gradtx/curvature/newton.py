"""Newton's method: the minimum of the quadratic model of the loss, within the radius in which it can be trusted.

    m(p) = <g, p> + <p, H p> / 2,   |p| <= radius;      ratio = (loss - loss at w + p) / -m(p)

The model has the exact Hessian, of which only products are computed. A direction of negative curvature is followed to
the boundary, so that saddles are left. The radius follows how well the model predicts the loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core import fields
from gradtx.core.annotations import Positive, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import conjugate, vectors
from gradtx.curvature.linesearches import moved, value_and_grad

PyTree = Any
State = dict[str, Any]


@transform
def newton_cg(initial_radius: Positive = 1.0, max_cg_steps: PositiveInt | None = None) -> Rule:
    """..."""

    def update(
        updates: PyTree,
        state: State,
        params: PyTree,
        *,
        count: Array,
        value: Array,
        value_fn: Callable[..., Array],
        grad_fn: Callable[..., PyTree],
    ) -> tuple[PyTree, State]:
        real = tree.precision(updates, params)
        g, value = updates, vectors.number(value, real)
        size = jnp.sqrt(vectors.dot(g, g))
        limit = max_cg_steps or 2 * sum(leaf.size for leaf in jax.tree.leaves(g)) + 5
        _, product = jax.linearize(grad_fn, params)
        tolerance = TOL(size) * size
        found = conjugate.minimum(lambda v: product(tree.cast_like(v, params)), g, state["radius"], tolerance, limit)
        p = found.point
        length = jnp.sqrt(vectors.dot(p, p))
        new_value, new_grad = value_and_grad(value_fn, moved(params, jnp.ones((), real), p))
        new_value = vectors.number(new_value, real)
        ratio = trust(value, new_value, -found.value)
        new_size = jnp.sqrt(vectors.dot(new_grad, new_grad))
        rounding = (-found.value < 100 * jnp.finfo(real).eps * jnp.abs(value)) & (new_size < size)
        accepted = jnp.isfinite(new_size) & ((ratio > 0.15) | rounding)
        good = (ratio > 0.75) & found.at_boundary
        radius = jnp.where(good, GROW * state["radius"], state["radius"])
        radius = jnp.where((ratio < 0.25) & ~rounding | ~jnp.isfinite(new_size), length / 4, radius)
        sizes = jnp.sqrt(vectors.dot(params, params))
        lost = ~accepted & (length <= jnp.finfo(real).eps * sizes)
        kept = {
            "radius": radius,
            "value": jnp.where(accepted, new_value, value),
            "grad": vectors.choose(accepted, new_grad, g),
            "evaluations": state["evaluations"] + 1,
            "products": state["products"] + found.products,
            "failures": jnp.where(accepted, 0, state["failures"] + jnp.where(lost, 2, 0)),
        }
        return vectors.choose(accepted, p, vectors.times(0.0, p)), kept

    return Rule(
        update=update,
        reach="tree",
        fields={
            "radius": fields.scalar(initial_radius, per="tree"),
            "value": fields.scalar(jnp.inf, per="tree"),
            "grad": fields.like(exact="the next step starts from it"),
            "evaluations": fields.integer(per="tree"),
            "products": fields.integer(per="tree"),
            "failures": fields.integer(per="tree"),
        },
    )

GROW = 2.0
TOL = lambda size: jnp.minimum(0.5, jnp.sqrt(size))

def trust(before: Array, after: Array, predicted: Array) -> Array:
    """The decrease of the loss by that of the model; -inf if the loss is not finite."""
    return jnp.where(jnp.isfinite(after), (before - after) / predicted, -jnp.inf)
