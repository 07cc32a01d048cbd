"""How a user's loss is read: which arguments it is given, and which params it reads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import sgd
from gradtx.training import inputs
from gradtx.training.advancing import Plan
from gradtx.training.losses import check_loss, read_loss
from gradtx.training.minimization import minimize
from tests.training.network import DATA, KEY, bowl, cost, start
from tests.training.reference import assert_same

START = jnp.zeros(2)


@pytest.mark.parametrize(
    ("function", "has_data", "batch", "key", "model_state"),
    [
        (lambda p: p, False, False, False, False),
        (lambda p, b: p, True, True, False, False),
        (lambda p, b=None: p, False, False, False, False),
        (lambda p, b=None: p, True, True, False, False),
        (lambda p=0, b=None: p, True, True, False, False),
        (lambda p, b, scale=2.0: p, True, True, False, False),
        (lambda *args: args, False, False, False, False),
        (lambda *args: args, True, True, False, False),
        (lambda p, *rest: p, True, True, False, False),
        (lambda p, *, key: p, False, False, True, False),
        (lambda p, b, *, key=None, model_state, width=3: p, True, True, True, True),
        (lambda p, **others: p, False, False, False, False),
        (jax.jit(lambda p, b, *, key: p), True, True, True, False),
        (functools.partial(lambda scale, p, b: p, 2.0), True, True, False, False),
        (functools.partial(lambda p, b, scale: p, scale=2.0), True, True, False, False),
        (functools.partial(lambda p, *, key, model_state: p, key=KEY), False, False, False, True),
    ],
)
def test_arguments_are_read_from_the_signature(function, has_data, batch, key, model_state):
    loss = read_loss("who", function, has_aux=True, has_data=has_data)
    assert (loss.wants_batch, loss.wants_key, loss.wants_model_state) == (batch, key, model_state)
    assert loss.has_aux


def test_it_is_called_with_what_it_wants():
    def echo(*args, key=None, model_state=None):
        return args, {"key": key, "model_state": model_state, "other": 4}

    aux = read_loss("who", echo, has_aux=True, has_data=True)
    assert aux(1, 2, "key", 3) == ((1, 2), ({"key": "key", "other": 4}, 3))
    alone = read_loss("who", lambda params: params, has_aux=False, has_data=False)
    assert alone(1, 2, "key", 3) == (1, ({}, 3))
    keeps = read_loss("who", lambda p, *, key: (p, {"at": key}), has_aux=True, has_data=False)
    assert keeps(1, 2, "key", 3) == (1, ({"at": "key"}, 3))


@dataclasses.dataclass
class Bowl:  # compares by value, so Python gives it no hash
    center: float

    def __call__(self, params):
        return jnp.sum((params - self.center) ** 2)


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(lambda params, center: jnp.sum((params - center) ** 2), center=3.0),
        Bowl(3.0),
        Bowl(3.0).__call__,
        jax.checkpoint(bowl),
        lambda *args: bowl(*args),
        lambda params, /: bowl(params),
    ],
)
def test_any_callable_is_a_loss(loss):
    np.testing.assert_allclose(minimize(loss, START, sgd(0.25), steps=2).params, 2.25, rtol=1e-6)


def test_a_starred_loss_is_given_the_batch_and_a_bound_key_stays_bound():
    result = minimize(lambda *args: cost(*args), start(), sgd(0.1), DATA, steps=2)
    assert_same(result, minimize(cost, start(), sgd(0.1), DATA, steps=2))
    seen = functools.partial(lambda p, *, key: (bowl(p), {"draw": jax.random.uniform(key)}), key=KEY)
    draws = minimize(seen, START, sgd(0.1), steps=3, has_aux=True).history["draw"]
    np.testing.assert_allclose(draws, [jax.random.uniform(KEY)] * 3, rtol=1e-6)


PARAMS = {"a": jnp.ones(2), "b": jnp.ones(2), "c": None}


@pytest.mark.parametrize(
    ("function", "has_aux", "expected"),
    [
        (lambda p: bowl(p["a"]) + bowl(p["b"]), False, []),
        (lambda p: bowl(p["a"]), False, ["['b']"]),
        (lambda p: jnp.ones(()), False, ["['a']", "['b']"]),
        (lambda p: bowl(p["a"]) + 0.0 * bowl(p["b"]), False, []),  # read, whatever it is multiplied by
        (lambda p: bowl(p["a"]) + (p["b"][0] * 0 + 1) * bowl(p["a"]), False, []),
        (lambda p: jax.jit(lambda q: jax.jit(bowl)(q["a"]))(p), False, ["['b']"]),
        (lambda p: (bowl(p["a"]), {"b": p["b"]}), True, ["['b']"]),  # recorded, not minimized
        (jax.jit(lambda p: (bowl(p["a"]), {"b": 2 * p["b"]})), True, ["['b']"]),
        (lambda p: jax.lax.cond(True, lambda q: bowl(q["a"]), lambda q: bowl(q["b"]), p), False, []),
        (lambda p: [jax.debug.callback(lambda b: None, p["b"]), bowl(p["a"])][1], False, []),  # it has an effect
    ],
)
def test_unread_params_are_named(function, has_aux, expected):
    loss = read_loss("who", function, has_aux=has_aux, has_data=False)
    assert check_loss("who", loss, PARAMS, None, KEY, None) == expected


def test_unread_params_are_warned_of_at_each_call_at_the_callers_line():
    loss = jax.jit(lambda p: bowl(p["a"]))
    for _ in range(2):
        words = r"^gradtx\.minimize: the loss does not read params at \['b'\]; their gradient is 0\."
        with pytest.warns(UserWarning, match=words) as caught:
            result = minimize(loss, PARAMS, sgd(0.1), steps=2)
        assert [w.filename for w in caught] == [__file__]
        assert np.array_equal(result.params["b"], PARAMS["b"])


def test_a_loss_is_traced_once_for_each_of_its_shapes():
    traced = []

    def loss(params):
        traced.append(params.shape)
        return bowl(params)

    plan = Plan(read_loss("who", loss, has_aux=False, has_data=False))
    for size in (2, 2, 3, 3, 2):
        inputs.check_loss("who", plan, {"params": jnp.zeros(size), "model_state": None}, None)
    assert traced == [(2,), (3,)]


def test_model_state_of_a_type_that_compares_by_identity():
    @jax.tree_util.register_pytree_node_class
    class Stats:
        def __init__(self, mean):
            self.mean = mean

        def tree_flatten(self):
            return (self.mean,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    def loss(p, *, model_state):
        return bowl(p), {"model_state": Stats(model_state.mean + 1.0)}

    result = minimize(loss, START, sgd(0.1), steps=4, has_aux=True, model_state=Stats(jnp.zeros(())))
    assert result.state["model_state"].mean == 4.0
