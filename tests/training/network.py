"""A linear network of one unit and its data, and other losses; a keyboard and a terminal."""

import functools
import io
import signal

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

KEY = jax.random.key(3)
SIZE = 23  # prime: every batch size between leaves a rest
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(SIZE, 3)).astype(np.float32)
Y = np.sin(X.sum(1)).astype(np.float32)
DATA = {"x": X, "y": Y}
START = np.array([0.5, -1.0, 0.25, 0.125])  # three weights and a bias
RATES = [0.001, 0.01, 0.1]


def start(dtype=jnp.float32):
    return {"w": jnp.asarray(START[:3], dtype), "b": jnp.asarray(START[3], dtype)}


def cost(params, batch):
    dtype = params["w"].dtype
    return jnp.mean((batch["x"].astype(dtype) @ params["w"] + params["b"] - batch["y"].astype(dtype)) ** 2)


def noisy(params, batch, *, key):
    return cost(params, batch) + 0.1 * params["w"] @ jax.random.normal(key, (3,), params["w"].dtype)


def bowl(params):
    return jnp.sum((params - 3.0) ** 2)


def counting(params, batch, *, model_state):
    """The mean of what it has seen, and how many batches."""
    n = model_state["n"] + 1.0
    record = {"seen": batch["y"].mean(), "by": {"n": n}, "samples": batch["y"].shape[0]}
    return cost(params, batch), {"model_state": {"n": n}, **record}


def init(key):
    """Where a run of a sweep starts."""
    return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def sgds(rates=RATES):
    return jax.vmap(gradtx.sgd)(jnp.array(rates, jnp.result_type(float)))


def keys_of(seed, key=None):
    """The keys of a sweep's seed, for `init` and for `minimize`."""
    return _keys(jax.random.key(0) if key is None else key, seed)


@jax.jit
def _keys(key, seed):
    return jax.random.split(jax.random.fold_in(key, seed))


press = functools.partial(signal.raise_signal, signal.SIGINT)


class Terminal(io.StringIO):
    def isatty(self):
        return True
