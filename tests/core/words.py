"""Catching what a refusal says."""

import pytest


def refusal(error, call, *args, **kwargs):
    """What the call says when it refuses."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def assert_words(text, *words):
    for word in words:
        assert word in text, text
