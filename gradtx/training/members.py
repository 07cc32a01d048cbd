"""The runs of a sweep that one program makes: one kind of optimizer, with its hyperparameters and seeds."""

import concurrent.futures
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import tree
from gradtx.core.transform import Transform
from gradtx.training import advancing, blocks, chunks, inputs
from gradtx.training.advancing import Carry, Plan
from gradtx.training.inputs import Source
from gradtx.training.progress import Progress
from gradtx.training.tables import Results, Rows

PyTree = Any
_KEPT = ("params", "tx", "model_state")  # the parts of the carry that differ from run to run


@dataclasses.dataclass
class Job:
    """What all runs of a sweep have in common."""

    plan: Plan
    source: Source
    params: PyTree  # the initial parameters of each seed, on the host
    keys: Rows  # the bits of each seed's key
    model_state: PyTree
    evaluate: Callable[..., Any] | None
    at_once: int | None
    best_by: str
    highest: bool
    results: Results
    pool: concurrent.futures.Executor
    bar: Progress
    done: int = 0
    lowest: float = np.inf


class Runs:
    """The runs with one kind of optimizer, and how far they are."""

    def __init__(self, name: str, txs: Transform, rows: Rows, job: Job):
        self.name, self.txs, self.rows, self.job = name, txs, rows, job
        self.best: tuple[float, int, int, PyTree] | None = None
        self.step, self.pace = 0, chunks.Pace()
        self._kept: PyTree = None  # with halving: the carry of each run, with axes (seeds, optimizers, ...)
        layout = blocks.lay_out(len(job.keys), len(rows), self._member_bytes(), job.at_once)
        layout = layout if job.source.stream is None else dataclasses.replace(layout, workers=1)
        self.layout, self.sharding = blocks.members_sharding(layout)

    def _member_bytes(self) -> float:
        """Bytes that a step of one run touches: parameters, gradients, state, and intermediate results of the loss."""
        tx, params = tree.shapes((self.txs, self.job.params), drop=1)
        carry = jax.eval_shape(advancing.start, tx, params, self.job.model_state, inputs.key_like())
        given = carry["params"], self.job.source.example, inputs.key_like(), carry["model_state"]
        jaxpr = jax.make_jaxpr(self.job.plan.loss)(*given).jaxpr
        computed = [v.aval for eqn in jaxpr.eqns for v in eqn.outvars]
        touched = jax.tree.leaves((computed, carry["tx"], carry["params"], carry["params"]))
        return float(sum(leaf.size * leaf.dtype.itemsize for leaf in touched))

    def to(self, until: int) -> None:
        """Train to step `until` all runs that were not stopped, block by block and several blocks at a time."""
        alive = np.flatnonzero(self.job.results.stopped_at[self.rows] >= until)
        cuts = itertools.product(_cut(np.arange(len(self.job.keys)), self.layout.seeds), _cut(alive, self.layout.txs))
        while wave := list(itertools.islice(cuts, self.layout.workers)):
            for (seeds, txs), carry in zip(wave, self._run(wave, until), strict=True):
                kept = {name: carry[name] for name in _KEPT}
                if until == self.job.results.total:
                    self._finish(kept, seeds, txs)
                else:
                    self._keep(jax.device_get(kept), seeds, txs)
        self.step = until

    def _run(self, wave: list[tuple[Rows, Rows]], until: int) -> list[Carry]:
        """Run several blocks at the same time, chunk by chunk; returns their carries."""
        job, step = self.job, self.step
        chosen = [pick(self.txs, txs) for _, txs in wave]
        carries = [self._begin(txs, *cut) for txs, cut in zip(chosen, wave, strict=True)]
        feeds = [itertools.islice(job.source.feed(None), step * job.plan.streamed, None) for _ in wave]
        if len(wave) > 1:  # makes no step, but compiles the program once: else each thread would
            carries[0], _ = blocks.run(job.plan, chosen[0], carries[0], job.source.data, np.int32(step))
        while step < until:
            begun, steps = time.perf_counter(), min(self.pace.size(job.plan), until - step)
            advance = functools.partial(chunks.advance, blocks.run, job.plan, until=step + steps, steps=steps)
            found = list(job.pool.map(advance, chosen, carries, feeds))
            carries = [carry for carry, _ in found]
            for (seeds, txs), (_, records) in zip(wave, found, strict=True):
                if len(records["loss"]) < steps:
                    raise ValueError(
                        f"gradtx.sweep: the data ended after {step + len(records['loss'])} of {until} batches. Pass an "
                        "iterable that starts again at each pass, or fewer steps."
                    )
                job.results.write(records, self.rows[txs], seeds, step)
                job.done += records["loss"].size
                job.lowest = float(np.fmin.reduce(records["loss"][-1].ravel(), initial=job.lowest))
            job.bar.update(job.done, f"{self.name}, {self.layout.at_once} at once, lowest loss {job.lowest:.4g}")
            self.pace.seconds, step = (time.perf_counter() - begun) / steps, step + steps
        return carries

    def _begin(self, chosen: Transform, seeds: Rows, txs: Rows) -> Carry:
        """The carry of a block: before its first step, or as it was kept at the last halving."""
        params, keys = pick((self.job.params, self.job.keys), seeds)
        if self.step == 0:
            return blocks.start(self.sharding, len(txs), chosen, params, self.job.model_state, keys)
        kept = jax.tree.map(jnp.asarray, pick(self._kept, np.ix_(seeds, txs)))
        kept = kept if self.sharding is None else jax.device_put(kept, self.sharding)
        return {**kept, "step": jnp.asarray(self.step, jnp.int32), "key": jnp.asarray(keys), "ok": jnp.ones((), bool)}

    def _keep(self, reached: PyTree, seeds: Rows, txs: Rows) -> None:
        """Keep the carry of a block on the host until the next round."""
        if self._kept is None:
            shape = len(self.job.keys), len(self.rows)
            self._kept = jax.tree.map(lambda leaf: np.empty((*shape, *leaf.shape[2:]), leaf.dtype), reached)
        for whole, part in zip(jax.tree.leaves(self._kept), jax.tree.leaves(reached), strict=True):
            whole[np.ix_(seeds, txs)] = part

    def _finish(self, reached: PyTree, seeds: Rows, txs: Rows) -> None:
        """Record the metrics of a block's runs, and the best run so far."""
        job, results, place = self.job, self.job.results, np.ix_(self.rows[txs], seeds)
        if job.evaluate is not None:
            for name, values in blocks.evaluate(job.evaluate, reached["params"], reached["model_state"]).items():
                results.metrics.setdefault(name, np.full(results.shape, np.nan))[place] = np.asarray(values).T
        column = results.column(job.best_by)[place]
        scores = np.where(np.isfinite(column), -column if job.highest else column, np.inf)
        t, s = np.unravel_index(np.argmin(scores), scores.shape)
        if self.best is None or scores[t, s] < self.best[0]:
            self.best = (
                float(scores[t, s]),
                int(txs[t]),
                int(seeds[s]),
                pick((reached["params"], reached["model_state"]), (s, t)),
            )


def pick(tree: PyTree, index: Any) -> PyTree:
    """The entries of the leading axes at `index`, taken on the host, so that nothing is compiled."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def _cut(indices: Rows, size: int) -> list[Rows]:
    """The indices in blocks of equal size; the last block is filled up by repeating the last index."""
    return [
        indices[np.minimum(np.arange(first, first + size), len(indices) - 1)] for first in range(0, len(indices), size)
    ]
