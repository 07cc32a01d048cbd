"""Pictures of slices: planes as colours and in three dimensions, lines as curves, trajectories projected on them."""

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest

from gradtx import landscape, plot
from tests.plot.drawn import NAN, bands_and_lines, labelled, on_axes, texts

PARAMS = {"w": jnp.zeros(2), "b": jnp.zeros(())}
FIRST, SECOND = {"w": jnp.array([1.0, 0.0]), "b": jnp.zeros(())}, {"w": jnp.zeros(2), "b": jnp.ones(())}
WAY = {"w": jnp.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), "b": jnp.array([1.0, 1.0, 0.0])}
draw = on_axes(plot.slice)


def plane_slice(loss=lambda a, b: a**2 + b**2 + 0.5):
    x, y = np.linspace(-3.0, 3.0, 25), np.linspace(-2.0, 2.0, 25)
    return landscape.Slice(loss(*np.meshgrid(x, y)), x, y, landscape.plane_through(PARAMS, FIRST, SECOND))


def line_slice(loss=lambda a: a**2 + 0.5, name="x"):
    x = np.linspace(-2.0, 2.0, 41)
    return landscape.Slice(loss(x), x, None, landscape.Plane(PARAMS, (FIRST,), (name,)))


def test_slice_shows_a_plane_with_projected_trajectories():
    found = plane_slice()
    ax = plot.slice(found, WAY)
    bands, lines = bands_and_lines(ax)
    assert isinstance(bands.norm, matplotlib.colors.LogNorm)
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        if len(path.vertices):
            np.testing.assert_allclose((path.vertices**2).sum(axis=1) + 0.5, level, atol=0.1)
    np.testing.assert_allclose(labelled(ax)["trajectory"].get_xydata(), [[2, 1], [1, 1], [0, 0]], atol=1e-6)
    assert labelled(ax)["origin"].get_xydata().tolist() == [[0, 0]]
    assert texts(ax) == ["trajectory", "start", "origin"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == found.plane.names
    (bar,) = ax.child_axes
    assert (bar.get_ylabel(), bar.get_yscale()) == ("loss", "log")
    assert bar.get_ylim() == pytest.approx(bands.get_clim())
    assert bar.get_ylim()[1] == pytest.approx(13.5)
    several = draw(found, trajectories={"a": WAY, "b": jax.tree.map(lambda leaf: leaf * NAN, WAY)})
    assert texts(several)[:2] == ["a", "b: not finite from step 0"]


def test_slice_scales():
    below = plane_slice(lambda a, b: a**2 + b**2 - 4.5)
    for found, log, label, scale in (
        (below, None, "loss", "linear"),
        (below, True, "loss + 4.5", "log"),
        (plane_slice(), False, "loss", "linear"),
    ):
        (bar,) = draw(found, log=log).child_axes
        assert (bar.get_ylabel(), bar.get_yscale()) == (label, scale)
    _, lines = bands_and_lines(draw(plane_slice(), levels=[1.0, 2.0]))
    assert lines.levels.tolist() == [1, 2]


def test_slice_with_coordinates_in_any_order():
    found = plane_slice(lambda a, b: a + 3 * b)
    mixed = found._replace(x=found.x[::-1], y=found.y[::-1], values=found.values[::-1, ::-1])
    (a, _), (b, _) = (bands_and_lines(draw(each)) for each in (found, mixed))
    for one, other in zip(a.get_paths(), b.get_paths(), strict=True):
        np.testing.assert_array_equal(one.vertices, other.vertices)
    mixed = line_slice()._replace(x=np.array([1.0, -1.0, 0.0]), values=np.array([3.0, 1.0, 2.0]))
    assert labelled(draw(mixed))["loss"].get_xydata().tolist() == [[-1, 1], [0, 2], [1, 3]]
    thirds = line_slice()._replace(x=np.arange(3) / 3, values=np.arange(3) / 7)
    assert labelled(draw(thirds))["loss"].get_xydata().tolist() == [[i / 3, i / 7] for i in range(3)]


def test_slice_holes():
    ax = draw(plane_slice(lambda a, b: np.where(a > 2.9, np.inf, a**2 + b**2)))
    assert texts(ax) == ["25 values not finite", "origin"]
    assert ax.patches[0].get_hatch() == "///"
    ax = draw(plane_slice(lambda a, b: a * NAN))
    assert texts(ax)[0] == "625 values not finite"
    assert not ax.child_axes  # no colours, no colour bar


def test_slice_along_a_line():
    ax = draw(line_slice(), WAY)
    lines = labelled(ax)
    np.testing.assert_allclose(lines["loss"].get_xydata(), np.stack([line_slice().x, line_slice().values], axis=1))
    np.testing.assert_allclose(lines["trajectory"].get_xydata(), [[2, 4.5], [1, 1.5], [0, 0.5]], rtol=1e-6, atol=1e-6)
    assert (lines["trajectory"].get_marker(), lines["trajectory"].get_linestyle()) == (".", "None")
    np.testing.assert_allclose(lines["_end"].get_xydata(), [[0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(lines["start"].get_xydata(), [[2, 4.5]], rtol=1e-6)
    assert lines["trajectory"].get_color() != lines["loss"].get_color()
    assert texts(ax) == ["loss", "origin", "trajectory", "start"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "loss")
    assert (ax.get_xlim(), ax.get_yscale()) == ((-2, 2), "linear")
    assert draw(line_slice(), log=True).get_yscale() == "log"
    assert draw(line_slice(lambda a: a**2 + 0.4)).get_yscale() == "log"  # more than a decade
    aside = line_slice()._replace(x=np.linspace(0.5, 1, 41))
    assert texts(draw(aside)) == ["loss"]  # without the origin


def test_slices_along_several_lines():
    found = {"start": line_slice(), "end": line_slice(lambda a: np.where(a > 1.85, np.nan, 1 + a**2))}
    ax = draw(found)
    assert texts(ax) == ["start", "end: 2 values not finite", "origin"]
    first, second, _ = ax.lines
    assert first.get_color() != second.get_color()
    assert np.isnan(second.get_ydata()).sum() == 2
    assert not ax.patches
    assert draw(found | {"another": line_slice(name="another")}).get_xlabel() == "along the line"


def test_slice_holes_along_a_line():
    ax = draw(line_slice(lambda a: np.where(np.abs(a) > 1.55, np.nan, a**2 + 0.5)), WAY)
    assert texts(ax) == ["loss", "origin", "10 values not finite", "trajectory", "start"]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
    np.testing.assert_allclose(spans, [(-2, -1.5), (1.5, 2)], rtol=1e-6)
    ax = draw(line_slice(lambda a: np.where(np.abs(a - 1) < 0.01, np.nan, a)))
    assert texts(ax) == ["loss", "origin", "1 value not finite"]
    assert (ax.patches[0].get_x(), ax.patches[0].get_width()) == (pytest.approx(0.9), pytest.approx(0.2))
    assert texts(draw(line_slice(lambda a: a * NAN), WAY)) == ["loss", "origin", "41 values not finite"]


def test_surface_of_a_slice():
    found = plane_slice()
    ax = on_axes(plot.surface, three=True)(found, found.plane.project(WAY))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == (*found.plane.names, "loss")
    low = np.log10(np.quantile(found.values, 0.02))  # what is lower is drawn as high as this
    np.testing.assert_allclose(ax.lines[0].get_data_3d()[2], [np.log10(5.5), np.log10(2.5), low], rtol=1e-5)
