"""Decay: where it stands, which leaves, which elements, and towards what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

PARAMS = {"dense": {"bias": jnp.array([1.0, -1.0]), "kernel": jnp.array([[2.0, -2.0]])}}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
MASKS = {
    "a tree": {"dense": {"bias": False, "kernel": True}},
    "a function": lambda path, leaf: leaf.ndim > 1,
    "a pattern": "*/kernel",
}


def step(tx, gradient=ZEROS, params=PARAMS, state=None):
    return tx.update(gradient, tx.init(params) if state is None else state, params)[0]


def flat(value):
    return [float(x) for leaf in jax.tree.leaves(value) for x in leaf.ravel()]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", [{}, {"cautious": True}, {"toward_initial": True}], ids=str)
def test_masks_in_three_forms(mask, options):
    tx = gradtx.add_decayed_weights(0.5, mask, **options)
    moved = jax.tree.map(lambda w: 2 * w, PARAMS)
    update = step(tx, params=moved, state=tx.init(PARAMS))
    assert flat(update) == ([0, 0, 1, -1] if "toward_initial" in options else [0, 0, 2, -2])


def test_in_front_behind_and_independent_of_the_learning_rate():
    params, gradient = jnp.array([2.0]), jnp.array([8.0])
    decay, sign, rate = gradtx.add_decayed_weights(0.1), gradtx.scale_by_sign(), gradtx.scale_by_learning_rate(0.5)
    after = gradtx.add_decayed_weights(0.1, flip_sign=True)
    for tx, expected in [
        (decay >> sign >> rate, -0.5),
        (sign >> decay >> rate, -0.5 * (1 + 0.1 * 2)),
        (sign >> rate >> after, -0.5 - 0.1 * 2),
    ]:
        np.testing.assert_allclose(step(tx, gradient, params), [expected], rtol=1e-6)


@pytest.mark.parametrize("flip_sign", [False, True])
def test_cautious_decays_where_both_pull_the_same_way(flip_sign):
    sign = -1 if flip_sign else 1
    params = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, 0.0])
    gradient = sign * jnp.array([3.0, -3.0, -3.0, 3.0, 0.0, 3.0])
    tx = gradtx.add_decayed_weights(0.5, cautious=True, flip_sign=flip_sign)
    expected = sign * np.array([3.5, -3.5, -3.0, 3.0, 0.5, 3.0])
    np.testing.assert_array_equal(step(tx, gradient, params), expected)


def test_cautious_is_asked_of_signs():
    """The product of these two is 0 in float32, which would count as agreement."""
    tx, params = gradtx.add_decayed_weights(1.0, cautious=True), jnp.array([1e-25], jnp.float32)
    assert step(tx, jnp.array([-1e-25], jnp.float32), params).tolist() == [np.float32(-1e-25)]


def test_the_initial_params_are_a_copy_of_the_chosen_leaves_in_their_own_dtype():
    tx = gradtx.add_decayed_weights(0.5, "*/kernel", toward_initial=True)
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
    state = tx.init(low)
    kept = state["add_decayed_weights"]["initial"]
    assert kept["dense"]["bias"] is None
    assert kept["dense"]["kernel"].dtype == jnp.bfloat16
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(kept)) == 4
    update, state = tx.update(ZEROS, state, jax.tree.map(lambda w: w + 1, low))
    assert flat(update) == [0, 0, 0.5, 0.5]
    assert gradtx.tree_equal(state["add_decayed_weights"]["initial"], kept)


def test_complex_leaves_decay():
    params = jnp.array([1 + 2j], jnp.complex64)
    assert step(gradtx.add_decayed_weights(0.5), 0 * params, params).tolist() == [0.5 + 1j]


def test_l2_is_not_decoupled():
    """Before Adam's direction the decay is scaled away, behind it is not: the reason for AdamW."""
    params, gradient = jnp.array([1.0]), jnp.array([1e-3])
    l2 = gradtx.add_decayed_weights(0.1) >> gradtx.adam(1.0)
    np.testing.assert_allclose(step(l2, gradient, params), [-1.0], rtol=1e-5)
    np.testing.assert_allclose(step(gradtx.adamw(1.0, weight_decay=0.1), gradient, params), [-1.1], rtol=1e-5)
