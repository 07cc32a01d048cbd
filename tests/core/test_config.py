"""Changing a value with replace, keeping it as JSON, and the registry that finds it again."""

import inspect
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule, Transform
from tests.core.samples import PARAMS, every, rebuilt

# replace --------------------------------------------------------------------------------------------------------------


def test_replace():
    tx = gradtx.adam(1e-3)
    assert tx.replace(learning_rate=3e-4, nesterov=True) == gradtx.adam(3e-4, nesterov=True)
    assert tx == gradtx.adam(1e-3)
    assert tx.replace() == tx
    assert tx.replace(learning_rate=1).learning_rate.hex() == (1.0).hex()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"b1": 1.5}, ValueError, r"gradtx\.adam: b1 is 1\.5; allowed: .*in \[0, 1\)"),
        ({"b1": True}, TypeError, r"gradtx\.adam: b1 is True, a bool"),
        ({"learning_rate": None}, TypeError, r"gradtx\.adam: learning_rate is None"),
        ({"nesterov": "yes"}, TypeError, r"gradtx\.adam: nesterov is 'yes'; allowed: True or False"),
        (
            {"learnin_rate": 1.0},
            TypeError,
            r"gradtx\.adam has no argument 'learnin_rate'\. Did you mean 'learning_rate'\?",
        ),
    ],
)
def test_replace_checks_like_a_call(change, error, words):
    with pytest.raises(error, match=words):
        gradtx.adam(1e-3).replace(**change)


def test_replace_checks_arguments_against_each_other():
    with pytest.raises(ValueError, match="nesterov needs momentum"):
        gradtx.sgd(0.1).replace(nesterov=True)


def test_replace_in_a_composition():
    tx = gradtx.clip(1.0) >> gradtx.adam(1e-3)
    assert tx.replace(learning_rate=3e-4) == gradtx.clip(1.0) >> gradtx.adam(3e-4)
    assert tx.replace(learning_rate=3e-4, max_delta=2.0) == gradtx.clip(2.0) >> gradtx.adam(3e-4)
    assert tx.learning_rate == 1e-3


def test_replace_deep_inside():
    def build(rate):
        return gradtx.checked(gradtx.clip(1.0) >> gradtx.tunable(gradtx.scale(2.0) + gradtx.sgd(rate)))

    assert build(0.1).replace(learning_rate=0.2) == build(0.2)
    assert build(0.1).learning_rate == 0.1


def test_replace_of_stages():
    tx = gradtx.clip(1.0) >> gradtx.adam(1e-3)
    assert tx.replace(stages=(gradtx.clip(1.0), gradtx.identity(), gradtx.sgd(0.1))) == gradtx.clip(1.0) >> gradtx.sgd(
        0.1
    )


def test_replace_keeps_the_laws_of_composition():
    a, b = gradtx.scale(1.0), gradtx.scale(2.0)
    tx = gradtx.checked(a >> b)
    assert tx.replace(inner=gradtx.identity() >> a).inner == a


def test_replace_of_an_ambiguous_name_is_refused():
    tx = gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.9)
    with pytest.raises(TypeError, match=r"'decay' is an argument of several.*scale_by_momentum, scale_by_rms"):
        tx.replace(decay=0.8)
    with pytest.raises(AttributeError, match=r"'decay' is an argument of several"):
        tx.decay


def test_replace_of_a_misspelt_nested_name_suggests_the_nested_name():
    with pytest.raises(TypeError, match="Did you mean 'learning_rate'"):
        (gradtx.clip(1.0) >> gradtx.adam(1e-3)).replace(learnin_rate=1.0)


def test_an_unknown_attribute_suggests():
    tx = gradtx.adam(1e-3)
    with pytest.raises(AttributeError, match="Did you mean 'learning_rate'"):
        tx.learnin_rate
    assert not hasattr(tx, "anything")
    assert getattr(tx, "__array__", None) is None  # NumPy and JAX ask


def test_an_error_in_an_authors_body_is_not_reported_as_a_missing_argument():
    @gradtx.transform
    def broken(decay: gradtx.Unit = 0.9) -> Rule:
        jnp.no_such_function(decay)
        return Rule(update=lambda updates, state: (updates, state))

    with pytest.raises(AttributeError, match="no_such_function"):
        broken()


# Configurations -------------------------------------------------------------------------------------------------------


@every
def test_config_round_trip(tx):
    config = tx.to_config()
    assert set(config) == {"name", "arguments"}
    assert config["name"] == tx.name
    text = json.dumps(config, allow_nan=False)
    again = gradtx.from_config(json.loads(text))
    assert again == tx
    assert json.dumps(again.to_config()) == text
    assert gradtx.tree_equal(again.init(PARAMS), tx.init(PARAMS))


def test_config_is_readable():
    assert gradtx.sgd(0.1, momentum=0.9).to_config() == {
        "name": "sgd",
        "arguments": {
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "dampening": 0.0,
            "lr_inside_momentum": False,
            "state_dtype": None,
        },
    }


def test_config_keeps_floats_exactly():
    rate = float(np.nextafter(0.1, 1))
    assert rebuilt(gradtx.sgd(rate)).learning_rate == rate


def test_config_keeps_arrays():
    for rate in (jnp.float32(0.1), jnp.bfloat16(0.1), jnp.int32(1)):
        again = rebuilt(gradtx.adam(rate))
        assert gradtx.tree_equal(again, gradtx.adam(rate))


def test_config_of_a_sweep():
    txs = jax.vmap(lambda rate: gradtx.clip(1.0) >> gradtx.adam(rate))(jnp.logspace(-4, 0, 8))
    assert gradtx.tree_equal(rebuilt(txs), txs)


@pytest.mark.parametrize(
    ("mask", "params"),
    [
        ({"w": True, "b": False}, {"w": jnp.ones(1), "b": jnp.ones(1)}),
        ({"l": [True, False]}, {"l": [jnp.ones(1), jnp.ones(1)]}),
        ({"l": (True, False)}, {"l": (jnp.ones(1), jnp.ones(1))}),
        ([True, False], [jnp.ones(1), jnp.ones(1)]),
        ((True, False), (jnp.ones(1), jnp.ones(1))),
        ({0: True, 1: False}, {0: jnp.ones(1), 1: jnp.ones(1)}),
        (True, jnp.ones(1)),
        ({"w": {}, "b": True}, {"w": {}, "b": jnp.ones(1)}),
        ({"w": None, "b": True}, {"w": None, "b": jnp.ones(1)}),
    ],
    ids=repr,
)
def test_a_mask_fits_its_params_as_given_pickled_and_from_a_config(mask, params):
    tx = gradtx.add_decayed_weights(0.5, mask=mask)
    grads = jax.tree.map(jnp.zeros_like, params)
    expected = jax.tree.map(lambda chosen, w: jnp.where(chosen, 0.5 * w, 0 * w), mask, params)
    for again in (tx, pickle.loads(pickle.dumps(tx)), rebuilt(tx)):
        updates, _ = again.update(grads, again.init(params), params)
        assert gradtx.tree_equal(updates, expected)


def test_config_keeps_a_dtype():
    @gradtx.transform
    def with_dtype(dtype: object = None) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    for dtype in (jnp.bfloat16, np.dtype("float16"), jnp.float32):
        assert rebuilt(with_dtype(dtype)).dtype == dtype
        assert with_dtype(dtype) == with_dtype(dtype)
        assert np.dtype(dtype).name in repr(with_dtype(dtype))


@pytest.mark.parametrize("build", [lambda f: gradtx.adam(f), lambda f: gradtx.stateless(f)], ids=["schedule", "static"])
def test_config_of_a_function_is_refused_with_the_argument_named(build):
    with pytest.raises(
        TypeError, match=r"gradtx\.(custom_schedule: function|stateless: f) is .*which JSON cannot hold"
    ):
        build(lambda *args: 0.1).to_config()


def test_config_under_jit_is_refused_in_words():
    with pytest.raises(TypeError, match=r"gradtx\.sgd: learning_rate is .*which JSON cannot hold"):
        jax.jit(lambda tx: tx.to_config() and None)(gradtx.sgd(0.1))


@pytest.mark.parametrize(
    "config",
    [
        None,
        "adam",
        [],
        {},
        {"name": "adam"},
        {"name": "adam", "arguments": {"learning_rate": 0.1}, "more": 1},
        {"name": "adam", "arguments": None},
        {"name": "adam", "arguments": [0.1]},
        {"name": ["adam"], "arguments": {}},
        {"name": "adm", "arguments": {}},
        {"name": "adam", "arguments": {}},
        {"name": "adam", "arguments": {"learning_rate": 0.1, "b3": 0.5}},
        {"name": "adam", "arguments": {"learning_rate": None}},
        {"name": "adam", "arguments": {"learning_rate": "0.1"}},
        {"name": "adam", "arguments": {"learning_rate": -0.1}},
        {"name": "adam", "arguments": {"learning_rate": True}},
        {"name": "adam", "arguments": {"learning_rate": {"name": "sgd", "arguments": {"learning_rate": 0.1}}}},
        {"name": "adam", "arguments": {"learning_rate": {"nme": "sgd"}}},
        {"name": "chain", "arguments": {}},
        {"name": "chain", "arguments": {"stages": []}},
        {"name": "chain", "arguments": {"stages": [0.1]}},
        {"name": "chain", "arguments": {"stages": None}},
    ],
    ids=repr,
)
def test_a_bad_config_is_refused_in_words(config):
    with pytest.raises((TypeError, ValueError), match=r"gradtx\."):
        gradtx.from_config(config)


def test_an_unknown_name_in_a_config_suggests_and_says_where_names_come_from():
    with pytest.raises(
        ValueError, match=r"no transform or schedule is called 'adm'\. Did you mean 'adam'\?.*Import the module"
    ):
        gradtx.from_config({"name": "adm", "arguments": {}})


# The registry ---------------------------------------------------------------------------------------------------------


def test_every_public_factory_is_registered_under_its_name():
    factories = {name: value for name, value in vars(gradtx).items() if hasattr(value, "node")}
    assert len(factories) >= 30
    for name, factory in factories.items():
        assert gradtx.registry[name] is factory
        assert factory.__name__ == name


def test_every_factory_of_the_library_is_public():
    hidden = {n for n, f in gradtx.registry.items() if f.__module__.startswith("gradtx.")} - set(vars(gradtx))
    assert not hidden


def test_a_name_belongs_to_one_module():
    def adam(learning_rate: gradtx.NonNegative) -> Transform:
        return gradtx.scale(learning_rate)

    with pytest.raises(
        ValueError, match=r"a factory called 'adam' is already defined in gradtx\.optimizers\.adam_family"
    ):
        gradtx.transform(adam)
    assert gradtx.registry["adam"] is gradtx.adam


def test_factories_keep_name_docstring_and_signature():
    assert gradtx.adam.__name__ == "adam"
    assert gradtx.adam.__doc__.startswith("Adam")
    assert list(inspect.signature(gradtx.adam).parameters)[:4] == ["learning_rate", "b1", "b2", "eps"]
