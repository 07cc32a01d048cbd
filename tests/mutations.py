"""Breaks the library one line at a time and sees whether the tests notice: the measure of this suite.

    .venv/bin/python -m tests.mutations                        # 11 in each chapter, drawn with seed 0
    .venv/bin/python -m tests.mutations --seed 7 --each 3 --chapters core wrappers
    .venv/bin/python -m tests.mutations --list                 # only say which
    .venv/bin/python -m tests.mutations --tests ../old         # the same against the tests of another checkout

A mutation is one change of the syntax tree: a sign, a constant, a comparison, two arguments swapped, a statement or a
check dropped, another axis or dtype. It is made in a copy of the checkout, where the tests of its module run first,
until one fails; what they let pass meets the plain test command. What that lets pass has survived. EQUIVALENT lists the
survivors that compute the same, each with the reason; the plain command must notice 95% of the others.
"""

import argparse
import ast
import collections
import concurrent.futures
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("gradtx", "tests", "docs", "examples", ".ci", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE")
HANGS = 900
"""Seconds after which a run counts as one that noticed: a mutation may make a loop endless."""


class Mutation(NamedTuple):
    chapter: str
    file: str
    line: int
    kind: str
    before: str
    after: str
    broken: str
    """The whole line, mutated."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kind}: {self.before} -> {self.after}"


EQUIVALENT = {
    (
        "gradtx/tree.py",
        "factor = jnp.where(short, 1, limit / jnp.where(short, 2, norm.relative))",
    ): "divides a limit whose quotient is not taken",
    (
        "gradtx/plot/spectra.py",
        "return nodes[away & ((weights) >= (0.001 / size))]  # with less weight, of no eigenvalue",
    ): "a weight that is the threshold, chosen by eye, to the bit",
    (
        "gradtx/tree.py",
        "return leaf if False else leaf.astype(dtype)",
    ): "an array in the dtype that it has is itself; asking first is faster",
    (
        "gradtx/landscape/krylov.py",
        "for _ in range(3):",
    ): "orthogonal after two passes (Giraud et al. 2005); a third moves the last bits",
    (
        "gradtx/averages.py",
        "begins = ((weights['left']) >= (0.5)) | (weights[\"given\"] == 0)",
    ): "two ways to say 0.5",
    (
        "gradtx/landscape/slices.py",
        "yield np.float32(number)",
    ): "a dict finds a key by a float of its value",
    (
        "gradtx/training/sweeps.py",
        "run_begin = _run_begin_on_cpu if (blocks.devices()[0].platform) != ('cpu') else _run_begin",
    ): "the same numbers on either path, compiled otherwise",
    (
        "gradtx/wrappers/packing.py",
        "leaf = jax.ShapeDtypeStruct((2, 4, 5), jnp.bfloat16)  # of which master weights are kept too",
    ): "a stand-in of another shape",
    (
        "gradtx/landscape/functions.py",
        "return 0.26 * (x[0] ** 2 + x[2] ** 2) - 0.48 * x[0] * x[1]",
    ): "JAX takes the last element where an index is too large",
    (
        "gradtx/landscape/functions.py",
        "return x[0] ** 2 - x[2] ** 2",
    ): "JAX takes the last element where an index is too large",
    (
        "gradtx/plot/heights.py",
        "base = 0.0 if not log or ((low) > (0) and (low <= near or positive)) else low",
    ): "zero as the base, or the lowest, which is zero",
    ("gradtx/core/check.py", "if not same_structure(like, value):"): "equality has no order",
    (
        "gradtx/effects/clipping.py",
        "ordered = jnp.sort(jnp.where(jnp.arange(norms.size, dtype=jnp.float32) < filled, norms, jnp.inf))",
    ): "a window has fewer places than float32 has whole numbers",
    (
        "gradtx/plot/spectra.py",
        "around = (found.marked[:, None]) - (spread * np.linspace(-4.0, 4.0, 17))",
    ): "as many on either side, at the same distances",
    (
        "gradtx/testing/running.py",
        "jax.block_until_ready(jax.jit(tx.update)(grads[1], state, params, **given))",
    ): "a gradient of the same shapes, which is all that a program is compiled for",
    (
        "gradtx/training/tables.py",
        "table[name] = np.concatenate([h.get(name, np.full(n, np.nan)) for h, n in zip(hyper, sizes, strict=False)])",
    ): "both of as many runs",
    (
        "gradtx/training/tables.py",
        "for line in zip(*cells, strict=False)",
    ): "columns of as many rows",
    (
        "gradtx/core/state.py",
        "return [(str(name), value) for name, value in zip(names, values, strict=False)]",
    ): "as many names as values",
    (
        "gradtx/effects/clipping.py",
        "below = jnp.clip(0, jnp.floor(place).astype(jnp.int32), last)",
    ): "the middle one of three, in whichever order",
    (
        "gradtx/landscape/functions.py",
        "Points = np.ndarray[Any, np.dtype[np.float32]]",
    ): "a name for the type checker",
    (
        "gradtx/testing/runs.py",
        "values = generator.normal(size=leaf.shape) * ((generator.uniform(size=leaf.shape)) <= (0.9))",
    ): "a draw that is 0.9 to the bit",
    (
        "gradtx/testing/value.py",
        "return sum((jnp.sum(jnp.real(x)).astype(jnp.float32) for x in results), jnp.float32(1)), state",
    ): "a constant in a sum of which only the derivative is taken",
}
"""(file, the mutated line): why it computes the same."""


# Operators ------------------------------------------------------------------------------------------------------------

BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "%", ast.Mod: "//", ast.Pow: "*"}
COMPARED = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
SYMMETRIC = {
    "maximum",
    "minimum",
    "max",
    "min",
    "logical_and",
    "logical_or",
    "isinstance",
    "hypot",
    "allclose",
    "equal",
    "precision",
}
DTYPES = {"float32": "bfloat16", "float64": "float32", "int32": "float32", "bfloat16": "float32", "uint32": "int32"}


def changed(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What may become of a node: the kind of mutation, and its source."""
    said = ast.unparse
    match node:
        case ast.BinOp(left, op, right) if type(op) in BINARY and not isinstance(left, ast.Constant | ast.JoinedStr):
            yield "sign", f"({said(left)}) {BINARY[type(op)]} ({said(right)})"
        case ast.UnaryOp(ast.USub(), operand):
            yield "sign", f"({said(operand)})"
        case ast.UnaryOp(ast.Not(), operand):
            yield "condition", f"({said(operand)})"
        case ast.Compare(left, [op], [right]) if type(op) in COMPARED:
            yield "comparison", f"({said(left)}) {COMPARED[type(op)]} ({said(right)})"
        case ast.BoolOp(op, values):
            other = " or " if isinstance(op, ast.And) else " and "
            yield "condition", f"({other.join(f'({said(value)})' for value in values)})"
        case ast.Constant(bool() as value):
            yield "constant", str(not value)
        case ast.Constant(int() | float() as value):
            yield "constant", repr(value + 1 if isinstance(value, int) or value == 0 else 2 * value)
        case ast.Attribute(value, name) if name in DTYPES:
            yield "dtype", f"{said(value)}.{DTYPES[name]}"
        case ast.Call(function, [first, second, *rest], keywords) if not any(
            isinstance(argument, ast.Starred) for argument in (first, second)
        ):
            if said(function).rpartition(".")[2] not in SYMMETRIC and said(first) != said(second):
                others = [said(argument) for argument in rest] + [said(keyword) for keyword in keywords]
                yield "arguments", f"{said(function)}({', '.join([said(second), said(first), *others])})"
        case ast.keyword("axis", ast.Constant(int() as axis)):
            yield "axis", f"axis={0 if axis else -1}"
        case ast.Expr(ast.Call()) | ast.AugAssign():
            yield "dropped", "pass"


def conditions(node: ast.AST) -> Iterator[tuple[ast.expr, str, str]]:
    """A check or branch that is never, or always, taken."""
    if isinstance(node, ast.If | ast.IfExp):
        raises = isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)
        yield node.test, "check" if raises else "branch", "False"


SKIPPED = ast.Raise | ast.JoinedStr | ast.AnnAssign | ast.Import | ast.ImportFrom | ast.arg


def sites(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute something: no words of errors, no annotations, no decorators, no docstrings."""
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "returns", "annotation"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED):
                continue
            yield child
            yield from sites(child)


def candidates(path: Path, chapter: str) -> list[Mutation]:
    source = path.read_text()
    lines, found = source.splitlines(), []
    for node in sites(ast.parse(source)):
        options = [(node, kind, after) for kind, after in changed(node)] + list(conditions(node))
        for where, kind, after in options:
            if getattr(where, "lineno", 0) != getattr(where, "end_lineno", 1):
                continue
            line = lines[where.lineno - 1].encode()
            before = line[where.col_offset : where.end_col_offset].decode()
            line = line[: where.col_offset] + after.encode() + line[where.end_col_offset :]
            words = (kind, before, after, line.decode().strip())
            found.append(Mutation(chapter, str(path.relative_to(ROOT)), where.lineno, *words))
    return found


# Chapters -------------------------------------------------------------------------------------------------------------


def chapters() -> dict[str, list[Path]]:
    """The modules by chapter; the files of one formula each, beside the folders, are one."""
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted((ROOT / "gradtx").rglob("*.py")):
        folder = path.parent.name
        foundations = path.stem in ("numerics", "tree")
        found["foundations" if foundations else "parts" if folder == "gradtx" else folder].append(path)
    return dict(found)


def drawn(seed: int, each: int, wanted: list[str]) -> list[Mutation]:
    """`each` mutations of each chapter: first a kind is drawn, then a place, so that rare kinds are tried too."""
    chosen = []
    for chapter, paths in ((name, paths) for name, paths in chapters().items() if name in wanted or not wanted):
        generator = random.Random(f"{seed} {chapter}")
        kinds: dict[str, list[Mutation]] = collections.defaultdict(list)
        for path in paths:
            for mutation in candidates(path, chapter):
                kinds[mutation.kind].append(mutation)
        for _ in range(each):
            kind = generator.choice(sorted(kinds))
            chosen.append(kinds[kind].pop(generator.randrange(len(kinds[kind]))))
            if not kinds[kind]:
                del kinds[kind]
    return chosen


# Tests ----------------------------------------------------------------------------------------------------------------


def first_tests(mutation: Mutation, tests: Path) -> list[list[str]]:
    """The arguments of the runs that may notice a mutation, the likeliest first: those of its module and chapter."""
    path = Path(mutation.file)
    folders = path.parent.name, path.parent.parent.name
    chapter = next((name for name in folders if (tests / "tests" / name).is_dir()), folders[0])
    factories = re.findall(r"^@(?:transform|schedule)\ndef (\w+)", (ROOT / path).read_text(), flags=re.MULTILINE)
    runs = [
        [f"tests/{chapter}/test_{path.stem}.py"],
        ["tests/test_equations.py", "tests/test_laws.py", "-k", " or ".join(factories)] if factories else [],
        ["tests/test_refusals.py", "tests/test_signatures.py"],
        [f"tests/{chapter}" if (tests / "tests" / chapter).is_dir() else "tests/core"],
        ["tests/test_laws.py"] if chapter == "testing" else [],
        ["tests/test_equations.py"] if chapter in ("gradtx", "schedules") else [],  # what all formulas are made of
    ]
    there = [[word for word in run if not word.startswith("tests/") or (tests / word).exists()] for run in runs]
    return [run for run in there if run and run[0] != "-k"]


def noticed(copy: Path, arguments: list[str], processes: str) -> str | None:
    """The test that failed, or None; what cannot be collected, or does not end, has been noticed too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", processes, "-p", "no:cacheprovider", *arguments]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=HANGS
        )
    except subprocess.TimeoutExpired:
        return "does not end"
    if done.returncode in (0, 5):  # 5: no test of this name
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, flags=re.MULTILINE)
    return found[1] if found else "cannot be run"


def copied(tests: Path) -> Path:
    """A checkout to be broken, with the tests of another one, if asked."""
    copy = Path(tempfile.mkdtemp(prefix="mutated-"))
    for name in COPIED:
        source = (tests if name == "tests" else ROOT) / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


def tried(mutation: Mutation, tests: Path, *, plain: bool) -> dict[str, object]:
    """Make one mutation and say who noticed it, and how: by the tests of its module, or by the plain command."""
    copy, start = copied(tests), time.monotonic()
    try:
        target = copy / mutation.file
        lines = target.read_text().splitlines()
        intact = lines[mutation.line - 1]
        lines[mutation.line - 1] = intact[: len(intact) - len(intact.lstrip())] + mutation.broken
        target.write_text("\n".join([*lines, ""]))
        runs = [(arguments, "0", "module") for arguments in first_tests(mutation, tests)]
        runs += [([], "auto", "plain")] if plain else []
        found = ((by, noticed(copy, arguments, processes)) for arguments, processes, by in runs)
        by, test = next((pair for pair in found if pair[1]), ("survived", None))
        return mutation._asdict() | {"by": by, "test": test, "seconds": round(time.monotonic() - start)}
    finally:
        shutil.rmtree(copy, ignore_errors=True)


# The table ------------------------------------------------------------------------------------------------------------


def reason(row: dict[str, object]) -> str | None:
    return EQUIVALENT.get((str(row["file"]), str(row["broken"])))


def table(rows: list[dict[str, object]]) -> str:
    """For each chapter: tried, noticed by the module's tests, by the plain command, equivalent, survived."""
    lines = [
        "| chapter | tried | by its tests | by the plain command | equivalent | survived |",
        "|---|---|---|---|---|---|",
    ]
    total: collections.Counter[str] = collections.Counter()
    by_chapter: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows:
        by = str(row["by"]) if row["test"] else "equivalent" if reason(row) else "survived"
        by_chapter[str(row["chapter"])][by] += 1
        total[by] += 1
    for chapter, counts in [*by_chapter.items(), ("all", total)]:
        kinds = [counts[kind] for kind in ("module", "plain", "equivalent", "survived")]
        lines.append(f"| {chapter} | {sum(kinds)} | {' | '.join(map(str, kinds))} |")
    tried_for_real = sum(total.values()) - total["equivalent"]
    share = 1 - total["survived"] / max(tried_for_real, 1)
    return "\n".join([*lines, "", f"noticed: {share:.1%} of the {tried_for_real} that compute something else"])


def main(words: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=11, help="mutations of each chapter")
    parser.add_argument("--chapters", nargs="*", default=[], help=f"of {', '.join(chapters())}")
    parser.add_argument("--list", action="store_true", help="say which, and run nothing")
    parser.add_argument("--tests", type=Path, default=ROOT, help="the checkout whose tests are to notice them")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain command for those that survive")
    parser.add_argument("--save", type=Path, help="a file for the rows, as JSON lines")
    given = parser.parse_args(words)
    chosen = drawn(given.seed, given.each, given.chapters)
    print(f"seed {given.seed}: {len(chosen)} mutations")
    if given.list:
        print("\n".join(map(str, chosen)))
        return []
    rows = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(tried, mutation, given.tests, plain=False) for mutation in chosen]
        for mutation, run in zip(chosen, runs, strict=True):
            rows.append(run.result())
            print(f"{mutation}\n    {rows[-1]['by']}: {rows[-1]['test']} ({rows[-1]['seconds']} s)", flush=True)
    if not given.no_plain:  # alone, since it takes both cores
        for index, (mutation, row) in enumerate(zip(chosen, rows, strict=True)):
            if row["test"] is None and reason(row) is None:
                rows[index] = tried(mutation, given.tests, plain=True)
                print(f"{mutation}\n    {rows[index]['by']}: {rows[index]['test']}", flush=True)
    if given.save:
        given.save.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
