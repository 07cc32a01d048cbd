"""L-BFGS against dense BFGS matrices of the same pairs, and against optax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.curvature import reference

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {"a": (2, 3), "b": (), "c": (4,)}
N = 11


def split(rows):
    """Rows of 11 numbers as trees of three leaves."""
    parts = jnp.split(jnp.asarray(rows), [6, 7], axis=-1)
    return {name: part.reshape(part.shape[:-1] + SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}


def flat(trees):
    return np.concatenate([np.asarray(trees[name]).reshape(len(trees["b"]), -1) for name in SHAPES], axis=1)


@jax.jit
def run(tx, points, gradients):
    """All updates and states at given points, with given gradients."""

    def step(state, given):
        updates, state = tx.update(given[1], state, given[0])
        return state, (updates, state)

    start = tx.init(jax.tree.map(lambda rows: rows[0], points))
    return jax.lax.scan(step, start, (points, gradients))[1]


def drawn(seed, steps=14, curved=0.4):
    """Points and gradients of a function whose curvature is sometimes negative along the steps; one step is 0."""
    rng = np.random.default_rng(seed)
    points = np.cumsum(rng.normal(size=(steps, N)), axis=0)
    points[9] = points[8]
    A = rng.normal(size=(N, N)) / np.sqrt(N)
    return points, points @ (A @ A.T + curved * (A + A.T)) + 0.5 * np.sin(3 * points)


CASES = {
    "usual": {"memory_size": 3},
    "longer than the run": {"memory_size": 20},
    "one pair": {"memory_size": 1},
    "not scaled": {"memory_size": 3, "scale_init_precond": False},
    "damped": {"memory_size": 3, "damped": True},
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_directions_are_those_of_dense_matrices(arguments):
    skipped = 0
    for seed in range(4):
        points, gradients = drawn(seed, curved=1.0)
        found, _ = run(gradtx.scale_by_lbfgs(**arguments), split(points), split(gradients))
        expected, kept = reference.lbfgs(
            points,
            gradients,
            arguments["memory_size"],
            scaled=arguments.get("scale_init_precond", True),
            damped=arguments.get("damped", False),
        )
        skipped += sum(len(after) == len(before) for before, after in itertools.pairwise(kept))
        np.testing.assert_allclose(flat(found), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        assert not kept[9]  # it starts again after a step of 0
    assert skipped == 0 if arguments.get("damped") else skipped > 2


def test_memory_is_a_ring_that_the_newest_pair_overwrites():
    points, gradients = drawn(0)
    states = run(gradtx.scale_by_lbfgs(3), split(points), split(gradients))[1]["scale_by_lbfgs"]
    _, kept = reference.lbfgs(points, gradients, 3)
    np.testing.assert_array_equal(states["pairs"], [len(pairs) for pairs in kept])
    at = 8
    assert len(kept[at]) > 3
    rows = np.concatenate([np.asarray(states["memory"][name][at]).reshape(2, 3, -1) for name in SHAPES], axis=2)
    for number in range(len(kept[at]) - 3, len(kept[at])):
        s, y = kept[at][number]
        np.testing.assert_allclose(rows[:, number % 3], [s, y], rtol=1e-12)
        np.testing.assert_allclose(states["inverse"][at][number % 3, number % 3], 1 / (s @ y), rtol=1e-12)
    assert states["pairs"][9] == 0
    assert not states["inverse"][9].any()


def test_among_bounds_it_is_the_matrix_of_the_free_params():
    fixed = 0
    for seed in range(4):
        points, gradients = drawn(seed)
        points = np.clip(points, -1.0, 1.5)
        bounds = {"a": -1.0, "b": jnp.array(-1.0), "c": jnp.full(4, -1.0)}, 1.5
        found, _ = run(gradtx.scale_by_lbfgs(3, bounds=bounds), split(points), split(gradients))
        expected, _ = reference.lbfgs(points, gradients, 3, bounds=(-1.0, 1.5))
        fixed += (expected == 0).sum()
        np.testing.assert_allclose(flat(found), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        np.testing.assert_array_equal(flat(found) == 0, expected == 0)
    assert fixed > 20


@pytest.mark.parametrize("scaled", [True, False])
def test_it_is_optaxs_where_every_pair_is_kept(scaled):
    rng = np.random.default_rng(1)
    A = rng.normal(size=(N, N))
    points = np.cumsum(rng.normal(size=(9, N)), axis=0)
    gradients = points @ (A @ A.T + np.eye(N))
    ours = run(gradtx.scale_by_lbfgs(4, scaled), split(points), split(gradients))[0]
    theirs, expected = optax.scale_by_lbfgs(4, scaled), []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = theirs.init(split(points[0]))
        update = jax.jit(theirs.update)
        for w, g in zip(points, gradients, strict=True):
            updates, state = update(split(g), state, split(w))
            expected.append(updates)
    expected = flat(jax.tree.map(lambda *leaves: np.stack(leaves), *expected))
    np.testing.assert_allclose(flat(ours)[1:], expected[1:], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(flat(ours)[0], expected[0], rtol=1e-10)


def test_complex_params_are_pairs_of_real_ones():
    rng = np.random.default_rng(2)
    points, gradients = rng.normal(size=(2, 6, 4)).cumsum(axis=1)
    tx = real = gradtx.scale_by_lbfgs(3)
    one = lambda row: jnp.asarray(row[:2] + 1j * row[2:])  # noqa: E731
    state, of_real = tx.init(one(points[0])), real.init(jnp.asarray(points[0]))
    for w, g in zip(points, gradients, strict=True):
        u, state = tx.update(one(g), state, one(w))
        expected, of_real = real.update(jnp.asarray(g), of_real, jnp.asarray(w))
        np.testing.assert_allclose(u, one(np.asarray(expected)), rtol=1e-10)


def test_sizes_at_the_ends_of_float32_give_finite_directions():
    tx = gradtx.scale_by_lbfgs(2)
    update = jax.jit(tx.update)
    for size in (0.0, 1e-18, 1e18):
        w = jnp.array([1.0, -2.0], jnp.float32)
        state = tx.init(w)
        for _ in range(4):
            u, state = update((size * w).astype(jnp.float32), state, w)
            assert np.isfinite(u).all()
            w = w - u / jnp.maximum(jnp.abs(u).max(), jnp.float32(1))
            assert u.dtype == jnp.float32


def test_cautious_masks_what_goes_uphill():
    """The step of a search goes downhill already: it is no direction that `scale(-1)` is still to turn."""

    def loss(w):
        return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2

    plain, w, masked = gradtx.lbfgs(), jnp.array([-1.2, 1.0]), 0
    tx_cautious = gradtx.cautious(plain, scaling="none")

    @jax.jit
    def step(w, states):
        value, grad = jax.value_and_grad(loss)(w)
        extra = {"value": value, "grad": grad, "value_fn": loss}
        (kept, one), (updates, two) = (
            tx.update(grad, state, w, **extra) for tx, state in zip((tx_cautious, plain), states, strict=True)
        )
        return grad, kept, updates, (one, two)

    states = tx_cautious.init(w), plain.init(w)
    for _ in range(8):
        grad, kept, updates, states = step(w, states)
        np.testing.assert_allclose(kept, np.where(updates * grad < 0, updates, 0), rtol=1e-12)
        masked += int((kept != updates).sum())
        w = w + updates
    assert masked


def test_a_pair_without_curvature_along_its_step_is_left_out():
    tx = gradtx.scale_by_lbfgs(2)
    for along, pairs in ((0.0, 0), (0.9e-10, 0), (1.1e-10, 1)):
        state = tx.update(jnp.array([1.0, 1.0]), tx.init(jnp.zeros(2)), jnp.zeros(2))[1]
        u, state = tx.update(jnp.array([1.0 + along, 2.0]), state, jnp.array([1.0, 0.0]))
        assert state["scale_by_lbfgs"]["pairs"] == pairs
        assert np.isfinite(u).all()


def test_the_first_direction_is_the_gradient_of_length_1_at_most():
    tx = gradtx.scale_by_lbfgs()
    for g, expected in (([0.3, 0.4], [0.3, 0.4]), ([3.0, 4.0], [0.6, 0.8])):
        u, _ = tx.update(jnp.array(g), tx.init(jnp.zeros(2)), jnp.zeros(2))
        np.testing.assert_allclose(u, expected, rtol=1e-14)
    for rate, factor in ((None, -1.0), (0.5, -0.5)):
        tx = gradtx.lbfgs(rate, linesearch=None)
        step, _ = tx.update(jnp.array(g), tx.init(jnp.zeros(2)), jnp.zeros(2))
        np.testing.assert_allclose(step, factor * u, rtol=1e-14)


def test_a_pair_without_curvature_among_the_free_params_is_left_out():
    """The third param, at its bound, has all of `sᵀy`; among the others it is 0, so H is the scale there."""
    tx, w = gradtx.scale_by_lbfgs(2, bounds=(None, 1.0)), jnp.array([0.0, 0.0, 0.5])
    _, state = tx.update(jnp.array([1.0, 1.0, -3.0]), tx.init(w), w)
    w, g = jnp.array([0.25, 0.0, 1.0]), jnp.array([1.0, 2.0, -1.0])
    u, state = tx.update(g, state, w)
    scale = (0.5 * 2.0) / (1.0 + 4.0)
    np.testing.assert_allclose(u, [scale * 1.0, scale * 2.0, 0.0], rtol=1e-14)
