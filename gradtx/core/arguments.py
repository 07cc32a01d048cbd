"""Recorded arguments as keys and as text: in pytree paths and treedefs, in hashes, in print."""

import inspect
import struct
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.tree_util import GetAttrKey

from gradtx.core.annotations import ARRAYS, DTYPES, is_traced


class ArgumentKey(GetAttrKey):
    """The key of an argument in a pytree path, printed `.b1`; JAX 0.10.2 words some errors with its `.key`."""

    @property
    def key(self) -> str:
        """The name of the argument."""
        return self.name


class Static:
    """A static argument in a treedef: compared and hashed by value, even if the value itself is not hashable."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any):
        self.value = value
        self.key = freeze(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return repr(self.value)


def freeze(value: Any) -> Any:
    """A hashable key: floats by bits, arrays by identity, containers by value, NumPy arrays by content."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int)):
        return (type(value).__name__, value)  # True is not 1
    if isinstance(value, float):
        return ("float", struct.pack("d", value))
    if isinstance(value, jax.Array) or is_traced(value):
        return ("array", id(value))
    if isinstance(value, ARRAYS):
        return ("ndarray", value.shape, str(value.dtype), value.tobytes())
    if isinstance(value, Mapping):
        items = list(cast(Mapping[Any, Any], value).items())  # an iterator in FrozenDict
        if any(isinstance(key, str) and set(key) & set("*?[") for key, _ in items):
            return ("patterns", tuple((key, freeze(item)) for key, item in items))  # of which the first match wins
        entries = sorted(((repr(key), freeze(item)) for key, item in items), key=lambda pair: pair[0])
        return (type(cast(Any, value)), tuple(entries))
    if isinstance(value, (tuple, list)):
        return (type(cast(Any, value)), tuple(freeze(item) for item in cast(tuple[Any, ...], value)))
    if is_dtype(value):
        return ("dtype", np.dtype(value))
    try:
        hash(value)
    except TypeError:
        leaves, treedef = cast(Any, jax.tree.flatten(value))
        if len(leaves) == 1 and leaves[0] is value:
            return ("object", id(value))
        return (treedef, tuple(freeze(leaf) for leaf in leaves))
    return value


def is_dtype(value: Any) -> bool:
    """Whether this is a dtype, such as `jnp.float32`, `np.float32` or `np.dtype("float32")`."""
    if isinstance(value, type):
        return (
            issubclass(cast(type[Any], value), np.generic) or type(value).__name__ == "_ScalarMeta"
        )  # JAX's jnp.float32
    return isinstance(value, DTYPES)


def show(value: Any) -> str:
    """An argument in a repr: as code if possible."""
    if is_traced(value):
        return f"<traced {value.dtype}{list(value.shape)}>"
    if isinstance(value, jax.Array):
        return f"array({float(value)!r})" if value.ndim == 0 else f"<{value.dtype}{list(value.shape)}>"
    if isinstance(value, list):
        return f"[{', '.join(show(item) for item in cast(list[Any], value))}]"
    if type(value) is tuple:
        items = [show(item) for item in cast(tuple[Any, ...], value)]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {show(item)}" for key, item in cast(dict[Any, Any], value).items()) + "}"
    if inspect.isroutine(value):
        return value.__name__
    return repr(value)


def encode(value: Any, where: str) -> Any:
    """A recorded argument as JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "to_config"):
        return value.to_config()
    if type(value) in (tuple, list):
        items = [encode(item, where) for item in cast(tuple[Any, ...], value)]
        return items if isinstance(value, list) else {"tuple": items}
    if hasattr(value, "reduction_axis"):  # dimension numbers, a NamedTuple
        return {"matrix": [encode(item, where) for item in value]}
    if is_dtype(value):
        return {"dtype": np.dtype(value).name}
    if isinstance(value, dict):
        items = cast(dict[Any, Any], value).items()
        return {"dict": [[encode(key, where), encode(item, where)] for key, item in items]}
    if isinstance(value, ARRAYS) and not is_traced(value):
        return {"array": np.asarray(value).astype(np.float64).tolist(), "dtype": str(value.dtype)}
    raise TypeError(
        f"{where} is {value!r}, which JSON cannot hold. Give it as a recorded schedule or transform (see @schedule, "
        "@transform), a number, a string, or a dict or tuple of these."
    )


def copied(value: Any) -> Any:
    """A copy of a dict or list, so that changes do not affect the recorded one; anything else unchanged."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in cast(dict[Any, Any], value).items()}
    return [copied(item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def set_in(container: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested dicts and tuples with the item at `place` replaced."""
    if not place:
        return value
    if isinstance(container, tuple):
        items = list(cast(tuple[Any, ...], container))
        items[place[0]] = set_in(items[place[0]], place[1:], value)
        return tuple(items)
    return container | {place[0]: set_in(container[place[0]], place[1:], value)}
