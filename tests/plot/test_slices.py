"""Pictures of slices: planes as colours and in three dimensions, lines as curves, trajectories projected on them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

from gradtx import landscape, plot
from tests.core.words import assert_words, refusal
from tests.plot.drawn import NAN, bands_and_lines, labelled, texts

PARAMS = {"w": jnp.zeros(2), "b": jnp.zeros(())}
WAY = {"w": jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), "b": jnp.array([1.0, 1.0, 0.0])}


def loss(params):
    return jnp.sum(params["w"] ** 2) + params["b"] ** 2 + 0.5


@functools.cache
def plane_slice(loss=loss):
    first, second = {"w": jnp.array([1.0, 0.0]), "b": jnp.zeros(())}, {"w": jnp.zeros(2), "b": jnp.ones(())}
    plane = landscape.plane_through(PARAMS, first, second)
    return landscape.slice_2d(loss, plane, x=(-3.0, 3.0), y=(-2.0, 2.0), points=25)


@functools.cache
def line_slice(loss=loss):
    line = landscape.plane_through(PARAMS, {"w": jnp.array([1.0, 0.0]), "b": jnp.zeros(())})
    return landscape.slice_1d(loss, line, x=(-2.0, 2.0), points=41)


def slices(*args, **kwargs):
    """On axes that nothing draws."""
    return plot.slice(*args, ax=Figure().add_subplot(), **kwargs)


def test_slice_shows_a_plane_with_projected_trajectories():
    found = plane_slice()
    ax = plot.slice(found, WAY)
    bands, lines = bands_and_lines(ax)
    assert isinstance(bands.norm, matplotlib.colors.LogNorm)
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        if len(path.vertices):
            np.testing.assert_allclose((path.vertices**2).sum(axis=1) + 0.5, level, atol=0.1)
    assert labelled(ax)["trajectory"].get_xydata().tolist() == [[2, 1], [1, 1], [0, 0]]
    assert labelled(ax)["origin"].get_xydata().tolist() == [[0, 0]]
    assert texts(ax) == ["trajectory", "start", "origin"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == found.plane.names
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "loss"
    assert bar.get_yscale() == "log"
    assert bar.get_ylim() == pytest.approx((0.5, 13.5), rel=0.1)
    several = plot.slice(found, trajectories={"a": WAY, "b": jax.tree.map(lambda leaf: leaf * NAN, WAY)})
    assert texts(several)[:2] == ["a", "b: not finite from step 0"]


def test_slice_scales():
    (bar,) = slices(plane_slice(lambda p: loss(p) - 5)).child_axes
    assert (bar.get_ylabel(), bar.get_yscale()) == ("loss", "linear")
    (bar,) = slices(plane_slice(lambda p: loss(p) - 5), log=True).child_axes
    assert (bar.get_ylabel(), bar.get_yscale()) == ("loss + 4.5", "log")
    (bar,) = slices(plane_slice(), log=False).child_axes
    assert bar.get_yscale() == "linear"
    _, lines = bands_and_lines(slices(plane_slice(), levels=[1.0, 2.0]))
    assert lines.levels.tolist() == [1, 2]


def test_slice_with_coordinates_in_any_order():
    found = plane_slice()
    mixed = found._replace(x=found.x[::-1], values=found.values[:, ::-1])
    (a, _), (b, _) = (bands_and_lines(slices(each)) for each in (found, mixed))
    for one, other in zip(a.get_paths(), b.get_paths(), strict=True):
        np.testing.assert_array_equal(one.vertices, other.vertices)
    mixed = line_slice()._replace(x=np.array([1.0, -1.0, 0.0]), values=np.array([3.0, 1.0, 2.0]))
    assert labelled(slices(mixed))["loss"].get_xydata().tolist() == [[-1, 1], [0, 2], [1, 3]]


def test_slice_holes():
    found = plane_slice(lambda p: jnp.where(p["w"][0] > 2.9, jnp.inf, loss(p)))
    assert found.nonfinite == 25
    ax = slices(found)
    assert texts(ax) == ["25 values not finite", "origin"]
    assert ax.patches[0].get_hatch() == "///"
    ax = slices(found._replace(values=found.values * NAN))
    assert texts(ax)[0] == "625 values not finite"
    assert not ax.child_axes  # no colours, no colour bar


def test_slice_along_a_line():
    ax = plot.slice(line_slice(), WAY)
    lines = labelled(ax)
    curve = lines["loss"].get_xydata()
    np.testing.assert_allclose(curve[:, 0], np.linspace(-2, 2, 41), atol=1e-6)
    np.testing.assert_allclose(curve[:, 1], curve[:, 0] ** 2 + 0.5, rtol=1e-5)
    np.testing.assert_allclose(lines["trajectory"].get_xydata(), [[2, 4.5], [1, 1.5], [0, 0.5]], rtol=1e-6)
    assert (lines["trajectory"].get_marker(), lines["trajectory"].get_linestyle()) == (".", "None")
    assert lines["_end"].get_xydata().tolist() == [[0, 0.5]]
    assert lines["trajectory"].get_color() != lines["loss"].get_color()
    assert texts(ax) == ["loss", "origin", "trajectory", "start"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == (line_slice().plane.names[0], "loss")
    assert (ax.get_xlim(), ax.get_yscale()) == ((-2, 2), "linear")
    assert plot.slice(line_slice(), log=True).get_yscale() == "log"
    assert plot.slice(line_slice(lambda p: loss(p) ** 2)).get_yscale() == "log"


def test_slices_along_several_lines():
    found = {"start": line_slice(), "end": line_slice(lambda p: jnp.where(p["w"][0] > 1.85, jnp.nan, 1 + loss(p)))}
    ax = plot.slice(found)
    assert texts(ax) == ["start", "end: 2 values not finite", "origin"]
    first, second, _ = ax.lines
    assert first.get_color() != second.get_color()
    assert np.isnan(second.get_ydata()).sum() == 2
    assert not ax.patches
    other = dataclasses.replace(line_slice().plane, names=("another",))
    ax = plot.slice(found | {"another": line_slice()._replace(plane=other)})
    assert ax.get_xlabel() == "along the line"


def test_slice_holes_along_a_line():
    ax = plot.slice(line_slice(lambda p: jnp.where(jnp.abs(p["w"][0]) > 1.55, jnp.nan, loss(p))), WAY)
    assert texts(ax) == ["loss", "origin", "10 values not finite", "trajectory", "start"]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
    np.testing.assert_allclose(spans, [(-2, -1.5), (1.5, 2)], rtol=1e-6)
    ax = plot.slice(line_slice(lambda p: loss(p) * NAN), WAY)
    assert texts(ax) == ["loss", "origin", "41 values not finite"]


def test_surface_of_a_slice():
    found = plane_slice()
    ax = plot.surface(found, found.plane.project(WAY))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == (*found.plane.names, "loss")
    np.testing.assert_allclose(
        ax.lines[0].get_data_3d()[2], np.log10([5.5, 2.5, found.values.min() * 1.349]), rtol=1e-2
    )
    text = refusal(ValueError, plot.surface, found, x=(0, 1))
    assert_words(text, "gradtx.plot.surface: x and y are given with a slice; allowed: None")
    text = refusal(ValueError, plot.surface, line_slice())
    assert_words(text, "the slice has one dimension; allowed: two", "plot.slice")
    for name in ("elevation", "azimuth"):
        text = refusal(TypeError, plot.surface, found, **{name: "high"})
        assert_words(text, f"gradtx.plot.surface: {name} is 'high'; allowed: a number, in degrees")


def test_what_slice_refuses():
    who, plane, line = "gradtx.plot.slice: ", plane_slice(), line_slice()
    for wrong in (np.ones(3), 1.0, None):
        text = refusal(TypeError, plot.slice, wrong)
        assert_words(text, f"{who}values is a {type(wrong).__name__}; allowed: what gradtx.landscape.slice_1d")
    assert_words(refusal(TypeError, plot.slice, {"a": 1.0}), f"{who}values['a'] is a float")
    assert_words(refusal(ValueError, plot.slice, {}), f"{who}values is empty; allowed: at least one slice")
    text = refusal(ValueError, plot.slice, {"a": line, "b": plane})
    assert_words(text, f"{who}values['b'] has two dimensions; allowed among several: one. Draw it alone")
    text = refusal(ValueError, plot.slice, plane, WAY, trajectories={"a": WAY})
    assert_words(text, f"{who}trajectory and trajectories are given; allowed: one of them")
    text = refusal(ValueError, plot.slice, {"a": line}, WAY)
    assert_words(text, f"{who}trajectories on 1 slices; allowed: on one. Pass the slice itself")
    text = refusal(TypeError, plot.slice, plane, trajectories=[WAY])
    assert_words(text, f"{who}trajectories is a list; allowed: a dict of them by name", "trajectory=")
    assert_words(refusal(ValueError, plot.slice, plane, {"w": jnp.ones((3, 2))}), "trajectory")
    assert_words(refusal(ValueError, plot.slice, line, levels=3), f"{who}levels is 3, but the slice has one dimension")
    text = refusal(ValueError, plot.slice, line_slice(lambda p: loss(p) - 0.5), log=True)
    assert_words(text, f"{who}log is True, but the loss goes down to 0", "Pass log=False")
    assert_words(refusal(TypeError, plot.slice, plane, ax=3), f"{who}ax is a int; allowed: one matplotlib Axes")
