"""What kind of point params are: test functions, quadratics of every signature, networks; never more than is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from gradtx.landscape import critical, functions

KINDS = {"minima": "minimum", "saddles": "saddle", "maxima": "maximum"}


def points(function):
    """Every stationary point, and its kind."""
    return [(point, KINDS[kind]) for kind in KINDS for point in getattr(function, kind)]


def is_kink(function, point):
    return any(np.array_equal(point, kink) for kink in function.kinks)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", functions.EVERY.values(), ids=functions.EVERY)
def test_every_stationary_point_of_the_functions_is_classified(function, dtype):
    for point, kind in points(function):
        with jax.enable_x64(dtype == np.float64):
            found = landscape.classify(function, jnp.asarray(point, dtype))
        if is_kink(function, point):
            assert found.kind == "undecided"
            assert "not finite" in found.evidence.reason
            continue
        assert found.kind == kind, (point, found.evidence)
        if function != functions.monkey_saddle:
            assert found.index == {"minimum": 0, "saddle": 1, "maximum": 2}[kind]


def test_functions_of_more_numbers():
    for function in (functions.rosenbrock, functions.styblinski_tang):
        function = function.replace(dimension=4)
        for point, kind in points(function):
            assert landscape.classify(function, jnp.asarray(point, jnp.float32)).kind == kind


def test_the_monkey_saddle_is_settled_by_its_third_derivative():
    found = landscape.classify(functions.monkey_saddle, jnp.zeros(2))
    assert (found.kind, found.index) == ("saddle", 0)
    assert found.evidence.third_derivative == pytest.approx(6.0, rel=0.1)
    assert "third derivative" in found.evidence.reason


@pytest.mark.parametrize("start", [functions.beale, functions.himmelblau, functions.rosenbrock])
def test_other_points_are_not_critical(start):
    found = landscape.classify(start, jnp.asarray(start.start, jnp.float32))
    assert (found.kind, found.index) == ("not critical", None)
    assert found.evidence.gradient_norm > found.evidence.tolerance


# Quadratics -----------------------------------------------------------------------------------------------------------


@functools.cache
def quadratic(dimension):
    return lambda w, batch: (
        0.5 * jnp.mean(jnp.einsum("i,nij,j->n", w - batch["centre"][0], batch["matrix"], w - batch["centre"][0]))
    )


def signatures():
    for n in (1, 2, 3, 5, 8, 13, 20):
        for negative in range(n + 1):
            for zero in {0, 1, n // 2, n - negative} & set(range(n - negative + 1)):
                yield n, negative, zero


def expected(n, negative, zero):
    positive = n - negative - zero
    if negative and positive:
        return "saddle"
    if zero:
        return "flat"
    return "minimum" if positive else "maximum"


@pytest.mark.parametrize("n", sorted({n for n, _, _ in signatures()}))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quadratics_of_every_signature(n, dtype):
    rng = np.random.default_rng(n)
    with jax.enable_x64(dtype == np.float64):
        for size, negative, zero in signatures():
            if size != n:
                continue
            values = np.exp(rng.uniform(-2, 2, n))
            values[:negative] *= -1
            values[negative : negative + zero] = 0
            q, _ = np.linalg.qr(rng.normal(size=(n, n)))
            centre = rng.normal(size=n).astype(dtype)
            data = {"matrix": ((q * values) @ q.T).astype(dtype)[None], "centre": centre[None]}
            found = landscape.classify(quadratic(n), jnp.asarray(centre), data)
            assert found.kind == expected(n, negative, zero), (negative, zero, found.evidence)
            assert found.index == negative
            assert found.evidence.positive == n - negative - zero
            np.testing.assert_allclose(
                found.evidence.eigenvalues,
                np.sort(values),
                atol=200 * np.finfo(dtype).eps * max(abs(values), default=1),
            )


def test_an_inflection_and_a_quartic():
    cubic = landscape.classify(lambda w: jnp.sum(w**3), jnp.zeros(1))
    assert (cubic.kind, cubic.index) == ("saddle", 0)
    quartic = landscape.classify(lambda w: jnp.sum(w**4), jnp.zeros(2))  # a minimum, but no second derivative says so
    assert (quartic.kind, quartic.evidence.negative, quartic.evidence.positive) == ("flat", 0, 0)
    constant = landscape.classify(lambda w: 0.0 * jnp.sum(w), jnp.ones(3))
    assert constant.kind == "flat"


def test_a_third_derivative_counts_only_where_curvature_within_the_margin_could_not_hide_it():
    steep = landscape.classify(lambda w: 1e6 * w[0] ** 2 + 1e-3 * w[1] ** 3, jnp.zeros(2))
    assert steep.kind == "flat"
    assert steep.evidence.third_derivative > 0
    assert landscape.classify(lambda w: w[0] ** 2 + w[1] ** 3, jnp.zeros(2)).kind == "saddle"


# Many params ----------------------------------------------------------------------------------------------------------

MANY = 2000


def many(values):
    """A quadratic of many params, in two leaves, with these curvatures along random directions (a reflection)."""
    n = len(values)
    u = np.random.default_rng(0).normal(size=n).astype(np.float32)
    u /= np.linalg.norm(u)
    values = jnp.asarray(values, jnp.float32)

    def loss(w):
        x = jnp.concatenate([w["a"].ravel(), w["b"]])
        x = x - 2 * u * (u @ x)
        return 0.5 * jnp.sum(values * x**2)

    return loss, {"a": jnp.zeros((n // 4, 2)), "b": jnp.zeros(n - n // 4 * 2)}


def test_a_saddle_of_many_params_is_certain():
    values = np.linspace(0.5, 2, MANY)
    values[7], values[900] = -1.0, -0.7
    found = landscape.classify(*many(values))
    assert found.kind == "saddle"
    assert 1 <= found.index <= 2
    assert not found.evidence.complete
    assert found.evidence.risk == 0
    assert -1.001 <= found.evidence.eigenvalues[0] < -0.99


@pytest.mark.parametrize(("sign", "kind", "index"), [(1, "minimum", 0), (-1, "maximum", MANY)])
def test_a_well_conditioned_minimum_is_claimed_with_its_probability(sign, kind, index):
    loss, params = many(sign * np.linspace(0.2, 2, MANY))
    found = landscape.classify(loss, params)
    assert (found.kind, found.index) == (kind, index)
    assert 0 < found.evidence.risk <= 1e-3
    assert f"{found.evidence.risk:.1e}" in found.evidence.reason
    stricter = landscape.classify(loss, params, risk=found.evidence.risk / 10)
    assert stricter.kind == "undecided"


@pytest.mark.parametrize("low", [1e-4, 0.0, -1e-9])
def test_what_the_evidence_does_not_carry_is_undecided(low):
    values = np.linspace(0.2, 2, MANY)
    values[5] = low
    found = landscape.classify(*many(values))
    assert (found.kind, found.index) == ("undecided", None)
    assert found.evidence.risk > 1e-3


def test_a_negative_direction_that_the_start_misses_is_never_called_a_minimum():
    """With few products even a wide gap is not seen; the stated risk is then large."""
    values = np.linspace(1, 2, MANY)
    values[3] = -1e-3
    loss, params = many(values)
    for seed in range(20):
        found = landscape.classify(loss, params, steps=4, key=jax.random.key(seed))
        assert found.kind in ("undecided", "saddle")


def test_no_curvature_at_all_of_many_params():
    found = landscape.classify(lambda w: 0.0 * jnp.sum(w), jnp.ones(1000))
    assert found.kind == "flat"


@pytest.mark.parametrize(("n", "m", "ratio"), [(1000, 100, 0.1), (10**6, 128, 0.05)])
def test_the_probability_is_the_theorem_s(n, m, ratio):
    by_hand = 1.6 * (2 * n / ratio) ** 0.5 * math.e ** (-2 * (m - 1) * (ratio / 2) ** 0.5)
    by_hand += 2 * 1.6 * 2 * n**0.5 * math.e ** -(m - 1)
    assert critical.missed(ratio, n, m) == pytest.approx(min(1, by_hand), rel=1e-6)


# A network ------------------------------------------------------------------------------------------------------------


def network(width):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 3)), jnp.float32)
    data = {"x": x, "y": jnp.sin(2 * x[:, 0]) + x[:, 1]}

    def loss(w, batch):
        hidden = jnp.tanh(batch["x"] @ w["in"] + w["bias"])
        decay = 1e-2 * (jnp.sum(w["in"] ** 2) + jnp.sum(w["out"] ** 2) + jnp.sum(w["bias"] ** 2))
        return jnp.mean((hidden @ w["out"] - batch["y"]) ** 2) + decay

    params = {
        "in": jnp.asarray(rng.normal(size=(3, width)), jnp.float32),
        "bias": jnp.zeros((1, width)),
        "out": jnp.asarray(rng.normal(size=width) / width**0.5, jnp.float32),
    }
    return loss, params, data


def test_a_trained_network_gets_an_answer_with_its_evidence():
    import gradtx

    loss, params, data = network(8)
    trained = gradtx.minimize(loss, params, gradtx.adam(1e-2), data, steps=1500).params
    found = landscape.classify(loss, trained, data)
    assert found.kind in ("minimum", "not critical")
    end = landscape.find_critical_point(loss, trained, data)
    assert end.converged
    found = landscape.classify(loss, end.params, data)
    assert found.kind in ("minimum", "saddle")
    assert found.evidence.complete
    assert len(found.evidence.eigenvalues) == 40


def test_zero_weights_are_a_saddle_of_a_network_with_a_hidden_layer():
    loss, params, data = network(300)  # 1500 params
    origin = jax.tree.map(jnp.zeros_like, params)
    found = landscape.classify(loss, origin, data, batch_size=24)
    assert found.kind in ("saddle", "not critical")
    exact = landscape.classify(loss, origin, data, tolerance=10.0)
    assert exact.kind == "saddle"
    assert exact.index >= 1


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"tolerance": -1.0}, ValueError, "classify: tolerance is -1.0; allowed: a number, 0 or more, or None."),
        ({"tolerance": True}, ValueError, "classify: tolerance is True"),
        ({"risk": 0.0}, ValueError, "classify: risk is 0.0; allowed: a probability above 0 and below 1."),
        ({"risk": 1}, ValueError, "classify: risk is 1"),
        ({"steps": 1}, ValueError, "classify: steps is 1; it must be at least 2."),
        ({"steps": 2.0}, TypeError, "classify: steps is 2.0 of type float; it must be an int."),
        ({"params": {"a": jnp.ones(2), "n": jnp.arange(2)}}, TypeError, r"classify: params at \['n'\] is int32"),
        ({"params": jnp.ones(2, jnp.complex64)}, TypeError, "classify: params at the root is complex64"),
        ({"batch_size": 3}, ValueError, "classify: batch_size is 3, but data is None"),
        ({"loss": lambda w: w}, TypeError, r"the loss returns float32 of shape \(2,\); it must return a real scalar"),
    ],
)
def test_refusals(arguments, error, text):
    given = {"loss": lambda w: jnp.sum(w**2), "params": jnp.ones(2)} | arguments
    with pytest.raises(error, match=text):
        landscape.classify(given.pop("loss"), given.pop("params"), **given)


@pytest.mark.parametrize("size", [3, 1000])
def test_a_loss_that_is_not_finite_is_undecided(size):
    found = landscape.classify(lambda w: jnp.sum(jnp.log(w)), jnp.zeros(size))
    assert (found.kind, found.index) == ("undecided", None)
    assert "not finite" in found.evidence.reason
