"""A small network and its data, and the loop that `minimize` stands for, written out."""

import io
import os
import pickle
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

import gradtx
from gradtx import tree_equal
from gradtx.training.minibatches import sample_batches, take

KEY = jax.random.key(3)
SIZE = 23  # prime: every batch size between leaves a rest
rng = np.random.default_rng(0)
X = rng.normal(size=(SIZE, 3)).astype(np.float32)
Y = np.sin(X.sum(1)).astype(np.float32)
DATA = {"x": X, "y": Y}


def start(dtype=jnp.float32):
    """A network of 3, 4 and 1 units."""
    draw = np.random.default_rng(1).normal
    return {"w": jnp.asarray(draw(size=(3, 4)), dtype), "b": jnp.zeros(4, dtype), "v": jnp.asarray(draw(size=4), dtype)}


def cost(params, batch):
    dtype = params["w"].dtype
    hidden = jnp.tanh(batch["x"].astype(dtype) @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - batch["y"].astype(dtype)) ** 2)


def noisy(params, batch, *, key):
    return cost(params, batch) + 0.1 * jnp.sum(params["v"] * jax.random.normal(key, (4,)))


def bowl(params):
    return jnp.sum((params - 3.0) ** 2)


def counting(params, batch, *, model_state):
    """The mean of what it has seen, and how many batches."""
    n = model_state["n"] + 1.0
    return cost(params, batch), {
        "model_state": {"n": n},
        "seen": batch["y"].mean(),
        "by": {"n": n},
        "samples": batch["y"].shape[0],
    }


def plain_loop(loss, params, tx, data, steps, *, key=None, batch_size=None, has_key=False, **sampling):
    """What `minimize` does, written with public parts; returns the params and the losses."""
    key = jax.random.key(0) if key is None else key
    step = jax.jit(jax.value_and_grad(loss))
    init, update = (jax.jit(f) for f in tx)
    state, losses, orders, epoch = init(params), [], iter(()), 0
    for t in range(steps):
        batch = []
        if data is not None:
            indices = next(orders, None)
            if indices is None:
                epoch_key = jax.random.fold_in(key, epoch)
                orders = iter(sample_batches(epoch_key, SIZE, batch_size, **sampling))
                indices, epoch = next(orders), epoch + 1
            batch = [take(data, indices)]
        wanted = {"key": jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), t)} if has_key else {}
        value, grads = step(params, *batch, **wanted)
        updates, state = update(jax.tree.map(jnp.conj, grads), state, params)
        params = gradtx.apply_updates(params, updates)
        losses.append(value)
    return params, np.stack(jax.device_get(losses))


def assert_close(result, expected, tolerance):
    params, losses = expected
    assert result.history["loss"].shape == losses.shape
    np.testing.assert_allclose(result.history["loss"].astype(float), losses.astype(float), rtol=tolerance, atol=1e-6)
    for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def assert_same(first, second):
    """Equal bits: params, state and history."""
    assert tree_equal(first.params, second.params)
    assert tree_equal(first.state, second.state)
    assert tree_equal(first.history, second.history)


def through_pickle(result):
    return pickle.loads(pickle.dumps((result.params, result.state)))


def through_msgpack(result):
    data = serialization.to_bytes((result.params, result.state))
    return serialization.from_bytes((result.params, result.state), data)


def press_after(seconds, times=1):
    def press():
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


class Terminal(io.StringIO):
    def isatty(self):
        return True
