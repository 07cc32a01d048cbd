"""Pictures of spectra: the density, its floor, and the eigenvalues apart."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape, plot
from tests.core.words import assert_words, refusal
from tests.plot.drawn import INF, NAN, texts

BULK = np.linspace(-1.0, 1.0, 97)
EIGENVALUES = np.concatenate([BULK, [8.0, 9.0, 20.0]])
EXACT = landscape.SpectralDensity(jnp.asarray(EIGENVALUES)[None], jnp.full((1, 100), 0.01), 100)
HEIGHT = 1 / (100 * 0.21 * np.sqrt(2 * np.pi))  # of a single one, at the usual width


def test_spectrum_draws_the_density():
    ax = plot.spectrum(EXACT, points=900)
    (line,) = ax.lines
    x, y = line.get_data()
    assert (x[0], x[-1]) == ax.get_xlim()
    assert len(x) >= 900
    np.testing.assert_allclose(y, EXACT.density(x), rtol=1e-5)
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)
    assert np.interp([8.0, 20.0], x, y) == pytest.approx([HEIGHT, HEIGHT], rel=1e-2)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("eigenvalue", "density", "log")
    low, high = ax.get_ylim()
    assert low == pytest.approx(0.1 * HEIGHT)
    assert high == pytest.approx(2 * y.max())
    assert ax.get_legend() is None


def test_an_array_is_drawn_at_the_same_width():
    (estimated,) = plot.spectrum(EXACT, rug=False).lines
    for array in (EIGENVALUES, EIGENVALUES.tolist(), jnp.asarray(EIGENVALUES[::-1])):
        (exact,) = plot.spectrum(array, rug=False).lines
        x = estimated.get_xdata()
        np.testing.assert_allclose(np.interp(x, *exact.get_data()), estimated.get_ydata(), atol=1e-3)


def test_ticks_mark_what_lies_apart():
    rng = np.random.default_rng(0)
    nodes = np.stack([np.concatenate([rng.uniform(-1, 1, 20), [8.0, 20.0, 5.0]]) for _ in range(3)])
    weights = np.full(nodes.shape, 0.98 / 20)
    weights[:, 20:] = [0.01, 0.01, 1e-9]  # the last is none of the 100 eigenvalues
    found = landscape.SpectralDensity(jnp.asarray(nodes), jnp.asarray(weights), 100)
    ax = plot.spectrum({"estimated": found, "exact": EIGENVALUES})
    (strip,) = ax.child_axes
    estimated, exact = strip.lines
    assert estimated.get_xdata().tolist() == [8, 8, 8, 20, 20, 20]
    assert exact.get_xdata().tolist() == EIGENVALUES.tolist()
    assert [set(line.get_ydata()) for line in strip.lines] == [{0}, {1}]
    assert [line.get_color() for line in strip.lines] == [line.get_color() for line in ax.lines]
    assert texts(ax) == ["estimated", "exact"]
    assert strip.get_ylabel() == "nodes apart /\neigenvalues"
    assert strip.get_xlim() == ax.get_xlim()
    assert not plot.spectrum(EXACT, rug=False).child_axes
    assert not plot.spectrum(EXACT._replace(nodes=jnp.linspace(0, 1, 100)[None])).child_axes  # none lies apart


def test_peaks_narrower_than_the_distance_of_points_are_seen():
    ax = plot.spectrum(EXACT, points=50, width=1e-3)
    x, y = ax.lines[0].get_data()
    assert y[np.searchsorted(x, 20.0 - 1e-6)] == pytest.approx(1 / (100 * 1e-3 * np.sqrt(2 * np.pi)), rel=1e-3)
    assert ax.get_xlim()[1] > 20.5


@pytest.mark.parametrize("value", [2.0, 0.0])
def test_equal_eigenvalues(value):
    ax = plot.spectrum([value] * 3)
    x, y = ax.lines[0].get_data()
    assert x[np.argmax(y)] == pytest.approx(value)
    assert x[0] < value < x[-1]


def test_other_scales():
    ax = plot.spectrum({"a": EXACT}, log=False)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] == 0
    many = plot.spectrum(np.linspace(0, 1, 1200), points=100)
    assert len(many.lines[0].get_xdata()) == 100  # where the ticks are as many as that, they add no points


def test_what_spectrum_refuses():
    who = "gradtx.plot.spectrum: "
    assert_words(refusal(ValueError, plot.spectrum, {}), f"{who}density is empty; allowed: at least one")
    assert_words(refusal(TypeError, plot.spectrum, {"a": {"b": 1}}), f"{who}density['a'] is a dict", "spectral_density")
    assert_words(refusal(TypeError, plot.spectrum, "hessian"), f"{who}density is a str; allowed: what", "an array")
    assert_words(refusal(ValueError, plot.spectrum, np.eye(2)), f"{who}density is an array", "allowed: one dimension")
    assert_words(refusal(ValueError, plot.spectrum, []), f"{who}density is empty")
    assert_words(refusal(TypeError, plot.spectrum, [1j]), f"{who}density is an array of dtype complex128")
    text = refusal(ValueError, plot.spectrum, [1.0, NAN])
    assert_words(text, f"{who}density has 1 of 2 eigenvalues not finite; allowed: finite ones")
    text = refusal(ValueError, plot.spectrum, {"end": EXACT._replace(nodes=EXACT.nodes * NAN)})
    assert_words(text, f"{who}density['end'] has 100 of 100 eigenvalues not finite")
    for wrong in (0.0, -1.0, INF, NAN, True, "a"):
        text = refusal(ValueError, plot.spectrum, EXACT, width=wrong)
        assert_words(text, f"{who}width is {wrong!r}; allowed: a number above 0, or None")
    assert_words(refusal(ValueError, plot.spectrum, EXACT, points=1), f"{who}points is 1; allowed: 2 to 100000")
    assert_words(refusal(TypeError, plot.spectrum, EXACT, ax=1), f"{who}ax is a int; allowed: one matplotlib Axes")
