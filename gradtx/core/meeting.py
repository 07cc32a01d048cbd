"""One sharding for all values of a parameter, on a mesh with explicit axes.

There the sharding of an array is part of its type, like its dtype. JAX can add a replicated and a sharded array, and
the sum is sharded. But it does not choose between the two in `where` and in the branches of `cond`. If the state is
sharded and the params are replicated (ZeRO), both occur in every formula. So a step has the sharding of the state:

    before:  gradient, params <- resharded like the state of the parameter
    after:   state <- sharded as before;   updates <- sharded like the gradients

Gradients and params are resharded, since cutting a replicated array costs nothing. State is resharded only if the parts
of one parameter's state differ. A parameter without state is updated with the finer sharding of its gradient and the
parameter itself. With automatic axes, types do not say how a leaf is sharded, and the compiler chooses.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from gradtx import sharding, tree
from gradtx.core import check
from gradtx.core.rule import OF_PARAMS, Params, State, Updates

Path = tuple[Any, ...]


class Places:
    """The paths of a tree like the params; they tell to which parameter a leaf of another tree belongs."""

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
    """The inputs of an update, with one sharding for each parameter; unchanged if the types do not say more."""
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
        """A function of the user, called with params that are sharded like the user's."""

        def call(at: Params, *args: Any, **kwargs: Any) -> Any:
            return moved(function(sharding.all_like(at, params), *args, **kwargs))

        return call

    known = dict(extra)
    for name, value in extra.items():
        if name in OF_PARAMS and params is not None:
            known[name] = asked_as_given(value)
        elif not callable(value) and check.same_structure(value, updates):
            known[name] = moved(value)
    return moved(updates), moved(state), moved(params), known


def _finest(places: Places, values: Any) -> dict[Path | None, NamedSharding]:
    """For each parameter the finest sharding of its leaves; of several the first."""
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
