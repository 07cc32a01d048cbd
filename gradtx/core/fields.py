"""What a transform remembers, declared field by field.

A field says its shape, its dtype, where it starts, and what may be done with it:

- `like()`: shaped like the parameter. Momentum keeps one, the average of gradients.
- `squares()`: the same, real and never negative. RMSProp keeps one, the average of squared gradients.
- `sums(axis)`: one number for each row or column. Adafactor keeps two in place of `squares()`.

From it follow `init`, the bytes, the sign, how the state is sharded, and whether `stored` may keep it in fewer bits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import sharding, tree

PyTree = Any
Axes = Callable[[int], tuple[Any, ...]]


class Length(int):
    """The length of an axis that the parameter does not have."""


def _its_own(ndim: int) -> tuple[int, ...]:
    return tuple(range(ndim))


def _none(ndim: int) -> tuple[int, ...]:
    return ()


@dataclasses.dataclass(frozen=True)
class Field:
    """One number or array that a transform remembers, for each leaf or for the whole tree.

    Args:
      start: the value before the first update: a number, a dict of numbers, "params" (a copy), "identity", or
        "largest", the largest number of the dtype.
      axes: of a parameter with n axes the axes of the state: the parameter's own, by index, or a `Length`.
      per: one for each "leaf", or one for the whole "tree".
      dtype: "compute" (at least float32), "params" (that of the parameter), "count" (int32), "flag" (bool), or "key"
        (a random key).
      real: real also where the parameter is complex.
      nonnegative: never below 0.
      exact: why it may not be stored in fewer bits, in words; None if it may.
      given: whether it is an extra argument of `update` and not remembered.
    """

    start: Any = 0.0
    axes: Axes = _its_own
    per: Literal["leaf", "tree"] = "leaf"
    dtype: Literal["compute", "params", "count", "flag", "key"] = "compute"
    real: bool = False
    nonnegative: bool = False
    exact: str | None = None
    given: bool = False

    @property
    def storable(self) -> bool:
        """Whether `stored` keeps it in fewer bits."""
        return self.per == "leaf" and self.dtype == "compute" and self.axes is not _none

    def init(self, params: PyTree, start: Any) -> Any:
        """The field before the first update, `start` being its value."""
        if self.per == "leaf":
            return jax.tree.map(lambda leaf: self._at_leaf(leaf, start), params)
        if self.dtype == "key":
            return jax.random.key_data(jax.random.key(start))
        discrete = {"count": np.dtype(np.int32), "flag": np.dtype(bool)}
        dtype = discrete.get(self.dtype) or tree.precision(params)
        start = jnp.finfo(dtype).max if isinstance(start, str) else start
        return jax.tree.map(lambda number: jnp.full(self.axes(0), tree.as_scalar(number, dtype), dtype), start)

    def _at_leaf(self, leaf: Any, start: Any) -> Any:
        if isinstance(start, str) and start == "params":
            return jnp.copy(leaf if self.dtype == "params" else tree.to_compute_dtype(leaf))
        if self.dtype == "params":
            return tree.cast_like(tree.full_like(leaf, start), leaf)
        if self.axes is _its_own and self.dtype == "compute":
            return tree.full_like(leaf, start, real=self.real)
        if tree.is_discrete(leaf):
            return leaf
        axes = self.axes(jnp.ndim(leaf))
        shape = tuple(int(axis) if isinstance(axis, Length) else jnp.shape(leaf)[axis] for axis in axes)
        dtype = np.dtype(np.int32) if self.dtype == "count" else tree.compute_dtype(leaf, real=self.real)
        if isinstance(start, str):
            made = jnp.eye(*shape, dtype=dtype)
        else:
            made = jnp.full(shape, tree.as_scalar(start, dtype), dtype)
        kept = [None if isinstance(axis, Length) or axes.count(axis) > 1 else axis for axis in axes]
        return sharding.with_axes_of(made, leaf, kept)


def like(start: Any = 0.0, *, exact: str | None = None) -> Field:
    """Shaped like the parameter, complex where it is: an average of gradients. 4 bytes per parameter.

    Args:
      start: a number or hyperparameter, the value before the first update.
      exact: why `stored` must leave it in full precision, in words.
    """
    return Field(start, exact=exact)


def squares(start: Any = 0.0, *, exact: str | None = None) -> Field:
    """Shaped like the parameter, real and never negative: an average of squared gradients. 4 bytes per parameter."""
    return Field(start, real=True, nonnegative=True, exact=exact)


def copy(*, dtype: Literal["compute", "params"] = "compute") -> Field:
    """A copy of the parameter that `init` was given, in at least float32 or in its own dtype."""
    return Field("params", dtype=dtype)


def remainder() -> Field:
    """Zeros in the shape and dtype of the parameter: what rounding has taken off it."""
    return Field(dtype="params")


def sums(axis: int, start: Any = 0.0) -> Field:
    """Real, never negative, without one axis of the parameter: sums or means of squares over that axis."""

    def others(ndim: int) -> tuple[int, ...]:
        return tuple(i for i in range(ndim) if i != axis % ndim)

    return Field(start, axes=others, real=True, nonnegative=True)


def gram(axis: int, start: Any = 0.0) -> Field:
    """A square matrix along one axis of the parameter: an average of `g gᵀ`. n² numbers for an axis of length n."""
    return Field(start, axes=lambda ndim: (axis % ndim, axis % ndim))


def basis(axis: int) -> Field:
    """A square matrix along one axis of the parameter that starts as the identity: an eigenbasis."""
    return Field("identity", axes=lambda ndim: (axis % ndim, axis % ndim), exact="rounding makes it no basis any more")


def history(length: int, *, per: Literal["leaf", "tree"] = "leaf", nonnegative: bool = False) -> Field:
    """The last `length` arrays like the parameter, along a new first axis; of a tree, the last numbers."""
    return Field(axes=lambda ndim: (Length(length), *range(ndim)), per=per, nonnegative=nonnegative)


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
    """A random key. The field is called `key`; a formula that names it is given a new one for each leaf and step."""
    return Field(seed, axes=_none, per="tree", dtype="key")


def weights() -> Field:
    """The sum of the weights of an average (see `averages.debiasing`): two numbers for the whole tree."""
    return Field({"given": 0.0, "left": 1.0}, axes=_none, per="tree", nonnegative=True)


def argument(per: Literal["leaf", "tree"] = "tree") -> Field:
    """An extra argument of `update`: one number, or a tree like the params. It is not remembered."""
    return Field(per=per, given=True)


# The fields of a whole state ------------------------------------------------------------------------------------------

Declared = dict[str, Any]
"""The fields of a state, by name, as deep as it is: {entry: {name: Field, "inner": {entry: ...}}}."""
Place = tuple[str, ...]


def declared_fields(declared: Declared, place: Place = ()) -> Iterator[tuple[Place, Field]]:
    """Every declared field, with its place in the state."""
    for name, value in declared.items():
        if isinstance(value, Field):
            yield (*place, name), value
        else:
            yield from declared_fields(value, (*place, name))


def at(state: Any, place: Place) -> Any:
    """What a state has at a place."""
    return functools.reduce(lambda node, name: node[name], place, state)


def put(state: Any, place: Place, value: Any) -> Any:
    """A copy of the state with another value at a place."""
    name, *rest = place
    return state | {name: put(state[name], tuple(rest), value) if rest else value}


def number_of_bytes(value: PyTree) -> int:
    """The bytes of the arrays in a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(value))
