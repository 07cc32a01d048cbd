"""Losses on lines and planes: those of NumPy at each of the points, in one program."""

import functools
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.landscape import Plane, plane_through, slice_1d, slice_2d, slices
from tests.core.compilations import compilations

SAMPLES = 20
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(SAMPLES, 6)), "y": RNG.integers(0, 3, SAMPLES)}


def start(seed):
    draw = np.random.default_rng(seed).normal
    return {"first": draw(size=(6, 5)), "bias": draw(size=5), "last": draw(size=(5, 3))}


def cross_entropy(params, batch):
    h = jax.nn.relu(batch["x"].astype(params["first"].dtype) @ params["first"] + params["bias"][None])
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(h @ params["last"]), batch["y"][:, None], axis=1))


def by_numpy(params):
    z = np.maximum(DATA["x"] @ params["first"] + params["bias"], 0) @ params["last"]
    return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(SAMPLES), DATA["y"]])


def in_dtype(dtype, dimensions):
    origin, *directions = (jax.tree.map(lambda w: jnp.asarray(w, dtype), start(seed)) for seed in range(1 + dimensions))
    return Plane(origin, tuple(directions), ("x", "y")[:dimensions])


def assert_points(found, loss=by_numpy, tolerance=1e-12):
    """The values of a slice are those of NumPy at its points."""
    origin, *directions = (jax.tree.map(np.asarray, w) for w in (found.plane.origin, *found.plane.directions))
    grid = [(a,) for a in found.x] if found.y is None else [(a, b) for b in found.y for a in found.x]

    def at(point):
        return jax.tree.map(lambda w, *ds: w + sum(c * d for c, d in zip(point, ds)), origin, *directions)

    shape = (len(found.x),) if found.y is None else (len(found.y), len(found.x))
    expected = np.reshape([loss(at(point)) for point in grid], shape)
    np.testing.assert_allclose(found.values, expected, rtol=tolerance, atol=tolerance)


PLANE = plane_through(*(np.array(w, np.float32) for w in ([0, 0], [1, 0], [0, 1])))

# The values -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("batch_size", "at_once"), [(None, 7), (7, 1), (20, None)])
def test_a_slice_is_a_loop_over_its_points(batch_size, at_once):
    plane, x, y = in_dtype(jnp.float64, 2), np.linspace(-1, 1.5, 5), np.array([0.1, -0.4, 2.0, 0.7])
    found = slice_2d(cross_entropy, plane, DATA, x=x, y=y, batch_size=batch_size, at_once=at_once)
    assert found.values.dtype == np.float64
    assert_points(found)


def test_a_line_in_float32_to_its_rounding():
    found = slice_1d(cross_entropy, in_dtype(jnp.float32, 1), DATA, x=(-0.5, 2.0), points=7, batch_size=7)
    assert found.values.dtype == np.float32
    assert found.x.tolist() == np.linspace(-0.5, 2.0, 7).tolist()
    assert_points(found, tolerance=5e-6)


def test_low_precision_is_rounded_at_each_point():
    plane = in_dtype(jnp.bfloat16, 2)
    directions = (plane.directions[0], jax.tree.map(lambda w: w.astype(jnp.float32), plane.directions[1]))
    found = slice_2d(
        lambda w: jnp.sum(w["last"].astype(jnp.float32) ** 2), Plane(plane.origin, directions, plane.names), points=5
    )

    def rounded(params):
        return np.sum(np.asarray(jnp.asarray(params["last"], jnp.bfloat16), float) ** 2)

    np.testing.assert_allclose(
        found.values, [[rounded(found.plane.at(a, b)) for a in found.x] for b in found.y], rtol=1e-3
    )
    assert_points(found, lambda w: np.sum(np.asarray(w["last"], float) ** 2), 0.02)


@pytest.mark.usefixtures("x64")
def test_leaves_and_directions_of_several_dtypes():
    def total(params):
        return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float64))) for leaf in jax.tree.leaves(params))

    origin = {"first": jnp.ones(3, jnp.float32), "last": jnp.ones(2, jnp.float64)}
    directions = {"first": jnp.arange(3.0) / 3, "last": jnp.arange(2.0).astype(jnp.float32)}
    found = slice_1d(total, Plane(origin, (directions,), ("x",)), points=5)
    assert_points(found, lambda w: np.sin(w["first"].astype(np.float32)).sum() + np.sin(w["last"]).sum(), 1e-6)


def test_a_row_for_each_y_and_holes():
    found = slice_2d(lambda w: 10 * w[0] + w[1], PLANE, x=np.arange(3.0), y=(0.0, 1.0), points=2)
    assert found.values.tolist() == [[0, 10, 20], [1, 11, 21]]
    assert (found.x.tolist(), found.y.tolist()) == ([0, 1, 2], [0, 1])
    assert (found.plane, found.nonfinite) == (PLANE, 0)

    def loss(w):
        return jnp.log(w[0]) + jnp.exp(w[1])

    found = slice_2d(loss, PLANE, x=np.array([-1.0, 0.0, 1.0, 2.0]), y=np.array([0.0, 1.0, 1000.0]))
    values = np.asarray(found.values)
    assert found.nonfinite == 3 + 3 + 2
    assert np.isnan(values[:, 0]).all()
    assert np.isneginf(values[:2, 1]).all()
    assert np.isposinf(values[2, 2:]).all()
    np.testing.assert_allclose(values[:2, 2:], np.log([[1, 2]] * 2) + np.exp([[0], [1]]), rtol=1e-6)


# One program, and its progress ----------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_other_params_planes_and_data_of_these_shapes_compile_nothing(capfd):
    planes = [plane_through(*(start(seed) for seed in range(i, i + 3))) for i in range(2)]
    planes.append(Plane(planes[0].origin, planes[1].directions, ("steep (91%)", "flat (2%)")))
    run = functools.partial(slice_2d, lambda params, batch: cross_entropy(params, batch), points=4)
    with compilations() as names:
        run(planes[0], DATA)
    assert sum("evaluated" in name for name in names) == 1
    with compilations() as names:
        found = [run(plane, jax.tree.map(lambda a: a[::-1], DATA), x=(-2.0, 2.5)) for plane in planes]
    assert names == []
    assert not np.array_equal(found[0].values, found[1].values)
    assert found[0].y.tolist() == found[0].x.tolist() == [-2.0, -0.5, 1.0, 2.5]
    assert capfd.readouterr() == ("", "")  # where there is no terminal


def test_at_once_is_what_the_memory_allows(monkeypatch):
    def loss(w):
        return jax.checkpoint(lambda w: jnp.sum(jnp.sin(jnp.outer(w, jnp.arange(100.0)))))(w)

    rows = []
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(slices.Progress, "update", lambda self, done, text: rows.append(done))
    looked = slices._Loss(slices.costs.read_cost("", loss, None), None)
    needed = slices._bytes_of_a_point(looked, PLANE.origin, PLANE.directions, None)
    assert 2 * 4 * 200 < needed < 10 * 4 * 200  # products and sines, in float32
    assert (slices.CACHE, slices.MEMORY) == (4 * 1024**2, 256 * 1024**2)
    for room, groups in ((1, 9), (2.5 * needed, 5)):
        rows.clear()
        monkeypatch.setattr(slices, "CACHE", room)
        monkeypatch.setattr(slices, "MEMORY", room)
        slice_2d(loss, PLANE, points=3)
        assert len(rows) == groups


def test_a_bar_moves_once_a_group_and_changes_nothing(monkeypatch):
    line, rows = plane_through(np.zeros(2, np.float32), np.ones(2, np.float32)), []
    run = functools.partial(slice_1d, lambda w: jnp.sqrt(jnp.sum(w)), points=31, at_once=7)
    monkeypatch.setenv("COLUMNS", "120")  # what else is as wide as the terminal of the tests
    monkeypatch.setattr(sys, "stderr", Terminal())
    quiet = run(line, progress=False)
    assert sys.stderr.getvalue() == ""
    assert quiet.nonfinite == 15
    update = slices.Progress.update

    def recorded(self, done, text):
        rows.append((done, text))
        update(self, done, text)

    monkeypatch.setattr(slices.Progress, "update", recorded)
    shown = run(line)
    np.testing.assert_allclose(shown.values, quiet.values, rtol=1e-6)  # two programs
    assert rows == [(done, f"{done} points") for done in (7, 14, 21, 28, 31)]
    for word in ("gradtx.landscape.slice_1d", "31/31", "31 points"):
        assert word in sys.stderr.getvalue()
    with compilations() as names:  # the next bar needs no other program
        run(line, x=(0.0, 1.0))
    assert names == []
    assert len(rows) == 10
    assert not slices._bars
