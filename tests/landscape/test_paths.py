"""The way an optimizer goes: that of the loop written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import adam, sgd
from gradtx.landscape import functions, trajectory
from tests.core.compilations import compilations
from tests.core.words import assert_words, refusal

START = np.array([-1.0, 1.5], np.float32)


def bowl(w):
    return 0.5 * w["x"] ** 2 + 2.0 * jnp.sum(w["y"] ** 2)


def loop(tx, loss, params, steps):
    """Update by update."""
    gradient, state, path = jax.jit(jax.grad(loss)), tx.init(params), [params]
    update = jax.jit(lambda g, state, params: tx.update(g, state, params))
    for _ in range(steps):
        updates, state = update(gradient(path[-1]), state, path[-1])
        path.append(jax.tree.map(jnp.add, path[-1], updates))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *path)


@pytest.mark.usefixtures("x64")
def test_gradient_descent_in_numpy():
    path = [np.array([3.0, -1.0, 2.0])]
    for _ in range(20):
        path.append(path[-1] - 0.1 * np.array([1.0, 4.0, 4.0]) * path[-1])
    found = trajectory(sgd(0.1), bowl, {"x": 3.0, "y": jnp.array([-1.0, 2.0])}, 20)
    assert jax.tree.map(jnp.shape, found) == {"x": (21,), "y": (21, 2)}
    np.testing.assert_allclose(np.column_stack([found["x"], found["y"]]), path, rtol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "tx",
    [
        adam(0.1),
        optax.adam(0.1),
        sgd(gradtx.cosine_decay_schedule(1e-3, 25), momentum=0.9),
        optax.sgd(optax.cosine_decay_schedule(1e-3, 25), momentum=0.9),
    ],
    ids=["adam", "optax.adam", "sgd on a schedule", "optax.sgd on a schedule"],
)
def test_any_optimizer_goes_as_in_a_loop(tx):
    with jax.numpy_dtype_promotion("standard"):
        found = trajectory(tx, functions.rosenbrock, START.astype(float), 30)
        np.testing.assert_allclose(found, loop(tx, functions.rosenbrock, START.astype(float), 30), rtol=1e-12)


def test_it_goes_as_minimize_does_and_keeps_the_dtypes():
    params = {"x": jnp.asarray(3.0, jnp.bfloat16), "y": jnp.array([-1.0, 2.0])}
    loss = lambda w: bowl({"x": w["x"].astype(jnp.float32), "y": w["y"]})  # noqa: E731
    found = trajectory(adam(0.1), loss, params, 5)
    ends = jax.tree.map(lambda leaf: leaf[-1], found)
    assert gradtx.tree_equal(ends, gradtx.minimize(loss, params, adam(0.1), steps=5).params)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == {"x": jnp.bfloat16, "y": jnp.float32}


def test_a_random_loss_gets_another_key_at_every_step():
    def loss(w, *, key):
        return w * jax.random.normal(key)  # the gradient is the noise

    found = np.diff(trajectory(sgd(1.0), loss, 0.0, 50, key=jax.random.key(3)))
    assert len(np.unique(found)) == 50
    assert 0.7 < found.std() < 1.3
    np.testing.assert_array_equal(found, np.diff(trajectory(sgd(1.0), loss, 0.0, 50, key=jax.random.key(3))))
    assert not np.array_equal(found, np.diff(trajectory(sgd(1.0), loss, 0.0, 50)))


def test_another_rate_or_start_compiles_nothing():
    trajectory(adam(0.1), functions.beale, START, 4)
    with compilations() as names:
        trajectory(adam(0.2), functions.beale, START + 1, 4)
    assert names == []


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (TypeError, {"tx": 0.1}, ["tx", "0.1"]),
        (ValueError, {"tx": jax.vmap(sgd)(np.array([0.1, 0.2], np.float32))}, ["tx is a sweep of 2 optimizers"]),
        (TypeError, {"loss": 3.0}, ["loss is 3.0; it must be a function"]),
        (
            TypeError,
            {"loss": lambda w: w},
            ["the loss returns an array of dtype float32 and shape (2,)", "real scalar"],
        ),
        ((TypeError, ValueError), {"loss": lambda w, batch: w[0]}, ["loss"]),
        (TypeError, {"params": np.ones(2, int)}, ["params at", "is int", "allowed: floating-point"]),
        (TypeError, {"params": {"w": np.ones(2) * 1j}}, ["params at ['w'] is complex"]),
        (ValueError, {"params": {}}, ["params has no leaves"]),
        (ValueError, {"steps": 0}, ["steps is 0; it must be at least 1."]),
        (TypeError, {"steps": 2.0}, ["steps is 2.0 of type float; it must be an int."]),
        (TypeError, {"key": 3}, ["key is 3"]),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_what_is_refused(error, options, words):
    given = {"tx": sgd(0.1), "loss": jnp.sum, "params": START, "steps": 2} | options
    text = refusal(error, lambda tx, loss, params, steps, **rest: trajectory(tx, loss, params, steps, **rest), **given)
    assert text.startswith("gradtx.landscape.trajectory: ")
    assert_words(text, *words)
