"""Values that hold while a `with` statement is open, for all that is called inside.

>>> from gradtx.scoped import Scoped
>>> verbose = Scoped(False)
>>> with verbose(True):
...     print(verbose.value)
True
>>> verbose.value
False
"""

import contextlib
import contextvars
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Scoped(Generic[T]):
    """A value that a `with` statement changes for the calls inside, in this thread alone."""

    def __init__(self, usual: T):
        self._variable = contextvars.ContextVar("scoped", default=usual)

    @property
    def value(self) -> T:
        """What holds here."""
        return self._variable.get()

    @contextlib.contextmanager
    def __call__(self, value: T) -> Generator[T]:
        """While this is open, the value is this one."""
        token = self._variable.set(value)
        try:
            yield value
        finally:
            self._variable.reset(token)
