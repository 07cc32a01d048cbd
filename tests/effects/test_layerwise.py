"""Trust ratios and centering: by hand, where norms end, and where a mask keeps them out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

PARAMS = {"dense": {"bias": jnp.array([3.0, 4.0]), "kernel": jnp.array([[6.0], [8.0]])}}
GRADIENT = {"dense": {"bias": jnp.array([0.0, 2.0]), "kernel": jnp.array([[0.0], [2.0]])}}
MASKS = {
    "a tree": {"dense": {"bias": False, "kernel": True}},
    "a function": lambda path, leaf: leaf.ndim > 1,
    "a pattern": "*/kernel",
}


def step(tx, gradient, params):
    return jax.jit(tx.update)(gradient, tx.init(params), params)[0]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_in_three_forms(mask):
    update = step(gradtx.scale_by_trust_ratio(mask=mask), GRADIENT, PARAMS)
    np.testing.assert_array_equal(update["dense"]["bias"], [0.0, 2.0])
    np.testing.assert_allclose(update["dense"]["kernel"], [[0.0], [10.0]])


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_what_lars_masks_follows_plain_momentum(mask):
    tx = gradtx.lars(0.5, 0.1, mask=mask)
    plain, momentum = gradtx.lars(0.5, 0.1), gradtx.sgd(0.5, 0.9)
    update = step(tx, GRADIENT, PARAMS)["dense"]
    np.testing.assert_allclose(update["bias"], step(momentum, GRADIENT, PARAMS)["dense"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(update["kernel"], step(plain, GRADIENT, PARAMS)["dense"]["kernel"], rtol=1e-6)


def test_a_step_of_lamb_is_as_long_as_the_weights():
    update = step(gradtx.lamb(0.01), GRADIENT, PARAMS)
    for leaf, w in zip(jax.tree.leaves(update), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(gradtx.global_norm(leaf), 0.01 * gradtx.global_norm(w), rtol=1e-6)


@pytest.mark.parametrize(
    ("gradient", "params", "expected"),
    [
        ([3e30, 4e30], [0.6, 0.8], [0.6, 0.8]),
        ([3e-30, 4e-30], [0.6, 0.8], [0.6, 0.8]),
        ([0.6, 0.8], [3e30, 4e30], [3e30, 4e30]),
        ([3e30, 4e30], [3e30, 4e30], [3e30, 4e30]),
        ([3e-30, 4e-30], [3e30, 4e30], [3e30, 4e30]),
        ([0.0, 0.0], [3.0, 4.0], [0.0, 0.0]),
        ([3e30, 4e30], [0.0, 0.0], [3e30, 4e30]),
        ([np.inf, 1.0], [3.0, 4.0], [5.0, 0.0]),
        ([np.nan, 1.0], [3.0, 4.0], [np.nan, np.nan]),
        ([1.0, 1.0], [np.nan, 4.0], [np.nan, np.nan]),
    ],
)
def test_the_end_of_the_numbers(gradient, params, expected):
    update = step(gradtx.scale_by_trust_ratio(), jnp.array(gradient, jnp.float32), jnp.array(params, jnp.float32))
    np.testing.assert_allclose(update, expected, rtol=1e-6)


def test_float16_weights_and_gradients_whose_squares_overflow_there():
    update = step(
        gradtx.scale_by_trust_ratio(), jnp.array([3e4, 4e4], jnp.float16), jnp.array([300.0, 400.0], jnp.float16)
    )
    np.testing.assert_allclose(update.astype(np.float32), [300, 400], rtol=1e-2)


def test_the_least_norm_and_eps():
    """4 = 1 · 5 max(0.5, 4) / (max(1, 4) + 1), and for params of 0 the least norm counts."""
    tx = gradtx.scale_by_trust_ratio(4.0, 5.0, 1.0)
    np.testing.assert_allclose(step(tx, jnp.array([1.0]), jnp.array([0.5])), [4.0], rtol=1e-6)
    np.testing.assert_allclose(step(tx, jnp.array([9.0]), jnp.array([0.0])), [18.0], rtol=1e-6)
    np.testing.assert_allclose(step(tx, jnp.array([9e30]), jnp.array([0.5])), [20.0], rtol=1e-6)
    np.testing.assert_allclose(step(tx, jnp.array([4e-30]), jnp.array([0.5])), [4 * 5 * 4e-30 / 5], rtol=1e-6)


def test_the_axes_of_centering():
    g = jnp.arange(24.0).reshape(2, 3, 4) ** 2
    for axis, others in [(0, (1, 2)), (-1, (0, 1)), (1, (0, 2)), (-2, (0, 2))]:
        update = gradtx.centralize(output_axis=axis).update(g, {})[0]
        np.testing.assert_allclose(update.mean(others), 0, atol=1e-4)
    for unchanged in (jnp.float32(3.0), jnp.arange(3.0)):
        assert gradtx.tree_equal(gradtx.centralize().update(unchanged, {})[0], unchanged)
