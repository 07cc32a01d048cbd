"""`stored`: statistics kept in half the bytes, and right in the mean."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import gradtx
from gradtx.core.fields import Field
from gradtx.testing.runs import take_step
from tests.core.samples import fields_of
from tests.records import RECORDS
from tests.running import transform
from tests.test_laws import extra_of

LOW = "bfloat16"
low = functools.partial(gradtx.stored, dtype=LOW)
PARAMS = {"kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "b": np.float32(0.3)}


def params_of(tx):
    return {"kernel": PARAMS["kernel"]} if RECORDS[tx.name].matrices else PARAMS


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def statistics(tx, params=PARAMS):
    """The dtypes of what a transform keeps for each element, by name."""
    state = jax.eval_shape(tx.init, params)
    kept = [(place, value) for place, field, value in fields_of(tx, state) if field.storable or not field.low]
    return {place[-1]: dtypes(value) for place, value in kept}


# Every transform ------------------------------------------------------------------------------------------------------


def usual():
    for record in RECORDS.values():
        tx = transform(record.name, record.variants[0])
        kept = [(place, field) for place, field in tx.declared.items() if field.storable]
        if kept and tx.name != "stored":
            yield pytest.param(tx, kept, id=record.name)


@pytest.mark.parametrize(("tx", "kept"), list(usual()))
def test_every_declared_statistic_is_stored_and_nothing_else(tx, kept):
    """And stays so; the updates have their dtype, the state its names, and the first update is the same."""
    if exact := [field.exact for _, field in kept if field.exact]:
        with pytest.raises(ValueError, match=exact[0]):
            low(tx)
        kept, dtype = [], "float32"
    else:
        dtype = LOW
    stored, extra = gradtx.stored(tx, dtype), extra_of(tx)
    params = params_of(tx)
    state, plain = (jax.eval_shape(made.init, params) for made in (stored, tx))
    places = [place for place, _ in kept]
    changed = fields_of(stored, state)
    for (place, field, value), (_, _, before) in zip(changed, fields_of(tx, plain), strict=True):
        expected = dtypes(before) if place not in places else {LOW} if jax.tree.leaves(before) else set()
        assert dtypes(value) == expected, place
        assert jax.tree.map(jnp.shape, value) == jax.tree.map(jnp.shape, before), field
    assert state.keys() - plain.keys() == {"stored"}
    assert stored.declared.keys() == tx.declared.keys()
    assert (stored.facts.random, stored.facts.reach, stored.facts.traits) == (True, tx.facts.reach, tx.facts.traits)
    step = checkify.checkify(lambda state: take_step(stored, params, state, params, extra))
    _, (updates, new) = jax.eval_shape(step, state)
    assert new == state
    assert dtypes(updates) == {"float32"}


def test_in_the_dtype_that_it_has_it_changes_nothing():
    tx, grads = gradtx.lookahead(gradtx.adam(0.1), 2), {"w": jnp.asarray(PARAMS["kernel"])}
    stored = gradtx.stored(tx, "float32")
    expected, state = tx.init(grads), stored.init(grads)
    for _ in range(3):
        ours, expected = tx.update(grads, expected, grads)
        theirs, state = stored.update(grads, state, grads)
        assert gradtx.tree_equal(ours, theirs)
    assert gradtx.tree_equal({name: state[name] for name in expected}, expected)
    first = low(tx)  # what is rounded is read at the next update
    assert gradtx.tree_equal(
        first.update(grads, first.init(grads), grads)[0], tx.update(grads, tx.init(grads), grads)[0]
    )


def test_no_dtype_is_no_wrapper():
    tx = gradtx.adam(0.1)
    assert gradtx.stored(tx, None) is tx
    assert low(tx) == gradtx.stored(tx, jnp.bfloat16) == gradtx.stored(tx, np.dtype(LOW)) != tx
    assert low(tx).replace(dtype="float32") == gradtx.stored(tx, "float32")
    assert low(tx).replace(b1=0.5).inner == gradtx.adam(0.1, b1=0.5)


# Right in the mean ----------------------------------------------------------------------------------------------------


@functools.cache
def steps_of(tx, length):
    """A number of updates with one gradient, compiled once."""
    step = lambda gradient: lambda state, _: (tx.update(gradient, state, jnp.zeros_like(gradient))[1], None)  # noqa: E731
    return jax.jit(lambda gradient, state: jax.lax.scan(step(gradient), state, None, length=length)[0])


def run(tx, gradient, length, state=None, size=10_000):
    gradient = jnp.full(size, gradient)
    return steps_of(tx, length)(gradient, tx.init(gradient) if state is None else state)


def field(state, name):
    return np.asarray(gradtx.find(state, name), np.float64)


def test_a_second_moment_in_bfloat16_decays_as_it_should():
    """500 ones, then 500 zeros, decay 0.999; rounded to the nearest it would stand still."""
    tx = low(gradtx.scale_by_rms(0.999))
    risen = run(tx, 1.0, 500)
    assert abs(field(risen, "nu").mean() / (1 - 0.999**500) - 1) < 0.01
    nu = field(run(tx, 0.0, 500, risen), "nu")
    assert abs(nu.mean() / (0.999**500 * (1 - 0.999**500)) - 1) < 0.01
    assert 0.02 < nu.std() / nu.mean() < 0.16  # the pages state up to 12% per element
    nearest = jnp.asarray(0.18, LOW)
    assert (jnp.float32(0.999) * nearest.astype(jnp.float32)).astype(LOW) == nearest


AVERAGES = [
    (low(gradtx.scale_by_momentum(0.999)), "mu", 0.7),
    (low(gradtx.scale_by_lion(0.9, 0.999)), "mu", 0.7),
    (low(gradtx.scale_by_adadelta(0.999)), "mean_square_gradient", 0.49),
    (low(gradtx.lookahead(gradtx.scale_by_rms(0.999), 7)), "nu", 0.49),
    (low(gradtx.partition({"all": gradtx.scale_by_rms(0.999)}, "all")), "nu", 0.49),
]


@pytest.mark.parametrize(("tx", "name", "limit"), AVERAGES, ids=lambda value: getattr(value, "inner", None) and "")
def test_averages_are_right_in_the_mean(tx, name, limit):
    assert abs(field(run(tx, 0.7, 300), name).mean() / (1 - 0.999**300) / limit - 1) < 0.005


def test_what_only_grows_and_what_is_a_maximum_are_right_in_the_mean():
    total = field(run(low(gradtx.scale_by_adagrad(0.0)), 1.0, 1000), "sum_of_squares")
    assert abs(total.mean() / 1000 - 1) < 0.01  # to the nearest it would stop at 256
    assert total.std() / total.mean() < 0.08
    tx = low(gradtx.scale_by_infinity_norm(0.999, 0.0))
    high = run(tx, 1.003, 500)
    nu = field(high, "nu")
    assert (nu <= 1.003 * (1 + 2**-7)).all()
    assert abs(field(run(tx, 0.0, 500, high), "nu").mean() / (nu.mean() * 0.999**500) - 1) < 0.01


@pytest.mark.parametrize("wrapper", [gradtx.exponential_averaging, gradtx.polyak_averaging])
def test_averages_of_the_params_are_right_in_the_mean(wrapper):
    """4000 params that fall from 1 to 0.8 in 200 steps: their average in bfloat16 is that in float32."""
    params, means = jnp.ones(4000), []
    for tx in (wrapper(gradtx.sgd(1e-3)), low(wrapper(gradtx.sgd(1e-3)))):

        def step(carry, _, tx=tx):
            updates, state = tx.update(params, carry[1], carry[0])
            return (carry[0] + updates, state), None

        _, state = jax.jit(lambda w, tx=tx, s=step: jax.lax.scan(s, (w, tx.init(w)), length=200)[0])(params)
        means.append(np.asarray(gradtx.averaged_params(state), np.float64).mean())
    assert 0.88 < means[0] < 0.92
    assert abs(means[1] - means[0]) < 1e-3


def test_a_first_moment_in_bfloat16_is_right_in_the_mean():
    gradient, n = jnp.full(10_000, 0.3), 200
    wanted = 0.3 * (1 - 0.99**n)
    for tx in (gradtx.scale_by_adam(0.99, mu_dtype=LOW), low(gradtx.scale_by_adam(0.99), fields=("mu",))):
        assert abs(field(run(tx, gradient, n), "mu").mean() / wanted - 1) < 2e-3


def test_statistics_and_leaves_and_steps_are_rounded_by_different_draws():
    tx, names = low(gradtx.scale_by_adadelta(0.9)), ("mean_square_gradient", "mean_square_step")
    params = {"a": jnp.full(4000, 0.3), "b": jnp.full(4000, 0.3)}
    update = jax.jit(tx.update)
    first = update(params, tx.init(params), params)[1]
    moved = tx.init(params) | {"stored": first["stored"]}
    later = update(params, moved, params)[1]
    found = [gradtx.find(state, name) for state in (first, later) for name in names]
    ups = [np.asarray(leaf > leaf.mean(), np.float64) for one in found for leaf in one.values()]
    for i, up in enumerate(ups):
        for other in ups[:i]:
            assert abs(np.corrcoef(up, other)[0, 1]) < 5 / np.sqrt(4000)
    assert gradtx.tree_equal(update(params, tx.init(params), params)[1], first)
    keys = [made.init(params)["stored"]["key"] for made in (tx, low(gradtx.scale_by_lion()))]
    assert (keys[0] != keys[1]).any()


# Some of them ---------------------------------------------------------------------------------------------------------


def test_the_dtype_of_each_part_is_its_own():
    tx = low(gradtx.scale_by_momentum()) + gradtx.scale_by_rms() >> gradtx.scale(-1e-3)
    assert statistics(tx) == {"mu": {LOW}, "nu": {"float32"}}
    assert list(tx.init(PARAMS)) == ["scale_by_momentum", "stored", "scale_by_rms", "scale"]
    two = low(gradtx.ema(0.9)) >> low(gradtx.ema(0.9))
    assert list(two.init(PARAMS)) == ["ema", "stored", "ema_2", "stored_2"]
    assert dtypes(jax.eval_shape(two.init, PARAMS)["ema_2"]["mean"]) == {LOW}


def test_fields_are_named_wherever_they_are():
    assert statistics(low(gradtx.adam(0.1), fields=("mu",))) == {"mu": {LOW}, "nu": {"float32"}}
    around = gradtx.lookahead(gradtx.clip(1.0) >> gradtx.adam(0.1))
    assert statistics(low(around, fields=("nu", "slow"))) == {"mu": {"float32"}, "nu": {LOW}, "slow": {LOW}}
    assert statistics(low(around)) == {"mu": {LOW}, "nu": {LOW}, "slow": {LOW}}


def test_one_around_another_stores_what_is_left():
    tx = low(gradtx.adam(0.1, mu_dtype=LOW), fields=("nu",))
    assert statistics(tx) == {"mu": {LOW}, "nu": {LOW}}
    assert statistics(low(gradtx.adam(0.1, mu_dtype="float32"))) == {"mu": {"float32"}, "nu": {LOW}}
    state = tx.init(PARAMS)
    assert {"stored", "stored_2"} < state.keys()
    assert (state["stored"]["key"] != state["stored_2"]["key"]).any()
    _, new = tx.update(PARAMS, state, PARAMS)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    for name in ("stored", "stored_2"):
        assert (new[name]["key"] != state[name]["key"]).any()


def test_in_a_partition_each_group_is_its_own_and_around_it_all_are():
    groups = {"a": gradtx.scale_by_rms(), "b": gradtx.scale_by_momentum()}
    labels = {"kernel": "a", "b": "b"}
    one = gradtx.partition(groups | {"a": low(groups["a"])}, labels)
    for tx, of_b in ((one, "float32"), (low(gradtx.partition(groups, labels)), LOW)):
        assert statistics(tx) == {"nu": {LOW}, "mu": {of_b}}
        _, new = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        assert dtypes(gradtx.find(new, "nu")) == {LOW}
        assert dtypes(gradtx.find(new, "mu")) == {of_b}


NAMES_OF_OPTAX = [
    (name, argument)
    for name in sorted(set(dir(optax)) & set(gradtx.registry))
    for argument in inspect.signature(getattr(optax, name)).parameters
    if argument in ("mu_dtype", "accumulator_dtype")
]
FIRST_MOMENTS = ("mu", "mean")


def test_the_names_of_optax_are_found():
    assert len(NAMES_OF_OPTAX) == 11
    assert {argument for _, argument in NAMES_OF_OPTAX} == {"mu_dtype", "accumulator_dtype"}


def built(name, **arguments):
    values = {"learning_rate": 0.1, "decay": 0.9}
    factory, momentum = gradtx.registry[name], {"momentum": 0.9} if name == "sgd" else {}
    parameters = inspect.signature(factory).parameters.values()
    return factory(**{p.name: values[p.name] for p in parameters if p.default is p.empty}, **momentum, **arguments)


@pytest.mark.parametrize(("name", "argument"), NAMES_OF_OPTAX)
def test_mu_dtype_stores_the_first_moment_alone_as_in_optax(name, argument):
    params, gradient = {"w": np.ones(4, np.float32)}, {"w": np.full(4, 0.3, np.float32)}
    tx = built(name, **{argument: jnp.bfloat16})
    kinds = statistics(tx, params)
    assert kinds == {kept: {LOW if kept in FIRST_MOMENTS else "float32"} for kept in kinds}
    assert tx == built(name, **{argument: "bfloat16"}) != built(name)

    arguments = {"learning_rate": 0.1, "decay": 0.9, "momentum": 0.9, argument: jnp.bfloat16}
    made = getattr(optax, name)
    theirs = made(**{k: v for k, v in arguments.items() if k in inspect.signature(made).parameters})
    with jax.numpy_dtype_promotion("standard"):
        expected = theirs.update(gradient, theirs.init(params), params)[0]["w"]
    updates = tx.update(gradient, tx.init(params), params)[0]["w"]
    assert np.allclose(updates, expected, rtol=0.02)  # of bfloat16's 8 binary digits


def test_what_has_no_other_statistics_is_stored_itself():
    assert gradtx.ema(0.9, accumulator_dtype=LOW) == low(gradtx.ema(0.9))
    assert gradtx.scale_by_lion(mu_dtype=LOW) == low(gradtx.scale_by_lion())


# Other dtypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tx", [gradtx.adam(0.1), gradtx.lookahead(gradtx.adam(0.1))], ids=lambda tx: tx.name)
def test_float64_statistics_may_be_stored_in_float32(x64, tx):
    params = {"w": np.linspace(-1, 1, 5)}
    tx = gradtx.stored(tx, "float32")
    state = jax.eval_shape(tx.init, params)
    assert all(kinds == {"float32"} for kinds in statistics(tx, params).values())
    updates, new = jax.eval_shape(tx.update, params, state, params)
    assert (updates["w"].dtype, new) == (np.float64, state)


def test_what_is_no_statistic_keeps_its_dtype():
    @gradtx.transform
    def some(decay: gradtx.Unit = 0.5) -> gradtx.Rule:
        def update(u, *, low, exact, number, own):
            return u, {"low": low + 1, "exact": exact + 1, "number": number + 1, "own": own}

        fields = gradtx.fields
        exact = Field(start=1.0, dtype="params")
        return gradtx.per_element(
            update, low=fields.like(), exact=exact, number=fields.scalar(2.0), own=fields.remainder()
        )

    params = {"w": np.zeros(2, np.float32)}
    tx = low(some())
    _, new = tx.update(params, tx.init(params))
    assert {name: dtypes(value) for name, value in new["some"].items() if name != "count"} == {
        "low": {LOW},
        "exact": {"float32"},
        "number": {"float32"},
        "own": {"float32"},
    }
    assert new["some"]["exact"]["w"].tolist() == [2.0, 2.0]
    assert new["some"]["number"]["w"] == 3
