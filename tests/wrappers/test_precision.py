"""Low-precision parameters that move, and gradients that float16 cannot hold."""

import functools

import flax.training.train_state
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import sklearn.datasets
from jax.sharding import NamedSharding, PartitionSpec

import gradtx
from gradtx.core.annotations import Kind

REMEDIES = {
    "stochastic_rounding": gradtx.stochastic_rounding,
    "kahan_summation": gradtx.kahan_summation,
    "master_weights": gradtx.master_weights,
}
remedies = pytest.mark.parametrize("remedy", REMEDIES.values(), ids=REMEDIES)
BF16, F16 = jnp.bfloat16, jnp.float16


def train(tx, params, gradients, apply=gradtx.apply_updates):
    """Params and state after a step for each gradient."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (apply(params, updates), state), params

    (params, state), path = jax.jit(functools.partial(jax.lax.scan, step))((params, tx.init(params)), gradients)
    return params, state, path


@pytest.mark.parametrize("kind", [BF16, jnp.float32], ids=["bfloat16 gradients", "float32 gradients"])
def test_200_small_steps_arrive(kind):
    """200 steps of 1e-4 from 1: 0.98 within 0.1%. Without a remedy not one of them is made."""
    ones = jnp.ones((200, 10_000), kind)
    plain, _, _ = train(gradtx.sgd(1e-4), jnp.ones(10_000, BF16), ones)
    assert (plain == 1).all()
    for remedy in REMEDIES.values():
        params, _, _ = train(remedy(gradtx.sgd(1e-4)), jnp.ones(10_000, BF16), ones)
        assert params.dtype == BF16
        assert abs(np.asarray(params, np.float64).mean() / 0.98 - 1) < 1e-3


@remedies
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_adam_follows_float32s_path_within_the_last_digits(remedy, dtype):
    """300 steps of Adam: what is lost is at most a few of the dtype's steps, where the plain path loses the way."""
    gradients = jnp.asarray(np.random.default_rng(0).normal(0.3, 1, size=(300, 2000)).astype(np.float32))
    start = jnp.asarray(np.random.default_rng(1).normal(size=2000)).astype(dtype)
    tx = gradtx.adam(1e-4)
    exact = np.asarray(train(tx, start.astype(jnp.float32), gradients)[0], np.float64)
    ours = np.asarray(train(remedy(tx), start, gradients)[0], np.float64)
    plain = np.asarray(train(tx, start, gradients)[0], np.float64)
    moved = np.abs(exact - np.asarray(start, np.float64)).mean()
    assert abs((ours - exact).mean()) < 0.05 * moved  # no drift
    assert abs((ours - exact).mean()) < 0.2 * abs((plain - exact).mean())


def low(x, dtype):
    return np.asarray(x, np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_kahan_summation_is_its_transcription_to_the_bit(dtype):
    """Written out in NumPy, sums in float32, params and compensation in the low dtype."""
    rng = np.random.default_rng(3)
    gradients = rng.normal(size=(200, 64)).astype(np.float32)
    w = low(rng.normal(size=64), dtype)
    c = low(np.zeros(64), dtype)
    params, state, _ = train(gradtx.kahan_summation(gradtx.sgd(2.0**-10)), jnp.asarray(w), jnp.asarray(gradients))
    for g in gradients:
        y = -(np.float32(2.0**-10) * g) + c.astype(np.float32)
        new = low(w.astype(np.float32) + y, dtype)
        c = low(y - (new.astype(np.float32) - w.astype(np.float32)), dtype)
        w = new
    assert np.asarray(params).tobytes() == w.tobytes()
    assert np.asarray(gradtx.find(state, "compensation")).tobytes() == c.tobytes()


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_master_weights_are_float32_training_to_the_bit(dtype):
    gradients = jnp.asarray(np.random.default_rng(3).normal(size=(200, 64)).astype(np.float32))
    start = jnp.asarray(np.random.default_rng(4).normal(size=64)).astype(dtype)
    tx = gradtx.adamw(1e-3)
    params, state, _ = train(gradtx.master_weights(tx), start, gradients)
    exact, _, _ = train(tx, start.astype(jnp.float32), gradients)
    assert gradtx.tree_equal(gradtx.find(state, "master"), exact)
    assert gradtx.tree_equal(params, exact.astype(dtype))


def test_the_inner_optimizer_of_master_weights_sees_float32():
    seen = {}

    @gradtx.transform
    def looking(step_size: gradtx.Finite) -> gradtx.Rule:
        def init(params):
            seen["init"] = params.dtype
            return {}

        def update(updates, state, params, *, value_fn):
            seen["params"], seen["updates"] = params.dtype, updates.dtype
            seen["value"] = value_fn(params).dtype
            return updates, state

        return gradtx.Rule(init, update)

    tx = gradtx.master_weights(looking(1.0))
    params = jnp.ones(3, BF16)
    updates, _ = tx.update(params, tx.init(params), params, value_fn=lambda p: p.sum())
    assert seen == {"init": jnp.float32, "params": jnp.float32, "updates": jnp.float32, "value": BF16}
    assert updates.dtype == jnp.float32


def test_params_changed_outside_count():
    tx = gradtx.master_weights(gradtx.sgd(1e-3))
    params = jnp.ones(2, BF16)
    _, state = tx.update(params, tx.init(params), params)
    loaded = jnp.array([1.0, 5.0], BF16)
    _, state = tx.update(loaded, state, loaded)
    np.testing.assert_allclose(gradtx.find(state, "master"), [1 - 2e-3, 5 - 5e-3], rtol=1e-6)


def test_params_that_overflow_come_back_to_their_masters():
    tx, params = gradtx.master_weights(gradtx.sgd(1.0)), jnp.array([65504.0], jnp.float16)
    state, seen = tx.init(params), []
    for gradient in (-100.0, -100.0, 400.0, 400.0):
        updates, state = tx.update(jnp.array([gradient], jnp.float32), state, params)
        params = gradtx.apply_updates(params, updates)
        seen.append((float(params[0]), float(gradtx.find(state, "master")[0])))
    assert seen == [(65504, 65604), (65504, 65704), (65312, 65304), (64896, 64904)]


@remedies
def test_optax_and_flax_apply_the_same(remedy):
    tx = remedy(gradtx.adam(1e-3))
    params = {"w": jnp.linspace(0.5, 2, 50).astype(BF16)}
    gradients = jax.tree.map(lambda w: jnp.stack([w] * 20), params)
    ours, _, _ = train(tx, params, gradients)
    with jax.numpy_dtype_promotion("standard"):
        theirs, _, _ = train(tx, params, gradients, optax.apply_updates)
        state = flax.training.train_state.TrainState.create(apply_fn=None, params=params, tx=tx)
        for _ in range(20):
            state = state.apply_gradients(grads=params)
    assert gradtx.tree_equal(ours, theirs)
    assert gradtx.tree_equal(ours, state.params)


@remedies
def test_float32_and_float64_parameters_stay_on_their_path(remedy, x64):
    for dtype, bound in ((jnp.float32, 1e-6), (jnp.float64, 1e-14)):
        start = jnp.linspace(-1, 1, 30, dtype=dtype)
        gradients = jnp.asarray(np.random.default_rng(0).normal(size=(100, 30)), dtype)
        ours, _, _ = train(remedy(gradtx.adam(1e-2)), start, gradients)
        plain, _, _ = train(gradtx.adam(1e-2), start, gradients)
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, plain, rtol=bound, atol=bound)


@remedies
def test_their_updates_are_float32_and_leave_nothing_to_round(remedy):
    tx = remedy(gradtx.sgd(0.01))
    params = {"w": jnp.linspace(0.5, 2, 50).astype(BF16), "b": jnp.ones((), jnp.float32)}
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(params, state, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {np.dtype(np.float32)}
        params = gradtx.apply_updates(params, updates)
        if remedy is gradtx.master_weights:
            image = gradtx.find(state, "master")["w"].astype(BF16)
            assert gradtx.tree_equal(params["w"], image)


def test_every_replica_rounds_alike():
    """Draws depend on key, step and place, not on how an array lies on the devices."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = gradtx.stochastic_rounding(gradtx.adam(1e-3))
    params = {"w": jnp.linspace(0.5, 2, 64 * 3).reshape(64, 3).astype(BF16)}
    results = []
    for spec in (PartitionSpec(), PartitionSpec("devices")):
        here = jax.device_put(params, NamedSharding(mesh, spec))
        state = jax.jit(tx.init)(here)
        for _ in range(3):
            updates, state = jax.jit(tx.update)(here, state, here)
            here = jax.jit(gradtx.apply_updates)(here, updates)
        shards = [np.asarray(shard.data) for shard in here["w"].addressable_shards]
        if spec == PartitionSpec():
            assert all(shard.tobytes() == shards[0].tobytes() for shard in shards)
        results.append(np.asarray(here["w"]))
    assert results[0].tobytes() == results[1].tobytes()


def test_the_key_is_the_seed_of_the_draws():
    params = jnp.full(1000, 1.001).astype(BF16)
    gradient = jnp.full(1000, 1e-4)

    def moved(key):
        tx = gradtx.stochastic_rounding(gradtx.sgd(1.0), key)
        return tx.update(gradient, tx.init(params), params)[0]

    assert gradtx.tree_equal(moved(3), moved(3))
    assert not gradtx.tree_equal(moved(3), moved(4))
    two = {"a": params, "b": params}
    tx = gradtx.stochastic_rounding(gradtx.sgd(1.0))
    updates, state = tx.update({"a": gradient, "b": gradient}, tx.init(two), two)
    assert not gradtx.tree_equal(updates["a"], updates["b"])
    assert not gradtx.tree_equal(tx.update({"a": gradient, "b": gradient}, state, two)[0], updates)


def test_bytes_per_parameter_are_those_stated():
    params = jnp.zeros(1000, BF16)
    adam = sum(leaf.nbytes for leaf in jax.tree.leaves(gradtx.adam(1e-3).init(params)))
    for remedy, expected in zip(REMEDIES.values(), (0, 2, 4), strict=True):
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(remedy(gradtx.adam(1e-3)).init(params)))
        assert (held - adam) // 1000 == expected


@remedies
def test_orders_that_make_no_sense_are_refused_by_name(remedy):
    name = {v: k for k, v in REMEDIES.items()}[remedy]
    low_tx = remedy(gradtx.adam(1e-3))
    behind = rf"gradtx.chain: scale\(step_size=0.5\) cannot stand behind {name}\(.*Put it last, or the others inside it"
    with pytest.raises(TypeError, match=behind):
        low_tx >> gradtx.scale(0.5)
    with pytest.raises(TypeError, match=r"gradtx.join: .* cannot stand behind"):
        low_tx + gradtx.scale_by_rms()
    for other in REMEDIES.values():
        with pytest.raises(TypeError, match=r"the updates of .* decide the bits of the params .* Keep one of the two"):
            other(low_tx)
    with pytest.raises(TypeError, match=r"gradtx.conditionally: the updates of"):
        gradtx.conditionally(low_tx, lambda count: count < 3)
    assert (gradtx.clip(1.0) >> low_tx).final
    with pytest.raises(ValueError, match=rf"gradtx.{name}.update: params are missing"):
        low_tx.update(jnp.ones(2), low_tx.init(jnp.ones(2)))


# Digits ---------------------------------------------------------------------------------------------------------------


def digits_accuracies(dtype, tx):
    """Test accuracy of a network of 64, 32 and 10 units after 12 epochs, for 5 seeds."""
    data = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.data / 8 - 1).astype(np.float32)[order], data.target[order]

    def init(key):
        first, second = jax.random.split(key)
        params = {"w": jax.random.normal(first, (64, 32)) / 6, "v": jax.random.normal(second, (32, 10)) / 6}
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def predict(params, x):
        return (jax.nn.relu(x.astype(dtype) @ params["w"]) @ params["v"]).astype(jnp.float32)

    def loss(params, batch):
        logs = jax.nn.log_softmax(predict(params, batch["x"]))
        return -jnp.take_along_axis(logs, batch["y"][:, None], 1).mean()

    def evaluate(params):
        return {"accuracy": (predict(params, images[1437:]).argmax(-1) == labels[1437:]).astype(jnp.float32).mean()}

    train = {"x": images[:1437], "y": labels[:1437]}
    result = gradtx.sweep(loss, init, [tx], train, batch_size=64, epochs=12, seeds=5, evaluate=evaluate, progress=False)
    return np.asarray(result.table["accuracy"])


def test_digits_in_bfloat16_reach_float32s_accuracy_within_the_seeds_spread():
    exact = digits_accuracies(jnp.float32, gradtx.adam(2e-3))
    low = digits_accuracies(BF16, gradtx.stochastic_rounding(gradtx.adam(2e-3)))
    assert exact.mean() > 0.94
    assert exact.min() <= low.mean() <= exact.max()
    assert abs(low.mean() - exact.mean()) < 0.01


# float16 gradients ----------------------------------------------------------------------------------------------------

NAMED = sorted(
    name
    for name, factory in gradtx.registry.items()
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
) + ["schedule_free_adamw"]


@pytest.mark.parametrize("name", NAMED)
def test_float16_gradients_give_the_float64_step_rounded_once(name, x64):
    """0, 1e-5, 300 and 1e4 (whose squares underflow and overflow float16): nothing is lost between the stages."""
    factory = gradtx.registry[name]
    tx = factory() if name == "adadelta" else factory(0.01)
    gradient = jnp.array([0.0, 1e-5, 300.0, 1e4, -1e4], F16)
    params = jnp.array([0.5, -1.0, 2.0, 1.0, 0.25], F16)
    state, exact_state = tx.init(params), tx.init(params.astype(jnp.float64))
    for step in range(5):
        updates, state = jax.jit(tx.update)(gradient, state, params)
        exact, exact_state = tx.update(gradient.astype(jnp.float64), exact_state, params.astype(jnp.float64))
        assert updates.dtype == F16
        np.testing.assert_array_equal(np.asarray(updates), np.asarray(exact).astype(np.float16), err_msg=f"step {step}")
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))


# Loss scaling ---------------------------------------------------------------------------------------------------------


def test_dynamic_scaling_is_its_transcription():
    """Growth after `period` good steps, backing off and no step where a gradient overflows, for 60 steps."""
    rng = np.random.default_rng(0)
    tx = gradtx.loss_scaling(gradtx.sgd(1.0), 2.0**10, period=4, factor=2.0, min_scale=256.0)
    params, state = jnp.float32(0), tx.init(jnp.float32(0))
    w, s, good, skipped = np.float64(0), 2.0**10, 0, 0
    for _ in range(60):
        gradient = rng.normal()
        overflows = rng.uniform() < 0.3
        scaled = jnp.float32(np.inf if overflows else gradient * s)
        updates, state = jax.jit(tx.update)(scaled, state, params)
        params = gradtx.apply_updates(params, updates)
        if overflows:
            s, good, skipped = max(s / 2, 256.0), 0, skipped + 1
        else:
            w, good = w - gradient, good + 1
            if good == 4:
                s, good = s * 2, 0
        assert float(gradtx.find(state, "loss_scale")) == s
        assert int(gradtx.find(state, "skipped")) == skipped
        np.testing.assert_allclose(params, w, rtol=1e-5, atol=1e-5)


def small(params, batch):
    """A loss whose float16 gradients are below what float16 holds, unless it is scaled."""
    return jnp.mean((params * batch["x"]).astype(jnp.float32) * 1e-5) * 1e-3


@pytest.mark.parametrize("dynamic", [True, False])
def test_minimize_scales_the_loss(dynamic):
    data = {"x": jnp.ones(8, F16)}
    plain = gradtx.minimize(small, jnp.ones((), F16), gradtx.sgd(1e6), data, steps=10, progress=False)
    assert plain.params == 1
    tx = gradtx.loss_scaling(gradtx.master_weights(gradtx.sgd(1e6)), dynamic=dynamic)
    result = gradtx.minimize(small, jnp.ones((), F16), tx, data, steps=10, progress=False)
    np.testing.assert_allclose(gradtx.find(result.state["tx"], "master"), 1 - 10 * 1e-2, rtol=1e-3)
    np.testing.assert_allclose(result.history["loss"][0], 1e-8, rtol=1e-3)  # what is recorded is the loss itself


def test_an_overflow_is_skipped_and_the_scale_falls_until_it_fits():
    def loss(params, batch):
        return jnp.sum((params * batch["x"]).astype(jnp.float32))

    tx = gradtx.loss_scaling(gradtx.sgd(1e-3), 2.0**15)
    data = {"x": jnp.full(8, 100.0, F16)}
    result = gradtx.minimize(loss, jnp.ones((), F16), tx, data, batch_size=1, steps=20, progress=False)
    state = result.state["tx"]["loss_scaling"]
    assert 2.0**8 <= state["loss_scale"] <= 2.0**9  # 65504 / 100 = 655
    assert state["skipped"] == 6
    np.testing.assert_allclose(result.params, 1 - 14 * 0.1, atol=5e-3)


def test_a_sweep_scales_the_loss_too():
    txs = jax.vmap(lambda rate: gradtx.loss_scaling(gradtx.sgd(rate), dynamic=False))(jnp.array([1e5, 1e6]))
    result = gradtx.sweep(small, lambda key: jnp.ones(()), txs, {"x": jnp.ones(8)}, steps=10, progress=False)
    np.testing.assert_allclose(result.history["loss"][:, -1], 1e-8 * (1 - 9e-2 * np.array([0.1, 1])), rtol=1e-3)


def test_a_loss_scale_is_a_number_of_float32():
    with pytest.raises(ValueError, match=r"gradtx.loss_scaling: scale is 1e\+39; allowed: a number that float32 can"):
        gradtx.loss_scaling(gradtx.sgd(0.1), 1e39)


def test_loss_scaling_must_see_the_gradients_first():
    scaled = gradtx.loss_scaling(gradtx.adam(1e-3))
    with pytest.raises(TypeError, match=r"gradtx.chain: loss_scaling\(.*cannot stand behind clip.*still scaled"):
        gradtx.clip_by_global_norm(1.0) >> scaled
    for wrapper in (
        lambda tx: gradtx.accumulate(tx, 4),
        lambda tx: gradtx.skip_nonfinite(tx, 3),
        gradtx.loss_scaling,
        lambda tx: gradtx.conditionally(tx, lambda count: count > 0),
    ):
        with pytest.raises(TypeError, match="must be given the gradients as they come"):
            wrapper(scaled)
    assert gradtx.master_weights(scaled).first
    for arguments in ({"scale": 0.0}, {"factor": 1.0}, {"min_scale": -1.0}, {"scale": float("inf")}):
        with pytest.raises(ValueError, match=r"gradtx.loss_scaling: .* allowed: a number greater than"):
            gradtx.loss_scaling(gradtx.adam(1e-3), **arguments)
    with pytest.raises(ValueError, match=r"gradtx.loss_scaling: period is 0; not allowed"):
        gradtx.loss_scaling(gradtx.adam(1e-3), period=0)


def test_the_second_gradient_of_sam_is_scaled_back_too():
    def loss(params):
        return jnp.sum(params**2)

    result = gradtx.minimize(
        loss, jnp.ones(2), gradtx.loss_scaling(gradtx.sam(gradtx.sgd(0.1)), 1024.0), steps=20, progress=False
    )
    plain = gradtx.minimize(loss, jnp.ones(2), gradtx.sam(gradtx.sgd(0.1)), steps=20, progress=False)
    np.testing.assert_allclose(result.params, plain.params, rtol=1e-6)
