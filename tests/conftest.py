"""The flags every test runs under, set before JAX is imported, and the memory that tests leave behind.

Strict dtype promotion and no implicit rank promotion: the library must say every cast and every broadcast it makes.
Code of other libraries (optax, flax, Keras) is not written for that: call it inside
`jax.numpy_dtype_promotion("standard")`.

Eight host devices, so that sharding is tested on any machine.

Two thirds of the suite's time would be XLA's compiler making fast code of programs that run once. So it is asked for
plain code, five times as quickly. What the compiler's optimizations may change is the subject of `pytest -m thorough`,
which runs the laws with them, on every instruction set (`tests/test_machines.py`). `GRADTX_OPTIMIZED=1 pytest` runs any
test with them.
"""

import gc
import importlib.util
import mmap
import os
import pathlib

QUICK = {
    "xla_cpu_use_fusion_emitters": "false",
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
}


def known_to_jaxlib(flags):
    """Those of the flags that the installed XLA knows: it ends the process over one that it does not."""
    folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
    libraries = [path for path in folder.iterdir() if path.suffix in (".so", ".dylib", ".pyd")]
    largest = max(libraries, key=lambda path: path.stat().st_size)
    with largest.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
        return {flag: value for flag, value in flags.items() if binary.find(flag.encode()) >= 0}


def xla_flags(given):
    """What the environment asks for, and what it leaves open."""
    wanted = {"xla_force_host_platform_device_count": "8"}
    if "GRADTX_OPTIMIZED" not in os.environ and not all(flag in given for flag in QUICK):
        wanted |= known_to_jaxlib(QUICK)
    return " ".join([given, *(f"--{flag}={value}" for flag, value in wanted.items() if flag not in given)]).strip()


os.environ["XLA_FLAGS"] = xla_flags(os.environ.get("XLA_FLAGS", ""))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """The test runs in float64: Python floats and new arrays are 64 bits wide, as in NumPy."""
    with jax.enable_x64(True):
        yield


RELEASED_AFTER = 200
"""Tests between two releases of what JAX has compiled: without them a worker grows to 5 GB."""

_ended = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    global _ended
    _ended += 1
    if _ended % RELEASED_AFTER == 0:
        jax.clear_caches()
        gc.collect()
        gc.freeze()  # what is left stays: the collector need not look through it again and again
