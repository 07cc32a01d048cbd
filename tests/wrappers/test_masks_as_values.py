"""masked, freeze and train_only as values: when a mask is asked, saved, tuned; with the params of frameworks."""

import pickle
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training import train_state

import gradtx
from tests.wrappers.masking import GRADS, PARAMS, WAYS, once

# When a mask is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [gradtx.masked, gradtx.train_only, lambda tx, mask: tx >> gradtx.freeze(mask)])
def test_a_mask_function_is_asked_once_for_each_kind_of_params(wrap):
    asked = []

    def mask(path, leaf):
        asked.append(type(leaf))
        return leaf.ndim == 2

    tx = wrap(gradtx.adam(0.1), mask)
    state = tx.init(PARAMS)
    for grads in GRADS[:3]:
        _, state = tx.update(grads, state, PARAMS)
    jax.jit(tx.update)(GRADS[0], state, PARAMS)
    jax.jit(lambda tx, grads: tx.update(grads, state, PARAMS))(tx.replace(learning_rate=0.2), GRADS[0])
    jax.vmap(lambda rate: wrap(gradtx.adam(rate), mask).update(GRADS[0], state, PARAMS))(jnp.array([0.1, 0.2]))
    assert asked == [jax.ShapeDtypeStruct] * 4
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GRADS[0])
    tx.update(half, state, PARAMS)  # gradients of another dtype are none of its business
    assert len(asked) == 4


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.masked(gradtx.scale(1.0), WAYS["function"]),
        gradtx.freeze(WAYS["function"]),
        gradtx.train_only(gradtx.scale(1.0), WAYS["function"]),
    ],
    ids=["masked", "freeze", "train_only"],
)
def test_a_function_needs_the_params(tx):
    with pytest.raises(ValueError, match=rf"gradtx\.{tx.name}\.update: params are missing"):
        tx.update(GRADS[0], tx.init(PARAMS))
    patterns = tx.replace(mask="head/*")
    assert gradtx.tree_equal(patterns.update(GRADS[0], patterns.init(PARAMS))[0], once(tx, GRADS[0]))


@pytest.mark.parametrize("name", ["masked", "freeze", "train_only"])
def test_wrong_masks_are_refused_by_name(name):
    build = getattr(gradtx, name)
    wrong = (lambda mask: build(mask)) if name == "freeze" else (lambda mask: build(gradtx.scale(1.0), mask))
    for mask, words in (
        ({"body": 1, "head": 0}, "mask at 'body/bias' is 1; allowed: True or False"),
        ("*/scale", "mask: the pattern '*/scale' matches no leaf; the leaves: body/bias, body/kernel, "),
        ({"body": True}, "mask has the structure"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(f"gradtx.{name}: {words}")):
            once(wrong(mask), GRADS[0])


# As values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["*/kernel", ("a/*", "b"), ["a"], {"a/*": True, "*": False}, {"a": True, "b": False}])
def test_patterns_and_trees_are_saved_as_they_are(mask):
    for tx in (gradtx.masked(gradtx.adam(0.1), mask), gradtx.train_only(gradtx.adam(0.1), mask), gradtx.freeze(mask)):
        for copy in (pickle.loads(pickle.dumps(tx)), gradtx.from_config(tx.to_config())):
            assert copy == tx
            assert hash(copy) == hash(tx)
            assert type(copy.mask) is type(mask)
            assert list(copy.mask) == list(mask)


def test_patterns_in_another_order_are_another_mask():
    first, second = {"head/*": True, "*/kernel": False, "*": False}, {"*/kernel": False, "head/*": True, "*": False}
    assert gradtx.freeze(first) != gradtx.freeze(second)


def test_a_mask_is_a_copy():
    mask = {"body": False, "head": True}
    tx = gradtx.train_only(gradtx.sgd(0.1), mask)
    mask["body"] = True
    assert tx.mask == {"body": False, "head": True}


def test_a_sweep_inside_a_mask_is_separate_optimizers():
    rates = jnp.array([0.1, 0.2, 0.4], jnp.float32)
    build = lambda rate: gradtx.train_only(gradtx.adam(rate), "head/*")  # noqa: E731
    swept = jax.vmap(lambda tx: once(tx, GRADS[0]))(jax.vmap(build)(rates))
    for index, rate in enumerate(rates):
        assert gradtx.tree_equal(jax.tree.map(lambda leaf, i=index: leaf[i], swept), once(build(rate), GRADS[0]))


def test_numbers_inside_are_tuned_replaced_and_checked():
    tx = gradtx.train_only(gradtx.sgd(0.5), "head/*")
    assert tx.learning_rate == 0.5
    assert tx.replace(learning_rate=0.1) == gradtx.train_only(gradtx.sgd(0.1), "head/*")
    tuned = gradtx.tunable(tx)
    state = gradtx.tune(tuned.init(PARAMS), learning_rate=0.1)
    updates, _ = tuned.update(GRADS[0], state, PARAMS)
    assert gradtx.tree_equal(updates, once(tx.replace(learning_rate=0.1), GRADS[0]))
    within = gradtx.train_only(gradtx.tunable(gradtx.sgd(0.5)), "head/*")
    state = gradtx.tune(within.init(PARAMS), learning_rate=0.1)
    assert gradtx.tree_equal(within.update(GRADS[0], state, PARAMS)[0], updates)


# Frameworks -----------------------------------------------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self):
        self.body = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("mask", ["head/*", lambda path, leaf: "head" in path])
def test_an_nnx_model(mask):
    model = Net()
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, gradtx.train_only(gradtx.adam(0.1), mask), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.mean(model(jnp.ones((1, 3))) ** 2))(model))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(2):
            step(model, optimizer)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert gradtx.tree_equal(after["body"], before["body"])
    assert not gradtx.tree_equal(after["head"]["kernel"], before["head"]["kernel"])
    held = jax.tree.leaves(nnx.to_pure_dict(nnx.state(optimizer)))
    assert sum(leaf.size for leaf in held if leaf.ndim) == 2 * (4 * 2 + 2)


def test_linen_params_boxed_or_not_in_a_train_state():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return nn.Dense(2, kernel_init=init, name="head")(nn.Dense(3, name="body")(x))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = Boxed().init(jax.random.key(0), jnp.ones((1, 3)))
        tx = gradtx.train_only(gradtx.adamw(0.1, mask="*/kernel"), "*/head/*")
        state = train_state.TrainState.create(apply_fn=None, params=params, tx=tx)
        state = jax.jit(lambda state: state.apply_gradients(grads=params))(state)
    head, body = state.params["params"]["head"], state.params["params"]["body"]
    assert gradtx.tree_equal(body, params["params"]["body"])
    assert isinstance(head["kernel"], nn.Partitioned)
    assert not np.array_equal(head["kernel"].value, params["params"]["head"]["kernel"].value)


def test_dataclasses_tuples_and_none():
    @chex.dataclass
    class Layer:
        kernel: object
        bias: object

    params = (Layer(kernel=jnp.ones((2, 2)), bias=jnp.ones(2)), None, Layer(kernel=jnp.ones((1, 2)), bias=None))
    tx = gradtx.train_only(gradtx.sgd(1.0), "*/kernel")
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert type(updates[0]) is Layer
    assert updates[1] is updates[2].bias is None
    assert gradtx.tree_equal([updates[0].kernel, updates[0].bias], [-params[0].kernel, jnp.zeros(2)])
    assert gradtx.tree_equal(once(gradtx.freeze("0/*"), params, params)[0].bias, jnp.zeros(2))
