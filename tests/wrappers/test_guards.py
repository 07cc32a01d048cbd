"""skip_nonfinite, zero_nonfinite, conditionally: a step that cannot be trusted does not happen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import gradtx
from gradtx.wrappers.guards import has_failed
from tests.wrappers.runs import all_finite, train

NAN, INF = float("nan"), float("inf")
PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([0.1, 0.2, 0.3])}
GOOD = {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.array([1.0, 0.5, 2.0])}
LIGHT = gradtx.scale_by_rms()
NOT_LIGHT = LIGHT >> gradtx.scale_by_trust_ratio()


def with_fault(value):
    return {"w": GOOD["w"].at[1].set(value), "b": GOOD["b"]}


FAULTS = [NAN, INF, -INF, 1e30]  # whose square overflows
BAD = with_fault(NAN)


def counted(state):
    return [int(gradtx.find(state, name)) for name in ("skipped", "consecutive", "failed")]


@pytest.mark.parametrize("inner", [LIGHT, NOT_LIGHT, gradtx.clip(1.0) >> gradtx.sgd(0.1, 0.9)], ids=repr)
def test_faults_leave_no_trace(inner):
    """With each kind of fault in between the same bits as without; of what a clip would make finite too."""
    faults = [with_fault(value) for value in FAULTS[: -1 if "clips" in inner.facts else None]]
    params, state = train(gradtx.skip_nonfinite(inner, 3), PARAMS, [GOOD, *faults[:3], GOOD, *faults[3:], GOOD])
    assert gradtx.tree_equal((params, state["skip_nonfinite"]["inner"]), train(inner, PARAMS, [GOOD] * 3))
    assert counted(state) == [len(faults), 0, 0]


LEAVES = {"twins": [jnp.ones(3), jnp.ones(3)], "matrix": jnp.ones((2, 2)), "none": jnp.ones(0)}


@pytest.mark.parametrize("inner", [LIGHT, NOT_LIGHT], ids=["light", "not light"])
def test_compiled_one_element_anywhere_is_found(inner):
    """A NaN, or what makes a statistic infinite, in the last element of any leaf."""
    tx = gradtx.skip_nonfinite(inner, 99)
    update, state = jax.jit(tx.update), tx.init(LEAVES)
    leaves, structure = jax.tree.flatten(LEAVES)
    for place in (index for index, leaf in enumerate(leaves) if leaf.size):
        for fault in (NAN, 1e30):
            wrong = [leaf.at[(-1,) * leaf.ndim].set(fault) if i == place else leaf for i, leaf in enumerate(leaves)]
            updates, after = update(jax.tree.unflatten(structure, wrong), state, LEAVES)
            assert counted(after) == [1, 1, 0]
            assert gradtx.tree_equal(after["skip_nonfinite"]["inner"], state["skip_nonfinite"]["inner"])
            assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    updates, after = update(LEAVES, state, LEAVES)
    assert counted(after) == [0, 0, 0]
    assert updates["matrix"].all()


def test_a_loss_that_is_not_finite_is_a_fault_and_values_flow_on():
    """And what has been infinite before, as the best value of the plateau or a parameter, is none."""
    tx = gradtx.skip_nonfinite(gradtx.sgd(0.1) >> gradtx.reduce_on_plateau(), max_consecutive=3)
    state = tx.init(PARAMS)
    for value, skipped in ((1.0, 0), (NAN, 1), (INF, 2), (0.5, 2)):
        updates, state = tx.update(GOOD, state, PARAMS, value=jnp.float32(value))
        assert int(gradtx.find(state, "skipped")) == skipped
    np.testing.assert_allclose(updates["b"], -0.1 * GOOD["b"])
    assert float(gradtx.find(state, "best_value")) == 0.5
    infinite = PARAMS | {"w": PARAMS["w"].at[0].set(INF)}
    assert counted(train(gradtx.skip_nonfinite(gradtx.sgd(0.1), 3), infinite, [GOOD])[1]) == [0, 0, 0]


def test_past_the_limit_it_says_so_and_makes_no_step_any_more():
    tx = gradtx.skip_nonfinite(gradtx.sgd(0.1, 0.9), max_consecutive=2)
    params, state = train(tx, PARAMS, [GOOD, BAD, BAD])
    assert counted(state) == [2, 2, 0]
    assert not has_failed({"a": (state, 3)})
    for more, expected in (([BAD], [3, 3, 1]), ([BAD, GOOD, GOOD], [5, 5, 1])):
        later, after = train(tx, PARAMS, [GOOD, BAD, BAD, *more])
        assert gradtx.tree_equal(later, params)
        assert counted(after) == expected
        assert has_failed({"a": (after, 3)})


ROUNDING = [lambda tx: tx, gradtx.stochastic_rounding, gradtx.kahan_summation, gradtx.master_weights]


@pytest.mark.parametrize("remedy", ROUNDING)
@pytest.mark.parametrize(
    ("params", "gradients", "size", "rate"),
    [
        ("float16", "float32", 1e6, 1.0),  # the params would be infinite
        ("float16", "float16", 6e4, 1.0),  # so they would be after the second step
        ("float32", "float16", 6e4, 2.0),  # the update would be, in the gradients' dtype
        ("float32", "bfloat16", 3.38e38, 1.006),
        ("float32", "float32", 3e38, 0.9),
    ],
)
def test_what_is_finite_until_it_is_rounded_or_added_leaves_the_params_finite(params, gradients, size, rate, remedy):
    tx = gradtx.skip_nonfinite(remedy(gradtx.sgd(rate)), 9)
    weights = jnp.full(2, 5, params)
    state = tx.init(weights)
    for sign in (1, 1, -1, -1, 1, 1):
        updates, state = tx.update(jnp.full(2, sign * size, gradients), state, weights)
        weights = gradtx.apply_updates(weights, updates)
        assert weights.dtype == params
        assert all_finite((weights, state))


# How often the inner transform runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "random", "expected"),
    [("element", False, 2), ("element", True, 1), ("leaf", False, 1), ("tree", False, 1)],
)
def test_only_what_is_light_runs_twice_and_only_under_jit(reads, random, expected, monkeypatch):
    monkeypatch.setattr("gradtx.core.record._registry", dict(gradtx.registry))
    runs = []

    @gradtx.transform
    def scale_by_half() -> gradtx.Rule:
        def update(updates, state):
            runs.append(reads)
            return gradtx.tree.map(lambda u: 0.5 * u, updates), state

        return gradtx.Rule(update=update, reach=reads, fields={"key": gradtx.fields.key()} if random else {})

    tx = gradtx.skip_nonfinite(gradtx.clip_by_global_norm(1.0) >> scale_by_half(), 3)
    state = tx.init(PARAMS)
    tx.update(GOOD, state, PARAMS)
    assert len(runs) == 1
    jaxpr = jax.make_jaxpr(tx.update)(GOOD, state, PARAMS).jaxpr
    assert len(runs) == 1 + expected
    assert "cond" in {eqn.primitive.name for eqn in jaxpr.eqns}


def test_the_loss_is_called_once():
    calls = []

    def grad_fn(params):
        calls.append(1)
        return jax.tree.map(lambda w: 2 * w, params)

    tx = gradtx.skip_nonfinite(gradtx.sam(gradtx.sgd(0.1), rho=0.05), 3)
    jax.eval_shape(lambda g, p: tx.update(g, tx.init(p), p, grad_fn=grad_fn), GOOD, PARAMS)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.checked(gradtx.skip_nonfinite(gradtx.scale_by_rms(), 3)),
        gradtx.skip_nonfinite(gradtx.checked(gradtx.scale_by_rms()), 3),
        gradtx.skip_nonfinite(gradtx.checked(gradtx.scale_by_rms() >> gradtx.centralize()), 3),
    ],
    ids=["around", "inside", "inside, not light"],
)
def test_value_checks_are_made_of_steps_that_are_taken_only(tx):
    ones = jnp.ones(3)
    state, eager = tx.init(ones), checkify.checkify(tx.update)
    for update in (eager, jax.jit(eager)) if tx.name == "checked" else (jax.jit(eager),):
        for fault in (NAN, 1e30):
            error, (updates, _) = update(ones.at[1].set(fault), state, ones)
            error.throw()
            assert not updates.any()
        wrong = jax.tree.map(jnp.copy, state)
        gradtx.find(wrong, "scale_by_rms")["count"] = jnp.int32(-5)
        error, _ = update(ones, wrong, ones)
        assert "gradtx.scale_by_rms: the counter went from -5" in (error.get() or "")


def test_a_failed_run_of_a_sweep_stays_where_it_was_and_the_others_go_on():
    def loss(params):
        return jnp.sum(jnp.where(params > 2.0, jnp.sqrt(2.5 - params), 3.0 - params))

    txs = jax.vmap(lambda rate: gradtx.skip_nonfinite(gradtx.sgd(rate), 3))(jnp.array([0.001, 0.9]))
    result = gradtx.sweep(loss, lambda key: jnp.zeros(2), txs, steps=10, progress=False)
    assert np.isfinite(result.history["loss"][0]).all()
    assert not np.isfinite(result.history["loss"][1, -1])


# zero_nonfinite and conditionally -------------------------------------------------------------------------------------


def test_an_optimizer_at_some_steps_moves_nothing_at_the_others():
    tx, params = gradtx.conditionally_mask(gradtx.adam(0.5), lambda count: count % 2 == 1), jnp.ones(2, jnp.bfloat16)
    state, moved = tx.init(params), []
    for _ in range(4):
        before = gradtx.find(state, "mu")
        updates, state = tx.update(params, state, params)
        assert updates.dtype == jnp.bfloat16
        moved.append((bool(updates.any()), bool((gradtx.find(state, "mu") != before).any())))
    assert moved == [(False, False), (True, True)] * 2


def test_zero_nonfinite_replaces_just_what_is_not_finite():
    gradient = {"w": jnp.array([1.0, NAN, INF, -INF, -2.0]), "h": jnp.array([jnp.inf, 1.0], jnp.float16)}
    updates, state = gradtx.zero_nonfinite().update(gradient, {})
    assert gradtx.tree_equal(updates, {"w": jnp.array([1.0, 0, 0, 0, -2]), "h": jnp.array([0.0, 1.0], jnp.float16)})
    assert state == {}
