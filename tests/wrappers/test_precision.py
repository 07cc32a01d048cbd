"""Low-precision parameters that move, and gradients that float16 cannot hold."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradtx
from tests.wrappers.runs import HEARD, distance, hearing, run, takes_scaled, train

REMEDIES = {
    "stochastic_rounding": gradtx.stochastic_rounding,
    "kahan_summation": gradtx.kahan_summation,
    "master_weights": gradtx.master_weights,
}
remedies = pytest.mark.parametrize("remedy", REMEDIES.values(), ids=REMEDIES)
BF16, F16 = jnp.bfloat16, jnp.float16


def normal(*shape, seed=3):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_200_small_steps_arrive():
    """200 steps of 1e-4 from 1: 0.98 within 0.1%. Without a remedy not one of them is made."""
    start, ones = jnp.ones(2000, BF16), jnp.ones((200, 2000))
    assert (run(gradtx.sgd(1e-4), start, ones)[0] == 1).all()
    params = run(gradtx.stochastic_rounding(gradtx.sgd(1e-4)), start, ones)[0][-1]  # transcriptions of others below
    assert params.dtype == BF16
    assert abs(np.asarray(params, np.float64).mean() / 0.98 - 1) < 1e-3


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_kahan_summation_is_its_transcription_to_the_bit(dtype):
    """In NumPy, sums in float32, params and compensation in the low dtype; products with a power of 2 are exact."""
    low = lambda x: np.asarray(x, np.float32).astype(dtype)  # noqa: E731
    gradients, w, c = normal(100, 64), low(normal(64, seed=4)), low(np.zeros(64))
    params, states, _ = run(gradtx.kahan_summation(gradtx.sgd(2.0**-10)), jnp.asarray(w), gradients)
    for g in np.asarray(gradients):
        y = -(np.float32(2.0**-10) * g) + c.astype(np.float32)
        new = low(w.astype(np.float32) + y)
        c = low(y - (new.astype(np.float32) - w.astype(np.float32)))
        w = new
    assert np.asarray(params[-1]).tobytes() == w.tobytes()
    assert np.asarray(gradtx.find(states, "compensation")[-1]).tobytes() == c.tobytes()


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_master_weights_are_float32_training(dtype):
    gradients, start, tx = normal(50, 64), normal(64, seed=4).astype(dtype), gradtx.sgd(1e-3, 0.9)
    params, states, _ = run(gradtx.master_weights(tx), start, gradients)
    exact = run(tx, start.astype(jnp.float32), gradients)[0]
    master = gradtx.find(states, "master")
    np.testing.assert_allclose(master, exact, rtol=1e-6, atol=1e-6)
    assert gradtx.tree_equal(params, master.astype(dtype))


def test_the_inner_optimizer_of_master_weights_sees_float32():
    params = {"w": jnp.full(3, 1.5, BF16), "own": jnp.ones(2)}
    tx = gradtx.master_weights(hearing() >> gradtx.sgd(0.5, 0.9))
    seen = []
    extra = {"value": 2.0, "grad_fn": lambda p: seen.append(p["w"].dtype) or p}
    state = tx.init(params)
    updates, _ = tx.update(params, state, params, value_fn=distance, **extra)
    heard = HEARD[-1]
    assert [heard[name]["w"].dtype for name in ("params", "updates")] == [jnp.float32] * 2
    assert (seen, heard["measured"], heard["value"]) == ([BF16], distance(params), 2.0)
    assert gradtx.tree_equal(updates, {"w": jnp.full(3, -0.75), "own": jnp.full(2, -0.5)})
    assert gradtx.find(state, "master")["own"] is None
    inner = gradtx.master_weights(gradtx.lookahead(gradtx.add_decayed_weights(0.1, toward_initial=True))).init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(inner) if leaf.ndim} == {jnp.dtype(jnp.float32)}


def test_masters_of_params_that_were_changed_outside_or_overflow():
    tx, params = gradtx.master_weights(gradtx.sgd(1e-3)), jnp.ones(2, BF16)
    _, state = tx.update(params, tx.init(params), params)
    loaded = jnp.array([1.0, 5.0], BF16)
    _, state = tx.update(loaded, state, loaded)
    np.testing.assert_allclose(gradtx.find(state, "master"), [1 - 2e-3, 5 - 5e-3], rtol=1e-6)
    tx, params = gradtx.master_weights(gradtx.sgd(1.0)), jnp.array([65504.0], F16)
    state, seen = tx.init(params), []
    for gradient in (-100.0, -100.0, 400.0, 400.0):
        updates, state = tx.update(jnp.array([gradient]), state, params)
        params = gradtx.apply_updates(params, updates)
        seen.append((float(params[0]), float(gradtx.find(state, "master")[0])))
    assert seen == [(65504, 65604), (65504, 65704), (65312, 65304), (64896, 64904)]


@remedies
def test_their_updates_are_float32_and_leave_nothing_to_round(remedy):
    """So optax and flax, which uses it, apply the same."""
    tx, params = remedy(gradtx.sgd(0.01)), {"w": jnp.linspace(0.5, 2, 50).astype(BF16), "b": jnp.ones(())}
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {np.dtype(np.float32)}
        exact = params["w"].astype(jnp.float32) + updates["w"]
        assert gradtx.tree_equal(exact.astype(BF16).astype(jnp.float32), exact)
        with jax.numpy_dtype_promotion("standard"):
            theirs = optax.apply_updates(params, updates)
        params = gradtx.apply_updates(params, updates)
        assert gradtx.tree_equal(params, theirs)


@remedies
def test_float32_and_float64_parameters_stay_on_their_path(remedy, x64):
    for dtype, bound in ((jnp.float32, 1e-6), (jnp.float64, 1e-14)):
        start, gradients = jnp.linspace(-1, 1, 30, dtype=dtype), list(normal(5, 30).astype(dtype))
        ours, _ = train(remedy(gradtx.sgd(1e-2, 0.9)), start, gradients)
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, train(gradtx.sgd(1e-2, 0.9), start, gradients)[0], rtol=bound, atol=bound)


@pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")
def test_every_replica_rounds_alike():
    """Draws depend on key, step and place, not on how an array lies on the devices."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    tx, params = gradtx.stochastic_rounding(gradtx.sgd(1e-3)), jnp.linspace(0.5, 2, 64 * 3).reshape(64, 3).astype(BF16)
    results, step = [], jax.jit(lambda p, s: tx.update(p, s, p))
    for spec in (PartitionSpec(), PartitionSpec("devices")):
        here = jax.device_put(params, NamedSharding(mesh, spec))
        updates, _ = step(here, tx.init(here))
        shards = [np.asarray(shard.data).tobytes() for shard in updates.addressable_shards]
        assert spec or len(set(shards)) == 1
        results.append(np.asarray(updates).tobytes())
    assert results[0] == results[1]


def test_the_key_is_the_seed_of_the_draws():
    params, gradient = {"a": jnp.full(1000, 1.001).astype(BF16)}, {"a": jnp.full(1000, 1e-4)}
    params["b"], gradient["b"] = params["a"], gradient["a"]

    def moved(key):
        tx = gradtx.stochastic_rounding(gradtx.sgd(1.0), key)
        first, state = tx.update(gradient, tx.init(params), params)
        return [first["a"], first["b"], tx.update(gradient, state, params)[0]["a"]]

    assert gradtx.tree_equal(moved(3), moved(3))
    drawn = [np.asarray(each).tobytes() for each in [*moved(3), *moved(4)]]
    assert len(set(drawn)) == 6  # leaves, steps and keys


def test_bytes_per_parameter_are_those_stated():
    params, held = jnp.zeros(1000, BF16), lambda tx: sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(params)))
    for remedy, expected in zip(REMEDIES.values(), (0, 2, 4), strict=True):
        assert (held(remedy(gradtx.adam(1e-3))) - held(gradtx.adam(1e-3))) // 1000 == expected
        assert "last" in remedy(gradtx.sgd(0.1)).facts
        assert "last" in (gradtx.clip(1.0) >> remedy(gradtx.sgd(0.1))).facts


# Loss scaling ---------------------------------------------------------------------------------------------------------


def test_dynamic_scaling_is_its_transcription():
    """Growth after `period` good steps, backing off and no step where a gradient overflows."""
    rng = np.random.default_rng(0)
    tx = gradtx.loss_scaling(gradtx.sgd(1.0), 2.0**10, period=3, factor=4.0, min_scale=256.0)
    params, state = jnp.float32(0), tx.init(jnp.float32(0))
    w, s, good, skipped, scales = 0.0, 2.0**10, 0, 0, set()
    for _ in range(60):
        gradient, overflows = rng.normal(), rng.uniform() < 0.3
        updates, state = tx.update(jnp.float32(np.inf if overflows else gradient * s), state, params)
        params = gradtx.apply_updates(params, updates)
        if overflows:
            s, good, skipped = max(s / 4, 256.0), 0, skipped + 1
        else:
            w, good = w - gradient, good + 1
            if good == 3:
                s, good = s * 4, 0
        names = ("loss_scale", "good_steps", "skipped")
        assert [float(gradtx.find(state, name)) for name in names] == [s, good, skipped]
        np.testing.assert_allclose(params, w, rtol=1e-5, atol=1e-5)
        scales.add(s)
    assert len(scales) > 3


def test_the_scale_stays_within_float32_and_is_not_raised_by_its_minimum():
    for scale, gradient, expected in ((2.0**127, 1.0, 2.0**127), (2.0, np.inf, 2.0), (16.0, np.inf, 8.0)):
        tx = gradtx.loss_scaling(gradtx.sgd(1.0), scale, period=1, min_scale=8.0)
        _, state = tx.update(jnp.float32(gradient), tx.init(jnp.float32(0)))
        assert float(gradtx.find(state, "loss_scale")) == expected


@pytest.mark.parametrize("dynamic", [True, False])
def test_every_gradient_that_the_inner_is_given_is_scaled_back(dynamic):
    tx, params = gradtx.loss_scaling(hearing() >> gradtx.sgd(1.0), 8.0, dynamic=dynamic), jnp.ones(2)
    extra = {"value": 3.0, "value_fn": distance, "grad": 16 * params, "grad_fn": lambda w: 24 * w}
    updates, state = tx.update(8 * params, tx.init(params), params, **extra)
    heard = HEARD[-1]
    found = [heard[name] for name in ("updates", "grad", "slopes")]
    assert gradtx.tree_equal(found, [params, 2 * params, 3 * params])
    assert (heard["value"], heard["measured"]) == (3.0, 2.0)
    np.testing.assert_array_equal(updates, -params)
    assert state["loss_scaling"].keys() == {"loss_scale", "inner", *(["good_steps", "skipped"] if dynamic else [])}
    assert ("first" in tx.facts, tx.facts.reads) == (True, "tree")
    assert "first" in gradtx.master_weights(takes_scaled()).facts
    updates, _ = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(params), params, **extra)
    np.testing.assert_array_equal(updates, [0, 0] if dynamic else [np.nan, -1 / 8])
