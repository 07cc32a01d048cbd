"""Plateaus: against a transcription and optax over long noisy losses, and values that are not numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.records import effects

STEPS = 400
SETTINGS = [
    {},
    {"factor": 0.5, "patience": 3, "cooldown": 4, "rtol": 0.01},
    {"factor": 0.7, "patience": 2, "accumulation_size": 5, "atol": 0.02, "rtol": 0.0, "min_scale": 0.05},
    {"factor": 0.9, "patience": 1, "cooldown": 1, "accumulation_size": 2, "min_scale": 0.3},
]


def losses(*, nan: bool) -> np.ndarray:
    """A falling loss with noise, stretches of standstill, and some that are not numbers."""
    rng = np.random.default_rng(0)
    fall = np.where(np.arange(STEPS) // 40 % 2 == 0, 0.02, 0.0)
    values = 5 * np.exp(-np.cumsum(fall)) * (1 + 0.02 * rng.normal(size=STEPS))
    values[rng.random(STEPS) < 0.03] = np.nan if nan else 9.0
    return values


def scales(tx, values):
    """What a gradient of 1 becomes, at every step."""

    def step(state, value):
        update, state = tx.update(jnp.float64(1), state, value=value)
        return state, update

    return jax.jit(lambda values: jax.lax.scan(step, tx.init(jnp.float64(0)), values)[1])(jnp.asarray(values))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("nan", [False, True], ids=["numbers", "nan"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_it_is_its_rule_and_optax(setting, nan):
    values = losses(nan=nan)
    ours = scales(gradtx.reduce_on_plateau(**setting), values)
    expected = np.array(effects.reduce_on_plateau(values, **setting))
    assert len(set(expected)) > 2
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    with jax.numpy_dtype_promotion("standard"):
        theirs = scales(optax.contrib.reduce_on_plateau(**setting), values)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def run(tx, values):
    state, out = tx.init(jnp.float32(0)), []
    for value in values:
        update, state = tx.update(jnp.float32(1), state, value=value)
        out.append(float(update))
    return out, state["reduce_on_plateau"]


def test_the_same_loss_is_no_improvement():
    assert run(gradtx.reduce_on_plateau(0.5, patience=1, rtol=0.0), [1.0, 1.0, 1.0])[0] == [1.0, 0.5, 0.25]


def test_nan_is_no_improvement_and_is_forgotten():
    tx = gradtx.reduce_on_plateau(0.5, patience=2)
    out, state = run(tx, [np.nan, np.nan, 3.0, np.nan, 1.0, np.inf])
    assert out == [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert float(state["best_value"]) == 1.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_nan_among_accumulated_values_spoils_their_mean_only():
    tx = gradtx.reduce_on_plateau(0.5, patience=1, accumulation_size=2)
    out, state = run(tx, [1.0, np.nan, 4.0, 2.0, 2.0, 2.0])
    assert out == [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert float(state["best_value"]) == 2.0


def test_in_a_composition_it_scales_what_is_before_it():
    tx = gradtx.adam(0.1) >> gradtx.reduce_on_plateau(0.5, patience=1)
    params, state = jnp.ones(2), (gradtx.adam(0.1) >> gradtx.reduce_on_plateau(0.5, patience=1)).init(jnp.ones(2))
    for expected in (-0.1, -0.05):
        update, state = tx.update(params, state, params, value=2)
        np.testing.assert_allclose(update, expected, rtol=1e-5)
