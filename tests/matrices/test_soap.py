"""SOAP against the author's paths on square matrices, and by what holds for any basis."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from tests import matrix_paths
from tests.records import matrix_problem as problem

PATHS = matrix_paths.golden()["paths"]
CASES = [name for name in PATHS if name.startswith(("soap: author", "soap: pytorch_optimizer"))]
KERNEL = np.random.default_rng(0).normal(size=(6, 4))


@pytest.mark.parametrize("name", CASES)
def test_soap_is_the_authors(name, x64):
    case = matrix_paths.read(name)
    given = dict(case["arguments"])
    given["learning_rate"] = given.pop("lr")
    if "betas" in given:
        given["b1"], given["b2"] = given.pop("betas")
    ours = matrix_paths.path(gradtx.soap(**given), case)
    assert matrix_paths.difference(ours, case) < matrix_paths.allowed(case)


@pytest.mark.parametrize("name", [name for name in PATHS if name.startswith("kl_") and "author" in name])
def test_kl_forms_are_the_authors(name, x64):
    case = matrix_paths.read(name)
    given = dict(case["arguments"])
    given["learning_rate"] = given.pop("lr")
    given["b1"], given["b2"] = given.pop("betas", (0.9, 0.98))
    kl_soap = given.pop("using_klsoap", False)
    tx = gradtx.soap(**given, kl=True, correct_bias=False) if kl_soap else gradtx.kl_shampoo(**given)
    assert matrix_paths.difference(matrix_paths.path(tx, case), case) < matrix_paths.allowed(case)


def steps(tx, gradients, params=None):
    params = jnp.zeros_like(gradients[0]) if params is None else params
    state, made = tx.init(params), []
    for g in gradients:
        u, state = tx.update(g, state, params)
        made.append(u)
    return made, state


def test_the_sum_is_soap_that_uses_its_first_step(x64):
    square = np.random.default_rng(1).normal(size=(5, 5))
    gradients = [jnp.asarray(g) for g in (square, square[::-1], square**2)]
    parts = gradtx.scale_by_momentum(0.95) + gradtx.in_eigenbasis(gradtx.scale_by_rms(0.95, eps_hat=True), every=2)
    one = steps(gradtx.scale_by_soap(first_step="use", precondition_frequency=2), gradients)[0]
    for a, b in zip(one, steps(parts, gradients)[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_the_first_step_is_skipped_and_bases_are_orthonormal():
    made, state = steps(gradtx.scale_by_soap(precondition_frequency=1), [jnp.float32(KERNEL)] * 4)
    assert not made[0].any()
    assert made[1].any()
    for name in ("left_basis", "right_basis"):
        q = gradtx.find(state, name)
        np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-5)


def test_sides_that_are_too_long_leave_adam(x64):
    gradients = [jnp.asarray(g) for g in (KERNEL, KERNEL**2, KERNEL[::-1])]
    soap = gradtx.scale_by_soap(max_precond_dim=1, first_step="use")
    adam = gradtx.scale_by_adam(0.95, 0.95, eps_hat=True)
    np.testing.assert_allclose(steps(soap, gradients)[0][-1], steps(adam, gradients)[0][-1], rtol=1e-12)


@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e20])
@pytest.mark.parametrize("shape", [(1, 5), (4, 4), (6, 3)])
def test_steps_are_finite(kl, size, shape):
    g = jnp.outer(jnp.arange(1.0, shape[0] + 1), jnp.ones(shape[1])) * size
    for first_step in ("skip", "use"):
        tx = gradtx.scale_by_soap(kl=kl, precondition_frequency=1, first_step=first_step)
        made, state = steps(tx, [g] * 3)
        assert all(np.isfinite(u).all() for u in made)
        assert all(np.isfinite(gradtx.find(state, name)).all() for name in ("left", "left_basis"))
        assert (gradtx.find(state, "failures") > 0) == (size == 1e20)


def test_one_update_of_the_kl_averages_is_nvidias(x64):
    """The average of the rows gets the columns' eigenvalues; here these are at least its eps."""
    values, given = PATHS["kl_shampoo: nemo, one update"]["values"], PATHS["kl_shampoo: nemo, one update"]["arguments"]
    g = problem.gradient(problem.params(given["leaf"]))[given["leaf"]]
    tx = gradtx.in_eigenbasis(gradtx.identity(), given["shampoo_beta"], 10, kl=True)
    state = tx.update(jnp.asarray(g), tx.init(g))[1]  # the first step has its own averages
    own = dict(state["in_eigenbasis"])
    for name, start in (("", "start"), ("_basis", "bases"), ("_values", "eigenvalues")):
        pair = [jnp.asarray(value) for value in values[start]]
        pair = [jnp.maximum(value, given["eps"]) for value in pair] if name == "_values" else pair
        own |= {f"{side}{name}": value for side, value in zip(("left", "right"), pair, strict=True)}
    after = tx.update(jnp.asarray(g), {**state, "in_eigenbasis": own})[1]
    for side, expected in zip(("left", "right"), values["updated"], strict=True):
        np.testing.assert_allclose(gradtx.find(after, side), expected, rtol=1e-13, atol=1e-13)


def test_turned_gradients_make_turned_steps(x64):
    """With the same basis, turned: rotation equivariance, whatever eigh returns."""
    turn = jnp.linalg.qr(jnp.asarray(np.random.default_rng(1).normal(size=(6, 6))))[0]
    tx = gradtx.in_eigenbasis(gradtx.scale_by_rms(), every=2)
    g = jnp.asarray(KERNEL)
    state = tx.update(g, tx.init(g))[1]
    own = state["in_eigenbasis"]
    turned = own | {"left": turn @ own["left"] @ turn.T, "left_basis": turn @ own["left_basis"]}
    other = {**state, "in_eigenbasis": turned}
    for later in (g**2, g[::-1], g):
        u, state = tx.update(later, state)
        v, other = tx.update(turn @ later, other)
        np.testing.assert_allclose(turn @ u, v, rtol=1e-8, atol=1e-8)


def test_a_gradient_that_is_not_finite_keeps_averages_and_is_counted():
    g = jnp.float32(KERNEL)
    tx = gradtx.in_eigenbasis(gradtx.scale(1.0), every=1)
    state = tx.update(g, tx.init(g))[1]
    after = tx.update(jnp.full_like(g, jnp.nan), state)[1]
    np.testing.assert_array_equal(gradtx.find(after, "left"), gradtx.find(state, "left"))
    assert gradtx.find(after, "failures") == 1
