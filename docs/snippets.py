"""Runs every Python snippet of a page, top to bottom, in one namespace.

A fenced block marked `python` is executed; one that starts with `>>>` is a doctest, its output compared. The build of
the pages runs them (hooks.py), and so does tests/test_docs.py. One page by hand: `python docs/snippets.py README.md`.
"""

import doctest
import sys
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_sybil = Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=FLAGS)])


def pages() -> list[Path]:
    """All Markdown files that hold snippets: README, the pages and the decisions."""
    return [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md")), *decisions()]


def decisions() -> list[Path]:
    return sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def run(page: Path) -> int:
    """Run the snippets of one page and return how many there are. A failure raises and names page and line."""
    document = _sybil.parse(page)
    document.namespace["__name__"] = "__main__"
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


if __name__ == "__main__":
    for name in sys.argv[1:] or pages():
        print(f"{name}: {run(Path(name))} snippets")
