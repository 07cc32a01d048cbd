"""What was found by using the library in anger: one test for each fault, so that it stays away."""

import gc
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Positive, Rule, Transform, transform, tree

PARAMS = {"w": jnp.ones(3)}


@transform
def per_coordinate(factor: Positive) -> Transform:
    weights = jnp.arange(3.0)
    weighted = gradtx.stateless(lambda updates, params: jax.tree.map(lambda u: u * weights, updates))
    return weighted >> gradtx.scale(factor)


@transform
def forgetful(inner: Transform) -> Rule:
    def init(params):
        return {"inner": inner.init(params)}

    def update(updates, state, params=None):
        updates, inner_state = inner.update(updates, state["inner"], params)
        return updates, {"inner": inner_state}

    return Rule(init, update)


@transform
def by_value() -> Rule:
    return Rule(update=lambda updates, state, *, value: (tree.map(lambda u, v: u * v, updates, v=value), state))


def test_an_expansion_made_while_tracing_is_not_kept():
    tx = pickle.loads(pickle.dumps(per_coordinate(2.0)))  # its body has not run yet
    jax.jit(lambda params: tx.init(params))(PARAMS)
    updates, _ = jax.jit(lambda grads: tx.update(grads, tx.init(grads)))(PARAMS)
    np.testing.assert_array_equal(updates["w"], [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(tx.update(PARAMS, tx.init(PARAMS))[0]["w"], [0.0, 2.0, 4.0])


def test_a_wrapper_that_drops_observed_is_refused_right_of_plus():
    with pytest.raises(TypeError, match=r"gradtx\.join: forgetful"):
        gradtx.scale_by_momentum() + forgetful(gradtx.scale_by_rms())
    assert forgetful(gradtx.scale_by_rms()) + gradtx.scale_by_momentum()


def test_a_wrapper_that_drops_what_its_inner_needs_is_refused_at_the_call():
    with pytest.raises(TypeError, match=r"by_value\(\) needs value.*\*\*extra"):
        forgetful(by_value())


def test_params_by_keyword():
    @transform
    def pull_to_zero(rate: Positive) -> Rule:
        def update(updates, state, *, params):
            return tree.map(lambda u, p, rate: u + rate * p, updates, params, rate=rate), state

        return Rule(update=update)

    tx = pull_to_zero(0.5)
    np.testing.assert_array_equal(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]["w"], 1.5)
    with pytest.raises(ValueError, match="params are missing"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_a_mask_read_from_a_transform_is_a_copy():
    tx = gradtx.adamw(0.1, mask={"w": True})
    tx.mask["w"] = False
    assert tx == gradtx.adamw(0.1, mask={"w": True})
    assert tx.mask == {"w": True}


def test_zero_by_zero_makes_no_nan_on_the_way():
    tx = gradtx.scale_by_adagrad(0.0, 0.0)
    with jax.debug_nans(True):
        updates, _ = tx.update({"w": jnp.zeros(3)}, tx.init(PARAMS))
    np.testing.assert_array_equal(updates["w"], 0.0)


def test_an_update_that_returns_no_pair_is_refused():
    @transform
    def single() -> Rule:
        return Rule(update=lambda updates, state: updates)

    with pytest.raises(TypeError, match=r"single\.update: returned .*a pair"):
        single().update(PARAMS, {})


def test_a_rule_that_says_nonsense_is_refused():
    with pytest.raises(ValueError, match="reads is 'elements'"):
        Rule(update=lambda updates, state: (updates, state), reads="elements")

    @transform
    def misspelt() -> Rule:
        return Rule(lambda params: {"nu": params}, lambda updates, state: (updates, state), nonnegative=("mu",))

    with pytest.raises(ValueError, match="calls 'mu' nonnegative"):
        misspelt().init(PARAMS)


def test_jit_knows_an_equal_update_also_after_the_first_is_gone():
    traced = []

    @transform
    def noted() -> Rule:
        def update(updates, state):
            traced.append(1)
            return updates, state

        return Rule(update=update)

    for _ in range(2):
        jax.jit(noted().update)(PARAMS, {})
        gc.collect()
    assert len(traced) == 1


def test_an_annotation_that_cannot_be_resolved_is_named():
    def lost(rate: "Nowhere") -> Rule:  # noqa: F821 - that is the point
        return Rule(update=lambda updates, state: (updates, state))

    with pytest.raises(NameError, match=r"lost: the annotation 'Nowhere'.*module level"):
        transform(lost)


def test_a_parameter_is_not_both_number_and_word():
    def both(rate: "Positive | bool") -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    with pytest.raises(TypeError, match="static"):
        transform(both)


def test_tune_knows_ranges_and_sweeps():
    tx = gradtx.tunable(gradtx.adam(0.1))
    with pytest.raises(ValueError, match=r"learning_rate is -1.0; allowed: a number in \[0, inf\)"):
        gradtx.tune(tx.init(PARAMS), learning_rate=-1.0)
    txs = jax.vmap(lambda rate: gradtx.tunable(gradtx.adam(rate)))(jnp.array([0.1, 0.2]))
    states = jax.vmap(lambda tx: tx.init(PARAMS))(txs)
    tuned = gradtx.tune(states, learning_rate=jnp.array([0.3, 0.4]))
    np.testing.assert_allclose(gradtx.find(tuned, "hyperparameters/learning_rate"), [0.3, 0.4])
