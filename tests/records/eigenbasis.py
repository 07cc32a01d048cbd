"""SOAP and its KL form, as the authors write them: m in the original basis, v sorted with the columns of the basis."""

import numpy as np

import gradtx
from tests.records import streams
from tests.records.base import FALLING, RISING, RISING_B2, Array, Record, given, memory


def renewed(a: Array, q: Array, order: Array) -> Array:
    """One step of orthogonal iteration, with the columns in this order."""
    return np.linalg.qr(a @ np.take_along_axis(q, order[..., None, :], -1))[0]


def matrix(
    s, g, k, t, *, b1, b2, eps, shampoo_beta, precondition_frequency, max_precond_dim, first_step, kl, whiten=False
) -> Array:
    """Vyas et al. 2024, algorithm 3 and the authors' code; `use` as Track 3's SOAP-H. kl: Lin et al. 2025."""
    b = b2 if shampoo_beta is None else shampoo_beta
    sides = {"L": ("...ik,...jk->...ij", -2), "R": ("...ki,...kj->...ij", -1)}
    sides = {name: value for name, value in sides.items() if g.shape[value[1]] <= max_precond_dim}

    def turned(x, back=False):
        for name, into in (("L", "...ji,...jk->...ik"), ("R", "...ij,...jk->...ik")):
            if name in sides:
                q = s[f"Q{name}"].swapaxes(-1, -2) if back else s[f"Q{name}"]
                x = np.einsum(into, q, x) if name == "L" else np.einsum(into, x, q)
        return x

    def along(name):
        """The eigenvalues of a side, lying so that they divide it."""
        if name not in sides:
            return 1.0
        values = s.setdefault(f"values {name}", np.full((*g.shape[:-2], g.shape[sides[name][1]]), 0.1))
        return values[..., :, None] if name == "L" else values[..., None, :]

    def observe():
        before, others = {name: along(name) for name in "LR"}, {"L": "R", "R": "L"}
        for name, (one, axis) in sides.items():
            x, other = g, others[name]
            if kl and t > 1 and other in sides:
                q = s[f"Q{other}"]
                x = (x @ q if other == "R" else q.swapaxes(-1, -2) @ x) / np.sqrt(before[other])
            seen = np.einsum(one, x, x) / (g.shape[-3 - axis] if kl else 1)
            s[name] = b * s.get(name, 0.0) + (1 - b) * seen
            if kl and t > 1:
                new = np.mean(turned(g) ** 2 / before[other], axis=-3 - axis)
                least = max(10, min(g.shape[axis], 4000)) ** -2.0
                s[f"values {name}"] = np.maximum(b * s[f"values {name}"] + (1 - b) * new, least)

    def refresh():
        for name, (_, axis) in sides.items():
            if f"Q{name}" not in s:
                s[f"Q{name}"] = np.linalg.eigh(s[name])[1][..., ::-1]
                continue
            q = s[f"Q{name}"]
            order = np.argsort(-np.einsum("...ij,...ik,...kj->...j", q, s[name], q), axis=-1)
            if kl:  # from left to right
                order = np.broadcast_to(np.arange(q.shape[-1]), order.shape)
            if "v" in s:
                s["v"] = np.take_along_axis(s["v"], order[..., :, None] if axis == -2 else order[..., None, :], axis)
            s[f"Q{name}"] = renewed(s[name], q, order)

    due = (t - 1) % precondition_frequency == 0
    if first_step == "use" and t == 1:
        observe()
    if first_step == "use" and due:
        refresh()
    u = np.zeros_like(g)
    if k:
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        if whiten:
            u = turned(turned(s["m"]) / (np.sqrt(along("L") * along("R")) + eps), back=True)
        else:
            s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * turned(g) ** 2
            u = turned(turned(s["m"]) / (np.sqrt(s["v"]) + eps), back=True)
    if first_step == "skip" or t > 1:
        observe()
    if first_step == "skip" and due:
        refresh()
    return u


def vector(s, g, k, *, b1, b2, eps) -> Array:
    """Adam, without the corrections."""
    if not k:
        return np.zeros_like(g)
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
    return s["m"] / (np.sqrt(s["v"]) + eps)


def soap(
    s,
    g,
    t,
    w,
    *,
    learning_rate=None,
    b1=0.95,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.01,
    shampoo_beta=None,
    precondition_frequency=10,
    max_precond_dim=10000,
    correct_bias=True,
    first_step="skip",
    kl=False,
) -> Array:
    """The direction, and with a learning rate the step; `w - lr λ w` follows the step."""
    k = t - 1 if first_step == "skip" else t
    parts, adam = streams.split(g)["dense"], {"b1": b1, "b2": b2, "eps": eps}
    options = {"precondition_frequency": precondition_frequency, "max_precond_dim": max_precond_dim}
    options |= {"shampoo_beta": shampoo_beta, "first_step": first_step, "kl": kl}
    made = {"kernel": matrix(memory(s, "matrix"), parts["kernel"], k, t, **adam, **options), "bias": parts["bias"]}
    if learning_rate is not None:
        made["bias"] = vector(memory(s, "vector"), parts["bias"], k, **adam)
    if k and correct_bias:
        correction = np.sqrt(given(memory(s, "2"), b2)) / given(memory(s, "1"), b1)
        made["kernel"] = made["kernel"] * correction
        made["bias"] = made["bias"] * (correction if learning_rate is not None else 1)
    u = streams.flatten({"dense": made}, g.ndim - 1)
    if learning_rate is None:
        return u
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return decay_afterwards({}, -learning_rate * u, t, w, **rates, skip_first=first_step == "skip")


def kl_shampoo(
    s,
    g,
    t,
    w,
    *,
    learning_rate=None,
    b1=0.9,
    b2=0.98,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    max_precond_dim=10000,
    first_step="skip",
) -> Array:
    """Lin et al. 2025; Adam with corrections on the bias."""
    k = t - 1 if first_step == "skip" else t
    parts, adam = streams.split(g)["dense"], {"b1": b1, "b2": b2, "eps": eps}
    options = {"precondition_frequency": precondition_frequency, "max_precond_dim": max_precond_dim}
    options |= {"shampoo_beta": None, "first_step": first_step, "kl": True, "whiten": True}
    made = {"kernel": matrix(memory(s, "matrix"), parts["kernel"], k, t, **adam, **options), "bias": parts["bias"]}
    if learning_rate is None:
        return streams.flatten({"dense": made}, g.ndim - 1)
    made["bias"] = vector(memory(s, "vector"), parts["bias"], k, **adam)
    if k:
        made["bias"] = made["bias"] * np.sqrt(given(memory(s, "2"), b2)) / given(memory(s, "1"), b1)
    u = -learning_rate * streams.flatten({"dense": made}, g.ndim - 1)
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return decay_afterwards({}, u, t, w, **rates, skip_first=first_step == "skip")


def decay_afterwards(s, g, t, w, *, learning_rate, weight_decay, skip_first=False) -> Array:
    """w <- w + u, then w <- w - lr λ w."""
    return g if skip_first and t == 1 else g - learning_rate * weight_decay * (w + g)


MIXED = 0.5
"""The share that can be compared: a basis mixes elements of very different sizes, whose small ones get rounded."""

EIGENBASIS = [
    Record(
        "decay_afterwards",
        decay_afterwards,
        {"learning_rate": 0.1, "weight_decay": 0.01},
        {"learning_rate": FALLING, "weight_decay": 0.5, "skip_first": True},
    ),
    Record(
        "in_eigenbasis",
        None,
        {"inner": gradtx.scale_by_momentum(), "every": 2},
        {"inner": gradtx.scale_by_momentum(), "every": 2, "refresh": "after", "kl": True, "whiten": True},
        matrices=True,
    ),
    Record(
        "scale_by_soap",
        soap,
        {"eps": 1.0},
        {"b1": RISING, "b2": 0.8, "eps": 1.0, "shampoo_beta": RISING_B2, "first_step": "use", "max_precond_dim": 5},
        {"eps": 100.0, "precondition_frequency": 7, "first_step": "use", "kl": True},
        at_least={0: MIXED, 1: MIXED, 2: MIXED},
        laws=[{"precondition_frequency": 3, "normalize_grads": True}],
        matrices=True,
    ),
    Record(
        "soap",
        soap,
        {"learning_rate": 0.1},
        {
            "learning_rate": FALLING,
            "b1": RISING,
            "b2": 0.9,
            "eps": 1.0,
            "weight_decay": 0.1,
            "precondition_frequency": 1,
            "correct_bias": False,
            "first_step": "use",
        },
        {"learning_rate": 0.1, "eps": 100.0, "shampoo_beta": 0.99, "kl": True, "precondition_frequency": 5},
        at_least={0: MIXED, 1: MIXED, 2: 0.25},
    ),
    Record(
        "scale_by_kl_shampoo",
        kl_shampoo,
        {"eps": 1.0},
        {"b1": RISING, "b2": RISING_B2, "eps": 100.0, "precondition_frequency": 1, "first_step": "use"},
        {"b1": 0.5, "b2": 0.9, "eps": 1.0, "max_precond_dim": 5},
        at_least={0: MIXED, 1: MIXED, 2: MIXED},
        matrices=True,
    ),
    Record(
        "kl_shampoo",
        kl_shampoo,
        {"learning_rate": 0.1, "eps": 1.0},
        {"learning_rate": FALLING, "b1": 0.5, "b2": 0.9, "eps": 10.0, "weight_decay": 0.1, "first_step": "use"},
        at_least={0: MIXED, 1: MIXED},
    ),
]
