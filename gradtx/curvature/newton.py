"""Newton's method: the minimum of the quadratic model of the loss, within the radius in which it can be trusted.

    m(p) = <g, p> + <p, H p> / 2,   |p| <= radius

H is the Hessian, of which only products are computed. A direction of negative curvature is followed to the boundary,
so that saddles are left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core import check
from gradtx.core.annotations import Positive, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import trust, vectors
from gradtx.curvature.linesearches import moved, value_and_grad

PyTree = Any
State = dict[str, Any]


@transform
def newton_cg(initial_radius: Positive = 1.0, max_cg_steps: PositiveInt | None = None) -> Rule:
    """Newton's method in a trust region, with conjugate gradients (Newton-CG).

        u = p, the minimum of <g, p> + <p, H p> / 2 with |p| <= radius, if the loss falls at w + p; else u = 0

    The minimum is found with conjugate gradients, to a gradient of the model of min(0.1, sqrt|g|) |g|, or up to the
    radius. Each product H v costs about two gradients, and no matrix is stored. Near a minimum the error is squared at
    each step.

    Source: Steihaug 1983 (SIAM J. Numer. Anal. 20) for the steps; Moré 1978 for the radius; Nocedal and Wright 2006,
    algorithms 4.1 and 7.2. SciPy's "trust-ncg" stops the conjugate gradients earlier, at min(0.5, sqrt|g|) |g|.

    Args:
      initial_radius: > 0: the first radius, in lengths of the first params (of 1 if they are 0).
      max_cg_steps: the most products for one step; None is 2 n + 5 for n params.

    Update needs the params and the extra arguments `value`, `value_fn` and `grad_fn`: the loss at the params, and the
    loss and its gradient as functions of the params, which JAX can differentiate. `minimize` and `sweep` provide them.
    The updates that flow in are the gradient: no transform may come before it.

    State: `{"newton_cg": {"radius", "value", "grad": the loss and the gradient at the new params, "evaluations": losses
    with gradients, "failures"}}`; 4 bytes per parameter.

    Errors: TypeError if one of the extra arguments is missing, and for complex params; ValueError for numbers out of
    range, and for shards inside `shard_map`.

    >>> import gradtx, jax.numpy as jnp
    >>> def rosenbrock(w):
    ...     return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
    >>> result = gradtx.minimize(rosenbrock, jnp.array([-1.2, 1.0]), gradtx.newton_cg())
    >>> print(jnp.abs(result.params - 1).max() < 1e-5, result.evaluations < 40)
    True True
    """

    def update(
        updates: PyTree,
        state: State,
        params: PyTree,
        *,
        value: Array,
        value_fn: Callable[..., Array],
        grad_fn: Callable[..., PyTree],
    ) -> tuple[PyTree, State]:
        check.refuse_shards("gradtx.newton_cg", updates)
        vectors.check_number("gradtx.newton_cg", value)
        real = tree.precision(updates, params)
        g, state = vectors.wide((updates, state), real)
        steepness, size = vectors.length(g), vectors.length(vectors.wide(params, real))
        radius = trust.first_radius(state, initial_radius, size)
        tolerance = jnp.minimum(0.1, jnp.sqrt(steepness)) * steepness
        limit = max_cg_steps or 2 * vectors.elements(g) + 5
        _, product = jax.linearize(grad_fn, params)

        def hessian(v: PyTree) -> PyTree:
            return vectors.wide(product(tree.cast_like(v, params)), real)

        found = trust.minimum(hessian, g, radius, tolerance, limit)
        p = found.point
        after = value_and_grad(value_fn, moved(params, 1.0, p), real)
        step = trust.Step(p, vectors.length(p), found.value, vectors.dot(g, p), found.at_boundary)
        before = vectors.number(value, real), g
        return trust.settled(state, radius, step, before, after, size)

    return Rule(update=update, reach="tree", traits=("real", "descends", "gradients"), fields=trust.FIELDS)
