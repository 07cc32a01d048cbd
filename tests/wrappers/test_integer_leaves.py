"""Leaves of integers and bools among the params: left alone where a mask leaves them out, refused by name elsewhere."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from tests.core.words import assert_words, refusal

FIXED = ("step", "seen", "table/*")
PARAMS = {
    "w": jnp.array([1.0, -2.0]),
    "step": jnp.array(7),
    "seen": jnp.array([True, False]),
    "table": {"bytes": jnp.array([0, 255], jnp.uint8), "signs": jnp.array([-128, 127], jnp.int8)},
}
INSIDE = {"w": PARAMS["w"]}
ADAM = gradtx.adam(0.1)
WAYS = {
    "masked": gradtx.masked(ADAM, "w"),
    "train_only": gradtx.train_only(ADAM, "w"),
    "partition": gradtx.partition({"trained": ADAM, "fixed": gradtx.freeze("*")}, {"w": "trained", "*": "fixed"}),
    "chain": gradtx.masked(gradtx.scale_by_adam(), "w") >> gradtx.train_only(gradtx.scale(-0.1), "w"),
    "join": gradtx.masked(gradtx.scale_by_momentum(), "w") + gradtx.masked(gradtx.scale_by_rms(), "w")
    >> gradtx.masked(gradtx.scale(-0.1), "w")
    >> gradtx.freeze(FIXED),
    "nested": gradtx.train_only(gradtx.masked(gradtx.skip_nonfinite(ADAM, 3), lambda path, leaf: path == "w"), "w"),
}


def loss(params):
    shift = params["step"] + params["table"]["signs"][1].astype(jnp.int32)
    return jnp.sum((params["w"] - shift.astype(jnp.float32)) ** 2)


slopes = jax.grad(loss, allow_int=True)


def own_dtype(gradients):
    """The same with zeros of each leaf's own dtype in place of float0."""
    return jax.tree.map(lambda g, p: jnp.zeros_like(p) if g.dtype == jax.dtypes.float0 else g, gradients, PARAMS)


def run(tx, state, params, *, convert=lambda gradients: gradients, steps=4):
    for _ in range(steps):
        updates, state = tx.update(convert(slopes(params)), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state, updates


def alone(steps=4):
    """The trained leaf by itself."""
    params, state = INSIDE, ADAM.init(INSIDE)
    for _ in range(steps):
        updates, state = ADAM.update({"w": slopes(PARAMS | params)["w"]}, state, params)
        params = gradtx.apply_updates(params, updates)
    return params["w"]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("convert", [lambda gradients: gradients, own_dtype], ids=["float0", "own dtype"])
def test_leaves_that_are_left_out_stay_and_the_others_are_trained(name, convert):
    tx = WAYS[name]
    params, _, updates = run(tx, tx.init(PARAMS), PARAMS, convert=convert)
    assert gradtx.tree_equal(params | {"w": 0}, PARAMS | {"w": 0})
    np.testing.assert_allclose(params["w"], alone(), rtol=1e-6)
    given = convert(slopes(PARAMS))
    assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda g: g.dtype, given)


@pytest.mark.parametrize("name", WAYS)
def test_under_jit_and_vmap(name):
    tx = WAYS[name]
    plain, _, _ = run(tx, tx.init(PARAMS), PARAMS)
    compiled, state, _ = jax.jit(lambda params: run(tx, tx.init(params), params))(PARAMS)
    np.testing.assert_allclose(compiled["w"], plain["w"], rtol=1e-6)
    assert gradtx.tree_equal(compiled | {"w": 0}, PARAMS | {"w": 0})
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
    mapped, states, _ = jax.vmap(lambda params: run(tx, tx.init(params), params))(several)
    np.testing.assert_allclose(mapped["w"], jnp.stack([plain["w"]] * 2), rtol=1e-6)
    assert gradtx.tree_equal(mapped["table"], several["table"])
    assert jax.tree.structure(states) == jax.tree.structure(state)


@pytest.mark.parametrize("name", WAYS)
def test_they_have_no_state_which_is_saved_and_loaded(name):
    tx = WAYS[name]
    state = tx.init(PARAMS)
    inside = tx.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS))
    assert jax.tree.structure(state) == jax.tree.structure(inside)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, inside)
    _, state, _ = run(tx, state, PARAMS)
    blank = tx.init(PARAMS)
    loaded = flax.serialization.from_state_dict(blank, flax.serialization.to_state_dict(state))
    assert gradtx.tree_equal(loaded, state)


def test_a_mask_that_is_a_tree_needs_no_params():
    mask = {"w": True, "step": False, "seen": False, "table": False}
    tx = gradtx.train_only(gradtx.sgd(0.5), mask)
    gradients = slopes(PARAMS)
    updates, _ = tx.update(gradients, tx.init(PARAMS))
    np.testing.assert_allclose(updates["w"], -0.5 * gradients["w"])
    assert updates["step"].dtype == jax.dtypes.float0


def test_freeze_sets_updates_of_the_own_dtype_to_zero():
    ones = {"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32), "b": jnp.array(True)}
    updates, _ = gradtx.freeze(("n", "b")).update(ones, {}, ones)
    assert gradtx.tree_equal(updates, {"w": jnp.ones(2), "n": jnp.zeros(2, jnp.int32), "b": jnp.array(False)})


def test_frozen_low_precision_leaves_beside_guards_that_clip_to_the_dtype():
    """An optimizer that deals with overflow bounds what it returns, where there are bounds."""
    params = {"w": jnp.ones(2, jnp.float16), "n": jnp.arange(2)}
    tx = gradtx.train_only(gradtx.skip_nonfinite(gradtx.sgd(1e4), 3), "w")
    gradients = {"w": jnp.full(2, 1e3, jnp.float16), "n": jnp.zeros(2, jnp.int32)}
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert updates["n"].dtype == jnp.int32
    assert np.isfinite(updates["w"]).all()


# Applying ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8", "int8"])
def test_apply_updates_leaves_them(dtype):
    params = {"n": jnp.ones(2, dtype), "w": jnp.ones(2, jnp.bfloat16)}
    for update in (np.zeros(2, jax.dtypes.float0), jnp.ones(2, dtype)):
        new = gradtx.apply_updates(params, {"n": update, "w": jnp.ones(2)})
        assert gradtx.tree_equal(new, {"n": params["n"], "w": jnp.full(2, 2.0, jnp.bfloat16)})
    assert gradtx.tree_equal(gradtx.apply_updates(params["n"], jnp.ones(2, dtype)), params["n"])


@pytest.mark.parametrize("update", [jnp.ones(2), jnp.ones(2, jnp.int16)], ids=["float32", "another integer"])
def test_updates_of_another_dtype_are_refused(update):
    params = {"n": jnp.arange(2)}
    text = refusal(TypeError, gradtx.apply_updates, params, {"n": update})
    assert_words(
        text, f"gradtx.apply_updates: updates at ['n'] has dtype {update.dtype}, params int32;", "the same or float0"
    )
    tx = gradtx.freeze("n")
    assert_words(refusal(TypeError, tx.update, {"n": update}, {}, params), "gradtx.freeze.update: updates at ['n']")


def test_a_gradient_without_numbers_is_refused_for_a_leaf_with_numbers():
    text = refusal(TypeError, gradtx.apply_updates, {"w": jnp.ones(2)}, {"w": np.zeros(2, jax.dtypes.float0)})
    assert_words(text, "updates at ['w'] has dtype float0, params float32")


# Refusals ------------------------------------------------------------------------------------------------------------

REFUSED = {
    "selected by masked": (gradtx.masked(ADAM, ("w", "step")), "gradtx.adam.init: params at ['step'] has dtype int32"),
    "selected by train_only": (
        gradtx.train_only(gradtx.clip(1.0) >> ADAM, "*"),
        "gradtx.chain.init: params at ['seen'] has dtype bool",
    ),
    "in a group that computes": (
        gradtx.partition({"trained": ADAM, "fixed": gradtx.sgd(0.1)}, {"w": "trained", "*": "fixed"}),
        "gradtx.sgd.init: params at ['seen'] has dtype bool",
    ),
    "a clip in front": (
        gradtx.clip(1.0) >> WAYS["train_only"],
        "gradtx.chain.init: params at ['seen'] has dtype bool; allowed: floating-point or complex. clip(max_delta=1.0) "
        "reads all leaves: put it inside the mask.",
    ),
    "a scaling at the side": (
        WAYS["masked"] + gradtx.scale_by_rms(),
        "scale_by_rms(decay=0.999, eps=1e-08) reads all leaves: put it inside the mask.",
    ),
    "a wrapper around": (
        gradtx.skip_nonfinite(WAYS["train_only"], 3),
        "gradtx.skip_nonfinite.init: params at ['seen'] has dtype bool",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_them_is_refused_by_name(name):
    tx, words = REFUSED[name]
    assert_words(refusal(TypeError, tx.init, PARAMS), words, "mask")


def test_update_refuses_as_init_does():
    tx = gradtx.clip(1.0) >> gradtx.freeze("n")
    params = {"w": jnp.ones(2), "n": jnp.arange(2)}
    state = tx.init(jax.tree.map(jnp.ones_like, {"w": params["w"], "n": params["w"]}))
    text = refusal(TypeError, tx.update, {"w": jnp.ones(2), "n": np.zeros(2, jax.dtypes.float0)}, state, params)
    assert text == (
        "gradtx.chain.update: updates at ['n'] has dtype float0; allowed: floating-point or complex. "
        "clip(max_delta=1.0) reads all leaves: put it inside the mask."
    )


def test_minimize_refuses_them_before_it_starts():
    text = refusal(TypeError, gradtx.minimize, loss, PARAMS, WAYS["train_only"], steps=1, progress=False)
    assert_words(text, "gradtx.minimize: params at ['seen'] has dtype bool", "out of the parameters.")
