"""Pictures of spectra: the density, its floor, and the eigenvalues apart."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape, plot
from tests.plot.drawn import EIGENVALUES, on_axes, texts

EXACT = landscape.SpectralDensity(jnp.asarray(EIGENVALUES)[None], jnp.full((1, 100), 0.01), 100)
HEIGHT = 1 / (100 * 0.21 * np.sqrt(2 * np.pi))  # of a single one, at the usual width
spectrum = on_axes(plot.spectrum)


def test_spectrum_draws_the_density():
    ax = spectrum(EXACT, points=900)
    (line,) = ax.lines
    x, y = line.get_data()
    assert (x[0], x[-1]) == ax.get_xlim() == pytest.approx((-2.05, 21.05))
    assert len(x) >= 900
    curves = np.exp(-(((x[:, None] - EIGENVALUES) / 0.21) ** 2) / 2) / (0.21 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(y, curves.mean(axis=1), rtol=1e-3, atol=1e-9)
    assert np.interp([8.0, 20.0], x, y) == pytest.approx([HEIGHT, HEIGHT], rel=1e-2)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("eigenvalue", "density", "log")
    assert ax.get_ylim() == pytest.approx((0.1 * HEIGHT, 2 * y.max()))
    assert ax.get_legend() is None
    (exact,) = spectrum(jnp.asarray(EIGENVALUES[::-1]), rug=False, points=900).lines
    np.testing.assert_allclose(np.interp(x, *exact.get_data()), y, atol=1e-3)  # an array, at the same width
    linear = spectrum({"a": EXACT}, log=False)
    assert (linear.get_yscale(), texts(linear)) == ("linear", ["a"])
    assert linear.get_ylim() == pytest.approx((0.0, 1.05 * y.max()), rel=1e-3)


def test_ticks_mark_what_lies_apart():
    rng = np.random.default_rng(0)
    nodes = np.stack([np.concatenate([rng.uniform(-1, 1, 22), [8.0, 20.0, 5.0]]) for _ in range(4)])
    weights = np.full(nodes.shape, 0.98 / 22)
    weights[:, 22:] = [0.01, 0.01, 1e-9]  # the last is none of the 100 eigenvalues
    found = landscape.SpectralDensity(jnp.asarray(nodes), jnp.asarray(weights), 100)
    ax = spectrum({"estimated": found, "exact": EIGENVALUES})
    (strip,) = ax.child_axes
    estimated, exact = strip.lines
    assert estimated.get_xdata().tolist() == [8] * 4 + [20] * 4
    assert exact.get_xdata().tolist() == EIGENVALUES.tolist()
    assert [set(line.get_ydata()) for line in strip.lines] == [{0}, {1}]
    assert [line.get_color() for line in strip.lines] == [line.get_color() for line in ax.lines]
    assert texts(ax) == ["estimated", "exact"]
    assert (strip.get_ylabel(), strip.get_xlim()) == ("nodes apart /\neigenvalues", ax.get_xlim())
    assert not spectrum(EXACT, rug=False).child_axes
    assert not spectrum(EXACT._replace(nodes=jnp.linspace(0, 1, 100)[None])).child_axes  # none lies apart
    most = jnp.array([[0.0] * 98 + [5e-4, 1.0]])  # within a thousandth of the whole is not apart
    (strip,) = spectrum(landscape.SpectralDensity(most, jnp.full(most.shape, 0.01), 100)).child_axes
    assert strip.lines[0].get_xdata().tolist() == [1]


def test_peaks_narrower_than_the_distance_of_points_are_seen():
    ax = spectrum(EXACT, points=50, width=1e-3)
    x, y = ax.lines[0].get_data()
    assert y[np.searchsorted(x, 20.0 - 1e-6)] == pytest.approx(1 / (100 * 1e-3 * np.sqrt(2 * np.pi)), rel=1e-3)
    assert ax.get_xlim()[1] == pytest.approx(20 + 0.03 * 21)
    many = spectrum(np.linspace(0, 1, 1200), points=100)
    assert len(many.lines[0].get_xdata()) == 100  # where the ticks are as many as that, they add no points
    x, y = spectrum([2.0] * 100).lines[0].get_data()  # equal ones
    assert x[np.argmax(y)] == pytest.approx(2.0)
    assert x[0] < 2.0 < x[-1]
