"""Decompositions of matrices; on a processor the matrices of a batch are decomposed one after the other.

jaxlib 0.10 hands the matrices of a batch to the threads of a pool, and waits for them in a thread of the same pool.
Where as many batches are decomposed at once as there are threads, all of them wait for ever. Accelerators take batches.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax


def one_by_one(decompose: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The same function of one matrix, which `jax.vmap` turns into a loop on processors."""
    single = cast(Any, jax.custom_batching.custom_vmap(decompose))

    def of_batch(size: int, batched: list[bool], a: Array) -> tuple[Any, Any]:
        del size, batched  # there is one argument
        made = lax.platform_dependent(a, cpu=lambda a: lax.map(single, a), default=jax.vmap(decompose))
        return made, jax.tree.map(lambda leaf: True, made)

    single.def_vmap(of_batch)
    return single


@one_by_one
def eigh(a: Array) -> tuple[Array, Array]:
    """The eigenvalues of a symmetric matrix, the smallest first, and its eigenvectors, as columns."""
    values, vectors = jnp.linalg.eigh(a)
    return values, vectors


@one_by_one
def orthonormal(a: Array) -> Array:
    """The orthonormal factor of a QR decomposition."""
    return jnp.linalg.qr(a)[0]


@one_by_one
def svd(a: Array) -> tuple[Array, Array, Array]:
    """The thin singular value decomposition: `a = u diag(s) vh`."""
    u, s, vh = jnp.linalg.svd(a, full_matrices=False)
    return u, s, vh
