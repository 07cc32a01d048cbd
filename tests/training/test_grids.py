"""Grids: products, pairs and draws of hyperparameters as one value."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx


def rows(txs, *names):
    return list(zip(*(getattr(txs, name).tolist() for name in names), strict=True))


def test_a_product_has_every_combination_the_last_changing_fastest():
    rates, decays, epsilons = [0.25, 0.5, 1.0], [0.5, 0.75], np.array([1.0, 2.0])
    txs = gradtx.grid(gradtx.adam, learning_rate=rates, b1=decays, eps=epsilons)
    assert rows(txs, "learning_rate", "b1", "eps") == list(itertools.product(rates, decays, epsilons))
    assert txs.b2.shape == (12,)


def test_it_is_what_vmap_gives():
    rates = jnp.array([0.1, 0.2, 0.3])
    assert gradtx.tree_equal(gradtx.grid(gradtx.adam, learning_rate=rates), jax.vmap(gradtx.adam)(rates))


def test_zip_takes_the_first_of_each_then_the_second():
    txs = gradtx.grid(gradtx.adam, learning_rate=[0.25, 0.5], b1=[0.5, 0.75], how="zip")
    assert rows(txs, "learning_rate", "b1") == [(0.25, 0.5), (0.5, 0.75)]


def test_other_arguments_are_the_same_for_all():
    txs = gradtx.grid(gradtx.sgd, learning_rate=[0.25, 0.5], momentum=0.5, nesterov=True)
    assert txs.nesterov is True
    assert txs.momentum.tolist() == [0.5, 0.5]


def test_a_factory_of_ones_own():
    txs = gradtx.grid(lambda norm, rate: gradtx.clip(norm) >> gradtx.sgd(rate), norm=[1.0, 2.0], rate=[0.25, 0.5])
    assert txs.arguments["stages"][0].max_delta.tolist() == [1.0, 1.0, 2.0, 2.0]
    assert txs.arguments["stages"][1].learning_rate.tolist() == [0.25, 0.5] * 2


@pytest.mark.parametrize("values", [range(1, 4), (1, 2, 3), [1, 2, 3], jnp.arange(1, 4), np.arange(1.0, 4.0)], ids=repr)
def test_lists_of_all_kinds(values):
    assert gradtx.grid(gradtx.sgd, learning_rate=values).learning_rate.tolist() == [1.0, 2.0, 3.0]


# Draws ----------------------------------------------------------------------------------------------------------------


def test_draws_come_from_their_distributions():
    number = 4000
    key = jax.random.key(3)
    txs = gradtx.grid(
        gradtx.adam,
        learning_rate=gradtx.log_uniform(1e-4, 1.0),
        b1=gradtx.uniform(0.5, 0.9),
        eps=[1e-8, 1e-6],
        draws=number,
        key=key,
    )
    logs = np.log10(np.asarray(txs.learning_rate))
    assert -4 <= logs.min() < -3.9
    assert -0.1 < logs.max() <= 1e-6
    for values, low, high in ((logs, -4, 0), (np.asarray(txs.b1), 0.5, 0.9)):
        # each tenth holds a tenth of them, within 4.5 standard errors
        share, _ = np.histogram(values, 10, (low, high))
        assert np.abs(share / number - 0.1).max() < 4.5 * np.sqrt(0.1 * 0.9 / number)
    assert abs(np.corrcoef(logs, np.asarray(txs.b1))[0, 1]) < 4.5 / np.sqrt(number)
    assert abs((np.asarray(txs.eps) < 1e-7).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(number)
    again = gradtx.grid(
        gradtx.adam,
        learning_rate=gradtx.log_uniform(1e-4, 1.0),
        b1=gradtx.uniform(0.5, 0.9),
        eps=[1e-8, 1e-6],
        draws=number,
        key=key,
    )
    assert gradtx.tree_equal(txs, again)


# Refused --------------------------------------------------------------------------------------------------------------

ADAM = gradtx.adam
REFUSED = [
    (lambda: gradtx.grid(3, learning_rate=[1.0]), TypeError, r"factory is 3"),
    (lambda: gradtx.grid(ADAM, learning_rate=0.1), ValueError, r"no argument has several values"),
    (lambda: gradtx.grid(ADAM), ValueError, r"no argument has several values"),
    (lambda: gradtx.grid(ADAM, learning_rate=[]), ValueError, r"learning_rate has shape \(0,\)"),
    (lambda: gradtx.grid(ADAM, learning_rate=np.ones((2, 2))), ValueError, r"learning_rate has shape \(2, 2\)"),
    (lambda: gradtx.grid(ADAM, learning_rate=["a", "b"]), TypeError, r"learning_rate is \['a', 'b'\]"),
    (lambda: gradtx.grid(ADAM, learning_rate=[0.1], nesterov=[True, False]), TypeError, r"nesterov .* list of grids"),
    (lambda: gradtx.grid(ADAM, learning_rate=[0.1], how="all"), ValueError, r"how is 'all'; allowed: 'product', 'zip'"),
    (
        lambda: gradtx.grid(ADAM, learning_rate=[0.1], b1=[0.5, 0.9], how="zip"),
        ValueError,
        r"one length; these have \{'learning_rate': 1, 'b1': 2\}",
    ),
    (lambda: gradtx.grid(ADAM, learning_rate=[0.1], draws=3), ValueError, r"draws and key are for distributions"),
    (lambda: gradtx.grid(ADAM, learning_rate=gradtx.uniform(0.1, 1)), ValueError, r"need draws=.*key="),
    (
        lambda: gradtx.grid(ADAM, learning_rate=gradtx.uniform(0.1, 1), draws=0, key=jax.random.key(0)),
        ValueError,
        r"draws is 0",
    ),
    (lambda: gradtx.uniform(2, 1), ValueError, r"gradtx\.uniform: low=2, high=1; allowed: low < high"),
    (lambda: gradtx.log_uniform(0, 1), ValueError, r"gradtx\.log_uniform: low=0, high=1; allowed: 0 < low < high"),
    (lambda: gradtx.uniform(0, float("inf")), ValueError, r"both finite"),
    (lambda: gradtx.uniform(0, "1"), TypeError, r"high is '1'; it must be a number"),
    (lambda: gradtx.grid(ADAM, learning_rate=[0.1, 0.2], b1=[0.5, 1.5]), ValueError, r"b1 is 1\.5|1\.5"),
    (lambda: gradtx.grid(ADAM, lerning_rate=[0.1]), TypeError, r"learning_rate"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_bad_input_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()
