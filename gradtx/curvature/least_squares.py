"""Least squares: the curvature of half a sum of squares from the first derivatives of the residuals.

    loss = |r(w)|² / 2,   J = dr/dw:      gradient Jᵀ r,   Hessian about JᵀJ

Levenberg-Marquardt goes to the minimum of |r + J p|² within a radius |D p| <= radius, Moré's way: D has the largest
norms so far of the columns of J, so that a step does not depend on the units of the params.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from gradtx import tree
from gradtx.core import fields
from gradtx.core.annotations import Positive, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import vectors
from gradtx.matrices import lapack

PyTree = Any
State = dict[str, Any]


@transform
def levenberg_marquardt(initial_radius: Positive = 100.0, dense_below: PositiveInt = 200) -> Rule:
    """..."""

    def update(
        updates: PyTree,
        state: State,
        params: PyTree,
        *,
        count: Array,
        residual_fn: Callable[[PyTree], PyTree],
    ) -> tuple[PyTree, State]:
        real = tree.precision(updates, params)
        x, unravel = ravel_pytree(tree.to_compute_dtype(params))

        def residuals(x: Array) -> Array:
            found = residual_fn(tree.cast_like(unravel(x), params))
            return ravel_pytree(tree.to_compute_dtype(found))[0]

        r, J = residuals(x), jax.jacfwd(residuals)(x)
        lengths = jnp.sqrt(jnp.sum(J * J, axis=0))
        before = ravel_pytree(state["scale"])[0]
        D = jnp.maximum(before, lengths)
        D = jnp.where(D > 0, D, 1)
        of_x = jnp.sqrt(jnp.sum((D * x) ** 2))
        radius = jnp.where(count > 1, state["radius"], state["radius"] * jnp.where(of_x > 0, of_x, 1))
        U, s, Vt = lapack.svd(J / D)
        b = U.T @ r
        step, damping = within(s, b, radius)
        p = -(Vt.T @ step) / D
        length = jnp.sqrt(jnp.sum(step**2))
        new = residuals(x + p)
        rr, now = jnp.sum(r * r), jnp.sum(new * new)
        now = jnp.where(jnp.isfinite(now), now, jnp.inf)
        linear = jnp.sum((s * step) ** 2)  # |J p|²
        predicted = linear + 2 * damping * length**2
        slope = -(linear + damping * length**2)
        actual = jnp.where(0.1 * jnp.sqrt(now) < jnp.sqrt(rr), rr - now, -rr)
        ratio = jnp.where(predicted > 0, actual / predicted, 0)
        radius = jnp.where(count > 1, radius, jnp.minimum(radius, length))
        shorter = jnp.where(actual >= 0, 0.5, 0.5 * slope / (slope + 0.5 * actual))
        shorter = jnp.where((0.1 * jnp.sqrt(now) >= jnp.sqrt(rr)) | (shorter < 0.1), 0.1, shorter)
        small = shorter * jnp.minimum(radius, 10 * length)
        large = jnp.where((damping == 0) | (ratio >= 0.75), 2 * length, radius)
        radius = jnp.where(ratio <= 0.25, small, large)
        accepted = (ratio >= 1e-4) & jnp.isfinite(now)
        p = jnp.where(accepted, p, 0)
        value, back = jax.vjp(residuals, x + p)
        grad = back(value)[0]
        lost = ~accepted & (length <= jnp.finfo(real).eps * of_x)
        kept = {
            "radius": radius,
            "scale": unravel(D),
            "value": jnp.sum(value * value) / 2,
            "grad": unravel(grad),
            "evaluations": state["evaluations"] + 1,
            "failures": jnp.where(accepted, 0, state["failures"] + jnp.where(lost, 2, 0)),
        }
        return unravel(p), kept

    return Rule(
        update=update,
        reach="tree",
        fields={
            "radius": fields.scalar(initial_radius, per="tree"),
            "scale": fields.squares(exact="..."),
            "value": fields.scalar(jnp.inf, per="tree"),
            "grad": fields.like(exact="the next step starts from it"),
            "evaluations": fields.integer(per="tree"),
            "failures": fields.integer(per="tree"),
        },
    )


def within(s: Array, b: Array, radius: Array) -> tuple[Array, Array]:
    """The minimum of |b + s q|² with |q| <= radius, to a tenth of it, and the damping: q = -s b / (s² + damping).

    Newton's method on 1 / |q|, which is nearly linear in the damping (Moré 1978, algorithm 5.5).
    """
    limits = jnp.finfo(s.dtype)
    least = limits.eps * max(s.shape[0], 1) * jnp.max(s, initial=0)
    plain = jnp.where(s > least, b / jnp.where(s > least, s, 1), 0)
    fits = jnp.sum(plain**2) <= (1.1 * radius) ** 2

    def q(damping: Array) -> Array:
        return jnp.where(s > 0, s * b / jnp.where(s > 0, s**2 + damping, 1), 0)

    def closer(k: int, damping: Array) -> Array:
        at = q(damping)
        size = jnp.sqrt(jnp.sum(at**2))
        slope = jnp.sum(at**2 / (s**2 + damping)) / size  # - d|q| / d damping
        new = damping + size / slope * (size - radius) / radius
        new = jnp.clip(new, 1e-3 * damping, jnp.sqrt(jnp.sum((s * b) ** 2)) / radius)
        return jnp.where(jnp.abs(size - radius) <= 0.1 * radius, damping, new)

    upper = jnp.sqrt(jnp.sum((s * b) ** 2)) / radius
    damping = jax.lax.fori_loop(0, 10, closer, upper)
    return jnp.where(fits, plain, q(damping)), jnp.where(fits, 0, damping)
