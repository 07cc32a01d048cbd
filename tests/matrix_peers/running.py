"""A case, and its run on `tests/records/matrix_problem.py`."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.records import matrix_problem as problem

Tree = dict[str, np.ndarray]
TORCH = {"conv": (3, 2, 0, 1), "stack": (0, 2, 1)}
"""The axes of ours in the order of a torch weight; of other kernels (1, 0)."""


class Case(NamedTuple):
    """`path(start)` gives the params after each step; `given` is what it was fed with beside the gradients."""

    source: str
    arguments: dict[str, Any]
    leaves: tuple[str, ...]
    path: Callable[[Tree], Iterator[Tree]]
    casts: list[str] = []
    given: Callable[[], dict[str, Any]] = dict


class Values(NamedTuple):
    """A case that is no path: numbers in and numbers out."""

    source: str
    arguments: dict[str, Any]
    values: Callable[[], dict[str, Any]]
    casts: list[str] = []


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

    def path(start: Tree) -> Iterator[Tree]:
        import torch

        weights = {name: torch.nn.Parameter(to_torch(name, leaf)) for name, leaf in start.items()}
        optimizer = build(weights)
        for _ in range(problem.STEPS):
            x = {name: from_torch(name, weight) for name, weight in weights.items()}
            for name, g in problem.gradient(x).items():
                weights[name].grad = to_torch(name, g)
            optimizer.step()
            watch(optimizer)
            yield {name: from_torch(name, weight) for name, weight in weights.items()}

    return path


def optax_path(build: Callable[[], Any], watch: Callable[[Any], None] = lambda state: None):
    """The path of an optax transformation."""

    def path(start: Tree) -> Iterator[Tree]:
        import jax
        import optax

        transformation, x = build(), dict(start)
        state, update = transformation.init(x), jax.jit(transformation.update)
        for _ in range(problem.STEPS):
            updates, state = update(problem.gradient(x), state, x)
            x = {name: np.asarray(leaf) for name, leaf in optax.apply_updates(x, updates).items()}
            watch(state)
            yield x

    return path


def run(case: Case, moved: float = 0.0) -> list[Tree]:
    """The params after every step; each number of the start may be moved by a share of its size."""
    signs = problem.params()
    start = {
        name: leaf * (1 + moved * np.sign(signs[name][::-1])) for name, leaf in problem.params(*case.leaves).items()
    }
    return list(case.path(start))


def sensitivity(path: list[Tree], other: list[Tree], moved: float) -> float:
    """By how much a move of the start is multiplied: the largest change of a param, over the largest param."""
    change = max(np.abs(a[name] - b[name]).max() for a, b in zip(path, other) for name in a)
    return float(change / moved)


def plain(value: Any) -> Any:
    """Arrays as lists."""
    if isinstance(value, dict):
        return {str(name): plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def record(case: Case | Values) -> dict[str, Any]:
    """What the file says about a case."""
    head = {"source": case.source, "arguments": case.arguments}
    if case.casts:
        head["casts"] = case.casts
    if isinstance(case, Values):
        return plain(head | {"values": case.values()})
    path, moved = run(case), 1e-10
    given = case.given()
    other = run(case, moved)
    for tree in path:
        if not all(np.isfinite(leaf).all() and leaf.dtype == np.float64 for leaf in tree.values()):
            raise FloatingPointError(f"{case.source} {case.arguments}: not finite, or not float64")
    shown = {name: [path[step - 1][name].ravel() for step in problem.SHOWN] for name in case.leaves}
    said = {"leaves": list(case.leaves), "sensitivity": float(f"{sensitivity(path, other, moved):.2g}")}
    return plain(head | said | ({"given": given} if given else {}) | {"path": shown})
