"""What the pictures share: the axes to draw on, styles that also read in grey, legends beside the data, log scales.

Drawing goes through the axes only. pyplot is asked for a new figure, so that notebooks show it, and for nothing else.
"""

import math
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
# colours and lines have no common factor, so 36 curves differ in one of them; neighbours differ in both.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#882255", "#999933")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "p", "<", "P", ">")


class Style(NamedTuple):
    """How one curve among several is drawn."""

    color: str
    line: Any
    marker: str


def style(index: int) -> Style:
    """The style of the curve with this number, 0 first."""
    return Style(COLORS[index % len(COLORS)], LINES[index % len(LINES)], MARKERS[index % len(MARKERS)])


def axes_or_new(who: str, ax: Any, width: float, height: float) -> Axes:
    """The axes as given, or those of a new figure of this size in inches."""
    if ax is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(width, height))
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.1)
        return figure.add_subplot()
    if not isinstance(ax, Axes):
        raise TypeError(
            f"{who}: ax is a {type(ax).__name__}; allowed: one matplotlib Axes, or None for a new figure. "
            "Make one: figure, ax = pyplot.subplots(); of several axes, pass one, such as axes[0]."
        )
    return ax


def legend(ax: Axes, title: str | None = None) -> None:
    """A legend to the right of the data."""
    drawn = ax.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=2.6)
    drawn.set_alignment("left")
    leave_room(ax, right=drawn.get_window_extent().width / ax.get_window_extent().width)


def leave_room(ax: Axes, *, right: float = 0.0, top: float = 0.0) -> None:
    """Narrow the axes by these fractions, at most to a third; a layout engine, where the figure has one, does that."""
    if ax.figure.get_layout_engine() is None:
        x, y, width, height = ax.get_position().bounds
        ax.set_position((x, y, width * max(1 - right, 1 / 3), height * max(1 - top, 1 / 3)))
        ax.set_in_layout(True)  # for saving with bbox_inches="tight": set_position takes them out


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
    """A log scale that labels powers of ten, and over less than three decades 2 and 5 as well, as plain numbers."""
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


def cross(ax: Axes, x: float, y: float | None, color: str, label: str) -> None:
    """A cross with a white edge; without y, half way up."""
    halo = [patheffects.withStroke(linewidth=4.5, foreground="white")]
    ax.plot(
        [x],
        [0.5 if y is None else y],
        color=color,
        linestyle="none",
        marker="x",
        markersize=8,
        markeredgewidth=2.2,
        path_effects=halo,
        transform=ax.get_xaxis_transform() if y is None else ax.transData,
        zorder=4,
        label=label,
    )


def words(name: str) -> str:
    """A column's or argument's name as it stands in a picture."""
    return name.replace("_", " ")
