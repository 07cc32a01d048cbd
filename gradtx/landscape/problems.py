"""Test problems for smooth minimization: those of Moré, Garbow and Hillstrom (1981), each a sum of squares.

    wood(x)                         the value at a point, f(x) = Σ r_i(x)²
    wood.residuals(x)               the residuals r(x), an array: for Gauss-Newton methods
    wood.start                      where everybody starts, so that counts of evaluations can be compared
    wood.minima                     the values at the known minima, the lowest first, local ones included
    watson.replace(dimension=9)     the same problem with another number of variables

These are the 18 problems that the paper names for unconstrained minimization, with its starts. The docstring of each
has its residuals, its number in the paper and its minima. `EVERY` maps names to the 20 instances that solvers are
compared on: one of each, and a second size of Watson's and of Rosenbrock's. A problem is a value, compared and hashed
by name and size, so it can be a static argument of `jax.jit`.

`landscape.functions` has functions to draw and to race on, with the places of their minima and saddles. Beale's and
Rosenbrock's are in both: here they have residuals, the paper's starts, and the paper's extension to n numbers.

Source: Moré, Garbow and Hillstrom (1981), Testing unconstrained optimization software, ACM Transactions on Mathematical
Software 7, with the published values of the minima. Where a value is from elsewhere, the docstring says so.

>>> from gradtx import landscape
>>> landscape.problems.wood(landscape.problems.wood.start).item()
19192.0
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.landscape import arguments

Vector = np.ndarray[Any, np.dtype[np.float64]]

_WHO = "gradtx.landscape.problems"


class _Recipe(NamedTuple):
    residuals: Callable[[Array], Array]
    dimensions: range  # those that are allowed
    default: int
    start: Callable[[int], Any]
    minima: Callable[[int], tuple[float, ...]]


_recipes: dict[str, _Recipe] = {}


@dataclass(frozen=True, repr=False)
class Problem:
    """A sum of squares of n real numbers, f(x) = Σ r_i(x)², with the values at its known minima.

    Its argument is an array (or list) of length `dimension`. The value is a scalar of the same dtype, and
    `residuals(x)` is the array r(x) of the same dtype, so that f is their sum of squares, without a factor 1/2.
    `start` is the standard start, a float64 array. `minima` are the published values of f at its minima, the lowest
    first, local ones included, as a tuple of floats with the published digits; it is empty for sizes for which none are
    known. No list of local minima is known to be complete.

    Errors: ValueError for an argument of another shape; TypeError for one that is not of a real floating-point dtype.

    >>> from gradtx import landscape
    >>> landscape.problems.biggs.minima
    (0.0, 0.00565565, 0.306367)
    >>> landscape.problems.biggs.residuals(landscape.problems.biggs.start).shape
    (13,)
    """

    name: str
    dimension: int

    def __post_init__(self) -> None:
        if self.name not in _recipes:
            raise ValueError(f"{_WHO}.Problem: name is {self.name!r}; allowed: {', '.join(_recipes)}.")
        recipe, who = _recipes[self.name], f"{_WHO}.{self.name}"
        dimension = arguments.read_number(who, "dimension", self.dimension, recipe.dimensions.start, int)
        if dimension not in recipe.dimensions:
            raise ValueError(f"{who}: dimension is {dimension}; allowed: {_words(recipe.dimensions)}.")
        object.__setattr__(self, "dimension", dimension)
        object.__setattr__(self, "__doc__", recipe.residuals.__doc__)

    def __call__(self, x: Any) -> Array:
        return jnp.sum(self.residuals(x) ** 2)

    def __repr__(self) -> str:
        return f"{self.name}(dimension={self.dimension})" if self._sized else self.name

    def residuals(self, x: Any) -> Array:
        """The residuals at a point, whose sum of squares is the value.

        Args:
          x: the point, an array of length `dimension` of a real floating-point dtype.

        >>> from gradtx import landscape
        >>> landscape.problems.beale.residuals([3.0, 0.5]).tolist()
        [0.0, 0.0, 0.0]
        """
        return _recipes[self.name].residuals(
            arguments.read_point(f"{_WHO}.{self.name}", x, self.dimension, self._sized)
        )

    def replace(self, dimension: int) -> "Problem":
        """The same problem with another number of variables.

        Args:
          dimension: the number of variables, an int. The docstring of the problem says which are allowed.

        Errors: TypeError for a dimension that is not an int, ValueError for one that the problem does not have.

        >>> from gradtx import landscape
        >>> landscape.problems.watson.replace(dimension=12)
        watson(dimension=12)
        """
        return Problem(self.name, dimension)

    @property
    def start(self) -> Vector:
        return np.array(_recipes[self.name].start(self.dimension), np.float64)

    @property
    def minima(self) -> tuple[float, ...]:
        return _recipes[self.name].minima(self.dimension)

    @property
    def _sized(self) -> bool:
        return len(_recipes[self.name].dimensions) > 1


def _problem(
    start: Callable[[int], Any], minima: Callable[[int], tuple[float, ...]], dimensions: range, default: int = 0
) -> Callable[[Callable[[Array], Array]], Problem]:
    """Makes a `Problem` of its residuals."""

    def make(residuals: Callable[[Array], Array]) -> Problem:
        name, first = residuals.__name__, default or dimensions.start
        _recipes[name] = _Recipe(residuals, dimensions, first, start, minima)
        return Problem(name, first)

    return make


def _of_one_size(start: Sequence[float], *minima: float) -> Callable[[Callable[[Array], Array]], Problem]:
    return _problem(lambda n: start, lambda n: minima, range(len(start), len(start) + 1))


def _repeated(start: Sequence[float], *minima: float) -> Callable[[Callable[[Array], Array]], Problem]:
    """Makes a `Problem` of any number of independent parts of the size of `start`."""
    return _problem(lambda n: np.resize(start, n), lambda n: minima, _from(len(start), step=len(start)))


def _from(least: int, step: int = 1, most: int = sys.maxsize - 1) -> range:
    return range(least, most + 1, step)


def _published(values: Mapping[int, tuple[float, ...]]) -> Callable[[int], tuple[float, ...]]:
    return lambda n: values.get(n, ())


def _words(dimensions: range) -> str:
    if len(dimensions) == 1:
        return f"{dimensions.start}"
    upper = f" to {dimensions[-1]}" if dimensions.stop < sys.maxsize else " or more"
    return f"{dimensions.start}{upper}" + (f", a multiple of {dimensions.step}" if dimensions.step > 1 else "")


def _count(x: Array, first: int, last: int) -> Array:
    """The whole numbers from `first` to `last`, in the dtype of x."""
    return jnp.arange(first, last + 1, dtype=x.dtype)


# The problems ---------------------------------------------------------------------------------------------------------


@_of_one_size((-1.0, 0.0, 0.0), 0.0)
def helical_valley(x: Array) -> Array:
    """Helical valley (7), n = 3, m = 3: r = (10 (x3 - 10 θ), 10 (ρ - 1), x3).

    ρ and 2πθ are the polar coordinates of (x1, x2), with θ from -1/4 to 3/4. Minimum: 0 at (1, 0, 0).
    """
    x1, x2, x3 = x
    turns = jnp.arctan2(-x1, x2) / (2 * math.pi) + 0.25  # the jump is on the negative x2 axis
    return jnp.stack([10 * (x3 - 10 * turns), 10 * (jnp.hypot(x1, x2) - 1), x3])


@_of_one_size((1.0, 2.0, 1.0, 1.0, 1.0, 1.0), 0.0, 5.65565e-3, 0.306367)
def biggs(x: Array) -> Array:
    """Biggs' EXP6 (18), n = 6, m = 13: r_i = x3 exp(-t_i x1) - x4 exp(-t_i x2) + x6 exp(-t_i x5) - y_i.

    t_i = 0.1 i and y_i = exp(-t_i) - 5 exp(-10 t_i) + 3 exp(-4 t_i). Minima: 0 at (1, 10, 1, 5, 4, 3), 5.65565e-3, and
    0.306367, a flat one where x1 = x2 = x5 = 1.2276, which is not in the paper but in the tests of SolvOpt and gonum.
    """
    x1, x2, x3, x4, x5, x6 = x
    t = _count(x, 1, 13) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x3 * jnp.exp(-t * x1) - x4 * jnp.exp(-t * x2) + x6 * jnp.exp(-t * x5) - y


@_of_one_size((0.4, 1.0, 0.0), 1.12793e-8)
def gaussian(x: Array) -> Array:
    """Gaussian (9), n = 3, m = 15: r_i = x1 exp(-x2 (t_i - x3)² / 2) - y_i, with t_i = (8 - i) / 2 and given y_i.

    Minimum: 1.12793e-8.
    """
    x1, x2, x3 = x
    half = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
    t, y = (8 - _count(x, 1, 15)) / 2, jnp.array([*half, 0.3989, *half[::-1]], x.dtype)
    return x1 * jnp.exp(-x2 * (t - x3) ** 2 / 2) - y


@_of_one_size((0.0, 1.0), 0.0)
def powell_badly_scaled(x: Array) -> Array:
    """Powell's badly scaled function (3), n = 2, m = 2: r = (10⁴ x1 x2 - 1, exp(-x1) + exp(-x2) - 1.0001).

    Minimum: 0 at (1.098e-5, 9.106), and at the point with the two exchanged.
    """
    x1, x2 = x
    return jnp.stack([1e4 * x1 * x2 - 1, jnp.exp(-x1) + jnp.exp(-x2) - 1.0001])


@_of_one_size((0.0, 10.0, 20.0), 0.0)
def box(x: Array) -> Array:
    """Box's three-dimensional function (12), n = 3, m = 10: r_i = exp(-t x1) - exp(-t x2) - x3 (exp(-t) - exp(-10 t)).

    t = 0.1 i. Minimum: 0 at (1, 10, 1), at (10, 1, -1), and wherever x1 = x2 and x3 = 0.
    """
    x1, x2, x3 = x
    t = _count(x, 1, 10) / 10
    return jnp.exp(-t * x1) - jnp.exp(-t * x2) - x3 * (jnp.exp(-t) - jnp.exp(-10 * t))


@_problem(lambda n: 1 - np.arange(1, n + 1) / n, lambda n: (0.0,), _from(1), default=10)
def variably_dimensioned(x: Array) -> Array:
    """Variably dimensioned (25), any n >= 1, m = n + 2: r = (x_1 - 1, ..., x_n - 1, s, s²), s = Σ j (x_j - 1).

    Minimum: 0 at (1, ..., 1).
    """
    s = jnp.sum(_count(x, 1, len(x)) * (x - 1))
    return jnp.append(x - 1, jnp.stack([s, s**2]))


@_problem(np.zeros, _published({6: (2.28767e-3,), 9: (1.39976e-6,), 12: (4.72238e-10,)}), _from(2, most=31), default=6)
def watson(x: Array) -> Array:
    """Watson's function (20), n = 2 to 31, m = 31: a polynomial p with coefficients x, to solve p' = p² + 1, p(0) = 0.

    r_i = p'(i / 29) - p(i / 29)² - 1 for i = 1 to 29, then x1 and x2 - x1² - 1, with p(t) = Σ x_j t^(j-1).
    Minima: 2.28767e-3 for n = 6, 1.39976e-6 for n = 9, 4.72238e-10 for n = 12. The larger n, the worse its condition.
    """
    n = len(x)
    powers = jnp.asarray(np.vander(np.arange(1, 30) / 29, n, increasing=True), x.dtype)
    slopes = powers[:, :-1] * _count(x, 1, n - 1)[None, :]
    return jnp.append(slopes @ x[1:] - (powers @ x) ** 2 - 1, jnp.stack([x[0], x[1] - x[0] ** 2 - 1]))


@_problem(lambda n: np.arange(1, n + 1), _published({4: (2.24997e-5,), 10: (7.08765e-5,)}), _from(1), default=10)
def penalty_i(x: Array) -> Array:
    """Penalty function I (23), any n >= 1, m = n + 1: r = (√a (x_1 - 1), ..., √a (x_n - 1), Σ x_j² - 1/4), a = 1e-5.

    Minima: 2.24997e-5 for n = 4, 7.08765e-5 for n = 10.
    """
    return jnp.append(math.sqrt(1e-5) * (x - 1), jnp.sum(x**2) - 0.25)


@_problem(lambda n: np.full(n, 0.5), _published({4: (9.37629e-6,), 10: (2.93660e-4,)}), _from(1), default=10)
def penalty_ii(x: Array) -> Array:
    """Penalty function II (24), any n >= 1, m = 2n, a = 1e-5.

    r_1 = x_1 - 0.2; r_i = √a (e(x_i) + e(x_(i-1)) - e(i) - e(i-1)) for i = 2 to n, with e(z) = exp(z / 10); then
    √a (e(x_i) - e(-1)) for i = 2 to n; and Σ (n - j + 1) x_j² - 1. Minima: 9.37629e-6 for n = 4, 2.93660e-4 for n = 10.
    """
    n, a = len(x), math.sqrt(1e-5)
    e, y = jnp.exp(x / 10), jnp.exp(_count(x, 1, n) / 10)
    steps, heights = e[1:] + e[:-1] - y[1:] - y[:-1], e[1:] - math.exp(-0.1)
    last = jnp.sum(_count(x, 1, n)[::-1] * x**2) - 1
    return jnp.concatenate([x[:1] - 0.2, a * steps, a * heights, last[None]])


@_of_one_size((1.0, 1.0), 0.0)
def brown_badly_scaled(x: Array) -> Array:
    """Brown's badly scaled function (4), n = 2, m = 3: r = (x1 - 10⁶, x2 - 2e-6, x1 x2 - 2).

    Minimum: 0 at (10⁶, 2e-6).
    """
    x1, x2 = x
    return jnp.stack([x1 - 1e6, x2 - 2e-6, x1 * x2 - 2])


@_of_one_size((25.0, 5.0, -5.0, -1.0), 85822.2)
def brown_dennis(x: Array) -> Array:
    """Brown and Dennis' function (16), n = 4, m = 20: r_i = (x1 + t x2 - exp(t))² + (x3 + x4 sin(t) - cos(t))².

    t = i / 5. Minimum: 85822.2. The residuals there are large, so Gauss-Newton methods are slow.
    """
    x1, x2, x3, x4 = x
    t = _count(x, 1, 20) / 5
    return (x1 + t * x2 - jnp.exp(t)) ** 2 + (x3 + x4 * jnp.sin(t) - jnp.cos(t)) ** 2


@_of_one_size((5.0, 2.5, 0.15), 0.0)
def gulf(x: Array) -> Array:
    """Gulf research and development (11), n = 3, m = 99: r_i = exp(-|y_i - x2|^x3 / x1) - i / 100.

    y_i = 25 + (-50 ln(i / 100))^(2/3). Minimum: 0 at (50, 25, 1.5). The paper prints a factor "m i" where the minus
    sign should be; this is the function of its programs.
    """
    x1, x2, x3 = x
    t = _count(x, 1, 99) / 100
    y = 25 + (-50 * jnp.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x2) ** x3) / x1) - t


@_problem(lambda n: np.full(n, 1 / n), lambda n: (0.0, 2.79506e-5) if n == 10 else (0.0,), _from(1), default=10)
def trigonometric(x: Array) -> Array:
    """Trigonometric (26), any n >= 1, m = n: r_i = n - Σ cos(x_j) + i (1 - cos(x_i)) - sin(x_i).

    Minima: 0 for every n, at 0 among others, and 2.79506e-5 for n = 10.
    """
    n = len(x)
    return n - jnp.sum(jnp.cos(x)) + _count(x, 1, n) * (1 - jnp.cos(x)) - jnp.sin(x)


@_repeated((-1.2, 1.0), 0.0)
def extended_rosenbrock(x: Array) -> Array:
    """Extended Rosenbrock (21), any even n, m = n: r = (10 (x2 - x1²), 1 - x1), the same for x3 and x4, and so on.

    Minimum: 0 at (1, ..., 1). Pairs do not influence each other, other than in `functions.rosenbrock`.
    """
    odd, even = x[0::2], x[1::2]
    return jnp.stack([10 * (even - odd**2), 1 - odd], axis=1).reshape(-1)


@_repeated((3.0, -1.0, 0.0, 1.0), 0.0)
def extended_powell_singular(x: Array) -> Array:
    """Extended Powell singular (22), n a multiple of 4, m = n. Minimum: 0 at (0, ..., 0), with a singular Hessian.

    r = (x1 + 10 x2, √5 (x3 - x4), (x2 - 2 x3)², √10 (x1 - x4)²), the same for x5 to x8, and so on.
    """
    a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
    parts = [a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2]
    return jnp.stack(parts, axis=1).reshape(-1)


@_of_one_size((1.0, 1.0), 0.0)
def beale(x: Array) -> Array:
    """Beale's function (5), n = 2, m = 3: r_i = y_i - x1 (1 - x2^i), y = (1.5, 2.25, 2.625). Minimum: 0 at (3, 0.5)."""
    x1, x2 = x
    return jnp.array([1.5, 2.25, 2.625], x.dtype) - x1 * (1 - jnp.stack([x2, x2**2, x2**3]))


@_of_one_size((-3.0, -1.0, -3.0, -1.0), 0.0)
def wood(x: Array) -> Array:
    """Wood's function (14), n = 4, m = 6. Minimum: 0 at (1, 1, 1, 1).

    r = (10 (x2 - x1²), 1 - x1, √90 (x4 - x3²), 1 - x3, √10 (x2 + x4 - 2), (x2 - x4) / √10).
    """
    x1, x2, x3, x4 = x
    first = [10 * (x2 - x1**2), 1 - x1, math.sqrt(90) * (x4 - x3**2), 1 - x3]
    return jnp.stack([*first, math.sqrt(10) * (x2 + x4 - 2), (x2 - x4) / math.sqrt(10)])


_CHEBYQUAD = dict.fromkeys((*range(1, 8), 9), (0.0,)) | {8: (3.51687e-3,), 10: (4.77271e-3, 6.50395e-3)}


@_problem(lambda n: np.arange(1, n + 1) / (n + 1), _published(_CHEBYQUAD), _from(1), default=8)
def chebyquad(x: Array) -> Array:
    """Chebyquad (35), any n >= 1, m = n: r_i = Σ T_i(x_j) / n - ∫ T_i, T_i the Chebyshev polynomials of [0, 1].

    ∫ T_i, from 0 to 1, is 0 for odd i and -1 / (i² - 1) for even i. Minima: 0 for n = 1 to 7 and 9, 3.51687e-3 for
    n = 8, and for n = 10 4.77271e-3 and 6.50395e-3, of which the paper has the second and CUTEst the first.
    """
    n, z = len(x), 2 * x - 1
    before, now, means = jnp.ones_like(z), z, list[Array]()
    for _ in range(n):
        means.append(jnp.mean(now))
        before, now = now, 2 * z * now - before
    return jnp.stack(means) + jnp.array([0 if i % 2 else 1 / (i**2 - 1) for i in range(1, n + 1)], x.dtype)


_TWICE = {"watson": (6, 9), "extended_rosenbrock": (2, 100)}

EVERY: Mapping[str, Problem] = MappingProxyType(
    {name: Problem(name, recipe.default) for name, recipe in _recipes.items() if name not in _TWICE}
    | {f"{name}_{n}": Problem(name, n) for name, sizes in _TWICE.items() for n in sizes}
)
"""The 20 instances by name; where there are two of one problem, the name ends with the dimension."""
