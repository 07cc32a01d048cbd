"""Adam on one large leaf, against a kernel that only moves the same bytes, and against optax.

    python -m tests.benchmarks.one_leaf [--size 32000000] [--rounds 101]

Adam reads p, m, v, g and writes p, m, v: 28 bytes per float32 parameter. `floor` is a program with the same inputs,
outputs and donations that moves just these. XLA on the CPU makes one loop of each output; `three loops` is a program
that reads g in each of them (36 bytes); Adam reads its new m and v again for p (40 bytes). `one loop` is Adam written
so that XLA makes one loop of it where it is told to, and is run only then; it shows the limit (docs/decisions, 3):

    XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true python -m tests.benchmarks.one_leaf

The programs run in one process, all of them in each round, in a random order; a row is the median over the rounds of
the ratio of two, with the range of its middle half, so that a slow moment of the machine hits both sides.
"""

import argparse
import os
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradtx
from tests.benchmarks import pairs


def floor_step(p: Any, state: Any, g: Any) -> Any:
    """Moves Adam's bytes, each once, and computes next to nothing."""
    m, v = state
    return p + g, (m + 1, v + 1)


def three_loops_step(p: Any, state: Any, g: Any) -> Any:
    """The same with g read for each output."""
    m, v = state
    return p + g, (m + g, v + g)


def one_loop_step(p: Any, state: Any, g: Any) -> Any:
    """Adam with p computed from the old m and v, a second time: three outputs of the same four inputs."""

    def averages(m: Any, v: Any, g: Any) -> Any:
        return 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g

    m, v = averages(*jax.lax.optimization_barrier((*state, g)))
    return p - 1e-3 * (1.1 * m) / (jnp.sqrt(1.1 * v) + 1e-8), averages(*state, g)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32_000_000, help="parameters in the leaf")
    parser.add_argument("--rounds", type=int, default=101, help="in each, every program runs once")
    arguments = parser.parse_args()
    size = arguments.size
    g = jax.random.normal(jax.random.key(0), (size,))
    like = jnp.zeros(size)
    tx, peer = gradtx.adam(1e-3), optax.adam(1e-3)

    def zeros() -> tuple[Any, Any]:
        return jnp.zeros(size), jnp.zeros(size)

    steps = {
        "floor": (floor_step, zeros()),
        "three loops": (three_loops_step, zeros()),
        "gradtx": (pairs.step_of(tx), tx.init(like)),
        "optax": (pairs.step_of(peer, optax.apply_updates), peer.init(like)),
    }
    if "multi_output_fusion" in os.environ.get("XLA_FLAGS", ""):
        steps["one loop"] = (one_loop_step, zeros())
    del like
    programs = {name: pairs.Program(step, jnp.zeros(size), state, g).run for name, (step, state) in steps.items()}
    times = pairs.interleaved(programs, arguments.rounds, warm=2)
    print(f"Adam on one leaf of {size:,} float32; {pairs.machine()}")
    print(f"floor: {statistics.median(times['floor']) * 1e3:.1f} ms a step, {7 * 4 * size / 1e9:.2f} GB moved")
    rows = [(ours, over) for over in ("floor", "three loops") for ours in ("gradtx", "optax")]
    rows += [("one loop", "floor")] if "one loop" in programs else []
    for name, over in [*rows, ("gradtx", "optax")]:
        print(f"{name:>8} / {over:<12} {pairs.said(pairs.ratios(times, name, over), 3)}")


if __name__ == "__main__":
    main()
