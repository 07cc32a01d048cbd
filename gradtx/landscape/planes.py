"""Planes in the space of the params: an origin and one or two directions, all trees like the params.

    params at (x, y) = origin + x first + y second

The picture of a loss depends on the plane. Each kind of plane answers a different question.

- `random_plane`: random directions. With filter normalization the picture does not depend on the scale of the layers
  of a ReLU network.
- `curved_plane`: the eigenvectors of an operator with the largest eigenvalues: the steepest cross-section.
- `trajectory_plane`: the principal components of a trajectory: the plane that contains most of the training.
- `plane_through`: a line through two params, or a plane through three: the loss between solutions.
- `plane_along`: directions that you choose.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import numerics, tree
from gradtx.curvature.vectors import unflat
from gradtx.landscape import costs
from gradtx.landscape.krylov import lanczos
from gradtx.landscape.operators import Operator
from gradtx.training import inputs, minibatches

PyTree = Any
NORMALIZATIONS = ("filter", "leaf", "none")


@functools.partial(jax.tree_util.register_dataclass, data_fields=("origin", "directions"), meta_fields=("names",))
@dataclass(frozen=True)
class Plane:
    """An origin and one or two directions, all trees like the params. A pytree."""

    origin: PyTree
    directions: tuple[PyTree, ...]
    names: tuple[str, ...]
    """The labels of the axes, one for each direction."""

    def at(self, *coordinates: Any) -> PyTree:
        """The params at these coordinates: `origin + x first + y second`.

        >>> import jax.numpy as jnp
        >>> from gradtx import landscape
        >>> print(landscape.plane_through(jnp.zeros(2), jnp.array([2.0, 4.0])).at(0.5))
        [1. 2.]
        """
        if len(coordinates) != len(self.directions):
            raise TypeError(
                f"gradtx.landscape.Plane.at: {len(coordinates)} coordinates are given; allowed: "
                f"{len(self.directions)}, one for each direction."
            )
        return params_at(self.origin, self.directions, coordinates)

    def project(self, trajectory: PyTree) -> Array:
        """The coordinates of the points of the plane nearest to a trajectory, of shape (steps, directions).

        Args:
          trajectory: a tree like the params, each leaf with an additional leading axis of steps.

        Errors: ValueError, with the path, if the structure or the shapes are not those of the params.

        >>> import jax.numpy as jnp
        >>> from gradtx import landscape
        >>> plane = landscape.plane_through(jnp.zeros(2), jnp.array([2.0, 0.0]))
        >>> print(plane.project(jnp.array([[1.0, 0.0], [3.0, 5.0]])))
        [[0.5]
         [1.5]]
        """
        who = "gradtx.landscape.Plane.project"
        trajectory = costs.check_like(who, "trajectory", trajectory, self.origin, axes=1)
        return _projected(self.origin, self.directions, trajectory)


@jax.jit
def params_at(origin: PyTree, directions: tuple[PyTree, ...], coordinates: Any) -> PyTree:
    """`origin + sum of coordinate_i direction_i`, computed in at least float32, in the origin's dtypes."""

    def moved(w: Array, *directions: Array) -> Array:
        for x, direction in zip(coordinates, directions):
            w = w + jnp.asarray(x, w.dtype) * direction
        return w

    return tree.cast_like(tree.map(moved, origin, *directions), origin)


@jax.jit
def _projected(origin: PyTree, directions: tuple[PyTree, ...], trajectory: PyTree) -> Array:
    away = tree.map(lambda w, origin: w - origin[None], trajectory, origin)
    gram = jnp.array([[_dot(a, b) for b in directions] for a in directions])
    along = jnp.stack([jax.vmap(functools.partial(_dot, direction))(away) for direction in directions])
    return jnp.linalg.solve(gram, along).T


def _dot(a: PyTree, b: PyTree) -> Array:
    parts = jax.tree.leaves(tree.map(lambda a, b: jnp.sum(a * b), a, b))
    return functools.reduce(jnp.add, [part.astype(tree.precision(parts)) for part in parts])


def _length(direction: PyTree) -> Array:
    return jnp.sqrt(_dot(direction, direction))


def _upright(first: PyTree, second: PyTree) -> PyTree:
    """The part of the second that is orthogonal to the first."""
    share = numerics.divide(_dot(first, second), _dot(first, first))
    return tree.map(lambda u, v, share: v - share * u, first, second, share=share)


def _made(who: str, origin: PyTree, directions: list[PyTree], names: tuple[str, ...]) -> Plane:
    """A plane; ValueError if its directions do not span one."""
    _check_span(who, *_measured(directions))
    return Plane(origin, tuple(directions), names)


@jax.jit
def _measured(directions: list[PyTree]) -> tuple[list[Array], Array]:
    """The lengths of the directions after orthogonalization, and the length that sets the size of rounding errors."""
    upright = directions[:1] + [_upright(directions[0], second) for second in directions[1:]]
    return [_length(direction) for direction in upright], _length(directions[-1])


def _check_span(who: str, lengths: list[Array], size: Array) -> None:
    """Refuse directions that, after orthogonalization, are not longer than rounding errors of vectors of that size."""
    limit = 2 * float(jnp.finfo(size.dtype).eps) * float(size)
    if not all(limit < float(length) < np.inf for length in lengths):
        raise ValueError(
            f"{who}: the orthogonalized directions have lengths {', '.join(f'{length:.3g}' for length in lengths)} "
            f"and span no {'plane' if len(lengths) == 2 else 'line'}; they must be finite and longer than rounding "
            f"errors ({limit:.1g}). Choose directions that are not zero and not parallel."
        )


# Kinds of planes ------------------------------------------------------------------------------------------------------


def random_plane(params: PyTree, key: Array, *, dimensions: int = 2, normalize: str = "filter") -> Plane:
    """A line or plane along random directions, scaled like the params.

        direction <- direction / |direction| * |params|        for each filter, or each leaf

    With "filter", each filter of a direction has the norm of the params' filter. If the layers of a ReLU network are
    rescaled so that its outputs stay the same, the picture stays the same too. A filter is the weights of one output.
    In leaves with two or more axes the outputs are on the last axis, as in flax's kernels. Leaves with fewer axes,
    such as biases and the scales of norms, do not move.

    Source: Li, Xu, Taylor, Studer, Goldstein 2018, arXiv 1712.09913, section 4, where biases and the params of batch
    normalization do not move either. "leaf" is their layer normalization: each leaf of a direction has the norm of the
    params' leaf, and every leaf moves.

    Args:
      params: a tree of real arrays: the origin.
      key: a random key for the directions.
      dimensions: 1 or 2.
      normalize: "filter", "leaf", or "none" for standard normal numbers.

    Errors: TypeError for params that are not real, or a missing key; ValueError for an argument out of range, or for
    params that give no direction, for example params without a leaf of two axes with "filter".

    >>> import jax, jax.numpy as jnp
    >>> from gradtx import landscape
    >>> plane = landscape.random_plane({"kernel": jnp.eye(3), "bias": jnp.ones(3)}, jax.random.key(0))
    >>> jnp.linalg.norm(plane.directions[0]["kernel"], axis=0).round(3).tolist(), plane.directions[0]["bias"].tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    who = "gradtx.landscape.random_plane"
    params = costs.check_params(who, params)
    if dimensions not in (1, 2):
        raise ValueError(f"{who}: dimensions is {dimensions!r}; allowed: 1 or 2.")
    inputs.choice(who, "normalize", normalize, NORMALIZATIONS)
    minibatches.check_key(who, key)
    directions = _random(params, inputs.read_key(who, key), dimensions, normalize)
    return _made(who, params, directions, tuple(f"random direction {i + 1}" for i in range(dimensions)))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _random(params: PyTree, key: Array, dimensions: int, normalize: str) -> list[PyTree]:
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    drawn = jax.random.normal(key, (dimensions, size), tree.precision(params))
    wide = tree.to_compute_dtype(params)
    return [normalized(unflat(row, wide), params, normalize) for row in drawn]


def normalized(direction: PyTree, params: PyTree, normalize: str) -> PyTree:
    """The direction with the norms of the params, filter by filter or leaf by leaf."""

    def scaled(d: Array, w: Array) -> Array:
        if normalize == "filter" and w.ndim < 2:
            return jnp.zeros_like(d)
        axes = tuple(range(w.ndim - 1)) if normalize == "filter" else None
        length = jnp.sqrt(jnp.sum(d**2, axis=axes, keepdims=axes is not None))
        wanted = jnp.sqrt(jnp.sum(w**2, axis=axes, keepdims=axes is not None))
        return d * (wanted / jnp.where(length == 0, 1, length))

    return direction if normalize == "none" else tree.map(scaled, direction, params)


def plane_along(params: PyTree, first: PyTree, second: PyTree | None = None, *, normalize: str = "none") -> Plane:
    """A line or plane through params along given directions.

    Args:
      params: a tree of real arrays: the origin.
      first, second: trees like the params, such as a gradient, an update, or an eigenvector.
      normalize: "none" leaves them as they are; "filter" and "leaf" scale them to the norms of the params, as in
        `random_plane`.

    Errors: TypeError for arrays that are not real; ValueError for directions whose structure or shapes are not those
    of the params (with the path), and for directions that are zero or parallel.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> print(landscape.plane_along(jnp.ones(2), jnp.array([1.0, 0.0])).at(2.0))
    [3. 1.]
    """
    who = "gradtx.landscape.plane_along"
    params = costs.check_params(who, params)
    inputs.choice(who, "normalize", normalize, NORMALIZATIONS)
    given = {"first": first} if second is None else {"first": first, "second": second}
    directions = [normalized(costs.check_like(who, name, d, params), params, normalize) for name, d in given.items()]
    return _made(who, params, directions, tuple(f"{name} direction" for name in given))


def curved_plane(operator: Operator, *, steps: int | None = None, key: Array | None = None) -> Plane:
    """The plane through the operator's params along the two unit eigenvectors with the largest eigenvalues.

    Args:
      operator: made by `hessian`, `gauss_newton`, `fisher` or `operator`, over two or more params.
      steps: the number of products, as for `lanczos`.
      key: a random key for Lanczos; None is key 0.

    Errors: as `lanczos`.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> H = landscape.hessian(lambda w: w[0] ** 2 + 3.0 * w[1] ** 2 - w[2] ** 2, jnp.zeros(3))
    >>> landscape.curved_plane(H).names
    ('eigenvector of 6', 'eigenvector of 2')
    """
    pairs = lanczos(operator, smallest=0, largest=2, steps=steps, key=key)
    directions = [jax.tree.map(lambda leaf, i=i: leaf[i], pairs.vectors) for i in (1, 0)]
    names = tuple(f"eigenvector of {float(pairs.values[i]):.3g}" for i in (1, 0))
    return _made("gradtx.landscape.curved_plane", operator.params, directions, names)


def trajectory_plane(trajectory: PyTree, *, dimensions: int = 2) -> Plane:
    """The line or plane through the last point of a trajectory along its principal components, of length 1.

        M = [w_0 - w_T, ..., w_{T-1} - w_T];   directions: the eigenvectors of Mᵀ M with the largest eigenvalues

    The labels of the axes give the share of the sum of squares of M along each direction.

    Source: Li et al. 2018, arXiv 1712.09913, section 7. As there, the last point is subtracted, not the mean.

    Args:
      trajectory: a tree like the params, each leaf with a leading axis of steps, as stacked by `jax.lax.scan` or by
        `jax.tree.map(lambda *w: jnp.stack(w), *list_of_params)`.
      dimensions: 1 or 2.

    Errors: TypeError for leaves that are not real; ValueError for leaves without a common leading axis of at least
    dimensions + 1 steps, and for a trajectory on one line if dimensions is 2.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> plane = landscape.trajectory_plane(jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    >>> plane.names
    ('first principal component (90%)', 'second principal component (10%)')
    """
    who = "gradtx.landscape.trajectory_plane"
    trajectory = costs.check_params(who, trajectory, "trajectory")
    if dimensions not in (1, 2):
        raise ValueError(f"{who}: dimensions is {dimensions!r}; allowed: 1 or 2.")
    for path, leaf in tree.named_leaves(trajectory):
        if leaf.ndim == 0 or leaf.shape[0] != jax.tree.leaves(trajectory)[0].shape[0] or leaf.shape[0] <= dimensions:
            raise ValueError(
                f"{who}: trajectory at {path} has shape {leaf.shape}; it must have a leading axis of at least "
                f"{dimensions + 1} steps, of the same length in all leaves."
            )
    origin, directions, lengths, shares, size = _components(trajectory, dimensions)
    _check_span(who, lengths, size)
    numbers = ("first", "second")
    names = tuple(f"{n} principal component ({float(share):.0%})" for n, share in zip(numbers, shares))
    return Plane(origin, tuple(directions), names)


@functools.partial(jax.jit, static_argnums=1)
def _components(trajectory: PyTree, dimensions: int) -> tuple[PyTree, list[PyTree], list[Array], list[Array], Array]:
    """The last point; the directions, the norm of M along each, and their shares of M; the norm of all points.

    They come from the eigenvectors of M Mᵀ, which has a row for each step; Mᵀ M has one for each param. The first
    direction is subtracted from M before the second is found, so a much smaller second one is not lost to rounding.
    """
    dtype, dot = tree.precision(trajectory), functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    leaves, origin = jax.tree.leaves(trajectory), jax.tree.map(lambda leaf: leaf[-1], trajectory)
    rows = jnp.concatenate([leaf.astype(dtype).reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
    rest = rows[:-1] - rows[-1:]
    whole, directions, lengths = jnp.linalg.norm(rest), list[PyTree](), list[Array]()
    wide = tree.to_compute_dtype(origin)
    for _ in range(dimensions):
        vector = dot(jnp.linalg.eigh(dot(rest, rest.T))[1][:, -1], rest)
        vector = numerics.divide(vector, jnp.linalg.norm(vector))
        lengths.append(jnp.linalg.norm(dot(rest, vector)))
        directions.append(unflat(vector, wide))
        for _ in range(2):
            rest = rest - dot(rest, vector)[:, None] * vector[None]
    return origin, directions, lengths, [(length / whole) ** 2 for length in lengths], jnp.linalg.norm(rows)


def plane_through(first: PyTree, second: PyTree, third: PyTree | None = None) -> Plane:
    """The line through two params, or the plane through three.

        at (0, 0): first      at (1, 0): second      at plane.project(third): third

    The first direction is `second - first`. The second direction is the part of `third - first` that is orthogonal to
    the first direction, scaled to the same norm, so the picture is not skewed.

    Source: Goodfellow, Vinyals, Saxe 2015 for the line; Garipov et al. 2018, appendix A.1, for the plane.

    Args:
      first, second, third: trees of real arrays with the same structure and shapes.

    Errors: TypeError for params that are not real; ValueError for a different structure or shape (with the path), and
    for points that coincide or are on one line.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> plane = landscape.plane_through(jnp.zeros(2), jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0]))
    >>> print(plane.at(1.0, 0.0), plane.project(jnp.array([[1.0, 1.0]])))
    [2. 0.] [[0.5 0.5]]
    """
    who = "gradtx.landscape.plane_through"
    first = costs.check_params(who, first, "first")
    second = costs.check_like(who, "second", second, first)
    names = ("from the first to the second", "towards the third")
    if third is None:
        return _made(who, first, [_between(first, second)], names[:1])
    directions, lengths, size = _through(first, second, costs.check_like(who, "third", third, first))
    _check_span(who, lengths, size)
    return Plane(first, directions, names)


@jax.jit
def _between(first: PyTree, second: PyTree) -> PyTree:
    return tree.map(lambda a, b: b - a, first, second)


@jax.jit
def _through(first: PyTree, second: PyTree, third: PyTree) -> tuple[tuple[PyTree, PyTree], list[Array], Array]:
    """The directions, their norms before the second is scaled, and the norm that sets the size of rounding errors."""
    u, v = _between(first, second), _between(first, third)
    size = sum(_length(point) for point in (first, second, third)) * (1 + numerics.divide(_length(v), _length(u)))
    v = _upright(u, v)
    lengths = [_length(u), _length(v)]
    return (u, tree.map(lambda v, scale: scale * v, v, scale=lengths[0] / lengths[1])), lengths, size
