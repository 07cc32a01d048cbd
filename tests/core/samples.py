"""One of every kind of transform, for tests that hold for all of them; the laws have every method."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.core.fields import at

PARAMS = {"w": np.ones(3, np.float32), "b": np.zeros((), np.float32)}

SAMPLES = [
    gradtx.identity(),
    gradtx.scale_by_schedule(gradtx.linear_schedule(1.0, 0.0, 10)),
    gradtx.scale_by_sign(),
    gradtx.clip_by_global_norm(1.0),
    gradtx.scale_by_momentum(0.9, form="sum", nesterov=True, dampening=0.5),
    gradtx.scale_by_rms(0.99, maximum="raw"),
    gradtx.sgd(0.1, momentum=0.9),
    gradtx.adam(gradtx.linear_schedule(1e-3, 1e-4, 100), eps_root=1e-12),
    gradtx.adamw(1e-3, mask={"w": True, "b": False}),
    gradtx.checked(gradtx.adam(1e-3)),
    gradtx.tunable(gradtx.sgd(0.1)),
    gradtx.clip(1.0) >> gradtx.stored(gradtx.lion(1e-3), "bfloat16"),
    gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(1e-3),
    (gradtx.clip(1.0) >> gradtx.scale(2.0)) + gradtx.scale_by_rms(),
]
every = pytest.mark.parametrize("tx", SAMPLES, ids=lambda tx: repr(tx)[:60])


def fields_of(tx, state):
    """Every declared field: its place, the field, and what the state has there."""
    return [(place, field, at(state, place)) for place, field in tx.declared.items()]


def rebuilt(tx):
    """The same value, built anew from what it writes down."""
    return gradtx.from_config(json.loads(json.dumps(tx.to_config(), allow_nan=False)))


def has_float16():
    """Whether XLA compiles float16 here: not for processors without F16C."""
    try:
        return bool(jnp.ones((), jnp.float32).astype(jnp.float16) == 1)
    except jax.errors.JaxRuntimeError:
        return False


needs_float16 = pytest.mark.skipif(not has_float16(), reason="XLA has no float16 for this processor")
