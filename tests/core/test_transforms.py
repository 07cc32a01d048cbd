"""What a transform is made of, what can be asked of it, what an author's update is given, the state of its parts."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import Rule, Transform, tree
from gradtx.core import fields
from gradtx.core.annotations import Kind, is_traced
from gradtx.core.fields import at
from gradtx.core.rule import widest
from gradtx.core.transform import numbered
from tests.core.samples import PARAMS, every, fields_of

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
    assert (deep.facts, deep.slots, deep.declared) == (tx.facts, tx.slots, tx.declared)
    assert sorted(numbered(tx.slots)) == list(state)
    assert {place[0] for place in tx.declared} <= state.keys()
    assert deep.parts.keys() == tx.parts.keys()
    for place, part in tx.parts.items():
        assert at(state, place).keys() >= part.fields.keys()
        assert all(tx.declared[*place, name] == field for name, field in part.fields.items())
    queue, timed = [deep], []
    while queue:
        node = queue.pop()
        if hasattr(node, "stages"):
            queue.extend(node.stages)
        elif node.name == "stored":
            queue.append(node.inner)
        elif any(p.kind is Kind.HYPER for p in node._parameters):
            timed.append(node.name)
    assert sorted(name for name in state if "count" in state[name]) == sorted(timed)
    for _, field, value in fields_of(tx, state):
        expected = jax.eval_shape(lambda params, field=field: field.init(params, field.start), PARAMS)
        assert jax.tree.map(jnp.shape, value) == jax.tree.map(jnp.shape, expected)
    for own in state.values():
        assert "count" not in own or (own["count"].shape, own["count"].dtype) == ((), np.int32)


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

SAID = {
    "random": {"fields": {"key": fields.key()}},
    "sometimes": {"acts": "sometimes"},
    "first": {"place": "first"},
    "last": {"place": "last"},
} | {trait: {"traits": (trait,)} for trait in ("real", "leaves", "sums", "nonfinite", "descends", "clips")}


def holds(fact, tx):
    return fact in tx.facts or getattr(tx.facts, fact, False)


@pytest.mark.parametrize("fact", SAID)
def test_facts_of_a_rule_are_those_of_what_contains_it(fact):
    plain, tx = gradtx.scale(1.0), says(Rule(update=keep, **SAID[fact]))
    assert not holds(fact, plain)
    assert holds(fact, tx)
    assert holds(fact, gradtx.chain(tx))
    assert holds(fact, gradtx.tunable(tx)) is (fact not in ("clips", "real"))  # what is inside refuses by itself
    assert not holds(fact, gradtx.tunable(plain))
    if fact != "last":
        assert holds(fact, tx >> plain)
    if fact != "first":
        assert holds(fact, plain >> tx)
        assert holds(fact, plain + gradtx.chain(tx))


def test_what_holds_of_all_and_what_holds_of_the_first():
    plain, said = gradtx.scale_by_momentum(), says(Rule(update=keep, traits=("integers", "unobserved")))
    for tx in (plain >> said, said >> plain, gradtx.tunable(said)):
        assert "integers" not in tx.facts
    assert "integers" in (said >> said).facts
    assert "unobserved" not in (plain >> said).facts
    for tx in (said >> plain, said >> said, gradtx.tunable(said)):
        assert "unobserved" in tx.facts


def test_what_remembers_nothing_is_idle():
    none, kept = says(Rule(update=keep)), says(Rule(update=keep, fields={"mu": fields.like()}))
    said = says(Rule(update=keep, fields={"mu": fields.like()}, traits=("idle",)))
    by_hand = says(Rule(init=lambda params: {}, update=keep))
    counts = says(Rule(update=lambda updates, state, *, count: (updates, state)))
    reads = says(Rule(update=lambda updates, state, params=None: (updates, state)))
    scheduled = gradtx.scale_by_schedule(gradtx.linear_schedule(1.0, 0.0, 10))
    for tx, expected in [(none, True), (kept, False), (said, True), (by_hand, False), (counts, False), (reads, False)]:
        assert ("idle" in tx.facts) is expected
        assert ("idle" in gradtx.tunable(tx).facts) is expected
        assert ("idle" in (none >> tx).facts) is ("idle" in (tx + none).facts) is expected
    assert "idle" in gradtx.scale(2.0).facts
    assert "idle" not in scheduled.facts
    assert "idle" not in gradtx.tunable(scheduled).facts


def test_the_reach_is_the_widest_and_what_is_only_summed_may_be_joined():
    order = ("element", "matrix", "leaf", "tree")
    for reach, reads in zip(order, ("element", "leaf", "leaf", "tree"), strict=True):
        said = says(Rule(update=keep, reach=reach))
        assert (said.facts.reach, said.facts.reads, said.facts.joinable) == (reach, reads, reach == "element")
        for tx in (said >> gradtx.scale(1.0), gradtx.scale(1.0) + said, gradtx.tunable(said)):
            assert tx.facts.reach == reach
        assert [widest([reach, other]) for other in order[: order.index(reach)]] == [reach] * order.index(reach)
    assert widest([]) == "element"
    assert says(Rule(update=keep)).facts.reach == "tree"  # by hand, and nothing inside
    norm = gradtx.clip_by_global_norm(1.0)
    for tx in (norm, norm >> gradtx.adam(1e-3), gradtx.tunable(norm)):
        assert (tx.facts.reach, tx.facts.reads, tx.facts.joinable) == ("element", "tree", True)
    assert not says(Rule(update=keep, reach="element", traits=("leaves",))).facts.joinable
    assert gradtx.adam(1e-3).facts.reads == "element"


def test_what_can_be_told_which_gradient_to_measure():
    ours, theirs = gradtx.scale(1.0), gradtx.foreign(optax.trace(0.9))
    blind = says(Rule(update=keep, traits=("unobserved",)))
    for tx, observable in [(ours, True), (theirs, False), (theirs + ours, False), (gradtx.checked(blind), False)]:
        assert ("unobserved" not in tx.facts) is observable
        assert ("unobserved" not in gradtx.tunable(tx).facts) is observable
    assert (theirs.facts.reads, theirs.declared, theirs.facts.joinable) == ("tree", {}, False)
    assert not theirs.facts.params
    assert not any(holds(fact, theirs) for fact in SAID)
    assert theirs.expand() is theirs

    @gradtx.transform
    def passes_nothing_on(inner: Transform) -> Rule:
        return Rule(update=lambda updates, state: inner.update(updates, state["inner"]))

    assert "unobserved" in passes_nothing_on(ours).facts


def test_what_a_method_draws_and_needs_holds_of_what_is_around_it():
    assert gradtx.stored(gradtx.adam(1e-3), "bfloat16").facts.random
    assert gradtx.adam(1e-3, mu_dtype="bfloat16").facts.random
    assert not gradtx.adam(1e-3).facts.random
    assert gradtx.tunable(gradtx.adamw(1e-3)).facts.params
    assert not gradtx.tunable(gradtx.adam(1e-3)).facts.params


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
    assert (
        {"value", "other"} == tx.facts.extra == (gradtx.clip(1.0) >> tx).facts.extra == gradtx.checked(tx).facts.extra
    )
    assert tx.facts.required == {"value"}
    assert tx.facts.params
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
    assert not tx.facts.params
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = tx.update(PARAMS, state)
    assert seen == [(1, None), (2, None)]


def test_params_by_keyword_are_needed_unless_they_have_a_default():
    by_keyword = says(Rule(update=lambda updates, state, *, params: (params, state)))
    assert by_keyword.facts.params
    assert not by_keyword.facts.extra
    doubled = jax.tree.map(lambda leaf: 2 * leaf, PARAMS)
    assert gradtx.tree_equal(jax.device_get(by_keyword.update(PARAMS, {}, doubled)[0]), doubled)
    assert not says(Rule(update=lambda updates, state, *, params=None: (updates, state))).facts.params


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
        assert [note for note in caught.value.__notes__ if note.startswith("in ")] == notes  # JAX has one too


def test_a_check_sees_the_values_at_the_call_and_at_no_other_time():
    def in_order(low, high):
        if not is_traced(low) and low > high:
            raise ValueError(f"low={low} is above high={high}")

    @gradtx.transform(check=in_order)
    def between(low: gradtx.Finite, high: gradtx.Finite = 1.0) -> Rule:
        return gradtx.per_element(lambda u: jnp.clip(u, low, high))

    tx = between(0.5)
    for call in (lambda: between(2.0), lambda: tx.replace(high=0.25), lambda: between(0.5, high=0.0)):
        with pytest.raises(ValueError, match=r"low=\d\.\d is above high="):
            call()
    jax.eval_shape(lambda low: between(low).update(PARAMS, {"between": {"count": jnp.int32(0)}})[0], 2.0)
    assert jax.tree.map(lambda number: -number, tx).low == -0.5


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
