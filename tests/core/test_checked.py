"""Value checks in the running program: what they say, how they run under jit, and that they cost nothing elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import gradtx
from gradtx import Rule

PARAMS = {"layer": {"w": jnp.ones(3), "b": jnp.zeros(())}}
GOOD = {"layer": {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.float32(1.0)}}
NAN = {"layer": {"w": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.float32(1.0)}}
TX = gradtx.checked(gradtx.clip(10.0) >> gradtx.adam(1e-3))


def after(tx, steps):
    state = tx.init(PARAMS)
    for _ in range(steps):
        _, state = tx.update(GOOD, state, PARAMS)
    return state


def eagerly(tx, grads, state):
    tx.update(grads, state, PARAMS)


def under_jit(tx, grads, state):
    error, _ = jax.jit(checkify.checkify(tx.update))(grads, state, PARAMS)
    error.throw()


def in_a_scan(tx, grads, state):
    def steps(state):
        return jax.lax.scan(
            lambda state, grads: tx.update(grads, state, PARAMS)[::-1], state, jax.tree.map(lambda g: g[None], grads)
        )

    error, _ = jax.jit(checkify.checkify(steps))(state)
    error.throw()


run_in = pytest.mark.parametrize("run", [eagerly, under_jit, in_a_scan])


@run_in
def test_what_is_fine_passes(run):
    run(TX, GOOD, after(TX, 2))


@run_in
def test_a_nan_names_transform_leaf_and_step(run):
    state = after(TX, 2)
    with pytest.raises(checkify.JaxRuntimeError) as caught:
        run(TX, NAN, state)
    assert str(caught.value).startswith("gradtx.clip, step 3: updates at ['layer']['w']: 1 of 3 elements not finite")


@run_in
def test_a_negative_second_moment_is_named_and_not_only_what_it_causes(run):
    state = after(TX, 1)
    state["checked"]["inner"]["scale_by_rms"]["nu"]["layer"]["w"] = jnp.array([1.0, -1.0, 1.0])
    with pytest.raises(checkify.JaxRuntimeError) as caught:
        run(TX, GOOD, state)
    text = str(caught.value)
    for words in ("gradtx.scale_by_rms, step 2", "'nu'", "['layer']['w']", "negative"):
        assert words in text


@run_in
def test_a_counter_that_does_not_rise_is_named(run):
    state = after(TX, 1)
    state["checked"]["inner"]["scale_by_rms"]["count"] = jnp.int32(-5)
    with pytest.raises(checkify.JaxRuntimeError, match=r"gradtx\.scale_by_rms.*counter.*-5"):
        run(TX, GOOD, state)


@run_in
def test_a_counter_at_its_end_is_no_error(run):
    state = after(TX, 1)
    for own in state["checked"]["inner"].values():
        own["count"] = jnp.int32(np.iinfo(np.int32).max)
    run(TX, GOOD, state)


@run_in
def test_a_state_that_is_not_finite_is_named(run):
    state = after(TX, 1)
    state["checked"]["inner"]["scale_by_momentum"]["mu"]["layer"]["b"] = jnp.float32(jnp.inf)
    with pytest.raises(
        checkify.JaxRuntimeError, match=r"gradtx\.scale_by_momentum, step 2: .*\['layer'\]\['b'\].*not finite"
    ):
        run(TX, GOOD, state)


@run_in
@pytest.mark.parametrize(
    "inner",
    [
        gradtx.identity(),
        gradtx.scale_by_sign(),
        gradtx.sgd(0.1),
        gradtx.foreign(optax.scale(2.0)),
        gradtx.tunable(gradtx.sgd(0.1)),
    ],
    ids=lambda tx: repr(tx)[:20],
)
def test_everything_is_checked_whatever_it_is_made_of(inner, run):
    tx = gradtx.checked(inner)
    with jax.numpy_dtype_promotion("standard"):
        run(tx, GOOD, tx.init(PARAMS))
        with pytest.raises(checkify.JaxRuntimeError, match=r"\['layer'\]\['w'\].*not finite"):
            run(tx, NAN, tx.init(PARAMS))


@run_in
def test_the_state_of_a_foreign_object_is_checked_too(run):
    tx = gradtx.checked(gradtx.foreign(optax.trace(0.9)) >> gradtx.scale_by_sign())
    state = tx.init(PARAMS)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), state)
    with jax.numpy_dtype_promotion("standard"), pytest.raises(checkify.JaxRuntimeError, match="not finite"):
        run(tx, GOOD, broken)


def test_unwrapped_use_under_jit_says_so():
    with pytest.raises(ValueError, match=r"(?s)not functionalized.*through `checkify.checkify`"):
        jax.jit(TX.update)(GOOD, TX.init(PARAMS), PARAMS)


def test_the_docs_say_how_to_run_it_under_jit():
    assert "jax.jit(checkify.checkify(tx.update))" in gradtx.checked.__doc__


def test_it_changes_no_bits():
    plain = gradtx.clip(10.0) >> gradtx.adam(1e-3)
    updates, state = plain.update(GOOD, plain.init(PARAMS), PARAMS)
    checked_updates, checked_state = TX.update(GOOD, TX.init(PARAMS), PARAMS)
    assert gradtx.tree_equal(checked_updates, updates)
    assert gradtx.tree_equal(checked_state["checked"]["inner"], state)


def program(tx):
    return str(jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p))(GOOD, tx.init(PARAMS), PARAMS))


def test_it_is_free_where_it_is_not_used():
    plain = gradtx.clip(10.0) >> gradtx.adam(1e-3)
    before = program(plain)
    assert "check" not in before
    checkify.checkify(TX.update)(GOOD, TX.init(PARAMS), PARAMS)
    with pytest.raises(checkify.JaxRuntimeError):
        TX.update(NAN, TX.init(PARAMS), PARAMS)  # leaves by an exception
    assert program(gradtx.clip(10.0) >> gradtx.adam(1e-3)) == before
    assert program(plain) == before


def test_only_what_is_inside_is_checked():
    tx = (
        gradtx.scale_by_sign()
        >> gradtx.checked(gradtx.scale(1.0))
        >> gradtx.stateless(lambda u, p: jax.tree.map(lambda x: x / 0, u))
    )
    updates, _ = tx.update(GOOD, tx.init(PARAMS), PARAMS)
    assert not bool(jnp.all(jnp.isfinite(updates["layer"]["w"])))


def test_it_measures_the_gradient_that_came_in():
    plain = gradtx.scale_by_momentum() + gradtx.scale_by_rms()
    wrapped = gradtx.scale_by_momentum() + gradtx.checked(gradtx.scale_by_rms())
    expected, _ = plain.update(GOOD, plain.init(PARAMS), PARAMS)
    assert gradtx.tree_equal(wrapped.update(GOOD, wrapped.init(PARAMS), PARAMS)[0], expected)


def test_it_passes_extra_arguments_on():
    seen = []

    @gradtx.transform
    def wants_value() -> Rule:
        def update(updates, state, *, value):
            seen.append(value)
            return updates, state

        return Rule(update=update)

    tx = gradtx.checked(wants_value())
    assert tx.extra_args == {"value"}
    tx.update(GOOD, tx.init(PARAMS), value=3.0)
    assert seen == [3.0]
    with pytest.raises(TypeError, match="'value' is missing"):
        tx.update(GOOD, tx.init(PARAMS))


def test_a_needed_params_is_needed_through_it():
    tx = gradtx.checked(gradtx.adamw(1e-3))
    assert tx.needs_params
    with pytest.raises(ValueError, match=r"gradtx\.checked\.update: params are missing"):
        tx.update(GOOD, tx.init(PARAMS))
