"""Many runs as one program: every optimizer of a sweep with every seed, and a table that shows which run is best.

    sweep(cost, init, jax.vmap(adam)(learning_rates), data, batch_size=128, epochs=10, seeds=3)
    sweep(cost, init, grid(sgd, learning_rate=rates, momentum=[0.0, 0.9]), data, epochs=100)
    sweep(cost, init, [grid(adam, learning_rate=rates), grid(lion, learning_rate=rates)], data, ...)

Each run gives what `minimize` gives alone: the same batches, updates and parameters, up to rounding.
"""

import csv
import functools
import importlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.core import check
from gradtx.core.foreign import as_transform
from gradtx.core.transform import Transform
from gradtx.training import blocks, inputs, tables
from gradtx.training.advancing import Plan
from gradtx.training.losses import read_loss, read_sampled_loss
from gradtx.training.members import Job, Runs, pick
from gradtx.training.progress import Progress
from gradtx.training.tables import Results

PyTree = Any
_WHO = "gradtx.sweep"


class Best(NamedTuple):
    """The best run of a sweep.

    Attributes:
      tx: its optimizer, an ordinary single one.
      params: its parameters after the last update.
      model_state: its `model_state` after the last update; None if there is none.
      member: its row in the table, and its index in the arrays of the history.
    """

    tx: Transform
    params: PyTree
    model_state: PyTree
    member: int


@dataclass(frozen=True, repr=False)
class SweepResult:
    """What `sweep` returns; its repr shows the best rows of the table.

    Attributes:
      table: columns of equal length, one row per run: "optimizer", the hyperparameters that vary and learning_rate
        (NaN where an optimizer has none), "seed", "final_loss", "best_loss", "diverged", "diverged_at" (updates made
        until the first loss that was not finite; -1 for none), "stopped_at", and what `evaluate` returned.
      history: a dict of arrays with a leading axis of runs. "loss" has shape (runs, steps), with NaN after a run was
        stopped.
      best: the best run, by the column `best_by`.
      at_once: the largest number of runs made at the same time.
    """

    table: dict[str, np.ndarray[Any, Any]]
    history: dict[str, np.ndarray[Any, Any]]
    best: Best
    at_once: int

    def to_csv(self, path: str | pathlib.Path) -> None:
        """Write the table as comma-separated values."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.table)
            writer.writerows(zip(*(column.tolist() for column in self.table.values()), strict=True))

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame; needs pandas installed."""
        try:
            pandas: Any = importlib.import_module("pandas")
        except ImportError:
            raise ImportError("gradtx.SweepResult.to_pandas needs pandas: pip install pandas. Or use to_csv.") from None
        return pandas.DataFrame(self.table)

    def __repr__(self) -> str:
        return tables.show(self.table, self.best.member, self.at_once)


def sweep(
    loss: Callable[..., Any],
    init: Callable[[Array], PyTree],
    txs: Any,
    data: PyTree = None,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    key: Array | None = None,
    seeds: int = 1,
    at_once: int | None = None,
    progress: bool = True,
    has_aux: bool = False,
    model_state: PyTree = None,
    replacement: bool = False,
    drop_last: bool = False,
    evaluate: Callable[..., Any] | None = None,
    best_by: str = "final_loss",
    highest: bool = False,
    halve_at: tuple[int, ...] = (),
    sampled_loss: Callable[..., Any] | None = None,
) -> SweepResult:
    """Train with many optimizers and seeds in one program, and compare the runs.

    Seed s has two keys, `jax.random.split(jax.random.fold_in(key, s))`: the first for `init`, the second for training.
    `minimize` with the second key, from the same parameters, gives the same run alone. Optimizers that differ only in
    numbers share one program, which is compiled once.

    Args:
      loss: as in `minimize`.
      init: `init(key) -> params`, traceable by JAX.
      txs: an optimizer whose hyperparameters have a leading axis, made by `jax.vmap(adam)(rates)` or by `grid`; or a
        list of such optimizers and of single ones; or a dict, whose keys name them in the table.
      data, batch_size, epochs, steps, has_aux, model_state, replacement, drop_last: as in `minimize`. An iterable of
        batches must give the same batches at each pass, because it may be read once for each group of runs.
      key: a random key; None is `jax.random.key(0)`.
      seeds: the number of runs with each optimizer.
      at_once: the largest number of runs at the same time, which limits the memory. None chooses: on each core of a
        CPU, as many as fit its cache; on an accelerator, as many as fit 30 % of its free memory. With several devices
        the runs are spread over all of them, at least one on each. The result reports the number.
      progress: show the progress if standard error is a terminal.
      evaluate: `evaluate(params)` or `evaluate(params, *, model_state)`, computed at the end of each run. It returns a
        number, which becomes the column "metric", or a dict of numbers, one per column. Stopped runs have NaN.
      best_by: the column that decides which run is best. "final_loss" is the mean loss of the last epoch, "best_loss"
        the lowest mean loss of an epoch. If the length of an epoch is not known, these are losses of one step.
      highest: whether the best run has the highest value, as for an accuracy, instead of the lowest.
      halve_at: numbers of steps after which the worse half of the optimizers is stopped (successive halving). They are
        compared by their mean loss over the epoch before and over the seeds.
      sampled_loss: as in `minimize`; for those of the optimizers that need it.

    Returns: a `SweepResult`. Ctrl-C raises KeyboardInterrupt after the current chunks of steps.

    Errors, before anything is compiled: those of `minimize`; TypeError and ValueError for a single optimizer that is
    not in a list, a `halve_at` that does not increase or is too late, an unknown `best_by`.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> def bowl(x):
    ...     return jnp.sum(x**2)
    >>> def init(key):
    ...     return jax.random.normal(key, (3,))
    >>> txs = jax.vmap(gradtx.sgd)(jnp.array([0.01, 0.1, 1.5]))
    >>> result = gradtx.sweep(bowl, init, txs, steps=200)
    >>> result.best.tx
    sgd(learning_rate=0.1, momentum=None, nesterov=False)
    >>> result.table["diverged"].tolist()
    [False, False, True]
    """
    seeds = inputs.positive(_WHO, "seeds", seeds)
    at_once = None if at_once is None else inputs.positive(_WHO, "at_once", at_once)
    source = inputs.read_data(_WHO, data, batch_size=batch_size, replacement=replacement, drop_last=drop_last)
    if isinstance(source.stream, Iterator):
        raise ValueError(
            f"{_WHO}: data is an iterator, which can be run through once, and all runs see the same batches. Pass "
            "an iterable that starts again at each pass, such as a loader, or an object with __iter__."
        )
    plan = Plan(
        read_loss(_WHO, loss, has_aux=has_aux, has_data=data is not None), source.sampling, source.stream is not None
    )
    total = inputs.total_steps(_WHO, source, epochs=epochs, steps=steps)
    if total is None:
        raise ValueError(f"{_WHO}: the iterable of batches has no length. Give steps=...")
    rounds = _rounds(halve_at, total)
    inputs.check_callable(_WHO, "evaluate", evaluate, "the params")
    kinds = _read_optimizers(txs)
    sampled = read_sampled_loss(_WHO, sampled_loss, [pick(tx, 0) for _, tx in kinds], has_data=data is not None)
    plan = replace(plan, sampled_loss=sampled)
    run_begin = _run_begin_on_cpu if blocks.devices()[0].platform == "cpu" else _run_begin
    given = init, inputs.read_key(_WHO, key), np.arange(seeds)
    _check(plan, run_begin.eval_shape(*given)[0], source, model_state, evaluate, best_by)
    sizes = [tables.count(each) for _, each in kinds]
    results = Results(sum(sizes), seeds, total, min(source.per_epoch or 1, total))
    with Progress("sweep", total * seeds * sum(sizes), show=progress) as bar, blocks.Threads() as pool:
        params, keys = jax.device_get(run_begin(*given))
        job = Job(plan, source, params, keys, model_state, evaluate, at_once, best_by, highest, results, pool, bar)
        rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        runs = [Runs(name, each, where, job) for (name, each), where in zip(kinds, rows, strict=True)]
        for until in rounds:
            for each in runs:
                each.to(until)
            if until != total:
                _halve(results, until)
    return _result(kinds, runs, results)


# What goes in ---------------------------------------------------------------------------------------------------------


def _begin(init: Callable[[Array], PyTree], key: Array, seeds: Array) -> tuple[PyTree, Array]:
    """The initial parameters of each seed, and the bits of the key that it trains with."""

    def begin(seed: Array) -> tuple[PyTree, Array]:
        first, second = jax.random.split(jax.random.fold_in(key, seed))
        return init(first), jax.random.key_data(second)

    return jax.vmap(begin)(seeds)


_run_begin = jax.jit(_begin, static_argnums=0)
# It runs once. LLVM's optimization level 1 gives the same bits as level 2, and compiles random numbers in a third of
# the time.
_run_begin_on_cpu = jax.jit(_begin, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})


def _check(plan: Plan, like: PyTree, source: inputs.Source, model_state: PyTree, evaluate: Any, best_by: str) -> None:
    check.check_leaves(_WHO, "params from init", like)
    one = tree.shapes(like, drop=1)
    inputs.check_loss(_WHO, plan, {"params": one, "model_state": model_state}, source.example)
    known = ["final_loss", "best_loss"]
    if evaluate is not None:
        known += jax.eval_shape(functools.partial(inputs.evaluated_now, evaluate), one, model_state)
    if best_by not in known:
        raise ValueError(f"{_WHO}: best_by is {best_by!r}; allowed: {', '.join(map(repr, known))}.")


def _rounds(halve_at: tuple[int, ...], total: int) -> list[int]:
    """The steps at which optimizers are compared, and the last step."""
    rounds = [inputs.positive(_WHO, "halve_at", step) for step in halve_at]
    if sorted(set(rounds)) != rounds or (rounds and rounds[-1] >= total):
        raise ValueError(f"{_WHO}: halve_at is {halve_at}; the steps must increase, and be below the total, {total}.")
    return [*rounds, total]


def _read_optimizers(txs: Any) -> list[tuple[str, Transform]]:
    """Each kind of optimizer by name, with a leading axis on all its hyperparameters."""
    if isinstance(txs, Transform):
        if not any(jnp.ndim(leaf) for leaf in jax.tree.leaves(txs)):
            raise ValueError(
                f"{_WHO}: txs is one optimizer, {txs!r}; it must be many: jax.vmap(gradtx.adam)(learning_rates), "
                "gradtx.grid(...), or a list of optimizers. For a single one, use gradtx.minimize."
            )
        txs = [txs]
    if not isinstance(txs, (list, tuple, dict)) or not txs:
        raise TypeError(f"{_WHO}: txs is {txs!r}; it must be a sweep of optimizers, or a list or dict of optimizers.")
    named = txs.items() if isinstance(txs, dict) else [(None, tx) for tx in txs]
    entries: list[tuple[str, Transform]] = []
    for name, value in named:
        tx = as_transform(value, f"{_WHO}: an optimizer in txs")
        entries.append((name or _unused(_title(tx), [n for n, _ in entries]), _with_axis(tx)))
    return entries


def _title(tx: Transform) -> str:
    operator = {"chain": " >> ", "join": " + "}.get(tx.name)
    return tx.name if operator is None else operator.join(_title(stage) for stage in tx.arguments["stages"])


def _unused(name: str, taken: list[str]) -> str:
    numbers = itertools.count(2)
    unused = name
    while unused in taken:
        unused = f"{name}_{next(numbers)}"
    return unused


def _with_axis(tx: Transform) -> Transform:
    sizes = {leaf.shape[0] for leaf in map(jnp.asarray, jax.tree.leaves(tx)) if leaf.ndim}
    if len(sizes) > 1:
        raise ValueError(f"{_WHO}: the hyperparameters of {tx.name} have leading axes of lengths {sorted(sizes)}.")
    size = sizes.pop() if sizes else 1
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) else np.full((size,), leaf, dtype), tx)


# What comes out -------------------------------------------------------------------------------------------------------


def _halve(results: Results, step: int) -> None:
    """Stop the worse half of the optimizers that still train, by their mean loss over the seeds."""
    losses = results.last_epoch(step).mean(1)
    left = np.flatnonzero(results.stopped_at == results.total)
    ranked = left[np.argsort(np.where(np.isfinite(losses), losses, np.inf)[left], kind="stable")]
    results.stopped_at[ranked[-(-len(ranked) // 2) :]] = step


def _result(kinds: list[tuple[str, Transform]], runs: list[Runs], results: Results) -> SweepResult:
    history = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in results.history.items()}
    scored = [(run.best, run) for run in runs if run.best is not None]
    (_, tx, seed, (params, model_state)), run = min(scored, key=lambda each: each[0][0])
    member = int(run.rows[tx]) * results.shape[1] + seed
    best = Best(jax.tree.map(tables.shortest, pick(run.txs, tx)), params, model_state, member)
    return SweepResult(tables.make(kinds, results), history, best, max(run.layout.at_once for run in runs))
