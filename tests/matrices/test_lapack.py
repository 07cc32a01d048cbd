"""Decompositions of batches: the same results, by calls for one matrix each, which cannot wait for one another."""

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
    "galore": gradtx.galore(0.1, 2, weight_dimension_numbers=LAYERS),
}
NAMES = {"eigh": "syevd", "qr": "geqrf", "svd": "gesdd"}


@pytest.fixture(scope="module")
def batch():
    draws = np.random.default_rng(0).normal(size=(2, 3, 5, 5))
    return jnp.asarray(draws + np.swapaxes(draws, -1, -2), jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_decomposed_matrix_by_matrix(name, batch):
    own = getattr(lapack, name)
    many = jax.jit(jax.vmap(jax.vmap(own)))
    for made, alone in zip(jax.tree.leaves(many(batch)), jax.tree.leaves(own(batch[1, 2])), strict=True):
        np.testing.assert_allclose(made[1, 2], alone, rtol=1e-5, atol=1e-5)
    if jax.default_backend() == "cpu":  # a call for a batch may wait for ever
        text = many.lower(batch).as_text()
        calls = re.findall(rf"custom_call @lapack_\w{NAMES[name]}_ffi\((?:.|\n)*?: \((tensor<[^>]*>)", text)
        assert calls
        assert set(calls) == {"tensor<5x5xf32>"}


@pytest.mark.parametrize("way", [jnp.asarray, lambda q: jnp.stack([q, 2 * q])], ids=["one", "batch"])
def test_a_triangle_divides(batch, way):
    """As its inverse does, in value and derivatives; what is below the diagonal does not matter."""
    x, q = batch[0, 0, :, :3], way(batch[0, 0] / 8 + jnp.eye(5))

    def ours(q, x):
        each = lapack.divided_by_transpose
        return jnp.sum(jnp.sin(jax.vmap(each, (0, None))(q, x) if q.ndim > 2 else each(q, x)))

    def inverse(q, x):
        return jnp.sum(jnp.sin(jnp.linalg.inv(jnp.swapaxes(jnp.triu(q), -1, -2)) @ (x[None] if q.ndim > 2 else x)))

    for argument in (0, 1):
        made, right = (jax.value_and_grad(f, argument)(q, x) for f in (ours, inverse))
        for a, b in zip(made, right, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_decompositions_are_those_they_are_called(batch):
    a = np.float64(batch[0, 0])
    values, vectors = map(np.float64, lapack.eigh(batch[0, 0]))
    np.testing.assert_allclose(a @ vectors, vectors * values, atol=1e-5)
    assert (np.diff(values) > 0).all()
    wide = a[:3]
    left, sizes, right = map(np.float64, lapack.svd(jnp.float32(wide)))
    assert (left.shape, right.shape) == ((3, 3), (3, 5))
    np.testing.assert_allclose(left * sizes @ right, wide, atol=1e-5)
    q = np.float64(lapack.qr(batch[0, 0]))
    np.testing.assert_allclose(q.T @ q, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.tril(q.T @ a, -1), 0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_methods_decompose_one_matrix_at_a_time(name):
    tx, params = METHODS[name], {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3)), "layers": jnp.ones((2, 4, 3))}
    step = jax.jit(jax.vmap(lambda rate: tx.replace(learning_rate=rate).update(params, tx.init(params), params)))
    text = step.lower(jnp.array([0.1, 0.2])).as_text()
    calls = re.findall(r"custom_call @lapack_\w+_ffi\((?:.|\n)*?: \(tensor<([\dx]+)xf32>", text)
    assert calls
    assert all(shape.count("x") == 1 for shape in calls)
