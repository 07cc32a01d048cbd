"""Steps measured by the length of the matrix: what they keep, what the size of a gradient changes, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import MuonDimensionNumbers as Numbers
from tests.records import matrix_problem as problem

W, G = problem.scattered((6, 4), 1), problem.scattered((6, 4), 2)
ACROSS = G - np.sum(G * W) / np.sum(W * W) * W


def stepped(tx, g, w):
    """The matrix after one step."""
    w = jnp.asarray(w)
    updates, _ = tx.update(jnp.asarray(g), tx.init(w), w)
    return np.asarray(w + updates)


def size(x):
    return np.sqrt(np.sum(np.asarray(x, np.float64) ** 2))


# The hyperball --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_hyperball_keeps_the_length_and_turns_by_the_arctan_of_the_rate():
    new = stepped(gradtx.hyperball(0.018), ACROSS, W)
    assert size(new) == pytest.approx(size(W), rel=1e-15)
    angle = np.arccos(np.sum(new * W) / size(W) ** 2)
    assert angle == pytest.approx(np.arctan(0.018), rel=1e-10)
    assert np.sum(new * ACROSS) < 0, "it goes up"


@pytest.mark.usefixtures("x64")
def test_hyperball_keeps_the_length_over_a_thousand_steps():
    tx, w = gradtx.hyperball(0.1), jnp.asarray(W)
    step = jax.jit(lambda w, g: w + tx.update(g, tx.init(w), w)[0])
    for seed in range(1000):
        w = step(w, jnp.asarray(problem.scattered((6, 4), seed)))
    assert size(w) == pytest.approx(size(W), rel=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
def test_neither_the_size_of_the_gradient_nor_of_the_matrix_changes_the_angle(factor):
    tx, expected = gradtx.hyperball(0.1), stepped(gradtx.hyperball(0.1), G, W)
    np.testing.assert_allclose(stepped(tx, factor * G, W), expected, rtol=1e-13)
    np.testing.assert_allclose(stepped(tx, G, factor * W), factor * expected, rtol=1e-13)
    unit = np.eye(6, 4, 1) * (np.arange(4) == 2)  # of length 1
    np.testing.assert_allclose(stepped(tx, unit, W), stepped(tx, factor * unit, W), rtol=1e-13)


def test_a_matrix_of_zeros_makes_the_plain_step_and_keeps_its_length_from_then_on():
    tx, g = gradtx.hyperball(0.5), np.float32(G)
    first = stepped(tx, g, jnp.zeros((6, 4)))
    np.testing.assert_allclose(first, -0.5 * g, rtol=1e-6)
    assert size(stepped(tx, problem.scattered((6, 4), 3), first)) == pytest.approx(size(first), rel=1e-6)


def test_a_gradient_of_zero_and_a_step_to_zero_change_nothing():
    w = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(stepped(gradtx.hyperball(0.5), 0 * w, w), w)  # the updates are 0
    np.testing.assert_array_equal(stepped(gradtx.hyperball(1.0), w, w), w)


# The pinned radius, the brake, the floor ------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_a_step_across_keeps_the_length_and_one_along_is_the_plain_step():
    tx = gradtx.pin_radius(0.25)
    assert size(stepped(tx, ACROSS, W)) == pytest.approx(size(W), rel=1e-14)
    np.testing.assert_allclose(stepped(tx, W, W), 0.75 * W, rtol=1e-14)


def test_the_decay_comes_after_the_pin_and_only_where_the_step_shrinks():
    w, g = np.float32([[3.0, 4.0]]), np.float32([[0.0, 1.0]])
    without, decayed = (stepped(gradtx.pin_radius(0.5, decay), g, w) for decay in (0.0, 0.25))
    np.testing.assert_allclose(decayed, without * [[1.0, 0.875]], rtol=1e-6)  # nothing where g is zero
    without, decayed = (stepped(gradtx.pin_radius(0.5, decay), -g, w) for decay in (0.0, 0.25))
    np.testing.assert_allclose(decayed, without, rtol=1e-6)


def test_a_radius_does_not_go_below_zero():
    w = np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(stepped(gradtx.pin_radius(3.0), w, w), 0 * w, atol=1e-6)
    np.testing.assert_allclose(stepped(gradtx.pin_radius(3.0), w, 0 * w), -3 * w, rtol=1e-6)


def test_a_brake_acts_on_steps_outward_and_leaves_what_goes_across():
    tx, w = gradtx.brake_radius(0.25, 0.5), jnp.array([[2.0, 0.0]])
    updates = [tx.update(jnp.array([[g, 1.0]]), tx.init(w), w)[0].tolist() for g in (-4.0, 4.0)]
    np.testing.assert_allclose(updates, [[[-1.0, 1.0]], [[2.0, 1.0]]], rtol=1e-6)


def test_a_floor_is_one_for_each_output_or_for_the_matrix():
    w, g = jnp.array([[3.0, 1.0], [4.0, 0.0]]), jnp.array([[0.0, 7.0], [0.5, 0.0]])
    tx = gradtx.floor_updates(0.5)
    np.testing.assert_allclose(tx.update(g, tx.init(w), w)[0], [[0.0, 7.0], [2.5, 0.0]], rtol=1e-6)
    whole = gradtx.floor_updates(0.5, per_output=False)
    assert whole.update(g, whole.init(w), w)[0].tolist() == g.tolist()
    short = whole.update(g / 100, whole.init(w), w)[0]
    assert size(short) == pytest.approx(0.5 * size(w), rel=1e-6)
    assert tx.update(0 * g, tx.init(w), w)[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


# All of them ----------------------------------------------------------------------------------------------------------

PARTS = {
    "hyperball": gradtx.hyperball(0.1),
    "pin_radius": gradtx.pin_radius(0.1, 0.5),
    "brake_radius": gradtx.brake_radius(),
    "floor_updates": gradtx.floor_updates(0.5),
    "floor_updates, whole": gradtx.floor_updates(0.5, per_output=False),
}
every_part = pytest.mark.parametrize("name", PARTS)


@every_part
@pytest.mark.parametrize("factor", [1.0, 1e-20, 1e20, 0.0])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 4), "float32"), ((4, 1), "bfloat16"), ((6, 4), "float32"), ((6, 4), "bfloat16")]
)
def test_updates_are_finite_whatever_the_matrix(name, factor, shape, dtype):
    tx, x = PARTS[name], problem.scattered(shape, 5)
    for g, w in [(factor * x, x), (x, factor * x), (factor * x, factor * x), (np.ones(shape), x)]:
        g, w = (jnp.asarray(leaf, dtype) for leaf in (g, w))
        updates, _ = tx.update(g, tx.init(w), w)
        assert updates.dtype == w.dtype
        assert jnp.isfinite(updates).all()


@every_part
@pytest.mark.usefixtures("x64")
def test_a_batch_of_matrices_is_matrix_by_matrix(name):
    """And the axes of the inputs and outputs may lie elsewhere."""
    tx = PARTS[name]
    g, w = problem.scattered((3, 4, 6), 7), problem.scattered((3, 4, 6), 8)
    batch = gradtx.as_matrices(tx, Numbers(2, 1))
    updates = batch.update(jnp.asarray(g), batch.init(jnp.asarray(w)), jnp.asarray(w))[0]
    for layer in range(3):
        alone = stepped(tx, g[layer].T, w[layer].T).T - w[layer]
        np.testing.assert_allclose(updates[layer], alone, rtol=1e-12, atol=1e-14)
