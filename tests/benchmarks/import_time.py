"""What `import gradtx` costs beyond importing jax and chex, and what `import optax` does, in the same run.

    python -m tests.benchmarks.import_time [--runs 15]

Each run is a fresh interpreter, which imports jax and chex, then takes the processor time of one import. The two take
turns. They read bytecode from a cache of this benchmark's own, whatever PYTHONDONTWRITEBYTECODE says: to compile the
source at each import would be most of the time. Garbage is collected before, since a full collection of what JAX has
loaded takes as long as the import, and would fall into either by chance.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import gc, time, jax, jax.numpy, chex
gc.collect()
begin = time.process_time()
import {module}
print(time.process_time() - begin)
"""


def seconds(module: str, cache: str) -> float:
    """The processor time of one import in a fresh interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": cache, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {"gradtx": [], "optax": []}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(runs + 1):  # the first compiles bytecode
            for module, taken in times.items():
                taken.append(seconds(module, cache))
    for module, taken in times.items():
        low, median, high = statistics.quantiles(taken[1:], n=4)
        print(f"import {module}: {median:.3f} s ({low:.3f} to {high:.3f}), at least {min(taken[1:]):.3f}")


if __name__ == "__main__":
    main()
