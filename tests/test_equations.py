"""Every formula against its transcription, in float64, for hundreds of steps (`tests/records`).

An error is measured against the recent updates of the same element and may be 1e-12 of them: some 30 operations a step,
whose rounding the decays forget, leave about 1e-15. Where an input moved by 1e-14 already changes the transcription by
more than that, nothing is compared; a record says which share must remain.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.core.samples import needs_float16
from tests.records import RECORDS, SCHEDULES, schedules, streams
from tests.records.base import Scheduled
from tests.records.base import updates_of as updates_of_transcription
from tests.records.methods import METHODS
from tests.running import transcribed, transform, updates_of, updates_of_rows

pytestmark = pytest.mark.usefixtures("x64")

TOLERANCE = 1e-12
STEPS = 400

CASES = [
    pytest.param(record, number, id="-".join([record.name, *(f"{k}={v}" for k, v in arguments.items())]))
    for record in RECORDS.values()
    if record.step is not None
    for number, arguments in enumerate(record.variants)
]


@pytest.mark.parametrize(("record", "number"), CASES)
def test_transform_is_its_formula(record, number):
    params, gradients = streams.stream(STEPS)
    copies = streams.with_moved_copies(params, seed=1), streams.with_moved_copies(gradients, seed=2)
    arguments = record.variants[number]
    expected = np.array(updates_of_transcription(record.step, *copies, **transcribed(arguments)))
    tx = transform(record.name, arguments)
    tx = gradtx.by_shape(matrix=tx, other=gradtx.identity()) if record.matrices else tx
    actual = updates_of(tx, params, gradients)
    assert np.isfinite(actual).all(), "an update is not finite"
    compared = slice(record.first_step.get(number, 1) - 1, None)
    at_least = record.at_least.get(number, 1.0)
    products, allowed = tx.facts.reach == "matrix", record.tolerance
    streams.compare(actual[compared], expected[compared], tolerance=allowed, at_least=at_least, products=products)


@pytest.mark.parametrize("scheduled", SCHEDULES, ids=lambda each: f"{each.name}-{each.arguments}")
def test_schedule_is_its_formula(scheduled):
    """Compiled for all steps and beyond the last, and eager; optax in floats, for it divides int32 in float32."""
    counts = np.arange(70, dtype=np.int32)
    if scheduled.name == "join_schedules":
        pieces, boundaries = scheduled.arguments
        build = lambda module: module.join_schedules([piece.of(module) for piece in pieces], boundaries)  # noqa: E731
    else:
        build = scheduled.of
    expected = np.array([build(schedules)(int(count)) for count in counts])
    close = lambda actual, which: np.testing.assert_allclose(  # noqa: E731
        actual, expected[which], rtol=0, atol=TOLERANCE * np.abs(expected).max()
    )
    schedule = build(gradtx)
    close(jax.jit(jax.vmap(schedule))(counts), slice(None))
    some = slice(None, None, 26)
    close([float(schedule(int(count))) for count in counts[some]], some)
    if hasattr(optax, scheduled.name):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            close([float(build(optax)(float(count))) for count in counts[some]], some)


@pytest.mark.parametrize(
    "scheduled",
    [
        Scheduled("warmup_constant_schedule", (0.5, 2.0, 0)),
        Scheduled("warmup_cosine_decay_schedule", (0.5, 2.0, 0, 10)),
        Scheduled("warmup_exponential_decay_schedule", (0.5, 2.0, 0, 10, 0.5)),
    ],
    ids=lambda each: each.name,
)
def test_a_warmup_of_no_steps_starts_at_the_peak(scheduled):
    schedule = scheduled.of(gradtx)
    value, slopes = jax.value_and_grad(lambda schedule: schedule(0))(schedule)
    np.testing.assert_allclose([value, slopes.init_value, slopes.peak_value], [2.0, 0.0, 1.0], atol=1e-6)


def test_adam_from_its_parts_is_adam_for_1000_steps():
    params, gradients = streams.stream(1000)
    copies = streams.with_moved_copies(params, seed=1), streams.with_moved_copies(gradients, seed=2)
    tx = gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(1e-3)
    expected = np.array(updates_of_transcription(RECORDS["adam"].step, *copies, learning_rate=1e-3))
    streams.compare(updates_of(tx, params, gradients), expected, tolerance=TOLERANCE)


def test_two_masks_of_lars_by_composition():
    """As the docstring of `lars` says."""
    params, gradients = streams.stream(STEPS)
    others = jax.tree.map(lambda flag: not flag, streams.KERNELS)
    composed = (
        gradtx.add_decayed_weights(0.1, streams.KERNELS)
        >> gradtx.scale_by_trust_ratio(trust_coefficient=0.001, mask=others)
        >> gradtx.scale_by_learning_rate(0.1)
        >> gradtx.scale_by_momentum(0.9, form="sum")
    )
    theirs = optax.lars(0.1, 0.1, streams.KERNELS, trust_ratio_mask=others)
    copies = streams.with_moved_copies(params, seed=1), streams.with_moved_copies(gradients, seed=2)
    expected = updates_of_rows(theirs, *copies)
    streams.compare(updates_of(composed, params, gradients), expected, tolerance=TOLERANCE, at_least=0.95)


def test_noise_is_what_optax_draws():
    params, gradients = streams.stream(20)
    theirs = updates_of_rows(optax.add_noise(0.3, 0.55, 7), params[None], 0 * gradients[:, None])[:, 0]
    ours = updates_of(gradtx.add_noise(0.3, 0.55, 7), params, 0 * gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_float32_is_close_to_float64():
    """What float32 loses in 300 steps of Adam; "Coming from optax" gives the figure beside optax's."""
    params, gradients = streams.stream(300)
    exact = updates_of(gradtx.adam(1e-3), params, gradients)
    single = updates_of(gradtx.adam(1e-3), params.astype(np.float32), gradients.astype(np.float32))
    assert single.dtype == np.float32
    assert np.abs(single - exact).max() <= 1e-5 * np.abs(exact).max()


@needs_float16
@pytest.mark.parametrize("record", METHODS, ids=lambda record: record.name)
def test_float16_gradients_give_the_float64_step_rounded_once(record):
    """0, 1e-5, 300 and 1e4 (whose squares underflow and overflow float16): nothing is lost between the stages."""
    tx = transform(record.name, record.variants[0])
    gradient = jnp.array([0.0, 1e-5, 300.0, 1e4, -1e4], jnp.float16)
    params = jnp.array([0.5, -1.0, 2.0, 1.0, 0.25], jnp.float16)
    step = jax.jit(tx.update)
    state, exact_state = tx.init(params), tx.init(params.astype(jnp.float64))
    for number in range(3):
        updates, state = step(gradient, state, params)
        exact, exact_state = step(gradient.astype(jnp.float64), exact_state, params.astype(jnp.float64))
        assert updates.dtype == jnp.float16
        half = np.spacing(np.abs(np.asarray(exact, np.float16))).astype(np.float64) / 2
        error = np.abs(np.asarray(updates, np.float64) - np.asarray(exact))
        assert (error <= 1.001 * half).all(), f"step {number}: off by {(error / half).max():.3f} of half a unit"
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))


def test_every_number_is_moved_somewhere():
    """A hyperparameter whose usual value alone were tested might as well be a constant."""
    left = []
    for record in RECORDS.values():
        if record.step is None:
            continue
        for parameter in getattr(gradtx, record.name).node._parameters:
            values = {repr(arguments.get(parameter.name, parameter.default)) for arguments in record.variants}
            if parameter.kind.name == "HYPER" and len(values) < 2 and len(record.variants) > 1:
                left.append(f"{record.name}: {parameter.name}")
    assert not left, f"one value only: {left}; give another in a variant of the record"


def test_counts_are_integers_beyond_what_float32_counts():
    schedule = gradtx.piecewise_constant_schedule(1.0, {2**24 + 1: 0.5})
    assert [float(schedule(count)) for count in (2**24, 2**24 + 1)] == [1.0, 0.5]
    seen = []
    assert float(gradtx.custom_schedule(lambda count: seen.append(count.dtype) or count / 4)(3)) == 0.75
    assert set(seen) == {jnp.dtype(jnp.int32)}


def test_schedules_are_computed_in_the_precision_of_the_run():
    value = gradtx.exponential_decay(1.0, 10, 0.5)
    assert value.at(3, jnp.float64).dtype == jnp.float64
    np.testing.assert_allclose(value.at(3, jnp.float64), 0.5**0.3, rtol=1e-15)
