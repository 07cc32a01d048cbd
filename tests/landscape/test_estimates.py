"""Hutchinson's sums and the density of eigenvalues: against the same sums in NumPy, and exact numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape.krylov import random_unit

N = 30
pytestmark = pytest.mark.usefixtures("x64")


def multiply(params, matrix, v):
    leaves, structure = jax.tree.flatten(v)
    vector = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    parts = jnp.split(jnp.matmul(matrix, vector, precision="highest"), [4, 10])
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)])


def operator_of(matrix):
    """An operator over a tree of 30 params, one program for all matrices."""
    params = {"a": {"x": jnp.zeros(4), "y": jnp.zeros((2, 3))}, "b": jnp.zeros((1, 20, 1))}
    return landscape.operator(multiply, params, jnp.asarray(matrix))


def symmetric(eigenvalues):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues), len(eigenvalues))))
    return (q * eigenvalues) @ q.T


def flat(tree, axis=0):
    return np.concatenate([np.reshape(leaf, (*leaf.shape[:axis], -1)) for leaf in jax.tree.leaves(tree)], axis=-1)


RNG = np.random.default_rng(0)
MATRICES = {
    "uniform": symmetric(RNG.uniform(-1, 1, N)),
    "log-spaced": symmetric(10 ** RNG.uniform(-3, 1, N)),
    "sparse": np.diag(RNG.normal(size=N)) + np.diag(np.ones(N - 1), 1) + np.diag(np.ones(N - 1), -1),
    "of rank one": symmetric([0.0] * (N - 1) + [3.0]),
}

# Sums -----------------------------------------------------------------------------------------------------------------


def test_the_trace_and_the_diagonal_are_means_over_random_signs():
    for matrix in MATRICES.values():
        for key in (None, jax.random.key(5)):
            keys = jax.random.split(jax.random.key(0) if key is None else key, 7)
            signs = np.stack([jax.random.rademacher(k, (N,), float) for k in keys])
            products = signs * (signs @ matrix)
            each = landscape.diagonal(operator_of(matrix), probes=7, key=key)
            total = landscape.trace(operator_of(matrix), probes=7, key=key)
            assert each.probes == total.probes == 7
            assert jax.tree.map(jnp.shape, each.value) == {"a": {"x": (4,), "y": (2, 3)}, "b": (1, 20, 1)}
            for found, x in ((each, products), (total, products.sum(axis=1))):
                error = x.std(axis=0, ddof=1) / np.sqrt(7)
                np.testing.assert_allclose(flat(found.value), np.ravel(x.mean(axis=0)), rtol=1e-12, atol=1e-14)
                np.testing.assert_allclose(flat(found.standard_error), np.ravel(error), rtol=1e-9, atol=1e-13)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MATRICES)
def test_the_exact_numbers_lie_within_three_standard_errors(name):
    matrix, keys = MATRICES[name], jax.random.split(jax.random.key(7), 500)
    for ask, exact in ((landscape.trace, np.trace(matrix)), (landscape.diagonal, np.diag(matrix))):
        run = jax.jit(jax.vmap(lambda key, ask=ask: ask(operator_of(matrix), probes=30, key=key)[:2]))
        values, errors = (flat(tree, axis=1) if ask is landscape.diagonal else tree for tree in run(keys))
        assert np.mean(np.abs(values - exact) <= 3 * errors) >= (0.96 if name == "of rank one" else 0.99)


FACTORS = {"tenths": [0.1] * 1000, "cancelling": [1e8, 1.0, -1e8], "far apart": [-1.0, 1e-15, 1e15]}


@pytest.mark.parametrize(("dtype", "ask"), [("float32", landscape.trace), ("bfloat16", landscape.diagonal)])
def test_of_a_diagonal_operator_nothing_is_uncertain_but_rounding(dtype, ask):
    def scale(params, factors, v):
        return (factors * v.astype("float32")).astype(v.dtype)

    for factors in FACTORS.values():
        factors = np.pad(np.float32(factors), (0, 1000 - len(factors)))
        found = ask(landscape.operator(scale, jnp.zeros(1000, dtype), factors))
        factors, eps = factors.astype(float), float(jnp.finfo(dtype).eps)
        exact, size = (
            (factors, np.abs(factors)) if ask is landscape.diagonal else (factors.sum(), np.abs(factors).sum())
        )
        assert found.value.dtype == found.standard_error.dtype == "float32"
        assert found.probes == 64
        error = np.asarray(found.standard_error, float)
        assert (np.abs(np.asarray(found.value, float) - exact) <= 3 * error).all()
        assert (error <= 16 * eps * size).all()
        assert (
            error >= 3.9 * eps * np.linalg.norm(factors) if ask is landscape.trace else error >= 3.9 * eps * size
        ).all()


def test_a_diagonal_is_a_tree_like_the_params():
    params = {"a": [jnp.ones((2, 3), "bfloat16"), None], "b": jnp.array(1.0, "float64"), "c": jnp.ones(2, "float32")}
    operator = landscape.hessian(lambda w: sum(jnp.sum(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(w)), params)
    found = landscape.diagonal(operator, probes=3)
    for tree in (found.value, found.standard_error):
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params)
        assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == ["float32", "float64", "float32"]
    assert flat(found.value).tolist() == [2.0] * 9


# The density of eigenvalues -------------------------------------------------------------------------------------------


def test_the_quadrature_of_each_probe_is_exact_up_to_its_degree():
    steps, key = 5, jax.random.key(2)
    for name in ("uniform", "log-spaced", "sparse"):
        matrix = MATRICES[name] / np.linalg.norm(MATRICES[name], 2)
        found = landscape.spectral_density(operator_of(matrix), probes=3, steps=steps, key=key)
        assert (found.nodes.shape, found.weights.shape, found.size) == ((3, steps), (3, steps), N)
        starts = np.stack([random_unit(k, N, "float64") for k in jax.random.split(key, 3)])
        exact = [[v @ np.linalg.matrix_power(matrix, k) @ v for k in range(2 * steps + 1)] for v in starts]
        nodes, weights = np.asarray(found.nodes), np.asarray(found.weights)
        moments = np.stack([np.sum(weights * nodes**k, axis=1) for k in range(2 * steps + 1)], axis=1)
        errors = np.abs(moments - exact)
        assert errors[:, : 2 * steps].max() < 1e-14
        assert errors[:, 2 * steps].min() > 1e-10
    broken = MATRICES["uniform"] * np.where(np.arange(N) == 3, np.nan, 1)
    assert np.isnan(landscape.spectral_density(operator_of(broken), probes=3, steps=steps).nodes).any()


def test_where_the_space_is_exhausted_the_quadrature_is_exact():
    found = landscape.spectral_density(operator_of(symmetric([0.0] * 20 + [2.0] * 10)), probes=3, steps=5)
    nodes, weights = np.asarray(found.nodes), np.asarray(found.weights)
    assert (weights >= 0).all()
    np.testing.assert_allclose(np.sum(np.where(np.minimum(abs(nodes), abs(nodes - 2)) < 1e-9, weights, 0), 1), 1)
    for k, own in zip(jax.random.split(jax.random.key(0), 3), np.sum(np.where(nodes > 1, weights, 0), axis=1)):
        v = np.asarray(random_unit(k, N, "float64"))
        assert own == pytest.approx(v @ symmetric([0.0] * 20 + [1.0] * 10) @ v)
    found = jax.eval_shape(lambda matrix: landscape.spectral_density(operator_of(matrix))[:2], np.eye(N))
    assert [part.shape for part in found] == [(8, N), (8, N)]  # as many steps as params, if nobody says


def test_the_density_spreads_each_node():
    nodes, weights = np.array([[-1.0, 3.0], [0.0, 2.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    found = landscape.SpectralDensity(jnp.asarray(nodes, "float32"), jnp.asarray(weights, "float32"), 10)
    assert found.width == pytest.approx(0.04)
    points = np.array([[-1.02, 0.5, 2.9]])

    def exact(width):
        curves = np.exp(-(((points[..., None] - nodes.ravel()) / width) ** 2) / 2) / width / np.sqrt(2 * np.pi)
        return (curves @ weights.ravel()) / 2

    for width in (None, 0.04, np.float32(0.5), 1):
        density = found.density(points, width)
        assert density.dtype == "float32"
        np.testing.assert_allclose(density, exact(0.04 if width is None else float(width)), rtol=1e-4, atol=1e-6)
    assert found.density(0.5).shape == ()
    for value, width in ((0.0, 1e-30), (3.0, 3e-6), (-3.0, 3e-6)):
        one = found._replace(nodes=jnp.full((2, 2), value, "float32"))
        assert one.width == pytest.approx(width)
        assert np.isfinite(one.density([0.0, value])).all()
