"""Adam's relatives, Rprop and Adafactor: other measures than the average of squares."""

import numpy as np

from tests.records.base import (
    FALLING,
    RISING,
    RISING_B2,
    Array,
    K,
    Record,
    average,
    divide,
    given,
    memory,
    optax,
    torch,
)
from tests.records.effects import MASK, add_decayed_weights, clip_by_block_rms, each_leaf
from tests.records.parts import ema, scale_by_momentum


def scale_by_belief(s, g, t, w, *, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False) -> Array:
    """Zhuang et al. 2020, algorithm 2: eps is added to s at each step, and stays in it."""
    direction = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1, nesterov=nesterov)
    s["s"] = b2 * s.get("s", 0.0) + (1 - b2) * (g - s["m"]["m"]) ** 2 + eps_root
    return divide(direction, np.sqrt(s["s"] / given(s, b2)) + eps)


def scale_by_yogi(s, g, t, w, *, b1=0.9, b2=0.999, eps=1e-3, eps_root=0.0, initial_accumulator_value=1e-6) -> Array:
    """Zaheer et al. 2018, algorithm 2, both moments corrected; both start at a small number, as in optax."""
    m = average(s, "m", g, b1, initial_accumulator_value)
    v = s.get("v", initial_accumulator_value)
    s["v"] = v - (1 - b2) * np.sign(v - g**2) * g**2
    return divide(m / given(memory(s, "1"), b1), np.sqrt(s["v"] / given(memory(s, "2"), b2) + eps_root) + eps)


def scale_by_rectified_rms(
    s, g, t, w, *, observed=None, decay=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, eps_hat=False
) -> Array:
    """Liu et al. 2019, algorithm 2, lines 6 to 12."""
    v = average(s, "v", (g if observed is None else observed) ** 2, decay)
    total = s["total"] = decay * s.get("total", 0.0) + 1 - decay  # 1 - b^t: the difference would lose three digits
    left = s["left"] = s.get("left", 1.0) * decay
    most = 2 / (1 - decay) - 1
    rho = most - 2 * t * left / total
    if rho < max(threshold, 4):
        return g
    r = np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    if eps_hat:
        return r * divide(np.sqrt(total) * g, np.sqrt(v + eps_root) + eps)
    return r * divide(g, np.sqrt(v / total + eps_root) + eps)


def scale_by_radam(s, g, t, w, *, b1=0.9, b2=0.999, nesterov=False, **numbers) -> Array:
    """Momentum, and the rectified scaling of the gradient that came in."""
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1, nesterov=nesterov)
    return scale_by_rectified_rms(memory(s, "v"), m, t, w, observed=g, decay=b2, **numbers)


def scale_by_rprop(
    s, g, t, w, *, learning_rate, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-6, max_step_size=50.0
) -> Array:
    """Riedmiller and Braun 1993 without the step back, element by element."""
    steps, agrees = s.get("d", np.full_like(g, learning_rate)), np.sign(g) * np.sign(s.get("p", 0.0))
    grown = np.minimum(np.maximum(steps * eta_plus, min_step_size), max_step_size)
    shrunk = np.minimum(np.maximum(steps * eta_minus, min_step_size), max_step_size)
    s["d"] = np.select([agrees > 0, agrees < 0], [grown, shrunk], steps)
    s["p"] = np.where(agrees < 0, 0.0, g)
    return s["d"] * np.sign(s["p"])


def scale_by_factored_rms(
    s,
    g,
    t,
    w,
    *,
    factored=True,
    decay_rate=0.8,
    step_offset=0,
    min_dim_size_to_factor=128,
    epsilon=1e-30,
    eps_in_sum=True,
    decay=None,
) -> Array:
    """Shazeer and Stern 2018, algorithm 4 for matrices and 5 for vectors, with their decay 1 - t^-0.8, or another."""
    b = 1 - max(t - step_offset, 1) ** -decay_rate if decay is None else decay

    def at_leaf(g, axes):
        own, squares = memory(s, str(len(axes))), g**2 + (epsilon if eps_in_sum else 0.0)
        if factored and len(axes) == 2 and min(g.shape[-2:]) >= min_dim_size_to_factor:
            rows = average(own, "rows", squares.mean(-1, keepdims=True), b)
            columns = average(own, "columns", squares.mean(-2, keepdims=True), b)
            mean = rows.mean(-2, keepdims=True)
            v = rows * columns / (mean if eps_in_sum else np.maximum(mean, epsilon))
        else:
            v = average(own, "v", squares, b)
        return divide(g, np.sqrt(v if eps_in_sum else np.maximum(v, epsilon**2)))

    return each_leaf(at_leaf, g)


def scale_by_confidence(s, g, t, w, *, b1=0.9, decay=0.9999, eps=1e-16, min_dim_size_to_factor=1) -> Array:
    """Luo et al. 2023, algorithm 2, lines 8 to 12."""

    def at_leaf(u, axes):
        own = memory(s, str(len(axes)))
        m = average(own, "m", u, b1)
        if len(axes) < 2 or min(u.shape[-2:]) < min_dim_size_to_factor:
            return m
        instability = (u - m) ** 2 + eps
        rows = average(own, "rows", instability.mean(-1, keepdims=True), decay)
        columns = average(own, "columns", instability.mean(-2, keepdims=True), decay)
        return m / np.sqrt(rows * columns / rows.mean(-2, keepdims=True))

    return each_leaf(at_leaf, g)


def scale_by_param_block_rms(s, g, t, w, *, min_scale=1e-3) -> Array:
    """Shazeer and Stern 2018, section 8."""
    return each_leaf(lambda g, w, axes: g * np.maximum(np.sqrt((w**2).mean(axes, keepdims=True)), min_scale), g, w)


def adabelief(s, g, t, w, *, learning_rate, **numbers) -> Array:
    """Zhuang et al. 2020, algorithm 2."""
    return -learning_rate * scale_by_belief(s, g, t, w, **numbers)


def yogi(s, g, t, w, *, learning_rate, **numbers) -> Array:
    """Zaheer et al. 2018, algorithm 2."""
    return -learning_rate * scale_by_yogi(s, g, t, w, **numbers)


def radam(s, g, t, w, *, learning_rate, **numbers) -> Array:
    """Liu et al. 2019, algorithm 2."""
    return -learning_rate * scale_by_radam(s, g, t, w, **numbers)


def rprop(s, g, t, w, **numbers) -> Array:
    """Riedmiller and Braun 1993, without the step back."""
    return -scale_by_rprop(s, g, t, w, **numbers)


def adafactor(
    s,
    g,
    t,
    w,
    *,
    learning_rate=1.0,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    weight_decay_rate=0.0,
    eps=1e-30,
    factored=True,
    weight_decay_mask=None,
    eps_in_sum=True,
) -> Array:
    """Shazeer and Stern 2018, algorithm 4 to 6; decay and momentum as optax."""
    numbers = {"min_dim_size_to_factor": min_dim_size_to_factor, "factored": factored, "eps_in_sum": eps_in_sum}
    numbers |= {"decay_rate": decay_rate, "step_offset": decay_offset, "epsilon": eps}
    u = scale_by_factored_rms(memory(s, "v"), g, t, w, **numbers)
    u = u if clipping_threshold is None else clip_by_block_rms({}, u, t, w, threshold=clipping_threshold)
    u = learning_rate * u
    u = scale_by_param_block_rms({}, u, t, w) if multiply_by_parameter_scale else u
    u = u if momentum is None else ema(memory(s, "m"), u, t, w, decay=momentum, debias=False)
    return -add_decayed_weights({}, u, t, w, weight_decay=weight_decay_rate, mask=weight_decay_mask)


def came(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    eps=1e-30,
    eps_confidence=1e-16,
    clipping_threshold=1.0,
    weight_decay=0.0,
    mask=None,
    min_dim_size_to_factor=1,
) -> Array:
    """Luo et al. 2023, algorithm 2; the decay as in their code."""
    least = {"min_dim_size_to_factor": min_dim_size_to_factor}
    u = scale_by_factored_rms(memory(s, "v"), g, t, w, decay=b2, epsilon=eps, **least)
    u = u if clipping_threshold is None else clip_by_block_rms({}, u, t, w, threshold=clipping_threshold)
    u = scale_by_confidence(memory(s, "s"), u, t, w, b1=b1, decay=b3, eps=eps_confidence, **least)
    return -learning_rate * add_decayed_weights({}, u, t, w, weight_decay=weight_decay, mask=mask)


RELATIVES = [
    Record(
        "scale_by_belief",
        scale_by_belief,
        {"eps": 1e-8, "eps_root": 1e-8},
        {"b1": RISING, "b2": RISING_B2, "nesterov": True, "eps": 1e-3},
        peers=[optax("scale_by_belief"), optax("scale_by_belief", {"nesterov": True})],
    ),
    Record(
        "scale_by_yogi",
        scale_by_yogi,
        {},
        {"b1": 0.8, "b2": RISING_B2, "eps": 1e-2, "eps_root": 1e-4, "initial_accumulator_value": 0.1},
        peers=[optax("scale_by_yogi")],
    ),
    Record(
        "scale_by_rectified_rms",
        scale_by_rectified_rms,
        {},
        {"decay": 0.9, "eps_hat": True, "eps": 1e-3, "threshold": 3.0},
        {"decay": 0.99, "eps_root": 1e-6, "threshold": 6.0},
        first_step={0: 20},
    ),
    Record(
        "scale_by_radam",
        scale_by_radam,
        {},
        {"b1": RISING, "b2": 0.99, "nesterov": True, "eps": 1e-3, "eps_root": 1e-6, "threshold": 6.0},
        first_step={0: 20},  # before, ρ - 4 is a difference of numbers that are 1000 times larger
        peers=[optax("scale_by_radam"), optax("scale_by_radam", {"nesterov": True})],
    ),
    Record(
        "scale_by_rprop",
        scale_by_rprop,
        {"learning_rate": 0.01},
        {"learning_rate": 0.1, "eta_minus": 0.3, "eta_plus": 1.5, "min_step_size": 0.05, "max_step_size": 0.3},
    ),
    Record(
        "scale_by_factored_rms",
        scale_by_factored_rms,
        {"min_dim_size_to_factor": 2},
        {"min_dim_size_to_factor": 2, "epsilon": 1e-6, "eps_in_sum": False, "decay_rate": 0.5},
        {"factored": False, "epsilon": 0.0},
        {"min_dim_size_to_factor": 6, "step_offset": 3},
        {"min_dim_size_to_factor": 2, "decay": 0.99},
    ),
    Record(
        "scale_by_confidence",
        scale_by_confidence,
        {},
        {"b1": RISING, "decay": 0.9, "eps": 1e-3},
        {"min_dim_size_to_factor": 6, "eps": 1e-3},
    ),
    Record("scale_by_param_block_rms", None, {}, {"min_scale": FALLING}),  # alone it grows for ever: see adafactor
    Record(
        "adabelief",
        adabelief,
        {"learning_rate": 0.1, "eps_root": 1e-8},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "nesterov": True},
        peers=[optax("adabelief", K)],
    ),
    Record(
        "yogi",
        yogi,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.99, "eps": 1e-2},
        peers=[optax("yogi", K)],
    ),
    Record(
        "radam",
        radam,
        {"learning_rate": 0.1},
        {
            "learning_rate": FALLING,
            "b1": 0.8,
            "b2": 0.99,
            "eps": 1e-4,
            "eps_root": 1e-6,
            "threshold": 6.0,
            "eps_hat": True,
        },
        first_step={0: 20},
        peers=[torch("RAdam", {"lr": 0.001}, eps_hat=True), optax("radam", K)],
    ),
    Record(
        "rprop",
        rprop,
        {"learning_rate": 0.1},
        {"learning_rate": 0.01, "eta_minus": 0.3, "eta_plus": 1.4, "min_step_size": 1e-3, "max_step_size": 0.05},
        peers=[torch("Rprop", {"lr": 0.01})],
    ),
    Record(
        "adafactor",
        adafactor,
        {"learning_rate": 0.1, "min_dim_size_to_factor": 2},
        {
            "learning_rate": FALLING,
            "min_dim_size_to_factor": 2,
            "momentum": 0.9,
            "weight_decay_rate": 0.01,
            "weight_decay_mask": MASK,
        },
        {
            "min_dim_size_to_factor": 2,
            "clipping_threshold": None,
            "multiply_by_parameter_scale": False,
            "eps_in_sum": False,
            "eps": 1e-4,
            "decay_rate": 0.5,
        },
        at_least={1: 0.99},
    ),
    Record(
        "came",
        came,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.9, "b3": 0.99, "weight_decay": 0.01, "mask": MASK},
        {"learning_rate": 0.1, "eps": 1e-4, "eps_confidence": 1e-4, "clipping_threshold": None},
        {"learning_rate": 0.1, "min_dim_size_to_factor": 6, "clipping_threshold": 0.5},
    ),
]
