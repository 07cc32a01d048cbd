"""What a run of `minimize` carries on: its state, saved and loaded, and what the loss keeps."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import adam, sgd, tree_equal
from gradtx.core.rule import Rule
from gradtx.training.minibatches import sample_batches
from gradtx.training.minimization import minimize
from tests.training.network import (
    DATA,
    KEY,
    SIZE,
    X,
    Y,
    bowl,
    cost,
    counting,
    noisy,
    start,
    through_msgpack,
    through_pickle,
)

# Going on


def in_memory(result):
    return result.params, result.state


@pytest.mark.parametrize("saved", [in_memory, through_pickle, through_msgpack])
@pytest.mark.parametrize("options", [{"batch_size": 5}, {"batch_size": 4, "replacement": True}, {}], ids=str)
def test_k_and_n_more_steps_are_k_plus_n_steps(saved, options):
    whole = minimize(noisy, start(), adam(1e-2), DATA, steps=17, key=KEY, **options)
    for k in (1, 5, 8, 10):  # with batches of 5, epochs end at 5, 10, 15: between and in the middle
        for chunk in (None, 2):
            first = minimize(noisy, start(), adam(1e-2), DATA, steps=k, key=KEY, **options)
            params, state = saved(first)
            second = minimize(
                noisy, params, adam(1e-2), DATA, steps=17 - k, state=state, steps_per_call=chunk, **options
            )
            assert tree_equal(second.params, whole.params)
            assert tree_equal(second.state, whole.state)
            assert np.array_equal(
                np.concatenate([first.history["loss"], second.history["loss"]]), whole.history["loss"]
            )


def test_going_on_with_model_state_optax_and_bfloat16():
    def run(params, steps, state=None):
        with jax.numpy_dtype_promotion("standard"):
            given = {"model_state": {"n": jnp.zeros(())}} if state is None else {"state": state}
            tx = optax.adam(1e-2)
            return minimize(counting, params, tx, DATA, batch_size=5, steps=steps, has_aux=True, **given)

    whole, first = run(start(jnp.bfloat16), 9), run(start(jnp.bfloat16), 4)
    second = run(pickle.loads(pickle.dumps(first.params)), 5, pickle.loads(pickle.dumps(first.state)))
    assert tree_equal((second.params, second.state), (whole.params, whole.state))


def test_going_on_in_x64(x64):
    whole = minimize(cost, start(jnp.float64), adam(1e-2), DATA, batch_size=5, steps=9)
    params, state = through_msgpack(minimize(cost, start(jnp.float64), adam(1e-2), DATA, batch_size=5, steps=4))
    second = minimize(cost, params, adam(1e-2), DATA, batch_size=5, steps=5, state=state)
    assert tree_equal((second.params, second.state), (whole.params, whole.state))


# What else the loss says and carries


def test_model_state_is_carried_and_aux_recorded():
    result = minimize(
        counting,
        start(),
        sgd(0.1),
        DATA,
        batch_size=5,
        epochs=2,
        key=KEY,
        has_aux=True,
        model_state={"n": jnp.zeros(())},
    )
    assert result.state["model_state"]["n"] == 10.0
    assert set(result.history) == {"loss", "seen", "by", "samples"}
    assert result.history["by"]["n"].tolist() == list(range(1, 11))
    assert result.history["samples"].tolist() == [5, 5, 5, 5, 3] * 2
    orders = [sample_batches(jax.random.fold_in(KEY, epoch), SIZE, 5) for epoch in range(2)]
    means = [Y[np.asarray(indices)].mean() for order in orders for indices in order]
    np.testing.assert_allclose(result.history["seen"], means, rtol=1e-6, atol=1e-7)
    plain = minimize(cost, start(), sgd(0.1), DATA, batch_size=5, epochs=2, key=KEY)
    np.testing.assert_allclose(result.history["loss"], plain.history["loss"], rtol=1e-5)


def test_a_running_mean_in_model_state():
    def loss(params, batch, *, model_state):
        mean = 0.9 * model_state + 0.1 * batch["x"].mean(0)
        return cost(params, {"x": batch["x"] - mean[None], "y": batch["y"]}), {"model_state": mean}

    result = minimize(
        loss,
        start(),
        sgd(0.1),
        DATA,
        batch_size=5,
        drop_last=True,
        steps=9,
        key=KEY,
        has_aux=True,
        model_state=jnp.zeros(3),
        evaluate=lambda p, *, model_state: model_state[0],
        evaluate_every=4,
    )
    mean, seen = np.zeros(3), []
    for epoch in range(3):
        for indices in sample_batches(jax.random.fold_in(KEY, epoch), SIZE, 5, drop_last=True):
            mean = 0.9 * mean + 0.1 * X[np.asarray(indices)].mean(0)
            seen.append(mean)
    np.testing.assert_allclose(result.state["model_state"], seen[8], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result.history["metric"], [seen[i][0] for i in (3, 7, 8)], rtol=1e-5, atol=1e-7)


def test_a_transform_that_wants_value_grad_or_value_fn_is_given_them():
    @gradtx.transform
    def scale_by_value() -> Rule:
        def update(updates, state, *, value, grad, value_fn, params):
            again = value_fn(params) / value
            return jax.tree.map(lambda u, g: value * again * g + 0.0 * u, updates, grad), state

        return Rule(update=update)

    result = minimize(bowl, jnp.zeros(2), scale_by_value() >> gradtx.scale_by_learning_rate(1e-3), steps=3)
    x = np.zeros(2)
    for _ in range(3):
        x = x - 1e-3 * np.sum((x - 3) ** 2) * 2 * (x - 3)
    np.testing.assert_allclose(result.params, x, rtol=1e-5)


def test_optax_polyak_and_line_search_are_given_what_they_want():
    with jax.numpy_dtype_promotion("standard"):
        polyak = minimize(bowl, jnp.zeros(2), gradtx.foreign(optax.polyak_sgd(1.0), accepts=("value",)), steps=20)
        lbfgs = minimize(
            bowl, jnp.zeros(2), gradtx.foreign(optax.lbfgs(), accepts=("value", "grad", "value_fn")), steps=5
        )
    np.testing.assert_allclose(polyak.params, 3.0, atol=1e-2)
    np.testing.assert_allclose(lbfgs.params, 3.0, atol=1e-4)
