"""The transforms that methods are made of: each turns a gradient into an update, without a learning rate.

A scaling divides what flows (g) by a measure of `observed`, which is g itself unless it stands in a sum.
"""

import numpy as np

from tests.records.base import (
    FALLING,
    RISING,
    RISING_B2,
    Array,
    Record,
    average,
    divide,
    given,
    memory,
    not_negative,
    optax,
)


def scale_by_momentum(s, g, t, w, *, decay=0.9, form="debiased", nesterov=False, dampening=0.0) -> Array:
    """An average of past gradients, the same corrected for its zero start, or a decayed sum; Nesterov's one ahead."""
    b = decay
    if form == "sum":  # the first is not dampened, as in PyTorch
        kept = g if t == 1 else (1 - dampening) * g
        s["m"] = b * s.get("m", 0.0) + kept
        return kept + b * s["m"] if nesterov else s["m"]
    m = average(s, "m", g, b)
    if form == "average":
        return b * m + (1 - b) * g if nesterov else m
    now = given(s, b)
    if nesterov:  # Dozat 2016: b^(t+1) as far as it is known, the latest b twice
        return b * m / (1 - b * (1 - now)) + (1 - b) * g / now
    return m / now


def scale_by_two_momenta(
    s, g, t, w, *, decay=0.95, fast_decay=0.85, slow_decay=0.98, fast_weight=0.4385, start_step=700, nesterov=True
) -> Array:
    """Track 3, 2635 steps: one average at first; the two begin as copies of it, and do not count g again."""
    one = average(s, "m", g, decay)
    if t <= start_step + 1:
        s["fast"], s["slow"] = one, one
    else:
        average(s, "fast", g, fast_decay)
        average(s, "slow", g, slow_decay)
    m = fast_weight * s["fast"] + (1 - fast_weight) * s["slow"]
    return decay * m + (1 - decay) * g if nesterov else m


def ema_nesterov(s, g, t, w, *, step_size=0.3, decay=0.99) -> Array:
    """Track 3, result 40: an average of the ways between the points after the inner steps, which begin ahead."""
    way = s.get("shift", 0.0) + g
    s["shift"] = step_size * average(s, "m", way, decay)
    return g + s["shift"]


def scale_by_nadam_momentum(s, g, t, w, *, decay=0.9, momentum_decay=4e-3) -> Array:
    """Dozat 2016's look-ahead with the schedule mu; m decays with the constant (PyTorch, Keras)."""
    mu, mu_next = (decay * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    s["product"] = s.get("product", 1.0) * mu
    m = average(s, "m", g, decay)
    return mu_next * m / (1 - s["product"] * mu_next) + (1 - mu) * g / (1 - s["product"])


def ema(s, g, t, w, *, decay, debias=True) -> Array:
    """`v = b v + (1 - b) x`; divided by `1 - b^t` to debias it."""
    return average(s, "v", g, decay) / (given(s, decay) if debias else 1)


def scale_by_adagrad(s, g, t, w, *, observed=None, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True) -> Array:
    """Duchi, Hazan, Singer 2011, figure 1, diagonal: divide by the root of the sum of all g²."""
    s["s"] = s.get("s", initial_accumulator_value) + (g if observed is None else observed) ** 2
    return divide(g, np.sqrt(s["s"] + eps) if eps_in_sqrt else np.sqrt(s["s"]) + eps)


def scale_by_rms(
    s,
    g,
    t,
    w,
    *,
    observed=None,
    decay=0.999,
    eps=1e-8,
    debias=True,
    centered=False,
    eps_in_sqrt=False,
    eps_hat=False,
    eps_root=0.0,
    initial_scale=0.0,
    maximum=None,
) -> Array:
    """Divide by the root of an average of g²: RMSProp's, Adam's, AMSGrad's denominators and where they put eps.

    Centered as in Graves 2013, equations 38 to 41. `eps_hat`: the order of the end of section 2 of Kingma and Ba 2014.
    `maximum`: of the corrected v (optax), or of v itself, which is corrected then (PyTorch) or in the step (Keras).
    """
    x = g if observed is None else observed
    v, mean = average(s, "v", x**2, decay, initial_scale), average(s, "mean", x, decay)
    correction = given(s, decay) if debias else 1.0
    if maximum == "raw":
        v = s["largest"] = np.maximum(s.get("largest", 0.0), v)
    corrected = v / correction
    if maximum == "corrected":
        corrected = s["largest"] = np.maximum(s.get("largest", 0.0), corrected)
    if centered:
        corrected = not_negative(corrected - (mean / correction) ** 2)
    if eps_hat:
        return np.sqrt(correction) * divide(g, np.sqrt(v) + eps)
    if eps_in_sqrt:
        return divide(g, np.sqrt(corrected + eps))
    return divide(g, np.sqrt(corrected + eps_root) + eps)


def scale_by_adadelta(s, g, t, w, *, observed=None, rho=0.9, eps=1e-6) -> Array:
    """Zeiler 2012, algorithm 1, lines 4 to 6, without the sign."""
    square = average(s, "g2", (g if observed is None else observed) ** 2, rho)
    x = np.sqrt(s.get("x2", 0.0) + eps) / np.sqrt(square + eps) * g
    average(s, "x2", x**2, rho)
    return x


def scale_by_infinity_norm(s, g, t, w, *, observed=None, decay=0.999, eps=1e-8, eps_in_max=True) -> Array:
    """Kingma and Ba 2014, algorithm 2, which has no eps: added to abs g (PyTorch, optax), or to u (Keras)."""
    size = np.abs(g if observed is None else observed)
    s["u"] = np.maximum(decay * s.get("u", 0.0), size + eps if eps_in_max else size)
    return divide(g, s["u"] if eps_in_max else s["u"] + eps)


def scale_by_adam(
    s, g, t, w, *, observed=None, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False, eps_hat=False
) -> Array:
    """Kingma and Ba 2014, algorithm 1, the last line without its `w - alpha`."""
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1, nesterov=nesterov)
    x = g if observed is None else observed
    return scale_by_rms(memory(s, "v"), m, t, w, observed=x, decay=b2, eps=eps, eps_root=eps_root, eps_hat=eps_hat)


def scale_by_lion(s, g, t, w, *, b1=0.9, b2=0.99) -> Array:
    """Chen et al. 2023, algorithm 2: the sign of an average that weighs the newest more than the one carried on."""
    m = s.get("m", 0.0)
    average(s, "m", g, b2)
    return np.sign(b1 * m + (1 - b1) * g)


def scale_by_sign(s, g, t, w) -> Array:
    return np.sign(g)


def scale(s, g, t, w, *, step_size) -> Array:
    return step_size * g


def scale_by_learning_rate(s, g, t, w, *, learning_rate, flip_sign=True) -> Array:
    return (-1 if flip_sign else 1) * learning_rate * g


def scale_by_schedule(s, g, t, w, *, step_size_fn) -> Array:
    return step_size_fn * g


def identity(s, g, t, w) -> Array:
    return g


# A centered average of squares is a difference. Where a gradient is constant it is the rounding error of zero, so these
# are given a larger eps and compared where the transcription is determined; debiased, from the second step on.
CENTERED = 0.95

PARTS = [
    Record("identity", identity, peers=[optax("identity")]),
    Record(
        "scale_by_momentum",
        scale_by_momentum,
        {},
        {"nesterov": True},
        {"form": "average", "nesterov": True},
        {"form": "sum", "nesterov": True, "dampening": 0.3},
        {"decay": RISING, "nesterov": True},
        {"decay": 0.0},
        {"decay": RISING},
        {"form": "average"},
        {"form": "sum"},
        {"form": "sum", "dampening": FALLING},
        peers=[
            optax("ema", {"decay": 0.9}),
            optax("ema", {"decay": 0.9, "debias": False}, form="average"),
            optax("trace", {"decay": 0.9}, form="sum"),
            optax("trace", {"decay": 0.9, "nesterov": True}, form="sum", nesterov=True),
        ],
    ),
    Record(
        "scale_by_two_momenta",
        scale_by_two_momenta,
        {"start_step": 100},
        {"decay": RISING, "fast_decay": 0.5, "slow_decay": 0.9, "fast_weight": FALLING, "start_step": 3},
        {"start_step": 0, "nesterov": False},
    ),
    Record("ema_nesterov", ema_nesterov, {}, {"step_size": FALLING, "decay": RISING}),
    Record("scale_by_nadam_momentum", scale_by_nadam_momentum, {}, {"decay": 0.8, "momentum_decay": 1.0}),
    Record(
        "ema",
        ema,
        {"decay": 0.9},
        {"decay": 0.9, "debias": False},
        {"decay": RISING},
        peers=[optax("ema", {"decay": 0.9})],
    ),
    Record(
        "scale_by_adagrad",
        scale_by_adagrad,
        {},
        {"initial_accumulator_value": 0.0, "eps": 0.0, "eps_in_sqrt": False},
        {"initial_accumulator_value": 0.0, "eps": 0.0},
        {"initial_accumulator_value": 1.0, "eps": 1e-3, "eps_in_sqrt": False},
        peers=[optax("scale_by_rss")],
    ),
    Record(
        "scale_by_rms",
        scale_by_rms,
        {},
        {"decay": 0.9, "centered": True, "eps": 1e-3, "eps_in_sqrt": True, "initial_scale": 0.1},
        {"decay": 0.9, "maximum": "raw", "eps_hat": True, "eps": 1e-3},
        {"decay": RISING_B2, "maximum": "corrected", "eps_root": 1e-6},
        {"debias": False, "eps_in_sqrt": True, "eps": 0.0, "initial_scale": 0.1},
        {"decay": 0.0},
        {"decay": 0.9, "eps": 1e-4, "eps_in_sqrt": True, "debias": False},
        {"decay": RISING_B2, "eps_in_sqrt": True},
        {"initial_scale": 0.5, "decay": 0.99},
        {"eps_root": 1e-5},
        {"eps_hat": True, "eps": 1e-3},
        {"decay": 0.9, "maximum": "raw", "debias": False},
        {"decay": 0.9, "maximum": "raw", "eps_in_sqrt": True, "eps": 1e-3},
        {"decay": 0.9, "maximum": "corrected", "eps_in_sqrt": True, "eps": 1e-3},
        {"eps": 0.0},
        {"decay": 0.9, "centered": True, "eps": 1e-3, "debias": False, "eps_root": 1e-6},
        {"decay": 0.9, "centered": True, "eps": 1e-3, "eps_in_sqrt": True},
        at_least={1: CENTERED, 15: CENTERED, 16: CENTERED},
        first_step={1: 2, 16: 2},
        peers=[optax("scale_by_rms", {"decay": 0.999, "eps_in_sqrt": False, "bias_correction": True}, decay=0.999)],
    ),
    Record(
        "scale_by_adadelta",
        scale_by_adadelta,
        {},
        {"rho": 0.95, "eps": 1e-3},
        {"rho": RISING},
        peers=[optax("scale_by_adadelta")],
    ),
    Record(
        "scale_by_infinity_norm",
        scale_by_infinity_norm,
        {},
        {"decay": 0.9, "eps_in_max": False, "eps": 0.0},
        {"decay": 0.9, "eps": 1e-3},
        {"decay": 0.9, "eps": 1e-3, "eps_in_max": False},
        {"decay": RISING, "eps": 0.0},
    ),
    Record(
        "scale_by_adam",
        scale_by_adam,
        {},
        {"nesterov": True, "eps_root": 1e-6},
        {"b1": RISING, "b2": RISING_B2, "eps": 1e-3},
        {"eps_hat": True, "eps": 1e-3},
        peers=[optax("scale_by_adam")],
    ),
    Record("scale_by_lion", scale_by_lion, {}, {"b1": 0.5, "b2": 0.9}, peers=[optax("scale_by_lion")]),
    Record("scale_by_sign", scale_by_sign, peers=[optax("scale_by_sign")]),
    Record("scale", scale, {"step_size": -0.3}, peers=[optax("scale", {"step_size": -0.3})]),
    Record(
        "scale_by_learning_rate",
        scale_by_learning_rate,
        {"learning_rate": 0.3},
        {"learning_rate": FALLING, "flip_sign": False},
        {"learning_rate": FALLING},
        peers=[optax("scale_by_learning_rate", {"learning_rate": 0.1})],
    ),
    Record("scale_by_schedule", scale_by_schedule, {"step_size_fn": FALLING}),
]
