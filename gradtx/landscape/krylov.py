"""Eigenvalues from products: Lanczos.

The span of q₁, A q₁, A² q₁, ... soon contains good approximations of the extreme eigenvectors. Lanczos builds an
orthonormal basis Q of this Krylov space, in which the operator is a tridiagonal matrix T = Qᵀ A Q:

    w <- A q_j;   alpha_j = q_j·w;   w <- w - Q Qᵀ w, twice;   beta_j = |w|;   q_{j+1} = w / beta_j

The eigenvalues of T, the Ritz values, are Rayleigh quotients of A. Each new vector is orthogonalized against *all*
before it, twice; otherwise rounding errors bring copies of converged eigenvalues back. If the space is exhausted,
beta_j is 0 and the iteration continues with a random vector, so that multiple eigenvalues are found too. Memory:
`steps` vectors of the size of the params.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.landscape.operators import Operator
from gradtx.training import inputs

PyTree = Any
_TINY = 32
"""A remainder of a product counts as zero if it is below this many rounding errors of the operator's norm."""


class Krylov(NamedTuple):
    """An orthonormal basis, one vector per row, and the operator in this basis."""

    basis: Array
    alpha: Array
    beta: Array
    """`beta[j]` couples rows j and j + 1; the last one couples the space to the rest."""
    defect: Array
    """The largest part of a product that a symmetric operator would not have: its asymmetry, from rounding or not."""

    @property
    def matrix(self) -> Array:
        """T, as a dense matrix."""
        return jnp.diag(self.alpha) + jnp.diag(self.beta[:-1], 1) + jnp.diag(self.beta[:-1], -1)


def krylov(operator: Operator, start: Array, steps: int, key: Array) -> Krylov:
    """`steps` steps of Lanczos with full reorthogonalization."""
    limit = _TINY * jnp.finfo(start.dtype).eps
    rows, spare = jnp.arange(steps), random_unit(key, start.size, start.dtype)

    def step(carry: Any, j: Array) -> Any:
        basis, q, before, scale = carry
        basis = basis.at[j].set(q)
        w = operator.times_vector(q)
        inside = _dot(basis, w)
        expected = jnp.where(rows == j, inside, jnp.where(rows == j - 1, before, 0))
        alpha, defect = inside[j], jnp.linalg.norm(inside - expected)
        w = w - _dot(inside, basis)
        w = w - _dot(_dot(basis, w), basis)
        beta = jnp.linalg.norm(w)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), beta))
        ended = beta <= limit * scale
        following = jax.lax.cond(
            ended,
            lambda: _new_direction(jnp.roll(spare, j), basis),
            lambda: w / jnp.where(ended, 1, beta),
        )
        beta = jnp.where(ended, 0, beta)
        return (basis, following, beta, scale), (alpha, beta, defect)

    zero = jnp.zeros((), start.dtype)
    begin = jnp.zeros((steps, start.size), start.dtype), start / jnp.linalg.norm(start), zero, zero
    (basis, _, _, _), (alpha, beta, defects) = jax.lax.scan(step, begin, rows)
    return Krylov(basis, alpha, beta, jnp.max(defects))


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _new_direction(w: Array, basis: Array) -> Array:
    """A random unit vector, orthogonalized against the rows of the basis."""
    for _ in range(2):
        w = w - _dot(_dot(basis, w), basis)
        w = w / jnp.linalg.norm(w)
    return w


def random_unit(key: Array, size: int, dtype: Any) -> Array:
    """A random unit vector, uniform on the sphere."""
    w = jax.random.normal(key, (size,), dtype)
    return w / jnp.linalg.norm(w)


class Eigenpairs(NamedTuple):
    """Approximate eigenvalues in ascending order, with error bounds and eigenvectors."""

    values: Array
    """Rayleigh quotients, one for each vector."""
    bounds: Array
    """The operator has an eigenvalue within this distance of each value."""
    vectors: PyTree
    """A tree like the params, with a leading axis of pairs; each vector has length 1."""


def lanczos(
    operator: Operator, *, smallest: int = 1, largest: int = 1, steps: int | None = None, key: Array | None = None
) -> Eigenpairs:
    """The extreme eigenvalues of an operator, with eigenvectors and error bounds.

        |A y - theta y| <= r   =>   A has an eigenvalue within r of theta            (|y| = 1, A symmetric)

    The bound is the residual of the returned vector, computed with one more product, plus a bound of the rounding
    errors. It says how near an eigenvalue is, not that it is the extreme one: Lanczos starts at a random vector, and
    can miss eigenvectors that are nearly orthogonal to it. Up to rounding, the values of a symmetric operator are
    between its smallest and its largest eigenvalue.

    Source: Lanczos 1950; Paige 1972 for the full reorthogonalization, done twice here (Giraud et al. 2005); Parlett
    1998, section 4.5, for the bound.

    Args:
      operator: made by `hessian`, `gauss_newton`, `fisher` or `operator`.
      smallest, largest: the number of eigenvalues from each end, 0 or more, at least 1 in total.
      steps: the number of products, and of vectors in memory, at least smallest + largest; None is the number of
        params, at most 64. With as many steps as params all eigenvalues are found.
      key: a random key for the start; None is key 0.

    Errors: TypeError for an operator that is none, or counts that are not ints; ValueError for counts out of range.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> H = landscape.hessian(lambda w: jnp.sum(jnp.arange(-3.0, 4.0) * w**2), jnp.zeros(7))
    >>> found = landscape.lanczos(H, smallest=1, largest=2)
    >>> [round(float(value), 3) for value in found.values], bool((found.bounds < 1e-4).all())
    ([-6.0, 4.0, 6.0], True)
    """
    who = "gradtx.landscape.lanczos"
    check_operator(who, operator)
    smallest, largest = (
        inputs.count(who, name, value) for name, value in (("smallest", smallest), ("largest", largest))
    )
    wanted = smallest + largest
    if not 1 <= wanted <= operator.size:
        raise ValueError(
            f"{who}: smallest + largest is {smallest} + {largest} = {wanted}; allowed: 1 to {operator.size}, the "
            "number of eigenvalues."
        )
    steps = check_steps(who, steps, operator, wanted)
    return _extreme(operator, inputs.read_key(who, key), smallest, largest, steps)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _extreme(operator: Operator, key: Array, smallest: int, largest: int, steps: int) -> Eigenpairs:
    return extreme(operator, key, smallest, largest, steps)[0]


def extreme(operator: Operator, key: Array, smallest: int, largest: int, steps: int) -> tuple[Eigenpairs, Array, Array]:
    """The pairs, all Ritz values, and a bound of their rounding errors."""
    start = random_unit(key, operator.size, operator.dtype)
    space = krylov(operator, start, steps, jax.random.fold_in(key, steps))
    ritz, small = jnp.linalg.eigh(space.matrix)
    chosen = jnp.concatenate([jnp.arange(smallest), jnp.arange(steps - largest, steps)])
    vectors = _dot(small[:, chosen].T, space.basis)

    def measured(y: Array) -> tuple[Array, Array, Array]:
        y = y / jnp.linalg.norm(y)
        product = operator.times_vector(y)
        value = _dot(y, product)
        return value, jnp.linalg.norm(product - value * y), y

    values, residuals, vectors = jax.lax.map(measured, vectors)
    order = jnp.argsort(values)  # rounding may have swapped equal ones
    values, residuals, vectors = values[order], residuals[order], vectors[order]
    rounding = space.defect + 4 * operator.eps * jnp.max(jnp.abs(ritz))
    return Eigenpairs(values, residuals + rounding, jax.vmap(operator.unflat)(vectors)), ritz, rounding


def check_operator(who: str, operator: Any) -> None:
    """Refuse what is not an operator."""
    if not isinstance(operator, Operator):
        raise TypeError(
            f"{who}: operator is a {type(operator).__name__}; it must be a gradtx.landscape.Operator. Make one with "
            "hessian, gauss_newton, fisher or operator, such as landscape.hessian(loss, params, data)."
        )


def check_steps(who: str, steps: Any, operator: Operator, least: int, usual: int = 64) -> int:
    """The number of products, at most the number of params."""
    if steps is None:
        return min(operator.size, max(usual, 2 * least))
    steps = inputs.positive(who, "steps", steps)
    if steps < least:
        raise ValueError(f"{who}: steps is {steps}; allowed: {least} or more, one for each eigenvalue.")
    return min(steps, operator.size)
