"""Stand-ins for the params, given to a function that selects leaves: they behave like arrays but have no values.

A mask depends on shapes. Programs test for them with `leaf.ndim > 1`, but also with `isinstance(leaf, jax.Array)`,
`eqx.is_array(leaf)` or `numpy.asarray(leaf).ndim`. A stand-in answers all of these like the array. It takes no memory.
Computing with it raises an error that says that there is no value.
"""

from typing import Any, NoReturn

import jax
import numpy as np

_BOTH_WAYS = "add and divmod floordiv lshift matmul mod mul or pow rshift sub truediv xor".split()  # noqa: SIM905
_READING = [
    *"abs bool complex contains eq float ge getitem gt index int invert iter le len lt ne neg pos round".split(),  # noqa: SIM905
    *(side + name for name in _BOTH_WAYS for side in ("", "r")),
    "jax_array",
]


class StandIn:
    """The shape and dtype of an array."""

    __slots__ = ("dtype", "shape")

    def __init__(self, like: Any):
        self.shape, self.dtype = tuple(like.shape), np.dtype(like.dtype)

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - what isinstance asks
        return jax.Array

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def weak_type(self) -> bool:
        """Whether its dtype is weak: never."""
        return False

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        """Of the same shape and dtype, over one element: for `numpy.asarray(leaf).ndim`."""
        return np.broadcast_to(np.zeros((), dtype or self.dtype), self.shape)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(jax.Array, name):
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return _refuse(name)(self)

    def __repr__(self) -> str:
        return f"StandIn({self.dtype}{list(self.shape)})"

    __hash__ = object.__hash__
    __array_ufunc__ = None  # so that NumPy uses the operators below, which raise an error


def _refuse(name: str) -> Any:
    def refuse(leaf: StandIn, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            f"a function of the params reads the values of {leaf!r} ({name}); allowed: shape, ndim, size, dtype. "
            "Leaves are selected before there are values."
        )

    return refuse


for _name in _READING:
    setattr(StandIn, f"__{_name}__", _refuse(f"__{_name}__"))
