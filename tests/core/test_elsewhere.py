"""Every public name of optax is one of gradtx, or says what to write instead; and that can be written."""

import inspect
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.core import elsewhere
from gradtx.core.record import registry

NAMES = [name for name in dir(optax) if not name.startswith("_")]
ARGUMENTS = {
    "b1": 0.9,
    "b2": 0.999,
    "decay": 0.9,
    "eps": 1e-8,
    "every": 2,
    "initial_accumulator_value": 0.1,
    "inner": gradtx.scale(0.1),
    "learning_rate": 0.1,
    "mask": "*",
    "max_consecutive": 3,
    "param_labels": "a",
    "stages": (gradtx.sgd(0.1),),
    "transforms": {"a": gradtx.sgd(0.1)},
    "weight_decay": 0.1,
    "should_transform_fn": lambda count: count < 3,
    "f": lambda updates, params: updates,
}


@pytest.mark.skipif(optax.__version__ != "0.2.8", reason="the names are those of optax 0.2.8")
def test_every_name_of_optax_is_here_or_said():
    modules = {name for name in NAMES if isinstance(getattr(optax, name), types.ModuleType)}
    same = {name for name in NAMES if hasattr(gradtx, name)}
    assert {name for name in set(NAMES) - same if name not in elsewhere.HINTS} <= modules
    assert not same & set(elsewhere.HINTS)
    for name in set(NAMES) - same - modules:
        with pytest.raises(AttributeError, match=rf"^gradtx has no '{name}', which optax has. Instead: .+\.$"):
            getattr(gradtx, name)


def arguments(function):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


PAIRS = {name: getattr(module, name) for module in (optax, optax.contrib) for name in dir(module)}
PAIRS = {name: theirs for name, theirs in PAIRS.items() if name in registry}
OTHERWISE = {
    "accumulate": optax.MultiSteps,
    "conditionally": optax.conditionally_transform,
    "pack": optax.flatten,
    "partition": optax.multi_transform,
    "skip_nonfinite": optax.apply_if_finite,
    "train_only": optax.selective_transform,
}
UNKNOWN = [
    (name, argument)
    for name, theirs in (*PAIRS.items(), *OTHERWISE.items())
    for argument in arguments(theirs)
    if argument not in arguments(registry[name])
]


@pytest.mark.parametrize(("name", "argument"), UNKNOWN)
def test_every_argument_of_optax_is_here_or_said(name, argument):
    with pytest.raises(TypeError, match=rf"^gradtx.{name}: got .* '{argument}'. optax has it. Instead: .+ Its arg"):
        getattr(gradtx, name)(**{argument: 1})


def test_no_argument_is_said_that_is_here_or_nowhere():
    said = {tuple(place.split(".")) for places in elsewhere.ARGUMENTS.values() for place in places.split()}
    assert said == set(UNKNOWN)


def test_attributes_and_modules_of_optax_say_where_they_are():
    waiting = gradtx.accumulate(gradtx.sgd(0.1), 2)
    with pytest.raises(AttributeError, match=r"no argument 'has_updated'. Instead: gradtx.find\(state, 'micro_step'\)"):
        waiting.has_updated(None)
    assert gradtx.find(waiting.init(jnp.zeros(2)), "micro_step") == 0
    with pytest.raises(AttributeError, match=r"'gradient_transformation'. Instead: leave it out"):
        waiting.gradient_transformation()
    with pytest.raises(AttributeError, match=r"gradtx.tree has no 'add'; .* use optax.tree"):
        gradtx.tree.add(1, 2)


def test_the_average_that_is_named_for_incremental_update_is_that():
    expression = "exponential_averaging(inner, decay, debias=False), with decay = 1 - step_size"
    assert expression in elsewhere.HINTS["incremental_update"]
    tx, params = gradtx.exponential_averaging(gradtx.sgd(0.1), 0.9, debias=False), jnp.array([1.0, -2.0])
    state, target = tx.init(params), params
    for _ in range(5):
        updates, state = tx.update(params, state, params)
        params = gradtx.apply_updates(params, updates)
        target = optax.incremental_update(params, target, 0.1)
    np.testing.assert_allclose(gradtx.averaged_params(state), target, rtol=1e-5)


@pytest.mark.parametrize("name", elsewhere.MADE)
def test_what_is_made_otherwise_can_be_made_so(name):
    tx = eval(elsewhere.MADE[name], vars(gradtx) | ARGUMENTS)
    params = {"w": jnp.ones(3)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_what_is_frozen_there_is_not_trained_here():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    theirs = optax.selective_transform(optax.scale(0.1), freeze_mask={"a": True, "b": False})
    ours = eval(elsewhere.MADE["selective_transform"], vars(gradtx) | ARGUMENTS | {"mask": {"a": False, "b": True}})
    expected, found = (tx.update(params, tx.init(params), params)[0] for tx in (theirs, ours))
    assert gradtx.tree_equal(jax.tree.map(jnp.asarray, found), expected)
    assert not found["a"].any()


SAME = {
    "adamaxw": lambda: optax.adamaxw(0.1, weight_decay=0.1),
    "apply_every": lambda: optax.apply_every(2),
    "scale_by_adamax": lambda: optax.scale_by_adamax(eps=1e-8),
    "scale_by_amsgrad": optax.scale_by_amsgrad,
    "scale_by_rss": lambda: optax.scale_by_rss(0.1, 1e-8),
    "scale_by_stddev": lambda: optax.scale_by_stddev(0.9),
    "set_to_zero": optax.set_to_zero,
    "sign_sgd": lambda: optax.sign_sgd(0.1),
    "trace": lambda: optax.trace(0.9),
    "zero_nans": optax.zero_nans,
}


@pytest.mark.parametrize("name", SAME)
def test_and_is_the_same(name):
    theirs, ours = SAME[name](), eval(elsewhere.MADE[name], vars(gradtx) | ARGUMENTS)
    params = {"w": jnp.array([0.5, -2.0, 3.0])}
    a, b = theirs.init(params), ours.init(params)
    for step in range(1, 5):
        grads = jax.tree.map(lambda w, step=step: w * (-1.0) ** step + 0.1 * step, params)
        with jax.numpy_dtype_promotion("standard"):
            expected, a = theirs.update(grads, a, params)
        found, b = ours.update(grads, b, params)
        assert jnp.allclose(found["w"], expected["w"], rtol=1e-5, atol=1e-7), (step, found, expected)


def test_names_that_nobody_has_and_chapters_that_are_not_imported():
    with pytest.raises(AttributeError, match=r"^gradtx has no 'adamm'\.$"):
        gradtx.adamm
    code = "import gradtx; gradtx.landscape"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert re.search(r"gradtx has no 'landscape' before it is imported: import gradtx.landscape\.", said)


def test_an_import_of_such_a_name_says_so_too():
    with pytest.raises(ImportError, match=r"^gradtx has no 'multi_transform', which optax has\. Instead: partition\("):
        exec("from gradtx import multi_transform")
    with pytest.raises(ImportError, match=r"^gradtx has no 'adamm'\.$"):
        exec("from gradtx import adam, adamm")
    assert not hasattr(gradtx, "multi_transform")
    assert getattr(gradtx, "multi_transform", None) is None
    from gradtx import landscape

    assert landscape is sys.modules["gradtx.landscape"]


def test_names_for_annotations():
    for tx in (
        gradtx.adam(0.1),
        gradtx.clip(1.0) >> gradtx.sgd(0.1),
        optax.adam(0.1),
        gradtx.to_optax(gradtx.adam(0.1)),
    ):
        assert isinstance(tx, gradtx.GradientTransformation)
    assert not isinstance(jnp.ones(3), gradtx.GradientTransformation)
    assert isinstance(gradtx.to_optax(gradtx.adam(0.1)), optax.GradientTransformation)


@pytest.mark.parametrize("made", [gradtx.GradientTransformation, gradtx.GradientTransformationExtraArgs])
def test_a_transform_of_ones_own_is_defined_as_for_optax(made):
    def scale_by_mine(factor):
        def init_fn(params):
            return {"seen": jnp.zeros((), jnp.int32)}

        def update_fn(updates, state, params=None, **extra_args):
            return jax.tree.map(lambda u: factor * u, updates), {"seen": state["seen"] + 1}

        return made(init=init_fn, update=update_fn)

    mine, params = scale_by_mine(2.0), {"w": jnp.ones(3)}
    assert isinstance(mine, gradtx.GradientTransformation)
    init, update = mine
    assert (init, update) == (mine.init, mine.update)
    tx = gradtx.chain(mine, gradtx.sgd(0.5))
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["w"].tolist() == [-1.0] * 3
    assert int(gradtx.find(state, "scale_by_mine/seen")) == 1
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'update'"):
        made(init)


def test_a_chapter_says_where_its_names_are():
    words = r"^gradtx\.schedules has no 'cosine_decay_schedule'; all schedules are in gradtx itself, such as gradtx\."
    with pytest.raises(AttributeError, match=words):
        gradtx.schedules.cosine_decay_schedule


def test_what_has_init_and_update_can_be_given_to_code_that_asks_for_optaxs_class():
    pair = gradtx.GradientTransformation(
        lambda params: gradtx.EmptyState(), lambda g, state, params=None: (2 * g, state)
    )
    converted = gradtx.to_optax(pair)
    assert isinstance(converted, optax.GradientTransformation)
    assert float(converted.update(1.0, converted.init(0.0), value=3.0)[0]) == 2.0
