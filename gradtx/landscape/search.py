"""A nearby critical point: a damped Newton method on the gradient.

Optimizers find minima. A critical point of any kind, also a saddle, is a zero of the gradient g. Newton's step to it,
-H⁻¹ g, works for curvatures of any sign, but must be damped far away or where H is singular. So each step d minimizes

    |H d + g|² + mu² |d|²          (Levenberg-Marquardt), in the span of g, H g, H² g, ...

mu decreases after a step that makes the gradient norm smaller, and increases after one that does not.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.landscape.critical import ULPS
from gradtx.landscape.krylov import krylov
from gradtx.landscape.operators import Hessian, Operator, hessian_of
from gradtx.training import inputs

PyTree = Any
_LESS, _MORE = 1 / 8, 4.0
"""The factors of mu after an accepted and after a rejected step."""
_GIVE_UP = 12
"""Maximum number of rejected steps in a row; the search ends after them."""


class Found(NamedTuple):
    """The end of a search."""

    params: PyTree
    gradient_norm: Array
    tolerance: Array
    """The largest gradient norm that counts as zero there."""
    steps: Array
    gradient_norms: Array
    """At the start and after each step; NaN after the end."""

    @property
    def converged(self) -> bool:
        """Whether the gradient is zero within the tolerance."""
        return bool(self.gradient_norm <= self.tolerance)


def find_critical_point(
    loss: Any,
    params: PyTree,
    data: PyTree = None,
    *,
    batch_size: int | None = None,
    steps: int = 50,
    products: int = 64,
    tolerance: float | None = None,
    key: Array | None = None,
) -> Found:
    """A critical point near params, of any kind. `classify` tells which.

        d = argmin |H d + g|² + mu² |d|² in span(g, H g, ...)
        params <- params + d   if that makes |g| smaller

    A Levenberg-Marquardt method on g = 0, in one compiled program. With as many products as params its last steps are
    Newton steps, and it converges quadratically if H is regular. It can end at a minimum of |g| that is not zero; then
    `converged` is False.

    Source: Levenberg 1944, Marquardt 1963, on the gradient norm as in McWilliams 2020 and Frye et al. 2021 (which
    compare such searches on networks). The steps come from the Lanczos process started at g, as in MINRES (Paige and
    Saunders 1975), with reorthogonalization.

    Args:
      loss: `loss(params)`, or `loss(params, batch)`, the mean over the samples of a batch.
      params: a tree of real arrays: the start.
      data: arrays with a common leading axis of samples; None for `loss(params)`.
      batch_size: samples per batch, 1 or more; None for all samples in one batch.
      steps: the maximum number of steps, 1 or more.
      products: Hessian products per step, 1 or more, and vectors in memory; at most the number of params is used.
      tolerance: the gradient norm at which to stop, 0 or more; None is the default of `classify`.
      key: a random key, used if the Krylov space of g is exhausted early; None is key 0.

    Errors: as `hessian`; TypeError and ValueError for counts that are not ints of 1 or more.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> found = landscape.find_critical_point(landscape.functions.beale, jnp.array([0.2, 0.8]))
    >>> bool(jnp.allclose(found.params, jnp.array([0.0, 1.0]), atol=1e-5)), found.converged
    (True, True)
    >>> landscape.classify(landscape.functions.beale, found.params).kind
    'saddle'
    """
    who = "gradtx.landscape.find_critical_point"
    operator = hessian_of(who, loss, params, data, batch_size)
    steps, products = inputs.positive(who, "steps", steps), inputs.positive(who, "products", products)
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"{who}: tolerance is {tolerance!r}; it must be a number, 0 or more, or None.")
    products = min(products, operator.size)
    return _search(operator, inputs.read_key(who, key), steps, products, tolerance)


class _State(NamedTuple):
    vector: Array
    gradient: Array
    damping: Array
    tolerance: Array
    step: Array
    refused: Array
    norms: Array


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _search(operator: Operator, key: Array, steps: int, products: int, tolerance: float | None) -> Found:
    def at(vector: Array) -> Operator:
        return Operator(operator.product, operator.unflat(vector), operator.data, operator.batch_size)

    def gradient(vector: Array) -> Array:
        return operator.flat(at(vector).average(cast(Hessian, operator.product).gradient))

    def go_on(state: _State) -> Array:
        size = jnp.linalg.norm(state.gradient)
        return (size > state.tolerance) & (state.step < steps) & (state.refused < _GIVE_UP) & jnp.isfinite(size)

    def step(state: _State) -> _State:
        change, curvature = _damped(at(state.vector), state, products, key)
        vector = operator.flat(operator.unflat(state.vector + change))  # rounded to the dtypes of the params
        found = gradient(vector)
        taken = jnp.linalg.norm(found) < jnp.linalg.norm(state.gradient)
        vector, found = jnp.where(taken, vector, state.vector), jnp.where(taken, found, state.gradient)
        zero = state.tolerance
        if tolerance is None:
            zero = ULPS * operator.eps * jnp.maximum(jnp.linalg.norm(vector), 1) * curvature
        damping = jnp.where(state.step == 0, curvature / 10, state.damping) * jnp.where(taken, _LESS, _MORE)
        norms = state.norms.at[state.step + 1].set(jnp.linalg.norm(found))
        refused = jnp.where(taken, 0, state.refused + 1)
        return _State(vector, found, damping, zero, state.step + 1, refused, norms)

    vector = operator.flat(operator.params)
    begin = gradient(vector)
    none = jnp.zeros((), jnp.int32)
    norms = jnp.full(steps + 1, jnp.nan, vector.dtype).at[0].set(jnp.linalg.norm(begin))
    zero = jnp.asarray(0.0 if tolerance is None else tolerance, vector.dtype)
    end = jax.lax.while_loop(go_on, step, _State(vector, begin, jnp.zeros_like(zero), zero, none, none, norms))
    return Found(operator.unflat(end.vector), jnp.linalg.norm(end.gradient), end.tolerance, end.step, end.norms)


def _damped(operator: Operator, state: _State, products: int, key: Array) -> tuple[Array, Array]:
    """The step, and the largest curvature found."""
    space = krylov(operator, state.gradient, products, jax.random.fold_in(key, state.step))
    leaving = jnp.zeros((1, products), space.alpha.dtype).at[0, -1].set(space.beta[-1])
    left, singular, right = jnp.linalg.svd(jnp.concatenate([space.matrix, leaving]), full_matrices=False)
    curvature = singular[0]
    damping = jnp.where(state.step == 0, curvature / 10, state.damping)
    squares = singular**2 + damping**2
    filtered = singular / jnp.where(squares == 0, 1, squares) * left[0] * jnp.linalg.norm(state.gradient)
    return -jnp.matmul(filtered @ right, space.basis, precision=jax.lax.Precision.HIGHEST), curvature
