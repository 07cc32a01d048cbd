"""Decompositions and triangles: on processors the matrices of a batch one after another, elsewhere all at once.

In version 0.10.2 jaxlib on processors lets each call for a batch wait until other threads have done its parts. A
program that makes as many such calls at a time as it has threads then waits for ever, as there is none left to do them
(jaxlib/cpu/lapack_kernels.cc, `ParallelBatchMap`). Calls for one matrix do not wait.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def _each_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of matrices; under `vmap` on processors, for one after another."""
    alone: Any = jax.custom_batching.custom_vmap(function)

    def one_by_one(*batches: Array) -> Any:
        return jax.lax.map(lambda matrices: alone(*matrices), batches)

    @alone.def_vmap
    def of_batch(size: int, batched: list[bool], *given: Array) -> tuple[Any, Any]:
        batches = [x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(given, batched, strict=True)]
        made = jax.lax.platform_dependent(*batches, cpu=one_by_one, default=jax.vmap(function))
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


@_each_alone
def _solved(q: Array, x: Array) -> Array:
    return _triangular(q, x, transpose_a=False)


@_each_alone
def _solved_transposed(q: Array, x: Array) -> Array:
    return _triangular(q, x, transpose_a=True)


_triangular = functools.partial(jax.lax.linalg.triangular_solve, left_side=True, lower=False)


def divided_by_transpose(q: Array, x: Array) -> Array:
    """`q^-ᵀ x` with the upper triangle of q; it can be differentiated."""
    return jax.lax.custom_linear_solve(
        lambda y: jnp.matmul(jnp.triu(q).T, y, precision="highest"),
        x,
        solve=lambda _, b: _solved_transposed(q, b),
        transpose_solve=lambda _, b: _solved(q, b),
    )
