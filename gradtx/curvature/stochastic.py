"""Scalings by estimates of the Hessian's diagonal, which cost about as much as another gradient.

    Hutchinson                z ∘ Hz,  with z = ±1 at random                    right on average for any loss
    Gauss-Newton-Bartlett     B ĝ²,    with ĝ the gradient at drawn labels      never negative

- Sophia divides an average of gradients by an average of such estimates, every ten steps a new one, and clips the
  quotient. Where the curvature is small or negative its step is a sign.
- AdaHessian is Adam with |Hz| in place of |g|.

The gradients for an estimate come from a function, an extra argument of update, called only where an estimate is due.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics, sharding, tree
from gradtx.averages import average, average_squares, total, weights_after
from gradtx.core import check, fields
from gradtx.core.annotations import Dtype, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.storage import stored
from gradtx.core.transform import Transform
from gradtx.momentum import scale_by_momentum

PyTree = Any
State = dict[str, Any]
Estimator = Literal["hutchinson", "gauss_newton_bartlett"]
Distribution = Literal["rademacher", "normal"]


# Estimates ------------------------------------------------------------------------------------------------------------


def hutchinson(
    who: str, grad_fn: Callable[[PyTree], PyTree], params: PyTree, key: Array, distribution: Distribution = "rademacher"
) -> tuple[PyTree, Array]:
    """`z ∘ Hz`, whose expectation is the diagonal of H, the derivative of `grad_fn`; and the bits of the next key."""
    following, keys = numerics.leaf_keys(key, jax.tree.leaves(params))
    draw = jax.random.rademacher if distribution == "rademacher" else jax.random.normal

    def drawn(leaf: Array, key: Array) -> Array:
        return sharding.like(draw(key, leaf.shape, leaf.dtype), leaf)

    params = jax.tree.map(jnp.asarray, params)
    z = jax.tree.map(drawn, params, jax.tree.unflatten(jax.tree.structure(params), keys))
    gradient, product = jax.jvp(grad_fn, (params,), (z,))
    check.check_alike(who, "what grad_fn returns", gradient, "params", params)
    return tree.map(jnp.multiply, z, product), following


def squared_gradient(
    who: str, sampled_grad_fn: Callable[[PyTree, Array], PyTree], params: PyTree, key: Array
) -> tuple[PyTree, Array]:
    """`ĝ²` at drawn labels, whose expectation is the diagonal of the Gauss-Newton matrix divided by the batch size.

    And the bits of the next key.
    """
    following, now = jax.random.split(jax.random.wrap_key_data(key))
    gradient = sampled_grad_fn(params, now)
    check.check_alike(who, "what sampled_grad_fn returns", gradient, "params", params)
    return tree.map(jnp.square, gradient), jax.random.key_data(following)


def renewed_if_due(count: Array, interval: int, kept: State, renew: Callable[[], State]) -> State:
    """The new fields at the first step, and then every `interval` steps; at the others those that were kept."""
    due = (count - 1) % numerics.within_int32(interval) == 0
    return numerics.branch(due, lambda: tree.cast_like(renew(), kept), lambda: kept)


# Sophia ---------------------------------------------------------------------------------------------------------------


@transform
def scale_by_hessian_diagonal(
    decay: Unit = 0.99,
    eps: NonNegative = 1e-8,
    gamma: NonNegative = 0.01,
    clip_threshold: NonNegative | None = 1.0,
    update_interval: PositiveInt = 10,
    *,
    estimator: Estimator = "hutchinson",
    batch_size: Positive | None = None,
    distribution: Distribution = "rademacher",
    key: NonNegativeInt = 0,
) -> Rule:
    """Divides by an average of estimates of the Hessian's diagonal, and clips.

        hutchinson:             u = clip(g / max(γ h, eps), ±c);     then h <- b h + (1 - b) z ∘ Hz
        gauss_newton_bartlett:  u = clip(g / (γ B h + eps), ±c);     then h <- b h + (1 - b) ĝ²

    with b = decay, γ = gamma, c = clip_threshold, B = batch_size. h changes at the first step and then every
    `update_interval` steps. An estimate serves from the next step on; at the first step h is 0, so u is a sign.

    Source: Liu, Li, Hall, Liang, Ma 2023 (arXiv 2305.14342), algorithms 1 to 3, in which an estimate serves at its own
    step. Hutchinson's as optax.contrib.sophia, with z = ±1, where the paper has normal numbers. Gauss-Newton-Bartlett
    as the author's SophiaG, whose ρ is γ and whose 1e-15 is eps.

    Args:
      decay: b in [0, 1), a number or a schedule: from one estimate to the next.
      eps: >= 0. [gradient], like γ h
      gamma: γ >= 0, a number or a schedule. [params]
      clip_threshold: c >= 0, or None for no limit.
      update_interval: the number of steps from one estimate to the next, at least 1.
      estimator: which estimate.
      batch_size: B > 0, for gauss_newton_bartlett only: the number of labels drawn, over which the loss is a mean.
      distribution: that of z: "rademacher" (±1) or "normal", which has a larger variance. For hutchinson only.
      key: the seed of the key in the state.

    Update takes one extra argument, which `minimize` and `sweep` provide. For hutchinson `grad_fn`: `grad_fn(params)`
    returns the gradients at any params on the same batch; JAX differentiates it. For gauss_newton_bartlett
    `sampled_grad_fn`: `sampled_grad_fn(params, key)` returns the gradients on the same batch at labels that are drawn
    with this key from the model's own prediction. With a batch on several devices they take the mean over devices.
    Under vmap an estimate is made at each step.

    State: `hessian`, like the params in at least float32: 4 bytes per parameter; `key` and `count`, scalars. It needs
    the params.

    Errors: ValueError for a number out of range, a batch_size that is missing or of no use, or a function that returns
    another tree; TypeError without the function, or for complex leaves.

    >>> import gradtx, jax
    >>> tx = gradtx.scale_by_hessian_diagonal(decay=0.0, gamma=1.0)
    >>> gradient = jax.grad(lambda w: 2 * w**2)
    >>> _, state = tx.update(gradient(0.1), tx.init(0.1), 0.1, grad_fn=gradient)
    >>> print(tx.update(gradient(0.1), state, 0.1, grad_fn=gradient)[0])
    0.1
    """
    sampled = estimator == "gauss_newton_bartlett"
    if sampled != (batch_size is not None):
        allowed = "a number with" if sampled else "None without"
        raise ValueError(
            f"gradtx.scale_by_hessian_diagonal: batch_size is {'None' if sampled else 'given'}; it must be {allowed} "
            "estimator='gauss_newton_bartlett': the number of labels drawn, over which the loss is a mean."
        )
    if sampled and distribution != "rademacher":
        raise ValueError(
            f"gradtx.scale_by_hessian_diagonal: distribution is {distribution!r}; it is that of hutchinson's z. Leave "
            "it out."
        )

    def direction(u: Array, h: Array) -> Array:
        size = gamma * batch_size * h + eps if sampled else jnp.maximum(gamma * h, eps)
        u = u / jnp.maximum(size, jnp.finfo(size.dtype).tiny)
        return u if clip_threshold is None else jnp.clip(u, -clip_threshold, clip_threshold)

    def step(
        updates: PyTree, state: State, count: Array, estimate: Callable[[Array], tuple[PyTree, Array]]
    ) -> tuple[PyTree, State]:
        def renew() -> State:
            drawn, following = estimate(state["key"])
            return {"hessian": tree.map(average, state["hessian"], drawn, decay=decay), "key": following}

        return tree.map(direction, updates, state["hessian"]), renewed_if_due(count, update_interval, state, renew)

    who = "gradtx.scale_by_hessian_diagonal"

    def by_products(
        updates: PyTree, state: State, params: PyTree, *, count: Array, grad_fn: Callable[[PyTree], PyTree]
    ) -> tuple[PyTree, State]:
        return step(updates, state, count, lambda bits: hutchinson(who, grad_fn, params, bits, distribution))

    def by_labels(
        updates: PyTree, state: State, params: PyTree, *, count: Array, sampled_grad_fn: Callable[..., PyTree]
    ) -> tuple[PyTree, State]:
        return step(updates, state, count, lambda bits: squared_gradient(who, sampled_grad_fn, params, bits))

    kept = {"hessian": fields.squares() if sampled else fields.like(), "key": fields.key(key)}
    return Rule(update=by_labels if sampled else by_products, reach="tree", traits=("real",), fields=kept)


@transform
def scale_by_sophia(
    b1: Unit = 0.965,
    b2: Unit = 0.99,
    eps: NonNegative = 1e-8,
    gamma: NonNegative = 0.01,
    clip_threshold: NonNegative | None = 1.0,
    update_interval: PositiveInt = 10,
    *,
    estimator: Estimator = "hutchinson",
    batch_size: Positive | None = None,
    distribution: Distribution = "rademacher",
    key: NonNegativeInt = 0,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """Sophia's direction: an average of gradients, divided by an average of the Hessian's diagonal, clipped.

        m <- b1 m + (1 - b1) g
        hutchinson:             u = clip(m / (1 - b1^t) / max(γ h, eps), ±c)
        gauss_newton_bartlett:  u = clip(m / (γ B h + eps), ±c)

    with γ = gamma, c = clip_threshold, B = batch_size, and h as in `scale_by_hessian_diagonal`.

    Source: Liu, Li, Hall, Liang, Ma 2023 (arXiv 2305.14342), algorithm 3, which does not correct m. With hutchinson m
    is corrected, as in optax.contrib.scale_by_sophia; with gauss_newton_bartlett it is not, as in the author's code.

    Args:
      b1: in [0, 1), a number or a schedule: the decay of m.
      b2, eps, gamma, clip_threshold, update_interval, estimator, batch_size, distribution, key: the decay of h, and
        the others, of `scale_by_hessian_diagonal`.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu` and `hessian`, 8 bytes per parameter. It needs the params, and an extra argument.

    Errors: as `scale_by_hessian_diagonal`.

    >>> import gradtx
    >>> gradtx.scale_by_sophia().expand().stages[0]
    scale_by_momentum(decay=0.965)
    """
    form: Any = "debiased" if estimator == "hutchinson" else "average"
    scaling = scale_by_hessian_diagonal(
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        estimator=estimator,
        batch_size=batch_size,
        distribution=distribution,
        key=key,
    )
    return stored(scale_by_momentum(b1, form=form), mu_dtype) >> scaling


# AdaHessian -----------------------------------------------------------------------------------------------------------


@transform
def scale_by_hessian_rms(
    decay: Unit = 0.999,
    eps: NonNegative = 1e-4,
    hessian_power: Fraction = 1.0,
    update_interval: PositiveInt = 1,
    *,
    average_kernels: bool = True,
    key: NonNegativeInt = 0,
) -> Rule:
    """Divides by a power of the root mean square of estimates of the Hessian's diagonal.

        D = |z ∘ Hz|;   v <- b v + (1 - b) D²;   u = g / ((v / (1 - b^n))^(p/2) + eps)

    with b = decay, p = hessian_power, z = ±1 at random, and n the number of estimates so far. In a leaf
    with four axes, the kernel of a convolution (height, width, in, out), D is averaged over the first two.

    Source: Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney 2021 (arXiv 2006.00719), algorithm 1, as the authors' code,
    which makes an estimate at each step. With update_interval > 1, v changes only where an estimate is made, as
    Sophia's average does; timm averages the last estimate again at each step.

    Args:
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [gradient / params]^p
      hessian_power: p in [0, 1], a number or a schedule: 1 for the curvature, 0 for none.
      update_interval: the number of steps from one estimate to the next, at least 1.
      average_kernels: average D over the first two axes of leaves with four axes. False for other such leaves, such as
        the weights of attention heads in several layers.
      key: the seed of the key in the state.

    Update takes the extra argument `grad_fn`, which `minimize` and `sweep` provide: `grad_fn(params)` returns the
    gradients at any params on the same batch; JAX differentiates it.

    State: `nu`, like the params in at least float32: 4 bytes per parameter; `weights`, `key` and `count`, scalars. It
    needs the params.

    Errors: ValueError for a number out of range, or a grad_fn that returns another tree; TypeError without grad_fn, or
    for complex leaves.

    >>> import gradtx, jax
    >>> tx = gradtx.scale_by_hessian_rms(eps=0.0)
    >>> gradient = jax.grad(lambda w: 2 * w**2)
    >>> print(tx.update(gradient(3.0), tx.init(3.0), 3.0, grad_fn=gradient)[0])
    3.0
    """

    def measured(v: Array, estimate: Array) -> Array:
        size = jnp.abs(estimate)
        if average_kernels and size.ndim == 4:
            check.refuse_shards("gradtx.scale_by_hessian_rms", size)
            size = jnp.broadcast_to(jnp.mean(size, (0, 1), keepdims=True), size.shape)
        return average_squares(v, size, decay)

    def direction(u: Array, v: Array, correction: Array) -> Array:
        return numerics.divide(u, _power(numerics.root(correction * v), hessian_power) + eps)

    def update(
        updates: PyTree, state: State, params: PyTree, *, count: Array, grad_fn: Callable[[PyTree], PyTree]
    ) -> tuple[PyTree, State]:
        def renew() -> State:
            drawn, following = hutchinson("gradtx.scale_by_hessian_rms", grad_fn, params, state["key"])
            weights = weights_after(state["weights"], decay.astype(state["weights"]["given"].dtype))
            return {"nu": tree.map(measured, state["nu"], drawn), "weights": weights, "key": following}

        new = renewed_if_due(count, update_interval, state, renew)
        return tree.map(direction, updates, new["nu"], correction=1 / total(new["weights"])), new

    kept = {"nu": fields.squares(), "weights": fields.weights(), "key": fields.key(key)}
    return Rule(update=update, reach="tree", traits=("real",), fields=kept)


def _power(x: Array, power: Array) -> Array:
    """`x^power` for x >= 0, with 0^0 = 1, and derivative 0 at 0."""
    zero = x == 0
    at_zero = jnp.where(power == 0, jnp.ones_like(x), jnp.zeros_like(x))
    return jnp.where(zero, at_zero, jnp.where(zero, jnp.ones_like(x), x) ** power)


@transform
def scale_by_adahessian(
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-4,
    hessian_power: Fraction = 1.0,
    update_interval: PositiveInt = 1,
    *,
    average_kernels: bool = True,
    key: NonNegativeInt = 0,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """AdaHessian's direction: `scale_by_momentum(b1) >> scale_by_hessian_rms(b2, eps, hessian_power)`.

        m <- b1 m + (1 - b1) g;   u = m / (1 - b1^t) / ((v / (1 - b2^n))^(p/2) + eps)      (p = hessian_power)

    with v and n as in `scale_by_hessian_rms`.

    Source: Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney 2021 (arXiv 2006.00719), algorithm 1.

    Args:
      b1: in [0, 1), a number or a schedule: the decay of m.
      b2, eps, hessian_power, update_interval, average_kernels, key: the decay of v, and the others, of
        `scale_by_hessian_rms`.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu` and `nu`, 8 bytes per parameter. It needs the params, and the extra argument `grad_fn`.

    Errors: as `scale_by_hessian_rms`.

    >>> import gradtx
    >>> gradtx.scale_by_adahessian().expand().stages[0]
    scale_by_momentum(decay=0.9)
    """
    scaling = scale_by_hessian_rms(b2, eps, hessian_power, update_interval, average_kernels=average_kernels, key=key)
    return stored(scale_by_momentum(b1), mu_dtype) >> scaling
