"""Methods that measure the curvature of the loss.

lbfgs         curvature that is learned from how the gradient changes along the steps
nonlinear_cg  conjugate directions
gauss_newton  the curvature of the cost of a model's outputs
sophia        an average of gradients, divided by an average of the Hessian's diagonal, clipped
adahessian    Adam, with the Hessian's diagonal in place of the gradient in its scaling
"""

from typing import Any

from gradtx.core.annotations import Dtype, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.transform import Transform
from gradtx.curvature.least_squares import scale_by_gauss_newton
from gradtx.curvature.linesearches import scale_by_hager_zhang_linesearch, scale_by_zoom_linesearch
from gradtx.curvature.nonlinear_cg import Method, scale_by_nonlinear_cg
from gradtx.curvature.quasi_newton import scale_by_lbfgs
from gradtx.curvature.stochastic import Distribution, Estimator, scale_by_adahessian, scale_by_sophia
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale, scale_by_learning_rate

_ZOOM = scale_by_zoom_linesearch(20, increase_factor=5.0, initial_guess_strategy="one")


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
    linesearch: Transform | None = _ZOOM,
    *,
    damped: bool = False,
    bounds: Any = None,
) -> Transform:
    """L-BFGS: quasi-Newton steps from the last gradients, with a line search.

        w <- w - t H g;   H: inverse Hessian from the last `memory_size` steps;   t from the line search

    For losses that are the same at each step: `minimize(loss, params, lbfgs())` ends by itself at the minimum.

    Source: Liu and Nocedal 1989; see `scale_by_lbfgs` and `scale_by_zoom_linesearch`. As optax.lbfgs, whose search
    lengthens a step that is too short by 2 instead of 5. With `bounds` the
    steps go along the projected path, and H is that of the params that are free (Bertsekas 1982); L-BFGS-B of SciPy
    chooses the free params along the path of the gradient first (Byrd, Lu, Nocedal, Zhu 1995).

    Args:
      learning_rate: None, or a number or a schedule >= 0 that multiplies the direction: the first step of the
        search, or the step without a search.
      memory_size, scale_init_precond, damped: as `scale_by_lbfgs`.
      linesearch: a line search; None for the step of `learning_rate`, or of 1, as for mini-batches.
      bounds: None, or `(lower, upper)`, each None, a number, or a tree like the params; not with `linesearch`, unless
        that has them too.

    Update's extra arguments: those of the line search.

    State: that of `scale_by_lbfgs` and of the line search; 8 m + 12 bytes per parameter.

    Errors: as `scale_by_lbfgs` and the line search; ValueError for bounds with a line search that does not have them.

    >>> import gradtx, jax.numpy as jnp
    >>> def rosenbrock(w):
    ...     return jnp.sum((1 - w[:-1]) ** 2 + 100 * (w[1:] - w[:-1] ** 2) ** 2)
    >>> result = gradtx.minimize(rosenbrock, jnp.zeros(10), gradtx.lbfgs(), tolerance=1e-2)
    >>> print(jnp.abs(result.params - 1).max() < 1e-2, result.reason)
    True gradient: the gradient is at most the tolerance
    >>> bounded = gradtx.minimize(rosenbrock, jnp.zeros(2), gradtx.lbfgs(bounds=(None, 0.5)))
    >>> print(bounded.params)
    [0.5  0.25]
    """
    rate = scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)
    direction = scale_by_lbfgs(memory_size, scale_init_precond, damped=damped, bounds=bounds) >> rate
    if linesearch is None:
        return direction
    if bounds is None:
        return direction >> linesearch
    if "bounds" not in linesearch.arguments:
        raise ValueError(
            f"gradtx.lbfgs: bounds are given, and linesearch is {linesearch!r}, which ignores them; it must be "
            "a line search, such as gradtx.scale_by_zoom_linesearch(20, initial_guess_strategy='one')."
        )
    kept = linesearch.arguments["bounds"] is not None
    return direction >> (linesearch if kept else linesearch.replace(bounds=bounds))


@transform
def nonlinear_cg(
    method: Method = "polak_ribiere",
    linesearch: Transform | None = None,
) -> Transform:
    """Nonlinear conjugate gradients, with a line search.

        w <- w - t u;   u <- g + β u_old;   t from the line search

    For losses that are the same at each step: `minimize(loss, params, nonlinear_cg())` ends by itself. It takes more
    evaluations than L-BFGS, and less memory.

    Source: see `scale_by_nonlinear_cg` and `scale_by_hager_zhang_linesearch`, which is asked for a flatter end here
    than for quasi-Newton methods, as conjugate directions need an exact search.

    Args:
      method: "polak_ribiere" or "hager_zhang".
      linesearch: a line search; None is that of Hager and Zhang, with slope_rtol 0.05 and curv_rtol 0.1.

    Update's extra arguments: those of the line search.

    State: that of `scale_by_nonlinear_cg` and of the line search; 16 bytes per parameter.

    Errors: as these two.

    >>> import gradtx, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(jnp.arange(1.0, 11.0) * (w - 1.0) ** 2)
    >>> result = gradtx.minimize(loss, jnp.zeros(10), gradtx.nonlinear_cg())
    >>> print(f"{jnp.abs(result.params - 1).max() < 1e-4}")
    True
    """
    if linesearch is None:
        linesearch = scale_by_hager_zhang_linesearch(30, slope_rtol=0.05, curv_rtol=0.1, initial_guess_strategy="one")
    return scale_by_nonlinear_cg(method) >> scale(-1.0) >> linesearch


@transform
def gauss_newton(
    damping: NonNegative = 0.0,
    linesearch: Transform | None = None,
    *,
    max_cg_steps: PositiveInt | None = None,
    dense_below: NonNegativeInt = 200,
) -> Transform:
    """Gauss-Newton: Newton's method with the curvature of the cost of a model's outputs alone, with a line search.

        w <- w - t u;   (JᵀCJ + damping I) u = g;   J: outputs by params, C: Hessian of the cost by the outputs

    The matrix has no negative eigenvalue if the cost is convex, so u descends. `minimize(residuals, params,
    gauss_newton())` fits least squares; `minimize(cost, params, gauss_newton(), data, residuals=model)` any cost of a
    model's outputs.

    Source: see `scale_by_gauss_newton`.

    Args:
      damping, max_cg_steps, dense_below: as `scale_by_gauss_newton`.
      linesearch: a line search; None is that of `lbfgs`.

    Update's extra arguments: `residual_fn`, with a cost also `cost_fn`, and those of the line search.

    State: that of the line search; 4 bytes per parameter.

    Errors: as these two.

    >>> import gradtx, jax.numpy as jnp
    >>> x = jnp.linspace(-1.0, 1.0, 50)
    >>> labels = (x > 0.2).astype(x.dtype)
    >>> model = lambda w: w[0] + w[1] * x
    >>> cost = lambda logits: jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits) + 0.01 * jnp.mean(logits**2)
    >>> result = gradtx.minimize(cost, jnp.zeros(2), gradtx.gauss_newton(), residuals=model)
    >>> print(result.reason, result.evaluations < 12)
    gradient: the gradient is at most the tolerance True
    """
    direction = scale_by_gauss_newton(damping, max_cg_steps, dense_below)
    return direction >> scale(-1.0) >> (_ZOOM if linesearch is None else linesearch)
