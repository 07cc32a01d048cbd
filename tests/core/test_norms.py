"""Norms and their slopes, where squares are too large or too small for the dtype as well as elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import tree


def ways(function):
    """As it is, compiled, and mapped."""
    return function, jax.jit(function), lambda x: jax.tree.map(lambda y: y[0], jax.vmap(function)(x[None]))


@pytest.mark.parametrize("exponent", [-37, -30, -25, -21, -20, -18, -17, -16, -15, -10, 0, 10, 17, 19, 20, 30, 37, 38])
def test_norms_and_their_slopes_are_right_wherever_the_numbers_are(exponent):
    x = jnp.array(np.float32([1.3, -0.7]) * np.float32(10.0**exponent))
    length = np.linalg.norm(np.float64(x))
    for norm, slope in zip(ways(gradtx.global_norm), ways(jax.grad(gradtx.global_norm)), strict=True):
        np.testing.assert_allclose(norm(x), length, rtol=1e-6)
        np.testing.assert_allclose(slope(x), np.float64(x) / length, rtol=3e-6)


@pytest.mark.parametrize("size", [3e-18, 3.0, 3e25])
def test_the_slopes_of_a_clipped_gradient_are_those_of_its_direction(size):
    """u = c g / |g|, and so du/dg = c / |g| (1 - g gᵀ / |g|²)."""
    tx, g = gradtx.clip_by_global_norm(size / 3), jnp.full(2, size, np.float32)
    expected = 2**-0.5 / 3 * np.array([[0.5, -0.5], [-0.5, 0.5]])
    for slopes in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(slopes(lambda g: tx.update(g, tx.init(g))[0])(g), expected, rtol=1e-5)


def test_norms_of_leaves_of_two_precisions(x64):
    for low, high in [([1e30, 2e30], [1.0, 2.0]), ([1e-30, 2e-30], [0.0]), ([1e-25, 2e-25], [1e-26])]:
        leaves = [jnp.array(low, jnp.float32), jnp.array(high, jnp.float64)]
        joined = np.concatenate([np.float64(leaf) for leaf in leaves])
        length = np.linalg.norm(joined)
        np.testing.assert_allclose(gradtx.global_norm(leaves), length, rtol=1e-12)
        slopes = np.concatenate(jax.grad(gradtx.global_norm)(leaves))
        np.testing.assert_allclose(slopes, joined / length, rtol=1e-6)
        tx = gradtx.clip_by_global_norm(length / 4)
        clipped = np.concatenate(tx.update(leaves, tx.init(leaves))[0])
        np.testing.assert_allclose(clipped, joined / 4, rtol=1e-6)


def test_the_hessian_of_a_norm():
    np.testing.assert_allclose(
        jax.hessian(gradtx.global_norm)(jnp.array([3.0, 4.0])), [[0.128, -0.096], [-0.096, 0.072]], rtol=1e-5
    )


@pytest.mark.parametrize("constant", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("shape", [(3,), (300, 100)])
def test_the_norm_of_what_the_compiler_knows(constant, shape):
    """A loss that does not read its params has a gradient that is a constant of the program."""

    def alone(w):
        return gradtx.global_norm(jnp.full(shape, constant))

    def with_others(w):
        return gradtx.global_norm([jnp.full(shape, constant), w])

    expected = constant * np.prod(shape) ** 0.5
    w = jnp.full(3, 1e-35)
    assert jax.jit(alone)(w) == pytest.approx(expected, rel=1e-5)
    assert jax.jit(with_others)(w) == pytest.approx(max(expected, 3**0.5 * 1e-35), rel=1e-5)
    assert jax.jit(jax.vmap(with_others))(w[None])[0] == pytest.approx(max(expected, 3**0.5 * 1e-35), rel=1e-5)


def norms(monkeypatch):
    """Eager, compiled, and compiled where there is one device, so that leaves are joined first."""
    yield tree.norm
    yield jax.jit(lambda leaves: tree.norm(leaves))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    yield jax.jit(lambda leaves: tree.norm(leaves))


def test_small_leaves_are_joined_first_where_they_cannot_be_split(monkeypatch):
    leaves = [jnp.ones(3), jnp.ones((2, 2)), jnp.ones(2**14)]
    joined = [str(jax.make_jaxpr(measured)(leaves)).count("concatenate") for measured in norms(monkeypatch)]
    assert joined == [0, 0, 1]


@pytest.mark.parametrize(("kind", "lengths"), [(None, []), (AxisType.Auto, []), (AxisType.Explicit, [3])])
def test_an_eager_norm_joins_what_a_compiled_one_joins(kind, lengths, monkeypatch):
    """Else the two would add in another order, and a monitored norm would differ in its last bit."""
    leaves = [jnp.ones(3), jnp.ones((2, 2)), jnp.ones(5)]
    if kind is not None:
        mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(kind,))
        leaves = jax.device_put(leaves, NamedSharding(mesh, PartitionSpec()))
    found, join = [], tree.join
    monkeypatch.setattr(tree, "join", lambda leaves: found.append(len(leaves)) or join(leaves))
    for measured in (tree.norm, jax.jit(lambda leaves: tree.norm(leaves))):
        found.clear()
        assert measured(leaves).value == pytest.approx(12**0.5)
        assert found == lengths


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [1, 3, 2**16 + 1])
@pytest.mark.parametrize("beside", ["ordinary", "tiny", "largest"])
def test_infinite_elements_are_counted_whatever_stands_beside_them(dtype, number, beside, monkeypatch):
    with jax.enable_x64(dtype == "float64"):
        limits = np.finfo(dtype)
        x = np.full(3 * 2**15, {"ordinary": 0.3, "tiny": limits.tiny, "largest": limits.max}[beside], dtype)
        x[:number] = np.where(np.arange(number) % 2, np.inf, -np.inf)
        leaves = [jnp.asarray(part) for part in np.split(x, [5, 9, 4096])]
        for measured in norms(monkeypatch):
            norm = measured(leaves)
            assert norm.unit == 0
            np.testing.assert_allclose(norm.relative, number**0.5, rtol=2 * limits.eps)
            assert norm.value == np.inf
            assert np.isnan(measured([*leaves, jnp.full(3, np.nan, dtype)]).value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [2, 2**17])
@pytest.mark.parametrize("fraction", [-1.0, -0.8, -0.55, 0.0, 0.55, 0.95])
def test_a_norm_in_units_is_that_of_all_elements(dtype, size, fraction, monkeypatch):
    """Also where the norm itself is no number; against NumPy's longer doubles, at both ends of the range."""
    with jax.enable_x64(dtype == "float64"):
        limits = np.finfo(dtype)
        scale = np.ldexp(np.ones((), dtype), int(fraction * (limits.maxexp - 1)))
        x = np.random.default_rng(0).uniform(0.5, 1, size).astype(dtype) * scale
        x[x < limits.tiny] = limits.tiny
        expected = np.sqrt(np.sum(np.square(x.astype(np.longdouble))))
        parts = [jnp.asarray(part) for part in np.split(x, [1])]
        for measured in norms(monkeypatch):
            norm = measured(parts)
            found = np.longdouble(np.asarray(norm.relative)) / np.longdouble(np.asarray(norm.unit))
            np.testing.assert_allclose(np.float64(found / expected), 1, rtol=8 * limits.eps)
