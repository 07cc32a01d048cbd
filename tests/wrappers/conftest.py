"""Buckets small enough for a test to fill several."""

import pytest

import gradtx


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(gradtx.tree, "SMALL", 20)
    monkeypatch.setattr(gradtx.tree, "MOST", 4)
