"""partition as a value: what is warned of, refused, printed, saved, found."""

import json
import pickle
import warnings

import jax
import jax.numpy as jnp
import pytest

import gradtx
from gradtx import Rule
from tests.wrappers.grouping import GRADS, LABELS, PARAMS, TWO, WAYS, hundred, once

# Warned of, and refused -----------------------------------------------------------------------------------------------


def test_a_transform_without_a_leaf_is_warned_of():
    tx = gradtx.partition(TWO | {"biasses": gradtx.sgd(1.0)}, LABELS)
    words = r"gradtx\.partition: no leaf has the label 'biasses'; its transform does nothing\."
    with pytest.warns(UserWarning, match=words):
        tx.init(PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.init({})  # nothing at all is no mistake


@gradtx.transform
def takes_scaled_for_groups() -> Rule:
    """Gradients come multiplied by 8."""

    def update(updates, state):
        return jax.tree.map(lambda u: u / 8, updates), state

    return Rule(update=update, first=True)


def test_refused_by_name():
    for build, error, words in (
        (lambda: gradtx.partition({}, LABELS), ValueError, "got no transforms"),
        (lambda: gradtx.partition({0: gradtx.sgd(0.1)}, LABELS), TypeError, "a group is called 0; allowed: a str"),
        (lambda: gradtx.partition([gradtx.sgd(0.1)], LABELS), TypeError, "transforms is .*; allowed: a dict"),
        (lambda: gradtx.partition({"a": gradtx.sgd}, LABELS), TypeError, ".*call it: sgd"),
        (
            lambda: gradtx.partition({"a": takes_scaled_for_groups(), "b": gradtx.sgd(0.1)}, LABELS),
            TypeError,
            "the group 'a' takes gradients that are still scaled, and others do not.* around the partition",
        ),
    ):
        with pytest.raises(error, match=rf"gradtx\.partition: {words}"):
            build()
    gradtx.partition({"a": takes_scaled_for_groups(), "b": takes_scaled_for_groups()}, LABELS)


def test_labels_that_do_not_fit_are_refused_by_name():
    for labels, error, words in (
        (
            {"*/kernel": "matrixes", "*": "vectors"},
            ValueError,
            r"the leaf 'dense/kernel' has the label 'matrixes', for which there is no transform; there are: "
            r"'matrices', 'vectors'\.",
        ),
        (
            {"*/embedding": "matrices", "*": "vectors"},
            ValueError,
            r"param_labels: the pattern '\*/embedding' matches no",
        ),
        ({"*/kernel": "matrices"}, ValueError, r"param_labels: no pattern matches the leaf 'dense/bias'"),
        ({"dense": "matrices"}, ValueError, "param_labels has the structure"),
        (lambda path, leaf: leaf.ndim, TypeError, "param_labels at 'dense/bias' is 1; allowed: a str"),
    ):
        for call in (
            gradtx.partition(TWO, labels).init,
            lambda params, labels=labels: gradtx.groups(gradtx.partition(TWO, labels), params),
        ):
            with pytest.raises(error, match=rf"gradtx\.partition: {words}"):
                call(PARAMS)


def test_a_function_of_the_params_needs_the_params():
    tx = gradtx.partition(TWO, WAYS["function"])
    with pytest.raises(ValueError, match=r"gradtx\.partition\.update: params are missing"):
        tx.update(GRADS[0], tx.init(PARAMS))
    patterns = gradtx.partition(TWO, LABELS)
    assert gradtx.tree_equal(patterns.update(GRADS[0], patterns.init(PARAMS))[0], once(tx, GRADS[0]))


def test_a_function_is_asked_once():
    asked = []

    def labels(path, leaf):
        asked.append(type(leaf))
        return "matrices" if leaf.ndim == 2 else "vectors"

    tx = gradtx.partition(TWO, labels)
    state = tx.init(PARAMS)
    for grads in GRADS[:3]:
        _, state = tx.update(grads, state, PARAMS)
    jax.jit(tx.update)(GRADS[0], state, PARAMS)
    gradtx.groups(tx, PARAMS)
    assert asked == [jax.ShapeDtypeStruct] * 6


# Printed --------------------------------------------------------------------------------------------------------------


def test_the_table_of_six_leaves():
    transforms = {"matrices": gradtx.adamw(1e-3), "vectors": gradtx.sgd(0.1), "nobody": gradtx.freeze("*")}
    params = jax.eval_shape(lambda: PARAMS | {"dense": {"kernel": jnp.zeros((800, 30)), "bias": jnp.zeros(30)}})
    table = gradtx.groups(gradtx.clip(1.0) >> gradtx.partition(transforms, LABELS), params)
    assert (
        repr(table)
        == str(table)
        == (
            "group     leaves  parameters  transform\n"
            "matrices       2      24,008  adamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)\n"
            "vectors        4          47  sgd(learning_rate=0.1, momentum=None, nesterov=False)\n"
            "nobody         0           0  freeze(mask='*')"
        )
    )
    assert [(group.name, group.leaves, group.parameters) for group in table] == [
        ("matrices", 2, 24008),
        ("vectors", 4, 47),
        ("nobody", 0, 0),
    ]
    assert table[1].transform == repr(transforms["vectors"])


def test_the_tables_of_the_others():
    for tx, chosen, others in (
        (gradtx.masked(gradtx.scale(0.5), "*/kernel"), "scale(step_size=0.5)", "passed through"),
        (gradtx.train_only(gradtx.scale(0.5), "*/kernel"), "scale(step_size=0.5)", "frozen"),
        (gradtx.freeze("*/kernel"), "frozen", "passed through"),
    ):
        first, second = gradtx.groups(tx, PARAMS)
        assert (first.name, first.leaves, first.parameters, first.transform) == ("chosen", 2, 32, chosen)
        assert (second.name, second.leaves, second.parameters, second.transform) == ("others", 4, 25, others)


@gradtx.transform
def two_speeds_for_groups(learning_rate: gradtx.NonNegative) -> gradtx.Transform:
    """A named method that is a partition."""
    return gradtx.partition({"matrices": gradtx.adam(learning_rate), "vectors": gradtx.sgd(learning_rate)}, LABELS)


def test_groups_of_a_named_method_and_of_wrapped_ones():
    for tx in (two_speeds_for_groups(0.1), gradtx.checked(gradtx.clip(1.0) >> two_speeds_for_groups(0.1))):
        assert [group.leaves for group in gradtx.groups(tx, PARAMS)] == [2, 4]
    outermost = gradtx.train_only(two_speeds_for_groups(0.1), "out/*")
    assert [group.name for group in gradtx.groups(outermost, PARAMS)] == ["chosen", "others"]
    with pytest.raises(ValueError, match=r"gradtx\.groups: adam\(.* has no groups; allowed: partition, masked"):
        gradtx.groups(gradtx.adam(0.1), PARAMS)
    with pytest.raises(ValueError, match="has groups in several places: ask for each by itself"):
        gradtx.groups(gradtx.freeze("out/*") >> gradtx.freeze("norm/*"), PARAMS)


# As a value -----------------------------------------------------------------------------------------------------------


def test_saved_and_restored():
    tx = gradtx.partition(
        {"b": gradtx.adam(gradtx.linear_schedule(0.1, 0.0, 9)), "a": gradtx.sgd(0.5)}, {"*/kernel": "b", "*": "a"}
    )
    for copy in (pickle.loads(pickle.dumps(tx)), gradtx.from_config(json.loads(json.dumps(tx.to_config())))):
        assert copy == tx
        assert hash(copy) == hash(tx)
        assert list(copy.transforms) == ["b", "a"]
        assert gradtx.tree_equal(hundred(copy), hundred(tx))
    with pytest.raises(TypeError, match=r"gradtx\.partition: param_labels is .* which JSON cannot hold"):
        gradtx.partition(TWO, WAYS["function"]).to_config()


def test_find_in_groups_however_deep():
    adams = gradtx.partition({"matrices": gradtx.adam(0.1), "vectors": gradtx.adam(0.1)}, LABELS)
    for tx in (
        adams,
        gradtx.clip(1.0) >> gradtx.checked(adams) >> gradtx.scale(1.0),
        gradtx.train_only(gradtx.tunable(adams), "*"),
        gradtx.partition({"all": gradtx.masked(adams, "*")}, "all"),
    ):
        state = tx.init(PARAMS)
        nu = gradtx.find(state, "matrices/scale_by_rms/nu")
        assert [leaf.shape for leaf in jax.tree.leaves(nu)] == [(8, 3), (8, 1)]
        assert gradtx.find(state, "matrices/nu") is nu
        assert gradtx.find(state, "vectors/scale_by_rms")["nu"] is gradtx.find(state, "vectors/nu")
        assert set(gradtx.find(state, "vectors")) == {"scale_by_momentum", "scale_by_rms", "scale_by_learning_rate"}
        with pytest.raises(KeyError, match=r"several entries are called 'nu'.*matrices/scale_by_rms/nu"):
            gradtx.find(state, "nu")
        with pytest.raises(KeyError, match="no entry is called 'matrices/velocity'"):
            gradtx.find(state, "matrices/velocity")
        assert gradtx.step_count(state) == 0
    wrapped = gradtx.partition(
        {"matrices": gradtx.masked(gradtx.adam(0.1), "dense/*"), "vectors": gradtx.sgd(0.1)}, LABELS
    )
    nu = gradtx.find(wrapped.init(PARAMS), "matrices/scale_by_rms/nu")
    assert [leaf.shape for leaf in jax.tree.leaves(nu)] == [(8, 3)]


def test_params_may_be_called_like_groups():
    names = ("matrices", "groups", "inner", "scale_by_rms", "nu")
    params = {name: jnp.ones(2) for name in names}
    tx = gradtx.partition({"matrices": gradtx.adam(0.1), "nu": gradtx.sgd(0.1)}, {"nu": "nu", "*": "matrices"})
    state = tx.init(params)
    assert set(gradtx.find(state, "matrices/scale_by_rms/nu")) == set(names)
    assert set(gradtx.find(state, "matrices")) == {"scale_by_momentum", "scale_by_rms", "scale_by_learning_rate"}


def test_numbers_of_one_group_are_tuned():
    tx = gradtx.tunable(gradtx.partition(TWO, LABELS))
    state = tx.init(PARAMS)
    (name,) = [name for name in state["tunable"]["hyperparameters"] if "vectors" in name and "learning_rate" in name]
    state = gradtx.tune(state, **{name: 0.25})
    updates, _ = tx.update(GRADS[0], state, PARAMS)
    assert gradtx.tree_equal(updates, once(gradtx.partition(TWO | {"vectors": gradtx.sgd(0.25)}, LABELS), GRADS[0]))
