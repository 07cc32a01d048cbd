"""The results of a sweep: the loss over one hyperparameter for several optimizers, or over two for one.

A run that diverged has no loss to average. So a point or a cell where any seed diverged is drawn as diverged, without a
median or a mean, and is never the best one.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from gradtx.plot import axes, columns
from gradtx.plot.axes import Axes
from gradtx.plot.columns import Flags, Numbers

Best = Literal["lowest", "highest"]


def sensitivity(
    table: Any,
    *,
    x: str = "learning_rate",
    y: str = "final_loss",
    best: Best | None = None,
    log: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The sensitivity to the learning rate: the loss over it, with one line per optimizer.

        line: the median over the seeds; band: from the lowest seed to the highest

    Where any seed diverged, the line has a gap, and a cross is drawn in the optimizer's row above the plot; the rows
    are in the order of the legend. The best point of each line is drawn large.

    Args:
      table: a dict of columns, or an object with a `.table`: see `gradtx.plot`. Rows without a finite `x` are ignored.
      x: the column along the axis, on a log scale for a learning rate, and for positive values over a decade or more.
      y: the column to draw.
      best: "lowest" or "highest"; None is "lowest" for a column whose name ends in "loss", and an error for others.
      log: whether to use a log scale for y; None uses one if all values are positive and the lowest is best.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for a table that is not a dict of columns, a column of the wrong type, an `ax` that is not one
    Axes. ValueError for a missing column, columns of unequal length, no row with a finite `x`, several runs with the
    same seed at one point, a missing `best`, a log scale for values that are not positive.

    >>> from gradtx import plot
    >>> ax = plot.sensitivity({
    ...     "optimizer": ["sgd"] * 4,
    ...     "learning_rate": [0.1, 0.1, 1.0, 1.0],
    ...     "seed": [0, 1, 0, 1],
    ...     "final_loss": [0.5, 0.7, 0.2, float("inf")],
    ... })
    >>> ax.get_legend().get_texts()[0].get_text()
    'sgd, best at 0.1'
    """
    who = "gradtx.plot.sensitivity"
    runs = columns.runs(who, table, (x,), y)
    best = _best(who, best, y)
    lines = {name: line for name in runs.optimizers if len((line := _line(runs, name, best)).x)}
    if not lines:
        raise ValueError(f"{who}: no row of the table has a finite {x!r}; allowed: at least one.")
    drawn = np.concatenate([np.concatenate([line.low, line.high]) for line in lines.values()])
    log = columns.on_log_scale(who, log, drawn, y, best == "lowest")
    ax = axes.axes_or_new(who, ax, 8.5, 5.0)
    every_x = np.concatenate([line.x for line in lines.values()])
    if every_x.min() > 0 and (x == "learning_rate" or every_x.max() >= 10 * every_x.min()):
        axes.log_scale(ax, "x")
    if log:
        axes.log_scale(ax, "y")
    for index, (name, line) in enumerate(lines.items()):
        _draw_line(ax, axes.style(index), name, line)
    _draw_diverged(ax, list(lines.values()))
    ax.set_xlabel(axes.words(x))
    ax.set_ylabel(axes.words(y))
    axes.grid(ax)
    seeds = max(line.seeds for line in lines.values())
    axes.legend(ax, f"median of {seeds} seeds,\nband: lowest to highest" if seeds > 1 else None)
    return ax


class _Line(NamedTuple):
    """The line of one optimizer: statistics at each value of x, NaN where a seed diverged."""

    x: Numbers
    middle: Numbers
    low: Numbers
    high: Numbers
    diverged: Flags
    best: int | None
    seeds: int


def _line(runs: columns.Runs, name: str, best: Best) -> _Line:
    own = (runs.optimizer == name) & np.isfinite(runs.at[0])
    x = np.unique(runs.at[0][own])
    at = [own & (runs.at[0] == value) for value in x]
    diverged = np.array([runs.diverged[rows].any() for rows in at], bool)
    of = {
        statistic: np.array([np.nan if bad else statistic(runs.outcome[rows]) for rows, bad in zip(at, diverged)])
        for statistic in (np.median, np.min, np.max)
    }
    middle = of[np.median]
    index = None if diverged.all() else int(np.nanargmin(middle if best == "lowest" else -middle))
    seeds = max((int(rows.sum()) for rows in at), default=0)
    return _Line(x, middle, of[np.min], of[np.max], diverged, index, seeds)


def _draw_line(ax: Axes, style: axes.Style, name: str, line: _Line) -> None:
    where = "diverged everywhere" if line.best is None else f"best at {line.x[line.best]:.2g}"
    if line.seeds > 1:
        ax.fill_between(line.x, line.low, line.high, color=style.color, alpha=0.13, linewidth=0)
    ax.plot(
        line.x,
        line.middle,
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        linewidth=1.6,
        markersize=3.5,
        label=f"{name}, {where}",
    )
    if line.best is not None:
        ax.plot(
            line.x[line.best],
            line.middle[line.best],
            color=style.color,
            linestyle="none",
            marker=style.marker,
            markersize=9,
            markeredgecolor="black",
            markeredgewidth=1.2,
            zorder=4,
            label="_best",
        )


def _draw_diverged(ax: Axes, lines: list[_Line]) -> None:
    """One row of crosses per optimizer, in a strip above the plot."""
    if not any(line.diverged.any() for line in lines):
        return
    strip = axes.strip_above(ax, len(lines), "diverged")
    for index, line in enumerate(lines):
        strip.plot(
            line.x[line.diverged],
            np.full(line.diverged.sum(), index),
            color=axes.style(index).color,
            linestyle="none",
            marker="x",
            markersize=4.5,
            markeredgewidth=1.3,
        )


# Two hyperparameters --------------------------------------------------------------------------------------------------


def heat_map(
    table: Any,
    *,
    x: str = "learning_rate",
    y: str = "b1",
    z: str = "final_loss",
    best: Best | None = None,
    log: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The loss of one optimizer over two hyperparameters: one cell for each pair, the best one outlined.

        colour: the mean over the seeds

    A cell where any seed diverged is grey and hatched. The cells are in the order of the values in the table, and of
    equal size for any spacing of the values. The legend is above the plot, so put a title on the figure:
    `ax.figure.suptitle`.

    Args:
      table: a dict of columns, or an object with a `.table`: see `gradtx.plot`. It has one optimizer, and every pair of
        `x` and `y`.
      x, y: the columns along the axes.
      z: the column to draw.
      best: "lowest" or "highest"; None is "lowest" for a column whose name ends in "loss", and an error for others.
      log: whether to use a log scale for the colours; None uses one if all means are positive and the lowest is best.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for a table that is not a dict of columns, a column of the wrong type, an `ax` that is not one
    Axes. ValueError for a missing column, columns of unequal length, several optimizers, a pair without a run, several
    runs with the same seed in one cell, a missing `best`, a log scale for values that are not positive.

    >>> from gradtx import plot
    >>> ax = plot.heat_map({
    ...     "optimizer": ["adam"] * 4,
    ...     "learning_rate": [0.01, 0.01, 0.1, 0.1],
    ...     "b1": [0.0, 0.9, 0.0, 0.9],
    ...     "final_loss": [0.5, 0.3, 0.4, float("nan")],
    ... })
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['best: learning rate 0.01, b1 0.9', 'diverged']
    """
    who = "gradtx.plot.heat_map"
    runs = columns.runs(who, table, (x, y), z)
    best = _best(who, best, z)
    optimizer, *others = runs.optimizers
    if others:
        raise ValueError(
            f"{who}: the table has {len(runs.optimizers)} optimizers: {', '.join(runs.optimizers)}; allowed: one. "
            "Keep the rows of one of them, or compare them with gradtx.plot.sensitivity."
        )
    xs, ys, means, diverged = _grid(who, runs, x, y)
    log = columns.on_log_scale(who, log, means, z, best == "lowest")
    ax = axes.axes_or_new(who, ax, 7.0, 4.8)
    _draw_cells(ax, means, log, f"{axes.words(z)} of {optimizer}{_seeds(runs, means)}")
    handles = [*_outline(ax, xs, ys, means, (x, y), best), *_hatch(ax, diverged)]
    _name_cells(ax, "x", xs, x)
    _name_cells(ax, "y", ys, y)
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, borderaxespad=0.2)
    return ax


def _grid(who: str, runs: columns.Runs, x: str, y: str) -> tuple[Numbers, Numbers, Numbers, Flags]:
    """The values along the axes; for each pair [y, x] the mean over the seeds (NaN if one diverged) and this flag."""
    for name, values in zip((x, y), runs.at):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{who}: {name} is not finite in {int((~np.isfinite(values)).sum())} of {len(values)} rows; allowed: "
                f"finite numbers. {runs.optimizers[0]} may have no hyperparameter of that name."
            )
    (xs, column), (ys, row) = (np.unique(values, return_inverse=True) for values in runs.at)
    means, diverged = np.full((len(ys), len(xs)), np.nan), np.zeros((len(ys), len(xs)), bool)
    missing: list[str] = []
    for i, j in np.ndindex(means.shape):
        cell = (row == i) & (column == j)
        if not cell.any():
            missing.append(f"{x} {xs[j]:g} with {y} {ys[i]:g}")
            continue
        diverged[i, j] = runs.diverged[cell].any()
        if not diverged[i, j]:
            means[i, j] = runs.outcome[cell].mean()
    if missing:
        more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{who}: the table has runs for {means.size - len(missing)} of the {means.size} pairs of {x} and {y}; it "
            f"must have all. Missing: {'; '.join(missing[:3])}{more}."
        )
    return xs, ys, means, diverged


def _seeds(runs: columns.Runs, means: Numbers) -> str:
    each = len(runs.outcome) / means.size
    return "" if each <= 1 else f",\nmean over {each:g} seeds" if each == int(each) else ",\nmean over the seeds"


def _draw_cells(ax: Axes, means: Numbers, log: bool, label: str) -> None:
    from matplotlib.colors import LogNorm, Normalize

    finite = means[np.isfinite(means)]
    if not finite.size:  # no colour bar
        ax.set(xlim=(-0.5, means.shape[1] - 0.5), ylim=(-0.5, means.shape[0] - 0.5))
        return
    low, high = finite.min(), finite.max()
    if low == high:  # one colour, in the middle of the bar
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    rows, across = (np.arange(size + 1) - 0.5 for size in means.shape)
    norm = LogNorm(low, high) if log else Normalize(low, high)
    cells = ax.pcolormesh(across, rows, np.ma.masked_invalid(means), norm=norm, cmap="viridis")
    bar = ax.figure.colorbar(cells, ax=ax, label=label)
    if log:
        axes.log_scale(bar.ax, "y")


def _outline(ax: Axes, xs: Numbers, ys: Numbers, means: Numbers, names: tuple[str, str], best: Best) -> list[Any]:
    """A frame around the best cell: white within black, visible on any colour."""
    from matplotlib.patches import Rectangle

    if not np.isfinite(means).any():
        return []
    i, j = np.unravel_index(np.nanargmin(means if best == "lowest" else -means), means.shape)
    label = ", ".join(f"{axes.words(name)} {value:.3g}" for name, value in zip(names, (xs[j], ys[i])))
    for color, width in (("black", 4.5), ("white", 2.0)):
        frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=width, zorder=3)
        frame.set_clip_on(False)  # whole at the border of the plot too
        ax.add_patch(frame)
    return [Rectangle((0, 0), 1, 1, fill=False, edgecolor="black", linewidth=2.0, label=f"best: {label}")]


def _hatch(ax: Axes, diverged: Flags) -> list[Any]:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Patch, Rectangle

    look: dict[str, Any] = {"facecolor": "#dddddd", "edgecolor": "#777777", "hatch": "///", "linewidth": 0.0}
    cells = [Rectangle((j - 0.5, i - 0.5), 1, 1) for i, j in np.argwhere(diverged)]
    if not cells:
        return []
    ax.add_collection(PatchCollection(cells, **look))
    return [Patch(label="diverged", **look)]


def _name_cells(ax: Axes, which: Literal["x", "y"], values: Numbers, name: str) -> None:
    """Label the cells with their values; if there are many, every second or third."""
    every = -(-len(values) // 12)
    shown = range(0, len(values), every)
    labels = [f"{values[index]:.2g}" if which == "x" else f"{values[index]:.3g}" for index in shown]
    if which == "x":
        ax.set_xticks(list(shown), labels)
        if len(labels) > 6 and max(map(len, labels)) > 4:
            ax.tick_params(axis="x", labelrotation=45)
            for text in ax.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        ax.set_xlabel(axes.words(name))
    else:
        ax.set_yticks(list(shown), labels)
        ax.set_ylabel(axes.words(name))


# Shared ---------------------------------------------------------------------------------------------------------------


def _best(who: str, best: Any, outcome: str) -> Best:
    if best is None and outcome.endswith("loss"):
        return "lowest"
    if best not in ("lowest", "highest"):
        raise ValueError(
            f"{who}: best is {best!r} for the column {outcome!r}; allowed: 'lowest' or 'highest', or None for a column "
            "whose name ends in 'loss'."
        )
    return best
