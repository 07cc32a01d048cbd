"""Least squares: curvature from the first derivatives of the residuals, or of a model's outputs.

    loss = |r(w)|² / 2,     J = dr/dw:     gradient Jᵀr,   Hessian about JᵀJ
    loss = c(f(w)),         J = df/dw:     gradient Jᵀc',  Hessian about JᵀCJ, with C the Hessian of c

What is left out has the second derivatives of the residuals times the residuals, which are small near a good fit.
Few params have a dense J, which is decomposed; more have products J v and Jᵀ v, with conjugate gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import numerics, tree
from gradtx.core import check, fields
from gradtx.core.annotations import NonNegative, NonNegativeInt, Positive, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import trust, vectors
from gradtx.matrices import lapack

PyTree = Any
State = dict[str, Any]


class Linear(NamedTuple):
    """Residuals as a function of a vector of all params, and their derivatives at one point."""

    residuals: Callable[[Array], Array]
    unravel: Callable[[Array], PyTree]
    x: Array

    def dense(self) -> tuple[Array, Array]:
        """The residuals and their Jacobian."""
        derivative = jax.jacfwd if self.x.size <= jax.eval_shape(self.residuals, self.x).size else jax.jacrev
        return self.residuals(self.x), derivative(self.residuals)(self.x)

    def products(self) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array]]:
        """The residuals, and the products with J and its transpose."""
        r, forward = jax.linearize(self.residuals, self.x)
        back = jax.linear_transpose(forward, self.x)
        return r, forward, lambda v: back(v)[0]


def linear(who: str, residual_fn: Callable[[PyTree], PyTree], params: PyTree, real: np.dtype[Any]) -> Linear:
    """The residuals as a function of a vector, in this precision."""
    wide = vectors.wide(params, real)

    def unravel(x: Array) -> PyTree:
        return vectors.unflat(x, wide)

    def residuals(x: Array) -> Array:
        found = residual_fn(tree.cast_like(unravel(x), params))
        check_residuals(who, found)
        return vectors.flat(found, real)

    return Linear(residuals, unravel, vectors.flat(params, real))


def check_residuals(who: str, found: PyTree) -> None:
    """Refuse what is no tree of real arrays."""
    for path, leaf in tree.named_leaves(found):
        if not hasattr(leaf, "dtype") or tree.is_complex(leaf) or tree.is_discrete(leaf):
            hint = " Return the real and imaginary parts." if tree.is_complex(leaf) else ""
            raise TypeError(
                f"{who}: the residuals at {path} are {getattr(leaf, 'dtype', type(leaf).__name__)}; they must be real "
                f"floating-point arrays.{hint}"
            )


@transform
def levenberg_marquardt(initial_radius: Positive = 100.0, dense_below: NonNegativeInt = 200) -> Rule:
    """Levenberg-Marquardt: least squares in a trust region.

        u = p, the minimum of |r + J p|² with |D p| <= radius, if |r(w + p)| is smaller; else u = 0

    D has the largest norms so far of the columns of J, so that a step does not depend on the units of the params. The
    minimum is that of `(JᵀJ + λ D²) p = -Jᵀr`, with λ found from the radius.

    Source: Moré 1978 ("The Levenberg-Marquardt algorithm"), which is MINPACK's and SciPy's `method="lm"`. The equations
    are solved with a singular value decomposition of J / D in place of a QR decomposition for each λ. With more than
    `dense_below` params D is 1 and the minimum is found with conjugate gradients (Steihaug 1983).

    Args:
      initial_radius: > 0: the first radius, in lengths of D times the first params (of 1 if they are 0).
      dense_below: up to this number of params J is stored and decomposed; 0 never.

    Update needs the params and the extra argument `residual_fn`, the residuals as a function of the params: an array or
    a tree of real arrays. `minimize` provides it: it is then given a function that returns residuals, or `residuals=`.
    The updates that flow in are not read: the gradient is that of half the sum of squares.

    State: `{"levenberg_marquardt": {"scale": D, "radius", "value", "grad": half the sum of squares and its gradient at
    the new params, "evaluations": of the residuals, "failures"}}`; 8 bytes per parameter.

    Errors: TypeError without residual_fn, for residuals that are not real, and for complex params; ValueError for
    numbers out of range, and for shards inside `shard_map`.

    >>> import gradtx, jax.numpy as jnp
    >>> t = jnp.linspace(0.0, 2.0, 20)
    >>> data = 3.0 * jnp.exp(-1.5 * t)
    >>> def residuals(w):
    ...     return w["size"] * jnp.exp(-w["rate"] * t) - data
    >>> start = {"rate": jnp.array(0.1), "size": jnp.array(1.0)}
    >>> result = gradtx.minimize(residuals, start, gradtx.levenberg_marquardt())
    >>> print({name: f"{value:.3f}" for name, value in result.params.items()})
    {'rate': '1.500', 'size': '3.000'}
    """
    who = "gradtx.levenberg_marquardt"

    def update(
        updates: PyTree, state: State, params: PyTree, *, residual_fn: Callable[[PyTree], PyTree]
    ) -> tuple[PyTree, State]:
        check.refuse_shards(who, updates)
        real = tree.precision(updates, params)
        of, state = linear(who, residual_fn, params, real), vectors.wide(state, real)
        scale = vectors.flat(state["scale"], real)
        dense = of.x.size <= dense_below
        (r, g, D, step, radius), size = (_dense if dense else _with_products)(of, state, initial_radius, scale)
        there, back = jax.vjp(of.residuals, of.x + step.point)
        after = there @ there / 2, back(there)[0]
        p, kept = trust.settled(state, radius, step, (r @ r / 2, g), after, size)
        return of.unravel(p), kept | {"grad": of.unravel(kept["grad"]), "scale": of.unravel(D)}

    return Rule(
        update=update,
        reach="tree",
        traits=("real", "descends", "gradients"),
        fields={"scale": fields.squares(exact="the radius is measured with it"), **trust.FIELDS},
    )


def _dense(of: Linear, state: State, initial: Any, scale: Array) -> Any:
    """The step from the singular values of J / D."""
    r, J = of.dense()
    largest = jnp.maximum(scale, jnp.sqrt(jnp.sum(J * J, axis=0)))
    D = jnp.where(largest > 0, largest, 1)
    size = vectors.length(D * of.x)
    radius = trust.first_radius(state, initial, size)
    U, s, Vt = lapack.svd(J / D[None])
    q, at_boundary = within(s, U.T @ r, radius)
    p = Vt.T @ q / D
    Jp, slope = J @ p, r @ (J @ p)
    return (r, J.T @ r, D, trust.Step(p, vectors.length(q), slope + Jp @ Jp / 2, slope, at_boundary), radius), size


def _with_products(of: Linear, state: State, initial: Any, scale: Array) -> Any:
    """The step from products with J."""
    r, forward, back = of.products()
    g, size = back(r), vectors.length(of.x)
    radius, steepness = trust.first_radius(state, initial, size), vectors.length(g)
    tolerance = jnp.minimum(0.1, jnp.sqrt(steepness)) * steepness
    found = trust.minimum(lambda v: back(forward(v)), g, radius, tolerance, 2 * of.x.size + 5)
    p = found.point
    step = trust.Step(p, vectors.length(p), found.value, g @ p, found.at_boundary)
    return (r, g, jnp.ones_like(scale), step, radius), size


def within(s: Array, b: Array, radius: Array) -> tuple[Array, Array]:
    """The minimum of |b + s q|² with |q| <= radius, to a tenth of it, and whether the radius counts.

    `q = -s b / (s² + λ)`, with Newton's method on 1 / |q|, which is nearly linear in λ (Moré 1978, algorithm 5.5).
    """
    least = jnp.finfo(s.dtype).eps * s.size * jnp.max(s, initial=0)
    plain = jnp.where(s > least, -b / jnp.where(s > least, s, 1), 0)
    fits = vectors.length(plain) <= 1.1 * radius
    most = vectors.length(s * b) / radius

    def q(damping: Array) -> Array:
        return -numerics.divide(s * b, s**2 + damping)

    def closer(_: int, damping: Array) -> Array:
        at = q(damping)
        size, slope = vectors.length(at), jnp.sum(numerics.divide(at**2, s**2 + damping))  # - |q| d|q| / dλ
        new = damping + numerics.divide(size**2, slope) * (size - radius) / radius
        new = jnp.clip(new, 1e-3 * damping, most)
        return jnp.where(jnp.abs(size - radius) <= 0.1 * radius, damping, new)

    damping = jax.lax.fori_loop(0, 10, closer, most)
    return jnp.where(fits, plain, q(damping)), ~fits


@transform
def scale_by_gauss_newton(
    damping: NonNegative = 0.0, max_cg_steps: PositiveInt | None = None, dense_below: NonNegativeInt = 200
) -> Rule:
    """The Gauss-Newton direction, as a gradient: `scale(-1)` makes it a step.

        u solves (JᵀCJ + damping I) u = g;     J = derivative of the outputs by the params, C = Hessian of the cost

    For half a sum of squares C is 1. If the matrix is singular, u is the shortest solution.

    Source: Schraudolph 2002 for the generalized matrix; Nocedal and Wright 2006, section 10.3; Martens 2010 for its use
    with conjugate gradients.

    Args:
      damping: >= 0, added to the diagonal. [curvature]
      max_cg_steps: the most products for one direction; None is 2 n + 5 for n params. Without it conjugate gradients
        end where the rest is min(0.1, sqrt|g|) |g|.
      dense_below: up to this number of params, residuals without a cost have a dense J, which is decomposed; 0 never.

    Update needs the params and the extra argument `residual_fn`: the residuals, or the outputs of a model, as a
    function of the params. With the extra argument `cost_fn`, a function of the outputs, that is the loss; without it,
    half the sum of their squares. `minimize` provides both (`residuals=`). The updates that flow in should be the
    gradient.

    State: none.

    Errors: TypeError without residual_fn, for residuals that are not real, and for complex params; ValueError for
    numbers out of range, and for shards inside `shard_map`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.scale_by_gauss_newton(), jnp.array([1.0, 2.0])
    >>> gradient = jnp.array([2.0, 16.0])  # of |w²|² / 2 = Jᵀ r, with J = diag(2 w)
    >>> print(tx.update(gradient, tx.init(w), w, residual_fn=lambda w: w**2)[0])
    [0.5 1. ]
    """
    who = "gradtx.scale_by_gauss_newton"

    def update(
        updates: PyTree,
        state: State,
        params: PyTree,
        *,
        residual_fn: Callable[[PyTree], PyTree],
        cost_fn: Callable[[PyTree], Array] | None = None,
    ) -> tuple[PyTree, State]:
        check.refuse_shards(who, updates)
        real = tree.precision(updates, params)
        of, g = linear(who, residual_fn, params, real), vectors.flat(updates, real)
        if cost_fn is None and of.x.size <= dense_below:
            U, s, Vt = lapack.svd(of.dense()[1])
            least = jnp.finfo(s.dtype).eps * max(U.shape[0], Vt.shape[1]) * jnp.max(s, initial=0)
            inverse = jnp.where(s > least, 1 / (jnp.where(s > least, s, 1) ** 2 + damping), 0)
            return of.unravel(Vt.T @ (inverse * (Vt @ g))), state
        _, forward, back = of.products()

        def matrix(v: Array) -> Array:
            along = forward(v) if cost_fn is None else _curved(cost_fn, residual_fn, params, of, v)
            return back(along) + damping * v

        steepness = vectors.length(g)
        tolerance = jnp.minimum(0.1, jnp.sqrt(steepness)) * steepness
        found = trust.minimum(matrix, g, jnp.inf, tolerance, max_cg_steps or 2 * of.x.size + 5)
        return of.unravel(-found.point), state

    return Rule(update=update, reach="tree", traits=("real", "gradients"))


def _curved(
    cost_fn: Callable[[PyTree], Array], residual_fn: Callable[[PyTree], PyTree], params: PyTree, of: Linear, v: Array
) -> Array:
    """`C J v`, with C the Hessian of the cost by the outputs."""
    outputs, along = jax.jvp(lambda x: residual_fn(tree.cast_like(of.unravel(x), params)), (of.x,), (v,))
    curved = jax.jvp(jax.grad(cost_fn), (outputs,), (along,))[1]
    return vectors.flat(curved, v.dtype)
