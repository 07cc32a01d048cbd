"""Functions to try optimizers on: their values against NumPy, and their stationary points against a search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from gradtx.landscape import functions

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
