"""Muon and its kin once more: kernels are (in, out), and the bias goes elsewhere."""

from collections.abc import Callable

import numpy as np

from tests.records import streams
from tests.records.base import FALLING, RISING, Array, Record, average, memory
from tests.records.effects import MASK, add_decayed_weights
from tests.records.methods import adamw, nadamw
from tests.records.parts import scale_by_momentum

KJ = [(3.4445, -4.7750, 2.0315)] * 5
COEFFICIENTS = {
    "keller_jordan": KJ,
    "you": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    "polar_express": [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ],
}


def of_kernel(function: Callable[..., Array], g: Array, *others: Array) -> Array:
    """`function(kernel, ...)` for the kernel, (..., in, out); the bias as it is."""
    split = [streams.split(row)["dense"] for row in (g, *others)]
    made = function(*(tree["kernel"] for tree in split))
    return streams.flatten({"dense": {"kernel": made, "bias": split[0]["bias"]}}, g.ndim - 1)


def routed(kernel: Array, bias: Array) -> Array:
    """The kernel of one, the bias of another."""
    one, other = streams.split(kernel)["dense"], streams.split(bias)["dense"]
    return streams.flatten({"dense": {"kernel": one["kernel"], "bias": other["bias"]}}, kernel.ndim - 1)


def mt(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def frobenius(x: Array) -> Array:
    return np.sqrt((x**2).sum((-2, -1), keepdims=True))


def newton_schulz(x: Array, triples, eps, *, preconditioning="frobenius", eps_in_max=False, safety=1.0) -> Array:
    """Jordan 2024: x is scaled, then each step is x = a x + (b A + c A²) x, A = x xᵀ of the shorter side."""
    tall = x.shape[-2] > x.shape[-1]
    x = mt(x) if tall else x
    if preconditioning == "frobenius":
        size = safety * frobenius(x)
        x = x / (np.maximum(size, eps) if eps_in_max else size + eps)
    elif preconditioning == "spectral":
        x = x / (np.linalg.norm(x, 2, axis=(-2, -1), keepdims=True) + eps)
    elif preconditioning == "aol":  # Boissin et al. 2025, equation 4
        x = x / np.sqrt(np.maximum(np.abs(x @ mt(x)).sum(-1, keepdims=True), eps))
    else:  # Schatten-4
        x = x / np.sqrt(np.maximum(frobenius(x @ mt(x)), eps))
    for a, b, c in triples:
        gram = x @ mt(x)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return mt(x) if tall else x


def triples_of(name, steps=5):
    triples = COEFFICIENTS[name] if isinstance(name, str) else [name]
    return [*triples, *[triples[-1]] * (steps - len(triples))]


def orthogonalize(
    s, g, t, w, *, ns_coeffs="keller_jordan", ns_steps=5, eps=1e-8, adaptive=False, safety=None, **numbers
) -> Array:
    safety = safety or (1.02 if ns_coeffs == "polar_express" else 1.0)

    def one(x):
        u = newton_schulz(x, triples_of(ns_coeffs, ns_steps), eps, safety=safety, **numbers)
        return (x * u).sum((-2, -1), keepdims=True) * u if adaptive else u

    return of_kernel(one, g)


def scale_by_muon(s, g, t, w, *, beta=0.95, nesterov=True, form="debiased", weight_dimension_numbers=None, **numbers):
    m = scale_by_momentum(s, g, t, w, decay=beta, form=form, nesterov=nesterov)
    return orthogonalize({}, routed(m, g) if weight_dimension_numbers is None else m, t, w, **numbers)


def scale_by_fans(s, g, t, w, *, consistent_rms=None, at_least_one=True) -> Array:
    fan_in, fan_out = streams.SHAPES["dense"]["kernel"]
    ratio = np.sqrt(max(1, fan_out / fan_in) if at_least_one else fan_out / fan_in)
    factor = ratio if consistent_rms is None else consistent_rms * np.sqrt(max(fan_in, fan_out))
    return of_kernel(lambda x: factor * x, g)


def scale_by_shape(s, g, t, w, **numbers) -> Array:
    return scale_by_fans(s, g, t, w, **numbers)


def scale_by_neuron_rms(s, g, t, w, *, decay=0.95, eps=1e-10) -> Array:
    """Li et al. 2025, algorithm 1, lines 7 to 9; a neuron is a column here."""

    def one(x):
        v = average(s, "v", (x**2).mean(-2, keepdims=True), decay)
        scaled = x / (np.sqrt(v) + eps)
        return scaled * frobenius(x) / frobenius(scaled)

    return of_kernel(one, g)


def scale_by_dion2(
    s, g, t, w, *, fraction=0.25, ef_decay=0.95, ns_coeffs="polar_express", ns_steps=5, eps=1e-8
) -> Array:
    """Ahn et al. 2025, algorithm 1, of a kernel with fewer rows than columns."""
    safety = 1.02 if ns_coeffs == "polar_express" else 1.0

    def one(x):
        m = s.get("m", 0.0) + x
        count = int(np.ceil(fraction * x.shape[-2]))
        rows = np.argsort(-np.abs(m).sum(-1), axis=-1, kind="stable")[..., :count, None]
        made = newton_schulz(np.take_along_axis(m, rows, -2), triples_of(ns_coeffs, ns_steps), eps, safety=safety)
        u = np.zeros_like(x)
        np.put_along_axis(u, rows, made, -2)
        s["m"] = m.copy()
        np.put_along_axis(s["m"], rows, ef_decay * np.take_along_axis(m, rows, -2), -2)
        return u

    return of_kernel(one, g)


def scale_by_lmo(s, g, t, w, *, norm="spectral", normalized=True, at_least_one=False, eps=None, ns_steps=5) -> Array:
    """Pethick et al. 2025, table 3; the authors' code for eps."""
    fan_in, fan_out = streams.SHAPES["dense"]["kernel"]

    def spectral(x):
        scale = np.sqrt(fan_out / fan_in if normalized else fan_out)
        return (max(1, scale) if at_least_one else scale) * newton_schulz(x, triples_of(KJ[0], ns_steps), eps or 1e-7)

    def in_rms(x):
        return x / (np.sqrt((x**2).mean(-1, keepdims=True)) * (fan_in if normalized else 1) + (eps or 1e-8))

    def out_norm(x):
        size = np.sqrt((x**2).sum(-2, keepdims=True)) * (np.sqrt(fan_in) if normalized else 1)
        return x / (size + (eps or 1e-8))

    def rms(x):
        return x / (np.sqrt((x**2).mean((-2, -1), keepdims=True)) + (eps or 1e-8))

    signed = lambda x: np.sign(x) / (fan_in if normalized else 1)  # noqa: E731
    return of_kernel(
        {"spectral": spectral, "sign": signed, "in_rms": in_rms, "out_norm": out_norm, "rms": rms}[norm], g
    )


# Methods --------------------------------------------------------------------------------------------------------------


def muon(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    beta=0.95,
    nesterov=True,
    form="debiased",
    weight_decay=0.0,
    weight_decay_mask=None,
    consistent_rms=None,
    adam_b1=0.9,
    adam_b2=0.999,
    adam_eps_root=0.0,
    adam_weight_decay=0.0,
    adam_learning_rate=None,
    eps=1e-8,
    **numbers,
) -> Array:
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=beta, form=form, nesterov=nesterov)
    u = scale_by_fans({}, orthogonalize({}, m, t, w, eps=eps, **numbers), t, w, consistent_rms=consistent_rms)
    kernel = -learning_rate * add_decayed_weights({}, u, t, w, weight_decay=weight_decay, mask=weight_decay_mask)
    adam = nadamw if nesterov else adamw
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    arguments = {"b1": adam_b1, "b2": adam_b2, "eps": eps, "eps_root": adam_eps_root}
    bias = adam(memory(s, "adam"), g, t, w, learning_rate=rate, weight_decay=adam_weight_decay, **arguments)
    return routed(kernel, bias)


def normuon(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    beta=0.95,
    beta2=0.95,
    eps=1e-10,
    weight_decay=0.0,
    nesterov=True,
    ns_coeffs="keller_jordan",
    ns_eps=1e-7,
    consistent_rms=None,
    at_least_one=True,
    adam_learning_rate=None,
    adam_b1=0.9,
    adam_b2=0.999,
    adam_eps=1e-8,
    adam_weight_decay=0.0,
) -> Array:
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=beta, form="average", nesterov=nesterov)
    o = orthogonalize({}, m, t, w, ns_coeffs=ns_coeffs, eps=ns_eps)
    o = scale_by_neuron_rms(memory(s, "v"), o, t, w, decay=beta2, eps=eps)
    u = scale_by_fans({}, o, t, w, consistent_rms=consistent_rms, at_least_one=at_least_one)
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    arguments = {"b1": adam_b1, "b2": adam_b2, "eps": adam_eps, "weight_decay": adam_weight_decay}
    bias = adamw(memory(s, "adam"), g, t, w, learning_rate=rate, **arguments)
    return routed(-learning_rate * add_decayed_weights({}, u, t, w, weight_decay=weight_decay), bias)


def dion2(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    weight_decay=0.01,
    consistent_rms=None,
    adam_learning_rate=None,
    adam_b1=0.9,
    adam_b2=0.95,
    adam_eps=1e-8,
    adam_weight_decay=0.01,
    **numbers,
) -> Array:
    u = scale_by_dion2(memory(s, "m"), g, t, w, **numbers)
    u = scale_by_fans({}, u, t, w, consistent_rms=consistent_rms, at_least_one=False)
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    arguments = {"b1": adam_b1, "b2": adam_b2, "eps": adam_eps, "weight_decay": adam_weight_decay}
    bias = adamw(memory(s, "adam"), g, t, w, learning_rate=rate, **arguments)
    return routed(-learning_rate * add_decayed_weights({}, u, t, w, weight_decay=weight_decay), bias)


def scion(s, g, t, w, *, learning_rate, beta=0.9, radius=1.0, norm="auto", unconstrained=False, **numbers) -> Array:
    """Pethick et al. 2025, algorithms 1 (unconstrained) and 2."""
    m = scale_by_momentum(s, g, t, w, decay=beta, form="average")
    u = scale_by_lmo({}, m, t, w, norm="spectral" if norm == "auto" else norm, **numbers)
    if norm == "auto":
        bias = streams.split(m)["dense"]["bias"]
        scaled = bias / (np.sqrt((bias**2).mean(-1, keepdims=True)) + numbers.get("eps", 1e-8))
        kernel = streams.split(u)["dense"]["kernel"]
        u = streams.flatten({"dense": {"kernel": kernel, "bias": scaled}}, g.ndim - 1)
    return -learning_rate * (radius * u + (0 if unconstrained else w))


RATE = {"learning_rate": 0.02}
ORTHOGONAL = [
    Record(
        "orthogonalize",
        orthogonalize,
        {},
        {"ns_coeffs": "you", "eps": 1e-2, "adaptive": True},
        {"ns_coeffs": "polar_express"},
        {"preconditioning": "aol", "eps": 1e-3},
        {"preconditioning": "schatten"},
        {"preconditioning": "spectral"},
        {"ns_coeffs": (2.0, -1.5, 0.5), "ns_steps": 9, "eps": 10.0, "eps_in_max": True},
        {"safety": 1.1},
        laws=[{"dtype": "bfloat16"}],
        at_least=0.8,
        matrices=True,
    ),
    Record(
        "scale_by_muon",
        scale_by_muon,
        {},
        {"beta": RISING, "nesterov": False},
        {"form": "sum", "beta": 0.8, "eps": 1e-3, "safety": 1.1},
        laws=[{"mu_dtype": "bfloat16"}],
        at_least=0.8,
        matrices=True,
    ),
    Record("scale_by_fans", scale_by_fans, {}, {"consistent_rms": 0.2}, {"at_least_one": False}, matrices=True),
    Record("scale_by_shape", scale_by_shape, {}, {"consistent_rms": FALLING}, {"at_least_one": False}, matrices=True),
    Record("scale_by_neuron_rms", scale_by_neuron_rms, {}, {"decay": RISING, "eps": 1e-2}, at_least=0.8, matrices=True),
    Record(
        "scale_by_dion2",
        scale_by_dion2,
        {},
        {"fraction": 1.0, "ef_decay": RISING, "ns_coeffs": "keller_jordan", "eps": 1e-2},
        {"fraction": 0.5},
        at_least=0.8,
        matrices=True,
    ),
    Record(
        "scale_by_lmo",
        scale_by_lmo,
        {},
        {"normalized": False, "ns_steps": 3},
        {"at_least_one": True, "eps": 1e-2},
        {"norm": "sign"},
        {"norm": "in_rms"},
        {"norm": "in_rms", "normalized": False, "eps": 1e-2},
        {"norm": "out_norm"},
        {"norm": "out_norm", "normalized": False},
        {"norm": "rms"},
        at_least=0.8,
        matrices=True,
    ),
    Record(
        "muon",
        muon,
        RATE,
        {"learning_rate": FALLING, "beta": 0.9, "weight_decay": 0.1, "weight_decay_mask": MASK, "consistent_rms": 0.2},
        RATE | {"nesterov": False, "adam_learning_rate": FALLING, "adam_b1": 0.8, "adam_b2": 0.99, "eps": 1e-4},
        RATE | {"adam_eps_root": 1e-6, "adam_weight_decay": 0.1, "form": "average", "eps_in_max": True, "safety": 1.1},
        at_least=0.8,
        laws=[RATE | {"mu_dtype": "bfloat16"}],
    ),
    Record(
        "normuon",
        normuon,
        RATE,
        {"learning_rate": FALLING, "beta": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1, "nesterov": False},
        RATE | {"ns_coeffs": "polar_express", "ns_eps": 1e-3, "at_least_one": False, "adam_learning_rate": FALLING},
        RATE | {"consistent_rms": 0.2, "adam_b1": 0.8, "adam_b2": 0.9, "adam_eps": 1e-3, "adam_weight_decay": 0.1},
        at_least=0.8,
    ),
    Record(
        "dion2",
        dion2,
        RATE,
        {"learning_rate": FALLING, "fraction": 0.5, "ef_decay": 0.8, "weight_decay": 0.1, "adam_learning_rate": 0.1},
        RATE | {"consistent_rms": 0.2, "adam_b1": 0.8, "adam_b2": 0.9, "adam_eps": 1e-3, "adam_weight_decay": 0.1},
        RATE | {"ns_coeffs": "you", "eps": 1e-3},
        at_least=0.8,
    ),
    Record(
        "scion",
        scion,
        RATE,
        {"learning_rate": FALLING, "beta": RISING, "radius": 3.0, "unconstrained": True},
        RATE | {"at_least_one": True, "normalized": False, "ns_steps": 7, "eps": 1e-3},
        at_least=0.8,
    ),
]
