"""Pictures: what was drawn, and what is refused."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import matplotlib
import matplotlib.colors
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import gradtx
from gradtx import plot
from gradtx.plot import axes
from tests.core.words import assert_words, refusal

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _pyplot_is_left_alone():
    pyplot.close("all")  # what other tests of this process have left open
    settings = dict(matplotlib.rcParams)
    yield
    try:
        for number in pyplot.get_fignums():
            pyplot.figure(number).canvas.draw()  # a warning while drawing is an error
        assert dict(matplotlib.rcParams) == settings
    finally:
        pyplot.close("all")


def labelled(ax):
    return {line.get_label(): line for line in ax.lines}


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def averaged(values, decay):
    """The average in NumPy, with its bias corrected."""
    v, out = 0.0, []
    for t, value in enumerate(values, 1):
        v = decay * v + (1 - decay) * value
        out.append(v / (1 - decay**t))
    return out


# Losses ---------------------------------------------------------------------------------------------------------------

LOSS = np.exp(np.random.default_rng(0).normal(size=50)) * np.linspace(2.0, 0.5, 50)


@pytest.mark.parametrize("kind", [list, np.asarray, jnp.asarray, lambda loss: jnp.asarray(loss, jnp.bfloat16)])
def test_losses_draws_every_loss_its_average_and_the_epochs(kind):
    loss = kind(LOSS)
    exact = np.asarray(loss, np.float64)
    ax = plot.losses(loss, decay=0.8, steps_per_epoch=7)
    lines = labelled(ax)
    assert list(lines) == ["J per batch", "average (decay 0.8)", "J per epoch"] == texts(ax)
    raw, average, epochs = lines.values()
    assert raw.get_xdata().tolist() == average.get_xdata().tolist() == list(range(1, 51))
    assert raw.get_ydata().tolist() == exact.tolist()
    np.testing.assert_allclose(average.get_ydata(), averaged(exact, 0.8), rtol=1e-13)
    means = exact[:49].reshape(7, 7).mean(axis=1)
    assert epochs.get_xdata().tolist() == [1, 7, 14, 21, 28, 35, 42, 49]  # the eighth epoch is not whole
    np.testing.assert_allclose(epochs.get_ydata(), [means[0], *means], rtol=1e-14)
    assert epochs.get_drawstyle() == "steps-pre"
    assert epochs.get_markevery() == slice(1, None)  # a mark at the end of each epoch
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("update", "J", "log")


def test_losses_of_the_lecture():
    average = labelled(plot.losses([7.5, 4.0, 6.0, 8.0]))["average (decay 0.9)"].get_ydata()
    np.testing.assert_allclose(average * (1 - 0.9 ** np.arange(1, 5)), [0.75, 1.075, 1.5675, 2.21075], rtol=1e-13)


def test_losses_kept_in_float64_may_be_huge():
    average = plot.losses([1e200, 1e190], decay=0.5).lines[1].get_ydata()
    np.testing.assert_allclose(average, averaged([1e200, 1e190], 0.5), rtol=1e-13)


@pytest.mark.parametrize(
    ("loss", "log", "scale"),
    [([1.0, 2.0], True, "log"), ([1.0, 2.0], False, "linear"), ([1.0, 0.0], True, "linear")]
    + [([1.0, -1.0], True, "linear"), ([1.0, NAN], True, "log"), ([1.0, -INF], True, "log"), ([NAN], True, "linear")],
)
def test_log_scale_if_all_finite_losses_are_positive(loss, log, scale):
    assert plot.losses(loss, log=log).get_yscale() == plot.compare({"a": loss}, log=log).get_yscale() == scale


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_losses_says_where_they_stop_being_finite(bad):
    ax = plot.losses([4.0, 2.0, 1.0, bad, bad], decay=0.5, steps_per_epoch=2)
    cross = labelled(ax)["not finite from update 4"]
    assert cross.get_marker() == "x"
    assert cross.get_xdata() == [4]
    assert cross.get_ydata() == pytest.approx([averaged([4.0, 2.0, 1.0], 0.5)[-1]])
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False] * 3 + [True] * 2
    assert np.isnan(ax.lines[1].get_ydata()).tolist() == [False] * 3 + [True] * 2
    assert np.isnan(labelled(ax)["J per epoch"].get_ydata()).tolist() == [False, False, True]


def test_losses_that_become_finite_again():
    ax = plot.losses([4.0, NAN, 1.0, 1.0])
    assert texts(ax)[-1] == "not finite at update 2"
    assert ax.lines[0].get_ydata()[2:].tolist() == [1.0, 1.0]
    assert np.isnan(ax.lines[1].get_ydata()).tolist() == [False, True, True, True]


def test_losses_without_a_finite_one():
    ax = plot.losses([NAN, INF, -INF], steps_per_epoch=3)
    cross = labelled(ax)["not finite from update 1"]
    assert (cross.get_xdata(), cross.get_ydata()) == ([1], [0.5])
    assert cross.get_transform() == ax.get_xaxis_transform()


@pytest.mark.parametrize("draw", [plot.losses, lambda loss, **kwargs: plot.compare({"adam": loss}, **kwargs)])
def test_what_losses_and_compare_refuse(draw):
    assert_words(refusal(ValueError, draw, []), "gradtx.plot.", "is empty; allowed: at least one number")
    assert_words(refusal(ValueError, draw, np.ones((2, 3))), "shape (2, 3)", "allowed: one dimension", "numpy.ravel")
    assert_words(refusal(ValueError, draw, 1.0), "shape ()")
    for wrong in ([[1.0], [1.0, 2.0]], ["1", "2"], [None], [1j], [True], "loss", {"a": [1.0]}):
        assert_words(refusal(TypeError, draw, wrong), "gradtx.plot.", "allowed: real numbers")
    for wrong in (1.0, -0.1, NAN, "0.9", True):
        assert_words(refusal(ValueError, draw, [1.0], decay=wrong), f"decay is {wrong!r}; allowed: a number in [0, 1)")
    text = refusal(TypeError, draw, [1.0], ax=[1, 2])
    assert_words(text, "ax is a list; allowed: one matplotlib Axes, or None", "pyplot.subplots()")


def test_what_losses_and_compare_refuse_alone():
    text = refusal(ValueError, plot.losses, [1.0, 2.0], steps_per_epoch=3)
    assert_words(text, "gradtx.plot.losses: steps_per_epoch is 3; allowed: 1 to the number of updates, 2.")
    refusal(ValueError, plot.losses, [1.0], steps_per_epoch=0)
    assert_words(refusal(TypeError, plot.losses, [1.0], steps_per_epoch=1.0), "is 1.0; allowed: an int")
    assert_words(refusal(ValueError, plot.compare, {}), "runs is empty")
    assert_words(refusal(TypeError, plot.compare, [1.0]), "runs is a list; allowed: a dict", "plot.losses(loss)")
    assert_words(refusal(ValueError, plot.compare, {"adam": []}), "gradtx.plot.compare: runs['adam'] is empty")


# Several runs ---------------------------------------------------------------------------------------------------------


def test_compare_draws_each_average_in_a_style_of_its_own():
    runs = {f"run {i}": LOSS[: 50 - i] * (i + 1) for i in range(12)}
    ax = plot.compare(runs, decay=0.7)
    assert texts(ax) == list(runs)
    assert len({(line.get_color(), str(line._dash_pattern)) for line in ax.lines}) == 12
    for line, (name, loss) in zip(ax.lines, runs.items(), strict=True):
        assert line.get_label() == name
        assert line.get_xdata().tolist() == list(range(1, len(loss) + 1))
        np.testing.assert_allclose(line.get_ydata(), averaged(loss, 0.7), rtol=1e-13)


def test_36_styles_differ_and_neighbours_in_color_and_line():
    styles = [axes.style(i) for i in range(37)]
    assert len({(s.color, s.line) for s in styles[:36]}) == 36
    for a, b in itertools.pairwise(styles):
        assert a.color != b.color
        assert a.line != b.line
        assert a.marker != b.marker


def test_compare_marks_a_run_that_ends():
    ax = plot.compare({"good": [2.0, 1.0], "bad": [2.0, 4.0, INF]}, decay=0.0)
    assert texts(ax) == ["good", "bad: not finite from update 3"]
    _, bad, cross = ax.lines
    assert (cross.get_marker(), cross.get_color()) == ("x", bad.get_color())
    assert (cross.get_xdata(), cross.get_ydata()) == ([3], [4.0])


# Sweeps ---------------------------------------------------------------------------------------------------------------


def sweep(values, x="learning_rate"):
    """A table of (optimizer, x, outcomes of the seeds); an outcome of None diverged, with a finite loss."""
    table = {name: [] for name in ("optimizer", x, "seed", "final_loss", "diverged", "accuracy")}
    for name, at, outcomes in values:
        for seed, outcome in enumerate(outcomes):
            row = (name, at, seed, 50.0 if outcome is None else outcome, outcome is None, 0.5)
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
    return table


TABLE = sweep(
    [
        ("sgd", 1.0, (0.4, None, 0.4)),
        ("sgd", 0.1, (0.2, 0.3, 0.7)),
        ("sgd", 0.01, (0.8, 0.6, 1.0)),
        ("adam", 0.001, (0.1, 0.3, 0.2)),
        ("adam", 0.01, (0.5, 0.5, 0.5)),
        ("adam", 0.1, (NAN, 1.0, 1.0)),
        ("adam", 1.0, (INF, INF, INF)),
        ("adadelta", NAN, (0.1, 0.1, 0.1)),
    ]
)


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


GRID = sweep(
    [
        ((rate, b1), rate, outcomes)
        for (rate, b1), outcomes in {
            (0.1, 0.9): (0.2, 0.4),
            (0.01, 0.9): (0.5, 0.7),
            (0.1, 0.0): (0.1, None),
            (0.01, 0.0): (1.0, 3.0),
            (1.0, 0.0): (4.0, 6.0),
            (1.0, 0.9): (NAN, 1.0),
        }.items()
    ]
)
GRID["b1"] = [name[1] for name in GRID["optimizer"]]
GRID["optimizer"] = ["sgd"] * 12


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


# Schedules ------------------------------------------------------------------------------------------------------------

COSINE = gradtx.cosine_decay_schedule(0.1, 10)


@pytest.mark.parametrize(
    ("value", "label", "expected"),
    [
        (0.5, "constant", [0.5] * 4),
        (np.float32(0.5), "constant", [0.5] * 4),
        (jnp.float32(0.5), "constant", [0.5] * 4),
        (COSINE, "cosine_decay_schedule", [float(COSINE(t)) for t in range(4)]),
        (gradtx.adam(COSINE), "adam", [float(COSINE(t)) for t in range(4)]),
        (gradtx.clip(1.0) >> gradtx.sgd(0.25), "chain", [0.25] * 4),
        (gradtx.tunable(gradtx.sgd(0.25)), "tunable", [0.25] * 4),
    ],
)
def test_learning_rate_over_time(value, label, expected):
    ax = plot.learning_rate(value, 4)
    (line,) = ax.lines
    assert line.get_label() == label
    assert line.get_xdata().tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=2e-7)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("updates already made", "learning rate")
    assert ax.get_ylim()[0] == 0


def test_learning_rate_of_functions_and_other_hyperparameters():
    def halving(count):
        return 0.5**count

    ax = plot.learning_rate(halving, 3)
    assert ax.lines[0].get_ydata().tolist() == [1.0, 0.5, 0.25]
    assert plot.learning_rate(lambda count: 1 - 2 * count, 3, ax=ax) is ax
    assert [line.get_label() for line in ax.lines] == ["halving", "<lambda>"]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    other = plot.learning_rate(gradtx.adam(0.1, b1=0.75), 2, name="b1")
    assert other.lines[0].get_ydata().tolist() == [0.75, 0.75]
    assert other.get_ylabel() == "b1"


def test_what_learning_rate_refuses():
    text = refusal(ValueError, plot.learning_rate, gradtx.adam(0.1), 3, name="momentum")
    assert_words(text, "gradtx.plot.learning_rate: gradtx.adam has no argument 'momentum'.", "learning_rate", "name=")
    for wrong in ("0.1", None, True, [0.1], gradtx.cosine_decay_schedule):
        assert_words(refusal(TypeError, plot.learning_rate, wrong, 3), "gradtx.plot.learning_rate: learning_rate is")
    text = refusal(ValueError, plot.learning_rate, jnp.ones(2), 3)
    assert_words(text, "learning_rate is an array of shape (2,); allowed: one number")
    assert_words(refusal(ValueError, plot.learning_rate, 0.1, 0), "steps is 0; allowed: 1 to")
    assert_words(refusal(TypeError, plot.learning_rate, 0.1, 3.0), "steps is 3.0; allowed: an int")


# The figure -----------------------------------------------------------------------------------------------------------

EVERY = [
    lambda **kwargs: plot.losses(LOSS, steps_per_epoch=10, **kwargs),
    lambda **kwargs: plot.compare({"a": LOSS}, **kwargs),
    lambda **kwargs: plot.sensitivity(TABLE, **kwargs),
    lambda **kwargs: plot.heat_map(GRID, **kwargs),
    lambda **kwargs: plot.learning_rate(0.1, 5, **kwargs),
]


@pytest.mark.parametrize("draw", EVERY)
def test_a_figure_is_made_only_without_axes(draw):
    figure = Figure()
    ax = figure.add_subplot()
    assert draw(ax=ax) is ax
    assert ax.has_data()
    figure.draw_without_rendering()
    assert not pyplot.get_fignums()
    ax = draw()
    assert ax.has_data()
    assert pyplot.get_fignums() == [ax.figure.number]
    assert ax.figure.get_layout_engine() is not None


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
@pytest.mark.parametrize("draw", EVERY[:4])
def test_no_legend_lies_on_the_data_or_outside_the_figure(draw, layout):
    figure = Figure(figsize=(8, 5), layout=layout)
    ax = draw(ax=figure.add_subplot())
    figure.draw_without_rendering()
    legend, picture = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert not legend.padded(-6).overlaps(picture)
    for part in (legend, picture, *(strip.get_window_extent() for strip in ax.child_axes)):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= figure.bbox.x1
        assert part.y1 <= figure.bbox.y1
    assert picture.width > 0.35 * figure.bbox.width


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ((0.3, 0.8), ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]),
        ((0.9, 60.0), ["1", "2", "5", "10", "20", "50"]),
        ((1e-4, 10.0), ["$10^{-4}$", "$10^{-3}$", "$10^{-2}$", "$10^{-1}$", "$10^{0}$", "$10^{1}$"]),
    ],
)
def test_log_scales_are_labelled(limits, shown):
    ax = plot.losses(list(limits))
    ax.set_ylim(*limits)
    ax.figure.canvas.draw()
    ticks = [*ax.get_yticks(), *ax.get_yticks(minor=True)]
    names = [text.get_text() for text in (*ax.get_yticklabels(), *ax.get_yticklabels(minor=True))]
    low, high = limits
    pairs = {(t, n) for t, n in zip(ticks, names, strict=True) if n and 0.999 * low <= t <= 1.001 * high}
    assert [name for _, name in sorted(pairs)] == shown


def test_without_matplotlib_the_import_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "import gradtx\n"
        "try:\n"
        "    from gradtx import plot\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert "gradtx.plot" in run.stdout
    assert "pip install 'gradtx[plot]'" in run.stdout
