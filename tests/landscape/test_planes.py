"""Planes through params: how their directions are scaled, what they pass through, and what is projected on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import landscape
from gradtx.landscape import Plane, curved_plane, plane_through, random_plane, slice_2d, trajectory_plane
from gradtx.landscape.planes import normalized
from tests.core.words import assert_words, refusal

KEY = jax.random.key(0)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tree_of(seed, steps=()):
    """Params of a small network, or a stack of them."""
    shapes = {"conv": (3, 3, 2, 4), "bias": (4,), "dense": (5, 3), "scale": ()}
    return {name: drawn(*steps, *shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def flat(tree, steps=0):
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:steps], -1) for leaf in leaves], axis=-1)


def matrix(plane):
    """The directions as rows."""
    return np.stack([flat(direction) for direction in plane.directions])


# Random directions ----------------------------------------------------------------------------------------------------


def li_et_al(direction, weights):
    """`normalize_directions_for_weights` of arXiv 1712.09913, in PyTorch's layout: filters on the first axis."""
    if weights.ndim <= 1:
        return np.zeros_like(direction)
    direction, weights = (np.moveaxis(a, -1, 0).copy() for a in (direction, weights))
    for d, w in zip(direction, weights):
        d *= np.linalg.norm(w) / np.linalg.norm(d)
    return np.moveaxis(direction, 0, -1)


NUMPY = {
    "filter": li_et_al,
    "leaf": lambda d, w: d * np.linalg.norm(w) / np.linalg.norm(d),
    "none": lambda d, w: d,
}


scaled = jax.jit(normalized, static_argnums=2)


@pytest.mark.parametrize("normalize", NUMPY)
def test_directions_have_the_lengths_of_the_params(normalize):
    params, direction = (jax.tree.map(np.float32, tree_of(seed)) for seed in (1, 10))
    params["dense"][:, 1] = 0.0
    found = scaled(direction, params, normalize)
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, NUMPY[normalize](direction[name], params[name]), rtol=1e-6)
    nothing = scaled(jax.tree.map(np.zeros_like, params), params, normalize)
    assert not flat(nothing).any()


def test_random_directions_are_scaled_as_asked():
    params = tree_of(2)["dense"].astype(np.float32)
    plain, filtered = (random_plane(params, KEY, normalize=how).directions for how in ("none", "filter"))
    for raw, found in zip(plain, filtered):
        np.testing.assert_allclose(found, li_et_al(np.asarray(raw), params), rtol=1e-6)


def test_random_directions_are_normal_and_each_another():
    plane = random_plane(np.zeros((100, 50), np.float32), KEY, normalize="none")
    rows = matrix(plane)
    np.testing.assert_allclose(rows @ rows.T / 5000, np.eye(2), atol=0.06)
    assert abs(rows.mean()) < 0.04
    assert plane.names == ("random direction 1", "random direction 2")
    line = random_plane(np.ones((5, 3), np.float32), jax.random.key(1), dimensions=1)
    assert (line.names, len(line.directions)) == (("random direction 1",), 1)


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def network(params, images):
    """A convolution and two dense layers, ReLU between them."""
    (kernel, bias), (first, other), last = params
    h = jax.nn.relu(convolved(images, kernel) + bias[None, None, None])
    h = jax.nn.relu(h.reshape(len(images), -1) @ first + other[None])
    return jnp.mean(jax.nn.logsumexp(h @ last, axis=1))


def of_network(a=1.0, b=1.0):
    """What it computes does not depend on a and b: ReLU(a x) = a ReLU(x)."""
    kernel, first, last = drawn(3, 3, 1, 2), drawn(18, 5, seed=1), drawn(5, 4, seed=2)
    return (a * kernel, a * drawn(2, seed=3)), (b * first, a * b * drawn(5, seed=4)), last / (a * b)


@pytest.mark.usefixtures("x64")
def test_a_rescaled_network_gives_the_same_slice_if_normalised():
    images, one, other = drawn(4, 3, 3, 1, seed=20), of_network(), of_network(3.0, 0.05)
    planes = {"by key": [random_plane(params, KEY) for params in (one, other)]}
    raw = [jax.tree.map(lambda leaf, seed=seed: drawn(*leaf.shape, seed=seed), one) for seed in (30, 31)]
    for how in NUMPY:
        planes[how] = [Plane(w, tuple(scaled(d, w, how) for d in raw), ("x", "y")) for w in (one, other)]
    for how, pair in planes.items():
        found, again = (np.asarray(slice_2d(network, plane, images, points=3).values) for plane in pair)
        np.testing.assert_allclose(
            found[1, 1], again[1, 1], rtol=1e-12
        )  # where they stand, one computes what other does
        assert np.ptp(found) > 0.1
        if how == "none":
            assert np.abs(found - again).max() > 0.1
        else:
            np.testing.assert_allclose(found, again, rtol=1e-11)


# Trajectories ---------------------------------------------------------------------------------------------------------


def decaying(dtype, sizes=(3.0, 0.7, 0.1, 0.02), steps=12):
    """A trajectory in few directions, one much less wide than the other."""
    widths = np.array(sizes)[None, :, None] * drawn(steps, len(sizes), 1, seed=5)
    ways = np.stack([flat(tree_of(40 + 7 * i)) for i in range(len(sizes))])
    path = flat(tree_of(0))[None] + np.sum(widths * ways[None], axis=1)
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(tree_of(0))])[:-1]
    parts = zip(np.split(path, ends, axis=1), jax.tree.leaves(tree_of(0)))
    leaves = [part.reshape(steps, *leaf.shape).astype(dtype) for part, leaf in parts]
    return jax.tree.unflatten(jax.tree.structure(tree_of(0)), leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "dimensions"), [(np.float64, 1e-12, 2), (np.float32, 2e-6, 2), (np.float32, 2e-6, 1)]
)
def test_principal_components_are_the_singular_vectors(dtype, tolerance, dimensions):
    with jax.enable_x64(dtype == np.float64):
        path = decaying(dtype)
        plane = trajectory_plane(path, dimensions=dimensions)
        rows = flat(path, 1)
        _, widths, ways = np.linalg.svd(rows[:-1] - rows[-1], full_matrices=False)
        cosines = np.sum(matrix(plane) * ways[:dimensions], axis=1)
        np.testing.assert_allclose(np.abs(cosines), 1.0, rtol=tolerance)
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
    rows = flat(path, 1)
    found = plane.project(path)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, (rows - rows[-1]) @ matrix(plane).T, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("number", [1, 2])
def test_the_projection_is_the_nearest_point(number):
    first, second = tree_of(7), tree_of(14)
    skewed = jax.tree.map(lambda u, v: u + 0.3 * v, first, second)
    plane = Plane(tree_of(0), (first, skewed)[:number], ("x", "y")[:number])
    rows = matrix(plane)
    cosine = rows[0] @ rows[-1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[-1])
    assert 0.8 < cosine < 1.0 or number == 1
    on_it = np.array([[0.0, 0.0], [1.5, -2.0], [-0.3, 40.0]])[:, :number]
    points = jax.tree.map(lambda *leaves: np.stack(leaves), *(plane.at(*point) for point in on_it))
    np.testing.assert_allclose(plane.project(points), on_it, rtol=1e-11, atol=1e-11)
    others = tree_of(50, (3,))
    coordinates = plane.project(others)
    assert coordinates.shape == (3, number)
    nearest = np.stack([flat(plane.at(*point)) for point in np.asarray(coordinates)])
    np.testing.assert_allclose((flat(others, 1) - nearest) @ rows.T, 0.0, atol=1e-11)


def test_params_that_minimize_has_recorded():
    def loss(w):
        return 0.5 * w["a"][0] ** 2 + 2.0 * w["a"][1] ** 2 + w["b"] ** 2

    begin = {"a": jnp.array([3.0, -2.0]), "b": jnp.array(1.0)}
    options = {"steps": 6, "evaluate": lambda w: {"params": w}, "evaluate_every": 2}
    history = gradtx.minimize(loss, begin, gradtx.sgd(0.1), **options).history
    every = landscape.trajectory(gradtx.sgd(0.1), loss, begin, 6)
    assert history["evaluated_at"].tolist() == [2, 4, 6]
    for found, path in zip(jax.tree.leaves(history["params"]), jax.tree.leaves(every)):
        np.testing.assert_allclose(found, path[2::2], rtol=1e-6)
    plane = trajectory_plane(history["params"])
    found = plane.project(history["params"])
    np.testing.assert_allclose(found[-1], 0.0, atol=1e-6)
    np.testing.assert_allclose(flat(plane.at(*found[0])), flat(history["params"], 1)[0], rtol=1e-5)


# Through points, and along eigenvectors -------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_a_plane_through_three_points():
    one, two, three = tree_of(0), tree_of(10), tree_of(20)
    plane = plane_through(one, two, three)
    np.testing.assert_array_equal(flat(plane.at(0, 0)), flat(one))
    np.testing.assert_allclose(flat(plane.at(1, 0)), flat(two), rtol=1e-12)
    (third,) = plane.project(jax.tree.map(lambda leaf: leaf[None], three))
    np.testing.assert_allclose(flat(plane.at(*third)), flat(three), rtol=1e-12)
    u, v = matrix(plane)
    np.testing.assert_allclose([u @ v, v @ v], [0.0, u @ u], atol=1e-11)
    assert third[1] > 0
    assert plane.names == ("from the first to the second", "towards the third")
    line = plane_through(one, two)
    np.testing.assert_allclose(flat(line.at(0.25)), 0.75 * flat(one) + 0.25 * flat(two), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_points_on_one_line_or_in_one_place_are_refused(seed):
    one, two = (jax.tree.map(lambda a: a.astype(np.float32), tree_of(s)) for s in (seed, seed + 100))

    def along(one, two, share):
        return jax.tree.map(lambda a, b: a + np.float32(share) * (b - a), one, two)

    on_lines = [(one, two, along(one, two, 0.3 + seed)), (one, along(one, two, 0.01), two), (one, two, one)]
    for points in ((one, one), (one, one, two), (one, two, two), *on_lines):
        text = refusal(ValueError, plane_through, *points)
        assert_words(
            text,
            "gradtx.landscape.plane_through: the directions, at right angles, have lengths",
            "longer than rounding",
        )
        assert ("no plane" if len(points) == 3 else "no line") in text
    shares = np.linspace(0, 1, 12, dtype=np.float32) ** 2
    path = jax.tree.map(lambda a, b: np.stack([a + t * (b - a) for t in shares]), one, two)
    text = refusal(ValueError, trajectory_plane, path)
    assert_words(text, "gradtx.landscape.trajectory_plane: the directions", "span no plane", "rounding", "one line")
    assert trajectory_plane(path, dimensions=1).names == ("first principal component (100%)",)
    still = jax.tree.map(lambda a: np.stack([a] * 12), one)
    assert_words(refusal(ValueError, trajectory_plane, still, dimensions=1), "span no line")


@pytest.mark.usefixtures("x64")
def test_curved_directions_are_eigenvectors():
    root = drawn(6, 6)
    hessian, eigenvalues = root + root.T, np.linalg.eigvalsh(root + root.T)
    params = {"a": drawn(2, 2), "b": drawn(2)}

    def loss(w):
        x = jnp.concatenate([w["a"].reshape(4), w["b"]])
        return 0.5 * x @ hessian @ x

    plane = curved_plane(landscape.hessian(loss, params))
    rows = matrix(plane)
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(rows @ hessian, eigenvalues[[-1, -2], None] * rows, atol=1e-10)
    assert plane.names == tuple(f"eigenvector of {value:.3g}" for value in eigenvalues[[-1, -2]])
    np.testing.assert_array_equal(flat(plane.origin), flat(params))


def test_a_plane_is_a_pytree_whose_points_have_the_dtypes_of_the_origin():
    origin = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros((), jnp.float32)}
    plane = Plane(origin, ({"a": jnp.full(3, 1e-3), "b": jnp.ones(())},), ("x",))
    point = jax.jit(lambda plane, x: plane.at(x))(plane, 3.0)
    assert jax.tree.map(lambda leaf: leaf.dtype, point) == {"a": jnp.bfloat16, "b": jnp.float32}
    assert point["b"] == plane.at(np.float64(3.0))["b"] == plane.at(3)["b"] == 3.0
    assert plane.at(4.0)["a"].tolist() == [1.0078125] * 3  # 1.004, rounded once
    assert len(jax.tree.leaves(plane)) == 4


# Refusals -------------------------------------------------------------------------------------------------------------

ONE = {"a": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
OTHER = {"a": np.eye(2, dtype=np.float32), "b": np.ones(2, np.float32)}
LINE = plane_through(ONE, OTHER)


@pytest.mark.parametrize(
    ("error", "call", "words"),
    [
        (TypeError, lambda: random_plane({"a": np.ones((2, 2), np.complex64)}, KEY), ["params at ['a'] is complex64"]),
        (
            TypeError,
            lambda: random_plane({"a": np.ones((2, 2), int)}, KEY),
            ["params at ['a'] is int", "Close over it"],
        ),
        (TypeError, lambda: random_plane(ONE, None), ["key is None", "jax.random.key(seed)"]),
        (ValueError, lambda: random_plane({}, KEY), ["params has no leaves"]),
        (ValueError, lambda: random_plane(ONE, KEY, dimensions=3), ["dimensions is 3; allowed: 1 or 2."]),
        (ValueError, lambda: random_plane(ONE, KEY, normalize="layer"), ["normalize is 'layer'; allowed: 'filter'"]),
        (ValueError, lambda: random_plane(OTHER["b"], KEY), ["lengths 0, 0 and span no plane"]),
        (ValueError, lambda: random_plane(np.ones((1, 1)), KEY), ["span no plane", "one line"]),
        (ValueError, lambda: random_plane(np.full((1, 1), np.nan), KEY), ["must be finite"]),
        (ValueError, lambda: plane_through(ONE, {"a": ONE["a"]}), ["['b']", "second has none"]),
        (ValueError, lambda: plane_through(ONE, OTHER, ONE | {"b": np.ones(3)}), ["third at ['b'] has shape (3,)"]),
        (ValueError, lambda: plane_through(ONE, OTHER, ONE | {"c": np.ones(3)}), ["third has a leaf at ['c']"]),
        (TypeError, lambda: plane_through(ONE, ONE | {"b": np.ones(2, int)}), ["second at ['b'] is int"]),
        (TypeError, lambda: plane_through(ONE | {"b": np.ones(2) * 1j}, ONE), ["first at ['b'] is complex"]),
        (ValueError, lambda: LINE.project({"a": np.ones((4, 2, 2))}), ["['b']", "trajectory has none"]),
        (ValueError, lambda: LINE.project(ONE), ["trajectory at ['a'] has shape (2, 2)", "1 leading axis of steps"]),
        (
            ValueError,
            lambda: trajectory_plane({"a": np.ones((4, 2)), "b": np.ones((3, 2))}),
            ["at ['b'] has shape (3, 2)"],
        ),
        (ValueError, lambda: trajectory_plane(np.ones((2, 5))), ["has shape (2, 5)", "at least 3"]),
        (ValueError, lambda: trajectory_plane({"w": np.float32(1.0)}), ["at ['w'] has shape ()"]),
        (ValueError, lambda: trajectory_plane(np.ones((4, 5)), dimensions=0), ["dimensions is 0; allowed: 1 or 2."]),
        (TypeError, lambda: trajectory_plane(np.ones((4, 5), int)), ["trajectory at", "is int"]),
        (TypeError, lambda: LINE.at(1.0, 2.0), ["2 coordinates for 1 directions; give one for each."]),
        (TypeError, lambda: LINE.at(), ["0 coordinates for 1 directions"]),
        (TypeError, lambda: curved_plane(LINE), ["operator"]),
    ],
)
def test_what_is_refused(error, call, words):
    text = refusal(error, call)
    assert text.startswith("gradtx.landscape.")
    assert_words(text, *words)


# Directions of your own -----------------------------------------------------------------------------------------------


def test_a_plane_along_given_directions():
    params = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}
    first = {"w": jnp.eye(2), "b": jnp.ones(2)}
    line = landscape.plane_along(params, first)
    np.testing.assert_array_equal(line.at(2.0)["w"], [[3.0, 1.0], [1.0, 3.0]])
    np.testing.assert_array_equal(line.at(2.0)["b"], [2.0, 2.0])
    scaled = landscape.plane_along(params, first, normalize="filter").directions[0]
    np.testing.assert_allclose(np.linalg.norm(scaled["w"], axis=0), 2**0.5, rtol=1e-6)
    assert not scaled["b"].any()


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"w": jnp.ones((2, 2))}, r"params has a leaf at \['b'\], and second has none"),
        (
            {"w": jnp.ones(2), "b": jnp.ones(2)},
            r"second at \['w'\] has shape \(2,\); it must be that of params, \(2, 2\)",
        ),
        (
            {"w": jnp.ones((2, 2)), "b": jnp.ones(2, jnp.complex64)},
            r"second at \['b'\] is complex64; allowed: real arrays",
        ),
        ({"w": 2 * jnp.eye(2), "b": 2 * jnp.ones(2)}, "span no plane"),
        ({"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}, "span no plane"),
    ],
)
def test_directions_that_are_refused(second, text):
    params, first = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}, {"w": jnp.eye(2), "b": jnp.ones(2)}
    with pytest.raises((TypeError, ValueError), match=f"gradtx.landscape.plane_along: .*{text}"):
        landscape.plane_along(params, first, second)
