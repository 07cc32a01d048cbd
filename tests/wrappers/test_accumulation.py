"""accumulate: k micro-batches are one batch, and the other micro-steps cost next to nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradtx
from gradtx import tree
from gradtx.core.annotations import Kind

NAMED = sorted(
    name
    for name, factory in gradtx.registry.items()
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
)
RANDOM = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RANDOM.normal(size=(4, 3)).astype(np.float32)), "b": jnp.zeros(3)}


def random_gradients(steps, seed=1):
    rng = np.random.default_rng(seed)
    like = lambda leaf: jnp.asarray(rng.normal(size=(steps, *leaf.shape)).astype(np.float32))  # noqa: E731
    return jax.tree.map(like, PARAMS)


def run(tx, gradients, params=PARAMS):
    """All updates, the last params and state."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (gradtx.apply_updates(params, updates), state), updates

    (params, state), updates = jax.jit(functools.partial(jax.lax.scan, step))((params, tx.init(params)), gradients)
    return params, state, updates


def method(name):
    return gradtx.adadelta() if name == "adadelta" else gradtx.registry[name](0.01)


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("name", NAMED)
def test_k_micro_batches_are_one_batch(name, mean):
    """To float32's rounding of a mean of four (for methods that step by a sign: wherever the sign is certain)."""
    micro = random_gradients(20)
    whole = jax.tree.map(lambda g: g.reshape(5, 4, *g.shape[1:]), micro)
    whole = jax.tree.map(lambda g: g.mean(1) if mean else g.sum(1), whole)
    params, _, updates = run(gradtx.accumulate(method(name), 4, use_grad_mean=mean), micro)
    expected, _, _ = run(method(name), whole)
    for leaf, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2e-5, atol=2e-6)
    waiting = np.arange(20) % 4 != 3
    assert all((np.asarray(u)[waiting] == 0).all() for u in jax.tree.leaves(updates))


def test_it_is_optaxs_multi_steps():
    gradients = random_gradients(60)
    ours, _, _ = run(gradtx.accumulate(gradtx.adam(0.01), 3), gradients)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.MultiSteps(optax.adam(0.01), 3)
        state, params, update = theirs.init(PARAMS), PARAMS, jax.jit(theirs.update)
        for step in range(60):
            updates, state = update(jax.tree.map(lambda g, step=step: g[step], gradients), state, params)
            params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(ours["w"], params["w"], rtol=1e-4, atol=1e-5)


def test_behind_an_optimizer_it_is_optaxs_apply_every():
    gradients = random_gradients(40)
    tx = gradtx.adam(0.01) >> gradtx.accumulate(gradtx.identity(), 4, use_grad_mean=False)
    _, _, updates = run(tx, gradients)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.chain(optax.adam(0.01), optax.apply_every(4))
        state, update = theirs.init(PARAMS), jax.jit(theirs.update)
        for step in range(40):
            expected, state = update(jax.tree.map(lambda g, step=step: g[step], gradients), state, PARAMS)
            np.testing.assert_allclose(updates["w"][step], expected["w"], rtol=2e-4, atol=2e-6)


def test_every_may_be_a_function_of_the_updates_made():
    tx = gradtx.accumulate(gradtx.sgd(1.0), lambda made: jnp.where(made < 2, 1, 3))
    ones = jax.tree.map(lambda leaf: jnp.ones((8, *leaf.shape)), PARAMS)
    _, state, updates = run(tx, ones)
    assert list(np.asarray(updates["b"])[:, 0]) == [-1, -1, 0, 0, -1, 0, 0, -1]
    assert int(gradtx.find(state, "update_count")) == 4
    assert int(gradtx.step_count(state)) == 4


@pytest.mark.parametrize("less", [0, -1])
def test_a_function_that_gives_less_than_1_is_taken_for_1(less):
    runs = [gradtx.accumulate(gradtx.adam(0.1), every) for every in (lambda made: jnp.int32(less), 1)]
    for gradient in (1.0, -3.0):
        few, one = (tx.update(gradient, tx.init(0.0), 0.0)[0] for tx in runs)
        assert gradtx.tree_equal(few, one)


def test_a_micro_step_with_nan_is_left_out_and_counted():
    gradients = random_gradients(9)
    bad = jax.tree.map(lambda g: g.at[4].set(jnp.nan).at[0].set(jnp.inf), gradients)
    good = jax.tree.map(lambda g: jnp.delete(g, jnp.array([0, 4]), axis=0, assume_unique_indices=True), gradients)
    params, state, updates = run(gradtx.accumulate(gradtx.adam(0.1), 3, skip_nonfinite=True), bad)
    expected, _, _ = run(gradtx.accumulate(gradtx.adam(0.1), 3), good)
    assert gradtx.tree_equal(params, expected)
    assert int(gradtx.find(state, "skipped")) == 2
    assert int(gradtx.find(state, "micro_step")) == 1
    moved = [bool((np.asarray(u) != 0).any()) for u in updates["w"]]
    assert moved == [False, False, False, True, False, False, False, True, False]  # after 1, 2, 3 and after 5, 6, 7


def test_without_that_argument_a_nan_is_not_hidden():
    gradients = jax.tree.map(lambda g: g.at[1].set(jnp.nan), random_gradients(4))
    params, _, _ = run(gradtx.accumulate(gradtx.sgd(0.1), 4), gradients)
    assert np.isnan(params["w"]).all()


def test_a_poisoned_sum_is_gone_after_its_step():
    gradients = jax.tree.map(lambda g: g.at[1].set(jnp.nan), random_gradients(8))
    params, _, _ = run(gradtx.skip_nonfinite(gradtx.accumulate(gradtx.adam(0.1), 4), 3), gradients)
    assert np.isfinite(params["w"]).all()
    params, _, _ = run(gradtx.accumulate(gradtx.skip_nonfinite(gradtx.adam(0.1), 3), 4), gradients)
    second = jax.tree.map(lambda g: g[4:].mean(0, keepdims=True), gradients)
    np.testing.assert_allclose(params["w"], run(gradtx.adam(0.1), second)[0]["w"], rtol=1e-5, atol=1e-6)


def test_low_precision_gradients_are_summed_in_float32():
    tx = gradtx.accumulate(gradtx.sgd(1.0), 300)
    params = jnp.zeros(4, jnp.float16)
    state = tx.init(params)
    assert gradtx.find(state, "accumulated").dtype == jnp.float32
    gradients = jnp.full((300, 4), 1000.0, jnp.float16)  # their sum is 300 000: beyond float16
    (_, _), updates = jax.lax.scan(
        lambda c, g: (tx.update(g, c[0])[::-1], tx.update(g, c[0])[0]), (state, params), gradients
    )
    assert updates.dtype == jnp.float16
    np.testing.assert_array_equal(updates[-1], -1000)
    low = gradtx.accumulate(gradtx.sgd(1.0), 300, state_dtype=jnp.bfloat16)
    assert gradtx.find(low.init(params), "accumulated").dtype == jnp.bfloat16


@gradtx.transform
def matrix_heavy(step_size: gradtx.Finite, *, products: int = 8) -> gradtx.Rule:
    """Multiplies a matrix with itself, as orthogonalizing methods do."""

    def update(updates, state):
        def heavy(u, step_size):
            for _ in range(products):
                u = step_size * (u @ u.T @ u)
            return u

        return tree.map(heavy, updates, step_size=step_size), state

    return gradtx.Rule(update=update, reads="leaf")


def flops(micro_step):
    """Of the compiled program in which the counter is a constant."""
    tx = gradtx.accumulate(matrix_heavy(0.1), 4)
    params = jnp.zeros((128, 128))
    state = tx.init(params)
    state["accumulate"]["micro_step"] = np.int32(micro_step)

    def step(gradient, accumulated, inner):
        entry = state["accumulate"] | {"accumulated": accumulated, "inner": inner}
        return tx.update(gradient, {"accumulate": entry})

    entry = state["accumulate"]
    compiled = jax.jit(step).lower(params, entry["accumulated"], entry["inner"]).compile()
    return compiled.cost_analysis().get("flops", 0.0)


def test_a_micro_step_that_is_not_due_costs_no_inner_work():
    due, waiting = flops(3), flops(0)
    assert due > 1e7
    assert waiting <= 0.05 * due


def test_the_inner_update_is_compiled_once():
    tx = gradtx.accumulate(gradtx.adam(0.1), 4)
    text = jax.jit(tx.update).lower(PARAMS, tx.init(PARAMS), PARAMS).as_text()
    alone = jax.jit(gradtx.adam(0.1).update).lower(PARAMS, gradtx.adam(0.1).init(PARAMS), PARAMS).as_text()
    assert text.count("stablehlo.sqrt") == alone.count("stablehlo.sqrt") > 0
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for _ in range(9):
        _, state = update(PARAMS, state, PARAMS)
    assert update._cache_size() == 1


def test_donated_and_sharded():
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = gradtx.accumulate(gradtx.adam(0.1), 2)
    gradients = random_gradients(6)
    expected, _, _ = run(tx, gradients)

    def place(leaf):
        spec = PartitionSpec("devices") if leaf.ndim > 1 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    params = jax.tree.map(lambda leaf: place(jnp.copy(leaf)), PARAMS)  # else a shard may be the array itself
    state = jax.jit(tx.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return gradtx.apply_updates(params, updates), state

    for index in range(6):
        gradient = jax.tree.map(lambda g, index=index: place(g[index]), gradients)
        params, state = step(params, state, gradient)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5, atol=1e-6)
    assert gradtx.find(state, "accumulated")["w"].sharding.is_equivalent_to(params["w"].sharding, 2)


def test_in_minimize_k_small_batches_are_one():
    x = RANDOM.normal(size=(32, 3)).astype(np.float32)
    loss = lambda params, batch: jnp.mean((batch["x"] @ params - 1.0) ** 2)  # noqa: E731
    arguments = {"progress": False, "steps": 40}
    ours = gradtx.minimize(
        loss, jnp.zeros(3), gradtx.accumulate(gradtx.adam(0.05), 4), {"x": x}, batch_size=8, **arguments
    )
    whole = gradtx.minimize(loss, jnp.zeros(3), gradtx.adam(0.05), {"x": x}, steps=10, progress=False)
    np.testing.assert_allclose(ours.params, whole.params, rtol=1e-4, atol=1e-6)


def test_what_is_wrong_is_refused_by_name():
    with pytest.raises(ValueError, match=r"gradtx.accumulate: every is 0; allowed: at least 1"):
        gradtx.accumulate(gradtx.adam(0.1), 0)
    with pytest.raises(ValueError, match=r"gradtx.accumulate: every is 2147483648; allowed: .* below 2\*\*31"):
        gradtx.accumulate(gradtx.adam(0.1), 2**31)
    for wrong in (2.0, "4", None, True):
        with pytest.raises(TypeError, match=r"gradtx.accumulate: every is .*; allowed: an int, or a function"):
            gradtx.accumulate(gradtx.adam(0.1), wrong)
    tx = gradtx.accumulate(gradtx.adam(0.1), gradtx.constant_schedule(4.0))
    with pytest.raises(TypeError, match=r"returned an array of shape \(\) and dtype float32; allowed: one integer"):
        tx.update(1.0, tx.init(0.0))
    with pytest.raises(TypeError, match=r"cannot stand right of \+"):
        gradtx.scale_by_momentum() + gradtx.accumulate(gradtx.scale_by_rms(), 2)
