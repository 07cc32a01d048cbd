"""What the tests ask of XLA: plain code, which it makes five times as quickly as fast code.

Two thirds of a law's time would be the compiler making fast code of programs that run a few times. What its
optimizations may change is the subject of `pytest -m thorough`, which runs the laws with them, on every instruction set
(`tests/test_machines.py`). With `GRADTX_OPTIMIZED=1` any test is compiled as users' programs are.

`python -m tests.compiler` prints the flags, for programs that are no tests.
"""

import functools
import importlib.util
import mmap
import os
from pathlib import Path

PLAIN = {
    "xla_cpu_use_fusion_emitters": "false",
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
    "xla_cpu_parallel_codegen_split_count": "1",
}
EIGHT_DEVICES = {"xla_force_host_platform_device_count": "8"}
"""So that sharding is tested on any machine."""


def known(flags: dict[str, str]) -> dict[str, str]:
    """Those of the flags that the installed XLA has: it ends the process over one that it has not."""
    folder = Path(importlib.util.find_spec("jaxlib").origin).parent
    libraries = [path for path in folder.iterdir() if path.suffix in (".so", ".dylib", ".pyd")]
    largest = max(libraries, key=lambda path: path.stat().st_size)
    with largest.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        return {flag: value for flag, value in flags.items() if library.find(flag.encode()) >= 0}


def flags(given: str, *, devices: bool = True) -> str:
    """What the environment asks for already, and what it leaves open."""
    wanted = dict(EIGHT_DEVICES) if devices else {}
    if not os.environ.get("GRADTX_OPTIMIZED") and not all(flag in given for flag in PLAIN):
        wanted |= known(PLAIN)
    return " ".join([given, *(f"--{flag}={value}" for flag, value in wanted.items() if flag not in given)]).strip()


def share_context() -> None:
    """One MLIR context for all programs, where JAX makes one for each.

    Making one takes 7 ms and memory that stays with the program (decision 6).
    """
    from jax._src.interpreters import mlir

    if hasattr(mlir, "make_ir_context"):  # private: a JAX without it is slower to test
        mlir.make_ir_context = functools.cache(mlir.make_ir_context)


if __name__ == "__main__":
    print(flags(os.environ.get("XLA_FLAGS", ""), devices=False))
