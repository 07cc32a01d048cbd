"""Low-rank views of matrices, and the methods made of them. The projector is that of the first gradient in each run.

Singular vectors have no sign of their own. No run here depends on it: their projector stays, or what is inside keeps
squares alone. Random projectors are drawn by JAX; `tests/test_matrix_paths.py` compares runs with given ones.
"""

import numpy as np

import gradtx
from tests.records import streams
from tests.records.base import FALLING, RISING, RISING_B2, Array, Record, given, memory
from tests.records.effects import MASK, add_decayed_weights, limited
from tests.records.parts import scale_by_adam, scale_by_momentum, scale_by_rms


def shortened(shape, proj_type) -> int:
    """The axis of a matrix, counted from the last, that is projected."""
    rows, columns = shape[-2:]
    first = {"left": True, "right": False, "std": rows <= columns, "reverse_std": rows >= columns}
    return -2 if first[proj_type] else -1


def projector(s, g, t, rank, gap, proj_type) -> tuple[Array, int]:
    axis = shortened(g.shape, proj_type)
    if (t - 1) % gap == 0:
        u, _, vt = np.linalg.svd(g, full_matrices=False)
        s["p"] = u[..., :rank] if axis == -2 else vt[..., :rank, :].swapaxes(-1, -2)
    return s["p"], axis


def low_rank_of(matrix, other):
    """A method of matrices, and one of all others, on both leaves."""

    def step(s, g, t, w) -> Array:
        parts = streams.split(g)["dense"]
        made = {"kernel": matrix(memory(s, "matrix"), parts["kernel"], t, None)}
        made["bias"] = other(memory(s, "other"), parts["bias"], t, None)
        return streams.flatten({"dense": made}, g.ndim - 1)

    return step


def projected(s, g, t, inner, rank=128, update_proj_gap=200, proj_type="reverse_std") -> Array:
    """Zhao et al. 2024, algorithm 1: what comes back."""
    p, axis = projector(s, g, t, rank, update_proj_gap, proj_type)
    pt = p.swapaxes(-1, -2)
    return p @ inner(memory(s, "in"), pt @ g, t, None) if axis == -2 else inner(memory(s, "in"), g @ p, t, None) @ pt


def scaled(s, g, t, inner, rank=256, update_proj_gap=200, scale=1.0, scale_type="channel", proj_type="std") -> Array:
    """Zhu et al. 2024, algorithm 1, lines 3 to 6."""
    p, axis = projector(s, g, t, rank, update_proj_gap, proj_type)
    r = p.swapaxes(-1, -2) @ g if axis == -2 else g @ p
    a, over = inner(memory(s, "in"), r, t, None), axis if scale_type == "channel" else (-2, -1)
    sizes = [np.sqrt(np.sum(x**2, axis=over, keepdims=True)) for x in (a, r)]
    return g * sizes[0] / (sizes[1] + 1e-8) * np.sqrt(scale)


def galore(
    s,
    g,
    t,
    w,
    *,
    learning_rate=None,
    rank=128,
    update_proj_gap=200,
    scale=1.0,
    base_optimizer=None,
    weight_decay=0.0,
    mask=None,
    proj_type="reverse_std",
) -> Array:
    base = scale_by_adam if base_optimizer is None else scale_by_rms
    made = low_rank_of(
        lambda s, g, t, w: scale * projected(s, g, t, base, rank, update_proj_gap, proj_type),
        base,
    )(s, g, t, w)
    if learning_rate is None:
        return made
    return -learning_rate * add_decayed_weights({}, made, t, w, weight_decay=weight_decay, mask=mask)


def scale_by_bias_correction(s, g, t, w, *, b1=0.9, b2=0.999) -> Array:
    """Kingma and Ba 2014, end of section 2."""
    return g * np.sqrt(given(memory(s, "2"), b2)) / given(memory(s, "1"), b1)


def apollo(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    rank=256,
    update_proj_gap=200,
    scale=1.0,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    weight_decay=0.0,
    mask=None,
    max_growth=1.01,
    scale_type="channel",
    proj_type="std",
    proj="svd",
) -> Array:
    """Zhu et al. 2024, algorithm 1, with the bias corrections as a factor of the step, as in their code."""

    def inner(s, r, t, w):
        m = scale_by_momentum(memory(s, "m"), r, t, w, decay=b1, form="average")
        return scale_by_rms(memory(s, "v"), m, t, w, observed=r, decay=b2, eps=eps, debias=False)

    def matrix(s, g, t, w):
        u = scaled(memory(s, "p"), g, t, inner, rank, update_proj_gap, scale, scale_type, proj_type)
        u = u if max_growth is None else limited(memory(s, "growth"), u, (-2, -1), max_growth)
        return scale_by_bias_correction(memory(s, "c"), u, t, w, b1=b1, b2=b2)

    def other(s, g, t, w):
        return scale_by_adam(s, g, t, w, b1=b1, b2=b2, eps=eps, eps_hat=True)

    made = low_rank_of(matrix, other)(s, g, t, w)
    return -learning_rate * add_decayed_weights({}, made, t, w, weight_decay=weight_decay, mask=mask)


RMS, LARGE = gradtx.scale_by_rms(), 10_000
MIXED = 0.5
"""The share that can be compared: a projection mixes elements of very different sizes, whose small ones get rounded."""

LOW_RANK = [
    Record("scale_by_bias_correction", scale_by_bias_correction, {}, {"b1": RISING, "b2": RISING_B2}),
    Record("low_rank", None, {"inner": gradtx.scale_by_momentum(), "rank": 2, "update_proj_gap": 2}, matrices=True),
    Record(
        "scale_by_low_rank",
        None,
        {"inner": gradtx.scale_by_momentum(), "rank": 2, "update_proj_gap": 2},
        matrices=True,
    ),
    Record(
        "scale_by_galore",
        galore,
        {"rank": 3, "update_proj_gap": 7, "base_optimizer": RMS, "proj_type": "left"},
        {"rank": 2, "update_proj_gap": LARGE, "scale": FALLING, "proj_type": "std"},
        at_least={0: MIXED, 1: MIXED},
    ),
    Record(
        "galore",
        galore,
        {"learning_rate": 0.1, "rank": 2, "update_proj_gap": LARGE},
        {"learning_rate": FALLING, "rank": 2, "update_proj_gap": 7, "base_optimizer": RMS, "proj_type": "right"},
        {
            "learning_rate": 0.1,
            "rank": 2,
            "update_proj_gap": LARGE,
            "scale": 0.25,
            "weight_decay": 0.01,
            "mask": MASK,
            "proj_type": "std",
        },
        at_least={0: MIXED, 1: MIXED, 2: MIXED},
    ),
    Record(
        "apollo",
        apollo,
        {"learning_rate": 0.1, "rank": 2, "update_proj_gap": LARGE, "proj": "svd"},
        {
            "learning_rate": FALLING,
            "rank": 2,
            "update_proj_gap": LARGE,
            "scale": 4.0,
            "b1": 0.8,
            "b2": 0.9,
            "eps": 1e-3,
            "weight_decay": 0.01,
            "mask": MASK,
            "proj": "svd",
            "scale_type": "tensor",
            "proj_type": "reverse_std",
            "max_growth": 1.2,
        },
        {"learning_rate": 0.1, "rank": 2, "update_proj_gap": LARGE, "proj": "svd", "max_growth": None},
        at_least={0: MIXED, 2: MIXED},
        laws=[{"learning_rate": 0.1, "rank": 2, "update_proj_gap": 2}],
    ),
    Record("apollo_mini", None, {"learning_rate": 0.1, "update_proj_gap": 2}),
]
