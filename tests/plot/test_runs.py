"""Pictures of runs: their losses, and their learning rates over time."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import plot
from gradtx.plot import axes
from tests.core.words import assert_words, refusal
from tests.plot.drawn import INF, LOSS, NAN, averaged, labelled, texts

# Losses ---------------------------------------------------------------------------------------------------------------


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
