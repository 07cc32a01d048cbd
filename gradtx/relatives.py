"""Adam's relatives: other measures in place of the average of squared gradients.

- `scale_by_belief`: the average squared difference between the gradient and its average (AdaBelief).
- `scale_by_yogi`: v changes by at most a fraction of g², up or down, so that it cannot fall faster than it rises.
- `scale_by_rectified_rms`: Adam's v, but no scaling until enough gradients were seen to trust it (RAdam).
- `scale_by_rprop`: no average. Each step size grows while the gradient keeps its sign, and shrinks when it changes.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from gradtx.averages import Weights, average, average_squares, debiasing, debiasing_each, total, weights_after
from gradtx.core import fields
from gradtx.core.annotations import NonNegative, Positive, Unit
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.momentum import Step, scale_by_momentum
from gradtx.numerics import abs_squared, divide, root


@transform
def scale_by_belief(
    b1: Unit = 0.9, b2: Unit = 0.999, eps: NonNegative = 1e-16, eps_root: NonNegative = 1e-16, *, nesterov: bool = False
) -> Rule:
    """Adam's direction, divided by the root of the average squared difference of the gradient from its average.

        m <- b1 m + (1 - b1) g;   s <- b2 s + (1 - b2) (g - m)² + eps_root;   u = m̂ / (sqrt(ŝ) + eps)

    Source: Zhuang et al. 2020 (arXiv 2010.07468), algorithm 2: eps_root is added to s at each step and stays in it. As
    in optax. The authors' code also rectifies by default, like RAdam. Complex leaves: |g - m|².

    Args:
      b1, b2: decays in [0, 1), numbers or schedules.
      eps: >= 0. [gradient]
      eps_root: >= 0, added at each step. [gradient²]
      nesterov: the direction one step ahead, b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t).

    State: `mu`, and `nu` for s, real, like the params in at least float32: 8 bytes per parameter; `weights` and
    `count`, scalars.

    Errors: ValueError for a decay outside [0, 1) or a negative eps.

    >>> import gradtx
    >>> tx = gradtx.scale_by_belief(0.9, 0.999, 0.0)
    >>> print(f"{tx.update(2.0, tx.init(0.0))[0]:.4f}")
    1.1111
    """

    def update(g: Array, *, mu: Array, nu: Array, ahead: Array, mu_correction: Array, nu_correction: Array) -> Step:
        mu = average(mu, g, b1)
        nu = average_squares(nu, g - mu, b2) + eps_root
        direction = b1 * ahead * mu + (1 - b1) * mu_correction * g if nesterov else mu_correction * mu
        return divide(direction, root(nu_correction * nu) + eps), {"mu": mu, "nu": nu}

    def once(*, weights: dict[str, Weights]) -> dict[str, Any]:
        made = debiasing_each(mu=b1, nu=b2)(weights=weights)
        return made | {"ahead": 1 / total(weights_after(made["weights"]["mu"], b1)) if nesterov else 1}

    return per_element(update, once=once, mu=fields.like(), nu=fields.squares(), weights=fields.weights("mu", "nu"))


@transform
def scale_by_yogi(
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-3,
    eps_root: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 1e-6,
) -> Rule:
    """Adam's direction, divided by the root of a measure that moves up or down by (1 - b2) g².

        m <- b1 m + (1 - b1) g;   v <- v - (1 - b2) sign(v - g²) g²;   u = m̂ / (sqrt(v̂ + eps_root) + eps)

    Source: Zaheer, Reddi, Sachan, Kale, Kumar 2018 ("Adaptive methods for nonconvex optimization"), algorithm 2. As
    in optax, m and v both start at initial_accumulator_value, and the bias of both is corrected. Complex leaves: |g|².

    Args:
      b1, b2: decays in [0, 1), numbers or schedules.
      eps: >= 0. [gradient]
      eps_root: >= 0. [gradient²]
      initial_accumulator_value: m and v before the first update, >= 0. [gradient], [gradient²]

    State: `mu`, and `nu` for v, real, like the params in at least float32: 8 bytes per parameter; `weights` and
    `count`, scalars.

    Errors: ValueError for a decay outside [0, 1) or a negative argument.

    >>> import gradtx
    >>> tx = gradtx.scale_by_yogi(eps=0.0, initial_accumulator_value=0.0)
    >>> print(f"{tx.update(2.0, tx.init(0.0))[0]:.4f}")
    1.0000
    """

    def update(g: Array, *, mu: Array, nu: Array, mu_correction: Array, nu_correction: Array) -> Step:
        mu, square = average(mu, g, b1), abs_squared(g)
        nu = nu - (1 - b2) * jnp.sign(nu - square) * square
        return divide(mu_correction * mu, root(nu_correction * nu + eps_root) + eps), {"mu": mu, "nu": nu}

    start = initial_accumulator_value
    kept: dict[str, Any] = {
        "mu": fields.like(start),
        "nu": fields.squares(start),
        "weights": fields.weights("mu", "nu"),
    }
    return per_element(update, once=debiasing_each(mu=b1, nu=b2), **kept)


@transform
def scale_by_rectified_rms(
    decay: Unit = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: Positive = 5.0,
    *,
    eps_hat: bool = False,
) -> Rule:
    """`scale_by_rms`, times a factor r that corrects for the variance of v; u = g while too few gradients were seen.

        R = 2 / (1 - b) - 1;   ρ = R - 2 t b^t / (1 - b^t);   r = sqrt((ρ-4) (ρ-2) R / ((R-4) (R-2) ρ))
        u = r g / (sqrt(v̂ + eps_root) + eps) where ρ >= threshold, else g                                  (b = decay)

    Source: Liu et al. 2019 (arXiv 1908.03265), algorithm 2, whose condition is ρ > 4. optax has the condition and the
    default used here; PyTorch has ρ > 5, and eps inside the correction: eps_hat=True. Complex leaves: |g|².

    Args:
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [gradient]
      eps_root: >= 0, added inside the root. [gradient²]
      threshold: > 0: the smallest ρ, an effective number of gradients, for which v is used. A value below 4, where r is
        no real number, counts as 4.
      eps_hat: r g sqrt(1 - b^t) / (sqrt(v) + eps).

    State: `nu`, real, like the params in at least float32: 4 bytes per parameter; `weights` and `count`, scalars.

    Errors: ValueError for a decay outside [0, 1), a negative eps or a threshold that is not positive.

    >>> import gradtx
    >>> tx = gradtx.scale_by_rectified_rms()
    >>> tx.update(2.0, tx.init(0.0))[0]
    Array(2., dtype=float32)
    """

    def once(*, weights: dict[str, Array], count: Array) -> dict[str, Any]:
        made = debiasing(decay)(weights=weights)
        most = 2 / (1 - decay) - 1
        rho = most - 2 * count * made["weights"]["left"] / made["total"]
        trusted = rho >= jnp.maximum(threshold, 4)
        known = jnp.where(trusted, rho, 5)
        factor = root((known - 4) * (known - 2) * most / ((most - 4) * (most - 2) * known))
        return made | {"trusted": trusted, "factor": factor}

    def update(
        u: Array, *, observed: Array, nu: Array, trusted: Array, factor: Array, correction: Array, total: Array
    ) -> Step:
        nu = average_squares(nu, observed, decay)
        below = root(nu + eps_root) + eps if eps_hat else root(correction * nu + eps_root) + eps
        scaled = factor * divide(root(total) * u if eps_hat else u, below)
        return jnp.where(trusted, scaled, u), {"nu": nu}

    return per_element(update, once=once, nu=fields.squares(), weights=fields.weights())


@transform
def scale_by_radam(
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: Positive = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
) -> Transform:
    """RAdam's direction and scaling: `scale_by_momentum(b1) + scale_by_rectified_rms(b2, eps)`.

    Source: Liu et al. 2019 (arXiv 1908.03265), algorithm 2.

    Args:
      b1: in [0, 1), the decay of the direction, a number or a schedule.
      b2, eps, eps_root, threshold, eps_hat: as `scale_by_rectified_rms`.
      nesterov: the direction one step ahead.

    State: that of the two parts: 8 bytes per parameter. Errors: those of the two parts.

    >>> import gradtx
    >>> gradtx.scale_by_radam().expand().stages[0]
    scale_by_momentum(decay=0.9)
    """
    scaling = scale_by_rectified_rms(b2, eps, eps_root, threshold, eps_hat=eps_hat)
    return scale_by_momentum(b1, nesterov=nesterov) + scaling


@transform
def scale_by_rprop(
    learning_rate: NonNegative,
    eta_minus: Unit = 0.5,
    eta_plus: NonNegative = 1.2,
    min_step_size: NonNegative = 1e-6,
    max_step_size: NonNegative = 50.0,
) -> Rule:
    """The sign of the gradient times a step size for each element, which adapts to changes of the sign.

        s = g p;   d <- clip(d eta_plus where s > 0, d eta_minus where s < 0, d elsewhere)
        g <- 0 where s < 0;   u = d sign(g);   p <- g

    Source: Riedmiller and Braun 1993 ("A direct adaptive method for faster backpropagation learning"), without their
    step back, as in PyTorch's Rprop. optax's function of this name returns the update of the previous step. Meant for
    full batches, since the sign of a mini-batch's gradient changes by chance. Complex leaves are refused.

    Args:
      learning_rate: d before the first update, >= 0. Only the first value of a schedule is used. [params per step]
      eta_minus, eta_plus: factors of d, in [0, 1) and >= 0 (1 or more, to grow).
      min_step_size, max_step_size: the bounds of d, >= 0. [params per step]

    State: `step_sizes` for d and `prev` for p, like the params in at least float32: 8 bytes per parameter; `count`, a
    scalar.

    Errors: ValueError for an argument outside its range; TypeError for complex leaves.

    >>> import gradtx
    >>> tx = gradtx.scale_by_rprop(0.1)
    >>> state = tx.init(0.0)
    >>> for g in [3.0, 2.0, -1.0]:
    ...     u, state = tx.update(g, state)
    ...     print(f"{u:.3f}")
    0.100
    0.120
    0.000
    """

    def update(g: Array, *, step_sizes: Array, prev: Array) -> Step:
        same = jnp.sign(g) * jnp.sign(prev)
        factor = jnp.where(same > 0, eta_plus, jnp.where(same < 0, eta_minus, 1))
        d = jnp.where(same == 0, step_sizes, jnp.clip(factor * step_sizes, min_step_size, max_step_size))
        g = jnp.where(same < 0, 0, g)
        return d * jnp.sign(g), {"step_sizes": d, "prev": g}

    return per_element(update, traits=("real",), step_sizes=fields.squares(learning_rate), prev=fields.like())
