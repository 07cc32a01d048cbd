"""One-program sweeps and one-call training against the loops people write (tests/benchmarks/peers.py).

    python -m tests.benchmarks.sweeps cold   [--hidden 128]     64 learning rates, everything included: a process each
    python -m tests.benchmarks.sweeps warm   [--hidden 32 128]  the same, already compiled: rounds in one process
    python -m tests.benchmarks.sweeps large  [--hidden 2048]    8 learning rates: sweep against one run after another
    python -m tests.benchmarks.sweeps single [--hidden 32 128 512 2048]   one run: minimize against hand-written loops
    python -m tests.benchmarks.sweeps bar    [--hidden 128]     2000 epochs with a bar on a terminal, against without

The task: digits, a 64-hidden-10 network, 10 epochs of batch 128, Adam. A row is the median over the rounds of the ratio
of two, with the range of its middle half.
"""

import argparse
import contextlib
import functools
import os
import pty
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from tests.benchmarks import pairs, peers

TASK: dict[str, Any] = {"epochs": 10, "batch_size": 128}
RATES = np.logspace(-4, 0, 64)


def our_sweep(hidden: int, rates: Any = RATES, at_once: int | None = None) -> Any:
    """The sweep, from host arrays to a table."""
    train, _ = peers.digits()
    txs = jax.vmap(gradtx.adam)(jnp.asarray(rates, jnp.float32))
    return gradtx.sweep(peers.loss, _init(hidden), txs, train, at_once=at_once, **TASK)


_INITS: dict[int, Callable[[Any], Any]] = {}


def _init(hidden: int) -> Callable[[Any], Any]:
    """The same function each time, as in a script where it has a name."""
    return _INITS.setdefault(hidden, lambda key: peers.init(key, hidden))


def programs(hidden: int, rates: Any = RATES) -> dict[str, Callable[[], Any]]:
    """What is compared."""
    train, _ = peers.digits()
    run = {"hidden": hidden, "seed": 0, **TASK}
    return {
        "sweep": lambda: our_sweep(hidden, rates),
        "expert": lambda: peers.expert(train, rates, **run),
        "expert, donating": lambda: peers.expert(train, rates, donate=True, **run),
        "tuned": lambda: peers.tuned(train, rates, **run),
        "most people": lambda: peers.most_people(train, rates, **run),
    }


def rounds(calls: dict[str, Callable[[], Any]], number: int) -> dict[str, list[float]]:
    """Seconds of all calls in each round, in a random order; the first round is not counted."""
    return pairs.interleaved({name: functools.partial(pairs.seconds, call) for name, call in calls.items()}, number)


def report(title: str, times: dict[str, list[float]], ours: str) -> None:
    """A line for each peer."""
    print(title + ": " + ", ".join(f"{name} {statistics.median(t):.3f} s" for name, t in times.items()))
    for name in times:
        if name != ours:
            print(f"    {name} / {ours}: {pairs.said(pairs.ratios(times, name, ours))}")


def cold(hidden: int, number: int) -> None:
    """Each in a process of its own, compilation included; imports and reading the data are not."""
    names = ["sweep", "expert", "tuned", "most people"]
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(number):
        for name in names:
            if name == "most people" and turn:
                times[name].append(times[name][0])  # a minute each: once
                continue
            command = [sys.executable, "-m", "tests.benchmarks.sweeps", "one", "--hidden", str(hidden), "--name", name]
            times[name].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    report(f"hidden {hidden}, cold", times, "sweep")


def warm(hidden: int, number: int) -> None:
    """Compiled before. (Most people's loop compiles anew in each call, so it is not here.)"""
    calls = programs(hidden)
    del calls["most people"]
    report(f"hidden {hidden}, warm", rounds(calls, number), "sweep")


def large(hidden: int, number: int) -> None:
    """A network that fills the machine: a sweep must not be slower than one run after another."""
    train, _ = peers.digits()
    rates = RATES[::8]
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    params = peers.init(key[0], hidden)

    def one_after_another() -> Any:
        runs = [gradtx.minimize(peers.loss, params, gradtx.adam(rate), train, key=key[1], **TASK) for rate in rates]
        return [run.history["loss"] for run in runs]

    calls = {"sweep": lambda: our_sweep(hidden, rates).history["loss"], "minimize each": one_after_another}
    calls["tuned"] = programs(hidden, rates)["tuned"]
    report(f"hidden {hidden}, 8 rates, {our_sweep(hidden, rates).at_once} at once", rounds(calls, number), "sweep")


def single(hidden: int, number: int) -> None:
    """One run: the time of each form of a hand-written loop over that of minimize."""
    train, _ = peers.digits()
    data, params, key = jax.tree.map(jnp.asarray, train), peers.init(jax.random.key(0), hidden), jax.random.key(1)
    ours = gradtx.adam(1e-3)
    calls: dict[str, Callable[[], Any]] = {
        "minimize": lambda: gradtx.minimize(peers.loss, params, ours, data, key=key, **TASK).history["loss"]
    }
    for form in peers.FORMS:
        for name, tx in (("gradtx", ours), ("optax", optax.adam(1e-3))):
            train_once = peers.hand_written(form, data, tx, **TASK)
            calls[f"{form}, {name}"] = lambda train_once=train_once: train_once(params, key)[2]
    report(f"hidden {hidden}, one run", rounds(calls, number), "minimize")


def bar(hidden: int, number: int) -> None:
    """What the bar costs on a terminal, for `minimize` and for `sweep`."""
    train, _ = peers.digits()
    params, tx, long = peers.init(jax.random.key(0), hidden), gradtx.adam(1e-3), {"batch_size": 128, "epochs": 2000}
    txs = jax.vmap(gradtx.adam)(jnp.asarray(RATES[::16], jnp.float32))
    terminal, end = pty.openpty()
    threading.Thread(target=lambda: all(iter(lambda: os.read(terminal, 4096), b"")), daemon=True).start()
    for name, run in {
        "minimize": lambda **say: gradtx.minimize(peers.loss, params, tx, train, **say, **long).history["loss"],
        "sweep": lambda **say: gradtx.sweep(peers.loss, _init(hidden), txs, train, **say, **long).history["loss"],
    }.items():
        calls = {f"progress={say}": functools.partial(run, progress=say) for say in (True, False)}
        with open(end, "w", closefd=False) as stderr, contextlib.redirect_stderr(stderr):
            times = rounds(calls, number)
        report(f"hidden {hidden}, {name}", times, "progress=True")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cold", "warm", "large", "single", "bar", "one"])
    parser.add_argument("--hidden", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--name", default="sweep", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "one":
        peers.digits()
        print(pairs.seconds(programs(arguments.hidden[0])[arguments.name]))
        return
    run, sizes, number = {
        "cold": (cold, [128], 5),
        "warm": (warm, [32, 128], 15),
        "large": (large, [2048], 7),
        "single": (single, [32, 128, 512, 2048], 15),
        "bar": (bar, [128], 11),
    }[arguments.what]
    for hidden in arguments.hidden or sizes:
        run(hidden, arguments.rounds or number)


if __name__ == "__main__":
    main()
