"""Fields: the state of a transform, declared one by one.

A field declares its shape, its dtype, its initial value, and what may be done with it:

- `like()`: shaped like the parameter. Momentum keeps one, the average of gradients.
- `squares()`: the same, real and never negative. RMSProp keeps one, the average of squared gradients.
- `sums(axis)`: one number for each row or column. Adafactor keeps two in place of `squares()`.

`init`, the bytes, the sign, the sharding, and whether `stored` may keep it in fewer bits follow from the declaration.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import sharding, tree

PyTree = Any
Axes = Callable[[tuple[int, ...]], tuple[int, ...]]


class Length(int):
    """The length of an axis that the parameter does not have."""


def _its_own(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(len(shape)))


def _none(shape: tuple[int, ...]) -> tuple[int, ...]:
    return ()


@dataclasses.dataclass(frozen=True)
class Field:
    """One number or array in the state of a transform, for each leaf or for the whole tree.

    Args:
      start: the value before the first update: a number, a dict of numbers, "params" (a copy), or "largest", the
        largest number of the dtype.
      axes: a function from the parameter's shape to the axes of the field: the parameter's, by index, or a `Length`.
      per: one for each "leaf", or one for the whole "tree".
      dtype: "compute" (at least float32), "params" (that of the parameter), "count" (int32), "flag" (bool), or "key"
        (a random key).
      real: real even if the parameter is complex.
      nonnegative: never below 0.
      exact: the reason why it must not be stored in fewer bits; None if it may.
      low: whether it is a statistic, which `stored` keeps in fewer bits.
      given: whether it is an extra argument of `update` instead of a part of the state.
      diagonal: whether it starts as `start` times the identity, where it is a matrix.
      of_matrix: whether it is a field of a matrix, so that a leaf with more than two axes has a batch of them.
    """

    start: Any = 0.0
    axes: Axes = _its_own
    per: Literal["leaf", "tree"] = "leaf"
    dtype: Literal["compute", "params", "count", "flag", "key"] = "compute"
    real: bool = False
    nonnegative: bool = False
    exact: str | None = None
    low: bool = True
    given: bool = False
    diagonal: bool = False
    of_matrix: bool = False

    @property
    def storable(self) -> bool:
        """Whether `stored` keeps it in fewer bits."""
        return self.low and self.per == "leaf" and self.dtype == "compute" and self.axes is not _none

    def init(self, params: PyTree, start: Any) -> Any:
        """The field before the first update, with the value `start`."""
        if self.per == "leaf":
            return jax.tree.map(functools.partial(self._at_leaf, start=start), params)
        if self.dtype == "key":
            return jax.random.key_data(jax.random.key(start))
        discrete = {"count": np.dtype(np.int32), "flag": np.dtype(bool)}
        dtype = discrete.get(self.dtype) or tree.precision(params)

        def filled(number: Any) -> Array:
            return jnp.full(self.axes(()), tree.as_scalar(number, dtype), dtype)

        return jax.tree.map(filled, jnp.finfo(dtype).max if isinstance(start, str) else start)

    def _at_leaf(self, leaf: Any, start: Any) -> Any:
        if isinstance(start, str) and start == "params":
            return jnp.copy(leaf if self.dtype == "params" else tree.to_compute_dtype(leaf))
        if self.dtype == "params":
            return tree.cast_like(tree.full_like(leaf, start), leaf)
        axes = self.axes_at(jnp.shape(leaf))
        whole = axes == _its_own(jnp.shape(leaf)) and not any(isinstance(axis, Length) for axis in axes)
        if whole and self.dtype == "compute":
            return tree.full_like(leaf, start, real=self.real)
        if tree.is_discrete(leaf):
            return leaf
        shape = self.shape(jnp.shape(leaf))
        dtype = np.dtype(np.int32) if self.dtype == "count" else tree.compute_dtype(leaf, real=self.real)
        if self.diagonal and self._of_two_axes(jnp.shape(leaf)):
            made = jnp.broadcast_to(tree.as_scalar(start, dtype) * jnp.eye(*shape[-2:], dtype=dtype), shape)
        else:
            made = jnp.full(shape, tree.as_scalar(start, dtype), dtype)
        return sharding.with_axes_of(made, leaf, self.kept_axes(jnp.shape(leaf)))

    def _of_two_axes(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a matrix, or a batch of matrices for a leaf that is one."""
        return len(self.axes(shape[-2:] if self.of_matrix else shape)) == 2

    def axes_at(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of the field of a parameter with this shape, which may be a batch of matrices."""
        if not self.of_matrix:
            return self.axes(shape)
        lead = len(shape) - 2
        own = (axis if isinstance(axis, Length) else axis + lead for axis in self.axes(shape[lead:]))
        return (*range(lead), *own)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the field of a parameter."""
        return tuple(int(axis) if isinstance(axis, Length) else shape[axis] for axis in self.axes_at(shape))

    def kept_axes(self, shape: tuple[int, ...]) -> list[int | None]:
        """For each axis of the field, the axis of the parameter whose sharding it has; None if it is replicated."""
        axes = self.axes_at(shape)
        return [None if isinstance(axis, Length) or axes.count(axis) > 1 else axis for axis in axes]


def of_matrix(field: Field) -> Field:
    """The field of a matrix; a leaf that is a batch of matrices has a batch of them."""
    return field if field.per == "tree" else dataclasses.replace(field, of_matrix=True)


def like(start: Any = 0.0, *, exact: str | None = None) -> Field:
    """Shaped like the parameter, complex where it is: an average of gradients. 4 bytes per parameter.

    Args:
      start: a number or hyperparameter, the value before the first update.
      exact: the reason why `stored` must keep it in full precision.
    """
    return Field(start, exact=exact)


def squares(start: Any = 0.0, *, exact: str | None = None) -> Field:
    """Shaped like the parameter, real and never negative: an average of squared gradients. 4 bytes per parameter."""
    return Field(start, real=True, nonnegative=True, exact=exact)


def copy(*, dtype: Literal["compute", "params"] = "compute", low: bool = True, exact: str | None = None) -> Field:
    """A copy of the parameter given to `init`, in at least float32 or in its own dtype."""
    return Field("params", dtype=dtype, low=low, exact=exact)


def remainder() -> Field:
    """The part that rounding has taken off, in the shape and dtype of the parameter; zeros at first."""
    return Field(dtype="params")


def sums(axis: int, start: Any = 0.0, *, exact: str | None = None) -> Field:
    """Real, never negative, without one axis of the parameter: sums or means of squares over that axis."""

    def others(shape: tuple[int, ...]) -> tuple[int, ...]:
        left_out = _checked_axis("sums", axis, shape)
        return tuple(i for i in range(len(shape)) if i != left_out)

    return Field(start, axes=others, real=True, nonnegative=True, exact=exact)


def _checked_axis(who: str, axis: int, shape: tuple[int, ...]) -> int:
    """An axis of a parameter, counted from the first."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"gradtx.fields.{who}: axis is {axis}, and a leaf has the shape {shape}; it must be one of its axes. Route "
            "other leaves elsewhere: by_shape or partition."
        )
    return axis % len(shape)


def _twice(who: str, axis: int) -> Axes:
    return lambda shape: (_checked_axis(who, axis, shape),) * 2


def gram(axis: int, start: Any = 0.0) -> Field:
    """A square matrix along one axis of the parameter, at first `start` times the identity: an average of `g gᵀ`.

    n² numbers for an axis of length n.
    """
    exact = "a rounded Gram matrix may have negative eigenvalues"
    return Field(start, axes=_twice("gram", axis), exact=exact, diagonal=True)


def basis(axis: int) -> Field:
    """A square matrix along one axis of the parameter that starts as the identity: an eigenbasis."""
    return Field(1.0, axes=_twice("basis", axis), exact="a rounded basis is no longer orthonormal", diagonal=True)


def history(
    *lengths: int, per: Literal["leaf", "tree"] = "leaf", nonnegative: bool = False, exact: str | None = None
) -> Field:
    """The last arrays like the parameter, along new first axes of these lengths; of a tree, the last numbers."""
    for length in lengths or (0,):
        if not isinstance(cast(Any, length), int) or length < 1:
            raise ValueError(f"gradtx.fields.history: length is {length!r}; it must be an int of at least 1.")

    def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*map(Length, lengths), *range(len(shape)))

    return Field(axes=axes, per=per, nonnegative=nonnegative, exact=exact)


def scalar(start: Any = 0.0, *, per: Literal["leaf", "tree"] = "leaf", nonnegative: bool = False) -> Field:
    """One number, for each leaf or for the whole tree."""
    return Field(start, axes=_none, per=per, real=True, nonnegative=nonnegative)


def integer(start: int = 0, *, per: Literal["leaf", "tree"] = "leaf") -> Field:
    """One int32, for each leaf or for the whole tree."""
    return Field(start, axes=_none, per=per, dtype="count", nonnegative=True)


def flag() -> Field:
    """One bool for the whole tree, False at first."""
    return Field(False, axes=_none, per="tree", dtype="flag")


def key(seed: int = 0) -> Field:
    """A random key. The field must be called `key`; a formula that names it gets a new key for each leaf and step."""
    if not isinstance(cast(Any, seed), int):
        raise TypeError(f"gradtx.fields.key: seed is {seed!r}; it must be an int.")
    return Field(seed, axes=_none, per="tree", dtype="key")


def weights(*names: str) -> Field:
    """The sum of the weights of an average, two numbers for the whole tree; for several averages, by their names.

    `averages.debiasing` updates one, `averages.debiasing_each` several.
    """
    one = {"given": 0.0, "left": 1.0}
    return Field(dict.fromkeys(names, one) or one, axes=_none, per="tree", nonnegative=True)


def argument(per: Literal["leaf", "tree"] = "tree") -> Field:
    """An extra argument of `update`: one number, or a tree like the params. It is not part of the state."""
    return Field(per=per, given=True)


# The fields of a whole state ------------------------------------------------------------------------------------------

Place = tuple[str, ...]
"""A place in a state, by names: ("scale_by_rms", "nu")."""


def at(state: Any, place: Place) -> Any:
    """The value at a place in a state."""
    return functools.reduce(lambda node, name: node[name], place, state)
