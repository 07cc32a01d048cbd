"""Nonlinear conjugate gradients: each direction is the gradient, less its part along the last one.

    d <- -g + β d_old

On a quadratic with an exact search the directions are conjugate, and n of them reach the minimum. The state is three
trees, where L-BFGS has 2 m + 3: the method for the largest problems.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from gradtx import numerics, tree
from gradtx.core import fields
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import vectors
from gradtx.curvature.vectors import dot, plus, times

PyTree = Any
State = dict[str, Any]
Method = Literal["polak_ribiere", "hager_zhang"]


@transform
def scale_by_nonlinear_cg(method: Method = "polak_ribiere") -> Rule:
    """The direction of nonlinear conjugate gradients, as a gradient: `scale(-1)` makes it a step.

        u <- g + β u_old,   with y = g - g_old:
        polak_ribiere:  β = max(<g, y> / |g_old|², 0)
        hager_zhang:    β = max(<y + 2 u_old |y|² / <u_old, -y>, g> / <u_old, -y>, -1 / (|u_old| min(0.01, |g_old|)))

    It starts again from the gradient (β = 0) if u does not descend, or if the last step was zero. What it returns is
    scaled, so that a step of 1 promises the decrease of the last step, <g, u> = <g_old, step>: the first step that a
    line search should try.

    Source: Polak and Ribière 1969 with Powell's maximum ("PR+"); Hager and Zhang 2005 (SIAM J. Optim. 16), equations
    1.3 to 1.6, with η = 0.01. The first trial: Nocedal and Wright 2006, section 3.5.

    Args:
      method: "polak_ribiere" or "hager_zhang". The second needs less exact searches.

    State: `{"scale_by_nonlinear_cg": {"count", "params", "updates", "direction": the last ones}}`; 12 bytes per
    parameter. It needs the params.

    Errors: ValueError for an unknown method, or from update without params.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.scale_by_nonlinear_cg()
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)), jnp.zeros(2))
    >>> print(updates)
    [0.6 0.8]
    """

    def update(updates: PyTree, state: State, params: PyTree, *, count: Array) -> tuple[PyTree, State]:
        real = tree.precision(updates, params)
        g, w, state = vectors.wide((updates, params, state), real)
        old, u = state["updates"], state["direction"]
        y, s = plus(g, -1.0, old), plus(w, -1.0, state["params"])
        gg, yy = dot(g, g), dot(y, y)
        if method == "polak_ribiere":
            beta = jnp.maximum(numerics.divide(dot(g, y), dot(old, old)), 0)
        else:
            rise = -dot(u, y)
            eta = jnp.minimum(0.01, vectors.length(old))
            beta = numerics.divide(dot(y, g) + 2 * dot(u, g) * numerics.divide(yy, rise), rise)
            beta = jnp.maximum(beta, -numerics.divide(jnp.ones_like(gg), vectors.length(u) * eta))
        moved = (count > 1) & (yy > 0) & jnp.isfinite(beta)
        u = plus(g, jnp.where(moved, beta, 0), u)
        again = ~(dot(u, g) > 0)
        u = vectors.choose(again, g, u)
        # <g, u> = <g_old, step>; at first, a step of length 1 at most.
        slope = dot(u, g)
        fell = jnp.where(count > 1, -dot(old, s), 0)
        unit = jnp.minimum(1, 1 / jnp.sqrt(jnp.where(gg > 0, gg, 1)))
        scale = jnp.where(fell > 0, fell / jnp.where(slope > 0, slope, 1), unit)
        return times(scale, u), {"params": vectors.copy(params), "updates": g, "direction": u}

    kept = "differences of gradients are small"
    return Rule(
        update=update,
        reach="tree",
        fields={"params": fields.copy(exact=kept), "updates": fields.like(exact=kept), "direction": fields.like()},
    )
