"""Masks and labels: three ways to say the same, asked once, about shapes."""

import functools
import pickle

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradtx
from gradtx.core import selection
from tests.core.samples import rebuilt

PARAMS = {
    "body": {"bias": jnp.zeros(2), "kernel": jnp.zeros((3, 2))},
    "head": {"bias": jnp.zeros(1), "kernel": jnp.zeros((2, 1))},
}


def flags(spec, params=PARAMS, updates=None):
    return selection.flags("gradtx.someone", spec, params if updates is None else updates, params)


def labels(spec, params=PARAMS):
    return selection.labels("gradtx.someone", spec, params, params, argument="param_labels")


# Kernels, the head, everything, nothing; the first match wins.
BOTH = {name: {"bias": False, "kernel": True} for name in PARAMS}
EVERY_WAY = {
    (False, True, False, True): [
        *(BOTH, jax.tree.map(np.bool_, BOTH), {"*/b???": False, "*/[k]ernel": True}, {"*/bias": False, "*": True}),
        *("*/kernel", ("body/kernel", "head/kernel"), ["*/kernel", "head/k*"], {"*/kernel": True, "*": False}),
        *(lambda path, leaf: path.endswith("kernel") and leaf.ndim == 2, lambda params: BOTH),
    ],
    (False, False, True, True): [
        *("head/*", {"head/*": True, "*/kernel": False, "*": False}, {"body": False, "head": True}),
        {"body": False, "head": {"bias": True, "kernel": True}},
        *(lambda path, leaf: path.startswith("head/"), lambda params: {name: name == "head" for name in params}),
    ],
    (False, False, True, False): [{"*/kernel": False, "head/*": True, "*": False}],
    (True, True, True, True): ["*", ("*", "head/*"), True],
    (False, False, False, False): [{"*": False}, False],
}


@pytest.mark.parametrize("expected", EVERY_WAY)
def test_the_same_in_every_way(expected):
    for spec in EVERY_WAY[expected]:
        assert flags(spec) == expected, spec


def test_labels_in_every_way():
    names = lambda path, leaf: "matrices" if leaf.ndim == 2 else "vectors"  # noqa: E731
    whole = lambda params: jax.tree.map(lambda leaf: names("", leaf), params)  # noqa: E731
    for spec in (names, whole, whole(PARAMS), {"*/kernel": "matrices", "*": "vectors"}):
        assert labels(spec) == ("vectors", "matrices", "vectors", "matrices")
    assert labels({"body": "slow", "head": "fast"}) == ("slow", "slow", "fast", "fast")
    assert labels("all") == ("all",) * 4


def test_a_star_crosses_slashes_and_the_top_counts_as_below_one():
    deep = {"kernel": jnp.zeros(1), "a": {"b": {"kernel": jnp.zeros(1), "kernels": jnp.zeros(1)}}}
    assert flags("*/kernel", deep) == (True, False, True)
    assert flags("kernel", deep) == (False, False, True)
    assert flags("a/*", deep) == (True, True, False)


# Trees of every kind --------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Pair:
    first: object
    second: object

    def __call__(self):
        """Trees of some libraries can be called."""


def test_tuples_lists_dataclasses_none_and_a_single_array():
    mixed = {"a": (jnp.zeros(1), [jnp.zeros(2), None]), "b": Pair(jnp.zeros(3), None), "c": None}
    assert selection.paths(mixed) == ("a/0", "a/1/0", "b/first")
    assert flags(("a/1/*", "b/first"), mixed) == (False, True, True)
    assert flags({"a": (True, False), "b": True, "c": False}, mixed) == (True, False, True)
    assert flags({"a": (True, [False, None]), "b": Pair(True, None), "c": None}, mixed) == (True, False, True)
    two = (jnp.zeros(1), jnp.zeros(2))
    assert flags(("0", "1"), two) == flags((True, True), two) == (True, True)
    for spec in (True, "*", lambda path, leaf: path == "", lambda leaf: leaf.ndim == 1):
        assert flags(spec, jnp.zeros(3)) == (True,)
    assert flags("*/kernel", {}) == flags(True, None) == flags("*", (None,)) == ()


@flax.struct.dataclass
class Head:
    query: object
    value: object


def test_odd_trees_and_names():
    params = Pair(jnp.zeros(1), jnp.zeros(2))  # can be called, and is a tree
    assert flags(Pair(True, False), params) == (True, False)
    assert labels(Pair("a", "b"), params) == ("a", "b")
    params = {"mlp/~/linear_0": {"w": jnp.zeros(1)}, "mlp/~/linear_1": {"w": jnp.zeros(1)}}  # keys with a slash
    assert flags({"mlp/~/linear_0": True, "mlp/~/linear_1": False}, params) == (True, False)
    assert flags("*_0/w", params) == (True, False)
    assert selection.paths({"head": Head(jnp.zeros(1), jnp.zeros(1))}) == ("head/query", "head/value")


def test_paths_of_linen_and_nnx():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return nn.Dense(2, kernel_init=init)(x)

    boxed = jax.eval_shape(Boxed().init, jax.random.key(0), jnp.ones((1, 3)))
    assert selection.paths(boxed) == ("params/Dense_0/bias", "params/Dense_0/kernel")

    class Net(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 2, rngs=nnx.Rngs(1))])

    assert selection.paths(nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))) == ("bias", "kernel")
    state = nnx.state(Net(), nnx.Param)
    assert selection.paths(state) == tuple(f"layers/{i}/{name}" for i in (0, 1) for name in ("bias", "kernel"))
    assert flags("layers/1/*", state) == flags(lambda path, leaf: "/1/" in path, state) == (False, False, True, True)
    assert flags(lambda state: jax.tree.map(lambda leaf: leaf.ndim == 2, state), state) == (False, True) * 2


# Functions are asked once, about shapes -------------------------------------------------------------------------------


def test_a_function_is_asked_once_for_each_kind_of_params_and_never_given_a_value():
    asked = []

    def mask(path, leaf):
        asked.append((path, leaf))
        return leaf.ndim == 2

    for _ in range(3):
        assert flags(mask) == (False, True, False, True)
    jax.jit(lambda params: flags(mask, params) and params)(PARAMS)
    jax.vmap(lambda _: jnp.float32(flags(mask)[0]))(jnp.zeros(2))
    flags(mask, jax.tree.map(lambda leaf: leaf + 1, PARAMS))
    assert [path for path, _ in asked] == ["body/bias", "body/kernel", "head/bias", "head/kernel"]
    flags(mask, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS))
    flags(mask, {"other": jnp.zeros((1, 1))})
    assert len(asked) == 9
    assert all(type(leaf) is jax.ShapeDtypeStruct for _, leaf in asked)


def test_any_callable_is_asked_about_the_params_not_the_gradients():
    class Mask:
        def __call__(self, path, leaf, least=2):
            return leaf.ndim >= least

    def sizes(params):
        assert all(type(leaf) is jax.ShapeDtypeStruct for leaf in jax.tree.leaves(params))
        return jax.tree.map(lambda leaf: leaf.size > 2, params)

    assert flags(sizes) == (False, True, False, False)
    assert flags(Mask()) == (False, True, False, True)
    assert flags(functools.partial(lambda wanted, path, leaf: wanted in path, "head")) == (False, False, True, True)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert flags(lambda path, leaf: leaf.dtype == jnp.bfloat16, half, PARAMS) == (True,) * 4
    assert flags("*/kernel", None, PARAMS) == (False, True, False, True)  # patterns need no params


# Taking out and putting back ------------------------------------------------------------------------------------------


def test_keep_and_put():
    values = {"a": 1.0, "b": (2.0, None), "c": 3.0}
    kept = selection.keep(values, (True, False, True))
    assert kept == {"a": 1.0, "b": (None, None), "c": 3.0}
    into = {"a": 0.0, "b": (5.0, None), "c": 0.0}
    assert selection.put(kept, into, (True, False, True)) == {"a": 1.0, "b": (5.0, None), "c": 3.0}
    leaf = np.ones(2)
    assert selection.keep(leaf, (True,)) is leaf
    assert selection.keep(leaf, (False,)) == ()  # None alone would stand for params that are missing
    assert selection.put((), leaf, (False,)) is leaf


ONE = jnp.ones(1)
MASKS = [
    ({"w": True, "b": False}, {"w": ONE, "b": ONE}),
    ({"l": [True, False]}, {"l": [ONE, ONE]}),
    ((True, False), (ONE, ONE)),
    ({0: True, 1: False}, {0: ONE, 1: ONE}),
    (True, ONE),
    ({"w": None, "b": True}, {"w": None, "b": ONE}),
]


@pytest.mark.parametrize(("mask", "params"), MASKS, ids=[str(mask) for mask, _ in MASKS])
def test_a_mask_fits_its_params_as_given_pickled_and_from_a_config(mask, params):
    tx = gradtx.add_decayed_weights(0.5, mask=mask)
    grads = jax.tree.map(jnp.zeros_like, params)
    expected = jax.tree.map(lambda chosen, w: w * np.float32(0.5 * chosen), mask, params)
    for again in (tx, pickle.loads(pickle.dumps(tx)), rebuilt(tx)):
        assert gradtx.tree_equal(again.update(grads, again.init(params), params)[0], expected)
