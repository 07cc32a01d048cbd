"""Nonlinear conjugate gradients against NumPy, and as conjugate gradients where they are linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

pytestmark = pytest.mark.usefixtures("x64")

N = 5


def reference(points, gradients, method):
    """Hager and Zhang 2005, equations 1.3 to 1.6; PR+ of Gilbert and Nocedal. The directions, and their lengths."""
    d, directions, betas = None, [], []
    for t, (w, g) in enumerate(zip(points, gradients, strict=True)):
        beta = 0.0
        if t and (gradients[t] != gradients[t - 1]).any():
            old = gradients[t - 1]
            y = g - old
            if method == "polak_ribiere":
                beta = max(g @ y / (old @ old), 0.0)
            else:
                dy = -d @ y  # of the direction -d, which descends
                beta = (y + 2 * d * (y @ y) / dy) @ g / dy
                beta = max(beta, -1 / (np.linalg.norm(d) * min(0.01, np.linalg.norm(old))))
        d = g + beta * (d if t else 0)
        if not d @ g > 0:
            d, beta = g, 0.0
        fell = -gradients[t - 1] @ (w - points[t - 1]) if t else 0.0
        length = fell / (d @ g) if fell > 0 else min(1, 1 / np.linalg.norm(g))
        directions.append(length * d)
        betas.append(beta)
    return np.array(directions), np.array(betas)


@pytest.mark.parametrize("method", ["polak_ribiere", "hager_zhang"])
def test_directions_are_those_of_the_formula(method):
    tx, limited, plain, started_again = gradtx.scale_by_nonlinear_cg(method), 0, 0, 0
    step = jax.jit(tx.update)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        size = 10 ** rng.uniform(-4, 1)
        points, gradients = rng.normal(size=(12, N)).cumsum(axis=0), size * rng.normal(size=(12, N))
        gradients[5:8] = gradients[4] + 0.3 * size * rng.normal(size=(3, N))
        gradients[9] = gradients[8]
        expected, betas = reference(points, gradients, method)
        state = tx.init(jnp.asarray(points[0]))
        for w, g, u in zip(points, gradients, expected, strict=True):
            updates, state = step(jnp.asarray(g), state, jnp.asarray(w))
            np.testing.assert_allclose(updates, u, rtol=1e-9, atol=1e-12 * np.abs(u).max())
        started_again += (betas[1:] == 0).sum()
        plain += (betas > 0).sum()
        limited += (betas < 0).sum()
    assert started_again >= 6
    assert plain > 10
    assert limited > 3 or method == "polak_ribiere"


@pytest.mark.parametrize("method", ["polak_ribiere", "hager_zhang"])
def test_with_an_exact_search_n_steps_reach_the_minimum_of_a_quadratic(method):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(N, N)))[0]
    A, b = (Q * np.linspace(1, 30, N)) @ Q.T, rng.normal(size=N)
    tx, w, directions = gradtx.scale_by_nonlinear_cg(method), np.zeros(N), []
    state = tx.init(jnp.asarray(w))
    for _ in range(N):
        g = A @ w - b
        u, state = tx.update(jnp.asarray(g), state, jnp.asarray(w))
        d = -np.asarray(u)
        w = w - d * (g @ d) / (d @ A @ d)
        directions.append(d / np.sqrt(d @ A @ d))
    np.testing.assert_allclose(w, np.linalg.solve(A, b), rtol=1e-9)
    np.testing.assert_allclose(np.array(directions) @ A @ np.array(directions).T, np.eye(N), atol=1e-9)


def test_a_gradient_of_0_is_a_direction_of_0():
    tx = gradtx.scale_by_nonlinear_cg("hager_zhang")
    state, w = tx.init(jnp.ones(3)), jnp.ones(3)
    for g in (jnp.zeros(3), jnp.array([1e-20, 0.0, 0.0]), jnp.zeros(3), jnp.array([1e20, 0.0, 0.0])):
        u, state = tx.update(g, state, w)
        assert np.isfinite(u).all()
        assert bool(u.any()) is bool(g.any())


def test_complex_params_are_pairs_of_real_ones():
    rng = np.random.default_rng(4)
    points, gradients = rng.normal(size=(2, 5, 4))
    tx = gradtx.scale_by_nonlinear_cg("hager_zhang")
    one = lambda row: np.asarray(row)[:2] + 1j * np.asarray(row)[2:]  # noqa: E731
    states = [tx.init(jnp.asarray(one(points[0]))), tx.init(jnp.asarray(points[0]))]
    for w, g in zip(points, gradients, strict=True):
        u, states[0] = tx.update(jnp.asarray(one(g)), states[0], jnp.asarray(one(w)))
        expected, states[1] = tx.update(jnp.asarray(g), states[1], jnp.asarray(w))
        np.testing.assert_allclose(u, one(expected), rtol=1e-10)
