"""What a public docstring says: arguments, state, errors, a runnable example, and the source of a method."""

import pytest

import gradtx
from gradtx.core.annotations import Kind

FACTORIES = {name: f for name, f in gradtx.registry.items() if f.__module__.startswith("gradtx.")}


@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_docstring_has_its_parts(name):
    factory = FACTORIES[name]
    parts = ["Errors:", ">>>"]
    parts += ["Args:"] if factory.node._parameters else []
    parts += ["State:"] if factory.node._kind is Kind.TRANSFORM else []
    parts += ["Source:"] if factory.__module__.startswith(("gradtx.optimizers", "gradtx.adaptive")) else []
    missing = [part for part in parts if part not in factory.__doc__]
    assert not missing
    documented = factory.__doc__.replace(",", " ").replace(":", " ").replace("(", " ").split()
    assert [p.name for p in factory.node._parameters if p.name not in documented] == []
