"""Directions: averages or sums of past gradients.

One average or sum, used in different ways:

- `scale_by_momentum(0.9, form="sum")`: the classical v = b v + g, a ball rolling down the cost with friction b.
- `scale_by_momentum(0.9)`: the debiased average, Adam's direction.
- `scale_by_two_momenta()`: a mixture of two averages, which remembers some gradients for long.
- with `nesterov=True`: the same, one step ahead. This is Nesterov's accelerated gradient, and Nadam's direction.

Consistent gradients add up and alternating ones cancel. The two forms differ by the factor 1 - b: `form="average"`
with learning rate lr is `form="sum"` with lr (1 - b).
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from gradtx import averages, numerics
from gradtx.averages import average
from gradtx.core import fields
from gradtx.core.annotations import Fraction, NonNegative, NonNegativeInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule
from gradtx.core.schedule import differs

Step = tuple[Array, dict[str, Array]]


def _dampening_needs_a_sum(decay: Any, form: str, nesterov: bool, dampening: Any) -> None:
    if form != "sum" and dampening is not None and differs(dampening, 0):
        raise ValueError(f"gradtx.scale_by_momentum: dampening is {dampening:g}; it needs form='sum', not {form!r}.")


@transform(check=_dampening_needs_a_sum)
def scale_by_momentum(
    decay: Unit = 0.9,
    *,
    form: Literal["debiased", "average", "sum"] = "debiased",
    nesterov: bool = False,
    dampening: Unit | None = None,
) -> Rule:
    """Replaces the updates by a decayed average or sum of the past ones.

        average:   m <- b m + (1 - b) g;   u = m;             nesterov: u = b m + (1 - b) g
        debiased:  the same m;             u = m / (1 - b^t); nesterov: u = b m / (1 - b^(t+1)) + (1 - b) g / (1 - b^t)
        sum:       m <- b m + k g;         u = m;             nesterov: u = b m + k g

    with b = decay, and k = 1 at the first update, 1 - dampening later (1 without dampening).

    Source: Sutskever, Martens, Dahl, Hinton 2013 ("On the importance of initialization and momentum") for the sum and
    its Nesterov form, in the reformulation that tracks the look-ahead point; Kingma and Ba 2014 (arXiv 1412.6980),
    algorithm 1, for the debiased average; Dozat 2016 ("Incorporating Nesterov momentum into Adam") for its Nesterov
    form, here with constant b. optax calls the sum `trace`. PyTorch's SGD is the sum, with this dampening; it does not
    allow dampening together with Nesterov.

    Args:
      decay: b in [0, 1), a number or a schedule. The average spans about 1 / (1 - b) gradients.
      form: "debiased" (Adam's), "average", or "sum" (SGD's).
      nesterov: look one step ahead.
      dampening: None, or in [0, 1), only with form="sum": reduces the weight of all gradients but the first.

    State: `mu`, like the params in at least float32: 4 bytes per parameter; `weights` (debiased only) and `count`,
    scalars.

    Errors: ValueError for a decay outside [0, 1), an unknown form, or dampening with another form than "sum".

    >>> import gradtx
    >>> tx = gradtx.scale_by_momentum(0.9, form="sum")
    >>> state = tx.init(0.0)
    >>> for g in [1.0, 1.0]:
    ...     v, state = tx.update(g, state)
    >>> print(f"{v:.2f}")
    1.90
    """

    def sum_of(g: Array, *, mu: Array, count: Array) -> Step:
        if dampening is not None:
            g = jnp.where(count == 1, 1, 1 - dampening) * g
        mu = decay * mu + g
        return decay * mu + g if nesterov else mu, {"mu": mu}

    def average_of(g: Array, *, mu: Array) -> Step:
        mu = average(mu, g, decay)
        return average(mu, g, decay) if nesterov else mu, {"mu": mu}

    def debiased(g: Array, *, mu: Array, correction: Array) -> Step:
        mu = average(mu, g, decay)
        return correction * mu, {"mu": mu}

    def one_ahead(g: Array, *, mu: Array, ahead: Array, now: Array) -> Step:
        mu = average(mu, g, decay)
        return ahead * mu + now * g, {"mu": mu}

    def once(*, weights: averages.Weights) -> dict[str, Any]:
        weights = averages.weights_after(weights, decay)
        following = averages.total(averages.weights_after(weights, decay))
        return {"weights": weights, "ahead": decay / following, "now": (1 - decay) / averages.total(weights)}

    if form == "debiased" and nesterov:
        return per_element(one_ahead, once=once, mu=fields.like(), weights=fields.weights())
    if form == "debiased":
        return per_element(debiased, once=averages.debiasing(decay), mu=fields.like(), weights=fields.weights())
    return per_element(sum_of if form == "sum" else average_of, mu=fields.like())


@transform
def scale_by_nadam_momentum(decay: Unit = 0.9, momentum_decay: NonNegative = 4e-3) -> Rule:
    """Nadam's direction with Dozat's momentum μ, which warms up.

        μ_t = b (1 - 0.96^(t ψ) / 2);   m <- b m + (1 - b) g
        u = μ_{t+1} m / (1 - Π_{i<=t+1} μ_i) + (1 - μ_t) g / (1 - Π_{i<=t} μ_i)

    Source: Dozat 2016 ("Incorporating Nesterov momentum into Adam"), algorithm 2 and section 3 for μ, as in PyTorch (ψ
    = 4e-3) and Keras (ψ = 1). Departure from the paper: there m is averaged with μ_t; here, as in both libraries, with
    the constant b.

    Args:
      decay: b in [0, 1), a number or a schedule.
      momentum_decay: ψ >= 0, per update; 0 halves b permanently.

    State: `mu`, like the params in at least float32: 4 bytes per parameter; `weights` (for μ) and `count`, scalars.

    Errors: ValueError for a decay outside [0, 1) or a negative momentum_decay.

    >>> import gradtx
    >>> tx = gradtx.scale_by_nadam_momentum(0.9)
    >>> u, state = tx.update(1.0, tx.init(0.0))
    >>> print(f"{u:.4f}")
    1.0565
    """

    def momentum_at(t: Array) -> Array:
        return decay * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def once(*, weights: averages.Weights, count: Array) -> dict[str, Any]:
        now, following = momentum_at(count), momentum_at(count + 1)
        weights = averages.weights_after(weights, now)
        ahead = averages.total(averages.weights_after(weights, following))
        return {"weights": weights, "ahead": following / ahead, "now": (1 - now) / averages.total(weights)}

    def update(g: Array, *, mu: Array, ahead: Array, now: Array) -> Step:
        mu = average(mu, g, decay)
        return ahead * mu + now * g, {"mu": mu}

    return per_element(update, once=once, mu=fields.like(), weights=fields.weights())


@transform
def scale_by_two_momenta(
    decay: Unit = 0.95,
    fast_decay: Unit = 0.85,
    slow_decay: Unit = 0.98,
    fast_weight: Fraction = 0.4385,
    start_step: NonNegativeInt = 700,
    *,
    nesterov: bool = True,
) -> Rule:
    """Replaces the updates by a mixture of a fast and a slow average of the past ones ("bi-Maxwell" momentum).

        f <- b_f f + (1 - b_f) g;   s <- b_s s + (1 - b_s) g;   m = k f + (1 - k) s
        u = m;   nesterov: u = b m + (1 - b) g     (b = decay, b_f = fast_decay, b_s = slow_decay, k = fast_weight)

    Up to update start_step + 1 both averages have the decay b and are equal: u is that of
    `scale_by_momentum(b, form="average")`, to the bit. The mean age of a gradient, in updates, is then
    k b_f / (1 - b_f) + (1 - k) b_s / (1 - b_s): 30 with the defaults; it was 19.

    Source: track 3 of github.com/KellerJordan/modded-nanogpt, the result of 2026-07-13 with 2635 steps, whose constants
    these are; methods with another start or mean age follow it. A mixture from the first step on was worse there. That
    code keeps a third average, which it no longer uses.

    Args:
      decay: b in [0, 1), a number or a schedule; after the switch, of Nesterov's mixture only.
      fast_decay, slow_decay: in [0, 1), numbers or schedules.
      fast_weight: k in [0, 1], a number or a schedule.
      start_step: how many updates are made before the two averages are set to the single one.
      nesterov: look one step ahead.

    State: `fast` and `slow`, like the params in at least float32: 8 bytes per parameter; `count`, a scalar.

    Errors: ValueError for an argument outside its range.

    >>> import gradtx
    >>> tx = gradtx.scale_by_two_momenta(0.5, 0.0, 0.5, 0.5, start_step=0, nesterov=False)
    >>> state = tx.init(0.0)
    >>> for g in [4.0, 8.0]:
    ...     u, state = tx.update(g, state)
    >>> print(f"{u:.1f}")
    6.5
    """
    start = numerics.within_int32(start_step)

    def update(g: Array, *, fast: Array, slow: Array, count: Array) -> Step:
        begun = count - 1 > start
        fast = average(fast, g, jnp.where(begun, fast_decay, decay))
        slow = average(slow, g, jnp.where(begun, slow_decay, decay))
        m = slow + fast_weight * (fast - slow)
        return average(m, g, decay) if nesterov else m, {"fast": fast, "slow": slow}

    return per_element(update, fast=fields.like(), slow=fields.like())


@transform
def ema_nesterov(step_size: NonNegative = 0.3, decay: Unit = 0.99) -> Rule:
    """Moves the params ahead along an average of their own steps, so that gradients are taken there.

        m <- b m + (1 - b) (a + g);   a <- step_size m;   u = g + a                                        (b = decay)

    g is the step of the method before it, which must be complete: put this last. a is how far the params were moved
    ahead at the previous update, where the method has taken its gradient and its step.

    Source: EMA-Nesterov (arXiv 2605.25395), as in result 40 of track 3 of github.com/KellerJordan/modded-nanogpt: decay
    0.99, and step_size 0.3 times the ratio of the learning rate to its largest, from update 300 to 1949, 0 otherwise.
    At the end the params are ahead by a, unless step_size has gone to 0.

    Args:
      step_size: >= 0, a number or a schedule. Below 1; at 1 the steps along m no longer die out. [1]
      decay: b in [0, 1), a number or a schedule.

    State: `mu` and `ahead`, like the params in at least float32: 8 bytes per parameter; `count`, a scalar.

    Errors: ValueError for an argument outside its range.

    >>> import gradtx
    >>> tx = gradtx.sgd(1.0) >> gradtx.ema_nesterov(0.5, decay=0.5)
    >>> state = tx.init(0.0)
    >>> for g in [-8.0, -8.0]:
    ...     u, state = tx.update(g, state)
    >>> print(f"{u:.2f}")
    11.50
    """

    def update(g: Array, *, mu: Array, ahead: Array) -> Step:
        mu = average(mu, ahead + g, decay)
        ahead = step_size * mu
        return g + ahead, {"mu": mu, "ahead": ahead}

    return per_element(update, mu=fields.like(), ahead=fields.like())
