"""The devices that a sweep finds."""

import jax
import pytest

from gradtx.training import blocks


@pytest.fixture
def one_device(monkeypatch):
    """Two threads on one device."""
    monkeypatch.setattr(blocks, "devices", lambda: jax.local_devices()[:1])
    monkeypatch.setattr(blocks.os, "cpu_count", lambda: 2)
