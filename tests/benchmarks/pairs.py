"""Ratios that a noisy machine leaves alone: what is compared is measured in the same rounds, in a random order.

A slow moment then hits both sides of a ratio, and since every second round goes backwards, none comes last more often
than another. What a benchmark prints is the median over the rounds and the range of its middle half.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

import gradtx

PyTree = Any
Measured = TypeVar("Measured")

_random = random.Random(0)  # one for the process: in a single round it is not always the same who comes last


def step_of(tx: Any, apply: Callable[[PyTree, PyTree], PyTree] = gradtx.apply_updates) -> Callable[..., Any]:
    """One step params, state, grads -> params, state."""

    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(grads, state, params)
        return apply(params, updates), state

    return step


class Program:
    """A compiled step, the params and the state that it goes on from and overwrites, and gradients."""

    def __init__(self, step: Callable[..., Any], params: PyTree, state: PyTree, grads: PyTree, **options: Any):
        self.step = jax.jit(step, donate_argnums=(0, 1), **options)
        self.params, self.state, self.grads = params, state, grads

    def run(self, times: int = 1) -> float:
        """Seconds per step, the mean over a number of steps."""
        begin = time.perf_counter()
        for _ in range(times):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))
        return (time.perf_counter() - begin) / times


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes, its arrays included."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def interleaved(
    measures: dict[str, Callable[[], Measured]],
    rounds: int,
    *,
    warm: int = 1,
    least: int = 1,
    budget: float = float("inf"),
) -> dict[str, list[Measured]]:
    """What each measures in each round; `warm` rounds before are not kept, nor begins one after `budget` seconds."""
    found: dict[str, list[Measured]] = {name: [] for name in measures}
    order = list(measures)
    begin = time.perf_counter()
    for turn in range(warm + rounds):
        if turn >= warm + least and time.perf_counter() - begin > budget:
            break
        order = order[::-1] if turn % 2 else _random.sample(order, len(order))
        for name in order:
            one = measures[name]()
            if turn >= warm:
                found[name].append(one)
    return found


def ratios(times: dict[str, list[float]], name: str, over: str) -> list[float]:
    return [a / b for a, b in zip(times[name], times[over], strict=True)]


def spread(numbers: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles: the median is in the middle."""
    low, middle, high = statistics.quantiles(numbers, n=4) if len(numbers) > 1 else [*numbers] * 3
    return low, middle, high


def said(numbers: Sequence[float], digits: int = 2) -> str:
    """The median and the middle half."""
    low, middle, high = (f"{number:.{digits}f}" for number in spread(numbers))
    return f"{middle} ({low} to {high})" if len(numbers) > 1 else middle


def machine() -> str:
    return f"jax {jax.__version__}, {jax.devices()[0].device_kind}"
