"""Clipping, decay, and what goes by layers. What is about one leaf is cut out of the vector by `each_leaf`."""

from collections.abc import Callable

import numpy as np

from tests.records import streams
from tests.records.base import FALLING, Array, Record, Scheduled, memory, optax


def each_leaf(function: Callable[..., Array], *rows: Array) -> Array:
    """`function(leaf, ..., own axes of the leaf)` for every leaf."""
    leading = rows[0].ndim - 1
    trees = [streams.split(row)["dense"] for row in rows]
    parts = {}
    for name, shape in streams.SHAPES["dense"].items():
        parts[name] = function(*(tree[name] for tree in trees), tuple(range(leading, leading + len(shape))))
    return streams.flatten({"dense": parts}, leading)


def length(x: Array, axes: tuple[int, ...]) -> Array:
    return np.sqrt(np.sum(x**2, axis=axes, keepdims=True))


def clip(s, g, t, w, *, max_delta) -> Array:
    return np.clip(g, -max_delta, max_delta)


def clip_by_global_norm(s, g, t, w, *, max_norm) -> Array:
    """Pascanu, Mikolov, Bengio 2013, algorithm 1."""
    norm = length(g, (-1,))
    return np.where(norm > max_norm, g * max_norm / norm, g)


def clip_by_leaf_norm(s, g, t, w, *, max_norm) -> Array:
    """The same leaf by leaf."""
    return each_leaf(lambda u, axes: u * np.minimum(1, max_norm / length(u, axes)), g)


def clip_by_block_rms(s, g, t, w, *, threshold) -> Array:
    """Shazeer and Stern 2018, section 6: u / max(1, RMS(u) / d)."""
    return each_leaf(lambda u, axes: u / np.maximum(1, np.sqrt((u**2).mean(axes, keepdims=True)) / threshold), g)


def limited(own, u, axes, max_growth=1.01, eps=1e-8) -> Array:
    """Chen et al. 2024 (Fira), section 4.3: the norm grows by at most a factor at each step, unless it was zero."""
    size = length(u, axes)
    before = own.get("size", np.zeros_like(size))
    own["size"] = np.where(before > 0, np.minimum(size, max_growth * (before + eps)), size)
    return u * np.where(size > 0, own["size"] / np.where(size > 0, size, 1), 1)


def clip_by_norm_growth(s, g, t, w, **numbers) -> Array:
    """The same leaf by leaf."""
    return each_leaf(lambda u, axes: limited(memory(s, str(len(axes))), u, axes, **numbers), g)


def adaptive_grad_clip(s, g, t, w, *, clipping, eps=1e-3) -> Array:
    """Brock et al. 2021, equations 2 and 3; a kernel is (inputs, outputs), a unit one of its columns."""

    def clipped(g, w, axes):
        inputs = axes[:-1] or axes
        limit, norm = clipping * np.maximum(length(w, inputs), eps), length(g, inputs)
        return np.where(norm > limit, limit / np.where(norm > 0, norm, 1) * g, g)

    return each_leaf(clipped, g, w)


def clip_by_percentile(s, g, t, w, *, percentile, window=1000) -> Array:
    """Seetharaman et al. 2020, algorithm 1, with the last norms in place of all."""
    s["norms"] = [*s.get("norms", []), length(g, (-1,))][-window:]
    return g * np.minimum(1.0, np.percentile(s["norms"], percentile, axis=0) / s["norms"][-1])


def add_decayed_weights(
    s, g, t, w, *, weight_decay=0.0, mask=None, cautious=False, toward_initial=False, flip_sign=False
) -> Array:
    """Chen et al. 2025, algorithm 1; Li, Grandvalet, Davoine 2018, equation 2.

    Theirs is `x <- x - lr (u + wd 1[u x >= 0] x)`; with flip_sign g is -lr u already, and wd stands alone.
    """
    x = w - s.setdefault("initial", w) if toward_initial else w
    u = -g if flip_sign else g
    decayed = weight_decay * x * (u * x >= 0 if cautious else 1)
    direction = u + streams.masked(mask, decayed, 0.0)
    return -direction if flip_sign else direction


def centralize(s, g, t, w, *, output_axis=0) -> Array:
    """Yong et al. 2020, equation 1: from each column of a weight matrix its mean; outputs are the columns or rows."""

    def centered(u, axes):
        if len(axes) < 2:
            return u
        return u - u.mean(axis=axes[1] if output_axis == 0 else axes[0], keepdims=True)

    return each_leaf(centered, g)


def trusted(u: Array, w: Array, axes: tuple[int, ...], least=0.0, coefficient=1.0, eps=0.0) -> Array:
    """You et al. 2019: `φ(|w|) / |u|`, 1 where one of them is 0."""
    weights, size = np.maximum(length(w, axes), least), np.maximum(length(u, axes), least)
    usable = (weights > 0) & (size > 0)
    return np.where(usable, coefficient * weights / (np.where(usable, size, 1.0) + eps), 1.0) * u


def scale_by_trust_ratio(s, g, t, w, *, min_norm=0.0, trust_coefficient=1.0, eps=0.0, mask=None) -> Array:
    ratio = each_leaf(lambda g, w, axes: trusted(g, w, axes, min_norm, trust_coefficient, eps), g, w)
    return streams.masked(mask, ratio, g)


def reduce_on_plateau(
    values: list[float],
    *,
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
) -> list[float]:
    """The scale at each step. PyTorch's ReduceLROnPlateau in words, with optax's count of the bad ones."""
    scale, best, bad, resting, waiting = 1.0, np.inf, 0, 0, []
    scales = []
    for value in values:
        waiting.append(value)
        if len(waiting) == accumulation_size:
            mean, waiting = np.mean(waiting), []
            improved = mean < best * (1 - rtol) - atol
            best = mean if improved else best
            if resting:
                resting, bad = resting - 1, 0
            else:
                bad = 0 if improved else bad + 1
                if bad == patience:
                    scale, bad, resting = scale * factor, 0, cooldown
                scale = max(scale, min_scale)
        scales.append(scale)
    return scales


MASK = "*kernel"
CAUTIOUS = 0.95  # whether an element decays may hang on the last bit of a sign

EFFECTS = [
    Record("clip", clip, {"max_delta": 0.5}, peers=[optax("clip", {"max_delta": 0.5})]),
    Record(
        "clip_by_global_norm",
        clip_by_global_norm,
        {"max_norm": 50.0},
        {"max_norm": 1e-3},
        peers=[optax("clip_by_global_norm", {"max_norm": 50.0})],
    ),
    Record("clip_by_leaf_norm", clip_by_leaf_norm, {"max_norm": 50.0}, {"max_norm": FALLING}),
    Record(
        "clip_by_block_rms",
        clip_by_block_rms,
        {"threshold": 10.0},
        {"threshold": FALLING},
        peers=[optax("clip_by_block_rms", {"threshold": 10.0})],
    ),
    Record("clip_by_norm_growth", clip_by_norm_growth, {}, {"max_growth": FALLING, "eps": 1.0}),
    Record(
        "adaptive_grad_clip",
        adaptive_grad_clip,
        {"clipping": 0.01},
        {"clipping": FALLING, "eps": 2.0},
        peers=[
            optax("adaptive_grad_clip", {"clipping": 0.01}),
            optax("adaptive_grad_clip", {"clipping": 0.1, "axis": -1}),
        ],
        laws=[{"clipping": 0.1, "axis": ()}],
    ),
    Record(
        "clip_by_percentile",
        clip_by_percentile,
        {"percentile": 10.0},
        {"percentile": Scheduled("linear_schedule", (5.0, 95.0, 300)), "window": 37},
    ),
    Record(
        "add_decayed_weights",
        add_decayed_weights,
        {"weight_decay": 0.01},
        {"weight_decay": FALLING, "toward_initial": True, "cautious": True, "mask": MASK},
        {"weight_decay": FALLING, "mask": MASK},
        {"weight_decay": 0.01, "cautious": True},
        {"weight_decay": 0.01, "cautious": True, "flip_sign": True, "mask": MASK},
        {"weight_decay": FALLING, "flip_sign": True},
        {"weight_decay": 0.01, "toward_initial": True, "flip_sign": True},
        at_least={0: 0.99, 1: CAUTIOUS, 2: 0.99, 3: CAUTIOUS, 4: CAUTIOUS, 5: CAUTIOUS, 6: CAUTIOUS},
        peers=[optax("add_decayed_weights", {"weight_decay": 0.01, "mask": streams.KERNELS})],
    ),
    Record("centralize", centralize, {}, {"output_axis": -1}, peers=[optax("centralize")]),
    Record(
        "scale_by_trust_ratio",
        scale_by_trust_ratio,
        {"trust_coefficient": 0.01},
        {"trust_coefficient": FALLING, "eps": 0.1, "min_norm": 2.0, "mask": MASK},
        peers=[optax("scale_by_trust_ratio", {"min_norm": 2.0, "trust_coefficient": 0.01, "eps": 0.1})],
    ),
    Record(
        "add_noise",
        None,  # what is drawn is JAX's: optax's add_noise draws the same (tests/test_equations.py)
        {"eta": 0.3, "gamma": 0.55, "key": 7},
    ),
    Record(
        "reduce_on_plateau", None, {}, laws=[{"patience": 1, "cooldown": 1, "accumulation_size": 2, "min_scale": 0.02}]
    ),
]
