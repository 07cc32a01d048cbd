"""The layout: chapters import only from those above them, one public path for each name, files of a readable size."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

import gradtx

ROOT = pathlib.Path(gradtx.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
CHAPTERS = [
    "numerics",
    "tree",
    "core",
    "schedules",
    "averages",
    "momentum",
    "adaptive",
    "effects",
    "optimizers",
    "wrappers",
    "training",
    "landscape",
    "plot",
    "testing",
]
RUNTIME = {"jax", "jaxlib", "chex", "numpy"}
OPTIONAL = {
    ("core/foreign.py", "optax"),  # inside to_optax only
    ("training/linen.py", "flax"),  # adapters for those who have it: `from gradtx.training import linen`
    ("training/nnx.py", "flax"),
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def chapter_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def imports(path):
    """(module, line, whether at the top level of the file) of every import in a file."""
    tree, found = ast.parse(path.read_text()), []
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found.extend((alias.name, alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.extend((node.module, f"{node.module}.{alias.name}", top) for alias in node.names)
    return found


each = pytest.mark.parametrize("path", FILES, ids=name_of)


@each
def test_a_chapter_imports_only_from_those_above_it(path):
    own = chapter_of(path)
    if own == "__init__":
        return
    assert own in CHAPTERS, f"{own} is no chapter; enter it in this list at its place"
    above = CHAPTERS[: CHAPTERS.index(own)]
    for _, full, _ in imports(path):
        parts = full.split(".")
        if parts[0] != "gradtx":
            continue
        assert len(parts) > 1, f"{name_of(path)} imports gradtx itself"
        assert parts[1] == own or parts[1] in above, f"{name_of(path)} imports {full}"


@each
def test_files_of_a_package_import_each_other_one_way(path):
    # No circle, also not one hidden in a function.
    own = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)

    def reachable(module, seen):
        file = ROOT.parent / (module.replace(".", "/") + ".py")
        if module in seen or not file.exists():
            return seen
        seen.add(module)
        for base, full, _ in imports(file):
            for target in (base, full):
                if target.startswith("gradtx."):
                    reachable(target, seen)
        return seen

    for base, full, _ in imports(path):
        for target in (base, full):
            if target.startswith("gradtx.") and target != own:
                assert own not in reachable(target, set()), f"{own} and {target} import each other"


@each
def test_only_the_runtime_dependencies_are_imported(path):
    for module, _, top in imports(path):
        package = module.partition(".")[0]
        if package in RUNTIME | {"gradtx"} or package in sys.stdlib_module_names:
            continue
        assert not top, f"{name_of(path)} imports {module} at its top"
        if chapter_of(path) != "plot":
            assert (name_of(path), package) in OPTIONAL, f"{name_of(path)} imports {module}"


@each
def test_files_are_of_a_readable_size(path):
    assert len(path.read_text().splitlines()) <= 400


@each
def test_function_bodies_are_of_a_readable_size(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                assert body[-1].end_lineno - body[0].lineno < 60, node.name


@each
def test_names_of_files_say_something(path):
    for part in path.relative_to(ROOT).with_suffix("").parts:
        assert part not in {"utils", "misc", "helpers", "common", "_src", "base", "types"}


@each
def test_assert_is_for_tests(path):
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]


# One public path ------------------------------------------------------------------------------------------------------


def exports():
    """name -> the module it is re-exported from."""
    found = {}
    for node in ast.parse((ROOT / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name}: write it as `import X as X`"
                assert alias.name not in found, f"{alias.name} is exported twice"
                found[alias.name] = node.module
    return found


def test_every_name_is_exported_once_from_where_it_is_defined():
    for name, module in exports().items():
        value = getattr(gradtx, name)
        assert getattr(sys.modules[module], name) is value
        defined_in = getattr(value, "__module__", module)
        if defined_in.startswith("gradtx."):
            assert defined_in == module, f"{name} is exported from {module} and defined in {defined_in}"


def test_no_module_is_hidden_by_a_name():
    # `gradtx.adam` beside a module gradtx/adam.py would hide it.
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not modules & set(exports())


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py" and p.parent != ROOT], ids=name_of)
def test_a_package_exports_nothing_that_has_a_path_already(path):
    package = "gradtx." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
    for module, full, _ in imports(path):
        assert module.startswith(package), f"{package} exports {full}"
        assert full.rpartition(".")[2] not in exports(), f"{full} has a path already: gradtx.{full.rpartition('.')[2]}"


def test_every_module_of_the_library_opens_with_its_idea():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), name_of(path)


# What importing costs -------------------------------------------------------------------------------------------------

HEAVY = [
    "optax",
    "flax",
    "matplotlib",
    "orbax",
    "torch",
    "keras",
    "tensorflow",
    "sklearn",
    "scipy.optimize",
    "pandas",
    "grain",
]


def test_importing_gradtx_imports_nothing_heavy():
    code = (
        "import sys, jax, chex\n"
        "before = set(sys.modules)\n"
        "import gradtx\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('gradtx')))\n"
        "print(*sorted(sys.modules))\n"
        "print(len(jax._src.xla_bridge._backends))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    added, everything, backends = run.stdout.splitlines()
    loaded = set(everything.split())
    assert not [name for name in HEAVY if name in loaded and name in added.split()]
    assert not loaded & {"optax", "flax", "matplotlib", "torch", "keras"}
    assert len(added.split()) < 40, added  # beyond jax and chex: the standard library and what jax loads when asked
    assert backends == "0"  # no device is started by an import


def test_importing_gradtx_makes_no_array():
    code = "import jax, gradtx; from jax._src import xla_bridge; assert not xla_bridge._backends, xla_bridge._backends"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
