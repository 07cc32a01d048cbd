"""Line searches against their procedures in NumPy, on many random paths: steps, evaluations, conditions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.curvature import searching
from tests.curvature import reference

pytestmark = pytest.mark.usefixtures("x64")

N, PROBLEMS, LIMIT = 3, 400, 14


def loss(problem, w, xp=jnp):
    """A bowl with waves; if `edge` is finite, not a number beyond it."""
    bowl = xp.sum(problem["bowl"] * (w - problem["at"]) ** 2 + problem["waves"] * xp.sin(3 * w + problem["at"]))
    left = problem["edge"] - xp.sum(w)
    return bowl - xp.log(left) * problem["wall"]


def slope(problem, w):
    """The gradient of the loss, in NumPy."""
    left = problem["edge"] - np.sum(w)
    waves = 3 * problem["waves"] * np.cos(3 * w + problem["at"])
    return 2 * problem["bowl"] * (w - problem["at"]) + waves + problem["wall"] / left


def drawn():
    rng = np.random.default_rng(7)
    problem = {
        "bowl": 10 ** rng.uniform(-1, 1, (PROBLEMS, N)) * np.where(np.arange(PROBLEMS) % 3, 1, 1e-2)[:, None],
        "at": rng.normal(size=(PROBLEMS, N)),
        "waves": rng.normal(size=(PROBLEMS, N)) * (rng.uniform(size=(PROBLEMS, 1)) < 0.7),
        "edge": rng.uniform(3, 6, PROBLEMS),
        "wall": np.where(rng.uniform(size=PROBLEMS) < 0.5, 0.1, 0.0),
    }
    w = rng.normal(size=(PROBLEMS, N)) * 0.3
    length = 10 ** rng.uniform(-3, 2.5, (PROBLEMS, 1))
    return problem, w, length


PROBLEM, START, LENGTH = drawn()


def of(index):
    return {name: values[index] for name, values in PROBLEM.items()}


@jax.jit
def searched(tx, problem, start, length):
    """The first search on each problem, along the gradient times a number."""

    def one(problem, w, length):
        value_fn = functools.partial(loss, problem)
        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = tx.update(-length * grad, tx.init(w), w, value=value, grad=grad, value_fn=value_fn)
        return updates, state[tx.name]

    return jax.vmap(one)(problem, start, length)


SEARCHES = {
    "backtracking": (
        gradtx.scale_by_backtracking_linesearch(LIMIT, decrease_factor=0.6, increase_factor=1.0),
        functools.partial(reference.backtracking, decrease=0.6),
    ),
    "zoom": (gradtx.scale_by_zoom_linesearch(LIMIT), reference.zoom),
    "zoom, exact": (
        gradtx.scale_by_zoom_linesearch(LIMIT, None, 0.0, 3.0, 1e-2, 0.05),
        functools.partial(reference.zoom, c1=1e-2, c2=0.05, increase=3.0),
    ),
    "zoom, limited": (
        gradtx.scale_by_zoom_linesearch(LIMIT, 3.0, stepsize_precision=0.3, curv_rtol=0.01),
        functools.partial(reference.zoom, most=3.0, precision=0.3, c2=0.01),
    ),
    "hager_zhang": (gradtx.scale_by_hager_zhang_linesearch(LIMIT), reference.hager_zhang),
    "hager_zhang, exact": (
        gradtx.scale_by_hager_zhang_linesearch(LIMIT, 3.0, 0.05, 0.1, theta=0.3, gamma=0.5),
        functools.partial(reference.hager_zhang, increase=3.0, c1=0.05, c2=0.1, theta=0.3, gamma=0.5),
    ),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize(("tx", "procedure"), SEARCHES.values(), ids=SEARCHES)
def test_a_search_is_its_procedure(tx, procedure):
    updates, state = jax.device_get(searched(tx, PROBLEM, START, LENGTH))
    long, failed, nonfinite = 0, 0, 0
    for index in range(PROBLEMS):
        problem, w = of(index), START[index]
        d = -LENGTH[index] * slope(problem, w)
        seen = []

        def evaluate(step, problem=problem, w=w, d=d, seen=seen):
            value, along = loss(problem, w + step * d, np), slope(problem, w + step * d) @ d
            seen.append(np.isfinite(value))
            return value, along

        value = loss(problem, w, np)
        found = procedure(evaluate, value, slope(problem, w) @ d, 1.0, LIMIT)
        assert state["evaluations"][index] == len(found.trials), (index, found)
        np.testing.assert_allclose(updates[index], found.step * d, rtol=1e-3, err_msg=str(index))  # cancels
        expected = loss(problem, w + updates[index], np)
        np.testing.assert_allclose(state["value"][index], expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state["grad"][index], slope(problem, w + updates[index]), rtol=1e-6, atol=1e-9)
        assert state["failures"][index] == (found.step == 0)
        assert state["learning_rate"][index] == pytest.approx(found.step or [1.0, *found.trials][-1], rel=1e-3)
        assert state["value"][index] <= value + 1e-6 * abs(value)
        long, failed = long + (len(found.trials) > 4), failed + (not found.accepted)
        nonfinite += not all(seen)
    assert long > 8, long
    assert nonfinite > 4, nonfinite
    assert failed or "hager" in tx.name or "exact" not in str(tx), failed


@pytest.mark.parametrize("name", ["zoom", "zoom, exact", "hager_zhang", "hager_zhang, exact", "backtracking"])
def test_where_a_search_ends_its_conditions_hold(name):
    tx, _ = SEARCHES[name]
    numbers = tx.arguments
    c1, c2 = numbers["slope_rtol"], numbers.get("curv_rtol")
    updates, state = jax.device_get(searched(tx, PROBLEM, START, LENGTH))
    accepted = 0
    for index in np.flatnonzero(state["evaluations"] < LIMIT):
        problem, w = of(index), START[index]
        d = -LENGTH[index] * slope(problem, w)
        step, there = state["learning_rate"][index], w + updates[index]
        before, after = slope(problem, w) @ d, slope(problem, there) @ d
        value, new = loss(problem, w, np), loss(problem, there, np)
        enough = new <= value + c1 * step * before + 1e-12 * abs(value)
        nearly = after <= (2 * c1 - 1) * before and new <= value + 1e-6 * abs(value)
        flat = c2 is None or (abs(after) <= -c2 * before if "zoom" in name else after >= c2 * before)
        assert enough or (c2 is not None and nearly), index
        accepted += flat
    assert accepted > 0.8 * PROBLEMS


def test_evaluations_are_counted_as_the_loss_counts_them():
    calls = []

    def counted(w):
        jax.debug.callback(lambda _: calls.append(1), w[0])
        return jnp.sum(jnp.cosh(w - 1) + jnp.sin(5 * w))

    for tx, _ in SEARCHES.values():
        w = jnp.array([3.0, -2.0])
        value, grad = jax.value_and_grad(counted)(w)
        calls.clear()
        _, state = tx.update(-grad, tx.init(w), w, value=value, grad=grad, value_fn=counted)
        jax.effects_barrier()
        assert len(calls) == state[tx.name]["evaluations"] == gradtx.metrics(state)["evaluations"]


def test_backtracking_is_optaxs():
    ours = gradtx.scale_by_backtracking_linesearch(20, 1e-3, 0.7, 1.3, 2.0)
    theirs = optax.scale_by_backtracking_linesearch(20, 1e-3, 0.7, 1.3, 2.0, store_grad=True)
    problem = of(3) | {"edge": 100.0}
    value_fn, w = functools.partial(loss, problem), jnp.asarray(START[3])
    states = [tx.init(w) for tx in (ours, theirs)]
    for length in (50.0, 0.1, 0.01, 0.01, 3.0):
        value, grad = jax.value_and_grad(value_fn)(w)
        extra = {"value": value, "grad": grad, "value_fn": value_fn}
        expected, states[1] = theirs.update(-length * grad, states[1], w, **extra)
        updates, states[0] = ours.update(-length * grad, states[0], w, **extra)
        np.testing.assert_allclose(updates, expected, rtol=1e-12)
        w = w + updates


def test_data_goes_on_to_the_loss_that_names_it():
    """As in optax: `update(..., value_fn=loss, inputs=x, labels=y)`, in chains of both libraries and in a group."""
    x = np.random.default_rng(0).normal(size=(20, 3))
    data = {"inputs": x, "labels": x @ np.array([1.0, 2.0, 3.0])}

    def distance(w, inputs, labels):
        return jnp.sum((inputs @ w - labels) ** 2)

    def found(tx, value_fn=distance, **data):
        w, state = jnp.zeros(3), tx.init(jnp.zeros(3))
        for _ in range(5):
            value, grad = jax.value_and_grad(functools.partial(value_fn, **data))(w)
            updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=value_fn, **data)
            w = w + updates
        return w

    expected = found(gradtx.lbfgs(), lambda w: distance(w, **data))
    np.testing.assert_allclose(expected, [1.0, 2.0, 3.0], atol=1e-2)
    for tx in (
        gradtx.lbfgs(),
        gradtx.clip(1e9) >> gradtx.lbfgs(),
        gradtx.partition({"all": gradtx.lbfgs()}, "all"),
        gradtx.to_optax(gradtx.lbfgs()),
        optax.chain(optax.clip(1e9), gradtx.to_optax(gradtx.lbfgs())),
    ):
        for value_fn in (distance, jax.jit(distance)):
            np.testing.assert_array_equal(found(tx, value_fn, **data), expected)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = found(optax.lbfgs(), **data)
        np.testing.assert_allclose(found(gradtx.clip(1e9) >> optax.lbfgs(), **data), theirs, rtol=1e-12)


def test_what_a_transform_takes_is_no_data_and_foreign_transforms_see_the_data():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(sorted(extra))
        return updates, state

    foreign = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    w = jnp.array([1.0])
    given = {"value": 4.0, "grad": 4 * w, "inputs": 3.0, "value_fn": lambda w, inputs, value=0.0: jnp.sum((w + 1) ** 2)}
    for tx in (gradtx.scale(-1.0) >> gradtx.scale_by_zoom_linesearch(5), gradtx.chain(foreign, gradtx.lbfgs())):
        updates, _ = tx.update(4 * w, tx.init(w), w, **given)
        assert updates < 0
    assert seen == [["grad", "inputs", "value", "value_fn"]]


STARTS = {
    "uphill": (jnp.array([1.0]), 1.0),
    "across": (jnp.array([0.0]), 1.0),
    "a loss that is not finite": (jnp.array([-1.0]), jnp.nan),
    "a direction that is not finite": (jnp.array([jnp.nan]), 1.0),
    "an infinite direction": (jnp.array([-jnp.inf]), 1.0),
}


@pytest.mark.parametrize(("direction", "value"), STARTS.values(), ids=STARTS)
def test_there_is_no_step_where_there_is_nothing_to_search(direction, value):
    w = jnp.array([2.0])
    for tx, _ in list(SEARCHES.values())[::2]:
        given = {"value": value, "grad": 2 * w, "value_fn": lambda w: jnp.sum(w**2)}
        updates, state = tx.update(direction, tx.init(w), w, **given)
        kept = state[tx.name]
        if np.isfinite(direction).all():
            assert kept["evaluations"] == 0
            assert not updates.any()
        assert kept["failures"] == 1
        assert kept["learning_rate"] == 1
        np.testing.assert_array_equal(kept["grad"], 2 * w)
        state = tx.update(direction, state, w, **given)[1]
        assert state[tx.name]["failures"] == 2
        assert tx.update(-w, state, w, **given | {"value": 4.0})[1][tx.name]["failures"] == 0


def test_a_trial_that_is_not_finite_is_never_taken():
    """Where all trials are NaN or infinite there is no step; where the gradient is, the loss alone is not trusted."""
    for bad in (lambda w: jnp.sum(jnp.where(w < 2.0, jnp.nan, w)), lambda w: jnp.sum(jnp.where(w < 2.0, -jnp.inf, w))):
        for tx, _ in SEARCHES.values():
            w = jnp.array([2.0])
            updates, state = tx.update(-w, tx.init(w), w, value=2.0, grad=jnp.ones(1), value_fn=bad)
            assert updates == 0
            assert state[tx.name]["value"] == 2
            assert state[tx.name]["evaluations"] >= 1


def test_the_best_finite_point_is_taken_if_none_is_accepted():
    """A line never gets flat: the step doubles up to the limit, and the furthest is the lowest."""
    w = jnp.array([2.0])
    tx = gradtx.scale_by_zoom_linesearch(4)
    updates, state = tx.update(-w / 2, tx.init(w), w, value=2.0, grad=jnp.ones(1), value_fn=jnp.sum)
    assert updates == -8
    assert state[tx.name]["learning_rate"] == 8
    assert state[tx.name]["failures"] == 0


def test_a_search_that_found_nothing_goes_on_shorter():
    """With the same direction at the same params it finds the step that was too short for its trials."""
    w, value_fn = jnp.array([1.0]), lambda w: jnp.sum(w**2)
    tx = gradtx.scale_by_backtracking_linesearch(2, decrease_factor=0.5, increase_factor=1.0)
    state, given = tx.init(w), {"value": 1.0, "grad": 2 * w, "value_fn": value_fn}
    for begin, moves in ((0.5, False), (0.25, False), (0.125, True)):
        updates, state = tx.update(jnp.array([-10.0]), state, w, **given)
        assert (float(state[tx.name]["learning_rate"]), bool(updates[0] != 0)) == (begin, moves)


def test_any_slope_will_do_without_a_curvature_condition():
    """`curv_rtol=inf`, as programs for optax have it: the first step that is low enough, however steep it is there."""
    w, value_fn = jnp.array([10.0]), lambda w: jnp.sum(w**2)
    given = {"value": 100.0, "grad": 2 * w, "value_fn": value_fn}
    for c2, evaluations in ((jnp.inf, 1), (0.9, 5)):
        tx = gradtx.scale_by_zoom_linesearch(10, curv_rtol=c2)
        state = tx.update(-0.01 * w, tx.init(w), w, **given)[1]
        assert state[tx.name]["evaluations"] == evaluations
    tx = gradtx.scale_by_zoom_linesearch(10, curv_rtol=jnp.inf)
    assert tx.update(-4.0 * w, tx.init(w), w, **given)[1][tx.name]["evaluations"] > 1


def test_the_gradient_of_the_search_is_the_only_one_of_this_name():
    """The usual loop around optax's lbfgs stops by `tree_get(state, "grad")`; its own last gradient is `updates`."""
    for tx in (gradtx.lbfgs(), gradtx.nonlinear_cg()):
        w = jnp.array([1.0, 2.0])
        given = {"value": 5.0, "grad": 2 * w, "value_fn": lambda w: jnp.sum(w**2)}
        updates, state = tx.update(2 * w, tx.init(w), w, **given)
        np.testing.assert_allclose(optax.tree_utils.tree_get(state, "grad"), 2 * (w + updates))
        np.testing.assert_array_equal(gradtx.find(state, "updates"), 2 * w)


def test_where_the_first_step_comes_from():
    """One or the last that was found, at most `max_learning_rate`; longer than the last for backtracking."""
    w, value_fn = jnp.array([10.0]), lambda w: jnp.sum(w**2)
    for tx, first in (
        (gradtx.scale_by_zoom_linesearch(1), 0.25),
        (gradtx.scale_by_zoom_linesearch(1, initial_guess_strategy="one"), 1.0),
        (gradtx.scale_by_zoom_linesearch(1, 0.125), 0.125),
        (gradtx.scale_by_hager_zhang_linesearch(1), 0.25),
        (gradtx.scale_by_hager_zhang_linesearch(1, initial_guess_strategy="one"), 1.0),
        (gradtx.scale_by_backtracking_linesearch(1), 0.375),
        (gradtx.scale_by_backtracking_linesearch(1, max_learning_rate=0.3), 0.3),
    ):
        state = tx.init(w)
        state[tx.name]["learning_rate"] = jnp.asarray(0.25)
        updates, _ = tx.update(-w, state, w, value=100.0, grad=2 * w, value_fn=value_fn)
        np.testing.assert_allclose(updates, -first * w, rtol=1e-12)


def test_noise_is_forgiven_as_said():
    """`atol`, `rtol` of backtracking and `tol` of zoom: a flat loss is taken only with them."""
    w, given = jnp.array([2.0]), {"value": 2.0, "grad": jnp.ones(1), "value_fn": lambda w: jnp.sum(2.1 + 1e-3 * w)}
    search = functools.partial(gradtx.scale_by_backtracking_linesearch, 3)
    zoom = functools.partial(gradtx.scale_by_zoom_linesearch, 3)
    for tx, moves in (
        (search(), False),
        (search(atol=0.2), True),
        (search(atol=0.05), False),
        (search(rtol=0.1), True),
        (search(rtol=0.02), False),
        (zoom(), False),
        (zoom(tol=0.3), True),
        (zoom(tol=0.05), False),
    ):
        updates, _ = tx.update(-w, tx.init(w), w, **given)
        assert bool(updates[0] != 0) is moves, tx


def test_near_a_minimum_the_slopes_decide():
    """A loss that is lost in rounding: Armijo's condition fails, the approximate one holds."""
    start = searching.Trial(jnp.array([0.0, 1.0, -1e-20, 0.0]))
    wolfe = searching.Wolfe(start, 0.1, 0.9, 1e-6, 0.0)
    for step, value, along, holds in (
        (1.0, 1.0 + 1e-10, 0.0, True),
        (1.0, 1.0 + 1e-5, 0.0, False),
        (1.0, 1.0 + 1e-10, 0.81e-20, False),
        (1.0, 1.0 + 1e-10, 0.79e-20, True),
    ):
        trial = searching.Trial(jnp.array([step, value, along, step * -1e-20]))
        assert bool(wolfe.nearly(trial)) is holds
        assert not wolfe.enough(trial)
    assert wolfe._replace(eps=0.0).nearly(searching.Trial(jnp.array([1.0, 1.0, 0.0, -1e-20])))  # as high as the start


def test_the_state_gives_the_loss_and_its_gradient():
    evaluated = []

    def counted(w):
        jax.debug.callback(lambda _: evaluated.append(1), w[0])
        return jnp.sum(w**4)

    tx, w = gradtx.lbfgs(), jnp.array([1.0, 2.0])
    value_and_grad = gradtx.value_and_grad_from_state(counted)
    state = tx.init(w)
    for number in range(3):
        evaluated.clear()
        value, grad = value_and_grad(w, state=state)
        jax.effects_barrier()
        assert len(evaluated) == (number == 0)
        np.testing.assert_allclose(value, np.sum(np.asarray(w) ** 4), rtol=1e-12)
        np.testing.assert_allclose(grad, 4 * np.asarray(w) ** 3, rtol=1e-12)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=counted)
        w = w + updates


def test_complex_params_search_as_pairs_of_real_ones():
    def of_complex(z):
        return jnp.sum(jnp.abs(z - jnp.array(1 + 2j)) ** 4)

    def of_real(w):
        return jnp.sum(((w[:1] - 1) ** 2 + (w[1:] - 2) ** 2) ** 2)

    tx, z, w = gradtx.lbfgs(), jnp.zeros(1, complex), jnp.zeros(2)
    states = [tx.init(z), tx.init(w)]
    for _ in range(4):
        (a, g), (b, h) = jax.value_and_grad(of_complex)(z), jax.value_and_grad(of_real)(w)
        updates, states[0] = tx.update(g.conj(), states[0], z, value=a, grad=g, value_fn=of_complex)
        expected, states[1] = tx.update(h, states[1], w, value=b, grad=h, value_fn=of_real)
        np.testing.assert_allclose(updates, np.asarray(expected)[:1] + 1j * np.asarray(expected)[1:], rtol=1e-8)
        z, w = z + updates, w + expected
