"""`tx.init` and `tx.update` as values."""

import functools
from collections.abc import Callable
from typing import Any


class Method:
    """`tx.init` or `tx.update`: compared and hashed by tx, so `jax.jit(tx.update)` recognizes a rebuilt optimizer."""

    __slots__ = ("__name__", "__qualname__", "__weakref__", "_call", "_tx")

    def __init__(self, tx: Any, name: str, call: Callable[..., Any]):
        self._tx, self._call = tx, call
        self.__name__, self.__qualname__ = name, f"{tx.name}.{name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and self.__name__ == other.__name__ and self._tx == other._tx

    def __hash__(self) -> int:
        return hash((self.__name__, self._tx))

    def __repr__(self) -> str:
        return f"{self._tx!r}.{self.__name__}"


@functools.lru_cache(maxsize=256)
def kept(method: Method) -> Method:
    """The first of equal methods, kept alive: jit's cache lives as long as the function object that was compiled."""
    return method
