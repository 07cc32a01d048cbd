"""Reading and checking the data to plot: series of numbers, and tables of runs."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradtx.core.annotations import suggestion

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def series(who: str, name: str, values: Any) -> Numbers:
    """A series of real numbers, as a float64 array of one dimension."""
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.empty(0, dtype=object)  # rows of unequal lengths
    if array.dtype.kind in "bOSUcMm":
        raise TypeError(
            f"{who}: {name} is {_show(values, array)}; allowed: real numbers in one dimension. Convert it: "
            "numpy.asarray([float(value) for value in values])."
        )
    if array.ndim != 1:
        raise ValueError(
            f"{who}: {name} is {_show(values, array)}; allowed: one dimension. "
            "Draw each row by itself, or flatten it: numpy.ravel."
        )
    if array.size == 0:
        raise ValueError(f"{who}: {name} is empty; allowed: at least one number.")
    return array.astype(np.float64)


def unit(who: str, name: str, value: Any) -> float:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 <= value < 1:
        raise ValueError(f"{who}: {name} is {value!r}; it must be a number in [0, 1).")
    return float(value)


def integer(who: str, name: str, value: Any, least: int, most: int, meaning: str = "") -> int:
    """An int from `least` to `most`; `meaning` says what `most` is."""
    allowed = f"{least} to {meaning}{most}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{who}: {name} is {value!r}; it must be an int from {allowed}.")
    if not least <= number <= most:
        raise ValueError(f"{who}: {name} is {number}; allowed: {allowed}.")
    return number


def on_log_scale(who: str, log: bool | None, values: Numbers, name: str, default: bool) -> bool:
    """Whether to draw values on a log scale, for `log=None` by default; an error if `log=True` and they cannot be."""
    finite = values[np.isfinite(values)]
    positive = bool(finite.size and finite.min() > 0)
    if log and finite.size and not positive:
        raise ValueError(
            f"{who}: log is True, and the lowest {name} is {finite.min():g}; a log scale needs positive values. "
            "Pass log=False."
        )
    return positive and (default if log is None else log)


def _show(values: Any, array: np.ndarray[Any, Any]) -> str:
    if isinstance(values, str | Mapping) or array.dtype.kind == "O":
        text = repr(values)
        return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(values).__name__})"
    return f"an array of dtype {array.dtype} and shape {array.shape}"


class Runs(NamedTuple):
    """The columns of a table that a plot needs, one entry per run."""

    optimizers: tuple[str, ...]
    """The names, in order of appearance."""
    optimizer: np.ndarray[Any, Any]
    at: tuple[Numbers, ...]
    """The hyperparameters on the axes."""
    outcome: Numbers
    diverged: Flags
    """Whether a run diverged: by its flag, or because its outcome is not finite."""


def runs(who: str, table: Any, hyperparameters: tuple[str, ...], outcome: str) -> Runs:
    """Read a table, or an object with a `.table`."""
    table = getattr(table, "table", table)
    if not isinstance(table, Mapping):
        raise TypeError(
            f"{who}: the table is a {type(table).__name__}; it must be a dict of columns of equal length, or an object "
            "whose .table is one. Convert a data frame: frame.to_dict('list')."
        )
    for name in ("optimizer", *hyperparameters, outcome):
        if name not in table:
            raise ValueError(
                f"{who}: the table has no column {name!r}.{suggestion(str(name), map(str, table))} "
                f"Its columns: {', '.join(map(str, table)) or 'none'}."
            )
    lengths = {str(name): len(column) for name, column in table.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{who}: the table's columns have unequal lengths: {shown}; allowed: one entry per run.")
    optimizer = np.array([str(name) for name in table["optimizer"]])
    at = tuple(series(who, f"table[{name!r}]", table[name]) for name in hyperparameters)
    values = series(who, f"table[{outcome!r}]", table[outcome])
    diverged = np.zeros(len(values), bool)
    if "diverged" in table:
        diverged = np.asarray(table["diverged"])
        if diverged.dtype.kind != "b":
            raise TypeError(f"{who}: table['diverged'] is of dtype {diverged.dtype}; allowed: bool.")
    found = Runs(tuple(dict.fromkeys(optimizer.tolist())), optimizer, at, values, diverged | ~np.isfinite(values))
    _refuse_repeated(who, table, hyperparameters, found)
    return found


def _refuse_repeated(who: str, table: Mapping[str, Any], hyperparameters: tuple[str, ...], found: Runs) -> None:
    """Refuse two runs with the same seed at one point: they differ in a hyperparameter that is not drawn."""
    if "seed" not in table:
        return
    first: dict[Any, int] = {}
    for row, key in enumerate(
        zip(found.optimizer.tolist(), *(a.tolist() for a in found.at), np.asarray(table["seed"]).tolist())
    ):
        before = first.setdefault(key, row)
        if before == row or any(value != value for value in key):  # a run with NaN is not drawn
            continue
        name, *numbers, seed = key
        place = ", ".join(f"{hyper} {number:g}" for hyper, number in zip(hyperparameters, numbers))
        names = [str(column) for column in table if np.any(table[column][before] != table[column][row])]
        raise ValueError(
            f"{who}: the table has several runs of {name!r} with {place} and seed {seed}, which differ in "
            f"{', '.join(names) or 'nothing'}; allowed: one per seed. Keep the rows of one value of the hyperparameter "
            "that is not drawn."
        )
