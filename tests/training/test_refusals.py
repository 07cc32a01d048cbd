"""What `minimize` refuses, by name and before it compiles anything."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import adam, sgd
from gradtx.training import inputs
from gradtx.training.minimization import minimize
from tests.training.network import DATA, KEY, X, Y, bowl, cost, start

# What is refused

SWEEP = jax.vmap(sgd)(np.array([0.1, 0.2], np.float32))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": 3}, TypeError, "loss is 3; it must be a function: loss(params) or loss(params, batch)."),
        ({"loss": lambda p, b: b["y"]}, TypeError, "dtype float32 and shape (5,); it must be a real scalar. Take its"),
        ({"tx": SWEEP}, ValueError, "tx is a sweep of 2 optimizers in one value; pass it to gradtx.sweep, or pass one"),
        ({"tx": 0.1}, TypeError, "is 0.1; allowed: a transform, or any object with init and update."),
        ({"tx": sgd}, TypeError, "is the factory gradtx.sgd itself; call it: sgd(...)."),
        ({"params": {"n": jnp.arange(3)}}, TypeError, "params at ['n'] has dtype int32; allowed: floating-point or co"),
        ({"params": {"n": "a"}}, TypeError, "params at ['n'] is 'a' of type str; allowed: arrays."),
        ({"data": {}}, ValueError, "data is {} (dict), a pytree without arrays; it must hold at least one."),
        ({"data": {"x": X[:0]}, "batch_size": None}, ValueError, "data is empty: data['x'] has shape (0, 3); it must"),
        ({"data": {"x": X, "y": Y[1:]}}, ValueError, "data['x'] has 23 samples, shape (23, 3), but data['y'] has 22,"),
        ({"data": {"x": 1.0}}, ValueError, "data['x'] is a scalar, 1.0 (float); every leaf needs a leading axis"),
        ({"data": {"x": object()}}, TypeError, "every leaf must be a NumPy or JAX array. Convert it: numpy.asarray."),
        ({"batch_size": 24}, ValueError, "batch_size is 24; it must be from 1 to the number of samples, 23. Pass None"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; it must be from 1 to the number of samples, 23."),
        ({"batch_size": 2.0}, TypeError, "batch_size is 2.0 (float); it must be an int."),
        ({"drop_last": 1}, TypeError, "drop_last is 1 (int); it must be True or False."),
        ({"data": iter(())}, ValueError, "batch_size is 5, but data is an iterable, which gives whole batches; leave"),
        ({"data": iter(()), "batch_size": None}, ValueError, "data is empty: the iterable gives no batch."),
        ({"data": "abc", "batch_size": None}, TypeError, "data is 'abc'; it must be arrays, or an iterable of batches"),
        ({"data": None}, ValueError, "batch_size is 5, but data is None; leave it out, or pass arrays."),
        ({"data": None, "batch_size": None, "replacement": True}, ValueError, "replacement is True, but data is None;"),
        ({"steps": None}, ValueError, "how long? Give steps=... or epochs=..."),
        ({"steps": 3, "epochs": 2}, ValueError, "epochs=2 and steps=3 are both given; give one of them."),
        ({"steps": 0}, ValueError, "steps is 0; it must be at least 1."),
        ({"steps": 3.0}, TypeError, "steps is 3.0 of type float; it must be an int."),
        ({"steps": True}, TypeError, "steps is True of type bool; it must be an int."),
        ({"steps": None, "epochs": -1}, ValueError, "epochs is -1; it must be at least 1."),
        ({"loss": bowl, "data": None, "batch_size": None, "steps": None}, ValueError, "how long? Give steps=..."),
        (
            {"loss": bowl, "data": None, "batch_size": None, "steps": None, "epochs": 2},
            ValueError,
            "epochs=2 is for runs with data; give steps=...",
        ),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite is 'ignore'; allowed: 'stop', 'continue'."),
        ({"steps_per_call": 0}, ValueError, "steps_per_call is 0; it must be at least 1."),
        ({"evaluate_every": 0}, ValueError, "evaluate_every is 0; it must be at least 1."),
        ({"evaluate": 3}, TypeError, "evaluate is 3; it must be a function of the params."),
        ({"evaluate": lambda p: None}, TypeError, "evaluate returns None; it must return a number, or a dict of them."),
        ({"evaluate": lambda p: {"loss": 1.0}}, ValueError, "evaluate returns an entry 'loss', which the history has"),
        ({"stop": 0.1}, TypeError, "stop is 0.1; it must be a function of the history."),
        ({"key": 0}, TypeError, "key is 0 (int); it must be a JAX random key. Make one with jax.random.key(seed)."),
        ({"key": jax.random.split(KEY)}, ValueError, "several keys; it must be one."),
        ({"key": jax.random.key(0, impl="rbg")}, ValueError, "key has dtype key<rbg>; the state keeps the bits of a d"),
        ({"state": {}}, ValueError, "state is a dict of nothing; it must be that of an earlier result, result.state."),
        ({"state": {"w": 1}}, ValueError, "state is a dict of w; it must be that of an earlier result, result.state."),
        ({"state": 3}, ValueError, "state is 3; it must be that of an earlier result, result.state."),
        ({"state": {}, "key": KEY}, ValueError, "a state brings its own key and model_state; pass either the state or"),
        ({"state": {}, "model_state": 1.0}, ValueError, "a state brings its own key and model_state; pass either"),
    ],
)  # fmt: skip
def test_errors_say_who_what_and_how_to_fix_it(options, error, words):
    given = {"loss": cost, "params": start(), "tx": sgd(0.1), "data": DATA, "batch_size": 5, "steps": 5}
    with pytest.raises(error, match=r"^gradtx\.minimize:? .*" + re.escape(words)):
        minimize(**given | options)


def test_a_state_of_another_optimizer_or_other_params():
    state = minimize(cost, start(), adam(0.1), DATA, steps=1).state
    with pytest.raises(ValueError, match=r"gradtx\.sgd\.update: the state is not one that init makes .* this very opt"):
        minimize(cost, start(), sgd(0.1), DATA, steps=1, state=state)
    with pytest.raises(ValueError, match=r"gradtx\.adam\.update: the state .* lacks \['scale_by_momentum'\]\['mu'\]"):
        minimize(bowl, jnp.zeros(2), adam(0.1), steps=1, state=state)


def test_data_that_does_not_fit_is_to_be_streamed(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 800}

    monkeypatch.setattr(inputs.jax, "devices", lambda: [Device()])
    with pytest.raises(ValueError, match=r"data has 0\.0 GB, and the device 0\.0 GB free; stream it: pass an iterable"):
        minimize(cost, start(), sgd(0.1), DATA, steps=1)
