"""A sweep is its runs, one by one."""

import contextlib
import itertools
import logging
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import sgd, sweep
from gradtx.training import blocks, members, progress, tables
from tests.training.network import DATA, KEY, RATES, bowl, cost, counting, init, keys_of, noisy, press, sgds
from tests.training.reference import descent, index_batches, noise, vector

needs_eight_devices = pytest.mark.skipif(len(jax.local_devices()) != 8, reason="needs eight devices")


def begin(seed, key=None):
    return vector(init(keys_of(seed, key)[0]))


def told(params, batch, *, key, model_state):
    value = noisy(params, batch, key=key)
    return value, {"model_state": 0.5 * model_state + value, "bias": params["b"]}


def is_descent(how, steps, at_once=None):
    """Sweeps in float64, and compares every number of every run with NumPy's."""
    given = {"has_aux": True, "evaluate": lambda p, *, model_state: {"end": model_state}}
    with jax.enable_x64(True):
        given["model_state"] = jnp.ones(())
        result = sweep(told, init, sgds(), DATA, seeds=2, key=KEY, at_once=at_once, **how, **given)
        cut = {name: value for name, value in how.items() if name not in ("steps", "epochs")}
        keys = [keys_of(seed, KEY)[1] for seed in range(2)]
        drawn = [
            (index_batches(key, steps, **cut), begin(seed, KEY), noise(key, steps)) for seed, key in enumerate(keys)
        ]
        for member, (rate, seed) in enumerate(itertools.product(RATES, range(2))):
            batches, start, noises = drawn[seed]
            at, losses = descent(batches, start, rate=rate, noise=noises)
            carried = sum(value * 0.5 ** (steps - 1 - t) for t, value in enumerate(losses)) + 0.5**steps
            np.testing.assert_allclose(result.history["loss"][member], losses, rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(result.table["end"][member], carried, rtol=1e-11)
            assert (result.table["seed"][member], result.table["learning_rate"][member]) == (seed, rate)
            if member == result.best.member:
                np.testing.assert_allclose(vector(result.best.params), at, rtol=1e-11)
                np.testing.assert_allclose(result.best.model_state, carried, rtol=1e-11)
                assert result.best.tx == sgd(rate)
        assert result.history["bias"].shape == (6, steps)
        assert not result.history["bias"][:, 0].any()
    return result


@pytest.mark.parametrize(
    ("how", "steps", "at_once"),
    [
        ({"batch_size": 5, "epochs": 3}, 15, None),
        ({"batch_size": 5, "steps": 8, "replacement": True, "drop_last": True}, 8, 4),
        ({"epochs": 6}, 6, 1),
    ],
    ids=["mini-batches, all at once", "with replacement, four at once", "full batch, one at once"],
)
def test_each_run_is_descent_on_its_batches(how, steps, at_once, one_device):
    result = is_descent(how, steps, at_once)
    assert result.at_once <= (at_once or 6)


@needs_eight_devices
def test_several_devices_share_the_runs(monkeypatch):
    seen, run = [], blocks.run

    def watched(plan, txs, carry, *rest):
        out = run(plan, txs, carry, *rest)
        seen.extend(state["params"]["w"].sharding for state in (carry, out[0]))
        return out

    monkeypatch.setattr(blocks, "run", watched)
    assert is_descent({"batch_size": 5, "epochs": 1}, 5).at_once == 16  # two seeds of three, filled up to eight
    assert len(seen) >= 4  # a chunk of one step first
    for sharding in seen:
        assert len(sharding.device_set) == 8
        assert sharding.shard_shape((2, 8, 3)) == (2, 1, 3)


# Many kinds -----------------------------------------------------------------------------------------------------------


def test_kinds_of_optimizers_side_by_side(one_device):
    clipped = jax.vmap(lambda norm: gradtx.clip(norm) >> (sgd(0.5) + gradtx.identity()))(jnp.array([0.5, 1.0]))
    falling = jax.vmap(lambda rate: sgd(gradtx.cosine_decay_schedule(rate, 4)))(jnp.array([0.25, 0.5]))
    kinds = [
        gradtx.grid(sgd, learning_rate=[0.25, 0.125], momentum=[0.0, 0.5]),
        sgd(0.5),
        clipped,
        falling,
        optax.sgd(0.25),
        sgd(0.25),
    ]
    with jax.numpy_dtype_promotion("standard"):
        result = sweep(bowl, lambda key: jnp.zeros(1), kinds, steps=3, seeds=2)
    table = result.table
    names = ["sgd"] * 8 + ["sgd_2"] * 2 + [table["optimizer"][10]] * 4 + ["sgd_3"] * 4
    assert table["optimizer"].tolist()[:18] == names
    assert table["optimizer"].tolist()[20:] == ["sgd_4"] * 2
    assert table["optimizer"][10].startswith("clip >> ")
    assert {len(column) for column in table.values()} == {22} == {len(result.history["loss"])}
    assert table["learning_rate"].tolist()[:10] == [0.25] * 4 + [0.125] * 4 + [0.5] * 2
    assert np.isnan(table["learning_rate"][18:20]).all()  # the foreign one says nothing of it
    np.testing.assert_array_equal(table["momentum"], [0, 0, 0.5, 0.5] * 2 + [np.nan] * 14)
    assert table["seed"].tolist() == [0, 1] * 11
    ends = {0: 3 * 0.5**2, 8: 0.0, 18: 3 * 0.5**2, 20: 3 * 0.5**2}  # how far from 3 after two steps
    ends |= {10: 3 - 2 * 0.25, 12: 3 - 2 * 0.5, 14: 3 * 0.5 * (1 - 0.5 * (1 + np.sqrt(0.5)) / 2), 16: 0.0}
    losses = np.array(list(ends.values())) ** 2
    np.testing.assert_allclose(table["final_loss"][list(ends)], losses, rtol=1e-5, atol=1e-6)
    heavy = 3 - (0.125 * 6 * 1.5 + 0.125 * 2 * (3 - 0.125 * 6))  # with momentum 0.5, at rate 0.125
    np.testing.assert_allclose(table["final_loss"][6], heavy**2, rtol=1e-5)
    both = sweep(bowl, lambda key: jnp.zeros(1), {"one": sgd(0.25), "two": sgd(0.5)}, steps=3)
    assert both.table["optimizer"].tolist() == ["one", "two"]
    assert both.best.tx == sgd(0.5)
    assert both.best.member == 1


def test_successive_halving_stops_the_worse_half(one_device, monkeypatch):
    scored, last_epoch = {}, tables.Results.last_epoch
    monkeypatch.setattr(
        tables.Results, "last_epoch", lambda self, until: scored.setdefault(until, last_epoch(self, until))
    )
    rates = [1e-4, 0.01, 0.1, 1e-3, 0.03, 3e-4, 0.003]
    kinds = [sgds(rates[:5]), sgd(rates[5]), sgd(rates[6])]
    given = {"has_aux": True, "model_state": {"n": jnp.zeros(())}, "batch_size": 5, "epochs": 6, "seeds": 2}
    result = sweep(counting, init, kinds, DATA, halve_at=(7, 20), **given)
    cuts = [index_batches(keys_of(seed)[1], 30, 5) for seed in range(2)]
    runs = [[descent(cuts[seed], begin(seed), rate=rate) for seed in range(2)] for rate in rates]
    losses = np.array([[losses for _, losses in each] for each in runs])
    early, late = losses[:, :, 2:7].mean((1, 2)), losses[:, :, 15:20].mean((1, 2))  # an epoch is five steps
    first = np.argsort(early)
    left = [tx for tx in np.argsort(late) if tx in first[:4]]
    np.testing.assert_allclose(scored[7].mean(1), early, rtol=1e-4)
    np.testing.assert_allclose(scored[20].mean(1)[first[:4]], late[first[:4]], rtol=1e-4)
    until = np.full(7, 30)
    until[left[2:]], until[first[4:]] = 20, 7
    assert result.table["stopped_at"].tolist() == np.repeat(until, 2).tolist()
    for member, end in enumerate(result.table["stopped_at"]):
        expected = losses[member // 2, member % 2]
        np.testing.assert_allclose(result.history["loss"][member, :end], expected[:end], rtol=1e-4)
        assert np.isnan(result.history["loss"][member, end:]).all()
        assert result.history["by/n"][member, :end].tolist() == list(range(1, end + 1))
        assert result.history["samples"][member].tolist() == ([5, 5, 5, 5, 3] * 6)[:end] + [0] * (30 - end)
        np.testing.assert_allclose(result.table["final_loss"][member], expected[end - 5 : end].mean(), rtol=1e-4)
    finals = np.where(np.repeat(until, 2) == 30, result.table["final_loss"], np.inf)
    assert result.best.member == finals.argmin()
    at = runs[result.best.member // 2][result.best.member % 2][0]
    np.testing.assert_allclose(vector(result.best.params), at, rtol=1e-4)
    assert not result.table["diverged"].any()


# Streams and Ctrl-C ---------------------------------------------------------------------------------------------------


class Loader:
    def __len__(self):
        return 3

    def __iter__(self):
        for first in (0, 7, 14):
            yield {name: leaf[first : first + 7] for name, leaf in DATA.items()}


def test_batches_from_an_iterable(one_device):
    with jax.enable_x64(True):
        result = sweep(cost, init, sgds(), Loader(), epochs=2, at_once=2)
        batches = [np.arange(first, first + 7) for first in (0, 7, 14)] * 2
        for loss, rate in zip(result.history["loss"], RATES, strict=True):
            np.testing.assert_allclose(loss, descent(batches, begin(0), rate=rate)[1], rtol=1e-12)
    assert result.at_once <= 2


def test_after_halving_a_stream_goes_on_where_it_was(one_device):
    whole = sweep(cost, init, sgds(), Loader(), steps=8)
    halved = sweep(cost, init, sgds(), Loader(), steps=8, halve_at=(4,), at_once=1)
    stayed = halved.table["stopped_at"] == 8
    assert 0 < stayed.sum() < len(RATES)
    np.testing.assert_allclose(halved.history["loss"][stayed], whole.history["loss"][stayed], rtol=1e-5)


def test_data_that_ends_before_its_time():
    class Once:
        def __init__(self):
            self.batches = iter(Loader())

        def __iter__(self):
            return self.batches

    with pytest.raises(ValueError, match=r"gradtx\.sweep: the data ended after 2 of 9 batches\. .* starts again"):
        sweep(cost, init, sgds(), Once(), steps=9)


@pytest.mark.parametrize("streamed", [False, True])
def test_every_update_of_every_run_is_counted(streamed, one_device, monkeypatch):
    said, totals, begin_bar = [], [], progress.Progress.__init__
    monkeypatch.setattr(progress.Progress, "update", lambda self, *given: said.append(given))
    monkeypatch.setattr(
        progress.Progress,
        "__init__",
        lambda self, *given, **how: totals.append(given) or begin_bar(self, *given, **how),
    )
    how = {"data": Loader()} if streamed else {"data": DATA, "batch_size": 7}
    result = sweep(cost, init, sgds(), steps=15, seeds=2, at_once=1, **how)
    total = 15 * 2 * len(RATES)
    assert totals == [("sweep", total)]
    done = [steps for steps, _ in said]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (1, total)
    lowest = np.fmin.reduce(result.history["loss"][:, -1])
    assert float(said[-1][1].rpartition(" ")[2]) <= float(f"{lowest:.4g}")
    assert said[0][1] == f"sgd, 1 at once, lowest loss {result.history['loss'][0, 0]:.4g}"


@pytest.mark.parametrize("streamed", [False, True])
def test_ctrl_c_ends_it_and_is_raised(streamed, one_device, monkeypatch):
    def pressing():
        yield from itertools.repeat(DATA, 30)
        press()
        yield from itertools.repeat(DATA)

    class Endless:
        def __iter__(self):
            return pressing()

    run, calls = blocks.run, itertools.count()

    def pressed(*given):
        if next(calls) == 10:  # well after all blocks were handed out
            press()
        return run(*given)

    monkeypatch.setattr(blocks, "run", pressed)
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        sweep(cost, init, sgds(), Endless() if streamed else DATA, steps=10**7)  # minutes
    assert threading.active_count() == threads


# Compiled once --------------------------------------------------------------------------------------------------------


@pytest.fixture
def compilations(caplog):
    """The names of what is compiled from here on, in other threads too: a `with` would set it for this one alone."""
    jax.config.update("jax_log_compiles", True)
    with caplog.at_level(logging.WARNING, logger="jax"):
        yield lambda: [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    jax.config.update("jax_log_compiles", False)


def test_the_loop_is_compiled_once(compilations, one_device):
    def another_loss(params, batch):
        return 2.0 * cost(params, batch)

    sweep(another_loss, init, sgds(), DATA, batch_size=7, epochs=2, at_once=2)
    assert re.findall(r"Finished XLA compilation of jit\((run)\)", " ".join(compilations())) == ["run"]
    before = len(compilations())
    sweep(another_loss, init, sgds([0.2, 0.3, 0.4]), DATA, batch_size=7, epochs=1, at_once=2, key=jax.random.key(9))
    assert [message for message in compilations()[before:] if "threefry" not in message] == []


# Parts ----------------------------------------------------------------------------------------------------------------


class Device:
    def __init__(self, platform, stats=None):
        self.platform, self.memory_stats = platform, lambda: stats


FULL = Device("gpu", {"bytes_limit": 8e9, "bytes_in_use": 2e9})


@pytest.mark.parametrize(
    ("devices", "cores", "seeds", "txs", "member_bytes", "at_once", "expected"),
    [
        ([Device("cpu")], 4, 2, 8, 1e6, None, (1, 4, 4)),  # four fit the cache, and four cores
        ([Device("cpu")], 4, 2, 8, 1e9, None, (1, 1, 4)),  # none fits
        ([Device("cpu")], None, 2, 8, 0, None, (2, 8, 1)),
        ([Device("cpu")], 4, 2, 8, 10, 3, (1, 1, 3)),
        ([Device("cpu")], 4, 2, 8, 10, 8, (1, 2, 4)),
        ([Device("cpu")], 4, 3, 2, 10, None, (1, 2, 4)),
        ([Device("cpu")], 1, 2, 5, 10, 4, (1, 3, 1)),  # of equal size: 3 and 2, not 4 and 1
        ([Device("cpu")] * 2, 4, 1, 9, 2e6, None, (1, 3, 1)),  # two fit each cache
        ([FULL], 4, 4, 8, 1e8, None, (2, 8, 1)),  # 18 fit three tenths of 6 GB
        ([Device("gpu")], 4, 3, 8, 1e8, None, (3, 8, 1)),  # 24 those of 8 GB
        ([Device("gpu")] * 2, 4, 1, 7, 1.2e9, None, (1, 4, 1)),
    ],
)
def test_how_many_at_once(devices, cores, seeds, txs, member_bytes, at_once, expected, monkeypatch):
    monkeypatch.setattr(blocks, "devices", lambda: devices)
    monkeypatch.setattr(blocks.os, "cpu_count", lambda: cores)
    layout = blocks.lay_out(seeds, txs, member_bytes, at_once)
    assert (layout.seeds, layout.txs, layout.workers) == expected
    assert layout.at_once == np.prod(expected)


@needs_eight_devices
@pytest.mark.parametrize(
    ("layout", "expected", "spec"),
    [
        ((1, 3, 4), (1, 8, 1), (None, "members")),
        ((2, 9, 1), (2, 16, 1), (None, "members")),
        ((2, 2, 1), (2, 8, 1), (None, "members")),
        ((9, 2, 2), (16, 2, 1), ("members",)),
        ((1, 1, 2), (1, 1, 2), None),
    ],
)
def test_the_longer_axis_is_spread_over_devices_and_filled_up(layout, expected, spec):
    layout, sharding = blocks.members_sharding(blocks.Layout(*layout))
    assert layout == blocks.Layout(*expected)
    assert (None if sharding is None else tuple(sharding.spec)) == spec


def test_what_a_step_touches_decides_how_many(one_device, monkeypatch):
    asked, lay_out = [], blocks.lay_out
    monkeypatch.setattr(blocks, "lay_out", lambda *given: asked.append(given) or lay_out(*given))
    loss = lambda params: jnp.sum(params * params)  # noqa: E731
    momentum = jax.vmap(lambda m: sgd(0.1, momentum=m))(jnp.array([0.5]))
    sweep(loss, lambda key: jnp.ones(100), sgds(), steps=1, seeds=2)
    sweep(loss, lambda key: jnp.ones(100), momentum, steps=1)
    # A product of 100 numbers and its sum are computed; params and gradients have 400 bytes each, and momentum too.
    scalars = [
        sum(4 for leaf in jax.tree.leaves(tx.init(jnp.ones(100))) if leaf.ndim == 0)
        for tx in (sgd(0.1), sgd(0.1, momentum=0.5))
    ]
    assert asked == [(2, 3, 404 + 800 + scalars[0], None), (1, 1, 404 + 800 + 400 + scalars[1], None)]


def test_blocks_repeat_the_last_run_to_be_full():
    assert [rows.tolist() for rows in members._cut(np.array([2, 3, 5, 7, 8]), 2)] == [[2, 3], [5, 7], [8, 8]]


def test_settings_of_this_thread_reach_another():
    changed = {"enable_x64": True, "numpy_dtype_promotion": "standard", "numpy_rank_promotion": "allow"}
    changed |= {"default_matmul_precision": "float32", "debug_nans": True}
    before = blocks.settings()
    assert before.keys() == changed.keys()
    with contextlib.ExitStack() as stack:
        for name, value in changed.items():
            stack.enter_context(getattr(jax, name)(value))
        pool = blocks.Threads()
    with pool:
        assert [pool.submit(blocks.settings).result() for _ in range(3)] == [changed] * 3
    assert blocks.settings() == before


def test_a_block_of_one_run_takes_only_the_branch_that_is_due(one_device):
    """Under vmap both branches run: a decomposition that is due every fourth step would be made at every step."""
    made = []

    def decomposed(g):
        return jax.pure_callback(lambda x: made.append(1) or x, g, g, vmap_method="sequential")

    def update(updates, state, params=None):
        step = state + 1
        due = step % 4 == 0
        return jax.tree.map(lambda g: -0.1 * jax.lax.cond(due, decomposed, lambda g: g, g), updates), step

    tx = gradtx.foreign(optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update))
    result = sweep(bowl, lambda key: jnp.ones(3), [tx], steps=12, seeds=2, at_once=1)
    assert result.at_once == 1
    assert len(made) == 2 * 3
