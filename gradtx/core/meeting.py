"""Values that meet are sharded alike, on a mesh with explicit axes.

There the sharding of an array is part of its type, as its dtype is. JAX adds a whole array and a sharded one, to a sum
that is sharded; it refuses to choose between the two, as `where` and the branches of `cond` do. Where state is sharded
and the params are whole (ZeRO), they meet in every formula. So a step is made where the state lies:

    before:  gradient, params <- resharded as the state of the parameter is
    after:   state <- as the state before;   updates <- as the gradients

Gradients and params are what moves, since to cut a whole array costs nothing; state moves only where the parts of one
parameter's state differ. A parameter without state is updated where its gradient or the parameter itself is cut more
finely. With automatic axes no type says how a leaf is sharded, and the compiler chooses.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from gradtx import sharding, tree
from gradtx.core import check
from gradtx.core.rule import Params, State, Updates

Path = tuple[Any, ...]


class Places:
    """The paths of a tree like the params, which tell of leaves of other trees to which parameter they belong."""

    def __init__(self, like: Any):
        self._shapes = {path: jnp.shape(leaf) for path, leaf in _with_paths(like)}
        self._depths = sorted({len(path) for path in self._shapes}, reverse=True)

    def of(self, path: Path, shape: tuple[int, ...], otherwise: Path | None = None) -> Path | None:
        """The place of a leaf whose path ends like that of a parameter and whose shape is the same."""
        ends = (path[len(path) - depth :] for depth in self._depths if depth <= len(path))
        return next((end for end in ends if self._shapes.get(end) == shape), otherwise)


def together(
    who: str, updates: Updates, state: State, params: Params, extra: dict[str, Any]
) -> tuple[Updates, State, Params, dict[str, Any]]:
    """What an update is given, all that belongs to one parameter sharded alike; as it is where no type says more."""
    if all(sharding.of(leaf) is None for leaf in jax.tree.leaves((updates, state, params))):
        return updates, state, params, extra
    _refuse_meshes(who, {"updates": updates, "params": params, "state": state})
    places = Places(updates)
    targets = _finest(places, (updates, params)) | _finest(places, state)

    def moved(values: Any) -> Any:
        def at_leaf(path: Path, leaf: Any) -> Any:
            return sharding.resharded(leaf, targets.get(places.of(path, jnp.shape(leaf))))

        return jax.tree_util.tree_map_with_path(at_leaf, values)

    def asked_as_given(function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the user's, called with params that are sharded as those that the user has."""

        def call(at: Params, *args: Any, **kwargs: Any) -> Any:
            return moved(function(sharding.all_like(at, params), *args, **kwargs))

        return call

    known = dict(extra)
    for name, value in extra.items():
        if name in ("value_fn", "grad_fn") and params is not None:
            known[name] = asked_as_given(value)
        elif check.same_structure(value, updates):
            known[name] = moved(value)
    return moved(updates), moved(state), moved(params), known


def _finest(places: Places, values: Any) -> dict[Path | None, NamedSharding]:
    """By parameter the sharding of that of its leaves which is cut most finely; of several the first."""
    found: dict[Path | None, NamedSharding] = {}
    for path, leaf in _with_paths(values):
        shape, here = jnp.shape(leaf), sharding.of(leaf)
        place = places.of(path, shape)
        if place is not None and here is not None:
            found[place] = min(found.get(place, here), here, key=lambda one: math.prod(one.shard_shape(shape)))
    return found


def _with_paths(values: Any) -> list[tuple[Path, Any]]:
    return cast(list[tuple[Path, Any]], jax.tree_util.tree_leaves_with_path(values))


def _refuse_meshes(who: str, trees: dict[str, Any]) -> None:
    """Refuse leaves on different meshes."""
    named = [(f"{argument} at {path}", leaf) for argument in trees for path, leaf in tree.named_leaves(trees[argument])]
    meshes = [(name, found.mesh) for name, leaf in named if (found := sharding.of(leaf)) is not None]
    for name, mesh in meshes:
        if mesh != meshes[0][1]:
            raise ValueError(
                f"{who}: {name} is on the mesh {dict(mesh.shape)}, {meshes[0][0]} on {dict(meshes[0][1].shape)}; "
                "both must be on one mesh. Move gradients, params and state to it: jax.device_put(state, "
                "NamedSharding(mesh, PartitionSpec(...)))."
            )
