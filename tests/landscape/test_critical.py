"""What kind of point params are, never more than is known; and a critical point near by."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape import critical, functions
from gradtx.landscape.costs import read_cost
from gradtx.landscape.operators import Hessian, Operator

EPS = 2.0**-23
KINDS = {"minima": "minimum", "saddles": "saddle", "maxima": "maximum"}

# What follows from the numbers ----------------------------------------------------------------------------------------


def judged(eigenvalues, *, margin=1e-3, slope=0.0, length=0.0, third=0.0, loss=7.0, size=None, **asked):
    seen = critical._Seen(loss, slope, length, np.array(eigenvalues), margin, third)
    asked = {"tolerance": None, "risk": 1e-3, "steps": None} | asked
    return critical._judged(Operator(None, jnp.zeros(size or len(eigenvalues))), seen, **asked)


MANY = {"steps": 128, "size": 1000}
CHANCE = critical.missed(0.999 / 2, 1000, 128)
ZERO = 16 * EPS * 10 * 3  # with |params| of 10 and a largest curvature of 3
CASES = [
    ([1.0, 2.0], {}, "minimum", 0, "0 of 2 eigenvalues are negative and 2 positive: 1 to 2, margin 1.0e-03"),
    ([-2.0, -1.0], {}, "maximum", 2, "2 of 2 eigenvalues are negative and 0 positive: -2 to -1"),
    ([-2.0, -1.0, 1.0], {}, "saddle", 2, "2 of 3 eigenvalues are negative and 1 positive"),
    ([1e-3, 1.0], {}, "flat", 0, "0 of 2 eigenvalues are negative and 1 positive"),
    ([-1.0, -1e-3], {}, "flat", 1, "1 of 2 eigenvalues are negative and 0 positive"),
    ([0.0, 1.0], {"margin": 5.7e-6, "third": 6.0}, "saddle", 0, "; the third derivative is 6 along one of the rest"),
    ([0.0, 1.0], {"margin": 5.8e-6, "third": 6.0}, "flat", 0, "positive"),  # 2 margin > 16 eps third
    ([0.0, 1.0], {"margin": 0.0, "third": 0.0}, "flat", 0, "positive"),
    ([-3.0, 1.0], {"slope": ZERO, "length": 10.0}, "saddle", 1, "1 of 2"),
    ([-3.0, 1.0], {"slope": 1.01 * ZERO, "length": 10.0}, "not critical", None, "norm is 5.8e-05, above 5.7e-05"),
    ([-3.0, 1.0], {"slope": 2 * ZERO / 10, "length": 0.1}, "not critical", None, "the gradient norm is"),
    ([-3.0, 1.0], {"slope": 1e-9, "tolerance": 0}, "not critical", None, "above 0"),
    ([-3.0, 1.0], {"slope": 5.0, "tolerance": 5.0}, "saddle", 1, "1 of 2"),
    ([math.nan, 1.0], {}, "undecided", None, "the loss, its gradient or its Hessian is not finite here"),
    ([1.0, 1.0], {"loss": math.inf}, "undecided", None, "not finite"),
    ([1.0, 1.0], {"slope": math.nan}, "undecided", None, "not finite"),
    ([-1.0, 1.0], MANY, "saddle", 1, "1 of 128 Rayleigh quotients are negative and 1 positive: -1 to 1"),
    (
        [1.0, 2.0],
        MANY,
        "minimum",
        0,
        "128 products found curvatures from 1 to 2, margin 1.0e-03; the probability of a missed one",
    ),
    ([-2.0, -1.0], MANY, "maximum", 1000, f"one of the other sign is below {CHANCE:.1e}"),
    ([1.0, 2.0], MANY | {"risk": CHANCE}, "minimum", 0, "products"),
    ([1.0, 2.0], MANY | {"risk": CHANCE / 2}, "undecided", None, "a missed negative one has no bound below"),
    ([-2.0, -1.0], MANY | {"risk": CHANCE / 2}, "undecided", None, "a missed positive one has no bound below"),
    ([1e-4, 1.0], MANY, "undecided", None, "no bound below 0.001"),
    ([0.0, 0.0], MANY, "flat", 0, "the Hessian maps a random vector to exactly zero"),
]


@pytest.mark.parametrize(("eigenvalues", "seen", "kind", "index", "words"), CASES)
def test_the_kind_follows_from_the_numbers(eigenvalues, seen, kind, index, words):
    found = judged(eigenvalues, **seen)
    assert (found.kind, found.index) == (kind, index)
    evidence = found.evidence
    assert words in evidence.reason
    margin = seen.get("margin", 1e-3)
    measured = (evidence.loss, evidence.margin, evidence.third_derivative)
    assert measured == (seen.get("loss", 7.0), margin, seen.get("third", 0.0))
    assert evidence.gradient_norm == seen.get("slope", 0.0) or math.isnan(evidence.gradient_norm)
    assert evidence.complete == ("steps" not in seen)
    signs = np.array(eigenvalues)
    assert (evidence.negative, evidence.positive) == ((signs < -margin).sum(), (signs > margin).sum())


def test_the_risk_is_that_of_a_random_start_that_misled():
    risks = [judged(*case[:1], **case[1]).evidence.risk for case in CASES]
    wanted = {"undecided": 1.0} | dict.fromkeys(("minimum", "maximum"), CHANCE)
    expected = [wanted.get(kind, 0.0) if "steps" in seen or kind == "undecided" else 0.0 for _, seen, kind, *_ in CASES]
    expected[-4:-2] = [CHANCE, CHANCE]  # asked for less
    assert risks == expected


def test_what_counts_as_zero_is_what_rounding_the_params_makes():
    assert judged([-3.0, 1.0], length=10.0).evidence.tolerance == pytest.approx(ZERO)
    assert judged([-3.0, 1.0], length=0.1).evidence.tolerance == pytest.approx(ZERO / 10)


@pytest.mark.parametrize(("n", "m", "ratio"), [(1000, 100, 0.1), (10**6, 128, 0.05), (1000, 5, 0.1), (9, 2, 100.0)])
def test_the_probability_is_the_theorem_s(n, m, ratio):
    by_hand = 1.6 * (2 * n / ratio) ** 0.5 * math.e ** (-2 * (m - 1) * (ratio / 2) ** 0.5)
    by_hand += 2 * 1.6 * 2 * n**0.5 * math.e ** -(m - 1)
    assert critical.missed(ratio, n, m) == pytest.approx(min(1, by_hand), rel=1e-6)


# The numbers ----------------------------------------------------------------------------------------------------------


class Crooked(Hessian):
    """What is no Hessian: a matrix that is not symmetric."""

    def __call__(self, params, batch, v):
        return jnp.array([[0.0] * 4, [0.0] * 4, [0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, -3.0]]) @ v


def test_what_is_measured():
    cost = read_cost("", lambda w: w[0] ** 2 * w[1] + 3 * w[2] + 7, None)
    seen = critical._all(Operator(Crooked(cost), jnp.array([0.0, 0.0, 4.0, 3.0])))
    assert (float(seen.loss), float(seen.gradient_norm), float(seen.size)) == (19.0, 3.0, 5.0)
    np.testing.assert_allclose(seen.eigenvalues, [-0.5 - 6.5**0.5, 0, 0, 6.5**0.5 - 0.5], rtol=1e-6, atol=1e-6)
    assert seen.margin == pytest.approx(0.5**0.5, rel=1e-4)  # of how far it is from symmetric
    assert 1.5 < seen.third < 2.31  # 6 a² b at most, a² + b² = 1: along a mixture of directions that have none


def at_all_points(function, dtype):
    for kind in KINDS:
        for point in getattr(function, kind):
            with jax.enable_x64(dtype == "float64"):
                yield KINDS[kind], landscape.classify(function, jnp.asarray(point, dtype))


def test_every_stationary_point_of_himmelblau_s_function_is_classified():
    for kind, found in at_all_points(functions.himmelblau, "float32"):
        assert (found.kind, found.index) == (kind, {"minimum": 0, "saddle": 1, "maximum": 2}[kind])
        assert found.evidence.complete
    found = landscape.classify(functions.himmelblau, jnp.zeros(2))
    assert (found.kind, found.index, found.evidence.loss) == ("not critical", None, 170.0)
    assert found.evidence.gradient_norm == pytest.approx((14**2 + 22**2) ** 0.5)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", functions.EVERY.values(), ids=functions.EVERY)
def test_every_stationary_point_of_every_function_is_classified(function, dtype):
    for kind, found in at_all_points(function, dtype):
        assert found.kind == ("undecided" if function == functions.ackley else kind), found.evidence


def quadratic(w, batch):
    """1/2 wᵀ H w + c·w of the mean H and c, over two leaves."""
    x = jnp.concatenate([w["a"].ravel(), w["b"]])
    return jnp.mean(0.5 * jnp.einsum("i,nij,j->n", x, batch["h"], x) + batch["c"] @ x)


def data_of(h):
    return {"h": h, "c": np.zeros(h.shape[:2], h.dtype)}


def params_of(n):
    return {"a": jnp.zeros((n // 4, 2)), "b": jnp.zeros(n - n // 4 * 2)}


def test_quadratics_on_data_in_batches():
    rng = np.random.default_rng(0)
    for values in ([-3, 1, 2, 5], [1, 2, 3, 4], [-4, -3, -2, -1], [-2, 0, 0, 3]):
        q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        noise = rng.normal(size=(5, 4, 4))
        data = ((q * values) @ q.T + noise - noise.mean(0)).astype(np.float32)
        found = landscape.classify(quadratic, params_of(4), data_of(data), batch_size=3)
        np.testing.assert_allclose(found.evidence.eigenvalues, values, atol=1e-5)
        kind = "minimum" if values[0] > 0 else "maximum" if values[-1] < 0 else "saddle"
        assert (found.kind, found.index) == (kind, sum(value < 0 for value in values))
        assert found.evidence.margin < 20 * 4 * EPS * max(map(abs, values))
    exact = np.stack([np.diag(np.float32([1, 2, 3, 4]))] * 5)  # symmetric to the bit
    found = landscape.classify(quadratic, params_of(4), data_of(exact), batch_size=3)
    assert found.evidence.margin == pytest.approx(4 * 4 * EPS * 4, rel=1e-4)


def test_up_to_512_params_the_whole_hessian_is_made_and_of_more_128_products(monkeypatch):
    asked = []

    def seen(operator, *arguments):
        asked.append((operator.size, *arguments[1:]))  # without the key
        return critical._Seen(0.0, 0.0, 0.0, np.ones(2), 0.0, 0.0)

    monkeypatch.setattr(critical, "_all", seen)
    monkeypatch.setattr(critical, "_extremes", seen)
    for size, steps in ((512, None), (513, None), (513, 5), (513, 10**9)):
        landscape.classify(jnp.sum, jnp.zeros(size), steps=steps)
    assert asked == [(512,), (513, 128), (513, 5), (513, 513)]


def test_of_many_params_lanczos_sees_the_ends(monkeypatch):
    monkeypatch.setattr(critical, "DENSE", 79)
    n = 80
    u = np.random.default_rng(0).normal(size=n)
    turn = np.eye(n) - 2 * np.outer(u, u) / (u @ u)

    def classified(values, **asked):
        matrix = (turn * values) @ turn
        return landscape.classify(quadratic, params_of(n), data_of(matrix[None].astype(np.float32)), **asked)

    found = classified(np.linspace(-1, 2, n))
    assert (found.kind, found.evidence.complete, found.evidence.risk) == ("saddle", False, 0)
    np.testing.assert_allclose(found.evidence.eigenvalues, np.linspace(-1, 2, n), atol=1e-5)
    assert 0 < found.evidence.margin < 1e-4
    for values, kind, index in ((np.linspace(0.4, 2, n), "minimum", 0), (-np.linspace(0.4, 2, n), "maximum", n)):
        found = classified(values, key=jax.random.key(1))
        assert (found.kind, found.index) == (kind, index)
        assert 0 < found.evidence.risk <= 1e-3
    assert classified(np.linspace(0.4, 2, n), risk=1e-30).kind == "undecided"


# A critical point near by ---------------------------------------------------------------------------------------------


def by_numpy(gradient, hessian, x, steps, products, tolerance=None):
    """Levenberg and Marquardt's steps within the space of g, H g, ...; mu, norms, and the end."""
    g, mu, refused = gradient(x), None, 0
    norms, zero = [np.linalg.norm(g)], tolerance or 0.0
    while norms[-1] > zero and len(norms) <= steps and refused < 12:
        h = hessian(x)
        basis, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(h, k) @ g for k in range(products)], axis=1))
        a = h @ basis
        curvature = np.linalg.norm(a, 2)
        mu = curvature / 10 if mu is None else mu
        after = x - basis @ np.linalg.lstsq(a.T @ a + mu**2 * np.eye(products), a.T @ g, rcond=None)[0]
        taken = np.linalg.norm(gradient(after)) < norms[-1]
        x, mu, refused = (after, mu / 8, 0) if taken else (x, mu * 4, refused + 1)
        g = gradient(x)
        if tolerance is None:
            zero = 16 * np.finfo(float).eps * max(np.linalg.norm(x), 1) * curvature
        norms.append(np.linalg.norm(g))
    return x, np.array(norms), zero


def assert_steps(found, expected, atol=1e-9):
    x, norms, zero = expected
    assert int(found.steps) == len(norms) - 1
    np.testing.assert_allclose(found.gradient_norms[: len(norms)], norms, rtol=1e-6, atol=atol)
    assert np.isnan(found.gradient_norms[len(norms) :]).all()
    assert found.gradient_norm == found.gradient_norms[len(norms) - 1]
    assert float(found.tolerance) == pytest.approx(zero, rel=1e-6)
    assert found.converged == (norms[-1] <= zero)
    np.testing.assert_allclose(np.concatenate([*map(np.ravel, jax.tree.leaves(found.params))]), x, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_the_steps_are_levenberg_and_marquardt_s():
    def gradient(x):
        a, b = x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7
        return np.array([4 * x[0] * a + 2 * b, 2 * a + 4 * x[1] * b])

    def hessian(x):
        mixed = 4 * (x[0] + x[1])
        return np.array([[12 * x[0] ** 2 + 4 * x[1] - 42, mixed], [mixed, 12 * x[1] ** 2 + 4 * x[0] - 26]])

    refused = 0
    for start in ([3.2, 1.9], [0.5, 0.0], [4.9, -4.9], [0.4, 2.0], [-2.0, -0.3]):
        expected = by_numpy(gradient, hessian, np.array(start), 50, 2)
        found = landscape.find_critical_point(functions.himmelblau, jnp.array(start))
        assert_steps(found, expected)
        assert found.gradient_norms.shape == (51,)
        refused += (np.diff(expected[1]) == 0).sum()
    assert refused, "no step was refused: choose other starts"
    found = landscape.find_critical_point(functions.himmelblau, jnp.array([3.0, 2.0]))
    assert (int(found.steps), found.converged, found.params.tolist()) == (0, True, [3.0, 2.0])
    found = landscape.find_critical_point(functions.himmelblau, jnp.array([np.nan, 2.0]))
    assert (int(found.steps), found.converged) == (0, False)


@pytest.mark.usefixtures("x64")
def test_a_tree_on_data_with_batches_and_few_products_and_where_nothing_shortens_the_gradient():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(5, 6, 6))
    h, start = h + np.swapaxes(h, 1, 2), rng.normal(size=6)
    tree = {"a": jnp.asarray(start[:2].reshape(1, 2)), "b": jnp.asarray(start[2:])}
    search = functools.partial(
        landscape.find_critical_point, quadratic, tree, batch_size=2, products=3, steps=14, tolerance=1e-3
    )
    mean = h.mean(0)
    assert_steps(search(data_of(h)), by_numpy(lambda x: mean @ x, lambda x: mean, start, 14, 3, 1e-3))
    found = search({"h": 0 * h, "c": np.ones((5, 6))})  # without curvature there is no step
    assert (int(found.steps), found.converged) == (12, False)
    np.testing.assert_allclose(found.gradient_norms[:13], 6**0.5)
