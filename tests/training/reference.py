"""What `minimize` makes of the network of `network.py`, written out in NumPy, and comparisons with it."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from gradtx import tree_equal
from gradtx.training.minibatches import sample_batches
from tests.training.network import SIZE, START, X, Y


def vector(params):
    return np.append(params["w"], params["b"])


def index_batches(key, steps, batch_size=None, **sampling):
    """What the first steps read, epoch after epoch."""
    rows, epochs = [], itertools.count()
    while len(rows) < steps:
        rows += map(np.asarray, sample_batches(jax.random.fold_in(key, next(epochs)), SIZE, batch_size, **sampling))
    return rows[:steps]


def noise(key, steps):
    """The slopes that `noisy` adds at the first steps."""
    return 0.1 * np.asarray(_drawn(jax.random.fold_in(key, 2**32 - 1), jnp.arange(40)))[:steps]


@jax.jit
def _drawn(key, steps):
    return jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(key, t), (3,)))(steps)


def descent(batches, begin=START, *, rate=0.1, momentum=0.0, rho=0.0, noise=None):
    """Gradient descent on index batches, with `rho` SAM, in float64: where it ends, and the losses on the way."""
    at, trace, losses = np.array(begin, np.float64), 0.0, []
    for t, rows in enumerate(batches):
        drift = np.zeros(4) if noise is None else np.append(noise[t], 0.0)
        x, y = np.c_[X[rows], np.ones(len(rows))].astype(np.float64), Y[rows].astype(np.float64)

        def slope(at, x=x, y=y, drift=drift):
            return 2 * x.T @ (x @ at - y) / len(y) + drift

        losses.append(((x @ at - y) ** 2).mean() + drift @ at)
        g = slope(at)
        g = slope(at + rho * g / np.linalg.norm(g)) if rho else g
        trace = g + momentum * trace
        at = at - rate * trace
    return at, np.array(losses)


def assert_close(result, expected, tolerance):
    at, losses = expected
    np.testing.assert_allclose(result.history["loss"], losses, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(vector(result.params), at, rtol=tolerance, atol=tolerance)


def assert_same(first, second):
    """Equal bits: one compiled program, run in other pieces."""
    for name, a, b in zip(("params", "state", "history"), first, second, strict=True):
        assert tree_equal(a, b), name


def pickled(result):
    return pickle.loads(pickle.dumps((result.params, result.state)))


def packed(result):
    data = serialization.to_bytes((result.params, result.state))
    return serialization.from_bytes((result.params, result.state), data)
