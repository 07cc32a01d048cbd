"""Heights over a plane: the values of a function on a grid, and the levels of contour lines and colour bands.

Losses span decades, and the interesting part is near the minimum. So if most values are far below the highest, levels
are evenly spaced in log(value - base), where the base is zero or the lowest value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.plot.axes import Axes
from gradtx.plot.columns import Flags, Numbers, integer

Interval = tuple[float, float]
HATCHED: dict[str, Any] = {"facecolor": "#dddddd", "edgecolor": "#777777", "hatch": "///", "linewidth": 0.0}
_SKEWED = 300.0  # for a round bowl on a square, the highest value is 157 times the quantile 0.01


class Heights(NamedTuple):
    """Values over the points of a grid."""

    x: Numbers
    y: Numbers
    values: Numbers
    """One row for each y."""

    @property
    def box(self) -> tuple[Interval, Interval]:
        """The ranges of x and y."""
        return (float(self.x[0]), float(self.x[-1])), (float(self.y[0]), float(self.y[-1]))

    @property
    def holes(self) -> Flags:
        """Where the value is not finite."""
        return ~np.isfinite(self.values)

    def at(self, points: Numbers) -> Numbers:
        """The heights at these points by bilinear interpolation; NaN outside the grid."""
        found: list[Numbers] = []
        for value, ticks in zip(points.T, (self.x, self.y)):
            inside = (ticks[0] <= value) & (value <= ticks[-1])
            found.append(np.where(inside, np.interp(value, ticks, np.arange(len(ticks))), np.nan))
        outside = np.isnan(found).any(axis=0)
        column, row = (np.where(outside, 0.0, place) for place in found)
        j, i = (np.minimum(place.astype(int), n - 2) for place, n in ((column, len(self.x)), (row, len(self.y))))
        s, t, v = column - j, row - i, self.values
        low, high = (1 - s) * v[i, j] + s * v[i, j + 1], (1 - s) * v[i + 1, j] + s * v[i + 1, j + 1]
        return np.where(outside, np.nan, (1 - t) * low + t * high)


def holes_label(count: int) -> str:
    """The entry of a legend for values that are not finite."""
    return f"{count} value{'' if count == 1 else 's'} not finite"


# A function -----------------------------------------------------------------------------------------------------------


def shown(who: str, function: Any) -> Any:
    """The function to draw; for a noisy function, the one without noise."""
    function = getattr(function, "function", function)
    if not callable(function):
        raise TypeError(
            f"{who}: function is a {type(function).__name__}; it must be a function of a point, an array of shape "
            "(2,), that returns a scalar, such as gradtx.landscape.functions.beale."
        )
    dimension = getattr(function, "dimension", 2)
    if dimension != 2:
        raise ValueError(
            f"{who}: {name(function)} has dimension {dimension}; allowed: 2. Draw a slice of it: "
            "gradtx.plot.slice(gradtx.landscape.slice_2d(...))."
        )
    return function


def name(function: Any) -> str:
    """The name of the function."""
    return str(getattr(function, "name", None) or getattr(function, "__name__", "f"))


def values(who: str, function: Callable[..., Any]) -> Callable[[Numbers], Numbers]:
    """The function, for an array of points of shape (..., 2)."""
    like = jax.ShapeDtypeStruct((2,), jax.dtypes.canonicalize_dtype(np.float64))
    leaves = jax.tree.leaves(jax.eval_shape(function, like))
    if len(leaves) != 1 or leaves[0].shape != () or not jnp.isdtype(leaves[0].dtype, ("real floating", "integral")):
        got = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves) or "nothing"
        raise TypeError(
            f"{who}: {name(function)} of an array of shape (2,) returns {got}; it must return one real scalar. "
            "Reduce it, for example with jnp.sum."
        )
    every = jax.jit(jax.vmap(function))

    def at(points: Numbers) -> Numbers:
        flat = points.reshape(-1, 2)
        count = len(flat)
        rows = 1 << count.bit_length() if count < 4096 else count  # powers of two, so few sizes are compiled
        padded = np.concatenate([flat, np.zeros((rows - count, 2))]).astype(like.dtype)
        return np.asarray(every(padded), np.float64)[:count].reshape(points.shape[:-1])

    return at


def over(who: str, function: Any, at: Callable[[Numbers], Numbers], x: Any, y: Any, points: Any) -> Heights:
    """The values of a function on a grid over the intervals, or over its domain."""
    domain = getattr(function, "domain", None) or (None, None)
    sides = [interval(who, *pair) for pair in (("x", x, domain[0]), ("y", y, domain[1]))]
    count = integer(who, "points", points, 2, 2000)
    xs, ys = (np.linspace(*side, count) for side in sides)
    return Heights(xs, ys, at(np.stack(np.meshgrid(xs, ys), axis=-1)))


def interval(who: str, which: str, given: Any, domain: Any = None) -> Interval:
    """Two numbers, the lower first."""
    found = domain if given is None else given
    if found is None:
        raise ValueError(
            f"{who}: {which} is None, and the function has no domain; allowed: (low, high), the range to draw, such as "
            f"{which}=(-2.0, 2.0)."
        )
    try:
        low, high = (float(end) for end in found)
    except (TypeError, ValueError):
        raise TypeError(f"{who}: {which} is {found!r}; allowed: (low, high), two numbers.") from None
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"{who}: {which} is {found!r}; allowed: (low, high), finite, with low < high.")
    return low, high


# A slice --------------------------------------------------------------------------------------------------------------


def is_slice(value: Any) -> bool:
    """Whether this has the attributes of a slice."""
    return all(hasattr(value, part) for part in ("values", "x", "y", "plane")) and not isinstance(value, Mapping)


def of_slice(given: Any) -> Heights:
    """The values of a slice in two dimensions, with sorted coordinates."""
    x, y, values = (np.asarray(part, np.float64) for part in (given.x, given.y, given.values))
    columns, rows = np.argsort(x), np.argsort(y)
    return Heights(x[columns], y[rows], values[np.ix_(rows, columns)])


# Levels and colours ---------------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """How heights become levels and colours. All levels are relative to the base."""

    log: bool
    base: float
    edges: Numbers
    """The edges of the colour bands, two or more. On a log scale they are positive, and lower values are in the lowest
    band."""
    lines: Numbers

    def norm(self) -> Any:
        """The matplotlib norm from heights to colours."""
        from matplotlib.colors import LogNorm, Normalize

        return (LogNorm if self.log else Normalize)(float(self.edges[0]), float(self.edges[-1]))

    def label(self, what: str) -> str:
        """The label of the heights."""
        if not self.base:
            return what
        return f"{what} {'-' if self.base > 0 else '+'} {abs(self.base):.3g}"


def scale(
    values: Numbers, given: int | Numbers, log: bool | None, *, positive: bool = False, lowest: float = 0.002
) -> Scale | None:
    """The levels for these values; None if none is finite.

    `positive`: the base is zero if all values are positive. `lowest`: the fraction of values below the lowest level of
    a log scale.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return Scale(False, 0.0, np.array([low - 0.5, low + 0.5]), np.empty(0))
    near = float(np.quantile((finite - low)[finite > low], 0.01))
    if log is None:
        log = high - low > _SKEWED * near or (positive and 0 < 10 * low < high)
    base = 0.0 if not log or (low >= 0 and (low <= near or positive)) else low
    above = finite - base
    count = given if isinstance(given, int) else 20
    if log:
        least = max(float(np.quantile(above[above > 0], lowest)), 1e-12 * (high - base))
        edges = np.geomspace(min(least, 0.9 * (high - base)), high - base, count + 1)
    else:
        edges = np.linspace(low, high, count + 2)
    lines = edges[:-1] if log else edges[1:-1]
    if not isinstance(given, int):
        lines = given - base
        inner = lines[(edges[0] < lines) & (lines < edges[-1])]
        edges = np.concatenate([edges[:1], inner, edges[-1:]])
    return Scale(log, base, edges, lines[(low - base < lines) & (lines < high - base)])


def read_levels(who: str, levels: Any) -> int | Numbers:
    """The number of levels, or the levels themselves."""
    if levels is None:
        return 20
    if not isinstance(levels, Sequence | np.ndarray | jax.Array) or isinstance(levels, str):
        return integer(who, "levels", levels, 1, 200)
    array = np.asarray(cast(Any, levels))
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iuf":
        raise TypeError(f"{who}: levels is {levels!r}; it must be an int, or increasing numbers.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all() or (np.diff(array) <= 0).any():
        raise ValueError(f"{who}: levels is {levels!r}; allowed: finite, increasing numbers. Sort them.")
    return array


def light_colors() -> Any:
    """Viridis, lightened so that lines on it are visible."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colors = colormaps["viridis"](np.linspace(0.0, 1.0, 256))[:, :3]
    return ListedColormap(1 - 0.26 * (1 - colors))


def draw_bands(ax: Axes, heights: Heights, levels: Scale | None, colors: Any, line: str) -> None:
    """Colour bands with lines between them. Values that are not finite are hatched, with an entry for the legend."""
    from matplotlib.patches import Rectangle

    (left, right), (bottom, top) = heights.box
    count = int(heights.holes.sum())
    if count:  # behind the bands
        label = holes_label(count)
        ax.add_patch(Rectangle((left, bottom), right - left, top - bottom, zorder=0, label=label, **HATCHED))
    if levels is not None:
        above = np.ma.masked_invalid(heights.values - levels.base)
        bands = np.ma.maximum(above, levels.edges[0])
        ax.contourf(heights.x, heights.y, bands, levels=levels.edges, norm=levels.norm(), cmap=colors)
        if levels.lines.size:
            style: Any = {"colors": line, "linewidths": 0.6, "linestyles": "solid"}
            ax.contour(heights.x, heights.y, above, levels=levels.lines, **style)
    ax.set(xlim=(left, right), ylim=(bottom, top))
