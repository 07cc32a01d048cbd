"""The devices that a sweep finds."""

import signal

import jax
import pytest

from gradtx.training import blocks


@pytest.fixture
def one_device(monkeypatch):
    """Two threads on one device."""
    monkeypatch.setattr(blocks, "devices", lambda: jax.local_devices()[:1])
    monkeypatch.setattr(blocks.os, "cpu_count", lambda: 2)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, also in a process that a shell has started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
