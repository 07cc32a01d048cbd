"""Steps measured by the length of the matrix once more, with dot products of the whole matrices."""

import numpy as np

from tests.records.base import FALLING, Array, Record, Scheduled
from tests.records.orthogonal import frobenius, of_kernel


def inner(x: Array, y: Array) -> Array:
    return (x * y).sum((-2, -1), keepdims=True)


def hyperball(s, g, t, w, *, learning_rate) -> Array:
    """Results 4 and 5 of track 3: a step of lr times the length of w, then back to that length."""

    def one(g, w):
        n = w - learning_rate * g * frobenius(w) / frobenius(g)
        return n / frobenius(n) * frobenius(w) - w

    return of_kernel(one, g, w)


def pin_radius(s, g, t, w, *, learning_rate, weight_decay=0.0) -> Array:
    """Results 29 and 46 of track 3."""

    def one(g, w):
        target = frobenius(w) - learning_rate * inner(g, w) / frobenius(w)
        new = w - learning_rate * g
        new = new * np.maximum(target, 0) / frobenius(new)
        return new * (1 - learning_rate * weight_decay * (g * w > 0)) - w

    return of_kernel(one, g, w)


def brake_radius(s, g, t, w, *, outward=0.5, inward=1.0) -> Array:
    """Result 29 of track 3."""

    def one(g, w):
        coefficient = inner(g, w) / inner(w, w)
        radial = coefficient * w
        return g - radial + np.where(coefficient < 0, outward, inward) * radial

    return of_kernel(one, g, w)


def floor_updates(s, g, t, w, *, floor, per_output=True) -> Array:
    """Results 9 and 46 of track 3; a row of theirs is a column here."""
    axes = -2 if per_output else (-2, -1)

    def one(g, w):
        size = np.sqrt((g**2).sum(axes, keepdims=True))
        least = floor * np.sqrt((w**2).sum(axes, keepdims=True))
        return g * np.where(size > 0, np.maximum(1, least / np.where(size > 0, size, 1)), 1)

    return of_kernel(one, g, w)


RATE = {"learning_rate": 0.02}
SMALL = Scheduled("inverse_time_schedule", (5e-4, 0.01))  # so that no step along w is as long as w
RADIUS = [
    Record("qk_clip", None, {}, matrices=True),  # needs the logits: tests/matrices/test_attention.py
    Record("hyperball", hyperball, RATE, {"learning_rate": FALLING}, at_least=0.8, matrices=True),
    Record(
        "pin_radius",
        pin_radius,
        {"learning_rate": 3e-4},
        {"learning_rate": SMALL, "weight_decay": 0.1},
        {"learning_rate": 3e-4, "weight_decay": FALLING},
        at_least=0.9,
        tolerance=1e-11,
        matrices=True,
    ),
    Record(
        "brake_radius",
        brake_radius,
        {},
        {"outward": 0.0, "inward": FALLING},
        {"inward": 0.5},
        at_least=0.8,
        matrices=True,
    ),
    Record(
        "floor_updates",
        floor_updates,
        {"floor": 0.01},
        {"floor": FALLING, "per_output": False},
        {"floor": FALLING},
        at_least=0.8,
        matrices=True,
    ),
]
