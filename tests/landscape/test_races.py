"""The lecture's race on the saddle, and what the way of an optimizer is."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import landscape

START, MOST = (1.0, 1e-4), 2000


def methods(rate):
    return {
        "gradient descent": gradtx.sgd(rate),
        "momentum": gradtx.sgd(rate, momentum=0.9),
        "Nesterov": gradtx.sgd(rate, momentum=0.9, nesterov=True),
        "Adagrad": gradtx.adagrad(rate, initial_accumulator_value=0.0),
        "RMSProp": gradtx.rmsprop(rate),
        "Adadelta": gradtx.adadelta(1.0),
        "Adam": gradtx.adam(rate),
    }


def left_after(rate):
    """For each method, the steps until abs y > 1."""
    found = {}
    for name, tx in methods(rate).items():
        away = np.abs(landscape.trajectory(tx, landscape.functions.saddle, jnp.array(START), MOST)[:, 1]) > 1
        assert away.any(), name
        found[name] = int(away.argmax())
    return found


def test_on_the_saddle_gradient_descent_is_last():
    steps = left_after(0.1)
    assert steps["gradient descent"] == 51
    assert steps["Adadelta"] == 33
    others = [count for name, count in steps.items() if name not in ("gradient descent", "Adadelta")]
    assert max(others) <= 24
    assert max(steps, key=steps.get) == "gradient descent"


def test_at_a_tenth_of_the_rate_adagrad_is_last():
    steps = left_after(0.01)
    assert max(steps, key=steps.get) == "Adagrad"


def test_gradient_descent_on_the_saddle_by_hand():
    """y grows by 1 + 2 rate a step: 1e-4 * 1.2^51 is above 1, and 1e-4 * 1.2^50 is not."""
    way = landscape.trajectory(gradtx.sgd(0.1), landscape.functions.saddle, jnp.array(START), 51)
    np.testing.assert_allclose(way[:, 1], 1e-4 * 1.2 ** np.arange(52), rtol=1e-4)
    np.testing.assert_allclose(way[:, 0], 0.8 ** np.arange(52), rtol=1e-4)


@pytest.mark.parametrize("steps", [0, 1.5, True])
def test_steps_are_counted(steps):
    with pytest.raises((TypeError, ValueError), match=r"gradtx\.landscape\.trajectory: steps is"):
        landscape.trajectory(gradtx.sgd(0.1), landscape.functions.saddle, jnp.array(START), steps)
