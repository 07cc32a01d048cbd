"""What a sweep says: its table, what it refuses, and what it shows meanwhile."""

import csv
import itertools
import re
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import tree
from tests.training.network import Terminal, press_after
from tests.training.swept import DATA, RATES, adams, init, loss

pytestmark = pytest.mark.usefixtures("layout")

# The result -----------------------------------------------------------------------------------------------------------


def test_the_columns_of_the_table():
    result = gradtx.sweep(loss, init, adams(), DATA, batch_size=5, epochs=3, seeds=2)
    losses, per_epoch = result.history["loss"], 5
    np.testing.assert_allclose(result.table["final_loss"], losses[:, -per_epoch:].mean(1), rtol=1e-6)
    epochs = losses.reshape(10, 3, per_epoch).mean(2)
    np.testing.assert_allclose(result.table["best_loss"], epochs.min(1), rtol=1e-6)
    assert result.best.member == result.table["final_loss"].argmin()
    assert not result.table["diverged"].any()
    assert result.table["stopped_at"].tolist() == [15] * 10


def test_the_best_by_a_metric():
    def evaluate(params):
        return {"error": loss(params, DATA), "size": gradtx.global_norm(params)}

    result = gradtx.sweep(loss, init, adams(), DATA, epochs=5, seeds=2, evaluate=evaluate, best_by="size", highest=True)
    assert result.best.member == result.table["size"].argmax()
    np.testing.assert_allclose(gradtx.global_norm(result.best.params), result.table["size"].max(), rtol=1e-6)
    by_error = gradtx.sweep(loss, init, adams(), DATA, epochs=5, seeds=2, evaluate=evaluate, best_by="error")
    np.testing.assert_allclose(loss(by_error.best.params, DATA), by_error.table["error"].min(), rtol=1e-5)


def test_the_table_as_a_file(tmp_path):
    result = gradtx.sweep(loss, init, adams(), DATA, epochs=3)
    result.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer"] for row in rows] == ["adam"] * 5
    assert [float(row["learning_rate"]) for row in rows] == RATES
    np.testing.assert_array_equal([float(row["final_loss"]) for row in rows], result.table["final_loss"])


def test_the_table_as_a_data_frame():
    pandas = pytest.importorskip("pandas")
    result = gradtx.sweep(loss, init, [adams(), gradtx.sgd(0.1)], DATA, epochs=3, seeds=2)
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(result.table)
    assert frame.shape == (12, len(result.table))
    for name, column in result.table.items():
        np.testing.assert_array_equal(frame[name].to_numpy(), column)
    best = frame.loc[frame["final_loss"].idxmin()]
    assert (best["optimizer"], best["seed"]) == (
        frame["optimizer"][result.best.member],
        frame["seed"][result.best.member],
    )


def test_pandas_is_optional(monkeypatch):
    result = gradtx.sweep(loss, init, adams(), DATA, epochs=3)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_pandas()


def test_the_repr_is_the_top_of_the_table():
    text = repr(gradtx.sweep(loss, init, adams(), DATA, epochs=3, at_once=4))
    assert text.startswith("5 runs, ")
    assert "at once, 0 diverged; the best:" in text
    assert len(text.splitlines()) == 7


# Refused --------------------------------------------------------------------------------------------------------------

REFUSED = {
    "one optimizer": (lambda: {"txs": gradtx.adam(0.1)}, ValueError, r"txs is one optimizer, adam\(.*gradtx\.minimize"),
    "no optimizer": (lambda: {"txs": []}, TypeError, r"txs is \[\]"),
    "a number": (lambda: {"txs": 0.1}, TypeError, r"txs is 0\.1"),
    "what is no optimizer": (lambda: {"txs": [3]}, TypeError, r"an optimizer in txs is 3; allowed: a transform"),
    "no length": (lambda: {"epochs": None}, ValueError, r"how long"),
    "two lengths": (lambda: {"steps": 3}, ValueError, r"epochs=1 and steps=3 are both given"),
    "no seeds": (lambda: {"seeds": 0}, ValueError, r"seeds is 0"),
    "half a seed": (lambda: {"seeds": 1.5}, TypeError, r"seeds is 1\.5"),
    "none at once": (lambda: {"at_once": 0}, ValueError, r"at_once is 0"),
    "a large batch": (lambda: {"batch_size": 24}, ValueError, r"batch_size is 24"),
    "halving late": (lambda: {"halve_at": (5,), "batch_size": 5}, ValueError, r"halve_at is \(5,\)"),
    "halving backwards": (lambda: {"halve_at": (3, 2), "batch_size": 5}, ValueError, r"rising"),
    "an unknown column": (lambda: {"best_by": "accuracy"}, ValueError, r"best_by is 'accuracy'; allowed: 'final_loss'"),
    "a vector loss": (lambda: {"loss": lambda p, b: b["x"] @ p["w"]}, TypeError, r"real scalar"),
    "integer params": (lambda: {"init": lambda key: {"w": jnp.arange(3)}}, TypeError, r"params from init at .*int32"),
    "an evaluate that is no function": (lambda: {"evaluate": 3}, TypeError, r"evaluate is 3"),
}


@pytest.mark.parametrize(("change", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_by_name(change, error, words, layout):
    if layout != "one device":
        pytest.skip("the same")
    arguments = {"loss": loss, "init": init, "txs": adams(), "data": DATA, "epochs": 1} | change()
    with pytest.raises(error, match=r"gradtx\.sweep.*" + words):
        gradtx.sweep(**arguments)


def test_params_that_the_loss_does_not_read_are_warned_of():
    with pytest.warns(UserWarning, match=r"gradtx\.sweep: the loss does not read params at \['unused'\]"):
        gradtx.sweep(lambda p, b: loss(p, b), lambda key: init(key) | {"unused": jnp.ones(2)}, adams(), DATA, epochs=1)


def test_the_params_of_the_best_are_on_the_host_and_finite():
    result = gradtx.sweep(loss, init, adams(), DATA, epochs=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.best.params))
    assert tree.named_leaves(result.best.params)[0][0] == "['v']"


# Meanwhile ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_ctrl_c_ends_it_and_is_raised(streamed):
    class Endless:
        def __iter__(self):
            return itertools.repeat(DATA)

    threads = threading.active_count()
    how = {"data": Endless() if streamed else DATA, "steps": 10**9}  # hours
    thread = press_after(3.0)
    with pytest.raises(KeyboardInterrupt):
        gradtx.sweep(loss, init, adams(), **how)
    thread.join()
    assert threading.active_count() == threads


def test_the_bar_says_what_runs_how_many_at_once_and_the_lowest_loss(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    result = gradtx.sweep(loss, init, adams(), DATA, batch_size=5, epochs=2, at_once=4)
    said = re.sub(r"\s+", " ", sys.stderr.getvalue())
    lowest = result.history["loss"][:, -1].min()
    assert f"adam, {result.at_once} at once, lowest loss {lowest:.4g}," in said
    assert "steps/s" in said
