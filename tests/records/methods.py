"""The named methods, each from its paper, out of the parts' formulas: what stands where, which number goes where."""

import numpy as np

from tests.records.base import (
    FALLING,
    RISING,
    RISING_B2,
    Array,
    K,
    Record,
    Scheduled,
    keras,
    memory,
    optax,
    torch,
)
from tests.records.effects import MASK, add_decayed_weights
from tests.records.parts import (
    CENTERED,
    scale_by_adadelta,
    scale_by_adagrad,
    scale_by_adam,
    scale_by_infinity_norm,
    scale_by_lion,
    scale_by_momentum,
    scale_by_nadam_momentum,
    scale_by_rms,
)


def sgd(s, g, t, w, *, learning_rate, momentum=None, nesterov=False, dampening=0.0, lr_inside_momentum=False) -> Array:
    """Sutskever et al. 2013 in the form `v = b v + g`; `lr_inside_momentum`: `v = b v + lr g` (Keras)."""
    if momentum is None:
        return -learning_rate * g
    x = learning_rate * g if lr_inside_momentum else g
    v = scale_by_momentum(s, x, t, w, decay=momentum, form="sum", nesterov=nesterov, dampening=dampening)
    return -v if lr_inside_momentum else -learning_rate * v


def adagrad(s, g, t, w, *, learning_rate, **numbers) -> Array:
    """Duchi, Hazan, Singer 2011, figure 1: `w = w - lr g / sqrt(sum of g²)`."""
    return -learning_rate * scale_by_adagrad(s, g, t, w, **numbers)


def rmsprop(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
    lr_inside_momentum=True,
) -> Array:
    """Tieleman and Hinton 2012, lecture 6e; a sum of the *scaled* gradients with momentum."""
    scaled = scale_by_rms(
        memory(s, "rms"),
        g,
        t,
        w,
        decay=decay,
        eps=eps,
        debias=bias_correction,
        centered=centered,
        eps_in_sqrt=eps_in_sqrt,
        initial_scale=initial_scale,
    )
    return sgd(
        memory(s, "sgd"),
        scaled,
        t,
        w,
        learning_rate=learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        lr_inside_momentum=lr_inside_momentum,
    )


def adadelta(s, g, t, w, *, learning_rate=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, mask=None) -> Array:
    """Zeiler 2012, algorithm 1; the decay, where there is one, is added to the gradient first."""
    g = add_decayed_weights({}, g, t, w, weight_decay=weight_decay, mask=mask)
    return -learning_rate * scale_by_adadelta(s, g, t, w, rho=rho, eps=eps)


def adam(s, g, t, w, *, learning_rate, **numbers) -> Array:
    """Kingma and Ba 2014, algorithm 1."""
    return -learning_rate * scale_by_adam(s, g, t, w, **numbers)


def adamw(s, g, t, w, *, learning_rate, weight_decay=1e-4, mask=None, **numbers) -> Array:
    """Loshchilov and Hutter 2017, algorithm 2, but the decay is times the learning rate, not only the schedule."""
    step = scale_by_adam(s, g, t, w, **numbers)
    return -learning_rate * add_decayed_weights({}, step, t, w, weight_decay=weight_decay, mask=mask)


def amsgrad(
    s, g, t, w, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, maximum="corrected", eps_root=0.0, eps_hat=False
) -> Array:
    """Reddi, Kale, Kumar 2018, algorithm 2, with Adam's bias corrections, which the paper has not."""
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1)
    numbers = {"decay": b2, "eps": eps, "eps_root": eps_root, "eps_hat": eps_hat, "maximum": maximum}
    return -learning_rate * scale_by_rms(memory(s, "v"), m, t, w, observed=g, **numbers)


def adamax(s, g, t, w, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_in_max=True) -> Array:
    """Kingma and Ba 2014, algorithm 2."""
    m = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1)
    numbers = {"decay": b2, "eps": eps, "eps_in_max": eps_in_max}
    return -learning_rate * scale_by_infinity_norm(memory(s, "u"), m, t, w, observed=g, **numbers)


def nadam(
    s, g, t, w, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, momentum_decay=None, eps_root=0.0, eps_hat=False
) -> Array:
    """Dozat 2016 with constant b1, or with its schedule `mu_t = b1 (1 - 0.5 * 0.96^(t psi))`, psi = momentum_decay.

    psi is 0.004 in PyTorch and the paper, 1 in Keras. All leave out the paper's extra b2 in v_hat.
    """
    if momentum_decay is None:
        m = scale_by_momentum(memory(s, "m"), g, t, w, decay=b1, nesterov=True)
    else:
        m = scale_by_nadam_momentum(memory(s, "m"), g, t, w, decay=b1, momentum_decay=momentum_decay)
    numbers = {"decay": b2, "eps": eps, "eps_root": eps_root, "eps_hat": eps_hat}
    return -learning_rate * scale_by_rms(memory(s, "v"), m, t, w, observed=g, **numbers)


def nadamw(s, g, t, w, *, learning_rate, weight_decay=1e-4, mask=None, **numbers) -> Array:
    """Nadam with AdamW's decay (PyTorch: NAdam with `decoupled_weight_decay=True`)."""
    step = -nadam(s, g, t, w, learning_rate=1.0, **numbers)
    return -learning_rate * add_decayed_weights({}, step, t, w, weight_decay=weight_decay, mask=mask)


def lion(s, g, t, w, *, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3, mask=None) -> Array:
    """Chen et al. 2023, algorithm 2."""
    step = scale_by_lion(s, g, t, w, b1=b1, b2=b2)
    return -learning_rate * add_decayed_weights({}, step, t, w, weight_decay=weight_decay, mask=mask)


def signum(s, g, t, w, *, learning_rate, beta=0.9) -> Array:
    """Bernstein et al. 2018, algorithm 2."""
    return -learning_rate * np.sign(scale_by_momentum(s, g, t, w, decay=beta, form="average"))


TORCH_ADAGRAD = {"initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False}
TORCH_RMSPROP = {"decay": 0.99, "eps_in_sqrt": False}

METHODS = [
    Record(
        "sgd",
        sgd,
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        {"learning_rate": FALLING, "momentum": 0.8, "nesterov": True, "dampening": 0.3, "lr_inside_momentum": True},
        {"learning_rate": FALLING},
        {"learning_rate": 0.1, "momentum": RISING},
        {"learning_rate": FALLING, "momentum": 0.9, "nesterov": True},
        {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": True},
        {"learning_rate": FALLING, "momentum": 0.9, "lr_inside_momentum": True},
        peers=[
            torch("SGD", {"lr": 0.1}),
            torch("SGD", {"lr": 0.1, "momentum": 0.9}, momentum=0.9),
            torch("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, momentum=0.9, nesterov=True),
            torch("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, momentum=0.9, dampening=0.5),
            keras("SGD", {"learning_rate": 0.1}),
            keras("SGD", {"learning_rate": 0.1, "momentum": 0.9}, momentum=0.9, lr_inside_momentum=True),
            keras(
                "SGD",
                {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
                momentum=0.9,
                nesterov=True,
                lr_inside_momentum=True,
            ),
            optax("sgd", {"learning_rate": 0.1}),
            optax("sgd", {"learning_rate": 0.1, "momentum": 0.9}),
            optax("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
        ],
    ),
    Record(
        "adagrad",
        adagrad,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False},
        peers=[
            torch("Adagrad", {"lr": 0.01}, **TORCH_ADAGRAD),
            torch(
                "Adagrad",
                {"lr": 0.01, "lr_decay": 0.05},
                learning_rate=Scheduled("inverse_time_schedule", (0.01, 0.05)),
                **TORCH_ADAGRAD,
            ),
            torch("Adagrad", {"lr": 0.01, "initial_accumulator_value": 0.1}, eps=1e-10, eps_in_sqrt=False),
            keras("Adagrad", K),
            optax("adagrad", {"learning_rate": 0.01}),
        ],
    ),
    Record(
        "rmsprop",
        rmsprop,
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "centered": True, "eps": 1e-3, "eps_in_sqrt": False, "momentum": 0.9},
        {"learning_rate": FALLING, "decay": 0.99, "eps_in_sqrt": False},
        {"learning_rate": 0.1, "decay": RISING, "initial_scale": 1.0, "bias_correction": True},
        {"learning_rate": FALLING, "momentum": 0.9, "lr_inside_momentum": False},
        {"learning_rate": FALLING, "momentum": RISING, "nesterov": True, "eps_in_sqrt": False},
        at_least={1: CENTERED},
        peers=[
            torch("RMSprop", {"lr": 0.01}, **TORCH_RMSPROP),
            torch("RMSprop", {"lr": 0.01, "centered": True}, centered=True, **TORCH_RMSPROP),
            torch("RMSprop", {"lr": 0.01, "momentum": 0.9}, momentum=0.9, lr_inside_momentum=False, **TORCH_RMSPROP),
            torch(
                "RMSprop",
                {"lr": 0.01, "centered": True, "momentum": 0.9},
                centered=True,
                momentum=0.9,
                lr_inside_momentum=False,
                **TORCH_RMSPROP,
            ),
            keras("RMSprop", K, eps=1e-7),
            keras("RMSprop", K | {"centered": True}, eps=1e-7, centered=True),
            keras("RMSprop", K | {"momentum": 0.9}, eps=1e-7, momentum=0.9),
            keras("RMSprop", K | {"centered": True, "momentum": 0.9}, eps=1e-7, centered=True, momentum=0.9),
            optax("rmsprop", K),
            optax("rmsprop", K | {"eps_in_sqrt": False, "initial_scale": 1.0}),
            optax("rmsprop", K | {"bias_correction": True}),
            optax("rmsprop", K | {"centered": True, "momentum": 0.9}),
            optax("rmsprop", K | {"momentum": 0.9, "nesterov": True}),
        ],
    ),
    Record(
        "adadelta",
        adadelta,
        {},
        {"learning_rate": FALLING, "weight_decay": 0.1, "mask": MASK},
        {"learning_rate": FALLING, "rho": 0.95, "eps": 1e-7},
        peers=[
            torch("Adadelta", {"lr": 1.0}),
            torch("Adadelta", {"lr": 1.0, "weight_decay": 0.01}, weight_decay=0.01),
            keras("Adadelta", K, rho=0.95, eps=1e-7),
            optax("adadelta", {"learning_rate": 1.0}),
            optax("adadelta", {"learning_rate": 1.0, "weight_decay": 0.01}),
        ],
    ),
    Record(
        "adam",
        adam,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "b1": RISING, "b2": RISING_B2, "nesterov": True},
        {"learning_rate": 0.1, "b2": RISING_B2, "eps_hat": True, "eps": 1e-3},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-6},
        {"learning_rate": 0.1, "b1": 0.0, "eps": 0.0},
        peers=[
            torch("Adam", {"lr": 0.001}),
            keras("Adam", K, eps=1e-7, eps_hat=True),
            optax("adam", K),
            optax("adam", K | {"eps_root": 1e-6}),
        ],
    ),
    Record(
        "adamw",
        adamw,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "weight_decay": FALLING, "b1": 0.8, "b2": 0.99, "mask": MASK},
        {"learning_rate": 0.1, "weight_decay": 0.01, "nesterov": True, "eps_root": 1e-6},
        {"learning_rate": 0.1, "weight_decay": 0.01, "eps_hat": True, "eps": 1e-3},
        peers=[
            torch("AdamW", {"lr": 0.001}, weight_decay=0.01),
            keras("AdamW", K, eps=1e-7, weight_decay=0.004, eps_hat=True),
            optax("adamw", K),
        ],
    ),
    Record(
        "amsgrad",
        amsgrad,
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "b2": 0.99, "maximum": "raw", "eps_hat": True, "eps": 1e-3},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-6},
        {"learning_rate": 0.1, "b2": 0.99, "maximum": "raw"},
        peers=[
            torch("Adam", {"lr": 0.001, "amsgrad": True}, maximum="raw"),
            keras("Adam", K | {"amsgrad": True}, eps=1e-7, maximum="raw", eps_hat=True),
            optax("amsgrad", K),
        ],
    ),
    Record(
        "adamax",
        adamax,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "b1": RISING, "b2": 0.9, "eps": 1e-3, "eps_in_max": False},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.9, "eps": 1e-3},
        peers=[
            torch("Adamax", {"lr": 0.002}),
            keras("Adamax", K, eps=1e-7, eps_in_max=False),
            optax("adamax", K),
        ],
    ),
    Record(
        "nadam",
        nadam,
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "momentum_decay": 4e-3},
        {"learning_rate": 0.1, "momentum_decay": 1.0, "eps_hat": True, "eps": 1e-3},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-6},
        peers=[
            torch("NAdam", {"lr": 0.002}, momentum_decay=0.004),
            keras("Nadam", K, eps=1e-7, momentum_decay=1.0),
            optax("nadam", K),
        ],
    ),
    Record(
        "nadamw",
        nadamw,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "weight_decay": 0.1, "momentum_decay": 4e-3, "mask": MASK, "eps_root": 1e-6},
        {"learning_rate": FALLING, "weight_decay": 0.1, "b1": 0.8, "b2": 0.99, "eps_hat": True, "eps": 1e-3},
        peers=[
            torch(
                "NAdam",
                {"lr": 0.002, "weight_decay": 0.01, "decoupled_weight_decay": True},
                weight_decay=0.01,
                momentum_decay=0.004,
            ),
            keras("Nadam", K | {"weight_decay": 0.004}, eps=1e-7, weight_decay=0.004, momentum_decay=1.0),
            optax("nadamw", K),
        ],
    ),
    Record(
        "lion",
        lion,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "b1": 0.8, "b2": 0.95, "weight_decay": 0.1, "mask": MASK},
        peers=[
            keras("Lion", K, weight_decay=0.0),
            keras("Lion", K | {"weight_decay": 0.01}, weight_decay=0.01),
            optax("lion", K),
        ],
    ),
    Record(
        "signum",
        signum,
        {"learning_rate": 0.1},
        {"learning_rate": FALLING, "beta": 0.5},
        peers=[optax("signum", K)],
    ),
]
