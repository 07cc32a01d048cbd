"""Conjugate gradients, trust regions and least squares against dense decompositions of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradtx
from gradtx.curvature import least_squares, trust, vectors

pytestmark = pytest.mark.usefixtures("x64")

N = 6


def symmetric(rng, least):
    """A symmetric matrix with eigenvalues from `least` to 5."""
    Q, _ = np.linalg.qr(rng.normal(size=(N, N)))
    return (Q * np.linspace(least, 5, N)) @ Q.T


@jax.jit
def minimum(A, g, radius, tolerance, limit=50):
    return trust.minimum(lambda v: {"w": A @ v["w"]}, {"w": g}, radius, tolerance, limit)


def model(A, g, p):
    return g @ p + p @ A @ p / 2


def best_within(A, g, radius):
    """The minimum of the model in the ball: `(A + λ I) p = -g` with the λ of Moré and Sorensen 1983, by bisection."""
    values, Q = np.linalg.eigh(A)
    b = Q.T @ g
    low, high = max(0.0, -values[0]) + 1e-14, np.linalg.norm(g) / radius + abs(values).max() + 1
    if values[0] > 0 and np.linalg.norm(b / values) <= radius:
        return -np.linalg.solve(A, g)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(b / (values + middle)) > radius else (low, middle)
    return -Q @ (b / (values + low))


def test_conjugate_gradients_solve_a_linear_system():
    rng = np.random.default_rng(0)
    for seed in range(5):
        A, g = symmetric(np.random.default_rng(seed), 0.1), rng.normal(size=N)
        found = minimum(A, g, jnp.inf, 1e-12)
        expected = -np.linalg.solve(A, g)
        np.testing.assert_allclose(found.point["w"], expected, rtol=1e-9)
        np.testing.assert_allclose(found.value, model(A, g, expected), rtol=1e-10)
        assert not found.at_boundary
        assert found.products <= N + 1
        inexact = minimum(A, g, jnp.inf, 0.3 * np.linalg.norm(g))
        assert np.linalg.norm(A @ inexact.point["w"] + g) <= 0.3 * np.linalg.norm(g)
        assert inexact.products < N
        assert minimum(A, g, jnp.inf, 0.0, 2).products == 2


@pytest.mark.parametrize("least", [0.2, -2.0], ids=["positive definite", "indefinite"])
def test_within_a_radius_it_is_between_the_gradients_step_and_the_best(least):
    """Steihaug: at least Cauchy's decrease; with a radius that is short, near to the best."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        A, g = symmetric(rng, least), rng.normal(size=N)
        for radius in (1e-3, 0.3, 2.0, 200.0):
            found = minimum(A, g, radius, 1e-10)
            p, best = np.asarray(found.point["w"]), best_within(A, g, radius)
            length = min(radius / np.linalg.norm(g), g @ g / (g @ A @ g) if g @ A @ g > 0 else np.inf)
            rounding = 1e-12 * (1 + abs(model(A, g, best)))
            assert model(A, g, best) - rounding <= model(A, g, p) <= model(A, g, -length * g) + rounding
            np.testing.assert_allclose(found.value, model(A, g, p), rtol=1e-10)
            if found.at_boundary:
                np.testing.assert_allclose(np.linalg.norm(p), radius, rtol=1e-12)
            else:
                np.testing.assert_allclose(p, best, rtol=1e-7)
                assert least > 0
            if radius == 1e-3:
                np.testing.assert_allclose(p, best, atol=0.02 * radius)
            if least > 0:  # Yuan 2000
                assert model(A, g, p) <= 0.5 * model(A, g, best)


def test_the_way_to_the_boundary_is_the_positive_root():
    for p, d, expected in (
        ([0.6, 0.0], [1.0, 0.0], 0.4),
        ([0.6, 0.0], [-1.0, 0.0], 1.6),
        ([0.0, 0.8], [2.0, 0.0], 0.3),
    ):
        found = trust.to_boundary({"w": jnp.array(p)}, {"w": jnp.array(d)}, 1.0)
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert trust.to_boundary(jnp.array([1.0 + 1e-9]), jnp.array([1.0]), 1.0) == 0
    # Near the boundary the root and its other part are nearly equal: nothing is lost in their difference.
    p, d = np.array([1 - 2.0**-12, 0.0]), np.array([0.3, 0.4], np.float32)
    found = trust.to_boundary(jnp.asarray(p, jnp.float32), jnp.asarray(d), 1.0)
    pd, dd = p @ d.astype(float), d.astype(float) @ d
    np.testing.assert_allclose(found, (np.sqrt(pd**2 + dd * (1 - p @ p)) - pd) / dd, rtol=2e-6)


def test_solve_has_derivatives():
    A = jnp.asarray(symmetric(np.random.default_rng(3), 0.5))
    b = jnp.arange(1.0, N + 1)
    solve = lambda b: trust.solve(lambda v: A @ v, b)  # noqa: E731
    np.testing.assert_allclose(solve(b), np.linalg.solve(A, b), rtol=1e-10)
    np.testing.assert_allclose(jax.jacrev(solve)(b), np.linalg.inv(A), rtol=1e-9, atol=1e-11)
    found = jax.grad(lambda scale: trust.solve(lambda v: scale * (A @ v), b).sum())(2.0)
    np.testing.assert_allclose(found, -np.linalg.solve(A, b).sum() / 4, rtol=1e-9)


# The radius -----------------------------------------------------------------------------------------------------------


def settled(fall, *, model=-1.0, slope=-2.0, radius=1.0, length=1.0, at_boundary=True, known=True, flatter=True, **kw):
    """The update and the state after a step whose loss falls by so much."""
    step = trust.Step(jnp.array([length]), jnp.asarray(length), jnp.asarray(model), jnp.asarray(slope), at_boundary)
    state = {"radius": jnp.asarray(radius if known else 0.0), "evaluations": jnp.int32(3), "failures": jnp.int32(1)}
    before = jnp.asarray(kw.get("value", 10.0)), jnp.array([2.0])
    after = before[0] - fall, jnp.array([1.0 if flatter else 3.0])
    return trust.settled(state, jnp.asarray(radius), step, before, after, jnp.asarray(1.0))


def test_the_radius_follows_the_ratio():
    """Moré 1978, the constants of MINPACK: 1/4 and 3/4 of the promised decrease; steps from 1e-4 of it on."""
    for fall, at_boundary, radius, taken in (
        (0.9, True, 2.0, True),
        (0.9, False, 1.0, True),
        (0.75, True, 2.0, True),
        (0.74, True, 1.0, True),
        (0.26, True, 1.0, True),
        (0.25, True, 0.5, True),
        (1.1e-4, True, 0.5, True),
        (0.9e-4, True, 0.5, False),
        (0.0, True, 0.5, False),
        (-2.0, True, 0.5 * 2 / (2 + 2), False),  # the minimum of the parabola through 0, slope -2 and a rise of 2
        (-6.0, True, 0.125, False),
        (-100.0, True, 0.1, False),
        (jnp.nan, True, 0.1, False),
        (jnp.inf, True, 0.1, False),  # a loss of minus infinity
    ):
        update, state = settled(fall, at_boundary=at_boundary)
        np.testing.assert_allclose(state["radius"], radius, rtol=1e-12, err_msg=str(fall))
        assert update == (1.0 if taken else 0.0), fall
        assert state["evaluations"] == 4
        assert state["failures"] == (0 if taken else 1)
        np.testing.assert_allclose(state["value"], 10 - fall if taken else 10.0, rtol=1e-14)
        assert state["grad"] == (1.0 if taken else 2.0)


def test_the_radius_at_first_is_at_most_the_first_step():
    assert settled(0.5, length=0.25, at_boundary=False, known=False)[1]["radius"] == 0.25
    assert settled(0.5, length=0.25, at_boundary=False, known=True)[1]["radius"] == 1.0
    assert settled(0.9, length=0.75, known=True)[1]["radius"] == 1.5
    assert settled(0.9, length=0.25, known=True)[1]["radius"] == 1.0
    assert settled(-100.0, length=0.01)[1]["radius"] == pytest.approx(0.01)


def test_a_promise_below_rounding_is_judged_by_the_gradient():
    for flatter in (True, False):
        update, state = settled(-1e-15, model=-1e-15, flatter=flatter)
        assert update == (1.0 if flatter else 0.0)
        assert state["radius"] == pytest.approx(2.0 if flatter else 0.5)


def test_a_step_that_is_too_short_to_count_fails_at_once():
    assert settled(-1.0, length=1e-17)[1]["failures"] == 3
    assert settled(-1.0, length=1e-3)[1]["failures"] == 1


def test_the_first_radius_is_in_lengths_of_the_params():
    unknown, known = {"radius": jnp.array(0.0)}, {"radius": jnp.array(0.7)}
    assert trust.first_radius(unknown, 3.0, jnp.array(2.0)) == 6
    assert trust.first_radius(unknown, 3.0, jnp.array(0.0)) == 3
    assert trust.first_radius(known, 3.0, jnp.array(2.0)) == 0.7


@pytest.mark.parametrize("size", [1e-17, 1e16])
def test_conjugate_gradients_of_huge_and_tiny_functions_in_float32(size):
    curvature, g = jnp.array([size, 10 * size], jnp.float32), jnp.full(2, -3 * size, jnp.float32)
    found = trust.minimum(lambda v: curvature * v, g, np.float32(100), np.float32(1e-6 * size), 9)
    np.testing.assert_allclose(found.point, [3, 0.3], rtol=1e-5)
    np.testing.assert_allclose(found.value, -4.95 * size, rtol=1e-5)


def test_newtons_step_is_the_minimum_of_the_model():
    """On a quadratic one step, if the radius allows; else up to the radius, which doubles."""
    A, b = symmetric(np.random.default_rng(1), 0.5), np.arange(1.0, N + 1)
    value_fn = lambda w: w @ jnp.asarray(A) @ w / 2 - jnp.asarray(b) @ w  # noqa: E731
    w, expected = jnp.ones(N), np.linalg.solve(A, b)
    given = {"value": value_fn(w), "value_fn": value_fn, "grad_fn": jax.grad(value_fn)}
    tx = gradtx.newton_cg(100.0)
    updates, state = tx.update(jax.grad(value_fn)(w), tx.init(w), w, **given)
    off = np.linalg.norm(A @ (w + updates) - b) / np.linalg.norm(A @ w - b)
    assert off < 0.1
    np.testing.assert_allclose(state["newton_cg"]["grad"], A @ (w + updates) - b, atol=1e-12)
    short = gradtx.newton_cg(0.1)
    updates, state = short.update(jax.grad(value_fn)(w), short.init(w), w, **given)
    np.testing.assert_allclose(np.linalg.norm(updates), 0.1 * np.sqrt(N), rtol=1e-12)
    np.testing.assert_allclose(state["newton_cg"]["radius"], 0.2 * np.sqrt(N), rtol=1e-12)
    one = gradtx.newton_cg(100.0, 1)
    updates, _ = one.update(jax.grad(value_fn)(w), one.init(w), w, **given)
    g = A @ np.ones(N) - b
    np.testing.assert_allclose(updates, -g * (g @ g) / (g @ A @ g), rtol=1e-12)
    tx, state = gradtx.newton_cg(), tx.init(w)
    for _ in range(8):
        g, given["value"] = jax.grad(value_fn)(w), value_fn(w)
        updates, state = tx.update(g, state, w, **given)
        w = w + updates
    np.testing.assert_allclose(w, expected, rtol=1e-8)


# Least squares --------------------------------------------------------------------------------------------------------


def problem(seed, rows=9, rank=4):
    rng = np.random.default_rng(seed)
    J = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, 4))
    return J, rng.normal(size=rows)


def test_within_solves_the_secular_equation():
    """To a tenth of the radius, and then exactly the minimum at its own length."""
    within = jax.jit(least_squares.within)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        s, b = np.sort(10 ** rng.uniform(-3, 1, 5))[::-1], rng.normal(size=5)
        s[4] *= seed % 2
        plain = np.where(s > 0, -b / np.where(s > 0, s, 1), 0)
        for share in (1e-6, 0.01, 0.5, 0.85, 0.95, 2.0):
            radius = share * np.linalg.norm(plain)
            q, at_boundary = within(jnp.asarray(s), jnp.asarray(b), jnp.asarray(radius))
            assert bool(at_boundary) is (share < 1 / 1.1)
            if not at_boundary:
                np.testing.assert_allclose(q, plain, rtol=1e-12)
                continue
            size = np.linalg.norm(q)
            assert abs(size - radius) <= 0.1 * radius * (1 + 1e-9)
            np.testing.assert_allclose(q, best_within(np.diag(s**2), s * b, size), rtol=1e-5, atol=1e-9 * size)
    q, at_boundary = within(jnp.zeros(5), jnp.ones(5), jnp.asarray(1.0))
    assert not q.any()  # residuals that depend on nothing
    assert not at_boundary


def residual_fn(w):
    """Seven curved residuals of four params in two leaves, as a tree."""
    x = jnp.append(w["a"], w["b"])
    t = jnp.linspace(0.0, 1.0, 5)
    return {"curve": w["b"] * jnp.exp(-t * w["a"][0]) + w["a"][1] * t - 1.0, "ends": x[:2] ** 2 + x[2:] - 0.5}


W = {"a": np.array([0.3, -0.2, 0.8]), "b": np.array(1.2)}


def dense(w):
    """The residuals, their Jacobian and the gradient."""
    x, unravel = ravel_pytree(w)
    of = lambda x: ravel_pytree(residual_fn(unravel(x)))[0]  # noqa: E731
    r, J = np.asarray(of(x)), np.asarray(jax.jacfwd(of)(x))
    return r, J, J.T @ r


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def gradient(w):
    return ravel_pytree(w)[1](jnp.asarray(dense(w)[2]))


def test_levenberg_marquardt_steps_to_the_least_squares_in_the_units_of_the_columns():
    _r, J, g = dense(W)
    D, tx = np.linalg.norm(J, axis=0), gradtx.levenberg_marquardt(0.05)
    updates, state = tx.update(gradient(W), tx.init(W), W, residual_fn=residual_fn)
    kept, p = state["levenberg_marquardt"], flat(updates)
    np.testing.assert_allclose(flat(kept["scale"]), D, rtol=1e-12)
    size = np.linalg.norm(D * p)
    assert abs(size - 0.05 * np.linalg.norm(D * flat(W))) <= 0.1 * size
    np.testing.assert_allclose(p, best_within(J.T @ J / np.outer(D, D), g / D, size) / D, rtol=1e-6)
    there = jax.tree.map(jnp.add, W, updates)
    np.testing.assert_allclose(kept["value"], dense(there)[0] @ dense(there)[0] / 2, rtol=1e-12)
    np.testing.assert_allclose(flat(kept["grad"]), dense(there)[2], atol=1e-12)
    small = jax.tree.map(lambda w: 0.01 * w, W)
    later = tx.update(gradient(small), state, small, residual_fn=residual_fn)[1]["levenberg_marquardt"]
    np.testing.assert_allclose(flat(later["scale"]), np.maximum(D, np.linalg.norm(dense(small)[1], axis=0)))


def test_levenberg_marquardt_solves_a_linear_problem_in_one_step():
    J, b = problem(1)
    J[:, 3] = 0  # a param of which nothing depends does not move
    tx, w = gradtx.levenberg_marquardt(), jnp.ones(4)
    g = jnp.asarray(J.T @ (J @ np.ones(4) - b))
    residuals = lambda w: jnp.asarray(J) @ w - jnp.asarray(b)  # noqa: E731
    updates, state = tx.update(g, tx.init(w), w, residual_fn=residuals)
    expected = np.linalg.lstsq(J[:, :3], b - J[:, 3] - J[:, :3] @ np.ones(3), rcond=None)[0]
    np.testing.assert_allclose(updates, [*expected, 0.0], rtol=1e-9)
    np.testing.assert_allclose(state["levenberg_marquardt"]["grad"], 0, atol=1e-12)
    assert state["levenberg_marquardt"]["scale"][3] == 1


def test_levenberg_marquardt_with_products_is_steihaugs_step():
    _r, J, g = dense(W)
    tx = gradtx.levenberg_marquardt(0.1, dense_below=3)
    updates, state = tx.update(gradient(W), tx.init(W), W, residual_fn=residual_fn)
    radius = 0.1 * np.linalg.norm(flat(W))
    expected = minimum(J.T @ J, g, radius, min(0.1, np.sqrt(np.linalg.norm(g))) * np.linalg.norm(g)).point["w"]
    np.testing.assert_allclose(flat(updates), expected, rtol=1e-9)
    np.testing.assert_allclose(flat(state["levenberg_marquardt"]["scale"]), 1.0)


def test_conjugate_gradients_have_five_more_than_twice_as_many_products_as_params(monkeypatch):
    limits, found = [], trust.Minimum(jnp.ones(4), jnp.asarray(-1.0), jnp.asarray(False), jnp.int32(0))
    monkeypatch.setattr(trust, "minimum", lambda *given: limits.append(given[-1]) or found)
    w, given = jnp.ones(4), {"residual_fn": lambda w: w**2}
    newton = {"value": 2.0, "value_fn": lambda w: jnp.sum(w**4) / 2, "grad_fn": lambda w: 2 * w**3}
    for tx, extra in (
        (gradtx.newton_cg(), newton),
        (gradtx.levenberg_marquardt(dense_below=3), given),
        (gradtx.scale_by_gauss_newton(dense_below=3), given),
        (gradtx.levenberg_marquardt(dense_below=4), given),  # dense: no products
        (gradtx.scale_by_gauss_newton(dense_below=4), given),
        (gradtx.newton_cg(max_cg_steps=3), newton),
        (gradtx.scale_by_gauss_newton(max_cg_steps=3, dense_below=3), given),
    ):
        jax.eval_shape(lambda w, tx=tx, extra=extra: tx.update(2 * w, tx.init(w), w, **extra), w)
    assert limits == [13, 13, 13, 3, 3]


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_gauss_newton_solves_the_normal_equations(damping):
    _r, J, g = dense(W)
    expected = np.linalg.solve(J.T @ J + damping * np.eye(4), g)
    found = gradtx.scale_by_gauss_newton(damping)
    np.testing.assert_allclose(
        flat(found.update(gradient(W), found.init(W), W, residual_fn=residual_fn)[0]), expected, rtol=1e-8
    )
    products = gradtx.scale_by_gauss_newton(damping, dense_below=0)
    u = flat(products.update(gradient(W), products.init(W), W, residual_fn=residual_fn)[0])
    rest = np.linalg.norm((J.T @ J + damping * np.eye(4)) @ u - g)
    assert rest <= min(0.1, np.sqrt(np.linalg.norm(g))) * np.linalg.norm(g) * (1 + 1e-9)
    one = gradtx.scale_by_gauss_newton(damping, 1, dense_below=0)
    u = flat(one.update(gradient(W), one.init(W), W, residual_fn=residual_fn)[0])
    np.testing.assert_allclose(u, g * (g @ g) / (g @ (J.T @ J + damping * np.eye(4)) @ g), rtol=1e-10)


def test_of_a_singular_matrix_gauss_newton_has_the_shortest_solution():
    J, b = problem(0, rank=2)
    w = jnp.ones(4)
    residuals = lambda w: jnp.asarray(J) @ w - jnp.asarray(b)  # noqa: E731
    g = J.T @ (J @ np.ones(4) - b)
    tx = gradtx.scale_by_gauss_newton()
    updates, _ = tx.update(jnp.asarray(g), tx.init(w), w, residual_fn=residuals)
    np.testing.assert_allclose(updates, np.linalg.pinv(J.T @ J, rcond=1e-10) @ g, rtol=1e-6)
    wide = lambda w: jnp.asarray(J[:2]) @ w  # noqa: E731 - fewer residuals than params
    g = J[:2].T @ J[:2] @ np.ones(4)
    updates, _ = tx.update(jnp.asarray(g), tx.init(w), w, residual_fn=wide)
    np.testing.assert_allclose(updates, np.linalg.pinv(J[:2]) @ J[:2] @ np.ones(4), rtol=1e-8)


def test_the_generalized_matrix_has_the_curvature_of_the_cost():
    """Softmax with cross-entropy: `Jᵀ (diag(p) - p pᵀ) J / n` for each sample, formed densely."""
    rng = np.random.default_rng(5)
    x, labels = rng.normal(size=(6, 2)), rng.integers(3, size=6)
    w = {"kernel": jnp.asarray(rng.normal(size=(2, 3)))}

    def outputs(w):
        return jnp.tanh(jnp.asarray(x) @ w["kernel"])

    def cost(z):
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - z[jnp.arange(6), labels])

    J = np.asarray(jax.jacfwd(lambda k: outputs({"kernel": k}).ravel())(w["kernel"])).reshape(18, 6)
    p = np.asarray(jax.nn.softmax(outputs(w), axis=1))
    C = np.zeros((18, 18))
    for i in range(6):
        C[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = (np.diag(p[i]) - np.outer(p[i], p[i])) / 6
    g = jax.grad(lambda w: cost(outputs(w)))(w)
    tx = gradtx.scale_by_gauss_newton(0.01, 40)
    state = tx.init(w)
    updates, _ = tx.update(g, state, w, residual_fn=outputs, cost_fn=cost)
    rest = (J.T @ C @ J + 0.01 * np.eye(6)) @ flat(updates) - flat(g)
    size = np.linalg.norm(flat(g))
    assert np.linalg.norm(rest) <= min(0.1, np.sqrt(size)) * size
    one, _ = gradtx.scale_by_gauss_newton(0.01, 1).update(g, state, w, residual_fn=outputs, cost_fn=cost)
    direction = flat(g)
    curvature = direction @ (J.T @ C @ J + 0.01 * np.eye(6)) @ direction
    np.testing.assert_allclose(flat(one), direction * (direction @ direction) / curvature, rtol=1e-10)


def test_vectors_of_mixed_leaves():
    a = {"x": jnp.array([1.0, 2.0]), "z": jnp.array([1 + 2j])}
    b = {"x": jnp.array([3.0, -1.0]), "z": jnp.array([2 - 1j])}
    assert vectors.dot(a, b) == 3 - 2 + 2 - 2
    np.testing.assert_allclose(vectors.gram(a, b), [[10, 1], [1, 15]])
    assert vectors.length(a) == np.sqrt(10)
    assert vectors.size(a) == pytest.approx(np.sqrt(5))
    assert vectors.elements(a) == 3
    assert vectors.size({}) == 0
