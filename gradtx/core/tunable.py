"""Hyperparameters kept in the state, for programs in which the optimizer is static."""

import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import tree
from gradtx.core import record
from gradtx.core.annotations import Interval, is_traced
from gradtx.core.elementary import transform
from gradtx.core.rule import Params, Rule, State, Updates
from gradtx.core.state import fits, hyperparameters_called, named_paths, names_of
from gradtx.core.transform import Transform

Place = tuple[str, ...]


@transform
def tunable(inner: Transform) -> Rule:
    """Keeps the hyperparameters of `inner` in the state, where they can be changed without recompiling.

    For a transform that is static in a compiled function (a field of TrainState, nnx.Optimizer). If you can pass the
    transform to your jitted function as an argument, pass `tx.replace(learning_rate=...)` instead.

    Args:
      inner: any transform. Its hyperparameters are read by init; later updates use those in the state.

    State: `{"tunable": {"hyperparameters": {name: scalar}, "inner": inner's state}}`; change them with `tune`.

    Errors: those of `inner`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.tunable(gradtx.sgd(0.5))
    >>> state = tx.init({"w": jnp.zeros(2)})
    >>> state = gradtx.tune(state, learning_rate=0.1)
    >>> updates, state = tx.update({"w": jnp.ones(2)}, state)
    >>> updates
    {'w': Array([-0.1, -0.1], dtype=float32)}
    """

    def init(params: Params) -> State:
        dtype = tree.precision(params)
        hyperparameters = {name: jnp.array(leaf, dtype=dtype, copy=True) for name, leaf in _named_leaves(inner)}
        return {"hyperparameters": hyperparameters, "inner": inner.init(params)}

    def update(updates: Updates, state: State, params: Params = None, **extra: Any) -> tuple[Updates, State]:
        tx = with_hyperparameters(inner, state["hyperparameters"])
        updates, inner_state = tx.update(updates, state["inner"], params, **extra)
        return updates, {"hyperparameters": state["hyperparameters"], "inner": inner_state}

    return Rule(init=init, update=update, traits=("idle",))


def with_hyperparameters(tx: Transform, hyperparameters: dict[str, Any]) -> Transform:
    """The transform with the hyperparameters that `tunable` keeps, by name."""
    leaves = [hyperparameters[name] for name, _ in _named_leaves(tx)]
    return cast(Any, jax.tree.unflatten)(jax.tree.structure(tx), leaves)


def tune(state: State, **values: Any) -> State:
    """A copy of the state of a `tunable` transform with some hyperparameters changed; their dtypes stay the same.

    Args:
      state: a state that contains a `tunable`, at any depth.
      values: numbers, by the hyperparameter's name. If several groups or several `tunable` have it, put the group in
        front: `tune(state, **{"matrices/learning_rate": 0.1})`.

    Errors: KeyError for a state without `tunable`, for an unknown name, or one that is not unique; the error lists the
    names. ValueError for a number out of range.
    """
    kept = _kept(state)
    if not kept:
        raise KeyError("gradtx.tune: the state has no hyperparameters. Build the optimizer as gradtx.tunable(tx).")
    changes: dict[Place, Any] = {}
    for name, value in values.items():
        place, key, old = _one(name, kept)
        if value is None or isinstance(value, (str, bool)) or jnp.shape(value) != jnp.shape(old):
            raise TypeError(f"gradtx.tune: {name} is {value!r}; it must be a number.")
        if not is_traced(value):
            _check_range(key.split(".")[-1], value)
        changes[(*place, key)] = jnp.array(value, dtype=old.dtype, copy=True)

    def at_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        return changes.get(names_of(path), leaf)

    return jax.tree_util.tree_map_with_path(at_leaf, state)


def _kept(state: Any) -> list[tuple[Place, str, Any]]:
    """The hyperparameters in a state: the path to where a `tunable` keeps them, their key there, and the number.

    The state inside a `tunable` is not searched: its entries follow the params, which may have any name.
    """
    leaves = zip(named_paths(state), jax.tree.leaves(state), strict=True)
    found = [(path[:-1], path[-1], number) for path, number in leaves if path[-2:-1] == ("hyperparameters",)]
    outer = {place[:-1] for place, _, _ in found}
    return [one for one in found if not any(one[0][:end] in outer for end in range(len(one[0]) - 1))]


def _one(name: str, kept: list[tuple[Place, str, Any]]) -> tuple[Place, str, Any]:
    """The hyperparameter with this name: a key, or the last part of one, with parts of its path in front if needed."""
    paths = [(*place[:-1], *re.findall(r"\['(.*?)'\]", key), key.split(".")[-1]) for place, key, _ in kept]
    found = [index for index, (_, key, _) in enumerate(kept) if key == name] or [
        index for index, path in enumerate(paths) if fits(path, name.split("/"))
    ]
    if len(found) == 1:
        return kept[found[0]]
    keys = [key for _, key, _ in kept]
    names = [key if keys.count(key) == 1 else "/".join(path) for key, path in zip(keys, paths, strict=True)]
    if found:
        several = ", ".join(names[index] for index in found)
        raise KeyError(f"gradtx.tune: several hyperparameters are called {name!r}. There are: {several}.")
    hint = record.suggestion(name, names)
    raise KeyError(f"gradtx.tune: no hyperparameter is called {name!r}.{hint} There are: {', '.join(names)}.")


def _check_range(name: str, value: Any) -> None:
    """Refuse a value that is out of range for every recorded hyperparameter of this name."""
    intervals = [parameter.interval for parameter in hyperparameters_called(name)] or [Interval()]
    for number in np.ravel(np.asarray(value, dtype=float)).tolist():
        if not any(number in interval for interval in intervals):
            allowed = " or ".join(sorted(set(map(str, intervals))))
            raise ValueError(f"gradtx.tune: {name} is {number!r}; it must be {allowed}.")


def _named_leaves(tx: Transform) -> list[tuple[str, Any]]:
    """The hyperparameters with their names: `learning_rate`, or `stages[0].decay` in a composition."""
    return [(name.removeprefix("."), leaf) for name, leaf in tree.named_leaves(tx)]
