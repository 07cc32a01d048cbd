"""The tables of the pages, made from the library and its tests, so that they cannot disagree with them.

A page asks for one with `<!-- table: name -->`, or `<!-- table: name argument -->`.
"""

import ast
import contextlib
import inspect
import io
import itertools
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import optax
from evidence import matrix_methods as matrix_methods
from evidence import matrix_rates as matrix_rates

import gradtx
from gradtx.core import elsewhere
from gradtx.core.elementary import Elementary
from gradtx.core.rule import Wants

ROOT = Path(__file__).resolve().parent.parent


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`"


# Direction x scaling --------------------------------------------------------------------------------------------------

# Settings of a method that the lecture's table lists as methods of their own, put behind the method they belong to.
_VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "sgd": [("momentum", {"momentum": 0.9}), ("Nesterov momentum", {"momentum": 0.9, "nesterov": True})],
    "rmsprop": [("centered", {"centered": True}), ("with momentum", {"momentum": 0.9})],
    "nadam": [("Dozat's schedule", {"momentum_decay": 4e-3})],
}


def _momentum(part: Any) -> str:
    words = {"sum": "sum of past {g}, decayed", "average": "average of {g}", "debiased": "debiased average of {g}"}
    return words[part.form] + (", one step ahead" if part.nesterov else "")


def _rms(part: Any) -> str:
    mean = "debiased average" if part.debias else "average"
    what = f"{mean} of g² - ({mean} of g)²" if part.centered else f"{mean} of g²"
    if part.maximum is not None:
        what = f"largest so far of the {what}" if part.maximum == "corrected" else "largest so far of the average of g²"
    return f"1 / √({what})"


# What each part contributes, in words. A part that is not listed is shown as its code.
_DIRECTIONS: dict[str, Callable[[Any], str]] = {
    "scale_by_momentum": _momentum,
    "scale_by_nadam_momentum": lambda part: "debiased average of {g}, one step ahead by Dozat's schedule",
    "scale_by_lion": lambda part: "sign of an average of {g} that weighs the newest more",
    "ema": lambda part: "debiased average of {g}" if part.debias else "average of {g}",
    "scale_by_lbfgs": lambda part: f"inverse Hessian, learned from {part.memory_size} steps, times {{g}}",
    "scale_by_nonlinear_cg": lambda part: "{g} + β · last direction",
    "scale_by_gauss_newton": lambda part: "inverse of JᵀCJ times {g}",
}
_SCALINGS: dict[str, Callable[[Any], str]] = {
    "scale_by_adagrad": lambda part: "1 / √(sum of g²)",
    "scale_by_rms": _rms,
    "scale_by_adadelta": lambda part: "√(average of past steps²) / √(average of g²)",
    "scale_by_infinity_norm": lambda part: "1 / (decayed maximum of abs g)",
    "scale_by_sign": lambda part: "1 / abs of the direction",
    "scale_by_hessian_diagonal": lambda part: "1 / (average of the Hessian's diagonal, estimated), clipped",
    "scale_by_hessian_rms": lambda part: "1 / √(debiased average of the Hessian's diagonal², estimated)",
    "scale_by_trust_ratio": lambda part: "norm of w / norm of the step, leaf by leaf",
}
_BESIDES: dict[str, Callable[[Any], str]] = {
    "add_decayed_weights": lambda part: "weight decay",
    "scale_by_learning_rate": lambda part: "",
    "scale": lambda part: "" if part == gradtx.scale(-1.0) else _code(repr(part)),
    "scale_by_zoom_linesearch": lambda part: "line search (zoom)",
    "scale_by_hager_zhang_linesearch": lambda part: "line search (Hager-Zhang)",
}


def _parts(tx: Any) -> list[Any]:
    """The elementary parts of a composition, in order."""
    stages = getattr(tx, "stages", None)
    return [tx] if stages is None else [part for stage in stages for part in _parts(stage)]


def _method_row(title: str, tx: Any) -> list[str]:
    direction, scaling, besides, gradient = [], [], [], "g"
    for part in _parts(tx.expand(deep=True)):
        if part.name in _DIRECTIONS:
            direction.append(_DIRECTIONS[part.name](part).format(g=gradient))
        elif part.name in _SCALINGS:
            scaling.append(_SCALINGS[part.name](part))
            gradient = "g" if direction else "*scaled* g"
        else:
            besides.append(_BESIDES.get(part.name, lambda part: _code(repr(part)))(part))
    return [
        title,
        ", then ".join(direction) or "g",
        ", then ".join(scaling) or "1",
        ", ".join(filter(None, besides)),
    ]


def _methods() -> list[Any]:
    """The factories of the named methods, the simplest family first."""
    families = ["descent", "adagrad_family", "adam_family", "sign_family", "layerwise_family"]

    def family(factory: Any) -> int:
        name = factory.__module__.rpartition(".")[2]
        return families.index(name) if name in families else len(families)

    return sorted((f for f in gradtx.registry.values() if f.__module__.startswith("gradtx.optimizers")), key=family)


def _link(factory: Any, chapter: str) -> str:
    return f"[`{factory.__name__}`](api/{chapter}.md#gradtx.{factory.__name__})"


def _call(factory: Any, **arguments: Any) -> Any:
    """The factory called with its defaults; whatever has none is a learning rate."""
    required = [p.name for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
    return factory(**dict.fromkeys(required, 1e-3) | arguments)


def methods() -> str:
    """One row for every named method in the registry and for the settings with a name of their own."""
    rows = []
    for factory in _methods():
        rows.append(_method_row(_link(factory, "optimizers"), _call(factory)))
        for title, arguments in _VARIANTS.get(factory.__name__, []):
            rows.append(_method_row(f"↳ {title}: " + _code(_written("", arguments)[1:-1]), _call(factory, **arguments)))
    return _table(["method", "direction", "scaling", "besides"], rows)


def compositions() -> str:
    """What every named method expands to."""
    rows = [[_link(factory, "optimizers"), _code(repr(_call(factory).expand()))] for factory in _methods()]
    return _table(["method", "is"], rows)


def _named(tx: Elementary) -> set[str]:
    """The names that its update, or another pass, wants."""
    program = tx._form.program
    return {*getattr(program, "wants", Wants({})).names, *itertools.chain(*program.names.values())}


def observers() -> str:
    """The elementary transforms whose update names `observed`."""
    rows = []
    for name, factory in gradtx.registry.items():
        if not factory.__module__.startswith("gradtx."):
            continue
        required = [p for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
        if required:  # those that measure have defaults
            continue
        tx = factory()
        if isinstance(tx, Elementary) and "observed" in _named(tx):
            chapter = factory.__module__.split(".")[1]
            scaling = _SCALINGS.get(name, lambda part: "")(tx)
            rows.append([_link(factory, chapter), scaling])
    return _table(["measures what came in", "and multiplies by"], rows)


def step_bytes() -> str:
    """What each named method keeps and a step of it moves, in bytes per float32 parameter of a large matrix."""
    rows = []
    for factory in _methods():
        kept = _kept(_call(factory))
        rows.append([_link(factory, "optimizers"), f"{kept:.3g}", f"{12 + 2 * kept:.3g}", _low(_call(factory))])
    head = ["method", "state", "a step reads and writes", 'state, `stored(tx, "bfloat16")`']
    return _table(head, rows)


def _kept(tx: Any) -> float:
    """Bytes of state per parameter of a matrix; what has the length of a side or less does not count."""
    length = 2**10
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((length, length), "float32"))
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size > length]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / length**2


def _low(tx: Any) -> str:
    try:
        return f"{_kept(gradtx.stored(tx, 'bfloat16')):.3g}"
    except ValueError:  # keeps nothing, or nothing that bfloat16 can hold
        return ""


def steps() -> str:
    """What the benchmark of steps found, beside optax and the limits."""
    shown = {("gradtx", "optax"): ("step", "build", "eager", "memory"), ("gradtx", "floor"): ("step",)}
    shown |= {("gradtx", "bytes"): ("step",), ("gradtx", "copy"): ("step",), ("gradtx", "needed"): ("memory",)}
    return _benchmarked(lambda row: row.measure in shown.get((row.one, row.over), ()))


def other_frameworks() -> str:
    """PyTorch's and Keras's times and memory over gradtx's."""
    kept = ("step", "build", "eager", "memory")
    return _benchmarked(lambda row: row.one.startswith(("torch", "keras")) and row.measure in kept)


def _benchmarked(is_shown: Callable[[Any], bool]) -> str:
    from tests.benchmarks import steps as benchmark

    title, rows = benchmark.load([ROOT / "tests" / "benchmarks" / "steps.json"])
    return f"{benchmark.table([row for row in rows if is_shown(row)])}\n\n*{title}; medians.*"


# What was run ---------------------------------------------------------------------------------------------------------


def bfloat16_digits() -> str:
    """What the example prints."""
    with contextlib.redirect_stdout(io.StringIO()), _arguments():
        run = runpy.run_path(str(ROOT / "examples" / "bfloat16_digits.py"))
    return _table(run["head"], run["rows"])


@contextlib.contextmanager
def _arguments(*arguments: str) -> Iterator[None]:
    """A command line for a script that is run here."""
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def faults(library: str = "gradtx") -> str:
    """What each method does with each fault, alike ones in one column; in bold where the training is lost."""
    run = runpy.run_path(str(ROOT / "docs" / "faults.py"))
    head, rows = run["table"](library)
    alike: dict[tuple[str, ...], list[str]] = {}
    for method, *cells in list(zip(head, *rows, strict=True))[1:]:
        alike.setdefault(tuple(f"**{cell}**" if cell in run["LOST"] else cell for cell in cells), []).append(method)
    columns = zip(*alike, strict=True)
    body = [[row[0], *cells] for row, cells in zip(rows, columns, strict=True)]
    return _table([head[0], *(" ".join(map(_code, methods)) for methods in alike.values())], body)


# Frameworks -----------------------------------------------------------------------------------------------------------


def frameworks(framework: str) -> str:
    """The methods of one framework that ours are tested against, with the arguments of both."""
    from tests.records.methods import METHODS

    rows = [
        [_code(_written(peer.method, peer.theirs)), _code(_written(record.name, peer.ours))]
        for record in METHODS
        for peer in record.peers
        if peer.framework == framework
    ]
    if not rows:
        raise ValueError(f"no record of a method has a peer in {framework}")
    return _table([_code(framework), _code("gradtx")], rows)


def expressions(framework: str) -> str:
    """The arguments of one framework that are compositions here, tested in the same way."""
    from tests.records.expressions import EXPRESSIONS

    rows = [
        [_code(_written(peer.method, peer.theirs)), _code(peer.ours)]
        for peer in EXPRESSIONS
        if peer.framework == framework
    ]
    return _table([_code(framework), _code("gradtx")], rows)


def _written(name: str, arguments: dict[str, Any]) -> str:
    def value(argument: Any) -> str:
        if isinstance(argument, tuple) and hasattr(argument, "name"):  # a schedule
            return f"{argument.name}({', '.join(map(repr, argument.arguments))})"
        return repr(argument)

    return f"{name}({', '.join(f'{key}={value(argument)}' for key, argument in arguments.items())})"


# Reference ------------------------------------------------------------------------------------------------------------


def exports(package: str = "gradtx") -> dict[str, list[str]]:
    """The public names of a package by the module they come from, in the order of its __init__.py."""
    found: dict[str, list[str]] = {}
    for node in ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gradtx"):
            names = [alias.asname for alias in node.names if alias.asname is not None]
            found.setdefault(node.module, []).extend(names)
    return found


def api(chapter: str) -> str:
    """The documentation of every public name that comes from one chapter."""
    blocks = []
    for module, names in exports().items():
        if module == f"gradtx.{chapter}" or module.startswith(f"gradtx.{chapter}."):
            blocks += [f"::: gradtx.{name}" for name in names]
    if not blocks:
        raise ValueError(f"gradtx/__init__.py exports nothing from gradtx.{chapter}")
    return "\n\n".join(blocks)


def package(name: str) -> str:
    """The documentation of every public name of a package that has to be imported by itself."""
    return "\n\n".join(f"::: {name}.{member}" for names in exports(name).values() for member in names)


def functions() -> str:
    """The test functions, with how many stationary points are listed."""
    from gradtx.landscape import functions as known

    rows = []
    for name, function in known.EVERY.items():
        counts = [str(len(points)) for points in (function.minima, function.saddles, function.maxima)]
        said = " ".join(function.__doc__.partition("\n\n")[0].split()).partition(" Source")[0]
        rows.append([f"`functions.{name}`", said, *counts])
    return _table(["function", "what it is", "minima", "saddles", "maxima"], rows)


def problems() -> str:
    """The test problems for smooth minimization, with their sizes and the values of their minima."""
    from gradtx.landscape import problems as known

    rows = []
    for name, problem in known.EVERY.items():
        title = problem.__doc__.partition(" (")[0]
        minima = ", ".join(f"{value:g}" for value in problem.minima)
        rows.append([f'`problems.EVERY["{name}"]`', title, f"{problem.dimension}", minima])
    return _table(["problem", "name", "n", "known minima"], rows)


def chapters() -> str:
    """The chapters and their public names, linked."""
    rows: dict[str, list[str]] = {}
    for module, names in exports().items():
        chapter = module.split(".")[1]
        rows.setdefault(chapter, []).extend(f"[{name}]({chapter}.md#gradtx.{name})" for name in names)
    return _table(["chapter", "names"], [[f"[{c}]({c}.md)", ", ".join(names)] for c, names in rows.items()])


def decisions() -> str:
    """The decisions with their titles."""
    paths = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    titles = [path.read_text().lstrip().splitlines()[0].lstrip("# ") for path in paths]
    return "\n".join(f"- [{title}]({path.name})" for title, path in zip(titles, paths, strict=True)) or "None yet."


# The names of optax ---------------------------------------------------------------------------------------------------


def optax_names() -> str:
    """Every public name of optax: the same here, or what to write instead."""
    same = [name for name in dir(optax) if not name.startswith("_") and callable(getattr(gradtx, name, None))]
    alike: dict[str, list[str]] = {}
    for name in sorted(elsewhere.HINTS, key=str.lower):
        made, hint = elsewhere.MADE.get(name), elsewhere.HINTS[name].replace(f"optax.{name}(", "optax.it(")
        alike.setdefault(hint if made is None else hint.replace(made, _code(made)), []).append(_code(name))
    rows = [(", ".join(names), hint) for hint, names in alike.items()]
    return f"The same here: {', '.join(map(_code, same))}.\n\n" + _table(("optax", "gradtx"), rows)
