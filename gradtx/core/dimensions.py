"""Matrices of a leaf: which axes of a weight are the rows and the columns of a matrix.

    MuonDimensionNumbers(0, 1)                  a kernel (in, out): one matrix
    MuonDimensionNumbers(1, 2)                  layers in one leaf (layer, in, out): a matrix for each layer
    MuonDimensionNumbers(0, (1, 2))             heads in one matrix (in, head, width); (0, 2) for a matrix for each head
    MuonDimensionNumbers((0, 1, 2), 3)          the kernel of a convolution (height, width, in, out)
    MuonDimensionNumbers(0, 1, parts=3)         queries, keys and values side by side (in, 3 out): three matrices
    MuonDimensionNumbers((), 0)                 a vector: a matrix with one row

Rows are the axes that the layer sums over, columns those of its output. All other axes count matrices.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import sharding
from gradtx.core import selection

PyTree = Any
Places = tuple[int, ...]


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a leaf are the rows and the columns of its matrices; all other axes count matrices.

    Source: as optax.contrib.MuonDimensionNumbers, and `parts`.

    Args:
      reduction_axis: the axis, or axes, that the layer sums over: the rows.
      output_axis: the axis, or axes, of its output: the columns.
      parts: the number of equal parts in which the columns are cut, each a matrix of its own; or a tuple of their
        numbers of columns. For queries, keys and values in one weight.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.as_matrices(gradtx.scale_by_factored_rms(), gradtx.MuonDimensionNumbers(0, 1, parts=(4, 2)))
    >>> state = tx.init({"qkv": jnp.zeros((3, 6))})
    >>> [leaf.shape for leaf in gradtx.find(state, "nu")["qkv"]]
    [(3, 4), (3, 2)]
    """

    reduction_axis: int | tuple[int, ...] = 0
    output_axis: int | tuple[int, ...] = 1
    parts: int | tuple[int, ...] = 1


@dataclasses.dataclass(frozen=True)
class Axes:
    """Dimension numbers as one value, which is not a tree; without them for a leaf that is no matrix."""

    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] = ()
    parts: int | tuple[int, ...] = 1

    @property
    def a_matrix(self) -> bool:
        """Whether the leaf is a matrix, or several."""
        return self.rows is not None


def _as_axes(numbers: Any) -> Axes:
    def several(name: str, given: Any) -> tuple[int, ...]:
        try:
            return tuple(map(operator.index, np.atleast_1d(np.asarray(given))))
        except (TypeError, ValueError):
            words = f"{name} is {given!r}; it must be an int, or a tuple of ints"
            raise TypeError(f"gradtx.MuonDimensionNumbers: {words}.") from None

    if numbers is None:
        return Axes()
    given = getattr(numbers, "parts", 1)
    parts = several("parts", given)
    return Axes(
        several("reduction_axis", numbers.reduction_axis),
        several("output_axis", numbers.output_axis),
        parts if isinstance(given, (tuple, list)) else parts[0],
    )


def _is_numbers(value: Any) -> bool:
    return value is None or hasattr(value, "reduction_axis")


def _encoded(spec: PyTree) -> PyTree:
    """The tree with `Axes` for dimension numbers, whose own structure is a tree, and for None."""
    if type(spec) is dict:  # patterns keep their order
        return {name: _encoded(value) for name, value in cast(dict[Any, Any], spec).items()}

    def at_leaf(value: Any) -> Any:
        return _as_axes(value) if _is_numbers(value) else value

    return jax.tree.map(at_leaf, spec, is_leaf=_is_numbers)


def matrices_alone(path: str, leaf: Any) -> MuonDimensionNumbers | None:
    """The usual rule: leaves with two axes are matrices, others are not."""
    return MuonDimensionNumbers() if leaf.ndim == 2 else None


def hidden_matrices(path: str, leaf: Any) -> MuonDimensionNumbers | None:
    """The rule of `muon`: leaves with two axes, unless their path names an embedding, a head, a norm or a bias.

    A leaf is no hidden matrix if a name in its path contains "embed" or "norm", is or ends with "head", "bias" or
    "logits", or is "wte", "wpe", "vocab", "classifier", "output_layer" or "readout". Give dimension numbers of your own
    for other names.

    Args:
      path: the leaf's path, "dense/kernel".
      leaf: the leaf, or its shape.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.hidden_matrices("lm_head/kernel", jnp.zeros((4, 5))) is None
    True
    """
    other = any(re.search(_OTHER, name) for name in path.lower().split("/"))
    return None if other else matrices_alone(path, leaf)


_OTHER = r"embed|norm|(^|_)(head|bias|logits)$|^(wte|wpe|vocab|classifier|output_layer|readout)$"


def every_leaf(path: str, leaf: Any) -> MuonDimensionNumbers:
    """Every leaf as one matrix: a vector is a row, and with more axes the last counts columns, the others rows."""
    axes = tuple(range(leaf.ndim))
    return MuonDimensionNumbers(axes[:-1], axes[-1:])


def axes_of(who: str, spec: Any, updates: PyTree, params: PyTree = None) -> tuple[Axes, ...]:
    """The axes of each leaf. `spec` is a tree of dimension numbers, written like a mask; None for `matrices_alone`."""
    if spec is None:
        spec, params = matrices_alone, updates
    if selection.is_function(spec):
        asked: Callable[..., Any] = spec

        @functools.wraps(asked)
        def encoded(*args: Any) -> Any:
            return _encoded(asked(*args))

        return selection.values(who, encoded, updates, params, argument="dimension_numbers", kind=Axes)
    return selection.values(who, _encoded(spec), updates, params, argument="dimension_numbers", kind=Axes)


def _resolved(who: str, path: str, axes: Axes, shape: tuple[int, ...]) -> tuple[Places, Places, Places]:
    """The axes that count matrices, those of the rows and those of the columns, counted from the first; checked."""
    ndim, own = len(shape), axes.rows or ()
    given = (*own, *axes.columns)
    if not all(-ndim <= axis < ndim for axis in given) or len({axis % ndim for axis in given}) < len(given):
        raise ValueError(
            f"{who}: dimension_numbers has the axes {own} and {axes.columns} for the leaf {path!r} of shape "
            f"{shape}; they must be different axes of the leaf."
        )
    rows, columns = (tuple(axis % ndim for axis in some) for some in (own, axes.columns))
    width = math.prod(shape[axis] for axis in columns)
    cut = axes.parts
    fits = cut > 0 and width % cut == 0 if isinstance(cut, int) else min(cut, default=0) > 0 and sum(cut) == width
    if not fits:
        raise ValueError(
            f"{who}: dimension_numbers has parts={cut} for the leaf {path!r}, which has {width} columns; it must be a "
            "number that divides them, or the numbers of columns of the parts."
        )
    return tuple(axis for axis in range(ndim) if axis not in (*rows, *columns)), rows, columns


def matrices_of(who: str, path: str, axes: Axes, leaf: Array) -> Any:
    """The matrices of a leaf, in its last two axes; a tuple of them for parts of different widths."""
    batch, rows, columns = _resolved(who, path, axes, leaf.shape)
    order = (*batch, *rows, *columns)
    lead = tuple(leaf.shape[axis] for axis in batch)
    height, width = (math.prod(leaf.shape[axis] for axis in some) for some in (rows, columns))
    if axes.parts == 1 and order == tuple(range(leaf.ndim)) and len(rows) == len(columns) == 1:
        return leaf
    whole = sharding.whole(leaf).transpose(order).reshape(*lead, height, width)
    if axes.parts == 1:
        return whole
    if isinstance(axes.parts, int):
        return jnp.moveaxis(whole.reshape(*lead, height, axes.parts, -1), -2, len(lead))
    ends = np.cumsum(axes.parts)[:-1].tolist()
    return tuple(jnp.split(whole, ends, axis=-1))


def leaf_of(who: str, path: str, axes: Axes, matrices: Any, leaf: Array) -> Array:
    """The leaf that has these matrices, shaped and sharded like the one given."""
    batch, rows, columns = _resolved(who, path, axes, leaf.shape)
    order = (*batch, *rows, *columns)
    if isinstance(matrices, tuple):
        matrices = jnp.concatenate(cast(Any, matrices), axis=-1)
    elif axes.parts != 1:
        matrices = jnp.moveaxis(matrices, len(batch), -2)
    if matrices.shape != leaf.shape or order != tuple(range(leaf.ndim)):
        shaped = matrices.reshape(tuple(leaf.shape[axis] for axis in order))
        matrices = sharding.like(shaped.transpose(np.argsort(order)), leaf)
    return matrices
