"""Lookahead and Schedule-Free against their papers and optax, and what they do at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from tests.records import iterates as reference
from tests.records import schedules, streams
from tests.wrappers.runs import STEPS, assert_rows, rows, run, run_rows, train

# Lookahead ------------------------------------------------------------------------------------------------------------

FALLING = ("inverse_time_schedule", (0.9, 0.05))


@pytest.mark.parametrize(("period", "size"), [(6, 0.5), (6, FALLING), (1, 1.0)], ids=str)
def test_lookahead_is_its_paper(x64, period, size):
    params, gradients = streams.stream(STEPS)
    ours, theirs = (getattr(m, size[0])(*size[1]) if size is FALLING else size for m in (gradtx, schedules))
    updates = -0.1 * gradients
    expected = np.array(reference.lookahead(params, updates, sync_period=period, slow_step_size=theirs))
    actual, states = run_rows(gradtx.lookahead(gradtx.sgd(0.1), period, ours), params, gradients)
    assert_rows(actual, expected)
    synced = slice(period - 1, None, period)
    assert_rows(rows(gradtx.find(states, "slow"))[synced], expected[synced])


def test_reset_state_gives_the_inner_its_first_state_and_keeps_its_key():
    @gradtx.transform
    def noisy() -> gradtx.Rule:
        def update(updates, state):
            following, now = jax.random.split(jax.random.wrap_key_data(state["key"]))
            return updates + jax.random.normal(now, updates.shape), {"key": jax.random.key_data(following)}

        return gradtx.Rule(update=update, fields={"key": gradtx.fields.key()})

    tx = gradtx.lookahead(noisy() >> gradtx.sgd(0.1, momentum=0.9), 2, reset_state=True)
    params, drawn = jnp.zeros(3), []
    state = tx.init(params)
    first = gradtx.find(state, "mu")
    for _ in range(4):
        updates, state = tx.update(jnp.zeros(3), state, params)
        drawn.append(np.asarray(updates))
        assert gradtx.tree_equal(gradtx.find(state, "mu"), first) == (len(drawn) % 2 == 0)
    assert np.abs(drawn[2] - drawn[0]).min() > 1e-3
    calm = gradtx.lookahead(gradtx.sgd(0.1, momentum=0.9), 2, reset_state=True)
    _, state = train(calm, params, [jnp.full(3, jnp.nan), jnp.ones(3)])
    np.testing.assert_array_equal(gradtx.find(state, "mu"), np.zeros(3))  # NaN is not multiplied away
    averaged = gradtx.lookahead(gradtx.polyak_averaging(gradtx.sgd(0.5)), 2, 0.25, reset_state=True)
    params, state = train(averaged, jnp.ones(3), [jnp.ones(3)] * 2)
    assert gradtx.tree_equal(gradtx.averaged_params(state), params)  # it starts where the synchronization leads


def test_at_a_synchronization_low_precision_params_are_the_slow_ones():
    params, state = train(gradtx.lookahead(gradtx.sgd(0.01), 3, 0.25), jnp.ones(2, jnp.bfloat16), [jnp.ones(2)] * 6)
    slow = gradtx.find(state, "slow")
    assert (params.dtype, slow.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(params, slow.astype(jnp.bfloat16))
    low = gradtx.stored(gradtx.lookahead(gradtx.sgd(0.01)), jnp.bfloat16).init(params)
    assert gradtx.find(low, "slow").dtype == jnp.bfloat16


def test_params_that_were_loaded_count():
    """From 100 on all goes as if it had begun there."""
    grads = [jnp.full(2, 0.5)] * 7
    for tx, name in [
        (gradtx.schedule_free_sgd(0.1, 0.9), "z"),
        (gradtx.schedule_free_adamw(0.1, gradtx.linear_schedule(0.5, 0.95, 3)), "z"),
        (gradtx.lookahead(gradtx.sgd(0.1), 6), "slow"),
        (gradtx.lookahead(gradtx.sgd(0.1), 1), "slow"),
    ]:
        for dtype, rtol in ((jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)):
            from_1, state = train(tx, jnp.ones(2, dtype), grads[:6])
            loaded = from_1 + jnp.asarray(99, dtype)
            updates, after = tx.update(grads[6], state, loaded)
            np.testing.assert_allclose(updates, tx.update(grads[6], state, from_1)[0], atol=100 * rtol)
            shift = gradtx.find(after, name) - gradtx.find(tx.update(grads[6], state, from_1)[1], name)
            np.testing.assert_allclose(shift.astype(jnp.float32), 99, rtol=2 * rtol)


def test_slow_weights_in_bfloat16_are_not_taken_for_params_that_moved():
    """Steps far below the digits of the slow weights add up in the mean."""
    tx = gradtx.stored(gradtx.lookahead(gradtx.sgd(1e-4), 2), jnp.bfloat16)
    params, _ = train(tx, jnp.ones(4000), [jnp.ones(4000)] * 100)
    np.testing.assert_allclose(float(params.mean()), 1 - 0.5 * 1e-2, atol=1e-3)


def test_params_that_are_projected_count():
    """Of elements that were held at 0 from outside, nothing of the way below is remembered; the others go on."""

    def run_projected(tx, project):
        params, state = jnp.array([1.0, -1.0]), tx.init(jnp.array([1.0, -1.0]))
        for sign in [1.0] * 6 + [-1.0] * 3:
            updates, state = tx.update(jnp.array([sign, 1.0]), state, params)
            params = gradtx.apply_updates(params, updates)
            params = jnp.array([jnp.maximum(params[0], 0.0), params[1]]) if project else params
        return params

    for tx in (gradtx.schedule_free_sgd(0.5, 0.0), gradtx.lookahead(gradtx.sgd(0.5), 3)):
        held, free = run_projected(tx, True), run_projected(tx, False)
        assert held[0] > free[0] + 0.2
        assert held[1] == free[1]


# Schedule-Free --------------------------------------------------------------------------------------------------------

WARMUP = ("warmup_constant_schedule", (0.0, 0.1, 12))
UP_AND_DOWN = ("piecewise_interpolate_schedule", ("linear", 0.05, {10: 4.0, 30: 0.1}))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("schedule_free_sgd", {}),
        ("schedule_free_sgd", {"learning_rate": WARMUP, "b1": 0.98, "weight_decay": 0.05}),
        ("schedule_free_sgd", {"learning_rate": UP_AND_DOWN, "b1": 0.0, "weight_lr_power": 1.0}),
        ("schedule_free_sgd", {"learning_rate": WARMUP, "weight_lr_power": 0.0}),
        ("schedule_free_adamw", {}),
        ("schedule_free_adamw", {"learning_rate": WARMUP, "b1": 0.95, "b2": 0.99, "eps": 1e-4, "weight_decay": 0.1}),
    ],
    ids=str,
)
def test_schedule_free_is_its_paper(x64, name, arguments):
    params, gradients = streams.stream(STEPS)
    ours, theirs = (
        {key: getattr(module, v[0])(*v[1]) if isinstance(v, tuple) else v for key, v in arguments.items()}
        for module in (gradtx, schedules)
    )
    x, y, z = getattr(reference, name)(params, gradients, **theirs)
    actual, states = run_rows(getattr(gradtx, name)(**ours), params, gradients)
    assert_rows(actual, y)
    assert_rows(rows(gradtx.averaged_params(states)), x)
    assert_rows(rows(gradtx.find(states, "z")), z)


def test_a_warmup_from_zero_gives_its_first_step_no_weight():
    tx = gradtx.schedule_free_sgd(gradtx.warmup_constant_schedule(0.0, 1.0, 2))
    params = jnp.array([1.0, -1.0])
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates, np.zeros(2))
    np.testing.assert_array_equal(gradtx.averaged_params(state), params)
    updates, state = tx.update(params, state, params)  # the first with a weight: the average is where it leads
    np.testing.assert_allclose(gradtx.averaged_params(state), 0.5 * params, rtol=1e-6)
    assert (float(gradtx.find(state, "largest")), float(gradtx.find(state, "weight_sum"))) == (0.5, 0.25)


def test_low_precision_params_follow_the_points_in_float32():
    """The params are rounded anew from y at each step: no error of theirs adds up, and the average feels none."""
    tx, ones = gradtx.schedule_free_sgd(1e-3), np.ones(2)
    params, states, _ = run(tx, jnp.ones(2, jnp.bfloat16), jnp.ones((200, 2), jnp.bfloat16))
    x, y, _ = reference.schedule_free_sgd(ones, [ones] * 200, learning_rate=1e-3)
    assert gradtx.averaged_params(states).dtype == jnp.float32
    np.testing.assert_allclose(gradtx.averaged_params(states)[-1], x[-1], rtol=1e-5)
    np.testing.assert_allclose(params[-1].astype(jnp.float32), y[-1], rtol=2**-8)
    low = gradtx.stored(gradtx.schedule_free_adamw(), jnp.bfloat16).init(ones.astype(np.float32))
    assert {gradtx.find(low, name).dtype for name in ("z", "average", "nu")} == {jnp.dtype(jnp.bfloat16)}
    low = gradtx.stored(gradtx.schedule_free_sgd(), jnp.bfloat16).init(ones.astype(np.float32))
    assert gradtx.find(low, "z").dtype == jnp.bfloat16


def test_slopes_are_finite_at_a_rate_of_0():
    """The weight of the first step of a warmup is 0 ** p, of which the derivatives are taken as 0."""

    def moved(peak, power):
        tx = gradtx.schedule_free_sgd(gradtx.warmup_constant_schedule(0.0, peak, 2), weight_lr_power=power)
        return train(tx, jnp.ones(2), [jnp.ones(2)] * 3)[0].sum()

    found, step = jax.grad(moved, argnums=(0, 1))(1.0, 0.5), 1e-2
    expected = moved(1 + step, 0.5) - moved(1 - step, 0.5), moved(1.0, 0.5 + step) - moved(1.0, 0.5 - step)
    np.testing.assert_allclose(found, np.array(expected) / (2 * step), rtol=2e-2)
