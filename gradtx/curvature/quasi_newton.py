"""Quasi-Newton methods: the curvature learned from how the gradient changes along the steps.

    s = w_new - w_old,   y = g_new - g_old          the Hessian maps s to about y
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core import fields
from gradtx.core.annotations import PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import vectors
from gradtx.curvature.vectors import dot

PyTree = Any
State = dict[str, Any]


@transform
def scale_by_lbfgs(memory_size: PositiveInt = 10, scale_init_precond: bool = True) -> Rule:
    """..."""

    def update(updates: PyTree, state: State, params: PyTree, *, count: Array) -> tuple[PyTree, State]:
        g = updates
        # s <- w - w_old, y <- g - g_old; kept if sᵀy is positive by more than rounding.
        s, y = vectors.plus(params, -1.0, state["params"]), vectors.plus(g, -1.0, state["grad"])
        (ss, sy, _), (_, yy, _), (_, _, gg) = vectors.gram(s, y, g)
        kept = (count > 1) & (sy > 1e-10 * jnp.sqrt(ss) * jnp.sqrt(yy))
        pairs, at = state["pairs"] + kept, state["pairs"] % memory_size
        rho = jnp.where((jnp.arange(memory_size) == at) & kept, 1 / sy, state["rho"])
        memory = jax.tree.map(lambda rows, *new: _put(rows, jnp.stack(new), at, kept), state["memory"], s, y)
        first = _first_scale(ss, gg, count) if scale_init_precond else jnp.ones_like(gg)
        scale = jnp.where(kept, sy / yy, state["scale"]) if scale_init_precond else first
        d = _two_loops(g, memory, rho, pairs, jnp.where(pairs > 0, scale, first))
        # Start again if d does not descend, or if the last step was zero.
        again = ~(vectors.dot(d, g) > 0) | ((count > 1) & (ss == 0))
        d = vectors.choose(again, vectors.times(first, g), d)
        new = {
            "params": tree.to_compute_dtype(params),
            "grad": g,
            "memory": memory,
            "rho": jnp.where(again, 0, rho),
            "pairs": jnp.where(again, 0, pairs),
            "scale": scale,
        }
        return d, new

    history = fields.history(2, memory_size, exact="products of rounded vectors are not those of the Hessian")
    return Rule(
        update=update,
        reach="tree",
        fields={
            "params": fields.copy(exact="differences of the params are small"),
            "grad": fields.like(exact="differences of gradients are small"),
            "memory": history,
            "rho": fields.history(memory_size, per="tree"),
            "pairs": fields.integer(per="tree"),
            "scale": fields.scalar(1.0, per="tree"),
        },
    )


def _first_scale(ss: Array, gg: Array, count: Array) -> Array:
    """The scale of the gradient without pairs: for a step of length 1 at most, then for one as long as the last.

    If no step was found with the first, which is tiny where the gradient is, the next has length 1.
    """
    unit = 1 / jnp.sqrt(gg)
    again = jnp.where(ss > 0, jnp.sqrt(ss) * unit, unit)
    return jnp.where(count > 1, again, jnp.minimum(1, unit))


def _put(rows: Array, new: Array, at: Array, kept: Array) -> Array:
    before = rows.at[:, at].get(mode="promise_in_bounds")
    return rows.at[:, at].set(jnp.where(kept, new, before), mode="promise_in_bounds")


def _two_loops(g: PyTree, memory: PyTree, rho: Array, pairs: Array, scale: Array) -> PyTree:
    """`H g` (Nocedal and Wright 2006, algorithm 7.4), both loops in one.

        q = g;  from the newest pair to the oldest:  a_i = rho_i sᵢᵀq,  q = q - a_i yᵢ
        q = scale q;  from the oldest to the newest: b = rho_i yᵢᵀq,    q = q + (a_i - b) sᵢ
    """
    length = rho.shape[0]

    def step(k: Array, carry: Any) -> Any:
        q, a = carry
        back = k < length
        i = (pairs + jnp.where(back, -1 - k, k)) % length
        side = jnp.where(back, 0, 1)
        q = vectors.times(jnp.where(k == length, scale, 1), q)
        b = rho[i] * vectors.dot(jax.tree.map(lambda rows: rows[side, i], memory), q)
        other = jax.tree.map(lambda rows: rows[1 - side, i], memory)
        q = vectors.plus(q, jnp.where(back, 0, a[i]) - b, other)
        return q, jnp.where(back & (jnp.arange(length) == i), b, a)

    return jax.lax.fori_loop(0, 2 * length, step, (g, jnp.zeros_like(rho)))[0]
