"""The task of the benchmarks, digits with 64 learning rates: the losses are those of a plain loop.

The aim is 1e-4 of each loss: over all updates for rates up to 0.1, over the first 20 for larger ones. In float64 every
rate meets it a hundred thousand times over, against optax's Adam. In float32 a product of many matrices rounds
unlike one, and the training of some rates amplifies that a thousandfold: against a loop over the same optimizer
62 of the 64 rates meet it (with jax 0.10.2, and another 62 with 0.8.1).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.benchmarks import peers

RATES = np.logspace(-4, 0, 64)
GENTLE = RATES <= 0.1
TASK = {"batch_size": 128, "epochs": 10}
EARLY = 20  # updates


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def task(dtype):
    """Data, parameters to start from, and the key of the run."""
    data = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == np.float32 else leaf, peers.digits()[0])
    start_key, key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    return data, peers.init(start_key, 128), key


def plain_loops(adam, data, params, key):
    """The losses of a loop over updates for each rate, with one compiled step."""

    @jax.jit
    def step(params, state, batch, rate):
        value, grads = jax.value_and_grad(peers.loss)(params, batch)
        updates, state = adam(rate).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    keys = [jax.random.fold_in(key, epoch) for epoch in range(TASK["epochs"])]
    batches = [batch for each in keys for batch in gradtx.batches(each, data, TASK["batch_size"])]

    def losses(rate):
        at, state = params, adam(rate).init(params)
        for batch in batches:
            at, state, value = step(at, state, batch, rate)
            yield value

    return np.array([jax.device_get(list(losses(rate))) for rate in jnp.asarray(RATES)])


def sweep(data):
    txs = jax.vmap(gradtx.adam)(jnp.asarray(RATES))
    return gradtx.sweep(peers.loss, lambda key: peers.init(key, 128), txs, data, **TASK).history["loss"]


def test_in_float64_a_sweep_and_minimize_have_the_losses_of_loops_with_optax(x64):
    data, params, key = task("float64")
    expected = plain_loops(optax.adam, data, params, key)
    losses = sweep(data)
    assert losses.shape == expected.shape == (64, 120)
    np.testing.assert_allclose(losses[GENTLE], expected[GENTLE], rtol=1e-9)
    np.testing.assert_allclose(losses[:, :EARLY], expected[:, :EARLY], rtol=1e-9)
    for i in (0, 20, 40):
        run = gradtx.minimize(peers.loss, params, gradtx.adam(RATES[i]), data, key=key, **TASK)
        np.testing.assert_allclose(run.history["loss"], expected[i], rtol=1e-9)


def test_in_float32_most_rates_agree_until_rounding_is_amplified():
    data, params, key = task("float32")
    expected = plain_loops(gradtx.adam, data, params, key)
    difference = np.abs(sweep(data) / expected - 1)
    assert difference[GENTLE, :EARLY].max() < 1e-4  # measured: 1.3e-6
    asked = np.where(GENTLE, difference.max(1), difference[:, :EARLY].max(1))
    assert np.median(asked) < 1e-4  # measured: 1.1e-6
    assert (asked < 1e-4).sum() >= 58  # measured: 62; which rates amplify it depends on the processor
