"""Products of a curvature matrix with a vector, in one call.

Each makes an operator, returns `operator @ v`, and forgets the operator. For several products, and for `lanczos` and
its relatives, make the operator once and keep it.
"""

from collections.abc import Callable
from typing import Any

from jax import Array

from gradtx.landscape.operators import fisher, gauss_newton, hessian

PyTree = Any


def hessian_product(
    loss: Callable[..., Array], params: PyTree, v: PyTree, data: PyTree = None, *, batch_size: int | None = None
) -> PyTree:
    """`H v`, the product of a loss's Hessian with a tree like the params: `hessian(loss, params, data) @ v`.

    Args:
      loss, params, data, batch_size: as for `hessian`.
      v: a tree like the params.

    Errors: as `hessian`; ValueError, with the path, if the structure or the shapes of `v` are not those of the params.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> print(landscape.hessian_product(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]), jnp.ones(2)))
    [ 6. 12.]
    """
    return hessian(loss, params, data, batch_size=batch_size) @ v


def gauss_newton_product(
    model: Callable[..., PyTree],
    cost: Callable[..., Array],
    params: PyTree,
    v: PyTree,
    data: PyTree = None,
    *,
    batch_size: int | None = None,
) -> PyTree:
    """`G v`, the product with the Gauss-Newton matrix: `gauss_newton(model, cost, params, data) @ v`.

    Args:
      model, cost, params, data, batch_size: as for `gauss_newton`.
      v: a tree like the params.

    Errors: as `gauss_newton`; ValueError, with the path, if the structure or the shapes of `v` are not those of the
    params.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> square = lambda y: 0.5 * jnp.sum(y**2)
    >>> print(landscape.gauss_newton_product(lambda w: 3.0 * w, square, jnp.ones(2), jnp.ones(2)))
    [9. 9.]
    """
    return gauss_newton(model, cost, params, data, batch_size=batch_size) @ v


def fisher_product(
    model: Callable[..., Array],
    params: PyTree,
    v: PyTree,
    data: PyTree = None,
    *,
    distribution: str = "categorical",
    batch_size: int | None = None,
) -> PyTree:
    """`F v`, the product with the Fisher information matrix: `fisher(model, params, data) @ v`.

    Args:
      model, params, data, distribution, batch_size: as for `fisher`.
      v: a tree like the params.

    Errors: as `fisher`; ValueError, with the path, if the structure or the shapes of `v` are not those of the params.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> print(landscape.fisher_product(lambda w: w, jnp.ones(2), jnp.ones(2), distribution="normal"))
    [0.5 0.5]
    """
    return fisher(model, params, data, distribution=distribution, batch_size=batch_size) @ v
