"""Blocks: a large matrix as a batch of smaller ones, so that statistics of its sides stay small."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import sharding
from gradtx.core import batches, check, views
from gradtx.core.annotations import PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform

PyTree = Any
State = dict[str, Any]


@transform
def in_blocks(inner: Transform, block_size: PositiveInt = 1024) -> Rule:
    """Cuts each matrix into blocks of at most block_size rows and columns, each of which is a matrix for `inner`.

    The blocks of a matrix have equal sizes, as few as there can be: 1600 rows are two times 800. Where the number of
    blocks does not divide the rows or columns, the last block is filled with zeros. Other leaves, and matrices that are
    one block, stay as they are.

    Source: Gupta, Koren, Singer 2018 (arXiv 1802.09568) name it; Shi et al. 2023 (arXiv 2309.06497), section 4.1, and
    DistributedShampoo cut blocks of block_size and a smaller rest.

    Args:
      inner: a transform of matrices.
      block_size: the largest number of rows or columns of a block.

    State: `{"in_blocks": {"inner": inner's state}}`; a matrix in several blocks has the shape (blocks, rows, columns).

    Errors: ValueError for a block_size below 1.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.in_blocks(gradtx.scale_by_shampoo(), 8).init(jnp.zeros((16, 6)))
    >>> gradtx.find(state, "left").shape, gradtx.find(state, "right").shape
    ((2, 8, 8), (2, 6, 6))
    """

    def down(values: PyTree) -> PyTree:
        check.refuse_shards("gradtx.in_blocks", values)
        return jax.tree.map(lambda leaf: _cut(leaf, block_size), values)

    def init(params: PyTree) -> State:
        with batches.declared(True):
            return {"inner": inner.init(down(params))}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        def back(values: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf, blocks: _joined(leaf, blocks, block_size), updates, values)

        with batches.declared(True):
            made, new = views.inside(inner, updates, state["inner"], params, extra, down, back)
        return back(made), {"inner": new}

    return Rule(init=init, update=update, reach="matrix", traits=("leaves",))


def _numbers(leaf: Any, size: int) -> tuple[int, int]:
    """The numbers of blocks along rows and columns."""
    if jnp.ndim(leaf) < 2 or (jnp.ndim(leaf) > 2 and not batches.declared.get()):
        return 1, 1
    rows, columns = jnp.shape(leaf)[-2:]
    return max(1, -(-rows // size)), max(1, -(-columns // size))


def _cut(leaf: Array, size: int) -> Array:
    """The blocks of a leaf, in an axis before their rows and columns; the leaf itself if it is one block."""
    down, along = _numbers(leaf, size)
    if (down, along) == (1, 1):
        return leaf
    *lead, rows, columns = leaf.shape
    height, width = -(-rows // down), -(-columns // along)
    added = [(0, 0) for _ in lead] + [(0, down * height - rows), (0, along * width - columns)]
    cut = jnp.pad(sharding.whole(leaf), added).reshape(*lead, down, height, along, width)
    return jnp.swapaxes(cut, -2, -3).reshape(*lead, down * along, height, width)


def _joined(leaf: Array, blocks: Array, size: int) -> Array:
    """The leaf that has these blocks, shaped and sharded like the one given."""
    down, along = _numbers(leaf, size)
    if (down, along) == (1, 1):
        return blocks
    *lead, rows, columns = leaf.shape
    height, width = blocks.shape[-2:]
    cut = jnp.swapaxes(blocks.reshape(*lead, down, along, height, width), -2, -3)
    whole = cut.reshape(*lead, down * height, along * width)[..., :rows, :columns]
    return sharding.like(whole, leaf)
