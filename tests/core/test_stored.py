"""`state_dtype=`: statistics stored in half the bytes, and right in the mean."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.core import storage
from gradtx.core.rule import Rule

LOW = "bfloat16"
METHODS = {
    name: factory
    for name, factory in gradtx.registry.items()
    if factory.__module__.startswith("gradtx.") and "state_dtype" in inspect.signature(factory).parameters
}
CHAPTERS = ("momentum", "averages", "adaptive", "optimizers", "wrappers.averaging", "wrappers.iterates")


def required(factory):
    return [p.name for p in inspect.signature(factory).parameters.values() if p.default is p.empty]


def built(name, **arguments):
    values = {"learning_rate": 0.1, "decay": 0.9}
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    return METHODS[name](**{p: values[p] for p in required(METHODS[name])}, **momentum, **arguments)


def statistics(state):
    """The dtypes of the fields of a state that are shaped like the params."""
    fields = {(name, field): value for name, entry in state.items() for field, value in entry.items()}
    return {key: value["w"].dtype.name for key, value in fields.items() if isinstance(value, dict) and "w" in value}


def test_every_transform_that_keeps_statistics_has_the_argument():
    """Asked of the states themselves: whoever keeps an array of a parameter's size can be told its dtype."""
    chapters = tuple(f"gradtx.{chapter}" for chapter in CHAPTERS)
    for name, factory in gradtx.registry.items():
        if factory.__module__.startswith(chapters) and name not in METHODS:
            assert "inner" not in required(factory), name
            tx = factory(*[0.1] * len(required(factory)))
            assert not statistics(jax.eval_shape(tx.init, {"w": jnp.zeros((3, 2))})), name


def test_statistics_take_the_dtype_and_keep_it():
    params = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)}
    ours = [name for name in METHODS if not METHODS[name].__module__.startswith("gradtx.wrappers")]
    for name in sorted(set(ours) - {"amsgrad"}):  # which refuses it
        tx = built(name, state_dtype=LOW)
        state = jax.eval_shape(tx.init, params)
        updates, new = jax.eval_shape(tx.update, params, state, params)
        assert set(statistics(state).values()) == {LOW}, name
        assert statistics(new) == statistics(state), name
        assert updates["w"].dtype == np.float32, name
        assert tx.random, name


@functools.cache
def steps_of(tx, length):
    """So many updates with one gradient, compiled once."""
    step = lambda gradient: lambda state, _: (tx.update(gradient, state, jnp.zeros_like(gradient))[1], None)  # noqa: E731
    return jax.jit(lambda gradient, state: jax.lax.scan(step(gradient), state, None, length=length)[0])


def run(tx, gradient, length, state=None, size=10_000):
    gradient = jnp.full(size, gradient)
    return steps_of(tx, length)(gradient, tx.init(gradient) if state is None else state)


def field(state, name):
    return np.asarray(gradtx.find(state, name), np.float64)


def test_a_second_moment_in_bfloat16_decays_as_it_should():
    """500 ones, then 500 zeros, decay 0.999; rounded to the nearest it would stand still."""
    tx = gradtx.scale_by_rms(0.999, state_dtype=LOW)
    risen = run(tx, 1.0, 500)
    assert abs(field(risen, "nu").mean() / (1 - 0.999**500) - 1) < 0.01
    nu = field(run(tx, 0.0, 500, risen), "nu")
    assert abs(nu.mean() / (0.999**500 * (1 - 0.999**500)) - 1) < 0.01
    assert 0.02 < nu.std() / nu.mean() < 0.16  # the pages state up to 12% per element
    nearest = jnp.asarray(0.18, LOW)
    assert (jnp.float32(0.999) * nearest.astype(jnp.float32)).astype(LOW) == nearest


AVERAGES = [
    (gradtx.scale_by_momentum(0.999, state_dtype=LOW), "mu", 0.7),
    (gradtx.scale_by_lion(0.9, 0.999, state_dtype=LOW), "mu", 0.7),
    (gradtx.scale_by_adadelta(0.999, state_dtype=LOW), "mean_square_gradient", 0.49),
]


@pytest.mark.parametrize(("tx", "name", "limit"), AVERAGES, ids=lambda value: getattr(value, "name", None))
def test_averages_are_right_in_the_mean(tx, name, limit):
    assert abs(field(run(tx, 0.7, 300), name).mean() / (1 - 0.999**300) / limit - 1) < 0.005


def test_what_only_grows_and_what_is_a_maximum_are_right_in_the_mean():
    total = field(run(gradtx.scale_by_adagrad(0.0, state_dtype=LOW), 1.0, 1000), "sum_of_squares")
    assert abs(total.mean() / 1000 - 1) < 0.01  # to the nearest it would stop at 256
    assert total.std() / total.mean() < 0.08
    tx = gradtx.scale_by_infinity_norm(0.999, 0.0, state_dtype=LOW)
    high = run(tx, 1.003, 500)
    nu = field(high, "nu")
    assert (nu <= 1.003 * (1 + 2**-7)).all()
    assert abs(field(run(tx, 0.0, 500, high), "nu").mean() / (nu.mean() * 0.999**500) - 1) < 0.01


@pytest.mark.parametrize("wrapper", [gradtx.exponential_averaging, gradtx.polyak_averaging])
def test_averages_of_the_params_are_right_in_the_mean(wrapper):
    """4000 params that fall from 1 to 0.8 in 200 steps: their average in bfloat16 is that in float32."""
    params, means = jnp.ones(4000), []
    for tx in (wrapper(gradtx.sgd(1e-3)), wrapper(gradtx.sgd(1e-3), state_dtype=LOW)):

        def step(carry, _, tx=tx):
            updates, state = tx.update(params, carry[1], carry[0])
            return (carry[0] + updates, state), None

        _, state = jax.jit(lambda w, tx=tx, s=step: jax.lax.scan(s, (w, tx.init(w)), length=200)[0])(params)
        means.append(np.asarray(gradtx.averaged_params(state), np.float64).mean())
    assert 0.88 < means[0] < 0.92
    assert abs(means[1] - means[0]) < 1e-3


def test_the_dtype_of_each_part_is_its_own():
    tx = gradtx.scale_by_momentum(state_dtype=LOW) + gradtx.scale_by_rms() >> gradtx.scale(-1e-3)
    kinds = statistics(jax.eval_shape(tx.init, {"w": np.zeros(2)}))
    assert kinds == {("scale_by_momentum", "mu"): LOW, ("scale_by_rms", "nu"): "float32"}


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


@pytest.mark.parametrize(("name", "argument"), NAMES_OF_OPTAX)
def test_mu_dtype_stores_the_first_moment_alone_as_in_optax(name, argument):
    params, gradient = {"w": np.ones(4, np.float32)}, {"w": np.full(4, 0.3, np.float32)}
    tx = built(name, **{argument: jnp.bfloat16})
    kinds = statistics(jax.eval_shape(tx.init, params))
    assert kinds
    for (_, field), kind in kinds.items():
        assert kind == (LOW if field in FIRST_MOMENTS else "float32")
    assert tx == built(name, **{argument: "bfloat16"}) != built(name)

    arguments = {"learning_rate": 0.1, "decay": 0.9, "momentum": 0.9, argument: jnp.bfloat16}
    made = getattr(optax, name)
    theirs = made(**{k: v for k, v in arguments.items() if k in inspect.signature(made).parameters})
    with jax.numpy_dtype_promotion("standard"):
        expected = theirs.update(gradient, theirs.init(params), params)[0]["w"]
    updates = tx.update(gradient, tx.init(params), params)[0]["w"]
    assert np.allclose(updates, expected, rtol=0.02)  # of bfloat16's 8 binary digits


@pytest.mark.parametrize("name", sorted({name for name, _ in NAMES_OF_OPTAX}))
def test_mu_dtype_goes_before_state_dtype_and_two_names_for_one_are_refused(name):
    argument = dict(NAMES_OF_OPTAX)[name]
    if set(statistics(jax.eval_shape(built(name).init, {"w": np.zeros(2)}))) > {("scale_by_momentum", "mu")}:
        tx = built(name, mu_dtype="float32", state_dtype="float32" if name == "amsgrad" else LOW)
        kinds = statistics(jax.eval_shape(tx.init, {"w": np.zeros(2)}))
        assert kinds["scale_by_momentum", "mu"] == "float32"
        assert kinds["scale_by_rms", "nu"] == ("float32" if name == "amsgrad" else LOW)
    else:
        with pytest.raises(ValueError, match=f"{name}: {argument} and state_dtype say the same here"):
            built(name, **{argument: LOW, "state_dtype": LOW})


def test_a_first_moment_in_bfloat16_is_right_in_the_mean():
    gradient, n = jnp.full(10_000, 0.3), 200
    wanted = 0.3 * (1 - 0.99**n)
    tx = gradtx.scale_by_adam(0.99, mu_dtype=LOW)
    mu = field(run(tx, gradient, n), "mu")
    assert abs(np.asarray(mu, np.float64).mean() / wanted - 1) < 2e-3


def test_statistics_and_leaves_and_steps_are_rounded_by_different_draws():
    tx, names = gradtx.scale_by_adadelta(0.9, state_dtype=LOW), ("mean_square_gradient", "mean_square_step")
    params = {"a": jnp.full(4000, 0.3), "b": jnp.full(4000, 0.3)}
    update = jax.jit(tx.update)
    first = update(params, tx.init(params), params)[1]
    key = first["scale_by_adadelta"][storage.KEY]
    moved = tx.init(params)
    moved["scale_by_adadelta"][storage.KEY] = key
    later = update(params, moved, params)[1]
    fields = [gradtx.find(state, name) for state in (first, later) for name in names]
    ups = [np.asarray(leaf > leaf.mean(), np.float64) for field in fields for leaf in field.values()]
    for i, up in enumerate(ups):
        for other in ups[:i]:
            assert abs(np.corrcoef(up, other)[0, 1]) < 5 / np.sqrt(4000)
    assert gradtx.tree_equal(update(params, tx.init(params), params)[1], first)
    keys = [made.init(params)[made.name][storage.KEY] for made in (tx, gradtx.scale_by_lion(state_dtype=LOW))]
    assert (keys[0] != keys[1]).any()


def test_float64_statistics_may_be_stored_in_float32(x64):
    params = {"w": np.linspace(-1, 1, 5)}
    tx = gradtx.adam(0.1, state_dtype="float32")
    state = jax.eval_shape(tx.init, params)
    assert set(statistics(state).values()) == {"float32"}
    updates, new = jax.eval_shape(tx.update, params, state, params)
    assert (updates["w"].dtype, statistics(new)) == (np.float64, statistics(state))


def test_fields_that_are_no_statistics_keep_their_dtype():
    @gradtx.transform
    def two_fields(decay: gradtx.Unit = 0.5) -> Rule:
        def update(updates, state):
            return updates, {name: jax.tree.map(lambda leaf: leaf + 1, value) for name, value in state.items()}

        init = lambda params: {"low": gradtx.tree.zeros_like(params), "exact": gradtx.tree.zeros_like(params)}  # noqa: E731
        return Rule(init, update, statistics=("low",), state_dtype=LOW)

    params = {"w": np.zeros(2, np.float32)}
    state = two_fields().init(params)
    _, new = two_fields().update(params, state)
    assert statistics(state) == statistics(new) == {("two_fields", "low"): LOW, ("two_fields", "exact"): "float32"}
    assert new["two_fields"]["exact"]["w"].tolist() == [1.0, 1.0]
