"""A small ill-conditioned problem of matrices, the same on every machine: `tests/golden/matrices.json` has its paths.

    f(x) = Σ over kernels ½ ‖A (X - X*) B‖²  +  Σ over the bias ½ d (x - x*)²

A leaf is a kernel (in, out). "conv" is (height, width, in, out) and is taken as the matrix (height·width·in, out);
"stack" is (layers, in, out), a problem for each layer. Only sums, products and remainders make the numbers, no random
generator and no LAPACK. The Hessian of a leaf has condition 900;
that of "square" 100, so that the eigenvectors of its first gradient's g gᵀ are right to 1e-13: SOAP begins with them.
"""

import math

import numpy as np

Tree = dict[str, np.ndarray]

SHAPES = {"kernel": (6, 4), "wide": (3, 5), "square": (5, 5), "bias": (7,), "conv": (2, 2, 3, 4), "stack": (2, 4, 3)}
STEPS = 40
SHOWN = [1, 2, 3, 7, 20, 40]
"""The steps after which the params are compared."""


def scattered(shape: tuple[int, ...], key: int) -> np.ndarray:
    """Numbers in (-1, 1) that look random: fractions of k² times the golden ratio."""
    k = np.arange(math.prod(shape)) + 37.0 * key + 5
    return (2 * (k * k * 0.6180339887498949 % 1) - 1).reshape(shape)


def factor(size: int, condition: float, key: int) -> np.ndarray:
    """A matrix of this condition: a reflection, columns of falling size, another reflection."""
    u, v = scattered((2, size), key)
    reflections = [np.eye(size) - 2 * np.outer(w, w) / (w @ w) for w in (u, v)]
    return reflections[0] * condition ** -np.linspace(0, 1, size) @ reflections[1]


def matrix(name: str, leaf: np.ndarray) -> np.ndarray:
    """A leaf as matrices (layers, in, out)."""
    return leaf.reshape(*(leaf.shape[:1] if name == "stack" else (1,)), -1, leaf.shape[-1])


def key(name: str) -> int:
    return 1 + list(SHAPES).index(name)


def params(*names: str) -> Tree:
    """The start, of these leaves or all."""
    return {name: scattered(SHAPES[name], key(name)) for name in names or SHAPES}


def gradient(x: Tree) -> Tree:
    """The gradient of f at x, for the leaves that x has."""
    return {name: gradient_of(name, leaf) for name, leaf in x.items()}


def gradient_of(name: str, leaf: np.ndarray) -> np.ndarray:
    distance = leaf - scattered(leaf.shape, 19 + key(name))
    if leaf.ndim == 1:
        return 900.0 ** -np.linspace(0, 1, leaf.size) * distance
    layers = []
    for layer, own in enumerate(matrix(name, distance)):
        a = factor(own.shape[0], 5 if name == "square" else 10, 20 + 2 * key(name) + 100 * layer)
        b = factor(own.shape[1], 2 if name == "square" else 3, 21 + 2 * key(name) + 100 * layer)
        layers.append(a.T @ a @ own @ b @ b.T)
    return np.array(layers).reshape(leaf.shape)
