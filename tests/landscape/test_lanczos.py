"""Lanczos against NumPy's eigenvalues: both ends, whole spectra, multiplicities, and bounds that hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape.krylov import check_steps, krylov, random_unit

pytestmark = pytest.mark.usefixtures("x64")  # for those who ask; the operators here say what they are


def multiply(params, matrix, v):
    return jnp.matmul(matrix, v, precision="highest")


def operator_of(matrix, dtype=None):
    """One program for all matrices of a size."""
    matrix = jnp.asarray(matrix, dtype)
    return landscape.operator(multiply, jnp.zeros(len(matrix), matrix.dtype), matrix)


def symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    a = (q * eigenvalues) @ q.T
    return (a + a.T) / 2


def rounding(matrix, dtype):
    """Some roundings of the matrix's size."""
    return 64 * np.finfo(dtype).eps * np.linalg.norm(matrix, 2)


def test_both_ends_of_a_large_matrix_and_what_the_key_decides():
    a = np.random.default_rng(0).normal(size=(120, 120))
    matrix = (a + a.T) / 2
    ask = functools.partial(landscape.lanczos, operator_of(matrix), smallest=2, largest=3, steps=80)
    found, indices = ask(key=jax.random.key(1)), [0, 1, 117, 118, 119]
    exact, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(found.values, exact[indices], rtol=0, atol=1e-10)
    assert max(found.bounds.tolist()) < 1e-9
    for i, y, bound in zip(indices, np.asarray(found.vectors), np.asarray(found.bounds), strict=True):
        gap = np.min(np.abs(np.delete(exact, i) - exact[i]))
        assert np.linalg.norm(y - vectors[:, i] @ y * vectors[:, i]) <= 2 * bound / gap  # Davis and Kahan's sine
    assert ask(key=jax.random.PRNGKey(1)).vectors.tolist() == found.vectors.tolist() != ask().vectors.tolist()
    assert ask(key=jax.random.key(0)).vectors.tolist() == ask().vectors.tolist()


@pytest.mark.parametrize("start", ["in an invariant subspace", "at random"])
def test_the_basis_is_orthonormal_and_holds_the_operator(start):
    """Blocks of 4 and 36 that share an eigenvalue, with ends that converge at once: plain Lanczos would copy them."""
    blocks = symmetric([1.0, 2, 3, 4]), symmetric([*np.linspace(0, 1, 34), 100.0, 1000.0])
    matrix = np.block([[blocks[0], np.zeros((4, 36))], [np.zeros((36, 4)), blocks[1]]]).astype("float32")
    key, limit = jax.random.key(0), rounding(matrix, "float32")
    vector = random_unit(key, 40, "float32") if start == "at random" else jnp.arange(40) < 4
    found = orthogonal(operator_of(matrix), vector.astype("float32"), 40, key)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(40), atol=64 * np.finfo("float32").eps)
    np.testing.assert_allclose(found.basis @ matrix @ found.basis.T, found.matrix, atol=limit)
    np.testing.assert_allclose(np.linalg.eigvalsh(found.matrix), np.linalg.eigvalsh(matrix), atol=limit)
    assert found.defect < limit
    if start == "in an invariant subspace":  # left at random after four steps
        assert found.beta[3] == 0 != found.beta[2]
        assert not np.any(found.basis[:4, 4:])
    np.testing.assert_allclose(np.linalg.norm(random_unit(key, 40, "float32")), 1, rtol=1e-6)


orthogonal = jax.jit(krylov, static_argnums=2)


# Many at once: whole spectra, multiplicities, bounds ------------------------------------------------------------------

SIZE = 40
SPECTRA = {
    "uniform": lambda rng: rng.uniform(-1, 1, SIZE),
    "clustered": lambda rng: rng.choice([-2.0, 0, 1, 1.01, 5], SIZE) + 1e-3 * rng.normal(size=SIZE),
    "log-spaced": lambda rng: 10 ** rng.uniform(-6, 2, SIZE) * rng.choice([-1, 1], SIZE),
    "of low rank": lambda rng: np.concatenate([np.zeros(SIZE - 6), rng.normal(size=6)]),
    "with outliers": lambda rng: np.concatenate([rng.normal(size=SIZE - 2), rng.normal(size=2) * 1e3]),
}
RANDOM = {f"{name} {i}": symmetric(of(np.random.default_rng(i)), i) for name, of in SPECTRA.items() for i in range(4)}
SPECIAL = {
    "zero": np.zeros((SIZE, SIZE)),
    "a tenth": 0.1 * np.eye(SIZE),
    "repeated": np.diag(np.repeat([1.0, 2.0, -3.0, 2.0], 10)),
    "of ones": np.ones((SIZE, SIZE)),
    "of rank three": symmetric([0.0] * 37 + [1.0, 1.0, -4.0]),
    "near and far": np.diag([1.0, 1 + 1e-6, 1e6] + [0.0] * 37),
    "tiny": 1e-15 * symmetric(np.arange(40.0)),
    "huge": 1e15 * symmetric(np.arange(40.0)),
    "of two equal blocks": np.kron(np.eye(2), symmetric(np.arange(20.0))),
}
TURN = np.kron(np.eye(SIZE // 2), [[0.0, 1.0], [-1.0, 0.0]])  # eigenvalues i and -i
CROOKED = {f"{skew}": symmetric(np.linspace(-1, 1, SIZE)) + skew * TURN for skew in (1e-3, 1.0, 1e3)}
BROKEN = {f"{value}": np.where(np.eye(SIZE) * np.arange(SIZE) == 7, value, np.eye(SIZE)) for value in (np.nan, np.inf)}
EVERY = RANDOM | SPECIAL | CROOKED | BROKEN
KINDS = [("float32", 8), ("float64", SIZE)]


@functools.cache
def solved(dtype, steps):
    """By name: the matrix, as the dtype has it, and its pairs: all of them, or of few steps four."""
    each = 2 if steps == 8 else SIZE // 2

    def one(matrix, key):
        return landscape.lanczos(operator_of(matrix), smallest=each, largest=each, steps=steps, key=key)

    matrices = np.stack([*EVERY.values()]).astype(dtype)
    found = jax.jit(jax.vmap(one))(matrices, jax.random.split(jax.random.key(0), len(matrices)))
    assert {leaf.dtype for leaf in found} == {np.dtype(dtype)}
    return dict(zip(EVERY, zip(matrices.astype(float), *map(np.array, found)), strict=True))


def test_whole_spectra_with_multiplicities():
    for name in SPECIAL:
        matrix, values, bounds, vectors = solved("float64", SIZE)[name]
        limit = rounding(matrix, float)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=0, atol=limit, err_msg=name)
        assert (np.diff(values) >= 0).all(), name
        assert (bounds <= limit).all(), name
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(SIZE), atol=1e-14, err_msg=name)


@pytest.mark.parametrize(("dtype", "steps"), KINDS)
def test_the_bounds_hold_and_say_something_in_random_cases(dtype, steps):
    found, eps, ratios = solved(dtype, steps), np.finfo(dtype).eps, []
    for name in [*RANDOM, *SPECIAL]:
        matrix, values, bounds, vectors = found[name]
        wide = np.linalg.eigh(matrix)[1].astype(np.longdouble)  # Rayleigh quotients of these have all digits
        spectrum = np.sort(np.sum(wide * (matrix.astype(np.longdouble) @ wide), 0) / np.sum(wide**2, 0))
        size = np.linalg.norm(matrix, 2)
        assert (np.abs(values[:, None] - spectrum).min(axis=1) <= bounds).all(), name
        residuals = np.linalg.norm(matrix @ vectors.T - vectors.T * values, axis=0)
        assert (bounds <= residuals + 64 * eps * size).all(), name  # they are no wider than the vectors are wrong
        assert values.min() >= spectrum[0] - 8 * eps * size, name
        assert values.max() <= spectrum[-1] + 8 * eps * size, name
        ratios.append(np.median(bounds) / size if size else 0)
    if steps == SIZE:
        assert max(ratios) < 64 * eps
    else:
        assert np.median(ratios[: len(RANDOM)]) > 1e-4  # few steps: here the bounds are of the vectors, not of rounding


def test_the_bounds_are_wide_where_the_operator_is_not_symmetric_or_not_finite():
    for name in CROOKED:
        assert (solved("float32", 8)[name][2] > 0.5 * float(name)).all()
        assert (solved("float64", SIZE)[name][2] > 0.5 * float(name)).all()
    for name in BROKEN:
        assert all(np.isnan(part).all() for part in solved("float32", 8)[name][1:])


def test_the_bound_covers_what_a_product_in_bfloat16_rounds_away_each_time():
    def product(params, v):
        return (1.003 * v.astype("float32")).astype("bfloat16")  # is 1

    found = landscape.lanczos(landscape.operator(product, jnp.zeros(1, "bfloat16")), largest=0)
    assert 0 < abs(found.values.item() - 1.003) <= found.bounds.item() < 0.1


# What comes in and out ------------------------------------------------------------------------------------------------


def test_vectors_are_trees_like_the_params_with_an_axis_of_pairs():
    curvature = {"a": {"x": jnp.array(-2.0), "y": jnp.array([[1.0, 3.0]])}, "b": [jnp.array([7.0, 5.0]), None]}

    def loss(params):
        return sum(jnp.sum(c * w**2) / 2 for c, w in zip(jax.tree.leaves(curvature), jax.tree.leaves(params)))

    found = landscape.lanczos(landscape.hessian(loss, curvature), smallest=1, largest=2)
    np.testing.assert_allclose(found.values, [-2, 5, 7], rtol=1e-12)
    assert jax.tree.map(jnp.shape, found.vectors) == {"a": {"x": (3,), "y": (3, 1, 2)}, "b": [(3, 2), None]}
    np.testing.assert_allclose(np.abs(found.vectors["a"]["x"]), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(found.vectors["b"][0]), [[0, 0], [0, 1], [1, 0]], atol=1e-12)


def test_no_more_steps_than_params_and_64_of_many():
    few, many = (landscape.operator(multiply, jnp.zeros(n), jnp.zeros((n, n))) for n in (3, 500))
    assert [check_steps("", steps, few, 2) for steps in (None, 2, 1000)] == [3, 2, 3]
    assert [check_steps("", steps, many, 2) for steps in (None, 2, 1000)] == [64, 2, 500]
    assert check_steps("", None, many, 100) == 200
