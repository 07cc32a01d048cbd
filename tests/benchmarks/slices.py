"""A slice in one program against Python loops over a jitted loss, in the same rounds.

    python -m tests.benchmarks.slices   [--networks 784-128-10 64-256-256-64-10 residual] [--points 51] [--rounds 3]

The task: 1000 samples, a filter-normalised plane, 51 x 51 points. Two loops are compared, both without waiting for a
value before the next is asked for:

    loss of at     loss(plane.at(x, y), data), the loss compiled
    one program    the same, the point's params made in the compiled program too

A loop does the same at every point, so it is timed at `--share` of them, evenly spread, and scaled. A row is the median
over the rounds of the ratio of two, with the range of its middle half. How far the values differ is printed too.
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import landscape
from tests.benchmarks import pairs

SAMPLES, CLASSES = 1000, 10
WIDTHS = (18, 36, 72)
PyTree = Any


def cross_entropy(logits: Any, labels: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def dense(params: PyTree, batch: PyTree) -> Any:
    """The loss of a network of dense layers."""
    h = batch["x"].reshape(len(batch["x"]), -1)
    for kernel, bias in params[:-1]:
        h = jax.nn.relu(h @ kernel + bias)
    kernel, bias = params[-1]
    return cross_entropy(h @ kernel + bias, batch["y"])


def convolved(x: Any, kernel: Any, stride: int = 1) -> Any:
    strides, numbers = (stride, stride), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)


def residual(params: PyTree, batch: PyTree) -> Any:
    """The loss of a small residual network: a first convolution, three blocks, the mean over places."""
    x = convolved(batch["x"], params["first"])
    for i, block in enumerate(params["blocks"]):
        stride = 1 if i == 0 else 2
        h = convolved(jax.nn.relu(x), block["in"], stride)
        h = convolved(jax.nn.relu(h), block["out"])
        x = h + (convolved(x, block["across"], stride) if "across" in block else x)
    return cross_entropy(jax.nn.relu(x).mean(axis=(1, 2)) @ params["last"], batch["y"])


def drawn(seed: int, *shape: int) -> Any:
    """A kernel of He's variance."""
    return jax.random.normal(jax.random.key(seed), shape) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))


def task(name: str) -> tuple[Callable[..., Any], PyTree, PyTree]:
    """A loss, its params and the data."""
    if name == "residual":
        blocks = []
        for i, (before, after) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS)):
            block = {"in": drawn(3 * i, 3, 3, before, after), "out": drawn(3 * i + 1, 3, 3, after, after)}
            blocks.append(block if before == after else block | {"across": drawn(3 * i + 2, 1, 1, before, after)})
        params = {"first": drawn(97, 3, 3, 1, WIDTHS[0]), "blocks": blocks, "last": drawn(98, WIDTHS[-1], CLASSES)}
        loss, shape = residual, (8, 8, 1)
    else:
        sizes = [int(size) for size in name.split("-")]
        params = [(drawn(i, a, b), jnp.zeros(b)) for i, (a, b) in enumerate(itertools.pairwise(sizes))]
        loss, shape = dense, (sizes[0],)
    x = jax.random.normal(jax.random.key(99), (SAMPLES, *shape))
    return loss, params, {"x": x, "y": jax.random.randint(jax.random.key(100), (SAMPLES,), 0, CLASSES)}


def compare(name: str, points: int, number: int, share: float) -> None:
    """A line for each loop."""
    loss, params, data = task(name)
    plane = landscape.random_plane(params, jax.random.key(0))
    ends = np.linspace(-1, 1, points)
    every = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(-1, 2)
    some = np.linspace(0, len(every) - 1, max(2, round(share * len(every)))).astype(int)
    compiled = jax.jit(loss)
    whole = jax.jit(lambda plane, x, y, data: loss(plane.at(x, y), data))
    loops: dict[str, Callable[[Any, Any], Any]] = {
        "loss of at": lambda x, y: compiled(plane.at(x, y), data),
        "one program": lambda x, y: whole(plane, x, y, data),
    }

    newest: list[Any] = []

    def our_slice() -> Any:
        newest[:] = [landscape.slice_2d(loss, plane, data, points=points, progress=False).values]
        return newest

    def scaled(loop: Callable[[Any, Any], Any]) -> float:
        return pairs.seconds(lambda: [loop(*every[i]) for i in some]) * len(every) / len(some)

    measures = {"slice": functools.partial(pairs.seconds, our_slice)}
    measures |= {name: functools.partial(scaled, loop) for name, loop in loops.items()}
    times = pairs.interleaved(measures, number)
    found = np.asarray(newest[0]).reshape(-1)[some]
    expected = np.array([float(loops["one program"](*every[i])) for i in some])
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    said = ", ".join(f"{name} {statistics.median(t):.3g} s" for name, t in times.items())
    print(f"{name}, {size} params, {points} x {points}: {said}; they differ by", end=" ")
    print(f"{np.max(np.abs(found - expected) / np.abs(expected)):.1e}")
    for loop in loops:
        print(f"    {loop} / slice: {pairs.said(pairs.ratios(times, loop, 'slice'))}", flush=True)


def main() -> None:
    """Compare what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["784-128-10", "64-256-256-64-10", "residual"])
    parser.add_argument("--points", type=int, default=51)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05)
    arguments = parser.parse_args()
    print(pairs.machine())
    for name in arguments.networks:
        compare(name, arguments.points, arguments.rounds, arguments.share)


if __name__ == "__main__":
    main()
