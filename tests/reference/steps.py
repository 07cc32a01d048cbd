"""What every transcription needs: hyperparameters that may depend on the step, powers of them, and 0/0 = 0."""

import math
from collections.abc import Callable

import numpy as np

Number = float | Callable[[int], float]
"""A number, or a function from the number of updates already made (0 at the first) to a number."""


def at(value: Number, t: int) -> float:
    """The value at step t, where t = 1 is the first step."""
    return value(t - 1) if callable(value) else value


def power(decay: Number, t: int) -> float:
    """decay^t; the product of the first t values where the decay depends on the step."""
    if callable(decay):
        return math.prod(decay(i) for i in range(t))
    return decay**t


def next_power(decay: Number, t: int) -> float:
    """decay^(t+1), as far as it is known at step t: a decay that depends on the step counts its latest value twice."""
    return power(decay, t) * decay(t - 1) if callable(decay) else decay ** (t + 1)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, with 0/0 = 0."""
    both_zero = (numerator == 0) & (denominator == 0)
    return np.where(both_zero, 0.0, numerator) / np.where(both_zero, 1.0, denominator)


def not_negative(variance: np.ndarray) -> np.ndarray:
    """The variance, or nan where rounding made a zero negative: there the method has no answer to be held against."""
    return np.where(variance < 0, np.nan, variance)
