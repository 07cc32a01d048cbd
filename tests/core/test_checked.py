"""Value checks in the running program: what they say, how they run under jit, and that they cost nothing elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import gradtx
from gradtx.core import values

PARAMS = {"layer": {"w": jnp.ones(3), "{b}": jnp.zeros(())}}
GOOD = {"layer": {"w": jnp.array([1.0, -2.0, 0.5]), "{b}": jnp.float32(1.0)}}
NAN = {"layer": {"w": jnp.array([1.0, jnp.nan, jnp.inf]), "{b}": jnp.float32(1.0)}}
PLAIN = gradtx.clip(10.0) >> gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.99)
TX = gradtx.checked(PLAIN)
UPDATE = jax.jit(checkify.checkify(TX.update))


def eagerly(tx, grads, state):
    tx.update(grads, state, PARAMS)


def under_jit(tx, grads, state):
    update = UPDATE if tx is TX else jax.jit(checkify.checkify(tx.update))
    update(grads, state, PARAMS)[0].throw()


def in_a_scan(tx, grads, state):
    stacked = jax.tree.map(lambda g: g[None], grads)
    steps = lambda state: jax.lax.scan(lambda s, g: tx.update(g, s, PARAMS)[::-1], state, stacked)  # noqa: E731
    jax.jit(checkify.checkify(steps))(state)[0].throw()


@functools.cache
def after_one_step():
    return jax.device_get(UPDATE(GOOD, TX.init(PARAMS), PARAMS)[1][1])


def changed(name, field, value):
    """The state after one step with one number of it changed; a new one each time."""
    state = jax.tree.map(jnp.asarray, after_one_step())
    own = state["checked"]["inner"][name]
    if field == "count":
        own["count"] = jnp.int32(value)
    else:
        own[field]["layer"]["w"] = own[field]["layer"]["w"].at[1].set(value)
    return state


MAX = np.iinfo(np.int32).max
WRONG = {
    "nan": (NAN, ["clip", "count", 2], "gradtx.clip, step 3: updates at ['layer']['w']: 1 of 3 elements not finite"),
    "negative": (
        *(GOOD, ["scale_by_rms", "nu", -0.05]),
        "gradtx.scale_by_rms, step 2: state 'nu' at ['layer']['w']: negative value -0.009",
    ),
    "counter": (GOOD, ["scale_by_rms", "count", -5], "gradtx.scale_by_rms: the counter went from -5 to -4"),
    "infinite": (
        GOOD,
        ["scale_by_momentum", "mu", np.inf],
        "gradtx.scale_by_momentum, step 2: state 'mu' at ['layer']",
    ),
}


@pytest.mark.parametrize(("grads", "change", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_names_transform_leaf_and_step(grads, change, words):
    with pytest.raises(checkify.JaxRuntimeError) as caught:
        under_jit(TX, grads, changed(*change))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("run", [eagerly, in_a_scan])
def test_it_runs_outside_jit_and_in_a_scan(run):
    tx = gradtx.checked(gradtx.scale(2.0))
    run(tx, GOOD, tx.init(PARAMS))
    with pytest.raises(checkify.JaxRuntimeError) as caught:
        run(tx, NAN, tx.init(PARAMS))
    assert str(caught.value).startswith("gradtx.scale, step 1: updates at ['layer']['w']: 2 of 3 elements not finite")


def test_what_is_fine_passes_and_a_counter_at_its_end_is_no_error():
    for count in (1, MAX):
        under_jit(TX, GOOD, changed("scale_by_rms", "count", count))
    with pytest.raises(checkify.JaxRuntimeError, match=r"at \['layer'\]\['{b}'\]: 1 of 1 elements not finite"):
        under_jit(TX, {"layer": GOOD["layer"] | {"{b}": jnp.float32(jnp.nan)}}, changed("clip", "count", 1))


INNER = [gradtx.identity(), gradtx.foreign(optax.trace(2.0)), gradtx.tunable(gradtx.sgd(0.1))]


@pytest.mark.parametrize("inner", INNER, ids=lambda tx: tx.name)
def test_everything_is_checked_whatever_it_is_made_of(inner):
    tx = gradtx.checked(inner)
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(PARAMS)
        eagerly(tx, GOOD, state)
        with pytest.raises(checkify.JaxRuntimeError, match=r"\['layer'\]\['w'\].*2 of 3 elements not finite"):
            eagerly(tx, NAN, state)
        if inner.name == "foreign":
            with pytest.raises(checkify.JaxRuntimeError, match=r"gradtx\.trace: state 'state'.*not finite"):
                eagerly(tx, GOOD, jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), state))


def program(tx):
    return str(jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p))(GOOD, tx.init(PARAMS), PARAMS))


def test_it_changes_no_numbers_and_is_free_where_it_is_not_used():
    before = program(PLAIN)
    assert "check" not in before
    state = TX.init(PARAMS)
    _, (checked_updates, checked_state) = UPDATE(GOOD, state, PARAMS)
    updates, state = jax.jit(PLAIN.update)(GOOD, state["checked"]["inner"], PARAMS)
    for checked, plain in [(checked_updates, updates), (checked_state["checked"]["inner"], state)]:
        assert jax.tree.structure(checked) == jax.tree.structure(plain)
        for a, b in zip(jax.tree.leaves(checked), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)  # two programs, which may be fused differently
    assert program(gradtx.clip(10.0) >> PLAIN.stages[1]) == program(PLAIN) == before


def test_only_what_is_inside_is_checked_and_held_back_checks_are_noted():
    broken = gradtx.stateless(lambda updates, params: jax.tree.map(lambda u: u / 0, updates))
    tx = gradtx.checked(gradtx.scale_by_sign()) >> broken
    assert not np.isfinite(tx.update(GOOD, tx.init(PARAMS))[0]["layer"]["w"]).any()
    with values.held_back() as noted:
        gradtx.checked(broken).update(GOOD, {"checked": {"inner": {}}})
    assert noted == [True]
    assert not values.value_checks.get()


def test_unwrapped_use_under_jit_says_so():
    tx = gradtx.checked(gradtx.scale_by_sign())
    with pytest.raises(ValueError, match=r"(?s)not functionalized.*through `checkify.checkify`"):
        jax.jit(tx.update)(GOOD, tx.init(PARAMS))
    assert "jax.jit(checkify.checkify(tx.update))" in gradtx.checked.__doc__
