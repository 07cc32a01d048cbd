"""Hyperparameters kept in the state, for users whose optimizer is static."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import tree
from gradtx.core import record
from gradtx.core.annotations import Interval, Kind, is_traced
from gradtx.core.rule import Params, Rule, State, Updates
from gradtx.core.transform import Transform, transform


@transform
def tunable(inner: Transform) -> Rule:
    """Keeps the hyperparameters of `inner` in the state, where they can be changed without recompiling.

    For a transform that is a static part of something compiled (a field of TrainState, nnx.Optimizer). Where you can
    pass the transform to your jitted function as an argument, pass `tx.replace(learning_rate=...)` instead.

    Args:
      inner: any transform. Its hyperparameters are read at init; afterwards those in the state count.

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

    return Rule(init=init, update=update, idle=True)


def with_hyperparameters(tx: Transform, hyperparameters: dict[str, Any]) -> Transform:
    """The transform with the hyperparameters that `tunable` keeps of it, by name."""
    leaves = [hyperparameters[name] for name, _ in _named_leaves(tx)]
    return cast(Any, jax.tree.unflatten)(jax.tree.structure(tx), leaves)


def tune(state: State, **values: Any) -> State:
    """A copy of the state of a `tunable` transform with some hyperparameters changed, in the dtypes they have.

    Args:
      state: a state with one `tunable` in it, however deep.
      values: numbers, by the hyperparameter's name.

    Errors: KeyError for a state without `tunable` or an unknown name, ValueError for a number out of range.
    """
    if not _holds_hyperparameters(state):
        raise KeyError("gradtx.tune: the state holds no hyperparameters; build the optimizer as gradtx.tunable(tx).")

    def change(entry: Any) -> Any:
        return tune(entry, **values) if _holds_hyperparameters(entry) else entry

    if isinstance(cast(Any, state), dict):
        if "hyperparameters" in state:
            return state | {"hyperparameters": _changed(state["hyperparameters"], values)}
        return {key: change(entry) for key, entry in state.items()}
    entries = [change(entry) for entry in cast(Any, state)]  # optax.chain's tuple, a NamedTuple
    return type(state)(*entries) if hasattr(state, "_fields") else type(state)(cast(Any, entries))


def _changed(known: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters with new values in their old dtypes."""
    changed = dict(known)
    for name, value in values.items():
        found = [full for full in known if full == name] or [full for full in known if full.split(".")[-1] == name]
        if len(found) != 1:
            problem = (
                f"several hyperparameters are called {name!r}" if found else f"no hyperparameter is called {name!r}"
            )
            hint = record.suggestion(name, known)
            raise KeyError(f"gradtx.tune: {problem}.{hint} There are: {', '.join(found or known)}.")
        old = known[found[0]]
        if value is None or isinstance(value, (str, bool)) or jnp.shape(value) != jnp.shape(old):
            raise TypeError(f"gradtx.tune: {name} is {value!r}; allowed: a number.")
        if not is_traced(value):
            _check_range(found[0].split(".")[-1], value)
        changed[found[0]] = jnp.array(value, dtype=old.dtype, copy=True)
    return changed


def _check_range(name: str, value: Any) -> None:
    """Refuse what no recorded hyperparameter of this name allows."""
    parameters = (p for factory in record.registry.values() for p in cast(Any, factory).node._parameters)
    intervals = [p.interval for p in parameters if p.name == name and p.kind is Kind.HYPER]
    for number in np.ravel(np.asarray(value, dtype=float)).tolist():
        if not any(number in interval for interval in intervals or [Interval()]):
            allowed = " or ".join(sorted({str(interval) for interval in intervals or [Interval()]}))
            raise ValueError(f"gradtx.tune: {name} is {number!r}; allowed: a number {allowed}.")


def _holds_hyperparameters(state: Any) -> bool:
    if isinstance(state, dict):
        entries = cast(dict[str, Any], state)
        return "hyperparameters" in entries or any(map(_holds_hyperparameters, entries.values()))
    return isinstance(state, tuple) and any(map(_holds_hyperparameters, cast(tuple[Any, ...], state)))


def _named_leaves(tx: Transform) -> list[tuple[str, Any]]:
    """The hyperparameters with their names: `learning_rate`, or `stages[0].decay` in a composition."""
    return [(name.removeprefix("."), leaf) for name, leaf in tree.named_leaves(tx)]
