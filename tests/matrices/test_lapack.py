"""No batch of matrices reaches LAPACK on a processor: in jaxlib 0.10 two at once wait for each other for ever."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import MuonDimensionNumbers
from gradtx.matrices import lapack

LAYERS = {"layers": MuonDimensionNumbers(1, 2), "*": MuonDimensionNumbers()}
METHODS = {
    "soap": gradtx.soap(0.1, dimension_numbers=LAYERS),
    "kl_shampoo": gradtx.kl_shampoo(0.1, dimension_numbers=LAYERS),
    "shampoo": gradtx.shampoo(0.1, dimension_numbers=LAYERS),
    "kron": gradtx.kron(0.1, dimension_numbers=LAYERS),
    "galore": gradtx.galore(0.1, 2, weight_dimension_numbers=LAYERS),
    "apollo": gradtx.apollo(0.1, 2, proj="svd"),
}


def calls(function, *args) -> list[str]:
    """The shapes of what LAPACK is called with."""
    return re.findall(r"custom_call @lapack_.*\(tensor<([\dx]+)xf32>", jax.jit(function).lower(*args).as_text())


@pytest.mark.parametrize("name", METHODS)
def test_matrices_are_decomposed_one_by_one(name):
    tx, params = METHODS[name], {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3)), "layers": jnp.ones((2, 4, 3))}
    params = params if name != "apollo" else {name: params[name] for name in "ab"}
    found = calls(tx.update, params, tx.init(params), params)
    assert all(shape.count("x") == 1 for shape in found)
    assert bool(found) == (name != "kron")
    rates = jnp.array([0.1, 0.2])
    found = calls(jax.vmap(lambda rate: tx.replace(learning_rate=rate).update(params, tx.init(params), params)), rates)
    assert all(shape.count("x") == 1 for shape in found)


@pytest.mark.parametrize("name", ["eigh", "orthonormal", "svd"])
def test_a_batch_is_what_each_matrix_is(name):
    function = getattr(lapack, name)
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 4)), jnp.float32)
    batch = batch + batch.mT
    made = jax.tree.leaves(jax.vmap(jax.vmap(function))(batch))
    for i, j in np.ndindex(2, 3):
        for together, alone in zip(made, jax.tree.leaves(function(batch[i, j])), strict=True):
            np.testing.assert_allclose(together[i, j], alone, atol=1e-5)
