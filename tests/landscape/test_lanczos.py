"""Lanczos against NumPy's eigenvalues: both ends, whole spectra, multiplicities, and bounds that hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape import functions
from gradtx.landscape.krylov import check_steps, krylov, random_unit

DTYPES = ["float32", "float64"]


@pytest.fixture(autouse=True)
def wide():
    """Float64 is there for those who ask; the operators here say what they are."""
    with jax.enable_x64(True):
        yield


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


def assert_pairs(found, matrix, indices, atol):
    """The pairs are those of NumPy, to a tolerance; the vectors as far as the gap to the next eigenvalue lets them."""
    eigenvalues, eigenvectors = np.linalg.eigh(np.asarray(matrix, float))
    values, bounds, vectors = (np.asarray(array, float) for array in found)
    np.testing.assert_allclose(values, eigenvalues[indices], rtol=0, atol=atol)
    residuals = np.linalg.norm(matrix @ vectors.T - vectors.T * values, axis=0)
    assert (residuals <= bounds).all()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=atol)
    for i, y, bound in zip(indices, vectors, bounds):
        gap = np.min(np.abs(np.delete(eigenvalues, i) - eigenvalues[i]))
        u = eigenvectors[:, i]
        assert np.linalg.norm(y - u @ y * u) <= 2 * bound / gap  # Davis and Kahan's sine


# Against NumPy --------------------------------------------------------------------------------------------------------


@functools.cache
def large(dtype):
    """The matrix, as the dtype has it, and its operator."""
    a = np.random.default_rng(0).normal(size=(500, 500)).astype(dtype)
    a = (a + a.T) / 2
    return a.astype(float), operator_of(a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ends_of_a_large_matrix(dtype):
    matrix, operator = large(dtype)
    found = landscape.lanczos(operator, smallest=4, largest=3, steps=180, key=jax.random.key(1))
    assert found.values.dtype == found.bounds.dtype == found.vectors.dtype == dtype
    assert_pairs(found, matrix, [0, 1, 2, 3, 497, 498, 499], rounding(matrix, dtype))
    assert max(found.bounds.tolist()) < rounding(matrix, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_whole_spectrum_of_a_large_matrix_and_of_a_degenerate_one(dtype):
    matrix, operator = large(dtype)
    whole = functools.partial(landscape.lanczos, smallest=250, largest=250, steps=500)
    assert_pairs(whole(operator), matrix, range(500), rounding(matrix, dtype))
    matrix = symmetric(np.repeat([-3.0, 1, 2, 2, 5], 100)).astype(dtype)
    found = whole(operator_of(matrix))
    exact, limit = np.linalg.eigvalsh(matrix.astype(float)), rounding(matrix, dtype)
    np.testing.assert_allclose(found.values, exact, rtol=0, atol=limit)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(500), atol=limit)
    assert max(found.bounds.tolist()) < limit


@pytest.mark.parametrize("value", [3.0, -3.0, 0.0])
def test_a_matrix_of_one_number(value):
    found = landscape.lanczos(operator_of([[value]]), largest=0)
    assert found.values.tolist() == [value]
    assert found.bounds[0] <= 1e-14
    assert abs(found.vectors.item()) == 1


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


orthogonal = jax.jit(krylov, static_argnums=2)


# Many at once: whole spectra, multiplicities, bounds ------------------------------------------------------------------

SIZE, CASES = 40, 20
SPECTRA = {
    "uniform": lambda rng: rng.uniform(-1, 1, SIZE),
    "clustered": lambda rng: rng.choice([-2.0, 0, 1, 1.01, 5], SIZE) + 1e-3 * rng.normal(size=SIZE),
    "log-spaced": lambda rng: 10 ** rng.uniform(-6, 2, SIZE) * rng.choice([-1, 1], SIZE),
    "of low rank": lambda rng: np.concatenate([np.zeros(SIZE - 6), rng.normal(size=6)]),
    "with outliers": lambda rng: np.concatenate([rng.normal(size=SIZE - 2), rng.normal(size=2) * 1e3]),
}
RANDOM = {
    f"{name} {i}": symmetric(spectrum(np.random.default_rng(i)), i)
    for name, spectrum in SPECTRA.items()
    for i in range(CASES)
}
SPECIAL = {
    "zero": np.zeros((SIZE, SIZE)),
    "identity": np.eye(SIZE),
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


@functools.partial(jax.jit, static_argnums=(2, 3))
def of_many(matrices, keys, each, steps):
    def one(matrix, key):
        return landscape.lanczos(operator_of(matrix), smallest=each, largest=each, steps=steps, key=key)

    return jax.vmap(one)(matrices, keys)


@functools.cache
def solved(dtype, each, steps):
    """By name: the matrix, as the dtype has it, and its pairs."""
    matrices = np.stack(list(EVERY.values())).astype(dtype)
    found = of_many(matrices, jax.random.split(jax.random.key(0), len(matrices)), each, steps)
    return {
        name: (matrix.astype(float), *pairs) for name, matrix, *pairs in zip(EVERY, matrices, *map(np.array, found))
    }


def spectrum_of(matrix):
    """NumPy's eigenvalues are wrong by some roundings; Rayleigh quotients of its vectors, in long doubles, are not."""
    vectors = np.linalg.eigh(matrix)[1].astype(np.longdouble)
    quotients = np.sum(vectors * (matrix.astype(np.longdouble) @ vectors), axis=0) / np.sum(vectors**2, axis=0)
    return np.sort(quotients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECIAL)
def test_whole_spectra_with_multiplicities(name, dtype):
    matrix, values, bounds, vectors = solved(dtype, SIZE // 2, SIZE)[name]
    limit = rounding(matrix, dtype)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=0, atol=limit)
    assert (np.diff(values) >= 0).all()
    assert (bounds <= limit).all()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(SIZE), atol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("steps", [8, SIZE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bounds_hold_and_say_something_in_random_cases(dtype, steps):
    """100 with each precision."""
    found, eps, ratios = solved(dtype, 2 if steps == 8 else SIZE // 2, steps), np.finfo(dtype).eps, []
    for name in [*RANDOM, *SPECIAL]:
        matrix, values, bounds, vectors = found[name]
        spectrum, size = spectrum_of(matrix), np.linalg.norm(matrix, 2)
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


@pytest.mark.parametrize("steps", [8, SIZE])
@pytest.mark.parametrize("name", CROOKED)
def test_the_bounds_are_wide_where_the_operator_is_not_symmetric(name, steps):
    _, _, bounds, _ = solved("float64", 2 if steps == 8 else SIZE // 2, steps)[name]
    assert (bounds > 0.5 * float(name)).all()


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_finite_is_nan(name):
    _, values, bounds, vectors = solved("float32", 2, 8)[name]
    assert np.isnan(values).all()
    assert np.isnan(bounds).all()
    assert np.isnan(vectors).all()


def test_the_bounds_hold_for_products_rounded_to_float32():
    function = functions.rosenbrock.replace(dimension=30)
    exact = np.linalg.eigvalsh(jax.jit(jax.hessian(function))(jnp.asarray(function.start)))
    found = landscape.lanczos(landscape.hessian(function, jnp.asarray(function.start, jnp.float32)), steps=30)
    assert (np.abs(np.asarray(found.values, float)[:, None] - exact).min(axis=1) <= np.array(found.bounds)).all()
    assert max(found.bounds.tolist()) < 1e-4 * np.abs(exact).max()


def rounded(params, matrix, v):
    wide = jnp.concatenate([leaf.astype(matrix.dtype) for leaf in v])
    return [part.astype(leaf.dtype) for part, leaf in zip(jnp.split(matrix @ wide, [30]), v)]


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float64")], ids=" and ".join)
def test_the_bounds_hold_for_products_rounded_in_some_leaves(dtypes):
    params = [jnp.zeros(30, dtypes[0]), jnp.zeros(SIZE - 30, dtypes[1])]
    for name, matrix in RANDOM.items():
        if name.endswith("1"):
            operator = landscape.operator(rounded, params, jnp.asarray(matrix))
            found = landscape.lanczos(operator, smallest=2, largest=2, steps=20)
            assert [leaf.dtype for leaf in found.vectors] == list(dtypes)
            errors = np.abs(np.asarray(found.values, float)[:, None] - np.linalg.eigvalsh(matrix)).min(axis=1)
            assert (errors <= np.array(found.bounds)).all(), name


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

    operator = landscape.hessian(loss, jax.tree.map(jnp.ones_like, curvature))
    found = landscape.lanczos(operator, smallest=1, largest=2)
    np.testing.assert_allclose(found.values, [-2, 5, 7], rtol=1e-12)
    assert jax.tree.map(jnp.shape, found.vectors) == {"a": {"x": (3,), "y": (3, 1, 2)}, "b": [(3, 2), None]}
    np.testing.assert_allclose(np.abs(found.vectors["a"]["x"]), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(found.vectors["b"][0]), [[0, 0], [0, 1], [1, 0]], atol=1e-12)
    for i in range(3):
        y = jax.tree.map(lambda leaf, i=i: leaf[i], found.vectors)
        for one, other in zip(jax.tree.leaves(operator @ y), jax.tree.leaves(y)):
            np.testing.assert_allclose(one, found.values[i] * other, atol=1e-12)


def test_the_key_decides_and_nothing_else():
    ask = functools.partial(landscape.lanczos, large("float64")[1], smallest=4, largest=3, steps=180)
    first, again, other, legacy = ask(), ask(key=jax.random.key(0)), ask(key=jax.random.key(1)), jax.random.PRNGKey(1)
    assert first.vectors.tolist() == again.vectors.tolist() != other.vectors.tolist()
    assert ask(key=legacy).vectors.tolist() == other.vectors.tolist()


def test_no_more_steps_than_params_and_64_of_many():
    few, many = (landscape.operator(multiply, jnp.zeros(n), jnp.zeros((n, n))) for n in (3, 500))
    assert [check_steps("", steps, few, 2) for steps in (None, 2, 1000)] == [3, 2, 3]
    assert [check_steps("", steps, many, 2) for steps in (None, 2, 1000)] == [64, 2, 500]
    assert check_steps("", None, many, 100) == 200
