"""The recorded value: compared and copied by value, written as code."""

import collections
import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule
from tests.core.samples import PARAMS, SAMPLES, every, rebuilt

# Written as code ------------------------------------------------------------------------------------------------------


def test_repr_is_the_call():
    assert repr(gradtx.adam(1e-3)) == "adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)"


def test_repr_hides_keyword_only_arguments_at_their_defaults_only():
    assert repr(gradtx.scale_by_momentum()) == "scale_by_momentum(decay=0.9)"
    assert repr(gradtx.scale_by_momentum(form="sum")) == "scale_by_momentum(decay=0.9, form='sum')"


def test_repr_hides_a_default_that_the_author_wrote_as_an_int():
    @gradtx.transform
    def with_int_default(step_size: gradtx.Finite, *, factor: gradtx.Finite = 1) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    assert repr(with_int_default(2)) == "with_int_default(step_size=2.0)"


def test_repr_of_compositions_needs_only_the_parentheses_that_python_needs():
    a, b, c = gradtx.scale(1.0), gradtx.scale(2.0), gradtx.clip(1.0)
    assert repr(a + b >> c) == "scale(step_size=1.0) + scale(step_size=2.0) >> clip(max_delta=1.0)"
    assert repr(a >> b + c) == "scale(step_size=1.0) >> scale(step_size=2.0) + clip(max_delta=1.0)"
    assert repr((a >> b) + c) == "(scale(step_size=1.0) >> scale(step_size=2.0)) + clip(max_delta=1.0)"


@every
def test_repr_is_code(tx):
    assert eval(repr(tx), dict(vars(gradtx))) == tx


def test_repr_of_an_array_hyperparameter_is_code():
    tx = gradtx.adam(jnp.float32(0.5))
    assert gradtx.tree_equal(eval(repr(tx), vars(gradtx) | {"array": jnp.array}), tx)


def test_repr_of_a_sweep_says_how_many():
    txs = jax.vmap(gradtx.adam)(jnp.logspace(-4, 0, 64))
    assert "64" in repr(txs)
    assert repr(txs).startswith("adam(learning_rate=")


def test_repr_under_jit_says_that_a_number_is_traced():
    seen = []
    jax.jit(lambda tx: seen.append(repr(tx)))(gradtx.sgd(0.1))
    assert "traced" in seen[0]


def test_repr_of_an_expansion_is_the_readme_line():
    assert repr(gradtx.adam(1e-3).expand(deep=True)) == (
        "scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08) "
        ">> scale_by_learning_rate(learning_rate=0.001)"
    )


# Equality and hash ----------------------------------------------------------------------------------------------------


@every
def test_rebuilt_is_equal_and_hashes_alike(tx):
    again = rebuilt(tx)
    assert again == tx
    assert hash(again) == hash(tx)
    assert again.init == tx.init
    assert again.update == tx.update
    assert hash(again.update) == hash(tx.update)
    assert jax.tree.structure(again) == jax.tree.structure(tx)
    assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(tx))


def test_samples_all_differ():
    assert len(set(SAMPLES)) == len(SAMPLES)


def test_floats_are_equal_by_their_exact_bits():
    assert gradtx.adam(1e-3) != gradtx.adam(np.nextafter(1e-3, 1))
    assert gradtx.scale(0.0) != gradtx.scale(-0.0)
    assert gradtx.adam(1) == gradtx.adam(1.0) == gradtx.adam(np.float32(1))


def test_init_and_update_are_not_equal_to_each_other_nor_to_those_of_another():
    tx = gradtx.adam(1e-3)
    assert tx.init != tx.update
    assert tx.update != gradtx.adam(1e-2).update
    assert tx.update != gradtx.adam(1e-3, nesterov=True).update


def test_arrays_are_equal_by_identity():
    rate = jnp.float32(0.5)
    assert gradtx.adam(rate) == gradtx.adam(rate)
    assert hash(gradtx.adam(rate)) == hash(gradtx.adam(rate))
    assert gradtx.adam(rate) != gradtx.adam(jnp.float32(0.5))
    assert gradtx.adam(rate) != gradtx.adam(0.5)
    assert gradtx.tree_equal(gradtx.adam(rate), gradtx.adam(jnp.float32(0.5)))
    assert not gradtx.tree_equal(gradtx.adam(rate), gradtx.adam(jnp.float32(0.25)))


def test_equality_and_hash_never_read_an_array():
    def program(tx):
        other = gradtx.adam(tx.learning_rate)  # reading a traced number raises
        assert other != gradtx.adam(0.5)
        assert len({tx, other}) == 2
        return tx

    jax.jit(program)(gradtx.adam(jnp.float32(0.5), b1=0.8))


def test_tree_equal_compares_bits_and_structure():
    assert not gradtx.tree_equal(gradtx.adam(1.0), gradtx.adam(1.0, nesterov=True))
    assert not gradtx.tree_equal({"a": jnp.float32(0.0)}, {"a": jnp.float32(-0.0)})
    assert not gradtx.tree_equal({"a": jnp.float32(1.0)}, {"a": jnp.int32(1)})
    assert gradtx.tree_equal({"a": jnp.float32(jnp.nan)}, {"a": jnp.float32(jnp.nan)})


def test_equality_with_anything_else_is_false():
    tx = gradtx.adam(1e-3)
    assert tx != "adam"
    assert tx != None  # noqa: E711
    assert tx != gradtx.sgd(1e-3)
    assert tx != gradtx.adam(1e-3).expand()


def test_another_factory_with_the_same_arguments_is_not_equal():
    assert gradtx.clip(1.0) != gradtx.clip_by_global_norm(1.0)


def test_statics_are_compared_by_type_and_value():
    @gradtx.transform
    def with_anything(thing: object) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    things = [1, True, 1.0, "1", (1,), None, {"1": 1}, {1: 1}, jnp.float32, len]
    assert len({with_anything(thing) for thing in things}) == len(things)
    assert with_anything(float("nan")) == with_anything(float("nan"))
    assert with_anything(np.arange(3)) == with_anything(np.arange(3))
    assert with_anything(np.arange(3)) != with_anything(np.arange(4))


@pytest.mark.parametrize("value", [{"a": [True, False]}, {"a": {"b": True}}, {"a": {1, 2}}, [{"x": True}]], ids=repr)
def test_unhashable_statics_are_frozen(value):
    first, second = (gradtx.add_decayed_weights(0.1, mask=copy.deepcopy(value)) for _ in range(2))
    assert hash(first) == hash(first)
    assert first != gradtx.add_decayed_weights(0.1, mask={"other": True})
    if not isinstance(value, dict) or not isinstance(next(iter(value.values())), set):
        assert first == second
        assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(first))


def test_containers_of_other_types_are_other_values():
    # A mask is a tree: as a list it fits other params than as a tuple.
    pair = collections.namedtuple("pair", ["x", "y"])
    masks = [{"a": [True, False]}, {"a": (True, False)}, {"a": pair(True, False)}]
    txs = [gradtx.add_decayed_weights(0.1, mask=mask) for mask in masks]
    assert len(set(txs)) == 3


def test_a_later_change_of_a_mask_does_not_reach_into_the_value():
    mask = {"w": True, "b": {"x": True}}
    tx = gradtx.add_decayed_weights(0.1, mask=mask)
    key, text = hash(tx), repr(tx)
    mask["w"] = False
    mask["b"]["x"] = False
    assert (hash(tx), repr(tx)) == (key, text)
    assert tx == gradtx.add_decayed_weights(0.1, mask={"w": True, "b": {"x": True}})


def test_it_is_a_value():
    tx = gradtx.adam(1e-3)
    with pytest.raises(
        AttributeError, match=r"gradtx\.adam is a value and cannot be changed; use \.replace\(b1=\.\.\.\)"
    ):
        tx.b1 = 0.5
    with pytest.raises(AttributeError, match=r"gradtx\.adam is a value"):
        del tx.b1
    tx.arguments["b1"] = 0.5
    assert tx.b1 == 0.9
    with pytest.raises(TypeError):
        gradtx.registry["mine"] = gradtx.adam  # a read-only view


# Copies ---------------------------------------------------------------------------------------------------------------


@every
def test_pickle_deepcopy_copy(tx):
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert copy.deepcopy(tx) == tx
    assert copy.copy(tx) == tx
    again = pickle.loads(pickle.dumps(tx))
    assert hash(again) == hash(tx)
    assert gradtx.tree_equal(again.init(PARAMS), tx.init(PARAMS))


def test_pickle_does_not_run_the_body(bodies):
    text = pickle.dumps(gradtx.adam(1e-3))
    bodies.clear()
    pickle.loads(text)
    assert not bodies


def test_pickle_keeps_arrays():
    tx = gradtx.adam(jnp.float32(0.5), b1=lambda_free_schedule())
    assert gradtx.tree_equal(pickle.loads(pickle.dumps(tx)), tx)
    assert gradtx.tree_equal(copy.deepcopy({"tx": tx}), {"tx": tx})


def lambda_free_schedule():
    return gradtx.linear_schedule(0.9, 0.5, 10)


def test_pickle_of_a_sweep():
    txs = jax.vmap(lambda rate: gradtx.clip(1.0) >> gradtx.adam(rate))(jnp.logspace(-4, 0, 8))
    assert gradtx.tree_equal(pickle.loads(pickle.dumps(txs)), txs)
