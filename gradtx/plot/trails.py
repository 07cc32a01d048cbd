"""Trajectories over a plane, drawn up to the border of the plot, or up to the first point that is not finite."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradtx.plot import axes
from gradtx.plot.columns import Flags, Numbers
from gradtx.plot.heights import Interval

Box = Sequence[Interval]
Lift = Callable[[Numbers], Numbers]
_MOST = 30  # maximum number of markers of one kind


class Trail(NamedTuple):
    """The points that one optimizer visits, the start first."""

    name: str
    points: Numbers
    """One row per step."""
    first: int = 0
    """The step at which the line begins."""

    @property
    def finite(self) -> int:
        """The number of points before the first one that is not finite."""
        bad = np.flatnonzero(~np.isfinite(self.points).all(axis=1))
        return int(bad[0]) if bad.size else len(self.points)

    @property
    def ended(self) -> bool:
        """Whether a point is not finite."""
        return self.finite < len(self.points)

    @property
    def label(self) -> str:
        """The entry in the legend."""
        label = f"{self.name}: not finite from step {self.finite}" if self.ended else self.name
        return textwrap.fill(label, 44)

    def until(self, step: int, length: int | None = None) -> "Trail":
        """The trail up to this step, drawn from the start or with this length in steps."""
        return Trail(self.name, self.points[: step + 1], 0 if length is None else max(0, step - length))

    def last(self, box: Box) -> int | None:
        """The last step within the plot."""
        inside = np.flatnonzero(within(self.points[: self.finite], box))
        return int(inside[-1]) if inside.size else None


def within(points: Numbers, box: Box) -> Flags:
    """Which of the points are in the box, including its border."""
    low, high = np.array(box).T
    return ((low <= points) & (points <= high)).all(axis=1)


def read(who: str, trajectories: Any) -> list[Trail]:
    """One array, or arrays by name."""
    if trajectories is None:
        return []
    if not isinstance(trajectories, Mapping):
        return [Trail("trajectory", _points(who, "trajectories", trajectories))]
    return [Trail(str(n), _points(who, f"trajectories[{n!r}]", points)) for n, points in trajectories.items()]


def _points(who: str, name: str, value: Any) -> Numbers:
    try:
        array: np.ndarray[Any, Any] = np.asarray(value)
    except ValueError:
        array = np.empty(0, dtype=object)  # rows of unequal lengths
    if array.dtype.kind in "bOSUcMm":
        raise TypeError(
            f"{who}: {name} is a {type(value).__name__}; it must be an array of shape (steps, 2), one point per row, "
            "as gradtx.landscape.trajectory returns, or a dict of them by name."
        )
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(
            f"{who}: {name} is an array of shape {array.shape}; allowed: (steps, 2), one point per row. "
            "gradtx.plot.slice projects more coordinates onto a plane."
        )
    return array.astype(np.float64)


# Drawing --------------------------------------------------------------------------------------------------------------


def draw(ax: Any, trails: Sequence[Trail], box: Box, lift: Lift | None = None, *, begin: int = 0) -> list[Any]:
    """Draw each trail as a line that ends in a dot, or in a cross; `lift` gives the heights in three dimensions.

    `begin` is the index of the first style.
    """
    artists: list[Any] = []
    for index, trail in enumerate(trails, begin):
        style, last = axes.style(index), trail.last(box)
        look: dict[str, Any] = {"color": style.color, "zorder": 4}
        points = trail.points[trail.first : trail.finite]
        if lift is not None:  # axes in three dimensions do not clip lines
            points = np.where(within(points, box)[:, None], points, np.nan)
        artists += ax.plot(
            *_coordinates(points, lift),
            linestyle=style.line,
            linewidth=1.7,
            label=trail.label,
            path_effects=axes.halo(3.2),
            **look,
        )
        if last is not None:
            place = _coordinates(trail.points[last : last + 1], lift)
            shape: dict[str, Any] = {
                "marker": "o",
                "markersize": 6.5,
                "markeredgecolor": "white",
                "markeredgewidth": 0.7,
            }
            if trail.ended:
                shape = {"marker": "x", "markersize": 8, "markeredgewidth": 2.2, "path_effects": axes.halo(4.5)}
            artists += ax.plot(*place, linestyle="none", label="_end", **look, **shape)
    return artists


def draw_starts(ax: Any, trails: Sequence[Trail], box: Box, lift: Lift | None = None) -> None:
    """A plus at each start."""
    if trails:
        starts = np.unique([trail.points[0] for trail in trails], axis=0)
        mark(ax, starts, box, "start", lift, marker="+", markersize=10, markeredgewidth=1.8)


def draw_points(ax: Any, function: Any, box: Box, lift: Lift | None = None) -> None:
    """The function's minima, saddles and maxima. If there are too many of a kind, only the lowest minimum is drawn."""
    white: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "black"}
    for name, names, look in (
        ("minimum", "minima", {"marker": "*", "markersize": 13, "markeredgecolor": "white", "markeredgewidth": 0.8}),
        ("saddle", "saddles", {"marker": "X", "markersize": 8, **white}),
        ("maximum", "maxima", {"marker": "^", "markersize": 8, **white}),
    ):
        points = getattr(function, names, None)
        if points is None or not np.size(points):
            continue
        array = np.asarray(points, np.float64).reshape(-1, 2)
        inside = array[within(array, box)]
        if len(inside) <= _MOST:
            mark(ax, inside, box, name if len(inside) == 1 else names, lift, **look)
        elif names == "minima":
            mark(ax, array[:1], box, f"lowest of {len(inside)} minima", lift, **look)


def mark(ax: Any, points: Numbers, box: Box, label: str, lift: Lift | None = None, **look: Any) -> None:
    """Draw the points within the plot, with one entry in the legend."""
    inside = points[within(points, box)]
    if len(inside):
        look = {"color": "black", "zorder": 6, **look}
        ax.plot(*_coordinates(inside, lift), linestyle="none", label=label, **look)


def _coordinates(points: Numbers, lift: Lift | None) -> list[Numbers]:
    return [*points.T] if lift is None else [*points.T, lift(points)]
