"""Muon, against optax and against the Newton-Schulz iteration that people write by hand, in the same rounds.

    python -m tests.benchmarks.matrices   [--widths 64 192 384] [--rounds 5] [--gpt2]

- 24 blocks of a transformer, 144 matrices: four of (w, w), one of (w, 4 w), one of (4 w, w). A donated step, the same
  dimension numbers on both sides; compilation in processor time; peak memory over params, state and gradients.
- the iteration alone, beside a Python loop over the matrices and one batch for each shape.
- `--gpt2`: two layers of GPT-2 small, embeddings and vectors with Adam.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradtx
from tests.benchmarks import pairs

PyTree = Any
KELLER_JORDAN = (3.4445, -4.7750, 2.0315)


def blocks(width: int, number: int = 24) -> PyTree:
    """The matrices of a transformer's blocks."""
    shapes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    return {f"block_{i}": {name: jnp.zeros(shape) for name, shape in shapes.items()} for i in range(number)}


def gpt2(layers: int = 2) -> PyTree:
    """GPT-2 small with fewer layers: 38 million embeddings, 7 million parameters in each layer."""
    embeddings = {"wte": jnp.zeros((50257, 768)), "wpe": jnp.zeros((1024, 768))}
    vectors = {f"norm_{i}": jnp.ones(768) for i in range(4 * layers + 2)}
    return blocks(768, layers) | embeddings | vectors


def drawn(params: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, made)


def by_hand(x: Any) -> Any:
    """The iteration as people write it."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (jnp.linalg.norm(x) + 1e-8)
    a, b, c = KELLER_JORDAN
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def loop(xs: PyTree) -> PyTree:
    return jax.tree.map(by_hand, xs)


def stack(xs: PyTree) -> PyTree:
    """All matrices of a shape as one batch."""
    leaves, structure = jax.tree.flatten(xs)
    made = list(leaves)
    for shape in {leaf.shape for leaf in leaves}:
        indices = [i for i, leaf in enumerate(leaves) if leaf.shape == shape]
        batch = jax.vmap(by_hand)(jnp.stack([leaves[i] for i in indices]))
        for n, i in enumerate(indices):
            made[i] = batch[n]
    return jax.tree.unflatten(structure, made)


def compiled(step: Any, *args: Any, **options: Any) -> tuple[Any, float]:
    """The program, and the processor time that its compilation took, without tracing."""
    lowered = jax.jit(step, **options).lower(*args)
    begin = time.process_time()
    return lowered.compile(), time.process_time() - begin


def shown(name: str, values: list[float]) -> None:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    print(f"  {name:44} {middle:6.2f}  ({low:.2f} to {high:.2f}); best {min(values):.2f}", flush=True)


def steps(params: PyTree, ours: Any, theirs: Any, rounds: int) -> None:
    """A donated step and its compilation, ours over theirs."""
    grads, programs, built = drawn(params), {}, {"gradtx": [], "optax": []}
    for turn in range(3):
        for name, tx in [("gradtx", ours), ("optax", theirs)][:: 1 if turn % 2 else -1]:
            apply = gradtx.apply_updates if name == "gradtx" else optax.apply_updates
            step = pairs.step_of(tx, apply)
            program, took = compiled(step, params, tx.init(params), grads, donate_argnums=(0, 1))
            built[name].append(took)
            if turn == 0:
                programs[name] = pairs.Program(step, jax.tree.map(jnp.copy, params), tx.init(params), grads)
                memory = program.memory_analysis()
                peak = 1 + memory.temp_size_in_bytes / memory.argument_size_in_bytes
                print(f"  peak of {name} over params, state, gradients: {peak:.2f}")
    shown("compile: gradtx / optax", pairs.ratios(built, "gradtx", "optax"))
    times = pairs.interleaved({name: program.run for name, program in programs.items()}, rounds)
    shown(f"step: gradtx / optax ({min(times['optax']):.3f} s)", pairs.ratios(times, "gradtx", "optax"))


def iterations(params: PyTree, rounds: int) -> None:
    """The iteration alone."""
    xs, tx = drawn(params), gradtx.orthogonalize()
    state = tx.init(xs)
    calls = {
        "gradtx": jax.jit(lambda xs: tx.update(xs, state)[0]),
        "loop": jax.jit(loop),
        "stack": jax.jit(stack),
    }
    measures = {name: (lambda call=call: pairs.seconds(lambda: call(xs))) for name, call in calls.items()}
    times = pairs.interleaved(measures, rounds)
    best = "loop" if statistics.median(times["loop"]) < statistics.median(times["stack"]) else "stack"
    shown(f"Newton-Schulz: gradtx / the better one ({best})", pairs.ratios(times, "gradtx", best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 192, 384])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gpt2", action="store_true")
    arguments = parser.parse_args()
    for width in arguments.widths:
        print(f"144 matrices, width {width}")
        steps(blocks(width), gradtx.muon(0.02), optax.contrib.muon(0.02), arguments.rounds)
        iterations(blocks(width), arguments.rounds)
    if arguments.gpt2:
        print("two layers of GPT-2 small")
        params = gpt2()
        numbers = jax.tree_util.tree_map_with_path(
            lambda path, leaf: optax.contrib.MuonDimensionNumbers() if "block" in str(path[0]) else None, params
        )
        theirs = optax.contrib.muon(0.02, muon_weight_dimension_numbers=numbers)
        steps(params, gradtx.muon(0.02), theirs, arguments.rounds)


if __name__ == "__main__":
    main()
