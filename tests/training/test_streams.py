"""`minimize` on an iterable of batches, and what it shows meanwhile."""

import itertools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import adam, sgd, tree_equal
from gradtx.training import progress
from gradtx.training.minibatches import batches, take
from gradtx.training.minimization import minimize
from tests.training.network import (
    DATA,
    KEY,
    Terminal,
    X,
    Y,
    assert_close,
    assert_same,
    bowl,
    cost,
    noisy,
    start,
    through_pickle,
)

# Streams


class Loader:
    """Batches of a known number, from the start at each pass."""

    def __init__(self, number=4):
        self.batches = [take(DATA, np.arange(i, i + 5)) for i in range(number)]

    def __iter__(self):
        return iter(self.batches)


class SizedLoader(Loader):
    def __len__(self):
        return len(self.batches)


class LoaderOfAStream(Loader):
    """As PyTorch's: `len` is there, and raises TypeError."""

    def __len__(self):
        raise TypeError("object of type 'IterableDataset' has no len()")


def steps_of(data, **options):
    result = minimize(cost, start(), sgd(0.1), data, **options)
    assert result.history["loss"].shape == (int(result.state["step"]),)
    return int(result.state["step"])


def test_a_stream_of_the_batches_is_the_run_on_the_arrays():
    # Another program: gathered inside the loop or given from outside, XLA may contract differently; 1 ulp a step.
    whole = minimize(cost, start(), adam(1e-2), DATA, batch_size=5, epochs=2, key=KEY)
    keys = [jax.random.fold_in(KEY, epoch) for epoch in range(2)]
    for data in (DATA, jax.tree.map(jnp.asarray, DATA)):
        stream = itertools.chain.from_iterable(batches(key, data, 5) for key in keys)
        assert_close(minimize(cost, start(), adam(1e-2), stream), (whole.params, whole.history["loss"]), 1e-5)


@pytest.mark.parametrize("loader", [Loader, SizedLoader, LoaderOfAStream])
def test_loaders_start_anew_at_each_epoch(loader):
    assert steps_of(loader()) == 4
    assert steps_of(loader(), epochs=2) == 8
    assert steps_of(loader(), steps=11) == 11
    assert steps_of(loader(), steps=2) == 2


@pytest.mark.parametrize(
    "iterator", [iter, lambda b: (x for x in b), lambda b: map(dict, b), lambda b: itertools.islice(b, 9)]
)
def test_iterators_run_once(iterator):
    assert steps_of(iterator(Loader())) == 4
    assert steps_of(iterator(Loader()), epochs=1) == 4
    assert steps_of(iterator(Loader()), steps=3) == 3
    assert steps_of(iterator(Loader()), steps=9) == 4  # it has no more
    with pytest.raises(
        ValueError, match=r"epochs=2, but data is an iterator, .* once; pass an iterable that starts anew"
    ):
        minimize(cost, start(), sgd(0.1), iterator(Loader()), epochs=2)


def test_a_loader_around_an_iterator_ends_instead_of_waiting_for_ever():
    class Around:
        def __init__(self):
            self.iterator = iter(Loader().batches)

        def __iter__(self):
            return self.iterator

    assert steps_of(Around(), steps=10) < 10


def test_chunks_and_going_on_in_a_stream():
    whole = minimize(noisy, start(), adam(1e-2), SizedLoader(6), key=KEY)
    for chunk in (1, 4, 100):
        assert_same(whole, minimize(noisy, start(), adam(1e-2), SizedLoader(6), key=KEY, steps_per_call=chunk))
    first = minimize(noisy, start(), adam(1e-2), SizedLoader(6), key=KEY, steps=2)
    params, state = through_pickle(first)
    second = minimize(noisy, params, adam(1e-2), Loader(6).batches[2:].__iter__(), state=state)
    assert tree_equal((second.params, second.state), (whole.params, whole.state))


def test_evaluations_of_a_stream():
    def at(data, **options):
        return (
            minimize(cost, start(), sgd(0.1), data, evaluate=lambda p: p["b"][0], **options)
            .history["evaluated_at"]
            .tolist()
        )

    assert at(SizedLoader(), epochs=2) == [4, 8]
    assert at(Loader(), epochs=2) == [8]  # where its epochs end is not known before
    assert at(iter(Loader()), evaluate_every=3) == [3, 4]
    assert at(iter(Loader()), evaluate_every=2) == [2, 4]


def test_batches_of_other_sizes_numbers_and_none():
    data = [({"x": X[:n], "y": Y[:n]}, 0.5, None) for n in (5, 5, 3)]
    result = minimize(lambda p, b: b[1] * cost(p, b[0]), start(), sgd(0.1), iter(data))
    expected = minimize(lambda p, b: 0.5 * cost(p, b), start(), sgd(0.1), (b[0] for b in data))
    np.testing.assert_allclose(result.history["loss"], expected.history["loss"], rtol=1e-6)
    numbers = minimize(lambda p, b: (p - b) ** 2, 0.0, sgd(0.5), iter([1.0, 2.0, 4.0]))
    assert numbers.params == 4.0


# Progress


def test_it_says_nothing_where_there_is_no_terminal_or_nobody_asks(monkeypatch, capfd):
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5, progress=False)
    assert sys.stderr.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5)
    assert "minimize" in sys.stderr.getvalue()
    assert "5/5" in sys.stderr.getvalue()
    assert "loss" in sys.stderr.getvalue()
    assert "steps/s" in sys.stderr.getvalue()


def test_plain_lines_where_rich_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_rich_bar", lambda who, total: None)
    clock = itertools.count(0.0, 6.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5, steps_per_call=2)
    lines = sys.stderr.getvalue().splitlines()
    assert re.fullmatch(r"minimize: 2 of 5, loss 11\.52, 0\.\d+ steps/s, \d+ s left", lines[0])
    assert lines[-1].startswith("minimize: 5 of 5")
    with pytest.warns(RuntimeWarning, match="after 0 updates"):  # none done: no time left to tell
        minimize(lambda p: jnp.nan * bowl(p), jnp.zeros(2), sgd(0.1), steps=5)
