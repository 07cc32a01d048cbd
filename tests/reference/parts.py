"""The transforms that the named methods are made of: each turns a gradient into an update, without a learning rate."""

from collections.abc import Sequence

import numpy as np

from .steps import Number, at, divide, next_power, not_negative, power

Array = np.ndarray


def scale_by_momentum(
    params: Array,
    gradients: Sequence[Array],
    *,
    decay: Number = 0.9,
    form: str = "debiased",
    nesterov: bool = False,
    dampening: Number = 0.0,
) -> list[Array]:
    """An average of past gradients, the same corrected for its zero start, or a decayed sum."""
    m = np.zeros_like(params)
    updates = []
    for t, g in enumerate(gradients, start=1):
        b = at(decay, t)
        if form == "sum":
            kept = 1.0 if t == 1 else 1.0 - at(dampening, t)
            m = b * m + kept * g
            updates.append(kept * g + b * m if nesterov else m)
            continue
        m = b * m + (1 - b) * g
        if form == "average":
            updates.append(b * m + (1 - b) * g if nesterov else m)
        elif nesterov:
            updates.append(b * m / (1 - next_power(decay, t)) + (1 - b) * g / (1 - power(decay, t)))
        else:
            updates.append(m / (1 - power(decay, t)))
    return updates


def scale_by_nadam_momentum(
    params: Array, gradients: Sequence[Array], *, decay: float = 0.9, momentum_decay: float = 4e-3
) -> list[Array]:
    """Dozat 2016's look-ahead with the schedule mu; m decays with the constant (PyTorch, Keras)."""
    m = np.zeros_like(params)
    product = 1.0
    updates = []
    for t, g in enumerate(gradients, start=1):
        mu = decay * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = decay * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        product = product * mu
        m = decay * m + (1 - decay) * g
        updates.append(mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product))
    return updates


def ema(params: Array, gradients: Sequence[Array], *, decay: Number, debias: bool = True) -> list[Array]:
    """The exponentially weighted average: `v_t = b v_{t-1} + (1 - b) x_t`; divided by `1 - b^t` to debias it."""
    v = np.zeros_like(params)
    updates = []
    for t, x in enumerate(gradients, start=1):
        v = at(decay, t) * v + (1 - at(decay, t)) * x
        updates.append(v / (1 - power(decay, t)) if debias else v)
    return updates


def scale_by_adagrad(
    params: Array,
    gradients: Sequence[Array],
    *,
    initial_accumulator_value: float = 0.1,
    eps: Number = 1e-7,
    eps_in_sqrt: bool = True,
) -> list[Array]:
    s = np.full_like(params, initial_accumulator_value)
    updates = []
    for t, g in enumerate(gradients, start=1):
        s = s + g**2
        updates.append(divide(g, np.sqrt(s + at(eps, t)) if eps_in_sqrt else np.sqrt(s) + at(eps, t)))
    return updates


def scale_by_rms(
    params: Array,
    gradients: Sequence[Array],
    *,
    decay: Number = 0.999,
    eps: Number = 1e-8,
    debias: bool = True,
    centered: bool = False,
    eps_in_sqrt: bool = False,
    eps_hat: bool = False,
    eps_root: Number = 0.0,
    initial_scale: float = 0.0,
    maximum: str | None = None,
) -> list[Array]:
    """Divide by the root of an average of g^2: RMSProp's, Adam's, AMSGrad's denominators and where they put eps."""
    v = np.full_like(params, initial_scale)
    m = np.zeros_like(params)
    largest = np.zeros_like(params)
    updates = []
    for t, g in enumerate(gradients, start=1):
        b, e = at(decay, t), at(eps, t)
        v = b * v + (1 - b) * g**2
        m = b * m + (1 - b) * g
        correction = 1 - power(decay, t) if debias else 1.0
        if maximum == "raw":
            largest = np.maximum(largest, v)
            v_hat = largest / correction
        elif maximum == "corrected":
            largest = np.maximum(largest, v / correction)
            v_hat = largest
        else:
            v_hat = v / correction
        if centered:
            v_hat = not_negative(v_hat - (m / correction) ** 2)
        if eps_hat:
            # Kingma and Ba's order: the root of the uncorrected v, the correction in the step.
            raw = largest if maximum == "raw" else v
            updates.append(np.sqrt(correction) * divide(g, np.sqrt(raw) + e))
        elif eps_in_sqrt:
            updates.append(divide(g, np.sqrt(v_hat + e)))
        else:
            updates.append(divide(g, np.sqrt(v_hat + at(eps_root, t)) + e))
    return updates


def scale_by_adadelta(
    params: Array, gradients: Sequence[Array], *, rho: Number = 0.9, eps: Number = 1e-6
) -> list[Array]:
    """Zeiler 2012, algorithm 1, lines 4 to 6, without the sign."""
    average_g2 = np.zeros_like(params)
    average_x2 = np.zeros_like(params)
    updates = []
    for t, g in enumerate(gradients, start=1):
        r, e = at(rho, t), at(eps, t)
        average_g2 = r * average_g2 + (1 - r) * g**2
        x = np.sqrt(average_x2 + e) / np.sqrt(average_g2 + e) * g
        average_x2 = r * average_x2 + (1 - r) * x**2
        updates.append(x)
    return updates


def scale_by_infinity_norm(
    params: Array,
    gradients: Sequence[Array],
    *,
    decay: Number = 0.999,
    eps: Number = 1e-8,
    eps_in_max: bool = True,
) -> list[Array]:
    """Kingma and Ba 2014, algorithm 2: divide by the decayed maximum of abs g."""
    u = np.zeros_like(params)
    updates = []
    for t, g in enumerate(gradients, start=1):
        b, e = at(decay, t), at(eps, t)
        u = np.maximum(b * u, np.abs(g) + e if eps_in_max else np.abs(g))
        updates.append(divide(g, u if eps_in_max else u + e))
    return updates


def scale_by_adam(
    params: Array,
    gradients: Sequence[Array],
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    nesterov: bool = False,
    eps_hat: bool = False,
) -> list[Array]:
    """Kingma and Ba 2014, algorithm 1, the last line without its `w - alpha`."""
    m, v = np.zeros_like(params), np.zeros_like(params)
    updates = []
    for t, g in enumerate(gradients, start=1):
        beta1, beta2, e = at(b1, t), at(b2, t), at(eps, t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        if nesterov:
            m_hat = beta1 * m / (1 - next_power(b1, t)) + (1 - beta1) * g / (1 - power(b1, t))
        else:
            m_hat = m / (1 - power(b1, t))
        if eps_hat:
            updates.append(np.sqrt(1 - power(b2, t)) * divide(m_hat, np.sqrt(v) + e))
        else:
            updates.append(divide(m_hat, np.sqrt(v / (1 - power(b2, t)) + at(eps_root, t)) + e))
    return updates


def scale_by_lion(params: Array, gradients: Sequence[Array], *, b1: Number = 0.9, b2: Number = 0.99) -> list[Array]:
    """Chen et al. 2023, algorithm 2: b1 mixes for the sign, b2 for what is kept."""
    m = np.zeros_like(params)
    updates = []
    for t, g in enumerate(gradients, start=1):
        updates.append(np.sign(at(b1, t) * m + (1 - at(b1, t)) * g))
        m = at(b2, t) * m + (1 - at(b2, t)) * g
    return updates


def scale_by_sign(params: Array, gradients: Sequence[Array]) -> list[Array]:
    return [np.sign(g) for g in gradients]


def scale(params: Array, gradients: Sequence[Array], *, step_size: Number) -> list[Array]:
    return [at(step_size, t) * g for t, g in enumerate(gradients, start=1)]


def scale_by_learning_rate(
    params: Array, gradients: Sequence[Array], *, learning_rate: Number, flip_sign: bool = True
) -> list[Array]:
    sign = -1 if flip_sign else 1
    return [sign * at(learning_rate, t) * g for t, g in enumerate(gradients, start=1)]


def scale_by_schedule(params: Array, gradients: Sequence[Array], *, step_size_fn: Number) -> list[Array]:
    return [at(step_size_fn, t) * g for t, g in enumerate(gradients, start=1)]


def clip(params: Array, gradients: Sequence[Array], *, max_delta: Number) -> list[Array]:
    return [np.clip(g, -at(max_delta, t), at(max_delta, t)) for t, g in enumerate(gradients, start=1)]


def clip_by_global_norm(params: Array, gradients: Sequence[Array], *, max_norm: Number) -> list[Array]:
    """Pascanu, Mikolov, Bengio 2013, algorithm 1."""
    updates = []
    for t, g in enumerate(gradients, start=1):
        norm = np.sqrt(np.sum(g**2, axis=-1, keepdims=True))
        limit = at(max_norm, t)
        updates.append(np.where(norm > limit, g * limit / norm, g))
    return updates


def add_decayed_weights(
    params: Array, gradients: Sequence[Array], *, weight_decay: Number = 0.0, mask: Array | bool = True
) -> list[Array]:
    w = params.copy()
    updates = []
    for t, g in enumerate(gradients, start=1):
        updates.append(g + np.where(mask, at(weight_decay, t) * w, 0.0))
        w = w + updates[-1]
    return updates
