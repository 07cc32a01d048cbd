"""Methods that measure the curvature of the loss.

lbfgs       Newton's method with curvature that is learned from how the gradient changes along the steps
sophia      an average of gradients, divided by an average of the Hessian's diagonal, clipped
adahessian  Adam, with the Hessian's diagonal in place of the gradient in its scaling
"""

from typing import Any

from gradtx.core.annotations import Dtype, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.transform import Transform
from gradtx.curvature.linesearches import scale_by_zoom_linesearch
from gradtx.curvature.quasi_newton import scale_by_lbfgs
from gradtx.curvature.stochastic import Distribution, Estimator, scale_by_adahessian, scale_by_sophia
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale, scale_by_learning_rate


@transform
def sophia(
    learning_rate: NonNegative,
    b1: Unit = 0.965,
    b2: Unit = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-4,
    mask: Any = None,
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
    """Sophia: a step limited to the learning rate, and shorter where the curvature is large. Sophia-H or Sophia-G.

        m <- b1 m + (1 - b1) g;   w <- w - lr (u + weight_decay w)   (lr = learning_rate)
        hutchinson:             u = clip(m / (1 - b1^t) / max(γ h, eps), ±c);   h averages z ∘ Hz
        gauss_newton_bartlett:  u = clip(m / (γ B h + eps), ±c);                h averages ĝ²

    with γ = gamma, c = clip_threshold, B = batch_size, and b2 the decay of h, of which every `update_interval` steps
    there is a new estimate: see `scale_by_hessian_diagonal`.

    Source: Liu, Li, Hall, Liang, Ma 2023 (arXiv 2305.14342), algorithm 3. Sophia-H, the default, as
    optax.contrib.sophia, whose `weight_decay_mask` is `mask`. Sophia-G as the author's SophiaG: it does not correct m,
    and adds eps where H takes a maximum. Its numbers are others: learning_rate 1e-4, eps 1e-15, weight_decay 0.1, γ
    (its ρ) 0.04, and B the number of labels drawn for a step, 5120 by default.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1, b2, eps, gamma, clip_threshold, update_interval, estimator, batch_size, distribution, key, mu_dtype: as
        `scale_by_sophia`.
      weight_decay, mask: as `adamw`.

    Update takes an extra argument: `grad_fn`, or for gauss_newton_bartlett `sampled_grad_fn`. `minimize` and `sweep`
    provide it; the second from their argument `sampled_loss`.

    State: `mu` and `hessian`, 8 bytes per parameter. It needs the params.

    Errors: as `adamw` and `scale_by_hessian_diagonal`.

    >>> import gradtx, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(jnp.array([1.0, 100.0]) * w**2)
    >>> result = gradtx.minimize(loss, jnp.ones(2), gradtx.sophia(0.05, gamma=1.0), steps=200)
    >>> print(jnp.abs(result.params).max() < 1e-3)
    True
    """
    direction = scale_by_sophia(
        b1,
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        estimator=estimator,
        batch_size=batch_size,
        distribution=distribution,
        key=key,
        mu_dtype=mu_dtype,
    )
    return direction >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)


@transform
def adahessian(
    learning_rate: NonNegative = 0.15,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-4,
    weight_decay: NonNegative = 0.0,
    hessian_power: Fraction = 1.0,
    *,
    update_interval: PositiveInt = 1,
    mask: Any = None,
    average_kernels: bool = True,
    key: NonNegativeInt = 0,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """AdaHessian: Adam that divides by the root mean square of the Hessian's diagonal instead of the gradient's.

        v <- b2 v + (1 - b2) |Hz|²;   u = m / (1 - b1^t) / ((v / (1 - b2^n))^(p/2) + eps)     (p = hessian_power)
        w <- w - lr (u + weight_decay w)                                                       (lr = learning_rate)

    with z = ±1 at random, and n the number of estimates so far; see `scale_by_hessian_rms`, also for kernels of
    convolutions.

    Source: Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney 2021 (arXiv 2006.00719), algorithm 1, and the authors' code.

    Args:
      learning_rate: >= 0, a number or a schedule. Without decay and for p = 1 it has no unit: 1 is Newton's step on a
        quadratic with a diagonal Hessian.
      b1, b2, eps, hessian_power, update_interval, average_kernels, key, mu_dtype: as `scale_by_adahessian`.
      weight_decay, mask: as `adamw`.

    Update takes the extra argument `grad_fn`, which `minimize` and `sweep` provide.

    State: `mu` and `nu`, 8 bytes per parameter. It needs the params.

    Errors: as `adamw` and `scale_by_hessian_rms`.

    >>> import gradtx, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(jnp.array([1.0, 100.0]) * w**2)
    >>> result = gradtx.minimize(loss, jnp.ones(2), gradtx.adahessian(), steps=200)
    >>> print(jnp.abs(result.params).max() < 1e-3)
    True
    """
    direction = scale_by_adahessian(
        b1,
        b2,
        eps,
        hessian_power,
        update_interval,
        average_kernels=average_kernels,
        key=key,
        mu_dtype=mu_dtype,
    )
    return direction >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)


@transform
def lbfgs(
    learning_rate: NonNegative | None = None,
    memory_size: PositiveInt = 10,
    scale_init_precond: bool = True,
    linesearch: Transform | None = scale_by_zoom_linesearch(20, initial_guess_strategy="one"),
) -> Transform:
    """..."""
    rate = scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)
    direction = scale_by_lbfgs(memory_size, scale_init_precond) >> rate
    return direction if linesearch is None else direction >> linesearch
