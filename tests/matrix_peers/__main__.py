"""Write `tests/golden/matrices.json`: see the package's docstring."""

import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import warnings

from tests.matrix_peers import CHECKOUTS, FAMILIES, PACKAGES, casts
from tests.records import matrix_problem as problem

FILE = pathlib.Path(__file__).parent.parent / "golden" / "matrices.json"


def prepare(folder: pathlib.Path) -> None:
    """Checkouts can be imported, in float64, without their casts."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    for name, (repository, commit) in CHECKOUTS.items():
        found = subprocess.run(
            ["git", "-C", folder / name, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if found != commit:
            raise SystemExit(f"{folder / name}: {repository} should be at {commit}, is at {found}")
        sys.path.append(str(folder / name))
    casts.take_out()
    import jax
    import torch

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")


def main(folder: str, *families: str) -> None:
    prepare(pathlib.Path(folder).resolve())
    before = json.loads(FILE.read_text())["paths"] if FILE.exists() else {}
    kept = {name: said for name, said in before.items() if families and said["family"] not in families}
    made = {}
    for family in families or FAMILIES:
        for name, case in importlib.import_module(f"tests.matrix_peers.{family}").cases().items():
            made[name] = {"family": family} | importlib.import_module("tests.matrix_peers.running").record(case)
            print(f"{name}: sensitivity {made[name].get('sensitivity', '-')}")
    paths = dict(sorted((kept | made).items(), key=lambda item: FAMILIES.index(item[1]["family"])))
    head = {
        "command": "python -m tests.matrix_peers FOLDER",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commits": dict(CHECKOUTS.values()),
        "steps": problem.SHOWN,
    }
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    rows = [f"{json.dumps(name)}: {json.dumps(said, separators=(',', ':'))}" for name, said in paths.items()]
    FILE.write_text("{\n" + ",\n".join([*lines, '"paths": {\n' + ",\n".join(rows) + "\n}"]) + "\n}\n")
    print(f"{FILE}: {len(paths)} cases, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
