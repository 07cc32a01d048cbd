"""`minimize`: a run is the loop one would write oneself, in whatever chunks, and resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import adam, sgd, tree_equal
from gradtx.training import advancing
from gradtx.training.minibatches import num_batches
from gradtx.training.minimization import minimize
from tests.core.compilations import compilations
from tests.training.network import (
    DATA,
    KEY,
    SIZE,
    X,
    Y,
    assert_close,
    assert_same,
    bowl,
    cost,
    counting,
    noisy,
    plain_loop,
    start,
    through_msgpack,
)

# The loop, written out

METHODS = {"adam": lambda: adam(1e-2), "momentum": lambda: sgd(0.005, momentum=0.9)}
CUTS = {
    "rest kept": {"batch_size": 5},
    "rest dropped": {"batch_size": 5, "drop_last": True},
    "replacement": {"batch_size": 5, "replacement": True},
    "replacement, all": {"replacement": True},
    "single samples": {"batch_size": 1},
    "full batch": {},
}


@pytest.mark.parametrize(
    ("method", "cut"), [*(("adam", cut) for cut in CUTS), ("momentum", "rest kept"), ("momentum", "single samples")]
)
def test_it_is_the_plain_loop(x64, method, cut):
    # In float64 the two differ only by the order in which XLA contracts multiply-adds: 1e-16 a step, which 300 steps of
    # a smooth problem keep below 1e-11. A wrong batch, key, counter or sign shows in the first digits.
    tx, sampling = METHODS[method](), CUTS[cut]
    result = minimize(cost, start(jnp.float64), tx, DATA, steps=300, key=KEY, **sampling)
    assert_close(result, plain_loop(cost, start(jnp.float64), tx, DATA, 300, key=KEY, **sampling), 1e-11)
    assert int(result.state["step"]) == 300
    assert result.params["w"].dtype == jnp.float64


@pytest.mark.parametrize("loss", [cost, noisy])
def test_scalars_of_the_state_may_travel_as_one_vector_or_by_themselves(loss, monkeypatch):
    options = {"batch_size": 5, "epochs": 40, "key": KEY}
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.nadamw(gradtx.cosine_decay_schedule(1e-2, 150)))
    joined = minimize(loss, start(), tx, DATA, **options)
    monkeypatch.setattr(advancing, "_SMALL", 0)
    advancing.run.clear_cache()
    apart = minimize(loss, start(), tx, DATA, **options)
    advancing.run.clear_cache()
    assert jax.tree.structure(joined.state) == jax.tree.structure(apart.state)
    assert_close(joined, (apart.params, apart.history["loss"]), 1e-4)


def test_it_is_the_plain_loop_in_float32():
    # One rounding is 6e-8; Adam divides by the root of a mean, so that some steps amplify it: 2e-5 after 200 of them.
    result = minimize(cost, start(), adam(1e-2), DATA, steps=200, batch_size=5)
    assert_close(result, plain_loop(cost, start(), adam(1e-2), DATA, 200, batch_size=5), 2e-5)


def test_it_is_the_plain_loop_without_data(x64):
    def rosenbrock(p):
        return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2

    begin = jnp.array([-1.0, 1.5])
    result = minimize(rosenbrock, begin, adam(1e-2), steps=300)
    assert_close(result, plain_loop(rosenbrock, begin, adam(1e-2), None, 300), 1e-10)


def test_a_loss_with_a_key_gets_a_new_one_each_step(x64):
    expected = plain_loop(noisy, start(jnp.float64), adam(1e-2), DATA, 200, key=KEY, batch_size=4, has_key=True)
    assert_close(
        minimize(noisy, start(jnp.float64), adam(1e-2), DATA, steps=200, key=KEY, batch_size=4), expected, 1e-11
    )


def test_optax_optimizers(x64):
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
        result = minimize(cost, start(jnp.float64), tx, DATA, steps=100, batch_size=5)
        assert_close(result, plain_loop(cost, start(jnp.float64), (tx.init, tx.update), DATA, 100, batch_size=5), 1e-11)


def test_bfloat16_params_stay_bfloat16_and_descend():
    result = minimize(cost, start(jnp.bfloat16), adam(1e-2), DATA, steps=60, batch_size=5)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.bfloat16)}
    # Each step rounds 60 times to 8 bits, here as there: the loop may differ by some of the last bits (0.4%).
    expected, _ = plain_loop(cost, start(jnp.bfloat16), adam(1e-2), DATA, 60, batch_size=5)
    for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=0.05, atol=0.05)
    assert cost(result.params, DATA) < 0.7 * cost(start(jnp.bfloat16), DATA)


@pytest.mark.parametrize("tx", [sgd(0.1), adam(0.1)], ids=["sgd", "adam"])
def test_complex_params_descend(tx):
    result = minimize(lambda z: jnp.sum(jnp.abs(z - (1 + 2j)) ** 2), jnp.zeros(2, jnp.complex64), tx, steps=300)
    np.testing.assert_allclose(result.params, 1 + 2j, atol=1e-3)
    assert result.history["loss"].dtype == np.float32


# The params it takes


@pytest.mark.parametrize(
    "params",
    [0.0, jnp.asarray(0.0), np.zeros(2), np.zeros(2, np.float32), np.float64(0.0), np.float32(0.0)],
    ids=["float", "weak", "numpy64", "numpy32", "np.float64", "np.float32"],
)
def test_numbers_and_numpy_arrays_are_params(params):
    result = minimize(bowl, params, adam(0.1), steps=4)
    expected = minimize(bowl, jnp.zeros(np.shape(params), jnp.float32), adam(0.1), steps=4)
    assert_same(result, expected)
    assert result.params.dtype == jnp.float32
    assert not result.params.weak_type


def test_tuples_none_leaves_and_no_params():
    result = minimize(
        lambda p: bowl(p[0]) + bowl(p[1]["a"]), (jnp.zeros(2), {"a": jnp.zeros(()), "b": None}), adam(0.1), steps=4
    )
    alone = minimize(bowl, jnp.zeros(()), adam(0.1), steps=4).params
    assert result.params[1]["b"] is None
    np.testing.assert_allclose(result.params[0], alone, rtol=1e-6)
    assert minimize(lambda p: jnp.zeros(()), {}, adam(0.1), steps=3).history["loss"].tolist() == [0, 0, 0]


def test_legacy_keys_are_keys():
    legacy = jax.random.PRNGKey(3)
    for key in (legacy, np.asarray(legacy)):
        result = minimize(noisy, start(), sgd(0.1), DATA, batch_size=5, epochs=2, key=key)
        assert_same(result, minimize(noisy, start(), sgd(0.1), DATA, batch_size=5, epochs=2, key=jax.random.key(3)))


def test_nothing_of_the_callers_is_donated():
    params, key, data = start(), jax.random.key(5), jax.tree.map(jnp.asarray, DATA)
    first = minimize(noisy, params, adam(1e-2), data, steps=7, batch_size=5, key=key)
    again = minimize(noisy, params, adam(1e-2), data, steps=7, batch_size=5, key=key)
    assert_same(first, again)
    resumed = [
        minimize(noisy, first.params, adam(1e-2), data, steps=3, batch_size=5, state=first.state) for _ in range(2)
    ]
    assert_same(*resumed)
    for leaf in jax.tree.leaves((params, data, first.params, first.state)):
        assert not leaf.is_deleted()
    model_state = {"n": jnp.zeros(())}
    minimize(counting, params, adam(1e-2), data, steps=2, has_aux=True, model_state=model_state)
    assert model_state["n"] == 0.0


# How long, in which chunks


def test_epochs_are_so_many_passes():
    for options in (CUTS["rest kept"], CUTS["rest dropped"], CUTS["full batch"]):
        sizes = {name: value for name, value in options.items() if name != "replacement"}
        per_epoch = num_batches(SIZE, sizes.pop("batch_size", None), **sizes)
        result = minimize(cost, start(), sgd(0.1), DATA, epochs=2, **options)
        assert result.history["loss"].shape == (2 * per_epoch,)
        assert_same(result, minimize(cost, start(), sgd(0.1), DATA, steps=2 * per_epoch, **options))


@pytest.mark.parametrize("options", [*CUTS.values(), None])
def test_bits_do_not_depend_on_the_chunk(options):
    loss, data, options = (
        (noisy, DATA, options)
        if options is not None
        else (lambda p: bowl(p["w"]) + bowl(p["b"]) + bowl(p["v"]), None, {})
    )
    results = [
        minimize(loss, start(), adam(1e-2), data, steps=31, steps_per_call=chunk, **options)
        for chunk in (None, 1, 3, 7, 5000)
    ]
    for other in results[1:]:
        assert_same(results[0], other)


def test_evaluation_and_stop_change_no_bits():
    plain = minimize(noisy, start(), adam(1e-2), DATA, batch_size=5, steps=31)
    seen = minimize(
        noisy,
        start(),
        adam(1e-2),
        DATA,
        batch_size=5,
        steps=31,
        evaluate=lambda p: p["b"][0],
        evaluate_every=2,
        stop=lambda history: False,
    )
    assert tree_equal(plain.params, seen.params)
    assert tree_equal(plain.history["loss"], seen.history["loss"])


def test_the_orders_of_one_call_are_few_where_batches_are_large():
    from gradtx.training.advancing import Plan, Sampling
    from gradtx.training.losses import Loss

    loss = Loss(cost, False, True, False, False)
    assert Plan(loss, Sampling(60_000, 128)).capacity == 1024
    assert Plan(loss, Sampling(10**7, 10**7)).capacity == 1024  # everything in its order: none are drawn
    assert Plan(loss, Sampling(10**7, 10**7, replacement=True)).capacity == 1


# What it compiles


def test_another_rate_seed_start_or_length_compiles_nothing():
    def loss(params, batch):
        return cost(params, batch)

    def evaluate(params):
        return cost(params, DATA)

    def run(tx, **options):
        return minimize(loss, start(), tx, DATA, batch_size=5, evaluate=evaluate, **options)

    with compilations() as names:
        result = run(adam(1e-2), epochs=2, key=jax.random.key(0))
        run(adam(1e-2), steps=1, state=result.state)
    assert sum("advance" in name for name in names) == 1  # so they are counted
    with compilations() as names:
        run(adam(3e-3), epochs=2, key=jax.random.key(0))
        run(adam(1e-3, b1=0.8), epochs=2, key=jax.random.key(7))
        run(adam(1e-3), steps=33, steps_per_call=4)
        run(adam(1e-3), steps=3, evaluate_every=2, stop=lambda history: False)
        run(adam(1e-3), steps=3, state=result.state)
        run(adam(1e-3), steps=3, state=through_msgpack(result)[1])
    assert names == []


@pytest.mark.parametrize(
    "options",
    [
        {"loss": lambda p, b: b["x"][:, 0]},
        {"data": {"x": X, "y": Y[:-1]}},
        {"data": {"x": X[:0], "y": Y[:0]}},
        {"batch_size": SIZE + 1},
        {"tx": jax.vmap(sgd)(np.array([0.1, 0.2], np.float32))},
        {"evaluate": lambda p: {"loss": p["b"][0]}},
        {"stop": 3.0},
        {"steps_per_call": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_refused_is_refused_before_compiling(options):
    given = {"loss": cost, "params": np.zeros(5, np.float32), "tx": sgd(0.1), "data": DATA, "batch_size": 5, "steps": 5}
    given["params"] = jax.device_get(start())
    with compilations() as names, pytest.raises((TypeError, ValueError), match=r"^gradtx\.minimize: "):
        minimize(**given | options)
    assert names == []
