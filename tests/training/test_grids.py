"""Grids: products, pairs and draws of hyperparameters as one value."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import grid, log_uniform, uniform


def rows(txs, *names):
    return list(zip(*(getattr(txs, name).tolist() for name in names), strict=True))


def test_a_product_has_every_combination_the_last_changing_fastest():
    rates, decays, epsilons = [0.25, 0.5, 1.0], [0.5, 0.75], np.array([1.0, 2.0])
    txs = grid(gradtx.adam, learning_rate=rates, b1=decays, eps=epsilons)
    assert rows(txs, "learning_rate", "b1", "eps") == list(itertools.product(rates, decays, epsilons))
    assert txs.b2.shape == (12,)


def test_zip_takes_the_first_of_each_then_the_second():
    txs = grid(gradtx.adam, learning_rate=[0.25, 0.5], b1=[0.5, 0.75], how="zip")
    assert rows(txs, "learning_rate", "b1") == [(0.25, 0.5), (0.5, 0.75)]


def test_other_arguments_are_the_same_for_all():
    txs = grid(gradtx.sgd, learning_rate=[0.25, 0.5], momentum=0.5, nesterov=True)
    assert txs.nesterov is True
    assert txs.momentum.tolist() == [0.5, 0.5]
    scalar = grid(gradtx.sgd, learning_rate=[0.25, 0.5], momentum=jnp.float32(0.5))
    assert gradtx.tree_equal(scalar.momentum, txs.momentum)


def test_a_factory_of_ones_own():
    txs = grid(lambda norm, rate: gradtx.clip(norm) >> gradtx.sgd(rate), norm=[1.0, 2.0], rate=[0.25, 0.5])
    assert txs.arguments["stages"][0].max_delta.tolist() == [1.0, 1.0, 2.0, 2.0]
    assert txs.arguments["stages"][1].learning_rate.tolist() == [0.25, 0.5] * 2


@pytest.mark.parametrize("values", [range(1, 4), (1, 2, 3), [1, 2, 3], jnp.arange(1, 4), np.arange(1.0, 4.0)], ids=repr)
def test_lists_of_all_kinds_give_what_vmap_gives(values):
    expected = jax.vmap(gradtx.sgd)(jnp.array([1.0, 2.0, 3.0]))
    assert gradtx.tree_equal(grid(gradtx.sgd, learning_rate=values), expected)


def test_draws_come_from_their_distributions():
    key, number = jax.random.key(3), 4000
    samples = log_uniform(1e-4, 1.0).sample(key, number), uniform(0.5, 0.9).sample(jax.random.key(4), number)
    logs, values = np.log10(np.asarray(samples[0])), np.asarray(samples[1])
    for drawn, low, high in ((logs, -4, 0), (values, 0.5, 0.9)):
        assert low - 1e-6 <= drawn.min() < drawn.max() <= high + 1e-6
        # each tenth holds a tenth of them, within 4.5 standard errors
        share, _ = np.histogram(drawn, 10, (low, high))
        assert np.abs(share / number - 0.1).max() < 4.5 * np.sqrt(0.1 * 0.9 / number)
    assert uniform(0, 1).sample(key, 1).dtype == jnp.float32
    assert repr(log_uniform(1, np.float32(2))) == "Draw(low=1.0, high=2.0, log=True)"

    given = {"learning_rate": log_uniform(1e-4, 1.0), "momentum": uniform(0.5, 0.9)}
    txs = grid(gradtx.sgd, **given, nesterov=True, draws=5, key=key)
    first, second = jax.random.split(key)  # a key for each argument
    np.testing.assert_allclose(txs.learning_rate, given["learning_rate"].sample(first, 5), rtol=1e-6)
    np.testing.assert_allclose(txs.momentum, given["momentum"].sample(second, 5), rtol=1e-6)
    of_list = grid(gradtx.sgd, learning_rate=uniform(0, 1), momentum=[0.25, 0.5, 0.9], draws=40, key=key)
    assert set(of_list.momentum.tolist()) == {0.25, 0.5, float(np.float32(0.9))}
