"""Methods that measure the curvature. It is that of one function of the params, whose Hessian is diagonal.

Hutchinson's estimate is then the diagonal itself, whatever z = ±1 is drawn. `tests/curvature` has other Hessians.
"""

import numpy as np

from tests.records.base import FALLING, RISING, RISING_B2, Array, Record, average, given, memory
from tests.records.effects import MASK, add_decayed_weights
from tests.records.parts import scale_by_momentum


def hessian(w: Array) -> Array:
    """The derivative of `tests.running.slope`: between -1 and 1, and positive where |w| < 1."""
    return (1 - w**2) / (1 + w**2)


def at_drawn_labels(w: Array) -> Array:
    """`tests.running.slope_at_labels`, whatever the key."""
    return w / (1 + w**2) + 0.5


def scale_by_hessian_diagonal(
    s,
    g,
    t,
    w,
    *,
    decay=0.99,
    eps=1e-8,
    gamma=0.01,
    clip_threshold=1.0,
    update_interval=10,
    estimator="hutchinson",
    batch_size=None,
) -> Array:
    """optax.contrib.sophia: `clip(m / max(gamma h, eps))`; SophiaG: `sign(m) min(|m| / (rho bs h + eps), 1)`.

    Both use h before they renew it; SophiaG keeps the average of squares without the batch size.
    """
    limit, h = np.inf if clip_threshold is None else clip_threshold, s.get("h", 0.0)
    size = np.maximum(gamma * h, eps) if estimator == "hutchinson" else gamma * batch_size * h + eps
    if (t - 1) % update_interval == 0:
        average(s, "h", hessian(w) if estimator == "hutchinson" else at_drawn_labels(w) ** 2, decay)
    return np.sign(g) * np.minimum(np.abs(g) / size, limit)


def scale_by_sophia(s, g, t, w, *, b1=0.965, b2=0.99, **numbers) -> Array:
    """Liu et al. 2023, algorithm 3: m corrected with Hutchinson's estimate only."""
    form = "average" if "estimator" in numbers else "debiased"
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1, form=form)
    return scale_by_hessian_diagonal(memory(s, "h"), m, t, w, decay=b2, **numbers)


def sophia(s, g, t, w, *, learning_rate, weight_decay=1e-4, mask=None, **numbers) -> Array:
    """Its last two lines: `w <- w - lr weight_decay w; w <- w - lr u`."""
    u = scale_by_sophia(s, g, t, w, **numbers)
    return -learning_rate * add_decayed_weights({}, u, t, w, weight_decay=weight_decay, mask=mask)


def scale_by_hessian_rms(s, g, t, w, *, decay=0.999, eps=1e-4, hessian_power=1.0, update_interval=1) -> Array:
    """Yao et al. 2021, algorithm 1: `m / (sqrt(v̂)^k + eps)`, v of the squared diagonal; corrected by its estimates."""
    if (t - 1) % update_interval == 0:
        average(s, "v", hessian(w) ** 2, decay)
        s["given"] = given(s, decay)
    return g / (np.sqrt(s["v"] / s["given"]) ** hessian_power + eps)


def scale_by_adahessian(s, g, t, w, *, b1=0.9, b2=0.999, **numbers) -> Array:
    """The same of the corrected average of gradients."""
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1)
    return scale_by_hessian_rms(memory(s, "v"), m, t, w, decay=b2, **numbers)


def adahessian(s, g, t, w, *, learning_rate=0.15, weight_decay=0.0, mask=None, **numbers) -> Array:
    u = scale_by_adahessian(s, g, t, w, **numbers)
    return -learning_rate * add_decayed_weights({}, u, t, w, weight_decay=weight_decay, mask=mask)


BARTLETT = {"estimator": "gauss_newton_bartlett", "batch_size": 8.0}
WIDE = {"gamma": 1.0, "eps": 1e-3, "update_interval": 3}
"""Numbers with which the quotient is often not clipped."""

STABLE = 0.99
"""The share of the updates whose last digits do not depend on rounding: a small m is divided by eps."""

CURVATURE = [
    Record(
        "scale_by_hessian_diagonal",
        scale_by_hessian_diagonal,
        {"gamma": 1.0},
        BARTLETT,
        {"decay": RISING_B2, "clip_threshold": 3.0} | WIDE,
        {"decay": 0.9, "clip_threshold": None, "batch_size": FALLING} | {"estimator": BARTLETT["estimator"]} | WIDE,
        at_least=STABLE,
        laws=[{"distribution": "normal"}, {"key": 1}],
    ),
    Record(
        "scale_by_sophia",
        scale_by_sophia,
        {},
        BARTLETT | {"gamma": 0.04},
        {"b1": RISING, "b2": 0.9, "clip_threshold": 3.0} | WIDE,
        {"b1": 0.9, "b2": RISING_B2, "clip_threshold": FALLING} | BARTLETT | WIDE,
        {"b2": 0.9, "batch_size": 2.0, "estimator": BARTLETT["estimator"]},
        at_least=STABLE,
        laws=[{"mu_dtype": "bfloat16"}],
    ),
    Record(
        "sophia",
        sophia,
        {"learning_rate": 0.1},
        {"learning_rate": 0.01, "eps": 1e-15, "gamma": 0.04, "weight_decay": 0.1} | BARTLETT,
        {"learning_rate": FALLING, "b1": 0.9, "b2": 0.9, "weight_decay": FALLING, "mask": MASK, "clip_threshold": 2.0}
        | WIDE,
        {"learning_rate": 0.1, "batch_size": 2.0, "estimator": BARTLETT["estimator"]},
        at_least=STABLE,
        laws=[{"learning_rate": 0.1, "mu_dtype": "bfloat16"}],
    ),
    Record(
        "scale_by_hessian_rms",
        scale_by_hessian_rms,
        {},
        {"decay": RISING_B2, "eps": 1e-2, "hessian_power": 0.5, "update_interval": 3},
        at_least=STABLE,
        laws=[{"average_kernels": False}],
    ),
    Record(
        "scale_by_adahessian",
        scale_by_adahessian,
        {},
        {"b1": RISING, "b2": 0.9, "eps": 1e-2, "hessian_power": 0.5, "update_interval": 3},
        at_least=STABLE,
        laws=[{"mu_dtype": "bfloat16"}],
    ),
    Record(
        "adahessian",
        adahessian,
        {},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1, "mask": MASK},
        {"hessian_power": 0.5, "update_interval": 3},
        at_least=STABLE,
        laws=[{"mu_dtype": "bfloat16"}],
    ),
]
