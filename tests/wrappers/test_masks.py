"""masked, freeze and train_only: what each does to whom, extra arguments through them, orders that make no sense."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import Rule, tree
from tests.wrappers.masking import GRADS, HEAD, PARAMS, STACKED, WAYS, each_way, hundred, once, zeros_like


def theirs(tx, params=PARAMS):
    """The same with optax, which is not written for strict promotion."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), updates

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.lax.scan(step, (params, tx.init(params)), STACKED)[1]


# What each does -------------------------------------------------------------------------------------------------------


@each_way
def test_all_three_by_each_way_to_say_a_mask(mask):
    inner = gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.1)
    alone, _ = inner.update(GRADS[0]["head"], inner.init(PARAMS["head"]), PARAMS["head"])
    assert gradtx.tree_equal(once(gradtx.masked(inner, mask), GRADS[0]), {"body": GRADS[0]["body"], "head": alone})
    still = zeros_like(GRADS[0]["body"])
    assert gradtx.tree_equal(once(gradtx.train_only(inner, mask), GRADS[0]), {"body": still, "head": alone})
    frozen = GRADS[0] | {"head": zeros_like(GRADS[0]["head"])}
    assert gradtx.tree_equal(once(gradtx.freeze(mask), GRADS[0]), frozen)


@each_way
def test_masked_and_freeze_are_those_of_optax(mask):
    tree_mask = WAYS["tree"]
    updates, _ = hundred(gradtx.masked(gradtx.adamw(0.1), mask) >> gradtx.freeze({"body/*": True, "*": False}))
    peer = optax.chain(
        optax.masked(optax.adamw(0.1), tree_mask),
        optax.transforms.freeze(jax.tree.map(lambda flag: not flag, tree_mask)),
    )
    chex.assert_trees_all_close(updates, theirs(peer), rtol=2e-5, atol=1e-6)
    updates, _ = hundred(gradtx.train_only(gradtx.adamw(0.1), mask))
    chex.assert_trees_all_close(updates, theirs(peer), rtol=2e-5, atol=1e-6)


def test_masked_passes_others_on_to_the_bit_in_their_dtype():
    grads = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GRADS[0])
    updates = once(gradtx.masked(gradtx.adam(0.1), HEAD), grads)
    assert gradtx.tree_equal(updates["body"], grads["body"])
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_happens_on_frozen_leaves_stays_there(bad):
    """NaN, infinity and gradients that would make any norm overflow."""
    grads = GRADS[0] | {"body": jax.tree.map(lambda leaf: jnp.full_like(leaf, bad), GRADS[0]["body"])}
    tx = gradtx.train_only(gradtx.clip_by_global_norm(0.5) >> gradtx.add_decayed_weights(0.1) >> gradtx.sgd(1.0), HEAD)
    updates, expected = once(tx, grads), once(tx, GRADS[0])
    assert gradtx.tree_equal(updates, expected)
    assert gradtx.tree_equal(updates["body"], zeros_like(PARAMS["body"]))
    before = gradtx.freeze("body/*") >> gradtx.clip_by_global_norm(0.5)
    assert gradtx.tree_equal(once(before, grads), once(before, GRADS[0]))


def test_a_frozen_leaf_has_no_state():
    """Adam keeps 8 bytes for each of the 3 trained parameters, and scalars."""
    state = gradtx.train_only(gradtx.adam(0.1), HEAD).init(PARAMS)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim) == 8 * 3
    assert gradtx.find(state, "nu")["body"] == {"bias": None, "kernel": None}
    assert gradtx.freeze(HEAD).init(PARAMS) == {}


def test_everything_or_nothing_may_be_selected():
    for tx in (gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.1), gradtx.sgd(0.1, 0.9)):
        assert gradtx.tree_equal(hundred(gradtx.train_only(tx, "*"))[0], hundred(tx)[0])
        assert gradtx.tree_equal(hundred(gradtx.train_only(tx, False))[0], zeros_like(STACKED))
        assert gradtx.tree_equal(hundred(gradtx.masked(tx, {"*": False}))[0], STACKED)


# Nested, and side by side ---------------------------------------------------------------------------------------------


def test_masked_inside_train_only():
    """The inner mask is about what is left; a tree like all params says the same."""
    alone = gradtx.chain(gradtx.masked(gradtx.add_decayed_weights(0.1), "*/kernel"), gradtx.sgd(0.1))
    for mask in (
        "*/kernel",
        jax.tree.map(lambda leaf: leaf.ndim == 2, PARAMS),
        {"body": False, "head": {"bias": False, "kernel": True}},
    ):
        nested = gradtx.train_only(gradtx.masked(gradtx.add_decayed_weights(0.1), mask) >> gradtx.sgd(0.1), "head/*")
        updates = once(nested, GRADS[0])
        expected, _ = alone.update(
            {"head": GRADS[0]["head"]}, alone.init({"head": PARAMS["head"]}), {"head": PARAMS["head"]}
        )
        assert gradtx.tree_equal(updates["head"], expected["head"])
        assert gradtx.tree_equal(updates["body"], zeros_like(PARAMS["body"]))


def test_train_only_inside_masked_and_twice():
    tx = gradtx.masked(gradtx.train_only(gradtx.sgd(1.0), "*/kernel"), "head/*")
    expected = {"body": GRADS[0]["body"], "head": {"bias": jnp.zeros(1), "kernel": -GRADS[0]["head"]["kernel"]}}
    assert gradtx.tree_equal(once(tx, GRADS[0]), expected)
    twice = gradtx.train_only(gradtx.train_only(gradtx.sgd(1.0), "*/kernel"), "head/*")
    assert gradtx.tree_equal(once(twice, GRADS[0]), expected | {"body": zeros_like(PARAMS["body"])})


def test_a_scaling_masked_right_of_plus_measures_the_gradient_that_came_in():
    """`momentum + masked(rms, kernels)` by hand: m / (1 - b^t), divided by √v of the *gradient* on kernels only."""
    tx = gradtx.scale_by_momentum(0.9) + gradtx.masked(gradtx.scale_by_rms(0.99, 1e-8), "*/kernel")
    updates, _ = hundred(tx)
    for branch, name in (("body", "kernel"), ("head", "kernel"), ("body", "bias")):
        m = v = 0.0
        for t, g in enumerate(np.asarray(STACKED[branch][name], np.float64), start=1):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            expected = m / (1 - 0.9**t)
            if name == "kernel":
                expected = expected / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
            np.testing.assert_allclose(updates[branch][name][t - 1], expected, rtol=1e-4, atol=1e-5)


def test_masked_left_of_plus_leaves_the_gradient_that_came_in_to_the_right():
    parts = gradtx.scale_by_momentum(), gradtx.scale_by_rms()
    left = hundred(gradtx.masked(parts[0], "*") + parts[1])[0]
    assert gradtx.tree_equal(left, hundred(parts[0] + parts[1])[0])
    kernels = hundred(gradtx.masked(parts[0], "*/kernel") + parts[1])[0]
    assert gradtx.tree_equal(kernels["head"]["kernel"], left["head"]["kernel"])
    assert gradtx.tree_equal(kernels["head"]["bias"], hundred(parts[1])[0]["head"]["bias"])


@pytest.mark.parametrize("wrap", [gradtx.masked, gradtx.train_only])
def test_what_cannot_observe_is_refused_right_of_plus_inside_too(wrap):
    inner = wrap(gradtx.foreign(optax.trace(0.9)), HEAD)
    with pytest.raises(TypeError, match=rf"gradtx\.join: {wrap.__name__}\(.* cannot stand right of \+"):
        gradtx.scale_by_momentum() + inner
    with jax.numpy_dtype_promotion("standard"):
        once(inner + gradtx.scale_by_rms(), GRADS[0])


@gradtx.transform
def takes_scaled_for_masks() -> Rule:
    """Gradients come multiplied by 8."""

    def update(updates, state):
        return jax.tree.map(lambda u: u / 8, updates), state

    return Rule(update=update, first=True)


@gradtx.transform
def has_the_last_word_for_masks() -> Rule:
    """Its updates are to be applied as they are."""

    def update(updates, state):
        return updates, state

    return Rule(update=update, final=True)


def test_orders_that_make_no_sense_are_refused_by_name():
    with pytest.raises(TypeError, match=r"gradtx\.masked: takes_scaled_for_masks\(\) takes gradients that are still"):
        gradtx.masked(takes_scaled_for_masks(), HEAD)
    inside = gradtx.train_only(takes_scaled_for_masks(), HEAD)  # the others are zero, scaled or not
    with pytest.raises(TypeError, match=r"cannot stand behind clip\(.*scaled"):
        gradtx.clip(1.0) >> inside
    for wrap in (gradtx.masked, gradtx.train_only):
        last = wrap(has_the_last_word_for_masks(), HEAD)
        with pytest.raises(TypeError, match=r"gradtx\.chain: scale\(.*cannot stand behind"):
            last >> gradtx.scale(1.0)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GRADS[0])
        assert {leaf.dtype for leaf in jax.tree.leaves(once(last, half))} == {jnp.dtype(jnp.float32)}


# Extra arguments ------------------------------------------------------------------------------------------------------


@gradtx.transform
def backtracking_for_masks(step: gradtx.Positive = 1.0) -> Rule:
    """The longest of step, step / 2, ... that lowers the loss; asks the loss, and is told value, grad, weights."""

    def update(updates, state, params, *, value, value_fn, grad=None, weights=None, note=None):
        assert jax.tree.structure(grad) == jax.tree.structure(updates)
        assert jax.tree.structure(weights) == jax.tree.structure(updates)
        assert note is None
        best = jnp.zeros_like(value)
        for halvings in reversed(range(6)):
            length = step / 2**halvings
            lower = value_fn(tree.map(lambda w, u, k: w - k * u, params, updates, k=length)) < value
            best = jnp.where(lower, length, best)
        return tree.map(lambda u, w, k: -k * w * u, updates, weights, k=best), state

    return Rule(update=update, reads="tree")


def bowl(params):
    return sum(jnp.sum((1 + i) * leaf**2) for i, leaf in enumerate(jax.tree.leaves(params)))


@pytest.mark.parametrize("wrap", [gradtx.masked, gradtx.train_only])
@pytest.mark.parametrize("deep", [False, True], ids=["", "nested"])
def test_a_line_search_inside_asks_about_all_params(wrap, deep):
    """The loss is of full params, `value` passes as it is, trees like the params are masked as the gradients are."""
    value, grads = jax.value_and_grad(bowl)(PARAMS)
    weights = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2.0), PARAMS)
    inner = backtracking_for_masks()
    tx = wrap(wrap(inner, "*/kernel") if deep else inner, "head/*")
    assert tx.extra_args == {"value", "value_fn", "grad", "weights", "note"}
    asked = []

    def value_fn(params):
        asked.append(jax.tree.structure(params))
        return bowl(params)

    extra = {"value": value, "value_fn": value_fn, "grad": grads, "weights": weights, "note": None}
    updates = once(tx, grads, **extra)
    assert set(asked) == {jax.tree.structure(PARAMS)}
    moved = {"kernel": PARAMS["head"]["kernel"]} if deep else PARAMS["head"]
    slope = {"kernel": grads["head"]["kernel"]} if deep else grads["head"]
    rest = PARAMS if not deep else PARAMS | {"head": PARAMS["head"]}

    def of_moved(part):
        return bowl(rest | {"head": rest["head"] | part})

    expected, _ = inner.update(
        slope,
        {"backtracking_for_masks": {"count": jnp.int32(0)}},
        moved,
        value=value,
        value_fn=of_moved,
        grad=slope,
        weights=jax.tree.map(lambda leaf: jnp.full_like(leaf, 2.0), moved),
    )
    assert jnp.abs(expected["kernel"]).sum() > 0
    assert gradtx.tree_equal({name: updates["head"][name] for name in expected}, expected)
    jitted = jax.jit(lambda tx, grads, value: once(tx, grads, **extra | {"value": value}))(tx, grads, value)
    chex.assert_trees_all_close(jitted, updates, rtol=1e-6)


def test_missing_and_misspelt_extra_arguments_are_named_through_a_mask():
    tx = gradtx.train_only(backtracking_for_masks(), HEAD)
    with pytest.raises(TypeError, match=r"gradtx\.train_only\.update: the extra argument 'value' is missing"):
        once(tx, GRADS[0], value_fn=bowl)
    with pytest.raises(TypeError, match=r"unknown extra argument 'vale'\. Did you mean 'value'"):
        once(tx, GRADS[0], vale=1.0, value_fn=bowl)
    with pytest.raises(TypeError, match="unknown extra argument 'value'"):
        once(gradtx.freeze(HEAD), GRADS[0], value=1.0)


@gradtx.transform
def weighs_for_masks() -> Rule:
    """Multiplies by a number, a tree, or what a function gives."""

    def update(updates, state, *, value=1.0, factor=None, power_fn=None):
        assert value is not None
        if power_fn is not None:
            factor = power_fn(2.0)
        if isinstance(factor, dict):
            return tree.map(jnp.multiply, updates, factor), state
        return tree.map(lambda u, k: k * u, updates, k=value if factor is None else factor), state

    return Rule(update=update)


def test_a_single_array_as_params():
    """What only looks like the params (a scalar, a function) passes as it is."""
    for params in (jnp.float32(3.0), jnp.array([3.0, 4.0])):
        for tx, expected in (
            (gradtx.train_only(weighs_for_masks(), "*"), 2 * params),
            (gradtx.train_only(weighs_for_masks(), False), 0 * params),
            (gradtx.masked(weighs_for_masks(), lambda path, leaf: False), params),
        ):
            assert gradtx.tree_equal(once(tx, params, params, value=2.0), expected)
            assert gradtx.tree_equal(once(tx, params, params, power_fn=lambda number: number), expected)


def test_a_number_for_each_leaf_is_masked_as_the_leaves_are():
    factor = {"body": {"bias": 1.0, "kernel": 2.0}, "head": {"bias": 3.0, "kernel": 4.0}}
    updates = once(gradtx.masked(weighs_for_masks(), "*/kernel"), GRADS[0], factor=factor)
    expected = jax.tree.map(
        lambda g, k: g * k, GRADS[0], {"body": {"bias": 1.0, "kernel": 2.0}, "head": {"bias": 1.0, "kernel": 4.0}}
    )
    assert gradtx.tree_equal(updates, expected)
    one = once(
        gradtx.masked(weighs_for_masks(), "0"),
        (GRADS[0]["body"]["bias"],) * 2,
        (PARAMS["body"]["bias"],) * 2,
        value=2.0,
    )
    assert gradtx.tree_equal(one, (2 * GRADS[0]["body"]["bias"], GRADS[0]["body"]["bias"]))
