"""Values that a `with` statement sets for all calls inside it.

>>> from gradtx.scoped import Scoped
>>> verbose = Scoped(False)
>>> with verbose(True):
...     print(verbose.get())
True
>>> verbose.get()
False
"""

import contextlib
import contextvars
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Scoped(Generic[T]):
    """A value that a `with` statement changes for the calls inside it, in this thread only."""

    def __init__(self, usual: T):
        self._variable = contextvars.ContextVar("scoped", default=usual)
        self.get = self._variable.get
        """What holds here."""

    @contextlib.contextmanager
    def __call__(self, value: T) -> Generator[T]:
        """In this context, the value is this one."""
        token = self._variable.set(value)
        try:
            yield value
        finally:
            self._variable.reset(token)
