"""What the table of faults in the docs says, and that it would say so if a guard did not hold."""

import importlib.util
import sys
from pathlib import Path

import pytest

import gradtx

pytestmark = pytest.mark.examples  # of a table that the pages print

ROOT = Path(__file__).resolve().parent.parent


def _load():
    spec = importlib.util.spec_from_file_location("faults", ROOT / "docs" / "faults.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


faults = _load()


def cells(library, methods):
    """`cell[fault, form, method]`."""
    head, rows = faults.table(library, methods)
    fault, found = None, {}
    for title, *words in rows:
        fault, form = (fault, title.removeprefix("↳ ")) if title.startswith("↳") else (title, "plain")
        found |= {(fault, form, method): word for method, word in zip(head[1:], words, strict=True)}
    return found


@pytest.fixture(scope="module")
def seen():
    return cells("gradtx", ["adam", "sgd", "lion"])


def test_every_named_method_has_a_column():
    assert {"adam", "sgd", "lion", "lamb"} <= set(faults._methods())
    assert all(factory is getattr(gradtx, name) for name, factory in faults._methods().items())


def test_nothing_is_lost_where_it_is_guarded(seen):
    guarded = {key: word for key, word in seen.items() if key[1] != "plain"}
    assert len(guarded) == 3 * 9
    assert not {key: word for key, word in guarded.items() if word in faults.LOST}


def test_what_the_guards_do(seen):
    for method in ("adam", "sgd", "lion"):
        for fault in ("NaN once", "inf once", "5 NaNs in a row", "1e30 for a frozen leaf"):
            assert seen[fault, "guarded", method] == "as without"
        assert seen["100 NaNs in a row", "guarded", method] == "stops"
        assert seen["small steps in bf16", "stochastic_rounding", method] == "moves"
        assert seen["small steps in bf16", "master_weights", method] == "moves"


def test_what_happens_without_them(seen):
    for method in ("adam", "sgd", "lion"):
        for fault in ("NaN once", "5 NaNs in a row", "100 NaNs in a row"):
            assert seen[fault, "plain", method] == "NaN"
        assert seen["small steps in bf16", "plain", method] == "stands still"
    assert [seen["inf once", "plain", method] for method in ("adam", "sgd", "lion")] == ["NaN", "inf", "wrong way"]
    assert [seen["1e30 once", "plain", m] for m in ("adam", "sgd", "lion")] == ["stands still", "thrown", "wrong way"]
    assert seen["1e30 for a frozen leaf", "plain", "adam"] == "stands still"


def test_what_needs_no_guard(seen):
    for method in ("adam", "sgd", "lion"):
        for fault in ("4e4 in float16", "params bf16, gradients f32", "params f32, gradients bf16"):
            assert seen[fault, "plain", method] == "moves"
        assert seen["schedules", "plain", method] == "all"
    assert [seen["all gradients 0", "plain", m] for m in ("adam", "sgd", "lion")] == ["no step", "no step", "decays"]


def test_the_table_of_optax():
    seen = cells("optax", ["adam"])
    assert seen["NaN once", "plain", "adam"] == "NaN"
    assert seen["NaN once", "guarded", "adam"] == "as without"
    assert seen["1e30 for a frozen leaf", "guarded", "adam"] == "as without"
    assert seen["schedules", "inject_hyperparams", "adam"] == "all"
    assert seen["params f32, gradients bf16", "plain", "adam"] == "moves"


@pytest.mark.parametrize("library", ["gradtx", "optax"])
def test_a_larger_limit_is_kept_by_both(monkeypatch, library):
    monkeypatch.setattr(faults, "LIMIT", 100)
    assert cells(library, ["sgd"])["100 NaNs in a row", "guarded", "sgd"] == "as without"


def test_what_a_library_has_not_is_empty(monkeypatch):
    monkeypatch.setattr(
        faults, "column", lambda name, library: {} if name == "lion" else {("NaN once", "plain"): "NaN"}
    )
    assert faults.table("optax", ["adam", "lion"]) == (["", "adam", "lion"], [["NaN once", "NaN", "-"]])


@pytest.mark.parametrize(
    ("name", "broken", "fault", "form", "word"),
    [
        ("skip_nonfinite", lambda tx, max_consecutive: tx, "NaN once", "guarded", "NaN"),
        (
            "train_only",
            lambda tx, mask: tx >> gradtx.freeze("body"),
            "1e30 for a frozen leaf",
            "guarded",
            "stands still",
        ),
        ("stochastic_rounding", lambda tx: tx, "small steps in bf16", "stochastic_rounding", "stands still"),
    ],
)
def test_a_broken_guard_shows(monkeypatch, name, broken, fault, form, word):
    monkeypatch.setattr(gradtx, name, broken)
    if name == "skip_nonfinite":  # a state without `failed`
        monkeypatch.setattr(gradtx, "find", lambda state, name: False)
    assert cells("gradtx", ["sgd"])[fault, form, "sgd"] == word
