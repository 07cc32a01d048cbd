"""gradtx's paths held against the committed ones of outside implementations: `tests/golden/matrices.json`.

case = matrix_paths.read("soap: author")              # its arguments are case["arguments"]
path = matrix_paths.path(gradtx.soap(...), case)      # leaf -> the params after the steps shown, a row each
assert matrix_paths.difference(path, case) < matrix_paths.allowed(case)
"""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.records import matrix_problem as problem

FILE = pathlib.Path(__file__).parent / "golden" / "matrices.json"
Case = dict[str, Any]
Path = dict[str, np.ndarray]


@functools.cache
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def read(name: str) -> Case:
    return golden()["paths"][name]


def path(tx: Any, case: Case) -> Path:
    """Ours on the same problem, in float64."""
    x = problem.params(*case["leaves"])
    state, update, rows = tx.init(jax.tree.map(jnp.asarray, x)), jax.jit(tx.update), []
    for _ in range(problem.STEPS):
        updates, state = update(jax.tree.map(jnp.asarray, problem.gradient(x)), state, jax.tree.map(jnp.asarray, x))
        x = {name: leaf + np.asarray(updates[name]) for name, leaf in x.items()}
        rows.append(x)
    return {name: np.array([rows[step - 1][name].ravel() for step in problem.SHOWN]) for name in x}


def difference(ours: Path, case: Case) -> float:
    """The largest, over the longest way of a param of its leaf."""
    worst = 0.0
    for name, start in problem.params(*case["leaves"]).items():
        theirs = np.array(case["path"][name])
        assert np.isfinite(ours[name]).all()
        worst = max(worst, np.abs(ours[name] - theirs).max() / np.abs(theirs - start.ravel()).max())
    return worst


def allowed(case: Case) -> float:
    """What rounding may make of two right answers. NumPy transcriptions of these methods stay below a quarter of it."""
    return 1e-12 * max(1.0, case["sensitivity"])
