"""Shardings: as a part of an array's type on a mesh with explicit axes, and as named axes inside `jax.shard_map`.

On a mesh with explicit axes, which `jax.make_mesh` makes, `jax.typeof(x).sharding` tells how an array is sharded, under
a trace too, and JAX refuses operations on arrays that are sharded differently. On a mesh with automatic axes the type
does not contain the sharding, and the compiler decides.

Inside `jax.shard_map` each device has its own shard. A sum over a leaf, or over all leaves, then also sums over the
axes that are named (`axis_name=`) and on which the leaf varies.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, get_abstract_mesh, reshard

from gradtx.scoped import Scoped


def of(leaf: Any) -> NamedSharding | None:
    """The sharding in a leaf's type, or None; a leaf without a mesh counts as replicated on the current mesh."""
    if isinstance(leaf, Tracer) or isinstance(getattr(leaf, "sharding", None), NamedSharding):
        own = jax.typeof(leaf).sharding
        if not own.mesh.empty:  # a pending sum over devices is ignored
            explicit = AxisType.Explicit in own.mesh.axis_types
            return own.update(spec=own.spec.update(unreduced=frozenset(), reduced=frozenset())) if explicit else None
    mesh = get_abstract_mesh()
    if mesh.empty or AxisType.Explicit not in mesh.axis_types or not isinstance(leaf, Array | np.ndarray):
        return None
    return NamedSharding(mesh, PartitionSpec(*[None] * leaf.ndim))


def resharded(leaf: Any, sharding: NamedSharding | None) -> Any:
    """The leaf with this sharding; unchanged if it has it already, or if its type does not contain a sharding."""
    here = of(leaf)
    if sharding is None or here is None:
        return leaf
    same = here.mesh == sharding.mesh and jax.typeof(leaf).sharding.spec == sharding.spec
    return leaf if same else reshard(leaf, sharding)


def like(leaf: Any, other: Any) -> Any:
    """The leaf, sharded like another."""
    return resharded(leaf, of(other))


def all_like(tree: Any, others: Any) -> Any:
    """Each leaf, sharded like the corresponding leaf of another tree."""
    return jax.tree.map(like, tree, others)


def whole(leaf: Any) -> Any:
    """The leaf, replicated on all devices."""
    return resharded(leaf, replicated(leaf, leaf.ndim))


def replicated(leaf: Any, ndim: int) -> NamedSharding | None:
    """That of a replicated array on the leaf's mesh, where types contain shardings."""
    found = of(leaf)
    return None if found is None else NamedSharding(found.mesh, PartitionSpec(*[None] * ndim))


def with_axes_of(made: Any, leaf: Any, axes: list[int | None]) -> Any:
    """A new array; axis i is sharded like axis `axes[i]` of a leaf, or not sharded if that is None."""
    found = of(leaf) if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    if not isinstance(found, NamedSharding):
        return made
    own = of_axes(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=found), axes)
    return resharded(made, own) if isinstance(leaf, Tracer) else jax.device_put(made, own)


def of_axes(leaf: Any, axes: list[int | None]) -> Any:
    """The sharding of an array whose axis i is sharded like axis `axes[i]` of a leaf, or not if that is None."""
    found = leaf.sharding
    if not isinstance(found, NamedSharding):
        return found
    spec = [*found.spec, *[None] * (len(leaf.shape) - len(found.spec))]
    return NamedSharding(found.mesh, PartitionSpec(*(None if axis is None else spec[axis] for axis in axes)))


def decided_by_compiler(function: Callable[..., Any], *args: Any, like: Callable[[Any, Any], Any]) -> Any:
    """`function(*args)`, in which the compiler chooses the shardings, on a mesh with explicit axes too.

    With explicit axes JAX refuses some products. `like(path, shape)` returns the array whose sharding a result gets, or
    None for a replicated result.
    """
    found = next((known for leaf in jax.tree.leaves(args) if (known := of(leaf)) is not None), None)
    if found is None:
        return function(*args)

    def at_leaf(path: Any, result: Any) -> NamedSharding:
        other = like(path, result)
        known = None if other is None else of(other)
        return NamedSharding(found.mesh, PartitionSpec(*[None] * result.ndim)) if known is None else known

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
    out = jax.tree_util.tree_map_with_path(at_leaf, jax.eval_shape(function, *shapes))
    return auto_axes(function, out_sharding=out)(*args)


# Inside shard_map -----------------------------------------------------------------------------------------------------

_over = Scoped[tuple[str, ...]](())


def over(axis_name: str | tuple[str, ...] | None) -> AbstractContextManager[Any]:
    """While this is open, sums over a leaf or a tree are also over these axes of a mesh."""
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    return _over(names) if names else nullcontext()


def named_axes() -> tuple[str, ...]:
    """The current axes of a mesh for sums."""
    return _over.get()


def axes_of(*leaves: Any) -> tuple[str, ...]:
    """The named axes on which one of the leaves varies; all named axes if JAX does not track that."""
    names = _over.get()
    tracked = bool(names) and bool(_varying(jax.lax.axis_index(names)))
    varying = frozenset[str]().union(*map(_varying, leaves)) if tracked else frozenset(names)
    return tuple(name for name in names if name in varying)


def _varying(leaf: Any) -> frozenset[str]:
    """The axes on which a leaf varies, in JAX 0.10 and 0.8."""
    kind: Any = jax.typeof(leaf)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else getattr(kind, "vma", frozenset())


def number_of_shards(*leaves: Any) -> int:
    """The number of shards of the leaves."""
    return math.prod(jax.lax.axis_size(name) for name in axes_of(*leaves))


def summed(value: Any) -> Any:
    """The sum over all shards."""
    names = axes_of(value)
    return jax.lax.psum(value, names) if names else value


def largest(value: Any) -> Any:
    """The maximum over all shards."""
    names = axes_of(value)
    return jax.lax.pmax(value, names) if names else value


def everywhere(flag: Any) -> Any:
    """Whether a flag is true on all shards."""
    names = axes_of(flag)
    return jax.lax.psum((~flag).astype(np.int32), names) == 0 if names else flag


def own_key(key: Array, *leaves: Any) -> Array:
    """A random key for the shards of these leaves on this device: each shard draws numbers of its own."""
    names = axes_of(*leaves)
    return jax.random.fold_in(key, jax.lax.axis_index(names)) if names else key
