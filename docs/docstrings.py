"""Docstrings as Markdown: examples become code blocks, and a factory is shown with what it returns to its caller."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Sees every object that the reference pages are made of."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        names = {decorator.callable_path.rpartition(".")[2] for decorator in func.decorators}
        for name, returns in (("transform", "Transform"), ("schedule", "Schedule")):
            if name in names:  # the body returns a Rule or a Rate to the decorator, the factory this
                func.returns = returns

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """What is made by a call (`chain = ...`) is read from the running library, the rest from its source."""
        for module in _modules(pkg):
            attributes = [m for m in module.members.values() if not m.is_alias and m.is_attribute]
            made = [a.name for a in attributes if isinstance(a.value, griffe.ExprCall) and not a.name.startswith("_")]
            for name in made:
                if inspect.isfunction(getattr(importlib.import_module(module.path), name)):
                    inspected = griffe.inspect(module.name, filepath=module.filepath, parent=module.parent)
                    function = inspected.members[name]
                    function.parent = module
                    module.members[name] = function

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for member in module.members.values():
        if not member.is_alias and member.is_module:
            yield from _modules(member)


def markdown(text: str) -> str:
    """Fences around doctests, and no quotation where a description begins with >= or >."""
    text = re.sub(r"^(\s+\w[\w, ]*: )>(=?) ", lambda m: f"{m[1]}{'≥' if m[2] else '&gt;'} ", text, flags=re.MULTILINE)
    lines: list[str] = []
    before, outside, fence = "", 0, None  # the last line of prose, columns to take away, the open fence
    for line in [*text.split("\n"), ""]:
        indent = len(line) - len(line.lstrip())
        if fence is None and line.lstrip().startswith(">>> "):
            is_block = indent > len(before) - len(before.lstrip()) and not re.fullmatch(r"\s*Examples?:", before)
            outside = 4 if is_block else 0
            fence = " " * (indent - outside) + "```"
            lines += ["", f"{fence}python"]
        elif fence is not None and not line.strip():
            lines.append(fence)
            fence = None
        elif fence is None and line.strip():
            before = line
        lines.append(line[outside:] if fence is not None else line)
    return "\n".join(lines[:-1])
