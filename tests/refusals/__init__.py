"""What gradtx refuses, and in which words: one table, a file for each chapter.

A row is a name, the call, the error and the words that its text must have, in any order:

    REFUSALS = [
        Refusal("a negative decay", lambda: gradtx.ema(-0.1), ValueError, "gradtx.ema", "-0.1", "[0, 1)"),
    ]

`tests/test_refusals.py` makes every call. An error says who, what was received, where, what is allowed and how to fix
it; the words of a row are those that a user needs.
"""

from collections.abc import Callable
from typing import Any


class Refusal:
    """One row of the table."""

    def __init__(self, name: str, call: Callable[[], Any], error: type[Exception], *words: str):
        assert words, f"{name}: which words?"
        self.name, self.call, self.error, self.words = name, call, error, words
