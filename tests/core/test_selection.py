"""Masks and labels: three ways to say the same, asked about shapes."""

import collections
import dataclasses
import functools
import pickle

import flax.core
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradtx
from gradtx.core import selection
from gradtx.core.stand_ins import StandIn
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
    (True, True, True, True): ["*", ("*", "head/*"), True, 1, np.True_, np.int8(1), np.array(True), jnp.array(True)],
    (False, False, False, False): [{"*": False}, False, 0, np.bool_(0), jnp.array(False)],
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


# Functions are asked about shapes -------------------------------------------------------------------------------------


def test_a_function_is_never_given_a_value():
    asked = []

    def mask(path, leaf):
        asked.append((path, leaf))
        return leaf.ndim == 2

    assert flags(mask) == (False, True, False, True)
    jax.jit(lambda params: flags(mask, params) and params)(PARAMS)
    jax.vmap(lambda _: jnp.float32(flags(mask)[0]))(jnp.zeros(2))
    assert [path for path, _ in asked] == ["body/bias", "body/kernel", "head/bias", "head/kernel"] * 3
    assert all(type(leaf) is StandIn for _, leaf in asked)


@pytest.mark.parametrize("build", [gradtx.masked, gradtx.train_only, lambda tx, mask: tx >> gradtx.freeze(mask)])
def test_a_function_that_reads_what_has_changed_since_is_asked_anew(build):
    """In a notebook the list of what is trained is changed, and everything made anew: the old answer would stay."""
    chosen, ones = set(), jax.tree.map(jnp.ones_like, PARAMS)

    def mask(path, leaf):
        return path in chosen

    for path in ("body/bias", "head/kernel"):
        chosen.clear()
        chosen.add(path)
        expected = build(gradtx.scale(3.0), {path: True, "*": False})
        found = build(gradtx.scale(3.0), mask)
        wanted, _ = expected.update(ones, expected.init(PARAMS), PARAMS)
        assert gradtx.tree_equal(found.update(ones, found.init(PARAMS), PARAMS)[0], wanted)


def test_under_jit_a_partial_of_what_has_changed_is_another_mask():
    def mask(chosen, path, leaf):
        return path in chosen

    @jax.jit
    def step(tx, params):
        return tx.update(params, tx.init(params), params)[0]

    for path in ("body/bias", "head/kernel"):
        expected = step(gradtx.masked(gradtx.scale(3.0), {path: True, "*": False}), PARAMS)
        assert gradtx.tree_equal(
            step(gradtx.masked(gradtx.scale(3.0), functools.partial(mask, {path})), PARAMS), expected
        )


def test_any_callable_is_asked_about_the_params_not_the_gradients():
    class Mask:
        def __call__(self, path, leaf, least=2):
            return leaf.ndim >= least

    def sizes(params):
        assert all(type(leaf) is StandIn for leaf in jax.tree.leaves(params))
        return jax.tree.map(lambda leaf: leaf.size > 2, params)

    assert flags(sizes) == (False, True, False, False)
    assert flags(Mask()) == (False, True, False, True)
    assert flags(functools.partial(lambda wanted, path, leaf: wanted in path, "head")) == (False, False, True, True)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert flags(lambda path, leaf: leaf.dtype == jnp.bfloat16, half, PARAMS) == (True,) * 4
    assert flags("*/kernel", None, PARAMS) == (False, True, False, True)  # patterns need no params


ASKED_OF_AN_ARRAY = {
    "is an array": lambda x: isinstance(x, jax.Array) and x.ndim > 1,
    "is no NumPy array": lambda x: not isinstance(x, np.ndarray) and x.ndim > 1,
    "as NumPy's": lambda x: np.asarray(x).ndim > 1 and np.asarray(x).dtype == x.dtype,
    "by jax.numpy": lambda x: jnp.ndim(x) > 1 and jnp.shape(x) == x.shape and jnp.size(x) == x.size,
    "by NumPy": lambda x: np.ndim(x) > 1 and np.shape(x) == x.shape and np.size(x) == x.size,
    "its dtype": lambda x: jnp.issubdtype(x.dtype, jnp.floating) and jnp.result_type(x) == x.dtype and x.ndim > 1,
    "its bytes": lambda x: x.nbytes == x.itemsize * x.size and x.ndim > 1 and not x.weak_type,
    "what it has": lambda x: hasattr(x, "shape") and not hasattr(x, "names") and x.ndim > 1,
}


@pytest.mark.parametrize("how", ASKED_OF_AN_ARRAY)
def test_what_is_asked_of_an_array_is_answered_as_by_the_array(how):
    ask = ASKED_OF_AN_ARRAY[how]
    assert [ask(leaf) for leaf in jax.tree.leaves(PARAMS)] == [False, True, False, True]
    assert flags(lambda params: jax.tree.map(ask, params)) == flags(lambda path, leaf: ask(leaf))
    assert flags(lambda path, leaf: ask(leaf)) == (False, True, False, True)


def test_what_stands_for_an_array_takes_no_memory():
    huge = StandIn(jax.ShapeDtypeStruct((10**6, 10**6), jnp.bfloat16))
    assert (huge.size, huge.nbytes, np.asarray(huge).strides) == (10**12, 2 * 10**12, (0, 0))


def test_a_function_that_selects_nothing_is_named():
    def wide(path, leaf):
        return leaf.ndim > 2

    with pytest.warns(UserWarning, match=r"^gradtx.someone: mask, the function wide, selects none of 4 leaves; the f"):
        assert flags(wide) == (False,) * 4
    assert flags(wide, {}) == ()


# Other containers -----------------------------------------------------------------------------------------------------

LEAVES = {"a": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "c": jnp.ones(1)}


@dataclasses.dataclass
class Both:
    a: object
    c: object


jax.tree_util.register_dataclass(Both, ["a", "c"], [])
CONTAINERS = {
    "dict": lambda tree: tree,
    "FrozenDict": flax.core.FrozenDict,
    "OrderedDict": lambda tree: collections.OrderedDict(a=collections.OrderedDict(tree["a"]), c=tree["c"]),
    "a dataclass": lambda tree: Both(**tree),
    "a state": lambda tree: nnx.State(jax.tree.map(nnx.Param, tree)),
    "a state of others": lambda tree: nnx.State(jax.tree.map(nnx.BatchStat, tree)),
}


@pytest.mark.parametrize("of_params", CONTAINERS)
def test_a_mask_in_other_containers_is_read_by_its_paths(of_params):
    params = CONTAINERS[of_params](LEAVES)
    masks = ({"a": {"w": True, "b": False}, "c": False}, {"a": {"w": False, "b": True}, "c": True})
    for mask in (*masks, {"a": False, "c": True}):
        expected = {
            path: mask["c"] if path == "c" else mask["a"] and mask["a"][path[-1]] for path in ("a/w", "a/b", "c")
        }
        for container in CONTAINERS.values():
            tx = gradtx.train_only(gradtx.sgd(1.0), container(mask) if mask["a"] else mask)
            moved = jax.tree.leaves(tx.update(params, tx.init(params), params)[0])
            trained = dict(zip(selection.paths(params), (bool(leaf.any()) for leaf in moved), strict=True))
            assert trained == expected


def test_a_mask_with_slashes_in_its_keys_and_one_that_does_not_fit():
    params = flax.core.FrozenDict({"mlp/~/linear_0": {"w": jnp.zeros(1)}, "mlp/~/linear_1": {"w": jnp.zeros(1)}})
    for mask in (
        {"mlp/~/linear_0": True, "mlp/~/linear_1": False},
        {"mlp": {"~": {"linear_0": True, "linear_1": False}}},
    ):
        assert flags(mask, params) == (True, False)
    for mask in ({"mlp": {"~": {"linear_0": True}}}, {"mlp": True, "other": False}, {"mlp": {"~": {"linear": True}}}):
        with pytest.raises(ValueError, match=r"gradtx\.someone: mask has the structure"):
            flags(mask, params)


def test_a_mask_made_of_a_model_works_in_its_optimizer():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    as_dict = {"bias": model.bias[...], "kernel": model.kernel[...]}
    for state in (nnx.state(model), nnx.state(model, nnx.Param), as_dict):
        mask = jax.tree.map(lambda leaf: leaf.ndim > 1, state)
        optimizer = nnx.Optimizer(model, gradtx.train_only(gradtx.sgd(1.0), mask), wrt=nnx.Param)
        bias, kernel = model.bias[...], model.kernel[...]
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 2)))))(model))
        assert (model.bias[...] == bias).all()
        assert (model.kernel[...] != kernel).all()


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
