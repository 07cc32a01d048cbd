"""`minimize`: a run is the loop one would write oneself, in whatever pieces, and what it carries on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import adam, sgd, tree_equal
from gradtx.core.rule import Rule
from gradtx.training import advancing
from gradtx.training.advancing import Plan, Sampling
from gradtx.training.losses import Loss
from gradtx.training.minibatches import sample_batches
from gradtx.training.minimization import minimize
from tests.core.compilations import compilations
from tests.training.network import DATA, KEY, SIZE, X, Y, bowl, cost, counting, noisy, start
from tests.training.reference import assert_close, assert_same, descent, index_batches, noise, packed, pickled, vector

CUTS = {
    "rest kept": {"batch_size": 5},
    "rest dropped": {"batch_size": 5, "drop_last": True},
    "full batch": {},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_run_is_descent_on_its_batches_in_whatever_pieces(x64, cut):
    # In float64 a wrong batch, key, counter or sign shows in the first digits; rounding of 26 steps stays below 1e-12.
    def run(params, steps, **options):
        return minimize(noisy, params, sgd(0.01, momentum=0.9), DATA, steps=steps, **cut, **options)

    whole = run(start(jnp.float64), 26, key=KEY)
    batches = index_batches(KEY, 26, **cut)
    assert_close(whole, descent(batches, rate=0.01, momentum=0.9, noise=noise(KEY, 26)), 1e-12)
    assert int(whole.state["step"]) == 26
    assert whole.params["w"].dtype == jnp.float64
    for chunk in (1, 3, 5000):
        assert_same(whole, run(start(jnp.float64), 26, key=KEY, steps_per_call=chunk))
    for k, saved in ((5, pickled), (8, packed)):  # with 5 batches an epoch: between two, and in one
        first = run(start(jnp.float64), k, key=KEY)
        params, state = saved(first)
        second = run(params, 26 - k, state=state, steps_per_call=2)
        losses = np.concatenate([first.history["loss"], second.history["loss"]])
        assert_same(whole, second._replace(history={"loss": losses}))


def test_epochs_are_so_many_passes_and_the_key_is_key_0():
    result = minimize(cost, start(), sgd(0.1), DATA, epochs=2, batch_size=5)
    assert_close(result, descent(index_batches(jax.random.key(0), 10, 5)), 1e-5)


def test_sam_gets_the_gradient_elsewhere_of_the_same_batch_and_key_and_counts_it_once(x64):
    def loss(params, batch, *, key, model_state):
        return noisy(params, batch, key=key), {"model_state": model_state + 1}

    options = {"batch_size": 5, "steps": 12, "key": KEY, "has_aux": True, "model_state": jnp.zeros(())}
    result = minimize(loss, start(jnp.float64), gradtx.sam(sgd(0.02), 0.3), DATA, **options)
    batches = index_batches(KEY, 12, 5)
    assert_close(result, descent(batches, rate=0.02, rho=0.3, noise=noise(KEY, 12)), 1e-12)
    assert float(result.state["model_state"]) == 12


def test_complex_params_go_downhill_and_are_perturbed_uphill():
    """Up |z - a|², e leads away from a: at the minimum in z, what is seen is 2 (z + e - a)."""

    def loss(z):
        return jnp.sum(jnp.abs(z - (1 + 2j)) ** 2)

    plain, sam = (
        minimize(loss, jnp.zeros(1, jnp.complex64), tx, steps=1) for tx in (sgd(0.1), gradtx.sam(sgd(0.1), 0.5))
    )
    np.testing.assert_allclose(plain.params, [0.2 * (1 + 2j)], rtol=1e-6)
    away = -(1 + 2j) / np.sqrt(5)
    np.testing.assert_allclose(sam.params, [-0.2 * (0.5 * away - (1 + 2j))], rtol=1e-5)
    assert plain.history["loss"].dtype == np.float32


def test_a_transform_that_wants_value_grad_or_value_fn_is_given_them():
    @gradtx.transform
    def scale_by_value() -> Rule:
        def update(updates, state, *, value, grad, value_fn, params):
            again = value_fn(params) / value
            return jax.tree.map(lambda u, g: value * again * g + 0.0 * u, updates, grad), state

        return Rule(update=update)

    result = minimize(bowl, jnp.zeros(2), scale_by_value() >> gradtx.scale_by_learning_rate(1e-3), steps=3)
    x = np.zeros(2)
    for _ in range(3):
        x = x - 1e-3 * np.sum((x - 3) ** 2) * 2 * (x - 3)
    np.testing.assert_allclose(result.params, x, rtol=1e-5)


def test_the_loss_is_scaled_for_an_optimizer_that_wants_it():
    tx = gradtx.loss_scaling(sgd(0.25), 1024.0)
    result = minimize(bowl, jnp.zeros(2), tx, steps=3)
    np.testing.assert_allclose(result.params, 2.625, rtol=1e-6)
    np.testing.assert_allclose(result.history["loss"], [18.0, 4.5, 1.125], rtol=1e-6)  # the loss itself is recorded
    half = minimize(lambda p: p * 2.0**-10, jnp.bfloat16(0.0), gradtx.loss_scaling(sgd(1.0), 1024.0), steps=2)
    assert half.params == -(2.0**-9)


def test_optax_bfloat16_and_model_state_go_on():
    def run(params, steps, **given):
        with jax.numpy_dtype_promotion("standard"):
            tx = optax.sgd(1e-2, momentum=0.5)
            return minimize(counting, params, tx, DATA, batch_size=5, steps=steps, has_aux=True, **given)

    given = {"model_state": {"n": jnp.zeros(())}}
    whole, first = run(start(jnp.bfloat16), 9, **given), run(start(jnp.bfloat16), 4, **given)
    params, state = pickled(first)
    second = run(params, 5, state=state)
    assert tree_equal((second.params, second.state), (whole.params, whole.state))
    assert {leaf.dtype for leaf in jax.tree.leaves(whole.params)} == {jnp.dtype(jnp.bfloat16)}
    # bfloat16 rounds a weight of 1 to 0.004, nine times.
    at, _ = descent(index_batches(jax.random.key(0), 9, 5), rate=1e-2, momentum=0.5)
    np.testing.assert_allclose(vector(whole.params).astype(float), at, atol=9 * 0.004)


def test_model_state_is_carried_evaluated_and_aux_recorded():
    def measure(params, *, model_state):
        return model_state["n"] + 0.5

    options = {"has_aux": True, "model_state": {"n": jnp.zeros(())}, "evaluate": measure, "key": KEY}
    result = minimize(counting, start(), sgd(0.1), DATA, batch_size=5, epochs=2, **options)
    assert result.state["model_state"]["n"] == 10.0
    assert set(result.history) == {"loss", "seen", "by", "samples", "metric", "evaluated_at"}
    assert result.history["by"]["n"].tolist() == list(range(1, 11))
    assert result.history["samples"].tolist() == [5, 5, 5, 5, 3] * 2
    assert result.history["metric"].tolist() == [5.5, 10.5]
    batches = index_batches(KEY, 10, 5)
    np.testing.assert_allclose(result.history["seen"], [Y[rows].mean() for rows in batches], rtol=1e-6, atol=1e-7)
    assert_close(result, descent(batches), 1e-5)


# The params it takes


@pytest.mark.parametrize("params", [0.0, jnp.asarray(0.0), np.zeros(2), np.float64(0.0), np.float32(0.0)], ids=repr)
def test_numbers_and_numpy_arrays_are_params(params):
    result = minimize(bowl, params, sgd(0.25), steps=2)
    assert result.params.shape == np.shape(params)
    np.testing.assert_allclose(result.params, 2.25, rtol=1e-6)
    assert result.params.dtype == jnp.float32
    assert not result.params.weak_type


def test_tuples_none_leaves_and_no_params():
    def loss(p):
        return bowl(p[0]) + bowl(p[1]["a"])

    result = minimize(loss, (jnp.zeros(2), {"a": jnp.zeros(()), "b": None}), sgd(0.25), steps=1)
    assert result.params[1]["b"] is None
    assert [leaf.tolist() for leaf in jax.tree.leaves(result.params)] == [[1.5, 1.5], 1.5]
    assert minimize(lambda p: jnp.zeros(()), {}, sgd(0.1), steps=3).history["loss"].tolist() == [0, 0, 0]


def test_legacy_keys_are_keys():
    expected = minimize(noisy, start(), sgd(0.1), DATA, batch_size=5, epochs=1, key=jax.random.key(7))
    for key in (jax.random.PRNGKey(7), np.asarray(jax.random.PRNGKey(7))):
        assert_same(minimize(noisy, start(), sgd(0.1), DATA, batch_size=5, epochs=1, key=key), expected)


def test_nothing_of_the_callers_is_donated():
    params, key, data = start(), jax.random.key(5), jax.tree.map(jnp.asarray, DATA)
    first, again = (minimize(noisy, params, sgd(0.1), data, steps=7, batch_size=5, key=key) for _ in range(2))
    assert_same(first, again)
    for _ in range(2):
        minimize(noisy, first.params, sgd(0.1), data, steps=3, batch_size=5, state=first.state)
    for leaf in jax.tree.leaves((params, data, first.params, first.state)):
        assert not leaf.is_deleted()


# Parts of the program


def test_an_epoch_has_the_batches_that_its_key_draws():
    sampling = Sampling(SIZE, 5)
    drawn, expected = sampling.epoch(KEY, 2), sample_batches(jax.random.fold_in(KEY, 2), SIZE, 5)
    assert tree_equal(drawn, expected)
    assert (sampling.per_epoch, Sampling(SIZE, 5, drop_last=True).per_epoch) == (5, 4)
    wholes = Sampling(SIZE, SIZE), Sampling(SIZE, SIZE, replacement=True), sampling
    assert [each.whole for each in wholes] == [True, False, False]


def test_orders_are_those_of_the_epochs_that_the_steps_touch():
    drawn = advancing.draw(Sampling(SIZE, 5), 7, KEY, jnp.int32(9), jnp.int32(16))  # epochs 1, 2 and 3
    assert drawn.full.shape == (3, 4, 5)
    for row, epoch in enumerate((1, 2, 3)):
        expected = sample_batches(jax.random.fold_in(KEY, epoch), SIZE, 5)
        assert np.array_equal(drawn.full[row], expected.full)
        assert np.array_equal(drawn.rest[row], expected.rest)
    part = advancing.draw(Sampling(SIZE, 5), 7, KEY, jnp.int32(5), jnp.int32(10))
    assert part.full.any((1, 2)).tolist() == [True, False, False]  # the second epoch is not touched


def test_the_orders_of_one_call_are_few_where_batches_are_large():
    loss = Loss(cost, False, True, False, False)
    assert Plan(loss).capacity == 1024
    assert Plan(loss, Sampling(60_000, 128)).capacity == 1024
    assert Plan(loss, Sampling(60_000, 2**15)).capacity == 512
    assert Plan(loss, Sampling(10**8, 10**8)).capacity == 1024  # everything in its order: none are drawn
    assert Plan(loss, Sampling(10**8, 10**8, replacement=True)).capacity == 1


def test_scalars_of_one_dtype_travel_as_one_vector():
    tree = {"a": jnp.float32(1), "b": jnp.arange(3), "c": jnp.int32(2), "d": jnp.float32(3), "e": jnp.bool_(True)}
    scalars = advancing.Scalars(tree)
    vectors, others = scalars.together(tree)
    assert [(v.dtype.name, v.tolist()) for v in vectors] == [("float32", [1, 3]), ("int32", [2]), ("bool", [True])]
    assert list(others) == [1]
    assert tree_equal(scalars.apart(vectors, others), tree)


def test_another_rate_seed_start_or_length_compiles_nothing():
    def loss(params, batch):
        return cost(params, batch)

    def bias(params):
        return params["b"]

    def run(tx, **options):
        return minimize(loss, start(), tx, DATA, batch_size=5, evaluate=bias, **options)

    with compilations() as names:
        result = run(adam(1e-2), epochs=2, key=jax.random.key(0))
        run(adam(1e-2), steps=1, state=result.state)
    assert sum("advance" in name for name in names) == 1  # so they are counted
    with compilations() as names:
        run(adam(1e-3, b1=0.8), epochs=2, key=jax.random.key(7))
        run(adam(1e-3), steps=33, steps_per_call=4)
        run(adam(1e-3), steps=3, evaluate_every=2, stop=lambda history: False)
        run(adam(1e-3), steps=3, state=packed(result)[1])
    assert names == []


def test_what_is_refused_is_refused_before_compiling():
    tx, begin = jax.vmap(sgd)(np.array([0.1, 0.2], np.float32)), jax.device_get(start())
    given = {"loss": cost, "params": begin, "tx": sgd(0.1), "data": DATA, "batch_size": 5, "steps": 5}
    wrong = {"loss": lambda p, b: b["x"][:, 0], "data": {"x": X, "y": Y[:-1]}, "tx": tx, "stop": 3.0}
    for name, value in wrong.items():
        with compilations() as names, pytest.raises((TypeError, ValueError), match=r"^gradtx\.minimize: "):
            minimize(**given | {name: value})
        assert names == [], name
