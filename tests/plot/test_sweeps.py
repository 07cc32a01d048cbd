"""Pictures of sweeps: the loss against a hyperparameter, and against two."""

from types import SimpleNamespace

import matplotlib
import matplotlib.colors
import numpy as np
import pytest

from gradtx import plot
from tests.core.words import assert_words, refusal
from tests.plot.drawn import GRID, INF, NAN, TABLE, labelled, sweep, texts

# Sweeps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lists", "arrays", "result"])
def test_sensitivity_draws_medians_bands_and_what_diverged(kind):
    table = TABLE if kind == "lists" else {name: np.array(column) for name, column in TABLE.items()}
    ax = plot.sensitivity(SimpleNamespace(table=table) if kind == "result" else table)
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
    ax = plot.sensitivity({"optimizer": ["sgd"] * 2, "learning_rate": [0.1, 0.2], "final_loss": [1.0, 2.0]})
    assert not ax.collections
    assert not ax.child_axes
    assert not ax.get_legend().get_title().get_text()


def test_sensitivity_of_a_score():
    table = {"optimizer": ["sgd"] * 3, "b1": [0.5, 0.8, 0.9], "accuracy": [0.5, 0.9, 0.7]}
    ax = plot.sensitivity(table, x="b1", y="accuracy", best="highest")
    assert texts(ax) == ["sgd, best at 0.8"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")
    assert plot.sensitivity(table, x="b1", y="accuracy", best="lowest").get_yscale() == "log"
    assert plot.sensitivity(table, x="b1", y="accuracy", best="lowest", log=False).get_yscale() == "linear"
    text = refusal(ValueError, plot.sensitivity, table, x="b1", y="accuracy")
    assert_words(
        text, "gradtx.plot.sensitivity: best is None for the column 'accuracy'; allowed: 'lowest' or 'highest'"
    )
    refusal(ValueError, plot.sensitivity, TABLE, best="least")


def test_sensitivity_where_everything_diverged():
    ax = plot.sensitivity(sweep([("sgd", 0.1, (NAN, None)), ("sgd", 1.0, (INF, INF))]))
    assert texts(ax) == ["sgd, diverged everywhere"]
    assert ax.child_axes[0].lines[0].get_xdata().tolist() == [0.1, 1.0]
    low, high = ax.get_xlim()
    assert low < 0.1 < 1.0 < high


def rows_of(table, keep):
    return {name: [value for value, kept in zip(column, keep, strict=True) if kept] for name, column in table.items()}


def test_heat_map_draws_means_divergence_and_the_best():
    ax = plot.heat_map(GRID)
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
    assert cells.colorbar.ax.get_ylabel() == "final loss of sgd,\nmean over 2 seeds"


def test_heat_map_of_a_score_and_of_other_scales():
    ax = plot.heat_map(GRID | {"final_loss": [-1.0, *GRID["final_loss"][1:]]})
    assert not isinstance(ax.collections[0].norm, matplotlib.colors.LogNorm)
    ax = plot.heat_map(GRID | {"score": GRID["final_loss"]}, z="score", best="highest", log=True)
    assert texts(ax)[0] == "best: learning rate 1, b1 0"
    assert isinstance(ax.collections[0].norm, matplotlib.colors.LogNorm)
    text = refusal(ValueError, plot.heat_map, GRID | {"final_loss": [0.0] * 12}, log=True)
    assert_words(text, "log is True, but final_loss goes down to 0", "Pass log=False")


def test_heat_map_of_one_value_and_of_none():
    table = {"optimizer": ["sgd"], "learning_rate": [0.1], "b1": [0.9], "final_loss": [0.5]}
    ax = plot.heat_map(table)
    assert ax.collections[0].get_array().tolist() == [[0.5]]
    assert ax.collections[0].colorbar.ax.get_ylabel() == "final loss of sgd"
    ax = plot.heat_map(table | {"final_loss": [NAN]})
    assert [collection.get_hatch() for collection in ax.collections] == ["///"]
    assert texts(ax) == ["diverged"]
    assert len(ax.figure.axes) == 1  # no colours, no colour bar


def test_heat_map_with_many_cells_names_some():
    rates = np.logspace(-4, 0, 30)
    table = {"optimizer": ["sgd"] * 30, "learning_rate": rates, "b1": [0.9] * 30, "final_loss": rates}
    ax = plot.heat_map(table)
    assert ax.get_xticks().tolist() == list(range(0, 30, 3))
    assert ax.get_xticklabels()[0].get_text() == "0.0001"


@pytest.mark.parametrize("draw", [plot.sensitivity, plot.heat_map])
def test_tables_that_are_refused(draw):
    who = f"gradtx.plot.{draw.__name__}: "
    assert_words(refusal(TypeError, draw, [1.0]), f"{who}the table is a list; allowed: a dict of columns", "to_dict")
    missing = {name: column for name, column in GRID.items() if name != "learning_rate"}
    text = refusal(ValueError, draw, missing)
    assert_words(text, f"{who}the table has no column 'learning_rate'.", "Its columns: optimizer, seed, final_loss")
    text = refusal(ValueError, draw, GRID, x="learning_rat")
    assert_words(text, "no column 'learning_rat'. Did you mean 'learning_rate'?")
    refusal(ValueError, draw, {})
    text = refusal(ValueError, draw, GRID | {"seed": [0]})
    assert_words(text, "columns have unequal lengths: optimizer 12, learning_rate 12, seed 1", "one entry per run")
    assert_words(refusal(ValueError, draw, rows_of(GRID, [False] * 12)), "table['learning_rate'] is empty")
    text = refusal(TypeError, draw, GRID | {"final_loss": ["a"] * 12})
    assert_words(text, f"{who}table['final_loss'] is", "allowed: real numbers")
    text = refusal(TypeError, draw, GRID | {"diverged": [0.5] * 12})
    assert_words(text, "table['diverged'] is of dtype float64; allowed: bool")
    text = refusal(ValueError, draw, GRID | {"seed": [0] * 12})
    assert_words(text, who, "several runs of 'sgd' with learning_rate 0.1", "and seed 0, which differ in", "Keep")


def test_sensitivity_refuses_to_mix_another_hyperparameter():
    text = refusal(ValueError, plot.sensitivity, GRID)
    assert_words(text, "several runs of 'sgd' with learning_rate 0.1 and seed 0, which differ in final_loss, b1;")
    text = refusal(ValueError, plot.sensitivity, GRID | {"learning_rate": [NAN] * 12})
    assert_words(text, "no row of the table has a finite 'learning_rate'")


def test_heat_map_wants_one_optimizer_and_every_pair():
    text = refusal(ValueError, plot.heat_map, GRID | {"optimizer": ["sgd"] * 6 + ["adam"] * 6})
    assert_words(text, "the table has 2 optimizers: sgd, adam; allowed: one. Keep the rows of one of them")
    holes = rows_of(GRID, [rate != 0.1 for rate in GRID["learning_rate"]])
    holes = {name: column + [GRID[name][0]] for name, column in holes.items()}
    text = refusal(ValueError, plot.heat_map, holes)
    assert_words(text, "the table has runs for 5 of the 6 pairs of learning_rate and b1", "Missing: learning_rate 0.1")
    assert_words(text, "Missing: learning_rate 0.1 with b1 0.")
    text = refusal(ValueError, plot.heat_map, GRID | {"b1": [NAN] * 12})
    assert_words(text, "b1 is not finite in 12 of 12 rows", "sgd may have no hyperparameter of that name")
