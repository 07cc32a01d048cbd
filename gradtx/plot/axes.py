"""The parts that all plots share: axes, styles that differ in grey too, legends beside the data, log scales.

All drawing uses methods of the axes. pyplot only makes new figures, so that notebooks show them.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

try:
    from matplotlib import patheffects
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ImportError(
        f"gradtx.plot: matplotlib cannot be imported ({error}); the pictures need it. "
        "Install it: pip install 'gradtx[plot]'."
    ) from error

# Okabe and Ito's colours without their yellow, which is faint on white, and Tol's wine and olive. The numbers of
# colours and line styles have no common factor, so 36 curves differ in one of the two; neighbours differ in both.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#882255", "#999933")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "p", "<", "P", ">")


class Style(NamedTuple):
    """The look of one curve among several."""

    color: str
    line: Any
    marker: str


def style(index: int) -> Style:
    """The style of the curve with this index."""
    return Style(COLORS[index % len(COLORS)], LINES[index % len(LINES)], MARKERS[index % len(MARKERS)])


def axes_or_new(who: str, ax: Any, width: float, height: float, *, three: bool = False) -> Axes:
    """The given axes, or those of a new figure of this size in inches; `three` is for three dimensions."""
    projection = "3d" if three else "rectilinear"
    if ax is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(width, height))
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.1)
        return figure.add_subplot(projection=projection)
    making = 'pyplot.subplots(subplot_kw={"projection": "3d"})' if three else "pyplot.subplots()"
    if not isinstance(ax, Axes):
        raise TypeError(
            f"{who}: ax is a {type(ax).__name__}; allowed: one matplotlib Axes, or None for a new figure. "
            f"Make one: figure, ax = {making}. From an array of axes, pass one, such as axes[0]."
        )
    if (ax.name == "3d") != three:
        raise ValueError(
            f"{who}: ax has the projection {ax.name!r}; allowed: {projection!r}, or None for a new figure. "
            f"Make one: figure, ax = {making}."
        )
    return ax


def legend_beside_or_above(ax: Axes) -> None:
    """A legend to the right of the data, or above them if it is wide; none without entries."""
    if not ax.get_legend_handles_labels()[1]:
        return
    place = ax.get_position()
    legend(ax)
    drawn: Any = ax.get_legend()
    if drawn.get_window_extent().width > 0.45 * ax.figure.bbox.width:
        if ax.figure.get_layout_engine() is None:  # undo the room to the right
            ax.set_position(place)
        legend_above(ax)


def legend(ax: Axes, title: str | None = None) -> None:
    """A legend to the right of the data."""
    drawn = ax.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=2.6)
    drawn.set_alignment("left")
    leave_room(ax, right=drawn.get_window_extent().width / ax.get_window_extent().width)


def legend_above(ax: Axes, handles: Sequence[Any] = ()) -> None:
    """A legend above the data, with additional entries; none without entries."""
    entries = [*ax.get_legend_handles_labels()[0], *handles]
    picture = ax.get_window_extent()
    for columns in range(min(4, len(entries)), 0, -1):  # the most that fit
        drawn = ax.legend(
            handles=entries,
            loc="lower center" if ax.name == "3d" else "lower left",
            bbox_to_anchor=(0.5 if ax.name == "3d" else 0.0, 1.0),
            ncols=columns,
            frameon=False,
            borderaxespad=0.2,
            columnspacing=1.4,
            handlelength=2.6,
        )
        size = drawn.get_window_extent()
        if size.width < 1.1 * picture.width or columns == 1:
            leave_room(ax, top=size.height / picture.height)
            break


def color_bar(ax: Axes, norm: Any, colors: Any, label: str, *, log: bool) -> None:
    """A colour bar to the right of the data, which moves with the axes."""
    from matplotlib.cm import ScalarMappable

    beside: Any = ax.inset_axes((1.03, 0.0, 0.045, 1.0))
    ax.figure.colorbar(ScalarMappable(norm, colors), cax=beside, label=label)
    if log:
        log_scale(beside, "y")
    picture = ax.get_window_extent()
    leave_room(ax, right=(beside.get_tightbbox().x1 - picture.x1) / picture.width)


def strip_above(ax: Axes, rows: int, label: str) -> Axes:
    """A strip above the plot with this many rows, the first on top, over the same horizontal axis."""
    height = 0.02 + min(0.035, 0.35 / rows) * rows
    leave_room(ax, top=1 - 1 / (1.01 + height))
    strip = ax.inset_axes((0.0, 1.01, 1.0, height), sharex=ax)
    strip.set(ylim=(rows - 0.3, -0.7), yticks=[], facecolor="#f6f6f6")
    strip.set_ylabel(label, rotation=0, ha="right", va="center", size="small")
    strip.tick_params(which="both", bottom=False, labelbottom=False)
    strip.spines[:].set_visible(False)
    return strip


def halo(width: float) -> list[Any]:
    """A path effect: a white line of this width behind lines and markers."""
    return [patheffects.withStroke(linewidth=width, foreground="white")]


def leave_room(ax: Axes, *, right: float = 0.0, top: float = 0.0) -> None:
    """Shrink the axes by these fractions, at most to a third. If the figure has a layout engine, that does it."""
    if ax.figure.get_layout_engine() is None:
        x, y, width, height = ax.get_position().bounds
        ax.set_position((x, y, width * max(1 - right, 1 / 3), height * max(1 - top, 1 / 3)))
        ax.set_in_layout(True)  # for bbox_inches="tight": set_position has excluded the axes from it


def grid(ax: Axes) -> None:
    """Faint lines behind the data."""
    ax.set_axisbelow(True)
    ax.grid(color="#e4e4e4", linewidth=0.7)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def over_updates(ax: Axes) -> None:
    """A horizontal axis of whole numbers."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
    grid(ax)


def log_scale(ax: Axes, which: Literal["x", "y"]) -> None:
    """A log scale with powers of ten as labels; below three decades, plain numbers with first digits 1, 2 and 5."""
    if which == "x":
        ax.set_xscale("log")
    else:
        ax.set_yscale("log")
    axis = ax.xaxis if which == "x" else ax.yaxis

    def label(value: float, _position: Any) -> str:
        low, high = sorted(axis.get_view_interval())
        if value <= 0 or low <= 0:
            return ""
        exponent = math.floor(math.log10(value) + 1e-9)
        leading = value / 10.0**exponent
        if high < 4 * low:
            return f"{value:.3g}"
        if high < 1000 * low:
            return f"{value:.3g}" if min(abs(leading - n) for n in (1, 2, 5)) < 1e-6 else ""
        return f"$10^{{{exponent}}}$" if abs(leading - 1) < 1e-6 else ""

    axis.set_major_formatter(label)
    axis.set_minor_formatter(label)


def few_ticks(axis: Any) -> None:
    """Ticks without those at the ends, which overlap with another axis in three dimensions."""
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], prune="both"))
    axis.labelpad = 6


def powers_of_ten(axis: Any) -> None:
    """Label an axis of exponents with powers of ten: the third dimension has no log scale."""
    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.set_major_formatter(lambda value, _position: f"$10^{{{value:.0f}}}$")


def cross(ax: Axes, x: float, y: float | None, color: str, label: str) -> None:
    """A cross with a white edge; if y is None, at half the height of the axes."""
    ax.plot(
        [x],
        [0.5 if y is None else y],
        color=color,
        linestyle="none",
        marker="x",
        markersize=8,
        markeredgewidth=2.2,
        path_effects=halo(4.5),
        transform=ax.get_xaxis_transform() if y is None else ax.transData,
        zorder=4,
        label=label,
    )


def words(name: str) -> str:
    """The label for a column or an argument."""
    return name.replace("_", " ")
