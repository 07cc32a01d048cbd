"""Fixtures of the language's tests."""

import collections

import pytest

import gradtx
from gradtx.core import elementary, record


@pytest.fixture(autouse=True)
def registry_as_it_was():
    """Factories that a test defines are forgotten after it: other tests walk through the registry."""
    before = dict(record._registry)
    yield
    record._registry.clear()
    record._registry.update(before)


@pytest.fixture
def bodies(monkeypatch):
    """How often each factory's body runs, from here on, where nothing is known of any factory."""
    runs = collections.Counter()
    monkeypatch.setattr(elementary, "_forms", {})
    for name, factory in gradtx.registry.items():

        def counted(*args, _body=factory.node._body, _name=name, **kwargs):
            runs[_name] += 1
            return _body(*args, **kwargs)

        monkeypatch.setattr(factory.node, "_body", staticmethod(counted))
    return runs
