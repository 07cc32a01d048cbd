"""Eigenbases of symmetric matrices: exactly, or one step better than the last one. A failure keeps the last one.

Matrices are divided by their largest element first, so that neither tiny nor huge ones overflow. No derivative is
taken: that of an eigenbasis is infinite where eigenvalues are equal, so bases count as constants.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.matrices import lapack
from gradtx.matrices.kronecker.roots import product, transposed


def eigenbasis(a: Array, basis: Array) -> tuple[Array, Array]:
    """The eigenvectors of a symmetric matrix, largest first, and whether they are not finite; then `basis` is kept.

    Args:
      a: a symmetric matrix. Zero gives columns of the identity.
      basis: the basis to keep, where a or its decomposition is not finite.
    """
    a, usable = _normalized(a)
    vectors = lapack.eigh(a)[1][..., ::-1]
    return kept(vectors, basis, usable)


def power_step(a: Array, basis: Array, *, in_order: bool = True) -> tuple[Array, Array]:
    """One step of a power iteration: the orthonormal factor of `a basis`, and whether it failed; then `basis` is kept.

    Each column keeps its place. So what belongs to a column, such as its second moment, keeps its place too.

    Args:
      a: a symmetric matrix.
      basis: an orthonormal matrix, near the eigenvectors of a.
      in_order: orthogonalize the columns in the order of falling `diag(basisᵀ a basis)`, not from left to right.
    """
    a, usable = _normalized(a)
    basis = jax.lax.stop_gradient(basis)
    powers = product(a, basis)
    if not in_order:
        return kept(lapack.qr(powers), basis, usable)
    order = jnp.argsort(-jnp.sum(basis * powers, axis=-2))
    sorted_basis = lapack.qr(powers[..., order])
    return kept(jnp.zeros_like(basis).at[..., order].set(sorted_basis), basis, usable)


def gram(g: Array, axis: int) -> Array:
    """`g gᵀ` for the rows (axis 0), `gᵀ g` for the columns (axis 1)."""
    return product(transposed(g), g) if axis else product(g, transposed(g))


def grown(old: Array, g: Array, axis: int, keep: Any, add: Any) -> tuple[Array, Array]:
    """`keep old + add gram(g)` if that is finite, else the old one; and whether it is not.

    The diagonal decides: no element of a sum of Gram matrices is larger than the largest on its diagonal. Rounding may
    exceed it a little, for which the factor 2 leaves room. So the check needs no product of matrices, and the sum can
    be written over the old one.
    """
    diagonal = keep * jnp.diagonal(old) + add * jnp.sum(g * g, axis=1 - axis)
    fine = jnp.isfinite(2 * diagonal).all()
    return jnp.where(fine, keep * old + add * gram(g, axis), old), ~fine


def _normalized(a: Array) -> tuple[Array, Array]:
    """A matrix divided by its largest element, and whether it is finite; the identity if it is not."""
    a = jax.lax.stop_gradient(a)
    size = jnp.max(jnp.abs(a), initial=0)
    usable = jnp.isfinite(size)
    scaled = a / jnp.where(usable & (size > 0), size, 1)
    return jnp.where(usable, scaled, jnp.eye(a.shape[-1], dtype=a.dtype)), usable


def kept(new: Array, old: Any, usable: Any = True) -> tuple[Array, Array]:
    """What is new if it is finite, else the old one; and whether it is not."""
    fine = usable & jnp.isfinite(new).all()
    return jnp.where(fine, new, old), ~fine
