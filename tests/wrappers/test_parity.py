"""Wrappers against those of optax that say the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.records import streams
from tests.wrappers.runs import assert_rows, by_rank, drawn, rows, run

SHAPES = {"bias": (3,), "kernel": (3, 2)}
PARAMS, GRADS = drawn(1, shapes=SHAPES), drawn(2, 9, shapes=SHAPES)
NAN = jax.tree.map(lambda g: g.at[2, 1].set(jnp.nan).at[5].set(jnp.inf), GRADS)
KERNEL, BIAS = {"bias": False, "kernel": True}, {"bias": True, "kernel": False}
OURS, THEIRS = gradtx.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)
LABELS = {"bias": "vectors", "kernel": "matrices"}
GROUPS = {"matrices": gradtx.adam(0.1), "vectors": gradtx.sgd(0.1, 0.9)}
THEIR_GROUPS = {"matrices": optax.adam(0.1), "vectors": optax.sgd(0.1, 0.9)}


def every_third(step):
    return step % 3 != 1


CASES = {
    "masked": (gradtx.masked(OURS, "kernel"), optax.masked(THEIRS, KERNEL)),
    "freeze": (OURS >> gradtx.freeze("bias"), optax.chain(THEIRS, optax.transforms.freeze(BIAS))),
    "partition": (gradtx.partition(GROUPS, by_rank), optax.partition(THEIR_GROUPS, LABELS)),
    "accumulate": (gradtx.accumulate(OURS, 3), optax.MultiSteps(THEIRS, 3).gradient_transformation()),
    "apply_every": (
        OURS >> gradtx.accumulate(gradtx.identity(), 4, use_grad_mean=False),
        optax.chain(THEIRS, optax.apply_every(4)),
    ),
    "skip_nonfinite": (gradtx.skip_nonfinite(OURS, 9), optax.apply_if_finite(THEIRS, 9)),
    "zero_nonfinite": (gradtx.zero_nonfinite() >> OURS, optax.chain(optax.zero_nans(), THEIRS)),
    "conditionally": (
        gradtx.conditionally(gradtx.clip_by_global_norm(0.5), every_third) >> OURS,
        optax.chain(optax.conditionally_transform(optax.clip_by_global_norm(0.5), every_third), THEIRS),
    ),
    "conditionally_mask": (gradtx.conditionally_mask(OURS, every_third), optax.conditionally_mask(THEIRS, every_third)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_optaxs(name):
    """To what is left of optax's 1 - b2**t in float32."""
    ours, theirs = CASES[name]
    grads = NAN if name == "skip_nonfinite" else GRADS
    if name == "zero_nonfinite":  # of infinity optax takes no notice
        grads = jax.tree.map(lambda g: jnp.where(jnp.isinf(g), jnp.nan, g), NAN)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = run(gradtx.foreign(theirs), PARAMS, grads)[2]
    updates = run(ours, PARAMS, grads)[2]
    for name, wanted in expected.items():
        np.testing.assert_allclose(updates[name], wanted, rtol=2e-4, atol=1e-5, err_msg=name)


def test_schedule_free_is_optaxs(x64):
    """Its schedule of the weights is one step ahead of the inner's, so it is given that of ours one step late."""
    params, gradients = (streams.split(jnp.asarray(each)) for each in streams.stream(40))
    rate, warmup = gradtx.warmup_constant_schedule(0.0, 0.1, 12), optax.warmup_constant_schedule(0.0, 0.1, 12)
    theirs_rate = lambda count: warmup(count.astype(jnp.float64))  # noqa: E731 - it divides int32 in float32
    theirs = optax.contrib.schedule_free(optax.sgd(theirs_rate, 0.5), lambda count: theirs_rate(count - 1), 0.8, 1.0)
    y, states, _ = run(gradtx.schedule_free(gradtx.sgd(rate, 0.5), rate, 0.8, 1.0), params, gradients)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, (state,), _ = (lambda y, s, u: (y, s.values(), u))(*run(gradtx.foreign(theirs), params, gradients))
        x = optax.contrib.schedule_free_eval_params(state._replace(b1=0.8), expected)
    # Their x comes from y by dividing by b1 at every step.
    assert_rows(rows(y), rows(expected), 1e-10)
    assert_rows(rows(gradtx.averaged_params(states)), rows(x), 1e-10)
    assert_rows(rows(gradtx.find(states, "z")), rows(state.z), 1e-10)
