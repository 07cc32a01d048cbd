"""The way an optimizer goes: that of the loop written out, and the lecture's race on the saddle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import adam, sgd
from gradtx.landscape import functions, trajectory
from tests.core.compilations import compilations

START = np.array([-1.0, 1.5], np.float32)


def bowl(w):
    return 0.5 * w["x"] ** 2 + 2.0 * jnp.sum(w["y"] ** 2)


@pytest.mark.usefixtures("x64")
def test_gradient_descent_in_numpy():
    path = [np.array([3.0, -1.0, 2.0])]
    for _ in range(20):
        path.append(path[-1] - 0.1 * np.array([1.0, 4.0, 4.0]) * path[-1])
    found = trajectory(sgd(0.1), bowl, {"x": 3.0, "y": jnp.array([-1.0, 2.0]), "z": jnp.ones((), jnp.bfloat16)}, 20)
    assert jax.tree.map(jnp.shape, found) == {"x": (21,), "y": (21, 2), "z": (21,)}
    assert (found["x"].dtype, found["z"].dtype) == (jnp.float64, jnp.bfloat16)
    np.testing.assert_allclose(np.column_stack([found["x"], found["y"]]), path, rtol=1e-13)


def test_optax_s_optimizers_go_as_ours_and_another_rate_compiles_nothing():
    with jax.numpy_dtype_promotion("standard"):
        found, expected = (trajectory(tx(0.1), functions.rosenbrock, START, 20) for tx in (adam, optax.adam))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert np.ptp(found, axis=0).min() > 0.1
        with compilations() as names:
            trajectory(adam(0.2), functions.rosenbrock, START + 1, 20)
        assert not any("visited" in name for name in names)


def test_a_random_loss_gets_another_key_at_every_step():
    def loss(w, *, key):
        return w * jax.random.normal(key)  # the gradient is the noise

    found = np.diff(trajectory(sgd(1.0), loss, 0.0, 50, key=jax.random.key(3)))
    assert len(np.unique(found)) == 50
    assert 0.7 < found.std() < 1.3
    np.testing.assert_array_equal(found, np.diff(trajectory(sgd(1.0), loss, 0.0, 50, key=jax.random.key(3))))
    assert not np.array_equal(found, np.diff(trajectory(sgd(1.0), loss, 0.0, 50)))


def test_on_the_saddle_gradient_descent_is_last_and_at_a_tenth_of_the_rate_adagrad():
    """y grows by 1 + 2 rate a step: 1e-4 * 1.2^51 is above 1, and 1e-4 * 1.2^50 is not."""
    left = []
    for rate in (0.1, 0.01):
        for tx in (sgd(rate), gradtx.adagrad(rate, initial_accumulator_value=0.0)):
            away = np.abs(trajectory(tx, functions.saddle, jnp.array([1.0, 1e-4]), 800)[:, 1]) > 1
            left.append(int(away.argmax()) if away.any() else 801)
    assert left[0] == 51 > 24 >= left[1]
    assert left[2] < left[3]
