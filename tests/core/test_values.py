"""The recorded value: compared and copied by value, written as code and as JSON, changed with replace."""

import collections
import copy
import dataclasses
import inspect
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule
from gradtx.core.arguments import freeze, show
from tests.core.samples import SAMPLES, every, rebuilt

ADAM = gradtx.adam(1e-3)
CHAIN = gradtx.clip(1.0) >> ADAM


@gradtx.transform
def holds(thing: object, *, factor: gradtx.Finite = 1, betas: tuple[gradtx.Unit, ...] = (0.5,)) -> Rule:
    return Rule(update=lambda updates, state: (updates, state))


@gradtx.transform
def several(*factors: gradtx.Finite) -> Rule:
    return Rule(update=lambda updates, state: (updates, state))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    """Not hashable, but a pytree."""

    inside: list


def sweep():
    return jax.vmap(lambda rate: gradtx.clip(1.0) >> gradtx.adam(rate))(jnp.logspace(-4, 0, 8))


@every
def test_a_value_comes_back_from_its_code_its_config_and_a_pickle(tx):
    config = tx.to_config()
    assert set(config) == {"name", "arguments"}
    assert config["name"] == tx.name
    for again in (eval(repr(tx), dict(vars(gradtx))), rebuilt(tx), pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx)):
        assert type(again) is type(tx)
        assert again == tx
        assert hash(again) == hash(tx)
        assert again.to_config() == config
        assert (again.init, again.update) == (tx.init, tx.update)
        assert hash(again.update) == hash(tx.update)
        assert jax.tree.structure(again) == jax.tree.structure(tx)
        assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(tx))
    assert copy.copy(tx) is tx


# Written as code ------------------------------------------------------------------------------------------------------

A, B, C = gradtx.scale(1.0), gradtx.scale(2.0), gradtx.clip(1.0)
TEXTS = [
    (ADAM, "adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)"),
    (gradtx.scale_by_momentum(), "scale_by_momentum(decay=0.9)"),
    (gradtx.scale_by_momentum(form="sum"), "scale_by_momentum(decay=0.9, form='sum')"),
    (gradtx.stored(gradtx.ema(0.9), jnp.bfloat16), "stored(inner=ema(decay=0.9), dtype='bfloat16', fields=None)"),
    (A + B >> C, "scale(step_size=1.0) + scale(step_size=2.0) >> clip(max_delta=1.0)"),
    (A >> B + C, "scale(step_size=1.0) >> scale(step_size=2.0) + clip(max_delta=1.0)"),
    ((A >> B) + C, "(scale(step_size=1.0) >> scale(step_size=2.0)) + clip(max_delta=1.0)"),
    (
        *(ADAM.expand(deep=True),),
        "scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08) "
        ">> scale_by_learning_rate(learning_rate=0.001)",
    ),
    (several(2, 0.5), "several(2.0, 0.5)"),
    (holds([1, (2,), {"a": len}]), "holds(thing=[1, (2,), {'a': len}])"),
    (holds(1, factor=2, betas=[0]), "holds(thing=1, factor=2.0, betas=(0.0,))"),
    (ADAM.update, "adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08).update"),
    (gradtx.scale(jnp.float32(0.5)), "scale(step_size=array(0.5))"),
    (sweep(), "clip(max_delta=<float32[8]>) >> adam(learning_rate=<float32[8]>, "),
    (jax.tree.structure(ADAM), "PyTreeDef(CustomNode(adam"),
]


@pytest.mark.parametrize(("value", "text"), TEXTS, ids=[text[:40] for _, text in TEXTS])
def test_repr_is_the_call(value, text):
    assert repr(value).startswith(text)


def test_a_traced_number_is_shown_as_such_and_never_read():
    def program(tx):
        assert repr(tx).startswith("sgd(learning_rate=<traced float32[]>")
        other = gradtx.sgd(0.9 * tx.learning_rate)
        assert other != gradtx.sgd(0.5)
        assert len({tx, other}) == 2
        return tx

    jax.eval_shape(program, gradtx.sgd(0.5))
    assert show(np.arange(2)) == "array([0, 1])"
    assert [show((jnp.float32(0.5),)), show([1, (2, "x")])] == ["(array(0.5),)", "[1, (2, 'x')]"]


# Equality -------------------------------------------------------------------------------------------------------------


def test_equality_is_by_type_and_exact_value():
    assert len(set(SAMPLES)) == len(SAMPLES)
    assert gradtx.adam(1) == gradtx.adam(1.0) == gradtx.adam(np.float32(1))
    assert gradtx.adam(np.nextafter(1e-3, 1)) != ADAM
    assert gradtx.scale(0.0) != gradtx.scale(-0.0)
    for other in ("adam", None, gradtx.sgd(1e-3), ADAM.expand(), gradtx.adam(1e-3, nesterov=True)):
        assert other != ADAM
    assert gradtx.clip(1.0) != gradtx.clip_by_global_norm(1.0)
    assert ADAM.init != ADAM.update
    assert ADAM.update != gradtx.adam(1e-3, nesterov=True).update
    assert ADAM.update != gradtx.adam(1e-2).update


def test_arrays_are_equal_by_identity_and_by_value_in_tree_equal():
    rate = jnp.float32(0.5)
    assert gradtx.adam(rate) == gradtx.adam(rate)
    assert hash(gradtx.adam(rate)) == hash(gradtx.adam(rate))
    for other in (jnp.float32(0.5), 0.5):
        assert gradtx.adam(rate) != gradtx.adam(other)
    one = {"a": np.float32(1)}
    for first, second, equal in [
        (gradtx.adam(rate), gradtx.adam(jnp.float32(0.5)), True),
        (gradtx.adam(rate), gradtx.adam(jnp.float32(0.25)), False),
        (gradtx.adam(1.0), gradtx.adam(1.0, nesterov=True), False),
        ({"a": np.float32(0.0)}, {"a": np.float32(-0.0)}, False),
        (one, {"a": np.int32(np.float32(1).view(np.int32))}, False),
        (one, {"a": np.ones(1, np.float32)}, False),
        (one, {"b": np.float32(1)}, False),
        ({"a": np.float32(np.nan)}, {"a": np.float32(np.nan)}, True),
    ]:
        assert gradtx.tree_equal(first, second) is equal


def test_statics_are_compared_by_type_and_value():
    pair = collections.namedtuple("pair", ["x", "y"])
    things = [
        1,
        True,
        1.0,
        "1",
        (1,),
        [1],
        None,
        {"1": 1},
        {1: 1},
        np.float32,
        np.float64,
        np.dtype(int),
        len,
        {1},
        int,
    ]
    things += [{"a": [True, False]}, {"a": (True, False)}, {"a": pair(True, False)}, {"*": 1, "a": 2}, {"a": 2, "*": 1}]
    things += [np.arange(3), np.arange(4), np.arange(3).reshape(1, 3), np.arange(3.0), float("nan")]
    assert len({holds(thing) for thing in things}) == len(things)
    for thing in things:
        same = holds(copy.deepcopy(thing)) == holds(thing)
        assert same is not isinstance(thing, set), thing  # what JAX knows no leaves of is equal to itself only
        assert hash(jax.tree.structure(holds(thing))) == hash(jax.tree.structure(holds(thing)))
    assert holds({"b": 1, "a": 2}) == holds({"a": 2, "b": 1})
    for name in (jnp.bfloat16, "bfloat16", jnp.dtype(jnp.bfloat16)):
        assert gradtx.adam(1, mu_dtype=name) == gradtx.adam(1, mu_dtype="bfloat16")
    assert freeze(jnp.float32) == freeze(np.float32) == freeze(np.dtype("float32"))
    assert freeze(Box([True])) == freeze(Box([True])) != freeze(Box([False]))


def test_what_is_given_and_what_is_read_are_copies():
    mask = {"w": True, "b": {"x": [True]}}
    tx = gradtx.add_decayed_weights(0.1, mask=mask)
    key, text = hash(tx), repr(tx)
    mask["w"] = tx.mask["w"] = tx.mask["b"]["x"][0] = False
    mask["b"]["x"][0] = False
    assert (hash(tx), repr(tx)) == (key, text)
    assert tx.mask == {"w": True, "b": {"x": [True]}}
    ADAM.arguments["b1"] = 0.5
    assert ADAM.b1 == 0.9


# Changing -------------------------------------------------------------------------------------------------------------


def test_replace():
    assert ADAM.replace(learning_rate=3e-4, nesterov=True) == gradtx.adam(3e-4, nesterov=True)
    assert ADAM.replace() == ADAM == gradtx.adam(1e-3)
    assert ADAM.replace(learning_rate=1).learning_rate.hex() == (1.0).hex()
    assert CHAIN.replace(learning_rate=3e-4, max_delta=2.0) == gradtx.clip(2.0) >> gradtx.adam(3e-4)
    assert CHAIN.learning_rate == 1e-3
    assert CHAIN.replace(stages=(C, gradtx.identity(), A)) == C >> A
    assert gradtx.checked(A >> B).replace(inner=gradtx.identity() >> A).inner == A
    assert holds(1).replace(betas=[0.5, 0.6]).betas == (0.5, 0.6)


def test_replace_and_reading_deep_inside():
    def build(rate):
        return gradtx.checked(gradtx.clip(1.0) >> gradtx.tunable(gradtx.scale(2.0) + gradtx.sgd(rate)))

    assert build(0.1).replace(learning_rate=0.2) == build(0.2)
    assert build(0.1).learning_rate == 0.1
    assert not hasattr(ADAM, "anything")
    assert getattr(ADAM, "__array__", None) is None  # NumPy and JAX ask


def test_an_error_in_a_body_is_not_reported_as_a_missing_argument():
    @gradtx.transform
    def broken(decay: gradtx.Unit = 0.9) -> Rule:
        return jnp.no_such_function(decay)

    with pytest.raises(AttributeError, match="no_such_function") as caught:
        broken()
    assert "in gradtx.broken" in caught.value.__notes__


# Configurations -------------------------------------------------------------------------------------------------------


def test_config_is_readable():
    assert gradtx.sgd(0.1, momentum=0.9).to_config() == {
        "name": "sgd",
        "arguments": {
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "dampening": None,
            "lr_inside_momentum": False,
            "accumulator_dtype": None,
        },
    }
    assert json.dumps((A >> C).to_config()["arguments"]["stages"][1]) == json.dumps(C.to_config())


def test_configs_keep_floats_arrays_dtypes_and_containers():
    rate = float(np.nextafter(0.1, 1))
    assert rebuilt(gradtx.sgd(rate)).learning_rate == rate
    for array in (jnp.float32(0.1), jnp.bfloat16(0.1), jnp.int32(1)):
        assert gradtx.tree_equal(rebuilt(gradtx.adam(array)), gradtx.adam(array))
        assert gradtx.tree_equal(
            eval(repr(gradtx.adam(jnp.float32(0.5))), vars(gradtx) | {"array": jnp.float32}).b1, 0.9
        )
    for thing in (None, "x", (1, (2.5,)), [1, [2]], {"c": True, "a": {"b": (None,)}}, np.dtype("float16"), jnp.float32):
        again = rebuilt(holds(thing, betas=(0.1, gradtx.linear_schedule(0.9, 0.5, 3))))
        assert again == holds(thing, betas=(0.1, gradtx.linear_schedule(0.9, 0.5, 3)))
        assert type(again.thing) is type(thing) or isinstance(again.thing, np.dtype)
    assert rebuilt(several(2, 0.5)) == several(2, 0.5)
    with jax.enable_x64(True):
        assert rebuilt(holds(np.float64([1 / 3]))).thing.tolist() == [1 / 3]
    array = rebuilt(holds(np.arange(3, dtype=np.int8))).thing
    assert (array.tolist(), array.dtype) == ([0, 1, 2], np.int8)


def test_a_sweep_is_pickled_and_rebuilt():
    txs = sweep()
    assert gradtx.tree_equal(rebuilt(txs), txs)
    assert gradtx.tree_equal(pickle.loads(pickle.dumps(txs)), txs)
    containers = jax.vmap(lambda rate: holds(1, betas=(rate, 0.5)))(jnp.array([0.1, 0.2]))
    assert gradtx.tree_equal(rebuilt(containers), containers)


def test_factories_keep_name_docstring_and_signature():
    assert gradtx.adam.__name__ == "adam"
    assert gradtx.adam.__doc__.startswith("Adam")
    assert list(inspect.signature(gradtx.adam).parameters)[:4] == ["learning_rate", "b1", "b2", "eps"]
    with pytest.raises(TypeError, match="does not support item assignment"):
        gradtx.registry["mine"] = gradtx.adam


def test_a_value_without_arguments_has_no_private_attribute():
    assert not hasattr(object.__new__(type(gradtx.adam(0.1))), "__jax_array__")  # what copies and arrays ask for
