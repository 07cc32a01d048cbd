"""Which leaves of a tree lie in which bucket: chosen once, written down in a state, read again at each step.

A leaf is known by the name of its path, so that a layout does not depend on the order of the leaves, nor on those that
a mask leaves out.
"""

import ast
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from gradtx import sharding, tree

PyTree = Any
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """Which leaves of a tree, by the names of their paths, are joined to which bucket; the others stay alone."""

    buckets: dict[str, dict[str, Shape]]
    alone: list[str]

    @classmethod
    def read(cls, recorded: dict[str, Any]) -> "Layout":
        """The layout that a state keeps; in the order of the names, since JAX sorts the keys of a dict."""
        buckets = {
            bucket: {name: _shape(next(iter(inside[name]))) for name in sorted(inside)}
            for bucket, inside in sorted(recorded["buckets"].items())
        }
        return cls(buckets, sorted(recorded["alone"]))

    def recorded(self) -> dict[str, Any]:
        """As a state keeps it, in names alone: `{"buckets": {bucket: {path: {shape: ()}}}, "alone": {path: ()}}`."""
        buckets = {
            bucket: {name: {str(shape): ()} for name, shape in inside.items()}
            for bucket, inside in self.buckets.items()
        }
        return {"buckets": buckets, "alone": dict.fromkeys(self.alone, ())}

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the leaves in buckets."""
        return {name: shape for inside in self.buckets.values() for name, shape in inside.items()}

    @property
    def names(self) -> set[str]:
        """The names of all leaves."""
        return {*self.shapes, *self.alone}

    def join(self, values: PyTree) -> PyTree:
        """The tree in buckets: `{"buckets": {name: vector}, "alone": {path: leaf}}`; None for leaves that are None."""
        leaves = named(values)
        whole = {bucket: all(name in leaves for name in inside) for bucket, inside in self.buckets.items()}
        buckets = {
            bucket: _joined([(leaves[name], shape) for name, shape in inside.items()]) if whole[bucket] else None
            for bucket, inside in self.buckets.items()
        }
        return {"buckets": buckets, "alone": {name: leaves.get(name) for name in self.alone}}

    def split(self, packed: PyTree, like: PyTree) -> PyTree:
        """What `join` joined, in the structure of another tree; None, as in a masked tree, for leaves not in it."""
        leaves: dict[str, Any] = {name: leaf for name, leaf in packed["alone"].items() if leaf is not None}
        for bucket, inside in self.buckets.items():
            if packed["buckets"][bucket] is not None:
                leaves |= _parts(jnp.asarray(packed["buckets"][bucket]), inside)
        structure: Any = jax.tree.structure(like)
        if structure == _ONE_LEAF and not leaves:
            return ()  # as `selection.keep` writes a single leaf that is left out
        return jax.tree.unflatten(structure, [leaves.get(name) for name in _names(structure)])

    def problem(self, values: PyTree) -> str | None:
        """In what a tree is another than the one that this layout is for, in words."""
        leaves = named(values)
        lacking, more = sorted(self.names - leaves.keys()), sorted(leaves.keys() - self.names)
        if lacking or more:
            return " and ".join(
                [f"the tree lacks {name}" for name in lacking[:1]] + [f"it has {name}" for name in more[:1]]
            )
        for bucket, inside in self.buckets.items():
            for name, shape in inside.items():
                if jnp.shape(leaves[name]) != shape:
                    return f"{name} has shape {jnp.shape(leaves[name])}, in bucket {bucket!r} it has {shape}"
        return None


_ONE_LEAF: Any = jax.tree.structure(0)
_shape: Callable[[str], Shape] = functools.lru_cache(ast.literal_eval)


@functools.lru_cache(maxsize=256)
def _names(structure: Any) -> list[str]:
    """The names of the leaves of a tree."""
    return [name for name, _ in tree.named_leaves(jax.tree.unflatten(structure, range(structure.num_leaves)))]


def named(values: PyTree) -> dict[str, Any]:
    """The leaves by the names of their paths."""
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(values))
    return dict(zip(_names(structure), leaves, strict=True))


def _joined(parts: list[tuple[Any, Shape]]) -> Array:
    """Leaves end to end, in the widest of their dtypes; axes in front of the leaf's own, as a sweep has, stay."""
    arrays = [jnp.asarray(sharding.whole(leaf)) for leaf, _ in parts]
    dtype: Any = functools.reduce(jnp.promote_types, {leaf.dtype: None for leaf in arrays})
    flat: list[Array] = []
    for leaf, (_, shape) in zip(arrays, parts, strict=True):
        wide = leaf if leaf.dtype == dtype else leaf.astype(dtype)
        flat.append(lax.reshape(wide, (*leaf.shape[: leaf.ndim - len(shape)], math.prod(shape))))
    return lax.concatenate(flat, flat[0].ndim - 1)


def _parts(bucket: Array, inside: dict[str, Shape]) -> dict[str, Array]:
    """The leaves of a bucket by name."""
    parts = lax.split(bucket, [math.prod(shape) for shape in inside.values()], axis=bucket.ndim - 1)
    shapes = [(*bucket.shape[:-1], *shape) for shape in inside.values()]
    return {name: lax.reshape(part, shape) for name, part, shape in zip(inside, parts, shapes, strict=True)}


def chosen(params: PyTree, fewest: int) -> Layout:
    """Small unsharded leaves of one dtype on the same devices, if there are at least `fewest`: full buckets and a rest.

    By size, so that buckets of equal leaves are cut at equal places, by kernels that are compiled once.
    """
    leaves, kinds = named(params), cast(dict[Any, list[str]], {})
    for name, leaf in leaves.items():
        if 0 < jnp.size(leaf) <= tree.SMALL and tree.is_whole(leaf) and not tree.is_complex(leaf):
            kinds.setdefault((tree.dtype_of(leaf), _devices(leaf)), []).append(name)
    many = [sorted(names, key=lambda name: jnp.size(leaves[name])) for names in kinds.values() if len(names) >= fewest]
    runs = [names[i : i + tree.MOST] for names in many for i in range(0, len(names), tree.MOST)]
    joined = [run for run in runs if len(run) > 1]
    buckets = {str(i): {name: jnp.shape(leaves[name]) for name in sorted(run)} for i, run in enumerate(joined)}
    return Layout(buckets, sorted(leaves.keys() - set(itertools.chain(*joined))))


def _devices(leaf: Any) -> Any:
    return frozenset(leaf.devices()) if isinstance(leaf, Array) and not isinstance(leaf, Tracer) else None
