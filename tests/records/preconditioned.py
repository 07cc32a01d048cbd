"""Shampoo and PSGD-Kron. What is random has no transcription: its paths are in `tests/golden/matrices.json`."""

import numpy as np

from tests.records.base import FALLING, Array, Record, average, given, memory
from tests.records.effects import each_leaf


def inverse_root(a: Array, exponent: float, eps: float) -> Array:
    """By eigenvalues, of which the smallest is shifted to 0 if it is negative, plus eps."""
    values, vectors = np.linalg.eigh(a)
    values = values - np.minimum(values.min(-1, keepdims=True), 0) + eps
    return np.einsum("...ij,...j,...kj->...ik", vectors, values**-exponent, vectors)


def shampoo(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    b1=0.9,
    b2=1.0,
    eps=1e-12,
    weight_decay=0.0,
    precondition_frequency=1,
    start_preconditioning_step=None,
    exponent=None,
    debias=True,
    max_preconditioner_dim=1024,
) -> Array:
    """Shi et al. 2023, algorithm 2; a vector has one factor, and the root of its Gram matrix."""
    f = precondition_frequency
    start = f if start_preconditioning_step is None else start_preconditioning_step
    m = average(s, "m", g, b1) / (given(memory(s, "b1"), b1) if debias else 1)
    weight = given(memory(s, "b2"), b2) if debias and b2 < 1 else 1

    def at_leaf(g, m, axes):
        own, vector = memory(s, str(len(axes))), len(axes) == 1
        g, m = (x[..., None, :] if vector else x for x in (g, m))
        for side, one in (("right", "...ki,...kj->...ij"), ("left", "...ik,...jk->...ij"))[: 1 if vector else 2]:
            own[side] = b2 * own.get(side, 0.0) + (1 if b2 == 1 else 1 - b2) * np.einsum(one, g, g)
            if t == start or (t > start and t % f == 0):
                power = (0.5 if vector else 0.25) if exponent is None else exponent
                own[f"{side} root"] = inverse_root(own[side] / weight, power, eps)
        if "right root" in own:
            m = m @ own["right root"] if vector else own["left root"] @ m @ own["right root"]
        return m[..., 0, :] if vector else m

    return -learning_rate * (each_leaf(at_leaf, g, m) + weight_decay * w)


PRECONDITIONED = [
    Record("scale_by_shampoo", None, {"eps": 1.0}, {"eps": 1.0, "b2": 0.9, "max_preconditioner_dim": 4}, matrices=True),
    Record(
        "shampoo",
        shampoo,
        {"learning_rate": 0.1, "eps": 1.0},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps": 100.0, "precondition_frequency": 3, "weight_decay": 0.1},
        {"learning_rate": FALLING, "b2": 0.9, "eps": 1.0, "debias": False, "exponent": 0.3},
        at_least={0: 0.5, 1: 0.5, 2: 0.5},
    ),
    Record(
        "scale_by_kron", None, {}, {"memory_save_mode": "one_diag"}, {"memory_save_mode": "all_diag"}, matrices=True
    ),
    Record("kron", None, {"learning_rate": 0.1}, {"learning_rate": 0.1, "max_rms": None}),
]
