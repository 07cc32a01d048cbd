"""gradtx agrees with PyTorch, Keras and optax: with their committed paths on every machine, with themselves on ours."""

import numpy as np
import pytest

from tests import peers

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def golden():
    return {framework: peers.read(framework) for framework in peers.FRAMEWORKS}


@pytest.mark.parametrize("name", peers.PEERS)
def test_its_path_is_the_committed_one(golden, name):
    factory, peer = peers.PEERS[name]
    path = golden[peer.framework.split(".")[0]]["paths"][name]
    assert (path["method"], path["arguments"]) == (peer.method, peer.theirs), "make the paths again: see tests/peers.py"
    expected = np.array(path["updates"], np.float64)
    updates = peers.ours(factory, peer)
    assert np.isfinite(updates).all()
    determined = ~np.isnan(expected)
    assert determined.mean() >= 0.9, f"only {determined.mean():.3f} of the peer's path is determined"
    assert_same(peers.shown(updates), expected, peers.shown(peers.allowed(updates)))


def assert_same(actual, expected, allowed):
    error = np.where(np.isnan(expected), 0, np.abs(actual - expected))
    wrong = np.argwhere(error > allowed)
    if len(wrong):
        row, element = wrong[0]
        raise AssertionError(
            f"{len(wrong)} of {error.size} updates differ, first at step {peers.SHOWN[row]}, element {element}: "
            f"{actual[row, element]!r}, theirs {expected[row, element]!r}; allowed: {allowed[row, element]:.1e}"
        )


@pytest.mark.parametrize("framework", peers.FRAMEWORKS)
def test_every_committed_path_belongs_to_a_peer(golden, framework):
    known = {name for name, (_, peer) in peers.PEERS.items() if peer.framework == peers.FRAMEWORKS[framework]}
    assert set(golden[framework]["paths"]) == known
    assert golden[framework]["steps"] == peers.SHOWN
    assert golden[framework]["command"] == peers.COMMAND
    assert framework in golden[framework]["versions"]


def test_another_formula_is_noticed(golden):
    """Two momentum schedules, lr inside the momentum and outside, two kinds of eps: none can pass for the other."""
    for factory, ours, other in [
        ("nadam", {"momentum_decay": 4e-3}, {}),
        ("sgd", {"momentum": 0.9, "lr_inside_momentum": True}, {"momentum": 0.9}),
        ("adagrad", {"eps_in_sqrt": False}, {"initial_accumulator_value": 0.0}),
    ]:
        runs = [peers.ours(factory, peers.Peer("", "", {"lr": 0.1}, {"learning_rate": 0.1} | a)) for a in (ours, other)]
        with pytest.raises(AssertionError, match="updates differ"):
            assert_same(peers.shown(runs[0]), peers.shown(runs[1]), peers.shown(peers.allowed(runs[0])))


@pytest.mark.bench
@pytest.mark.parametrize("name", peers.PEERS)
def test_the_committed_path_is_the_peers(golden, name):
    _, peer = peers.PEERS[name]
    framework = peer.framework.split(".")[0]
    pytest.importorskip(framework)
    expected = np.array(golden[framework]["paths"][name]["updates"], np.float64)
    made = peers.theirs(peer)
    clean = np.nan_to_num(made)
    either = np.isnan(peers.shown(made))
    assert_same(np.where(either, expected, peers.shown(clean)), expected, peers.shown(peers.allowed(clean)))
