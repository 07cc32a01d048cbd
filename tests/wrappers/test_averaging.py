"""Averages of the params: the sums that define them, found in any state, harmless to what they go around."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import gradtx
from tests.records import iterates as reference
from tests.records import schedules, streams
from tests.wrappers.runs import (
    HEARD,
    STEPS,
    assert_rows,
    distance,
    has_the_last_word,
    hearing,
    pulled,
    rows,
    run_rows,
    takes_scaled,
    train,
)

AVERAGES = {
    "exponential": lambda tx: gradtx.exponential_averaging(tx, 0.9),
    "polyak": gradtx.polyak_averaging,
    "swa": lambda tx: gradtx.stochastic_weight_averaging(tx, 1, 2),
}
RISING = ("linear_schedule", (0.5, 0.95, 20))

# The sums that define them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("exponential_averaging", {"decay": RISING}),
        ("exponential_averaging", {"decay": 0.9, "debias": False}),
        ("exponential_averaging", {"decay": 0.9, "debias": False, "from_first": True}),
        ("exponential_averaging", {"decay": RISING, "debias": False, "from_first": True}),
        ("exponential_averaging", {}),
        ("exponential_averaging", {"decay": RISING, "start": 7}),
        ("exponential_averaging", {"decay": 0.9, "debias": False, "start": 7}),
        ("exponential_averaging", {"decay": 0.9, "start": 1}),
        ("polyak_averaging", {}),
        ("stochastic_weight_averaging", {"start": 0, "every": 7}),
        ("stochastic_weight_averaging", {"start": 12, "every": 5}),
    ],
    ids=str,
)
def test_average_is_its_sum(x64, name, arguments):
    params, gradients = streams.stream(STEPS)

    def made(module):
        return {k: getattr(module, v[0])(*v[1]) if v is RISING else v for k, v in arguments.items()}

    expected = getattr(reference, name)(params, -0.1 * gradients, **made(schedules))
    path, states = run_rows(getattr(gradtx, name)(gradtx.sgd(0.1), **made(gradtx)), params, gradients)
    assert_rows(path, reference.iterates(params, -0.1 * gradients)[1:])  # the updates are those of the inner
    assert_rows(rows(gradtx.averaged_params(states)), expected)


def test_an_average_that_starts_as_that_of_pytorch_and_keras():
    """torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(0.9), and keras's use_ema: 2, 1.9, 1.71."""
    tx, params = gradtx.exponential_averaging(gradtx.sgd(1.0), 0.9, debias=False, from_first=True), jnp.float32(3.0)
    state, seen = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update(jnp.float32(1.0), state, params)
        params = gradtx.apply_updates(params, updates)
        seen.append(float(gradtx.averaged_params(state)))
    np.testing.assert_allclose(seen, [2.0, 1.9, 1.71], rtol=1e-6)


def test_an_iterate_that_does_not_count_may_be_nan_and_before_the_start_the_average_is_where_it_began():
    tx, params = gradtx.stochastic_weight_averaging(gradtx.sgd(1.0), start=2, every=2), jnp.ones(2)
    state, seen = tx.init(params), []
    for gradient in (jnp.nan, 0.5, jnp.nan, 0.25):
        _, state = tx.update(jnp.full(2, gradient), state, params)
        seen.append(float(gradtx.averaged_params(state)[0]))
    assert seen == [1.0, 0.5, 0.5, 0.625]


def test_low_precision_params_are_averaged_in_float32():
    """A thousandth of a step in bfloat16 is less than its rounding, and does not get lost."""
    tx, params = gradtx.exponential_averaging(gradtx.sgd(1.0), 0.999, debias=False), jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(10):
        updates, state = tx.update(jnp.full(3, 0.5, jnp.bfloat16), state, params)
    assert updates.dtype == jnp.bfloat16
    assert gradtx.averaged_params(state).dtype == jnp.float32
    np.testing.assert_allclose(gradtx.averaged_params(state), 0.5 + 0.5 * 0.999**10, rtol=1e-6)
    assert gradtx.averaged_params(state, params).dtype == jnp.bfloat16
    for make in AVERAGES.values():
        low = gradtx.stored(make(gradtx.sgd(1.0)), jnp.bfloat16)
        assert gradtx.averaged_params(low.init(params)).dtype == jnp.bfloat16


def test_params_of_stochastic_rounding_are_averaged_as_they_are():
    tx = gradtx.polyak_averaging(gradtx.stochastic_rounding(gradtx.sgd(1.0)))
    params, seen = jnp.ones(50, jnp.bfloat16), []
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(jnp.full(50, 0.003, jnp.bfloat16), state, params)
        params = gradtx.apply_updates(params, updates)
        seen.append(np.asarray(params, np.float32))
    assert len(np.unique(seen)) > 2
    np.testing.assert_allclose(gradtx.averaged_params(state), np.mean(seen, axis=0), rtol=1e-6)


# Found in any state ---------------------------------------------------------------------------------------------------

PARAMS = {"body": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "head": jnp.full(3, 2.0)}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)
AVERAGED = gradtx.polyak_averaging(gradtx.sgd(0.5))


def two_groups():
    return gradtx.partition({"a": gradtx.clip(9.0) >> AVERAGED, "b": gradtx.adam(0.1)}, {"body/*": "a", "*": "b"})


NESTS = {
    "chain": (lambda: gradtx.clip(10.0) >> AVERAGED, ""),
    "masked": (lambda: gradtx.masked(AVERAGED, "head"), "head"),
    "partition": (two_groups, "body"),
    "masked in masked": (lambda: gradtx.masked(gradtx.train_only(AVERAGED, "*/bias"), "body/*"), "body/bias"),
    "optax.chain": (lambda: optax.chain(optax.clip(10.0), AVERAGED), ""),
    "optax in gradtx": (lambda: gradtx.foreign(optax.chain(AVERAGED, optax.identity())), ""),
    "tunable": (lambda: gradtx.tunable(AVERAGED), ""),
    "around train_only": (lambda: gradtx.polyak_averaging(gradtx.train_only(gradtx.sgd(0.5), "*/bias")), ""),
}


@pytest.mark.parametrize(("make", "chosen"), NESTS.values(), ids=NESTS)
def test_the_average_is_found_however_deep(make, chosen):
    """After one step it is where that leads, on the leaves that the wrapper sees."""
    tx = make()
    with jax.numpy_dtype_promotion("standard"):
        after, state = train(tx, PARAMS, [GRADS])
    kept, filled = gradtx.averaged_params(state), gradtx.averaged_params(state, PARAMS)
    assert jax.tree.structure(filled) == jax.tree.structure(PARAMS)
    none = {"is_leaf": lambda node: node is None}
    own = zip(jax.tree.leaves(after), jax.tree.leaves(kept, **none), jax.tree.leaves(filled), strict=True)
    for (path, before), (new, average, full) in zip(jax.tree_util.tree_leaves_with_path(PARAMS), own, strict=True):
        inside = "/".join(key.key for key in path).startswith(chosen)
        assert (average is not None) == inside
        assert gradtx.tree_equal(full, new if inside else before)


def test_the_average_is_found_in_a_train_state_and_after_minimize_and_in_an_nnx_optimizer():
    tx = gradtx.clip(10.0) >> AVERAGED
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx).apply_gradients(grads=GRADS)
    assert gradtx.tree_equal(gradtx.averaged_params(state), state.params)
    result = gradtx.minimize(gradtx.global_norm, PARAMS, tx, steps=1, progress=False)
    assert gradtx.tree_equal(gradtx.averaged_params(result.state), result.params)

    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer, params = nnx.Optimizer(model, gradtx.train_only(AVERAGED, "*kernel"), wrt=nnx.Param), nnx.state(model)
    before = nnx.to_pure_dict(jax.tree.map(jnp.copy, params))
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    average = gradtx.averaged_params(optimizer.opt_state, params)
    assert jax.tree.structure(average) == jax.tree.structure(params)
    expected = {"kernel": before["kernel"] - 0.5, "bias": before["bias"]}
    assert gradtx.tree_equal(nnx.to_pure_dict(average), expected)


def test_leaves_of_a_tree_called_average_are_no_average():
    params = {"average": jnp.ones(2), "inner": jnp.ones(2), "count": jnp.ones(2)}
    state = gradtx.polyak_averaging(gradtx.adam(0.1)).init(params)
    assert gradtx.tree_equal(gradtx.averaged_params(state), params)


# What passes through --------------------------------------------------------------------------------------------------

WRAPPERS = AVERAGES | {
    "lookahead": gradtx.lookahead,
    "schedule_free": lambda tx: gradtx.schedule_free(tx, 1.0),
    "sam": gradtx.sam,
}


@pytest.mark.parametrize("around", WRAPPERS.values(), ids=WRAPPERS)
def test_extra_arguments_and_facts_of_the_inner(around):
    tx, params = around(hearing()), jnp.array([0.5, 1.5])
    given = {"value": 2.0, "value_fn": distance, "grad_fn": pulled}
    tx.update(params, tx.init(params), params, **given)
    heard = HEARD[-1]
    assert (heard["value"], heard["measured"]) == (2.0, distance(params))
    assert gradtx.tree_equal([heard["params"], heard["slopes"]], [params, pulled(params)])
    steers, sharp = around is not gradtx.sam and around not in AVERAGES.values(), around is gradtx.sam
    assert sharp or "first" in around(takes_scaled()).facts
    assert steers or "last" in around(has_the_last_word()).facts
    tx = around(gradtx.adam(0.1))
    assert (tx.facts.random, tx.facts.joinable) == (sharp, around is gradtx.lookahead)
