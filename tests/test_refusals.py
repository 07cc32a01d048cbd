"""Every call that gradtx refuses, with the error and the words that it must say (`tests/refusals` has the table)."""

import importlib
import pkgutil
import re

import pytest

from tests import refusals


def named(chapter, refusal):
    """The same name in every process: what a repr says of addresses is left out."""
    return re.sub(r" at 0x[0-9a-f]+", "", f"{chapter.name}: {refusal.name}")[:80]


TABLE = [
    pytest.param(refusal, id=named(chapter, refusal))
    for chapter in pkgutil.iter_modules(refusals.__path__)
    for refusal in importlib.import_module(f"tests.refusals.{chapter.name}").REFUSALS
]


@pytest.mark.parametrize("refusal", TABLE)
def test_refused_with_these_words(refusal):
    with pytest.raises(refusal.error) as caught:
        refusal.call()
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    missing = [word for word in refusal.words if word not in said]
    assert not missing, f"it says\n  {said}\nwithout {missing}"
