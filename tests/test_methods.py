"""Every named method and every part against its NumPy transcription, and against optax, for hundreds of steps.

The transcriptions, the table of cases and the gradients are in `tests/reference`; all runs in float64. An error is
measured against the recent updates of the same element and may be 1e-12 of them: some 30 operations a step, whose
rounding the decays forget, leave about 1e-15. Where an input moved by 1e-14 already changes the reference by more than
that, nothing is compared; a case says which share must remain (`at_least`, all of it unless it says otherwise).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.parity.conventions import OPTAX, Row
from tests.reference import classics, parts, schedules, streams
from tests.reference.cases import MASK, METHODS, PARTS, Case, Scheduled

pytestmark = pytest.mark.usefixtures("x64")

TOLERANCE = 1e-12
STEPS = 400


def for_gradtx(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(gradtx, value.name)(*value.arguments) if isinstance(value, Scheduled) else value
        for name, value in arguments.items()
    }


def for_reference(arguments: dict[str, Any]) -> dict[str, Any]:
    def translate(value):
        if isinstance(value, Scheduled):
            return getattr(schedules, value.name)(*value.arguments)
        if isinstance(value, dict):
            leaves = streams.split(np.zeros(streams.SIZE))
            return streams.flatten(jax.tree.map(lambda on, leaf: np.full(leaf.shape, on), value, leaves), leading=0)
        return value

    return {name: translate(value) for name, value in arguments.items()}


def updates_of(tx, params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """All updates of anything with `.init` and `.update`, in one compiled loop; for each row, if `params` has rows."""

    def run(params, gradients):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (jax.tree.map(jnp.add, params, updates), state), updates

        _, updates = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return updates

    if params.ndim == 2:
        run = jax.vmap(run, in_axes=(0, 1), out_axes=1)
    as_jax = jax.tree.map(jnp.asarray, (streams.split(params), streams.split(gradients)))
    return streams.flatten(jax.jit(run)(*as_jax), leading=params.ndim)


def check(tx, reference, case: Case, *, steps: int = STEPS) -> None:
    params, gradients = streams.stream(steps)
    copies = streams.with_moved_copies(params, seed=1), streams.with_moved_copies(gradients, seed=2)
    expected = np.array(reference(*copies, **for_reference(case.arguments)))
    actual = updates_of(tx, params, gradients)
    assert np.isfinite(actual).all(), "an update is not finite"
    compared = slice(case.first_step - 1, None)
    streams.compare(actual[compared], expected[compared], tolerance=TOLERANCE, at_least=case.at_least)


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.id)
def test_method_is_its_paper(case: Case):
    tx = getattr(gradtx, case.name)(**for_gradtx(case.arguments))
    check(tx, getattr(classics, case.name), case)


@pytest.mark.parametrize("case", PARTS, ids=lambda case: case.id)
def test_part_is_its_equation(case: Case):
    tx = getattr(gradtx, case.name)(**for_gradtx(case.arguments))
    check(tx, getattr(parts, case.name), case)


def test_adam_from_its_parts_is_adam_for_1000_steps():
    tx = gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(1e-3)
    check(tx, classics.adam, Case("adam", {"learning_rate": 1e-3}), steps=1000)


def test_adams_direction_is_its_parts_to_the_bit():
    params, gradients = streams.stream(STEPS)
    together = updates_of(gradtx.scale_by_momentum() + gradtx.scale_by_rms(), params, gradients)
    np.testing.assert_array_equal(updates_of(gradtx.scale_by_adam(), params, gradients), together)


@pytest.mark.parametrize("row", OPTAX, ids=lambda row: row.id)
def test_method_is_optax(row: Row):
    """Under a schedule, which alone tells lr inside the momentum from lr outside."""
    rate = row.theirs["learning_rate"]
    theirs = {**row.theirs, "learning_rate": lambda count: rate / (1 + 0.05 * count.astype(jnp.float64))}
    ours = {**row.ours, "learning_rate": gradtx.inverse_time_schedule(rate, 0.05)}
    check_against_optax(getattr(gradtx, row.factory)(**ours), getattr(optax, row.method)(**theirs))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: gradtx.scale_by_adam(), lambda: optax.scale_by_adam()),
        (lambda: gradtx.scale_by_momentum(), lambda: optax.ema(0.9)),
        (lambda: gradtx.scale_by_momentum(form="average"), lambda: optax.ema(0.9, debias=False)),
        (lambda: gradtx.scale_by_momentum(form="sum"), lambda: optax.trace(0.9)),
        (lambda: gradtx.scale_by_momentum(form="sum", nesterov=True), lambda: optax.trace(0.9, nesterov=True)),
        (lambda: gradtx.ema(0.9), lambda: optax.ema(0.9)),
        (lambda: gradtx.scale_by_adagrad(), lambda: optax.scale_by_rss()),
        (lambda: gradtx.scale_by_rms(), lambda: optax.scale_by_rms(0.999, eps_in_sqrt=False, bias_correction=True)),
        (lambda: gradtx.scale_by_adadelta(), lambda: optax.scale_by_adadelta()),
        (lambda: gradtx.scale_by_lion(), lambda: optax.scale_by_lion()),
        (lambda: gradtx.scale_by_sign(), lambda: optax.scale_by_sign()),
        (lambda: gradtx.scale_by_learning_rate(0.1), lambda: optax.scale_by_learning_rate(0.1)),
        (lambda: gradtx.add_decayed_weights(0.01, MASK), lambda: optax.add_decayed_weights(0.01, MASK)),
        (lambda: gradtx.clip(0.5), lambda: optax.clip(0.5)),
        (lambda: gradtx.clip_by_global_norm(50.0), lambda: optax.clip_by_global_norm(50.0)),
    ],
)
def test_part_is_optax(ours, theirs):
    check_against_optax(ours(), theirs())


def check_against_optax(ours, theirs) -> None:
    params, gradients = streams.stream(STEPS)
    copies = streams.with_moved_copies(params, seed=1), streams.with_moved_copies(gradients, seed=2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = updates_of(theirs, *copies)
    streams.compare(updates_of(ours, params, gradients), expected, tolerance=TOLERANCE, at_least=0.95)


def test_the_mu_of_dozat_is_not_the_constant_one():
    """The two Nadams differ by more than any tolerance here, so that none can pass for the other."""
    params, gradients = streams.stream(50)
    constant = updates_of(gradtx.nadam(0.1), params, gradients)
    scheduled = updates_of(gradtx.nadam(0.1, momentum_decay=4e-3), params, gradients)
    assert np.abs(constant - scheduled).max() > 0.01


JOINED = ("linear_schedule", (0.0, 1.0, 10)), ("exponential_decay", (1.0, 5, 0.5)), ("constant_schedule", (0.1,))

SCHEDULES = [
    ("constant_schedule", (0.3,)),
    ("linear_schedule", (1.0, 0.1, 20)),
    ("linear_schedule", (0.0, 1.0, 20, 5)),
    ("polynomial_schedule", (1.0, 0.1, 2.0, 20, 5)),
    ("polynomial_schedule", (1.0, 0.1, 0.5, 20)),
    ("exponential_decay", (1.0, 10, 0.5)),
    ("exponential_decay", (1.0, 10, 0.5, 5, True)),
    ("exponential_decay", (1.0, 10, 0.5, 5, False, 0.2)),
    ("exponential_decay", (1.0, 10, 1.5, 5, False, 2.0)),
    ("cosine_decay_schedule", (1.0, 40)),
    ("cosine_decay_schedule", (1.0, 40, 0.1, 2.0)),
    ("warmup_constant_schedule", (0.1, 1.0, 10)),
    ("warmup_cosine_decay_schedule", (0.0, 1.0, 10, 40)),
    ("warmup_cosine_decay_schedule", (0.1, 1.0, 10, 40, 0.05, 1.5)),
    ("warmup_exponential_decay_schedule", (0.0, 1.0, 10, 8, 0.5)),
    ("warmup_exponential_decay_schedule", (0.0, 1.0, 10, 8, 0.5, 3, True, 0.1)),
    ("warmup_stable_decay_schedule", (1.0, 10, 20, 15)),
    ("warmup_stable_decay_schedule", (1.0, 10, 20, 15, 0.2, 0.1)),
    ("inverse_sqrt_schedule", (1.0, 10)),
    ("inverse_time_schedule", (1.0, 0.3)),
    ("piecewise_constant_schedule", (1.0, {10: 0.1, 20: 0.5})),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {10: 0.1, 20: 0.5})),
    ("piecewise_interpolate_schedule", ("cosine", 1.0, {10: 0.1, 20: 0.5})),
    ("linear_onecycle_schedule", (50, 1.0)),
    ("linear_onecycle_schedule", (40, 1.0, 0.2, 0.7, 10.0, 100.0)),
    ("cosine_onecycle_schedule", (50, 1.0)),
    ("cosine_onecycle_schedule", (40, 1.0, 0.2, 10.0, 100.0)),
    (
        "sgdr_schedule",
        (
            [
                {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20, "end_value": 0.1},
                {"init_value": 0.1, "peak_value": 0.5, "warmup_steps": 2, "decay_steps": 25, "end_value": 0.05},
            ],
        ),
    ),
    ("join_schedules", JOINED),
]


def build(module, name: str, arguments):
    if name == "join_schedules":
        return module.join_schedules([getattr(module, piece)(*args) for piece, args in arguments], [10, 30])
    return getattr(module, name)(*arguments)


@pytest.mark.parametrize(("name", "arguments"), SCHEDULES, ids=str)
def test_schedule_is_its_definition(name, arguments):
    """Compiled at every step and beyond the last, eager at some; optax in floats, for it divides int32 in float32."""
    counts = np.arange(70, dtype=np.int32)
    some = counts[::5]
    expected = np.array([build(schedules, name, arguments)(int(count)) for count in counts])
    tolerance = TOLERANCE * np.abs(expected).max()
    schedule = build(gradtx, name, arguments)
    compiled = jax.jit(schedule)
    np.testing.assert_allclose([float(compiled(count)) for count in counts], expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose([float(schedule(int(count))) for count in some], expected[some], rtol=0, atol=tolerance)
    if hasattr(optax, name):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            theirs = build(optax, name, arguments)
            values = [float(theirs(float(count))) for count in some]
        np.testing.assert_allclose(values, expected[some], rtol=0, atol=tolerance)
