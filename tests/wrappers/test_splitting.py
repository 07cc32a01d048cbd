"""Complex leaves as pairs of real ones: PyTorch's numbers, optax's, extra arguments and masks inside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import Rule, split_real_and_imaginary, tree
from tests.wrappers.runs import assert_close

A = np.array([[1.0 + 0.5j, -0.3 + 0.2j], [0.4 - 1.0j, 2.0 + 0.1j]])
B = np.array([1.0 - 2.0j, 0.5 + 1.5j])
START = np.array([1.0 + 1.0j, -1.0 + 0.5j])
OURS_OF_RMSPROP = gradtx.rmsprop(0.01, 0.99, 1e-8, momentum=0.9, eps_in_sqrt=False, lr_inside_momentum=False)
PYTORCH = {  # the params after 50 steps of torch.optim 2.13.0 in complex128
    "Adam(lr=0.1)": (
        gradtx.adam(0.1),
        [0.6136706128612573 - 2.3208570336919156j, 1.3656704805065634 + 1.4313544432033947j],
    ),
    "AdamW(lr=0.1, weight_decay=0.1)": (
        gradtx.adamw(0.1, weight_decay=0.1),
        [0.5286434822909063 - 2.010663043585595j, 1.1833236469639066 + 1.3290477801671745j],
    ),
    "RMSprop(lr=0.01, momentum=0.9)": (
        OURS_OF_RMSPROP,
        [0.6341641821164071 - 1.9161706624817316j, 1.1222928879165093 + 1.3722369645139245j],
    ),
    "Adagrad(lr=0.1)": (
        gradtx.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-10, eps_in_sqrt=False),
        [0.5523545850817129 - 0.24552523314570032j, 0.03544741954322404 + 1.11758467240288j],
    ),
    "Adamax(lr=0.1)": (
        gradtx.adamax(0.1),
        [0.5245774434239352 - 2.033153306959396j, 1.2109270121364668 + 1.356276922837749j],
    ),
    "SGD(lr=0.02, momentum=0.9)": (
        gradtx.sgd(0.02, 0.9),
        [0.6219691819692624 - 2.1344588360531564j, 1.2627557362920128 + 1.3754779973587652j],
    ),
}


def cost(w):
    return jnp.sum(jnp.abs(A.astype(w.dtype) @ w - B.astype(w.dtype)) ** 2)


def after_50(tx):
    @jax.jit
    def step(_, carry):
        w, state = carry
        updates, state = tx.update(jnp.conj(jax.grad(cost)(w)), state, w)
        return gradtx.apply_updates(w, updates), state

    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.fori_loop(0, 50, step, (jnp.asarray(START), tx.init(jnp.asarray(START))))[0]


@pytest.mark.parametrize("name", PYTORCH)
def test_it_is_pytorchs(x64, name):
    tx, theirs = PYTORCH[name]
    np.testing.assert_allclose(after_50(split_real_and_imaginary(tx)), theirs, rtol=1e-12)
    alone = after_50(tx)
    if name.startswith("SGD"):
        np.testing.assert_allclose(alone, theirs, rtol=1e-12)
    else:
        assert np.abs(alone - np.array(theirs)).max() > 0.01


@pytest.mark.parametrize("method", ["adam", "lamb"])
def test_it_is_optaxs(x64, method):
    """`lamb` measures each part by itself."""
    ours, theirs = getattr(gradtx, method)(0.1), getattr(optax, method)(0.1)
    split = optax.contrib.split_real_and_imaginary
    np.testing.assert_allclose(after_50(split_real_and_imaginary(ours)), after_50(split(theirs)), rtol=1e-9)
    np.testing.assert_allclose(after_50(ours), after_50(theirs), rtol=1e-9)


def test_minimize_conjugates_by_itself(x64):
    result = gradtx.minimize(cost, START, split_real_and_imaginary(gradtx.adam(0.1)), steps=50)
    np.testing.assert_allclose(result.params, PYTORCH["Adam(lr=0.1)"][1], rtol=1e-12)


def test_what_is_not_defined_for_complex_leaves_sees_real_ones():
    params = {"z": jnp.array([3.0 - 4.0j], jnp.complex64), "x": jnp.array([-2.0])}
    tx = split_real_and_imaginary(gradtx.lion(1.0, weight_decay=0.0))
    updates, _ = tx.update(params, tx.init(params), params)
    assert_close(updates, {"z": jnp.array([-1.0 + 1.0j], jnp.complex64), "x": jnp.array([1.0])}, 1)


def test_masks_and_states_inside_name_the_parts():
    params = {"z": jnp.ones(2, jnp.complex64), "x": jnp.ones(2)}
    tx = split_real_and_imaginary(gradtx.adamw(1.0, weight_decay=0.5, mask="z/real"))
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert_close(updates, {"z": jnp.full(2, -0.5 + 0j, jnp.complex64), "x": jnp.zeros(2)}, 1)
    mu = gradtx.find(state, "mu")
    assert sorted(mu["z"]) == ["imaginary", "real"]
    assert mu["z"]["real"].dtype == mu["x"].dtype == np.float32


def test_extra_arguments_are_split_and_functions_see_complex_params():
    seen = []

    @gradtx.transform
    def listening() -> Rule:
        def update(updates, state, params, *, value, grad, grad_fn, value_fn):
            seen.append((value, grad, grad_fn(params), value_fn(params)))
            return updates, state

        return Rule(update=update)

    params = {"z": jnp.array([1.0 + 2.0j], jnp.complex64), "x": jnp.array([3.0])}
    given = {"grad": params, "grad_fn": lambda p: tree.map(lambda w: 2 * w, p)}
    size = lambda p: jnp.sum(jnp.abs(p["z"]) ** 2) + jnp.sum(p["x"] ** 2)  # noqa: E731
    tx = split_real_and_imaginary(listening())
    updates, _ = tx.update(params, tx.init(params), params, value=5.0, value_fn=size, **given)
    assert gradtx.tree_equal(updates, params)
    value, grad, twice, measured = seen[-1]
    parts = {"z": {"real": jnp.array([1.0]), "imaginary": jnp.array([2.0])}, "x": jnp.array([3.0])}
    assert gradtx.tree_equal(grad, parts)
    assert gradtx.tree_equal(twice, jax.tree.map(lambda leaf: 2 * leaf, parts))
    assert (value, float(measured)) == (5.0, 14.0)


def test_a_scaling_inside_is_measured_on_the_gradient_that_came_in():
    params = {"z": jnp.array([1.0 + 2.0j], jnp.complex64)}
    tx = gradtx.scale_by_momentum() + split_real_and_imaginary(gradtx.scale_by_rms())
    both = split_real_and_imaginary(gradtx.scale_by_momentum() + gradtx.scale_by_rms())
    assert_close(tx.update(params, tx.init(params))[0], both.update(params, both.init(params))[0], 4)
