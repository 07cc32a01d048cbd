"""nnx modules through `minimize` and `sweep`: the same as loops written by hand, and errors that say what to do."""

import importlib.util
import pickle
import sys

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.training import nnx

X = jax.random.normal(jax.random.key(1), (48, 4))
DATA = {"x": X, "y": jnp.sin(X.sum(axis=1, keepdims=True))}
RATES = jnp.array([1e-3, 1e-2, 1e-1])


class Network(flax.nnx.Module):
    """Two layers; with Dropout and BatchNorm between them where asked."""

    def __init__(self, rngs, *, rate=0.0, normalise=False):
        self.hidden = flax.nnx.Linear(4, 8, rngs=rngs)
        self.norm = flax.nnx.BatchNorm(8, momentum=0.9, rngs=rngs) if normalise else None
        self.dropout = flax.nnx.Dropout(rate, rngs=rngs) if rate else None
        self.output = flax.nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        x = self.hidden(x)
        x = x if self.norm is None else self.norm(x)
        x = jnp.tanh(x)
        x = x if self.dropout is None else self.dropout(x)
        return self.output(x)


def cost(network, batch):
    return jnp.mean((network(batch["x"]) - batch["y"]) ** 2)


def stream():
    """Two passes over batches in a fixed order, the last one smaller."""
    return [{name: a[i : i + 20] for name, a in DATA.items()} for _ in range(2) for i in range(0, 48, 20)]


def by_hand(network):
    """Plain gradient descent with flax alone, which changes the network in place: the costs."""
    costs = []
    for batch in stream():
        value, gradient = flax.nnx.value_and_grad(cost)(network, batch)
        params = flax.nnx.state(network, flax.nnx.Param)
        flax.nnx.update(network, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
        costs.append(value)
    return jnp.stack(costs)


def assert_close(a, b, atol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), a, b)


def carried(model_state):
    return {"model_state": model_state, "has_aux": True} if model_state else {}


KINDS = pytest.mark.parametrize(
    "kind",
    [{}, {"rate": 0.5}, {"normalise": True}, {"rate": 0.5, "normalise": True}],
    ids=["mlp", "dropout", "batch norm", "dropout and batch norm"],
)


@KINDS
def test_minimize_is_a_loop_by_hand(kind):
    network, theirs = (Network(flax.nnx.Rngs(0), **kind) for _ in range(2))
    params, model_state = nnx.split(network)
    assert bool(model_state) == bool(kind)
    tx, loss = gradtx.sgd(0.1), nnx.loss(network, cost)
    result = gradtx.minimize(loss, params, tx, iter(stream()), **carried(model_state))
    assert_close(nnx.split(network)[0], params, atol=0)  # the module itself has not been touched
    costs = by_hand(theirs)
    assert_close(result.history["loss"], costs)
    nnx.update(network, result.params, result.state["model_state"])
    assert_close(nnx.split(network), nnx.split(theirs))  # parameters, running averages, keys and their counts
    network.eval(), theirs.eval()
    assert_close(network(X), theirs(X))


@KINDS
def test_a_run_that_was_saved_goes_on(kind):
    network = Network(flax.nnx.Rngs(0), **kind)
    params, model_state = nnx.split(network)
    loss, tx = nnx.loss(network, cost), gradtx.sgd(0.1)
    options = {"batch_size": 16, "steps": 3, "has_aux": bool(model_state)}
    whole = gradtx.minimize(loss, params, tx, DATA, **options | {"steps": 6}, model_state=model_state or None)
    half = gradtx.minimize(loss, params, tx, DATA, **options, model_state=model_state or None)
    params, state = pickle.loads(pickle.dumps((half.params, half.state)))
    rest = gradtx.minimize(loss, params, tx, DATA, **options, state=state)
    assert_close(rest.params, whole.params, atol=0)
    assert_close(rest.state["model_state"], whole.state["model_state"], atol=0)


@pytest.mark.parametrize("kind", [{}, {"normalise": True}], ids=["mlp", "batch norm"])
def test_sweep(kind):
    network = Network(flax.nnx.Rngs(0), **kind)
    _, model_state = nnx.split(network)
    loss = nnx.loss(network, cost)
    init = lambda key: nnx.split(Network(flax.nnx.Rngs(key), **kind))[0]  # noqa: E731
    options = {"batch_size": 16, "epochs": 3, **carried(model_state)}
    swept = gradtx.sweep(loss, init, jax.vmap(gradtx.sgd)(RATES), DATA, **options)
    start_key, run_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    for rate in RATES.tolist():
        alone = gradtx.minimize(loss, init(start_key), gradtx.sgd(rate), DATA, key=run_key, **options)
        row = int(np.flatnonzero(np.isclose(swept.table["learning_rate"], rate))[0])
        assert_close(swept.history["loss"][row], alone.history["loss"])
    nnx.update(network, swept.best.params)
    assert_close(nnx.split(network)[0], swept.best.params, atol=0)


# The smaller promises


def test_flags_are_those_of_the_module_or_of_the_cost():
    network = Network(flax.nnx.Rngs(0), rate=0.5)
    params, model_state = nnx.split(network)
    training = nnx.loss(network, cost)

    def quiet(network, batch):
        network.eval()
        return cost(network, batch)

    in_cost = nnx.loss(network, quiet)(params, DATA, model_state=model_state)[0]
    network.eval()
    in_module = nnx.loss(network, cost)(params, DATA, model_state=model_state)[0]
    np.testing.assert_allclose(in_cost, in_module)
    assert abs(float(training(params, DATA, model_state=model_state)[0] - in_module)) > 1e-3


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_keys_keep_their_kind(impl):
    network = Network(flax.nnx.Rngs(jax.random.key(0, impl=impl)), rate=0.5)
    params, model_state = nnx.split(network)
    assert all(jnp.issubdtype(leaf.dtype, jnp.unsignedinteger) for leaf in jax.tree.leaves(model_state))
    _, aux = nnx.loss(network, cost)(params, DATA, model_state=model_state)
    nnx.update(network, params, aux["model_state"])
    rng = network.dropout.rngs
    assert jax.random.key_impl(rng.key[...]) == impl
    assert int(rng.count[...]) == 1


def test_update_refuses_parts_of_another_form_and_changes_nothing():
    network = Network(flax.nnx.Rngs(0), normalise=True)
    params, model_state = before = nnx.split(network)
    other, _ = nnx.split(Network(flax.nnx.Rngs(1)))
    with pytest.raises(ValueError, match=r"nnx.update: params is .*; Network has "):
        nnx.update(network, other, model_state)
    with pytest.raises(ValueError, match=r"nnx.update: model_state is \{\}; Network has "):
        nnx.update(network, jax.tree.map(jnp.zeros_like, params), {})
    assert_close(nnx.split(network), before, atol=0)


@pytest.mark.parametrize("wrong", [Network, None, lambda x: x])
def test_what_is_no_module_is_refused(wrong):
    for call in (nnx.split, lambda module: nnx.loss(module, cost), lambda module: nnx.update(module, {})):
        with pytest.raises(TypeError, match=r"nnx: module is .*; it must be an instance of flax.nnx.Module"):
            call(wrong)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"Dropout has no nnx.Param; there is nothing to train"):
        nnx.split(flax.nnx.Dropout(0.5, rngs=flax.nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"cost is 3; it must be a function: cost\(network, batch\)"):
        nnx.loss(Network(flax.nnx.Rngs(0)), 3)


def test_without_flax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    spec = importlib.util.spec_from_file_location("without_flax", nnx.__file__)
    with pytest.raises(ImportError, match=r"gradtx.training.nnx needs flax: pip install 'gradtx\[flax\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
