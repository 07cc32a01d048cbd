"""The flags every test runs under, set before JAX is imported.

Strict dtype promotion and no implicit rank promotion: the library must say every cast and every broadcast it makes.
Code of other libraries (optax, flax, Keras) is not written for that: call it inside
`jax.numpy_dtype_promotion("standard")`.
Eight host devices, so that sharding is tested on any machine.
"""

import gc
import os

DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
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


@pytest.fixture(scope="module", autouse=True)
def young_heap():
    """What a module leaves in JAX's caches stays: the garbage collector need not look through it again and again."""
    yield
    gc.collect()
    gc.freeze()
