"""Norms and their slopes, where squares are too large or too small for the dtype as well as elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx


def ways(function):
    """As it is, compiled, and mapped."""
    return function, jax.jit(function), lambda x: jax.tree.map(lambda y: y[0], jax.vmap(function)(x[None]))


@pytest.mark.parametrize("exponent", [-37, -30, -25, -21, -20, -18, -17, -16, -15, -10, 0, 10, 17, 19, 20, 30, 37, 38])
def test_norms_and_their_slopes_are_right_wherever_the_numbers_are(exponent):
    x = jnp.array(np.float32([1.3, -0.7]) * np.float32(10.0**exponent))
    length = np.linalg.norm(np.float64(x))
    for norm, slope in zip(ways(gradtx.global_norm), ways(jax.grad(gradtx.global_norm)), strict=True):
        np.testing.assert_allclose(norm(x), length, rtol=1e-6)
        np.testing.assert_allclose(slope(x), np.float64(x) / length, rtol=3e-6)


@pytest.mark.parametrize("size", [3e-18, 3.0, 3e25])
def test_the_slopes_of_a_clipped_gradient_are_those_of_its_direction(size):
    """u = c g / |g|, and so du/dg = c / |g| (1 - g gᵀ / |g|²)."""
    tx, g = gradtx.clip_by_global_norm(size / 3), jnp.full(2, size, np.float32)
    expected = 2**-0.5 / 3 * np.array([[0.5, -0.5], [-0.5, 0.5]])
    for slopes in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(slopes(lambda g: tx.update(g, tx.init(g))[0])(g), expected, rtol=1e-5)


def test_norms_of_leaves_of_two_precisions(x64):
    for low, high in [([1e30, 2e30], [1.0, 2.0]), ([1e-30, 2e-30], [0.0]), ([1e-25, 2e-25], [1e-26])]:
        leaves = [jnp.array(low, jnp.float32), jnp.array(high, jnp.float64)]
        joined = np.concatenate([np.float64(leaf) for leaf in leaves])
        length = np.linalg.norm(joined)
        np.testing.assert_allclose(gradtx.global_norm(leaves), length, rtol=1e-12)
        slopes = np.concatenate(jax.grad(gradtx.global_norm)(leaves))
        np.testing.assert_allclose(slopes, joined / length, rtol=1e-6)
        tx = gradtx.clip_by_global_norm(length / 4)
        clipped = np.concatenate(tx.update(leaves, tx.init(leaves))[0])
        np.testing.assert_allclose(clipped, joined / 4, rtol=1e-6)


def test_the_hessian_of_a_norm():
    np.testing.assert_allclose(
        jax.hessian(gradtx.global_norm)(jnp.array([3.0, 4.0])), [[0.128, -0.096], [-0.096, 0.072]], rtol=1e-5
    )


@pytest.mark.parametrize("constant", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("shape", [(3,), (300, 100)])
def test_the_norm_of_what_the_compiler_knows(constant, shape):
    """A loss that does not read its params has a gradient that is a constant of the program."""

    def alone(w):
        return gradtx.global_norm(jnp.full(shape, constant))

    def with_others(w):
        return gradtx.global_norm([jnp.full(shape, constant), w])

    expected = constant * np.prod(shape) ** 0.5
    w = jnp.full(3, 1e-35)
    assert jax.jit(alone)(w) == pytest.approx(expected, rel=1e-5)
    assert jax.jit(with_others)(w) == pytest.approx(max(expected, 3**0.5 * 1e-35), rel=1e-5)
    assert jax.jit(jax.vmap(with_others))(w[None])[0] == pytest.approx(max(expected, 3**0.5 * 1e-35), rel=1e-5)
