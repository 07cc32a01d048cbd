"""The table of a sweep: one row per run, columns of equal length."""

from typing import Any

import jax
import numpy as np

from gradtx.core.transform import Transform
from gradtx.training.members import Runs

Rows = np.ndarray[Any, Any]


def make(runs: list[Runs]) -> dict[str, Rows]:
    """The columns: which optimizer, its hyperparameters, its seed, and how it went."""
    seeds = runs[0].job.seeds
    hyper = [hyperparameters(run.txs) for run in runs]
    table: dict[str, Rows] = {"optimizer": np.repeat([run.name for run in runs], [run.size * seeds for run in runs])}
    for name in dict.fromkeys(name for columns in hyper for name in columns):
        missing = [np.full(run.size, np.nan) for run in runs]
        table[name] = np.repeat(np.concatenate([h.get(name, m) for h, m in zip(hyper, missing, strict=True)]), seeds)
    table["seed"] = np.tile(np.arange(seeds), sum(run.size for run in runs))
    for name in ("final_loss", "best_loss", *runs[0].metrics):
        table[name] = np.concatenate([run.column(name).ravel() for run in runs])
    at = np.concatenate([_diverged_at(run) for run in runs])
    table["diverged"], table["diverged_at"] = at >= 0, at
    table["stopped_at"] = np.repeat(np.concatenate([run.stopped_at for run in runs]), seeds)
    return table


def hyperparameters(txs: Transform) -> dict[str, Rows]:
    """The hyperparameters that vary, and the learning rate, by name: the shortest that is unique."""
    paths = jax.tree_util.tree_leaves_with_path(txs)
    leaves = {_path(path): np.asarray([shortest(number) for number in np.asarray(leaf)]) for path, leaf in paths}
    last = [path.rpartition(".")[2] for path in leaves]
    short = {path: name if last.count(name) == 1 else path for path, name in zip(leaves, last, strict=True)}
    return {short[path]: leaf for path, leaf in leaves.items() if short[path] == "learning_rate" or len(set(leaf)) > 1}


def shortest(number: Any) -> float:
    """The number of fewest digits that rounds to this one: 0.1, not 0.10000000149011612."""
    return float(str(np.asarray(number)))


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def _diverged_at(run: Runs) -> Rows:
    """Updates made until the first loss that was not finite; -1 for none."""
    losses = run.records["loss"]
    made = np.arange(losses.shape[-1]) < run.stopped_at[:, None, None]
    bad = ~np.isfinite(losses) & made
    return np.where(bad.any(-1), bad.argmax(-1), -1).ravel()


def show(table: dict[str, Rows], best: int, at_once: int) -> str:
    """The best rows, as text."""
    rows = np.argsort(np.where(np.isfinite(table["final_loss"]), table["final_loss"], np.inf), kind="stable")
    rows = [best, *(row for row in rows if row != best)][:5]
    cells = [[name, *(_cell(column[row]) for row in rows)] for name, column in table.items()]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in zip(*cells, strict=True)
    ]
    count, bad = len(table["seed"]), int(table["diverged"].sum())
    return "\n".join([f"{count} runs, {at_once} at once, {bad} diverged; the best:", *lines])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)
