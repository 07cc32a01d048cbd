"""Reading a state by name."""

import functools
from collections.abc import Iterator
from typing import Any, cast

import jax.numpy as jnp
from jax import Array

from gradtx.core import record
from gradtx.core.annotations import Kind


def held(state: Any) -> Any:
    """The state, or that which a `TrainState` or an `nnx.Optimizer` holds."""
    return getattr(state, "opt_state", state)


def find(state: Any, name: str) -> Any:
    """The one entry of a state that is called `name`, however deep.

    Args:
      state: a transform's state, or what holds one as `opt_state`: a TrainState, an nnx.Optimizer.
      name: a transform's name ("scale_by_rms"), a field's ("nu"), or a path's end ("scale_by_rms/nu") where a name is
        not unique; in a partition with the group's name in front ("matrices/scale_by_rms/nu"). Wrappers in between
        may be left out.

    Errors: KeyError if nothing, or more than one entry, has the name; it lists what there is.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.adam(1e-3).init({"w": jnp.zeros(2)})
    >>> gradtx.find(state, "nu")
    {'w': Array([0., 0.], dtype=float32)}
    """
    wanted, state = name.split("/"), held(state)
    entries = list(_entries(state, ()))
    found = _called(wanted, entries) or _called(wanted, list(_all(state, ()))) or _called_between(wanted, entries)
    if len(found) == 1:
        return found[0][1]
    paths = ["/".join(path) for path, _ in (found or entries)]
    problem = f"several entries are called {name!r}" if found else f"no entry is called {name!r}"
    hint = f" {name} is a hyperparameter: gradtx.hyperparameters(tx, state)." if _is_hyperparameter(name) else ""
    raise KeyError(f"gradtx.find: {problem}.{hint} {'Name one of' if found else 'There are'}: {', '.join(paths)}.")


def _is_hyperparameter(name: str) -> bool:
    parameters = (p for factory in record.registry.values() for p in cast(Any, factory).node._parameters)
    return any(p.name == name and p.kind is Kind.HYPER for p in parameters)


def _called(wanted: list[str], entries: list[tuple[tuple[str, ...], Any]]) -> list[tuple[tuple[str, ...], Any]]:
    return [(path, value) for path, value in entries if list(path[-len(wanted) :]) == wanted]


def _called_between(wanted: list[str], entries: list[tuple[tuple[str, ...], Any]]) -> list[tuple[tuple[str, ...], Any]]:
    return [(path, value) for path, value in entries if fits(path, wanted)]


def fits(path: tuple[str, ...], wanted: list[str]) -> bool:
    """Whether a path has the wanted names in order, the last one last: wrappers may stand between them."""
    rest = iter(path[:-1])
    return path[-1] == wanted[-1] and all(name in rest for name in wanted[:-1])


def step_count(state: Any) -> Array:
    """The number of updates that a state has seen: the largest of its counters, an int32 scalar.

    Args:
      state: a transform's state, or what holds one as `opt_state`: a TrainState, an nnx.Optimizer.

    Errors: KeyError for a state without a counter.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.step_count(gradtx.adam(1e-3).init({"w": jnp.zeros(2)}))
    Array(0, dtype=int32)
    """
    counts = [jnp.asarray(value) for path, value in _all(held(state), ()) if path[-1] == "count" and _is_integer(value)]
    if not counts:
        raise KeyError("gradtx.step_count: the state has no counter.")
    return functools.reduce(jnp.maximum, counts)


def _is_integer(value: Any) -> bool:
    """Whether this is a counter: the params' trees in a state have floating-point leaves."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.integer)


def _entries(state: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The named entries of a state: transforms, their fields, what is inside; not the params' trees in the fields."""
    for name, entry in items(state):
        yield (*path, name), entry
        is_ours = isinstance(state, dict) and type(entry) is dict
        for field, value in items(cast(Any, entry)) if is_ours else ():
            yield (*path, name, field), value
            if field == "inner":
                yield from _entries(value, (*path, name, field))
            elif field == "groups":
                for group, inside in items(value):
                    yield (*path, name, field, group), inside
                    yield from _entries(inside, (*path, name, field, group))
        # What comes from elsewhere: tuples of states; the dicts in a NamedTuple's fields are the params'.
        if not is_ours and not (hasattr(cast(Any, state), "_fields") and isinstance(entry, dict)):
            yield from _entries(entry, (*path, name))


def _all(state: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything in it that has a name, the params' trees included."""
    for name, value in items(state):
        yield (*path, name), value
        yield from _all(value, (*path, name))


def items(state: Any) -> list[tuple[str, Any]]:
    """The named items of a dict, NamedTuple or tuple."""
    if isinstance(state, dict):
        return [(str(key), value) for key, value in cast(dict[Any, Any], state).items()]
    if isinstance(state, tuple):
        values = cast(Any, state)
        names = getattr(values, "_fields", range(len(values)))
        return [(str(name), value) for name, value in zip(names, values, strict=True)]
    return []
