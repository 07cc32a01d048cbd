"""Cautious updates: the mask and its four scalings, around directions and optimizers."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from tests.records import streams
from tests.records.effects import each_leaf
from tests.records.parts import scale_by_momentum
from tests.running import updates_of

STEPS = 100
SCALINGS = {
    "max": lambda kept, n, eps: 1 / max(kept / n, eps),
    "add": lambda kept, n, eps: 1 / (kept / n + eps),
    "count": lambda kept, n, eps: n / (kept + 1),
    "none": lambda kept, n, eps: 1.0,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("eps", [1e-3, 0.4])
def test_the_updates_are_masked_and_scaled_leaf_by_leaf(scaling, eps):
    params, gradients = streams.stream(STEPS)
    direction = gradtx.scale_by_momentum(0.9, form="sum")
    optimizer = direction >> gradtx.scale_by_learning_rate(0.5)

    def one(u, g, axes):
        kept = u * g > 0
        return kept * u * SCALINGS[scaling](kept.sum(), kept.size, eps)

    s, expected = {}, []
    for t, g in enumerate(gradients, 1):
        u = scale_by_momentum(s, g, t, params, decay=0.9, form="sum")
        expected.append(each_leaf(one, u, g))
    np.testing.assert_allclose(updates_of(gradtx.cautious(direction, scaling, eps), params, gradients), expected, 1e-12)
    downhill = updates_of(gradtx.cautious(optimizer, scaling, eps), params, gradients)
    np.testing.assert_allclose(downhill, -0.5 * np.array(expected), rtol=1e-12)


def test_signs_are_compared_and_not_products():
    tx, g = gradtx.cautious(gradtx.scale(1e-10)), jnp.array([1e-20, -1e-20])
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], np.float32(1e-10) * g, rtol=1e-6)


def test_where_nothing_is_kept_nothing_moves():
    tx, g = gradtx.cautious(gradtx.scale(-1.0), eps=0.0), jnp.array([3.0, -4.0, 0.0])
    np.testing.assert_array_equal(tx.update(g, tx.init(g))[0], 0 * g)


def test_the_gradient_is_what_it_is_given_and_decay_stays_outside():
    w = jnp.array([10.0, 10.0])
    tx = gradtx.cautious(gradtx.scale(1.0)) >> gradtx.add_decayed_weights(0.5) >> gradtx.scale_by_learning_rate(1.0)
    np.testing.assert_array_equal(tx.update(jnp.array([-1.0, 1.0]), tx.init(w), w)[0], [-4.0, -6.0])
