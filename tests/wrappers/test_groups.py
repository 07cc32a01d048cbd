"""partition: each group is an optimizer of its own; nested, sharded, printed, saved, found."""

import json
import pickle
import warnings

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
    by_rank,
    hearing,
    once,
    pulled,
    takes_scaled,
    train,
)

LABELS = {"*/kernel": "matrices", "*": "vectors"}
UPPER = {
    "dense": {"bias": "vectors", "kernel": "matrices"},
    "norm": "vectors",
    "out": {"bias": "vectors", "kernel": "matrices"},
}
WAYS = {"upper part": UPPER, "function": by_rank, "patterns": LABELS}
TWO = {"matrices": gradtx.adam(0.1), "vectors": gradtx.sgd(0.5)}
ADAMS = gradtx.partition({"matrices": gradtx.adam(0.1), "vectors": gradtx.adam(0.1)}, LABELS)


def part(values, kernels):
    """The kernels, or the others, None in place of the rest."""
    return jax.tree.map_with_path(lambda path, leaf: leaf if (path[-1].key == "kernel") == kernels else None, values)


# A group is an optimizer of its own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", WAYS.values(), ids=WAYS)
def test_each_group_by_itself_by_each_way_to_say_labels(labels):
    updates = once(gradtx.partition(TWO, labels))
    for name, kernels in (("matrices", True), ("vectors", False)):
        assert gradtx.tree_equal(part(updates, kernels), once(TWO[name], part(GRADS, kernels), part(PARAMS, kernels)))


def test_schedules_decay_and_b2_of_each_group_are_those_of_separate_optimizers():
    matrix = gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(gradtx.linear_schedule(0.1, 0.0, 9), weight_decay=0.1)
    each = {"matrices": matrix, "vectors": gradtx.adam(0.01, b2=gradtx.linear_schedule(0.9, 0.99, 5))}
    params, gradients = PARAMS["out"], [GRADS["out"], GRADS["dense"]]
    ends, state = train(gradtx.partition(each, LABELS), params, gradients)
    for name, kernels in (("matrices", True), ("vectors", False)):
        alone = train(each[name], part(params, kernels), [part(gradient, kernels) for gradient in gradients])
        assert gradtx.tree_equal((part(ends, kernels), state["partition"]["groups"][name]), alone)


def test_what_happens_in_one_group_stays_there():
    grads = GRADS | {"norm": jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), GRADS["norm"])}
    clipped = gradtx.clip_by_global_norm(0.5) >> gradtx.sgd(1.0)
    tx = gradtx.partition({"norms": clipped, "rest": clipped}, {"norm/*": "norms", "*": "rest"})
    updates = once(tx, grads)
    assert gradtx.tree_equal(updates | {"norm": 0}, once(tx) | {"norm": 0})
    np.testing.assert_allclose(gradtx.global_norm([updates["dense"], updates["out"]]), 0.5, rtol=1e-6)
    held = [leaf.nbytes for leaf in jax.tree.leaves(gradtx.partition(TWO, LABELS).init(PARAMS)) if leaf.ndim]
    assert sum(held) == 8 * (24 + 24)  # Adam's two averages of the kernels


def test_nested_with_and_in_masks_and_beside_a_direction():
    inner = gradtx.partition({"b": gradtx.sgd(1.0), "s": gradtx.sgd(2.0)}, {"*/bias": "b", "*/scale": "s"})
    nested = gradtx.partition(TWO | {"vectors": inner}, LABELS)
    flat = {"matrices": TWO["matrices"], "b": gradtx.sgd(1.0), "s": gradtx.sgd(2.0)}
    expected = once(gradtx.partition(flat, {"*/kernel": "matrices", "*/bias": "b", "*": "s"}))
    assert gradtx.tree_equal(once(nested), expected)
    tx = gradtx.partition(TWO, LABELS)
    updates = once(gradtx.train_only(tx, "out/*"))
    assert gradtx.tree_equal(updates["out"], once(tx, GRADS["out"], PARAMS["out"]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates | {"out": ()}))
    held = gradtx.partition({"still": gradtx.freeze("*"), "rest": gradtx.sgd(1.0)}, {"norm/*": "still", "*": "rest"})
    assert gradtx.tree_equal(once(held), once(gradtx.train_only(gradtx.sgd(1.0), lambda path, _: "norm" not in path)))
    scalings = {"matrices": gradtx.scale_by_rms(), "vectors": gradtx.scale_by_infinity_norm()}
    params, two = PARAMS["out"], [GRADS["out"], GRADS["dense"]]
    ends, _ = train(gradtx.scale_by_momentum() + gradtx.partition(scalings, LABELS), params, two)
    for name, kernels in (("matrices", True), ("vectors", False)):
        alone, _ = train(gradtx.scale_by_momentum() + scalings[name], params, two)
        assert gradtx.tree_equal(part(ends, kernels), part(alone, kernels))
    assert "first" in gradtx.partition({"a": takes_scaled(), "b": takes_scaled()}, {"*": "a"}).facts


def test_extra_arguments_reach_the_groups_that_accept_them():
    tx = gradtx.partition({"matrices": hearing(), "vectors": gradtx.scale(1.0)}, LABELS)
    assert tx.facts.extra == {"value", "value_fn", "grad_fn", "grad", "weights", "note"}
    once(tx, value=3.0, grad=PARAMS, grad_fn=pulled, value_fn=lambda params: len(jax.tree.leaves(params)))
    heard = HEARD[-1]
    assert (heard["value"], heard["measured"]) == (3.0, 6)
    assert gradtx.tree_equal([heard["updates"], heard["grad"]], [part(GRADS, True), part(PARAMS, True)])
    assert gradtx.tree_equal(heard["slopes"], part(pulled(PARAMS), True))


# Mapped, sharded, in a model ------------------------------------------------------------------------------------------


# As a value -----------------------------------------------------------------------------------------------------------


def test_a_transform_without_a_leaf_is_warned_of():
    tx = gradtx.partition(TWO | {"biasses": gradtx.sgd(1.0)}, LABELS)
    words = r"gradtx\.partition: no leaf has the label 'biasses'; its transform does nothing\."
    with pytest.warns(UserWarning, match=words):
        tx.init(PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.init({})  # nothing at all is no mistake


@gradtx.transform
def two_speeds(learning_rate: gradtx.NonNegative) -> gradtx.Transform:
    """A named method that is a partition."""
    return gradtx.partition({"matrices": gradtx.adam(learning_rate), "vectors": gradtx.sgd(learning_rate)}, LABELS)


def test_the_table_of_groups():
    transforms = {"matrices": gradtx.adamw(1e-3), "vectors": gradtx.sgd(0.1), "nobody": gradtx.freeze("*")}
    params = jax.eval_shape(lambda: PARAMS | {"dense": {"kernel": jnp.zeros((800, 30)), "bias": jnp.zeros(30)}})
    table = gradtx.groups(gradtx.clip(1.0) >> gradtx.partition(transforms, LABELS), params)
    assert repr(table) == str(table) == (
        "group     leaves  parameters  transform\n"
        "matrices       2      24,024  adamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)\n"
        "vectors        4          54  sgd(learning_rate=0.1, momentum=None, nesterov=False)\n"
        "nobody         0           0  freeze(mask='*')"
    )  # fmt: skip
    assert (table[1].name, table[1].leaves, table[1].parameters) == ("vectors", 4, 54)
    assert table[1].transform == repr(transforms["vectors"])
    for tx, chosen, others in (
        (gradtx.masked(gradtx.scale(0.5), "*/kernel"), "scale(step_size=0.5)", "passed through"),
        (gradtx.train_only(gradtx.scale(0.5), "*/kernel"), "scale(step_size=0.5)", "frozen"),
        (gradtx.freeze("*/kernel"), "frozen", "passed through"),
    ):
        first, second = gradtx.groups(tx, PARAMS)
        assert (first.name, first.leaves, first.parameters, first.transform) == ("chosen", 2, 48, chosen)
        assert (second.name, second.leaves, second.parameters, second.transform) == ("others", 4, 32, others)
    for tx in (two_speeds(0.1), gradtx.checked(gradtx.clip(1.0) >> two_speeds(0.1))):
        assert [group.leaves for group in gradtx.groups(tx, PARAMS)] == [2, 4]
    outermost = gradtx.groups(gradtx.train_only(two_speeds(0.1), "out/*"), PARAMS)
    assert [group.name for group in outermost] == ["chosen", "others"]


def test_saved_and_restored():
    groups = {"b": gradtx.adam(gradtx.linear_schedule(0.1, 0.0, 9)), "a": gradtx.sgd(0.5)}
    tx = gradtx.partition(groups, {"*/kernel": "b", "*": "a"})
    for copy in (pickle.loads(pickle.dumps(tx)), gradtx.from_config(json.loads(json.dumps(tx.to_config())))):
        assert copy == tx
        assert hash(copy) == hash(tx)
        assert list(copy.transforms) == ["b", "a"]
        assert gradtx.tree_equal(once(copy), once(tx))


def test_find_in_groups_however_deep():
    for tx in (
        gradtx.clip(1.0) >> gradtx.checked(ADAMS) >> gradtx.scale(1.0),
        gradtx.train_only(gradtx.tunable(ADAMS), "*"),
        gradtx.partition({"all": gradtx.masked(ADAMS, "*")}, "all"),
    ):
        state = tx.init(PARAMS)
        nu = gradtx.find(state, "matrices/scale_by_rms/nu")
        assert [leaf.shape for leaf in jax.tree.leaves(nu)] == [(8, 3), (8, 3)]
        assert gradtx.find(state, "matrices/nu") is nu
        assert set(gradtx.find(state, "vectors")) == {"scale_by_momentum", "scale_by_rms", "scale_by_learning_rate"}
        assert gradtx.step_count(state) == 0
    nu = gradtx.find(ADAMS.init(PARAMS), "nu")  # of both groups: each leaf from its own
    assert jax.tree.map(jnp.shape, nu) == jax.tree.map(jnp.shape, PARAMS)
    params = {name: jnp.ones(2) for name in ("matrices", "groups", "inner", "scale_by_rms", "nu")}  # called like groups
    tx = gradtx.partition({"matrices": gradtx.adam(0.1), "nu": gradtx.sgd(0.1)}, {"nu": "nu", "*": "matrices"})
    assert set(gradtx.find(tx.init(params), "matrices/scale_by_rms/nu")) == set(params)


def test_numbers_of_one_group_are_tuned():
    tx = gradtx.tunable(gradtx.partition(TWO, LABELS))
    state = tx.init(PARAMS)
    (name,) = [name for name in state["tunable"]["hyperparameters"] if "vectors" in name and "learning_rate" in name]
    updates, _ = tx.update(GRADS, gradtx.tune(state, **{name: 0.25}), PARAMS)
    assert gradtx.tree_equal(updates, once(gradtx.partition(TWO | {"vectors": gradtx.sgd(0.25)}, LABELS)))


@pytest.mark.parametrize("inside", [False, True])
def test_a_number_of_one_group_is_tuned_and_no_other(inside):
    """With a tunable in each group, or one around all."""
    around = gradtx.tunable if inside else lambda tx: tx
    groups = {"matrices": around(gradtx.sgd(0.1)), "vectors": around(gradtx.sgd(0.2))}
    tx = gradtx.partition(groups, LABELS) if inside else gradtx.tunable(gradtx.partition(groups, LABELS))
    state = tx.init(PARAMS)
    updates, _ = tx.update(GRADS, gradtx.tune(state, **{"vectors/learning_rate": 0.25}), PARAMS)
    expected = {"matrices": gradtx.sgd(0.1), "vectors": gradtx.sgd(0.25)}
    assert gradtx.tree_equal(updates, once(gradtx.partition(expected, LABELS)))
    with pytest.raises(
        KeyError, match=r"several hyperparameters are called 'learning_rate'. There are: .*matrices.*, .*vec"
    ):
        gradtx.tune(state, learning_rate=0.25)


def test_of_two_tunables_one_is_tuned():
    tx = gradtx.tunable(gradtx.scale(2.0)) >> gradtx.tunable(gradtx.scale(3.0))
    state = gradtx.tune(tx.init(PARAMS), **{"tunable_2/step_size": 0.5})
    assert gradtx.tree_equal(tx.update(GRADS, state, PARAMS)[0], GRADS)
    with pytest.raises(KeyError, match="There are: tunable/step_size, tunable_2/step_size"):
        gradtx.tune(state, step_size=0.5)
    with_optax = optax.chain(optax.identity(), tx)
    state = gradtx.tune(with_optax.init(PARAMS), **{"tunable_2/step_size": 0.5})
    assert gradtx.tree_equal(with_optax.update(GRADS, state, PARAMS)[0], GRADS)
