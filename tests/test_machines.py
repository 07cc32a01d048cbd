"""The laws on every instruction set, on one device and on eight, compiled as users' programs are: `pytest -m thorough`.

XLA makes other code for a processor with fused multiply-adds, or with longer vectors, and so other roundings: what the
bounds of the laws are for. An instruction set that the processor has not stands for the best one that it has.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.thorough


def run(*words, **environment):
    """Tests in a process of their own: the compiler's flags are read once."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *words]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flag names x86's instruction sets")
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX", "AVX2", "AVX512"])
def test_laws_on(instructions, devices):
    flags = f"--xla_cpu_max_isa={instructions} --xla_force_host_platform_device_count={devices}"
    run("tests/test_laws.py", GRADTX_OPTIMIZED="1", XLA_FLAGS=flags)


@pytest.mark.parametrize("devices", [1, 8])
def test_laws_on_this_processor(devices):
    run("tests/test_laws.py", GRADTX_OPTIMIZED="1", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")


def test_every_law_of_every_form():
    run("tests/test_laws.py", GRADTX_OPTIMIZED="1", GRADTX_LAWS="all")


@pytest.mark.parametrize("devices", [1, 8])
def test_the_suite_as_users_compile(devices):
    run("tests", GRADTX_OPTIMIZED="1", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
