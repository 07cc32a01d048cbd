"""Reading a state by name, and its bytes and sharding before it exists."""

import functools
import math
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from gradtx import sharding
from gradtx.core import record
from gradtx.core.annotations import Kind, Parameter, as_count, is_traced
from gradtx.core.fields import Field, Place


def held(state: Any) -> Any:
    """The state, or the one inside a `TrainState` or an `nnx.Optimizer`."""
    return getattr(state, "opt_state", state)


def find(state: Any, name: str) -> Any:
    """The entry of a state with this name, however deeply nested.

    Args:
      state: a transform's state, or an object that has one as `opt_state`: a TrainState, an nnx.Optimizer.
      name: the name of a transform ("scale_by_rms") or of a field ("nu"), or the end of a path ("scale_by_rms/nu") if a
        name is not unique; in a partition with the group's name in front ("matrices/scale_by_rms/nu"). Wrappers in
        between may be left out. A field of several groups is returned as one tree, with each leaf from its group.

    Errors: KeyError if no entry, or more than one, has the name; the error lists the names.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.adam(1e-3).init({"w": jnp.zeros(2)})
    >>> gradtx.find(state, "nu")
    {'w': Array([0., 0.], dtype=float32)}
    """
    wanted, state = name.split("/"), held(state)
    entries = list(_entries(state, ()))
    found = (
        [entry for entry in entries if list(entry[0][-len(wanted) :]) == wanted]
        or [entry for entry in _all(state, ()) if list(entry[0][-len(wanted) :]) == wanted]
        or [entry for entry in entries if fits(entry[0], wanted)]
    )
    if len(found) == 1:
        return found[0][1]
    if (union := _union(found)) is not None:
        return union
    paths = ["/".join(path) for path, _ in (found or entries)]
    problem = f"several entries are called {name!r}" if found else f"no entry is called {name!r}"
    hint = f" {name} is a hyperparameter: gradtx.hyperparameters(tx, state)." if hyperparameters_called(name) else ""
    raise KeyError(f"gradtx.find: {problem}.{hint} {'Name one of' if found else 'There are'}: {', '.join(paths)}.")


def _union(found: list[tuple[tuple[str, ...], Any]]) -> Any:
    """The entries of the groups of one partition, merged into one tree; None if they are not groups."""
    places = [path.index("groups") if "groups" in path else 0 for path, _ in found]
    if len(found) < 2 or 0 in places or len({path[:place] for (path, _), place in zip(found, places, strict=True)}) > 1:
        return None
    trees = [value for _, value in found]
    structures: list[Any] = [jax.tree.structure(value, is_leaf=_is_none) for value in trees]
    rows = list(zip(*(jax.tree.leaves(value, is_leaf=_is_none) for value in trees), strict=False))
    if len(set(structures)) > 1 or any(sum(leaf is not None for leaf in row) > 1 for row in rows):
        return None
    return structures[0].unflatten([next((leaf for leaf in row if leaf is not None), None) for row in rows])


def _is_none(value: Any) -> bool:
    return value is None


def hyperparameters_called(name: str) -> list[Parameter]:
    """The hyperparameters of this name, of all factories."""
    parameters = (p for factory in record.registry.values() for p in cast(Any, factory).node._parameters)
    return [p for p in parameters if p.name == name and p.kind is Kind.HYPER]


def fits(path: tuple[str, ...], wanted: list[str]) -> bool:
    """Whether a path ends with the last wanted name and has the others before it, in order; wrappers may be between."""
    rest = iter(path[:-1])
    return path[-1] == wanted[-1] and all(name in rest for name in wanted[:-1])


def step_count(state: Any) -> Array:
    """The number of updates that a state has seen: the largest of its counters, an int32 scalar.

    Args:
      state: a transform's state, or an object that has one as `opt_state`: a TrainState, an nnx.Optimizer.

    Errors: KeyError for a state without a counter.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.step_count(gradtx.adam(1e-3).init({"w": jnp.zeros(2)}))
    Array(0, dtype=int32)
    """
    counts = [jnp.asarray(value) for path, value in _all(held(state), ()) if path[-1] == "count" and _is_integer(value)]
    if not counts:
        raise KeyError("gradtx.step_count: the state has no counter.")
    return functools.reduce(jnp.maximum, counts)


def set_step_count(state: Any, n: Any) -> Any:
    """A copy of a state with every counter of updates set to n; schedules continue from there.

    Args:
      state: the state of any transform, or a tree that contains one (a TrainState, optax's tuples).
      n: a whole number >= 0, an int or an int32 scalar.

    The averages do not change, nor do the weights that correct their bias. To start from scratch, call init.

    Errors: KeyError for a state without a counter; ValueError for a number that is not whole or below 0.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.step_count(gradtx.set_step_count(gradtx.adam(1e-3).init(jnp.zeros(2)), 500))
    Array(500, dtype=int32)
    """
    count = as_count(n)
    if not is_traced(n) and (not isinstance(count, int) or not 0 <= count < 2**31):
        raise ValueError(f"gradtx.set_step_count: n is {n!r}; it must be a whole number from 0 to 2**31 - 1.")
    step_count(state)

    def at_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        names = names_of(path)
        return jnp.full_like(leaf, n) if names[-1:] == ("count",) and _is_integer(leaf) else leaf

    return jax.tree_util.tree_map_with_path(at_leaf, state)


def state_bytes(tx: Any, params: Any) -> int:
    """How many bytes the state of an optimizer takes for these params. Nothing is allocated.

    Args:
      tx: an optimizer.
      params: the params, or their shapes (`jax.ShapeDtypeStruct`).

    >>> import gradtx, jax, jax.numpy as jnp
    >>> params = {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.bfloat16)}
    >>> gradtx.state_bytes(gradtx.sgd(0.1, momentum=0.9), params)
    4000008
    """
    shapes = jax.eval_shape(tx.init, params)
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes))


def state_sharding(tx: Any, params: Any) -> Any:
    """The sharding of an optimizer's state for sharded params: a tree of shardings. Nothing is allocated.

    Args:
      tx: an optimizer.
      params: the params, or their shapes with shardings (`jax.ShapeDtypeStruct(shape, dtype, sharding=...)`).

    A field shaped like a parameter is sharded like it; sums over an axis keep the shardings of the other axes; the rest
    is replicated. Use it for `jax.jit(tx.init, out_shardings=gradtx.state_sharding(tx, params))`, and for restoring.

    Errors: ValueError if no parameter has a sharding.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> from jax.sharding import NamedSharding, PartitionSpec
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> rows = NamedSharding(mesh, PartitionSpec("data", None))
    >>> params = {"kernel": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=rows)}
    >>> gradtx.find(gradtx.state_sharding(gradtx.adam(1e-3), params), "nu")["kernel"] == rows
    True
    """
    known: dict[Any, Any] = dict(zip(named_paths(params), jax.tree.leaves(params), strict=True))
    whole = next((s for leaf in known.values() if (s := getattr(leaf, "sharding", None)) is not None), None)
    if whole is None:
        raise ValueError("gradtx.state_sharding: no parameter has a sharding. Give arrays, or shapes with shardings.")
    whole = NamedSharding(whole.mesh, PartitionSpec()) if isinstance(whole, NamedSharding) else whole
    declared: dict[Place, tuple[Field, tuple[Field | None, ...]]] = {
        (*place, name): (field, part.views) for place, part in tx.parts.items() for name, field in part.fields.items()
    }

    def at_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        names = names_of(path)
        place = next((names[:end] for end in range(len(names), 0, -1) if names[:end] in declared), None)
        inside = names[len(place) :] if place else ()
        inside = inside[1:] if inside[:1] == ("alone",) and inside not in known else inside  # beside buckets
        ends = [inside] if place else [names[start:] for start in range(len(names))]
        parameter: Any = next((known[end] for end in ends if end in known), None)
        found = getattr(parameter, "sharding", None)
        if place and found is not None and declared[place][0].per == "leaf":
            field, views = declared[place]
            if None in views or (field.of_matrix and jnp.ndim(parameter) < 2):
                return whole
            shown = functools.reduce(_shown, (*views, field), parameter)
            return shown.sharding if shown.shape == leaf.shape else whole  # a transform may see other shapes
        return found if found is not None and jnp.shape(parameter) == leaf.shape else whole

    return jax.tree_util.tree_map_with_path(at_leaf, jax.eval_shape(tx.init, params))


def _shown(parameter: Any, field: Any) -> Any:
    """A field of a parameter, as a shape with a sharding."""
    shape = jnp.shape(parameter)
    found = sharding.of_axes(parameter, field.kept_axes(shape))
    return jax.ShapeDtypeStruct(field.shape(shape), np.float32, sharding=found)


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A leaf's path as names; the array inside a flax variable has the variable's."""
    names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
    boxed = len(path) > 1 and hasattr(path[-1], "name") and names[-1] in ("value", "raw_value")
    return names[:-1] if boxed else names


def named_paths(tree: Any) -> list[tuple[str, ...]]:
    """The paths of the leaves of a tree, as names."""
    leaves = cast(list[Any], jax.tree_util.tree_leaves_with_path(tree))
    return [names_of(path) for path, _ in leaves]


def _is_integer(value: Any) -> bool:
    """Whether this is a counter; trees like the params have floating-point leaves."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.integer)


def _entries(state: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The named entries of a state: transforms, their fields and inner states; not the leaves of the fields."""
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
        # States of other libraries: tuples of states; dicts in the fields of a NamedTuple are trees like the params.
        if not is_ours and not (hasattr(cast(Any, state), "_fields") and isinstance(entry, dict)):
            yield from _entries(entry, (*path, name))


def _all(state: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything in it that has a name, including trees like the params."""
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
