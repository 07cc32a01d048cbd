"""Running another framework's optimizer and ours over the same gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from tests.parity.conventions import Row, Schedule
from tests.reference import streams

STEPS = 300
DECAY_RATE = 0.05
"""Scheduled runs use the learning rate lr / (1 + 0.05 t): only that tells lr inside the momentum from lr outside."""


def ours(row: Row, *, scheduled: bool) -> Any:
    arguments = {
        name: getattr(gradtx, value.factory)(**value.arguments) if isinstance(value, Schedule) else value
        for name, value in row.ours.items()
    }
    if scheduled:
        arguments["learning_rate"] = gradtx.inverse_time_schedule(arguments["learning_rate"], DECAY_RATE)
    return getattr(gradtx, row.factory)(**arguments)


def trajectory(tx: Any, params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The parameters after each step."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = gradtx.apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(params)
    return np.asarray(jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])(start, jnp.asarray(gradients)))


def assert_same_steps(row: Row, theirs, *, scheduled: bool, at_least: float = 0.95) -> None:
    """The steps of the parameters agree to 1e-10 of their size, beyond the rounding of the parameters themselves.

    `theirs(params, gradients)` gives their parameters after each step, elementwise for any shape. Only what input moved
    by 1e-14 leaves as it is gets compared.
    """
    params, gradients = streams.stream(STEPS)
    mine = trajectory(ours(row, scheduled=scheduled), params, gradients)
    assert np.isfinite(mine).all()
    copies = streams.with_moved_copies(params, seed=1)
    expected = theirs(copies, streams.with_moved_copies(gradients, seed=2))

    def steps(rows, start):
        return np.diff(np.concatenate([start[None], rows]), axis=0)

    my_steps, their_steps = steps(mine, params), steps(expected, copies)
    right = their_steps[:, 0]
    rounding = 8 * np.finfo(np.float64).eps * np.maximum.accumulate(np.abs(expected[:, 0]))
    allowed = 1e-10 * streams.recent_size(right) + rounding
    determined = streams.is_determined(their_steps, allowed)
    assert determined.mean() >= at_least
    error = np.where(determined, np.abs(my_steps - right), 0)
    wrong = np.argwhere(error > allowed)
    assert not len(wrong), (
        f"{len(wrong)} of {error.size} steps differ, first at step {wrong[0][0] + 1}, element {wrong[0][1]}: "
        f"{my_steps[tuple(wrong[0])]!r}, expected {right[tuple(wrong[0])]!r}"
    )
