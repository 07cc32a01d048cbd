"""Schedules of one formula: lines, powers, exponentials, cosines, with and without a warmup."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from gradtx.core.annotations import Finite, NonNegative, NonNegativeInt, Positive, PositiveInt
from gradtx.core.schedule import Rate, schedule
from gradtx.schedules.shapes import half_cosine, left, line, number, passed, reached, refuse, rounds, whole_rounds


def _exponential(count: Array, init: Any, steps: int, rate: Any, begin: int, staircase: bool, end: Any) -> Array:
    exponent = (whole_rounds if staircase else rounds)(count, begin, steps, rate)
    value = init * rate**exponent
    if end is None:
        return value
    return jnp.where(rate < 1, jnp.maximum(value, end), jnp.minimum(value, end))


@schedule
def constant_schedule(value: Finite) -> Rate:
    """The same value at every step.

    Args:
      value: a finite number.

    Errors: ValueError for a value that is not finite.

    >>> import gradtx
    >>> gradtx.constant_schedule(0.1)(5)
    Array(0.1, dtype=float32)
    """
    return lambda count: value


@schedule
def linear_schedule(
    init_value: Finite, end_value: Finite, transition_steps: PositiveInt, transition_begin: NonNegativeInt = 0
) -> Rate:
    """A straight line from `init_value` to `end_value`, constant before and after.

        init_value + (end_value - init_value) min(max(count - transition_begin, 0) / transition_steps, 1)

    Args:
      init_value, end_value: finite numbers.
      transition_steps: length of the line, at least 1. [updates]
      transition_begin: the count at which the line begins. [updates]

    Errors: ValueError for transition_steps below 1 or a negative transition_begin.

    >>> import gradtx
    >>> gradtx.linear_schedule(1.0, 0.0, 10)(3)
    Array(0.7, dtype=float32)
    """
    return lambda count: line(init_value, end_value, passed(count, transition_begin, transition_steps, init_value))


@schedule
def polynomial_schedule(
    init_value: Finite,
    end_value: Finite,
    power: Positive,
    transition_steps: PositiveInt,
    transition_begin: NonNegativeInt = 0,
) -> Rate:
    """From `init_value` to `end_value` along a power of the remaining time.

        end_value + (init_value - end_value) (1 - share)^power,   share of transition_steps passed, from 0 to 1

    Args:
      init_value, end_value: finite numbers.
      power: > 0; 1 is the straight line.
      transition_steps: length of the transition, at least 1. [updates]
      transition_begin: the count at which the transition begins. [updates]

    Errors: ValueError for transition_steps below 1, a negative transition_begin, a power that is not positive.

    >>> import gradtx
    >>> gradtx.polynomial_schedule(1.0, 0.0, 2.0, 10)(5)
    Array(0.25, dtype=float32)
    """

    def rate(count: Array) -> Array:
        share = left(count, transition_begin, transition_steps, init_value)
        return end_value + (init_value - end_value) * share**power

    return rate


@schedule
def exponential_decay(
    init_value: Finite,
    transition_steps: PositiveInt,
    decay_rate: Positive,
    transition_begin: NonNegativeInt = 0,
    staircase: bool = False,
    end_value: Finite | None = None,
) -> Rate:
    """Exponential decay: a factor of `decay_rate` every `transition_steps`.

        init_value decay_rate^(max(count - transition_begin, 0) / transition_steps)

    Args:
      init_value: a finite number.
      transition_steps: at least 1. [updates]
      decay_rate: > 0, the factor per transition_steps.
      transition_begin: the count at which the decay begins. [updates]
      staircase: whether to round the exponent down, so that the decay is in steps.
      end_value: a lower bound of the value if decay_rate is below 1, else an upper bound; None is no bound.

    Errors: ValueError for transition_steps below 1, a negative transition_begin, a decay_rate that is not positive.

    >>> import gradtx
    >>> gradtx.exponential_decay(1.0, 10, 0.5)(20)
    Array(0.25, dtype=float32)
    """
    return lambda count: _exponential(
        count, init_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )


@schedule
def cosine_decay_schedule(
    init_value: Finite, decay_steps: PositiveInt, alpha: Finite = 0.0, exponent: Positive = 1.0
) -> Rate:
    """From `init_value` to `alpha init_value` along half a cosine.

        init_value ((1 - alpha) (½ + ½ cos(π share))^exponent + alpha),   share of decay_steps passed, from 0 to 1

    Source: Loshchilov and Hutter 2016 (arXiv 1608.03983), equation 5, one period.

    Args:
      init_value: a finite number.
      decay_steps: at least 1. [updates]
      alpha: the final value as a fraction of init_value.
      exponent: > 0.

    Errors: ValueError for decay_steps below 1 or an exponent that is not positive.

    >>> import gradtx
    >>> print(f"{gradtx.cosine_decay_schedule(1.0, 10)(5):.3f}")
    0.500
    """

    def rate(count: Array) -> Array:
        cosine = half_cosine(passed(count, 0, decay_steps, init_value)) ** exponent
        return init_value * ((1 - alpha) * cosine + alpha)

    return rate


@schedule
def warmup_constant_schedule(init_value: Finite, peak_value: Finite, warmup_steps: NonNegativeInt) -> Rate:
    """A line from `init_value` to `peak_value`, then constant.

    Args:
      init_value, peak_value: finite numbers.
      warmup_steps: length of the line; 0 starts at the peak. [updates]

    Errors: ValueError for negative warmup_steps.

    >>> import gradtx
    >>> gradtx.warmup_constant_schedule(0.0, 1.0, 10)(5)
    Array(0.5, dtype=float32)
    """
    return lambda count: line(init_value, peak_value, passed(count, 0, warmup_steps, init_value))


@schedule
def warmup_cosine_decay_schedule(
    init_value: Finite,
    peak_value: Finite,
    warmup_steps: NonNegativeInt,
    decay_steps: PositiveInt,
    end_value: Finite = 0.0,
    exponent: Positive = 1.0,
) -> Rate:
    """A line from `init_value` to `peak_value`, then half a cosine down to `end_value`.

    Args:
      init_value, peak_value, end_value: finite numbers.
      warmup_steps: length of the line; 0 starts at the peak. [updates]
      decay_steps: length of the schedule *including* the warmup, as in optax: more than warmup_steps. [updates]
      exponent: > 0, the power of the cosine.

    Errors: ValueError for a warmup as long as the whole schedule.

    >>> import gradtx
    >>> print(f"{gradtx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 110)(60):.3f}")
    0.500
    """
    refuse(
        decay_steps <= warmup_steps,
        "warmup_cosine_decay_schedule",
        f"decay_steps is {decay_steps}; it must be more than warmup_steps, {warmup_steps}. It includes the warmup",
    )

    def rate(count: Array) -> Array:
        rising = line(init_value, peak_value, passed(count, 0, warmup_steps, init_value))
        cosine = half_cosine(passed(count, warmup_steps, decay_steps - warmup_steps, init_value)) ** exponent
        return jnp.where(reached(count, warmup_steps), end_value + (peak_value - end_value) * cosine, rising)

    return rate


@schedule
def warmup_exponential_decay_schedule(
    init_value: Finite,
    peak_value: Finite,
    warmup_steps: NonNegativeInt,
    transition_steps: PositiveInt,
    decay_rate: Positive,
    transition_begin: NonNegativeInt = 0,
    staircase: bool = False,
    end_value: Finite | None = None,
) -> Rate:
    """A line from `init_value` to `peak_value`, then `exponential_decay`, with its time counted from the peak.

    Args:
      init_value, peak_value: finite numbers.
      warmup_steps: length of the line; 0 starts at the peak. [updates]
      transition_steps, decay_rate, transition_begin, staircase, end_value: as `exponential_decay`.

    Errors: as `exponential_decay`; ValueError for negative warmup_steps.

    >>> import gradtx
    >>> gradtx.warmup_exponential_decay_schedule(0.0, 1.0, 10, 10, 0.5)(20)
    Array(0.5, dtype=float32)
    """

    def rate(count: Array) -> Array:
        rising = line(init_value, peak_value, passed(count, 0, warmup_steps, init_value))
        begin = warmup_steps + transition_begin
        falling = _exponential(count, peak_value, transition_steps, decay_rate, begin, staircase, end_value)
        return jnp.where(reached(count, warmup_steps), falling, rising)

    return rate


@schedule
def warmup_stable_decay_schedule(
    peak_value: Finite,
    warmup_steps: NonNegativeInt,
    stable_steps: NonNegativeInt,
    decay_steps: PositiveInt,
    init_value: Finite = 0.0,
    end_value: Finite = 0.0,
) -> Rate:
    """Warmup-stable-decay (WSD): a line up, a plateau, a line down.

    Source: Hu et al. 2024 (MiniCPM, arXiv 2404.06395), section 4; the decay here is linear.

    Args:
      peak_value, init_value, end_value: finite numbers.
      warmup_steps, stable_steps, decay_steps: lengths of the three parts. [updates]

    Errors: ValueError for negative warmup_steps or stable_steps, or decay_steps below 1.

    >>> import gradtx
    >>> wsd = gradtx.warmup_stable_decay_schedule(1.0, 10, 80, 10)
    >>> wsd(5), wsd(50), wsd(95)
    (Array(0.5, dtype=float32), Array(1., dtype=float32), Array(0.5, dtype=float32))
    """

    def rate(count: Array) -> Array:
        rising = line(init_value, peak_value, passed(count, 0, warmup_steps, init_value))
        falling = line(peak_value, end_value, passed(count, warmup_steps + stable_steps, decay_steps, init_value))
        return jnp.where(reached(count, warmup_steps), falling, rising)

    return rate


@schedule
def inverse_sqrt_schedule(peak_value: Finite, warmup_steps: PositiveInt) -> Rate:
    """A line from 0 to `peak_value`, then decay with the inverse square root of time.

        peak_value min(count / warmup_steps, sqrt(warmup_steps / count))

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 3, scaled to reach `peak_value`.

    Args:
      peak_value: a finite number.
      warmup_steps: at least 1. [updates]

    Errors: ValueError for warmup_steps below 1.

    >>> import gradtx
    >>> gradtx.inverse_sqrt_schedule(1.0, 100)(400)
    Array(0.5, dtype=float32)
    """

    def rate(count: Array) -> Array:
        falling = jnp.sqrt(1 / jnp.maximum(rounds(count, 0, warmup_steps, peak_value), 1))
        return peak_value * passed(count, 0, warmup_steps, peak_value) * falling

    return rate


@schedule
def inverse_time_schedule(init_value: Finite, decay_rate: NonNegative) -> Rate:
    """`init_value / (1 + decay_rate count)`: PyTorch's `lr_decay` of Adagrad.

    Args:
      init_value: a finite number.
      decay_rate: >= 0, per update.

    Errors: ValueError for a negative decay_rate.

    >>> import gradtx
    >>> gradtx.inverse_time_schedule(1.0, 0.5)(2)
    Array(0.5, dtype=float32)
    """
    return lambda count: init_value / (1 + decay_rate * number(count, init_value))
