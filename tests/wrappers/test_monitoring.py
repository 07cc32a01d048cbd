"""monitor and metrics: numbers for a logger, from any nesting, under jit, and free where nobody asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradtx
from tests.wrappers.runs import train

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
GRADS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 4.0)}
NORM = float(np.sqrt(4 * 9 + 2 * 16))
FALLING = gradtx.linear_schedule(0.1, 0.0, 10)
NAMES = {"gradient_norm", "clipped_norm", "clipped_fraction", "update_norm", "learning_rate"}


def numbers(state):
    return {name: float(value) for name, value in gradtx.metrics(state).items()}


def after(tx, *factors, **extra):
    """The metrics after gradients of these sizes."""
    return numbers(train(tx, PARAMS, [jax.tree.map(lambda g, f=f: f * g, GRADS) for f in factors or (1,)], **extra)[1])


def assert_numbers(found, **expected):
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-6)


def test_norms_clipping_and_the_learning_rate_of_the_last_update():
    tx = gradtx.monitor(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(FALLING))
    assert gradtx.metrics(tx.init(PARAMS)).keys() == after(tx).keys() == NAMES
    found, small = after(tx, 1, 1, 0.01), NORM / 100
    assert_numbers(found, gradient_norm=small, clipped_norm=small, clipped_fraction=2 / 3)
    assert_numbers(found, update_norm=0.08 * small, learning_rate=0.08)
    assert_numbers(after(tx), clipped_norm=1.0, clipped_fraction=1.0)
    result = gradtx.minimize(lambda x: jnp.sum((x - 3.0) ** 2), jnp.zeros(2), tx, steps=5, progress=False)
    assert_numbers(jax.jit(gradtx.metrics)(result.state["tx"]), learning_rate=0.06, clipped_fraction=1.0)


def test_it_changes_nothing_for_what_it_watches():
    inner = gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(FALLING, 0.9)
    params, state = train(gradtx.monitor(inner), PARAMS, [GRADS] * 3)
    expected, inner_state = train(inner, PARAMS, [GRADS] * 3)
    assert gradtx.tree_equal(params, expected)
    assert gradtx.tree_equal(state["monitor"]["inner"], inner_state)
    assert gradtx.metrics(inner_state) == {}
    beside = gradtx.scale_by_momentum() + gradtx.monitor(gradtx.scale_by_rms()) >> gradtx.scale(-0.1)
    plain = gradtx.scale_by_adam() >> gradtx.scale(-0.1)
    grads = [GRADS, PARAMS]
    assert gradtx.tree_equal(train(beside, PARAMS, grads)[0], train(plain, PARAMS, grads)[0])


CLIPS = [
    gradtx.clip(0.5),
    gradtx.clip_by_global_norm(1.0),
    gradtx.clip_by_leaf_norm(1.0),
    gradtx.clip_by_block_rms(1.0),
    gradtx.adaptive_grad_clip(0.01),
    gradtx.clip_by_percentile(10.0),
]


@pytest.mark.parametrize("clip", CLIPS, ids=lambda tx: tx.name)
def test_every_clip_says_that_it_clips(clip):
    assert "clips" in clip.facts
    found = after(gradtx.monitor(clip), 1, 5)
    assert found["clipped_norm"] < found["gradient_norm"]
    assert found["clipped_fraction"] >= 0.5


def norm(size):
    return gradtx.clip_by_global_norm(size)


@pytest.mark.parametrize(
    ("inner", "fraction", "clipped"),
    [
        (gradtx.scale(0.01) >> norm(1.0), 0.0, NORM / 100),
        (gradtx.scale(10.0) >> norm(2 * NORM), 1.0, 2 * NORM),
        (norm(1.0) >> norm(2.0), 1.0, 1.0),
        (norm(2.0) >> norm(1.0) >> gradtx.scale(100.0), 1.0, 1.0),
        (norm(1e3) >> norm(1e4), 0.0, NORM),
    ],
    ids=repr,
)
def test_a_clip_is_measured_by_what_it_is_given(inner, fraction, clipped):
    assert_numbers(after(gradtx.monitor(inner)), clipped_fraction=fraction, clipped_norm=clipped)


def test_a_clip_within_a_wrapper_is_measured_there():
    clip = norm(1.0) >> gradtx.sgd(0.1, 0.9)
    assert "clipped_norm" not in after(gradtx.monitor(gradtx.pack(clip, min_leaves=2)))
    assert_numbers(after(gradtx.pack(gradtx.monitor(clip), min_leaves=2)), clipped_norm=1.0)


def test_from_any_nesting():
    inner = gradtx.monitor(norm(1.0) >> gradtx.sgd(0.1))
    tx = gradtx.skip_nonfinite(gradtx.accumulate(inner, 2, skip_nonfinite=True), 3)
    found = after(tx, 1, np.nan, 3, 1)
    assert_numbers(found, skipped_steps=1, failed=0, accumulated_micro_steps=1, skipped_micro_steps=0)
    assert_numbers(found, gradient_norm=2 * NORM, learning_rate=0.1)
    plateau = gradtx.loss_scaling(gradtx.sgd(0.1) >> gradtx.reduce_on_plateau(), 1024.0)
    found = after(plateau, np.inf, value=jnp.float32(1.0))
    assert found == {"loss_scale": 512.0, "skipped_steps": 1.0, "plateau_scale": 1.0}
    with jax.numpy_dtype_promotion("standard"):
        assert_numbers(after(optax.chain(optax.identity(), gradtx.monitor(gradtx.sgd(0.1)))), gradient_norm=NORM)
    assert gradtx.monitor(gradtx.sgd(0.1) >> gradtx.reduce_on_plateau()).facts.extra == {"value"}


def test_every_learning_rate_has_a_name():
    groups = {"matrices": gradtx.adamw(FALLING), "vectors": gradtx.monitor(gradtx.sgd(0.5), "small")}
    tx = gradtx.monitor(gradtx.partition(groups, {"*kernel": "matrices", "*": "vectors"}))
    rates = {"matrices/learning_rate": 0.09, "vectors/learning_rate": 0.5, "small/learning_rate": 0.5}
    assert_numbers(after(tx, 1, 1), gradient_norm=NORM, **rates, **{"small/gradient_norm": np.sqrt(32.0)})
    step = gradtx.scale_by_learning_rate
    found = after(gradtx.monitor(step(0.5) >> step(0.25) >> step(2.0)))
    assert_numbers(found, learning_rate=0.5, learning_rate_2=0.25, learning_rate_3=2.0)
    found = after(gradtx.monitor(gradtx.clip(1.0)) >> gradtx.monitor(gradtx.sgd(0.1)))
    assert found.keys() >= {"monitor/gradient_norm", "monitor_2/gradient_norm", "learning_rate", "clipped_norm"}
    tunable = gradtx.monitor(gradtx.tunable(gradtx.sgd(0.1)))
    state = gradtx.tune(tunable.init(PARAMS), learning_rate=0.025)
    assert_numbers(numbers(tunable.update(GRADS, state, PARAMS)[1]), learning_rate=0.025)
    assert_numbers(after(gradtx.monitor(gradtx.schedule_free_sgd(0.3))), learning_rate=0.3)
    assert_numbers(numbers(gradtx.monitor(gradtx.sgd(FALLING)).init(PARAMS)), learning_rate=0.1)


# hyperparameters ------------------------------------------------------------------------------------------------------

LABELS = {"*kernel": "matrices", "*": "vectors"}


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (gradtx.adam(FALLING, 0.5), {"learning_rate": 0.08, "b1": 0.5, "b2": 0.999, "eps": 1e-8}),
        (gradtx.adamw(0.1, FALLING), {"learning_rate": 0.1, "b1": 0.08, "weight_decay": 1e-4}),
        (gradtx.clip(2.0) >> gradtx.scale_by_schedule(FALLING), {"max_delta": 2.0, "step_size_fn": 0.08}),
        (gradtx.scale(2.0) >> gradtx.scale(FALLING), {"scale/step_size": 2.0, "scale_2/step_size": 0.08}),
        (
            gradtx.partition({"matrices": gradtx.sgd(FALLING), "vectors": gradtx.lion(0.5)}, LABELS),
            {"matrices/learning_rate": 0.08, "vectors/learning_rate": 0.5, "vectors/b2": 0.99},
        ),
        (
            gradtx.schedule_free(gradtx.sgd(0.1), FALLING),
            {"schedule_free/learning_rate": 0.08, "schedule_free/sgd/learning_rate": 0.1, "weight_lr_power": 2.0},
        ),
        (gradtx.accumulate(gradtx.sgd(FALLING), 2), {"learning_rate": 0.1}),
        (gradtx.lookahead(gradtx.monitor(gradtx.sgd(FALLING))), {"learning_rate": 0.08, "slow_step_size": 0.5}),
        (gradtx.chain(optax.trace(0.9), gradtx.sgd(FALLING)), {"learning_rate": 0.08}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_hyperparameter_has_its_value_of_the_last_update(tx, expected):
    state, names = tx.init(PARAMS), set()
    for step in range(3):
        _, state = tx.update(GRADS, state, PARAMS)
        found = gradtx.hyperparameters(tx, state)
        names.add(tuple(found))
        assert step or all(name in found for name in expected)
    assert_numbers(
        {name: float(value) for name, value in jax.jit(gradtx.hyperparameters)(tx, state).items()}, **expected
    )
    assert len(names) == 1


def test_hyperparameters_before_the_first_update_under_tunable_and_of_what_holds_a_state():
    tx = gradtx.tunable(gradtx.sgd(FALLING))
    state = tx.init(PARAMS)
    assert_numbers(gradtx.hyperparameters(tx, state), learning_rate=0.1)
    tx = gradtx.tunable(gradtx.sgd(0.1))
    state = gradtx.tune(tx.init(PARAMS), learning_rate=0.025)
    assert_numbers(gradtx.hyperparameters(tx, state), learning_rate=0.025)

    class Holder:
        opt_state = state

    assert_numbers(gradtx.hyperparameters(tx, Holder()), learning_rate=0.025)


def test_hyperparameters_of_an_nnx_optimizer():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

    tx = gradtx.adam(FALLING)
    optimizer = nnx.Optimizer(Model(), tx, wrt=nnx.Param)
    assert_numbers(gradtx.hyperparameters(tx, optimizer), learning_rate=0.1, b1=0.9)


def test_a_state_of_another_optimizer_and_a_name_that_is_not_in_the_state():
    state = gradtx.sgd(0.1).init(PARAMS)
    for wrong in (state, (), optax.adam(0.1).init(PARAMS)):
        with pytest.raises(
            ValueError, match=r"gradtx.hyperparameters: state does not belong to tx, adam\(.*Pass the one ret"
        ):
            gradtx.hyperparameters(gradtx.adam(0.1), wrong)
    with pytest.raises(TypeError, match=r"gradtx.hyperparameters: tx is 3; it must be a transform"):
        gradtx.hyperparameters(3, state)
    with pytest.raises(KeyError, match=r"learning_rate is a hyperparameter: gradtx.hyperparameters\(tx, state\)"):
        gradtx.find(state, "learning_rate")
    with pytest.raises(KeyError, match=r"no entry is called 'nope'\. There are"):
        gradtx.find(state, "nope")


def test_hyperparameters_and_metrics_of_routes_by_shape():
    tx = gradtx.monitor(gradtx.by_shape(matrix=gradtx.adam(0.1), other=gradtx.sgd(0.2)))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    _, state = tx.update(params, tx.init(params), params)
    rates = {"matrix/learning_rate": 0.1, "other/learning_rate": 0.2}
    for found in (gradtx.hyperparameters(tx, state), gradtx.metrics(state)):
        assert {name: round(float(found[name]), 6) for name in rates} == rates


def test_the_state_of_one_inner_transform_is_found_whatever_its_argument_is_called():
    @gradtx.transform
    def halved(base: gradtx.Transform) -> gradtx.Rule:
        def update(updates, state, params=None, **extra):
            updates, inner = base.update(updates, state["inner"], params, **extra)
            return jax.tree.map(lambda u: u / 2, updates), {"inner": inner}

        return gradtx.Rule(update=update)

    tx, params = halved(gradtx.sgd(0.1, momentum=0.9)), {"w": jnp.ones(2)}
    assert ("halved", "inner", "scale_by_momentum", "mu") in tx.declared
    assert gradtx.hyperparameters(tx, tx.init(params))["momentum"] == pytest.approx(0.9)
