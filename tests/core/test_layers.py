"""The layout: chapters import only from those above them, one public path for each name, files of a readable size."""

import ast
import functools
import pathlib
import subprocess
import sys

import gradtx
from gradtx.core.annotations import Kind

ROOT = pathlib.Path(gradtx.__file__).parent
CHAPTERS = ["scoped", "sharding", "numerics", "tree", "core", "schedules", "averages", "momentum", "adaptive"]
CHAPTERS += ["relatives", "matrices", "curvature"]
CHAPTERS += ["effects", "optimizers", "wrappers", "training", "landscape", "plot", "testing"]
RUNTIME = {"jax", "jaxlib", "chex", "numpy", "gradtx"} | sys.stdlib_module_names
OPTIONAL = {
    ("core/foreign.py", "optax"),  # inside to_optax only
    ("training/linen.py", "flax"),  # adapters for those who have it: `from gradtx.training import linen`
    ("training/nnx.py", "flax"),
}
HEAVY = {"matplotlib", "orbax", "torch", "keras", "tensorflow", "sklearn", "scipy.optimize", "pandas", "grain"}


@functools.cache
def files():
    """Every file of the library by its name, parsed."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def module(name):
    return f"gradtx.{name.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


@functools.cache
def imports(name):
    """(module, module with the imported name, whether at the top of the file) of every import in a file."""
    found, tree = [], files()[name]
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found.extend((alias.name, alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            found.extend((node.module, f"{node.module}.{alias.name}", top) for alias in node.names)
    return found


def test_a_chapter_imports_only_from_those_above_it():
    for name in files():
        own = name.partition("/")[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in CHAPTERS, f"{own} is no chapter; enter it in this list at its place"
        allowed = CHAPTERS[: CHAPTERS.index(own) + 1]
        for base, full, top in imports(name):
            package, _, rest = full.partition(".")
            if package == "gradtx":
                assert rest.partition(".")[0] in allowed, f"{name} imports {full}"
            elif package not in RUNTIME:
                assert not top, f"{name} imports {base} at its top"
                assert own == "plot" or (name, package) in OPTIONAL, f"{name} imports {base}"


def test_files_import_each_other_one_way():
    """No circle, also not one hidden in a function."""
    modules = [name for name in files() if not name.endswith("__init__.py")]
    graph = {module(name): {target for found in imports(name) for target in found[:2]} for name in modules}
    done, open_ = set(), []

    def walk(name):
        assert name not in open_, f"a circle of imports: {' -> '.join([*open_, name])}"
        if name in done or name not in graph:
            return
        open_.append(name)
        for target in graph[name] - {name}:
            walk(target)
        done.add(open_.pop())

    for name in graph:
        walk(name)
    assert len(done) == len(graph)


def test_files_and_functions_are_of_a_readable_size_and_open_with_their_idea():
    for name, tree in files().items():
        assert len((ROOT / name).read_text().splitlines()) <= 400, name
        assert ast.get_docstring(tree), name
        assert not set(module(name).split(".")) & {"utils", "misc", "helpers", "common", "_src", "base", "types"}
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{name}: assert is for tests"
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                assert not body or body[-1].end_lineno - body[0].lineno < 60, f"{name}: {node.name}"


OPERATORS = {"gradtx.landscape.operators.gauss_newton"}
"""The matrices that have the name of the method that uses them."""


def test_every_name_has_one_path():
    exported = {}
    for node in files()["__init__.py"].body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else []:
            assert alias.asname == alias.name, f"{alias.name}: write it as `import X as X`"
            assert alias.name not in exported, f"{alias.name} is exported twice"
            exported[alias.name] = node.module
    for name, base in exported.items():
        value = getattr(gradtx, name)
        assert getattr(sys.modules[base], name) is value
        defined_in = getattr(value, "__module__", base)
        assert not defined_in.startswith("gradtx.") or defined_in == base, f"{name} is defined in {defined_in}"
    # `gradtx.adam` beside a module gradtx/adam.py would hide it.
    assert not ({path.stem for path in ROOT.glob("*.py")} | {p.name for p in ROOT.iterdir() if p.is_dir()}) & set(
        exported
    )
    for name in files():
        if name.endswith("/__init__.py"):  # a package exports nothing that has a path already
            for base, full, _ in imports(name):
                assert base.startswith(module(name)), f"{name} exports {full}"
                known = full in OPERATORS or full.rpartition(".")[2] not in exported
                assert known, f"{full} has a path already"


def test_every_factory_is_public_registered_by_its_name_and_documented():
    ours = {name: f for name, f in gradtx.registry.items() if f.__module__.startswith("gradtx.")}
    assert ours == {name: value for name, value in vars(gradtx).items() if hasattr(value, "node")}
    assert len(ours) >= 30
    for name, factory in ours.items():
        assert factory.__name__ == name
        parts = ["Errors:", ">>>"]
        parts += ["Args:"] if factory.node._parameters else []
        parts += ["State:"] if factory.node._kind is Kind.TRANSFORM else []
        parts += ["Source:"] if factory.__module__.startswith(("gradtx.optimizers", "gradtx.adaptive")) else []
        assert not [part for part in parts if part not in factory.__doc__], name
        words = factory.__doc__.replace(",", " ").replace(":", " ").replace("(", " ").split()
        assert not [p.name for p in factory.node._parameters if p.name not in words], name


def test_importing_is_light_starts_no_device_and_needs_no_optax():
    code = (
        "import sys, jax, chex\n"
        "before = set(sys.modules)\n"
        "sys.modules['optax'] = sys.modules['flax'] = None\n"
        "import gradtx, jax.numpy as jnp\n"
        "print(*(name for name in set(sys.modules) - before if not name.startswith('gradtx')))\n"
        "print(len(jax._src.xla_bridge._backends))\n"
        "tx = gradtx.clip(1.0) >> gradtx.sgd(1e-3)\n"
        "tx.update(jnp.ones(3), tx.init(jnp.ones(3)))\n"
        "try: gradtx.to_optax(tx)\n"
        "except ImportError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=300)
    added, backends, refused = run.stdout.splitlines()
    assert not HEAVY & set(added.split())
    assert len(added.split()) < 42, added  # beyond jax and chex: the standard library and what jax loads when asked
    assert backends == "0"  # no device is started by an import
    assert refused == "gradtx.to_optax needs optax: pip install optax."


def test_importing_makes_fewer_calls_than_importing_optax():
    """A count, where a time would be noise: 57 000 calls beside optax's 64 000. `tests/benchmarks` has the times."""
    code = (
        "import sys, jax, jax.numpy, chex\n"
        "for name in ('gradtx', 'optax'):\n"  # what both need counts as gradtx's
        "    calls = [0]\n"
        "    def count(frame, event, argument, calls=calls): calls[0] += event in ('call', 'c_call')\n"
        "    sys.setprofile(count); __import__(name); sys.setprofile(None)\n"
        "    print(calls[0])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=300)
    ours, theirs = map(int, run.stdout.split())
    assert ours < theirs
