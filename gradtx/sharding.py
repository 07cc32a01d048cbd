"""Shardings that are part of an array's type: on a mesh with explicit axes, as `jax.make_mesh` makes them.

There `jax.typeof(x).sharding` says how an array is sharded, under a trace too, and JAX refuses to choose between arrays
that are sharded differently. On a mesh with automatic axes the type says nothing, and the compiler decides.
"""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, get_abstract_mesh, reshard


def of(leaf: Any) -> NamedSharding | None:
    """How a leaf is sharded, where its type says so; one that lies on no mesh is replicated on the mesh that is set."""
    if isinstance(leaf, Tracer) or isinstance(getattr(leaf, "sharding", None), NamedSharding):
        own = jax.typeof(leaf).sharding
        if not own.mesh.empty:  # a sum that is still to be made over devices counts as made
            explicit = AxisType.Explicit in own.mesh.axis_types
            return own.update(spec=own.spec.update(unreduced=frozenset(), reduced=frozenset())) if explicit else None
    mesh = get_abstract_mesh()
    if mesh.empty or AxisType.Explicit not in mesh.axis_types or not isinstance(leaf, Array | np.ndarray):
        return None
    return NamedSharding(mesh, PartitionSpec(*[None] * leaf.ndim))


def resharded(leaf: Any, sharding: NamedSharding | None) -> Any:
    """The leaf with this sharding; itself where it has that already, or where its type does not say."""
    here = of(leaf)
    if sharding is None or here is None:
        return leaf
    same = here.mesh == sharding.mesh and jax.typeof(leaf).sharding.spec == sharding.spec
    return leaf if same else reshard(leaf, sharding)


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


def with_axes_of(made: Any, leaf: Any, axes: list[int | None]) -> Any:
    """A new array, each axis sharded as that axis of a leaf, or not where it is None: where the leaf says how it is."""
    found = getattr(leaf, "sharding", None) if not isinstance(leaf, Tracer) else of(leaf)
    if not isinstance(found, NamedSharding):
        return made
    spec = [*found.spec, *[None] * (jax.numpy.ndim(leaf) - len(found.spec))]
    own = NamedSharding(found.mesh, PartitionSpec(*(None if axis is None else spec[axis] for axis in axes)))
    return resharded(made, own) if isinstance(leaf, Tracer) else jax.device_put(made, own)
