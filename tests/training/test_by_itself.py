"""Runs of `minimize` that end by themselves: why they end, what they count, inside traces, and their derivatives."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import lbfgs, minimize, tree_equal
from gradtx.curvature.linesearches import KEPT
from gradtx.training import ending
from gradtx.training.ending import REASONS
from tests.core.compilations import compilations

GRADIENT, CHANGE, SEARCH, NONFINITE, UNBOUNDED, STEPS = (
    f"{word}: {REASONS[word]}" for word in ("gradient", "change", "search", "nonfinite", "unbounded", "steps")
)
ONES = np.ones(3)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quartic(x):
    return jnp.sum((x - 3.0) ** 4) + jnp.sum(x**2)


# Why a run ends -------------------------------------------------------------------------------------------------------

HARD = {
    "constant": (lambda x: 0.0 * jnp.sum(x) + 2.0, ONES, GRADIENT),
    "linear": (jnp.sum, ONES, UNBOUNDED),
    "concave": (lambda x: -jnp.sum(x**2), ONES, UNBOUNDED),
    "at the minimum": (lambda x: jnp.sum(x**2), 0 * ONES, GRADIENT),
    "NaN at the start": (lambda x: jnp.nan * jnp.sum(x), ONES, NONFINITE),
    "infinite at the start": (lambda x: jnp.sum(x) / 0.0, ONES, NONFINITE),
    "an infinite slope at the start": (lambda x: jnp.sum(jnp.sqrt(x)), 0 * ONES, NONFINITE),
    "NaN next to the start": (lambda x: jnp.sum(x - jnp.log(x)), 1e-3 * ONES, GRADIENT),
    "a kink": (lambda x: jnp.sum(jnp.abs(x)), ONES, SEARCH),
    "tiny": (lambda x: 1e-12 * jnp.sum((x - 1) ** 2), 0 * ONES, GRADIENT),
    "huge": (lambda x: 1e18 * jnp.sum((x - 1) ** 2), 0 * ONES, GRADIENT),
    "one param": (lambda x: (x - 2.0) ** 2, np.array(5.0), GRADIENT),
    "no elements": (lambda x: jnp.sum(x["a"] ** 2) + jnp.sum(x["b"]), {"a": ONES, "b": np.zeros(0)}, GRADIENT),
    "no leaves": (lambda x: jnp.zeros(()), {}, GRADIENT),
}


@pytest.mark.parametrize("case", HARD)
def test_every_run_ends_for_a_reason(case):
    loss, start, reason = HARD[case]
    start = jax.tree.map(jnp.float32, start)
    result = minimize(loss, start, lbfgs())
    assert result.reason == reason
    assert type(result.evaluations) is int
    assert result.evaluations < 2500
    if reason == NONFINITE:
        assert tree_equal(result.params, start)
        assert result.evaluations == 1
    else:
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    if case in ("tiny", "huge"):  # the tolerance is relative to a first gradient below 1
        np.testing.assert_allclose(result.params, 1, atol=1e-3)


def ends_after(first, value, size, *, failures=0, stalled=0):
    """What is known after a step to this loss and gradient, where the first were 2 and `first`."""
    start = ending.at_first(ending.begun(jnp.float32(1e-4), np.dtype("float32")), jnp.float32(2), jnp.float32([first]))
    start = start._replace(stalled=jnp.int32(stalled))
    return ending.after(start, jnp.float32(value), jnp.float32([size]), jnp.int32(failures))


def test_progress_is_a_lower_loss_or_a_flatter_gradient():
    """Without it for ten steps the run ends, or if two in a row found nothing, which do not count as such."""
    for value, size, failures, stalled in (
        (2 - 1e-6, 3.0, 0, 0),
        (2 - 1.2e-7, 3.0, 0, 8),  # rounding
        (2.0, 3.0, 0, 8),
        (2 + 1e-6, 3.0, 0, 8),
        (2.0, 2.71, 0, 8),
        (2.0, 2.69, 0, 0),
        (2.0, 3.0, 1, 7),
    ):
        after = ends_after(3.0, value, size, failures=failures, stalled=7)
        assert (after.stalled, after.code) == (stalled, 0), (value, size)
        np.testing.assert_allclose([after.lowest, after.flattest], [min(value, 2), min(size, 3)], rtol=1e-7)
    for reason, given in {
        "change": {"value": 2.0, "size": 3.0, "stalled": 9},
        "search": {"value": 2.0, "size": 3.0, "failures": 2},
        "unbounded": {"value": -2e19, "size": 3.0},  # the root of the largest number is 1.8e19
    }.items():
        assert list(REASONS)[int(ends_after(3.0, **given).code)] == reason
    assert ends_after(3.0, -1.7e19, 3.0).code == 0
    for first, size, flat in ((100.0, 0.99e-4, 1), (100.0, 1.01e-4, 0), (0.01, 0.99e-6, 1), (0.01, 1.01e-6, 0)):
        assert ends_after(first, 2.0, size, failures=2 * flat).code == flat * ending.CODE["gradient"]


METHODS = {
    "lbfgs": lbfgs(),
    "Hager-Zhang": lbfgs(linesearch=gradtx.scale_by_hager_zhang_linesearch(initial_guess_strategy="one")),
    "backtracking": lbfgs(linesearch=gradtx.scale_by_backtracking_linesearch(30, decrease_factor=0.5)),
    "nonlinear_cg": gradtx.nonlinear_cg(),
    "newton_cg": gradtx.newton_cg(),
    "steepest descent": gradtx.scale(-1.0) >> gradtx.scale_by_zoom_linesearch(20),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_gradient_is_as_small_as_promised_and_evaluations_are_those_of_the_loss(name, dtype, x64):
    calls = itertools.count()

    def loss(x):
        jax.debug.callback(lambda: next(calls))
        return quartic(x) + jnp.sum(x[1:] * x[:-1])

    start = jnp.zeros(4, dtype)
    result = minimize(loss, start, METHODS[name])
    jax.effects_barrier()
    assert result.reason == GRADIENT
    first, last = (float(jnp.abs(jax.grad(loss)(x)).max()) for x in (start, result.params))
    assert last <= (1e-8 if dtype == np.float64 else 1e-4) * min(1, first) * (1 + 1e-3)
    assert result.params.dtype == dtype
    losses = result.history["loss"]
    assert len(losses) == int(result.state["step"]) + 1
    assert losses[-1] == pytest.approx(float(loss(result.params)), rel=1e-6)
    assert gradtx.metrics(result.state["tx"])["evaluations"] + 1 == result.evaluations
    if name != "newton_cg":  # the products with the Hessian go through the loss as well
        jax.effects_barrier()
        assert next(calls) == result.evaluations + 3  # the three calls of this test


def test_rounding_ends_a_run_that_asks_for_more(x64):
    loss = lambda x: 1e3 + quartic(x) + jnp.exp(x[0] - x[1])  # noqa: E731
    result = minimize(loss, jnp.zeros(3), lbfgs(), tolerance=0.0)
    assert result.reason in (CHANGE, SEARCH)
    assert jnp.abs(jax.grad(loss)(result.params)).max() < 1e-5


def test_steps_are_the_most_and_a_state_goes_on(x64):
    whole = minimize(rosenbrock, jnp.zeros(5), lbfgs())
    part = minimize(rosenbrock, jnp.zeros(5), lbfgs(), steps=7)
    assert part.reason == STEPS
    assert part.state["step"] == 7
    rest = minimize(rosenbrock, part.params, lbfgs(), state=part.state)
    assert rest.reason == whole.reason == GRADIENT
    np.testing.assert_allclose(rest.params, whole.params, rtol=1e-9)
    assert part.evaluations + rest.evaluations == whole.evaluations
    np.testing.assert_allclose([*part.history["loss"], *rest.history["loss"][1:]], whole.history["loss"], rtol=1e-6)


def test_evaluations_of_the_params_and_stop():
    asked = functools.partial(minimize, rosenbrock, jnp.zeros(5), lbfgs(), evaluate=lambda x: x[0], evaluate_every=3)
    result = asked(stop=lambda history: len(history["metric"]) == 2)
    assert result.reason == f"stop: {REASONS['stop']}"
    assert result.history["evaluated_at"].tolist() == [3, 6]
    assert len(asked().history["metric"]) == -(-int(asked().state["step"]) // 3)


def test_reasons_of_other_runs():
    run = functools.partial(minimize, rosenbrock, jnp.zeros(3))
    assert run(gradtx.sgd(1e-3), steps=4).reason == STEPS
    assert run(gradtx.sgd(1e-3), steps=4).evaluations == 4
    assert ending.Result({}, {}, {}).reason == STEPS
    with pytest.warns(RuntimeWarning, match="the loss was"):
        assert run(gradtx.sgd(1e3), steps=30).reason.startswith("nonfinite")
    batches = iter([{"x": jnp.ones(2)}] * 3)
    assert minimize(lambda p, b: jnp.sum(p * b["x"]), jnp.ones(2), gradtx.sgd(0.1), batches, steps=5).reason == (
        f"data: {REASONS['data']}"
    )


def test_a_method_of_ones_own_that_keeps_the_loss_ends_by_itself():
    @gradtx.transform
    def halve() -> gradtx.Rule:
        def update(updates, state, params, *, value_fn):
            value, grad = jax.value_and_grad(value_fn)(params / 2)
            return -params / 2, {"value": value, "grad": grad, "evaluations": state["evaluations"] + 1, "failures": 0}

        return gradtx.Rule(update=update, reach="tree", fields=KEPT)

    result = minimize(lambda x: jnp.sum(x**2), jnp.ones(2), halve())
    assert result.reason == GRADIENT
    assert result.evaluations == int(result.state["step"]) + 1


def test_a_second_run_compiles_nothing():
    first, second = jnp.zeros(6), jnp.full(6, 0.5, np.float32)
    minimize(rosenbrock, first, lbfgs())
    with compilations() as made:
        minimize(rosenbrock, second, lbfgs(), tolerance=1e-3)
    assert not made


# Data, residuals, bounds ----------------------------------------------------------------------------------------------

T = np.linspace(0.0, 2.0, 20)
DATA = {"t": T, "y": 3 * np.exp(-1.5 * T) + 0.01 * np.cos(9 * T)}


def decay(w, batch):
    return w["size"] * jnp.exp(-w["rate"] * batch["t"]) - batch["y"]


def half_squares(w, batch):
    return jnp.sum(decay(w, batch) ** 2) / 2


@pytest.mark.parametrize("tx", [gradtx.levenberg_marquardt(), gradtx.gauss_newton(), lbfgs()], ids=lambda tx: tx.name)
def test_residuals_with_and_without_their_own_argument(tx, x64):
    data = jax.tree.map(jnp.asarray, DATA)
    start = {"rate": jnp.array(0.5), "size": jnp.array(1.0)}
    expected = minimize(half_squares, start, lbfgs(), data).params
    for loss in (None, lambda r, batch: jnp.sum(r**2) / 2) if tx.name != "levenberg_marquardt" else (None,):
        found = minimize(loss, start, tx, data, residuals=decay)
        assert found.reason == GRADIENT
        np.testing.assert_allclose([*found.params.values()], [*expected.values()], rtol=1e-6)
    if "residual_fn" in tx.facts.required:
        short = minimize(decay, start, tx, data)
        np.testing.assert_allclose([*short.params.values()], [*expected.values()], rtol=1e-6)
        assert short.history["loss"][-1] == pytest.approx(float(half_squares(expected, data)))


def test_a_cost_of_outputs_with_gauss_newton_is_that_of_lbfgs(x64):
    x = jnp.linspace(-1.0, 1.0, 30)
    labels = jnp.where(x > 0.2, 1.0, 0.0).at[3].set(1.0)
    model = lambda w: w[0] + w[1] * x  # noqa: E731
    cost = lambda z: jnp.mean(jnp.logaddexp(0.0, z) - labels * z)  # noqa: E731
    newton = minimize(cost, jnp.zeros(2), gradtx.gauss_newton(), residuals=model)
    assert newton.reason == GRADIENT
    assert newton.evaluations <= 12
    np.testing.assert_allclose(
        newton.params, minimize(lambda w: cost(model(w)), jnp.zeros(2), lbfgs()).params, atol=1e-6
    )


def test_bounds(x64):
    result = minimize(rosenbrock, jnp.array([-1.2, 2.0]), lbfgs(bounds=(None, jnp.array([0.5, 1.0]))))
    assert result.reason == GRADIENT
    np.testing.assert_allclose(result.params, [0.5, 0.25], atol=1e-8)
    corner = minimize(jnp.sum, jnp.zeros(3), lbfgs(bounds=(-1.0, None)))
    assert (corner.reason, corner.params.tolist()) == (GRADIENT, [-1.0, -1.0, -1.0])
    outside = minimize(quartic, jnp.full(2, 9.0), lbfgs(bounds=(None, 1.5)))
    np.testing.assert_allclose(outside.params, 1.5)


def test_mini_batches_are_searched_on_their_own_loss():
    data = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32))
    loss = lambda w, batch: jnp.mean((batch - w[None]) ** 2)  # noqa: E731
    result = minimize(loss, jnp.ones(3), lbfgs(damped=True), data, batch_size=8, epochs=3)
    assert result.reason == STEPS
    assert result.history["loss"][-1] < result.history["loss"][0]
    whole = minimize(loss, jnp.ones(3), lbfgs(), data)
    assert whole.reason == GRADIENT
    np.testing.assert_allclose(whole.params, data.mean(0), atol=1e-4)


# Inside traces --------------------------------------------------------------------------------------------------------


def test_members_of_a_batch_end_by_themselves(x64):
    starts = jnp.linspace(-2.0, 2.0, 5)[:, None] * jnp.ones((1, 4))
    fit = functools.partial(minimize, rosenbrock, tx=lbfgs())
    together = jax.jit(jax.vmap(lambda x: fit(x)))(starts)
    alone = [fit(x) for x in starts]
    assert together.reason.tolist() == [one.reason for one in alone]
    assert together.evaluations.shape == (5,)
    assert len(set(together.evaluations.tolist())) > 1
    np.testing.assert_allclose(together.params, [one.params for one in alone], rtol=1e-6)
    unequal = jax.vmap(lambda scale: minimize(lambda x: scale * jnp.sum(x**2), jnp.ones(2), lbfgs()))
    assert unequal(jnp.array([1.0, jnp.nan, -1.0, 0.0])).reason.tolist() == [GRADIENT, NONFINITE, UNBOUNDED, GRADIENT]


@pytest.mark.parametrize("tx", [lbfgs(), gradtx.nonlinear_cg()], ids=lambda tx: tx.name)
def test_complex_params_end_where_pairs_of_real_ones_do(tx, x64):
    def of_complex(z):
        return jnp.sum(jnp.abs(z - jnp.array([1 + 2j, -1.0])) ** 4)

    def of_real(w):
        return jnp.sum(((w[0] - jnp.array([1.0, -1.0])) ** 2 + (w[1] - jnp.array([2.0, 0.0])) ** 2) ** 2)

    result, expected = minimize(of_complex, jnp.zeros(2, complex), tx), minimize(of_real, jnp.zeros((2, 2)), tx)
    assert result.reason == expected.reason == GRADIENT
    real, imag = np.asarray(expected.params)
    np.testing.assert_allclose(result.params, real + 1j * imag, atol=2e-3)
    batches = minimize(lambda z, _: of_complex(z), jnp.zeros(2, complex), tx, jnp.zeros((8, 1)), batch_size=4, steps=8)
    assert batches.history["loss"][-1] < 0.01 * batches.history["loss"][0]


def test_inside_jit_and_scan_it_is_outside(x64):
    outside = minimize(quartic, jnp.zeros(3), lbfgs())
    inside = jax.jit(lambda x: minimize(quartic, x, lbfgs()))(jnp.zeros(3))
    np.testing.assert_allclose(inside.params, outside.params, rtol=1e-12)
    assert (inside.reason, int(inside.evaluations), inside.history) == (outside.reason, outside.evaluations, {})

    def follow(x, target):
        x = minimize(lambda x: jnp.sum((x - target) ** 4 + x**2), x, lbfgs()).params
        return x, x

    path = jax.jit(lambda x: jax.lax.scan(follow, x, jnp.arange(3.0)))(jnp.zeros(2))[1]
    for target, x in zip(range(3), path, strict=True):
        np.testing.assert_allclose(4 * (x - target) ** 3 + 2 * x, 0, atol=1e-7)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
def test_sharded_params_stay_sharded(kind):
    mesh = jax.make_mesh((len(jax.devices()),), ("devices",), axis_types=(kind,))
    here = NamedSharding(mesh, PartitionSpec("devices"))
    weight = np.sqrt(np.arange(1.0, 17.0, dtype=np.float32) / 16)

    def residuals(x):
        return weight * (x - 1)

    def loss(x):
        return jnp.sum(residuals(x) ** 2)

    with jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext():
        start = jax.device_put(jnp.linspace(-1.0, 1.0, 16), here)
        for tx in (lbfgs(), lbfgs(bounds=(-1.0, 2.0)), gradtx.newton_cg(), gradtx.levenberg_marquardt(dense_below=0)):
            result = minimize(residuals if tx.name == "levenberg_marquardt" else loss, start, tx)
            assert result.reason == GRADIENT
            assert result.params.sharding.is_equivalent_to(here, 1)
            np.testing.assert_allclose(result.params, 1, atol=1e-3)


# Derivatives of the solution ------------------------------------------------------------------------------------------


def solution(t, **options):
    def loss(x):
        return jnp.sum(jnp.array([1.0, 3.0]) * (x - t["center"]) ** 2) + t["weight"] * jnp.sum(x**4) + x[0] * x[1]

    return minimize(loss, jnp.zeros(2), lbfgs(), **options).params


def test_the_derivatives_are_those_of_the_equation_at_the_minimum(x64):
    at = {"center": jnp.array([1.0, 2.0]), "weight": jnp.array(0.7)}
    forward, reverse = jax.jacfwd(solution)(at), jax.jit(jax.jacrev(solution))(at)
    flat, back = ravel_pytree(at)
    steps, solved = 1e-5 * jnp.eye(3), jax.jit(solution)
    finite = jnp.stack([(solved(back(flat + e)) - solved(back(flat - e))) / 2e-5 for e in steps], 1)
    for found in (forward, reverse):
        both = jnp.concatenate([found["center"], found["weight"][:, None]], 1)
        np.testing.assert_allclose(both, finite, atol=2e-7)
    each = jax.vmap(jax.grad(lambda weight: solution(at | {"weight": weight})[0]))(jnp.array([0.1, 0.7]))
    np.testing.assert_allclose(each[1], forward["weight"][0], rtol=1e-6)


def test_derivatives_where_only_some_params_have_one_directly(x64):
    def width(penalty):
        def loss(w):
            return jnp.sum((w["w"] + w["b"] - 1) ** 2) + penalty * jnp.sum(w["w"] ** 2) + 0.1 * w["b"] ** 2

        return jnp.sum(minimize(loss, {"w": jnp.zeros(3), "b": jnp.zeros(())}, lbfgs()).params["w"])

    solved = jax.jit(width)
    assert jax.grad(width)(0.05) == pytest.approx(float(solved(0.05 + 1e-5) - solved(0.05 - 1e-5)) / 2e-5, rel=1e-4)


def test_derivatives_by_the_data_and_of_least_squares(x64):
    data = jax.tree.map(jnp.asarray, DATA)
    start = {"rate": jnp.array(0.5), "size": jnp.array(1.0)}

    def rate(y):
        return minimize(decay, start, gradtx.levenberg_marquardt(), data | {"y": y}).params["rate"]

    gradient = jax.grad(rate)(data["y"])
    e = 1e-5 * jnp.eye(20)[7]
    assert gradient[7] == pytest.approx(float(rate(data["y"] + e) - rate(data["y"] - e)) / 2e-5, rel=1e-4)


def test_without_implicit_differentiation_there_are_none():
    at = {"center": jnp.ones(2), "weight": jnp.array(0.5)}
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda t: solution(t, implicit_diff=False).sum())(at)
