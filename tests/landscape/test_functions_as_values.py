"""The test functions as values and as losses: dtypes, refusals, parameters, noise."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.landscape import functions
from gradtx.training import losses
from tests.core.words import assert_words, refusal

EVERY = list(functions.EVERY.values())
SIZED = [
    *EVERY,
    *(functions.rosenbrock.replace(dimension=n) for n in (4, 12, 100)),
    *(functions.rastrigin.replace(dimension=n) for n in (3, 4)),
    functions.ackley.replace(dimension=5),
    *(functions.styblinski_tang.replace(dimension=n) for n in (1, 8)),
    functions.bowl.replace(dimension=20, condition=1e4),
]


# Arrays in and out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_dtype_is_kept(function, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jax.ShapeDtypeStruct((2,), dtype)
        value, gradient = jax.eval_shape(jax.value_and_grad(function), x)
        assert (value.shape, value.dtype, gradient.dtype) == ((), dtype, dtype)
        assert not value.weak_type
        assert jax.eval_shape(functions.noisy(function, 0.1), x, key=jax.random.key(0)).dtype == dtype


@pytest.mark.parametrize("function", EVERY, ids=repr)
def test_lists_arrays_and_jit(function):
    x = jnp.asarray(function.start, jnp.float32)
    value = function(x)
    assert value.dtype == jnp.float32
    assert function(function.start.tolist()) == function(function.start) == function([*x]) == value
    assert float(jax.jit(function)(x)) == pytest.approx(float(value), rel=1e-5)


def test_an_equal_function_is_not_traced_again():
    traced = []

    def run(function, x):
        traced.append(function)
        return function(x)

    static = jax.jit(run, static_argnums=0)
    static(functions.rosenbrock.replace(dimension=3), jnp.ones(3))
    static(functions.rosenbrock.replace(dimension=3), jnp.ones(3))
    static(functions.rastrigin.replace(dimension=3), jnp.ones(3))
    assert [f.name for f in traced] == ["rosenbrock", "rastrigin"]


def test_refused_points():
    for wrong in (jnp.zeros(3), jnp.zeros(()), 0.5, jnp.zeros((2, 2)), jnp.zeros((1, 2)), []):
        shape = str(np.shape(wrong))
        text = refusal(ValueError, functions.beale, wrong)
        assert_words(text, "gradtx.landscape.functions.beale: x has shape", shape, "allowed: (2,)", "jax.vmap")
        assert "replace" not in text
    text = refusal(ValueError, functions.rosenbrock.replace(dimension=3), [1.0, 2.0])
    assert_words(text, "functions.rosenbrock: x has shape (2,); allowed: (3,)", "replace(dimension=...)")
    for wrong in ([1, 2], np.array([1, 2]), jnp.array([True, False])):
        text = refusal(TypeError, functions.beale, wrong)
        assert_words(text, "gradtx.landscape.functions.beale: x has dtype", "Make it float: jnp.asarray(x, float)")
    text = refusal(TypeError, functions.ackley, jnp.array([1j, 0]))
    assert_words(text, "functions.ackley: x has dtype complex64; allowed: real", "x.real")
    for wrong in ({"x": 1.0}, None, "xy", [[1.0], [1.0, 2.0]], ["xy", "yz"]):
        text = refusal(TypeError, functions.booth, wrong)
        assert_words(text, "functions.booth: x is", type(wrong).__name__, "allowed: an array of 2 floats")
    text = refusal(TypeError, functions.booth, ["xy" * 50])
    assert "xy" * 30 not in text


# Values ---------------------------------------------------------------------------------------------------------------


def test_replace():
    function = functions.rosenbrock.replace(dimension=np.int64(10))
    assert (function.dimension, type(function.dimension), function.start.shape) == (10, int, (10,))
    assert len(function.domain) == 10
    assert function.minima[0].tolist() == [1.0] * 10
    assert functions.rosenbrock.dimension == 2  # as before
    assert functions.bowl.replace(condition=4).replace(dimension=3) == functions.bowl.replace(dimension=3, condition=4)
    bowl = functions.bowl.replace(condition=100, dimension=3)
    assert np.diag(jax.jit(jax.hessian(bowl))(jnp.zeros(3))).tolist() == pytest.approx([1.0, 10.0, 100.0])
    assert functions.beale.replace() == functions.beale


def test_refused_parameters():
    text = refusal(TypeError, functions.rosenbrock.replace, dimensions=3)
    assert text == "gradtx.landscape.functions.rosenbrock: no parameter 'dimensions'; allowed: dimension."
    assert_words(refusal(TypeError, functions.bowl.replace, a=1), "no parameter 'a'; allowed: dimension, condition.")
    assert_words(refusal(TypeError, functions.beale.replace, dimension=2), "functions.beale", "allowed: none.")
    for wrong in (True, 2.0, "2", None, np.ones(2, int)):
        text = refusal(TypeError, functions.rosenbrock.replace, dimension=wrong)
        assert_words(text, "functions.rosenbrock: dimension is", repr(wrong), "allowed: an int, at least 2.")
    for function, least in ((functions.bowl, 2), (functions.rosenbrock, 2), (functions.ackley, 1)):
        text = refusal(ValueError, function.replace, dimension=least - 1)
        assert_words(text, f"functions.{function.name}: dimension is {least - 1}", f"an int, at least {least}.")
        assert function.replace(dimension=least).dimension == least
    for wrong in (0.5, float("inf"), float("nan"), -3, np.float32(0.5)):
        text = refusal(ValueError, functions.bowl.replace, condition=wrong)
        assert_words(text, f"functions.bowl: condition is {wrong!r}; allowed: a finite number, at least 1.")
    for wrong in (True, np.bool_(True), "10", 1j, np.complex64(2), None, jnp.ones(())):
        assert_words(refusal(TypeError, functions.bowl.replace, condition=wrong), "condition is", "a finite number")
    assert_words(refusal(ValueError, functions.Function, "mine"), "name is 'mine'; allowed: bowl, valley,")


@pytest.mark.parametrize("function", SIZED, ids=repr)
def test_equal_hashed_copied_and_saved_by_name_and_parameters(function):
    if function.dimension < 10:
        assert len(function.minima) == len(function.minima)  # what is kept of them is not saved
    noisy = functions.noisy(function, 0.5)
    for value in (function, noisy):
        for other in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
            assert other == value
            assert hash(other) == hash(value)
            assert repr(other) == repr(value)
            assert other.__doc__ == value.__doc__
    assert len(pickle.dumps(function)) < 300
    assert sum(function == other for other in SIZED) == 1
    assert sum(hash(function) == hash(other) for other in SIZED) == 1


def test_they_cannot_be_changed():
    with pytest.raises(AttributeError):
        functions.beale.name = "mine"
    functions.beale.start[0] = 100.0  # a copy
    assert functions.beale.start[0] == 1.2


def test_how_they_are_shown():
    assert repr(functions.beale) == "beale"
    assert repr(functions.rosenbrock.replace(dimension=10)) == "rosenbrock(dimension=10)"
    assert repr(functions.bowl.replace(condition=np.float32(4))) == "bowl(dimension=2, condition=4.0)"
    assert repr(functions.noisy(functions.beale, 1)) == "Noisy(function=beale, scale=1.0)"


# Noise ----------------------------------------------------------------------------------------------------------------


def test_the_noise_of_the_gradient():
    noisy, x, count = functions.noisy(functions.beale, 0.3), jnp.array([1.0, -0.5]), 10_000
    keys = jax.random.split(jax.random.key(0), count)
    values, gradients = jax.jit(jax.vmap(lambda key: jax.value_and_grad(noisy)(x, key=key)))(keys)
    noise = np.asarray(gradients - jax.grad(functions.beale)(x)[None]) / 0.3
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 / count**0.5)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=5 * (2 / count) ** 0.5)
    np.testing.assert_allclose(values, float(functions.beale(x)) + 0.3 * noise @ np.asarray(x), rtol=1e-5)


def test_the_same_key_gives_the_same_bits():
    noisy, x = functions.noisy(functions.rastrigin, 0.1), functions.rastrigin.start
    gradient = jax.jit(jax.grad(noisy))
    first, again = gradient(x, key=jax.random.key(3)), gradient(x, key=jax.random.key(3))
    assert first.tolist() == again.tolist() != gradient(x, key=jax.random.key(4)).tolist()
    assert noisy(x, key=jax.random.PRNGKey(3)).shape == ()
    quiet = functions.noisy(functions.rastrigin, 0)
    assert quiet(x, key=jax.random.key(3)) == functions.rastrigin(x)


def test_what_is_known_is_passed_through():
    function = functions.himmelblau
    noisy = functions.noisy(function, 2)
    assert (noisy.function, noisy.scale, type(noisy.scale)) == (function, 2.0, float)
    for name in ("name", "dimension", "domain"):
        assert getattr(noisy, name) == getattr(function, name)
    for name in ("start", "minima", "saddles", "maxima", "kinks"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(function, name))
    assert noisy == functions.noisy(function, 2.0) != functions.noisy(function, 1.0)
    assert noisy != functions.noisy(functions.booth, 2.0)


def test_they_are_losses():
    assert not losses.read_loss("test", functions.valley, has_aux=False, has_data=False).wants_key
    noisy = functions.noisy(functions.valley, 0.1)
    loss = losses.read_loss("test", noisy, has_aux=False, has_data=False)
    assert (loss.function, loss.wants_key, loss.wants_batch) == (noisy, True, False)
    start = jnp.asarray(noisy.start, jnp.float32)
    result = gradtx.minimize(noisy, start, gradtx.sgd(0.2), steps=200, key=jax.random.key(0))
    assert float(functions.valley(result.params)) < 0.1 < float(functions.valley(start))


def test_refused_noise():
    text = refusal(TypeError, functions.noisy, lambda x: x, 0.1)
    assert_words(text, "gradtx.landscape.functions.noisy: function is <function", "allowed: a function of this module")
    for wrong in (-0.1, float("nan"), float("inf")):
        text = refusal(ValueError, functions.noisy, functions.beale, wrong)
        assert text == f"gradtx.landscape.functions.noisy: scale is {wrong!r}; allowed: a finite number, at least 0."
    for wrong in (True, "1", None):
        assert_words(refusal(TypeError, functions.noisy, functions.beale, wrong), f"scale is {wrong!r}; allowed")
    noisy = functions.noisy(functions.beale, 0.1)
    assert_words(refusal(TypeError, noisy, [1.0, 1.0], key=3), "noisy(beale, 0.1): key is 3", "jax.random.key")
    refusal(TypeError, noisy, [1.0, 1.0])
    keys = jax.random.split(jax.random.key(0), 3)
    assert_words(refusal(ValueError, noisy, [1.0, 1.0], key=keys), "several keys", "jax.vmap")
    assert_words(refusal(ValueError, noisy, [1.0], key=jax.random.key(0)), "functions.beale: x has shape (1,)")
