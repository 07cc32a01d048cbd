"""What a transform is made of, what can be asked of it, and the state that its parts have."""

import jax
import jax.numpy as jnp

import gradtx
from gradtx import Rule, tree
from gradtx.core.annotations import Kind
from tests.core.samples import PARAMS, every

# The pair, expansions and what can be asked ---------------------------------------------------------------------------


def test_init_and_update_are_the_plain_pair():
    tx = gradtx.adam(1e-3)
    init, update = tx
    assert (init, update) == (tx.init, tx.update)
    assert gradtx.tree_equal(update(PARAMS, init(PARAMS)), tx.update(PARAMS, tx.init(PARAMS)))
    assert tx.update is tx.update


def test_expand_one_level_and_deep():
    tx = gradtx.clip(1.0) >> gradtx.adamw(1e-3)
    one = tx.expand()
    assert [stage.name for stage in one.stages] == [
        "clip",
        "scale_by_adam",
        "add_decayed_weights",
        "scale_by_learning_rate",
    ]
    deep = tx.expand(deep=True)
    assert [stage.name for stage in deep.stages] == ["clip", "join", "add_decayed_weights", "scale_by_learning_rate"]
    assert [stage.name for stage in deep.stages[1].stages] == ["scale_by_momentum", "scale_by_rms"]
    assert deep.expand() == deep.expand(deep=True) == deep


@every
def test_an_expansion_has_the_same_state_and_the_same_bits(tx):
    deep = tx.expand(deep=True)
    state = tx.init(PARAMS)
    assert gradtx.tree_equal(deep.init(PARAMS), state)
    grads = {"w": jnp.array([0.3, -2.0, 0.0]), "b": jnp.float32(1.5)}
    assert gradtx.tree_equal(deep.update(grads, state, PARAMS), tx.update(grads, state, PARAMS))
    assert (deep.extra_args, deep.needs_params, deep.observable, deep.reads, deep.random) == (
        tx.extra_args,
        tx.needs_params,
        tx.observable,
        tx.reads,
        tx.random,
    )


@every
def test_the_nonnegative_fields_are_fields_of_the_state(tx):
    state = tx.init(PARAMS)
    assert set(tx.rules) <= set(state)
    for name, rule in tx.rules.items():
        assert set(rule.nonnegative) <= set(state[name])
        assert rule.reads in {"element", "leaf", "tree"}


def test_the_rule_says_what_it_reads():
    assert gradtx.adam(1e-3).reads == "element"
    assert gradtx.clip_by_global_norm(1.0).reads == "tree"
    assert (gradtx.clip_by_global_norm(1.0) >> gradtx.adam(1e-3)).reads == "tree"
    assert gradtx.tunable(gradtx.clip_by_global_norm(1.0)).reads == "tree"
    assert not gradtx.adam(1e-3).random


@every
def test_one_int32_counter_for_each_rule_with_a_hyperparameter(tx):
    deep = tx.expand(deep=True)
    queue, timed, untimed = [deep], [], []
    while queue:
        node = queue.pop()
        if hasattr(node, "stages"):
            queue.extend(node.stages)
        else:
            has_hyper = any(p.kind is Kind.HYPER for p in node._parameters)
            (timed if has_hyper else untimed).append(node.name)
    state = tx.init(PARAMS)
    counted = [key for key in state if "count" in state[key]]
    assert sorted(key.rsplit("_", 1)[0] if key[-1].isdigit() else key for key in counted) == sorted(timed)
    for key in counted:
        assert state[key]["count"].dtype == jnp.int32
        assert state[key]["count"].shape == ()


def test_the_state_is_one_flat_dict_whatever_the_nesting():
    a, b, c = gradtx.scale(1.0), gradtx.scale(2.0), gradtx.scale(3.0)
    names = ["scale", "scale_2", "scale_3"]
    for tx in [a >> b >> c, a + b + c, (a >> b) + c, a >> b + c, gradtx.scale(1.0) + (b >> c)]:
        assert list(tx.init(PARAMS)) == names
    assert list(gradtx.adam(1e-3).init(PARAMS)) == ["scale_by_momentum", "scale_by_rms", "scale_by_learning_rate"]


def test_a_name_that_looks_numbered_does_not_collide():
    @gradtx.transform
    def scale_2(factor: gradtx.Finite) -> Rule:
        def init(params):
            return {"memory": tree.zeros_like(params)}

        def update(updates, state):
            return tree.map(lambda u, factor: factor * u, updates, factor=factor), state

        return Rule(init, update=update)

    tx = gradtx.scale(2.0) >> gradtx.scale(3.0) >> scale_2(4.0)
    state = tx.init(PARAMS)
    assert len(state) == 3
    updates, _ = tx.update(PARAMS, state)
    assert updates["w"].tolist() == [24.0] * 3


def test_clip_in_front_renames_nothing():
    before = gradtx.adam(1e-3).init(PARAMS)
    after = (gradtx.clip_by_global_norm(1.0) >> gradtx.adam(1e-3)).init(PARAMS)
    assert list(after) == ["clip_by_global_norm", *before]
    assert all(gradtx.tree_equal(after[name], before[name]) for name in before)


@every
def test_states_are_dicts_tuples_and_namedtuples(tx):
    def walk(node):
        assert isinstance(node, (dict, tuple, jax.Array)) or node is None
        if isinstance(node, dict):
            assert all(isinstance(key, str) for key in node)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, tuple) else ():
            walk(child)

    walk(tx.init(PARAMS))
