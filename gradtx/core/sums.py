"""Sums over all leaves: what a formula measures, and how the results of the leaves are combined.

    def measure(g, *, params, start):
        return {"dot": total(g * (start - params)), "size": norm(g)}

Inside `jax.shard_map` they include the shards too, if the axes are named (`axis_name=`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import sharding, tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Summed:
    """A result of `measure`: a number or an array of one leaf, and how the results of all leaves are combined."""

    value: Array
    how: str = dataclasses.field(metadata={"static": True})


def total(x: Array) -> Summed:
    """The sum of all elements, over all leaves."""
    return Summed(jnp.sum(x), "total")


def largest(x: Array) -> Summed:
    """The largest element of all leaves, and not below 0."""
    return Summed(jnp.max(x, initial=0), "largest")


def norm(x: Array) -> Summed:
    """`sqrt(sum of |x|²)` over all leaves, right even if squares overflow or underflow."""
    return Summed(x, "norm")


def norm_in_units(x: Array) -> Summed:
    """The same as a `tree.Norm`, which also represents norms larger than any number of the dtype."""
    return Summed(x, "norm_in_units")


def sum_up(parts: list[Summed], real: np.dtype[Any]) -> Any:
    """The results of all leaves, combined."""
    values = [part.value for part in parts]
    if parts[0].how in ("norm", "norm_in_units"):
        size = tree.norm(values)
        return size.value if parts[0].how == "norm" else size
    over_shards = sharding.summed if parts[0].how == "total" else sharding.largest
    of_leaf = jnp.sum if parts[0].how == "total" else jnp.max  # a leaf may be a batch of matrices
    values = [of_leaf(value) if jnp.ndim(value) else value for value in values]
    numbers = [over_shards(value.astype(tree.compute_dtype(value, precision=real))) for value in values]
    return functools.reduce(jnp.add if parts[0].how == "total" else jnp.maximum, numbers)
