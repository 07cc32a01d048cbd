"""The runs of a sweep that one program makes: one kind of optimizer, with its hyperparameters and seeds."""

import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import tree
from gradtx.core.transform import Transform
from gradtx.training import advancing, blocks, inputs
from gradtx.training.advancing import Plan
from gradtx.training.inputs import Source
from gradtx.training.progress import Progress

PyTree = Any
Rows = np.ndarray[Any, Any]
_KEPT = ("params", "tx", "model_state")  # the parts of the carry that each run has for itself


@dataclass(frozen=True)
class Job:
    """What all runs of a sweep have in common."""

    plan: Plan
    source: Source
    total: int
    like: PyTree  # shapes of the two below
    begun: concurrent.futures.Future[Any]  # where each seed starts, and the bits of its key, on the host
    model_state: PyTree
    evaluate: Callable[..., Any] | None
    at_once: int | None
    best_by: str
    highest: bool

    @property
    def seeds(self) -> int:
        """How many."""
        return self.like[1].shape[0]

    @property
    def window(self) -> int:
        """Losses to average: those of an epoch."""
        return min(self.source.per_epoch or 1, self.total)


class Runs:
    """Runs with one kind of optimizer: what they recorded, and where they are."""

    def __init__(self, name: str, txs: Transform, job: Job):
        self.name, self.txs, self.job = name, txs, job
        self.size = jax.tree.leaves(txs)[0].shape[0] if jax.tree.leaves(txs) else 1
        self.alive = np.arange(self.size)
        self.step = 0
        self.records: dict[str, Rows] = {}  # (optimizers, seeds, steps, ...)
        self.metrics: dict[str, Rows] = {}  # (optimizers, seeds)
        self.best: tuple[float, int, int, PyTree] | None = None
        self.stopped_at = np.zeros(self.size, int)
        self.layout, self.sharding = self._lay_out()
        self._lock = threading.Lock()
        self._kept: PyTree = None  # with halving: what each run has reached, (seeds, optimizers alive, ...)

    def to(self, until: int, bar: Progress, count: blocks.Count, *, last_round: bool) -> None:
        """All runs alive until before step `until`, block by block, several beside each other."""
        if not len(self.alive):
            return
        self.stopped_at[self.alive] = until
        jobs = list(itertools.product(_cut(self.job.seeds, self.layout.seeds), _cut(len(self.alive), self.layout.txs)))
        work = blocks.in_thread(functools.partial(self._run_block, until, count, last_round=last_round))
        reached: list[PyTree] = []
        with concurrent.futures.ThreadPoolExecutor(self.layout.workers) as pool:
            pending = [pool.submit(work, *block) for block in jobs]
            try:
                for future in pending:
                    while not concurrent.futures.wait([future], 0.25).done:
                        self._say(bar, count)
                    reached.append(future.result())
                self._say(bar, count)
            except BaseException:
                count.cancelled = True
                for future in pending:
                    future.cancel()
                raise
        if not last_round:
            self._kept = self._assembled(jobs, reached)
        self.step = until

    def _say(self, bar: Progress, count: blocks.Count) -> None:
        bar.update(count.done, f"{self.name}, {self.layout.at_once} at once, lowest loss {count.lowest:.4g}")

    def stop(self, worse: Rows) -> None:
        """Go on without some of the optimizers alive."""
        stay = ~np.isin(self.alive, worse)
        self._kept = jax.tree.map(lambda leaf: leaf[:, stay], self._kept)
        self.alive = self.alive[stay]

    def scores(self) -> Rows:
        """Of each optimizer alive the mean loss of the last epoch, over the seeds."""
        losses = self.records["loss"][self.alive, :, max(0, self.step - self.job.window) : self.step]
        with np.errstate(invalid="ignore", over="ignore"):
            return _finite_or(losses.mean((1, 2)), np.inf)

    def _lay_out(self) -> tuple[blocks.Layout, Any]:
        layout = blocks.lay_out(self.job.seeds, self.size, self._member_bytes(), self.job.at_once)
        if self.job.source.stream is not None:
            layout = blocks.Layout(layout.seeds, layout.txs, 1)
        return blocks.members_sharding(layout)

    def _member_bytes(self) -> float:
        """What a step of one run touches: parameters, gradients, state, and what the loss computes on the way."""
        tx, params = tree.shapes((self.txs, self.job.like[0]), drop=1)
        carry = jax.eval_shape(advancing.start, tx, params, self.job.model_state, inputs.key_like())
        given = carry["params"], self.job.source.example, inputs.key_like(), carry["model_state"]
        jaxpr = jax.make_jaxpr(self.job.plan.loss)(*given).jaxpr
        computed = [v.aval for eqn in jaxpr.eqns for v in eqn.outvars]
        touched = jax.tree.leaves((computed, carry["tx"], carry["params"], carry["params"]))
        return float(sum(leaf.size * leaf.dtype.itemsize for leaf in touched))

    # One block -------------------------------------------------------------------------------------------------------

    def compile_run(self) -> None:
        """Compile the loop, and what comes after it, without a step."""
        job = self.job
        if job.source.stream is not None:
            return
        # Shapes alone will do, and need not wait for other programs; but not for arrays that lie on several devices.
        txs, carry, order = jax.eval_shape(self._nothing_done) if self.sharding is None else self._nothing_done()
        blocks.run.lower(job.plan, txs, carry, job.source.data, order, np.int32(0)).compile()
        if job.evaluate is not None:
            evaluate.lower(job.evaluate, carry["params"], carry["model_state"]).compile()

    def compile_start(self) -> None:
        """Compile what comes before the loop, by calls that are small."""
        self._nothing_done()

    def _nothing_done(self) -> tuple[Transform, PyTree, Any]:
        """A block with zeros for its params and keys, before its first step, and an order of no epochs."""
        like = self.job.like
        params, keys = jax.tree.map(lambda leaf: np.zeros((self.layout.seeds, *leaf.shape[1:]), leaf.dtype), like)
        txs = blocks.pick(self.txs, _cut(self.size, self.layout.txs)[0])
        carry = blocks.start(self.sharding, self.layout.txs, txs, params, self.job.model_state, keys)
        return txs, carry, self._orders(carry["key"], 0, 0)

    def _orders(self, keys: Any, first: int, last: int) -> Any:
        plan = self.job.plan
        return blocks.draw_orders(plan.sampling, plan.capacity, keys, np.int32(first), np.int32(last))

    def _run_block(self, until: int, count: blocks.Count, seeds: Rows, txs: Rows, *, last_round: bool) -> PyTree:
        """Run a block; what it recorded is written down, what it reached returned."""
        job, step = self.job, self.step
        chosen = blocks.pick(self.txs, self.alive[txs])
        carry = self._begin(chosen, seeds, txs)
        carry, records = (self._stream if job.source.stream is not None else self._advance)(
            chosen, carry, step, until, count
        )
        if count.cancelled:
            return None
        if records:
            self._write(records, seeds, self.alive[txs], step, until)
        kept = {name: carry[name] for name in _KEPT}
        if last_round:
            self._finish(kept, seeds, self.alive[txs])
            return None
        return jax.device_get(kept)

    def _begin(self, txs: Transform, seeds: Rows, chosen: Rows) -> PyTree:
        job = self.job
        params, keys = blocks.pick(job.begun.result(), seeds)
        if self._kept is None:
            return blocks.start(self.sharding, len(chosen), txs, params, job.model_state, keys)
        kept = jax.tree.map(lambda leaf: jnp.asarray(leaf[np.ix_(seeds, chosen)]), self._kept)
        if self.sharding is not None:
            kept = jax.device_put(kept, self.sharding)
        return {**kept, "step": jnp.asarray(self.step, jnp.int32), "key": jnp.asarray(keys), "ok": jnp.ones((), bool)}

    def _advance(self, txs: Transform, carry: PyTree, step: int, until: int, count: blocks.Count) -> Any:
        plan, source, records = self.job.plan, self.job.source, []
        chunk = min(plan.capacity, 4 * inputs.first_chunk(carry, source, 0.5))
        first = step
        while first < until and not count.cancelled:
            last = min(first + chunk, until)
            order = self._orders(carry["key"], first, last)
            carry, rows = blocks.run(plan, txs, carry, source.data, order, np.int32(last))
            made = last - first
            records.append(jax.tree.map(lambda leaf, made=made: np.asarray(leaf)[:made], rows))
            count.add(made * self.layout.seeds * self.layout.txs, records[-1]["loss"][-1])
            first = last
        return carry, jax.tree.map(lambda *parts: np.concatenate(parts), *records) if records else records

    def _stream(self, txs: Transform, carry: PyTree, step: int, until: int, count: blocks.Count) -> Any:
        records, shown = [], 0
        for batch in itertools.islice(self.job.source.passes(None), step, until):
            carry, row = blocks.run_batch(self.job.plan, txs, carry, batch)
            records.append(row)
            if (made := len(records) - shown) == 10 or len(records) == until - step:  # the losses are waited for
                count.add(made * self.layout.seeds * self.layout.txs, np.asarray(row["loss"]))
                shown += made
            if count.cancelled:
                return carry, records
        if len(records) < until - step:
            raise ValueError(
                f"gradtx.sweep: the data ended after {len(records)} of {until - step} batches; pass an iterable that "
                "starts anew at each pass, or fewer steps."
            )
        return carry, jax.tree.map(lambda *values: np.stack(values), *jax.device_get(records))

    def _write(self, records: dict[str, Any], seeds: Rows, txs: Rows, first: int, last: int) -> None:
        for name, rows in jax.tree_util.tree_leaves_with_path(records):
            label = jax.tree_util.keystr(name, simple=True, separator="/")
            if label not in self.records:
                missing = np.nan if jnp.issubdtype(rows.dtype, jnp.inexact) else 0
                empty = np.full((self.size, self.job.seeds, self.job.total, *rows.shape[3:]), missing, rows.dtype)
                self.records.setdefault(label, empty)
            self.records[label][np.ix_(txs, seeds, np.arange(first, last))] = np.moveaxis(rows, 0, 2).swapaxes(0, 1)

    def _finish(self, kept: PyTree, seeds: Rows, txs: Rows) -> None:
        """The metrics of a block's runs, and the best of them."""
        if self.job.evaluate is not None:
            for name, values in evaluate(self.job.evaluate, kept["params"], kept["model_state"]).items():
                column = self.metrics.setdefault(name, np.full((self.size, self.job.seeds), np.nan))
                column[np.ix_(txs, seeds)] = np.asarray(values).T
        column = self.column(self.job.best_by)[np.ix_(txs, seeds)]
        scores = _finite_or(-column if self.job.highest else column, np.inf)
        t, s = np.unravel_index(np.argmin(scores), scores.shape)
        reached = jax.tree.map(lambda leaf: np.asarray(leaf)[s, t], (kept["params"], kept["model_state"]))
        with self._lock:
            if self.best is None or scores[t, s] < self.best[0]:
                self.best = float(scores[t, s]), int(txs[t]), int(seeds[s]), reached

    def column(self, name: str) -> Rows:
        """A column of the table, (optimizers, seeds)."""
        if name in self.metrics:
            return self.metrics[name]
        losses, window = self.records["loss"], self.job.window
        with np.errstate(invalid="ignore", over="ignore"):
            if name == "final_loss":
                return np.stack([losses[t, :, max(0, n - window) : n].mean(-1) for t, n in enumerate(self.stopped_at)])
            epochs = losses[..., : losses.shape[-1] // window * window]
            means = epochs.reshape(*epochs.shape[:-1], -1, window).mean(-1)
        return np.min(_finite_or(means, np.inf), -1)

    def _assembled(self, jobs: list[tuple[Rows, Rows]], reached: list[PyTree]) -> PyTree:
        """What the blocks reached, put together: (seeds, optimizers alive, ...)."""

        def join(*parts: Rows) -> Rows:
            whole = np.empty((self.job.seeds, len(self.alive), *parts[0].shape[2:]), parts[0].dtype)
            for (seeds, txs), part in zip(jobs, parts, strict=True):
                whole[np.ix_(seeds, txs)] = part
            return whole

        return jax.tree.map(join, *reached)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(function: Callable[..., Any], params: PyTree, model_state: PyTree) -> dict[str, Any]:
    """What a user's function says of each run."""
    each = functools.partial(inputs.evaluated_now, function)
    return jax.vmap(jax.vmap(each))(params, model_state)


def _cut(size: int, block: int) -> list[Rows]:
    """Indices in blocks of one size; the last block repeats the last index to be full."""
    return [np.minimum(np.arange(first, first + block), size - 1) for first in range(0, size, block)]


def _finite_or(values: Rows, other: float) -> Rows:
    return np.where(np.isfinite(values), values, other)
