"""Matrices of a leaf: dimension numbers in every form."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import MuonDimensionNumbers as Numbers
from tests.wrappers.runs import assert_close

SHAPES = {"conv": (2, 2, 3, 4), "layers": (9, 4, 6), "qkv": (4, 9), "heads": (4, 2, 3), "bias": (3,), "dense": (5, 3)}
PARAMS = {
    name: jnp.asarray(np.random.default_rng(index).normal(size=shape).astype(np.float32))
    for index, (name, shape) in enumerate(SHAPES.items())
}
NUMBERS = {
    "conv": Numbers((0, 1, 2), 3),
    "layers": Numbers(1, 2),
    "qkv": Numbers(0, 1, 3),
    "heads": Numbers(0, 2),
    "bias": None,
    "dense": Numbers(),
}
THEIRS = {name: one and optax.contrib.MuonDimensionNumbers(*one[:2]) for name, one in NUMBERS.items()}


def step(tx, params=PARAMS):
    return tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "numbers",
    [
        {f"*{name}": one for name, one in NUMBERS.items() if one} | {"*": None},
        lambda params: NUMBERS,
        lambda path, leaf: NUMBERS[path],
        {name: one for name, one in THEIRS.items() if name != "qkv"} | {"qkv": NUMBERS["qkv"]},
    ],
    ids=["patterns", "function of params", "function of path and leaf", "optax's"],
)
def test_every_way_to_write_them_is_the_tree(numbers):
    expected, state = step(gradtx.muon(0.1, muon_weight_dimension_numbers=NUMBERS))
    found, other = step(gradtx.muon(0.1, muon_weight_dimension_numbers=numbers))
    assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, state)
    assert_close(found, expected, 64)


def test_the_same_as_optax():
    """Where optax has them: no parts."""
    theirs = {name: one for name, one in THEIRS.items() if name != "qkv"}
    params = {name: leaf for name, leaf in PARAMS.items() if name != "qkv"}
    tx = optax.contrib.muon(0.1, muon_weight_dimension_numbers=theirs)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = tx.update(params, tx.init(params), params)
    found, _ = step(gradtx.muon(0.1, muon_weight_dimension_numbers=theirs), params)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, atol=1e-6, err_msg=name)


def test_a_prefix_and_one_for_all():
    params = {"body": {"a": PARAMS["layers"], "b": PARAMS["heads"]}}
    expected = gradtx.as_matrices(gradtx.scale_by_muon(), {"body": {"a": Numbers(1, 2), "b": Numbers(1, 2)}})
    for numbers in ({"body": Numbers(1, 2)}, Numbers(1, 2), Numbers(-2, -1)):
        found = gradtx.as_matrices(gradtx.scale_by_muon(), numbers)
        assert_close(step(found, params)[0], step(expected, params)[0], 64)


def test_fields_and_counts_are_those_of_each_matrix():
    """NorMuon has a number for each neuron of each matrix."""
    tx = gradtx.normuon(0.1, dimension_numbers=NUMBERS)
    _, state = step(tx)
    shapes = {
        name: leaf.shape
        for name, leaf in gradtx.find(state, "matrix/scale_by_neuron_rms/nu").items()
        if leaf is not None
    }
    assert shapes == {"conv": (4,), "layers": (9, 6), "qkv": (3, 3), "heads": (2, 3), "dense": (3,)}
    assert gradtx.state_bytes(tx, PARAMS) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.muon(0.1, muon_weight_dimension_numbers=NUMBERS),
        gradtx.by_shape(gradtx.scale_by_momentum(), gradtx.scale_by_rms(), {"*qkv": Numbers(0, 1, (4, 5)), "*": None}),
        gradtx.as_matrices(gradtx.ema(0.9), Numbers((0, 1), 2)),
    ],
    ids=lambda tx: tx.name,
)
def test_it_is_a_value(tx):
    for copy in (pickle.loads(pickle.dumps(tx)), gradtx.from_config(json.loads(json.dumps(tx.to_config())))):
        assert copy == tx
        assert hash(copy) == hash(tx)
    assert eval(repr(tx), dict(gradtx.registry) | {"MuonDimensionNumbers": Numbers}) == tx
