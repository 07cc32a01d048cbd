"""SAM against its paper and optax, and a gradient of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from tests.records import iterates as reference
from tests.records import streams
from tests.wrappers.runs import STEPS, assert_rows

random = np.random.default_rng(5)
MATRIX = random.normal(size=(streams.SIZE, streams.SIZE)) / 6
# Of the batches: no gradient comes near 0, where its direction is undetermined.
PULLS = random.normal(size=(STEPS, streams.SIZE))


def slope(w, pull):
    """The gradient of a quartic bowl, from NumPy or JAX."""
    return MATRIX.T @ (MATRIX @ w) + 0.1 * w**3 + pull


def run(update, init, params):
    """The params after each update, as rows; they are cut into the leaves of a tree."""

    def gradient(params, pull):
        return streams.split(slope(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]), pull))

    def step(carry, pull):
        params, state = carry
        updates, state = update(gradient(params, pull), state, params, functools.partial(gradient, pull=pull))
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    loop = jax.jit(lambda params: jax.lax.scan(step, (params, init(params)), PULLS)[1])
    return streams.flatten(loop(streams.split(jnp.asarray(params))), leading=1)


def run_ours(tx, params):
    return run(lambda g, s, p, grad_fn: tx.update(g, s, p, grad_fn=grad_fn), tx.init, params)


@pytest.mark.parametrize("rho", [2.0, "falling"])
def test_sam_is_its_paper(x64, rho):
    params, _ = streams.stream(1)
    falling = gradtx.inverse_time_schedule(1.0, 0.1), lambda count: 1 / (1 + 0.1 * count)
    ours, theirs = falling if rho == "falling" else (rho, rho)
    losses = [functools.partial(slope, pull=pull) for pull in PULLS]
    expected = reference.sam(params, losses, learning_rate=0.05, rho=theirs)
    assert_rows(run_ours(gradtx.sam(gradtx.sgd(0.05), ours), params), expected)


# At the edges ---------------------------------------------------------------------------------------------------------


def perturbation(gradient, rho=0.5):
    """What the params are moved by, and that it was asked for once."""
    asked = []

    def at(params):
        asked.append(params)
        return params

    tx, params = gradtx.sam(gradtx.sgd(0.1), rho), jax.tree.map(jnp.zeros_like, gradient)
    updates, _ = tx.update(gradient, tx.init(params), params, grad_fn=at)
    (moved,) = asked
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    return moved


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 1e25, 1e38])
def test_the_perturbation_has_its_length_for_a_gradient_of_any_size(size):
    """The squares of the first vanish in float32, those of the last are infinite."""
    moved = perturbation({"a": jnp.float32(size) * jnp.array([3.0, 0.0]), "b": jnp.float32(size) * jnp.array(-2.0)})
    np.testing.assert_allclose(moved["a"], 0.5 * np.array([3.0, 0.0]) / np.sqrt(13), rtol=1e-6)
    np.testing.assert_allclose(moved["b"], -0.5 * 2.0 / np.sqrt(13), rtol=1e-6)


def test_of_no_gradient_of_complex_leaves_and_of_what_is_not_finite():
    np.testing.assert_array_equal(perturbation(jnp.zeros(3)), np.zeros(3))
    np.testing.assert_allclose(perturbation(jnp.array([3.0 + 4.0j, 0.0])), [0.3 + 0.4j, 0.0], rtol=1e-6)
    tx, params = gradtx.sam(gradtx.sgd(0.1)), jnp.zeros(2)
    updates, _ = tx.update(jnp.array([jnp.inf, 1.0]), tx.init(params), params, grad_fn=lambda params: params)
    assert np.isnan(updates).any()


def lengths(dtype, steps=1, key=0):
    """By what each of 10 000 params of 1 is moved, where the nearest to all points of ascent is 1."""
    tx, params, seen = gradtx.sam(gradtx.sgd(0.1), 0.01, key), jnp.ones(10_000, dtype), []
    state = tx.init(params)
    for _ in range(steps):

        def at(params):
            seen.append(np.asarray(params, np.float64) - 1)
            return params

        _, state = tx.update(jnp.ones(10_000, dtype), state, params, grad_fn=at)
    return np.array(seen)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_a_perturbation_below_the_last_digit_is_right_in_the_mean(dtype):
    """1e-4 each: a 78th of bfloat16's last digit at 1, a tenth of float16's."""
    digit, seen = float(jnp.finfo(dtype).eps), lengths(dtype, 20)
    assert set(np.unique(seen)) == {0, digit}
    share = 1e-4 / digit
    error = digit * np.sqrt(share * (1 - share))
    assert abs(seen.mean() - 1e-4) <= 4.5 * error / np.sqrt(seen.size)
    assert abs(np.corrcoef(seen[0], seen[1])[0, 1]) <= 4.5 / np.sqrt(seen.shape[1])  # each step draws anew
    assert (lengths(dtype, key=1)[0] != seen[0]).any()
    np.testing.assert_array_equal(lengths(dtype)[0], seen[0])


def test_what_is_computed_in_its_own_dtype_draws_nothing():
    tx, params = gradtx.sam(gradtx.sgd(0.1)), jnp.ones(2)
    state = tx.init(params)
    program = str(jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p, grad_fn=lambda w: w))(params, state, params))
    assert "random" not in program
    _, after = tx.update(params, state, params, grad_fn=lambda params: params)
    np.testing.assert_array_equal(after["sam"]["key"], state["sam"]["key"])


def test_around_master_weights_it_climbs_from_the_params_outside():
    """bfloat16 of 1 and a rho of 1e-4 each: the second gradient differs from the first by that, in the mean."""
    tx, params = gradtx.sam(gradtx.master_weights(gradtx.sgd(1.0)), 0.01), jnp.ones(10_000, jnp.bfloat16)
    _, state = tx.update(params, tx.init(params), params, grad_fn=lambda w: (w.astype(jnp.float32) - 1).astype(w.dtype))
    climbed = 1 - np.asarray(gradtx.find(state, "master"), np.float64)
    share = 1e-4 * 128
    assert abs(climbed.mean() - 1e-4) <= 4.5 * np.sqrt(share * (1 - share)) / 128 / 100


def test_the_slope_along_rho_is_there_in_bfloat16_too():
    """d/drho of a step -g(w + rho u) with g(w) = w, |u| = 1: -u."""
    params = jnp.ones(4, jnp.bfloat16)

    def moved(rho):
        tx = gradtx.sam(gradtx.sgd(1.0), rho)
        return tx.update(params, tx.init(params), params, grad_fn=lambda w: w)[0].astype(jnp.float32).sum()

    np.testing.assert_allclose(jax.grad(moved)(0.01), -2.0, rtol=1e-2)


def test_inside_itself_the_inner_one_starts_at_the_params_again():
    tx = gradtx.sam(gradtx.sam(gradtx.sgd(1.0), 0.25), 0.5)
    updates, _ = tx.update(1.0, tx.init(1.0), 1.0, grad_fn=lambda w: w)
    np.testing.assert_allclose(updates, -1.25, rtol=1e-6)  # up the gradient that it is given
