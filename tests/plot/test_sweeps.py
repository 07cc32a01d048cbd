"""Pictures of sweeps: the loss against a hyperparameter, and against two."""

from types import SimpleNamespace

import matplotlib
import matplotlib.colors
import numpy as np
import pytest

from gradtx import plot
from tests.plot.drawn import GRID, INF, NAN, TABLE, labelled, on_axes, sweep, texts

sensitivity, heat_map = on_axes(plot.sensitivity), on_axes(plot.heat_map)


@pytest.mark.parametrize("kind", ["lists", "arrays", "result"])
def test_sensitivity_draws_medians_bands_and_what_diverged(kind):
    table = TABLE if kind == "lists" else {name: np.array(column) for name, column in TABLE.items()}
    ax = sensitivity(SimpleNamespace(table=table) if kind == "result" else table)
    lines = labelled(ax)
    assert texts(ax) == ["sgd, best at 0.1", "adam, best at 0.001"]  # adadelta has no learning rate
    sgd, adam = (lines[label] for label in texts(ax))
    assert sgd.get_xdata().tolist() == [0.01, 0.1, 1.0]
    np.testing.assert_array_equal(sgd.get_ydata(), [0.8, 0.3, NAN])
    assert adam.get_xdata().tolist() == [0.001, 0.01, 0.1, 1.0]
    np.testing.assert_array_equal(adam.get_ydata(), [0.2, 0.5, NAN, NAN])
    band, _ = (collection.get_paths()[0].vertices for collection in ax.collections)
    assert {tuple(point) for point in band} == {(0.01, 0.6), (0.01, 1.0), (0.1, 0.2), (0.1, 0.7)}
    best = [line for line in ax.lines if line.get_markeredgecolor() == "black"]
    assert [(line.get_xdata().item(), line.get_ydata().item()) for line in best] == [(0.1, 0.3), (0.001, 0.2)]
    (strip,) = ax.child_axes
    assert [line.get_marker() for line in strip.lines] == ["x", "x"]
    assert [line.get_color() for line in strip.lines] == [sgd.get_color(), adam.get_color()]
    assert [line.get_xdata().tolist() for line in strip.lines] == [[1.0], [0.1, 1.0]]
    assert [line.get_ydata().tolist() for line in strip.lines] == [[0], [1, 1]]
    assert strip.get_ylim()[0] > strip.get_ylim()[1]  # in the order of the legend
    assert strip.get_xlim() == ax.get_xlim()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "final loss")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_legend().get_title().get_text() == "median of 3 seeds,\nband: lowest to highest"


def test_sensitivity_of_one_seed_has_no_band_and_without_divergence_no_strip():
    ax = sensitivity({"optimizer": ["sgd"] * 2, "learning_rate": [0.1, 0.2], "final_loss": [1.0, 2.0]})
    assert not ax.collections
    assert not ax.child_axes
    assert not ax.get_legend().get_title().get_text()


def test_sensitivity_of_a_score():
    table = {"optimizer": ["sgd"] * 3, "b1": [0.5, 0.8, 0.9], "accuracy": [0.5, 0.9, 0.7]}
    ax = sensitivity(table, x="b1", y="accuracy", best="highest")
    assert texts(ax) == ["sgd, best at 0.8"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")
    wide = sensitivity(table | {"b1": [0.1, 0.5, 1.0]}, x="b1", y="accuracy", best="lowest")
    assert (wide.get_xscale(), texts(wide)) == ("log", ["sgd, best at 0.1"])
    assert sensitivity(table, x="b1", y="accuracy", best="lowest").get_yscale() == "log"
    assert sensitivity(table, x="b1", y="accuracy", best="lowest", log=False).get_yscale() == "linear"


def test_sensitivity_where_everything_diverged():
    ax = sensitivity(sweep([("sgd", 0.1, (NAN, None)), ("sgd", 1.0, (INF, INF))]))
    assert texts(ax) == ["sgd, diverged everywhere"]
    assert ax.child_axes[0].lines[0].get_xdata().tolist() == [0.1, 1.0]
    low, high = ax.get_xlim()
    assert low < 0.1 < 1.0 < high


def test_heat_map_draws_means_divergence_and_the_best():
    ax = heat_map(GRID)
    cells, hatched = ax.collections
    np.testing.assert_allclose(cells.get_array().filled(NAN), [[2.0, NAN, 5.0], [0.6, 0.3, NAN]])
    assert isinstance(cells.norm, matplotlib.colors.LogNorm)
    assert (cells.norm.vmin, cells.norm.vmax) == pytest.approx((0.3, 5.0))
    assert [tuple(path.vertices[0]) for path in hatched.get_paths()] == [(0.5, -0.5), (1.5, 0.5)]
    assert hatched.get_hatch() == "///"
    outer, inner = ax.patches
    assert outer.get_xy() == inner.get_xy() == (0.5, 0.5)
    assert outer.get_edgecolor() != inner.get_edgecolor()
    assert texts(ax) == ["best: learning rate 0.1, b1 0.9", "diverged"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "0.9"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "b1")
    bar = cells.colorbar.ax
    assert bar.get_ylabel() == "final loss of sgd,\nmean over 2 seeds"
    assert [bar.yaxis.get_major_formatter()(value, 0) for value in (0.5, 2.0)] == ["0.5", "2"]


def test_heat_map_of_a_score_and_of_other_scales():
    ax = heat_map(GRID | {"final_loss": [-1.0, *GRID["final_loss"][1:]]})
    assert not isinstance(ax.collections[0].norm, matplotlib.colors.LogNorm)
    ax = heat_map(GRID | {"score": GRID["final_loss"]}, z="score", best="highest", log=True)
    assert texts(ax)[0] == "best: learning rate 1, b1 0"
    assert isinstance(ax.collections[0].norm, matplotlib.colors.LogNorm)


def test_heat_map_of_one_value_and_of_none():
    table = {"optimizer": ["sgd"], "learning_rate": [0.1], "b1": [0.9], "final_loss": [0.5]}
    ax = heat_map(table)
    assert ax.collections[0].get_array().tolist() == [[0.5]]
    assert (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) == (0.25, 1.0)
    ax = heat_map(table, log=False)
    assert (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) == (0.0, 1.0)
    three = {name: column * 3 for name, column in table.items()} | {"b1": [0.9, 0.9, 0.8]}
    assert heat_map(three).collections[0].colorbar.ax.get_ylabel() == "final loss of sgd,\nmean over the seeds"
    assert ax.collections[0].colorbar.ax.get_ylabel() == "final loss of sgd"
    ax = heat_map(table | {"final_loss": [NAN]})
    assert [collection.get_hatch() for collection in ax.collections] == ["///"]
    assert texts(ax) == ["diverged"]
    assert len(ax.figure.axes) == 1  # no colours, no colour bar
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 0.5), (-0.5, 0.5))


def test_heat_map_with_many_cells_names_some():
    for count, every, turned in ((6, 1, 0), (7, 1, 45), (12, 1, 45), (13, 2, 45), (30, 3, 45)):
        rates = np.logspace(-4, 0, count)
        ax = heat_map({"optimizer": ["sgd"] * count, "learning_rate": rates, "b1": [0.9] * count, "final_loss": rates})
        assert ax.get_xticks().tolist() == list(range(0, count, every))
        assert ax.get_xticklabels()[0].get_text() == "0.0001"
        assert ax.get_xticklabels()[0].get_rotation() == turned
