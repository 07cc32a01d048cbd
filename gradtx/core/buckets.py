"""Bucketed trees: many small leaves as a few long ones, for `pack`.

    {"buckets": {"0": vector, ...}, "alone": the tree, with {shape: {}} in place of each leaf that is in a bucket}

Which leaf is in which bucket follows from the shapes and from which leaves are alone, so a state keeps no other record.
The shapes are names alone, without bytes; they are there to refuse a state of leaves that have changed their shapes.
"""

import collections
import functools
import itertools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from gradtx import sharding, tree
from gradtx.core import check

PyTree = Any
Node = dict[str, Any]
Shape = tuple[int, ...]
MOST = (8, 32)
"""The maximum number of leaves per bucket is the square root of the number of equal leaves, within these limits."""


class Layout(NamedTuple):
    """The leaves of a tree, by their place in it, that are joined to each bucket; the others stay alone."""

    shapes: tuple[Shape, ...]
    buckets: dict[str, tuple[int, ...]]

    def join(self, values: PyTree) -> Node:
        """A tree in buckets. Axes in front of a leaf's own, as a sweep has, stay in front."""
        leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(values))
        vectors: Node = {}
        for name, places in self.buckets.items():
            vectors[name] = _joined([(leaves[i], self.shapes[i]) for i in places])
            for i in places:
                leaves[i] = _mark(self.shapes[i])
        return {"buckets": vectors, "alone": structure.unflatten(leaves)}

    def split(self, node: Node, like: PyTree) -> PyTree:
        """What `join` joined, in the structure of another tree; None where the bucket, or the leaf alone, is None."""
        structure = cast(Any, jax.tree.structure(like))
        leaves: list[Any] = structure.flatten_up_to(node["alone"])
        for name, places in self.buckets.items():
            vector, shapes = node["buckets"][name], [self.shapes[i] for i in places]
            parts = [None] * len(places) if vector is None else _parts(jnp.asarray(vector), shapes)
            for i, part in zip(places, parts, strict=True):
                leaves[i] = part
        return structure.unflatten(leaves)


def chosen(params: PyTree, min_leaves: int) -> Layout:
    """The layout for new params: small unsharded leaves are joined, of those alike in dtype and devices the most."""
    leaves: list[Any] = jax.tree.leaves(params)
    kinds: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if 0 < jnp.size(leaf) <= tree.SMALL and not tree.is_complex(leaf) and tree.is_whole(leaf):
            kinds.setdefault((tree.dtype_of(leaf), frozenset(_devices(leaf))), []).append(i)
    most = max(kinds.values(), key=len) if kinds else []
    joined = most if len(most) >= min_leaves else []
    while True:  # a leaf that would be the only one of its bucket stays alone; without it the buckets may be smaller
        layout = _cut(leaves, joined)
        inside = [*itertools.chain(*layout.buckets.values())]
        if len(inside) == len(joined):
            return layout
        joined = inside


def _devices(leaf: Any) -> Any:
    return leaf.devices() if isinstance(leaf, Array) and not isinstance(leaf, Tracer) else ()


def read(node: Node, like: PyTree) -> Layout | None:
    """The layout that a bucketed tree has, for params like these; None if it is one for others."""
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(like))
    try:
        entries: list[Any] = structure.flatten_up_to(node["alone"])
    except ValueError:
        return None
    layout = _cut(leaves, [i for i, entry in enumerate(entries) if isinstance(entry, dict)])
    if any(entries[i] != _mark(layout.shapes[i]) for places in layout.buckets.values() for i in places):
        return None
    lengths = {name: sum(math.prod(layout.shapes[i]) for i in places) for name, places in layout.buckets.items()}
    vectors = cast(Node, node["buckets"])
    found = {name: lengths.get(name) if v is None else jnp.shape(v)[-1] for name, v in vectors.items()}
    return layout if found == lengths else None


def layout_of(who: str, node: Node, like: PyTree) -> Layout:
    """The layout of a bucketed tree, which must be one for params like these."""
    layout = read(node, like)
    if layout is None:
        raise ValueError(
            f"{who}: the state has buckets of other leaves than the params. Pass the params that it was made for."
        )
    return layout


def _cut(leaves: list[Any], joined: list[int]) -> Layout:
    """Full buckets and a rest, in the order of size.

    Buckets of equal leaves are split by equal kernels, which are compiled once: as many as a bucket has leaves. So
    there should be about as many buckets as leaves in each.
    """
    shapes = tuple(tuple(leaf.shape) if hasattr(leaf, "shape") else () for leaf in leaves)
    order = sorted(joined, key=lambda i: math.prod(shapes[i]))
    equal = collections.Counter(shapes[i] for i in order).values()
    most = min(max(MOST[0], math.isqrt(max(equal, default=0))), MOST[1])
    runs = [tuple(order[i : i + most]) for i in range(0, len(order), most)]
    buckets = {str(i): run for i, run in enumerate(runs) if len(run) > 1}
    return Layout(shapes, buckets)


def _mark(shape: Shape) -> Node:
    """What stands in `alone` for a leaf that is in a bucket."""
    return {str(shape): {}}


def _joined(parts: list[tuple[Any, Shape]]) -> Array:
    """Leaves end to end, in the widest of their dtypes."""
    arrays = [jnp.asarray(sharding.whole(leaf)) for leaf, _ in parts]
    with jax.numpy_dtype_promotion("standard"):
        dtype: Any = functools.reduce(jnp.promote_types, {leaf.dtype: None for leaf in arrays})
    flat: list[Array] = []
    for leaf, (_, shape) in zip(arrays, parts, strict=True):
        wide = leaf if leaf.dtype == dtype else leaf.astype(dtype)
        flat.append(lax.reshape(wide, (*leaf.shape[: leaf.ndim - len(shape)], math.prod(shape))))
    return lax.concatenate(flat, flat[0].ndim - 1)


def _parts(bucket: Array, shapes: list[Shape]) -> list[Array]:
    """The leaves of a bucket."""
    parts = lax.split(bucket, [math.prod(shape) for shape in shapes], axis=bucket.ndim - 1)
    return [lax.reshape(part, (*bucket.shape[:-1], *shape)) for part, shape in zip(parts, shapes, strict=True)]


def is_node(value: Any) -> bool:
    """Whether this is a bucketed tree."""
    if not isinstance(value, dict) or cast(Node, value).keys() != {"buckets", "alone"}:
        return False
    found: Any = cast(Node, value)["buckets"]
    return isinstance(found, dict) and all(str(name).isdigit() for name in cast(Node, found))


def nodes_in(state: PyTree) -> list[Node]:
    """The bucketed trees in a state."""
    return [node for node in jax.tree.leaves(state, is_leaf=is_node) if is_node(node)]


# Their states, leaf by leaf -------------------------------------------------------------------------------------------


def unpacked(state: PyTree, params: PyTree) -> PyTree:
    """A state with every bucket split: the state of the optimizer without `pack`, leaf by leaf.

    Args:
      state: that of a `pack` or `in_buckets`, or any tree that contains one; it may have leading axes, as that of a
        sweep has.
      params: the params, or their shapes.

    The names and the structure are those of the state of the optimizer alone, so either reads the other's checkpoints;
    `packed` is the way back.

    Errors: ValueError for other params than those that the state was made for.

    >>> import gradtx, jax.numpy as jnp
    >>> params, tx = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, gradtx.adam(1e-3)
    >>> gradtx.tree_equal(gradtx.unpacked(gradtx.pack(tx).init(params), params), tx.init(params))
    True
    """

    def at_node(node: Any) -> PyTree:
        if not is_node(node):
            return node
        return layout_of("gradtx.unpacked", node, params).split(node, params)

    return jax.tree.map(at_node, state, is_leaf=is_node)


def packed(state: PyTree, like: PyTree) -> PyTree:
    """The state of an optimizer without `pack` in the layout of the state of the one with it: `unpacked` undone.

    Args:
      state: that of the optimizer alone, an older checkpoint say.
      like: a state of the packed optimizer, whose layout is taken: `pack(tx).init(params)`.

    Errors: ValueError for states of two optimizers, or of params of other shapes.

    >>> import gradtx, jax.numpy as jnp
    >>> params, tx = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, gradtx.adam(1e-3)
    >>> _, state = tx.update(params, tx.init(params))
    >>> gradtx.find(gradtx.packed(state, gradtx.pack(tx, min_leaves=2).init(params)), "mu")["buckets"]["0"].shape
    (6,)
    """

    def at_node(node: Any, value: PyTree) -> PyTree:
        if not is_node(node):
            return value
        leading = max([jnp.ndim(bucket) - 1 for bucket in jax.tree.leaves(node["buckets"])], default=0)
        layout = read(node, tree.shapes(value, drop=leading))
        return value if layout is None else layout.join(value)

    try:
        result = jax.tree.map(at_node, like, state, is_leaf=is_node)
    except ValueError:
        result = state
    check.check_unchanged("gradtx.packed", "the state in buckets", result, "the state it is to be like", like)
    return result
