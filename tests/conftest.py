"""The flags every test runs under, set before JAX is imported, and the memory that tests leave behind.

Strict dtype promotion and no implicit rank promotion: the library must say every cast and every broadcast it makes.
Code of other libraries (optax, flax, Keras) is not written for that: call it inside
`jax.numpy_dtype_promotion("standard")`.
"""

import ctypes
import gc

gc.disable()  # tracing makes much that lives shortly; the rest is collected when memory is released

import itertools
import os
import sys
from pathlib import Path

from tests import compiler

os.environ["XLA_FLAGS"] = compiler.flags(os.environ.get("XLA_FLAGS", ""))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # several wait for each other without giving up their cores
os.environ.setdefault("KERAS_BACKEND", "jax")

import pytest

RELEASED_ABOVE = 1250
"""MB in memory after a test above which what JAX has compiled is released: else a worker grows to several GB."""

_limit = RELEASED_ABOVE


def pytest_configure(config):
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the process that only hands out the tests needs no JAX
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    compiler.share_context()


def pytest_collection_finish(session):
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    global _limit
    if _memory() > _limit:
        import jax

        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":  # glibc keeps what was freed, until it is asked
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        _limit = max(RELEASED_ABOVE, _memory() + 200)


def _memory():
    """MB that this process has in memory; psutil would say so everywhere, at the price of one more package."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return next(_counted)


_counted = itertools.count(RELEASED_ABOVE - 200)  # elsewhere as if each test left 1 MB


@pytest.fixture
def x64():
    """The test runs in float64: Python floats and new arrays are 64 bits wide, as in NumPy."""
    import jax

    with jax.enable_x64(True):
        yield
