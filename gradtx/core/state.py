"""Reading a state by name."""

from collections.abc import Iterator
from typing import Any, cast

import jax.numpy as jnp
from jax import Array


def find(state: Any, name: str) -> Any:
    """The one entry of a state that is called `name`, however deep.

    Args:
      state: a transform's state.
      name: a transform's name ("scale_by_rms"), a field's ("nu"), or a path's end ("scale_by_rms/nu") where a name is
        not unique.

    Errors: KeyError if nothing, or more than one entry, has the name; it lists what there is.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.adam(1e-3).init({"w": jnp.zeros(2)})
    >>> gradtx.find(state, "nu")
    {'w': Array([0., 0.], dtype=float32)}
    """
    wanted = name.split("/")
    entries = list(_entries(state, ()))
    found = _called(wanted, entries) or _called(wanted, _parts(entries))
    if len(found) == 1:
        return found[0][1]
    paths = ["/".join(path) for path, _ in (found or entries)]
    problem = f"several entries are called {name!r}" if found else f"no entry is called {name!r}"
    raise KeyError(f"gradtx.find: {problem}. {'Name one of' if found else 'There are'}: {', '.join(paths)}.")


def _called(wanted: list[str], entries: list[tuple[tuple[str, ...], Any]]) -> list[tuple[tuple[str, ...], Any]]:
    return [(path, value) for path, value in entries if list(path[-len(wanted) :]) == wanted]


def step_count(state: Any) -> Array:
    """The number of updates that a state has seen: an int32 scalar, the largest of its counters (0 if it has none).

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.step_count(gradtx.adam(1e-3).init({"w": jnp.zeros(2)}))
    Array(0, dtype=int32)
    """
    count = jnp.zeros((), jnp.int32)
    for path, value in _entries(state, ()):
        if path[-1] == "count":
            count = jnp.maximum(count, value)
    return count


def _entries(state: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The named entries of a state: transforms, their fields, what is inside; not the params' trees in the fields."""
    for name, entry in _items(state):
        yield (*path, name), entry
        is_ours = isinstance(state, dict) and type(entry) is dict
        for field, value in _items(cast(Any, entry)) if is_ours else ():
            yield (*path, name, field), value
            if field == "inner":
                yield from _entries(value, (*path, name, field))
        # What comes from elsewhere: tuples of states; the dicts in a NamedTuple's fields are the params'.
        if not is_ours and not (hasattr(cast(Any, state), "_fields") and isinstance(entry, dict)):
            yield from _entries(entry, (*path, name))


def _parts(entries: list[tuple[tuple[str, ...], Any]]) -> list[tuple[tuple[str, ...], Any]]:
    """The parts of fields that have named parts of their own: hyperparameters, weights, NamedTuples."""
    named = [(path, value) for path, value in entries if path[-1] == "hyperparameters" or hasattr(value, "_fields")]
    return [((*path, name), part) for path, value in named for name, part in _items(value)]


def _items(state: Any) -> list[tuple[str, Any]]:
    """The named items of a dict, NamedTuple or tuple."""
    if isinstance(state, dict):
        return [(str(key), value) for key, value in cast(dict[Any, Any], state).items()]
    if isinstance(state, tuple):
        values = cast(Any, state)
        names = getattr(values, "_fields", range(len(values)))
        return [(str(name), value) for name, value in zip(names, values, strict=True)]
    return []
