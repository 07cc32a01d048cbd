"""What `import gradtx` costs beyond importing jax and chex.

    python -m tests.benchmarks.import_time [--runs 9]

Each run is a fresh interpreter, which imports jax and chex, then times `import gradtx`: wall clock and processor time.
"""

import argparse
import statistics
import subprocess
import sys

PROGRAM = """
import time, jax, jax.numpy, chex
wall, processor = time.perf_counter(), time.process_time()
import gradtx
print(time.perf_counter() - wall, time.process_time() - processor)
"""


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    times: list[list[float]] = []
    for _ in range(runs + 1):  # the first may compile bytecode
        out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
        times.append([float(number) for number in out.split()])
    wall, processor = (statistics.median(column) for column in zip(*times[1:], strict=True))
    print(f"import gradtx beyond jax and chex: {wall:.3f} s wall, {processor:.3f} s processor (median of {runs})")


if __name__ == "__main__":
    main()
