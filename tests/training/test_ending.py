"""What ends a run of `minimize`: evaluations, losses that are not finite, Ctrl-C."""

import itertools
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import adam, sgd, tree_equal
from gradtx.training import minimization
from gradtx.training.minimization import minimize
from tests.training.network import DATA, X, Y, assert_close, assert_same, bowl, cost, press_after, start

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


@pytest.mark.parametrize("at", [1, 6, 9, 23])
def test_a_program_that_goes_back_and_one_that_looks_each_step_end_alike(at, monkeypatch):
    def spoiled(params, batch, *, model_state):
        n = model_state + 1
        return cost(params, batch) + jnp.where(n == at, jnp.inf, 0.0), {"model_state": n}

    def run(data=DATA, **sampling):
        options = {"has_aux": True, "model_state": jnp.int32(0), "steps_per_call": 4}
        return minimize(spoiled, start(), adam(1e-2), data, **options, **sampling)

    with pytest.warns(RuntimeWarning, match=f"the loss was inf after {at - 1} updates; the run ended there"):
        result = run(batch_size=5, steps=30)
    assert int(result.state["step"]) == at - 1
    assert np.isfinite(result.history["loss"]).tolist() == [True] * (at - 1) + [False]
    if at > 1:
        before = run(batch_size=5, steps=at - 1)
        assert tree_equal((result.params, result.state), (before.params, before.state))
    monkeypatch.setattr(minimization, "_KEPT_BYTES", 0)
    with pytest.warns(RuntimeWarning, match=f"the loss was inf after {at - 1} updates; the run ended there"):
        looking = run(batch_size=5, steps=30)
    assert_close(looking, (result.params, result.history["loss"]), 1e-5)
    assert int(looking.state["step"]) == at - 1


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
