"""The density of all eigenvalues, the trace and the diagonal, estimated from a few random probes.

Weight each eigenvalue of A by the squared component of a random unit vector v along its eigenvector. The expectation of
this weighted spectrum is the density of eigenvalues, and `steps` steps of Lanczos from v give its Gauss quadrature,
which is exact up to degree 2 steps - 1. For a vector v of random signs the expectation of vᵀ A v is the trace, and that
of v * A v the diagonal. These two are means over probes, with a standard error.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.curvature.vectors import unflat
from gradtx.landscape.krylov import check_operator, check_steps, krylov, random_unit
from gradtx.landscape.operators import Operator
from gradtx.training import inputs

PyTree = Any


class SpectralDensity(NamedTuple):
    """The density of eigenvalues as a quadrature rule for each probe; the weights of a probe sum to 1."""

    nodes: Array
    """Ritz values, shape (probes, steps)."""
    weights: Array
    """Their weights, of the same shape."""
    size: int
    """The number of eigenvalues."""

    def density(self, points: Any, width: float | None = None) -> Array:
        """The density at the given points, with a normal distribution around each node; it integrates to 1.

            density(t) = mean over probes of sum of weight_i exp(-(t - node_i)² / 2 width²) / (width √2π)

        Args:
          points: an array of eigenvalues.
          width: the standard deviation of the normal distributions, above 0; None is a hundredth of the range of the
            nodes.

        >>> import jax.numpy as jnp
        >>> from gradtx import landscape
        >>> H = landscape.hessian(lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2), jnp.zeros(2))  # eigenvalues 2 and 6
        >>> found = landscape.spectral_density(H, probes=200)
        >>> print(found.density(jnp.array([2.0, 4.0, 6.0]), width=0.4).round(1))
        [0.5 0.  0.5]
        """
        points = jnp.asarray(points, self.nodes.dtype)
        if width is None:
            width = self.width
        elif not _is_width(width):
            raise ValueError(f"gradtx.landscape.SpectralDensity: width is {width!r}; it must be a number above 0.")
        width, one = float(width), (1,) * points.ndim
        nodes, weights = self.nodes.reshape(*one, -1), self.weights.reshape(*one, -1)
        curves = jnp.exp(-(((points[..., None] - nodes) / width) ** 2) / 2) / (width * float(np.sqrt(2 * np.pi)))
        return jnp.sum(weights * curves, axis=-1) / self.nodes.shape[0]

    @property
    def width(self) -> float:
        """The default width: a hundredth of the range of the nodes."""
        low, high = float(jnp.min(self.nodes)), float(jnp.max(self.nodes))
        return max((high - low) / 100, 1e-6 * max(abs(low), abs(high)), 1e-30)


def _is_width(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 < value < np.inf)


def spectral_density(
    operator: Operator, *, probes: int = 8, steps: int | None = None, key: Array | None = None
) -> SpectralDensity:
    """The density of an operator's eigenvalues, by stochastic Lanczos quadrature.

        T = tridiagonal matrix of Lanczos from a random v, T = S diag(node) Sᵀ;   weight_i = S[0, i]²

    Source: Golub and Welsch 1969; Lin, Saad, Yang 2016, section 3.2.2; for networks Ghorbani, Krishnan, Xiao 2019, and
    Papyan 2018. Here the starts are normal vectors scaled to length 1, and the basis is fully reorthogonalized.

    Args:
      operator: made by `hessian`, `gauss_newton`, `fisher` or `operator`.
      probes: the number of random starts, 1 or more.
      steps: products per probe, and vectors in memory, 1 or more; None is the number of params, at most 64.
      key: a random key; None is key 0.

    Errors: TypeError for an operator that is none, or counts that are not ints; ValueError for counts below 1.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> H = landscape.hessian(lambda w: jnp.sum(w**2), jnp.zeros(10))  # ten eigenvalues, all 2
    >>> found = landscape.spectral_density(H, probes=1, steps=4)
    >>> print((found.nodes[0] * found.weights[0]).sum())
    2.0
    """
    who = "gradtx.landscape.spectral_density"
    check_operator(who, operator)
    probes = inputs.positive(who, "probes", probes)
    steps = check_steps(who, steps, operator, 1)
    nodes, weights = _quadratures(operator, inputs.read_key(who, key), probes, steps)
    return SpectralDensity(nodes, weights, operator.size)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _quadratures(operator: Operator, key: Array, probes: int, steps: int) -> tuple[Array, Array]:
    def one(key: Array) -> tuple[Array, Array]:
        start = random_unit(key, operator.size, operator.dtype)
        space = krylov(operator, start, steps, jax.random.fold_in(key, steps))
        nodes, vectors = jnp.linalg.eigh(space.matrix)
        return nodes, vectors[0] ** 2

    return jax.lax.map(one, jax.random.split(key, probes))


# Sums -----------------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over random probes."""

    value: PyTree
    standard_error: PyTree
    """The estimated standard deviation of the mean, plus a bound of the rounding error of the sum."""
    probes: int


def trace(operator: Operator, *, probes: int = 64, key: Array | None = None) -> Estimate:
    """The trace of an operator, the sum of its eigenvalues, by Hutchinson's estimator.

        trace = mean of vᵀ A v over random signs v;   standard error = standard deviation / √probes

    Source: Hutchinson 1990. The mean is unbiased; its variance is twice the sum of the squared off-diagonal elements,
    divided by probes.

    Args:
      operator: made by `hessian`, `gauss_newton`, `fisher` or `operator`.
      probes: the number of products, 2 or more. With 30 or more, the value is within three standard errors in 99 of
        100 cases, in 96 if one eigenvalue is much larger than all others.
      key: a random key; None is key 0.

    Errors: TypeError for an operator that is none, or probes that are not an int; ValueError for fewer than 2.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> H = landscape.hessian(lambda w: jnp.sum(jnp.arange(4.0) * w**2), jnp.zeros(4))
    >>> print(landscape.trace(H).value)
    12.0
    """
    who = "gradtx.landscape.trace"
    probes = _check(who, operator, probes)
    mean, error = _estimated(operator, inputs.read_key(who, key), probes, True)
    return Estimate(mean, error, probes)


def diagonal(operator: Operator, *, probes: int = 64, key: Array | None = None) -> Estimate:
    """The diagonal of an operator, a tree like the params in at least float32, by Hutchinson's estimator.

        diagonal = mean of v * A v over random signs v;   standard error = standard deviation / √probes, of each number

    Source: Bekas, Kokiopoulou, Saad 2007, with random signs, for which the denominator of their estimator is 1; used by
    AdaHessian and Sophia.

    Args:
      operator: made by `hessian`, `gauss_newton`, `fisher` or `operator`.
      probes: the number of products, 2 or more; four vectors are in memory for any number.
      key: a random key; None is key 0.

    Errors: TypeError for an operator that is none, or probes that are not an int; ValueError for fewer than 2.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> H = landscape.hessian(lambda w: w["a"] ** 2 + 5.0 * w["b"] ** 2, {"a": jnp.array(1.0), "b": jnp.array(1.0)})
    >>> {name: float(value) for name, value in landscape.diagonal(H).value.items()}
    {'a': 2.0, 'b': 10.0}
    """
    who = "gradtx.landscape.diagonal"
    probes = _check(who, operator, probes)
    mean, error = _estimated(operator, inputs.read_key(who, key), probes, False)
    return Estimate(mean, error, probes)


def _check(who: str, operator: Any, probes: Any) -> int:
    check_operator(who, operator)
    return inputs.count(who, "probes", probes, least=2)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _estimated(operator: Operator, key: Array, probes: int, total: bool) -> tuple[PyTree, PyTree]:
    """The mean of v * A v over probes, or of its sum, and the mean's standard error, in one pass (Welford 1962)."""

    def step(carry: Any, key: Array) -> Any:
        count, mean, squares, terms = carry
        v = jax.random.rademacher(key, (operator.size,), operator.dtype)
        product = v * operator.times_vector(v)
        x = jnp.sum(product) if total else product
        count = count + 1
        away = x - mean
        mean = mean + away / count
        return (count, mean, squares + away * (x - mean), jnp.maximum(terms, jnp.linalg.norm(product))), None

    none = jnp.zeros((), operator.dtype)
    nothing = jnp.zeros((() if total else (operator.size,)), operator.dtype)
    start = none, nothing, nothing, none
    (count, mean, squares, terms), _ = jax.lax.scan(step, start, jax.random.split(key, probes))
    sizes = jnp.abs(mean) + jnp.sqrt(squares / count) + (terms if total else 0)  # the terms may cancel in a trace
    error = jnp.sqrt(squares / (count - 1) / count) + 4 * operator.eps * sizes
    wide = tree.to_compute_dtype(operator.params)
    return (mean, error) if total else (unflat(mean, wide), unflat(error, wide))
