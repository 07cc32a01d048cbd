"""Norms and their slopes, where squares are too large or too small for the dtype as well as elsewhere."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import tree

EXPONENTS = [-37, -30, -25, -21, -20, -18, -17, -16, -15, -10, 0, 10, 17, 19, 20, 30, 37, 38]
SLOPE = jax.grad(gradtx.global_norm)
COMPILED = jax.jit(lambda x: (gradtx.global_norm(x), SLOPE(x)))


def test_norms_and_their_slopes_are_right_wherever_the_numbers_are():
    """Compiled, mapped (where both branches run), and without jit."""
    x = jnp.stack([np.float32([1.3, -0.7]) * np.float32(10.0**exponent) for exponent in EXPONENTS])
    lengths = np.linalg.norm(np.float64(x), axis=1, keepdims=True)
    rows = [COMPILED(row) for row in x] + [(gradtx.global_norm(x[i]), SLOPE(x[i])) for i in (0, 16)]
    mapped = list(zip(*jax.jit(jax.vmap(COMPILED))(x), strict=True))
    order = [*range(len(x)), 0, 16, *range(len(x))]
    for i, (norm, slope) in zip(order, rows + mapped, strict=True):
        np.testing.assert_allclose(norm, lengths[i, 0], rtol=1e-6, err_msg=f"1e{EXPONENTS[i]}")
        np.testing.assert_allclose(slope, np.float64(x[i]) / lengths[i], rtol=3e-6, err_msg=f"1e{EXPONENTS[i]}")


def test_norms_are_right_on_both_sides_of_where_they_are_measured_again(x64):
    """Sums of squares around those of which digits may have been lost, and around the largest and the least finite."""
    compiled = jax.jit(gradtx.global_norm)
    for limits, size in itertools.product(map(np.finfo, (np.float32, np.float64)), (1, 3, 1000)):
        lost, least, most = float(size * limits.tiny / limits.eps), float(limits.tiny * size), float(limits.max)
        for length, share in itertools.product((lost**0.5, 4 * least, most**0.5, most / 4), (0.5, 0.97, 1.03, 2.0)):
            x = np.full(size, share * length / size**0.5).astype(limits.dtype)
            found, said = float(compiled(x)), f"{size} times {x[0]} in {limits.dtype}"
            np.testing.assert_allclose(found, float(x[0]) * size**0.5, rtol=32 * limits.eps, err_msg=said)


def test_slopes_at_the_edges():
    np.testing.assert_allclose(
        jax.jit(jax.hessian(gradtx.global_norm))(jnp.array([3.0, 4.0])), [[0.128, -0.096], [-0.096, 0.072]], rtol=1e-5
    )
    assert COMPILED(jnp.zeros(2))[1].tolist() == [0.0, 0.0]
    z = jnp.array([3.0 + 4.0j, 0.0])
    np.testing.assert_allclose(gradtx.global_norm({"z": z, "x": jnp.array([12.0])}), 13.0, rtol=1e-6)
    np.testing.assert_allclose(COMPILED(z)[1], [0.6 - 0.8j, 0.0], rtol=1e-6)  # JAX's gradient is the conjugate


CLIPPED = jax.jit(lambda tx, g: tx.update(g, tx.init(g))[0])


def test_the_slopes_of_a_clipped_gradient_are_those_of_its_direction():
    """u = c g / |g|, and so du/dg = c / |g| (1 - g gᵀ / |g|²)."""
    expected = 2**-0.5 / 3 * np.array([[0.5, -0.5], [-0.5, 0.5]])
    both = jax.jit(lambda tx, g: [slopes(functools.partial(CLIPPED, tx))(g) for slopes in (jax.jacrev, jax.jacfwd)])
    for size in (3e-18, 3.0, 3e25):
        for found in both(gradtx.clip_by_global_norm(size / 3), jnp.full(2, size, np.float32)):
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{size}")


def test_norms_of_leaves_of_two_precisions(x64):
    for low, high in [([1e30, 2e30], [1.0, 2.0]), ([1e-30, 2e-30], [0.0, 0.0]), ([1e-25, 2e-25], [1e-26, 0.0])]:
        leaves = [jnp.array(low, jnp.float32), jnp.array(high, jnp.float64)]
        joined = np.concatenate([np.float64(leaf) for leaf in leaves])
        length = np.linalg.norm(joined)
        norm, slopes = COMPILED(leaves)
        np.testing.assert_allclose(norm, length, rtol=1e-12)
        np.testing.assert_allclose(np.concatenate(slopes), joined / length, rtol=1e-6)
        for share in (0.25, 2.0):
            clipped = np.concatenate(CLIPPED(gradtx.clip_by_global_norm(length * share), leaves))
            np.testing.assert_allclose(clipped, joined * min(share, 1), rtol=1e-6)


def test_shortening():
    x = jnp.array([3.0, -4.0])
    for limit, expected in [(10.0, x), (5.0, x), (1.0, x / 5)]:
        np.testing.assert_allclose(tree.shorten(x, tree.norm(x), limit), expected, rtol=1e-6)
    for zeros, limit in [(0 * x, 0.0), (0 * x, 1.0), (x, 0.0)]:
        np.testing.assert_array_equal(tree.shorten(zeros, tree.norm(zeros), limit), 0 * x)
    largest = np.finfo(np.float32).max
    parts = np.array([[1.0, -1.0, 0.5, 0.5]])
    huge = largest * jnp.asarray(parts, np.float32)
    np.testing.assert_allclose(tree.shorten(huge, tree.norm(huge), 1.0), parts / 2.5**0.5, rtol=1e-6)
    endless = jnp.array([np.inf, 5.0, -np.inf, complex(0, np.inf)])
    shared = tree.shorten(endless, tree.norm(endless), 3.0)
    np.testing.assert_allclose(shared, np.array([1, 0, -1, 1j]) * 3**0.5, rtol=1e-6)
    broken = jnp.array([np.nan, 1.0])
    assert np.isnan(tree.shorten(broken, tree.norm(broken), 1.0)).all()


def test_along_an_axis_each_row_has_its_own_unit():
    x = jnp.array([[3.0, 4.0], [3e-30, 4e-30], [3e30, -4e30], [0.0, 0.0], [np.inf, 1.0]])
    for measured in (tree.norm, jax.jit(tree.norm, static_argnums=1)):
        norm = measured(x, 1)
        assert norm.value.shape == (5, 1)
        np.testing.assert_allclose(norm.value[:, 0], [5, 5e-30, 5e30, 0, np.inf], rtol=1e-6)


@pytest.mark.parametrize(("constant", "shape"), [(0.0, (3,)), (1e-30, (300, 100)), (1e30, (3,))])
def test_the_norm_of_what_the_compiler_knows(constant, shape):
    """A loss that does not read its params has a gradient that is a constant of the program."""
    with_others = jax.jit(lambda w: gradtx.global_norm([jnp.full(shape, constant), w]))
    expected = max(constant * np.prod(shape) ** 0.5, 3**0.5 * 1e-35)
    w = jnp.full(3, 1e-35)
    assert float(with_others(w)) == pytest.approx(expected, rel=1e-5)
    assert float(jax.jit(jax.vmap(with_others))(w[None])[0]) == pytest.approx(expected, rel=1e-5)


# Small leaves are joined first, where they cannot be sharded ----------------------------------------------------------


@functools.cache
def measures():
    """Eager, compiled, and compiled where there is one device, so that leaves are joined first: each traced apart."""
    return {"eager": tree.norm, "jit": jax.jit(lambda x: tree.norm(x)), "joined": jax.jit(lambda x: tree.norm(x))}


def measured_by(way, leaves, monkeypatch):
    with monkeypatch.context() as patch:
        if way == "joined":
            patch.setattr(jax, "device_count", lambda: 1)
        return measures()[way](leaves)


@pytest.mark.parametrize(("kind", "joins"), [(None, False), (AxisType.Auto, False), (AxisType.Explicit, True)])
def test_an_eager_norm_joins_what_a_compiled_one_joins(kind, joins, monkeypatch):
    """Else the two would add in another order, and a monitored norm would differ in its last bit."""
    leaves = [jnp.ones(3), jnp.ones((2, 2)), jnp.ones(5), jnp.ones(2**13 + 1)]
    if kind is not None:
        mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(kind,))
        leaves = jax.device_put(leaves, NamedSharding(mesh, PartitionSpec()))
    joins = joins or (kind is None and jax.device_count() == 1)
    found, join = [], tree.join
    monkeypatch.setattr(tree, "join", lambda leaves: found.append(len(leaves)) or join(leaves))
    for measured in (tree.norm, jax.jit(lambda leaves: tree.norm(leaves))):
        found.clear()
        assert float(measured(leaves).value) == pytest.approx((2**13 + 13) ** 0.5)
        assert found == ([3] if joins else [])


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_what_lies_whole_on_its_devices():
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("a",), axis_types=(kind,), devices=jax.devices()[:2])
        for spec, whole in [(PartitionSpec(), True), (PartitionSpec("a"), False)]:
            leaf = jax.device_put(jnp.ones(4), NamedSharding(mesh, spec))
            assert tree.is_whole(leaf) is whole
            told = []
            jax.eval_shape(lambda x, told=told: told.append(tree.is_whole(x)) or x, leaf)
            assert told == [whole and kind is AxisType.Explicit]
    assert tree.is_whole(np.ones(2))
    assert tree.is_whole(jnp.ones(2))
    jax.eval_shape(lambda x: told.append(tree.is_whole(x)) or x, 1.0)
    assert told[1]


@pytest.mark.parametrize(
    ("dtype", "number", "beside"),
    [("float32", 1, 0.3), ("float32", 3, "tiny"), ("float32", 2**16 + 1, "max"), ("float64", 3, "max")],
)
def test_infinite_elements_are_counted_whatever_stands_beside_them(dtype, number, beside, monkeypatch):
    with jax.enable_x64(dtype == "float64"):
        limits = np.finfo(dtype)
        x = np.full(3 * 2**15, getattr(limits, beside) if isinstance(beside, str) else beside, dtype)
        x[:number] = np.where(np.arange(number) % 2, np.inf, -np.inf)
        leaves = [jnp.asarray(part) for part in np.split(x, [5, 9, 4096])]
        for way in measures():
            norm = measured_by(way, leaves, monkeypatch)
            assert norm.unit == 0
            np.testing.assert_allclose(norm.relative, number**0.5, rtol=2 * limits.eps)
            assert norm.value == np.inf
            lost = [leaves[0].at[0].set(np.nan), *leaves[1:]]
            assert np.isnan(measured_by(way, lost, monkeypatch).value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [2, 2**17])
def test_a_norm_in_units_is_that_of_all_elements(dtype, size, monkeypatch):
    """Also where the norm itself is no number, at both ends of the range; in units of a power of two."""
    with jax.enable_x64(dtype == "float64"):
        limits = np.finfo(dtype)
        for fraction in (-1.0, -0.8, -0.55, 0.0, 0.55, 0.95):
            power = int(fraction * (limits.maxexp - 1))
            x = np.ldexp(np.random.default_rng(0).uniform(0.5, 1, size).astype(dtype), power)
            x[x < limits.tiny] = limits.tiny
            expected = np.linalg.norm(np.ldexp(np.float64(x), -power))
            parts = [jnp.asarray(part) for part in np.split(x, [1])]
            for way in measures():
                norm = measured_by(way, parts, monkeypatch)
                (relative, up), (unit, down) = (np.frexp(np.float64(part)) for part in norm)
                found = np.ldexp(relative / unit, up - down - power)
                np.testing.assert_allclose(found, expected, rtol=8 * limits.eps, err_msg=f"{way} at 2**{power}")
