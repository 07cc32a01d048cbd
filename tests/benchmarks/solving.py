"""The time of a whole minimization: the first call, the compiled loop, and a thousand fits at once.

    python -m tests.benchmarks.solving [first] [warm] [directions] [fits]

- `first`: processor seconds of a first `minimize(rosenbrock_100, lbfgs())` in a new process, compilation included, over
  those of optax's documented loop under `jax.jit`.
- `warm`: seconds of the compiled program, gradtx over optax, on three problems of `landscape.problems`.
- `directions`: seconds of one update of `scale_by_lbfgs`, compiled, with a full memory, over optax's, by the number of
  params (float32, in two leaves).
- `fits`: 1000 logistic regressions (100 samples, 10 features) in one `vmap`, over 1000 calls of SciPy's L-BFGS-B around
  a jitted loss and gradient.

Runs are in float64, to a largest element of the gradient of 1e-6.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.landscape import problems
from tests.benchmarks import pairs

TOLERANCE = 1e-6
METHODS = {"lbfgs": gradtx.lbfgs(), "newton_cg": gradtx.newton_cg()}
PARTS = ("first", "warm", "directions", "fits")


def optax_loop(loss: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The loop of optax's documentation."""
    import optax

    tx, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(loss)

    def step(carry: Any) -> Any:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state

    def goes_on(carry: Any) -> Any:
        grad, count = (optax.tree.get(carry[1], name) for name in ("grad", "count"))
        return (count == 0) | ((count < 500) & (jnp.max(jnp.abs(grad)) > TOLERANCE))

    return lambda start: jax.lax.while_loop(goes_on, step, (start, tx.init(start)))[0]


def ours(loss: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda start: gradtx.minimize(loss, start, gradtx.lbfgs(), tolerance=TOLERANCE, steps=500).params


FIRST = """
import time, jax, numpy as np
jax.config.update("jax_enable_x64", True)
from gradtx.landscape import problems
from tests.benchmarks import solving
if {whose!r} == "optax": import optax
problem = problems.EVERY["extended_rosenbrock_100"]
start = jax.numpy.asarray(problem.start)
jax.block_until_ready(start + 1)
run = solving.ours(problem) if {whose!r} == "gradtx" else jax.jit(solving.optax_loop(problem))
begin = time.process_time()
jax.block_until_ready(run(start))
print(time.process_time() - begin)
"""


def first(rounds: int = 5) -> str:
    def run(whose: str) -> float:
        code = FIRST.format(whose=whose)
        return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    times = pairs.interleaved({whose: lambda whose=whose: run(whose) for whose in ("gradtx", "optax")}, rounds, warm=0)
    ratio = pairs.said(pairs.ratios(times, "gradtx", "optax"))
    return f"first call: gradtx {np.median(times['gradtx']):.2f} s of processor time, over optax {ratio}"


def warm(rounds: int = 101) -> str:
    lines: list[str] = []
    for name in ("extended_rosenbrock_100", "wood", "watson_9"):
        problem = problems.EVERY[name]
        start = jnp.asarray(problem.start)
        with jax.numpy_dtype_promotion("standard"):
            runs = {"gradtx": jax.jit(ours(problem)), "optax": jax.jit(optax_loop(problem))}
            measures = {
                who: lambda run=run, start=start: pairs.seconds(lambda: run(start)) for who, run in runs.items()
            }
            times = pairs.interleaved(measures, rounds, warm=2)
        ratio = pairs.said(pairs.ratios(times, "gradtx", "optax"))
        lines.append(f"{name}: gradtx {1e3 * np.median(times['gradtx']):.2f} ms, over optax {ratio}")
    return "\n".join(lines)


def directions(rounds: int = 21) -> str:
    import optax

    def runner(tx: Any, params: Any) -> Callable[[], float]:
        update = jax.jit(tx.update, donate_argnums=1)
        state = jax.tree.map(jnp.copy, tx.init(params))
        for step in range(12):  # fills the memory
            w = jax.tree.map(lambda x, step=step: x * 0.9**step, params)
            state = jax.block_until_ready(update(w, state, w))[1]

        def one() -> float:
            nonlocal state, w
            w = jax.block_until_ready(jax.tree.map(lambda x: x * np.float32(0.9), w))
            kept: list[Any] = []
            took = pairs.seconds(lambda: kept.append(update(w, state, w)) or kept[0])
            state = kept[0][1]
            return took

        return one

    lines: list[str] = []
    for n in (1_000, 100_000, 1_000_000):
        params = {"a": jnp.ones((n // 20, 10), jnp.float32), "b": jnp.ones(n // 2, jnp.float32)}
        txs = {"gradtx": gradtx.scale_by_lbfgs(), "optax": optax.scale_by_lbfgs()}
        with jax.numpy_dtype_promotion("standard"):
            times = pairs.interleaved({who: runner(tx, params) for who, tx in txs.items()}, rounds, warm=2)
        ratio = pairs.said(pairs.ratios(times, "gradtx", "optax"))
        lines.append(f"{n} params: gradtx {1e3 * np.median(times['gradtx']):.2f} ms, over optax {ratio}")
    return "\n".join(lines)


def fits(number: int = 1000, rounds: int = 3) -> str:
    from scipy.optimize import minimize

    random = np.random.default_rng(0)
    x = random.normal(size=(number, 100, 10))
    truth = random.normal(size=(number, 10))
    y = (random.uniform(size=(number, 100)) < 1 / (1 + np.exp(-np.einsum("nij,nj->ni", x, truth)))).astype(float)

    def loss(w: Any, x: Any, y: Any) -> Any:
        z = x @ w
        return jnp.mean(jnp.logaddexp(0.0, z) - y * z) + 1e-3 * jnp.sum(w * w)

    def fit(tx: Any, x: Any, y: Any) -> Any:
        return gradtx.minimize(lambda w: loss(w, x, y), jnp.zeros(10), tx, tolerance=TOLERANCE).params

    together = {name: jax.jit(jax.vmap(functools.partial(fit, tx))) for name, tx in METHODS.items()}
    both = jax.jit(jax.value_and_grad(loss))

    def scipy_fits() -> Any:
        made: list[Any] = []
        for one, labels in zip(x, y, strict=True):
            fun = lambda w, one=one, labels=labels: tuple(map(np.asarray, both(w, one, labels)))  # noqa: E731
            options = {"ftol": 0.0, "gtol": TOLERANCE}
            made.append(minimize(fun, np.zeros(10), jac=True, method="L-BFGS-B", options=options).x)
        return np.stack(made)

    theirs = scipy_fits()
    off = {name: float(np.abs(np.asarray(run(x, y)) - theirs).max()) for name, run in together.items()}
    measures = {name: lambda run=run: pairs.seconds(lambda: run(x, y)) for name, run in together.items()}
    times = pairs.interleaved(measures | {"SciPy": lambda: pairs.seconds(scipy_fits)}, rounds)
    return "\n".join(
        f"{number} fits, {name}: {np.median(times[name]):.3f} s, over SciPy "
        f"{pairs.said(pairs.ratios(times, name, 'SciPy'), 4)}; largest difference {off[name]:.1e}"
        for name in together
    )


def main(words: list[str]) -> None:
    print(pairs.machine(), "OPENBLAS_NUM_THREADS =", os.environ.get("OPENBLAS_NUM_THREADS"))
    with jax.enable_x64(True):
        for part in words or PARTS:
            print({"first": first, "warm": warm, "directions": directions, "fits": fits}[part](), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
