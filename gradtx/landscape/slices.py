"""The loss on a line or a plane through params, every point evaluated in one compiled program.

    values[j, i] = loss(origin + x_i first + y_j second)

The points are divided into groups. The points of a group are evaluated together, as many as a memory limit allows, and
the groups one after another. With mini-batches each group is averaged batch by batch.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.landscape import costs
from gradtx.landscape.planes import Plane, params_at
from gradtx.training import inputs
from gradtx.training.progress import Progress

PyTree = Any
CACHE, MEMORY = 2**22, 2**28
"""Maximum bytes of all intermediate results of a group of points, on a CPU and on an accelerator."""


class Slice(NamedTuple):
    """Values of a loss on a line or a plane."""

    values: Array
    """Shape (len(x),) or (len(y), len(x)): a row for each y."""
    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any] | None
    plane: Plane

    @property
    def nonfinite(self) -> int:
        """The number of values that are not finite."""
        return int(np.sum(~np.isfinite(np.asarray(self.values, np.float64))))


def slice_1d(
    loss: Any,
    line: Plane,
    data: PyTree = None,
    *,
    x: Any = (-1.0, 1.0),
    points: int = 101,
    batch_size: int | None = None,
    at_once: int | None = None,
    progress: bool = True,
) -> Slice:
    """The loss along a line.

        values[i] = loss(origin + x_i direction), the mean over all samples

    Args:
      loss: `loss(params)`, or `loss(params, batch)`, the mean over the samples of a batch.
      line: a plane with one direction, made by `random_plane(params, key, dimensions=1)` or `plane_through(a, b)`.
      data: arrays with a common leading axis of samples; None for `loss(params)`.
      x: the range of the coordinate, (from, to), or an array of all coordinates.
      points: the number of points in that range, 2 or more.
      batch_size: samples per batch, 1 or more; None for all samples in one batch.
      at_once: points evaluated together, 1 or more; None is as many as fit into 4 MB on a CPU, else 256 MB.
      progress: whether to show a progress bar on a terminal.

    Errors: as `hessian`; ValueError for a plane of two directions, coordinates that are not finite, counts out of
      range.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> line = landscape.plane_through(jnp.zeros(2), jnp.ones(2))
    >>> print(landscape.slice_1d(lambda w: jnp.sum(w**2), line, x=(0.0, 1.0), points=3).values)
    [0.  0.5 2. ]
    """
    who = "gradtx.landscape.slice_1d"
    _check_plane(who, "line", line, 1)
    xs = _coordinates(who, "x", x, points)
    run = _run(who, loss, line, data, batch_size, at_once, progress)
    return Slice(run(xs[:, None]), xs, None, line)


def slice_2d(
    loss: Any,
    plane: Plane,
    data: PyTree = None,
    *,
    x: Any = (-1.0, 1.0),
    y: Any = None,
    points: int = 51,
    batch_size: int | None = None,
    at_once: int | None = None,
    progress: bool = True,
) -> Slice:
    """The loss on a plane.

        values[j, i] = loss(origin + x_i first + y_j second), the mean over all samples

    Args:
      loss: `loss(params)`, or `loss(params, batch)`, the mean over the samples of a batch.
      plane: a plane with two directions, made by `random_plane`, `curved_plane`, `trajectory_plane`, `plane_through`
        or `plane_along`.
      data: arrays with a common leading axis of samples; None for `loss(params)`.
      x, y: the ranges of the coordinates, (from, to), or arrays of all coordinates; y=None is the same as x.
      points: the number of points in a range, on each axis, 2 or more.
      batch_size: samples per batch, 1 or more; None for all samples in one batch.
      at_once: points evaluated together, 1 or more; None is as many as fit into 4 MB on a CPU, else 256 MB.
      progress: whether to show a progress bar on a terminal.

    Errors: as `hessian`; ValueError for a line, coordinates that are not finite, counts out of range.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> plane = landscape.plane_through(jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    >>> print(landscape.slice_2d(landscape.functions.saddle, plane, points=3).values)
    [[ 0. -1.  0.]
     [ 1.  0.  1.]
     [ 0. -1.  0.]]
    """
    who = "gradtx.landscape.slice_2d"
    _check_plane(who, "plane", plane, 2)
    xs, ys = _coordinates(who, "x", x, points), _coordinates(who, "y", x if y is None else y, points)
    run = _run(who, loss, plane, data, batch_size, at_once, progress)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    return Slice(run(grid).reshape(len(ys), len(xs)), xs, ys, plane)


def _check_plane(who: str, name: str, plane: Any, dimensions: int) -> None:
    if not isinstance(plane, Plane):
        raise TypeError(
            f"{who}: {name} is a {type(plane).__name__}; it must be a gradtx.landscape.Plane. Make one with "
            "random_plane, curved_plane, trajectory_plane, plane_through or plane_along."
        )
    if len(plane.directions) != dimensions:
        other = "slice_1d" if len(plane.directions) == 1 else "slice_2d"
        raise ValueError(
            f"{who}: {name} has {len(plane.directions)} directions; allowed: {dimensions}. Use {other}, or make the "
            f"plane with dimensions={dimensions}."
        )


def _coordinates(who: str, name: str, given: Any, points: int) -> np.ndarray[Any, Any]:
    try:
        found = np.empty(0) if np.iscomplexobj(given) else np.asarray(given, np.float64)
    except (TypeError, ValueError):  # words, or rows of several lengths
        found = np.empty(0)
    if found.ndim != 1 or found.size < 2 or not np.isfinite(found).all():
        raise ValueError(
            f"{who}: {name} is {given!r}; allowed: (from, to), or an array of all coordinates, finite, two or more."
        )
    if found.size > 2:
        return found
    return np.linspace(found[0], found[1], inputs.count(who, "points", points, least=2))


# Evaluation -----------------------------------------------------------------------------------------------------------


class _Loss(NamedTuple):
    """The loss at a point of a plane, over all batches."""

    cost: costs.Cost
    batch_size: int | None

    def at(self, origin: PyTree, directions: tuple[PyTree, ...], data: PyTree, coordinates: Array) -> Array:
        params = params_at(origin, directions, coordinates)
        return costs.over_batches(functools.partial(self.cost, params), data, self.batch_size)


def _run(who: str, loss: Any, plane: Plane, data: PyTree, batch_size: Any, at_once: Any, progress: bool) -> Any:
    cost = costs.read_cost(who, loss, data)
    data, batch_size = costs.check_data(who, data, batch_size)
    looked, where = _Loss(cost, batch_size), (plane.origin, plane.directions)

    def run(grid: np.ndarray[Any, Any]) -> Array:
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        grid = grid.astype(dtype)
        together = at_once
        if together is None:
            room = CACHE if jax.default_backend() == "cpu" else MEMORY
            together = max(1, int(room // _bytes_of_a_point(looked, *where, data)))
        together = min(inputs.positive(who, "at_once", together), len(grid))
        groups = -(-len(grid) // together)
        together = -(-len(grid) // groups)
        padded = np.concatenate([grid, np.repeat(grid[-1:], groups * together - len(grid), axis=0)])
        with Progress(who, len(grid), show=progress) as bar, _told(bar, len(grid)) as number:
            values = _evaluated(looked, bar.shown, *where, data, padded.reshape(groups, together, -1), number)
            return jax.block_until_ready(values.reshape(-1)[: len(grid)])

    return run


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluated(
    looked: _Loss, shown: bool, origin: PyTree, directions: tuple[PyTree, ...], data: PyTree, groups: Array, bar: Array
) -> Array:
    def group(given: Any) -> Array:
        index, coordinates = given
        values = jax.vmap(functools.partial(looked.at, origin, directions, data))(coordinates)
        if shown:
            jax.debug.callback(_tell, bar, (index + 1) * coordinates.shape[0], values[-1])
        return values

    return jax.lax.map(group, (jnp.arange(len(groups)), groups))


_bars: dict[int, tuple[Progress, int]] = {}
"""The bars on the terminal and their numbers of points, by an id. The id is an argument of the compiled program, so the
same program can update the next bar."""
_numbers = itertools.count()


@contextlib.contextmanager
def _told(bar: Progress, total: int) -> Generator[np.int32]:
    """The id by which a compiled program updates this bar."""
    number = next(_numbers)
    _bars[number] = bar, total
    try:
        yield np.int32(number)
        if bar.shown:
            jax.effects_barrier()
    finally:
        del _bars[number]


def _tell(number: Any, done: Any, _: Any) -> None:
    """Show that `done` points are done. The last group may be padded, so `done` may exceed the total.

    The ignored argument is the last value of the group: the callback waits for it.
    """
    if told := _bars.get(int(number)):
        bar, total = told
        bar.update(min(int(done), total), f"{min(int(done), total)} points")


def _bytes_of_a_point(looked: _Loss, origin: PyTree, directions: tuple[PyTree, ...], data: PyTree) -> float:
    """The bytes of all intermediate results of one value: an upper bound on what is in memory at a time."""
    coordinates = jax.ShapeDtypeStruct((len(directions),), jax.dtypes.canonicalize_dtype(np.float64))
    return max(1.0, _bytes(jax.make_jaxpr(looked.at)(origin, directions, data, coordinates).jaxpr))


def _bytes(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [
            getattr(value, "jaxpr", value)
            for value in eqn.params.values()
            if hasattr(value, "eqns") or hasattr(value, "jaxpr")
        ]
        total += (
            sum(_bytes(body) for body in inner)
            if inner
            else sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in eqn.outvars)
        )
    return total
