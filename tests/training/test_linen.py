"""Linen modules through `minimize` and `sweep`: the same as loops written by hand, and errors that say what to do."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import gradtx
from gradtx.training import linen

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(1), (48, 4))
DATA = {"x": X, "y": jnp.sin(X.sum(axis=1, keepdims=True))}
RATES = jnp.array([1e-3, 1e-2, 1e-1])


class Network(nn.Module):
    """Two layers; with Dropout and BatchNorm between them where asked."""

    rate: float = 0.0
    normalise: bool = False
    noise: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8)(x)
        if self.normalise:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.tanh(x))
        if self.noise:
            x += 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(1)(x)


def cost(network, batch):
    return jnp.mean((network(batch["x"], train=True) - batch["y"]) ** 2)


def stream():
    """Two passes over batches in a fixed order, the last one smaller."""
    return [{name: a[i : i + 20] for name, a in DATA.items()} for _ in range(2) for i in range(0, 48, 20)]


def by_hand(network, params, state=None, streams=()):
    """Plain gradient descent with flax alone: params, the other collections and the costs."""
    state, costs = state or {}, []
    run_key = jax.random.fold_in(KEY, 2**32 - 1)  # smaller numbers are epochs, and decide the order of the samples

    def value(params, state, batch, keys):
        variables = {"params": params, **state}
        out, new = network.apply(variables, batch["x"], train=True, rngs=keys, mutable=["batch_stats"])
        return jnp.mean((out - batch["y"]) ** 2), new

    for t, batch in enumerate(stream()):
        step_key = jax.random.fold_in(run_key, t)
        keys = {name: jax.random.fold_in(step_key, i) for i, name in enumerate(streams)}
        (at, state), g = jax.value_and_grad(value, has_aux=True)(params, state, batch, keys)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, g)
        costs.append(at)
    return params, state, jnp.stack(costs)


def assert_close(a, b, atol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), a, b)


@pytest.mark.parametrize(
    ("network", "streams", "mutable"),
    [
        (Network(), (), ()),
        (Network(rate=0.5), "dropout", ()),
        (Network(rate=0.5, noise=True), ("dropout", "noise"), ()),
        (Network(normalise=True), (), "batch_stats"),
        (Network(rate=0.5, normalise=True), ["dropout"], ["batch_stats"]),
    ],
    ids=["mlp", "dropout", "two streams", "batch norm", "dropout and batch norm"],
)
def test_minimize_is_a_loop_by_hand(network, streams, mutable):
    init = linen.init(network, X[:1], train=False)
    start = init(jax.random.key(0))
    loss = linen.loss(network, cost, rngs=streams, mutable=mutable)
    carried = {"model_state": init.model_state, "has_aux": True} if mutable else {}
    result = gradtx.minimize(loss, start, gradtx.sgd(0.1), iter(stream()), key=KEY, **carried)
    names = (streams,) if isinstance(streams, str) else streams
    params, state, costs = by_hand(network, start, init.model_state, names)
    assert_close(result.params, params)
    assert_close(result.history["loss"], costs)
    if mutable:
        assert_close(result.state["model_state"], state)
        assert float(jnp.abs(state["batch_stats"]["BatchNorm_0"]["mean"]).max()) > 1e-3  # they did move


def test_each_stream_has_a_key_of_its_own():
    class Two(nn.Module):
        @nn.compact
        def __call__(self):
            w = self.param("w", nn.initializers.zeros, ())
            a, b = (jax.random.normal(self.make_rng(name)) for name in ("a", "b"))
            return w + a - b

    loss = linen.loss(Two(), lambda network, batch: network(), rngs=("a", "b"))
    assert float(loss({"w": jnp.zeros(())}, None, key=KEY)) != 0


def test_the_module_is_called_as_the_cost_calls_it():
    network = Network(rate=0.5, normalise=True)
    init = linen.init(network, X[:1], train=False)
    params = init(KEY)
    loss = linen.loss(network, lambda network, batch: network(batch["x"], train=False).sum(), mutable="batch_stats")
    value, aux = loss(params, DATA, model_state=init.model_state)
    expected = network.apply({"params": params, **init.model_state}, X, train=False).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(aux["model_state"], init.model_state, atol=0)


@pytest.mark.parametrize("normalise", [False, True])
def test_sweep(normalise):
    network = Network(normalise=normalise)
    init = linen.init(network, X[:1], train=False)
    loss = linen.loss(network, cost, mutable="batch_stats" if normalise else ())
    options = {"model_state": init.model_state, "has_aux": True} if normalise else {}

    def measure(params, *, model_state):
        out = network.apply({"params": params, **(model_state or {})}, X, train=False)
        return {"error": jnp.mean((out - DATA["y"]) ** 2)}

    options |= {"batch_size": 16, "epochs": 3, "evaluate": measure}
    swept = gradtx.sweep(loss, init, jax.vmap(gradtx.sgd)(RATES), DATA, key=KEY, **options)
    start_key, run_key = jax.random.split(jax.random.fold_in(KEY, 0))
    for rate in RATES.tolist():
        alone = gradtx.minimize(loss, init(start_key), gradtx.sgd(rate), DATA, key=run_key, **options)
        row = int(np.flatnonzero(np.isclose(swept.table["learning_rate"], rate))[0])
        assert_close(swept.history["loss"][row], alone.history["loss"])
        np.testing.assert_allclose(swept.table["error"][row], alone.history["error"][-1], atol=1e-5)
    assert swept.table["final_loss"][swept.best.member] == swept.table["final_loss"].min()


# The smaller promises


def test_init_is_flax_init():
    network = Network(normalise=True)
    init = linen.init(network, X[:1], train=False)
    assert_close(init(KEY), network.init(KEY, X[:1], train=False)["params"], atol=0)
    assert init.model_state.keys() == {"batch_stats"}
    assert linen.init(Network(), X[:1], train=False).model_state == {}


@pytest.mark.parametrize("wrong", [Network, None, lambda x: x])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(TypeError, match=r"linen.init: module is .*must be an instance of flax.linen.Module"):
        linen.init(wrong, X)
    with pytest.raises(TypeError, match=r"linen.loss: module is .*must be an instance of flax.linen.Module"):
        linen.loss(wrong, cost)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="Dropout has no parameters; there is nothing to train"):
        linen.init(nn.Dropout(0.5, deterministic=True), X)
    with pytest.raises(TypeError, match=r"cost is 3; it must be a function: cost\(network, batch\)"):
        linen.loss(Network(), 3)
    with pytest.raises(TypeError, match="rngs is True; it must be a name or several"):
        linen.loss(Network(), cost, rngs=True)
    with pytest.raises(TypeError, match=r"mutable is \[1\]; it must be a name or several"):
        linen.loss(Network(), cost, mutable=[1])
    with pytest.raises(ValueError, match="mutable has 'params'; these the optimizer changes"):
        linen.loss(Network(), cost, mutable=("params", "batch_stats"))
    loss = linen.loss(Network(normalise=True), cost, mutable="batch_stats")
    with pytest.raises(ValueError, match=r"model_state has \['cache'\]; it must have mutable's \['batch_stats'\]"):
        loss({}, DATA, model_state={"cache": {}})


def test_what_was_left_out_is_named_by_flax():
    init = linen.init(Network(rate=0.5), X[:1], train=False)
    with pytest.raises(Exception, match="dropout"):
        gradtx.minimize(linen.loss(Network(rate=0.5), cost), init(KEY), gradtx.sgd(0.1), DATA, steps=1)
    init = linen.init(Network(normalise=True), X[:1], train=False)
    with pytest.raises(Exception, match="batch_stats"):
        gradtx.minimize(linen.loss(Network(normalise=True), cost), init(KEY), gradtx.sgd(0.1), DATA, steps=1)


def test_without_flax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    spec = importlib.util.spec_from_file_location("without_flax", linen.__file__)
    with pytest.raises(ImportError, match=r"gradtx.training.linen needs flax: pip install 'gradtx\[flax\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
