"""Functions to try optimizers on: their values against NumPy, and their stationary points against a search."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import gradtx
from gradtx.landscape import functions
from gradtx.training import losses
from tests.core.words import assert_words, refusal

EVERY = list(functions.EVERY.values())
N_D = [functions.bowl, functions.rosenbrock, functions.rastrigin, functions.ackley, functions.styblinski_tang]
SIZED = [
    *EVERY,
    *(functions.rosenbrock.replace(dimension=n) for n in (4, 12, 100)),
    *(functions.rastrigin.replace(dimension=n) for n in (3, 4)),
    functions.ackley.replace(dimension=5),
    *(functions.styblinski_tang.replace(dimension=n) for n in (1, 8)),
    functions.bowl.replace(dimension=20, condition=1e4),
]


# Values, transcribed from the literature ------------------------------------------------------------------------------


def bowl(x, condition=10.0):
    n = len(x)
    return sum(condition ** (i / (n - 1)) * x[i] ** 2 for i in range(n)) / 2


def beale(x):
    return sum((c - x[0] * (1 - x[1] ** i)) ** 2 for i, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def rosenbrock(x):
    return sum(100 * (x[i + 1] - x[i] ** 2) ** 2 + (x[i] - 1) ** 2 for i in range(len(x) - 1))


def rastrigin(x):
    return 10 * len(x) + sum(v**2 - 10 * np.cos(2 * np.pi * v) for v in x)


def ackley(x):
    r, waves = np.sqrt(np.mean(x**2)), np.mean(np.cos(2 * np.pi * x))
    return -20 * np.exp(-0.2 * r) - np.exp(waves) + 20 + np.e


NUMPY = {
    "bowl": bowl,
    "valley": lambda x: 0.05 * x[0] ** 2 + 2 * x[1] ** 2,
    "booth": lambda x: 5 * x[0] ** 2 + 8 * x[0] * x[1] + 5 * x[1] ** 2 - 34 * x[0] - 38 * x[1] + 74,
    "matyas": lambda x: 0.26 * x[0] ** 2 + 0.26 * x[1] ** 2 - 0.48 * x[0] * x[1],
    "saddle": lambda x: (x[0] + x[1]) * (x[0] - x[1]),
    "monkey_saddle": lambda x: ((x[0] + 1j * x[1]) ** 3).real,
    "beale": beale,
    "rosenbrock": rosenbrock,
    "himmelblau": lambda x: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2,
    "rastrigin": rastrigin,
    "ackley": ackley,
    "styblinski_tang": lambda x: sum(v**4 - 16 * v**2 + 5 * v for v in x) / 2,
}


def extra(function):
    return {key: value for key, value in function.parameters if key != "dimension"}


def points(function, count, seed=0):
    low, high = np.array(function.domain).T
    return np.random.default_rng(seed).uniform(low, high, (count, function.dimension))


def test_every_function_is_listed():
    assert list(functions.EVERY) == list(NUMPY)
    for name, function in functions.EVERY.items():
        assert function is not None
        assert function == getattr(functions, name)
        assert function.name == name
        assert len(function.__doc__) > 60
        assert "f(x" in function.__doc__
        assert "Source" in function.__doc__
    with pytest.raises(TypeError):
        functions.EVERY["mine"] = functions.beale


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("function", [*EVERY, *(f.replace(dimension=5) for f in N_D), SIZED[-1]], ids=repr)
def test_values(function):
    at = points(function, 50)
    expected = [NUMPY[function.name](x, **extra(function)) for x in at]
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(at), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("function", "x", "value"),
    [
        (functions.beale, [3.0, 0.5], 0.0),
        (functions.beale, [1.0, 1.0], 14.203125),  # Moré, Garbow and Hillstrom (1981), problem 5
        (functions.rosenbrock, [-1.2, 1.0], 24.2),  # and problem 1
        (functions.booth, [1.0, 3.0], 0.0),
        (functions.himmelblau, [0.0, 0.0], 170.0),
        (functions.himmelblau, [-0.270845, -0.923039], 181.61652152),
        (functions.styblinski_tang.replace(dimension=7), [-2.903534] * 7, -39.16616570 * 7),
    ],
    ids=repr,
)
def test_published_values(function, x, value):
    assert float(jax.jit(function)(x)) == pytest.approx(value, rel=1e-9, abs=0)


def test_published_points():
    minima = [[3, 2], [-2.805118, 3.131312], [-3.779310, -3.283186], [3.584428, -1.848126]]
    np.testing.assert_allclose(functions.himmelblau.minima, minima, atol=1e-6)
    np.testing.assert_allclose(functions.himmelblau.maxima, [[-0.270845, -0.923039]], atol=1e-6)
    assert functions.styblinski_tang.replace(dimension=3).minima[0].tolist() == pytest.approx([-2.903534] * 3, abs=1e-6)
    for n, value in {4: 3.70143, 5: 3.93084, 6: 3.97394, 7: 3.98360}.items():  # near 4, that of (-1, 1, ..., 1)
        assert rosenbrock(functions.rosenbrock.replace(dimension=n).minima[1]) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("function", [functions.bowl, functions.rosenbrock, functions.rastrigin, functions.ackley])
def test_the_global_minimum_is_0_to_the_bit(function, n):
    function = function.replace(dimension=n)
    assert float(jax.jit(function)(function.minima[0])) == 0.0  # in float32


# Stationary points ----------------------------------------------------------------------------------------------------


@functools.cache
def compiled(function):
    return jax.jit(jax.vmap(lambda x: (jax.grad(function)(x), jax.hessian(function)(x))))


def derivatives(function, at):
    return [np.asarray(derivative) for derivative in compiled(function)(at)]


def listed(function):
    return np.concatenate([function.minima, function.saddles, function.maxima])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("function", [f for f in SIZED if f.name not in ("ackley", "monkey_saddle")], ids=repr)
def test_each_point_is_what_its_list_says(function):
    n, counts = function.dimension, [len(at) for at in (function.minima, function.saddles, function.maxima)]
    gradient, hessian = derivatives(function, listed(function))
    eigenvalues = np.linalg.eigvalsh(hessian)
    size = np.abs(eigenvalues).max(axis=1)
    assert np.all(np.linalg.norm(gradient, axis=1) < 1e-9 * size)
    assert np.abs(np.linalg.solve(hessian, gradient[:, :, None])).max() < 3e-14  # how far off the points are
    assert np.all(np.abs(eigenvalues).min(axis=1) > 1e-5 * size)  # so the signs are certain
    minima, saddles, maxima = np.split((eigenvalues > 0).sum(axis=1), np.cumsum(counts)[:-1])
    assert np.all(minima == n)
    assert np.all((saddles > 0) & (saddles < n))
    assert np.all(maxima == 0)


@pytest.mark.parametrize("function", SIZED, ids=repr)
def test_the_lists(function):
    every = listed(function)
    low, high = np.array(function.domain).T
    assert low.shape == function.start.shape == (function.dimension,)
    assert function.start.dtype == np.float64
    assert np.all((every >= low) & (every <= high))
    assert np.all((function.start >= low) & (function.start <= high))
    assert len({tuple(x) for x in np.round(every, 6).tolist()}) == len(every) > 0
    for at in (function.minima, function.saddles, function.maxima):
        assert (at.dtype, at.shape[1:]) == (np.float64, (function.dimension,))
    heights = [NUMPY[function.name](x, **extra(function)) for x in function.minima]
    assert np.all(np.diff(heights) > -1e-10)
    assert len(function.kinks) == (function.name == "ackley")
    with pytest.raises(ValueError, match="read-only"):
        every = function.minima if len(function.minima) else function.saddles
        every[0] = 1.0


@pytest.mark.parametrize(
    ("function", "counts"),
    [
        (functions.bowl, (1, 0, 0)),
        (functions.beale, (1, 2, 0)),
        (functions.himmelblau, (4, 4, 1)),
        (functions.rosenbrock, (1, 0, 0)),
        (functions.rosenbrock.replace(dimension=3), (1, 0, 0)),
        (functions.rosenbrock.replace(dimension=4), (2, 1, 0)),
        (functions.rosenbrock.replace(dimension=100), (2, 1, 0)),
        (functions.rosenbrock.replace(dimension=101), (1, 0, 0)),
        (functions.rastrigin, (121, 220, 100)),
        (functions.rastrigin.replace(dimension=3), (1331, 6930, 1000)),
        (functions.rastrigin.replace(dimension=4), (1, 0, 0)),
        (functions.rastrigin.replace(dimension=10**6), (1, 0, 0)),
        (functions.styblinski_tang.replace(dimension=1), (2, 0, 1)),
        (functions.styblinski_tang, (4, 4, 1)),
        (functions.styblinski_tang.replace(dimension=8), (256, 6304, 1)),
        (functions.styblinski_tang.replace(dimension=9), (1, 0, 0)),
    ],
    ids=repr,
)
def test_how_many_points_there_are(function, counts):
    assert (len(function.minima), len(function.saddles), len(function.maxima)) == counts


@pytest.mark.usefixtures("x64")
def test_the_monkey_saddle_is_flat_to_second_order():
    origin = functions.monkey_saddle.saddles
    assert origin.tolist() == [[0.0, 0.0]]
    gradient, hessian = derivatives(functions.monkey_saddle, origin)
    assert not gradient.any()
    assert not hessian.any()
    third = jax.jit(jax.jacfwd(jax.hessian(functions.monkey_saddle)))(jnp.zeros(2))
    assert third[0, 0, 0] == 6
    assert third[0, 1, 1] == -6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 5])
def test_the_kink_of_ackley(dtype, n):
    with jax.enable_x64(dtype == "float64"):
        function, origin = functions.ackley.replace(dimension=n), jnp.zeros(n, dtype)
        assert function.kinks.tolist() == function.minima.tolist() == [[0.0] * n]
        both = jax.jit(jax.value_and_grad(function))
        value, gradient = both(origin)
        assert float(value) == 0.0
        assert np.isnan(gradient).all()
        for direction in (1.0, -1.0):
            value, gradient = both(jnp.full(n, 1e-4 * direction, dtype))
            assert float(value) == pytest.approx(4e-4, rel=2e-3)  # 4 r
            assert np.linalg.norm(gradient) * n**0.5 == pytest.approx(4.0, rel=4e-3)


def search(function, x, low, high):
    """The stationary points in a box that Newton's method finds from these starts."""
    for _ in range(30):
        gradient, hessian = derivatives(function, x)
        x = np.clip(x - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], -1e3, 1e3)
    size = np.linalg.norm(hessian, axis=(1, 2))
    good = (np.linalg.norm(gradient, axis=1) < 1e-10 * size) & np.all((x >= low) & (x <= high), axis=1)
    return np.unique(np.round(x[good], 7) + 0.0, axis=0)


def assert_same_points(found, expected):
    for at in found:
        assert np.abs(expected - at).max(axis=1).min() < 1e-6, f"{at} is not listed"
    for at in expected:
        assert np.abs(found - at).max(axis=1).min() < 1e-6, f"{at} was not found"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["beale", "rosenbrock", "himmelblau", "rastrigin", "styblinski_tang"])
def test_no_stationary_point_is_missing(name):
    function = functions.EVERY[name]
    low, high = np.array(function.domain).T
    axes = (np.linspace(a, b, 60) + 1e-3 for a, b in function.domain)
    starts = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    assert_same_points(search(function, starts, low, high), listed(function))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["valley", "booth", "matyas", "saddle", "monkey_saddle", "beale"])
def test_nor_by_another_method(name):
    function, found = functions.EVERY[name], []
    low, high = np.array(function.domain).T
    for start in points(function, 30, seed=1):
        root = scipy.optimize.root(lambda x: [d[0] for d in derivatives(function, x[None])], start, jac=True, tol=1e-13)
        inside = np.all((root.x >= low) & (root.x <= high))
        if inside and np.linalg.norm(root.fun) < 1e-12:
            found.append(root.x)
    assert_same_points(np.array(found), listed(function))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [3, 4, 6])
def test_no_stationary_point_of_the_banana_is_missing(n):
    function, rng = functions.rosenbrock.replace(dimension=n), np.random.default_rng(n)
    starts = np.concatenate([rng.uniform(-1.2, 1.2, (500, n)), rng.uniform(-0.1, 1.1, (500, n))])
    starts[500:, 0] = rng.uniform(-1.2, 1.2, 500)
    assert_same_points(search(function, starts, -10.0, 10.0), listed(function))


def test_beale_by_a_polynomial():
    """f = Σ (c_i + x p_i)², p_i = y^i - 1 = (y - 1) q_i. With the best x it is Σ c² - S² / Q, S = Σ c q, Q = Σ q²."""
    c, q = [1.5, 2.25, 2.625], [np.polynomial.Polynomial([1.0] * i) for i in (1, 2, 3)]
    total, square = sum(a * b for a, b in zip(c, q)), sum(b * b for b in q)
    assert np.abs(total.roots().imag).min() > 1  # so S is not 0, and the derivative is 0 where 2 S' Q = S Q'
    slope = 2 * total.deriv() * square - total * square.deriv()
    y = slope.roots()
    assert len(y) == 4
    y = np.sort(y[np.abs(y.imag) < 1e-9].real)
    x = -total(y) / ((y - 1) * square(y))
    rest = np.stack([x, y], axis=1)  # and (0, 1), where y = 1
    expected = np.concatenate([functions.beale.saddles[1:], functions.beale.minima])
    assert functions.beale.saddles[0].tolist() == [0.0, 1.0]
    np.testing.assert_allclose(rest, expected, rtol=1e-13)


def test_styblinski_tang_by_cosines():
    angles = (np.arccos(-0.625 * 0.375**1.5) + 2 * np.pi * np.arange(3)) / 3
    high, low, middle = np.sqrt(32 / 3) * np.cos(angles)
    function = functions.styblinski_tang.replace(dimension=1)
    np.testing.assert_allclose(function.minima[:, 0], [low, high], rtol=1e-14)
    np.testing.assert_allclose(function.maxima[:, 0], [middle], rtol=1e-13)


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
