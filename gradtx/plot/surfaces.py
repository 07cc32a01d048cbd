"""Functions of two numbers, and slices of a loss of many: from above and in three dimensions.

The trajectories of optimizers are drawn on top, from a plus at the start to a dot at the last point within the plot.
A trajectory that becomes NaN or infinite ends in a cross. Areas where the function is not finite are hatched, and the
legend counts these values.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradtx.plot import axes, columns, heights, trails
from gradtx.plot.axes import Axes
from gradtx.plot.columns import Numbers
from gradtx.plot.heights import Heights, Scale
from gradtx.plot.trails import Trail


def contour(
    function: Any,
    trajectories: Any = None,
    *,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    points: int = 200,
    levels: Any = None,
    log: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The contour lines of a function of two numbers, and trajectories on it.

        lines: f(x, y) = c for c evenly spaced, or log(c - base) evenly spaced

    The base is 0, or the lowest value in the plot if that is negative or far above 0. Dark is low. The function's
    `minima`, `saddles` and `maxima` are marked. For a noisy function, the one without noise is drawn.

    Args:
      function: a function of an array of shape (2,) that returns a scalar, such as `landscape.functions.beale`.
      trajectories: a dict of arrays of shape (steps, 2) by the name of the optimizer; or one array.
      x, y: (low, high), the range to draw; None is the function's `domain`.
      points: the grid has points x points values, 2 to 2000.
      levels: the number of levels, 1 to 200, or the levels themselves, increasing numbers; None is 20.
      log: whether the levels are evenly spaced in the logarithm; None if the values span about three decades or more.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for a function that is not callable or returns no real scalar, trajectories that are not arrays,
    an `ax` that is not one Axes. ValueError for a function of more than two numbers, a missing or empty range, and for
    arguments out of range.

    >>> import numpy as np
    >>> from gradtx import plot
    >>> def bowl(w):
    ...     return w[0] ** 2 + 3 * w[1] ** 2
    >>> path = np.array([[-1.5, 0.8], [-0.9, 0.2], [-0.5, 0.1]])
    >>> ax = plot.contour(bowl, {"sgd": path}, x=(-2, 2), y=(-1, 1))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['sgd', 'start']
    """
    where = {"x": x, "y": y, "points": points}
    return draw_contour("gradtx.plot.contour", function, trajectories, where, levels=levels, log=log, ax=ax)


def draw_contour(
    who: str,
    function: Any,
    trajectories: Any,
    where: dict[str, Any],
    *,
    levels: Any = None,
    log: Any = None,
    ax: Any = None,
) -> Axes:
    """Draw what `contour` draws; errors name `who`. `where` has x, y and points."""
    function = heights.shown(who, function)
    every = trails.read(who, trajectories)
    levels = heights.read_levels(who, levels)
    grid = heights.over(who, function, heights.values(who, function), **where)
    scale = heights.scale(grid.values, levels, log)
    ax = axes.axes_or_new(who, ax, 7.5, 4.8)
    heights.draw_bands(ax, grid, scale, heights.light_colors(), "#9a9a9a")
    trails.draw(ax, every, grid.box)
    trails.draw_starts(ax, every, grid.box)
    trails.draw_points(ax, function, grid.box)
    ax.set(xlabel="x", ylabel="y")
    axes.legend_beside_or_above(ax)
    return ax


def surface(
    function: Any,
    trajectories: Any = None,
    *,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    points: int = 100,
    levels: Any = None,
    log: bool | None = None,
    elevation: float = 40.0,
    azimuth: float = -60.0,
    ax: Axes | None = None,
) -> Axes:
    """A function of two numbers, or a slice, in three dimensions, and trajectories on it.

        height: f(x, y), or log10(f(x, y) - base)

    The base is 0, or the lowest value in the plot if that is negative or far above 0. Only the part of a trajectory
    within the plot is drawn; hills do not hide it. Values that are not finite leave holes.

    Args:
      function: a function of an array of shape (2,) that returns a scalar; or a slice in two dimensions.
      trajectories: a dict of arrays of shape (steps, 2) by the name of the optimizer; or one array. On a slice, in the
        coordinates of its plane: `slice.plane.project(trajectory)`.
      x, y: (low, high), the range to draw; None is the function's `domain`. Not for a slice.
      points: the grid has points x points values, 2 to 2000. Not for a slice.
      levels: the number of contour lines, 1 to 200, or their levels, increasing numbers; None is 20.
      log: whether heights are on a log scale; None if the values span about three decades or more.
      elevation, azimuth: the angles of the view above the plane and around the vertical. [degrees]
      ax: three-dimensional axes to draw on; None makes a new figure.

    Errors: as `contour`; ValueError for an `ax` in two dimensions, TypeError for angles that are not numbers.

    >>> from gradtx import plot
    >>> ax = plot.surface(lambda w: w[0] ** 2 - w[1] ** 2, x=(-1, 1), y=(-1, 1), points=30)
    >>> ax.name, ax.elev, ax.azim
    ('3d', 40.0, -60.0)
    """
    who = "gradtx.plot.surface"
    angles = [_angle(who, *pair) for pair in (("elevation", elevation), ("azimuth", azimuth))]
    every = trails.read(who, trajectories)
    levels = heights.read_levels(who, levels)
    names, label = ("x", "y"), "f(x, y)"
    if heights.is_slice(function):
        grid, names, label = _of_plane(who, function, x, y), tuple(function.plane.names), "loss"
        values = grid.at
    else:
        function = heights.shown(who, function)
        values = heights.values(who, function)
        grid = heights.over(who, function, values, x, y, points)
    scale = heights.scale(grid.values, levels, log, positive=label == "loss", lowest=0.02)
    ax = axes.axes_or_new(who, ax, 7.0, 6.2, three=True)
    drawn: Any = ax

    def lift(at: Numbers) -> Numbers:
        return _height(values(at), scale)

    _draw_surface(drawn, grid, scale)
    trails.draw(drawn, every, grid.box, lift)
    trails.draw_starts(drawn, every, grid.box, lift)
    trails.draw_points(drawn, function, grid.box, lift)
    drawn.set(xlabel=names[0], ylabel=names[1], zlabel=label if scale is None else scale.label(label))
    drawn.view_init(elev=angles[0], azim=angles[1])
    axes.legend_above(drawn, _holes(grid))
    return ax


def slice(  # noqa: A001 - called `plot.slice`
    values: Any,
    trajectory: Any = None,
    *,
    trajectories: Mapping[str, Any] | None = None,
    levels: Any = None,
    log: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The loss along a line as a curve, or on a plane in colours, with projected trajectories.

        J(origin + a u) over a, or J(origin + a u + b v) over a and b             (u, v: the directions)

    The origin is marked. A trajectory is projected onto the plane, so the loss at its points differs from the loss
    drawn below them. On a line it is drawn on the curve. The legend of a plane is above the plot, so put a title on the
    figure: `ax.figure.suptitle`.

    Args:
      values: the result of `landscape.slice_1d` or `landscape.slice_2d`; or a dict of several results of `slice_1d`, by
        name.
      trajectory: a tree like the params with a leading axis of steps, which is projected onto the slice's plane.
      trajectories: a dict of trajectories by name, for several optimizers.
      levels: the number of levels on a plane, 1 to 200, or the levels themselves, increasing numbers; None is 20.
      log: whether to use a log scale; None uses one if the values are positive and span more than a decade, and on a
        plane also if their heights above the lowest span about three decades.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for values that are not slices, an `ax` that is not one Axes. ValueError for no slices, several
    slices of planes, trajectories on several slices, both `trajectory` and `trajectories`, trajectories that do not fit
    the plane, levels for a line, a log scale for a line with values that are not positive.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape, plot
    >>> plane = landscape.plane_through(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 1.0]))
    >>> found = landscape.slice_2d(lambda w: jnp.sum(w**2) + 0.1, plane)
    >>> ax = plot.slice(found, trajectories={"sgd": jnp.array([[0.9, 0.5, 0.3], [0.1, 0.0, 0.1]])})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['sgd', 'start', 'origin']
    """
    who = "gradtx.plot.slice"
    if heights.is_slice(values) and values.y is not None:
        grid, levels = heights.of_slice(values), heights.read_levels(who, levels)
        every = _projected(who, values, trajectory, trajectories)
        scale = heights.scale(grid.values, levels, log, positive=True)
        ax = axes.axes_or_new(who, ax, 7.0, 5.0)
        heights.draw_bands(ax, grid, scale, "viridis", "#00000055")
        if scale is not None:
            axes.color_bar(ax, scale.norm(), "viridis", scale.label("loss"), log=scale.log)
        trails.draw(ax, every, grid.box)
        trails.draw_starts(ax, every, grid.box)
        trails.mark(ax, np.zeros((1, 2)), grid.box, "origin", **_ORIGIN)
        ax.set(xlabel=values.plane.names[0], ylabel=values.plane.names[1])
        axes.legend_above(ax)
        return ax
    if levels is not None:
        raise ValueError(f"{who}: levels is {levels!r}; allowed for a slice of one dimension: None.")
    lines = _lines(who, values)
    every = _projected(who, values, trajectory, trajectories)
    drawn = np.concatenate([line.values for line in lines.values()])
    finite = drawn[np.isfinite(drawn)]
    log = columns.on_log_scale(who, log, drawn, "loss", bool(finite.size and finite.max() > 10 * finite.min()))
    ax = axes.axes_or_new(who, ax, 7.0, 4.2)
    _draw_lines(ax, lines, log)
    if every:
        (line,) = lines.values()
        _draw_along(ax, line, every)
    names = {given.plane.names[0] for given in (values.values() if isinstance(values, Mapping) else [values])}
    ax.set(xlabel=names.pop() if len(names) == 1 else "along the line", ylabel="loss")
    axes.grid(ax)
    axes.legend(ax)
    return ax


# Along a line ---------------------------------------------------------------------------------------------------------

_ORIGIN: dict[str, Any] = {"marker": "D", "markersize": 6, "markerfacecolor": "white", "markeredgecolor": "black"}


class _Line(NamedTuple):
    x: Numbers
    values: Numbers
    label: str


def _lines(who: str, values: Any) -> dict[str, _Line]:
    """The curves by name, with sorted coordinates."""
    given = values if isinstance(values, Mapping) else {"loss": values}
    if not given:
        raise ValueError(f"{who}: values is empty; allowed: at least one slice.")
    found: dict[str, _Line] = {}
    for name, each in given.items():
        if not heights.is_slice(each):
            which = f"values[{name!r}]" if given is values else "values"
            raise TypeError(
                f"{who}: {which} is a {type(each).__name__}; allowed: the result of gradtx.landscape.slice_1d or "
                "slice_2d, or a dict of results of slice_1d by name."
            )
        if each.y is not None:
            raise ValueError(f"{who}: values[{name!r}] has two dimensions; allowed in a dict: one. Draw it alone.")
        x, y = np.asarray(each.x, np.float64), np.asarray(each.values, np.float64)
        count, order = int((~np.isfinite(y)).sum()), np.argsort(x)
        label = f"{name}: {heights.holes_label(count)}" if count and given is values else str(name)
        found[str(name)] = _Line(x[order], y[order], label)
    return found


def _draw_lines(ax: Axes, lines: Mapping[str, _Line], log: bool) -> None:
    if log:
        axes.log_scale(ax, "y")
    for index, line in enumerate(lines.values()):
        style, y = axes.style(index), np.where(np.isfinite(line.values), line.values, np.nan)
        ax.plot(line.x, y, color=style.color, linestyle=style.line, linewidth=1.8, label=line.label, zorder=3)
    x = np.concatenate([line.x for line in lines.values()])
    low, high = x.min(), x.max()
    if low <= 0 <= high:
        ax.axvline(0.0, color="#777777", linewidth=1.0, linestyle=":", label="origin", zorder=2)
    ax.set_xlim(low, high)
    if len(lines) == 1:  # with several lines, only the legend tells of gaps
        _draw_gaps(ax, *next(iter(lines.values())))


def _draw_gaps(ax: Axes, x: Numbers, values: Numbers, _label: str) -> None:
    """Hatch the gaps between finite values."""
    bad = np.flatnonzero(~np.isfinite(values))
    label = heights.holes_label(len(bad))
    for run in np.split(bad, np.flatnonzero(np.diff(bad) > 1) + 1) if len(bad) else []:
        start, end = float(x[max(run[0] - 1, 0)]), float(x[min(run[-1] + 1, len(x) - 1)])
        ax.axvspan(start, end, zorder=0, label=label, **heights.HATCHED)
        label = "_more"


def _draw_along(ax: Axes, line: _Line, every: list[Trail]) -> None:
    """Draw trajectories on the curve."""
    finite = np.isfinite(line.values)
    if not finite.any():
        return
    box = (float(line.x[0]), float(line.x[-1])), (-np.inf, np.inf)
    lifted = [
        trail._replace(
            points=np.column_stack([trail.points, np.interp(trail.points[:, 0], line.x[finite], line.values[finite])])
        )
        for trail in every
    ]
    for artist in trails.draw(ax, lifted, box, begin=1)[::2]:
        artist.set(linestyle="none", marker=".", markersize=5)
    trails.draw_starts(ax, lifted, box)


def _projected(who: str, values: Any, one: Any, several: Any) -> list[Trail]:
    if one is None and several is None:
        return []
    if one is not None and several is not None:
        raise ValueError(f"{who}: trajectory and trajectories are given; allowed: one of them.")
    if isinstance(values, Mapping):
        raise ValueError(
            f"{who}: values has {len(values)} slices; allowed with trajectories: one. Pass the slice itself."
        )
    if several is not None and not isinstance(several, Mapping):
        raise TypeError(
            f"{who}: trajectories is a {type(several).__name__}; it must be a dict of trajectories by name. "
            "For one trajectory, pass trajectory=..."
        )
    named = {"trajectory": one} if several is None else several
    project = values.plane.project
    return [Trail(str(name), np.asarray(project(each), np.float64)) for name, each in named.items()]


# In three dimensions --------------------------------------------------------------------------------------------------


def _of_plane(who: str, values: Any, x: Any, y: Any) -> Heights:
    if values.y is None:
        raise ValueError(f"{who}: the slice has one dimension; allowed: two. Draw it with gradtx.plot.slice.")
    if x is not None or y is not None:
        raise ValueError(f"{who}: x and y are given with a slice; allowed: None, since the slice has its own points.")
    return heights.of_slice(values)


def _angle(who: str, which: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise TypeError(f"{who}: {which} is {value!r}; it must be a number, in degrees.")
    return float(value)


def _height(values: Numbers, scale: Scale | None) -> Numbers:
    """The vertical coordinate of a value."""
    values = np.where(np.isfinite(values), values, np.nan)
    if scale is None or not scale.log:
        return values
    return np.log10(np.maximum(values - scale.base, scale.edges[0]))


def _draw_surface(ax: Any, grid: Heights, scale: Scale | None) -> None:
    z = _height(grid.values, scale)
    (left, right), (bottom, top) = grid.box
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.computed_zorder = False  # lines on the surface are drawn after it
    ax.set_box_aspect((4, 4, 3), zoom=0.9)  # room for the labels
    axes.few_ticks(ax.xaxis)
    axes.few_ticks(ax.yaxis)
    if scale is None:
        ax.set_zticks([])
        return
    if scale.log:
        axes.powers_of_ten(ax.zaxis)
    x, y = np.meshgrid(grid.x, grid.y)
    stride = -(-max(z.shape) // 120)
    ax.plot_surface(x, y, z, cmap="viridis", rstride=stride, cstride=stride, linewidth=0, antialiased=False, zorder=1)
    lines = np.log10(scale.lines) if scale.log else scale.lines
    if lines.size:
        look: Any = {"colors": "black", "linewidths": 0.5, "linestyles": "solid", "alpha": 0.35}
        ax.contour(x, y, z, levels=lines, zorder=2, **look)


def _holes(grid: Heights) -> list[Any]:
    from matplotlib.patches import Patch

    count = int(grid.holes.sum())
    return [Patch(label=heights.holes_label(count), facecolor="none", edgecolor="#777777")] if count else []
