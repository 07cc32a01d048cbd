"""The numbers that the lecture works out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

pytestmark = pytest.mark.usefixtures("x64")


def run(tx, gradients, params=None):
    """The updates of `tx`, one a gradient, and its last state."""
    params = jnp.zeros_like(jnp.asarray(gradients[0])) if params is None else params
    state = tx.init(params)
    updates = []
    for gradient in gradients:
        update, state = tx.update(jnp.asarray(gradient), state, params)
        params = gradtx.apply_updates(params, update)
        updates.append(np.asarray(update))
    return np.array(updates), state


def test_exponentially_weighted_average():
    averages, _ = run(gradtx.ema(0.9, debias=False), [7.5, 4.0, 6.0, 8.0])
    np.testing.assert_allclose(averages, [0.75, 1.075, 1.5675, 2.21075], rtol=1e-14)


def test_the_average_unrolled_has_geometric_weights():
    """v_103 = 0.1 x_103 + 0.1·0.9 x_102 + …: step t is fed the t-th unit vector, so v_103 is the row of weights."""
    averages, _ = run(gradtx.ema(0.9, debias=False), np.eye(103))
    weights = [0.1 * 0.9 ** (103 - t) for t in range(1, 104)]
    np.testing.assert_allclose(averages[-1], weights, rtol=1e-13)


def test_bias_correction_divides_by_1_minus_b_to_the_t():
    """The biased value is the one carried on: the correction changes what is read, not what is kept."""
    values = [7.5, 4.0, 6.0, 8.0]
    biased, biased_state = run(gradtx.ema(0.9, debias=False), values)
    corrected, corrected_state = run(gradtx.ema(0.9), values)
    np.testing.assert_allclose(corrected, biased / (1 - 0.9 ** np.arange(1, 5)), rtol=1e-14)
    assert gradtx.find(corrected_state, "mean") == gradtx.find(biased_state, "mean")


@pytest.mark.parametrize("sign", [1, -1])
def test_adagrad_table(sign):
    gradients = np.array([(-2, -10), (-1.5, sign * 10), (-1.25, -9), (-1, 9)])
    tx = gradtx.scale_by_adagrad(initial_accumulator_value=0.0, eps=0.0)
    table = [(4, 100), (6.25, 200), (7.8125, 281), (8.8125, 362)]
    for rows, sums in enumerate(table, start=1):
        updates, state = run(tx, gradients[:rows])
        np.testing.assert_array_equal(gradtx.find(state, "sum_of_squares"), sums)
        np.testing.assert_allclose(gradients[rows - 1] / updates[-1], np.sqrt(sums), rtol=1e-14)
    np.testing.assert_array_equal(np.round(gradients[-1] / updates[-1]), [3, 19])


def test_both_forms_of_momentum_are_one_method():
    """`v = b v + g` with lr (1 - b) is `v = b v + (1 - b) g` with lr."""
    gradients = np.random.default_rng(0).normal(size=(200, 5))
    b, lr = 0.9, 0.1
    for nesterov in (False, True):
        summed = gradtx.scale_by_momentum(b, form="sum", nesterov=nesterov)
        averaged = gradtx.scale_by_momentum(b, form="average", nesterov=nesterov)
        one, _ = run(summed >> gradtx.scale_by_learning_rate(lr * (1 - b)), gradients)
        other, _ = run(averaged >> gradtx.scale_by_learning_rate(lr), gradients)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14 * np.abs(one).max())


def test_nesterov_looking_ahead_is_the_reformulated_one():
    """The gradient at the point reached after the momentum step; our iterate is that point, w - lr b v."""
    hessian = jnp.array([[3.0, 1.0], [1.0, 2.0]])
    minimum = jnp.array([1.0, -2.0])
    b, lr = 0.9, 0.05

    def gradient(w):
        return hessian @ (w - minimum)

    tx = gradtx.sgd(lr, momentum=b, nesterov=True)
    start = jnp.array([5.0, 4.0])
    iterate, state = start, tx.init(start)
    w, v = start, jnp.zeros(2)
    for _ in range(200):
        v = b * v + gradient(w - lr * b * v)
        w = w - lr * v
        update, state = tx.update(gradient(iterate), state, iterate)
        iterate = gradtx.apply_updates(iterate, update)
        np.testing.assert_allclose(iterate, w - lr * b * v, rtol=0, atol=1e-13)
    assert jnp.abs(iterate - minimum).max() < 1e-3
    assert jnp.abs(iterate - w).max() > 0


def test_without_bias_correction_the_first_updates_are_up_to_six_and_a_half_times_too_large():
    gradients = np.full((100, 1), 0.3)
    biased = gradtx.scale_by_momentum(0.9, form="average") + gradtx.scale_by_rms(0.999, eps=0.0, debias=False)
    corrected = gradtx.scale_by_adam(0.9, 0.999, eps=0.0)
    too_large = run(biased, gradients)[0] / run(corrected, gradients)[0]
    np.testing.assert_allclose(run(corrected, gradients)[0], 1.0, rtol=1e-12)
    assert too_large.argmax() + 1 == 12
    assert round(float(too_large.max()), 1) == 6.6
    np.testing.assert_allclose(too_large[0], 0.1 / np.sqrt(0.001), rtol=1e-12)


def test_an_epoch_of_60_000_images():
    assert gradtx.num_batches(60_000, 128) == 469
    assert 60_000 % 128 == 96
    assert gradtx.num_batches(60_000, 128, drop_last=True) == 468
