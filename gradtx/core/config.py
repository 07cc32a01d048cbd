"""Transforms and schedules from JSON."""

from collections.abc import Mapping
from typing import Any, cast

import jax

from gradtx.core.annotations import suggestion
from gradtx.core.dimensions import MuonDimensionNumbers
from gradtx.core.record import Recorded, registry


def from_config(config: Mapping[str, Any]) -> Any:
    """Rebuilds a transform or schedule from the JSON that `to_config()` gives.

    >>> import gradtx
    >>> gradtx.from_config(gradtx.adam(1e-3).to_config()) == gradtx.adam(1e-3)
    True
    """
    is_config = isinstance(cast(Any, config), Mapping) and set(config) == {"name", "arguments"}
    if not (is_config and isinstance(config["name"], str) and isinstance(config["arguments"], Mapping)):
        raise ValueError(
            f"gradtx.from_config: config is {config!r}; it must be a dict of 'name' and 'arguments', as from to_config."
        )
    name = config["name"]
    if name not in registry:
        raise ValueError(
            f"gradtx.from_config: no transform or schedule is called {name!r}.{suggestion(str(name), registry)} "
            "Import the module that defines it first."
        )
    node = cast(type[Recorded], cast(Any, registry[name]).node)
    arguments = cast(Mapping[str, Any], config["arguments"])
    keywords = {key: _decode(value) for key, value in arguments.items()}
    if any(_has_batch(value) for value in keywords.values()):  # a sweep: built under vmap, so not by a call
        contained = {p.name: tuple(keywords[p.name]) for p in node._parameters if p.container is tuple}
        return node._from_arguments(keywords | contained)
    rest = keywords.pop(node._rest, None) if node._rest else None
    return registry[name](*(rest or ()), **keywords)


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    fields = cast(dict[str, Any], value)
    if set(fields) == {"dict"}:
        return {_decode(key): _decode(item) for key, item in fields["dict"]}
    if set(fields) == {"tuple"}:
        return tuple(_decode(item) for item in fields["tuple"])
    if set(fields) == {"matrix"}:
        return MuonDimensionNumbers(*map(_decode, fields["matrix"]))
    if set(fields) == {"dtype"}:
        return jax.numpy.dtype(fields["dtype"])
    if set(fields) == {"array", "dtype"}:
        return jax.numpy.asarray(fields["array"], dtype=fields["dtype"])
    return from_config(fields)


def _has_batch(value: Any) -> bool:
    return any(getattr(leaf, "ndim", 0) > 0 for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array))
