"""Inverse roots of symmetric matrices, which may be singular and may have equal eigenvalues."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.matrices import lapack


def product(*factors: Array) -> Array:
    """The matrix product, in full precision on every device."""
    result = factors[0]
    for factor in factors[1:]:
        result = jnp.matmul(result, factor, precision="highest")
    return result


def transposed(x: Array) -> Array:
    """Its transpose; of a batch of matrices, that of each."""
    return jnp.swapaxes(x, -1, -2)


@jax.custom_jvp
def inverse_root(a: Array, exponent: Any, eps: Any) -> Array:
    """`(a - min(λ, 0) I + eps I)^-exponent`, where λ is the smallest eigenvalue of a symmetric matrix a.

    Args:
      a: a symmetric matrix. Rounding may have made some of its eigenvalues negative.
      exponent: 1/2 for the inverse square root, 1/4 for the inverse fourth root.
      eps: >= 0, added to all eigenvalues. [a]
    """
    _, values, vectors = _decomposed(a, eps)
    return _with_values(vectors, values**-exponent)


@inverse_root.defjvp
def _inverse_root_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """The derivative in the eigenbasis: divided differences of the power, which are its slope at equal eigenvalues."""
    (a, exponent, eps), (da, dexponent, deps) = primals, tangents
    plain, values, vectors = _decomposed(a, eps)
    powers, slopes = values**-exponent, -exponent * values ** (-exponent - 1)
    x, y = values[..., :, None], values[..., None, :]
    gap, middle = plain[..., :, None] - plain[..., None, :], (x + y) / 2
    apart = jnp.abs(gap) > 1e-3 * middle
    differences = (powers[..., :, None] - powers[..., None, :]) / jnp.where(apart, gap, 1)
    quotients = jnp.where(apart, differences, -exponent * middle ** (-exponent - 1))
    inside = quotients * product(transposed(vectors), da, vectors)
    of_values = slopes * deps - jnp.log(values) * powers * dexponent
    return _with_values(vectors, powers), product(vectors, inside, transposed(vectors)) + _with_values(
        vectors, of_values
    )


def _decomposed(a: Array, eps: Any) -> tuple[Array, Array, Array]:
    """The eigenvalues, the same after the shift, and the eigenvectors."""
    plain, vectors = lapack.eigh(a)
    lowest = jnp.min(plain, axis=-1, keepdims=True)
    return plain, plain - jnp.minimum(lowest, 0) + eps, vectors


def _with_values(vectors: Array, values: Array) -> Array:
    """The symmetric matrix with these eigenvectors and eigenvalues."""
    return product(vectors * values[..., None, :], transposed(vectors))
