"""Every example runs from end to end with --smoke, and the ones that claim something prove it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.examples

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def run(tmp_path):
    """Runs an example as a user does, in an empty folder, and returns what it printed.

    In a process of its own: without the strict flags (flax is not written for them), with one device, and a transform
    it defines stays out of the registry here. JAX's warning about a donation it could not use is an error.
    """
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    def run_example(name, *arguments):
        command = [sys.executable, "-W", "error::UserWarning", str(FOLDER / name), *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run_example


def test_every_example_is_run_here():
    here = Path(__file__).read_text()
    assert EXAMPLES
    assert [path.stem for path in EXAMPLES if f"def test_{path.stem}" not in here] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_in_cells(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 120
    assert sum(line.startswith("# %% ") for line in lines) >= 3
    assert re.search(r"donate_arg|gradtx\.(sweep|minimize)\b", path.read_text())  # these donate by themselves
    assert f"python examples/{path.name}" in path.read_text()


def test_train_digits(run, tmp_path):
    printed = run("train_digits.py", "--smoke", "--out", "curves.png")
    accuracies = [float(found) for found in re.findall(r"test accuracy ([\d.]+)%", printed)]
    assert len(accuracies) == 2
    mean = float(re.search(r"mean of 2 seeds: ([\d.]+)%", printed)[1])
    assert mean == pytest.approx(sum(accuracies) / 2, abs=0.06)
    assert mean > 80  # two epochs; the full run reaches 97%
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_nnx_optimizer(run):
    assert run("nnx_optimizer.py", "--smoke").count("test accuracy") == 2


def test_train_state_is_compiled_once_for_two_equal_optimizers(run):
    printed = run("train_state.py", "--smoke")
    assert printed.count("compiling") == 2  # full batches and the last one, for both seeds together
    assert printed.count("test accuracy") == 2


def test_plain_loop(run):
    assert run("plain_loop.py", "--smoke").count("test accuracy") == 2


def test_write_your_own(run):
    printed = run("write_your_own.py", "--smoke")
    assert "clip_spikes(factor=2.0, decay=0.9) >> adam(" in printed
    assert "refused: gradtx.clip_spikes: decay is 1.5" in printed
    assert "equal to NumPy" in printed


def test_sweep_learning_rates(run):
    printed = run("sweep_learning_rates.py", "--smoke")
    assert len(re.findall(r"^ +[\d.]+e[+-]\d\d ", printed, re.MULTILINE)) == 8
    assert "best: " in printed


def test_sweep_digits(run, tmp_path):
    printed = run("sweep_digits.py", "--smoke", "--out", "curves.png")
    assert re.findall(r"^(\w+) .*%.* to .*%", printed, re.MULTILINE) == ["sgd", "adagrad", "adam"]
    assert "36 networks, 2 epochs each" in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    header, *rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert header.startswith("optimizer,learning_rate,seed,")
    assert len(rows) == 36


def test_bfloat16_digits(run):
    printed = run("bfloat16_digits.py", "--smoke")
    rows = re.findall(r"^(\w+.*?)  +(\d+)  [\d.]+%", printed, re.MULTILINE)
    assert [int(held) for _, held in rows] == [12, 10, 10]


def test_hypergradient(run, tmp_path):
    printed = run("hypergradient.py", "--smoke", "--out", "valley.png")
    assert "the gradient is an optimizer: sgd(learning_rate=-" in printed
    losses = [float(found) for found in re.findall(r"^outer step .* loss ([\d.]+)$", printed, re.MULTILINE)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert (tmp_path / "valley.png").read_bytes().startswith(b"\x89PNG")


def test_fit_curve(run, tmp_path):
    printed = run("fit_curve.py", "--smoke", "--out", "curve.png")
    rows = re.findall(r"^\w+ +(-?[\d.]+) ± ([\d.]+)   true ([\d.]+)$", printed, re.MULTILINE)
    assert len(rows) == 5
    assert all(abs(float(value) - float(true)) < 4 * float(error) for value, error, true in rows)
    assert "50 ended with gradient: the gradient is at most the tolerance" in printed
    scatters = re.findall(r"scatter ([\d.]+), standard error ([\d.]+)$", printed, re.MULTILINE)
    assert all(float(scatter) == pytest.approx(float(error), rel=0.4) for scatter, error in scatters)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_pinn(run):
    printed = run("pinn.py", "--smoke")
    rows = re.findall(r"^ *(.+?)  +([\d.e+-]+)  ([\d.e+-]+) +[\d.]+$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == [
        "Adam, 60000 steps",
        "Adam, 2000 steps",
        "then L-BFGS, 8000",
        "then Gauss-Newton, 500",
    ]
    losses = [float(loss) for _, loss, _ in rows]
    assert max(losses[2:]) < losses[1]  # they go on from there


def test_record_stack(run):
    printed = run("record_stack.py", "--smoke")
    first, last, evaluated = (float(found) for found in re.findall(r": ([\d.]+)$", printed, re.MULTILINE))
    assert max(last, evaluated) < first / 2
    assert "matrices        2      32,768" in printed
    source = (FOLDER / "record_stack.py").read_text()
    expression = source[source.index("\nrecord = ") + 1 : source.index("\n# fmt: on")]
    assert len(expression.splitlines()) <= 12


def test_matrix_methods(run, tmp_path):
    methods = ["adamw", "muon", "normuon", "soap", "shampoo", "kron"]
    words = ["--steps", "3", "--pinned", "--methods", ",".join(methods), "--out", "runs.json"]
    printed = run("matrix_methods.py", *words)
    assert re.findall(r"^(\w+) +[\d.]+e[+-]\d\d ", printed, re.MULTILINE) == methods
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [found["method"] for found in runs] == methods
    assert all(np.isfinite(found["held_out"]).all() and len(found["held_out"]) == 3 for found in runs)
