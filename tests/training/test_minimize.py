"""`minimize`: a run is the loop one would write oneself, in whatever chunks, resumed, streamed or interrupted."""

import contextlib
import io
import itertools
import logging
import os
import pickle
import re
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import gradtx
from gradtx import adam, sgd, tree_equal
from gradtx.core.rule import Rule
from gradtx.training import inputs, progress
from gradtx.training.minibatches import batches, num_batches, sample_batches, take
from gradtx.training.minimization import minimize

KEY = jax.random.key(3)
SIZE = 23  # prime: every batch size between leaves a rest
rng = np.random.default_rng(0)
X = rng.normal(size=(SIZE, 3)).astype(np.float32)
Y = np.sin(X.sum(1)).astype(np.float32)
DATA = {"x": X, "y": Y}


def start(dtype=jnp.float32):
    """A network of 3, 4 and 1 units."""
    draw = np.random.default_rng(1).normal
    return {"w": jnp.asarray(draw(size=(3, 4)), dtype), "b": jnp.zeros(4, dtype), "v": jnp.asarray(draw(size=4), dtype)}


def cost(params, batch):
    dtype = params["w"].dtype
    hidden = jnp.tanh(batch["x"].astype(dtype) @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - batch["y"].astype(dtype)) ** 2)


def noisy(params, batch, *, key):
    return cost(params, batch) + 0.1 * jnp.sum(params["v"] * jax.random.normal(key, (4,)))


def bowl(params):
    return jnp.sum((params - 3.0) ** 2)


def plain_loop(loss, params, tx, data, steps, *, key=None, batch_size=None, has_key=False, **sampling):
    """What `minimize` does, written with public parts; returns the params and the losses."""
    key = jax.random.key(0) if key is None else key
    step = jax.jit(jax.value_and_grad(loss))
    init, update = (jax.jit(f) for f in tx)
    state, losses, orders, epoch = init(params), [], iter(()), 0
    for t in range(steps):
        batch = []
        if data is not None:
            indices = next(orders, None)
            if indices is None:
                epoch_key = jax.random.fold_in(key, epoch)
                orders = iter(sample_batches(epoch_key, SIZE, batch_size, **sampling))
                indices, epoch = next(orders), epoch + 1
            batch = [take(data, indices)]
        wanted = {"key": jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), t)} if has_key else {}
        value, grads = step(params, *batch, **wanted)
        updates, state = update(jax.tree.map(jnp.conj, grads), state, params)
        params = gradtx.apply_updates(params, updates)
        losses.append(value)
    return params, np.stack(jax.device_get(losses))


def assert_close(result, expected, tolerance):
    params, losses = expected
    assert result.history["loss"].shape == losses.shape
    np.testing.assert_allclose(result.history["loss"].astype(float), losses.astype(float), rtol=tolerance, atol=1e-6)
    for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def assert_same(first, second):
    """Equal bits: params, state and history."""
    assert tree_equal(first.params, second.params)
    assert tree_equal(first.state, second.state)
    assert tree_equal(first.history, second.history)


# The loop, written out

METHODS = {"adam": lambda: adam(1e-2), "momentum": lambda: sgd(0.005, momentum=0.9)}
CUTS = {
    "rest kept": {"batch_size": 5},
    "rest dropped": {"batch_size": 5, "drop_last": True},
    "replacement": {"batch_size": 5, "replacement": True},
    "replacement, all": {"replacement": True},
    "single samples": {"batch_size": 1},
    "full batch": {},
}


@pytest.mark.parametrize(
    ("method", "cut"), [*(("adam", cut) for cut in CUTS), ("momentum", "rest kept"), ("momentum", "single samples")]
)
def test_it_is_the_plain_loop(x64, method, cut):
    # In float64 the two differ only by the order in which XLA contracts multiply-adds: 1e-16 a step, which 300 steps of
    # a smooth problem keep below 1e-11. A wrong batch, key, counter or sign shows in the first digits.
    tx, sampling = METHODS[method](), CUTS[cut]
    result = minimize(cost, start(jnp.float64), tx, DATA, steps=300, key=KEY, **sampling)
    assert_close(result, plain_loop(cost, start(jnp.float64), tx, DATA, 300, key=KEY, **sampling), 1e-11)
    assert int(result.state["step"]) == 300
    assert result.params["w"].dtype == jnp.float64


def test_it_is_the_plain_loop_in_float32():
    # One rounding is 6e-8; Adam divides by the root of a mean, so that some steps amplify it: 2e-5 after 200 of them.
    result = minimize(cost, start(), adam(1e-2), DATA, steps=200, batch_size=5)
    assert_close(result, plain_loop(cost, start(), adam(1e-2), DATA, 200, batch_size=5), 2e-5)


def test_it_is_the_plain_loop_without_data(x64):
    def rosenbrock(p):
        return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2

    begin = jnp.array([-1.0, 1.5])
    result = minimize(rosenbrock, begin, adam(1e-2), steps=300)
    assert_close(result, plain_loop(rosenbrock, begin, adam(1e-2), None, 300), 1e-10)


def test_a_loss_with_a_key_gets_a_new_one_each_step(x64):
    expected = plain_loop(noisy, start(jnp.float64), adam(1e-2), DATA, 200, key=KEY, batch_size=4, has_key=True)
    assert_close(
        minimize(noisy, start(jnp.float64), adam(1e-2), DATA, steps=200, key=KEY, batch_size=4), expected, 1e-11
    )


def test_optax_optimizers(x64):
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
        result = minimize(cost, start(jnp.float64), tx, DATA, steps=100, batch_size=5)
        assert_close(result, plain_loop(cost, start(jnp.float64), (tx.init, tx.update), DATA, 100, batch_size=5), 1e-11)


def test_bfloat16_params_stay_bfloat16_and_descend():
    result = minimize(cost, start(jnp.bfloat16), adam(1e-2), DATA, steps=60, batch_size=5)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.bfloat16)}
    # Each step rounds 60 times to 8 bits, here as there: the loop may differ by some of the last bits (0.4%).
    expected, _ = plain_loop(cost, start(jnp.bfloat16), adam(1e-2), DATA, 60, batch_size=5)
    for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=0.05, atol=0.05)
    assert cost(result.params, DATA) < 0.7 * cost(start(jnp.bfloat16), DATA)


@pytest.mark.parametrize("tx", [sgd(0.1), adam(0.1)], ids=["sgd", "adam"])
def test_complex_params_descend(tx):
    result = minimize(lambda z: jnp.sum(jnp.abs(z - (1 + 2j)) ** 2), jnp.zeros(2, jnp.complex64), tx, steps=300)
    np.testing.assert_allclose(result.params, 1 + 2j, atol=1e-3)
    assert result.history["loss"].dtype == np.float32


# The params it takes


@pytest.mark.parametrize(
    "params",
    [0.0, jnp.asarray(0.0), np.zeros(2), np.zeros(2, np.float32), np.float64(0.0), np.float32(0.0)],
    ids=["float", "weak", "numpy64", "numpy32", "np.float64", "np.float32"],
)
def test_numbers_and_numpy_arrays_are_params(params):
    result = minimize(bowl, params, adam(0.1), steps=4)
    expected = minimize(bowl, jnp.zeros(np.shape(params), jnp.float32), adam(0.1), steps=4)
    assert_same(result, expected)
    assert result.params.dtype == jnp.float32
    assert not result.params.weak_type


def test_tuples_none_leaves_and_no_params():
    result = minimize(
        lambda p: bowl(p[0]) + bowl(p[1]["a"]), (jnp.zeros(2), {"a": jnp.zeros(()), "b": None}), adam(0.1), steps=4
    )
    alone = minimize(bowl, jnp.zeros(()), adam(0.1), steps=4).params
    assert result.params[1]["b"] is None
    np.testing.assert_allclose(result.params[0], alone, rtol=1e-6)
    assert minimize(lambda p: jnp.zeros(()), {}, adam(0.1), steps=3).history["loss"].tolist() == [0, 0, 0]


def test_legacy_keys_are_keys():
    legacy = jax.random.PRNGKey(3)
    for key in (legacy, np.asarray(legacy)):
        result = minimize(noisy, start(), sgd(0.1), DATA, batch_size=5, epochs=2, key=key)
        assert_same(result, minimize(noisy, start(), sgd(0.1), DATA, batch_size=5, epochs=2, key=jax.random.key(3)))


def test_nothing_of_the_callers_is_donated():
    params, key, data = start(), jax.random.key(5), jax.tree.map(jnp.asarray, DATA)
    first = minimize(noisy, params, adam(1e-2), data, steps=7, batch_size=5, key=key)
    again = minimize(noisy, params, adam(1e-2), data, steps=7, batch_size=5, key=key)
    assert_same(first, again)
    resumed = [
        minimize(noisy, first.params, adam(1e-2), data, steps=3, batch_size=5, state=first.state) for _ in range(2)
    ]
    assert_same(*resumed)
    for leaf in jax.tree.leaves((params, data, first.params, first.state)):
        assert not leaf.is_deleted()
    model_state = {"n": jnp.zeros(())}
    minimize(counting, params, adam(1e-2), data, steps=2, has_aux=True, model_state=model_state)
    assert model_state["n"] == 0.0


# How long, in which chunks


def test_epochs_are_so_many_passes():
    for options in (CUTS["rest kept"], CUTS["rest dropped"], CUTS["full batch"]):
        sizes = {name: value for name, value in options.items() if name != "replacement"}
        per_epoch = num_batches(SIZE, sizes.pop("batch_size", None), **sizes)
        result = minimize(cost, start(), sgd(0.1), DATA, epochs=2, **options)
        assert result.history["loss"].shape == (2 * per_epoch,)
        assert_same(result, minimize(cost, start(), sgd(0.1), DATA, steps=2 * per_epoch, **options))


@pytest.mark.parametrize("options", [*CUTS.values(), None])
def test_bits_do_not_depend_on_the_chunk(options):
    loss, data, options = (
        (noisy, DATA, options)
        if options is not None
        else (lambda p: bowl(p["w"]) + bowl(p["b"]) + bowl(p["v"]), None, {})
    )
    results = [
        minimize(loss, start(), adam(1e-2), data, steps=31, steps_per_call=chunk, **options)
        for chunk in (None, 1, 3, 7, 5000)
    ]
    for other in results[1:]:
        assert_same(results[0], other)


def test_evaluation_and_stop_change_no_bits():
    plain = minimize(noisy, start(), adam(1e-2), DATA, batch_size=5, steps=31)
    seen = minimize(
        noisy,
        start(),
        adam(1e-2),
        DATA,
        batch_size=5,
        steps=31,
        evaluate=lambda p: p["b"][0],
        evaluate_every=2,
        stop=lambda history: False,
    )
    assert tree_equal(plain.params, seen.params)
    assert tree_equal(plain.history["loss"], seen.history["loss"])


def test_the_orders_of_one_call_are_few_where_batches_are_large():
    from gradtx.training.advancing import Plan, Sampling
    from gradtx.training.losses import Loss

    loss = Loss(cost, False, True, False, False)
    assert Plan(loss, Sampling(60_000, 128)).capacity == 1024
    assert Plan(loss, Sampling(10**7, 10**7)).capacity == 1024  # everything in its order: none are drawn
    assert Plan(loss, Sampling(10**7, 10**7, replacement=True)).capacity == 1


# Going on


def through_pickle(result):
    return pickle.loads(pickle.dumps((result.params, result.state)))


def through_msgpack(result):
    data = serialization.to_bytes((result.params, result.state))
    return serialization.from_bytes((result.params, result.state), data)


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


# What it compiles


@contextlib.contextmanager
def compilations():
    """Collects the names of the programs that JAX compiles."""
    names = []

    class Collect(logging.Handler):
        def emit(self, entry):
            if found := re.match(r"Finished XLA compilation of (\S+)", entry.getMessage()):
                names.append(found[1])

    handler, logger = Collect(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def test_another_rate_seed_start_or_length_compiles_nothing():
    def loss(params, batch):
        return cost(params, batch)

    def evaluate(params):
        return cost(params, DATA)

    def run(tx, **options):
        return minimize(loss, start(), tx, DATA, batch_size=5, evaluate=evaluate, **options)

    with compilations() as names:
        result = run(adam(1e-2), epochs=2, key=jax.random.key(0))
        run(adam(1e-2), steps=1, state=result.state)
    assert sum("advance" in name for name in names) == 1  # so they are counted
    with compilations() as names:
        run(adam(3e-3), epochs=2, key=jax.random.key(0))
        run(adam(1e-3, b1=0.8), epochs=2, key=jax.random.key(7))
        run(adam(1e-3), steps=33, steps_per_call=4)
        run(adam(1e-3), steps=3, evaluate_every=2, stop=lambda history: False)
        run(adam(1e-3), steps=3, state=result.state)
        run(adam(1e-3), steps=3, state=through_msgpack(result)[1])
    assert names == []


@pytest.mark.parametrize(
    "options",
    [
        {"loss": lambda p, b: b["x"][:, 0]},
        {"data": {"x": X, "y": Y[:-1]}},
        {"data": {"x": X[:0], "y": Y[:0]}},
        {"batch_size": SIZE + 1},
        {"tx": jax.vmap(sgd)(np.array([0.1, 0.2], np.float32))},
        {"evaluate": lambda p: {"loss": p["b"][0]}},
        {"stop": 3.0},
        {"steps_per_call": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_refused_is_refused_before_compiling(options):
    given = {"loss": cost, "params": np.zeros(5, np.float32), "tx": sgd(0.1), "data": DATA, "batch_size": 5, "steps": 5}
    given["params"] = jax.device_get(start())
    with compilations() as names, pytest.raises((TypeError, ValueError), match=r"^gradtx\.minimize: "):
        minimize(**given | options)
    assert names == []


# What else the loss says and carries


def counting(params, batch, *, model_state):
    """The mean of what it has seen, and how many batches."""
    n = model_state["n"] + 1.0
    return cost(params, batch), {
        "model_state": {"n": n},
        "seen": batch["y"].mean(),
        "by": {"n": n},
        "samples": batch["y"].shape[0],
    }


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


# Evaluation and stopping


def test_evaluations_each_epoch_every_n_and_at_the_end():
    def metrics(p):
        return {"full": cost(p, DATA), "b": p["b"]}

    def at(**options):
        return minimize(cost, start(), sgd(0.1), DATA, batch_size=5, evaluate=metrics, **options).history

    history = at(epochs=3)
    assert history["evaluated_at"].tolist() == [5, 10, 15]
    assert (history["full"].shape, history["b"].shape) == ((3,), (3, 4))
    assert at(steps=12)["evaluated_at"].tolist() == [5, 10, 12]
    assert at(steps=7, evaluate_every=3)["evaluated_at"].tolist() == [3, 6, 7]
    assert at(steps=2, evaluate_every=100)["evaluated_at"].tolist() == [2]
    params = minimize(cost, start(), sgd(0.1), DATA, batch_size=5, epochs=2).params
    assert np.array_equal(history["b"][1], params["b"])
    np.testing.assert_allclose(history["full"][1], cost(params, DATA), rtol=1e-6)


def test_evaluations_without_data_and_of_the_params_themselves():
    assert minimize(bowl, jnp.zeros(2), sgd(0.1), steps=4, evaluate=bowl).history["evaluated_at"].tolist() == [4]
    path = minimize(bowl, jnp.zeros(2), sgd(0.25), steps=3, evaluate=lambda p: p, evaluate_every=1).history["metric"]
    np.testing.assert_allclose(path, [[1.5, 1.5], [2.25, 2.25], [2.625, 2.625]])


def test_evaluations_count_on_when_a_run_goes_on():
    first = minimize(cost, start(), sgd(0.1), DATA, batch_size=5, steps=7)
    history = minimize(
        cost, first.params, sgd(0.1), DATA, batch_size=5, steps=6, state=first.state, evaluate=lambda p: p["b"][0]
    ).history
    assert history["evaluated_at"].tolist() == [10, 13]


def test_stop_is_asked_with_the_history_so_far():
    asked = []

    def stop(history):
        asked.append({name: len(value) for name, value in history.items()})
        return history["full"][-1] < 10.0 and len(history["full"]) == 3

    result = minimize(
        cost, start(), sgd(0.1), DATA, batch_size=5, epochs=9, evaluate=lambda p: {"full": cost(p, DATA)}, stop=stop
    )
    assert asked == [{"loss": 5 * n, "full": n, "evaluated_at": n} for n in (1, 2, 3)]
    assert int(result.state["step"]) == 15
    assert_same(
        result._replace(history={}),
        minimize(cost, start(), sgd(0.1), DATA, batch_size=5, epochs=3)._replace(history={}),
    )
    alone = minimize(bowl, jnp.zeros(2), sgd(0.1), steps=50, evaluate_every=4, stop=lambda h: bool(h["loss"][-1] < 1))
    assert set(alone.history) == {"loss"}
    assert alone.history["loss"].shape == (8,)
    assert alone.history["loss"][-1] < 1


def test_stop_sees_the_whole_history_each_time():
    asked = []
    minimize(
        bowl,
        jnp.zeros(2),
        sgd(0.1),
        steps=1500,
        evaluate=bowl,
        evaluate_every=1,
        stop=lambda h: asked.append(h["loss"]),
    )
    assert [len(losses) for losses in asked] == list(range(1, 1501))


# Losses that are not finite


def falls(params, *, model_state):
    """NaN at the sixth step."""
    n = model_state + 1
    return bowl(params) + jnp.where(n == 6, jnp.nan, 0.0), {"model_state": n}


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_a_nan_ends_the_run_before_it_changes_anything(chunk):
    with pytest.warns(
        RuntimeWarning, match=r"the loss was nan after 5 updates; the run ended there, with the par"
    ) as caught:
        result = minimize(
            falls,
            jnp.zeros(2),
            adam(0.1),
            steps=20,
            has_aux=True,
            model_state=jnp.int32(0),
            steps_per_call=chunk,
            evaluate=bowl,
        )
    assert [w.filename for w in caught] == [__file__]
    before = minimize(falls, jnp.zeros(2), adam(0.1), steps=5, has_aux=True, model_state=jnp.int32(0))
    assert tree_equal((result.params, result.state), (before.params, before.state))
    assert np.isnan(result.history["loss"]).tolist() == [False] * 5 + [True]
    assert result.history["evaluated_at"].tolist() == [5]
    assert minimize(bowl, result.params, sgd(0.1), steps=2).history["loss"].shape == (2,)


def test_a_nan_is_passed_on_request():
    with pytest.warns(RuntimeWarning, match=r"gradtx\.minimize: the loss was nan after 5 updates; it went on\."):
        result = minimize(
            falls, jnp.zeros(2), sgd(0.1), steps=9, has_aux=True, model_state=jnp.int32(0), nonfinite="continue"
        )
    assert result.history["loss"].shape == (9,)
    assert int(result.state["step"]) == 9
    assert np.isnan(result.history["loss"]).sum() == 1  # its gradient was finite


def test_the_first_loss_may_be_infinite():
    with pytest.warns(RuntimeWarning, match="the loss was inf after 0 updates"):
        result = minimize(lambda p: jnp.sum(p) / 0.0, jnp.ones(2), sgd(0.1), steps=3)
    assert result.history["loss"].tolist() == [np.inf]
    assert result.params.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("chunk", [None, 2, 100])
def test_a_nan_in_a_stream_ends_the_run(chunk):
    def bad():
        for i in range(9):
            yield {"x": X, "y": np.full_like(Y, np.nan if i == 3 else i)}

    with pytest.warns(RuntimeWarning, match="the loss was nan after 3 updates; the run ended there"):
        result = minimize(cost, start(), sgd(0.1), bad(), steps_per_call=chunk)
    assert int(result.state["step"]) == 3
    assert np.isnan(result.history["loss"]).tolist() == [False, False, False, True]
    before = minimize(cost, start(), sgd(0.1), itertools.islice(bad(), 3))
    assert tree_equal(result.params, before.params)


# Ctrl-C


def slow(params):
    """A cost that takes about a millisecond."""
    return bowl(jax.lax.fori_loop(0, 20_000, lambda _, p: p * 0.99999, params)) + bowl(params)


def press_after(seconds, times=1):
    def press():
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_ctrl_c_returns_what_has_been_reached():
    def loss(p):
        return bowl(p) + 0.0 * jax.lax.stop_gradient(slow(p))

    minimize(loss, jnp.zeros(2), sgd(1e-4), steps=2)  # compile
    handler = signal.getsignal(signal.SIGINT)
    thread = press_after(0.4)
    result = minimize(loss, jnp.zeros(2), sgd(1e-4), steps=10**7, evaluate=bowl)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler
    step = int(result.state["step"])
    assert result.history["loss"].shape == (step,)
    assert result.history["evaluated_at"].tolist() == [step]
    again = minimize(loss, jnp.zeros(2), sgd(1e-4), steps=step + 3)
    onward = minimize(loss, result.params, sgd(1e-4), steps=3, state=result.state)
    assert tree_equal((onward.params, onward.state), (again.params, again.state))


def test_ctrl_c_in_a_slow_stream():
    def dripping():
        for _ in range(3000):
            time.sleep(0.01)
            yield DATA

    thread = press_after(0.8)
    result = minimize(cost, start(), sgd(0.1), dripping())
    thread.join()
    assert 0 < int(result.state["step"]) < 2000


def test_an_expensive_loss_of_few_params_is_looked_at_early():
    # Two params say nothing of the cost: a first call of 1024 of these steps would take half a minute.
    def expensive(p):
        return bowl(p) + 0.0 * jax.lax.stop_gradient(jax.lax.fori_loop(0, 600_000, lambda _, x: x * 0.99999, p)).sum()

    thread = press_after(0.5)
    result = minimize(expensive, jnp.zeros(2), sgd(1e-4), steps=10**6)
    thread.join()
    assert int(result.state["step"]) > 0


def test_the_handler_comes_back_after_an_error_and_a_second_ctrl_c():
    handler = signal.getsignal(signal.SIGINT)

    def broken():
        yield DATA
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        minimize(cost, start(), sgd(0.1), broken())
    assert signal.getsignal(signal.SIGINT) is handler

    def stuck():
        yield DATA
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        minimize(cost, start(), sgd(0.1), stuck())
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_in_another_thread():
    results = []
    thread = threading.Thread(
        target=lambda: results.append(minimize(cost, start(), sgd(0.1), DATA, batch_size=5, epochs=2))
    )
    thread.start()
    thread.join()
    assert_same(results[0], minimize(cost, start(), sgd(0.1), DATA, batch_size=5, epochs=2))


# Streams


class Loader:
    """Batches of a known number, from the start at each pass."""

    def __init__(self, number=4):
        self.batches = [take(DATA, np.arange(i, i + 5)) for i in range(number)]

    def __iter__(self):
        return iter(self.batches)


class SizedLoader(Loader):
    def __len__(self):
        return len(self.batches)


class LoaderOfAStream(Loader):
    """As PyTorch's: `len` is there, and raises TypeError."""

    def __len__(self):
        raise TypeError("object of type 'IterableDataset' has no len()")


def steps_of(data, **options):
    result = minimize(cost, start(), sgd(0.1), data, **options)
    assert result.history["loss"].shape == (int(result.state["step"]),)
    return int(result.state["step"])


def test_a_stream_of_the_batches_is_the_run_on_the_arrays():
    # Another program: gathered inside the loop or given from outside, XLA may contract differently; 1 ulp a step.
    whole = minimize(cost, start(), adam(1e-2), DATA, batch_size=5, epochs=2, key=KEY)
    keys = [jax.random.fold_in(KEY, epoch) for epoch in range(2)]
    for data in (DATA, jax.tree.map(jnp.asarray, DATA)):
        stream = itertools.chain.from_iterable(batches(key, data, 5) for key in keys)
        assert_close(minimize(cost, start(), adam(1e-2), stream), (whole.params, whole.history["loss"]), 1e-5)


@pytest.mark.parametrize("loader", [Loader, SizedLoader, LoaderOfAStream])
def test_loaders_start_anew_at_each_epoch(loader):
    assert steps_of(loader()) == 4
    assert steps_of(loader(), epochs=2) == 8
    assert steps_of(loader(), steps=11) == 11
    assert steps_of(loader(), steps=2) == 2


@pytest.mark.parametrize(
    "iterator", [iter, lambda b: (x for x in b), lambda b: map(dict, b), lambda b: itertools.islice(b, 9)]
)
def test_iterators_run_once(iterator):
    assert steps_of(iterator(Loader())) == 4
    assert steps_of(iterator(Loader()), epochs=1) == 4
    assert steps_of(iterator(Loader()), steps=3) == 3
    assert steps_of(iterator(Loader()), steps=9) == 4  # it has no more
    with pytest.raises(
        ValueError, match=r"epochs=2, but data is an iterator, .* once; pass an iterable that starts anew"
    ):
        minimize(cost, start(), sgd(0.1), iterator(Loader()), epochs=2)


def test_a_loader_around_an_iterator_ends_instead_of_waiting_for_ever():
    class Around:
        def __init__(self):
            self.iterator = iter(Loader().batches)

        def __iter__(self):
            return self.iterator

    assert steps_of(Around(), steps=10) < 10


def test_chunks_and_going_on_in_a_stream():
    whole = minimize(noisy, start(), adam(1e-2), SizedLoader(6), key=KEY)
    for chunk in (1, 4, 100):
        assert_same(whole, minimize(noisy, start(), adam(1e-2), SizedLoader(6), key=KEY, steps_per_call=chunk))
    first = minimize(noisy, start(), adam(1e-2), SizedLoader(6), key=KEY, steps=2)
    params, state = through_pickle(first)
    second = minimize(noisy, params, adam(1e-2), Loader(6).batches[2:].__iter__(), state=state)
    assert tree_equal((second.params, second.state), (whole.params, whole.state))


def test_evaluations_of_a_stream():
    def at(data, **options):
        return (
            minimize(cost, start(), sgd(0.1), data, evaluate=lambda p: p["b"][0], **options)
            .history["evaluated_at"]
            .tolist()
        )

    assert at(SizedLoader(), epochs=2) == [4, 8]
    assert at(Loader(), epochs=2) == [8]  # where its epochs end is not known before
    assert at(iter(Loader()), evaluate_every=3) == [3, 4]
    assert at(iter(Loader()), evaluate_every=2) == [2, 4]


def test_batches_of_other_sizes_numbers_and_none():
    data = [({"x": X[:n], "y": Y[:n]}, 0.5, None) for n in (5, 5, 3)]
    result = minimize(lambda p, b: b[1] * cost(p, b[0]), start(), sgd(0.1), iter(data))
    expected = minimize(lambda p, b: 0.5 * cost(p, b), start(), sgd(0.1), (b[0] for b in data))
    np.testing.assert_allclose(result.history["loss"], expected.history["loss"], rtol=1e-6)
    numbers = minimize(lambda p, b: (p - b) ** 2, 0.0, sgd(0.5), iter([1.0, 2.0, 4.0]))
    assert numbers.params == 4.0


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_it_says_nothing_where_there_is_no_terminal_or_nobody_asks(monkeypatch, capfd):
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5, progress=False)
    assert sys.stderr.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5)
    assert "minimize" in sys.stderr.getvalue()
    assert "5/5" in sys.stderr.getvalue()
    assert "loss" in sys.stderr.getvalue()
    assert "steps/s" in sys.stderr.getvalue()


def test_plain_lines_where_rich_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_rich_bar", lambda who, total: None)
    clock = itertools.count(0.0, 6.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5, steps_per_call=2)
    lines = sys.stderr.getvalue().splitlines()
    assert re.fullmatch(r"minimize: 2 of 5, loss 11\.52, 0\.\d+ steps/s, \d+ s left", lines[0])
    assert lines[-1].startswith("minimize: 5 of 5")
    with pytest.warns(RuntimeWarning, match="after 0 updates"):  # none done: no time left to tell
        minimize(lambda p: jnp.nan * bowl(p), jnp.zeros(2), sgd(0.1), steps=5)


# What is refused

SWEEP = jax.vmap(sgd)(np.array([0.1, 0.2], np.float32))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": 3}, TypeError, "loss is 3; it must be a function: loss(params) or loss(params, batch)."),
        ({"loss": lambda p, b: b["y"]}, TypeError, "dtype float32 and shape (5,); it must be a real scalar. Take its"),
        ({"tx": SWEEP}, ValueError, "tx is a sweep of 2 optimizers in one value; pass it to gradtx.sweep, or pass one"),
        ({"tx": 0.1}, TypeError, "is 0.1; allowed: a transform, or any object with init and update."),
        ({"tx": sgd}, TypeError, "is the factory gradtx.sgd itself; call it: sgd(...)."),
        ({"params": {"n": jnp.arange(3)}}, TypeError, "params at ['n'] has dtype int32; allowed: floating-point or co"),
        ({"params": {"n": "a"}}, TypeError, "params at ['n'] is 'a' of type str; allowed: arrays."),
        ({"data": {}}, ValueError, "data is {} (dict), a pytree without arrays; it must hold at least one."),
        ({"data": {"x": X[:0]}, "batch_size": None}, ValueError, "data is empty: data['x'] has shape (0, 3); it must"),
        ({"data": {"x": X, "y": Y[1:]}}, ValueError, "data['x'] has 23 samples, shape (23, 3), but data['y'] has 22,"),
        ({"data": {"x": 1.0}}, ValueError, "data['x'] is a scalar, 1.0 (float); every leaf needs a leading axis"),
        ({"data": {"x": object()}}, TypeError, "every leaf must be a NumPy or JAX array. Convert it: numpy.asarray."),
        ({"batch_size": 24}, ValueError, "batch_size is 24; it must be from 1 to the number of samples, 23. Pass None"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; it must be from 1 to the number of samples, 23."),
        ({"batch_size": 2.0}, TypeError, "batch_size is 2.0 (float); it must be an int."),
        ({"drop_last": 1}, TypeError, "drop_last is 1 (int); it must be True or False."),
        ({"data": iter(())}, ValueError, "batch_size is 5, but data is an iterable, which gives whole batches; leave"),
        ({"data": iter(()), "batch_size": None}, ValueError, "data is empty: the iterable gives no batch."),
        ({"data": "abc", "batch_size": None}, TypeError, "data is 'abc'; it must be arrays, or an iterable of batches"),
        ({"data": None}, ValueError, "batch_size is 5, but data is None; leave it out, or pass arrays."),
        ({"data": None, "batch_size": None, "replacement": True}, ValueError, "replacement is True, but data is None;"),
        ({"steps": None}, ValueError, "how long? Give steps=... or epochs=..."),
        ({"steps": 3, "epochs": 2}, ValueError, "epochs=2 and steps=3 are both given; give one of them."),
        ({"steps": 0}, ValueError, "steps is 0; it must be at least 1."),
        ({"steps": 3.0}, TypeError, "steps is 3.0 of type float; it must be an int."),
        ({"steps": True}, TypeError, "steps is True of type bool; it must be an int."),
        ({"steps": None, "epochs": -1}, ValueError, "epochs is -1; it must be at least 1."),
        ({"loss": bowl, "data": None, "batch_size": None, "steps": None}, ValueError, "how long? Give steps=..."),
        (
            {"loss": bowl, "data": None, "batch_size": None, "steps": None, "epochs": 2},
            ValueError,
            "epochs=2 is for runs with data; give steps=...",
        ),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite is 'ignore'; allowed: 'stop', 'continue'."),
        ({"steps_per_call": 0}, ValueError, "steps_per_call is 0; it must be at least 1."),
        ({"evaluate_every": 0}, ValueError, "evaluate_every is 0; it must be at least 1."),
        ({"evaluate": 3}, TypeError, "evaluate is 3; it must be a function of the params."),
        ({"evaluate": lambda p: None}, TypeError, "evaluate returns None; it must return a number, or a dict of them."),
        ({"evaluate": lambda p: {"loss": 1.0}}, ValueError, "evaluate returns an entry 'loss', which the history has"),
        ({"stop": 0.1}, TypeError, "stop is 0.1; it must be a function of the history."),
        ({"key": 0}, TypeError, "key is 0 (int); it must be a JAX random key. Make one with jax.random.key(seed)."),
        ({"key": jax.random.split(KEY)}, ValueError, "several keys; it must be one."),
        ({"key": jax.random.key(0, impl="rbg")}, ValueError, "key has dtype key<rbg>; the state keeps the bits of a d"),
        ({"state": {}}, ValueError, "state is a dict of nothing; it must be that of an earlier result, result.state."),
        ({"state": {"w": 1}}, ValueError, "state is a dict of w; it must be that of an earlier result, result.state."),
        ({"state": 3}, ValueError, "state is 3; it must be that of an earlier result, result.state."),
        ({"state": {}, "key": KEY}, ValueError, "a state brings its own key and model_state; pass either the state or"),
        ({"state": {}, "model_state": 1.0}, ValueError, "a state brings its own key and model_state; pass either"),
    ],
)  # fmt: skip
def test_errors_say_who_what_and_how_to_fix_it(options, error, words):
    given = {"loss": cost, "params": start(), "tx": sgd(0.1), "data": DATA, "batch_size": 5, "steps": 5}
    with pytest.raises(error, match=r"^gradtx\.minimize:? .*" + re.escape(words)):
        minimize(**given | options)


def test_a_state_of_another_optimizer_or_other_params():
    state = minimize(cost, start(), adam(0.1), DATA, steps=1).state
    with pytest.raises(ValueError, match=r"gradtx\.sgd\.update: the state is not one that init makes .* this very opt"):
        minimize(cost, start(), sgd(0.1), DATA, steps=1, state=state)
    with pytest.raises(ValueError, match=r"gradtx\.adam\.update: the state .* lacks \['scale_by_momentum'\]\['mu'\]"):
        minimize(bowl, jnp.zeros(2), adam(0.1), steps=1, state=state)


def test_data_that_does_not_fit_is_to_be_streamed(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 800}

    monkeypatch.setattr(inputs.jax, "devices", lambda: [Device()])
    with pytest.raises(ValueError, match=r"data has 0\.0 GB, and the device 0\.0 GB free; stream it: pass an iterable"):
        minimize(cost, start(), sgd(0.1), DATA, steps=1)
