"""accumulate: k micro-batches are one batch, and the other micro-steps cost next to nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import tree
from tests.wrappers.runs import drawn, last, run, train

SMALL = {"w": (8, 3)}
PARAMS, GRADS = drawn(0, shapes=SMALL), drawn(1, 12, shapes=SMALL)


@pytest.mark.parametrize(("method", "mean"), [(gradtx.sgd(0.1, 0.9), True), (gradtx.lars(0.01), False)], ids=repr)
def test_k_micro_batches_are_one_batch(method, mean):
    """To float32's rounding of a mean of four."""
    four = GRADS["w"].reshape(3, 4, 8, 3)
    whole = {"w": four.mean(1) if mean else four.sum(1)}
    params, states, updates = run(gradtx.accumulate(method, 4, use_grad_mean=mean), PARAMS, GRADS)
    expected, inner, _ = run(method, PARAMS, whole)
    np.testing.assert_allclose(params["w"][3::4], expected["w"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(*(gradtx.step_count(last(each)) for each in (states, inner)))
    assert not np.asarray(updates["w"])[np.arange(12) % 4 != 3].any()
    assert list(gradtx.find(states, "micro_step")) == [1, 2, 3, 0] * 3
    assert list(gradtx.find(states, "update_count")) == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    np.testing.assert_allclose(gradtx.find(states, "accumulated")["w"][5], four[1, :2].sum(0), rtol=1e-5, atol=1e-6)


def test_every_may_be_a_function_of_the_updates_made():
    tx = gradtx.accumulate(gradtx.sgd(1.0), lambda made: jnp.where(made < 2, 0, 3))  # less than 1 is taken for 1
    params, state = 0.0, tx.init(0.0)
    seen = []
    for _ in range(8):
        updates, state = tx.update(1.0, state, params)
        seen.append(float(updates))
    assert seen == [-1, -1, 0, 0, -1, 0, 0, -1]
    assert int(gradtx.find(state, "update_count")) == int(gradtx.step_count(state)) == 4


STEPS = gradtx.linear_schedule(1.0, 0.0, 10)
BEHIND = {
    "decays": gradtx.add_decayed_weights(0.1),
    "is scheduled": gradtx.scale_by_learning_rate(STEPS),
    "is scheduled inside a mask": gradtx.masked(gradtx.scale(STEPS), "*"),
    "remembers": gradtx.scale_by_adam(),
    "averages": gradtx.ema(0.9),
    "draws": gradtx.add_noise(0.1, 0.5),
    "counts": gradtx.accumulate(gradtx.identity(), 2),
    "measures": gradtx.monitor(gradtx.scale(0.5)),
    "is a method": gradtx.adamw(0.1),
    "asks for the params": gradtx.stateless(lambda updates, params: updates),
    "comes from elsewhere": gradtx.foreign(gradtx.to_optax(gradtx.scale(0.5))),
}
HARMLESS = [
    gradtx.scale(0.5),
    gradtx.scale_by_learning_rate(0.1),
    gradtx.sgd(0.1),
    gradtx.clip_by_global_norm(0.1),
    gradtx.adaptive_grad_clip(0.1),
    gradtx.scale_by_trust_ratio(),
    gradtx.scale_by_sign(),
    gradtx.masked(gradtx.scale(0.5), "*"),
    gradtx.partition({"all": gradtx.scale(0.5)}, "all"),
    gradtx.train_only(gradtx.scale(0.5), "*"),
    gradtx.tunable(gradtx.scale(0.5)),
    gradtx.checked(gradtx.scale(0.5)),
    gradtx.pack(gradtx.scale(0.5)),
    gradtx.freeze("*"),
]


@pytest.mark.parametrize("what", BEHIND)
@pytest.mark.parametrize(
    "waiting",
    [
        gradtx.accumulate(gradtx.scale_by_rms(), 2),
        gradtx.conditionally_mask(gradtx.sgd(0.1), lambda count: count % 2 == 0),
        gradtx.partition({"all": gradtx.skip_nonfinite(gradtx.accumulate(gradtx.sgd(0.1), 2), 3)}, "all"),
    ],
    ids=lambda tx: tx.name,
)
def test_what_acts_at_idle_steps_too_may_not_stand_behind(waiting, what):
    behind = BEHIND[what]
    for compose in (gradtx.chain, gradtx.join):
        with pytest.raises(TypeError, match=f"{behind.name}.* cannot (come after|be on the right)"):
            compose(waiting, gradtx.scale(2.0), behind)
    with pytest.raises(TypeError, match=r"which makes its step at some updates only.* Put it inside: "):
        waiting >> behind


@pytest.mark.parametrize("behind", HARMLESS, ids=repr)
def test_what_leaves_zeros_and_itself_as_they_are_may_stand_behind(behind):
    tx = gradtx.accumulate(gradtx.identity(), 2) >> behind
    state = tx.init(PARAMS)
    zeros, after = tx.update(jax.tree.map(lambda g: g[0], GRADS), state, PARAMS)
    assert not np.asarray(zeros["w"]).any()
    own = [{name: entry for name, entry in each.items() if name != "accumulate"} for each in (state, after)]
    fields = [{path: leaf for path, leaf in tree.named_leaves(each) if "count" not in path} for each in own]
    assert gradtx.tree_equal(*fields)


def test_a_micro_step_with_nan_is_left_out_and_counted():
    tx = gradtx.accumulate(gradtx.sgd(1.0), 3, skip_nonfinite=True)
    state, moved = tx.init(jnp.zeros(2)), []
    for number in (np.inf, 1, 2, 3, np.nan, 4, -np.inf, 5):
        updates, state = tx.update(jnp.array([number, 1.0]), state)
        moved.append(list(np.asarray(updates)))
    assert moved == [[0, 0]] * 3 + [[-2, -1]] + [[0, 0]] * 4
    counts = {"skipped": 3, "micro_step": 2, "update_count": 1}
    assert {name: int(gradtx.find(state, name)) for name in counts} == counts


def test_a_poisoned_sum_is_seen_and_gone_after_its_step():
    bad = [jnp.float32(1.0), jnp.float32(jnp.nan), jnp.float32(3.0), jnp.float32(5.0)]
    assert np.isnan(train(gradtx.accumulate(gradtx.sgd(1.0), 4), jnp.float32(0), bad)[0])
    outside = gradtx.skip_nonfinite(gradtx.accumulate(gradtx.sgd(1.0), 2), 3)
    inside = gradtx.accumulate(gradtx.skip_nonfinite(gradtx.sgd(1.0), 3), 2)
    assert train(outside, jnp.float32(0), bad)[0] == -2  # 1 and 3, then 5 waits
    assert train(inside, jnp.float32(0), bad)[0] == -4  # 3 and 5


def test_low_precision_gradients_are_summed_in_float32():
    params = jnp.zeros(4, jnp.float16)
    tx = gradtx.accumulate(gradtx.sgd(1.0), 90)
    assert gradtx.find(tx.init(params), "accumulated").dtype == jnp.float32
    updates = run(tx, params, jnp.full((90, 4), 1000.0, jnp.float16))[2]  # their sum is beyond float16
    assert updates.dtype == jnp.float16
    np.testing.assert_array_equal(updates[-1], -1000)
    low = gradtx.stored(gradtx.accumulate(gradtx.sgd(1.0), 90), jnp.bfloat16)
    assert gradtx.find(low.init(params), "accumulated").dtype == jnp.bfloat16
    assert low.facts.reads == "element"
    assert gradtx.accumulate(gradtx.sgd(1.0), 2, skip_nonfinite=True).facts.reads == "tree"


@gradtx.transform
def matrix_heavy(step_size: gradtx.Finite) -> gradtx.Rule:
    """Multiplies a matrix with itself."""

    def update(updates, state):
        return tree.map(lambda u, k: k * (u @ u.T @ u @ u.T @ u), updates, k=step_size), state

    return gradtx.Rule(update=update, reach="leaf")


def test_a_micro_step_that_is_not_due_costs_no_inner_work():
    """Of the compiled programs in which the counter is a constant."""
    tx, params = gradtx.accumulate(matrix_heavy(0.1), 4), jnp.zeros((64, 64))
    state = tx.init(params)

    def flops(micro_step):
        entry = state["accumulate"] | {"micro_step": np.int32(micro_step)}
        compiled = jax.jit(lambda g, a: tx.update(g, {"accumulate": entry | {"accumulated": a}})).lower(params, params)
        return compiled.compile().cost_analysis().get("flops", 0.0)

    due, waiting = flops(3), flops(0)
    assert due > 1e6
    assert waiting <= 0.05 * due
