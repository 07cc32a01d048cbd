"""What can be called, with which arguments and defaults, is what is committed: users' results rest on the defaults.

.venv/bin/python -m tests.test_signatures        # writes tests/golden/signatures.txt; a change belongs in CHANGELOG
"""

import inspect
import pathlib
from collections.abc import Iterator
from typing import Any

import gradtx
from gradtx import landscape, plot, testing

FILE = pathlib.Path(__file__).parent / "golden" / "signatures.txt"
MODULES = (gradtx, landscape, landscape.functions, landscape.problems, plot, testing)


def shown(name: str, function: Any) -> str:
    given = inspect.signature(function)
    parameters = [
        each.replace(annotation=each.empty, default=... if inspect.isfunction(each.default) else each.default)
        for each in given.parameters.values()
    ]
    return f"{name}{given.replace(parameters=parameters, return_annotation=given.empty)}"


def signatures() -> Iterator[str]:
    for module in MODULES:
        for name, value in sorted(vars(module).items()):
            public = not name.startswith("_") and getattr(value, "__module__", "").startswith("gradtx")
            if not public or not callable(value):
                continue
            yield shown(f"{module.__name__}.{name}", value)
            members = sorted(vars(value).items()) if inspect.isclass(value) else ()
            for member, function in members:
                if inspect.isfunction(function) and not member.startswith("_"):
                    yield shown(f"{module.__name__}.{name}.{member}", function)


def test_signatures_are_as_committed():
    assert "\n".join(signatures()) + "\n" == FILE.read_text()


if __name__ == "__main__":
    FILE.write_text("\n".join(signatures()) + "\n")
