"""The stack of the records: the switch of the two momenta, and the expression as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from tests.records import streams


def run(tx, gradients):
    params = jnp.zeros(streams.SIZE)
    state, update, rows = tx.init(params), jax.jit(tx.update), []
    for g in gradients:
        u, state = update(jnp.asarray(g, jnp.float32), state)
        rows.append(np.asarray(u))
    return np.array(rows)


@pytest.mark.parametrize("nesterov", [True, False])
def test_two_momenta_are_one_up_to_the_switch_and_another_then(nesterov):
    _, gradients = streams.stream(12)
    one = run(gradtx.scale_by_momentum(0.95, form="average", nesterov=nesterov), gradients)
    two = run(gradtx.scale_by_two_momenta(start_step=7, nesterov=nesterov), gradients)
    np.testing.assert_allclose(two[:8], one[:8], rtol=1e-6)
    assert np.all(np.abs(two[8:] - one[8:]).max(axis=-1) > 1e-3 * np.abs(one[8:]).max(axis=-1))


def test_the_mean_age_of_a_gradient_is_thirty_updates():
    tx = gradtx.scale_by_two_momenta(start_step=0, nesterov=False)
    impulse = [0.0, *[1.0], *[0.0] * 3000]  # the first update belongs to the single average
    weights = run(tx, [np.full(streams.SIZE, g) for g in impulse])[1:, 0].astype(np.float64)
    assert weights.sum() == pytest.approx(1, rel=1e-4)
    assert (weights * np.arange(weights.size)).sum() == pytest.approx(0.4385 * 85 / 15 + 0.5615 * 49, rel=1e-3)


@pytest.mark.usefixtures("x64")
def test_ema_nesterov_is_the_loop_of_its_authors():
    """Forward along the buffer, gradient, inner step, then the buffer; the rate is that of the step before."""
    rates = np.linspace(0.3, 0.0, 20)
    p = previous = streams.stream(1)[0]
    buffer, path = np.zeros_like(p), []
    for step in range(20):
        p = p + (rates[step - 1] if step else 0) * buffer
        path.append(p)
        p = p - 0.1 * np.sin(p)
        buffer = 0.9 * buffer + 0.1 * (p - previous)
        previous = p

    tx = gradtx.sgd(0.1) >> gradtx.ema_nesterov(gradtx.linear_schedule(0.3, 0.0, 19), 0.9)
    w = jnp.asarray(path[0])
    state = tx.init(w)
    for expected in path:
        np.testing.assert_allclose(w, expected, rtol=1e-12)
        updates, state = tx.update(jnp.sin(w), state, w)
        w = w + updates
