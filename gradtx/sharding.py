"""Shardings that are part of an array's type: on a mesh with explicit axes, as `jax.make_mesh` makes them.

There `jax.typeof(x).sharding` says how an array is sharded, under a trace too, and JAX refuses to choose between arrays
that are sharded differently. On a mesh with automatic axes the type says nothing, and the compiler decides.
"""

from typing import Any

import jax
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard


def of(leaf: Any) -> NamedSharding | None:
    """How a leaf is sharded, where its type says so."""
    if isinstance(leaf, Tracer) or (isinstance(leaf, Array) and isinstance(leaf.sharding, NamedSharding)):
        sharding = jax.typeof(leaf).sharding
        if AxisType.Explicit in sharding.mesh.axis_types:
            return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec))  # without what is still to be summed
    return None


def resharded(leaf: Any, sharding: NamedSharding | None) -> Any:
    """The leaf with this sharding; itself where it has that already, or where its type does not say."""
    if sharding is None or of(leaf) is None or jax.typeof(leaf).sharding == sharding:
        return leaf
    return reshard(leaf, sharding)


def like(leaf: Any, other: Any) -> Any:
    """The leaf, sharded as another is."""
    return resharded(leaf, of(other))


def all_like(tree: Any, others: Any) -> Any:
    """Each leaf sharded as that of another tree at the same place."""
    return jax.tree.map(like, tree, others)


def whole(leaf: Any) -> Any:
    """The leaf replicated, so that each device has all of it."""
    found = of(leaf)
    return leaf if found is None else resharded(leaf, NamedSharding(found.mesh, PartitionSpec(*[None] * leaf.ndim)))
