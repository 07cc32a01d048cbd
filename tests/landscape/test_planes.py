"""Planes through params: how their directions are scaled, what they pass through, and what is projected on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape import (
    Plane,
    curved_plane,
    plane_along,
    plane_through,
    planes,
    random_plane,
    slice_1d,
    trajectory_plane,
)
from gradtx.landscape.krylov import Eigenpairs
from gradtx.landscape.planes import normalized

KEY = jax.random.key(0)
SHAPES = {"bias": (2,), "conv": (3, 2, 4), "scale": ()}


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tree_of(seed, steps=()):
    """Params of a small network, or a stack of them."""
    return {name: drawn(*steps, *shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


def flat(tree, steps=0):
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:steps], -1) for leaf in leaves], axis=-1)


def matrix(plane):
    """The directions as rows."""
    return np.stack([flat(direction) for direction in plane.directions])


# Random directions, and your own --------------------------------------------------------------------------------------


def by_filter(direction, weights):
    """`normalize_directions_for_weights` of arXiv 1712.09913; here filters are on the last axis."""
    if np.ndim(weights) <= 1:
        return np.zeros_like(direction)
    axes = tuple(range(weights.ndim - 1))
    return direction * np.sqrt(np.sum(weights**2, axes)) / np.sqrt(np.sum(direction**2, axes))


NUMPY = {
    "filter": by_filter,
    "leaf": lambda d, w: d * np.linalg.norm(w) / np.linalg.norm(d),
    "none": lambda d, w: d,
}


def test_directions_have_the_lengths_of_the_params():
    params, direction = (jax.tree.map(np.float32, tree_of(seed)) for seed in (1, 10))
    params["conv"][..., 1] = 0.0
    scaled = jax.jit(lambda d: {how: normalized(d, params, how) for how in NUMPY})
    for how, found in scaled(direction).items():
        for name, leaf in found.items():
            np.testing.assert_allclose(leaf, NUMPY[how](direction[name], params[name]), rtol=1e-6)
    assert not flat(scaled(jax.tree.map(np.zeros_like, params))).any()
    found = plane_along(params, direction, params, normalize="leaf")
    np.testing.assert_allclose(flat(found.directions[0]), flat(scaled(direction)["leaf"]), rtol=1e-6)
    assert found.names == ("first direction", "second direction")
    np.testing.assert_array_equal(flat(plane_along(params, direction).directions), flat(direction))


def test_random_directions_are_normal_each_another_and_scaled_as_asked():
    plane = random_plane(np.zeros((100, 50), np.float32), KEY, normalize="none")
    rows = matrix(plane)
    np.testing.assert_allclose(rows @ rows.T / 5000, np.eye(2), atol=0.06)
    assert abs(rows.mean()) < 0.04
    assert plane.names == ("random direction 1", "random direction 2")
    line = random_plane(np.ones((5, 3), np.float32), jax.random.key(1), dimensions=1)
    assert (line.names, len(line.directions)) == (("random direction 1",), 1)
    np.testing.assert_allclose(np.linalg.norm(line.directions[0], axis=0), 5**0.5, rtol=1e-6)  # by filter, if not said
    params = jax.tree.map(np.float32, tree_of(2))
    (raw,), (found,) = (random_plane(params, KEY, dimensions=1, normalize=how).directions for how in ("none", "leaf"))
    for name in SHAPES:
        np.testing.assert_allclose(found[name], NUMPY["leaf"](np.asarray(raw[name]), params[name]), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_rescaled_network_gives_the_same_slice_if_normalised():
    def network(params):
        (first, bias), last = params
        h = jax.nn.relu(jnp.asarray(drawn(4, 3, seed=20)) @ first + bias[None])
        return jnp.mean(jax.nn.logsumexp(h @ last, axis=1))

    def rescaled(a):  # what it computes does not depend on a: ReLU(a x) = a ReLU(x)
        return (a * drawn(3, 5, seed=1), a * drawn(5, seed=4)), drawn(5, 4, seed=2) / a

    one, other = (random_plane(rescaled(a), KEY, dimensions=1) for a in (1.0, 3.0))
    found, again = (np.asarray(slice_1d(network, plane, points=5).values) for plane in (one, other))
    assert np.ptp(found) > 0.1
    np.testing.assert_allclose(found, again, rtol=1e-11)


# Trajectories ---------------------------------------------------------------------------------------------------------


def decaying(dtype, sizes=(3.0, 0.7, 0.1, 0.02), steps=12):
    """A trajectory in few directions, one much less wide than the other."""
    path = jax.tree.map(lambda leaf: np.stack([leaf] * steps), tree_of(0))
    for i, size in enumerate(sizes):
        way = size * drawn(steps, seed=5 + i)
        path = jax.tree.map(lambda p, w, way=way: p + np.multiply.outer(way, w), path, tree_of(40 + 7 * i))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), path)


@pytest.mark.usefixtures("x64")
def test_principal_components_are_the_singular_vectors():
    for dimensions in (1, 2):
        path, tolerance = decaying(np.float64), 1e-12
        plane = trajectory_plane(path, dimensions=dimensions)
        rows = flat(path, 1)
        _, widths, ways = np.linalg.svd(rows[:-1] - rows[-1], full_matrices=False)
        np.testing.assert_allclose(np.abs(np.sum(matrix(plane) * ways[:dimensions], axis=1)), 1.0, rtol=tolerance)
        np.testing.assert_allclose(matrix(plane) @ matrix(plane).T, np.eye(dimensions), atol=tolerance)
        np.testing.assert_array_equal(flat(plane.origin), rows[-1])
        shares = widths**2 / np.sum(widths**2)
        names = [f"{n} principal component ({s:.0%})" for n, s in zip(("first", "second"), shares)]
        assert plane.names == tuple(names[:dimensions])
        coordinates = (rows - rows[-1]) @ matrix(plane).T
        np.testing.assert_allclose(plane.project(path), coordinates, atol=10 * tolerance * widths[0])


def test_a_second_component_that_is_a_ten_thousandth_of_the_first():
    path = decaying(np.float32, sizes=(100.0, 0.01))
    rows = flat(path, 1)
    ways = np.linalg.svd(rows[:-1] - rows[-1], full_matrices=False)[2]
    np.testing.assert_allclose(np.abs(np.sum(matrix(trajectory_plane(path)) * ways[:2], axis=1)), 1.0, atol=1e-3)


@pytest.mark.usefixtures("x64")
def test_a_trajectory_of_several_dtypes():
    path = decaying(np.float32)
    path |= {"conv": jnp.asarray(path["conv"], jnp.bfloat16), "bias": path["bias"].astype(np.float64)}
    plane = trajectory_plane(path)
    assert (plane.origin["conv"].dtype, plane.directions[0]["conv"].dtype) == (jnp.bfloat16, jnp.float32)
    assert (plane.origin["bias"].dtype, plane.directions[0]["bias"].dtype) == (jnp.float64, jnp.float64)
    rows, found = flat(path, 1), plane.project(path)
    assert found.dtype == jnp.float64
    away = rows - rows[-1]  # the sums of the leaves in float32 are of its rounding
    np.testing.assert_allclose(found, away @ matrix(plane).T, atol=1e-6 * np.linalg.norm(away, axis=1).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("number", [1, 2])
def test_the_projection_is_the_nearest_point(number):
    first, second = tree_of(7), tree_of(14)
    skewed = jax.tree.map(lambda u, v: u + 0.3 * v, first, second)
    plane = Plane(tree_of(0), (first, skewed)[:number], ("x", "y")[:number])
    rows, others = matrix(plane), tree_of(50, (3,))
    coordinates = plane.project(others)
    away = flat(others, 1) - flat(plane.origin)
    np.testing.assert_allclose(coordinates, np.linalg.lstsq(rows.T, away.T, rcond=None)[0].T, rtol=1e-11)
    point = np.array([-0.3, 40.0])[:number]
    np.testing.assert_allclose(flat(plane.at(*point)), flat(plane.origin) + point @ rows, rtol=1e-12)


# Through points, and along eigenvectors -------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_a_plane_through_three_points():
    one, two, three = tree_of(0), tree_of(10), tree_of(20)
    plane = plane_through(one, two, three)
    np.testing.assert_array_equal(flat(plane.at(0, 0)), flat(one))
    np.testing.assert_allclose(flat(plane.at(1, 0)), flat(two), rtol=1e-12)
    (third,) = plane.project(jax.tree.map(lambda leaf: leaf[None], three))
    np.testing.assert_allclose(flat(plane.at(*third)), flat(three), rtol=1e-11)
    u, v = matrix(plane)
    np.testing.assert_allclose([u @ v, v @ v], [0.0, u @ u], atol=1e-11)
    assert third[1] > 0
    assert plane.names == ("from the first to the second", "towards the third")
    line = plane_through(one, two)
    assert line.names == plane.names[:1]
    np.testing.assert_allclose(flat(line.at(0.25)), 0.75 * flat(one) + 0.25 * flat(two), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_curved_directions_are_eigenvectors(monkeypatch):
    root = drawn(4, 4)
    hessian, eigenvalues = root + root.T, np.linalg.eigvalsh(root + root.T)
    params = {"a": drawn(1, 2), "b": drawn(2)}

    def loss(w):
        x = jnp.concatenate([w["a"].reshape(2), w["b"]])
        return 0.5 * x @ hessian @ x

    plane = curved_plane(landscape.hessian(loss, params))
    rows = matrix(plane)
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(rows @ hessian, eigenvalues[[-1, -2], None] * rows, atol=1e-10)
    assert plane.names == tuple(f"eigenvector of {value:.3g}" for value in eigenvalues[[-1, -2]])
    np.testing.assert_array_equal(flat(plane.origin), flat(params))
    asked = {}
    pairs = Eigenpairs(np.array([1.0, 2.0]), None, jax.tree.map(lambda w: np.stack([w, 2 * w + 1]), params))
    monkeypatch.setattr(planes, "lanczos", lambda operator, **options: asked.update(options) or pairs)
    assert curved_plane(landscape.hessian(loss, params), steps=3, key=KEY).names[0] == "eigenvector of 2"
    assert asked == {"smallest": 0, "largest": 2, "steps": 3, "key": KEY}


def test_a_plane_is_a_pytree_whose_points_have_the_dtypes_of_the_origin():
    origin = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros((), jnp.float32)}
    plane = Plane(origin, ({"a": jnp.full(3, 1e-3), "b": jnp.ones(())},), ("x",))
    point = jax.jit(lambda plane, x: plane.at(x))(plane, 3.0)
    assert jax.tree.map(lambda leaf: leaf.dtype, point) == {"a": jnp.bfloat16, "b": jnp.float32}
    assert point["b"] == plane.at(np.float64(3.0))["b"] == plane.at(3)["b"] == 3.0
    assert plane.at(4.0)["a"].tolist() == [1.0078125] * 3  # 1.004, rounded once
    assert len(jax.tree.leaves(plane)) == 4
