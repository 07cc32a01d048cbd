"""monitor and metrics: numbers for a logger, from any nesting, under jit, and free where nobody asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
GRADS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 4.0)}
NORM = float(np.sqrt(4 * 9 + 2 * 16))
FALLING = gradtx.linear_schedule(0.1, 0.0, 10)


def after(tx, gradients, **extra):
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, PARAMS, **extra)
    return updates, state


def numbers(state):
    return {name: float(value) for name, value in jax.jit(gradtx.metrics)(state).items()}


def test_norms_clipping_and_the_learning_rate_of_the_last_update():
    tx = gradtx.monitor(gradtx.clip_by_global_norm(1.0) >> gradtx.adam(FALLING))
    small = jax.tree.map(lambda g: g / 100, GRADS)
    updates, state = after(tx, [GRADS, GRADS, small])
    found = numbers(state)
    assert found.keys() == {"gradient_norm", "clipped_norm", "clipped_fraction", "update_norm", "learning_rate"}
    np.testing.assert_allclose(found["gradient_norm"], NORM / 100, rtol=1e-6)
    np.testing.assert_allclose(found["clipped_norm"], NORM / 100, rtol=1e-6)
    np.testing.assert_allclose(found["clipped_fraction"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(found["update_norm"], gradtx.global_norm(updates), rtol=1e-6)
    np.testing.assert_allclose(found["learning_rate"], 0.08, rtol=1e-6)
    np.testing.assert_allclose(numbers(after(tx, [GRADS])[1])["clipped_norm"], 1.0, rtol=1e-6)


def test_it_changes_nothing_for_what_it_watches():
    inner = gradtx.clip_by_global_norm(1.0) >> gradtx.adam(FALLING)
    updates, state = after(gradtx.monitor(inner), [GRADS] * 3)
    expected, inner_state = after(inner, [GRADS] * 3)
    assert gradtx.tree_equal(updates, expected)
    assert gradtx.tree_equal(state["monitor"]["inner"], inner_state)
    assert gradtx.metrics(inner_state) == {}


@pytest.mark.parametrize(
    "clip",
    [
        gradtx.clip(0.5),
        gradtx.clip_by_global_norm(1.0),
        gradtx.clip_by_leaf_norm(1.0),
        gradtx.clip_by_block_rms(1.0),
        gradtx.adaptive_grad_clip(0.01),
        gradtx.clip_by_percentile(10.0),
    ],
    ids=lambda tx: tx.name,
)
def test_every_clip_says_that_it_clips(clip):
    assert clip.clips
    grown = [GRADS, jax.tree.map(lambda g: 5 * g, GRADS)]
    found = numbers(after(gradtx.monitor(clip), grown)[1])
    assert found["clipped_norm"] < found["gradient_norm"]
    assert found["clipped_fraction"] >= 0.5


def test_from_any_nesting():
    tx = gradtx.skip_nonfinite(
        gradtx.accumulate(gradtx.monitor(gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.1)), 2), max_consecutive=3
    )
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    _, state = after(tx, [GRADS, bad, GRADS, GRADS])
    found = numbers(state)
    assert found["skipped_steps"] == 1
    assert found["failed"] == 0
    assert found["accumulated_micro_steps"] == 1
    np.testing.assert_allclose(found["gradient_norm"], NORM, rtol=1e-6)
    np.testing.assert_allclose(found["learning_rate"], 0.1, rtol=1e-6)


def test_each_group_has_its_learning_rate():
    groups = {"matrices": gradtx.adamw(FALLING), "vectors": gradtx.monitor(gradtx.sgd(0.5), "small")}
    tx = gradtx.monitor(gradtx.partition(groups, {"*kernel": "matrices", "*": "vectors"}))
    found = numbers(after(tx, [GRADS] * 2)[1])
    np.testing.assert_allclose(found["matrices/learning_rate"], 0.09, rtol=1e-6)
    np.testing.assert_allclose(found["vectors/learning_rate"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["small/gradient_norm"], np.sqrt(32.0), rtol=1e-6)
    np.testing.assert_allclose(found["gradient_norm"], NORM, rtol=1e-6)


def test_equal_names_get_their_path_in_front():
    tx = gradtx.monitor(gradtx.clip(1.0)) >> gradtx.monitor(gradtx.sgd(0.1))
    found = numbers(after(tx, [GRADS])[1])
    assert {"monitor/gradient_norm", "monitor_2/gradient_norm", "learning_rate", "clipped_norm"} <= found.keys()
    two = gradtx.monitor(gradtx.scale_by_learning_rate(0.5) >> gradtx.scale_by_learning_rate(0.25))
    found = numbers(after(two, [GRADS])[1])
    assert (found["learning_rate"], found["learning_rate_2"]) == (0.5, 0.25)


def test_rates_that_live_in_the_state_count():
    tx = gradtx.monitor(gradtx.tunable(gradtx.adam(0.1)))
    state = gradtx.tune(tx.init(PARAMS), learning_rate=0.025)
    _, state = jax.jit(tx.update)(GRADS, state, PARAMS)
    np.testing.assert_allclose(numbers(state)["learning_rate"], 0.025, rtol=1e-6)
    _, state = after(gradtx.monitor(gradtx.schedule_free_sgd(0.3)), [GRADS])
    np.testing.assert_allclose(numbers(state)["learning_rate"], 0.3, rtol=1e-6)


def test_loss_scale_and_plateau():
    tx = gradtx.loss_scaling(gradtx.sgd(0.1) >> gradtx.reduce_on_plateau(), 1024.0)
    _, state = after(tx, [jax.tree.map(lambda g: g * jnp.inf, GRADS)], value=jnp.float32(1.0))
    assert numbers(state) == {"loss_scale": 512.0, "skipped_steps": 1.0, "plateau_scale": 1.0}


def test_inside_other_containers():
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.chain(optax.identity(), gradtx.monitor(gradtx.sgd(0.1)))
        _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(numbers(state)["gradient_norm"], NORM, rtol=1e-6)


def test_extra_arguments_and_the_observed_gradient_pass_through():
    tx = gradtx.scale_by_momentum() + gradtx.monitor(gradtx.scale_by_rms()) >> gradtx.scale(-0.1)
    plain = gradtx.scale_by_adam() >> gradtx.scale(-0.1)
    gradients = [jax.tree.map(lambda g, k=k: g * (1 + k), GRADS) for k in range(4)]
    assert gradtx.tree_equal(after(tx, gradients)[0], after(plain, gradients)[0])
    plateau = gradtx.monitor(gradtx.sgd(0.1) >> gradtx.reduce_on_plateau())
    assert "value" in plateau.extra_args
    after(plateau, [GRADS], value=jnp.float32(1.0))


def test_in_minimize():
    tx = gradtx.monitor(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(FALLING))
    result = gradtx.minimize(lambda x: jnp.sum((x - 3.0) ** 2), jnp.zeros(2), tx, steps=5, progress=False)
    found = numbers(result.state["tx"])
    np.testing.assert_allclose(found["learning_rate"], 0.06, rtol=1e-6)
    assert found["clipped_fraction"] == 1


@pytest.mark.parametrize(
    ("inner", "fraction"),
    [
        (gradtx.scale(0.01) >> gradtx.clip_by_global_norm(1.0), 0.0),
        (gradtx.scale(10.0) >> gradtx.clip_by_global_norm(2 * NORM), 1.0),
        (gradtx.clip_by_global_norm(1.0) >> gradtx.clip_by_global_norm(2.0), 1.0),
        (gradtx.clip_by_global_norm(2.0) >> gradtx.clip_by_global_norm(1.0) >> gradtx.scale(100.0), 1.0),
        (gradtx.clip_by_global_norm(1e3) >> gradtx.clip_by_global_norm(1e4), 0.0),
    ],
    ids=repr,
)
def test_a_clip_is_measured_by_what_it_is_given(inner, fraction):
    assert numbers(after(gradtx.monitor(inner), [GRADS])[1])["clipped_fraction"] == fraction


def test_a_clip_within_a_wrapper_is_measured_there():
    clip = gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.1)
    assert "clipped_norm" not in numbers(after(gradtx.monitor(gradtx.pack(clip, fewest=2)), [GRADS])[1])
    np.testing.assert_allclose(
        numbers(after(gradtx.pack(gradtx.monitor(clip), fewest=2), [GRADS])[1])["clipped_norm"], 1
    )
