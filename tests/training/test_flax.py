"""Flax's modules as losses, of linen and of nnx: the same as loops written by hand with flax alone."""

import pickle

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import gradtx
from gradtx.training import linen, nnx
from tests.training.network import DATA, KEY, keys_of

Y = DATA["y"][:, None]
BATCHES = [{"x": DATA["x"][i : i + 10], "y": Y[i : i + 10]} for i in (0, 10, 20)]  # the last one smaller


class Linen(nn.Module):
    """A layer; with Dropout, BatchNorm and noise of their own where asked."""

    rate: float = 0.0
    normalise: bool = False
    noise: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        if self.normalise:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        if self.noise:
            x += 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(1)(x)


class Nnx(flax.nnx.Module):
    """The same."""

    def __init__(self, rngs, *, rate=0.0, normalise=False):
        self.norm = flax.nnx.BatchNorm(3, momentum=0.9, rngs=rngs) if normalise else None
        self.dropout = flax.nnx.Dropout(rate, rngs=rngs) if rate else None
        self.output = flax.nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x, **flags):
        x = x if self.norm is None else self.norm(x)
        x = x if self.dropout is None else self.dropout(x)
        return self.output(x)


def cost(network, batch):
    return jnp.mean((network(batch["x"], train=True) - batch["y"]) ** 2)


def assert_close(a, b, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=atol, atol=atol), a, b)


# linen


@pytest.mark.parametrize(
    ("network", "streams", "mutable"),
    [
        (Linen(), (), ()),
        (Linen(rate=0.5), "dropout", ()),
        (Linen(rate=0.5, normalise=True, noise=True), ["dropout", "noise"], ["batch_stats"]),
    ],
    ids=["plain", "dropout", "all"],
)
def test_a_linen_loss_is_its_cost_with_keys_and_collections(network, streams, mutable):
    begin = linen.init(network, DATA["x"][:1], train=False)
    params = begin(KEY)
    assert_close(params, network.init(KEY, DATA["x"][:1], train=False)["params"], atol=0)
    assert begin.model_state.keys() == ({"batch_stats"} if mutable else set())
    loss = linen.loss(network, cost, rngs=streams, mutable=mutable)
    wanted = ({"key": KEY} if streams else {}) | ({"model_state": begin.model_state} if mutable else {})
    returned = loss(params, BATCHES[0], **wanted)
    names = [streams] if isinstance(streams, str) else streams
    keys = {name: jax.random.fold_in(KEY, i) for i, name in enumerate(names)}
    variables = {"params": params, **begin.model_state}
    out, state = network.apply(variables, BATCHES[0]["x"], train=True, rngs=keys, mutable=["batch_stats"])
    value, aux = returned if mutable else (returned, {"model_state": {}})
    np.testing.assert_allclose(value, np.mean((np.asarray(out) - BATCHES[0]["y"]) ** 2), rtol=1e-5)
    assert_close(aux, {"model_state": state})
    if mutable:
        assert np.abs(state["batch_stats"]["BatchNorm_0"]["mean"]).max() > 1e-3  # they did move


def test_minimize_with_a_linen_module_is_a_loop_by_hand():
    network = Linen(rate=0.5, normalise=True)
    begin = linen.init(network, DATA["x"][:1], train=False)
    loss = linen.loss(network, cost, rngs="dropout", mutable="batch_stats")
    carried = {"model_state": begin.model_state, "has_aux": True}
    params, state = begin(KEY), begin.model_state
    result = gradtx.minimize(loss, params, gradtx.sgd(0.1), iter(BATCHES), key=KEY, **carried)
    slope, costs = jax.jit(jax.value_and_grad(loss, has_aux=True)), []
    for t, batch in enumerate(BATCHES):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 2**32 - 1), t)
        (value, aux), g = slope(params, batch, key=key, model_state=state)
        params, state = jax.tree.map(lambda p, g: p - 0.1 * g, params, g), aux["model_state"]
        costs.append(value)
    assert_close((result.params, result.state["model_state"]), (params, state), 1e-5)
    np.testing.assert_allclose(result.history["loss"], costs, rtol=1e-5)


# nnx


@pytest.mark.parametrize("kind", [{}, {"rate": 0.5, "normalise": True}], ids=["plain", "dropout and batch norm"])
def test_minimize_with_an_nnx_module_is_a_loop_by_hand(kind):
    network, theirs = (Nnx(flax.nnx.Rngs(0), **kind) for _ in range(2))
    params, model_state = nnx.split(network)
    assert bool(model_state) == bool(kind)
    loss, carried = nnx.loss(network, cost), {"model_state": model_state, "has_aux": True} if kind else {}
    result = gradtx.minimize(loss, params, gradtx.sgd(0.1), iter(BATCHES), **carried)
    half = gradtx.minimize(loss, params, gradtx.sgd(0.1), iter(BATCHES[:2]), **carried)
    assert_close(nnx.split(network), (params, model_state), atol=0)  # the module itself has not been touched

    @flax.nnx.jit
    def step(network, batch):
        value, gradient = flax.nnx.value_and_grad(cost)(network, batch)
        params = flax.nnx.state(network, flax.nnx.Param)
        flax.nnx.update(network, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
        return value

    np.testing.assert_allclose(result.history["loss"], [step(theirs, batch) for batch in BATCHES], rtol=1e-5)
    nnx.update(network, result.params, result.state["model_state"])
    assert_close(nnx.split(network), nnx.split(theirs), 1e-5)  # parameters, running averages, keys and their counts
    network.eval(), theirs.eval()
    assert_close(network(DATA["x"]), theirs(DATA["x"]), 1e-5)

    params, state = pickle.loads(pickle.dumps((half.params, half.state)))
    rest = gradtx.minimize(loss, params, gradtx.sgd(0.1), iter(BATCHES[2:]), state=state, has_aux=bool(kind))
    assert_close((rest.params, rest.state["model_state"]), (result.params, result.state["model_state"]), atol=0)


def test_sweep_with_an_nnx_module(one_device):
    network = Nnx(flax.nnx.Rngs(0))
    loss, data = nnx.loss(network, cost), {"x": DATA["x"], "y": Y}

    def begin(key):
        return nnx.split(Nnx(flax.nnx.Rngs(key)))[0]

    swept = gradtx.sweep(loss, begin, [gradtx.sgd(0.1)], data, steps=1)
    params = begin(keys_of(0)[0])
    np.testing.assert_allclose(swept.history["loss"], [[loss(params, data)]], rtol=1e-5)
    nnx.update(network, swept.best.params)
    assert_close(nnx.split(network)[0], swept.best.params, atol=0)


def test_flags_and_kinds_of_keys_are_those_of_the_module():
    network = Nnx(flax.nnx.Rngs(jax.random.key(0, impl="rbg")), rate=0.5)
    params, model_state = nnx.split(network)
    assert all(jnp.issubdtype(leaf.dtype, jnp.unsignedinteger) for leaf in jax.tree.leaves(model_state))
    value, aux = nnx.loss(network, cost)(params, BATCHES[0], model_state=model_state)
    nnx.update(network, jax.tree.map(jnp.zeros_like, params))
    assert network(DATA["x"]).tolist() == [[0.0]] * 23
    nnx.update(network, params, aux["model_state"])
    assert jax.random.key_impl(network.dropout.rngs.key[...]) == "rbg"
    assert int(network.dropout.rngs.count[...]) == 1

    def quiet(network, batch):
        network.eval()
        return cost(network, batch)

    in_cost = nnx.loss(network, quiet)(params, BATCHES[0], model_state=model_state)[0]
    network.eval()
    in_module = nnx.loss(network, cost)(params, BATCHES[0], model_state=model_state)[0]
    np.testing.assert_allclose(in_cost, in_module, rtol=1e-6)
    assert abs(float(value - in_module)) > 1e-3


def test_an_update_that_is_refused_changes_nothing():
    network = Nnx(flax.nnx.Rngs(0), normalise=True)
    params, model_state = before = nnx.split(network)
    for parts in ((nnx.split(Nnx(flax.nnx.Rngs(1)))[0], model_state), (jax.tree.map(jnp.zeros_like, params), {})):
        with pytest.raises(ValueError, match=r"nnx.update: "):
            nnx.update(network, *parts)
        assert_close(nnx.split(network), before, atol=0)
