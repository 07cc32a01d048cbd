"""Decompositions of matrices: on processors the matrices of a batch one after another, elsewhere all at once.

Up to version 0.11.1, jaxlib on processors lets each call for a batch wait until other threads have done its parts. A
program that makes as many such calls at a time as it has threads then waits for ever, as there is none left to do them
(jaxlib/cpu/lapack_kernels.cc, `ParallelBatchMap`). Calls for one matrix do not wait.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def _each_alone(decomposition: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The decomposition of one matrix; under `vmap` on processors, of one after another."""
    alone: Any = jax.custom_batching.custom_vmap(decomposition)

    def one_by_one(batch: Array) -> Any:
        return jax.lax.map(alone, batch)

    @alone.def_vmap
    def of_batch(size: int, batched: list[bool], batch: Array) -> tuple[Any, Any]:
        del size, batched  # the only argument is batched
        made = jax.lax.platform_dependent(batch, cpu=one_by_one, default=jax.vmap(decomposition))
        return made, jax.tree.map(lambda _: True, made)

    return alone


@_each_alone
def eigh(a: Array) -> tuple[Array, Array]:
    """The eigenvalues of a symmetric matrix, the smallest first, and its eigenvectors as columns."""
    values, vectors = jnp.linalg.eigh(a)
    return values, vectors


@_each_alone
def qr(a: Array) -> Array:
    """The orthonormal factor of a matrix."""
    return jnp.linalg.qr(a)[0]


@_each_alone
def svd(a: Array) -> tuple[Array, Array, Array]:
    """The thin singular value decomposition: left vectors, values, and transposed right vectors."""
    left, values, right = jnp.linalg.svd(a, full_matrices=False)
    return left, values, right
