"""Functions to try optimizers on: their values against NumPy, their stationary points against a search, as values."""

import copy
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.landscape import functions
from gradtx.training import losses

EVERY = list(functions.EVERY.values())
SIZED = [
    *EVERY,
    *(functions.rosenbrock.replace(dimension=n) for n in (3, 4, 6, 100)),
    *(functions.rastrigin.replace(dimension=n) for n in (3, 4)),
    *(functions.styblinski_tang.replace(dimension=n) for n in (1, 8)),
    functions.ackley.replace(dimension=5),
    functions.bowl.replace(dimension=5, condition=1e4),
]

# Values, transcribed from the literature: of points in the rows of x, real or complex ---------------------------------


def bowl(x, condition=10.0):
    n = x.shape[-1]
    return sum(condition ** (i / (n - 1)) * x[..., i] ** 2 for i in range(n)) / 2


def beale(x):
    return sum((c - x[..., 0] * (1 - x[..., 1] ** i)) ** 2 for i, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def ackley(x):
    r, waves = np.sqrt(np.mean(x**2, -1)), np.mean(np.cos(2 * np.pi * x), -1)
    return -20 * np.exp(-0.2 * r) - np.exp(waves) + 20 + np.e


def of_two(formula):
    return lambda x: formula(x[..., 0], x[..., 1])


NUMPY = {
    "bowl": bowl,
    "valley": of_two(lambda x, y: 0.05 * x**2 + 2 * y**2),
    "booth": of_two(lambda x, y: 5 * x**2 + 8 * x * y + 5 * y**2 - 34 * x - 38 * y + 74),
    "matyas": of_two(lambda x, y: 0.26 * x**2 + 0.26 * y**2 - 0.48 * x * y),
    "saddle": of_two(lambda x, y: (x + y) * (x - y)),
    "monkey_saddle": of_two(lambda x, y: ((x + 1j * y) ** 3 + (x - 1j * y) ** 3) / 2),
    "beale": beale,
    "rosenbrock": lambda x: np.sum(100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (x[..., :-1] - 1) ** 2, -1),
    "himmelblau": of_two(lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2),
    "rastrigin": lambda x: np.sum(10 + x**2 - 10 * np.cos(2 * np.pi * x), -1),
    "ackley": ackley,
    "styblinski_tang": lambda x: np.sum(x**4 - 16 * x**2 + 5 * x, -1) / 2,
}
DRAWN = {  # the start, and what to draw of each axis
    "bowl": ([1, 1], [(-1.5, 1.5)] * 2),
    "valley": ([-9, 1.6], [(-10, 3), (-2.2, 2.2)]),
    "booth": ([-8, -6], [(-10, 10)] * 2),
    "matyas": ([9, -3], [(-10, 10)] * 2),
    "saddle": ([1, 1e-4], [(-1.5, 1.5)] * 2),
    "monkey_saddle": ([1, 1e-4], [(-1.5, 1.5)] * 2),
    "beale": ([1.2, 1.6], [(-4.5, 4.5)] * 2),
    "rosenbrock": ([-1.2, 1], [(-2, 2), (-1, 3)]),
    "himmelblau": ([0, 0], [(-5, 5)] * 2),
    "rastrigin": ([2.4, -1.6], [(-5.12, 5.12)] * 2),
    "ackley": ([-3.4, 2.3], [(-5, 5)] * 2),
    "styblinski_tang": ([0.5, 0], [(-5, 5)] * 2),
}


def by_numpy(function, x):
    extra = {key: value for key, value in function.parameters if key != "dimension"}
    return NUMPY[function.name](np.asarray(x), **extra)


def points(function, count):
    low, high = np.array(function.domain).T
    return np.random.default_rng(0).uniform(low, high, (count, function.dimension))


def test_every_function_is_listed_with_its_start_and_domain():
    assert list(functions.EVERY) == list(NUMPY)
    for name, function in functions.EVERY.items():
        assert function == getattr(functions, name)
        assert function.name == name
        assert "f(x" in function.__doc__
        assert "Source" in function.__doc__
        assert (function.start.tolist(), [*function.domain]) == DRAWN[name]
    assert functions.rosenbrock.replace(dimension=3).start.tolist() == [-1.2, 1, -1.2]
    assert functions.rosenbrock.replace(dimension=3).domain == ((-2, 2), (-1, 3), (-2, 2))


@pytest.mark.usefixtures("x64")
def test_values():
    at = [points(function, 20) for function in SIZED]
    found = jax.jit(lambda at: [jax.vmap(function)(x) for function, x in zip(SIZED, at)])(at)
    for function, x, values in zip(SIZED, at, found, strict=True):
        np.testing.assert_allclose(values, by_numpy(function, x).real, rtol=1e-12, atol=1e-12, err_msg=repr(function))
    for function, x, value in (
        (functions.beale, [1.0, 1.0], 14.203125),  # Moré, Garbow and Hillstrom (1981), problem 5
        (functions.rosenbrock, [-1.2, 1.0], 24.2),  # and problem 1
        (functions.himmelblau, [-0.270845, -0.923039], 181.61652152),
        (functions.styblinski_tang.replace(dimension=7), [-2.903534] * 7, -39.16616570 * 7),
    ):
        assert by_numpy(function, x) == pytest.approx(value, rel=1e-9)
    for n, value in {4: 3.70143, 6: 3.97394}.items():  # Shang and Qiu (2006), near (-1, 1, ..., 1)
        function = functions.rosenbrock.replace(dimension=n)
        assert by_numpy(function, function.minima[1]) == pytest.approx(value, abs=1e-5)


def test_the_global_minimum_is_0_and_ackley_s_is_a_kink():
    """In float32, where the terms must cancel: they are zeros, whatever the compiler makes of them."""
    zeros = [f for f in SIZED if f.name in ("bowl", "booth", "beale", "rosenbrock", "rastrigin", "ackley")]
    assert not any(jax.jit(lambda: jnp.stack([f(f.minima[0].astype(np.float32)) for f in zeros]))().tolist())
    at = jnp.array([[0.0] * 5, [1e-4] * 5])
    gradient = jax.jit(jax.vmap(jax.grad(functions.ackley.replace(dimension=5))))(at)
    assert np.isnan(gradient[0]).all()
    np.testing.assert_allclose(gradient[1], 4 / 5**0.5 * 5**-0.5, rtol=4e-3)  # of 4 r, r the root of the mean square
    for function in EVERY:
        assert function.kinks.tolist() == ([[0.0, 0.0]] if function.name == "ackley" else [])


# Stationary points ----------------------------------------------------------------------------------------------------


def derivatives(function, x):
    """Gradients by complex steps, Hessians by differences of them."""
    n, h = function.dimension, 1e-5

    def gradient(x):
        steps = x[..., None, :] + 1e-30j * np.eye(n)
        return np.imag(by_numpy(function, steps)) / 1e-30

    hessian = (gradient(x[..., None, :] + h * np.eye(n)) - gradient(x[..., None, :] - h * np.eye(n))) / (2 * h)
    return gradient(x), hessian


def listed(function):
    return np.concatenate([function.minima, function.saddles, function.maxima])


def is_regular(function):
    return function.name not in ("ackley", "monkey_saddle")


@pytest.mark.parametrize("function", SIZED, ids=repr)
def test_each_point_is_what_its_list_says(function):
    every, n = listed(function), function.dimension
    low, high = np.array(function.domain).T
    assert ((every >= low) & (every <= high)).all()
    assert len(np.unique(every.round(6), axis=0)) == len(every) > 0
    assert (np.diff(by_numpy(function, function.minima)) > -1e-10).all()  # the lowest first
    for part in (function.minima, function.saddles, function.maxima, function.kinks):
        assert (part.dtype, part.shape[1:], part.flags.writeable) == (np.float64, (n,), False)
    if is_regular(function):
        gradient, hessian = derivatives(function, every)
        eigenvalues = np.linalg.eigvalsh(hessian)
        assert np.abs(np.linalg.solve(hessian, gradient[..., None])).max() < 1e-13  # how far off the points are
        assert (np.abs(eigenvalues).min(axis=1) > 1e-5 * np.abs(eigenvalues).max(axis=1)).all()  # the signs are certain
        ups = (eigenvalues > 0).sum(axis=1)
        minima, saddles, maxima = np.split(ups, np.cumsum([len(function.minima), len(function.saddles)]))
        assert (minima == n).all()
        assert ((saddles > 0) & (saddles < n)).all()
        assert (maxima == 0).all()


@pytest.mark.parametrize(
    "function", [f for f in SIZED if f.name in ("beale", "rosenbrock", "himmelblau") and f.dimension < 10], ids=repr
)
def test_no_stationary_point_is_missing(function):
    """Newton's method finds no other from many starts; of sums of one-dimensional ones the product has all."""
    low, high = np.array(function.domain).T
    x = points(function, 500)
    if function.dimension > 2:
        x[250:, 1:] = np.random.default_rng(1).uniform(-0.1, 1.1, (250, function.dimension - 1))
    for _ in range(30):
        gradient, hessian = derivatives(function, x)
        x = np.clip(x - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], -1e3, 1e3)
    good = (np.linalg.norm(gradient, axis=1) < 1e-9 * np.linalg.norm(hessian, axis=(1, 2))) & (
        (x >= low) & (x <= high)
    ).all(1)
    found, expected = np.unique(x[good].round(6) + 0.0, axis=0), listed(function)
    away = np.abs(found[:, None] - expected[None]).max(axis=2)
    assert away.min(axis=1).max() < 1e-5, f"{found[away.min(axis=1).argmax()]} is not listed"
    assert away.min(axis=0).max() < 1e-5, f"{expected[away.min(axis=0).argmax()]} was not found"


def test_how_many_points_there_are():
    known = {functions.bowl: (1, 0, 0), functions.beale: (1, 2, 0), functions.himmelblau: (4, 4, 1)}
    for n, counts in {2: (1, 0, 0), 3: (1, 0, 0), 4: (2, 1, 0), 100: (2, 1, 0), 101: (1, 0, 0)}.items():
        known[functions.rosenbrock.replace(dimension=n)] = counts
    for n, counts in {1: (11, 0, 10), 2: (121, 220, 100), 3: (1331, 6930, 1000), 4: (1, 0, 0)}.items():
        known[functions.rastrigin.replace(dimension=n)] = counts
    for n, counts in {1: (2, 0, 1), 2: (4, 4, 1), 8: (256, 6304, 1), 9: (1, 0, 0)}.items():
        known[functions.styblinski_tang.replace(dimension=n)] = counts
    for function, counts in known.items():
        assert (len(function.minima), len(function.saddles), len(function.maxima)) == counts, function
    assert functions.styblinski_tang.replace(dimension=9).minima.round(6).tolist() == [[-2.903534] * 9]
    assert functions.rastrigin.replace(dimension=10**6).minima.shape == (1, 10**6)
    assert functions.monkey_saddle.saddles.tolist() == [[0.0, 0.0]]


# Arrays in and out ----------------------------------------------------------------------------------------------------


def test_the_dtype_is_kept():
    for dtype, function in itertools.product(["bfloat16", "float64"], EVERY):
        with jax.enable_x64(dtype == "float64"):
            x = jax.ShapeDtypeStruct((2,), dtype)
            value, gradient = jax.eval_shape(jax.value_and_grad(function), x)
            assert (value.shape, value.dtype, gradient.dtype, value.weak_type) == ((), dtype, dtype, False)
            assert jax.eval_shape(functions.noisy(function, 0.1), x, key=jax.random.key(0)).dtype == dtype


def test_lists_arrays_and_an_equal_function_that_is_not_traced_again():
    traced = []

    def run(function, x):
        traced.append(function.name)
        return function(x)

    static = jax.jit(run, static_argnums=0)
    assert [float(static(functions.rosenbrock.replace(dimension=3), jnp.ones(3))) for _ in range(2)] == [0.0, 0.0]
    static(functions.rastrigin.replace(dimension=3), jnp.ones(3))
    assert traced == ["rosenbrock", "rastrigin"]
    for start in ([1.0, 3.0], np.array([1.0, 3.0]), [jnp.float32(1), jnp.float32(3)]):
        assert functions.booth(start) == 0.0


def test_replace_and_how_they_are_shown():
    function = functions.rosenbrock.replace(dimension=np.int64(10))
    assert (function.dimension, type(function.dimension), function.start.shape) == (10, int, (10,))
    assert functions.rosenbrock.dimension == 2  # as before
    assert functions.bowl.replace(condition=4).replace(dimension=3) == functions.bowl.replace(dimension=3, condition=4)
    assert functions.beale.replace() == functions.beale
    assert [f.replace(dimension=1).dimension for f in EVERY if f.name in ("rastrigin", "ackley")] == [1, 1]
    functions.beale.start[0] = 100.0  # a copy
    assert functions.beale.start[0] == 1.2
    assert repr(functions.beale) == "beale"
    assert repr(function) == "rosenbrock(dimension=10)"
    assert repr(functions.bowl.replace(condition=np.float32(4))) == "bowl(dimension=2, condition=4.0)"
    assert repr(functions.noisy(functions.beale, 1)) == "Noisy(function=beale, scale=1.0)"


def test_equal_hashed_copied_and_saved_by_name_and_parameters():
    for function in SIZED:
        assert len(function.minima) == len(function.minima)  # what is kept of them is not saved
        for value in (function, functions.noisy(function, 0.5)):
            for other in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
                assert (other, hash(other), repr(other)) == (value, hash(value), repr(value))
                assert other.__doc__ == value.__doc__
        assert len(pickle.dumps(function)) < 300
    assert len({*SIZED}) == len({hash(function) for function in SIZED}) == len(SIZED)


# Noise ----------------------------------------------------------------------------------------------------------------


def test_the_noise_of_the_gradient():
    noisy, x, count = functions.noisy(functions.beale, 0.3), jnp.array([1.0, -0.5]), 10_000
    keys = jax.random.split(jax.random.key(0), count)
    values, gradients = jax.jit(jax.vmap(lambda key: jax.value_and_grad(noisy)(x, key=key)))(keys)
    slope = derivatives(functions.beale, np.array([1.0, -0.5]))[0]
    noise = (np.asarray(gradients) - slope) / 0.3
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 / count**0.5)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=5 * (2 / count) ** 0.5)
    np.testing.assert_allclose(values, beale(np.asarray(x)) + 0.3 * noise @ np.asarray(x), rtol=1e-4)
    quiet = functions.noisy(functions.booth, 0)
    assert quiet([2.0, 3.0], key=jax.random.PRNGKey(3)) == functions.booth([2.0, 3.0]) == 5.0


def test_what_is_known_is_passed_through_and_it_is_a_loss():
    function = functions.himmelblau
    noisy = functions.noisy(function, 2)
    assert (noisy.function, noisy.scale, type(noisy.scale)) == (function, 2.0, float)
    for name in ("name", "dimension", "domain", "start", "minima", "saddles", "maxima", "kinks"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(function, name))
    assert noisy == functions.noisy(function, 2.0) != functions.noisy(function, 1.0)
    assert noisy != functions.noisy(functions.booth, 2.0)
    assert not losses.read_loss("test", function, has_aux=False, has_data=False).wants_key
    loss = losses.read_loss("test", noisy, has_aux=False, has_data=False)
    assert (loss.function, loss.wants_key, loss.wants_batch) == (noisy, True, False)
