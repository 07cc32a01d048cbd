"""Curves over the updates: the loss of a run, of several runs, and a schedule.

The loss J of a mini-batch is noisy. So its exponentially weighted average with bias correction is drawn:

    v <- b v + (1 - b) J;   the curve is v / (1 - b^t)

It averages over about ten updates for b = 0.9, and over about fifty for b = 0.98.
"""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import averages
from gradtx.core.schedule import Schedule, as_schedule
from gradtx.core.transform import Transform
from gradtx.plot import axes, columns
from gradtx.plot.axes import Axes
from gradtx.plot.columns import Numbers


def losses(
    loss: Any,
    *,
    decay: float = 0.9,
    steps_per_epoch: int | None = None,
    log: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The loss of one run: J per batch, its average, and J per epoch.

        average: v / (1 - b^t) with v <- b v + (1 - b) J                                            (b = decay)
        J per epoch: the mean over the batches of an epoch, drawn over the epoch and marked at its end

    A cross marks the first loss that is not finite, with an entry in the legend; the average ends there.

    Args:
      loss: J of each update, a list or array of one dimension.
      decay: b in [0, 1): the average is over about 1 / (1 - b) updates.
      steps_per_epoch: updates in an epoch, 1 to the number of updates; None does not draw epochs. An incomplete last
        epoch is not drawn.
      log: whether to use a log scale if all finite losses are positive.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for losses that are not real numbers, a `steps_per_epoch` that is not an int, an `ax` that is not
    one Axes. ValueError for losses that are empty or not in one dimension, and for arguments out of range.

    >>> from gradtx import plot
    >>> ax = plot.losses([4.0, 2.0, 1.0, 1.0, 0.5, 0.5], steps_per_epoch=2)
    >>> [line.get_label() for line in ax.lines]
    ['J per batch', 'average (decay 0.9)', 'J per epoch']
    """
    who = "gradtx.plot.losses"
    values, decay = columns.series(who, "loss", loss), columns.unit(who, "decay", decay)
    if steps_per_epoch is not None:
        most = len(values)
        steps_per_epoch = columns.integer(who, "steps_per_epoch", steps_per_epoch, 1, most, "the number of updates, ")
    ax = axes.axes_or_new(who, ax, 7.5, 4.0)
    _prepare(ax, [values], log)
    updates, average = np.arange(1, len(values) + 1), _average(values, decay)
    color, dark = axes.COLORS[5], axes.COLORS[0]
    ax.plot(updates, _gaps(values), color=color, linewidth=0.7, alpha=0.65, label="J per batch")
    ax.plot(updates, _gaps(average), color=dark, linewidth=2.0, label=f"average (decay {decay:g})")
    if steps_per_epoch is not None:
        _draw_epochs(ax, values, steps_per_epoch)
    _mark_end(ax, values, average, axes.COLORS[3], _end(values))
    ax.set_ylabel("J")
    axes.legend(ax)
    return ax


def compare(runs: Mapping[str, Any], *, decay: float = 0.9, log: bool = True, ax: Axes | None = None) -> Axes:
    """The losses of several runs, each as its average.

        average: v / (1 - b^t) with v <- b v + (1 - b) J                                            (b = decay)

    The curve of a run ends in a cross at the first loss that is not finite; the legend gives the update.

    Args:
      runs: a dict of the losses of each run, by name; the lengths may differ.
      decay: b in [0, 1): the average is over about 1 / (1 - b) updates.
      log: whether to use a log scale if all finite losses are positive.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for runs that are not a dict, losses that are not real numbers, an `ax` that is not one Axes.
    ValueError for no runs, losses that are empty or not in one dimension, a `decay` out of range.

    >>> from gradtx import plot
    >>> ax = plot.compare({"sgd": [4.0, 2.0, 1.0], "adam": [4.0, 1.0, float("nan")]})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['sgd', 'adam: not finite from update 3']
    """
    who = "gradtx.plot.compare"
    if not isinstance(cast(Any, runs), Mapping):
        raise TypeError(
            f"{who}: runs is a {type(runs).__name__}; it must be a dict of losses by name. "
            "For one run, use gradtx.plot.losses(loss)."
        )
    if not runs:
        raise ValueError(f"{who}: runs is empty; allowed: at least one run.")
    decay = columns.unit(who, "decay", decay)
    every = {str(name): columns.series(who, f"runs[{name!r}]", loss) for name, loss in runs.items()}
    ax = axes.axes_or_new(who, ax, 8.0, 4.4)
    _prepare(ax, list(every.values()), log)
    for index, (name, values) in enumerate(every.items()):
        style, average = axes.style(index), _average(values, decay)
        updates, end = np.arange(1, len(values) + 1), _end(values)
        label = f"{name}: {end}" if end else name
        ax.plot(updates, _gaps(average), color=style.color, linestyle=style.line, linewidth=1.8, label=label)
        _mark_end(ax, values, average, style.color, "_end")
    ax.set_ylabel(f"J, average (decay {decay:g})")
    axes.legend(ax)
    return ax


def learning_rate(value: Any, steps: int, *, name: str = "learning_rate", ax: Axes | None = None) -> Axes:
    """The learning rate, or another hyperparameter, over time: its value at the counts 0 .. steps - 1.

    Several calls with the same axes draw several curves, in different colours and line styles; `ax.legend()` names
    them.

    Args:
      value: a schedule, a function of the count, a number, or a transform that has the hyperparameter.
      steps: the number of updates, 1 or more.
      name: the name of the hyperparameter, which is also the label of the axis.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for a value that is none of these, steps that are not an int, an `ax` that is not one Axes.
    ValueError for a transform without the hyperparameter, an array of several numbers, steps below 1.

    >>> import gradtx
    >>> from gradtx import plot
    >>> ax = plot.learning_rate(gradtx.linear_schedule(0.0, 1.0, 4), 6)
    >>> ax.lines[0].get_ydata().tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    >>> ax = plot.learning_rate(gradtx.adam(1e-3), 6, ax=ax)
    >>> [line.get_label() for line in ax.lines]
    ['linear_schedule', 'adam']
    """
    who = "gradtx.plot.learning_rate"
    steps = columns.integer(who, "steps", steps, 1, 2**31 - 1, "the largest count, ")
    label, rates = _rates(who, value, steps, name)
    ax = axes.axes_or_new(who, ax, 6.5, 3.6)
    style = axes.style(len(ax.lines))
    ax.plot(np.arange(steps), _gaps(rates), color=style.color, linestyle=style.line, linewidth=2.0, label=label)
    ax.set_xlabel("updates already made")
    ax.set_ylabel(axes.words(name))
    ax.autoscale(axis="y")  # after set_ylim for an earlier curve the limits would stay
    if all(np.all(np.asarray(line.get_ydata()) >= 0) for line in ax.lines):
        ax.set_ylim(bottom=0)
    axes.over_updates(ax)
    return ax


def _rates(who: str, value: Any, steps: int, name: str) -> tuple[str, Numbers]:
    """A label, and the value at each count."""
    if isinstance(value, Transform):
        label = value.name
        try:
            value = getattr(value, name)
        except AttributeError as error:
            raise ValueError(f"{who}: {error} Choose one of them: name=...") from None
    else:
        label = getattr(value, "name", None) or getattr(value, "__name__", "constant")
    if isinstance(value, bool | str) or value is None:
        raise TypeError(
            f"{who}: {name} is {value!r}; it must be a schedule, a number, or a transform with this hyperparameter."
        )
    if isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        if np.ndim(value) > 0:
            raise ValueError(
                f"{who}: {name} is an array of shape {np.shape(value)}; allowed: one number. "
                "Draw the values of a sweep one at a time."
            )
        return label, np.full(steps, float(value))
    schedule: Schedule = as_schedule(value, f"{who}: {name}")
    return label, np.asarray(jax.vmap(schedule)(jnp.arange(steps, dtype=jnp.int32)), np.float64)


# Averages -------------------------------------------------------------------------------------------------------------


def _average(values: Numbers, decay: float) -> Numbers:
    """The bias-corrected average of the losses so far; from the first loss that is not finite on, it is not finite."""
    with jax.enable_x64(True):  # a float64 loss may be outside the range of float32
        return np.asarray(_averages(jnp.asarray(values), decay))


@jax.jit
def _averages(values: jax.Array, decay: jax.Array) -> jax.Array:
    def step(carry: Any, value: jax.Array) -> Any:
        biased, weights = carry
        biased, weights = averages.average(biased, value, decay), averages.weights_after(weights, decay)
        return (biased, weights), biased / averages.total(weights)

    zero, one = jnp.zeros((), values.dtype), jnp.ones((), values.dtype)
    return jax.lax.scan(step, (zero, {"given": zero, "left": one}), values)[1]


# Drawing --------------------------------------------------------------------------------------------------------------


def _gaps(values: Numbers) -> Numbers:
    """Infinities as NaN, which matplotlib does not draw."""
    return np.where(np.isfinite(values), values, np.nan)


def _draw_epochs(ax: Axes, values: Numbers, steps: int) -> None:
    epochs = len(values) // steps
    with np.errstate(invalid="ignore", over="ignore"):  # a mean that is not finite is a gap
        means = values[: epochs * steps].reshape(epochs, steps).mean(axis=1)
    ends = steps * np.arange(1, epochs + 1)
    ax.plot(
        np.concatenate([[1], ends]),
        _gaps(np.concatenate([means[:1], means])),
        drawstyle="steps-pre",  # each mean is drawn over its epoch
        color=axes.COLORS[6],
        linewidth=1.0,
        marker="o",
        markersize=5 if epochs <= 40 else 2.5,
        markevery=slice(1, None),
        label="J per epoch",
    )


def _end(values: Numbers) -> str:
    """The words of a legend about losses that are not finite; "" if all are."""
    bad = np.flatnonzero(~np.isfinite(values))
    if not bad.size:
        return ""
    forever = bad.size == len(values) - bad[0]
    return f"not finite {'from' if forever else 'at'} update {bad[0] + 1}"


def _mark_end(ax: Axes, values: Numbers, average: Numbers, color: str, label: str) -> None:
    """A cross at the first update whose loss is not finite, at the height of the last average before it."""
    bad = np.flatnonzero(~np.isfinite(values))
    if not bad.size:
        return
    height = float(average[bad[0] - 1]) if bad[0] else None
    axes.cross(ax, float(bad[0] + 1), height, color, label)


def _prepare(ax: Axes, every: list[Numbers], log: bool) -> None:
    finite = np.concatenate([values[np.isfinite(values)] for values in every])
    if log and finite.size and finite.min() > 0:
        axes.log_scale(ax, "y")
    if not finite.size:
        ax.set_yticks([])
    ax.set_xlabel("update")
    axes.over_updates(ax)
