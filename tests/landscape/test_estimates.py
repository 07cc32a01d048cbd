"""Hutchinson's sums and the density of eigenvalues: against exact numbers, with the errors they state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape.krylov import random_unit

N, PROBES, KEYS = 30, 30, 500


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def multiply(params, matrix, v):
    leaves, structure = jax.tree.flatten(v)
    vector = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    parts = jnp.split(jnp.matmul(matrix, vector, precision="highest"), [4, 10])
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)])


def operator_of(matrix):
    """An operator over a tree of 30 params, one program for all matrices."""
    params = {"a": {"x": jnp.zeros(4), "y": jnp.zeros((2, 3))}, "b": jnp.zeros((1, 20, 1))}
    return landscape.operator(multiply, params, jnp.asarray(matrix))


def scale(params, factors, v):
    return (factors * v.astype("float32")).astype(v.dtype)


def diagonal_of(factors, dtype="float32"):
    factors = jnp.asarray(factors, "float32")
    return landscape.operator(scale, jnp.zeros(len(factors), dtype), factors)


def symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    a = (q * eigenvalues) @ q.T
    return (a + a.T) / 2


def flat(tree, axis=0):
    return np.concatenate([np.reshape(leaf, (*leaf.shape[:axis], -1)) for leaf in jax.tree.leaves(tree)], axis=-1)


RNG = np.random.default_rng(0)
MATRICES = {
    "uniform": symmetric(RNG.uniform(-1, 1, N)),
    "positive": symmetric(RNG.uniform(0, 5, N)),
    "log-spaced": symmetric(10 ** RNG.uniform(-3, 1, N)),
    "sparse": np.diag(RNG.normal(size=N)) + np.diag(np.ones(N - 1), 1) + np.diag(np.ones(N - 1), -1),
    "of rank one": symmetric([0.0] * (N - 1) + [3.0]),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def repeated(ask, probes, matrix):
    """The value and the standard error with 500 keys."""
    keys = jax.random.split(jax.random.key(7), KEYS)
    return jax.lax.map(lambda key: ask(operator_of(matrix), probes=probes, key=key)[:2], keys, batch_size=100)


# Sums -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_the_trace_lies_within_three_standard_errors(name):
    matrix = MATRICES[name]
    values, errors = map(np.asarray, repeated(landscape.trace, PROBES, matrix))
    variance = 2 * np.sum((matrix - np.diag(np.diag(matrix))) ** 2) / PROBES
    often = 0.96 if name == "of rank one" else 0.99
    assert np.mean(np.abs(values - np.trace(matrix)) <= 3 * errors) >= often
    assert abs(values.mean() - np.trace(matrix)) < 4 * np.sqrt(variance / KEYS)
    assert values.var() == pytest.approx(variance, rel=0.3)
    assert np.mean(errors**2) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("name", MATRICES)
def test_the_diagonal_lies_within_three_standard_errors(name):
    matrix = MATRICES[name]
    values, errors = (flat(tree, axis=1) for tree in repeated(landscape.diagonal, PROBES, matrix))
    exact, rows = np.diag(matrix), np.sum((matrix - np.diag(np.diag(matrix))) ** 2, axis=1)
    assert values.shape == errors.shape == (KEYS, N)
    assert np.mean(np.abs(values - exact) <= 3 * errors) >= 0.99
    assert (np.abs(values.mean(axis=0) - exact) < 5 * np.sqrt(rows / PROBES / KEYS)).all()
    np.testing.assert_allclose(values.var(axis=0), rows / PROBES, rtol=0.35)
    np.testing.assert_allclose(np.mean(errors**2, axis=0), rows / PROBES, rtol=0.1)


def test_the_standard_error_shrinks_with_the_root_of_the_probes():
    operator, (_, few) = operator_of(MATRICES["uniform"]), repeated(landscape.trace, PROBES, MATRICES["uniform"])
    many = [landscape.trace(operator, key=jax.random.key(i)).standard_error for i in range(20)]
    assert np.mean(few) / np.mean(many) == pytest.approx(np.sqrt(64 / PROBES), rel=0.05)


def test_the_same_key_gives_the_same_estimate():
    ask = functools.partial(landscape.trace, operator_of(MATRICES["uniform"]))
    first = ask()
    assert first.probes == 64
    assert first == ask(key=jax.random.key(0)) != ask(key=jax.random.key(1))


FACTORS = {
    "zero": [],
    "tenths": [0.1] * 1000,
    "normal": RNG.normal(size=1000) * 1e3,
    "cancelling": [1e8, 1.0, -1e8],
    "far apart": [-1.0, 1e-15, 1e15],
}


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_a_diagonal_operator_nothing_is_uncertain_but_rounding(factors, dtype):
    factors = np.pad(np.float32(factors), (0, 1000 - len(factors)))
    operator, factors, eps = diagonal_of(factors, dtype), factors.astype(float), float(jnp.finfo(dtype).eps)
    total, each = landscape.trace(operator, probes=2), landscape.diagonal(operator, probes=2)
    assert total.value.dtype == each.value.dtype == each.standard_error.dtype == "float32"
    assert abs(float(total.value) - factors.sum()) <= 3 * float(total.standard_error)
    assert float(total.standard_error) <= 16 * eps * np.abs(factors).sum()
    assert (np.abs(np.asarray(each.value, float) - factors) <= 3 * np.asarray(each.standard_error, float)).all()
    assert (np.asarray(each.standard_error) <= 16 * eps * np.abs(factors)).all()


def test_a_diagonal_is_a_tree_like_the_params():
    params = {"a": [jnp.ones((2, 3), "bfloat16"), None], "b": jnp.array(1.0, "float64"), "c": jnp.ones(2, "float32")}
    operator = landscape.hessian(lambda w: sum(jnp.sum(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(w)), params)
    found = landscape.diagonal(operator, probes=3)
    for tree in (found.value, found.standard_error):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        assert [leaf.shape for leaf in jax.tree.leaves(tree)] == [(2, 3), (), (2,)]
        assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == ["float32", "float64", "float32"]
    assert flat(found.value).tolist() == [2.0] * 9


def test_nan_in_the_operator_is_nan_in_the_estimates():
    broken = MATRICES["uniform"] * np.where(np.arange(N) == 3, np.nan, 1)
    assert np.isnan(landscape.trace(operator_of(broken))[:2]).all()
    assert np.isnan(np.array(landscape.spectral_density(operator_of(broken), probes=3, steps=5).nodes)).any()


# The density of eigenvalues -------------------------------------------------------------------------------------------


def moments(found, powers):
    """Of each probe: sum of weight node^k."""
    return np.stack([np.sum(found.weights * found.nodes**k, axis=1) for k in powers], axis=1)


@pytest.mark.parametrize("name", ["uniform", "log-spaced", "sparse"])
def test_the_quadrature_of_each_probe_is_exact_up_to_its_degree(name):
    matrix, steps, key = MATRICES[name] / np.linalg.norm(MATRICES[name], 2), 5, jax.random.key(2)
    found = landscape.spectral_density(operator_of(matrix), probes=3, steps=steps, key=key)
    assert found.nodes.shape == found.weights.shape == (3, steps)
    assert found.size == N
    starts = np.stack([random_unit(k, N, "float64") for k in jax.random.split(key, 3)])
    exact = [[v @ np.linalg.matrix_power(matrix, k) @ v for k in range(2 * steps + 1)] for v in starts]
    errors = np.abs(moments(found, range(2 * steps + 1)) - exact)
    assert errors[:, : 2 * steps].max() < 1e-14
    assert errors[:, 2 * steps].min() > 1e-10


@pytest.mark.parametrize("name", MATRICES)
def test_the_moments_are_on_average_those_of_the_eigenvalues(name):
    eigenvalues = np.linalg.eigvalsh(MATRICES[name])
    found = landscape.spectral_density(operator_of(MATRICES[name]), probes=400, steps=5)
    each = moments(found, range(6))
    exact = [np.mean(eigenvalues**k) for k in range(6)]
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    assert (np.abs(each.mean(axis=0) - exact) <= 4 * error + 1e-12).all()
    assert (error[1:] < 0.1 * np.mean(np.abs(eigenvalues[:, None]) ** np.arange(1, 6), axis=0) + 1e-12).all()


def test_where_the_space_is_exhausted_the_quadrature_is_exact():
    projection = symmetric([0.0] * 20 + [2.0] * 10)
    found = landscape.spectral_density(operator_of(projection), probes=400, steps=5)
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
    on_two = np.sum(np.where(np.abs(found.nodes - 2) < 1e-9, found.weights, 0), axis=1)
    on_zero = np.sum(np.where(np.abs(found.nodes) < 1e-9, found.weights, 0), axis=1)
    np.testing.assert_allclose(on_two + on_zero, 1, rtol=1e-12)
    assert on_two.mean() == pytest.approx(1 / 3, abs=4 * on_two.std() / 20)


@pytest.fixture(scope="module")
def spiked():
    """A semicircle and two eigenvalues beside it, of 300."""
    with jax.enable_x64(True):
        noise = np.random.default_rng(0).normal(size=(300, 300))
        matrix = (noise + noise.T) / np.sqrt(8 * 300)
        matrix[0, 0], matrix[1, 1] = 4, -3
        operator = landscape.operator(lambda w, a, v: a @ v, jnp.zeros(300), jnp.asarray(matrix))
        return np.linalg.eigvalsh(matrix), landscape.spectral_density(operator, probes=40, steps=60)


def test_the_density_is_that_of_the_eigenvalues_spread_as_much(spiked):
    eigenvalues, found = spiked
    points, width = np.linspace(-4.5, 5.5, 1001), 0.1
    exact = np.mean(np.exp(-(((points[:, None] - eigenvalues) / width) ** 2) / 2), axis=1) / width / np.sqrt(2 * np.pi)
    density = np.asarray(found.density(points, width=width))
    assert np.sum(density) * 0.01 == pytest.approx(1, abs=1e-9)
    assert np.sum(np.abs(density - exact)) * 0.01 < 0.03
    for place in (4, -3):  # one eigenvalue each
        near = np.abs(points - place) < 0.5
        assert np.sum(density[near]) * 0.01 * 300 == pytest.approx(1, abs=0.5)


def test_points_of_any_shape_and_widths_of_any_kind(spiked):
    _, found = spiked
    points = np.linspace(-1, 1, 6)
    density = found.density(points)
    assert found.width == pytest.approx(float(np.ptp(found.nodes)) / 100)
    assert density.shape == (6,)
    assert density.dtype == found.nodes.dtype
    np.testing.assert_allclose(np.ravel(found.density(points.reshape(2, 3, 1))), density, rtol=1e-12)
    assert found.density(points[0].item(), np.float32(found.width)).shape == ()
    assert found.density([*points], 1).tolist() == found.density(points, np.float64(1)).tolist()


def test_one_eigenvalue_has_a_width_above_zero():
    for factor, nodes in ((0.0, [0.0]), (3.0, [3.0])):
        found = landscape.spectral_density(diagonal_of([factor]), probes=2)
        assert found.nodes.dtype == "float32"
        np.testing.assert_allclose(found.nodes, [nodes, nodes], rtol=1e-6)
        assert found.width > 0
        assert np.isfinite(found.density([0.0, factor])).all()
