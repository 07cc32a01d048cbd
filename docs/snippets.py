"""Runs every Python snippet of a page, top to bottom, in one namespace, and saves the pictures that they make.

A fenced block marked `python` is executed; one that starts with `>>>` is a doctest, its output compared. After a
snippet, `<!-- picture: NAME.png = EXPRESSION -->` saves what the expression gives: the figure of axes, or a file.

The build of the pages runs them (hooks.py) and draws the pictures. One page by hand:
`python docs/snippets.py README.md`, and with its pictures `python docs/snippets.py --draw docs/pages/looking.md`.
"""

import doctest
import re
import shutil
import sys
import time
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "pages" / "assets"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PICTURE = re.compile(r"<!-- picture: (\S+) = (.+?) -->")

_sybil = Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=FLAGS)])


def pages() -> list[Path]:
    """All Markdown files that hold snippets: README, the pages, the decisions and derivations."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs" / "pages").rglob("*.md")),
        *texts("decisions"),
        *texts("derivations"),
    ]


def texts(folder: str) -> list[Path]:
    """The files of a folder beside the pages, without its index."""
    return sorted(path for path in (ROOT / "docs" / folder).glob("*.md") if path.name != "index.md")


def has_pictures(page: Path) -> bool:
    """Whether its snippets make pictures."""
    return PICTURE.search(page.read_text()) is not None


def run(page: Path, assets: Path | None = None) -> int:
    """Run the snippets of one page and return how many there are; with a folder, save its pictures there.

    A failure raises and names page and line.
    """
    document = _sybil.parse(page)
    document.namespace["__name__"] = "__main__"
    examples = sorted(document.examples(), key=lambda example: example.start)
    pictures = list(PICTURE.finditer(page.read_text())) if assets else []
    for example in examples:
        _save([p for p in pictures if p.start() < example.start], document.namespace, assets)
        pictures = [p for p in pictures if p.start() >= example.start]
        example.evaluate()
    _save(pictures, document.namespace, assets)
    return len(examples)


def _save(pictures: list[re.Match[str]], namespace: dict[str, object], assets: Path | None) -> None:
    for picture in pictures:
        made = eval(picture[2], namespace)
        if isinstance(made, str | Path):
            shutil.copyfile(made, assets / picture[1])
        else:
            made.figure.savefig(assets / picture[1], dpi=110, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    names, assets = sys.argv[1:], None
    if names[:1] == ["--draw"]:
        import matplotlib

        matplotlib.use("Agg")
        names, assets = names[1:], ASSETS
    for name in names or pages():
        start = time.monotonic()
        print(f"{name}: {run(Path(name), assets)} snippets, {time.monotonic() - start:.0f} s")
