"""The examples in the docstrings run, and what runs the snippets of the pages does so.

The snippets themselves are run by the build of the pages (docs/hooks.py), once.
"""

import ast
import doctest
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import jax
import pytest

import gradtx

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "gradtx").rglob("*.py"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


snippets = _load(ROOT / "docs" / "snippets.py")


def _relative(path):
    return str(path.relative_to(ROOT))


def test_a_picture_is_saved_where_it_stands(tmp_path, monkeypatch):
    """The pages with pictures are run by the docs build, which draws them."""
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom pathlib import Path\nname = Path('a.txt')\nname.write_text('1')\n```\n"
        "<!-- picture: b.txt = name -->\n"
        "```python\nname.write_text('2')\n```\n<!-- picture: c.txt = name -->\n"
    )
    monkeypatch.chdir(tmp_path)
    assert snippets.has_pictures(page)
    assert snippets.run(page, tmp_path) == 2
    assert ((tmp_path / "b.txt").read_text(), (tmp_path / "c.txt").read_text()) == ("1", "2")


def test_a_wrong_snippet_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\n>>> 1 + 1\n3\n\n```\n")
    with pytest.raises(Exception, match="Expected"):
        snippets.run(page)
    page.write_text("text\n\n```python\nassert False, 'as it should'\n```\n")
    with pytest.raises(AssertionError, match="as it should"):
        snippets.run(page)


@pytest.mark.parametrize("page", snippets.pages(), ids=_relative)
def test_python_blocks_are_marked(page):
    """A block that looks like Python but isn't marked `python` would never be run."""
    unmarked = re.findall(r"^```(?!python)(\w*)\n((?:(?!```).*\n)*?)```", page.read_text(), flags=re.MULTILINE)
    for language, text in unmarked:
        assert not re.search(r"^(>>>|import |from \w+ import )", text, flags=re.MULTILINE), (language, text)


def _docstrings(path):
    """The docstrings of a module with their lines: read from its source, so that decorated functions are found too."""
    module = ast.parse(path.read_text())
    for node in ast.walk(module):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield getattr(node, "name", "module"), text, node.body[0].lineno - 1
    for node, following in zip(module.body, module.body[1:], strict=False):  # a string below an assignment
        is_text = isinstance(following, ast.Expr) and isinstance(getattr(following.value, "value", None), str)
        if is_text and isinstance(node, (ast.Assign, ast.AnnAssign)):
            yield ast.unparse(node).partition(" ")[0], following.value.value, following.lineno - 1


def _doctests():
    parser = doctest.DocTestParser()
    for path in MODULES:
        for name, text, line in _docstrings(path):
            if ">>>" in text:
                example = parser.get_doctest(text, {}, name, str(path), line)
                yield pytest.param(example, id=f"{_relative(path)}:{name}")


def _shown(path):
    """The code that a page or module shows: its blocks, or itself and the examples of its docstrings."""
    text = path.read_text()
    if path.suffix == ".py":
        yield text
        texts = [docstring for _, docstring, _ in _docstrings(path)]
    else:
        texts = re.findall(r"^```python\n((?:(?!```).*\n)*?)```", text, flags=re.MULTILINE)
        yield from (block for block in texts if ">>>" not in block)
    for each in texts:
        yield "".join(example.source for example in doctest.DocTestParser().get_examples(each))


@pytest.mark.parametrize("path", [*snippets.pages(), *MODULES, *(ROOT / "examples").glob("*.py")], ids=_relative)
def test_what_is_compiled_for_has_a_name(path):
    """A lambda written in the call is a new function each time, and compiled each time."""
    for node in ast.walk(ast.Module([statement for code in _shown(path) for statement in ast.parse(code).body], [])):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in ("minimize", "sweep", "trajectory"):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            assert not [ast.unparse(each) for each in given if isinstance(each, ast.Lambda)]


@pytest.mark.examples
@pytest.mark.parametrize("example", list(_doctests()))
def test_docstring_examples(example, monkeypatch, tmp_path):
    """Each in an empty namespace: what a reader copies from one docstring runs by itself."""
    monkeypatch.chdir(tmp_path)
    report = []
    example.globs["__name__"] = "__main__"
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)


def _documented_arguments(text):
    """The names under `Args:`, grouped ones ("b1, b2: ...") one by one."""
    section = re.search(r"^( *)Args:\n((?:\1 +.*\n|\n)+)", text + "\n", flags=re.MULTILINE)
    if section:
        indent = re.match(r" *", section[2])[0]
        for names in re.findall(rf"^{indent}(\*{{0,2}}\w[\w, *]*):", section[2], flags=re.MULTILINE):
            yield from (name.strip(" *") for name in names.split(","))


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_documented_arguments_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node, clean=False)):
            a = node.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
            factory = gradtx.registry.get(node.name)  # a decorator may have added one
            added = set(inspect.signature(factory).parameters) if factory else set()
            missing = set(_documented_arguments(text)) - {argument.arg for argument in every} - added
            assert not missing, f"{node.name}: {missing} documented, but no parameter"


@pytest.mark.examples
def test_the_picture_of_the_readme_can_be_drawn(monkeypatch, tmp_path):
    pictures = _load(ROOT / "docs" / "pictures.py")
    monkeypatch.setattr(pictures, "ASSETS", tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        pictures.races()
    assert (tmp_path / "races.png").stat().st_size > 10_000


def test_every_module_is_imported_from_the_checkout():
    import gradtx

    assert Path(gradtx.__file__).parent == ROOT / "gradtx", f"gradtx is imported from elsewhere: {sys.path}"
