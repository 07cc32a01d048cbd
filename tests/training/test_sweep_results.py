"""What a sweep says: its table, its best run, and what it shows meanwhile."""

import csv
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import sgd, sweep
from gradtx.training import tables
from gradtx.training.sweeps import SweepResult
from tests.training.network import DATA, RATES, Terminal, bowl, cost, init, keys_of, sgds
from tests.training.reference import descent, index_batches, vector

pytestmark = pytest.mark.usefixtures("one_device")


def bowls(rates, **options):
    """From 0 towards 3: a rate of 0.25 halves the distance."""
    return sweep(bowl, lambda key: jnp.zeros(2), sgds(rates), **options)


def test_the_columns_of_the_table_and_the_best_by_a_metric(tmp_path, monkeypatch):
    def measure(params):
        return {"error": cost(params, DATA), "bias": params["b"]}

    how = {"batch_size": 5, "epochs": 3, "seeds": 2, "evaluate": measure, "progress": False}
    result = sweep(cost, init, sgds(), DATA, **how)
    cuts = [index_batches(keys_of(seed)[1], 15, 5) for seed in range(2)]
    starts = [vector(init(keys_of(seed)[0])) for seed in range(2)]
    runs = [descent(cuts[seed], starts[seed], rate=rate) for rate in RATES for seed in range(2)]
    epochs = np.array([losses for _, losses in runs]).reshape(6, 3, 5).mean(2)
    np.testing.assert_allclose(result.table["final_loss"], epochs[:, -1], rtol=1e-4)
    np.testing.assert_allclose(result.table["best_loss"], epochs.min(1), rtol=1e-4)
    np.testing.assert_allclose(result.table["bias"], [at[3] for at, _ in runs], rtol=1e-4, atol=1e-6)
    assert result.best.member == epochs[:, -1].argmin()
    assert result.table["stopped_at"].tolist() == [15] * 6
    assert result.table["diverged"].tolist() == [False] * 6
    assert result.table["diverged_at"].tolist() == [-1] * 6
    names = ["optimizer", "learning_rate", "seed", "final_loss", "best_loss", "bias", "error"]
    assert list(result.table) == [*names, "diverged", "diverged_at", "stopped_at"]
    for column, highest in (("bias", True), ("bias", False), ("error", False), ("best_loss", False)):
        best = sweep(cost, init, sgds(), DATA, best_by=column, highest=highest, **how).best
        values = result.table[column]
        assert best.member == (values.argmax() if highest else values.argmin()), (column, highest)
        assert best.tx == sgd(RATES[best.member // 2])
        np.testing.assert_allclose(vector(best.params), runs[best.member][0], rtol=1e-4)
        assert all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(best.params))  # on the host

    result.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer"] for row in rows] == ["sgd"] * 6
    assert [float(row["learning_rate"]) for row in rows] == np.repeat(RATES, 2).tolist()
    assert [float(row["final_loss"]) for row in rows] == result.table["final_loss"].tolist()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda table: table))
    assert result.to_pandas() is result.table  # the page on training makes a real one


def test_the_lowest_epoch_leaves_out_steps_after_the_last_whole_one():
    result = sweep(cost, init, sgds([0.1]), DATA, batch_size=5, steps=7)
    losses = result.history["loss"][0]
    np.testing.assert_allclose(result.table["best_loss"], losses[:5].mean(), rtol=1e-6)
    np.testing.assert_allclose(result.table["final_loss"], losses[2:].mean(), rtol=1e-6)
    short = sweep(cost, init, sgds([0.1]), DATA, batch_size=5, steps=3)  # less than an epoch
    np.testing.assert_allclose([short.table["best_loss"], short.table["final_loss"]], losses[:3].mean(), rtol=1e-6)


def test_runs_that_diverge_are_reported_and_disturb_no_other():
    result = bowls([0.25, 1e20, 0.125], steps=4)
    far = 3 * np.array([[0.5], [0.75]]) ** np.arange(4)
    np.testing.assert_allclose(result.history["loss"][[0, 2]], 2 * far**2, rtol=1e-6)
    table = result.table
    assert table["diverged"].tolist() == [False, True, False]
    assert table["diverged_at"].tolist() == [-1, 1, -1]
    np.testing.assert_allclose(table["final_loss"][[0, 2]], 2 * far[:, 3] ** 2, rtol=1e-6)
    assert not np.isfinite(table["final_loss"][1])
    np.testing.assert_allclose(table["best_loss"], [2 * far[0, 3] ** 2, 18.0, 2 * far[1, 3] ** 2], rtol=1e-6)
    assert result.best.member == 0
    assert "3 runs, " in repr(result)
    assert ", 1 diverged; the best:" in repr(result)
    halved = bowls([1e20, 0.25], steps=4, halve_at=(2,))
    assert halved.table["stopped_at"].tolist() == [2, 4]
    assert halved.table["diverged_at"].tolist() == [1, -1]
    nothing = bowls([1e20, 1e30], steps=4)  # of which nothing is left
    assert nothing.table["diverged"].all()
    assert "2 diverged" in repr(nothing)
    hopeless = sweep(bowl, lambda key: jnp.full(2, jnp.inf), sgds([0.25]), steps=2)
    assert hopeless.table["diverged"].tolist() == [True]
    assert hopeless.table["diverged_at"].tolist() == [0]


def test_the_repr_is_the_top_of_the_table():
    losses = np.array([4.0, np.nan, 2.0, 3.00001, 1.0, 9.0, 2.0])
    table = {"optimizer": np.array(["sgd"] * 7), "seed": np.arange(7), "final_loss": losses}
    table["diverged"] = ~np.isfinite(losses)
    assert repr(SweepResult(table, {}, gradtx.training.sweeps.Best(None, None, None, 3), 4)) == (
        "7 runs, 4 at once, 1 diverged; the best:\n"
        "optimizer  seed  final_loss  diverged\n"
        "      sgd     3           3     False\n"
        "      sgd     4           1     False\n"
        "      sgd     2           2     False\n"
        "      sgd     6           2     False\n"
        "      sgd     0           4     False"
    )


def test_hyperparameters_are_named_by_the_shortest_name_that_is_unique():
    def make(rate, decay):
        return (gradtx.ema(decay) + gradtx.ema(0.5)) >> gradtx.clip(2.0) >> sgd(rate)

    columns = tables.hyperparameters(jax.vmap(make)(jnp.array([0.1, 0.1]), jnp.array([0.5, 0.9])))
    assert {name: column.tolist() for name, column in columns.items() if name == "learning_rate"} == {
        "learning_rate": [0.1, 0.1]
    }
    (other,) = columns.keys() - {"learning_rate"}  # of two decays that which varies, by its path
    assert other.endswith("decay")
    assert "stages" in other
    assert not other.startswith(".")
    assert columns[other].tolist() == [0.5, 0.9]
    assert tables.shortest(np.float32(0.1)) == 0.1


def test_params_that_the_loss_does_not_read_are_warned_of():
    with pytest.warns(UserWarning, match=r"gradtx\.sweep: the loss does not read params at \['unused'\]"):
        sweep(lambda p: bowl(p["x"]), lambda key: {"x": jnp.zeros(2), "unused": jnp.ones(2)}, sgds(), steps=1)


def test_the_bar_says_what_runs_how_many_at_once_and_the_lowest_loss(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "200")
    result = bowls([0.1, 0.2, 0.25, 0.125], steps=3, at_once=4)
    said = re.sub(r"\s+", " ", sys.stderr.getvalue())
    assert result.at_once == 4
    assert "sgd, 4 at once, lowest loss 1.125," in said
    assert "12/12" in said
    assert "steps/s" in said
