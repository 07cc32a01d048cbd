"""Schedules of several pieces: steps, cycles, sequences of schedules."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.core.annotations import Finite, Interval, NonNegative, Positive, PositiveInt, as_count
from gradtx.core.schedule import Rate, Schedule, schedule
from gradtx.schedules.curves import warmup_cosine_decay_schedule
from gradtx.schedules.shapes import half_cosine, line, passed, reached, refuse, since

Share = Annotated[float, Interval(0, 1, closed_low=False)]
"""A static fraction of the steps, in (0, 1)."""


def _as_counts(who: str, boundaries: Sequence[Any]) -> list[int]:
    """The boundaries as ints; refused unless they are whole numbers in ascending order."""
    counts = [as_count(boundary) for boundary in boundaries]
    whole = all(type(count) is int for count in counts)
    refuse(
        not whole or any(a > b for a, b in itertools.pairwise([0, *counts])),
        who,
        f"boundaries is {counts!r}; it must be whole numbers of updates, 0 or more, in ascending order",
    )
    return counts


def _refuse_empty(who: str, boundaries: Sequence[int]) -> None:
    """Refuse parts without an update; the boundaries are the ends of the parts."""
    empty = any(a >= b for a, b in itertools.pairwise([0, *boundaries]))
    refuse(empty, who, f"the ends of the parts are {list(boundaries)!r}; each part must have at least one update")


@schedule
def piecewise_constant_schedule(
    init_value: Finite, boundaries_and_scales: dict[int, NonNegative] | None = None
) -> Rate:
    """Constant between boundaries; at each boundary the value is multiplied by a scale.

    Args:
      init_value: a finite number.
      boundaries_and_scales: {count: scale}, with scales >= 0. A scale applies from its boundary on.

    Errors: ValueError for boundaries that are not whole numbers, 0 or more.

    >>> import gradtx
    >>> steps = gradtx.piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5})
    >>> steps(9), steps(10), steps(20)
    (Array(1., dtype=float32), Array(0.5, dtype=float32), Array(0.25, dtype=float32))
    """
    scales = boundaries_and_scales or {}
    boundaries = _as_counts("piecewise_constant_schedule", sorted(scales))

    def rate(count: Array) -> Any:
        value = init_value
        for boundary in boundaries:
            value = jnp.where(reached(count, boundary), value * scales[boundary], value)
        return value

    return rate


def _interpolate(count: Array, kind: str, boundaries: Sequence[int], values: Sequence[Any]) -> Any:
    """Interpolate `values` at 0 and at the boundaries, along lines or half cosines; constant after the last."""
    result = values[0]
    for begin, end, start, stop in zip([0, *boundaries], boundaries, values, values[1:], strict=False):
        share = passed(count, begin, end - begin, values[0])
        bent = share if kind == "linear" else 1 - half_cosine(share)
        result = jnp.where(reached(count, begin), line(start, stop, bent), result)
    return result


@schedule
def piecewise_interpolate_schedule(
    interpolate_type: Literal["linear", "cosine"],
    init_value: Finite,
    boundaries_and_scales: dict[int, NonNegative] | None = None,
) -> Rate:
    """Interpolation along lines or half cosines. The value at a boundary is the previous one times a scale.

    Args:
      interpolate_type: "linear" or "cosine".
      init_value: a finite number, the value at 0.
      boundaries_and_scales: {count: scale}, with scales >= 0. A boundary at 0 is a jump at the beginning.

    Errors: ValueError for boundaries that are not whole numbers, 0 or more, or an unknown interpolate_type.

    >>> import gradtx
    >>> gradtx.piecewise_interpolate_schedule("linear", 1.0, {10: 3.0})(5)
    Array(2., dtype=float32)
    """
    scales = boundaries_and_scales or {}
    boundaries = _as_counts("piecewise_interpolate_schedule", sorted(scales))

    def rate(count: Array) -> Any:
        values = [init_value]
        for boundary in boundaries:
            values.append(values[-1] * scales[boundary])
        return _interpolate(count, interpolate_type, boundaries, values)

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
    """One cycle of lines: up to `peak_value`, down to the initial value, and down to almost 0.

    Source: Smith and Topin 2017 (arXiv 1708.07120), in optax's parametrization.

    Args:
      transition_steps: length of the cycle. [updates]
      peak_value: a finite number.
      pct_start, pct_final: static fractions of the steps, at which the peak and again the initial value are reached.
      div_factor: > 0; the initial value is peak_value / div_factor.
      final_div_factor: > 0; the final value is the initial value / final_div_factor.

    Errors: ValueError unless 0 < pct_start < pct_final < 1 leaves at least one step for each part.

    >>> import gradtx
    >>> gradtx.linear_onecycle_schedule(100, 1.0)(30)
    Array(1., dtype=float32)
    """
    boundaries = [int(pct_start * transition_steps), int(pct_final * transition_steps), transition_steps]
    _refuse_empty("linear_onecycle_schedule", boundaries)

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
    """One cycle of half cosines: up to `peak_value` and down to almost 0.

    Source: Smith and Topin 2017 (arXiv 1708.07120), in optax's parametrization.

    Args:
      transition_steps: length of the cycle. [updates]
      peak_value: a finite number.
      pct_start: a static fraction of the steps, at which the peak is reached.
      div_factor: > 0; the initial value is peak_value / div_factor.
      final_div_factor: > 0; the final value is the initial value / final_div_factor.

    Errors: ValueError unless pct_start leaves at least one step for each part.

    >>> import gradtx
    >>> gradtx.cosine_onecycle_schedule(100, 1.0)(30)
    Array(1., dtype=float32)
    """
    boundaries = [int(pct_start * transition_steps), transition_steps]
    _refuse_empty("cosine_onecycle_schedule", boundaries)

    def rate(count: Array) -> Any:
        low = peak_value / div_factor
        return _interpolate(count, "cosine", boundaries, [low, peak_value, low / final_div_factor])

    return rate


@schedule
def join_schedules(schedules: tuple[Schedule, ...], boundaries: tuple[int, ...]) -> Rate:
    """One schedule after another, each with its time counted from its boundary.

    Args:
      schedules: at least one.
      boundaries: the counts at which the second, third ... schedule begins, in ascending order; a schedule between two
        equal boundaries is skipped. Their number is that of the schedules, or one less; of as many boundaries as
        schedules the last has no effect. [updates]

    Errors: ValueError for no schedules, boundaries that are not in ascending order, or a wrong number of them.

    >>> import gradtx
    >>> up, down = gradtx.linear_schedule(0.0, 1.0, 10), gradtx.linear_schedule(1.0, 0.0, 10)
    >>> triangle = gradtx.join_schedules((up, down), (10,))
    >>> triangle(5), triangle(15)
    (Array(0.5, dtype=float32), Array(0.5, dtype=float32))
    """
    refuse(not schedules, "join_schedules", "schedules is empty; it must have at least one schedule")
    refuse(
        len(boundaries) not in (len(schedules) - 1, len(schedules)),
        "join_schedules",
        f"boundaries has {len(boundaries)} entries; for {len(schedules)} schedules it must have {len(schedules) - 1}",
    )
    counts = _as_counts("join_schedules", boundaries)

    def rate(count: Array) -> Any:
        pieces = list(schedules)
        value: Any = pieces[0](count)
        for later, boundary in zip(pieces[1:], counts, strict=False):
            value = jnp.where(reached(count, boundary), later(since(count, boundary)), value)
        return value

    return rate


@schedule
def sgdr_schedule(cosine_kwargs: Sequence[Mapping[str, Any]]) -> Rate:
    """Warm restarts: one `warmup_cosine_decay_schedule` after another.

    Source: Loshchilov and Hutter 2016 (arXiv 1608.03983).

    Args:
      cosine_kwargs: a list of dicts, the arguments of each cycle. They are static; to sweep them, use
        `join_schedules`.

    Errors: ValueError for no cycles; else as `warmup_cosine_decay_schedule`.

    >>> import gradtx
    >>> cycle = dict(init_value=0.0, peak_value=1.0, warmup_steps=10, decay_steps=110)
    >>> print(f"{gradtx.sgdr_schedule([cycle, cycle])(170):.3f}")
    0.500
    """
    refuse(not cosine_kwargs, "sgdr_schedule", "cosine_kwargs is empty; it must have at least one cycle's arguments")
    cycles = tuple(warmup_cosine_decay_schedule(**cycle) for cycle in cosine_kwargs)
    ends = np.cumsum([cycle["decay_steps"] for cycle in cosine_kwargs])
    return join_schedules(cycles, tuple(int(end) for end in ends[:-1]))
