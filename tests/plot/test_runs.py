"""Pictures of runs: their losses, and their learning rates over time."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import plot
from tests.plot.drawn import INF, LOSS, NAN, averaged, labelled, on_axes, texts

losses, compare = on_axes(plot.losses), on_axes(plot.compare)

# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, lambda loss: jnp.asarray(loss, jnp.bfloat16)])
def test_losses_draws_every_loss_its_average_and_the_epochs(kind):
    loss = kind(LOSS)
    exact = np.asarray(loss, np.float64)
    ax = losses(loss, decay=0.8, steps_per_epoch=7)
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


def test_losses_of_the_lecture_and_huge_ones():
    average = labelled(losses([7.5, 4.0, 6.0, 8.0]))["average (decay 0.9)"].get_ydata()
    np.testing.assert_allclose(average * (1 - 0.9 ** np.arange(1, 5)), [0.75, 1.075, 1.5675, 2.21075], rtol=1e-13)
    average = losses([1e200, 1e190, 1e180, 0.0], decay=0.5).lines[1].get_ydata()
    np.testing.assert_allclose(average, averaged([1e200, 1e190, 1e180, 0.0], 0.5), rtol=1e-13)


def test_log_scale_if_all_finite_losses_are_positive():
    for loss, log, scale in (
        ([1.0, 2.0, NAN], True, "log"),
        ([1.0, 2.0, -INF], True, "log"),
        ([1.0, 2.0, 3.0], False, "linear"),
        ([1.0, 2.0, 0.0], True, "linear"),
        ([NAN, NAN, INF], True, "linear"),
    ):
        assert losses(loss, log=log).get_yscale() == compare({"a": loss}, log=log).get_yscale() == scale
    assert losses(loss).get_yticks().tolist() == []


@pytest.mark.parametrize("draw", [losses, lambda loss: compare({"a": loss})])
def test_updates_are_counted_in_whole_numbers(draw):
    ax = draw([3.0, 2.0, 1.0])
    assert (ax.get_xticks() == np.round(ax.get_xticks())).all()
    assert all(line.get_visible() for axis in (ax.xaxis, ax.yaxis) for line in axis.get_gridlines())


@pytest.mark.parametrize("bad", [NAN, -INF])
def test_losses_says_where_they_stop_being_finite(bad):
    ax = losses([4.0, 2.0, 1.0, bad, bad], decay=0.5, steps_per_epoch=2)
    cross = labelled(ax)["not finite from update 4"]
    assert (cross.get_marker(), cross.get_xdata().tolist()) == ("x", [4])
    assert cross.get_ydata() == pytest.approx([averaged([4.0, 2.0, 1.0], 0.5)[-1]])
    for line, gaps in zip(ax.lines, ([3, 4], [3, 4], [2])):
        assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == gaps
    ax = losses([4.0, bad, 1.0, 1.0, 1.0])  # they become finite again
    assert texts(ax)[-1] == "not finite at update 2"
    assert ax.lines[0].get_ydata()[2:].tolist() == [1.0, 1.0, 1.0]
    assert np.isnan(ax.lines[1].get_ydata()).tolist() == [False, True, True, True, True]
    ax = losses([bad] * 5, steps_per_epoch=3)
    cross = labelled(ax)["not finite from update 1"]
    assert (cross.get_xdata(), cross.get_ydata()) == ([1], [0.5])
    assert cross.get_transform() == ax.get_xaxis_transform()


def test_compare_draws_each_average_in_a_style_of_its_own_and_marks_a_run_that_ends():
    runs = {f"run {i}": LOSS[: 50 - i % 2] * (i + 1) for i in range(12)} | {"bad": [2.0, 4.0, 3.0, INF]}
    ax = compare(runs, decay=0.7)
    assert texts(ax) == [*list(runs)[:-1], "bad: not finite from update 4"]
    *lines, bad, cross = ax.lines
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 12
    for line, (name, loss) in zip(lines, runs.items()):
        assert line.get_label() == name
        assert line.get_xdata().tolist() == list(range(1, len(loss) + 1))
        np.testing.assert_allclose(line.get_ydata(), averaged(loss, 0.7), rtol=1e-13)
    assert (cross.get_marker(), cross.get_color(), cross.get_label()) == ("x", bad.get_color(), "_end")
    assert (cross.get_xdata(), cross.get_ydata()) == ([4], pytest.approx([averaged([2.0, 4.0, 3.0], 0.7)[-1]]))
    assert ax.get_ylabel() == "J, average (decay 0.7)"


# Schedules ------------------------------------------------------------------------------------------------------------

COSINE = gradtx.cosine_decay_schedule(0.1, 10)


def test_learning_rate_over_time():
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(4) / 10))
    for value, label, expected in (
        (0.5, "constant", [0.5] * 4),
        (jnp.float32(0.5), "constant", [0.5] * 4),
        (gradtx.adam(COSINE), "adam", cosine),
        (COSINE, "cosine_decay_schedule", cosine),
        (gradtx.clip(1.0) >> gradtx.sgd(0.25), "chain", [0.25] * 4),
        (gradtx.tunable(gradtx.sgd(0.25)), "tunable", [0.25] * 4),
    ):
        ax = on_axes(plot.learning_rate)(value, 4)
        (line,) = ax.lines
        assert line.get_label() == label
        assert line.get_xdata().tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("updates already made", "learning rate")
        assert ax.get_ylim()[0] == 0


def test_a_second_learning_rate_on_the_same_axes_is_seen_whole():
    ax = plot.learning_rate(0.1, 4)
    plot.learning_rate(1.0, 4, ax=ax)
    low, high = ax.get_ylim()
    assert low == 0
    assert high >= 1
    plot.learning_rate(lambda count: -0.5, 4, ax=ax)
    assert ax.get_ylim()[0] <= -0.5


def test_learning_rate_of_functions_and_other_hyperparameters():
    def halving(count):
        return 0.5**count

    ax = on_axes(plot.learning_rate)(halving, 3)
    assert ax.lines[0].get_ydata().tolist() == [1.0, 0.5, 0.25]
    assert plot.learning_rate(lambda count: 1 - 2 * count, 3, ax=ax) is ax
    assert [line.get_label() for line in ax.lines] == ["halving", "<lambda>"]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    assert on_axes(plot.learning_rate)(lambda count: 1 - 2 * count, 3).get_ylim()[0] < 0
    other = on_axes(plot.learning_rate)(gradtx.adam(0.1, b1=0.75), 2, name="b1")
    assert other.lines[0].get_ydata().tolist() == [0.75, 0.75]
    assert other.get_ylabel() == "b1"
