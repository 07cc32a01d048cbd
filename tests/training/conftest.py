"""The devices that a sweep finds."""

import jax
import pytest

from gradtx.training import blocks


@pytest.fixture(params=["one device", "eight devices"])
def layout(request, monkeypatch):
    """Threads on one device, or runs spread over eight."""
    if request.param == "one device":
        monkeypatch.setattr(blocks, "devices", lambda: jax.local_devices()[:1])
        monkeypatch.setattr(blocks.os, "cpu_count", lambda: 2)
    return request.param
