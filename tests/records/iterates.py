"""What goes around a method, from the papers: averages of the iterates, slow weights, Schedule-Free, SAM.

Averages and slow weights take the updates of the method inside, which do not depend on the parameters. Every average is
the sum that defines it, over all iterates kept; nothing is updated in place of that.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.records.base import Array, divide

Number = float | Callable[[int], float]
"""A number, or a function from the number of updates already made to a number."""


def at(value: Number, t: int) -> float:
    """The value at step t, where t = 1 is the first step."""
    return value(t - 1) if callable(value) else value


def power(decay: Number, t: int) -> float:
    """decay^t; the product of the first t values where the decay depends on the step."""
    return math.prod(at(decay, i) for i in range(1, t + 1))


def iterates(params: Array, updates: Sequence[Array]) -> list[Array]:
    """w_0, w_1, ..., w_T."""
    return [params + total for total in np.cumsum([np.zeros_like(params), *updates], axis=0)]


def exponential_averaging(
    params: Array,
    updates: Sequence[Array],
    *,
    decay: Number = 0.999,
    debias: bool = True,
    from_first: bool = False,
    start: int = 0,
) -> list[Array]:
    """The mean of w_s ... w_t with weights (1 - b_i) b_{i+1} ... b_t; else w_0, or w_s, has what those leave of 1."""
    w, averages = iterates(params, updates), []
    first = max(start, 1)
    for t in range(1, len(w)):
        weights = [(1 - at(decay, i)) * power(decay, t) / power(decay, i) for i in range(first, t + 1)]
        total = sum(weight * w[i] for i, weight in enumerate(weights, start=first))
        rest = power(decay, t) / (power(decay, first - 1)) * (w[first] if from_first or start else params)
        averages.append(w[t] if t < start else total / sum(weights) if debias else total + rest)
    return averages


def polyak_averaging(params: Array, updates: Sequence[Array]) -> list[Array]:
    """Polyak and Juditsky 1992, with the iterates after the updates."""
    w = iterates(params, updates)
    return [np.mean(w[1 : t + 1], axis=0) for t in range(1, len(w))]


def stochastic_weight_averaging(params: Array, updates: Sequence[Array], *, start: int, every: int) -> list[Array]:
    """Izmailov et al. 2018, algorithm 1: the pretrained weights and those at the end of each cycle."""
    w = iterates(params, updates)
    return [np.mean(w[start : t + 1 : every], axis=0) if t >= start else params for t in range(1, len(w))]


def lookahead(
    params: Array, updates: Sequence[Array], *, sync_period: int = 6, slow_step_size: Number = 0.5
) -> list[Array]:
    """Zhang et al. 2019, algorithm 1: two loops; the fast weights after each update."""
    slow, seen, t = params, [], 0
    while t < len(updates):
        fast = slow
        for _ in range(sync_period):
            if t == len(updates):
                return seen
            fast = fast + updates[t]
            seen.append(fast)
            t += 1
        slow = slow + at(slow_step_size, t) * (fast - slow)
        seen[-1] = slow
    return seen


def schedule_free_sgd(
    params: Array,
    gradients: Sequence[Array],
    *,
    learning_rate: Number = 1.0,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
) -> tuple[list[Array], list[Array], list[Array]]:
    """Defazio et al. 2024, equations 3 to 5, with the weights of their code. x, y and z after each update."""
    x = z = params
    xs, ys, zs, weights = [], [], [], []
    for t, g in enumerate(gradients, start=1):
        y = (1 - b1) * z + b1 * x
        z = z - at(learning_rate, t) * (g + weight_decay * y)
        weights.append(max(at(learning_rate, i) for i in range(1, t + 1)) ** weight_lr_power)
        c = divide(np.array(weights[-1]), np.array(sum(weights)))
        x = (1 - c) * x + c * z
        xs.append(x)
        ys.append((1 - b1) * z + b1 * x)
        zs.append(z)
    return xs, ys, zs


def schedule_free_adamw(
    params: Array,
    gradients: Sequence[Array],
    *,
    learning_rate: Number = 0.0025,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
) -> tuple[list[Array], list[Array], list[Array]]:
    """Defazio et al. 2024, algorithm 1, for a learning rate that does not fall. x, y and z after each update."""
    x = z = params
    v, total = np.zeros_like(params), 0.0
    xs, ys, zs = [], [], []
    for t, g in enumerate(gradients, start=1):
        rate = at(learning_rate, t)
        y = (1 - b1) * z + b1 * x
        v = b2 * v + (1 - b2) * g**2
        z = z - rate * divide(g, np.sqrt(v / (1 - b2**t)) + eps) - rate * weight_decay * y
        total += rate**weight_lr_power
        c = divide(np.array(rate**weight_lr_power), np.array(total))
        x = (1 - c) * x + c * z
        xs.append(x)
        ys.append((1 - b1) * z + b1 * x)
        zs.append(z)
    return xs, ys, zs


def sam(
    params: Array, losses: Sequence[Callable[[Array], Array]], *, learning_rate: Number, rho: Number = 0.05
) -> list[Array]:
    """Foret et al. 2020, algorithm 1, p = 2, given the gradient of each batch's loss. The weights after each update."""
    w, seen = params, []
    for t, gradient in enumerate(losses, start=1):
        g = gradient(w)
        perturbation = at(rho, t) * g / np.sqrt(np.sum(g**2))
        w = w - at(learning_rate, t) * gradient(w + perturbation)
        seen.append(w)
    return seen
