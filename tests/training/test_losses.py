"""How a user's loss is read: which arguments it is given, and what is refused, by name and before anything runs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import sgd
from gradtx.training.losses import check_loss, read_loss
from gradtx.training.minimization import minimize

KEY = jax.random.key(0)
START = jnp.zeros(2)
X = np.arange(12, dtype=np.float32).reshape(6, 2) / 10
Y = np.arange(6, dtype=np.float32)


def bowl(params):
    return jnp.sum((params - 3.0) ** 2)


def linear(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def read(function, *, has_aux=False, has_data=False):
    return read_loss("who", function, has_aux=has_aux, has_data=has_data)


def unread(function, params, *, has_aux=False, model_state=None):
    loss = read(function, has_aux=has_aux)
    return check_loss("who", loss, params, None, KEY, model_state)


# What it wants


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
    loss = read(function, has_data=has_data)
    assert (loss.wants_batch, loss.wants_key, loss.wants_model_state) == (batch, key, model_state)


@dataclasses.dataclass
class Bowl:  # compares by value, so Python gives it no hash
    center: float

    def __call__(self, params):
        return jnp.sum((params - self.center) ** 2)

    def loss(self, params):
        return self(params)


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(lambda center, params: jnp.sum((params - center) ** 2), 3.0),
        functools.partial(lambda params, center: jnp.sum((params - center) ** 2), center=3.0),
        Bowl(3.0),
        Bowl(3.0).loss,
        jax.jit(bowl),
        jax.checkpoint(bowl),
        lambda params, center=3.0: jnp.sum((params - center) ** 2),
        lambda *args: bowl(*args),
        lambda params, /: bowl(params),
    ],
)
def test_any_callable_is_a_loss(loss):
    result = minimize(loss, START, sgd(0.1), steps=5)
    assert np.array_equal(result.params, minimize(bowl, START, sgd(0.1), steps=5).params)


def test_a_starred_loss_is_given_the_batch():
    result = minimize(lambda *args: linear(*args), START, sgd(0.1), (X, Y), steps=5)
    assert np.array_equal(result.params, minimize(linear, START, sgd(0.1), (X, Y), steps=5).params)


def test_a_key_bound_by_partial_stays_bound():
    seen = functools.partial(lambda p, *, key: (bowl(p), {"draw": jax.random.uniform(key)}), key=KEY)
    draws = minimize(seen, START, sgd(0.1), steps=3, has_aux=True).history["draw"]
    assert len(set(draws.tolist())) == 1
    assert draws[0] == jax.random.uniform(KEY)


# Params that it does not read

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(2), "c": None}


@pytest.mark.parametrize(
    ("function", "has_aux", "expected"),
    [
        (lambda p: bowl(p["a"]) + bowl(p["b"]), False, []),
        (lambda p: bowl(p["a"]), False, ["['b']"]),
        (lambda p: 1.0, False, ["['a']", "['b']"]),
        (lambda p: bowl(p["a"]) + 0.0 * bowl(p["b"]), False, []),  # read, whatever it is multiplied by
        (jax.jit(lambda p: bowl(p["a"])), False, ["['b']"]),
        (lambda p: jax.jit(lambda q: jax.jit(bowl)(q["a"]))(p), False, ["['b']"]),
        (lambda p: (bowl(p["a"]), {"b": p["b"]}), True, ["['b']"]),  # recorded, not minimized
        (jax.jit(lambda p: (bowl(p["a"]), {"b": p["b"]})), True, ["['b']"]),
        (lambda p: jax.lax.cond(True, lambda q: bowl(q["a"]), lambda q: bowl(q["b"]), p), False, []),
    ],
)
def test_unread_params_are_named(function, has_aux, expected):
    assert unread(function, PARAMS, has_aux=has_aux) == expected


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_unread_params_are_warned_of_at_each_call(wrap):
    loss = wrap(lambda p: bowl(p["a"]))
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"gradtx\.minimize: the loss does not read params at \['b'\]") as caught:
            result = minimize(loss, PARAMS, sgd(0.1), steps=2)
        assert [w.filename for w in caught] == [__file__]
        assert np.array_equal(result.params["b"], PARAMS["b"])


# What is refused


@pytest.mark.parametrize(
    ("function", "has_data", "error", "words"),
    [
        (3.0, False, TypeError, "who: loss is 3.0; it must be a function: loss(params) or loss(params, batch)."),
        (lambda: 1.0, False, TypeError, "takes () as positional arguments; it must be loss(params) or"),
        (lambda a, b, c: a, True, TypeError, "(a, b, c) as positional arguments; it must be loss(params) or loss(pa"),
        (lambda p, b, key: p, True, TypeError, "key and model_state keyword-only: loss(params, batch, *, key)"),
        (lambda p, b, key=None: p, True, TypeError, "key and model_state keyword-only: loss(params, batch, *, key)"),
        (lambda p, model_state: p, True, TypeError, "key and model_state keyword-only"),
        (lambda p, *, rng: p, False, TypeError, "wants the keyword 'rng'; it can be given key and model_state. Close"),
        (lambda p, b: p, False, ValueError, "the loss wants a batch, loss(p, b), and data is None; pass data."),
        (lambda p: p, True, ValueError, "takes no batch, and data is given; write it as loss(params, batch)."),
    ],
)
def test_a_loss_of_the_wrong_form(function, has_data, error, words):
    with pytest.raises(error, match="^who: .*" + re.escape(words.removeprefix("who: "))):
        read(function, has_data=has_data)


def test_a_loss_whose_signature_cannot_be_read(monkeypatch):
    def refuse(function):
        raise ValueError("no signature found")

    monkeypatch.setattr("inspect.signature", refuse)
    with pytest.raises(TypeError, match=r"who: the signature of .* cannot be read; wrap it in a def"):
        read(bowl)


@pytest.mark.parametrize(
    ("function", "has_aux", "words"),
    [
        (lambda p: p, False, "an array of dtype float32 and shape (2,); it must be a real scalar. Take its mean over"),
        (lambda p: p[:1], False, "shape (1,); it must be a real scalar. Take its mean over the batch: values.mean()."),
        (lambda p: p[0].astype(jnp.complex64), False, "dtype complex64 and shape (); it must be a real scalar."),
        (lambda p: p[0] > 0, False, "dtype bool and shape (); it must be a real scalar."),
        (lambda p: None, False, "the loss returns None; it must be a real scalar."),
        (lambda p: (bowl(p), {}), False, "it must be a real scalar. For (value, dict) pass has_aux=True."),
        (bowl, True, "with has_aux=True the loss must return (value, dict); it returned"),
        (lambda p: (bowl(p), 3.0), True, "with has_aux=True the loss must return (value, dict); it returned"),
        (lambda p: [bowl(p), {}], True, "with has_aux=True the loss must return (value, dict); it returned"),
        (lambda p: (p, {}), True, "shape (2,); it must be a real scalar. Take its mean"),
    ],
)
def test_what_is_no_real_scalar(function, has_aux, words):
    with pytest.raises(TypeError, match=r"who: .*" + re.escape(words)):
        unread(function, START, has_aux=has_aux)


def test_an_entry_called_loss():
    with pytest.raises(ValueError, match=r"who: the dict of the loss has an entry 'loss', .* call it otherwise"):
        unread(lambda p: (bowl(p), {"loss": p[0]}), START, has_aux=True)


def test_model_state_that_is_missing_not_returned_or_changed():
    def carried(p, *, model_state):
        return bowl(p), {"model_state": model_state}

    with pytest.raises(
        ValueError, match=r"who: the loss wants model_state, and there is none; pass model_state=\.\.\."
    ):
        unread(carried, START, has_aux=True)
    with pytest.raises(TypeError, match=r"who: a loss with model_state must return \(value, .*, with has_aux=True"):
        unread(lambda p, *, model_state: bowl(p), START, model_state=jnp.zeros(()))
    for other in (jnp.zeros(2), jnp.zeros((), jnp.bfloat16), {"mean": jnp.zeros(())}, None):
        with pytest.raises(
            TypeError, match=r"who: the loss returns another model_state than it was given: .* must stay"
        ):
            unread(lambda p, o=other: (bowl(p), {"model_state": o}), START, has_aux=True, model_state=jnp.zeros(()))
    with pytest.raises(TypeError, match=r"another model_state than it was given: .*, not None"):
        unread(lambda p: (bowl(p), {"model_state": p}), START, has_aux=True)


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
