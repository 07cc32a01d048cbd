"""The records of a sweep's runs, and their table: one row per run, columns of equal length."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.core.transform import Transform

Rows = np.ndarray[Any, Any]


class Results:
    """The records of all runs: arrays with axes (optimizers, seeds), and in the history (optimizers, seeds, steps)."""

    def __init__(self, optimizers: int, seeds: int, total: int, window: int):
        self.shape, self.total, self.window = (optimizers, seeds), total, window  # `window`: steps per epoch
        self.history: dict[str, Rows] = {}
        self.metrics: dict[str, Rows] = {}
        self.stopped_at = np.full(optimizers, total)

    def write(self, records: dict[str, Any], txs: Rows, seeds: Rows, first: int) -> None:
        """Store the records of a block from step `first` on; their axes are (steps, seeds, optimizers, ...)."""
        for path, rows in jax.tree_util.tree_leaves_with_path(records):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name not in self.history:
                missing = np.nan if jnp.issubdtype(rows.dtype, jnp.inexact) else 0
                self.history[name] = np.full((*self.shape, self.total, *rows.shape[3:]), missing, rows.dtype)
            steps = np.arange(first, first + len(rows))
            self.history[name][np.ix_(txs, seeds, steps)] = np.moveaxis(rows, (0, 1, 2), (2, 1, 0))

    def last_epoch(self, until: int) -> Rows:
        """The mean loss of each run over the epoch before step `until`."""
        with np.errstate(invalid="ignore", over="ignore"):
            return self.history["loss"][:, :, max(0, until - self.window) : until].mean(-1)

    def column(self, name: str) -> Rows:
        """A column of the table, as (optimizers, seeds)."""
        if name in self.metrics:
            return self.metrics[name]
        if name == "final_loss":
            final = np.empty(self.shape)
            for until in set(self.stopped_at):
                stopped = self.stopped_at == until
                final[stopped] = self.last_epoch(until)[stopped]
            return final
        epochs = self.history["loss"][..., : self.total // self.window * self.window]
        with np.errstate(invalid="ignore", over="ignore"):
            means = epochs.reshape(*self.shape, -1, self.window).mean(-1)
        return np.where(np.isfinite(means), means, np.inf).min(-1)

    def diverged_at(self) -> Rows:
        """The number of updates before the first loss that was not finite; -1 if all were finite."""
        losses = self.history["loss"]
        bad = ~np.isfinite(losses) & (np.arange(self.total) < self.stopped_at[:, None, None])
        return np.where(bad.any(-1), bad.argmax(-1), -1)


def make(kinds: list[tuple[str, Transform]], results: Results) -> dict[str, Rows]:
    """The columns of the table: the optimizer, its hyperparameters, the seed, and the results."""
    optimizers, seeds = results.shape
    sizes = [count(txs) for _, txs in kinds]
    hyper = [hyperparameters(txs) for _, txs in kinds]
    table: dict[str, Rows] = {"optimizer": np.repeat([name for name, _ in kinds], sizes)}
    for name in dict.fromkeys(name for columns in hyper for name in columns):
        table[name] = np.concatenate([h.get(name, np.full(n, np.nan)) for h, n in zip(hyper, sizes, strict=True)])
    table = {name: np.repeat(column, seeds) for name, column in table.items()}
    table["seed"] = np.tile(np.arange(seeds), optimizers)
    for name in ("final_loss", "best_loss", *results.metrics):
        table[name] = results.column(name).ravel()
    at = results.diverged_at().ravel()
    table |= {"diverged": at >= 0, "diverged_at": at}
    table["stopped_at"] = np.repeat(results.stopped_at, seeds)
    return table


def count(txs: Transform) -> int:
    """The number of optimizers in one value."""
    leaves = jax.tree.leaves(txs)
    return leaves[0].shape[0] if leaves else 1


def hyperparameters(txs: Transform) -> dict[str, Rows]:
    """The learning rate and the hyperparameters that vary, by their argument's name if it is unique, else by path."""
    paths = jax.tree_util.tree_leaves_with_path(txs)
    leaves = {_path(path): np.asarray([shortest(number) for number in np.asarray(leaf)]) for path, leaf in paths}
    last = [path.rpartition(".")[2] for path in leaves]
    short = {path: name if last.count(name) == 1 else path for path, name in zip(leaves, last, strict=True)}
    return {short[path]: leaf for path, leaf in leaves.items() if short[path] == "learning_rate" or len(set(leaf)) > 1}


def shortest(number: Any) -> float:
    """The number with the fewest digits that rounds to `number`: 0.1, not 0.10000000149011612."""
    return float(str(np.asarray(number)))


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def show(table: dict[str, Rows], best: int, at_once: int) -> str:
    """The five best rows, as text."""
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
