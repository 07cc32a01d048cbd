"""One of every kind of transform, for tests that hold for all of them."""

import json

import jax.numpy as jnp
import pytest

import gradtx

PARAMS = {"w": jnp.ones(3), "b": jnp.zeros(())}

SAMPLES = [
    gradtx.identity(),
    gradtx.scale(0.5),
    gradtx.scale_by_learning_rate(0.5, flip_sign=False),
    gradtx.scale_by_schedule(gradtx.linear_schedule(1.0, 0.0, 10)),
    gradtx.scale_by_sign(),
    gradtx.add_decayed_weights(0.1, mask={"w": True, "b": False}),
    gradtx.clip(1.0),
    gradtx.clip_by_global_norm(1.0),
    gradtx.ema(0.9, debias=False),
    gradtx.scale_by_momentum(0.9, form="sum", nesterov=True, dampening=0.5),
    gradtx.scale_by_nadam_momentum(),
    gradtx.scale_by_adagrad(),
    gradtx.scale_by_rms(0.99, maximum="raw"),
    gradtx.scale_by_rms(centered=True),
    gradtx.scale_by_adadelta(),
    gradtx.scale_by_infinity_norm(eps_in_max=False),
    gradtx.scale_by_adam(nesterov=True),
    gradtx.scale_by_lion(),
    gradtx.sgd(0.1),
    gradtx.sgd(0.1, momentum=0.9, nesterov=True),
    gradtx.adagrad(0.1),
    gradtx.rmsprop(0.1, momentum=0.9, centered=True),
    gradtx.adadelta(weight_decay=0.1),
    gradtx.adam(gradtx.linear_schedule(1e-3, 1e-4, 100), eps_root=1e-12),
    gradtx.adamw(1e-3, mask={"w": True, "b": False}),
    gradtx.amsgrad(1e-3, maximum="raw"),
    gradtx.adamax(1e-3),
    gradtx.nadam(1e-3, momentum_decay=4e-3),
    gradtx.nadamw(1e-3),
    gradtx.lion(1e-3),
    gradtx.signum(1e-3),
    gradtx.checked(gradtx.adam(1e-3)),
    gradtx.tunable(gradtx.sgd(0.1)),
    gradtx.clip(1.0) >> gradtx.adam(1e-3),
    gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(1e-3),
    (gradtx.clip(1.0) >> gradtx.scale(2.0)) + gradtx.scale_by_rms(),
]


def by_repr(tx):
    return repr(tx)[:60]


every = pytest.mark.parametrize("tx", SAMPLES, ids=by_repr)


def rebuilt(tx):
    """The same value, built anew from what it writes down."""
    return gradtx.from_config(json.loads(json.dumps(tx.to_config(), allow_nan=False)))
