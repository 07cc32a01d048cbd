"""skip_nonfinite, zero_nonfinite, conditionally: a step that cannot be trusted does not happen."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import gradtx
from gradtx.core.annotations import Kind

NAN, INF = float("nan"), float("inf")
PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.1)}
GOOD = {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.array(1.0)}


def with_fault(value):
    return {"w": GOOD["w"].at[1].set(value), "b": GOOD["b"]}


FAULTS = {
    "NaN": with_fault(NAN),
    "infinity": with_fault(INF),
    "minus infinity": with_fault(-INF),
    "a square that overflows": with_fault(1e30),
}
NAMED = sorted(
    name
    for name, factory in gradtx.registry.items()
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
)


def method(name):
    return gradtx.adadelta() if name == "adadelta" else gradtx.registry[name](0.1)


def run(tx, gradients, params=PARAMS):
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", NAMED)
def test_a_fault_leaves_no_trace_in_any_method(name):
    """With three faults in between, the same bits as without them."""
    inner = method(name)
    tx = gradtx.skip_nonfinite(inner, max_consecutive=3)
    clean, clean_state = run(inner, [GOOD] * 4)
    params, state = run(tx, [GOOD, FAULTS["NaN"], GOOD, FAULTS["infinity"], FAULTS["minus infinity"], GOOD, GOOD])
    assert gradtx.tree_equal(params, clean)
    assert gradtx.tree_equal(state["skip_nonfinite"]["inner"], clean_state)
    assert int(gradtx.find(state, "skipped")) == 3
    assert int(gradtx.find(state, "consecutive")) == 0
    assert not gradtx.find(state, "failed")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_are_seen_in_gradients_and_in_what_becomes_of_them(fault):
    tx = gradtx.skip_nonfinite(gradtx.adam(0.1), max_consecutive=3)
    params, state = run(tx, [GOOD, fault, GOOD])
    assert gradtx.tree_equal(params, run(gradtx.adam(0.1), [GOOD, GOOD])[0])
    assert int(gradtx.find(state, "skipped")) == 1


def test_a_state_that_begins_with_infinity_is_no_fault():
    """reduce_on_plateau's best value is infinite until it has seen one."""
    tx = gradtx.skip_nonfinite(gradtx.sgd(0.1) >> gradtx.reduce_on_plateau(), max_consecutive=1)
    updates, state = tx.update(GOOD, tx.init(PARAMS), PARAMS, value=jnp.float32(2.0))
    assert int(gradtx.find(state, "skipped")) == 0
    np.testing.assert_allclose(updates["b"], -0.1)


def test_a_loss_that_is_not_finite_is_a_fault_and_values_flow_on():
    tx = gradtx.skip_nonfinite(gradtx.sgd(0.1) >> gradtx.reduce_on_plateau(), max_consecutive=3)
    state = tx.init(PARAMS)
    for value, skipped in ((1.0, 0), (NAN, 1), (INF, 2), (0.5, 2)):
        _, state = jax.jit(tx.update)(GOOD, state, PARAMS, value=jnp.float32(value))
        assert int(gradtx.find(state, "skipped")) == skipped
    assert float(gradtx.find(state, "best_value")) == 0.5


def test_past_the_limit_it_says_so_and_makes_no_step_any_more():
    tx = gradtx.skip_nonfinite(gradtx.adam(0.1), max_consecutive=2)
    bad = FAULTS["NaN"]
    params, state = run(tx, [GOOD, bad, bad])
    assert not gradtx.find(state, "failed")
    again, after = run(tx, [GOOD, bad, bad, bad])
    assert gradtx.find(after, "failed")
    assert int(gradtx.find(after, "consecutive")) == 3
    assert gradtx.tree_equal(again, params)
    later, last = run(tx, [GOOD, bad, bad, bad, GOOD, GOOD])
    assert gradtx.tree_equal(later, params)
    assert gradtx.find(last, "failed")
    assert int(gradtx.find(last, "skipped")) == 5


def test_where_optax_skips_it_gives_the_same():
    gradients = [GOOD, FAULTS["NaN"], GOOD, FAULTS["infinity"], GOOD]
    ours, _ = run(gradtx.skip_nonfinite(gradtx.adam(0.1), 5), gradients)
    with jax.numpy_dtype_promotion("standard"):
        theirs, _ = run(gradtx.foreign(optax.apply_if_finite(optax.adam(0.1), 5)), gradients)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=2e-5)  # optax's 1 - b2**t in float32


def test_the_inner_transform_does_not_run_at_a_skipped_step():
    """Asked of the program: what the inner transform computes is inside a branch."""
    tx = gradtx.skip_nonfinite(gradtx.adam(0.1), 3)
    jaxpr = jax.make_jaxpr(tx.update)(GOOD, tx.init(PARAMS), PARAMS).jaxpr
    outside = {eqn.primitive.name for eqn in jaxpr.eqns}
    assert "cond" in outside
    assert "sqrt" not in outside


# In minimize ----------------------------------------------------------------------------------------------------------


def faulty(params, batch):
    """Its gradient is NaN on a batch that says so; the loss itself stays finite."""
    return jnp.sum((params - 3.0) ** 2) + 0.0 * jnp.sum(jnp.sqrt(batch["bad"]) * params[0])


def test_minimize_goes_on_where_a_step_is_skipped():
    bad = np.zeros(20, np.float32)
    bad[7] = -1.0
    tx = gradtx.skip_nonfinite(gradtx.sgd(0.1), max_consecutive=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the loss of that batch is NaN too
        result = gradtx.minimize(faulty, jnp.zeros(2), tx, {"bad": bad}, batch_size=1, epochs=2, progress=False)
    assert len(result.history["loss"]) == 40
    assert int(gradtx.find(result.state["tx"], "skipped")) == 2
    np.testing.assert_allclose(result.params, 3 - 3 * 0.8**38, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("streamed", [False, True])
def test_minimize_stops_where_the_guard_gives_up(chunk, streamed):
    """30 good batches, then bad ones only."""
    bad = np.where(np.arange(60) < 30, 0.0, -1.0).astype(np.float32)
    data = iter([{"bad": bad[i : i + 1]} for i in range(60)]) if streamed else {"bad": bad}
    tx = gradtx.skip_nonfinite(gradtx.adam(0.1), max_consecutive=5)
    start = jnp.zeros(2)
    if not streamed:
        data = {"bad": np.full(60, -1.0, np.float32)}
    arguments = {"steps": 60} if streamed else {"batch_size": 1, "steps": 60}
    with pytest.warns(RuntimeWarning) as caught:
        result = gradtx.minimize(faulty, start, tx, data, steps_per_call=chunk, progress=False, **arguments)
    messages = [str(w.message) for w in caught]
    assert any(re.search("more often in a row than skip_nonfinite allows; the run ended after", m) for m in messages)
    assert gradtx.find(result.state["tx"], "failed")
    if not streamed:
        assert result.state["step"] == 6
        assert len(result.history["loss"]) == 6
        assert gradtx.tree_equal(result.params, start)
    else:
        assert 36 <= result.state["step"] <= 36 + chunk
        assert gradtx.step_count(result.state["tx"]) == 30


def test_a_skipped_step_leaves_the_model_state_alone():
    def loss(params, batch, *, model_state):
        value = jnp.mean(params * batch["x"])
        return value, {"model_state": {"mean": 0.5 * model_state["mean"] + 0.5 * batch["x"].mean()}}

    x = np.array([1.0, np.nan, 1.0, 1.0], np.float32)
    tx = gradtx.skip_nonfinite(gradtx.sgd(0.1), 2)
    with pytest.warns(RuntimeWarning, match="it went on"):
        result = gradtx.minimize(
            loss, jnp.zeros(()), tx, {"x": x}, batch_size=1, epochs=1, has_aux=True, progress=False,
            model_state={"mean": jnp.zeros(())},
        )  # fmt: skip
    np.testing.assert_allclose(result.state["model_state"]["mean"], 1 - 0.5**3)


def test_a_failed_run_of_a_sweep_stays_where_it_was_and_the_others_go_on():
    def loss(params):
        return jnp.sum(jnp.where(params > 2.0, jnp.sqrt(2.5 - params), 3.0 - params))

    txs = jax.vmap(lambda rate: gradtx.skip_nonfinite(gradtx.sgd(rate), 3))(jnp.array([0.001, 0.9]))
    result = gradtx.sweep(loss, lambda key: jnp.zeros(2), txs, steps=30, progress=False)
    assert np.isfinite(result.history["loss"][0]).all()
    assert not np.isfinite(result.history["loss"][1, -1])


# zero_nonfinite and conditionally -------------------------------------------------------------------------------------


def test_zero_nonfinite_replaces_just_what_is_not_finite():
    gradient = {"w": jnp.array([1.0, NAN, INF, -INF, -2.0]), "h": jnp.array([jnp.inf, 1.0], jnp.float16)}
    updates, state = gradtx.zero_nonfinite().update(gradient, {})
    np.testing.assert_array_equal(updates["w"], [1, 0, 0, 0, -2])
    np.testing.assert_array_equal(updates["h"], [0, 1])
    assert state == {}
    with jax.numpy_dtype_promotion("standard"):
        nans = {"w": jnp.array([1.0, NAN])}
        theirs, _ = optax.zero_nans().update(nans, optax.zero_nans().init(nans))
    assert gradtx.tree_equal(gradtx.zero_nonfinite().update(nans, {})[0], theirs)


def test_conditionally_is_optaxs_conditionally_transform():
    predicate = lambda step: (step % 3) != 1  # noqa: E731
    ours = gradtx.conditionally(gradtx.scale_by_adam(), predicate)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.conditionally_transform(optax.scale_by_adam(), predicate)
        their_state, their_update = theirs.init(PARAMS), jax.jit(theirs.update)
        state, update = ours.init(PARAMS), jax.jit(ours.update)
        for step in range(60):
            gradient = jax.tree.map(lambda g, step=step: jnp.sin(g + step), GOOD)
            updates, state = update(gradient, state)
            expected, their_state = their_update(gradient, their_state)
            np.testing.assert_allclose(updates["w"], expected["w"], rtol=2e-5, atol=1e-6)
    assert int(gradtx.find(state, "conditionally/count")) == 60
    assert int(gradtx.find(state, "scale_by_rms/count")) == 40


def test_conditionally_refuses_what_is_no_bool():
    with pytest.raises(
        TypeError, match=r"the predicate returned an array of shape \(\) and dtype int32; allowed: one bool"
    ):
        gradtx.conditionally(gradtx.scale(1.0), lambda count: count).update(
            1.0, gradtx.conditionally(gradtx.scale(1.0), lambda count: count).init(0.0)
        )
    with pytest.raises(TypeError, match="predicate"):
        gradtx.conditionally(gradtx.scale(1.0), 3)


def test_guards_cannot_be_told_what_to_measure():
    for tx in (gradtx.skip_nonfinite(gradtx.scale_by_rms(), 3), gradtx.conditionally(gradtx.scale_by_rms(), bool)):
        with pytest.raises(TypeError, match=r"cannot stand right of \+"):
            gradtx.scale_by_momentum() + tx
    with pytest.raises(ValueError, match=r"gradtx.skip_nonfinite: max_consecutive is 0"):
        gradtx.skip_nonfinite(gradtx.adam(0.1), 0)


# How often the inner transform runs ----------------------------------------------------------------------------------


def counting(reads, runs, random=False):
    @gradtx.transform
    def scale_by_half() -> gradtx.Rule:
        def update(updates, state):
            runs.append(reads)
            return gradtx.tree.map(lambda u: 0.5 * u, updates), state

        return gradtx.Rule(update=update, reads=reads, random=random)

    return scale_by_half()


@pytest.mark.parametrize(
    ("reads", "random", "expected"),
    [("element", False, 2), ("element", True, 1), ("leaf", False, 1), ("tree", False, 1)],
)
def test_only_what_is_light_runs_twice_and_only_under_jit(reads, random, expected, monkeypatch):
    monkeypatch.setattr("gradtx.core.record._registry", dict(gradtx.registry))
    runs = []
    inner = counting(reads, runs, random)
    tx = gradtx.skip_nonfinite(gradtx.clip_by_global_norm(1.0) >> inner, 3)
    state = tx.init(PARAMS)
    eager, _ = tx.update(GOOD, state, PARAMS)
    assert len(runs) == 1
    runs.clear()
    compiled, _ = jax.jit(tx.update)(GOOD, state, PARAMS)
    assert len(runs) == expected
    np.testing.assert_allclose(compiled["w"], eager["w"], rtol=1e-6)


def test_the_loss_is_called_once():
    calls = []

    def grad_fn(params):
        calls.append(1)
        return jax.tree.map(lambda w: 2 * w, params)

    tx = gradtx.skip_nonfinite(gradtx.sam(gradtx.sgd(0.1), rho=0.05), 3)
    state = tx.init(PARAMS)
    jax.jit(lambda g, s, p: tx.update(g, s, p, grad_fn=grad_fn))(GOOD, state, PARAMS)
    assert len(calls) == 1


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "tx",
    [
        gradtx.checked(gradtx.skip_nonfinite(gradtx.adam(0.1), 3)),
        gradtx.skip_nonfinite(gradtx.checked(gradtx.adam(0.1)), 3),
        gradtx.skip_nonfinite(gradtx.checked(gradtx.lamb(0.1)), 3),
    ],
    ids=["around", "inside", "inside, not light"],
)
def test_value_checks_are_made_of_steps_that_are_taken_only(tx, compiled):
    update = checkify.checkify(tx.update)
    update = jax.jit(update) if compiled else update
    state = tx.init(PARAMS)
    for fault in ("NaN", "a square that overflows"):
        error, (updates, _) = update(FAULTS[fault], state, PARAMS)
        error.throw()
        assert not updates["w"].any()
    wrong = jax.tree.map(jnp.copy, state)
    path = ["checked", "inner", "skip_nonfinite", "inner"]
    path = path if "checked" in state else ["skip_nonfinite", "inner", "checked", "inner"]
    inner = wrong
    for name in path:
        inner = inner[name]
    inner["scale_by_rms"]["count"] = jnp.int32(-5)
    error, _ = update(GOOD, wrong, PARAMS)
    assert "gradtx.scale_by_rms: the counter went from -5" in (error.get() or "")


LEAVES = {"twins": [jnp.ones(3), jnp.ones(3)], "matrix": jnp.ones((2, 2)), "none": jnp.ones(0)}


@pytest.mark.parametrize("inner", [gradtx.adam(0.1), gradtx.lamb(0.1)], ids=["light", "not light"])
def test_one_element_anywhere_is_found(inner):
    """A NaN, or what makes a statistic infinite, in the last element of any leaf."""
    tx = gradtx.skip_nonfinite(inner, 99)
    update, state = jax.jit(tx.update), tx.init(LEAVES)
    leaves, structure = jax.tree.flatten(LEAVES)
    for place in (index for index, leaf in enumerate(leaves) if leaf.size):
        for fault in (NAN, 1e30):
            wrong = [leaf.at[(-1,) * leaf.ndim].set(fault) if i == place else leaf for i, leaf in enumerate(leaves)]
            updates, after = update(jax.tree.unflatten(structure, wrong), state, LEAVES)
            before, after = state["skip_nonfinite"], after["skip_nonfinite"]
            assert int(after["skipped"]) == 1
            assert gradtx.tree_equal(after["inner"], before["inner"])
            assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


def test_a_gradient_that_a_clip_would_make_finite_is_looked_at_too():
    tx = gradtx.skip_nonfinite(gradtx.clip(1.0) >> gradtx.sgd(0.1), 3)
    for update in (tx.update, jax.jit(tx.update)):
        updates, state = update(FAULTS["infinity"], tx.init(PARAMS), PARAMS)
        assert int(gradtx.find(state, "skipped")) == 1
        assert not updates["b"].any()
