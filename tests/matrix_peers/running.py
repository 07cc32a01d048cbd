"""A case, and its run on `tests/records/matrix_problem.py`."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.records import matrix_problem as problem

Tree = dict[str, np.ndarray]
Gradient = Callable[[Tree], Tree]
MOVED = 1e-10
TORCH = {"conv": (3, 2, 0, 1), "stack": (0, 2, 1)}
"""The axes of ours in the order of a torch weight; of other kernels (1, 0)."""


class Case(NamedTuple):
    """`path(start, gradient)` gives the params after each step; `given` what it was fed with beside the gradients."""

    source: str
    arguments: dict[str, Any]
    leaves: tuple[str, ...]
    path: Callable[[Tree, Gradient], Iterator[Tree]]
    casts: tuple[str, ...] = ()
    given: Callable[[], dict[str, Any]] = dict


class Values(NamedTuple):
    """A case that is no path: numbers in and numbers out."""

    source: str
    arguments: dict[str, Any]
    values: Callable[[], dict[str, Any]]
    casts: tuple[str, ...] = ()


def axes(name: str, ndim: int) -> tuple[int, ...]:
    return TORCH.get(name, tuple(range(ndim))[::-1])


def to_torch(name: str, leaf: np.ndarray):
    import torch

    return torch.tensor(np.ascontiguousarray(leaf.transpose(axes(name, leaf.ndim))))


def from_torch(name: str, weight) -> np.ndarray:
    found = weight.detach().numpy()
    return found.transpose(np.argsort(axes(name, found.ndim))).copy()


def torch_path(build: Callable[[dict[str, Any]], Any], watch: Callable[[Any], None] = lambda made: None):
    """The path of a torch optimizer; `build` gets the weights by name, `watch` what it built, after each step."""

    def path(start: Tree, gradient: Gradient) -> Iterator[Tree]:
        import torch

        weights = {name: torch.nn.Parameter(to_torch(name, leaf)) for name, leaf in start.items()}
        optimizer = build(weights)
        for _ in range(problem.STEPS):
            x = {name: from_torch(name, weight) for name, weight in weights.items()}
            for name, g in gradient(x).items():
                weights[name].grad = to_torch(name, g)
            optimizer.step()
            watch(optimizer)
            yield {name: from_torch(name, weight) for name, weight in weights.items()}

    return path


def optax_path(build: Callable[[], Any], watch: Callable[[Any], None] = lambda state: None):
    """The path of an optax transformation."""

    def path(start: Tree, gradient: Gradient) -> Iterator[Tree]:
        import jax
        import optax

        transformation, x = build(), dict(start)
        state, update = transformation.init(x), jax.jit(transformation.update)
        for _ in range(problem.STEPS):
            updates, state = update(gradient(x), state, x)
            x = {name: np.asarray(leaf) for name, leaf in optax.apply_updates(x, updates).items()}
            watch(state)
            yield x

    return path


def moving() -> Gradient:
    """The gradient with each element moved by up to `MOVED` of its size, another way at each step."""
    keys = itertools.count(50)

    def gradient(x: Tree) -> Tree:
        key = next(keys)
        return {name: g * (1 + MOVED * problem.scattered(g.shape, key)) for name, g in problem.gradient(x).items()}

    return gradient


def sensitivity(path: list[Tree], other: list[Tree]) -> float:
    """By how much a move of the gradients is multiplied: the largest change of a param over the move."""
    change = max(np.abs(a[name] - b[name]).max() for a, b in zip(path, other) for name in a)
    return float(f"{change / MOVED:.2g}")


def plain(value: Any) -> Any:
    """Arrays as lists."""
    if isinstance(value, dict):
        return {str(name): plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def record(case: Case | Values) -> dict[str, Any]:
    """What the file says about a case."""
    head = {"source": case.source, "arguments": case.arguments}
    if case.casts:
        head["casts"] = case.casts
    if isinstance(case, Values):
        return plain(head | {"values": case.values()})
    path = list(case.path(problem.params(*case.leaves), problem.gradient))
    given = plain(case.given())
    other = list(case.path(problem.params(*case.leaves), moving()))
    for tree in path:
        if not all(np.isfinite(leaf).all() and leaf.dtype == np.float64 for leaf in tree.values()):
            raise FloatingPointError(f"{case.source} {case.arguments}: not finite, or not float64")
    shown = {name: [path[step - 1][name].ravel() for step in problem.SHOWN] for name in case.leaves}
    said = {"leaves": list(case.leaves), "sensitivity": sensitivity(path, other)}
    return plain(head | said | ({"given": given} if given else {}) | {"path": shown})
