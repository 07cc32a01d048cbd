"""Quasi-Newton methods: the curvature learned from how the gradient changes along the steps.

s = w_new - w_old,   y = g_new - g_old          the Hessian maps s to about y
"""

from typing import Any, NamedTuple

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

    Source: Liu and Nocedal 1989; Nocedal and Wright 2006, section 7.2, in the compact form of Byrd, Nocedal and
    Schnabel 1994, which needs few kernels and few sums over devices. As optax.scale_by_lbfgs, which keeps each pair
    with `sᵀy != 0` and does not start again.

    Args:
      memory_size: m, the number of pairs, at least 1.
      scale_init_precond: scale is `sᵀy / yᵀy` of the newest pair. Without pairs u has the length of the last step, at
        first min(|g|, 1). False: scale is 1.
      damped: for gradients with noise: if `sᵀy < sᵀs / (4 scale)`, y becomes `θ y + (1 - θ) s / scale` with the θ for
        which it is equal (Powell's damping, as Wang, Ma, Goldfarb, Liu 2017, equation 3.2, with scale I in place of H).
      bounds: None, or `(lower, upper)`: params at a bound that the gradient pushes outward do not move, and H is that
        of the others. Give the line search the same bounds, or use `lbfgs(bounds=...)`.

    State: `{"scale_by_lbfgs": {"count", "params", "updates": the last ones, "memory": the pairs, s and y along the
    first axis and a ring buffer along the second, "inverse": that of the upper triangle of their products sᵀy, "of_y":
    their products yᵀy, "pairs": the number kept so far, "scale"}}`; 8 m + 8 bytes per parameter. It needs the params.

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
        s, y = plus(w, -1.0, state["params"]), plus(g, -1.0, state["updates"])
        if damped:
            y = _damped(s, y, state["scale"])
        (ss, sy, sg), (_, yy, yg), (_, _, gg) = vectors.gram(s, y, g)
        kept = (count > 1) & (sy > 1e-10 * jnp.sqrt(ss) * jnp.sqrt(yy))
        number, at = state["pairs"] + kept.astype(jnp.int32), state["pairs"] % memory_size
        first = _first_scale(ss, gg, count) if scale_init_precond else jnp.ones_like(gg)
        scale = jnp.where(kept, sy / jnp.where(kept, yy, 1), state["scale"]) if scale_init_precond else first
        begin = jnp.where(number > 0, scale, first)
        pairs = _Pairs(state["memory"], s, y, at, kept & (jnp.arange(memory_size, dtype=np.int32) == at))
        with_y = pairs.products(y, sy, yy)
        inverse = jnp.where(kept, _extended(state["inverse"], with_y[0], at), state["inverse"])
        of_y = jnp.where(kept, _with_row_and_column(state["of_y"], with_y[1], at), state["of_y"])
        if limits is None:
            free, factors = g, _factors(pairs.products(g, sg, yg), inverse, of_y, begin)
            d = plus(times(begin, g), 1.0, pairs.combined(factors))
        else:
            free = limits.free(params, g)
            d = _among_free(g, free, pairs.written(kept), number, begin, memory_size)
        # Start again if d does not descend, or if the last step was zero.
        again = ~(dot(d, free) > 0) | ((count > 1) & (ss == 0))
        d = vectors.choose(again, times(first, free), d)
        return d, {
            "params": vectors.copy(params),
            "updates": g,
            "memory": pairs.written(kept & ~again),
            "inverse": jnp.where(again, 0, inverse),
            "of_y": of_y,
            "pairs": jnp.where(again, 0, number),
            "scale": scale,
        }

    return Rule(
        update=update,
        reach="tree",
        traits=() if bounds is None else ("real",),
        fields={
            "params": fields.copy(exact="differences of the params are small"),
            "updates": fields.like(exact="differences of gradients are small"),
            "memory": fields.history(2, memory_size, exact="the products of rounded pairs are not those of a Hessian"),
            "inverse": fields.history(memory_size, memory_size, per="tree"),
            "of_y": fields.history(memory_size, memory_size, per="tree"),
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


class _Pairs(NamedTuple):
    """All pairs: the memory as it was, and a new one.

    What reads them reads the old memory, so that XLA can write the new pair in place afterwards. A memory that is
    written first is copied.
    """

    memory: PyTree
    s: PyTree
    y: PyTree
    at: Array
    new: Array
    """Which place is that of the new pair; none if it is not kept."""

    def products(self, x: PyTree, *with_new: Array) -> Array:
        """Those of all s and all y with x."""
        with_old = vectors.products(self.memory, (2, self.new.size), x)
        return jnp.where(self.new[None], jnp.stack(with_new)[:, None], with_old)

    def combined(self, factors: Array) -> PyTree:
        """The sum of all s and all y times their factors."""
        of_s, of_y = jnp.sum(jnp.where(self.new[None], factors, 0), axis=1)
        old = vectors.combined(jnp.where(self.new[None], 0, factors), self.memory)
        return plus(plus(old, of_s, self.s), of_y, self.y)

    def written(self, kept: Array) -> PyTree:
        """The memory with the new pair, if it is kept."""

        def write(rows: Array, *pair: Array) -> Array:
            before = jax.lax.dynamic_slice_in_dim(rows, self.at, 1, axis=1)
            new = jnp.where(kept, jnp.stack(pair)[:, None], before)
            return jax.lax.dynamic_update_slice_in_dim(rows, new, self.at, axis=1)

        return jax.tree.map(write, self.memory, self.s, self.y)


def _extended(inverse: Array, sy: Array, at: Array) -> Array:
    """The inverse of R, the upper triangle of SᵀY, with a new pair at this place instead of the oldest.

        R = [[R_old, r], [0, d]];   inverse = [[inverse_old, -inverse_old r / d], [0, 1 / d]],   (r, d) = Sᵀy

    The order of the places does not matter. Those that are empty have zeros.
    """
    here = jnp.arange(sy.size, dtype=np.int32) == at
    old = jnp.where(here[None] | here[:, None], 0, inverse)
    d = sy.at[at].get(mode="promise_in_bounds")
    column = here.astype(sy.dtype) - jnp.matmul(old, sy, precision="highest")
    return jnp.where(here[None], column[:, None] / jnp.where(d > 0, d, 1), old)


def _with_row_and_column(matrix: Array, new: Array, at: Array) -> Array:
    """The matrix with a new row and column."""
    here = jnp.arange(new.size, dtype=np.int32) == at
    return jnp.where(here[None], new[:, None], jnp.where(here[:, None], new[None], matrix))


def _among_free(g: PyTree, free: PyTree, memory: PyTree, pairs: Array, scale: Array, length: int) -> PyTree:
    """`H g` among the free params, where `free` is g and not 0: the others are left out of every pair."""
    among = jax.tree.map(lambda x, kept: (x == kept).astype(x.dtype), g, free)
    memory = jax.tree.map(lambda rows, among: rows * among[None, None], memory, among)
    s, y = (jax.tree.map(lambda rows, side=side: rows[side], memory) for side in (0, 1))
    products, ss = jax.vmap(lambda y: vectors.products(memory, (2, length), y))(y), jax.vmap(dot)(s, s)
    sy, yy = jnp.diagonal(products[:, 0]), products[:, 1]
    sound = sy > 1e-10 * jnp.sqrt(ss) * jnp.sqrt(jnp.diagonal(yy))

    def add(k: Any, inverse: Array) -> Array:
        at = (pairs + jnp.asarray(k, np.int32)) % length  # from the oldest to the newest; empty places come first
        used = (k >= length - pairs) & sound[at]
        return jnp.where(used, _extended(inverse, products[at, 0], at), inverse)

    inverse = jax.lax.fori_loop(0, length, add, jnp.zeros_like(yy))
    factors = _factors(vectors.products(memory, (2, length), free), inverse, yy, scale)
    return plus(times(scale, free), 1.0, vectors.combined(factors, memory))


def _factors(with_g: Array, inverse: Array, yy: Array, scale: Array) -> Array:
    """Those of the pairs in `H g = scale g + S a + Y b` (Byrd, Nocedal and Schnabel 1994, theorem 2.2).

        u = R⁻¹ Sᵀg;   a = R⁻ᵀ (D u + scale (YᵀY u - Yᵀg));   b = -scale u

    with the pairs as columns of S and Y, R the upper triangle of SᵀY and D its diagonal. Where the two loops of Nocedal
    and Wright's algorithm 7.4 have four products of vectors for each pair, one after the other, this has three products
    with the matrix of all pairs in a step, one of them to make R.
    """
    rho = jnp.diagonal(inverse)
    with jax.default_matmul_precision("highest"):
        u = inverse @ with_g[0]
        a = (u / jnp.where(rho > 0, rho, 1) + scale * (yy @ u - with_g[1])) @ inverse
    return jnp.stack([a, -scale * u])
