"""The current hyperparameters of an optimizer, by name, with schedules evaluated."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.core import record
from gradtx.core.annotations import Kind
from gradtx.core.compose import Composition
from gradtx.core.elementary import Elementary, Named
from gradtx.core.fields import at
from gradtx.core.foreign import Foreign, as_transform
from gradtx.core.schedule import concrete_numbers
from gradtx.core.state import held
from gradtx.core.transform import Transform, Transparent, numbered
from gradtx.core.tunable import with_hyperparameters

State = dict[str, Any]
Found = tuple[tuple[str, ...], tuple[str, ...], Any]
"""The groups that it is in, the names of the transforms and of the argument, and the value."""


def hyperparameters(tx: Any, state: Any) -> dict[str, Any]:
    """The value of every hyperparameter at the last update, by readable name, with schedules evaluated.

    Args:
      tx: an optimizer.
      state: its state, or an object that has it as `opt_state`: a TrainState, an nnx.Optimizer. Before the first update
        the values are those of the first update. With `tunable` they are the numbers in the state.

    Returns float32 scalars by the name of the argument. In a partition the group's name comes first
    ("matrices/learning_rate"); if a name occurs twice, the transform's name does ("scale_2/step_size"). This function
    computes them, also under jit, at no cost for the optimizer. Transforms of other libraries have none.

    Errors: TypeError for anything but a transform, ValueError for a state of another optimizer.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_global_norm(1.0) >> gradtx.adam(gradtx.linear_schedule(0.1, 0.0, 10))
    >>> state = tx.init(jnp.zeros(2))
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.ones(2), state)
    >>> for name, value in gradtx.hyperparameters(tx, state).items():
    ...     print(f"{name}: {value:g}")
    max_norm: 1
    learning_rate: 0.08
    b1: 0.9
    b2: 0.999
    eps: 1e-08
    """
    tx = as_transform(tx, "gradtx.hyperparameters: tx")
    try:
        found = list(numbers_of(tx, held(state), (tx.name,)))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"gradtx.hyperparameters: state does not belong to tx, {tx!r} ({error}); it must be the state of this "
            "optimizer. Pass the one returned by its init or its last update."
        ) from None
    short, full = (["/".join((*groups, *path[-level:])) for groups, path, _ in found] for level in (1, 0))
    names = [one if short.count(one) == 1 else other for one, other in zip(short, full, strict=True)]
    return {name: value for name, (*_, value) in zip(names, found, strict=True)}


def numbers_of(tx: Transform, state: State, path: tuple[str, ...], groups: tuple[str, ...] = ()) -> Iterator[Found]:
    """The hyperparameters under the names that the user wrote: those of `adam`, not of its parts."""
    if isinstance(tx, Composition):
        layout = tx._layout
        for (stage, keys), name in zip(layout, numbered(tuple(stage.name for stage, _ in layout)), strict=True):
            yield from numbers_of(stage, {own: state[key] for own, key in keys}, (*path[:-1], name), groups)
    elif isinstance(tx, Transparent):
        yield from numbers_of(tx.inner, state, path, groups)
    elif isinstance(tx, Named) and any(isinstance(child, Transform) for _, child in record.children(tx.arguments)):
        yield from numbers_of(tx.expand(), state, path, groups)
    elif not isinstance(tx, Foreign) and tx.slots:
        for name, value in _numbers(tx, _last(tx, state)):
            yield groups, (*path, name), value
        for place, inner in tx.inside.items() if isinstance(tx, Elementary) else ():
            entry = state[tx.name]
            if "hyperparameters" in entry:  # tunable: those in the state are used
                inner = with_hyperparameters(inner, entry["hyperparameters"])
            yield from numbers_of(inner, at(entry, place), (*path, inner.name), (*groups, *place[1:]))


def _numbers(tx: Transform, count: Array) -> Iterator[tuple[str, Any]]:
    """The numbers and schedules among the arguments, at this count."""
    numbers = concrete_numbers(tx, count, jnp.float32)
    for parameter in tx._parameters:
        value = numbers[parameter.name]
        if parameter.kind is Kind.SCHEDULE and value is not None:
            value = value.at(count, jnp.float32)
        if parameter.kind in (Kind.HYPER, Kind.SCHEDULE) and value is not None:
            yield parameter.name, jax.tree.map(jnp.asarray, value)


def _last(tx: Transform, state: State) -> Array:
    """How many updates had been made before the last one."""
    counts = [state[name]["count"] for name in numbered(tx.slots) if "count" in state[name]]
    return jnp.maximum(jax.tree.leaves(counts)[0] - 1, 0) if counts else jnp.zeros((), jnp.int32)
