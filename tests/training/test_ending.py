"""What ends a run of `minimize`: evaluations, losses that are not finite, Ctrl-C."""

import itertools
import signal
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import sgd, tree_equal
from gradtx.training import chunks, minimization
from gradtx.training.minimization import minimize
from tests.training.network import DATA, X, Y, bowl, cost, press, start
from tests.training.reference import assert_same

# Evaluation and stopping


def measure(params):
    return {"full": cost(params, DATA), "b": params["w"]}


def train(evaluate=measure, **options):
    return minimize(cost, start(), sgd(0.1), DATA, batch_size=5, evaluate=evaluate, **options)


def test_evaluations_each_epoch_every_n_and_at_the_end():
    result = train(epochs=3)
    history = result.history
    assert history["evaluated_at"].tolist() == [5, 10, 15]
    assert (history["full"].shape, history["b"].shape) == ((3,), (3, 3))
    assert np.array_equal(history["b"][-1], result.params["w"])
    np.testing.assert_allclose(history["full"][-1], cost(result.params, DATA), rtol=1e-6)
    for options, at in (
        ({"steps": 12}, [5, 10, 12]),
        ({"steps": 7, "evaluate_every": 3}, [3, 6, 7]),
        ({"steps": 2, "evaluate_every": 100}, [2]),
    ):
        assert train(**options).history["evaluated_at"].tolist() == at
    plain = train(evaluate=None, steps=7)
    assert plain.history.keys() == {"loss"}
    assert_same(plain, train(steps=7, evaluate_every=3)._replace(history=plain.history))
    onward = train(steps=6, state=plain.state)
    assert onward.history["evaluated_at"].tolist() == [10, 13]


def test_evaluations_without_data_and_of_the_params_themselves():
    assert minimize(bowl, jnp.zeros(2), sgd(0.25), steps=4, evaluate=bowl).history["evaluated_at"].tolist() == [4]
    path = minimize(bowl, jnp.zeros(2), sgd(0.25), steps=3, evaluate=lambda p: p, evaluate_every=1).history["metric"]
    np.testing.assert_allclose(path, [[1.5, 1.5], [2.25, 2.25], [2.625, 2.625]])


def test_stop_is_asked_with_the_history_so_far():
    asked = []

    def stop(history):
        asked.append({name: len(value) for name, value in history.items()})
        return len(history["full"]) == 3

    result = train(epochs=9, stop=stop)
    assert asked == [{"loss": 5 * n, "full": n, "b": n, "evaluated_at": n} for n in (1, 2, 3)]
    assert int(result.state["step"]) == 15
    assert_same(result, train(epochs=3))
    alone = minimize(bowl, jnp.zeros(2), sgd(0.25), steps=50, evaluate_every=2, stop=lambda h: bool(h["loss"][-1] < 1))
    np.testing.assert_allclose(alone.history.pop("loss"), [18.0, 4.5, 1.125, 0.28125])
    assert alone.history == {}


# Losses that are not finite


def spoiled(params, *, model_state):
    """Adds `bad` at one step."""
    n = model_state["n"] + 1
    return bowl(params) + jnp.where(n == model_state["at"], model_state["bad"], 0.0), {
        "model_state": model_state | {"n": n}
    }


def fall(at, bad=np.nan, **options):
    model_state = {"n": jnp.int32(0), "at": jnp.int32(at), "bad": jnp.float32(bad)}
    options = {"steps": 12, "model_state": model_state, "has_aux": True} | options
    return minimize(spoiled, jnp.zeros(2), sgd(0.1, momentum=0.5), **options)


@pytest.mark.parametrize("kept_bytes", [8, 7], ids=["goes back", "looks at each step"])
@pytest.mark.parametrize(("at", "bad"), [(1, np.inf), (6, np.nan), (9, -np.inf)])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_changes_anything(at, bad, kept_bytes, monkeypatch):
    looks, run = [], minimization.advancing.run
    monkeypatch.setattr(minimization.advancing, "run", lambda *given: looks.append(given[0]) or run(*given))
    monkeypatch.setattr(minimization, "_KEPT_BYTES", kept_bytes)  # two params have 8
    words = rf"^gradtx\.minimize: the loss was {bad} after {at - 1} updates; the run ended there, with the params befo"
    before = fall(20, bad, steps=at - 1) if at > 1 else None
    for chunk in (None, 1, 4):
        with pytest.warns(RuntimeWarning, match=words):
            result = fall(at, bad, steps_per_call=chunk, evaluate=bowl)
        assert int(result.state["step"]) == at - 1
        assert np.isfinite(result.history["loss"]).tolist() == [True] * (at - 1) + [False]
        assert result.history["evaluated_at"].tolist() == [at - 1]
        if before is not None:
            assert tree_equal((result.params, result.state["tx"]), (before.params, before.state["tx"]))
        assert int(result.state["model_state"]["n"]) == at - 1
    assert {plan.stop_at_nonfinite for plan in looks} == {kept_bytes < 8}


def test_it_warns_of_the_step_of_the_whole_run_at_the_callers_line():
    first = fall(8, steps=5)
    with pytest.warns(RuntimeWarning, match="the loss was nan after 7 updates") as caught:
        minimize(
            spoiled, first.params, sgd(0.1, momentum=0.5), steps=9, state=first.state, has_aux=True, steps_per_call=2
        )
    assert [w.filename for w in caught] == [__file__]


def test_a_nan_is_passed_on_request():
    with pytest.warns(RuntimeWarning, match=r"gradtx\.minimize: the loss was nan after 5 updates; it went on\."):
        result = fall(6, nonfinite="continue", steps=9)
    assert int(result.state["step"]) == 9
    assert np.isnan(result.history["loss"]).tolist() == [t == 5 for t in range(9)]  # its gradient was finite


def test_a_guard_skips_leaves_no_trace_and_gives_up():
    def loss(params, *, model_state):
        n = model_state["n"] + 1
        value = bowl(params) + jnp.where(n == 3, jnp.nan, 0.0)
        return value, {"model_state": {"n": n, "last": value}}

    tx = gradtx.skip_nonfinite(sgd(0.25), 2)
    given = {"model_state": {"n": jnp.int32(0), "last": jnp.float32(0)}, "has_aux": True}
    with pytest.warns(RuntimeWarning) as caught:
        result = minimize(loss, jnp.zeros(2), tx, steps=20, **given)
    first, second = (str(w.message) for w in caught)
    assert first.endswith("the loss was nan after 2 updates; it went on.")
    assert "more steps in a row were not finite than skip_nonfinite allows; the run ended after 5 updates" in second
    assert [w.filename for w in caught] == [__file__] * 2
    np.testing.assert_allclose(result.params, 2.25, rtol=1e-6)  # two steps, and three skipped
    assert result.history["loss"].shape == (5,)
    assert int(result.state["model_state"]["n"]) == 2
    np.testing.assert_allclose(result.state["model_state"]["last"], 4.5, rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 2])
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


# How many steps in a call, and Ctrl-C


@pytest.mark.parametrize(
    ("seconds", "until", "again"),
    [(0.125, [1, 3, 7, 16, 37, 60], 55), (0.03125, [1, 10, 60], 60), (2.0, list(range(1, 61)), 1)],
)
def test_a_call_takes_about_a_third_of_a_second_as_soon_as_that_is_known(seconds, until, again, monkeypatch):
    clock, asked, run = itertools.count(0.0, seconds), [], minimization.advancing.run
    monkeypatch.setattr(minimization, "time", type("Clock", (), {"perf_counter": lambda: next(clock)}))
    monkeypatch.setattr(minimization.advancing, "run", lambda *given: asked.append(int(given[-1])) or run(*given))
    chunks.pace.cache_clear()
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=60)
    assert asked == until
    asked.clear()
    minimize(bowl, jnp.zeros(2), sgd(0.2), steps=60)  # the same program, whose pace is known
    assert asked[0] == again
    asked.clear()
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=10**3, steps_per_call=800)
    assert asked == [800, 1000]


def test_ctrl_c_returns_what_has_been_reached():
    handler = signal.getsignal(signal.SIGINT)
    result = train(steps=10**6, evaluate_every=4, steps_per_call=4, stop=lambda h: len(h["loss"]) == 4 and press())
    assert signal.getsignal(signal.SIGINT) is handler
    assert int(result.state["step"]) == 8  # pressed after 4, and seen after 4 more
    assert result.history["evaluated_at"].tolist() == [4, 8]
    assert_same(result, train(steps=8, evaluate_every=4))
    onward = minimize(cost, result.params, sgd(0.1), DATA, batch_size=5, steps=3, state=result.state)
    assert tree_equal((onward.params, onward.state), train(steps=11)[:2])


def test_the_handler_comes_back_after_an_error_and_a_second_ctrl_c():
    handler = signal.getsignal(signal.SIGINT)

    def broken():
        yield DATA
        raise OSError("the disk is gone")

    def stuck():
        yield DATA
        press()
        press()
        while True:
            time.sleep(0.01)

    for stream, error in ((broken, OSError), (stuck, KeyboardInterrupt)):
        with pytest.raises(error):
            minimize(cost, start(), sgd(0.1), stream())
        assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_in_another_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(train(epochs=1)))
    thread.start()
    thread.join()
    assert_same(results[0], train(epochs=1))


def test_bytes_are_those_of_all_leaves():
    assert minimization._bytes({"a": jnp.zeros(3), "b": np.float32(1), "c": jnp.zeros(2, jnp.bfloat16)}) == 20
