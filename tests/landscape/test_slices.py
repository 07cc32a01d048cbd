"""Losses on lines and planes: those of a plain loop over the points, in one program."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.landscape import Plane, plane_through, slice_1d, slice_2d, slices
from tests.core.compilations import compilations
from tests.core.words import assert_words, refusal
from tests.training.network import Terminal

SAMPLES = 20
DATA = {
    "x": np.random.default_rng(0).normal(size=(SAMPLES, 6)),
    "y": np.random.default_rng(1).integers(0, 3, SAMPLES),
}


def start(seed=2):
    draw = np.random.default_rng(seed).normal
    return {"first": draw(size=(6, 5)), "bias": draw(size=5), "last": draw(size=(5, 3))}


def cross_entropy(params, batch):
    h = jax.nn.relu(batch["x"].astype(params["first"].dtype) @ params["first"] + params["bias"][None])
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(h @ params["last"]), batch["y"][:, None], axis=1))


def on_all(params):
    return cross_entropy(params, DATA)


def in_dtype(dtype, dimensions):
    origin, *directions = (jax.tree.map(lambda w: jnp.asarray(w, dtype), start(seed)) for seed in range(1 + dimensions))
    return Plane(origin, tuple(directions), ("x", "y")[:dimensions])


def points_of(x, y):
    return [(a,) for a in x] if y is None else [(a, b) for b in y for a in x]


def assert_loop(found, loss, data=None, tolerance=1e-12):
    """The values of a slice are those of a plain loop over its points."""
    compiled, arguments = jax.jit(loss), () if data is None else (data,)
    expected = [compiled(found.plane.at(*point), *arguments) for point in points_of(found.x, found.y)]
    assert found.values.dtype == expected[0].dtype
    shape = (len(found.x),) if found.y is None else (len(found.y), len(found.x))
    np.testing.assert_allclose(found.values, np.reshape(expected, shape), rtol=tolerance, atol=tolerance)


# The values -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("batch_size", "at_once"), [(None, 1), (None, 7), (None, 32), (5, 7), (7, 1), (7, 7), (7, 32), (20, None)]
)
def test_a_slice_is_a_loop_over_its_points(batch_size, at_once):
    options = {"batch_size": batch_size, "at_once": at_once}
    plane, x, y = in_dtype(jnp.float64, 2), np.linspace(-1, 1.5, 8), np.array([0.1, -0.4, 2.0, 0.7])
    assert_loop(slice_2d(cross_entropy, plane, DATA, x=x, y=y, **options), cross_entropy, DATA)


@pytest.mark.usefixtures("x64")
def test_a_line_is_a_loop_over_its_points():
    line = in_dtype(jnp.float64, 1)
    assert_loop(slice_1d(on_all, line, points=11, at_once=4), on_all)
    found = slice_1d(cross_entropy, line, DATA, x=(-0.5, 2.0), points=7, batch_size=SAMPLES)
    assert found.x.tolist() == np.linspace(-0.5, 2.0, 7).tolist()
    assert_loop(found, cross_entropy, DATA)


def test_float32_to_its_rounding():
    plane = in_dtype(jnp.float32, 2)
    assert_loop(slice_2d(on_all, plane, points=6), on_all, tolerance=3e-6)
    assert_loop(slice_2d(cross_entropy, plane, DATA, points=6, batch_size=7), cross_entropy, DATA, tolerance=3e-6)


@pytest.mark.parametrize("direction", [jnp.float32, jnp.bfloat16])
def test_low_precision_is_rounded_at_each_point(direction):
    def total(params):
        return jnp.sum(params["first"].astype(jnp.float32)) + jnp.sum(params["last"].astype(jnp.float32) ** 2)

    plane, others = in_dtype(jnp.bfloat16, 2), in_dtype(direction, 2)
    plane = Plane(plane.origin, others.directions, plane.names)
    assert_loop(slice_2d(total, plane, points=5), total, tolerance=1e-6)


@pytest.mark.usefixtures("x64")
def test_leaves_and_directions_of_several_dtypes():
    def total(params):
        return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float64))) for leaf in jax.tree.leaves(params))

    origin = {"first": jnp.ones(3, jnp.float32), "last": jnp.ones(2, jnp.float64)}
    directions = {"first": jnp.arange(3.0) / 3, "last": jnp.arange(2.0).astype(jnp.float32)}
    assert_loop(slice_1d(total, Plane(origin, (directions,), ("x",)), points=5), total, tolerance=1e-12)


def test_a_row_for_each_y():
    plane = plane_through(jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    found = slice_2d(lambda w: 10 * w[0] + w[1], plane, x=np.arange(3.0), y=(0.0, 1.0), points=2)
    assert found.values.tolist() == [[0, 10, 20], [1, 11, 21]]
    assert (found.x.tolist(), found.y.tolist()) == ([0, 1, 2], [0, 1])
    assert found.plane is plane
    assert slice_2d(lambda w: w[0], plane, x=(0.0, 2.0), points=3).y.tolist() == [0, 1, 2]  # as x
    assert slice_2d(lambda w: jnp.asarray(0.5), plane, points=3).values.tolist() == [[0.5] * 3] * 3


# Holes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3, None])
def test_values_that_are_not_finite_are_holes(at_once):
    def loss(w):
        return jnp.log(w[0]) + jnp.exp(w[1])

    plane = plane_through(jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    found = slice_2d(loss, plane, x=np.array([-1.0, 0.0, 1.0, 2.0]), y=np.array([0.0, 1.0, 1000.0]), at_once=at_once)
    values = np.asarray(found.values)
    assert found.nonfinite == np.sum(~np.isfinite(values)) == 3 + 3 + 2
    assert np.isnan(values[:, 0]).all()
    assert np.isneginf(values[:2, 1]).all()
    assert np.isposinf(values[2, 2:]).all()
    np.testing.assert_allclose(values[:2, 2:], np.log([[1, 2]] * 2) + np.exp([[0], [1]]), rtol=1e-6)
    assert slice_2d(loss, plane, x=(1.0, 2.0), points=2).nonfinite == 0


# One program ----------------------------------------------------------------------------------------------------------


def evaluations(names):
    return sum("evaluated" in name for name in names)


def test_other_params_planes_and_data_of_these_shapes_compile_nothing():
    def loss(params, batch):
        return cross_entropy(params, batch)

    planes = [plane_through(*(start(seed) for seed in range(i, i + 3))) for i in range(2)]
    planes.append(Plane(planes[0].origin, planes[1].directions, ("steep (91%)", "flat (2%)")))
    data = jax.tree.map(lambda a: a[::-1], DATA)
    run = functools.partial(slice_2d, loss, points=4, batch_size=6, at_once=5)
    with compilations() as names:
        run(planes[0], DATA)
    assert evaluations(names) == 1
    with compilations() as names:
        found = [run(plane, data, x=(-2.0, 2.0)).values for plane in planes]
    assert names == []
    assert not np.array_equal(found[0], found[1])


def test_at_once_is_what_the_memory_allows(monkeypatch):
    def loss(w):
        return jax.checkpoint(lambda w: jnp.sum(jnp.sin(jnp.outer(w, jnp.arange(100.0)))))(w)

    plane, rows = plane_through(*(np.array(w, np.float32) for w in ([0, 0], [1, 0], [0, 1]))), []
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(slices.Progress, "update", lambda self, done, text: rows.append(done))
    looked = slices._Loss(slices.costs.read_cost("", loss, None), None)
    needed = slices._bytes_of_a_point(looked, plane.origin, plane.directions, None)
    assert 2 * 4 * 200 < needed < 10 * 4 * 200  # products and sines, in float32
    for room, groups in ((1, 9), (2.5 * needed, 5), (2**40, 1)):
        rows.clear()
        monkeypatch.setattr(slices, "CACHE", room)
        monkeypatch.setattr(slices, "MEMORY", room)
        slice_2d(loss, plane, points=3)
        assert len(rows) == groups


# Progress -------------------------------------------------------------------------------------------------------------


def test_it_says_nothing_where_there_is_no_terminal_or_nobody_asks(monkeypatch, capfd):
    line = in_dtype(jnp.float32, 1)
    slice_1d(on_all, line, points=3)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    slice_1d(on_all, line, points=3, progress=False)
    assert sys.stderr.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    slice_2d(on_all, in_dtype(jnp.float32, 2), points=3)
    assert_words(sys.stderr.getvalue(), "gradtx.landscape.slice_2d", "9/9", "9 points")


def test_a_bar_moves_once_a_group_and_changes_nothing(monkeypatch):
    line, rows = in_dtype(jnp.float32, 1), []

    def loss(params):
        return jnp.sqrt(on_all(params) - 1.7)  # with holes

    run = functools.partial(slice_1d, loss, points=31, at_once=7)
    quiet = run(line)
    assert 0 < quiet.nonfinite < 31
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(slices.Progress, "update", lambda self, done, text: rows.append((done, text)))
    shown = run(line)
    np.testing.assert_array_equal(shown.values, quiet.values)
    assert rows == [(done, f"{done} points") for done in (7, 14, 21, 28, 31)]
    with compilations() as names:  # the next bar needs no other program
        run(line, x=(0.0, 1.0))
    assert names == []
    assert len(rows) == 10
    assert not slices._bars


# Refusals -------------------------------------------------------------------------------------------------------------

LINE = plane_through(np.zeros(2, np.float32), np.ones(2, np.float32))
PLANE = plane_through(*(np.array(w, np.float32) for w in ([0, 0], [1, 0], [0, 1])))


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (TypeError, {"plane": 3.0}, ["plane is a float; allowed: what gradtx.landscape.random_plane"]),
        (ValueError, {"plane": LINE}, ["plane has 1 directions; allowed: 2", "Use slice_1d", "dimensions=2"]),
        (ValueError, {"x": (0.0, np.nan)}, ["x is (0.0, nan); allowed: (from, to), or an array", "finite"]),
        (ValueError, {"y": [1.0]}, ["y is [1.0]", "two or more"]),
        (ValueError, {"x": "ab"}, ["x is 'ab'"]),
        (ValueError, {"x": [[1.0, 2.0], [3.0]]}, ["x is [[1.0, 2.0], [3.0]]"]),
        (ValueError, {"y": (1j, 2.0)}, ["y is (1j, 2.0)"]),
        (ValueError, {"points": 1}, ["points is 1; it must be at least 2."]),
        (TypeError, {"points": 5.0}, ["points is 5.0 of type float; it must be an int."]),
        (ValueError, {"at_once": 0}, ["at_once is 0; it must be at least 1."]),
        (TypeError, {"at_once": True}, ["at_once is True"]),
        (ValueError, {"batch_size": 2}, ["batch_size is 2, but data is None"]),
        (TypeError, {"loss": 1.0}, ["loss is 1.0; it must be a function"]),
        (TypeError, {"loss": lambda w: w}, ["the loss returns float32 of shape (2,); it must return a real scalar."]),
        (TypeError, {"loss": lambda w: (w[0], {})}, ["the loss returns a tuple", "loss(*args)[0]"]),
        (TypeError, {"loss": lambda w: jnp.sum(w > 0)}, ["the loss returns int32"]),
        (TypeError, {"loss": lambda w, *, key: w[0]}, ["a random loss has no landscape; fix the key"]),
        (ValueError, {"data": {"x": np.ones(3), "y": np.ones(2)}, "loss": lambda w, batch: w[0]}, ["data"]),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_what_is_refused(error, options, words):
    given = {"loss": jnp.sum, "plane": PLANE, "data": None} | options
    text = refusal(error, lambda loss, plane, data, **rest: slice_2d(loss, plane, data, **rest), **given)
    assert text.startswith("gradtx.landscape.slice_2d: ")
    assert_words(text, *words)


def test_a_plane_is_no_line():
    text = refusal(ValueError, slice_1d, jnp.sum, PLANE)
    assert_words(text, "slice_1d: line has 2 directions; allowed: 1. Use slice_2d, or make it with dimensions=1.")
