"""What a transform is made of, what can be asked of it, what an author's update is given, the state of its parts."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import Rule, Transform, tree
from gradtx.core.annotations import Kind
from gradtx.core.compose import numbered
from gradtx.core.rule import widest
from tests.core.samples import PARAMS, every

CHAIN = gradtx.clip(1.0) >> gradtx.adamw(1e-3)


def keep(updates, state):
    return updates, state


def shapes(tx):
    return jax.eval_shape(tx.init, PARAMS)


@gradtx.transform
def says(given: object) -> Rule:
    """Whatever is to be asked."""
    return given


# What it is made of ---------------------------------------------------------------------------------------------------


def test_init_and_update_are_the_plain_pair():
    tx = gradtx.sgd(1e-3)
    init, update = tx
    assert (init, update) == (tx.init, tx.update)
    assert tx.update is tx.update
    assert (init.__name__, init.__qualname__, update.__qualname__) == ("init", "sgd.init", "sgd.update")
    updates, state = update(PARAMS, init(PARAMS))
    np.testing.assert_allclose(updates["w"], -1e-3 * PARAMS["w"], rtol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(init(PARAMS))


def test_expand_one_level_and_deep():
    parts = ["clip", "scale_by_adam", "add_decayed_weights", "scale_by_learning_rate"]
    assert [stage.name for stage in CHAIN.expand().stages] == parts
    deep = CHAIN.expand(deep=True)
    assert [stage.name for stage in deep.stages] == ["clip", "join", *parts[2:]]
    assert [stage.name for stage in deep.stages[1].stages] == ["scale_by_momentum", "scale_by_rms"]
    assert deep.expand() == deep.expand(deep=True) == deep
    assert gradtx.adam(1e-3, nesterov=True).expand() != gradtx.adam(1e-3).expand()


@every
def test_the_state_and_the_answers_are_those_of_the_expansion(tx):
    deep, state = tx.expand(deep=True), shapes(tx)
    assert jax.tree.structure(shapes(deep)) == jax.tree.structure(state)
    for asked in ("slots", "extra_args", "takes_any", "needs_params", "observable", "reads", "random", "whole_leaves"):
        assert getattr(deep, asked) == getattr(tx, asked), asked
    assert sorted(tx.rules) == sorted(numbered(tx.slots)) == list(state)
    queue, timed = [deep], []
    while queue:
        node = queue.pop()
        if hasattr(node, "stages"):
            queue.extend(node.stages)
        elif any(p.kind is Kind.HYPER for p in node._parameters):
            timed.append(node.name)
    assert sorted(name for name in state if "count" in state[name]) == sorted(timed)
    for name, rule in tx.rules.items():
        assert set(rule.nonnegative) <= set(state[name])
        assert "count" not in state[name] or (state[name]["count"].shape, state[name]["count"].dtype) == ((), np.int32)


def test_a_state_is_one_flat_dict_whatever_the_nesting():
    a, b, c = gradtx.scale(1.0), gradtx.scale(2.0), gradtx.scale(3.0)
    for tx in [a >> b >> c, a + b + c, (a >> b) + c, a >> b + c, a + (b >> c)]:
        assert list(shapes(tx)) == ["scale", "scale_2", "scale_3"]
    assert numbered(("scale", "scale_2", "scale", "scale")) == ["scale", "scale_2", "scale_3", "scale_4"]
    before, after = shapes(gradtx.adam(1e-3)), shapes(gradtx.clip_by_global_norm(1.0) >> gradtx.adam(1e-3))
    assert list(after) == ["clip_by_global_norm", *before]  # a clip in front renames nothing
    assert list(gradtx.sgd(0.1, 0.9).init(PARAMS)) == ["scale_by_momentum", "scale_by_learning_rate"]


def test_a_name_that_looks_numbered_does_not_collide():
    @gradtx.transform
    def scale_2(factor: gradtx.Finite) -> Rule:
        return Rule(update=lambda u, state: (tree.map(lambda u, factor: factor * u, u, factor=factor), state))

    tx = gradtx.scale(2.0) >> gradtx.scale(3.0) >> scale_2(4.0)
    assert list(shapes(tx)) == ["scale", "scale_2", "scale_2_2"]
    updates, state = tx.update(PARAMS, tx.init(PARAMS))
    assert updates["w"].tolist() == [24.0] * 3
    assert {int(own["count"]) for own in state.values()} == {1}


# What can be asked ----------------------------------------------------------------------------------------------------

OWN = ["random", "final", "first", "guards", "waits", "descends", "clips", "whole_leaves"]


@pytest.mark.parametrize("asked", OWN)
def test_facts_of_a_rule_are_those_of_what_contains_it(asked):
    plain, tx = gradtx.scale(1.0), says(Rule(update=keep, **{asked: True}))
    assert not getattr(plain, asked)
    assert getattr(tx, asked)
    assert getattr(gradtx.chain(tx), asked)
    assert getattr(gradtx.tunable(tx), asked) is (asked != "clips")
    assert not getattr(gradtx.tunable(plain), asked)
    if asked != "final":
        assert getattr(tx >> plain, asked)
    if asked != "first":
        assert getattr(plain >> tx, asked)
        assert getattr(plain + gradtx.chain(tx), asked)


def test_what_reads_more_than_elements_needs_whole_leaves_unless_it_says_otherwise():
    for reads, whole, expected in [("leaf", None, True), ("element", None, False), ("tree", False, False)]:
        assert says(Rule(update=keep, reads=reads, whole_leaves=whole)).whole_leaves is expected
    orders = [("element", "element"), ("element", "leaf"), ("leaf", "tree"), ("tree", "element")]
    assert [widest(list(order)) for order in orders] == ["element", "leaf", "tree", "tree"]
    norm = gradtx.clip_by_global_norm(1.0)
    assert gradtx.adam(1e-3).reads == "element"
    assert norm.reads == (norm >> gradtx.adam(1e-3)).reads == gradtx.tunable(norm).reads == "tree"


def test_what_can_be_told_which_gradient_to_measure():
    ours, theirs = gradtx.scale(1.0), gradtx.foreign(optax.trace(0.9))
    blind = says(Rule(update=keep, observable=False))
    for first, second in [(ours, blind), (blind, ours)]:
        tx = first >> second
        assert tx.observable is (first is ours)
    for tx, observable in [(ours, True), (theirs, False), (theirs + ours, False), (gradtx.checked(blind), False)]:
        assert tx.observable is observable
        assert gradtx.tunable(tx).observable is observable
    assert (theirs.reads, theirs.rules, theirs.whole_leaves, theirs.needs_params) == ("tree", {}, True, False)
    assert not any(getattr(theirs, asked) for asked in OWN[:-1])
    assert theirs.expand() is theirs
    assert gradtx.adam(1e-3, state_dtype="bfloat16").random
    assert not gradtx.adam(1e-3).random
    assert gradtx.tunable(gradtx.adamw(1e-3)).needs_params
    assert gradtx.checked(says(Rule(update=keep, guards=True))).guards


# What an author's update is given -------------------------------------------------------------------------------------


def test_authors_are_given_what_they_name():
    seen = {}

    @gradtx.transform
    def names_all(rate: gradtx.Unit) -> Rule:
        def update(updates, state, params, *, observed, count, value, other=None):
            seen.update(params=params, observed=observed, count=int(count), value=value, other=other, rate=rate)
            return updates, state

        return Rule(update=update)

    tx = names_all(0.5)
    assert tx.extra_args == (gradtx.clip(1.0) >> tx).extra_args == gradtx.checked(tx).extra_args == {"value", "other"}
    assert tx.needs_params
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0)
    assert (seen["count"], seen["value"], seen["other"], seen["rate"].dtype) == (1, 3.0, None, np.float32)
    assert gradtx.tree_equal(seen["observed"], PARAMS)
    assert gradtx.tree_equal(seen["params"], PARAMS)
    doubled = gradtx.scale(2.0) + gradtx.checked(tx)
    state = doubled.init(PARAMS) | {"checked": {"inner": state}}
    doubled.update(PARAMS, state, PARAMS, value=3.0, other="x")
    assert (seen["count"], seen["other"], float(seen["observed"]["w"][0])) == (2, "x", 1.0)
    chained = gradtx.scale(2.0) >> tx  # only a chain's first stage is told what to measure
    for outer, measured in [(chained, 2.0), (gradtx.scale(3.0) + chained, 6.0)]:
        outer.update(PARAMS, outer.init(PARAMS), PARAMS, value=3.0)
        assert float(seen["observed"]["w"][0]) == measured


def test_a_name_without_hyperparameter_is_counted_if_it_asks_and_params_may_be_missing():
    seen = []

    @gradtx.transform
    def counts() -> Rule:
        def update(updates, state, params=None, *, count):
            seen.append((int(count), params))
            return updates, state

        return Rule(update=update)

    tx = counts()
    assert not tx.needs_params
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = tx.update(PARAMS, state)
    assert seen == [(1, None), (2, None)]


def test_params_by_keyword_are_needed_unless_they_have_a_default():
    by_keyword = says(Rule(update=lambda updates, state, *, params: (params, state)))
    assert by_keyword.needs_params
    assert not by_keyword.extra_args
    doubled = jax.tree.map(lambda leaf: 2 * leaf, PARAMS)
    assert gradtx.tree_equal(jax.device_get(by_keyword.update(PARAMS, {}, doubled)[0]), doubled)
    assert not says(Rule(update=lambda updates, state, *, params=None: (updates, state))).needs_params


def test_errors_in_an_authors_code_say_where():
    def fail(*args, **kwargs):
        raise RuntimeError("mine")

    @gradtx.transform
    def fails(rate: gradtx.Unit = 0.5, at: str = "update") -> Rule:
        init = fail if at == "init" else None
        return fail() if at == "body" else Rule(init, update=lambda updates, state: fail())

    @gradtx.transform
    def outer() -> Transform:
        return gradtx.scale(1.0) >> fails()

    for call, notes in [
        (lambda: outer().update(PARAMS, outer().init(PARAMS)), ["in gradtx.fails.update", "in gradtx.outer.update"]),
        (lambda: fails(at="init").init(PARAMS), ["in gradtx.fails.init"]),
        (lambda: fails(at="body"), ["in gradtx.fails"]),
    ]:
        with pytest.raises(RuntimeError, match="mine") as caught:
            call()
        assert caught.value.__notes__[: len(notes)] == notes


def test_annotations_may_be_strings():
    def later(rate: "gradtx.Unit" = 0.5) -> "Rule":
        return Rule(update=keep)

    assert gradtx.transform(later)(0.25).rate == 0.25


def test_jit_knows_an_equal_update_also_after_the_first_is_gone():
    traced = []

    @gradtx.transform
    def noted() -> Rule:
        return Rule(update=lambda updates, state: (traced.append(1), (updates, state))[1])

    for _ in range(2):
        jax.jit(noted().update)(PARAMS, {})
        gc.collect()
    assert len(traced) == 1


def test_stateless_is_called_under_standard_promotion_and_cast_back():
    tx = gradtx.stateless(lambda updates, params: jax.tree.map(lambda u: u * np.float64(2) * jnp.ones(()), updates))
    low = {"w": jnp.ones(2, jnp.bfloat16)}
    assert gradtx.tree_equal(tx.update(low, tx.init(low))[0], {"w": 2 * low["w"]})


def test_none_leaves_and_empty_trees_pass():
    tx = gradtx.clip_by_global_norm(1.0) >> gradtx.checked(gradtx.tunable(gradtx.adamw(1e-3)))
    for params in ({}, (), {"a": None}, {"a": {}, "b": np.ones((0,)), "c": None}):
        updates, state = tx.update(params, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


def test_updates_are_added_in_float32_and_rounded_once():
    params = {"w": np.asarray([1.0, 256.0], jnp.bfloat16), "n": np.arange(2), "c": np.complex64(1)}
    updates = {"w": np.float32([2.0**-8, 1.0]), "n": np.zeros(2, jax.dtypes.float0), "c": np.complex64(1j)}
    moved = gradtx.apply_updates(params, updates)
    assert (moved["w"].dtype, moved["w"].astype(float).tolist()) == (jnp.bfloat16, [1.0, 256.0])
    assert gradtx.apply_updates({"w": params["w"]}, {"w": np.float32([0.005, 3.0])})["w"].tolist() == [1.0078125, 260.0]
    assert moved["n"] is params["n"]
    assert complex(moved["c"]) == 1 + 1j
