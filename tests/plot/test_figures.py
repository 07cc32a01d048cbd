"""What all pictures have in common: figures, legends, scales, and what to install."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import gradtx
from gradtx import landscape, plot
from tests.plot.drawn import GRID, LOSS, TABLE

# The figure -----------------------------------------------------------------------------------------------------------

BEALE = landscape.functions.beale
PLANE = landscape.slice_2d(BEALE, landscape.plane_through(jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.ones(2)), points=20)
LINE = landscape.slice_1d(BEALE, landscape.plane_through(jnp.zeros(2), jnp.ones(2)))
WAYS = {f"the optimizer of number {i}": np.array([[1.0, 1.0 + i], [2.0, float(i)]]) for i in range(7)}
EVERY = [
    lambda **kwargs: plot.losses(LOSS, steps_per_epoch=10, **kwargs),
    lambda **kwargs: plot.compare({"a": LOSS}, **kwargs),
    lambda **kwargs: plot.sensitivity(TABLE, **kwargs),
    lambda **kwargs: plot.heat_map(GRID, **kwargs),
    lambda **kwargs: plot.contour(BEALE, WAYS, points=20, **kwargs),
    lambda **kwargs: plot.slice(PLANE, trajectories=WAYS, **kwargs),
    lambda **kwargs: plot.slice(LINE, trajectories=WAYS, **kwargs),
    lambda **kwargs: plot.spectrum({"start": np.array([1.0, 2.0, 9.0]), "end": np.arange(9.0)}, **kwargs),
    lambda **kwargs: plot.race({"sgd": gradtx.sgd(0.01), "adam": gradtx.adam(0.1)}, BEALE, steps=3, **kwargs),
    lambda **kwargs: plot.learning_rate(0.1, 5, **kwargs),
]
SURFACE = [
    lambda **kwargs: plot.surface(BEALE, WAYS, points=20, **kwargs),
    lambda **kwargs: plot.surface(PLANE, WAYS, **kwargs),
]


def projection(draw):
    return "3d" if draw in SURFACE else None


@pytest.mark.parametrize("draw", EVERY + SURFACE)
def test_a_figure_is_made_only_without_axes(draw):
    figure = Figure()
    ax = figure.add_subplot(projection=projection(draw))
    assert draw(ax=ax) is ax
    assert ax.has_data()
    figure.draw_without_rendering()
    assert not pyplot.get_fignums()
    ax = draw()
    assert ax.has_data()
    assert pyplot.get_fignums() == [ax.figure.number]
    assert ax.figure.get_layout_engine() is not None


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
@pytest.mark.parametrize("draw", EVERY[:-2] + SURFACE)
def test_no_legend_lies_on_the_data_or_outside_the_figure(draw, layout):
    figure = Figure(figsize=(8, 5), layout=layout)
    ax = draw(ax=figure.add_subplot(projection=projection(draw)))
    figure.draw_without_rendering()
    legend, picture = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert not legend.padded(-6).overlaps(picture)
    for part in (legend, picture, *(strip.get_window_extent() for strip in ax.child_axes)):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= figure.bbox.x1
        assert part.y1 <= figure.bbox.y1
    assert picture.width > 0.35 * figure.bbox.width


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ((0.3, 0.8), ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]),
        ((0.9, 60.0), ["1", "2", "5", "10", "20", "50"]),
        ((1e-4, 10.0), ["$10^{-4}$", "$10^{-3}$", "$10^{-2}$", "$10^{-1}$", "$10^{0}$", "$10^{1}$"]),
    ],
)
def test_log_scales_are_labelled(limits, shown):
    ax = plot.losses(list(limits))
    ax.set_ylim(*limits)
    ax.figure.canvas.draw()
    ticks = [*ax.get_yticks(), *ax.get_yticks(minor=True)]
    names = [text.get_text() for text in (*ax.get_yticklabels(), *ax.get_yticklabels(minor=True))]
    low, high = limits
    pairs = {(t, n) for t, n in zip(ticks, names, strict=True) if n and 0.999 * low <= t <= 1.001 * high}
    assert [name for _, name in sorted(pairs)] == shown


def test_without_matplotlib_the_import_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "import gradtx\n"
        "try:\n"
        "    from gradtx import plot\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert "gradtx.plot" in run.stdout
    assert "pip install 'gradtx[plot]'" in run.stdout
