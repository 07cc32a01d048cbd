"""Batches of matrices: matrices of one shape run as one batch, and a leaf may be a batch of matrices.

A leaf with more than two axes is a batch of matrices only where its dimension numbers say so (`by_shape`): its last two
axes are those of a matrix, all others count the matrices.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from gradtx import tree
from gradtx.scoped import Scoped

MOST = 8
"""The most matrices in a batch. More take more memory, and on processors run no faster."""

declared = Scoped(False)
"""Whether leaves with more than two axes are batches of matrices."""

Row = tuple[Any, dict[str, Any]]


def axes_of(leaf: Any) -> tuple[int, ...]:
    """The lengths of the axes that count the matrices of a leaf."""
    return jnp.shape(leaf)[:-2]


def each(step: Callable[..., Any], rows: Sequence[Row], leads: Sequence[tuple[int, ...]], *, stack: bool) -> list[Any]:
    """`step(x, named)` for the matrices of all rows, those of one leaf in batches of up to `MOST`.

    Args:
      step: a function of a matrix, and of what belongs to it.
      rows: its arguments, leaf by leaf.
      leads: for each row, the lengths of the axes that count its matrices.
      stack: whether leaves of the same shape and dtype, which are one matrix each, run in such batches too.
    """
    made: list[Any] = [None] * len(rows)
    kinds: dict[str, list[int]] = {}
    for index, (row, lead) in enumerate(zip(rows, leads, strict=True)):
        if lead:
            made[index] = _over_axes(step, row, lead)
        else:
            kinds.setdefault(str(tree.shapes(row)), []).append(index)
    most = MOST if stack else 1
    for same in kinds.values():
        for start in range(0, len(same), most):
            indices = same[start : start + most]
            together = _together(step, [rows[index] for index in indices])
            made = [together[indices.index(i)] if i in indices else one for i, one in enumerate(made)]
    return made


def _together(step: Callable[..., Any], rows: list[Row]) -> list[Any]:
    """The step of a few matrices of the same shape, as one batch."""
    if len(rows) == 1:
        return [step(*rows[0])]
    made = jax.vmap(step)(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))
    return [jax.tree.map(operator.itemgetter(n), made) for n in range(len(rows))]


def _over_axes(step: Callable[..., Any], row: Row, lead: tuple[int, ...]) -> Any:
    """The step of all matrices of one leaf."""

    def spread(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.split(x, lead)
        return jnp.broadcast_to(x, lead) if jnp.ndim(x) == 0 else x

    row = jax.tree.map(spread, row)
    for _ in lead[1:]:
        step = jax.vmap(step)
    if lead[0] <= MOST:
        return jax.vmap(step)(*row)

    def one(row: Row) -> Any:
        return step(*row)

    return cast(Any, jax.lax.map(one, row, batch_size=MOST))
