"""Schedules: hyperparameters that depend on time.

A schedule maps the number of updates already made (0 at the first) to a number. It stands wherever a number stands:
`adam(cosine_decay_schedule(1e-3, 10_000))`, or `adam(1e-3, b2=linear_schedule(0.9, 0.999, 1000))`. Most are a
straight line, a cosine or a power, bent at some steps:

- `linear_schedule`: from one value to another in so many steps.
- `cosine_decay_schedule`: the same way down, slow at both ends.
- `warmup_cosine_decay_schedule`: a line up, then that cosine: what large models are trained with.

Values are hyperparameters (swept, differentiated, passed to jit); lengths and boundaries are static.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.core.annotations import Finite, Interval, NonNegative, NonNegativeInt, Positive, PositiveInt
from gradtx.core.schedule import Rate, Schedule, schedule

Share = Annotated[float, Interval(0, 1, closed_low=False)]
"""A static share of the steps, in (0, 1)."""


def _passed(count: Array, begin: int, steps: int, like: Any) -> Array:
    """The share of `steps` that has passed since `begin`, from 0 to 1, in the dtype of the number `like`."""
    if steps == 0:
        return (count >= begin).astype(like.dtype)
    return jnp.clip(count - begin, 0, steps).astype(like.dtype) / steps


def _line(start: Any, end: Any, share: Array) -> Array:
    return start + (end - start) * share


def _half_cosine(share: Array) -> Array:
    """From 1 to 0 along a cosine as the share goes from 0 to 1."""
    return 0.5 * (1 + jnp.cos(np.pi * share))


def _exponential(count: Array, init: Any, steps: int, rate: Any, begin: int, staircase: bool, end: Any) -> Array:
    exponent = jnp.maximum(count - begin, 0).astype(rate.dtype) / steps
    value = init * rate ** (jnp.floor(exponent) if staircase else exponent)
    if end is None:
        return value
    return jnp.where(rate < 1, jnp.maximum(value, end), jnp.minimum(value, end))


def _refuse(condition: bool, who: str, reason: str) -> None:
    if condition:
        raise ValueError(f"gradtx.{who}: {reason}.")


@schedule
def constant_schedule(value: Finite) -> Rate:
    """The same value at every step.

    Args:
      value: a finite number.

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
      transition_begin: where it begins. [updates]

    >>> import gradtx
    >>> gradtx.linear_schedule(1.0, 0.0, 10)(3)
    Array(0.7, dtype=float32)
    """
    return lambda count: _line(init_value, end_value, _passed(count, transition_begin, transition_steps, init_value))


@schedule
def polynomial_schedule(
    init_value: Finite,
    end_value: Finite,
    power: Positive,
    transition_steps: PositiveInt,
    transition_begin: NonNegativeInt = 0,
) -> Rate:
    """From `init_value` to `end_value` along a power of the time that is left.

        end_value + (init_value - end_value) (1 - share)^power,   share of transition_steps passed, from 0 to 1

    Args:
      init_value, end_value: finite numbers.
      power: > 0; 1 is the straight line.
      transition_steps: length, at least 1. [updates]
      transition_begin: where it begins. [updates]

    >>> import gradtx
    >>> gradtx.polynomial_schedule(1.0, 0.0, 2.0, 10)(5)
    Array(0.25, dtype=float32)
    """

    def rate(count: Array) -> Array:
        left = 1 - _passed(count, transition_begin, transition_steps, init_value)
        return end_value + (init_value - end_value) * left**power

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
    """Multiplied by `decay_rate` every `transition_steps`.

        init_value decay_rate^(max(count - transition_begin, 0) / transition_steps)

    Args:
      init_value: a finite number.
      transition_steps: at least 1. [updates]
      decay_rate: > 0, per transition_steps.
      transition_begin: where the decay begins. [updates]
      staircase: decay at once at the end of each interval.
      end_value: where it stops: a lower bound for a rate below 1, else an upper bound.

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
      alpha: the share of init_value at the end.
      exponent: > 0.

    >>> import gradtx
    >>> print(f"{gradtx.cosine_decay_schedule(1.0, 10)(5):.3f}")
    0.500
    """

    def rate(count: Array) -> Array:
        cosine = _half_cosine(_passed(count, 0, decay_steps, init_value)) ** exponent
        return init_value * ((1 - alpha) * cosine + alpha)

    return rate


@schedule
def warmup_constant_schedule(init_value: Finite, peak_value: Finite, warmup_steps: NonNegativeInt) -> Rate:
    """A line from `init_value` to `peak_value`, then constant.

    Args:
      init_value, peak_value: finite numbers.
      warmup_steps: length of the line; 0 starts at the peak. [updates]

    >>> import gradtx
    >>> gradtx.warmup_constant_schedule(0.0, 1.0, 10)(5)
    Array(0.5, dtype=float32)
    """
    return lambda count: _line(init_value, peak_value, _passed(count, 0, warmup_steps, init_value))


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
      decay_steps: where the cosine ends, the warmup *included* (as optax): more than warmup_steps. [updates]
      exponent: > 0, of the cosine.

    Errors: ValueError for a warmup as long as the whole schedule.

    >>> import gradtx
    >>> print(f"{gradtx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 110)(60):.3f}")
    0.500
    """
    _refuse(
        decay_steps <= warmup_steps,
        "warmup_cosine_decay_schedule",
        f"the warmup never ends: decay_steps={decay_steps} includes the warmup, so it must be more than "
        f"warmup_steps={warmup_steps}",
    )

    def rate(count: Array) -> Array:
        rising = _line(init_value, peak_value, _passed(count, 0, warmup_steps, init_value))
        cosine = _half_cosine(_passed(count, warmup_steps, decay_steps - warmup_steps, init_value)) ** exponent
        return jnp.where(count < warmup_steps, rising, end_value + (peak_value - end_value) * cosine)

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
    """A line from `init_value` to `peak_value`, then `exponential_decay` from there, its time counted from the peak.

    Args:
      init_value, peak_value: finite numbers.
      warmup_steps: length of the line; 0 starts at the peak. [updates]
      transition_steps, decay_rate, transition_begin, staircase, end_value: as `exponential_decay`.

    >>> import gradtx
    >>> gradtx.warmup_exponential_decay_schedule(0.0, 1.0, 10, 10, 0.5)(20)
    Array(0.5, dtype=float32)
    """

    def rate(count: Array) -> Array:
        rising = _line(init_value, peak_value, _passed(count, 0, warmup_steps, init_value))
        begin = warmup_steps + transition_begin
        falling = _exponential(count, peak_value, transition_steps, decay_rate, begin, staircase, end_value)
        return jnp.where(count < warmup_steps, rising, falling)

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
    """A line up, a plateau, a line down (WSD).

    Source: Hu et al. 2024 (MiniCPM, arXiv 2404.06395), section 4; the decay here is linear.

    Args:
      peak_value, init_value, end_value: finite numbers.
      warmup_steps, stable_steps, decay_steps: lengths of the three parts, one after another. [updates]

    >>> import gradtx
    >>> wsd = gradtx.warmup_stable_decay_schedule(1.0, 10, 80, 10)
    >>> wsd(5), wsd(50), wsd(95)
    (Array(0.5, dtype=float32), Array(1., dtype=float32), Array(0.5, dtype=float32))
    """

    def rate(count: Array) -> Array:
        rising = _line(init_value, peak_value, _passed(count, 0, warmup_steps, init_value))
        falling = _line(peak_value, end_value, _passed(count, warmup_steps + stable_steps, decay_steps, init_value))
        return jnp.where(count < warmup_steps, rising, falling)

    return rate


@schedule
def inverse_sqrt_schedule(peak_value: Finite, warmup_steps: PositiveInt) -> Rate:
    """A line from 0 to `peak_value`, then down with the root of time.

        peak_value min(count / warmup_steps, sqrt(warmup_steps / count))

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 3, scaled to reach `peak_value`.

    Args:
      peak_value: a finite number.
      warmup_steps: at least 1. [updates]

    >>> import gradtx
    >>> gradtx.inverse_sqrt_schedule(1.0, 100)(400)
    Array(0.5, dtype=float32)
    """

    def rate(count: Array) -> Array:
        since = jnp.maximum(count, warmup_steps).astype(peak_value.dtype)
        return peak_value * _passed(count, 0, warmup_steps, peak_value) * jnp.sqrt(warmup_steps / since)

    return rate


@schedule
def inverse_time_schedule(init_value: Finite, decay_rate: NonNegative) -> Rate:
    """`init_value / (1 + decay_rate count)`: PyTorch's `lr_decay` of Adagrad.

    Args:
      init_value: a finite number.
      decay_rate: >= 0, per update.

    >>> import gradtx
    >>> gradtx.inverse_time_schedule(1.0, 0.5)(2)
    Array(0.5, dtype=float32)
    """
    return lambda count: init_value / (1 + decay_rate * count.astype(init_value.dtype))


def _check_boundaries(who: str, boundaries: Sequence[Any]) -> None:
    whole = all(isinstance(b, int) and not isinstance(b, bool) and b > 0 for b in boundaries)
    rising = whole and all(a < b for a, b in itertools.pairwise(boundaries))
    _refuse(
        not rising,
        who,
        f"boundaries {list(boundaries)!r} must be whole numbers of updates > 0, each larger than the one before",
    )


@schedule
def piecewise_constant_schedule(
    init_value: Finite, boundaries_and_scales: dict[int, NonNegative] | None = None
) -> Rate:
    """Multiplied by a scale at each boundary; between them constant.

    Args:
      init_value: a finite number.
      boundaries_and_scales: {count: scale}, in rising order. A scale holds from its boundary on.

    Errors: ValueError for boundaries that are not rising whole numbers above 0.

    >>> import gradtx
    >>> steps = gradtx.piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5})
    >>> steps(9), steps(10), steps(20)
    (Array(1., dtype=float32), Array(0.5, dtype=float32), Array(0.25, dtype=float32))
    """
    _check_boundaries("piecewise_constant_schedule", list(boundaries_and_scales or {}))

    def rate(count: Array) -> Any:
        value = init_value
        for boundary, scale in (boundaries_and_scales or {}).items():
            value = jnp.where(count >= boundary, value * scale, value)
        return value

    return rate


def _interpolate(count: Array, kind: str, boundaries: Sequence[int], values: Sequence[Any]) -> Any:
    """Through `values` at 0 and the boundaries, along lines or half cosines; constant after the last."""
    result = values[0]
    for begin, end, start, stop in zip([0, *boundaries], boundaries, values, values[1:], strict=False):
        share = _passed(count, begin, end - begin, values[0])
        bent = share if kind == "linear" else 1 - _half_cosine(share)
        result = jnp.where(count >= begin, _line(start, stop, bent), result)
    return result


@schedule
def piecewise_interpolate_schedule(
    interpolate_type: Literal["linear", "cosine"],
    init_value: Finite,
    boundaries_and_scales: dict[int, NonNegative] | None = None,
) -> Rate:
    """From value to value along lines or half cosines; at each boundary the value is the one before times a scale.

    Args:
      interpolate_type: "linear" or "cosine".
      init_value: a finite number, the value at 0.
      boundaries_and_scales: {count: scale}, in rising order.

    Errors: ValueError for boundaries that are not rising whole numbers above 0, or another type.

    >>> import gradtx
    >>> gradtx.piecewise_interpolate_schedule("linear", 1.0, {10: 3.0})(5)
    Array(2., dtype=float32)
    """
    scales = boundaries_and_scales or {}
    _check_boundaries("piecewise_interpolate_schedule", list(scales))

    def rate(count: Array) -> Any:
        values = [init_value]
        for scale in scales.values():
            values.append(values[-1] * scale)
        return _interpolate(count, interpolate_type, list(scales), values)

    return rate


@schedule
def linear_onecycle_schedule(
    transition_steps: PositiveInt,
    peak_value: Finite,
    pct_start: Share = 0.3,
    pct_final: Share = 0.85,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> Rate:
    """One cycle of lines: up to `peak_value`, down to where it began, and down to almost nothing.

    Source: Smith and Topin 2017 (arXiv 1708.07120), in optax's parametrization.

    Args:
      transition_steps: length of the whole. [updates]
      peak_value: a finite number.
      pct_start, pct_final: static shares of the steps at which the peak and the beginning's value are reached.
      div_factor: the beginning is peak_value / div_factor.
      final_div_factor: the end is the beginning / final_div_factor.

    Errors: ValueError unless 0 < pct_start < pct_final < 1 leaves at least one step for each part.

    >>> import gradtx
    >>> gradtx.linear_onecycle_schedule(100, 1.0)(30)
    Array(1., dtype=float32)
    """
    boundaries = [int(pct_start * transition_steps), int(pct_final * transition_steps), transition_steps]
    _check_boundaries("linear_onecycle_schedule", boundaries)

    def rate(count: Array) -> Any:
        low = peak_value / div_factor
        return _interpolate(count, "linear", boundaries, [low, peak_value, low, low / final_div_factor])

    return rate


@schedule
def cosine_onecycle_schedule(
    transition_steps: PositiveInt,
    peak_value: Finite,
    pct_start: Share = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> Rate:
    """One cycle of half cosines: up to `peak_value` and down to almost nothing.

    Source: Smith and Topin 2017 (arXiv 1708.07120), in optax's parametrization.

    Args:
      transition_steps: length of the whole. [updates]
      peak_value: a finite number.
      pct_start: a static share of the steps, at which the peak is reached.
      div_factor: the beginning is peak_value / div_factor.
      final_div_factor: the end is the beginning / final_div_factor.

    Errors: ValueError unless pct_start leaves at least one step for each part.

    >>> import gradtx
    >>> gradtx.cosine_onecycle_schedule(100, 1.0)(30)
    Array(1., dtype=float32)
    """
    boundaries = [int(pct_start * transition_steps), transition_steps]
    _check_boundaries("cosine_onecycle_schedule", boundaries)

    def rate(count: Array) -> Any:
        low = peak_value / div_factor
        return _interpolate(count, "cosine", boundaries, [low, peak_value, low / final_div_factor])

    return rate


@schedule
def join_schedules(schedules: tuple[Schedule, ...], boundaries: tuple[int, ...]) -> Rate:
    """One schedule after another, each with its own time, counted from its boundary.

    Args:
      schedules: at least one.
      boundaries: the counts at which the second, third ... begin: one fewer than schedules, rising. [updates]

    Errors: ValueError for boundaries that don't match the pieces.

    >>> import gradtx
    >>> up, down = gradtx.linear_schedule(0.0, 1.0, 10), gradtx.linear_schedule(1.0, 0.0, 10)
    >>> triangle = gradtx.join_schedules((up, down), (10,))
    >>> triangle(5), triangle(15)
    (Array(0.5, dtype=float32), Array(0.5, dtype=float32))
    """
    _refuse(
        len(schedules) == 0 or len(boundaries) != len(schedules) - 1,
        "join_schedules",
        f"{len(schedules)} schedules need {max(len(schedules) - 1, 0)} boundaries, got {len(boundaries)}",
    )
    _check_boundaries("join_schedules", boundaries)

    def rate(count: Array) -> Any:
        pieces = list(schedules)
        value: Any = pieces[0](count)
        for later, boundary in zip(pieces[1:], boundaries, strict=True):
            value = jnp.where(count < boundary, value, later(jnp.maximum(count - boundary, 0)))
        return value

    return rate


@schedule
def sgdr_schedule(cosine_kwargs: Sequence[Mapping[str, Any]]) -> Rate:
    """Warm restarts: one `warmup_cosine_decay_schedule` after another.

    Source: Loshchilov and Hutter 2016 (arXiv 1608.03983).

    Args:
      cosine_kwargs: the arguments of each. They are static here; where they are to be swept, join the schedules
        yourself.

    Errors: ValueError for no cycle at all; what `warmup_cosine_decay_schedule` refuses.

    >>> import gradtx
    >>> cycle = dict(init_value=0.0, peak_value=1.0, warmup_steps=10, decay_steps=110)
    >>> print(f"{gradtx.sgdr_schedule([cycle, cycle])(170):.3f}")
    0.500
    """
    _refuse(not cosine_kwargs, "sgdr_schedule", "got no cycles; pass the arguments of at least one")
    cycles = tuple(warmup_cosine_decay_schedule(**cycle) for cycle in cosine_kwargs)
    ends = np.cumsum([cycle["decay_steps"] for cycle in cosine_kwargs])
    return join_schedules(cycles, tuple(int(end) for end in ends[:-1]))
