"""What a wrapper adds to a step of Adam, beside the same of optax where it has it.

    python -m tests.benchmarks.wrappers [--size 1000000] [--rounds 101]

A tree of 16 leaves, donated steps of params, state and gradient; in each round every program runs once, in a random
order. A row is the median over the rounds of the ratio of two, with the range of its middle half.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradtx
from tests.benchmarks import pairs

LEAVES = 16
BF16 = jnp.bfloat16


def rows() -> list[tuple[str, Any, Any, Any]]:
    """Name, one optimizer, the other it is compared with, dtype of the params."""
    adam, theirs = gradtx.adam(1e-3), optax.adam(1e-3)
    clipped = gradtx.clip_by_global_norm(1.0) >> adam
    return [
        ("skip_nonfinite(adam) / adam", gradtx.skip_nonfinite(adam, 5), adam, jnp.float32),
        (
            "optax.apply_if_finite / skip_nonfinite",
            optax.apply_if_finite(theirs, 5),
            gradtx.skip_nonfinite(adam, 5),
            jnp.float32,
        ),
        ("accumulate, waiting / adam", gradtx.accumulate(adam, 1000), adam, jnp.float32),
        (
            "optax.MultiSteps / accumulate, waiting",
            optax.MultiSteps(theirs, 1000),
            gradtx.accumulate(adam, 1000),
            jnp.float32,
        ),
        ("monitor(clip >> adam) / clip >> adam", gradtx.monitor(clipped), clipped, jnp.float32),
        ("exponential_averaging(adam) / adam", gradtx.exponential_averaging(adam), adam, jnp.float32),
        ("stored(adam, bfloat16) / adam", gradtx.stored(gradtx.adam(1e-3), BF16), adam, jnp.float32),
        ("stochastic_rounding(adam) / adam, bfloat16", gradtx.stochastic_rounding(adam), adam, BF16),
        ("kahan_summation(adam) / adam, bfloat16", gradtx.kahan_summation(adam), adam, BF16),
        ("master_weights(adam) / adam, bfloat16", gradtx.master_weights(adam), adam, BF16),
        (
            "clip >> adam: gradtx / optax",
            clipped,
            optax.chain(optax.clip_by_global_norm(1.0), theirs),
            jnp.float32,
        ),
    ]


def program(tx: Any, dtype: Any, size: int) -> Callable[[], float]:
    """Measures a compiled step."""
    params = {str(i): jnp.zeros(size // LEAVES, dtype) for i in range(LEAVES)}
    key = jax.random.key(0)
    grads = jax.tree.map(lambda w: jax.random.normal(key, w.shape).astype(w.dtype), params)
    return pairs.Program(pairs.step_of(tx), params, tx.init(params), grads).run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000, help="parameters in the tree")
    parser.add_argument("--rounds", type=int, default=101, help="in each, both programs run once")
    arguments = parser.parse_args()
    print(f"{arguments.size:,} parameters in {LEAVES} leaves; {pairs.machine()}")
    for name, ours, other, dtype in rows():
        programs = {"ours": program(ours, dtype, arguments.size), "other": program(other, dtype, arguments.size)}
        times = pairs.interleaved(programs, arguments.rounds, warm=3)
        print(f"{name:42} {pairs.said(pairs.ratios(times, 'ours', 'other'))}")


if __name__ == "__main__":
    main()
