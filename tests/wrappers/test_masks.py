"""masked, freeze and train_only: what each does to which leaves, what passes through them, leaves of whole numbers."""

import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.wrappers.runs import (
    GRADS,
    HEARD,
    PARAMS,
    STACKED,
    assert_close,
    distance,
    hearing,
    matrices,
    once,
    pulled,
    run,
)

OUT = {"dense": False, "norm": False, "out": True}
WAYS = {"tree": OUT, "function": lambda path, leaf: path.startswith("out"), "pattern": "out/*"}
INNER = gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1, 0.9)


def zeros(values):
    return jax.tree.map(jnp.zeros_like, values)


# What each does -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", WAYS.values(), ids=WAYS)
def test_each_does_its_own_to_the_leaves_that_a_mask_selects(mask):
    alone = once(INNER, GRADS["out"], PARAMS["out"])
    assert gradtx.tree_equal(once(gradtx.masked(INNER, mask)), GRADS | {"out": alone})
    assert gradtx.tree_equal(once(gradtx.train_only(INNER, mask)), zeros(GRADS) | {"out": alone})
    assert gradtx.tree_equal(once(gradtx.freeze(mask)), GRADS | {"out": zeros(GRADS["out"])})


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_happens_on_frozen_leaves_stays_there(bad):
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, bad), GRADS) | {"out": GRADS["out"]}
    inner = gradtx.clip_by_global_norm(0.5) >> gradtx.add_decayed_weights(0.1) >> gradtx.sgd(1.0)
    for tx in (gradtx.train_only(inner, OUT), gradtx.freeze(("dense/*", "norm/*")) >> INNER):
        assert gradtx.tree_equal(once(tx, grads), once(tx))
        assert not any(leaf.any() for leaf in jax.tree.leaves(once(tx, grads) | {"out": ()}))


def test_other_leaves_have_no_state_and_keep_their_dtype():
    """Adam keeps 8 bytes for each of the 32 trained parameters, and scalars."""
    state = gradtx.train_only(gradtx.adam(0.1), OUT).init(PARAMS)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim) == 8 * 32
    assert gradtx.find(state, "nu")["dense"] == {"bias": None, "kernel": None}
    assert gradtx.freeze(OUT).init(PARAMS) == {}
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GRADS)
    updates = once(gradtx.masked(gradtx.sgd(0.1), OUT), half)
    assert gradtx.tree_equal(updates | {"out": 0}, half | {"out": 0})
    assert updates["out"]["bias"].dtype == jnp.bfloat16


def test_everything_or_nothing_may_be_selected():
    for values in (PARAMS, jnp.float32(3.0), jnp.array([3.0, 4.0])):
        for mask, expected in ((True, once(INNER, values, values)), (False, zeros(values))):
            assert gradtx.tree_equal(once(gradtx.train_only(INNER, mask), values, values), expected)
        assert gradtx.tree_equal(once(gradtx.masked(INNER, False), values, values), values)


# Nested, and side by side ---------------------------------------------------------------------------------------------


def test_nested_the_inner_mask_is_about_what_is_left():
    decay = gradtx.add_decayed_weights(0.1)
    expected = once(gradtx.masked(decay, "*kernel"), GRADS["out"], PARAMS["out"])
    for mask in ("*/kernel", jax.tree.map(lambda leaf: leaf.ndim == 2, PARAMS), matrices):
        updates = once(gradtx.train_only(gradtx.masked(decay, mask), "out/*"))
        assert gradtx.tree_equal(updates, zeros(GRADS) | {"out": expected})
    inner, minus = gradtx.train_only(gradtx.scale(-1.0), "*/kernel"), -GRADS["out"]["kernel"]
    out = {"bias": jnp.zeros(8), "kernel": minus}
    assert gradtx.tree_equal(once(gradtx.masked(inner, "out/*")), GRADS | {"out": out})
    assert gradtx.tree_equal(once(gradtx.train_only(inner, "out/*")), zeros(GRADS) | {"out": out})


def test_beside_a_direction_a_masked_scaling_measures_the_gradient_that_came_in():
    """`momentum + masked(rms, kernels)` by hand: m / (1 - b^t), on kernels divided by √v of the *gradient*."""
    tx = gradtx.scale_by_momentum(0.9) + gradtx.masked(gradtx.scale_by_rms(0.99, 1e-8), "*/kernel")
    updates = run(tx, PARAMS, STACKED)[2]["out"]
    for name in ("kernel", "bias"):
        m = v = 0.0
        for t, g in enumerate(np.asarray(STACKED["out"][name], np.float64), start=1):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            expected = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8 if name == "kernel" else 1)
            np.testing.assert_allclose(updates[name][t - 1], expected, rtol=1e-4, atol=1e-5)
    left = once(gradtx.masked(gradtx.scale_by_momentum(), "*/kernel") + gradtx.scale_by_rms())
    assert_close(left, once(gradtx.scale_by_rms()))  # the first step of a momentum is the gradient


def test_what_scales_back_or_has_the_last_word_is_known_through_a_mask():
    inner = gradtx.loss_scaling(gradtx.kahan_summation(gradtx.sgd(1.0)), dynamic=False)
    tx = gradtx.train_only(inner, OUT)
    assert tx.facts.place == {"first", "last"}
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(once(tx, half, half))} == {np.dtype(np.float32)}


# What passes through, and when a mask is asked ------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [gradtx.masked, gradtx.train_only])
def test_the_loss_is_of_all_params_and_trees_like_them_are_masked(wrap):
    weights = jax.tree.map(lambda leaf: 2.0, PARAMS)
    extra = {"value": 3.0, "value_fn": distance, "grad_fn": pulled, "grad": PARAMS, "weights": weights, "note": (1, 2)}
    once(wrap(wrap(hearing(), "*/kernel"), "out/*"), **extra)
    nothing = {"dense": {"bias": None, "kernel": None}, "norm": {"bias": None, "scale": None}}

    def inside(value):
        return nothing | {"out": {"bias": None, "kernel": value["out"]["kernel"]}}

    heard = HEARD[-1]
    assert heard["weights"] == inside(weights)
    assert (heard["value"], heard["note"], heard["measured"]) == (3.0, (1, 2), distance(PARAMS))
    expected = {"updates": inside(GRADS), "params": inside(PARAMS), "grad": inside(PARAMS)}
    assert gradtx.tree_equal({name: heard[name] for name in expected}, expected)
    assert gradtx.tree_equal(heard["slopes"], inside(pulled(PARAMS)))
    once(wrap(hearing(), "out/*"), value=1.0, grad=None, weights=7.0, note=lambda: 1)  # what is no tree like the params
    assert HEARD[-1]["grad"] is None
    assert HEARD[-1]["weights"] == 7.0
    assert HEARD[-1]["note"]() == 1


# As values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["*/kernel", ("a/*", "b"), ["a"], {"a/*": True, "*": False}, {"a": True, "b": False}])
def test_patterns_and_trees_are_saved_as_they_are(mask):
    for tx in (gradtx.masked(gradtx.adam(0.1), mask), gradtx.train_only(gradtx.adam(0.1), mask), gradtx.freeze(mask)):
        for copy in (pickle.loads(pickle.dumps(tx)), gradtx.from_config(tx.to_config())):
            assert (copy, hash(copy), type(copy.mask), list(copy.mask)) == (tx, hash(tx), type(mask), list(mask))


def test_numbers_inside_are_swept_tuned_and_replaced():
    tx = gradtx.train_only(gradtx.sgd(0.5), "out/*")
    changed = tx.replace(learning_rate=0.25)
    assert changed == gradtx.train_only(gradtx.sgd(0.25), "out/*")
    expected = once(changed)
    for tuned in (gradtx.tunable(tx), gradtx.train_only(gradtx.tunable(gradtx.sgd(0.5)), "out/*")):
        state = gradtx.tune(tuned.init(PARAMS), learning_rate=0.25)
        assert gradtx.tree_equal(tuned.update(GRADS, state, PARAMS)[0], expected)
    swept = jax.vmap(lambda rate: once(tx.replace(learning_rate=rate)))(jnp.array([0.5, 0.25]))
    assert_close(jax.tree.map(lambda leaf: leaf[1], swept), expected)


# Leaves of whole numbers and bools ------------------------------------------------------------------------------------

FIXED = {"step": jnp.array(7), "seen": jnp.array([True, False]), "table": {"bytes": jnp.array([0, 255], jnp.uint8)}}
MIXED = FIXED | {"w": jnp.array([1.0, -2.0])}
ADAM = gradtx.adam(0.1)
AROUND = {
    "masked": gradtx.masked(ADAM, "w"),
    "train_only": gradtx.train_only(ADAM, "w"),
    "partition": gradtx.partition({"trained": ADAM, "fixed": gradtx.freeze("*")}, {"w": "trained", "*": "fixed"}),
    "join": gradtx.masked(gradtx.scale_by_momentum(), "w") + gradtx.masked(gradtx.scale_by_rms(), "w")
    >> gradtx.train_only(gradtx.scale(-0.1), "w"),
    "guarded": gradtx.train_only(gradtx.masked(gradtx.skip_nonfinite(ADAM, 3), {"w": True, "*": False}), "w"),
}


def slopes(params, own_dtype=False):
    gradients = jax.grad(lambda p: jnp.sum((p["w"] - p["step"].astype(jnp.float32)) ** 2), allow_int=True)(params)
    return params | jax.tree.map(jnp.zeros_like, FIXED) | {"w": gradients["w"]} if own_dtype else gradients


@pytest.mark.parametrize("name", AROUND)
def test_leaves_without_numbers_stay_and_have_no_state(name):
    tx, alone = AROUND[name], {"w": MIXED["w"]}
    expected, _ = jax.lax.scan(
        lambda carry, _: (step_of(ADAM, *carry), None), (alone, ADAM.init(alone)), None, length=2
    )
    for own_dtype in (False, True):
        params, state = MIXED, tx.init(MIXED)
        for _ in range(2):
            given = slopes(params, own_dtype)
            updates, state = tx.update(given, state, params)
            params = gradtx.apply_updates(params, updates)
        assert gradtx.tree_equal(params | {"w": 0}, MIXED | {"w": 0})
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda g: g.dtype, given)
        np.testing.assert_allclose(params["w"], expected[0]["w"], rtol=1e-6)
    numbers = tx.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), MIXED))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, numbers)
    loaded = flax.serialization.from_state_dict(tx.init(MIXED), flax.serialization.to_state_dict(state))
    assert gradtx.tree_equal(loaded, state)


def test_integers_are_counted_on_as_optax_does():
    params, updates = {"n": jnp.array([1, 2]), "w": jnp.ones(2)}, {"n": jnp.array([1, -1]), "w": jnp.ones(2)}
    assert gradtx.tree_equal(gradtx.apply_updates(params, updates), optax.apply_updates(params, updates))


def step_of(tx, params, state):
    updates, state = tx.update({"w": slopes(MIXED | params)["w"]}, state, params)
    return gradtx.apply_updates(params, updates), state


def test_under_jit_and_vmap_and_without_params():
    tx = gradtx.train_only(gradtx.sgd(0.5), {"w": True, "step": False, "seen": False, "table": False})
    updates, _ = tx.update(slopes(MIXED), tx.init(MIXED))
    np.testing.assert_array_equal(updates["w"], [6.0, 9.0])
    assert updates["step"].dtype == jax.dtypes.float0
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), MIXED)
    moved = jax.jit(jax.vmap(lambda p: gradtx.apply_updates(p, once(tx, slopes(p), p))))(several)
    assert gradtx.tree_equal(moved, several | {"w": jnp.array([[7.0, 7.0]] * 2)})


def test_freeze_and_apply_updates_leave_them():
    for dtype in ("int32", "bool", "uint8"):
        params = {"n": jnp.ones(2, dtype), "w": jnp.ones(2, jnp.bfloat16)}
        frozen = gradtx.freeze("n").update(params, {}, params)[0]
        assert gradtx.tree_equal(frozen, params | {"n": jnp.zeros(2, dtype)})
        for update in (np.zeros(2, jax.dtypes.float0), frozen["n"]):
            new = gradtx.apply_updates(params, {"n": update, "w": jnp.ones(2)})
            assert gradtx.tree_equal(new, {"n": params["n"], "w": jnp.full(2, 2.0, jnp.bfloat16)})
    flags = jnp.array([True, False])
    assert gradtx.tree_equal(gradtx.apply_updates(flags, ~flags), flags)


def test_beside_a_guard_that_clips_to_the_dtype():
    """An optimizer that deals with overflow bounds what it returns, where there are bounds."""
    params = {"w": jnp.ones(2, jnp.float16), "n": jnp.arange(2)}
    gradients = {"w": jnp.full(2, 1e3, jnp.float16), "n": jnp.zeros(2, jnp.int32)}
    updates = once(gradtx.train_only(gradtx.skip_nonfinite(gradtx.sgd(1e4), 3), "w"), gradients, params)
    assert updates["n"].dtype == jnp.int32
    assert np.isfinite(updates["w"]).all()
