"""A critical point near by, of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape import functions


@pytest.mark.parametrize(
    "function", [functions.beale, functions.himmelblau, functions.styblinski_tang, functions.rosenbrock]
)
def test_from_near_a_stationary_point_it_is_found(function):
    with jax.enable_x64(True):
        for kind in ("minima", "saddles", "maxima"):
            for point in getattr(function, kind):
                begin = jnp.asarray(point + np.array([0.01, -0.02]))
                found = landscape.find_critical_point(function, begin)
                assert found.converged
                np.testing.assert_allclose(found.params, point, atol=1e-6)


def test_near_the_end_it_is_newton_s_method():
    """Quadratic: the gradient's digits double, so three steps before the end are worth all that came before."""
    with jax.enable_x64(True):
        found = landscape.find_critical_point(functions.himmelblau, jnp.array([3.2, 1.9]), tolerance=1e-10)
    norms = np.asarray(found.gradient_norms[: int(found.steps) + 1])
    assert (np.diff(norms) < 0).all()
    assert norms[-1] < 1e-10
    assert len(norms) < 15
    late = norms[-3:-1]
    assert (norms[-2:] < 10 * late**1.5 + 1e-13).all()


def test_the_step_is_levenberg_marquardt_s():
    """The first step on a quadratic, against NumPy's: mu is a tenth of the largest curvature."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6))
    matrix = matrix + matrix.T
    start = rng.normal(size=6)
    with jax.enable_x64(True):
        found = landscape.find_critical_point(lambda w: 0.5 * w @ jnp.asarray(matrix) @ w, jnp.asarray(start), steps=1)
    gradient, mu = matrix @ start, np.abs(np.linalg.eigvalsh(matrix)).max() / 10
    step = -np.linalg.solve(matrix @ matrix + mu**2 * np.eye(6), matrix @ gradient)
    np.testing.assert_allclose(found.params, start + step, rtol=1e-9)


def test_a_tree_on_data_with_batches():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)), jnp.float32)
    data = {"x": x, "y": x @ jnp.array([1.0, -2.0, 0.5]) + 3}

    def loss(w, batch):
        return jnp.mean((batch["x"] @ w["slope"] + w["offset"] - batch["y"]) ** 2)

    start = {"slope": jnp.zeros(3), "offset": jnp.zeros(())}
    found = landscape.find_critical_point(loss, start, data, batch_size=8)
    assert found.converged
    np.testing.assert_allclose(found.params["slope"], [1.0, -2.0, 0.5], atol=1e-4)
    assert found.params["offset"] == pytest.approx(3.0, abs=1e-4)


def test_few_products_still_descend_in_the_gradient():
    found = landscape.find_critical_point(
        functions.rosenbrock.replace(dimension=10), jnp.zeros(10), products=2, steps=60
    )
    norms = found.gradient_norms[: int(found.steps) + 1]
    assert bool((jnp.diff(norms) <= 0).all())
    assert float(norms[-1]) < 0.5 * float(norms[0])


def test_where_the_gradient_has_no_zero_it_says_so():
    found = landscape.find_critical_point(lambda w: jnp.sum(jnp.exp(-w) - 2 * w), jnp.zeros(2))
    assert not found.converged
    assert int(found.steps) <= 50


def test_at_a_critical_point_nothing_is_done():
    found = landscape.find_critical_point(functions.saddle, jnp.zeros(2))
    assert (int(found.steps), found.converged) == (0, True)
    assert not found.params.any()


def test_a_loss_that_is_not_finite_ends_it():
    found = landscape.find_critical_point(lambda w: jnp.sum(jnp.sqrt(w)), jnp.array([-1.0, 1.0]))
    assert not found.converged
    assert int(found.steps) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"products": 1.0}, "products is 1.0 of type float; it must be an int"),
        ({"tolerance": -1}, "tolerance is -1; allowed: a number, 0 or more, or None"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises((TypeError, ValueError), match=f"gradtx.landscape.find_critical_point: {text}"):
        landscape.find_critical_point(functions.saddle, jnp.ones(2), **arguments)
