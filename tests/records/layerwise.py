"""The methods that go by layers, each from its paper."""

from tests.records.base import FALLING, RISING, Array, K, Record, optax
from tests.records.effects import MASK, add_decayed_weights, each_leaf, trusted
from tests.records.parts import scale_by_adam, scale_by_momentum
from tests.records.streams import KERNELS, masked


def lamb(s, g, t, w, *, learning_rate, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.0, mask=None) -> Array:
    """You et al. 2019, algorithm 2."""
    r = scale_by_adam(s, g, t, w, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    r = add_decayed_weights({}, r, t, w, weight_decay=weight_decay, mask=mask)
    return -learning_rate * each_leaf(trusted, r, w)


def lars(
    s,
    g,
    t,
    w,
    *,
    learning_rate,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=0.0,
    momentum=0.9,
    nesterov=False,
    mask=None,
) -> Array:
    """You, Gitman, Ginsburg 2017, algorithm 1, with |g + wd w| in the local rate."""
    r = add_decayed_weights({}, g, t, w, weight_decay=weight_decay, mask=mask)
    local = each_leaf(lambda r, w, axes: trusted(r, w, axes, coefficient=trust_coefficient, eps=eps), r, w)
    step = learning_rate * masked(mask, local, r)
    return -scale_by_momentum(s, step, t, w, decay=momentum, form="sum", nesterov=nesterov)


LARS = {
    "learning_rate": 0.1,
    "weight_decay": 0.1,
    "trust_coefficient": 0.01,
    "eps": 1e-3,
    "momentum": 0.8,
    "nesterov": True,
}
LAYERWISE = [
    Record(
        "lamb",
        lamb,
        {"learning_rate": 0.01},
        {
            "learning_rate": FALLING,
            "b1": 0.8,
            "b2": 0.99,
            "eps": 1e-4,
            "eps_root": 1e-6,
            "weight_decay": 0.1,
            "mask": MASK,
        },
        at_least={1: 0.95},
        peers=[
            optax("lamb", K),
            optax(
                "lamb",
                {"learning_rate": 0.001, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-6, "weight_decay": 0.1},
            ),
        ],
    ),
    Record(
        "lars",
        lars,
        {"learning_rate": 1.0},
        {"learning_rate": FALLING, "weight_decay": 0.1, "eps": 1e-3, "trust_coefficient": 0.01, "mask": MASK},
        {"learning_rate": FALLING, "weight_decay": FALLING, "momentum": RISING, "nesterov": True},
        peers=[
            optax("lars", K),
            optax(
                "lars",
                LARS | {"weight_decay_mask": KERNELS, "trust_ratio_mask": KERNELS},
                **LARS,
                mask=KERNELS,
            ),
        ],
    ),
]
