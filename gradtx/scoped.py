"""Values that hold while a `with` statement is open, for all that is called inside.

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
    """A value that a `with` statement changes for the calls inside, in this thread alone."""

    def __init__(self, usual: T):
        self._variable = contextvars.ContextVar("scoped", default=usual)
        self.get = self._variable.get
        """What holds here."""

    @contextlib.contextmanager
    def __call__(self, value: T) -> Generator[T]:
        """While this is open, the value is this one."""
        token = self._variable.set(value)
        try:
            yield value
        finally:
            self._variable.reset(token)
