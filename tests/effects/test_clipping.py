"""Clipping where numbers end: infinite, NaN, zero, and squares that overflow or vanish; by hand, in every dtype."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

BY_NORM = {
    "global": gradtx.clip_by_global_norm(1.0),
    "leaf": gradtx.clip_by_leaf_norm(1.0),
    "rms": gradtx.clip_by_block_rms(0.5**0.5),  # two elements
    "unit": gradtx.adaptive_grad_clip(1.0, 0.0),  # of params of length 1
}
each = pytest.mark.parametrize("tx", BY_NORM.values(), ids=BY_NORM)


def clipped(tx, gradient, jit=True):
    """The update for one vector of two elements, its params being of length 1."""
    params = jnp.array([0.6, 0.8], gradient.dtype)
    update = jax.jit(tx.update) if jit else tx.update
    return update(gradient, tx.init(params), params)[0]


@each
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        ([3e30, 4e30], [0.6, 0.8]),
        ([-3e38, 3e38], [-(0.5**0.5), 0.5**0.5]),
        ([3e-30, 4e-30], [3e-30, 4e-30]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([np.inf, 1.0], [1.0, 0.0]),
        ([np.inf, -np.inf], [0.5**0.5, -(0.5**0.5)]),
        ([-np.inf, 3e38], [-1.0, 0.0]),
        ([np.nan, 1.0], [np.nan, np.nan]),
        ([np.nan, np.inf], [np.nan, np.nan]),
    ],
)
def test_the_end_of_the_numbers(tx, gradient, expected, jit):
    np.testing.assert_allclose(clipped(tx, jnp.array(gradient, jnp.float32), jit), expected, rtol=1e-6)


@each
@pytest.mark.parametrize("size", [1e300, 1e-300, 1e150, 1e-150])
def test_the_end_of_the_numbers_in_float64(tx, size):
    with jax.enable_x64(True):
        expected = np.array([0.6, -0.8]) * min(1, 5 * size)
        np.testing.assert_allclose(clipped(tx, jnp.array([3 * size, -4 * size])), expected, rtol=1e-14)


@each
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_gradients_whose_squares_overflow_there(tx, dtype):
    update = clipped(tx, jnp.array([3e4, -4e4], dtype))
    assert update.dtype == dtype
    np.testing.assert_allclose(update.astype(np.float32), [0.6, -0.8], rtol=1e-2)


def test_a_limit_of_any_size_meets_a_gradient_of_any_size():
    """Tiny gradients are shortened to tinier ones, huge ones to huge ones, and no digit is lost."""
    for size, limit in [(1e-25, 1e-30), (1e-20, 1e-24), (1e35, 1e30), (1e38, 1e-30), (1e-30, 1e30)]:
        update = clipped(gradtx.clip_by_global_norm(limit), jnp.array([0.6 * size, 0.8 * size], jnp.float32))
        np.testing.assert_allclose(update, np.array([0.6, 0.8]) * min(size, limit), rtol=1e-6)


def test_the_global_norm_is_right_where_squares_are_not():
    measured = jax.jit(jax.value_and_grad(gradtx.global_norm))
    for size in (1e-37, 1e-25, 1.0, 1e18, 1e30, 5e37):
        norm, slopes = measured({"a": np.float32(3 * size), "b": np.full((4, 4), size, np.float32)})
        np.testing.assert_allclose(norm, 5 * size, rtol=1e-6)
        np.testing.assert_allclose(slopes["a"], 0.6, rtol=1e-6)
    assert gradtx.global_norm({"a": jnp.float32(np.inf), "b": jnp.ones(2)}) == np.inf
    assert np.isnan(gradtx.global_norm([jnp.float32(np.nan), jnp.float32(np.inf)]))
    assert gradtx.global_norm({}) == 0
    assert jax.grad(gradtx.global_norm)(jnp.zeros(3)).tolist() == [0, 0, 0]


def test_squares_that_vanish_one_by_one_are_not_forgotten():
    """Each square is below the smallest float32 and their sum is not."""
    x = jnp.full(1_000_000, 9e-20, jnp.float32)
    np.testing.assert_allclose(gradtx.global_norm(x), 9e-17, rtol=1e-5)
    np.testing.assert_allclose(gradtx.global_norm(x.at[0].set(2e-19)), 9e-17, rtol=1e-5)


def test_an_ordinary_norm_is_the_plain_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32))
    plain = jnp.sqrt(jnp.sum(jnp.square(x)))
    np.testing.assert_allclose(gradtx.global_norm(x), plain, rtol=1e-6)
    update = gradtx.clip_by_global_norm(1.0).update(x, gradtx.clip_by_global_norm(1.0).init(x))[0]
    np.testing.assert_allclose(update, x / plain, rtol=1e-6)


def test_an_ordinary_norm_is_read_once():
    """What is careful is behind a branch."""
    tx = gradtx.clip_by_global_norm(1.0)
    jaxpr = jax.make_jaxpr(tx.update)(jnp.ones(5), tx.init(jnp.ones(5)))
    (norm,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "custom_jvp_call"]
    inside = [*jaxpr.eqns, *norm.params["call_jaxpr"].eqns]
    outside = [equation.primitive.name for equation in inside if equation.primitive.name != "cond"]
    assert outside.count("reduce_sum") == 1
    assert "reduce_max" not in outside


def test_complex_elements_count_with_both_parts():
    x = jnp.array([3e30 + 0j, 4e30j], jnp.complex64)
    np.testing.assert_allclose(clipped_alone(x), [0.6, 0.8j], rtol=1e-6)
    x = jnp.array([complex(np.inf, 1), complex(-2, np.inf)], jnp.complex64)
    np.testing.assert_allclose(clipped_alone(x), np.array([1, 1j]) * 0.5**0.5, rtol=1e-6)


def clipped_alone(x):
    tx = gradtx.clip_by_global_norm(1.0)
    return jax.jit(lambda x: tx.update(x, tx.init(x))[0])(x)


def test_leaves_of_several_precisions():
    with jax.enable_x64(True):
        x = {"a": jnp.float32(3.0), "b": jnp.float64(4e200), "c": jnp.bfloat16(2.0)}
        update = clipped_alone(x)
        assert [leaf.dtype for leaf in update.values()] == [jnp.float32, jnp.float64, jnp.bfloat16]
        np.testing.assert_allclose([float(leaf) for leaf in update.values()], [0.0, 1.0, 0.0], atol=1e-15)


def test_units_of_every_rank():
    """The shapes that `adaptive_grad_clip` names, and the axes that lead into one unit of each."""
    shapes = {(): (), (5,): 0, (1, 5): None, (5, 1): None, (3, 4): 0, (3, 2, 4): 0, (2, 2, 3, 4): (0, 1, 2)}
    random = np.random.default_rng(2)
    for shape, axes in shapes.items():
        params, gradient = (jnp.asarray(random.normal(size=shape).astype(np.float32)) for _ in range(2))
        tx = gradtx.adaptive_grad_clip(0.5)
        w, g = (np.asarray(x, np.float64) for x in (params, gradient))
        limit, size = (np.sqrt((x**2).sum(axis=axes, keepdims=True)) for x in (0.5 * w, g))
        update = jax.jit(tx.update)(gradient, tx.init(params), params)[0]
        np.testing.assert_allclose(update, g * np.minimum(1, limit / size), rtol=1e-5, err_msg=str(shape))


def test_a_dead_unit_changes_no_bit_of_the_others():
    tx, params = gradtx.adaptive_grad_clip(0.01), jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    gradient, update = np.asarray(params)[::-1], jax.jit(tx.update)
    alone = update(gradient, tx.init(params), params)[0]
    beside = update(gradient * np.float32([0, 1, 1]), tx.init(params), params)[0]
    assert gradtx.tree_equal(beside[:, 1:], alone[:, 1:])
    assert beside[:, 0].tolist() == [0] * 6


# By percentile --------------------------------------------------------------------------------------------------------


def run(tx, gradients):
    state, updates = tx.init(jnp.float32(0)), []
    for g in gradients:
        u, state = tx.update(jnp.float32(g), state)
        updates.append(float(u))
    return updates, state["clip_by_percentile"]


def test_percentile_by_hand():
    updates, state = run(gradtx.clip_by_percentile(50.0, window=3), [1.0, 3.0, -9.0, 5.0, 0.0])
    assert updates == [1.0, 2.0, -3.0, 5.0, 0.0]
    assert sorted(state["norms"].tolist()) == [0.0, 5.0, 9.0]


def test_what_is_not_finite_is_not_recorded():
    updates, state = run(gradtx.clip_by_percentile(100.0, window=3), [2.0, np.inf, -np.inf, np.nan, 1.0])
    assert updates[:3] == [2.0, 2.0, -2.0]
    assert np.isnan(updates[3])
    assert updates[4] == 1.0
    assert state["norms"].tolist() == [2.0, 1.0, 0.0]
    assert int(state["filled"]) == 2
    assert state["filled"].dtype == state["next"].dtype == jnp.int32


def test_before_the_first_finite_norm_nothing_is_clipped():
    updates, state = run(gradtx.clip_by_percentile(10.0), [np.inf, np.nan])
    assert updates[0] == np.inf
    assert np.isnan(updates[1])
    assert int(state["filled"]) == 0


@pytest.mark.parametrize(
    "clip",
    [
        gradtx.clip,
        gradtx.clip_by_global_norm,
        gradtx.clip_by_leaf_norm,
        gradtx.clip_by_block_rms,
        lambda limit: gradtx.adaptive_grad_clip(limit, eps=0.0),
    ],
)
def test_a_limit_of_infinity_is_none(clip):
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([[1e30, -2.0, 0.0], [1e-30, jnp.inf, -0.5]]), "b": jnp.zeros(1)}
    assert gradtx.from_config(json.loads(json.dumps(clip(np.inf).to_config()))) == clip(np.inf)
    for limit in (np.inf, jnp.float32(np.inf)):
        tx = clip(limit)
        np.testing.assert_array_equal(tx.update(grads, tx.init(params), params)[0]["a"], grads["a"])
