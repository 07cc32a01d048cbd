"""A state is read, saved and restored by name, and holds hyperparameters where asked to."""

import collections
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state

import gradtx
from gradtx import Rule

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": {"c": jnp.float32(0.5)}}
GRADS = {"w": jnp.array([0.1, -0.2, 0.3]), "b": {"c": jnp.float32(-1.0)}}
ADAM, TUNABLE = gradtx.adam(1e-3), gradtx.tunable(gradtx.sgd(0.5))
RICH = gradtx.clip(1.0) >> gradtx.tunable(gradtx.scale(2.0) >> gradtx.sgd(gradtx.linear_schedule(0.1, 0.0, 9), 0.9))
standard = jax.numpy_dtype_promotion  # other libraries are not written for strict promotion


def after(tx, n):
    state = tx.init(PARAMS)
    for _ in range(n):
        _, state = tx.update(GRADS, state, PARAMS)
    return state


# Saved and restored ---------------------------------------------------------------------------------------------------


def by_pickle(state, target, path):
    return (pickle.loads(pickle.dumps(jax.device_get(state))),) * 2


def by_msgpack(state, target, path):
    data = serialization.to_bytes(state)
    return serialization.from_bytes(target, data), serialization.msgpack_restore(data)


def by_orbax(state, target, path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        with_target = checkpointer.restore(path / "state", target)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return with_target, checkpointer.restore(path / "state")


@pytest.mark.filterwarnings("ignore")  # orbax's own
@pytest.mark.parametrize("tx", [RICH, gradtx.adafactor(1e-2, 2)], ids=["rich", "factored"])
@pytest.mark.parametrize("save", [by_pickle, by_msgpack, by_orbax])
def test_a_state_is_saved_and_restored_with_and_without_a_target(save, tx, tmp_path):
    state, changed = after(tx, 1), gradtx.clip_by_global_norm(1.0) >> tx
    with standard("standard"):
        with_target, by_name = save(state, tx.init(PARAMS), tmp_path)
    assert jax.tree.structure(with_target) == jax.tree.structure(state)
    assert gradtx.tree_equal(with_target, state)
    target = changed.init(PARAMS)  # after a clip was put in front all names are where they were
    assert set(by_name) == set(state) < set(target)
    merged = serialization.from_state_dict(target, serialization.to_state_dict(target) | by_name)
    assert all(gradtx.tree_equal(merged[name], state[name]) for name in state)


def test_a_train_state_is_saved_and_restored():
    with standard("standard"):
        state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=RICH)
        moved = state.apply_gradients(grads=GRADS)
        restored = serialization.from_bytes(state, serialization.to_bytes(moved))
    assert gradtx.tree_equal(restored.opt_state, moved.opt_state)
    assert restored.tx is RICH


# find and step_count --------------------------------------------------------------------------------------------------


def test_find():
    state = after(gradtx.clip(1.0) >> ADAM, 1)
    assert gradtx.find(state, "nu") is state["scale_by_rms"]["nu"]
    assert gradtx.find(state, "scale_by_rms") is state["scale_by_rms"]
    assert gradtx.find(state, "scale_by_rms/count") == 1
    assert gradtx.find(state, "scale_by_rms/weights/given") is state["scale_by_rms"]["weights"]["given"]
    for wrap in (gradtx.checked, gradtx.tunable):  # which may be left out
        inside = jax.eval_shape((gradtx.clip(1.0) >> wrap(ADAM)).init, PARAMS)
        inner = inside[wrap.__name__]["inner"]
        assert gradtx.find(inside, "nu") is gradtx.find(inside, f"{wrap.__name__}/nu") is inner["scale_by_rms"]["nu"]
        assert gradtx.find(inside, f"{wrap.__name__}/scale_by_rms/nu") is gradtx.find(inside, "scale_by_rms/nu")
        assert gradtx.step_count(after(gradtx.clip(1.0) >> wrap(gradtx.scale(1.0)), 2)) == 2
    groups = {"partition": {"groups": {"a": {"s": {"m": 1}}, "b": {"s": {"m": 2}}}}}
    assert [gradtx.find(groups, f"{name}/s/m") for name in "ab"] == [gradtx.find(groups, f"{name}/m") for name in "ab"]
    assert gradtx.find(groups, "a") == {"s": {"m": 1}}


def test_find_and_step_count_inside_what_comes_from_elsewhere():
    with standard("standard"):
        theirs = optax.chain(optax.clip(1.0), ADAM).init(PARAMS)
        created = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=ADAM)
        masked = optax.masked(ADAM, {"w": True, "b": False}).init(PARAMS)  # in a dict in a NamedTuple's field
    foreign = gradtx.chain(optax.scale_by_adam(), gradtx.scale(1.0)).init(PARAMS)
    for state in (theirs, created.opt_state, foreign):
        assert gradtx.find(state, "nu")["w"].shape == (3,)
    for state in (theirs, masked):
        assert gradtx.step_count(state) == 0
    Pair = collections.namedtuple("Pair", ["left", "right"])

    @gradtx.transform
    def keeps_a_pair() -> Rule:
        return Rule(lambda params: {"pair": Pair(0.0, 1.0)}, update=lambda updates, state: (updates, state))

    state = keeps_a_pair().init(PARAMS)
    assert (gradtx.find(state, "pair/right"), gradtx.find(state, "left")) == (1, 0)


def test_params_may_be_called_anything():
    names = ("count", "nu", "mu", "scale_by_rms", "weights", "hyperparameters", "inner", "groups")
    state = ADAM.init({name: jnp.full(2, 7.0) for name in names})
    assert gradtx.step_count(state) == 0
    for found, field in [("nu", "scale_by_rms"), ("mu", "scale_by_momentum")]:
        assert gradtx.find(state, found) is state[field][found]
    assert gradtx.find(state, "scale_by_rms") is state["scale_by_rms"]
    hyper = {"hyperparameters": {"learning_rate": jnp.ones(())}, "tunable": {"hyperparameters": {"b1": jnp.ones(())}}}
    tuned = gradtx.tune(gradtx.tunable(ADAM).init(hyper), learning_rate=0.5)
    assert float(gradtx.find(tuned, "tunable/hyperparameters")["learning_rate"]) == 0.5
    assert float(tuned["tunable"]["inner"]["scale_by_rms"]["nu"]["hyperparameters"]["learning_rate"]) == 0.0


def test_step_count_is_the_largest_counter():
    state = {"a": {"count": jnp.int32(3)}, "b": {"count": np.int32(5)}, "c": {"count": jnp.float32(9)}, "d": {"n": 11}}
    count = gradtx.step_count(state)
    assert (count, count.dtype, count.shape) == (5, jnp.int32, ())
    assert jax.eval_shape(gradtx.step_count, {"a": {"count": jnp.int32(3)}}).dtype == jnp.int32


# Hyperparameters in the state -----------------------------------------------------------------------------------------


def test_tunable_changes_nothing_and_tune_is_replace():
    plain, tx = gradtx.clip(0.2) >> gradtx.sgd(0.5, 0.9), gradtx.tunable(gradtx.clip(0.2) >> gradtx.sgd(0.5, 0.9))
    state = tx.init(PARAMS)
    tuned = gradtx.tune(state, learning_rate=0.25, max_delta=0.15)
    for changes, given in [({}, state), ({"learning_rate": 0.25, "max_delta": 0.15}, tuned)]:
        updates, new = tx.update(GRADS, given, PARAMS)
        expected, inner = plain.replace(**changes).update(GRADS, given["tunable"]["inner"], PARAMS)
        for a, b in zip(jax.tree.leaves((updates, new["tunable"]["inner"])), jax.tree.leaves((expected, inner))):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        assert gradtx.tree_equal(new["tunable"]["hyperparameters"], given["tunable"]["hyperparameters"])
    values = gradtx.find(tuned, "tunable/hyperparameters")
    assert {name: float(value) for name, value in values.items()} == {
        "stages[0].max_delta": np.float32(0.15),
        "stages[1].learning_rate": 0.25,
        "stages[1].momentum": np.float32(0.9),
    }
    assert state["tunable"]["hyperparameters"]["stages[1].learning_rate"] == 0.5  # the given state is left alone


def test_tune_keeps_structure_shapes_and_dtypes():
    state = TUNABLE.init(PARAMS)
    for value in (1, 0.5, np.float64(0.5), np.int64(1), jnp.bfloat16(0.5), jnp.int32(1)):
        tuned = gradtx.tune(state, learning_rate=value)
        assert float(tuned["tunable"]["hyperparameters"]["learning_rate"]) == float(value)
        assert jax.tree.structure(tuned) == jax.tree.structure(state)
        pairs = zip(jax.tree.leaves(tuned), jax.tree.leaves(state), strict=True)
        assert all((a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type) for a, b in pairs)
    traced = jax.jit(lambda state, rate: gradtx.tune(state, learning_rate=rate))(state, -0.25)
    assert gradtx.find(traced, "hyperparameters/learning_rate") == -0.25


def test_tune_wherever_the_tunable_is():
    for build in (
        lambda tx: gradtx.checked(gradtx.clip(10.0) >> tx),
        lambda tx: gradtx.clip(10.0) >> tx >> gradtx.scale(1.0),
        lambda tx: optax.chain(optax.clip(10.0), tx),
        lambda tx: optax.chain(optax.masked(tx, {"w": True, "b": True})),  # in a tuple in a NamedTuple
    ):
        with standard("standard"):
            tx = build(TUNABLE)
            state = gradtx.tune(tx.init(PARAMS), learning_rate=0.25)
            updates, new = tx.update(GRADS, state, PARAMS)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        np.testing.assert_allclose(updates["w"], -0.25 * GRADS["w"], rtol=1e-6)


def test_tune_in_static_optimizers_without_recompiling():
    traces = []

    @jax.jit
    def step(state, grads):
        traces.append(1)
        return state.apply_gradients(grads=grads)

    @nnx.jit
    def nnx_step(model, optimizer):
        traces.append(1)
        optimizer.update(model, nnx.grad(lambda model: model.kernel[...].sum())(model))

    with standard("standard"):
        state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=TUNABLE)
        model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, TUNABLE, wrt=nnx.Param)
        for rate in (0.5, 0.25):
            state = state.replace(opt_state=gradtx.tune(state.opt_state, learning_rate=rate))
            before, state = state.params, step(state, GRADS)
            np.testing.assert_allclose(state.params["w"], before["w"] - rate * GRADS["w"], rtol=1e-6)
            optimizer.opt_state = gradtx.tune(optimizer.opt_state, learning_rate=rate)
            before = model.kernel[...]
            nnx_step(model, optimizer)
            np.testing.assert_allclose(model.kernel[...], before - rate, rtol=1e-5)
    assert len(traces) == 2


def test_tunable_shares_no_buffers_and_sweeps_are_tuned():
    rate = jnp.float32(0.5)
    state = gradtx.tunable(gradtx.sgd(rate)).init(PARAMS)
    for made in (state, gradtx.tune(state, learning_rate=rate)):
        made["tunable"]["hyperparameters"]["learning_rate"].delete()
        assert float(rate) == 0.5
    states = jax.vmap(lambda rate: gradtx.tunable(gradtx.sgd(rate)).init(PARAMS))(jnp.array([0.1, 0.2]))
    tuned = gradtx.tune(states, learning_rate=jnp.array([0.3, 0.4]))
    np.testing.assert_allclose(gradtx.find(tuned, "hyperparameters/learning_rate"), [0.3, 0.4])


def test_tunable_in_float64(x64):
    params = {"w": jnp.array([1.0, 2.0], jnp.float64)}
    tx = gradtx.tunable(gradtx.sgd(0.1))
    state = tx.init(params)
    assert state["tunable"]["hyperparameters"]["learning_rate"] == 0.1
    np.testing.assert_allclose(tx.update(params, state, params)[0]["w"], -0.1 * params["w"], rtol=1e-15)


def test_a_train_state_and_an_nnx_optimizer_are_read_as_the_state_they_hold():
    tx = gradtx.monitor(gradtx.adam(0.1))
    held = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx).apply_gradients(grads=PARAMS)
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 2)))))(model))
    for holder in (held, optimizer):
        assert gradtx.step_count(holder) == 1
        assert jax.tree.structure(gradtx.find(holder, "nu")) == jax.tree.structure(gradtx.find(holder.opt_state, "nu"))
        found, expected = gradtx.metrics(holder), gradtx.metrics(holder.opt_state)
        assert found == expected
        assert set(found) == {"gradient_norm", "learning_rate", "update_norm"}
        assert all(isinstance(number, jax.Array) for number in found.values())
        assert found["learning_rate"] == np.float32(0.1)


RISING = gradtx.linear_schedule(0.8, 0.95, 3)


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.adam(0.1),
        gradtx.adamw(0.1, b1=RISING, b2=RISING),
        gradtx.nadam(0.1, momentum_decay=4e-3),
        gradtx.amsgrad(0.1),
        gradtx.adamax(0.1),
        gradtx.rmsprop(0.1, momentum=0.9, centered=True),
        gradtx.ema(0.9),
    ],
    ids=repr,
)
def test_a_state_of_zeros_is_a_new_one(tx):
    """As in optax: programs reset a state by zeros."""
    new = tx.init(PARAMS)
    old = new
    for scale in (1.0, -2.0):
        _, old = tx.update(jax.tree.map(lambda g, scale=scale: scale * g, PARAMS), old, PARAMS)
    old = jax.tree.map(jnp.zeros_like, old)
    for scale in (0.5, 1.0, -1.0):
        grads = jax.tree.map(lambda g, scale=scale: scale * g, PARAMS)
        (expected, new), (found, old) = (tx.update(grads, state, PARAMS) for state in (new, old))
        assert gradtx.tree_equal(found, expected)
