"""Pictures of functions of two numbers: levels, trajectories, marks, holes."""

import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

from gradtx import landscape, plot
from gradtx.plot import heights
from tests.core.words import assert_words, refusal
from tests.plot.drawn import INF, NAN, bands_and_lines, labelled, texts

FUNCTIONS = landscape.functions
SQUARE = {"x": (-1.0, 1.0), "y": (-2.0, 2.0), "points": 41}


def contour(*args, **kwargs):
    """On axes that nothing draws."""
    return plot.contour(*args, ax=Figure().add_subplot(), **kwargs)


def plain(w):
    return w[0] + 10 * w[1]


def bowl(w):
    return w[0] ** 2 + w[1] ** 2


def holed(w):
    return jnp.where(w[0] > 0.9, jnp.nan, jnp.where(w[0] < -0.9, jnp.inf, w[1]))


# Levels ---------------------------------------------------------------------------------------------------------------


def test_contour_draws_lines_where_the_function_has_the_level():
    bands, lines = bands_and_lines(plot.contour(plain, **SQUARE))
    np.testing.assert_allclose(lines.levels, np.linspace(-21, 21, 22)[1:-1], rtol=1e-6)
    np.testing.assert_allclose(bands.levels, np.linspace(-21, 21, 22), rtol=1e-6)
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        x, y = path.vertices.T
        np.testing.assert_allclose(x + 10 * y, level, atol=1e-4)
    ax = bands.axes
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert ax.get_legend() is None  # there is nothing to explain


def test_colors_of_the_bands_are_light_and_rise_in_grey():
    bands, _ = bands_and_lines(contour(plain, **SQUARE))
    grey = bands.get_facecolor()[:, :3] @ [0.299, 0.587, 0.114]
    assert np.all(np.diff(grey) > 0)
    assert grey[0] > 0.65


@pytest.mark.parametrize(
    ("function", "log"),
    [("beale", True), ("rosenbrock", True), ("himmelblau", True), ("bowl", False), ("valley", False)]
    + [("saddle", False), ("monkey_saddle", False), ("rastrigin", False), ("ackley", False), ("booth", True)],
)
def test_levels_are_logarithmic_where_values_span_decades(function, log):
    bands, lines = bands_and_lines(contour(FUNCTIONS.EVERY[function], points=60))
    assert isinstance(bands.norm, matplotlib.colors.LogNorm) == log
    steps = np.diff(np.log(lines.levels) if log else lines.levels)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    assert 15 <= len(lines.levels) <= 20


def test_the_base_of_the_logarithm():
    def scale(add, **kwargs):
        values = np.linspace(0, 1000, 5000) ** 2 + add
        return heights.scale(values, 20, True, **kwargs)

    assert scale(0.0).base == scale(1e-3).base == 0  # as good as 0
    assert scale(1e5).base == 1e5
    assert scale(-7.0).base == -7
    assert scale(1e5, positive=True).base == 0
    assert scale(-7.0, positive=True).base == -7
    assert scale(1e5).label("f") == "f - 1e+05"
    assert scale(-7.0).label("f") == "f + 7"
    assert scale(0.0).label("f") == "f"


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


@pytest.mark.parametrize("draw", [plot.contour, plot.surface])
def test_flat_functions(draw):
    assert draw(lambda w: 3.0 + 0 * w[0], **SQUARE).has_data()
    assert draw(lambda w: 3.0, **SQUARE).has_data()


def test_a_plateau_alone_does_not_make_levels_logarithmic():
    bands, _ = bands_and_lines(contour(lambda w: jnp.maximum(w[0], 0), **SQUARE))
    assert not isinstance(bands.norm, matplotlib.colors.LogNorm)


def test_holes_are_hatched_behind_the_bands_and_counted():
    ax = plot.contour(holed, **SQUARE)
    (hatched,) = ax.patches
    assert (hatched.get_xy(), hatched.get_width(), hatched.get_height()) == ((-1, -2), 2, 4)
    assert hatched.get_hatch() == "///"
    assert hatched.get_zorder() < bands_and_lines(ax)[0].get_zorder()
    assert texts(ax) == ["164 values not finite"]  # two columns of 41 on each side
    for path in bands_and_lines(ax)[0].get_paths():
        assert np.all(np.abs(path.vertices[:, 0]) <= 0.9 + 1e-6)
    assert texts(plot.contour(lambda w: w[0] * NAN, **SQUARE)) == ["1681 values not finite"]
    one = plot.contour(lambda w: jnp.where(w[0] + w[1] < -2.95, jnp.inf, w[1]), **SQUARE)
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
    styles = {(lines[name].get_color(), str(lines[name]._dash_pattern)) for name in ways}
    assert len(styles) == 4
    assert lines["start"].get_xydata().tolist() == [[0.0, 0.0], [0.5, 1.5]]  # each once, those within
    assert texts(ax) == [*ways, "start"]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_trajectory_that_is_not_finite_ends_in_a_cross(bad):
    way = [[0.5, 1.5], [0.2, 0.1], [3.0, 0.0], [0.1, bad], [0.0, 0.0]]
    ax = contour(plain, way, **SQUARE)
    assert texts(ax)[0] == "trajectory: not finite from step 3"
    line, end, _ = ax.lines
    assert line.get_xydata().tolist() == way[:3]
    assert (end.get_marker(), end.get_xydata().tolist()) == ("x", [[0.2, 0.1]])
    ax = contour(plain, {"a": [[NAN, 0.0]]}, **SQUARE)
    assert texts(ax) == ["a: not finite from step 0"]


def test_minima_saddles_and_maxima():
    ax = plot.contour(FUNCTIONS.himmelblau, x=(-5, 0), points=20)
    lines = labelled(ax)
    assert list(lines) == ["minima", "saddles", "maximum"]
    assert [line.get_marker() for line in lines.values()] == ["*", "X", "^"]
    for name, points in (("minima", FUNCTIONS.himmelblau.minima), ("saddles", FUNCTIONS.himmelblau.saddles)):
        assert lines[name].get_xydata().tolist() == points[points[:, 0] <= 0].tolist()
    assert texts(plot.contour(FUNCTIONS.rastrigin, points=20)) == ["lowest of 121 minima"]


def test_a_function_without_noise_is_drawn():
    noisy = FUNCTIONS.noisy(FUNCTIONS.beale, 1.0)
    drawn, exact = (bands_and_lines(contour(f, points=20))[1] for f in (noisy, FUNCTIONS.beale))
    assert drawn.levels.tolist() == exact.levels.tolist()


def test_long_names_move_the_legend_above():
    name = "adam(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-08), then something else"
    for layout in (None, "constrained"):
        figure = Figure(figsize=(6, 4), layout=layout)
        ax = plot.contour(plain, {name: [[0.0, 0.0]]}, ax=figure.add_subplot(), **SQUARE)
        figure.draw_without_rendering()
        legend, picture = ax.get_legend().get_window_extent(), ax.get_window_extent()
        assert legend.y0 >= picture.y1
        assert legend.x1 < figure.bbox.x1
        assert legend.y1 < figure.bbox.y1 + 1
        assert texts(ax)[0].replace("\n", " ") == name


@pytest.mark.parametrize("draw", [plot.contour, plot.surface])
def test_what_contour_and_surface_refuse(draw):
    who = f"gradtx.plot.{draw.__name__}: "
    assert_words(refusal(TypeError, draw, 3.0), f"{who}function is a float; allowed: a function of a point", "beale")
    text = refusal(ValueError, draw, FUNCTIONS.rosenbrock.replace(dimension=10))
    assert_words(text, f"{who}rosenbrock has dimension 10; allowed: 2.", "gradtx.plot.slice")
    text = refusal(TypeError, draw, lambda w: w, x=(0, 1), y=(0, 1))
    assert_words(
        text, f"{who}<lambda> of an array of shape (2,) returns float32[2]; allowed: one real scalar", "jnp.sum"
    )
    text = refusal(ValueError, draw, plain, y=(0, 1))
    assert_words(text, f"{who}x is None, and the function has no domain of its own; allowed: (low, high)", "x=(-2.0")
    for wrong in (1.0, "ab", (1, 2, 3), (None, 1)):
        assert_words(refusal(TypeError, draw, plain, x=wrong, y=(0, 1)), f"x is {wrong!r}; allowed: (low, high)")
    for wrong in ((1.0, 1.0), (2, 1), (0, INF), (NAN, 1)):
        text = refusal(ValueError, draw, plain, x=(0, 1), y=wrong)
        assert_words(text, f"y is {wrong!r}; allowed: (low, high), finite, the lower first")
    for wrong in (1, 2001, 0):
        text = refusal(ValueError, draw, plain, x=(0, 1), y=(0, 1), points=wrong)
        assert_words(text, f"points is {wrong}; allowed: 2 to 2000")
    assert_words(refusal(TypeError, draw, FUNCTIONS.beale, points=2.0), "points is 2.0; allowed: an int")
    assert_words(refusal(ValueError, draw, FUNCTIONS.beale, levels=0), "levels is 0; allowed: 1 to 200")
    for wrong in ("many", 3.0, [], [[1.0]], [None]):
        assert_words(refusal(TypeError, draw, FUNCTIONS.beale, levels=wrong), f"levels is {wrong!r}; allowed: an int")
    for wrong in ([2.0, 1.0], [1.0, 1.0], [NAN]):
        assert_words(refusal(ValueError, draw, FUNCTIONS.beale, levels=wrong), "allowed: finite numbers that increase")
    for wrong in (3.0, np.ones(2), np.ones((4, 3)), np.ones((0, 2))):
        text = refusal(ValueError, draw, FUNCTIONS.beale, {"adam": wrong})
        assert_words(text, f"{who}trajectories['adam'] is an array of shape", "allowed: (steps, 2)", "plot.slice")
    for wrong in ("way", [[1.0, "a"]], [[1.0], [1.0, 2.0]], None):
        text = refusal(TypeError, draw, FUNCTIONS.beale, {"adam": wrong})
        assert_words(text, f"{who}trajectories['adam'] is a", "allowed: an array of shape (steps, 2)", "trajectory")
    assert_words(refusal(TypeError, draw, FUNCTIONS.beale, ax=[1, 2]), f"{who}ax is a list; allowed: one matplotlib")


def test_the_dimensions_of_the_axes():
    text = refusal(ValueError, plot.surface, bowl, ax=Figure().add_subplot(), **SQUARE)
    assert_words(text, "gradtx.plot.surface: ax has the projection 'rectilinear'; allowed: '3d'")
    assert_words(text, 'pyplot.subplots(subplot_kw={"projection": "3d"})')
    text = refusal(ValueError, plot.contour, bowl, ax=Figure().add_subplot(projection="3d"), **SQUARE)
    assert_words(text, "ax has the projection '3d'; allowed: 'rectilinear'", "figure, ax = pyplot.subplots().")


# In three dimensions --------------------------------------------------------------------------------------------------


def test_surface_lifts_trajectories_onto_the_function():
    way = [[0.5, 1.5], [-0.5, 1.0], [-3.0, 0.0], [0.5, 0.5]]
    ax = plot.surface(bowl, {"sgd": way, "adam": [[0.5, 1.5], [0.0, NAN]]}, elevation=20, azimuth=10, **SQUARE)
    line, end, diverged, cross, start = ax.lines
    x, y, z = line.get_data_3d()
    assert x.tolist()[:2] == [0.5, -0.5]
    assert y.tolist()[:2] == [1.5, 1.0]
    np.testing.assert_allclose(z, [2.5, 1.25, NAN, 0.5], rtol=1e-6)  # outside, nothing
    assert np.isnan(x[2])
    assert [axis.tolist() for axis in end.get_data_3d()] == [[0.5], [0.5], [0.5]]
    assert (end.get_marker(), cross.get_marker(), start.get_marker()) == ("o", "x", "+")
    assert texts(ax) == ["sgd", "adam: not finite from step 1", "start"]
    assert diverged.get_label() == texts(ax)[1]
    assert min(line.get_zorder() for line in ax.lines) > max(part.get_zorder() for part in ax.collections)
    assert not ax.computed_zorder
    assert (ax.elev, ax.azim) == (20, 10)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("x", "y", "f(x, y)")
    mesh = ax.collections[0]
    assert mesh.get_array().min() == pytest.approx(0, abs=0.01)
    assert mesh.get_array().max() == pytest.approx(5, abs=0.3)
    assert mesh.get_cmap().name == "viridis"


def test_surface_of_decades_has_heights_of_exponents():
    ax = plot.surface(FUNCTIONS.rosenbrock, [[-1.5, 2.0]], points=40)
    end = next(line for line in ax.lines if line.get_label() == "_end")
    assert end.get_data_3d()[2] == pytest.approx([np.log10(2.5**2 + 100 * 0.25**2)], rel=1e-5)
    minimum = labelled(ax)["minimum"].get_data_3d()
    assert [axis.tolist() for axis in minimum[:2]] == [[1], [1]]
    assert ax.zaxis.get_major_formatter()(2.0, 0) == "$10^{2}$"
    ax = plot.surface(FUNCTIONS.rosenbrock, [[-1.5, 2.0]], points=40, log=False)
    end = next(line for line in ax.lines if line.get_label() == "_end")
    assert end.get_data_3d()[2] == pytest.approx([2.5**2 + 100 * 0.25**2], rel=1e-5)


def test_surface_with_holes_and_without_a_value():
    ax = plot.surface(holed, **SQUARE)
    assert texts(ax) == ["164 values not finite"]
    assert len(ax.collections[0].get_array()) == 38 * 40  # cells with a finite corner
    ax = plot.surface(lambda w: w[0] * NAN, {"a": [[0.0, 0.0]]}, **SQUARE)
    assert texts(ax) == ["a", "start", "1681 values not finite"]


def test_heights_between_the_points_of_a_grid():
    grid = heights.Heights(
        np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0]), np.array([[0.0, 1.0, 3.0], [4.0, 5.0, 7.0]])
    )
    points = np.array([[0.0, 0.0], [2.0, 1.0], [3.0, 2.0], [3.1, 0.0], [0.0, NAN]])
    np.testing.assert_allclose(grid.at(points), [0.0, 4.0, 7.0, NAN, NAN])
