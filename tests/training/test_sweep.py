"""A sweep is its runs, one by one."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.training import blocks
from tests.training.swept import DATA, RATES, adams, init, keys_of, loss

pytestmark = pytest.mark.usefixtures("layout")

# The same numbers -----------------------------------------------------------------------------------------------------

WAYS = {
    "mini-batches, the last one smaller": {"batch_size": 5, "epochs": 4},
    "the last one dropped": {"batch_size": 5, "epochs": 4, "drop_last": True},
    "with replacement": {"batch_size": 5, "steps": 13, "replacement": True},
    "single samples": {"batch_size": 1, "steps": 30},
    "full batch": {"epochs": 15},
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_each_run_is_what_minimize_gives(how):
    result = gradtx.sweep(loss, init, adams(), DATA, seeds=2, key=jax.random.key(5), **how)
    assert result.history["loss"].shape[0] == 10
    for member in range(10):
        tx, seed = gradtx.adam(RATES[member // 2]), member % 2
        first, second = keys_of(seed, jax.random.key(5))
        alone = gradtx.minimize(loss, init(first), tx, DATA, key=second, **how)
        np.testing.assert_allclose(result.history["loss"][member], alone.history["loss"], rtol=1e-5)
        if member == result.best.member:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), result.best.params, alone.params)
            assert result.best.tx == tx


def test_without_data():
    result = gradtx.sweep(lambda x: jnp.sum((x - 1.0) ** 2), lambda key: jnp.zeros(3), adams(), steps=40)
    for member, rate in enumerate(RATES):
        alone = gradtx.minimize(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(3), gradtx.adam(rate), steps=40)
        np.testing.assert_allclose(result.history["loss"][member], alone.history["loss"], rtol=1e-5)


def noisy(params, batch, *, key, model_state):
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    value = jnp.mean((jnp.tanh(batch["x"] @ params["w"]) @ params["v"] - batch["y"] + noise) ** 2)
    positive = jnp.sum(params["w"] > 0)
    return value, {
        "model_state": 0.9 * model_state + 0.1 * value,
        "norm": gradtx.global_norm(params),
        "positive": positive,
    }


def test_keys_model_state_and_records_reach_every_run():
    how = {"batch_size": 5, "steps": 12, "has_aux": True, "model_state": jnp.float32(1.0)}

    def carried(params, *, model_state):
        return {"carried": model_state}

    result = gradtx.sweep(noisy, init, adams(), DATA, seeds=2, evaluate=carried, **how)
    for member in range(10):
        first, second = keys_of(member % 2)
        alone = gradtx.minimize(noisy, init(first), gradtx.adam(RATES[member // 2]), DATA, key=second, **how)
        for name in ("loss", "norm", "positive"):
            np.testing.assert_allclose(result.history[name][member], alone.history[name], rtol=1e-5)
        np.testing.assert_allclose(result.table["carried"][member], alone.state["model_state"], rtol=1e-5)
        if member == result.best.member:
            np.testing.assert_allclose(result.best.model_state, alone.state["model_state"], rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 10, 100])
def test_how_many_at_once_changes_no_number(at_once, layout):
    how = {"batch_size": 5, "epochs": 2, "seeds": 2}
    expected = gradtx.sweep(loss, init, adams(), DATA, **how)
    result = gradtx.sweep(loss, init, adams(), DATA, at_once=at_once, **how)
    np.testing.assert_allclose(result.history["loss"], expected.history["loss"], rtol=1e-5)
    if layout == "one device":
        assert result.at_once <= at_once
    assert result.best.member == expected.best.member


def test_precision_set_around_the_call_reaches_the_threads():
    with jax.enable_x64(True):
        rates = jnp.array(RATES, jnp.float64)
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), DATA)
        start = lambda key: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init(key))  # noqa: E731
        result = gradtx.sweep(loss, start, jax.vmap(gradtx.adam)(rates), wide, batch_size=5, epochs=2, at_once=2)
        assert result.history["loss"].dtype == np.float64
        alone = gradtx.minimize(
            loss, start(keys_of(0)[0]), gradtx.adam(0.01), wide, key=keys_of(0)[1], batch_size=5, epochs=2
        )
    np.testing.assert_allclose(result.history["loss"][2], alone.history["loss"], rtol=1e-12)


def test_several_devices_share_the_runs(layout, monkeypatch):
    if layout == "one device":
        pytest.skip("for several")
    seen = []
    run = blocks.run

    def watched(plan, txs, carry, *rest):
        seen.append((carry["params"]["w"].sharding, carry["tx"]["scale_by_rms"]["nu"]["w"].sharding))
        out = run(plan, txs, carry, *rest)
        seen.append((out[0]["params"]["w"].sharding,))
        return out

    watched.lower = run.lower
    monkeypatch.setattr(blocks, "run", watched)
    result = gradtx.sweep(loss, init, adams(np.logspace(-3, -1, 16)), DATA, batch_size=5, epochs=1)
    assert result.at_once == 16
    for shardings in seen:
        for sharding in shardings:
            assert len(sharding.device_set) == 8
            assert sharding.shard_shape((1, 16, 4, 3)) == (1, 2, 4, 3)


# Those that diverge ---------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_is_reported_and_disturbs_no_other():
    quartic = lambda x: jnp.sum(x**4)  # noqa: E731
    start = lambda key: jax.random.normal(key, (3,)) + 1.0  # noqa: E731
    good = gradtx.sweep(quartic, start, jax.vmap(gradtx.sgd)(jnp.array([0.01, 0.02, 0.005])), steps=40)
    bad = gradtx.sweep(quartic, start, jax.vmap(gradtx.sgd)(jnp.array([0.01, 50.0, 0.005])), steps=40)
    for member in (0, 2):
        assert good.history["loss"][member].tobytes() == bad.history["loss"][member].tobytes()
    assert bad.table["diverged"].tolist() == [False, True, False]
    at = bad.table["diverged_at"][1]
    assert np.isfinite(bad.history["loss"][1, :at]).all()
    assert not np.isfinite(bad.history["loss"][1, at])
    assert bad.table["diverged_at"].tolist() == [-1, at, -1]
    assert bad.best.member == 0


def test_a_sweep_of_which_nothing_is_left_still_has_a_table():
    result = gradtx.sweep(
        lambda x: jnp.sum(x**4), lambda key: jnp.ones(2), jax.vmap(gradtx.sgd)(jnp.array([50.0, 60.0])), steps=30
    )
    assert result.table["diverged"].all()
    assert "2 diverged" in repr(result)


# Many kinds -----------------------------------------------------------------------------------------------------------


def test_a_list_of_different_optimizers():
    kinds = [
        gradtx.grid(gradtx.sgd, learning_rate=[0.1, 0.2], momentum=[0.0, 0.9]),
        adams(),
        gradtx.lion(0.01),
        adams([0.5]),
    ]
    result = gradtx.sweep(loss, init, kinds, DATA, batch_size=5, epochs=2, seeds=2)
    table = result.table
    assert {len(column) for column in table.values()} == {22}
    assert table["optimizer"].tolist() == ["sgd"] * 8 + ["adam"] * 10 + ["lion"] * 2 + ["adam_2"] * 2
    assert table["learning_rate"].tolist() == [0.1] * 4 + [0.2] * 4 + sorted(RATES * 2) + [0.01] * 2 + [0.5] * 2
    np.testing.assert_array_equal(table["momentum"], [0, 0, 0.9, 0.9] * 2 + [np.nan] * 14)
    assert table["seed"].tolist() == [0, 1] * 11
    assert "b1" not in table
    first, second = keys_of(1)
    alone = gradtx.minimize(loss, init(first), gradtx.lion(0.01), DATA, key=second, batch_size=5, epochs=2)
    np.testing.assert_allclose(result.history["loss"][19], alone.history["loss"], rtol=1e-5)


def test_a_dict_names_them_and_foreign_objects_may_be_among_them():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = gradtx.sweep(
            loss, init, {"ours": gradtx.adam(0.01), "theirs": optax.adam(0.01)}, DATA, batch_size=5, epochs=2
        )
    assert result.table["optimizer"].tolist() == ["ours", "theirs"]
    np.testing.assert_allclose(*result.history["loss"], rtol=1e-4)
    np.testing.assert_array_equal(result.table["learning_rate"], [0.01, np.nan])


def test_compositions_and_their_columns():
    txs = jax.vmap(lambda norm, rate: gradtx.clip(norm) >> gradtx.adam(rate))(
        jnp.array([0.1, 0.2]), jnp.array([0.01, 0.02])
    )
    result = gradtx.sweep(loss, init, txs, DATA, batch_size=5, epochs=1)
    assert result.table["optimizer"].tolist() == ["clip >> adam"] * 2
    np.testing.assert_allclose(result.table["learning_rate"], [0.01, 0.02])
    assert len([name for name in result.table if "clip" in name or "max" in name]) == 1


def test_schedules_are_swept_by_their_numbers():
    txs = jax.vmap(lambda rate: gradtx.sgd(gradtx.cosine_decay_schedule(rate, 10)))(jnp.array([0.1, 0.2]))
    result = gradtx.sweep(loss, init, txs, DATA, epochs=10)
    alone = gradtx.minimize(
        loss, init(keys_of(0)[0]), gradtx.sgd(gradtx.cosine_decay_schedule(0.2, 10)), DATA, epochs=10, key=keys_of(0)[1]
    )
    np.testing.assert_allclose(result.history["loss"][1], alone.history["loss"], rtol=1e-5)


# Halving --------------------------------------------------------------------------------------------------------------


def test_successive_halving_stops_the_worse_half():
    how = {"batch_size": 5, "epochs": 6, "seeds": 2}
    whole = gradtx.sweep(loss, init, [adams(), gradtx.sgd(0.1), gradtx.sgd(1e-5)], DATA, **how)
    halved = gradtx.sweep(loss, init, [adams(), gradtx.sgd(0.1), gradtx.sgd(1e-5)], DATA, halve_at=(10, 20), **how)
    stopped = halved.table["stopped_at"].reshape(7, 2)
    assert sorted(stopped[:, 0].tolist()) == [10, 10, 10, 20, 20, 30, 30]
    assert (stopped[:, 0] == stopped[:, 1]).all()
    scores = whole.history["loss"].reshape(7, 2, 30)[:, :, 5:10].mean((1, 2))
    assert set(np.argsort(scores)[4:]) == set(np.flatnonzero(stopped[:, 0] == 10))
    for member, until in enumerate(halved.table["stopped_at"]):
        np.testing.assert_allclose(
            halved.history["loss"][member, :until], whole.history["loss"][member, :until], rtol=1e-5
        )
        assert np.isnan(halved.history["loss"][member, until:]).all()
    left = np.where(stopped.ravel() == 30, halved.table["final_loss"], np.inf)
    assert halved.best.member == left.argmin()
    first = keys_of(halved.best.member % 2)[0]
    assert not np.allclose(halved.best.params["w"], init(first)["w"])
    assert not halved.table["diverged"].any()


# Streams --------------------------------------------------------------------------------------------------------------


class Loader:
    def __len__(self):
        return 3

    def __iter__(self):
        for begin in (0, 7, 14):
            yield {name: leaf[begin : begin + 7] for name, leaf in DATA.items()}


def test_batches_from_an_iterable():
    result = gradtx.sweep(loss, init, adams(), Loader(), epochs=2, at_once=2)
    alone = gradtx.minimize(loss, init(keys_of(0)[0]), gradtx.adam(RATES[3]), Loader(), epochs=2)
    np.testing.assert_allclose(result.history["loss"][3], alone.history["loss"], rtol=1e-5)


def test_an_iterator_is_refused_where_it_would_be_read_twice(layout):
    if layout != "one device":
        pytest.skip("there all runs are one block")
    with pytest.raises(ValueError, match=r"gradtx\.sweep: .*starts anew"):
        gradtx.sweep(loss, init, adams(), iter(Loader()), steps=3, at_once=2)


# Compiled once --------------------------------------------------------------------------------------------------------


@pytest.fixture
def compilations(caplog):
    """The names of what is compiled from here on, in other threads too: a `with` would set it for this one alone."""
    jax.config.update("jax_log_compiles", True)
    with caplog.at_level(logging.WARNING, logger="jax"):
        yield lambda: [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    jax.config.update("jax_log_compiles", False)


def test_the_loop_and_the_orders_are_compiled_once(compilations):
    def another_loss(params, batch):
        return 2.0 * loss(params, batch)

    gradtx.sweep(another_loss, init, adams(), DATA, batch_size=7, epochs=2)
    names = re.findall(r"Finished XLA compilation of jit\((run|draw_orders)\)", " ".join(compilations()))
    assert sorted(names) == ["draw_orders", "run"]


def test_other_rates_and_keys_compile_nothing(request):
    gradtx.sweep(loss, init, adams(), DATA, batch_size=5, epochs=2, at_once=2)
    compiled = request.getfixturevalue("compilations")
    gradtx.sweep(
        loss, init, adams([0.2, 0.3, 0.4, 0.5, 0.6]), DATA, batch_size=5, epochs=2, at_once=2, key=jax.random.key(9)
    )
    gradtx.sweep(loss, init, adams(), DATA, batch_size=5, steps=4, at_once=2)
    assert [message for message in compiled() if "threefry" not in message] == []
