"""Arithmetic on trees, numbers at the edges, and what runs outside jit: small programs, made once."""

import functools
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gradtx
from gradtx import numerics, tree
from gradtx.core import check
from tests.core.compilations import compilations
from tests.core.samples import needs_float16

HALF, FLOAT0 = np.dtype(ml_dtypes.bfloat16), jax.dtypes.float0
THREES = 3 * np.ones(7, np.float32)
MANY = [np.ones(3, np.float32)] * 100

# Dtypes ---------------------------------------------------------------------------------------------------------------


def kinds(values):
    return [np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(values)]


@needs_float16
def test_leaves_are_computed_with_in_at_least_float32():
    leaves = [
        np.ones(1, HALF),
        np.ones(1, np.float16),
        jnp.ones(1),
        np.ones(1, np.complex64),
        np.ones(1, int),
        True,
        2.0,
    ]
    assert kinds(tree.to_compute_dtype(leaves[:4])) == ["float32", "float32", "float32", "complex64"]
    assert tree.to_compute_dtype(leaves)[4:6] == leaves[4:6]
    assert [tree.is_discrete(leaf) for leaf in leaves] == [False] * 4 + [True, True, False]
    assert [tree.is_complex(leaf) for leaf in leaves[2:5]] == [False, True, False]
    assert tree.is_discrete(np.zeros(1, FLOAT0))
    assert tree.dtype_of(2.0) == tree.dtype_of(np.ones(1)) == np.float32
    assert tree.precision(leaves) == np.float32
    shapes = tree.shapes({"a": np.ones((2, 3), HALF), "b": 1.0})
    assert shapes == {"a": jax.ShapeDtypeStruct((2, 3), HALF), "b": jax.ShapeDtypeStruct((), np.float32)}
    assert tree.shapes(np.ones((2, 3)), drop=1).shape == (3,)
    wide = jax.ShapeDtypeStruct((2,), np.float64)
    assert tree.shapes(wide) == wide  # as it says, though no array would be so wide here


def test_float64_leaves_are_computed_with_in_float64(x64):
    assert tree.precision(np.ones(1, HALF), [np.ones(1)]) == tree.precision(np.ones(1, complex)) == np.float64
    mixed = [np.float32([0.1]), np.float64([0.1]), np.complex64([1j]), np.complex128([1j])]
    names = ["float32", "float64", "complex64", "complex128"]
    assert kinds(tree.map(lambda x, k: k * x, mixed, k=np.float32(2))) == names
    assert tree.map(lambda x, k: k * x, mixed[1], k=0.1)[0] == 0.1 * 0.1
    assert kinds(tree.map(lambda a, b: a + b, mixed[0], mixed[3])) == ["complex128"]
    assert kinds(tree.zeros_like(mixed)) == names
    assert kinds(tree.zeros_like(mixed, real=True)) == ["float32", "float64", "float32", "float64"]


@needs_float16
def test_cast_like():
    like = [np.ones(1, HALF), np.ones(1, np.float16), np.ones(1, np.float32), np.ones(1, np.complex64)]
    large = [np.float32([np.finfo(np.float32).max, -1e30, np.inf])] * 2 + [np.float32([1e30])] * 2
    cast = tree.cast_like(large, like)
    assert kinds(cast) == ["bfloat16", "float16", "float32", "complex64"]
    assert cast[1].astype(float).tolist() == [np.inf, -np.inf, np.inf]
    bounded = tree.cast_like(large, like, finite=True)
    assert bounded[1].astype(float).tolist() == [65504.0, -65504.0, 65504.0]
    assert np.isfinite(bounded[0][1].astype(float))
    assert tree.cast_like([np.int32([7])], [np.zeros(1, np.int8)], finite=True)[0].dtype == np.int8
    none = np.zeros(1, FLOAT0)
    assert tree.cast_like([none], [none])[0] is none
    assert isinstance(tree.to_compute_dtype(np.float32([1])), jax.Array)


def test_full_like():
    leaves = [np.ones((2, 1), HALF), np.ones(3, np.complex64), np.zeros(1, FLOAT0)]
    full = tree.full_like(leaves, 2.5)
    assert [leaf.dtype for leaf in full] == [np.float32, np.complex64, FLOAT0]
    assert (full[0].tolist(), full[1].tolist(), full[2]) == ([[2.5], [2.5]], [2.5 + 0j] * 3, leaves[2])
    assert kinds(tree.full_like(leaves[:2], 1.0, real=True)) == ["float32", "float32"]
    assert not np.any(tree.zeros_like(leaves[0]))


def test_names_of_paths_and_finiteness():
    assert tree.named_leaves({"a": [1, 2]}) == [("['a'][0]", 1), ("['a'][1]", 2)]
    assert tree.named_leaves(3) == [("the root", 3)]
    for value, fine in [({}, True), ([1.0, np.ones(2)], True), ([1.0, np.array([1.0, np.nan])], False), (np.inf, 0)]:
        assert bool(tree.all_finite(value)) == fine


# Joining small leaves -------------------------------------------------------------------------------------------------


def test_what_is_joined(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    small, low, large = np.float32([[1, 2]]), np.ones(2, HALF), jax.ShapeDtypeStruct((2**13 + 1,), np.float32)
    leaves = [small, np.float32(3), low, large, np.zeros(2**13, np.float32), low]
    joined = jax.eval_shape(tree.joined, leaves)
    assert [(leaf.shape, leaf.dtype.name) for leaf in joined] == [
        *(((2**13 + 3,), "float32"), ((4,), "bfloat16"), ((2**13 + 1,), "float32"))
    ]
    assert [leaf.shape for leaf in jax.eval_shape(tree.joined, [small] * 65)] == [(64,), (64,), (1, 2)]
    assert tree.join([small, np.float32(3)]).tolist() == [1.0, 2.0, 3.0]


# Numbers at the edges -------------------------------------------------------------------------------------------------


def test_roots_quotients_and_squares_have_finite_slopes_at_zero():
    x = jnp.array([0.0, 4.0])
    np.testing.assert_array_equal(numerics.root(x), [0.0, 2.0])
    slopes = jax.jvp(numerics.root, (jnp.array([0.0, 0.0625, 4.0]),), (jnp.array([3.0, 3.0, 8.0]),))[1]
    np.testing.assert_allclose(slopes, [0.0, 6.0, 2.0], rtol=1e-6)
    values, slopes = jax.jvp(numerics.divide, (jnp.array([3.0, 3.0]), x), (jnp.ones(2), jnp.ones(2)))
    np.testing.assert_allclose(values, [0.0, 0.75], rtol=1e-6)
    np.testing.assert_allclose(slopes, [0.0, 1 / 4 - 3 / 16], rtol=1e-6)
    np.testing.assert_array_equal(numerics.abs_squared(jnp.array([3 + 4j, -2j])), [25.0, 4.0])
    np.testing.assert_array_equal(numerics.abs_squared(jnp.array([-3.0])), [9.0])
    tx, zeros = gradtx.scale_by_adagrad(0.0, 0.0), {"w": jnp.zeros(3)}
    with jax.debug_nans(True):  # not even on the way
        np.testing.assert_array_equal(tx.update(zeros, tx.init(zeros))[0]["w"], 0.0)


def test_one_branch_runs_and_outside_jit_it_is_no_program():
    ran = []
    double, triple = (lambda x, k=k: ran.append(k) or k * x for k in (2, 3))
    with compilations() as compiled:
        assert [numerics.branch(np.bool_(flag), double, triple, 5) for flag in (True, False)] == [10, 15]
    assert (ran, compiled) == ([2, 3], [])
    assert "cond" in str(jax.make_jaxpr(lambda p: numerics.branch(p, double, triple, 5))(True))
    assert jax.jit(lambda p: numerics.branch(p, double, triple, 5))(False) == 15
    ends = [0, 2**31 - 2, 2**31 - 1]
    assert [int(numerics.saturating_increment(jnp.int32(n))) for n in ends] == [1, 2**31 - 1, 2**31 - 1]


# Outside jit ----------------------------------------------------------------------------------------------------------


def test_a_large_tree_outside_jit_is_told_of_jit_once(monkeypatch):
    monkeypatch.setattr(check, "_hints", set())
    tx = gradtx.scale(0.12345)  # no other test's, whose structures it would know
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.update(MANY[:99], tx.init(MANY[:99]))
        jax.eval_shape(tx.update, MANY, tx.init(MANY))
        check.hint_at_jit("", [np.broadcast_to(np.float32(0), (10**7 - 1,))])
    assert not check._hints
    with pytest.warns(UserWarning, match=r"gradtx.sgd.update: 100 leaves with 300 elements are updated outside jit"):
        gradtx.sgd(0.1).update(MANY, gradtx.sgd(0.1).init(MANY), MANY)
    check.hint_at_jit("again", MANY)
    check._hints.clear()
    with pytest.warns(UserWarning, match=r"one: 1 leaves with 10000000 elements"):
        check.hint_at_jit("one", [np.broadcast_to(np.float32(0), (10**7,))])


def test_a_leaf_function_is_traced_once_for_each_kind_of_leaf():
    seen = []

    def doubled(x, factor):
        seen.append(x.shape)
        return factor * x

    leaves = [jnp.ones(3), jnp.ones((2, 2)), *[jnp.ones(3)] * 50, jnp.ones(3, HALF)]
    result = jax.jit(lambda leaves: tree.map(doubled, leaves, factor=2.0))(leaves)
    assert seen == [(3,), (2, 2)]
    assert all(bool((leaf == 2).all()) for leaf in result)


def at_threes(function, **numbers):
    return float(tree.map(function, [THREES], **numbers)[0][0])


def test_closures_that_say_the_same_are_one_program():
    def scaled(power):
        def function(x, factor):
            return factor * x**power

        return function

    assert at_threes(scaled(2), factor=2.0) == 18.0
    with compilations() as compiled:
        assert at_threes(scaled(2), factor=5.0) == 45.0
    assert not compiled
    assert at_threes(scaled(3), factor=1.0) == 27.0
    assert at_threes(scaled(True), factor=1.0) == 3.0
    assert [at_threes(lambda x, by=by: x + by) for by in (0.0, -0.0, 1.5)] == [3.0, 3.0, 4.5]
    ones = [jnp.float32(1), jnp.float32(2)]
    assert [at_threes(lambda x, by=by: x + by) for by in ones] == [4.0, 5.0]  # no array is compared
    assert [at_threes(lambda x, *, by=by: x + by) for by in (0.5, 1.5)] == [3.5, 4.5]
    assert [at_threes(functools.partial(jnp.multiply, by)) for by in (2.0, 4.0)] == [6.0, 12.0]
    assert [at_threes(function) for function in (jnp.square, jnp.negative)] == [9.0, -3.0]


def test_a_function_is_another_where_what_it_names_is_another():
    """As in a notebook, where a cell is run again after a constant of it was changed."""
    results = []
    for constant in ("FACTOR = 2.0", "FACTOR = 5.0", "def FACTOR(): return 7.0"):
        use = "FACTOR()" if "def" in constant else "FACTOR"
        cell = {}
        exec(f"{constant}\nfunction = lambda x: (lambda y: y * {use})(x)", cell)
        results.append(float(tree.map(cell["function"], [np.ones(7, np.float32)])[0][0]))
    assert results == [2.0, 5.0, 7.0]


def power(x, exponent):
    return x if exponent == 1 else x * power(x, exponent - 1)


def test_a_function_may_name_one_that_names_itself():
    assert float(tree.map(lambda x: power(x, 3), [np.float32([2.0])])[0][0]) == 8.0


def test_a_second_step_outside_jit_compiles_nothing():
    tx, params = gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.1), {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return gradtx.apply_updates(params, updates), state

    params, state = step(*step(params, tx.init(params)))
    with compilations() as compiled:
        step(params, state)
    assert not compiled
