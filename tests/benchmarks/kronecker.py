"""SOAP, Shampoo and Kron against the implementations in PyTorch, in the same rounds.

    TORCHDYNAMO_DISABLE=1 OPENBLAS_NUM_THREADS=1 python -m tests.benchmarks.kronecker [--folder CHECKOUTS] [--threads 2]

It needs torch, pytorch_optimizer and kron-torch, and in the folder `optimizers`, a checkout of
facebookresearch/optimizers; `--alone` needs none of them. The tree is the matrices of a transformer's blocks,
the gradients are five that take turns, and a step is the mean over ten, one of which computes the bases or roots.

Beside it stands the part of LAPACK: how long the decompositions alone take, over ten steps, of the same sizes.
With `--threads 1` under `taskset -c 0` both sides have one core, and processor time says what each needs on a machine
that is busy. `OPENBLAS_NUM_THREADS=1`: XLA's threads run decompositions side by side, and each would start threads.
`--less-memory` compiles ours with XLA's scheduler for little memory.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from tests.benchmarks import pairs
from tests.benchmarks.matrices import blocks, drawn

PyTree = Any
EVERY = 10
GRADIENTS = 5
LESS_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class Took(NamedTuple):
    """Seconds for one step: of the wall's clock, and of all processors together."""

    wall: float
    processors: float


def timed(call: Callable[[], Any], times: int) -> Took:
    wall, processors = time.perf_counter(), time.process_time()
    call()
    return Took((time.perf_counter() - wall) / times, (time.process_time() - processors) / times)


class Ours:
    """A donated step of a transform, compiled."""

    def __init__(self, tx: Any, params: PyTree, gradients: list[PyTree], **options: Any):
        begin = time.process_time()
        program: Any = pairs.Program(pairs.step_of(tx), params, tx.init(params), gradients[0], **options)
        self.program, self.gradients = program, gradients
        compiled = program.step.lower(program.params, program.state, program.grads).compile()
        self.build = time.process_time() - begin
        memory = compiled.memory_analysis()
        self.peak = 1 + memory.temp_size_in_bytes / memory.argument_size_in_bytes
        program.step = compiled

    def run(self, times: int = EVERY) -> Took:
        def steps() -> None:
            program = self.program
            for i in range(times):
                grads = self.gradients[i % len(self.gradients)]
                program.params, program.state = program.step(program.params, program.state, grads)
            jax.block_until_ready((program.params, program.state))

        return timed(steps, times)


class Theirs:
    """An optimizer of PyTorch."""

    def __init__(self, optimizer: Callable[[list[Any]], Any], params: PyTree, gradients: list[PyTree]):
        import torch

        self.params = [torch.nn.Parameter(torch.tensor(np.asarray(one))) for one in jax.tree.leaves(params)]
        self.gradients = [[torch.tensor(np.asarray(one)) for one in jax.tree.leaves(tree)] for tree in gradients]
        self.optimizer = optimizer(self.params)

    def run(self, times: int = EVERY) -> Took:
        def steps() -> None:
            for i in range(times):
                for one, grad in zip(self.params, self.gradients[i % len(self.gradients)], strict=True):
                    one.grad = grad.clone()  # kron_torch writes into it
                self.optimizer.step()

        return timed(steps, times)


def soap(params: list[Any]) -> Any:
    return importlib.import_module("pytorch_optimizer").SOAP(params, lr=3e-3, precondition_frequency=EVERY)


def shampoo(params: list[Any]) -> Any:
    made = importlib.import_module("distributed_shampoo")
    return made.DistributedShampoo(
        params,
        lr=1e-3,
        betas=(0.9, 0.95),
        epsilon=1e-8,
        precondition_frequency=EVERY,
        grafting_config=made.AdamPreconditionerConfig(beta2=0.999, epsilon=1e-8),
    )


def kron(every: int) -> Callable[[list[Any]], Any]:
    def build(params: list[Any]) -> Any:
        made = importlib.import_module("kron_torch")
        return made.Kron(params, lr=3e-4, preconditioner_update_probability=1 / every)

    return build


def contenders() -> dict[str, tuple[Any, str, Callable[[list[Any]], Any]]]:
    """By name: ours, the peer's module, and how the peer is built."""
    grafted = gradtx.shampoo(1e-3, b2=0.95, eps=1e-8, grafting=gradtx.scale_by_rms(0.999), precondition_frequency=EVERY)
    return {
        "soap": (gradtx.soap(3e-3, precondition_frequency=EVERY), "pytorch_optimizer", soap),
        "shampoo": (grafted, "distributed_shampoo", shampoo),
        "kron, every step": (gradtx.kron(3e-4, preconditioner_update_probability=1.0), "kron_torch", kron(1)),
        "kron, every 10 steps": (gradtx.kron(3e-4, preconditioner_update_probability=0.1), "kron_torch", kron(EVERY)),
    }


def decompositions(params: PyTree, name: str) -> dict[str, Callable[[], Took]]:
    """The decompositions alone, eigh or qr, of a matrix for each side of each leaf: JAX's and PyTorch's."""
    import torch

    sizes = [size for leaf in jax.tree.leaves(params) for size in leaf.shape]
    factors = [np.asarray(jax.random.normal(jax.random.key(i), (size, size))) for i, size in enumerate(sizes)]
    grams = [factor @ factor.T / len(factor) for factor in factors]
    here, there = [jnp.asarray(one) for one in grams], [torch.tensor(one) for one in grams]
    ours, theirs = jax.jit(lambda many: [getattr(jnp.linalg, name)(one) for one in many]), getattr(torch.linalg, name)
    return {
        "jax": lambda: timed(lambda: jax.block_until_ready(ours(here)), EVERY),
        "torch": lambda: timed(lambda: [theirs(one) for one in there], EVERY),
    }


def shown(name: str, took: dict[str, list[Took]], one: str, over: str) -> None:
    """A ratio in wall time and in processor time."""
    for clock in Took._fields:
        times = {side: [getattr(each, clock) for each in took[side]] for side in (one, over)}
        middle = pairs.spread(times[over])[1]
        print(f"  {name}, {clock}: {pairs.said(pairs.ratios(times, one, over))} of {1e3 * middle:.2f} ms", flush=True)


def compare(name: str, params: PyTree, gradients: list[PyTree], rounds: int, alone: bool, **options: Any) -> None:
    tx, module, build = contenders()[name]
    ours = Ours(tx, jax.tree.map(jnp.copy, params), gradients, **options)
    print(f"{name}: built in {ours.build:.1f} s of a processor; peak over params, state, gradients {ours.peak:.2f}")
    sides: dict[str, Callable[[], Took]] = {"gradtx": ours.run}
    if not alone:
        sides[module] = Theirs(build, params, gradients).run
        if not name.startswith("kron"):
            lapack = decompositions(params, "qr" if name == "soap" else "eigh")
            sides |= {f"LAPACK in {side}": run for side, run in lapack.items()}
    took = pairs.interleaved(sides, rounds, warm=2)
    if alone:
        took["one ms"] = [Took(1e-3, 1e-3)] * rounds
        shown("gradtx", took, "gradtx", "one ms")
        return
    shown(f"gradtx / {module}", took, "gradtx", module)
    for side, whole in (("jax", "gradtx"), ("torch", module)):
        if f"LAPACK in {side}" in sides:
            shown(f"LAPACK in {side} / {whole}", took, f"LAPACK in {side}", whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="the folder of the checkout `optimizers`")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=list(contenders()))
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--less-memory", action="store_true", help="XLA's scheduler for little memory")
    arguments = parser.parse_args()
    options = {"compiler_options": LESS_MEMORY} if arguments.less_memory else {}
    if arguments.folder:
        sys.path.append(os.path.join(arguments.folder, "optimizers"))
    if not arguments.alone:
        import torch

        torch.set_num_threads(arguments.threads)
    params = jax.tree.map(lambda leaf: 0.02 * leaf, drawn(blocks(arguments.width, arguments.blocks)))
    keys = jax.random.split(jax.random.key(1), GRADIENTS)
    gradients = [jax.tree.map(lambda leaf, key=key: jax.random.normal(key, leaf.shape), params) for key in keys]
    for name in arguments.methods:
        compare(name, params, gradients, arguments.rounds, arguments.alone, **options)


if __name__ == "__main__":
    main()
