"""Trees of parameters shaped like real models, built from shapes alone.

`tree("resnet50")` is a nest of dicts and lists of `jax.ShapeDtypeStruct`; `filled` makes arrays of it. Each model is
what its paper's reference code has, in JAX's layout (a kernel's outputs last); their counts of parameters are those
that torchvision and the papers name (tests/test_benchmarks.py). A name `1000x500` is 1000 vectors of 500.
"""

import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def dense(inputs: int, outputs: int) -> Tree:
    return {"kernel": leaf(inputs, outputs), "bias": leaf(outputs)}


def norm(features: int) -> Tree:
    return {"scale": leaf(features), "bias": leaf(features)}


def conv(window: int, inputs: int, outputs: int) -> Tree:
    """A convolution without bias, and the normalization behind it."""
    return {"kernel": leaf(window, window, inputs, outputs), "norm": norm(outputs)}


def mlp() -> Tree:
    return [dense(inputs, outputs) for inputs, outputs in ((784, 512), (512, 512), (512, 10))]


def vgg16() -> Tree:
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = [
        {"kernel": leaf(3, 3, inputs, outputs), "bias": leaf(outputs)}
        for inputs, outputs in itertools.pairwise(channels)
    ]
    return convolutions + [dense(7 * 7 * 512, 4096), dense(4096, 4096), dense(4096, 1000)]


def resnet50() -> Tree:
    blocks, inputs = [], 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(count):
            block = [conv(1, inputs, width), conv(3, width, width), conv(1, width, 4 * width)]
            blocks.append(block + [conv(1, inputs, 4 * width)] * (index == 0))
            inputs = 4 * width
    return {"stem": conv(7, 3, 64), "blocks": blocks, "head": dense(inputs, 1000)}


def efficientnet_b4() -> Tree:
    """Widths times 1.4 in multiples of 8, depths times 1.8."""

    def wide(channels: float) -> int:
        rounded = max(8, int(1.4 * channels + 4) // 8 * 8)
        return rounded + 8 * (rounded < 0.9 * 1.4 * channels)

    def block(inputs: int, outputs: int, expand: int, window: int) -> Tree:
        inside, squeezed = inputs * expand, inputs // 4
        found = {
            "depthwise": conv(window, 1, inside),
            "squeeze": [dense(inside, squeezed), dense(squeezed, inside)],
            "project": conv(1, inside, outputs),
        }
        return found | ({"expand": conv(1, inputs, inside)} if expand > 1 else {})

    windows, widths, counts = (3, 3, 5, 3, 5, 5, 3), (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)
    blocks, inputs = [], wide(32)
    for expand, window, channels, count in zip((1, 6, 6, 6, 6, 6, 6), windows, widths, counts, strict=True):
        for _ in range(math.ceil(1.8 * count)):
            blocks.append(block(inputs, wide(channels), expand, window))
            inputs = wide(channels)
    return {
        "stem": conv(3, 3, wide(32)),
        "blocks": blocks,
        "top": conv(1, inputs, 4 * inputs),
        "head": dense(4 * inputs, 1000),
    }


def vit_b16() -> Tree:
    """As flax lays it out: queries, keys and values apart, a kernel's heads an axis of their own."""
    width, heads = 768, 12
    project = {"kernel": leaf(width, heads, width // heads), "bias": leaf(heads, width // heads)}
    layer = {
        "attention": {"query": project, "key": project, "value": project, "out": dense(width, width)},
        "norms": [norm(width), norm(width)],
        "mlp": [dense(width, 4 * width), dense(4 * width, width)],
    }
    return {
        "embedding": {"kernel": leaf(16, 16, 3, width), "bias": leaf(width)},
        "class": leaf(1, 1, width),
        "positions": leaf(1, 197, width),
        "layers": [layer] * 12,
        "norm": norm(width),
        "head": dense(width, 1000),
    }


def gpt2(layers: Tree) -> Tree:
    return {"tokens": leaf(50257, 768), "positions": leaf(1024, 768), "layers": layers, "norm": norm(768)}


def gpt2_layer() -> Tree:
    return {
        "attention": [dense(768, 3 * 768), dense(768, 768)],
        "norms": [norm(768), norm(768)],
        "mlp": [dense(768, 4 * 768), dense(4 * 768, 768)],
    }


def gpt2_small() -> Tree:
    """Unrolled: every layer has its leaves. The head's weights are the tokens'."""
    return gpt2([gpt2_layer()] * 12)


def gpt2_small_scanned() -> Tree:
    """As `lax.scan` over the layers wants it: the same leaf of all layers is one."""
    return gpt2(jax.tree.map(lambda one: leaf(12, *one.shape), gpt2_layer()))


def lora_7b() -> Tree:
    """Adapters of rank 8 on all seven matrices of each of LLaMA-7B's 32 layers; what they adapt is not trained."""
    rank, width, hidden = 8, 4096, 11008
    matrices = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    matrices |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    layer = {name: {"a": leaf(rows, rank), "b": leaf(rank, columns)} for name, (rows, columns) in matrices.items()}
    return [layer] * 32


def one_leaf() -> Tree:
    return leaf(32_000_000)


def billion() -> Tree:
    """For accelerators: a matrix, forty times."""
    return [leaf(5000, 5000)] * 40


TREES = {
    model.__name__: model
    for model in (
        mlp,
        resnet50,
        efficientnet_b4,
        vit_b16,
        gpt2_small,
        gpt2_small_scanned,
        lora_7b,
        vgg16,
        one_leaf,
        billion,
    )
}


def tree(name: str) -> Tree:
    """The shapes of a model by its name, or of a number of vectors of one length."""
    if vectors := re.fullmatch(r"(\d+)x(\d+)", name):
        number, length = map(int, vectors.groups())
        return [leaf(length)] * number
    if name not in TREES:
        raise ValueError(f"no tree {name!r}; there are {', '.join(TREES)}, and 1000x500 for 1000 vectors of 500")
    return TREES[name]()


def number_of_parameters(shapes: Tree) -> int:
    return sum(math.prod(one.shape) for one in jax.tree.leaves(shapes))


def filled(shapes: Tree, scale: float, seed: int) -> Tree:
    """Arrays of these shapes: normal numbers, which repeat after a million."""
    pool = np.random.default_rng(seed).normal(0, scale, 2**20).astype("float32")
    return jax.tree.map(lambda one: jnp.array(np.resize(pool, one.shape), one.dtype), shapes)
