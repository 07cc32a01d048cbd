"""Pictures of functions of two numbers: levels, trajectories, marks, holes."""

from types import SimpleNamespace

import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

from gradtx import landscape, plot
from gradtx.plot import heights, trails
from tests.plot.drawn import INF, NAN, bands_and_lines, bowl, holed, labelled, on_axes, plain, square, texts

FUNCTIONS, SQUARE = landscape.functions, square()
contour, surface = on_axes(plot.contour), on_axes(plot.surface, three=True)

# Levels ---------------------------------------------------------------------------------------------------------------


def test_contour_draws_light_bands_and_lines_where_the_function_has_the_level():
    ax = contour(plain, **SQUARE)
    bands, lines = bands_and_lines(ax)
    np.testing.assert_allclose(lines.levels, np.linspace(-21, 21, 22)[1:-1], rtol=1e-6)
    np.testing.assert_allclose(bands.levels, np.linspace(-21, 21, 22), rtol=1e-6)
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        np.testing.assert_allclose(path.vertices @ [1, 10], level, atol=1e-4)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert ax.get_legend() is None  # there is nothing to explain
    grey = bands.get_facecolor()[:, :3] @ [0.299, 0.587, 0.114]
    assert np.all(np.diff(grey) > 0)
    assert grey[0] > 0.65


@pytest.mark.parametrize(
    ("function", "log"),
    [("beale", True), ("rosenbrock", True), ("himmelblau", True), ("bowl", False), ("valley", False)]
    + [("saddle", False), ("rastrigin", False), ("ackley", False), ("booth", True)],
)
def test_levels_are_logarithmic_where_values_span_decades(function, log):
    function = FUNCTIONS.EVERY[function]
    grid = [np.linspace(*side, 60) for side in function.domain]
    values = heights.values("", function)(np.stack(np.meshgrid(*grid), axis=-1))
    scale = heights.scale(values, 20, None)
    assert scale.log == isinstance(scale.norm(), matplotlib.colors.LogNorm) == log
    steps = np.diff(np.log(scale.lines) if log else scale.lines)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    assert 15 <= len(scale.lines) <= 20


def test_the_base_and_the_lowest_level_of_the_logarithm():
    def scale(add, **kwargs):
        return heights.scale(np.linspace(0, 1000, 5000) ** 2 + add, 20, True, **kwargs)

    assert scale(0.0).base == scale(1e-3).base == 0  # as good as 0
    assert scale(1e5).base == 1e5
    assert scale(-7.0).base == -7
    assert scale(1e5, positive=True).base == 0
    assert scale(-7.0, positive=True).base == -7
    assert [scale(add).label("f") for add in (1e5, -7.0, 0.0)] == ["f - 1e+05", "f + 7", "f"]
    for lowest in (0.002, 0.02):  # the fraction of the values below the lowest level
        edges = scale(0.0, lowest=lowest).edges
        assert (len(edges), edges[-1]) == (21, 1e6)
        assert edges[0] == pytest.approx(np.quantile(np.linspace(0, 1000, 5000)[1:] ** 2, lowest))
    assert heights.scale(np.array([NAN, INF]), 20, None) is None
    flat = heights.scale(np.full(5, 3.0), 20, None)
    assert (flat.log, flat.edges.tolist(), flat.lines.size) == (False, [2.5, 3.5], 0)
    plateau = np.maximum(np.linspace(-1, 1, 1000), 0)
    assert not heights.scale(plateau, 20, None).log  # alone it makes no decades
    assert [heights.scale(np.array([1.0, high]), 20, None, positive=True).log for high in (9.9, 10.1)] == [False, True]
    spread = [heights.scale(np.array([0.0, *[1.0] * 200, high]), 20, None).log for high in (299.0, 301.0)]
    assert spread == [False, True]


def test_levels_that_are_given():
    bands, lines = bands_and_lines(contour(plain, levels=[-100, -5.0, 0, 7], **SQUARE))
    assert lines.levels.tolist() == [-5, 0, 7]  # those that occur
    assert bands.levels.tolist() == [-21, -5, 0, 7, 21]
    _, lines = bands_and_lines(contour(plain, levels=6, **SQUARE))
    np.testing.assert_allclose(lines.levels, np.linspace(-21, 21, 8)[1:-1], rtol=1e-6)
    _, lines = bands_and_lines(contour(bowl, levels=np.array([1, 4]), log=True, **SQUARE))
    assert lines.levels.tolist() == [1, 4]
    _, lines = bands_and_lines(contour(plain, levels=[100.0], **SQUARE))
    assert lines is None
    assert heights.read_levels("", [1.0, 1.0 + 1e-12]).tolist() == [1.0, 1.0 + 1e-12]


def test_holes_are_hatched_behind_the_bands_and_counted():
    ax = contour(holed, **SQUARE)
    (hatched,) = ax.patches
    assert (hatched.get_xy(), hatched.get_width(), hatched.get_height()) == ((-1, -2), 2, 4)
    assert hatched.get_hatch() == "///"
    assert hatched.get_zorder() < bands_and_lines(ax)[0].get_zorder()
    assert texts(ax) == ["164 values not finite"]  # two columns of 41 on each side
    for path in bands_and_lines(ax)[0].get_paths():
        assert np.all(np.abs(path.vertices[:, 0]) <= 0.9 + 1e-6)
    one = contour(lambda w: jnp.where(w[0] + w[1] < -2.95, jnp.inf, w[1]), **SQUARE)
    assert texts(one) == ["1 value not finite"]


# Trajectories and marks -----------------------------------------------------------------------------------------------


def test_trajectories_end_in_a_dot_within_the_picture():
    stays, leaves = [[0.5, 1.5], [0.2, 0.1]], [[0.5, 1.5], [-0.7, 1.0], [-3.0, 0.0], [-4.0, 0.0]]
    returns, outside = [[0.0, 0.0], [0.0, 9.0], [0.5, 0.5]], [[5.0, 5.0], [6.0, 6.0]]
    ways = {"stays": stays, "leaves": jnp.array(leaves), "returns": np.array(returns), "outside": outside}
    ax = contour(plain, ways, **SQUARE)
    lines = labelled(ax)
    for name, way in ways.items():
        np.testing.assert_allclose(lines[name].get_xydata(), way, rtol=1e-6)
    dots = [line for line in ax.lines if line.get_label() == "_end"]
    np.testing.assert_allclose([dot.get_xydata()[0] for dot in dots], [[0.2, 0.1], [-0.7, 1.0], [0.5, 0.5]], rtol=1e-6)
    assert [dot.get_marker() for dot in dots] == ["o"] * 3
    assert [dot.get_color() for dot in dots] == [lines[name].get_color() for name in ("stays", "leaves", "returns")]
    assert len({(lines[name].get_color(), str(lines[name]._dash_pattern)) for name in ways}) == 4
    assert lines["start"].get_xydata().tolist() == [[0.0, 0.0], [0.5, 1.5]]  # each once, those within
    assert texts(ax) == [*ways, "start"]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))


def test_a_trajectory_that_is_not_finite_ends_in_a_cross():
    for bad in (NAN, INF, -INF):
        way = [[0.5, 1.5], [0.2, 0.1], [3.0, 0.0], [0.1, bad], [0.0, 0.0]]
        ax = contour(plain, way, **SQUARE)
        assert texts(ax)[0] == "trajectory: not finite from step 3"
        line, end, _ = ax.lines
        assert line.get_xydata().tolist() == way[:3]
        assert (end.get_marker(), end.get_xydata().tolist()) == ("x", [[0.2, 0.1]])
    assert texts(contour(plain, {"a": [[NAN, 0.0]]}, **SQUARE)) == ["a: not finite from step 0"]


def test_minima_saddles_and_maxima():
    ax = contour(FUNCTIONS.himmelblau, x=(-5, 0), points=20)
    lines = labelled(ax)
    assert list(lines) == ["minima", "saddles", "maximum"]
    assert [line.get_marker() for line in lines.values()] == ["*", "X", "^"]
    for name, points in (("minima", FUNCTIONS.himmelblau.minima), ("saddles", FUNCTIONS.himmelblau.saddles)):
        assert lines[name].get_xydata().tolist() == points[points[:, 0] <= 0].tolist()
    ax = contour(FUNCTIONS.rastrigin, points=20)
    assert texts(ax) == ["lowest of 121 minima"]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0]], atol=1e-9)
    noisy = FUNCTIONS.noisy(FUNCTIONS.himmelblau, 1.0)  # is drawn without its noise
    drawn, exact = (bands_and_lines(contour(f, points=20))[1] for f in (noisy, FUNCTIONS.himmelblau))
    assert drawn.levels.tolist() == exact.levels.tolist()


def test_of_very_many_minima_the_lowest_is_marked():
    for count, label in ((1, "minimum"), (30, "minima"), (31, "lowest of 31 minima")):
        ax, points = Figure().add_subplot(), np.linspace(-1, 1, 2 * count).reshape(count, 2)
        trails.draw_points(ax, SimpleNamespace(minima=points, saddles=np.zeros((31, 2))), [(-1.0, 1.0)] * 2)
        assert [line.get_label() for line in ax.lines] == [label]  # and of very many saddles none
        assert ax.lines[0].get_xydata().tolist() == points[: 1 if count == 31 else count].tolist()


def test_a_trail_until_a_step():
    whole = trails.Trail("a", np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0], [NAN, 0.0]]))
    assert (whole.finite, whole.ended, whole.last([(0.0, 2.0), (-1.0, 1.0)])) == (4, True, 2)
    for step, length, first in ((3, None, 0), (3, 2, 1), (1, 2, 0)):
        seen = whole.until(step, length)
        assert (len(seen.points), seen.first, seen.ended) == (step + 1, first, False)
    assert whole.last([(5.0, 6.0), (-1.0, 1.0)]) is None
    assert trails.Trail("a " * 30, whole.points[:1]).label == "a " * 21 + "a\n" + "a " * 7 + "a"


# In three dimensions --------------------------------------------------------------------------------------------------


def test_surface_lifts_trajectories_onto_the_function():
    way = [[0.5, 1.5], [-0.5, 1.0], [-3.0, 0.0], [0.5, 0.5]]
    ax = surface(bowl, {"sgd": way, "adam": [[0.5, 1.5], [0.0, NAN]]}, elevation=20, azimuth=10, **SQUARE)
    line, end, diverged, cross, start = ax.lines
    x, y, z = line.get_data_3d()
    assert (x.tolist()[:2], y.tolist()[:2]) == ([0.5, -0.5], [1.5, 1.0])
    np.testing.assert_allclose(z, [2.5, 1.25, NAN, 0.5], rtol=1e-6)  # outside, nothing
    assert np.isnan(x[2])
    assert [axis.tolist() for axis in end.get_data_3d()] == [[0.5], [0.5], [0.5]]
    assert (end.get_marker(), cross.get_marker(), start.get_marker()) == ("o", "x", "+")
    assert texts(ax) == ["sgd", "adam: not finite from step 1", "start"]
    assert diverged.get_label() == texts(ax)[1]
    assert min(line.get_zorder() for line in ax.lines) > max(part.get_zorder() for part in ax.collections)
    assert (ax.computed_zorder, ax.elev, ax.azim) == (False, 20, 10)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("x", "y", "f(x, y)")
    mesh = ax.collections[0]
    assert mesh.get_array().min() == pytest.approx(0, abs=0.01)
    assert mesh.get_array().max() == pytest.approx(5, abs=0.3)
    assert mesh.get_cmap().name == "viridis"


def test_surface_of_decades_has_heights_of_exponents():
    exact = 2.5**2 + 100 * 0.25**2
    for log, height in ((None, np.log10(exact)), (False, exact)):
        ax = surface(FUNCTIONS.rosenbrock, [[-1.5, 2.0]], points=20, log=log)
        assert labelled(ax)["_end"].get_data_3d()[2] == pytest.approx([height], rel=1e-5)
        assert [axis.tolist() for axis in labelled(ax)["minimum"].get_data_3d()[:2]] == [[1], [1]]
        assert (ax.zaxis.get_major_formatter()(2.0, 0) == "$10^{2}$") == (log is None)


def test_surface_with_holes_and_without_a_value():
    ax = surface(holed, **SQUARE)
    assert texts(ax) == ["164 values not finite"]
    assert len(ax.collections[0].get_array()) == 38 * 40  # cells with a finite corner
    ax = surface(lambda w: w[0] * NAN, {"a": [[0.0, 0.0]]}, **SQUARE)
    assert texts(ax) == ["a", "start", "1681 values not finite"]
    assert surface(lambda w: 3.0, **SQUARE).has_data()


def test_heights_between_the_points_of_a_grid():
    grid = heights.Heights(
        np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0]), np.array([[0.0, 1.0, 3.0], [4.0, 5.0, 9.0]])
    )
    points = np.array([[0.0, 0.0], [2.0, 1.0], [3.0, 2.0], [3.1, 0.0], [0.0, NAN], [0.5, 0.5], [1.0, -0.1]])
    np.testing.assert_allclose(grid.at(points), [0.0, 4.5, 9.0, NAN, NAN, 1.5, NAN])
    assert grid.box == ((0.0, 3.0), (0.0, 2.0))
