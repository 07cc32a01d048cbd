"""The eigenvalues of the curvature as a density: the bulk, and the few outliers.

One of a million eigenvalues has a millionth of the weight. So the density is drawn on a log scale, low enough to show a
single eigenvalue.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradtx.landscape.spectra import SpectralDensity
from gradtx.plot import axes, columns
from gradtx.plot.axes import Axes
from gradtx.plot.columns import Numbers

_WHO = "gradtx.plot.spectrum"


def spectrum(
    density: Any,
    *,
    points: int = 1000,
    width: float | None = None,
    log: bool = True,
    rug: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The density of eigenvalues, one line for each operator.

        density(t) = sum of weight_i exp(-(t - node_i)² / 2 width²) / (width √2π)

    It integrates to 1. The log scale reaches down to a tenth of the height of a single eigenvalue. Ticks above the
    plot, in one row per line, mark the outliers: nodes farther from the middle 95 percent of the weight than half the
    width of that interval. If all eigenvalues are given, all are marked.

    Args:
      density: the result of `landscape.spectral_density`; or an array of all eigenvalues, of one dimension; or a dict
        of several of these by name.
      points: the number of points at which the density is computed, 2 to 100000; more are added around the ticks.
      width: the standard deviation of the normal distribution around each eigenvalue, above 0; None is a hundredth of
        the range of each spectrum.
      log: whether to use a log scale for the density.
      rug: whether to draw the ticks.
      ax: the axes to draw on; None makes a new figure.

    Errors: TypeError for a density that is none of these, or an `ax` that is not one Axes; ValueError for no spectra,
    an empty one, eigenvalues that are not finite, numbers out of range.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape, plot
    >>> H = landscape.hessian(lambda w: jnp.sum(jnp.array([9.0, *[1.0] * 9]) * w**2), jnp.zeros(10))
    >>> ax = plot.spectrum({"estimated": landscape.spectral_density(H), "exact": jnp.array([18.0, *[2.0] * 9])})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['estimated', 'exact']
    """
    several = density if isinstance(density, Mapping) else {"density": density}
    if not several:
        raise ValueError(f"{_WHO}: density is empty; allowed: at least one spectrum.")
    every = {
        str(name): _read("density" if several is not density else f"density[{name!r}]", each)
        for name, each in several.items()
    }
    count = columns.integer(_WHO, "points", points, 2, 100_000)
    _check_width(width)
    ax = axes.axes_or_new(_WHO, ax, 7.5, 4.2)
    spreads = [found.rule.width if width is None else float(width) for found in every.values()]
    low, high = min(found.nodes.min() for found in every.values()), max(found.nodes.max() for found in every.values())
    margin = max(5 * max(spreads), 0.03 * (high - low))
    low, high, top = float(low - margin), float(high + margin), 0.0
    for index, ((name, found), spread) in enumerate(zip(every.items(), spreads)):
        style, at = axes.style(index), _places(found, low, high, count, spread)
        values = _density(found, at, width)
        ax.plot(at, values, color=style.color, linestyle=style.line, linewidth=1.6, label=name)
        top = max(top, float(values.max()))
    if log:
        axes.log_scale(ax, "y")
        floor = min(
            0.1 / (found.rule.size * spread * math.sqrt(2 * math.pi)) for found, spread in zip(every.values(), spreads)
        )
        ax.set_ylim(floor, 2 * top)
    else:
        ax.set_ylim(0.0, 1.05 * top)
    ax.set(xlabel="eigenvalue", ylabel="density", xlim=(low, high))
    axes.grid(ax)
    if rug and any(len(found.marked) for found in every.values()):
        _draw_rug(ax, list(every.values()))
    if several is density:
        axes.legend(ax)
    return ax


class _Spectrum(NamedTuple):
    rule: SpectralDensity
    nodes: Numbers
    marked: Numbers
    """The positions of the ticks."""
    label: str


def _read(name: str, given: Any) -> _Spectrum:
    if isinstance(given, SpectralDensity):
        nodes, weights = (np.asarray(part, np.float64).ravel() for part in (given.nodes, given.weights))
        _check_finite(name, nodes)
        return _Spectrum(given, nodes, _outlying(nodes, weights, given.size), "nodes apart")
    if isinstance(given, Mapping | str):
        raise TypeError(
            f"{_WHO}: {name} is a {type(given).__name__}; allowed: the result of gradtx.landscape.spectral_density, or "
            "an array of all eigenvalues."
        )
    nodes = columns.series(_WHO, name, given)
    _check_finite(name, nodes)
    rule = SpectralDensity(jnp.asarray(nodes)[None], jnp.full((1, len(nodes)), 1 / len(nodes)), len(nodes))
    return _Spectrum(rule, nodes, np.sort(nodes), "eigenvalues")


def _check_width(width: Any) -> None:
    number = not isinstance(width, bool) and isinstance(width, int | float | np.number)
    if width is not None and not (number and 0 < width < np.inf):
        raise ValueError(f"{_WHO}: width is {width!r}; it must be a number above 0, or None.")


def _check_finite(name: str, nodes: Numbers) -> None:
    bad = int((~np.isfinite(nodes)).sum())
    if bad:
        raise ValueError(
            f"{_WHO}: {bad} of the {len(nodes)} eigenvalues of {name} are not finite; allowed: finite numbers. Check "
            "that the loss is finite."
        )


def _outlying(nodes: Numbers, weights: Numbers, size: int) -> Numbers:
    """The nodes farther from the interval of the middle 95 percent of the weight than half its width."""
    order = np.argsort(nodes)
    nodes, weights = nodes[order], weights[order]
    until = np.cumsum(weights) / weights.sum()
    low, high = nodes[np.searchsorted(until, [0.025, 0.975])]
    away = np.maximum(low - nodes, nodes - high) > max((high - low) / 2, 1e-3 * (nodes[-1] - nodes[0]))
    return nodes[away & (weights > 1e-3 / size)]  # with less weight, of no eigenvalue


def _places(found: _Spectrum, low: float, high: float, count: int, spread: float) -> Numbers:
    """Evenly spaced points, and more around each tick, where the peak may be narrower than the spacing."""
    around = found.marked[:, None] + spread * np.linspace(-4.0, 4.0, 17)
    marks = around.ravel() if len(found.marked) * 17 <= 20_000 else np.empty(0)
    return np.unique(np.concatenate([np.linspace(low, high, count), marks]))


def _density(found: _Spectrum, at: Numbers, width: float | None) -> Numbers:
    """The density, in blocks of points to limit memory; the last block is padded, so one program is compiled."""
    together = max(16, min(1024, 4_000_000 // found.nodes.size))
    padded = np.concatenate([at, np.repeat(at[-1:], -len(at) % together)])
    parts = [found.rule.density(part, width=width) for part in padded.reshape(-1, together)]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])[: len(at)]


def _draw_rug(ax: Axes, every: list[_Spectrum]) -> None:
    """One row of ticks for each line, in a strip above the plot."""
    strip = axes.strip_above(ax, len(every), " /\n".join(dict.fromkeys(found.label for found in every)))
    for index, found in enumerate(every):
        look: dict[str, Any] = {"marker": "|", "markersize": 8, "markeredgewidth": 1.0, "linestyle": "none"}
        strip.plot(found.marked, np.full(len(found.marked), index), color=axes.style(index).color, **look)
