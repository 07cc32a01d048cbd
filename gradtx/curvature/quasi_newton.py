"""Quasi-Newton methods: the curvature learned from how the gradient changes along the steps.

s = w_new - w_old,   y = g_new - g_old          the Hessian maps s to about y
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import numerics, tree
from gradtx.core import check, fields
from gradtx.core.annotations import PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import vectors
from gradtx.curvature.vectors import box, dot, plus, times

PyTree = Any
State = dict[str, Any]


@transform
def scale_by_lbfgs(
    memory_size: PositiveInt = 10,
    scale_init_precond: bool = True,
    *,
    damped: bool = False,
    bounds: Any = None,
) -> Rule:
    """The gradient times an approximation of the inverse Hessian from the last steps (L-BFGS).

        u = H g;   H from the last m pairs s = w - w_old, y = g - g_old, each with H y = s, starting at scale I

    A pair is kept if `sᵀy > 1e-10 |s| |y|`, so H stays positive definite. It starts again from the gradient, without
    pairs, if u does not descend or if the last step was zero.

    Source: Liu and Nocedal 1989; Nocedal and Wright 2006, algorithm 7.4. As optax.scale_by_lbfgs, which keeps each pair
    with `sᵀy != 0` and does not start again.

    Args:
      memory_size: m, the number of pairs, at least 1.
      scale_init_precond: scale is `sᵀy / yᵀy` of the newest pair. Without pairs u has the length of the last step, at
        first min(|g|, 1). False: scale is 1.
      damped: for gradients with noise: if `sᵀy < sᵀs / (4 scale)`, y becomes `θ y + (1 - θ) s / scale` with the θ for
        which it is equal (Powell's damping, as Wang, Ma, Goldfarb, Liu 2017, equation 3.2, with scale I in place of H).
      bounds: None, or `(lower, upper)`: params at a bound that the gradient pushes outward do not move, and H is that
        of the others. Give the line search the same bounds, or use `lbfgs(bounds=...)`.

    State: `{"scale_by_lbfgs": {"count", "params", "grad": the last ones, "memory": the pairs, s and y along the first
    axis and a ring buffer along the second, "rho": 1 / sᵀy, "pairs": the number kept so far, "scale"}}`; 8 m + 8 bytes
    per parameter. It needs the params.

    Errors: ValueError for a memory size below 1, for bounds that do not fit the params, from update without params, and
    for shards inside `shard_map`; TypeError for complex params with bounds.

    >>> import gradtx, jax.numpy as jnp
    >>> curvature = jnp.array([1.0, 100.0])
    >>> tx, w = gradtx.scale_by_lbfgs(), jnp.ones(2)
    >>> state = tx.init(w)
    >>> for step in (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.zeros(2)):
    ...     u, state = tx.update(curvature * w, state, w)
    ...     w = w + step
    >>> print(u)  # with a step along each axis, H is the inverse Hessian
    [2. 2.]
    """

    def update(updates: PyTree, state: State, params: PyTree, *, count: Array) -> tuple[PyTree, State]:
        check.refuse_shards("gradtx.scale_by_lbfgs", updates)
        real = tree.precision(updates, params)
        g, w, state = vectors.wide((updates, params, state), real)
        limits = None if bounds is None else box("gradtx.scale_by_lbfgs", bounds, params)
        # s <- w - w_old, y <- g - g_old
        s, y = plus(w, -1.0, state["params"]), plus(g, -1.0, state["grad"])
        if damped:
            y = _damped(s, y, state["scale"])
        (ss, sy, _), (_, yy, _), (_, _, gg) = vectors.gram(s, y, g)
        kept = (count > 1) & (sy > 1e-10 * jnp.sqrt(ss) * jnp.sqrt(yy))
        pairs, at = state["pairs"] + kept.astype(jnp.int32), state["pairs"] % memory_size
        here = kept & (jnp.arange(memory_size, dtype=np.int32) == at)
        rho = jnp.where(here, 1 / jnp.where(kept, sy, 1), state["rho"])
        memory = jax.tree.map(lambda rows, *new: _put(rows, jnp.stack(new), at, kept), state["memory"], s, y)
        first = _first_scale(ss, gg, count) if scale_init_precond else jnp.ones_like(gg)
        scale = jnp.where(kept, sy / jnp.where(kept, yy, 1), state["scale"]) if scale_init_precond else first
        begin = jnp.where(pairs > 0, scale, first)
        if limits is None:
            free, d = g, _two_loops(g, memory, rho, pairs, begin)
        else:
            free = limits.free(params, g)
            among = jax.tree.map(lambda x, kept: (x == kept).astype(x.dtype), g, free)
            d = _among_free(free, among, memory, rho, pairs, begin)
        # Start again if d does not descend, or if the last step was zero.
        again = ~(dot(d, free) > 0) | ((count > 1) & (ss == 0))
        d = vectors.choose(again, times(first, free), d)
        new = {
            "params": vectors.copy(params),
            "grad": g,
            "memory": memory,
            "rho": jnp.where(again, 0, rho),
            "pairs": jnp.where(again, 0, pairs),
            "scale": scale,
        }
        return d, new

    return Rule(
        update=update,
        reach="tree",
        traits=() if bounds is None else ("real",),
        fields={
            "params": fields.copy(exact="differences of the params are small"),
            "grad": fields.like(exact="differences of gradients are small"),
            "memory": fields.history(2, memory_size, exact="the products of rounded pairs are not those of a Hessian"),
            "rho": fields.history(memory_size, per="tree"),
            "pairs": fields.integer(per="tree"),
            "scale": fields.scalar(1.0, per="tree"),
        },
    )


def _damped(s: PyTree, y: PyTree, scale: Array) -> PyTree:
    """`θ y + (1 - θ) s / scale`, whose product with s is at least a quarter of `sᵀs / scale`."""
    straight, sy = dot(s, s) / scale, dot(s, y)
    theta = jnp.where(sy < straight / 4, 0.75 * straight / jnp.where(straight > sy, straight - sy, 1), 1)
    return plus(times(theta, y), (1 - theta) / scale, s)


def _first_scale(ss: Array, gg: Array, count: Array) -> Array:
    """The scale of the gradient without pairs: for a step of length 1 at most, then for one as long as the last.

    If no step was found with the first, which is tiny where the gradient is, the next has length 1.
    """
    unit = numerics.divide(jnp.ones_like(gg), numerics.root(gg))
    again = jnp.where(ss > 0, numerics.root(ss) * unit, unit)
    return jnp.where(count > 1, again, jnp.minimum(1, unit))


def _put(rows: Array, new: Array, at: Array, kept: Array) -> Array:
    before = rows.at[:, at].get(mode="promise_in_bounds")
    return rows.at[:, at].set(jnp.where(kept, new, before), mode="promise_in_bounds")


def _among_free(g: PyTree, free: PyTree, memory: PyTree, rho: Array, pairs: Array, scale: Array) -> PyTree:
    """`H g` among the free params: the others are left out of every pair."""
    memory = jax.tree.map(lambda rows, among: rows * among[None, None], memory, free)
    s, y = (jax.tree.map(lambda rows, side=side: rows[side], memory) for side in (0, 1))
    each = jax.vmap(dot)
    sy, sizes = each(s, y), jnp.sqrt(each(s, s)) * jnp.sqrt(each(y, y))
    rho = jnp.where((rho > 0) & (sy > 1e-10 * sizes), 1 / jnp.where(sy > 0, sy, 1), 0)
    return jax.tree.map(jnp.multiply, _two_loops(g, memory, rho, pairs, scale), free)


def _two_loops(g: PyTree, memory: PyTree, rho: Array, pairs: Array, scale: Array) -> PyTree:
    """`H g` (Nocedal and Wright 2006, algorithm 7.4), both loops in one.

        q = g;  from the newest pair to the oldest:  a_i = rho_i sᵢᵀq,  q = q - a_i yᵢ
        q = scale q;  from the oldest to the newest: b = rho_i yᵢᵀq,    q = q + (a_i - b) sᵢ

    A pair with rho 0 changes nothing.
    """
    length = rho.shape[0]

    def step(k: Any, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        (q, a), k = carry, jnp.asarray(k, np.int32)
        back = k < length
        i = (pairs + jnp.where(back, -1 - k, k)) % length
        side = jnp.where(back, 0, 1)
        q = times(jnp.where(k == length, scale, 1), q)
        b = rho[i] * dot(jax.tree.map(lambda rows: rows[side, i], memory), q)
        q = plus(q, jnp.where(back, 0, a[i]) - b, jax.tree.map(lambda rows: rows[1 - side, i], memory))
        return q, jnp.where(back & (jnp.arange(length, dtype=np.int32) == i), b, a)

    return jax.lax.fori_loop(0, 2 * length, step, (g, jnp.zeros_like(rho)))[0]
