"""What is compiled anew, and what is not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training import train_state

import gradtx
from gradtx import Rule

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.float32(0.5)}
GRADS = {"w": jnp.array([0.1, -0.2, 0.3]), "b": jnp.float32(-1.0)}


@pytest.fixture
def traces():
    """A transform that counts how often its update is traced or run."""
    counter = {"update": 0}

    @gradtx.transform
    def spy() -> Rule:
        def update(updates, state):
            counter["update"] += 1
            return updates, state

        return Rule(update=update)

    counter["spy"] = spy
    return counter


def test_a_new_number_passed_through_jit_retraces_nothing(traces):
    step = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params))
    tx = traces["spy"]() >> gradtx.clip(1.0) >> gradtx.adam(1e-3)
    state = tx.init(PARAMS)
    for rate in (1e-3, 3e-4, 1, np.float32(0.5), np.int64(2), 0.0):
        step(tx.replace(learning_rate=rate), GRADS, state, PARAMS)
    step(traces["spy"]() >> gradtx.clip(5.0) >> gradtx.adam(7.0, 0.5, 0.6, 1e-3), GRADS, state, PARAMS)
    assert traces["update"] == 1
    assert step._cache_size() == 1


def test_a_new_static_argument_does_retrace(traces):
    step = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params))
    for nesterov in (False, True):
        tx = traces["spy"]() >> gradtx.adam(1e-3, nesterov=nesterov)
        step(tx, GRADS, tx.init(PARAMS), PARAMS)
    assert traces["update"] == 2


def test_a_rebuilt_optimizer_retraces_nothing_through_jit_of_update(traces):
    for _ in range(3):
        tx = traces["spy"]() >> gradtx.adamw(1e-3, mask={"w": True, "b": False})
        jax.jit(tx.update)(GRADS, jax.jit(tx.init)(PARAMS), PARAMS)
    assert traces["update"] == 1
    other = traces["spy"]() >> gradtx.adamw(1e-2, mask={"w": True, "b": False})
    jax.jit(other.update)(GRADS, other.init(PARAMS), PARAMS)
    assert traces["update"] == 2


def test_a_rebuilt_optimizer_retraces_nothing_as_a_static_argument(traces):
    step = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params), static_argnums=0)
    for _ in range(3):
        tx = traces["spy"]() >> gradtx.adamw(1e-3, mask={"w": True, "b": False})
        step(tx, GRADS, tx.init(PARAMS), PARAMS)
    assert traces["update"] == 1


def test_a_rebuilt_optimizer_retraces_nothing_in_a_train_state(traces):
    @jax.jit
    def step(state, grads):
        return state.apply_gradients(grads=grads)

    model = nn.Dense(1)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))
    for rate in (1e-3, 1e-3, 1e-3):
        tx = traces["spy"]() >> gradtx.clip_by_global_norm(1.0) >> gradtx.adam(rate)
        state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        for _ in range(3):
            state = step(state, params)
    assert traces["update"] == 1
    assert state.step == 3


def test_update_of_the_plain_pair_can_be_jitted(traces):
    tx = traces["spy"]() >> gradtx.adam(1e-3)
    init, update = tx
    state = jax.jit(init)(PARAMS)
    jitted = jax.jit(update)
    for _ in range(3):
        _, state = jitted(GRADS, state, PARAMS)
    assert traces["update"] == 1
    assert gradtx.step_count(state) == 3
    jax.jit(traces["spy"]().update)  # rebuilding compiles nothing by itself
    assert traces["update"] == 1


def test_the_second_call_never_retraces(traces):
    tx = traces["spy"]() >> gradtx.adam(gradtx.cosine_decay_schedule(1e-3, 100))
    step = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = step(GRADS, state, PARAMS)
    assert traces["update"] == 1


def test_nnx_optimizer_retraces_nothing_with_an_equal_optimizer(traces):
    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 3)))))(model))

    for _ in range(2):
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, traces["spy"]() >> gradtx.adam(1e-2), wrt=nnx.Param)
        for _ in range(3):
            step(model, optimizer)
    assert traces["update"] == 1
