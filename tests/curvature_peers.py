"""The paths of the authors' SophiaG and AdaHessian, run in float64: `tests/golden/curvature.json`.

    python -m tests.curvature_peers FOLDER        # torch==2.13.0, and no other package but numpy

FOLDER has a checkout of each repository of `CHECKOUTS`, under the repository's own name, at the commit given there. CI
has none of this: `tests/curvature` reads the file.

    f(x) = Σ a (d²/2 + d⁴/4),   d = x - x*,   a from 1 to 1/900

The Hessian is diagonal, so |Hz| does not depend on the random signs z. A path holds, by leaf, the params after the
steps `SHOWN`, flattened in our order of axes: a kernel is (height, width, in, out), in the authors' files (out, in,
height, width). A gradient at drawn labels is twice the gradient plus 0.1, whatever is drawn.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from tests.records import matrix_problem as problem

FILE = pathlib.Path(__file__).parent / "golden" / "curvature.json"
CHECKOUTS = {
    "Sophia": ("Liuhong99/Sophia", "a7e157229b71d58cf995d32854f1be15c265b350"),
    "adahessian": ("amirgholami/adahessian", "85ebc00ce873c8497a64ca80bbfa5d996109efea"),
}
LEAVES = ("kernel", "bias", "conv")
STEPS, SHOWN, EVERY = 40, [1, 2, 3, 7, 20, 40], 3
"""Of SophiaG, an estimate at the first step and then every `EVERY` steps."""


def weights(name: str) -> np.ndarray:
    size = int(np.prod(problem.SHAPES[name]))
    return (900.0 ** -np.linspace(0, 1, size)).reshape(problem.SHAPES[name])


def target(name: str) -> np.ndarray:
    return problem.scattered(problem.SHAPES[name], 19 + problem.key(name))


def gradient(name: str, x: Any) -> Any:
    """The gradient of f, of an array of any library."""
    d = x - target(name)
    return weights(name) * (d + d * d * d)


def at_labels(name: str, x: Any) -> Any:
    return 2.0 * gradient(name, x) + 0.1


def out_first(name: str, leaf: np.ndarray) -> np.ndarray:
    return leaf.transpose(3, 2, 0, 1) if name == "conv" else leaf


def in_first(name: str, leaf: np.ndarray) -> np.ndarray:
    return leaf.transpose(2, 3, 1, 0) if name == "conv" else leaf


def path(make: Any, step: Any) -> dict[str, list[list[float]]]:
    """The params after the steps shown; `step(optimizer, leaves)` makes one step."""
    import torch

    start = {name: out_first(name, problem.params(name)[name]) for name in LEAVES}
    leaves = {name: torch.tensor(x.copy(), requires_grad=True) for name, x in start.items()}
    optimizer, rows = make(list(leaves.values())), []
    for made in range(STEPS):
        step(optimizer, leaves, made)
        rows.append({name: in_first(name, leaf.detach().numpy()).ravel().tolist() for name, leaf in leaves.items()})
    return {name: [rows[at - 1][name] for at in SHOWN] for name in LEAVES}


def sophia_step(bs: int) -> Any:
    import torch

    def step(optimizer: Any, leaves: Any, made: int) -> None:
        at = {name: in_first(name, leaf.detach().numpy().copy()) for name, leaf in leaves.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(out_first(name, gradient(name, at[name])))
        optimizer.step(bs=bs)
        if made % EVERY == 0:
            for name, leaf in leaves.items():
                leaf.grad = torch.tensor(out_first(name, at_labels(name, at[name])))
            optimizer.update_hessian()

    return step


def adahessian_step(optimizer: Any, leaves: Any, made: int) -> None:
    import torch

    optimizer.zero_grad()
    f = 0.0
    for name, leaf in leaves.items():
        d = leaf - torch.tensor(out_first(name, target(name)))
        f = f + (torch.tensor(out_first(name, weights(name))) * (d**2 / 2 + d**4 / 4)).sum()
    f.backward(create_graph=True)
    optimizer.step()


def main(folder: str) -> None:
    import torch

    for name, (repository, commit) in CHECKOUTS.items():
        at = pathlib.Path(folder).resolve() / name
        found = subprocess.run(["git", "-C", at, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        if found.stdout.strip() != commit:
            raise SystemExit(f"{at}: {repository} should be at {commit}, is at {found.stdout.strip()}")
        sys.path += [str(at), str(at / "image_classification")]
    torch.set_default_dtype(torch.float64)
    from optim_adahessian import Adahessian
    from sophia import SophiaG

    paths = {}
    for bs, arguments in [
        (8, {"lr": 2.0**-5, "rho": 0.5, "weight_decay": 0.0}),
        (2, {"lr": 2.0**-5, "rho": 2.0, "betas": [0.9, 0.75], "weight_decay": 0.5}),
    ]:
        made = path(lambda leaves, own=arguments: SophiaG(leaves, **own), sophia_step(bs))
        paths[f"SophiaG {len(paths)}"] = {"arguments": arguments | {"bs": bs}, "path": made}
    for arguments in [
        {},
        {"lr": 2.0**-5, "betas": [0.75, 0.9], "eps": 2.0**-7, "weight_decay": 0.5, "hessian_power": 0.5},
    ]:
        made = path(lambda leaves, own=arguments: Adahessian(leaves, **own), adahessian_step)
        paths[f"Adahessian {len(paths) - 2}"] = {"arguments": arguments, "path": made}
    head = {"command": "python -m tests.curvature_peers FOLDER", "commits": dict(CHECKOUTS.values())}
    head |= {"versions": {"torch": torch.__version__, "numpy": np.__version__}, "steps": SHOWN}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    rows = [f"{json.dumps(name)}: {json.dumps(said, separators=(',', ':'))}" for name, said in paths.items()]
    FILE.write_text("{\n" + ",\n".join([*lines, '"paths": {\n' + ",\n".join(rows) + "\n}"]) + "\n}\n")
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
