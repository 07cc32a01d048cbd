"""A state is read, saved and restored by name, and holds hyperparameters where asked to."""

import collections
import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training import train_state

import gradtx
from gradtx import Rule

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": {"c": jnp.float32(0.5)}}
GRADS = {"w": jnp.array([0.1, -0.2, 0.3]), "b": {"c": jnp.float32(-1.0)}}

OPTIMIZERS = [
    gradtx.adam(1e-3),
    gradtx.sgd(0.1, momentum=0.9),
    gradtx.rmsprop(0.1, centered=True, momentum=0.9),
    gradtx.amsgrad(1e-3),
    gradtx.nadam(gradtx.linear_schedule(0.1, 0.0, 10), momentum_decay=4e-3),
    gradtx.tunable(gradtx.adamw(1e-3)),
    gradtx.clip(1.0) >> gradtx.tunable(gradtx.clip(2.0) >> gradtx.adam(1e-3)),
    gradtx.checked(gradtx.scale(1.0) >> gradtx.scale(2.0)),
    gradtx.identity(),
]
each = pytest.mark.parametrize("tx", OPTIMIZERS, ids=lambda tx: repr(tx)[:40])


def after(tx, n):
    state = tx.init(PARAMS)
    for _ in range(n):
        _, state = tx.update(GRADS, state, PARAMS)
    return state


def by_pickle(state, target, path):
    return pickle.loads(pickle.dumps(jax.device_get(state)))


def by_msgpack(state, target, path):
    return serialization.from_bytes(target, serialization.to_bytes(state))


def by_orbax(state, target, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", target)


saved = pytest.mark.parametrize("save", [by_pickle, by_msgpack, by_orbax])
orbax_warns = pytest.mark.filterwarnings("ignore")  # orbax's own


@orbax_warns
@saved
@each
def test_a_restored_run_is_the_uninterrupted_one(tx, save, tmp_path):
    if not tx.init(PARAMS) and save is by_orbax:
        pytest.skip("orbax saves no empty trees")
    state = after(tx, 2)
    with jax.numpy_dtype_promotion("standard"):
        restored = save(state, tx.init(PARAMS), tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    restored = jax.tree.map(jnp.asarray, restored)
    assert gradtx.tree_equal(restored, state)
    assert gradtx.tree_equal(tx.update(GRADS, restored, PARAMS), tx.update(GRADS, state, PARAMS))


def named_by_pickle(state, path):
    return pickle.loads(pickle.dumps(jax.device_get(state)))


def named_by_msgpack(state, path):
    return serialization.msgpack_restore(serialization.to_bytes(state))


def named_by_orbax(state, path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        return checkpointer.restore(path / "state")


@orbax_warns
@pytest.mark.parametrize("save", [named_by_pickle, named_by_msgpack, named_by_orbax])
def test_after_a_clip_was_added_in_front_all_names_are_where_they_were(save, tmp_path):
    before, after_change = gradtx.adam(1e-3), gradtx.clip_by_global_norm(1.0) >> gradtx.adam(1e-3)
    state = after(before, 2)
    target = after_change.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        saved_entries = save(state, tmp_path)
    assert set(saved_entries) == set(state) < set(target)
    merged = serialization.from_state_dict(
        target, serialization.to_state_dict(target) | serialization.to_state_dict(saved_entries)
    )
    merged = jax.tree.map(jnp.asarray, merged)
    assert all(gradtx.tree_equal(merged[name], state[name]) for name in state)
    updates, _ = after_change.update(GRADS, merged, PARAMS)
    uninterrupted, _ = before.update(GRADS, state, PARAMS)
    norm = gradtx.global_norm(GRADS)
    assert norm > 1
    assert jax.tree.structure(updates) == jax.tree.structure(uninterrupted)


@orbax_warns
def test_a_train_state_is_saved_and_restored(tmp_path):
    model = nn.Dense(2)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    tx = gradtx.clip(1.0) >> gradtx.tunable(gradtx.adam(1e-3))
    with jax.numpy_dtype_promotion("standard"):
        state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        target = state
        state = state.apply_gradients(grads=params)
        restored = serialization.from_bytes(target, serialization.to_bytes(state))
        assert gradtx.tree_equal(restored.opt_state, state.opt_state)
        assert restored.tx is tx
        assert copy.deepcopy(tx) == tx


# find and step_count --------------------------------------------------------------------------------------------------


def test_find():
    tx = gradtx.clip(1.0) >> gradtx.adam(1e-3)
    state = after(tx, 2)
    assert gradtx.find(state, "nu") is state["scale_by_rms"]["nu"]
    assert gradtx.find(state, "scale_by_rms") is state["scale_by_rms"]
    assert gradtx.find(state, "scale_by_rms/count") == 2
    assert gradtx.find(state, "scale_by_rms/weights/given") is state["scale_by_rms"]["weights"].given
    for name in ("count", "weights"):
        with pytest.raises(KeyError, match=f"several entries are called '{name}'"):
            gradtx.find(state, name)
    with pytest.raises(KeyError, match="no entry is called 'velocity'"):
        gradtx.find(state, "velocity")


@pytest.mark.parametrize("wrap", [gradtx.checked, gradtx.tunable], ids=["checked", "tunable"])
def test_find_inside_wrappers(wrap):
    state = after(gradtx.clip(1.0) >> wrap(gradtx.adam(1e-3)), 2)
    assert gradtx.tree_equal(
        gradtx.find(state, "nu"), gradtx.find(after(gradtx.clip(1.0) >> gradtx.adam(1e-3), 2), "nu")
    )
    assert gradtx.step_count(state) == 2


def test_find_inside_optax_and_train_states():
    theirs = optax.chain(optax.clip(1.0), gradtx.adam(1e-3))
    with jax.numpy_dtype_promotion("standard"):
        state = theirs.init(PARAMS)
        _, state = theirs.update(GRADS, state, PARAMS)
        created = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=gradtx.adam(1e-3)).apply_gradients(
            grads=GRADS
        )
    assert gradtx.find(state, "nu")["w"].shape == (3,)
    assert gradtx.step_count(state) == 1
    assert gradtx.find(created.opt_state, "nu")["w"].shape == (3,)
    foreign = gradtx.chain(optax.scale_by_adam(), gradtx.scale(1.0)).init(PARAMS)
    assert gradtx.find(foreign, "nu")["w"].shape == (3,)


NASTY = {name: jnp.ones(2) for name in ("count", "nu", "mu", "scale_by_rms", "weights", "hyperparameters", "inner")}


def test_params_may_be_called_anything():
    tx = gradtx.adam(1e-3)
    state = tx.init(NASTY)
    assert gradtx.step_count(state) == 0
    assert gradtx.find(state, "nu") is state["scale_by_rms"]["nu"]
    assert gradtx.find(state, "mu") is state["scale_by_momentum"]["mu"]
    assert gradtx.find(state, "scale_by_rms") is state["scale_by_rms"]
    _, state = tx.update(NASTY, state, NASTY)
    assert gradtx.step_count(state) == 1
    hyper = {"hyperparameters": {"learning_rate": jnp.ones(())}, "tunable": {"hyperparameters": {"b1": jnp.ones(())}}}
    tuned = gradtx.tune(gradtx.tunable(tx).init(hyper), learning_rate=0.5)
    assert float(gradtx.find(tuned, "tunable/hyperparameters")["learning_rate"]) == 0.5
    assert float(tuned["tunable"]["inner"]["scale_by_rms"]["nu"]["hyperparameters"]["learning_rate"]) == 0.0


def test_step_count():
    with pytest.raises(KeyError, match="has no counter"):
        gradtx.step_count(gradtx.identity().init(PARAMS))
    count = gradtx.step_count(after(gradtx.adam(1e-3), 3))
    assert (count, count.dtype, count.shape) == (3, jnp.int32, ())
    assert jax.jit(gradtx.step_count)(after(gradtx.adam(1e-3), 3)) == 3
    masked = optax.masked(gradtx.adam(1e-3), {"w": True, "b": False})  # in a dict in a NamedTuple's field
    with jax.numpy_dtype_promotion("standard"):
        assert gradtx.step_count(masked.init(PARAMS)) == 0
    counted = {"count": jnp.full(2, 7.0), "w": jnp.zeros(2)}  # a parameter of that name is none
    assert gradtx.step_count(gradtx.adam(1e-3).init(counted)) == 0


def test_named_tuples_are_read_by_name():
    Pair = collections.namedtuple("Pair", ["left", "right"])

    @gradtx.transform
    def keeps_a_pair() -> Rule:
        return Rule(
            lambda params: {"pair": Pair(jnp.zeros(()), jnp.ones(()))}, update=lambda updates, state: (updates, state)
        )

    assert gradtx.find(keeps_a_pair().init(PARAMS), "pair/right") == 1
    assert gradtx.find(keeps_a_pair().init(PARAMS), "left") == 0


# Hyperparameters in the state -----------------------------------------------------------------------------------------


def test_tunable_changes_no_bits():
    for tx in (gradtx.adam(1e-3), gradtx.clip(1.0) >> gradtx.nadamw(gradtx.linear_schedule(0.1, 0.0, 5))):
        tuned = gradtx.tunable(tx)
        plain_state, state = tx.init(PARAMS), tuned.init(PARAMS)
        for _ in range(3):
            expected, plain_state = tx.update(GRADS, plain_state, PARAMS)
            updates, state = tuned.update(GRADS, state, PARAMS)
            assert gradtx.tree_equal(updates, expected)
        assert gradtx.tree_equal(state["tunable"]["inner"], plain_state)


def test_tune_is_replace():
    tx = gradtx.tunable(gradtx.adam(1e-3))
    state = gradtx.tune(after(tx, 2), learning_rate=0.5, b1=0.5)
    replaced = gradtx.adam(0.5, b1=0.5)
    expected, _ = replaced.update(GRADS, state["tunable"]["inner"], PARAMS)
    assert gradtx.tree_equal(tx.update(GRADS, state, PARAMS)[0], expected)
    assert gradtx.find(state, "hyperparameters/learning_rate") == 0.5


def test_tune_leaves_the_state_it_was_given():
    state = gradtx.tunable(gradtx.sgd(0.5)).init(PARAMS)
    gradtx.tune(state, learning_rate=0.1)
    assert state["tunable"]["hyperparameters"]["learning_rate"] == 0.5


def test_tune_keeps_structure_shapes_and_dtypes():
    state = gradtx.tunable(gradtx.clip(1.0) >> gradtx.adam(1e-3)).init(PARAMS)
    for value in (1, 0.5, np.float64(0.5), np.int64(1), jnp.bfloat16(0.5), jnp.int32(1)):
        tuned = gradtx.tune(state, **{"stages[1].learning_rate": value})
        assert jax.tree.structure(tuned) == jax.tree.structure(state)
        pairs = zip(jax.tree.leaves(tuned), jax.tree.leaves(state), strict=True)
        assert all((a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type) for a, b in pairs)


def test_tune_finds_a_nested_name_as_replace_does():
    tx = gradtx.tunable(gradtx.clip(1.0) >> gradtx.adam(1e-3))
    state = gradtx.tune(tx.init(PARAMS), learning_rate=0.5, max_delta=2.0)
    values = gradtx.find(state, "tunable/hyperparameters")
    assert values["stages[1].learning_rate"] == 0.5
    assert values["stages[0].max_delta"] == 2.0
    both = gradtx.tunable(gradtx.scale(1.0) >> gradtx.scale(2.0)).init(PARAMS)
    with pytest.raises(KeyError, match="step_size"):
        gradtx.tune(both, step_size=3.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda tx: tx,
        lambda tx: gradtx.clip(10.0) >> tx,
        lambda tx: gradtx.checked(gradtx.clip(10.0) >> tx),
        lambda tx: gradtx.clip(10.0) >> tx >> gradtx.scale(1.0),
    ],
    ids=["alone", "in a chain", "in a wrapper", "in the middle"],
)
def test_tune_wherever_the_tunable_is(build):
    tx = build(gradtx.tunable(gradtx.sgd(0.5)))
    state = gradtx.tune(tx.init(PARAMS), learning_rate=0.25)
    updates, _ = tx.update(GRADS, state, PARAMS)
    assert gradtx.tree_equal(updates, gradtx.sgd(0.25).update(GRADS, gradtx.sgd(0.25).init(PARAMS))[0])


def test_tune_inside_an_optax_chain():
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.chain(optax.clip(10.0), gradtx.tunable(gradtx.sgd(0.5)))
        state = gradtx.tune(tx.init(PARAMS), learning_rate=0.25)
        updates, _ = tx.update(GRADS, state, PARAMS)
    np.testing.assert_allclose(updates["w"], -0.25 * GRADS["w"], rtol=1e-6)


def test_tune_in_a_train_state_without_recompiling():
    traces = []

    @gradtx.transform
    def spy() -> Rule:
        def update(updates, state):
            traces.append(1)
            return updates, state

        return Rule(update=update)

    @jax.jit
    def step(state, grads):
        return state.apply_gradients(grads=grads)

    tx = gradtx.clip(10.0) >> gradtx.tunable(spy() >> gradtx.sgd(0.5))
    with jax.numpy_dtype_promotion("standard"):
        state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
        name = next(n for n in gradtx.find(state.opt_state, "hyperparameters") if n.endswith("learning_rate"))
        for rate in (0.5, 0.25, 0.0):
            state = state.replace(opt_state=gradtx.tune(state.opt_state, **{name: rate}))
            before, state = state.params, step(state, GRADS)
            np.testing.assert_allclose(state.params["w"], before["w"] - rate * GRADS["w"], rtol=1e-6)
    assert len(traces) == 1


def test_tune_in_an_nnx_optimizer_without_recompiling():
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        grads = nnx.grad(lambda model: model.kernel[...].sum())(model)
        optimizer.update(model, grads)

    with jax.numpy_dtype_promotion("standard"):
        model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
        tx = gradtx.clip(10.0) >> gradtx.tunable(gradtx.sgd(0.5))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for rate in (0.5, 0.25, 0.0):
            optimizer.opt_state = gradtx.tune(optimizer.opt_state, learning_rate=rate)
            before = model.kernel[...]
            step(model, optimizer)
            np.testing.assert_allclose(model.kernel[...], before - rate, rtol=1e-6)
    assert len(traces) == 1


def test_tune_under_jit():
    tx = gradtx.tunable(gradtx.sgd(0.5))
    state = jax.jit(lambda state, rate: gradtx.tune(state, learning_rate=rate))(tx.init(PARAMS), 0.25)
    assert gradtx.find(state, "hyperparameters/learning_rate") == 0.25


def test_tunable_shares_no_buffers():
    rate = jnp.float32(0.5)
    tx = gradtx.tunable(gradtx.adam(rate))
    state = tx.init(PARAMS)
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    assert float(rate) == 0.5
    state = gradtx.tune(tx.init(PARAMS), learning_rate=rate)
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    assert float(rate) == 0.5


@pytest.mark.usefixtures("x64")
def test_tunable_in_float64():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
    tx = gradtx.tunable(gradtx.sgd(0.1))
    state = tx.init(params)
    assert state["tunable"]["hyperparameters"]["learning_rate"] == 0.1
    updates, _ = tx.update(params, state, params)
    np.testing.assert_allclose(updates["w"], -0.1 * params["w"], rtol=1e-15)
