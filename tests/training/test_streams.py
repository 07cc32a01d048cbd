"""`minimize` on an iterable of batches, and what it shows meanwhile."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import sgd, tree_equal
from gradtx.training import inputs, progress
from gradtx.training.advancing import Sampling
from gradtx.training.minibatches import batches, take
from gradtx.training.minimization import minimize
from tests.training.network import DATA, KEY, Terminal, X, Y, bowl, cost, noisy, start
from tests.training.reference import assert_close, assert_same, descent, index_batches, pickled


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


class Around:
    """A loader around an iterator, which cannot start again."""

    def __init__(self):
        self.iterator = iter(Loader().batches)

    def __iter__(self):
        return self.iterator


def steps_of(data, **options):
    result = minimize(cost, start(), sgd(0.1), data, **options)
    assert result.history["loss"].shape == (int(result.state["step"]),)
    return int(result.state["step"])


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_stream_of_the_batches_is_the_run_on_the_arrays(array):
    keys = [jax.random.fold_in(KEY, epoch) for epoch in range(2)]
    stream = itertools.chain.from_iterable(batches(key, jax.tree.map(array, DATA), 5) for key in keys)
    assert_close(minimize(cost, start(), sgd(0.1), stream), descent(index_batches(KEY, 10, 5)), 1e-5)


@pytest.mark.parametrize("loader", [Loader, SizedLoader, LoaderOfAStream])
def test_loaders_start_anew_at_each_epoch(loader):
    assert [steps_of(loader(), **how) for how in ({}, {"epochs": 2}, {"steps": 11}, {"steps": 2})] == [4, 8, 11, 2]


@pytest.mark.parametrize(
    "iterator", [iter, lambda b: (x for x in b), lambda b: map(dict, b), lambda b: itertools.islice(b, 9)]
)
def test_iterators_run_once(iterator):
    hows = {}, {"epochs": 1}, {"steps": 3}, {"steps": 9}
    assert [steps_of(iterator(Loader()), **how) for how in hows] == [4, 4, 3, 4]  # it has no more


def test_a_loader_around_an_iterator_ends_instead_of_waiting_for_ever():
    assert steps_of(Around(), steps=10) == 3  # the first batch was looked at


def test_chunks_and_going_on_in_a_stream():
    whole = minimize(noisy, start(), sgd(0.1), SizedLoader(6), key=KEY)
    for chunk in (1, 4, 100):
        assert_same(whole, minimize(noisy, start(), sgd(0.1), SizedLoader(6), key=KEY, steps_per_call=chunk))
    params, state = pickled(minimize(noisy, start(), sgd(0.1), SizedLoader(6), key=KEY, steps=2))
    second = minimize(noisy, params, sgd(0.1), Loader(6).batches[2:].__iter__(), state=state)
    assert tree_equal((second.params, second.state), (whole.params, whole.state))


def test_evaluations_of_a_stream():
    def at(data, **options):
        result = minimize(cost, start(), sgd(0.1), data, evaluate=lambda p: p["b"], **options)
        return result.history["evaluated_at"].tolist()

    assert at(SizedLoader(), epochs=2) == [4, 8]
    assert at(Loader(), epochs=2) == [8]  # where its epochs end is not known before
    assert at(iter(Loader()), evaluate_every=3) == [3, 4]
    assert at(iter(Loader()), evaluate_every=2) == [2, 4]


def test_batches_of_other_sizes_numbers_and_none():
    data = [({"x": X[:n], "y": Y[:n]}, 0.5, None) for n in (5, 5, 3)]
    result = minimize(lambda p, b: b[1] * cost(p, b[0]), start(), sgd(0.2), iter(data))
    at, losses = descent([np.arange(n) for n in (5, 5, 3)])
    assert_close(result, (at, 0.5 * losses), 1e-5)
    numbers = minimize(lambda p, b: (p - b) ** 2, 0.0, sgd(0.5), iter([1.0, 2.0, 4.0]))
    assert numbers.params == 4.0


def test_what_is_read_of_data():
    def read(data, batch_size=None):
        return inputs.read_data("who", data, batch_size=batch_size, replacement=False, drop_last=False)

    arrays = read(DATA, 5)
    assert (arrays.per_epoch, read(SizedLoader()).per_epoch, read(Loader()).per_epoch, read(None).per_epoch) == (
        *(5, 4),
        *(None, None),
    )
    assert arrays.sampling == Sampling(23, 5)
    assert arrays.example["x"].shape == (5, 3)
    assert list(itertools.islice(read(None).feed(None), 2)) == [None, None]
    assert [next(arrays.feed(epochs)) is arrays.data for epochs in (1, None)] == [True, True]
    assert [len(list(read(Loader(2)).feed(n))) for n in (1, 3)] == [2, 6]


# Progress


def test_it_says_nothing_where_there_is_no_terminal_or_nobody_asks(monkeypatch, capfd):
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5, progress=False)
    assert sys.stderr.getvalue() == ""
    assert not progress.Progress("who", 3, show=False).shown


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", Terminal())
    minimize(bowl, jnp.zeros(2), sgd(0.1), steps=5)
    said = sys.stderr.getvalue()
    assert [word for word in ("minimize", "5/5", "loss ", "steps/s", "left") if word not in said] == []


@pytest.mark.parametrize("total", [5, None])
def test_plain_lines_where_rich_is_missing(total, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    clock = iter([0.0, 4.0, 5.0, 8.0, 10.0, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Progress("minimize", total, show=True) as bar:
        assert bar.shown
        for done in (1, 2, 3, 4, 0):  # the second and the fourth five seconds after what was said before
            bar.update(done, "loss 3")
    assert sys.stderr.getvalue().splitlines() == [
        "minimize: 2 of 5, loss 3, 0.4 steps/s, 8 s left" if total else "minimize: 2, loss 3, 0.4 steps/s",
        "minimize: 4 of 5, loss 3, 0.4 steps/s, 2 s left" if total else "minimize: 4, loss 3, 0.4 steps/s",
    ]


def test_a_run_shows_its_last_loss(monkeypatch):
    shown = []
    monkeypatch.setattr(progress.Progress, "update", lambda self, *given: shown.append(given))
    first = minimize(bowl, jnp.zeros(2), sgd(0.25), steps=3, steps_per_call=2)
    minimize(bowl, first.params, sgd(0.25), steps=1, state=first.state)
    assert shown == [(2, "loss 4.5"), (3, "loss 1.125"), (1, "loss 0.2812")]
