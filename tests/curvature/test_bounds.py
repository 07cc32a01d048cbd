"""Box constraints: the params stay within, and at the end the gradient is 0 where they are free and points outward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

pytestmark = pytest.mark.usefixtures("x64")

LINESEARCHES = {
    "zoom": gradtx.scale_by_zoom_linesearch(20, initial_guess_strategy="one"),
    "hager_zhang": gradtx.scale_by_hager_zhang_linesearch(30, initial_guess_strategy="one"),
    "backtracking": gradtx.scale_by_backtracking_linesearch(30),
}


def rosenbrock(w):
    return jnp.sum((1 - w[:-1]) ** 2 + 100 * (w[1:] - w[:-1] ** 2) ** 2)


def drawn(seed, n=8):
    """A convex quadratic; bounds that some params of its minimum lie beyond."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n))
    A, b = A @ A.T + 0.1 * np.eye(n), rng.normal(size=n) * 3
    lower = np.where(rng.uniform(size=n) < 0.3, -np.inf, -rng.uniform(0, 0.5, n))
    upper = np.where(rng.uniform(size=n) < 0.3, np.inf, rng.uniform(0, 0.5, n))
    return A, b, lower, upper


def minimum(A, b, lower, upper):
    """By projected coordinate descent, which converges for convex quadratics."""
    w = np.clip(np.zeros(len(b)), lower, upper)
    for _ in range(20000):
        before = w.copy()
        for i in range(len(b)):
            w[i] = np.clip(w[i] - (A[i] @ w - b[i]) / A[i, i], lower[i], upper[i])
        if np.abs(w - before).max() < 1e-15:
            break
    return w


def steps(tx, loss, w, number):
    """The params after so many steps, and all of them on the way."""

    @jax.jit
    def step(carry, _):
        w, state = carry
        value, grad = gradtx.value_and_grad_from_state(loss)(w, state=state)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=loss)
        w = gradtx.apply_updates(w, updates)
        return (w, state), (w, value)

    return jax.lax.scan(step, (w, tx.init(w)), length=number)[1]


@pytest.mark.parametrize("name", LINESEARCHES)
def test_the_minimum_of_a_quadratic_in_a_box(name):
    at_bounds = 0
    for seed in range(3):
        A, b, lower, upper = drawn(seed)
        given = jnp.asarray(A), jnp.asarray(b)
        tx = gradtx.lbfgs(linesearch=LINESEARCHES[name], bounds=(jnp.asarray(lower), jnp.asarray(upper)))
        loss = lambda w, given=given: w @ given[0] @ w / 2 - given[1] @ w  # noqa: E731
        path, values = steps(tx, loss, jnp.clip(jnp.zeros(8), lower, upper), 60)
        assert ((np.asarray(path) >= lower) & (np.asarray(path) <= upper)).all()
        assert (np.diff(values) <= 1e-12).all()
        w, g = np.asarray(path[-1]), A @ np.asarray(path[-1]) - b
        np.testing.assert_allclose(w, minimum(A, b, lower, upper), atol=1e-6)
        free = (w > lower) & (w < upper)
        assert np.abs(g[free]).max(initial=0) < 1e-5
        assert (g[w == lower] >= -1e-5).all()
        assert (g[w == upper] <= 1e-5).all()
        at_bounds += (~free).sum()
    assert at_bounds >= 6


def test_rosenbrock_in_a_box_of_a_tree():
    """The known minimum of two params with the second at most 0.5: w1 = 0.5 solves the rest; and one that is open."""

    def loss(w):
        return rosenbrock(jnp.append(w["a"], w["b"]))

    for bounds, expected in (
        ((None, {"a": 0.5, "b": None}), [0.5, 0.25]),
        (({"a": -2.0, "b": jnp.array([1.5])}, None), None),
        ((None, None), [1.0, 1.0]),
        ((-5.0, 5.0), [1.0, 1.0]),
    ):
        start = {"a": jnp.array([-1.2]), "b": jnp.array([2.0])}
        path, _ = steps(gradtx.lbfgs(bounds=bounds), loss, start, 60)
        w = np.array([path["a"][-1, 0], path["b"][-1, 0]])
        if expected is None:
            assert w[1] == 1.5
            g = jax.grad(rosenbrock)(jnp.asarray(w))
            assert abs(g[0]) < 1e-4
            assert g[1] > 0
        else:
            np.testing.assert_allclose(w, expected, atol=1e-5)


def test_a_start_outside_comes_inside_with_the_first_step():
    tx = gradtx.lbfgs(bounds=(0.0, 1.0))
    path, _ = steps(tx, lambda w: jnp.sum((w - jnp.array([-1.0, 0.4, 3.0])) ** 2), jnp.array([5.0, -4.0, -2.0]), 12)
    assert ((path >= 0) & (path <= 1)).all()
    np.testing.assert_allclose(path[-1], [0.0, 0.4, 1.0], atol=1e-6)


def test_what_lies_on_a_bound_and_is_pulled_inside_moves():
    tx, w = gradtx.lbfgs(bounds=(0.0, 1.0)), jnp.array([0.0, 1.0, 0.0, 1.0])
    loss = lambda w: jnp.sum((w - jnp.array([0.5, 0.5, -1.0, 2.0])) ** 2)  # noqa: E731
    path, _ = steps(tx, loss, w, 6)
    np.testing.assert_allclose(path[-1], [0.5, 0.5, 0.0, 1.0], atol=1e-9)


def test_conditions_are_those_of_the_projected_path():
    """At a bound the path stops: what it promises is the way to the bound, and its slope there is 0."""
    first = {"initial_guess_strategy": "one", "bounds": (None, 1.0)}
    for tx, w, direction, grad, evaluations in (
        (gradtx.scale_by_backtracking_linesearch(5, 0.5, increase_factor=1.0, bounds=(None, 1.0)), 0.9, 10.0, -1.0, 1),
        (gradtx.scale_by_zoom_linesearch(5, **first), 0.9, 1.0, -1.0, 1),
        (gradtx.scale_by_zoom_linesearch(5, **first), [1.0, 0.0], [5.0, 1.0], [-5.0, 1.0], 0),
    ):
        w, direction, grad = (jnp.atleast_1d(jnp.asarray(x)) for x in (w, direction, grad))
        value_fn = lambda w, grad=grad: grad @ w  # noqa: E731
        updates, state = tx.update(direction, tx.init(w), w, value=grad @ w, grad=grad, value_fn=value_fn)
        assert state[tx.name]["evaluations"] == evaluations
        np.testing.assert_allclose(w + updates, jnp.minimum(w + direction, 1.0) if evaluations else w, rtol=1e-12)
