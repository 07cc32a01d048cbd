"""Learning rates as plain functions of t, the number of updates already made.

Where optax has the schedule, this is optax's definition; the others are derived from the equation in their docstring.
Each function returns a function of t.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

Schedule = Callable[[int], float]


def constant_schedule(value: float) -> Schedule:
    return lambda t: value


def polynomial_schedule(
    init_value: float, end_value: float, power: float, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    def schedule(t: int) -> float:
        if t <= transition_begin:
            return init_value
        if t >= transition_begin + transition_steps:
            return end_value
        remaining = 1 - (t - transition_begin) / transition_steps
        return (init_value - end_value) * remaining**power + end_value

    return schedule


def linear_schedule(init_value: float, end_value: float, transition_steps: int, transition_begin: int = 0) -> Schedule:
    def schedule(t: int) -> float:
        done = min(max(t - transition_begin, 0), transition_steps) / transition_steps
        return init_value + done * (end_value - init_value)

    return schedule


def exponential_decay(
    init_value: float,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """`init * rate^(t / steps)`; a lower bound at the end where it falls, an upper bound where it rises."""

    def schedule(t: int) -> float:
        elapsed = max(t - transition_begin, 0)
        exponent = elapsed // transition_steps if staircase else elapsed / transition_steps
        value = init_value * decay_rate**exponent
        if end_value is None:
            return value
        return max(value, end_value) if decay_rate < 1 else min(value, end_value)

    return schedule


def cosine_decay_schedule(init_value: float, decay_steps: int, alpha: float = 0.0, exponent: float = 1.0) -> Schedule:
    def schedule(t: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * min(t, decay_steps) / decay_steps))
        return init_value * ((1 - alpha) * wave**exponent + alpha)

    return schedule


def warmup_constant_schedule(init_value: float, peak_value: float, warmup_steps: int) -> Schedule:
    def schedule(t: int) -> float:
        if t >= warmup_steps:
            return peak_value
        return init_value + (peak_value - init_value) * t / warmup_steps

    return schedule


def warmup_cosine_decay_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> Schedule:
    """`decay_steps` counts the warmup too."""

    def schedule(t: int) -> float:
        if t < warmup_steps:
            return init_value + (peak_value - init_value) * t / warmup_steps
        done = min((t - warmup_steps) / (decay_steps - warmup_steps), 1.0)
        wave = (0.5 * (1 + math.cos(math.pi * done))) ** exponent
        return end_value + (peak_value - end_value) * wave

    return schedule


def warmup_exponential_decay_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> Schedule:
    """`transition_begin` counts from the end of the warmup."""
    decay = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)

    def schedule(t: int) -> float:
        if t < warmup_steps:
            return init_value + (peak_value - init_value) * t / warmup_steps
        return decay(t - warmup_steps)

    return schedule


def warmup_stable_decay_schedule(
    peak_value: float,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    init_value: float = 0.0,
    end_value: float = 0.0,
) -> Schedule:
    """A line up from `init_value` to the peak, the peak, a line down to `end_value`, which stays."""

    def schedule(t: int) -> float:
        if t < warmup_steps:
            return init_value + (peak_value - init_value) * t / warmup_steps
        t = t - warmup_steps - stable_steps
        if t < 0:
            return peak_value
        return end_value if t >= decay_steps else peak_value + (end_value - peak_value) * t / decay_steps

    return schedule


def inverse_sqrt_schedule(peak_value: float, warmup_steps: int) -> Schedule:
    """`peak * min(t / warmup, sqrt(warmup / t))`: Vaswani et al. 2017, equation 3, with its peak named."""

    def schedule(t: int) -> float:
        if t < warmup_steps:
            return peak_value * t / warmup_steps
        return peak_value * math.sqrt(warmup_steps / t)

    return schedule


def inverse_time_schedule(init_value: float, decay_rate: float) -> Schedule:
    """`init / (1 + rate t)`: the `lr_decay` of PyTorch's Adagrad."""
    return lambda t: init_value / (1 + decay_rate * t)


def piecewise_constant_schedule(
    init_value: float, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """The product of the scales of all boundaries at or before t."""

    def schedule(t: int) -> float:
        value = init_value
        for boundary, factor in sorted((boundaries_and_scales or {}).items()):
            if t >= boundary:
                value = value * factor
        return value

    return schedule


def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: float, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """From each accumulated value to the next along a line or half a cosine."""

    def schedule(t: int) -> float:
        start, value = 0, init_value
        for boundary, factor in sorted((boundaries_and_scales or {}).items()):
            following = value * factor
            if t < boundary:
                done = (t - start) / (boundary - start)
                if interpolate_type == "cosine":
                    done = (1 - math.cos(math.pi * done)) / 2
                return value + (following - value) * done
            start, value = boundary, following
        return value

    return schedule


def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Lines: up to the peak, down to where it began, and down to that over `final_div_factor`."""
    low = peak_value / div_factor
    corners = [
        (0, low),
        (int(pct_start * transition_steps), peak_value),
        (int(pct_final * transition_steps), low),
        (transition_steps, low / final_div_factor),
    ]

    def schedule(t: int) -> float:
        for (begin, before), (end, after) in itertools.pairwise(corners):
            if begin <= t < end:
                return before + (after - before) * (t - begin) / (end - begin)
        return corners[-1][1]

    return schedule


def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Half a cosine up to the peak, and half a cosine down to where it began over `final_div_factor`."""
    low = peak_value / div_factor
    corners = [(0, low), (int(pct_start * transition_steps), peak_value), (transition_steps, low / final_div_factor)]

    def schedule(t: int) -> float:
        for (begin, before), (end, after) in itertools.pairwise(corners):
            if begin <= t < end:
                return after + (before - after) * (math.cos(math.pi * (t - begin) / (end - begin)) + 1) / 2
        return corners[-1][1]

    return schedule


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, float]]) -> Schedule:
    """Loshchilov and Hutter 2016: one `warmup_cosine_decay_schedule` after another; the last one's end stays."""
    cycles = [(int(kwargs["decay_steps"]), warmup_cosine_decay_schedule(**kwargs)) for kwargs in cosine_kwargs]

    def schedule(t: int) -> float:
        for length, cycle in cycles[:-1]:
            if t < length:
                return cycle(t)
            t = t - length
        return cycles[-1][1](t)

    return schedule


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Each piece counts from its own boundary."""

    def schedule(t: int) -> float:
        begin, current = 0, schedules[0]
        for boundary, following in zip(boundaries, schedules[1:], strict=True):
            if t >= boundary:
                begin, current = boundary, following
        return current(t - begin)

    return schedule
