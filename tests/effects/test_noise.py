"""Noise: its mean and variance as the paper has them, its bits as the seed says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

N = 100_000


def draws(tx, steps, gradient):
    state, updates = tx.init(gradient), []
    update = jax.jit(tx.update)
    for _ in range(steps):
        u, state = update(gradient, state)
        updates.append(np.asarray(u))
    return updates


@pytest.mark.parametrize("gamma", [0.0, 0.55])
def test_mean_and_variance(gamma):
    """4.5 standard errors: of a mean sqrt(var / n), of a variance var sqrt(2 / n)."""
    for count, noise in enumerate(draws(gradtx.add_noise(0.3, gamma, 5), 4, jnp.full(N, 2.0))):
        variance = 0.3 / (1 + count) ** gamma
        assert abs(noise.mean(dtype=np.float64) - 2) < 4.5 * (variance / N) ** 0.5
        assert abs(noise.var(dtype=np.float64) - variance) < 4.5 * variance * (2 / N) ** 0.5


def test_steps_leaves_and_elements_are_independent():
    """Correlations of 1e5 pairs are below 4.5 / sqrt(1e5)."""
    gradient = {"a": jnp.zeros(N), "b": jnp.zeros(N)}
    tx = gradtx.add_noise(1.0, 0.0)
    first, state = tx.update(gradient, tx.init(gradient))
    second, _ = tx.update(gradient, state)
    other, _ = gradtx.add_noise(1.0, 0.0, 1).update(gradient, gradtx.add_noise(1.0, 0.0, 1).init(gradient))
    rows = np.stack([first["a"], first["b"], second["a"], second["b"], other["a"], np.roll(first["a"], 1)])
    off = np.corrcoef(rows.astype(np.float64)) - np.eye(len(rows))
    assert np.abs(off).max() < 4.5 / N**0.5


def test_the_same_key_gives_the_same_bits():
    one, two = (draws(gradtx.add_noise(1.0, 0.5, 3), 3, jnp.zeros(5)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert len({step.tobytes() for step in one}) == 3


def test_without_variance_nothing_happens():
    gradient = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(draws(gradtx.add_noise(0.0, 0.55), 2, gradient), [gradient] * 2)


def test_a_complex_leaf_has_the_variance_in_both_parts_together():
    (noise,) = draws(gradtx.add_noise(0.3, 0.55), 1, jnp.zeros(N, jnp.complex64))
    for part in (noise.real, noise.imag):
        assert abs(part.var(dtype=np.float64) - 0.15) < 4.5 * 0.15 * (2 / N) ** 0.5
