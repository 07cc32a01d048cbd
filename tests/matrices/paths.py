"""Runs of gradtx on the problem of the committed paths (`tests/golden/matrices.json`, `tests/matrix_peers`)."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from tests.records import matrix_problem as problem

FILE = pathlib.Path(__file__).parent.parent / "golden" / "matrices.json"


@functools.cache
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text())["paths"]


def family(name: str) -> list[str]:
    """The names of the cases of a family."""
    return [case for case, said in golden().items() if said["family"] == name]


def run(tx: Any, names: list[str], steps: int = problem.STEPS, extra: Any = None) -> dict[int, dict[str, np.ndarray]]:
    """The params after the steps that are shown; the gradients are those at the params."""
    x = jax.tree.map(jnp.asarray, problem.params(*names))
    state, found, update = tx.init(x), {}, jax.jit(tx.update)
    for step in range(1, steps + 1):
        at = problem.gradient({name: np.asarray(leaf) for name, leaf in x.items()})
        updates, state = update(jax.tree.map(jnp.asarray, at), state, x, **(extra(step) if extra else {}))
        x = gradtx.apply_updates(x, updates)
        if step in problem.SHOWN:
            found[step] = jax.tree.map(np.asarray, x)
    return found


def distance(found: dict[int, dict[str, np.ndarray]], case: str) -> float:
    """The largest difference to a committed path, over the largest distance from the start."""
    said, worst = golden()[case], 0.0
    for name in said["leaves"]:
        begin = problem.params(name)[name]
        for row, step in zip(said["path"][name], problem.SHOWN, strict=True):
            if step in found:
                expected = np.reshape(row, begin.shape)
                worst = max(worst, np.abs(found[step][name] - expected).max() / np.abs(expected - begin).max())
    return worst
