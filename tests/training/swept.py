"""A small network, its data, and a sweep of its learning rate."""

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

SIZE = 23
RANDOM = np.random.default_rng(0)
DATA = {
    "x": RANDOM.normal(size=(SIZE, 4)).astype(np.float32),
    "y": RANDOM.normal(size=(SIZE, 2)).astype(np.float32),
}
RATES = [0.001, 0.003, 0.01, 0.03, 0.1]


def init(key):
    first, second = jax.random.split(key)
    return {"w": 0.5 * jax.random.normal(first, (4, 3)), "v": 0.5 * jax.random.normal(second, (3, 2))}


def loss(params, batch):
    return jnp.mean((jnp.tanh(batch["x"] @ params["w"]) @ params["v"] - batch["y"]) ** 2)


def adams(rates=RATES):
    return jax.vmap(gradtx.adam)(jnp.array(rates, jnp.float32))


def keys_of(seed, key=None):
    return jax.random.split(jax.random.fold_in(jax.random.key(0) if key is None else key, seed))
