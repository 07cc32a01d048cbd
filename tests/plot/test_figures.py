"""What all pictures have in common: figures, legends, scales, styles, and what to install."""

import importlib
import itertools
import json
import sys

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from gradtx import plot
from gradtx.plot import axes
from tests.plot.described import FILE, described, differences
from tests.plot.drawn import EVERY, PICTURES, plain, square, texts

SIZES = {"losses": (7.5, 4), "compare": (8, 4.4), "sensitivity": (8.5, 5), "heat_map": (7, 4.8), "contour": (7.5, 4.8)}
SIZES |= {"plane": (7, 5), "line": (7, 4.2), "spectrum": (7.5, 4.2), "learning_rate": (6.5, 3.6), "surface": (7, 6.2)}


def assert_legend_beside(ax):
    figure = ax.figure
    figure.draw_without_rendering()
    legend, picture = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert not legend.padded(-6).overlaps(picture)
    for part in (legend, picture, *(strip.get_window_extent() for strip in ax.child_axes)):
        assert min(part.x0, part.y0) >= 0
        assert part.x1 <= figure.bbox.x1
        assert part.y1 <= figure.bbox.y1
    assert picture.width > 0.35 * figure.bbox.width


@pytest.mark.parametrize("name", EVERY)
def test_a_figure_is_made_only_without_axes_and_no_legend_lies_on_the_data(name):
    figure = Figure(figsize=(8, 5))
    ax = figure.add_subplot(projection="3d" if name == "surface" else None)
    assert EVERY[name](ax=ax) is ax
    assert ax.has_data()
    assert not pyplot.get_fignums()
    made = EVERY[name]()
    assert pyplot.get_fignums() == [made.figure.number]
    assert tuple(made.figure.get_size_inches()) == SIZES[name]
    assert type(made.figure.get_layout_engine()).__name__ == "ConstrainedLayoutEngine"
    if name != "learning_rate":
        assert_legend_beside(ax)
        assert_legend_beside(made)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_look_as_they_are_committed(name):
    committed = json.loads(FILE.read_text())
    was = {part.removeprefix(f"{name}: "): value for part, value in committed.items() if part.startswith(f"{name}: ")}
    assert not differences(was, described(name))


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in EVERY if name != "learning_rate"])
def test_nor_in_a_tight_layout(name):
    figure = Figure(figsize=(8, 5), layout="tight")
    assert_legend_beside(EVERY[name](ax=figure.add_subplot(projection="3d" if name == "surface" else None)))


def test_long_names_move_the_legend_above():
    name = "adam(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-08), then something else"
    for layout in (None, "constrained"):
        figure = Figure(figsize=(6, 4), layout=layout)
        ax = plot.contour(plain, {name: [[0.0, 0.0]]}, ax=figure.add_subplot(), **square(9))
        figure.draw_without_rendering()
        legend, picture = ax.get_legend().get_window_extent(), ax.get_window_extent()
        assert legend.y0 >= picture.y1
        assert not ax.get_legend().get_frame_on()
        assert legend.x1 < figure.bbox.x1
        assert legend.y1 < figure.bbox.y1 + 1
        assert texts(ax)[0].replace("\n", " ") == name


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ((0.3, 0.8), ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]),
        ((0.9, 5.0), ["1", "2", "5"]),
        ((0.9, 60.0), ["1", "2", "5", "10", "20", "50"]),
        ((0.9, 850.0), ["1", "2", "5", "10", "20", "50", "100", "200", "500"]),
        ((0.9, 950.0), ["$10^{0}$", "$10^{1}$", "$10^{2}$"]),
        ((1e-4, 10.0), ["$10^{-4}$", "$10^{-3}$", "$10^{-2}$", "$10^{-1}$", "$10^{0}$", "$10^{1}$"]),
    ],
)
def test_log_scales_are_labelled(limits, shown):
    for which in ("x", "y"):
        ax = Figure().add_subplot()
        axes.log_scale(ax, which)
        ax.set(**{f"{which}lim": limits})
        axis = getattr(ax, f"{which}axis")
        ticks = [*axis.get_majorticklocs(), *axis.get_minorticklocs()]
        names = [label(tick, 0) for label in (axis.get_major_formatter(),) for tick in ticks]
        low, high = limits
        pairs = {(t, n) for t, n in zip(ticks, names, strict=True) if n and 0.999 * low <= t <= 1.001 * high}
        assert [name for _, name in sorted(pairs)] == shown
        assert axis.get_minor_formatter()(1.0, 0) == axis.get_major_formatter()(1.0, 0)


def test_36_styles_differ_and_neighbours_in_color_and_line():
    styles = [axes.style(i) for i in range(37)]
    assert len({(s.color, s.line) for s in styles[:36]}) == 36
    for a, b in itertools.pairwise(styles):
        assert (a.color != b.color, a.line != b.line, a.marker != b.marker) == (True, True, True)


def test_without_matplotlib_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gradtx.plot.axes")
    with pytest.raises(ImportError, match=r"gradtx.plot: matplotlib .* pip install 'gradtx\[plot\]'"):
        importlib.import_module("gradtx.plot.axes")
