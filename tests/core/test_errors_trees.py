"""The words of the refusals of trees, states and leaves: at which path, what was received, what is allowed."""

import jax
import jax.numpy as jnp
import pytest

import gradtx
from tests.core.samples import PARAMS
from tests.core.words import assert_words, refusal

TX = gradtx.adam(1e-3)
MOMENTUM = gradtx.sgd(0.1, momentum=0.9)


# Trees ----------------------------------------------------------------------------------------------------------------


def update(tx, grads, state=None, params=PARAMS):
    return tx.update(grads, tx.init(PARAMS) if state is None else state, params)


run_in = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


@run_in
@pytest.mark.parametrize("tx", [TX, MOMENTUM, gradtx.sgd(0.1), gradtx.identity()], ids=lambda tx: tx.name)
def test_a_gradient_of_another_shape_even_where_it_would_broadcast(tx, wrap):
    for name, shape, received in [
        ("w", (1,), (3,)),
        ("w", (), (3,)),
        ("b", (1,), ()),
        ("w", (3, 3), (3,)),
        ("w", (2,), (3,)),
    ]:
        text = refusal(ValueError, wrap(tx.update), PARAMS | {name: jnp.ones(shape)}, tx.init(PARAMS), PARAMS)
        assert text == (
            f"gradtx.{tx.name}.update: updates do not match params: at ['{name}'], updates has shape {shape}, "
            f"params {received} (shapes must be equal; nothing is broadcast)."
        )


@run_in
def test_a_gradient_of_another_shape_without_params(wrap):
    text = refusal(ValueError, wrap(TX.update), PARAMS | {"w": jnp.ones(1)}, TX.init(PARAMS))
    assert_words(
        text, "gradtx.adam.update: ", "['scale_by_momentum']['mu']['w']", "(3,)", "(1,)", "nothing is broadcast"
    )


@run_in
def test_another_tree(wrap):
    update = wrap(TX.update)
    state = TX.init(PARAMS)
    who = "gradtx.adam.update: updates do not match params: "
    assert refusal(ValueError, update, {"w": PARAMS["w"]}, state, PARAMS) == who + "updates lacks ['b']."
    more = PARAMS | {"c": jnp.ones(1)}
    assert refusal(ValueError, update, more, state, PARAMS) == who + "updates has ['c'], which params has not."
    other = [PARAMS["w"], PARAMS["b"]]
    text = refusal(ValueError, update, other, state, PARAMS)
    assert text == who + "updates lacks ['b'], ['w']; updates has [0], [1], which params has not."
    assert_words(refusal(ValueError, update, tuple(other), state, other), who, "(*, *)", "[*, *]")
    assert_words(refusal(ValueError, update, jnp.ones(3), state, PARAMS), who, "updates lacks ['b'], ['w']", "the root")


@run_in
def test_another_optimizers_state(wrap):
    text = refusal(ValueError, wrap(TX.update), PARAMS, MOMENTUM.init(PARAMS), PARAMS)
    assert_words(
        text,
        "gradtx.adam.update: the state is not one that init makes for these params: the state lacks ",
        "['scale_by_rms']",
        "Pass the state returned by init or by the last update of this very optimizer.",
    )


@pytest.mark.parametrize("state", [None, (), {}, (jnp.ones(3),), {"scale_by_momentum": None}, 0.0], ids=repr)
def test_what_is_no_state_at_all(state):
    text = refusal(ValueError, TX.update, PARAMS, state, PARAMS)
    assert_words(
        text, "gradtx.adam.update: the state is not one that init makes", "lacks", "Pass the state returned by init"
    )


@run_in
def test_a_state_of_other_params(wrap):
    state = TX.init({"w": jnp.ones(4), "b": jnp.zeros(())})
    text = refusal(ValueError, wrap(TX.update), PARAMS, state, PARAMS)
    assert_words(text, "at ['scale_by_momentum']['mu']['w']", "the state has shape (4,), the expected state (3,)")


def test_a_state_of_another_dtype():
    state = TX.init(PARAMS)
    state["scale_by_rms"]["nu"]["w"] = state["scale_by_rms"]["nu"]["w"].astype(jnp.bfloat16)
    text = refusal(ValueError, TX.update, PARAMS, state, PARAMS)
    assert_words(text, "gradtx.adam.update: the state is", "['scale_by_rms']['nu']['w']", "bfloat16", "float32")


def test_a_state_with_a_vector_of_counters():
    state = TX.init(PARAMS)
    state["scale_by_rms"]["count"] = jnp.zeros(3, jnp.int32)
    assert_words(refusal(ValueError, TX.update, PARAMS, state, PARAMS), "['scale_by_rms']['count']", "(3,)")


@run_in
@pytest.mark.parametrize(
    "tx", [gradtx.adamw(1e-3), gradtx.lion(1e-3), gradtx.add_decayed_weights(0.1)], ids=lambda tx: tx.name
)
def test_update_without_the_params_it_needs(tx, wrap):
    expected = (
        f"gradtx.{tx.name}.update: params are missing; this optimizer needs them: tx.update(grads, state, params)."
    )
    assert refusal(ValueError, wrap(tx.update), PARAMS, tx.init(PARAMS)) == expected
    composed = gradtx.clip(1.0) >> tx
    text = refusal(ValueError, wrap(composed.update), PARAMS, composed.init(PARAMS))
    assert_words(text, "gradtx.chain.update: params are missing")


def test_params_of_another_shape():
    other = {"w": jnp.ones(4), "b": jnp.zeros(())}
    assert_words(
        refusal(ValueError, update, TX, PARAMS, TX.init(PARAMS), other), "at ['w'], updates has shape (3,), params (4,)"
    )


INTEGER = "Keep leaves that are not trained out of the parameters (or mask them out)."


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8", "int8"])
def test_int_and_bool_leaves(dtype):
    bad = {"layer": {"w": jnp.ones(3), "step": jnp.ones(2, dtype)}}
    rest = f" at ['layer']['step'] has dtype {dtype}; allowed: floating-point or complex. {INTEGER}"
    good = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), bad)
    state = TX.init(good)
    assert refusal(TypeError, TX.init, bad) == f"gradtx.adam.init: params{rest}"
    assert refusal(TypeError, TX.update, bad, state) == f"gradtx.adam.update: updates{rest}"
    assert refusal(TypeError, TX.update, bad, state, good) == f"gradtx.adam.update: updates{rest}"
    assert refusal(TypeError, TX.update, good, state, bad) == f"gradtx.adam.update: params{rest}"
    both = f" at ['layer']['step'] has dtype float32, params {dtype}; allowed: both floating-point or complex"
    assert_words(refusal(TypeError, gradtx.apply_updates, bad, good), f"gradtx.apply_updates: updates{both}")
    assert refusal(TypeError, jax.jit(TX.init), bad) == f"gradtx.adam.init: params{rest}"
    for plain in (gradtx.identity(), gradtx.sgd(0.1), gradtx.scale_by_sign()):
        assert refusal(TypeError, plain.init, bad) == f"gradtx.{plain.name}.init: params{rest}"


@pytest.mark.parametrize("leaf", [True, 3], ids=repr)
def test_python_int_and_bool_leaves(leaf):
    text = refusal(TypeError, TX.init, {"a": [leaf]})
    assert_words(text, "gradtx.adam.init: params at ['a'][0] has dtype ", "allowed: floating-point or complex")


@pytest.mark.parametrize("leaf", ["weights", object(), jnp.ones], ids=["str", "object", "function"])
def test_leaves_that_are_no_arrays(leaf):
    bad = {"w": leaf, "b": jnp.zeros(())}
    words = (" at ['w'] is ", f"of type {type(leaf).__name__}; allowed: arrays")
    assert_words(refusal(TypeError, TX.init, bad), "gradtx.adam.init: params", *words)
    state = TX.init(PARAMS)
    assert_words(refusal(TypeError, TX.update, bad, state), "gradtx.adam.update: updates", *words)
    assert_words(refusal(TypeError, TX.update, PARAMS, state, bad), "gradtx.adam.update: params", *words)
    assert_words(refusal(TypeError, gradtx.apply_updates, PARAMS, bad), "gradtx.apply_updates: updates", *words)


def test_none_leaves_and_empty_trees_pass():
    for params in ({}, None, (), {"a": None}, {"a": None, "b": jnp.ones(2)}, {"a": {}, "b": jnp.ones((0,))}):
        for tx in (TX, gradtx.clip_by_global_norm(1.0), gradtx.checked(gradtx.adamw(1e-3)), gradtx.tunable(MOMENTUM)):
            if params is None and tx.needs_params:
                continue
            updates, state = tx.update(params, tx.init(params), params)
            assert jax.tree.structure(updates) == jax.tree.structure(params)
            tx.update(params, state, params)


COMPLEX = {"layer": {"w": jnp.ones(2, jnp.complex64)}}
REAL = {"layer": {"w": jnp.ones(2)}}


@run_in
@pytest.mark.parametrize(
    ("tx", "who"),
    [
        (gradtx.clip(1.0), "clip"),
        (gradtx.scale_by_sign(), "scale_by_sign"),
        (gradtx.scale_by_lion(), "scale_by_lion"),
        (gradtx.lion(0.1), "scale_by_lion"),
        (gradtx.signum(0.1), "scale_by_sign"),
        (gradtx.scale(1.0) >> gradtx.clip(1.0), "clip"),
        (gradtx.scale(1.0) + gradtx.checked(gradtx.scale_by_sign()), "scale_by_sign"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_complex_leaves_where_the_method_has_no_meaning_for_them(tx, who, wrap):
    def all_of_it(params):
        return tx.update(params, tx.init(params), params)

    text = refusal(TypeError, wrap(all_of_it), COMPLEX)
    assert_words(text, f"gradtx.{who}", "['layer']['w']", "complex", "allowed: real", "imaginary part as two leaves")


@pytest.mark.parametrize(
    "tx", [TX, gradtx.sgd(0.1), MOMENTUM, gradtx.rmsprop(0.1, centered=True), gradtx.adadelta()], ids=repr
)
def test_complex_leaves_elsewhere_are_welcome(tx):
    updates, state = tx.update(COMPLEX, tx.init(COMPLEX), COMPLEX)
    assert updates["layer"]["w"].dtype == jnp.complex64
    tx.update(COMPLEX, state, COMPLEX)


@pytest.mark.parametrize("tx", [TX, gradtx.sgd(0.1)], ids=lambda tx: tx.name)
def test_complex_gradients_of_real_params(tx):
    state = tx.init(REAL)
    text = refusal(TypeError, tx.update, COMPLEX, state, REAL)
    assert text == (
        f"gradtx.{tx.name}.update: updates at ['layer']['w'] has dtype complex64, params float32; "
        "allowed: both real or both complex."
    )


def test_complex_gradients_of_a_real_state():
    text = refusal((TypeError, ValueError), TX.update, COMPLEX, TX.init(REAL))
    assert_words(text, "gradtx.adam.update: ", "complex")


# Extra arguments ------------------------------------------------------------------------------------------------------


def test_an_unknown_extra_argument():
    text = refusal(TypeError, TX.update, PARAMS, TX.init(PARAMS), PARAMS, value=1.0)
    assert text == "gradtx.adam.update: unknown extra argument 'value'. It accepts: none."


def test_apply_updates_wants_the_updates_of_these_params():
    text = refusal(ValueError, gradtx.apply_updates, PARAMS, {"w": jnp.ones(1), "b": jnp.zeros(())})
    assert_words(
        text, "gradtx.apply_updates: updates do not match params: at ['w'], updates has shape (1,), params (3,)"
    )


def test_a_mask_of_another_tree():
    tx = gradtx.add_decayed_weights(0.1, mask={"w": True})
    text = refusal(ValueError, tx.update, PARAMS, tx.init(PARAMS), PARAMS)
    assert_words(
        text, "gradtx.add_decayed_weights: mask has the structure ", "'w'", "'b'", "give one bool for each leaf"
    )
    tx = gradtx.add_decayed_weights(0.1, mask={"w": 1, "b": True})
    text = refusal(TypeError, tx.update, PARAMS, tx.init(PARAMS), PARAMS)
    assert text == "gradtx.add_decayed_weights: mask at 'w' is 1; allowed: True or False."


def test_what_is_not_there_to_find():
    state = TX.init(PARAMS)
    assert_words(
        refusal(KeyError, gradtx.find, state, "trace"), "gradtx.find: no entry is called 'trace'", "scale_by_rms/nu"
    )
    text = refusal(KeyError, gradtx.find, state, "count")
    assert_words(
        text, "gradtx.find: several entries are called 'count'", "scale_by_rms/count", "scale_by_momentum/count"
    )


def test_what_is_not_there_to_tune():
    state = gradtx.tunable(TX).init(PARAMS)
    assert_words(refusal(KeyError, gradtx.tune, TX.init(PARAMS), b1=0.5), "gradtx.tune: ", "gradtx.tunable(tx)")
    assert_words(refusal(KeyError, gradtx.tune, state, b3=0.5), "no hyperparameter is called 'b3'", "learning_rate, b1")
    assert_words(refusal(KeyError, gradtx.tune, state, lerning_rate=0.5), "Did you mean 'learning_rate'?")
    for value in ("0.5", True, None, jnp.ones(3)):
        assert_words(refusal(TypeError, gradtx.tune, state, b1=value), "gradtx.tune: b1 is ", "allowed: a number")
    assert_words(
        refusal(ValueError, gradtx.tune, state, b1=float("nan")), "gradtx.tune: b1 is nan; allowed: a number in [0, 1)"
    )


@pytest.mark.parametrize(
    ("change", "owner"),
    [({"b1": 1.5}, "b1 is 1.5"), ({"learning_rate": -1.0}, "learning_rate is -1"), ({"eps": -1.0}, "eps is -1")],
)
def test_tuning_out_of_range_is_refused_where_the_number_is_concrete(change, owner):
    tx = gradtx.tunable(TX)
    text = refusal(ValueError, lambda: tx.update(PARAMS, gradtx.tune(tx.init(PARAMS), **change)))
    assert_words(text, owner, "allowed: ")


# Sweeps ---------------------------------------------------------------------------------------------------------------


SWEEPS = {
    "part": lambda rates: jax.vmap(gradtx.scale)(rates),
    "method": lambda rates: jax.vmap(gradtx.adam)(rates),
    "chain": lambda rates: jax.vmap(lambda rate: gradtx.clip(1.0) >> gradtx.adam(rate))(rates),
    "schedule": lambda rates: jax.vmap(lambda rate: gradtx.adam(gradtx.linear_schedule(rate, 0.0, 10)))(rates),
}


@pytest.mark.parametrize("build", SWEEPS.values(), ids=SWEEPS)
def test_a_sweep_called_directly(build):
    txs = build(jnp.logspace(-4, 0, 8))
    states = jax.vmap(lambda tx: tx.init(PARAMS))(txs)
    one = jax.tree.map(lambda leaf: leaf[0], states)
    for text in (
        refusal(ValueError, txs.init, PARAMS),
        refusal(ValueError, txs.update, PARAMS, states, PARAMS),
        refusal(ValueError, txs.update, PARAMS, one, PARAMS),
    ):
        assert_words(text, "gradtx.", "8", "sweep", "jax.vmap(")
        assert "build the optimizer under" not in text  # it was
