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

RATES = np.logspace(-4, 0, 64)
GENTLE = RATES <= 0.1
TASK = {"batch_size": 128, "epochs": 10}


def compared(adam, dtype):
    """The losses of a sweep divided by those of a loop over updates for each rate."""
    from tests.benchmarks import peers  # not before: it imports scikit-learn

    data = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == np.float32 else leaf, peers.digits()[0])
    start_key, key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    keys = [jax.random.fold_in(key, epoch) for epoch in range(TASK["epochs"])]
    batches = [batch for each in keys for batch in gradtx.batches(each, data, TASK["batch_size"])]

    @jax.jit
    def step(params, state, batch, rate):
        value, grads = jax.value_and_grad(peers.loss)(params, batch)
        updates, state = adam(rate).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def losses(rate):
        at = peers.init(start_key, 128)
        state = adam(rate).init(at)
        for batch in batches:
            at, state, value = step(at, state, batch, rate)
            yield value

    rates = jnp.asarray(RATES)
    swept = gradtx.sweep(peers.loss, lambda key: peers.init(key, 128), jax.vmap(gradtx.adam)(rates), data, **TASK)
    assert swept.history["loss"].shape == (64, 120)
    return swept.history["loss"] / np.array([jax.device_get(list(losses(rate))) for rate in rates])


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_sweep_has_the_losses_of_loops(dtype):
    wide = dtype == "float64"
    with jax.enable_x64(wide), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        difference = np.abs(compared(optax.adam if wide else gradtx.adam, dtype) - 1)
    asked = np.where(GENTLE, difference.max(1), difference[:, :20].max(1))
    if wide:
        assert asked.max() < 1e-9
    else:
        assert difference[GENTLE, :20].max() < 1e-4  # measured: 1.3e-6
        assert np.median(asked) < 1e-4  # measured: 1.1e-6
        assert (asked < 1e-4).sum() >= 58  # measured: 62; which rates amplify it depends on the processor
