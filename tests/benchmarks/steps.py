"""What an update step costs on trees shaped like real models: gradtx beside its peers and beside the limits.

    python -m tests.benchmarks.steps                 # all rows: about an hour on two cores
    python -m tests.benchmarks.steps --trees resnet50 lora_7b --methods adam --measures step --seconds 10
    python -m tests.benchmarks.steps --save steps.json --plot steps.png
    python -m tests.benchmarks.steps --load steps.json more.json --plot steps.png # measured before

A tree is a name of `trees.TREES`, or 1000x500 for 1000 vectors of length 500; a method is in `contenders.METHODS`
or in the registry. gradtx is `gradtx.pack(method)`; --plain, --torch and --keras set others beside it. Measured are

    build    trace, lower and compile of the jitted step, nothing being cached, and their sum
    step     a compiled step that overwrites params and state
    eager    a step outside jit
    init     the state of new params, outside jit
    memory   bytes held while the compiled step runs, as its compiler plans
    kernels  instructions of the compiled step that do something

The limits: `floor` is a compiled step that only hands its arguments on. `bytes` and `copy`, for large trees, are the
times that the method's bytes take at the bandwidth of x <- x + y and of a copy in the same round: params and state are
read and written, gradients read, twice if a norm of them all comes first. `needed` is the memory of params, state and
gradients.

A row is the median over rounds, two at least, of the ratio of two, with the range of its middle half; each round
measures all in a random order, and the next in the reverse (`pairs`). On accelerators the time of a compiled step is a
twentieth of twenty, so that they are busy.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

from tests.benchmarks import contenders, pairs, trees

MEASURES = ("build", "step", "eager", "init", "memory", "kernels")
PHASES = ("trace", "lower", "compile", "build")
METHODS = tuple(contenders.METHODS)
SYNTHETIC = ("1000x1000", "3000x1000")
TREES = (*(name for name in trees.TREES if name != "billion"), *SYNTHETIC)
LARGE = 10_000_000
"""Parameters from which on the bytes are a limit: fewer may lie in a cache."""
IN_A_ROW = 20
"""Steps in one measurement on an accelerator."""


class Row(NamedTuple):
    """One ratio."""

    tree: str
    method: str
    leaves: int
    parameters: int
    measure: str
    one: str
    over: str
    ratios: list[float]
    medians: tuple[float, float]

    def rounded(self) -> dict[str, Any]:
        """The row to four digits, which is more than there are."""
        whole = {"ratios": self.ratios, "medians": self.medians}
        return self._asdict() | {name: [float(f"{x:.4g}") for x in numbers] for name, numbers in whole.items()}

    @property
    def column(self) -> str:
        usual = (self.one, self.over) == ("gradtx", "optax")
        return self.measure if usual else f"{self.measure}, {self.one} / {self.over}"


class Case:
    """A tree and a method with all who compete on it."""

    def __init__(self, tree: str, method: str, options: argparse.Namespace):
        self.tree, self.method, self.options = tree, method, options
        self.shapes = trees.tree(tree)
        self.given = trees.filled(self.shapes, 0.02, seed=0), trees.filled(self.shapes, 1.0, seed=1)
        known = contenders.method(method)
        self.tx, self.rows = known.gradtx, list[Row]()
        self.entered = {"gradtx": contenders.of_transform(contenders.packed(known.gradtx), self.given)}
        if known.optax is not None:
            self.entered["optax"] = contenders.of_transform(known.optax, self.given, optax.apply_updates)
        if options.plain:
            self.entered["plain"] = contenders.of_transform(known.gradtx, self.given)
        if options.keras and known.keras is not None:
            from tests.benchmarks import keras_steps

            self.entered["keras"] = keras_steps.contender(known, self.given)
        self.floor = contenders.floor(known.gradtx, self.given)

    def measured(self) -> list[Row]:
        """All that was asked for."""
        wanted = self.options.measures
        self.floor.build()
        phases = self.rounds("build", warm=0, most=None if "build" in wanted else 1)
        if "build" in wanted:
            for phase in PHASES:
                self.note(phase, {name: [one[phase] for one in found] for name, found in phases.items()})
        if "step" in wanted:
            self.note("step", self.steps())
        for measure, method in (("eager", "eager"), ("init", "start")):
            if measure in wanted:
                self.note(measure, self.rounds(method))
        if "memory" in wanted:
            needed = contenders.size_in_bytes((self.given, self.floor.state))
            self.note("memory", {name: [one.peak()] for name, one in self.entered.items()} | {"needed": [needed]})
        if "kernels" in wanted:
            self.note("kernels", {name: [one.kernels()] for name, one in self.entered.items()})
        return self.rows

    def rounds(self, method: str, **how: Any) -> dict[str, list[Any]]:
        return self.interleaved({name: getattr(one, method) for name, one in self.entered.items()}, **how)

    def interleaved(
        self, calls: dict[str, Callable[[], Any]], *, warm: int = 1, least: int = 2, most: int | None = None
    ) -> dict[str, list[Any]]:
        options = self.options
        return pairs.interleaved(calls, most or options.rounds, warm=warm, least=least, budget=options.seconds)

    def steps(self) -> dict[str, list[float]]:
        """Times of the compiled step, of PyTorch's, and of the limits."""
        times = 1 if jax.default_backend() == "cpu" else IN_A_ROW
        programs = self.entered | {"floor": self.floor}
        calls = {name: functools.partial(one.run, times) for name, one in programs.items()}
        if trees.number_of_parameters(self.shapes) >= LARGE:
            params, _ = self.given
            number = contenders.moved(self.tx, self.floor.state, params)
            adding, copying = contenders.Bandwidth(params), contenders.Bandwidth(params, copies=True)
            calls["bytes"] = lambda: number * adding.seconds_per_byte(times)
            calls["copy"] = lambda: number * copying.seconds_per_byte(times)
        if self.options.torch and contenders.method(self.method).torch is not None:
            from tests.benchmarks import torch_steps

            for how in torch_steps.IMPLEMENTATIONS:
                calls[f"torch {how}"] = functools.partial(
                    torch_steps.Steps(contenders.method(self.method), how, self.shapes).run, times
                )
        return self.interleaved(calls, warm=2, least=4)

    def note(self, measure: str, found: dict[str, list[float]]) -> None:
        """The ratios of what was found: ours over a peer's or a limit, optax's over a limit, others' over ours."""
        size = {"leaves": len(jax.tree.leaves(self.shapes)), "parameters": trees.number_of_parameters(self.shapes)}
        for one, over in compared(found):
            ratios = pairs.ratios(found, one, over)
            medians = statistics.median(found[one]), statistics.median(found[over])
            self.rows.append(
                Row(self.tree, self.method, **size, measure=measure, one=one, over=over, ratios=ratios, medians=medians)
            )


def compared(names: Iterable[str]) -> list[tuple[str, str]]:
    """Which ratios are shown."""
    limits = [name for name in names if name in ("floor", "bytes", "copy", "needed")]
    others = [name for name in names if name not in ("gradtx", "optax", "plain", *limits)]
    found = [("gradtx", peer) for peer in ("optax", "plain") if peer in names]
    found += [(name, limit) for limit in limits for name in ("gradtx", "optax") if name in names]
    return found + [(name, "gradtx") for name in others]


def chosen(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Trees and methods; of the synthetic trees only the method of the aims, unless others were named."""
    return [
        (tree, method)
        for tree in options.trees or TREES
        for method in options.methods or (["clip_adamw"] if tree in SYNTHETIC and not options.trees else METHODS)
    ]


UNITS = {"memory": ("MB", 1e-6), "kernels": ("", 1)}


def tell(rows: list[Row]) -> None:
    """The rows of one case, with what the medians are in milliseconds or megabytes."""
    for first in rows[:1]:
        print(f"\n{first.tree}, {first.method}: {first.leaves:,} leaves, {first.parameters:,} parameters")
    for row in rows:
        unit, scale = UNITS.get(row.measure, ("ms", 1e3))
        one, over = (f"{value * scale:,.{0 if unit == '' else 2}f}" for value in row.medians)
        compared = f"{row.one} / {row.over}"
        said = pairs.said(row.ratios)
        print(f"    {row.measure:<8} {compared:<26} {said:<26} {one} / {over} {unit}".rstrip(), flush=True)


def table(rows: list[Row]) -> str:
    """The medians in Markdown, a line for each tree and method."""
    columns = list(dict.fromkeys(row.column for row in rows))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        lines.setdefault((row.tree, row.method), {})[row.column] = f"{statistics.median(row.ratios):.2f}"
    texts = [["tree", "method", *columns], ["---"] * (len(columns) + 2)]
    texts += [[*case, *(cells.get(column, "") for column in columns)] for case, cells in lines.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in texts)


def about(options: argparse.Namespace) -> str:
    """The machine and the versions."""
    versions = [pairs.machine(), f"{os.cpu_count()} cores", f"optax {optax.__version__}"]
    if options.torch:
        from tests.benchmarks import torch_steps

        versions.append(torch_steps.versions())
    if options.keras:
        from tests.benchmarks import keras_steps

        versions.append(keras_steps.versions())
    return "; ".join(versions)


def load(paths: Iterable[pathlib.Path]) -> tuple[str, list[Row]]:
    """What `save` wrote, of several files one after another."""
    files = [json.loads(path.read_text()) for path in paths]
    titles = dict.fromkeys(one["about"] for one in files)
    return " | ".join(titles), [Row(**row) for one in files for row in one["rows"]]


def measure(options: argparse.Namespace) -> tuple[str, list[Row]]:
    """Run what was chosen, telling each row and saving after each."""
    title, rows = about(options), list[Row]()
    print(title)
    # What only the first program of a process pays is paid here.
    once = vars(options) | {"measures": ["build", "eager", "init"], "rounds": 1}
    Case("2x2", "clip_adamw", argparse.Namespace(**once)).measured()
    for tree, method in chosen(options):
        found = Case(tree, method, options).measured()
        tell(found)
        rows += found
        if options.save:
            options.save.write_text(json.dumps({"about": title, "rows": [row.rounded() for row in rows]}))
    return title, rows


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", nargs="+", metavar="TREE", help=f"of {', '.join(trees.TREES)}, 1000x500 ...")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"of {', '.join(METHODS)} and the registry")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measure of a row, or two rounds")
    parser.add_argument("--rounds", type=int, default=101, help="at most, for each measure of a row")
    parser.add_argument("--plain", action="store_true", help="gradtx without pack as well")
    parser.add_argument("--torch", action="store_true", help="PyTorch's for-loop, foreach and fused as well")
    parser.add_argument("--keras", action="store_true", help="Keras on JAX as well")
    parser.add_argument("--save", type=pathlib.Path, metavar="FILE.json", help="all ratios")
    parser.add_argument("--load", type=pathlib.Path, nargs="+", metavar="FILE.json", help="instead of measuring")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.png")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> list[Row]:
    """Measure or load, print the table, draw the picture."""
    options = arguments(words)
    if options.torch:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory of the same accelerator
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            title, rows = load(options.load) if options.load else measure(options)
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
    print(f"\n{title}; medians\n\n{table(rows)}")
    if options.plot:
        from tests.benchmarks import picture

        picture.draw(rows, title, options.plot)
    return rows


if __name__ == "__main__":
    main()
