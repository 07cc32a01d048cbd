"""Outside jit: one small program for each leaf function and kind of leaf, made once; a hint at jit for large trees."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import gradtx
from gradtx import tree
from gradtx.core import check
from tests.core.compilations import compilations

THREES = 3 * jnp.ones(7)
MANY = [jnp.ones(3) for _ in range(100)]


def test_a_large_tree_outside_jit_is_told_of_jit_once(monkeypatch):
    monkeypatch.setattr(check, "_hints", set())
    tx = gradtx.sgd(0.1)
    with pytest.warns(UserWarning, match=r"gradtx.sgd.update: 100 leaves with 300 elements are updated outside jit"):
        tx.update(MANY, tx.init(MANY), MANY)
    other = gradtx.adam(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.update(MANY, other.init(MANY), MANY)


def test_a_small_tree_and_jit_need_no_hint(monkeypatch):
    monkeypatch.setattr(check, "_hints", set())
    tx = gradtx.adam(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.update(MANY[:99], tx.init(MANY[:99]), MANY[:99])
        jax.jit(tx.update)(MANY, tx.init(MANY), MANY)
    assert not check._hints


def test_a_leaf_function_is_traced_once_for_each_kind_of_leaf():
    seen = []

    def doubled(x, factor):
        seen.append(x.shape)
        return factor * x

    leaves = [jnp.ones(3), jnp.ones((2, 2)), *[jnp.ones(3)] * 50, jnp.ones(3, jnp.bfloat16)]
    result = jax.jit(lambda leaves: tree.map(doubled, leaves, factor=2.0))(leaves)
    assert seen == [(3,), (2, 2)]
    assert all(bool((leaf == 2).all()) for leaf in result)


def test_closures_that_say_the_same_are_one_program():
    def scaled(power):
        def function(x, factor):
            return factor * x**power

        return function

    tree.map(scaled(2), [jnp.ones(7)], factor=2.0)
    with compilations() as compiled:
        squares = tree.map(scaled(2), [THREES], factor=5.0)[0]
    assert not compiled
    assert float(squares[0]) == 45.0
    assert float(tree.map(scaled(3), [THREES], factor=1.0)[0][0]) == 27.0
    assert float(tree.map(scaled(True), [THREES], factor=1.0)[0][0]) == 3.0


def test_a_closure_over_an_array_is_never_taken_for_another():
    def shifted(by):
        return lambda x: x + by

    results = [float(tree.map(shifted(jnp.float32(by)), [jnp.zeros(7)])[0][0]) for by in (1, 2)]
    assert results == [1.0, 2.0]
    assert [float(tree.map(shifted(by), [jnp.zeros(7)])[0][0]) for by in (0.0, -0.0, 1.5)] == [0.0, 0.0, 1.5]


@pytest.mark.parametrize("name", ["adam", "sgd", "lion"])
def test_a_second_step_outside_jit_compiles_nothing(name):
    tx, params = gradtx.registry[name](0.1), {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return gradtx.apply_updates(params, updates), state

    params, state = step(params, tx.init(params))
    step(params, state)
    with compilations() as compiled:
        step(params, state)
    assert not compiled


def test_a_function_is_another_where_what_it_names_is_another():
    """As in a notebook, where a cell is run again after a constant of it was changed."""
    results = []
    for constant in ("FACTOR = 2.0", "FACTOR = 5.0", "def FACTOR(): return 7.0"):
        use = "FACTOR()" if "def" in constant else "FACTOR"
        cell = {}
        exec(f"{constant}\nfunction = lambda x: (lambda y: y * {use})(x)", cell)
        results.append(float(tree.map(cell["function"], [jnp.ones(7)])[0][0]))
    assert results == [2.0, 5.0, 7.0]
