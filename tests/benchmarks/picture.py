"""The picture of `steps`: how long gradtx takes where optax takes 1, for a step and for building it."""

import pathlib
from typing import Any

from matplotlib import figure

from gradtx.plot import axes
from tests.benchmarks import pairs

PANELS = {"step": "a compiled step", "build": "trace, lower and compile"}


def draw(rows: list[Any], title: str, path: pathlib.Path) -> None:
    """A point at each median with its middle half; below 1, on the left, gradtx is quicker."""
    rows = [row for row in rows if (row.one, row.over) == ("gradtx", "optax") and row.measure in PANELS]
    if not rows:
        raise ValueError("there is no ratio gradtx / optax of a step or a build to draw")
    measures = [measure for measure in PANELS if any(row.measure == measure for row in rows)]
    methods = list(dict.fromkeys(row.method for row in rows))
    sizes = {row.tree: f"{row.tree.replace('_', ' ')}\n{row.leaves:,} leaves, {short(row.parameters)}" for row in rows}
    drawn = figure.Figure(figsize=(3.2 + 3.6 * len(measures), 1.6 + len(sizes) * (0.2 + 0.12 * len(methods))))
    drawn.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    panels = drawn.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for ax, measure in zip(panels, measures, strict=True):
        for tree in range(len(sizes)):
            if tree % 2:
                ax.axhspan(tree - 0.5, tree + 0.5, color="#f5f5f5", zorder=0)
        for index, method in enumerate(methods):
            mine = [row for row in rows if row.measure == measure and row.method == method]
            places = [list(sizes).index(row.tree) + 0.8 * ((index + 0.5) / len(methods) - 0.5) for row in mine]
            points(ax, [pairs.spread(row.ratios) for row in mine], places, axes.style(index), axes.words(method))
        ax.axvline(1, color="black", linewidth=1.0, zorder=2)
        axes.log_scale(ax, "x")
        axes.grid(ax)
        ax.grid(visible=False, axis="y")
        ax.set_title(PANELS[measure], fontsize=10)
        ax.set_xlabel("time of gradtx / time of optax")
    panels[0].set_yticks(range(len(sizes)), list(sizes.values()), fontsize=8)
    panels[0].set_ylim(len(sizes) - 0.5, -0.5)
    axes.legend(panels[-1])
    drawn.suptitle(title, fontsize=7, color="#555555")
    drawn.savefig(path, dpi=150)


def points(ax: Any, quartiles: list[tuple[float, float, float]], places: list[float], style: Any, label: str) -> None:
    medians = [middle for _, middle, _ in quartiles]
    reach = [[middle - low for low, middle, _ in quartiles], [high - middle for _, middle, high in quartiles]]
    look = {"color": style.color, "marker": style.marker, "linestyle": "none", "markersize": 4.5}
    ax.errorbar(medians, places, xerr=reach, label=label, **look)


def short(number: int) -> str:
    """25,557,032 as 25.6 M."""
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number / 1e3:.3g} k"
