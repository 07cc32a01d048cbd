"""Test functions for optimizers, from the lecture and the literature, with their minima, saddles and maxima.

    beale(x)                          the value at a point, an array of length `dimension`
    beale.minima, .saddles, .maxima   the points with gradient 0: one per row, the lowest first
    beale.start, .domain              the start of a race, and the region to draw
    rosenbrock.replace(dimension=10)  the same function with other parameters
    noisy(beale, 0.1)                 the same function with a random gradient

The docstring of each function has its equation, facts and source; `EVERY` maps names to functions. A function is a
value, compared and hashed by name and parameters, so it can be a static argument of `jax.jit`.

>>> from gradtx import landscape
>>> float(landscape.functions.beale([3.0, 0.5]))
0.0
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.landscape import arguments
from gradtx.training import minibatches

Points = np.ndarray[Any, np.dtype[np.float64]]
Domain = tuple[tuple[float, float], ...]

_WHO = "gradtx.landscape.functions"


class _Known(NamedTuple):  # one point per row
    minima: Any = ()
    saddles: Any = ()
    maxima: Any = ()
    kinks: Any = ()


class _Recipe(NamedTuple):
    formula: Callable[..., Array]
    defaults: dict[str, Any]
    start: Sequence[float]  # repeated over the axes, as is the domain
    domain: Domain
    known: Callable[[int], _Known]
    smallest: int  # dimension


_recipes: dict[str, _Recipe] = {}


@dataclass(frozen=True, repr=False)
class Function:
    """A function of n real numbers, with its known stationary points. `replace` changes its parameters.

    Its argument is an array (or list) of length `dimension`; the value is a scalar of the same dtype. `minima`,
    `saddles` and `maxima` are the points of the domain with gradient 0, as float64 arrays of shape (k, n), the lowest
    first; the docstring says if the list is not complete. `kinks` are the minima where the function is not
    differentiable. `start` is the start of a race; `domain` is the region to draw, (low, high) for each axis.

    Errors: ValueError for an argument of another shape; TypeError for one that is not of a real floating-point dtype.

    >>> from gradtx import landscape
    >>> landscape.functions.himmelblau.saddles.shape
    (4, 2)
    """

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in _recipes:
            raise ValueError(f"{_WHO}.Function: name is {self.name!r}; allowed: {', '.join(_recipes)}.")
        recipe, who = _recipes[self.name], f"{_WHO}.{self.name}"
        if unknown := [name for name, _ in self.parameters if name not in recipe.defaults]:
            raise TypeError(f"{who}: no parameter {unknown[0]!r}; allowed: {', '.join(recipe.defaults) or 'none'}.")
        every, least = recipe.defaults | dict(self.parameters), {"dimension": recipe.smallest, "condition": 1}
        kinds = {k: type(value) for k, value in recipe.defaults.items()}
        checked = tuple((k, arguments.read_number(who, k, v, least[k], kinds[k])) for k, v in every.items())
        object.__setattr__(self, "parameters", checked)
        object.__setattr__(self, "__doc__", recipe.formula.__doc__)

    def __call__(self, x: Any) -> Array:
        sized = "dimension" in dict(self.parameters)
        point = arguments.read_point(f"{_WHO}.{self.name}", x, self.dimension, sized)
        return _recipes[self.name].formula(point, **dict(self.parameters))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.parameters)
        return f"{self.name}({shown})" if shown else self.name

    def __reduce__(self) -> Any:
        return Function, (self.name, self.parameters)  # without the cached points

    def replace(self, **parameters: Any) -> "Function":
        """The same function with other parameters.

        Args:
          parameters: by name: `dimension`, an int, for a function of n numbers; `condition`, at least 1, for `bowl`.

        Errors: TypeError for a parameter that the function does not have, ValueError for a value out of range.

        >>> from gradtx import landscape
        >>> landscape.functions.bowl.replace(condition=1e4, dimension=20)
        bowl(dimension=20, condition=10000.0)
        """
        return Function(self.name, (*self.parameters, *parameters.items()))

    @property
    def dimension(self) -> int:
        return dict(self.parameters).get("dimension", 2)

    @property
    def start(self) -> Points:
        return np.resize(np.array(_recipes[self.name].start, np.float64), self.dimension)

    @property
    def domain(self) -> Domain:
        return tuple(itertools.islice(itertools.cycle(_recipes[self.name].domain), self.dimension))

    @property
    def minima(self) -> Points:
        return self._points.minima

    @property
    def saddles(self) -> Points:
        return self._points.saddles

    @property
    def maxima(self) -> Points:
        return self._points.maxima

    @property
    def kinks(self) -> Points:
        return self._points.kinks

    @cached_property
    def _points(self) -> _Known:
        known = [np.array(p, np.float64).reshape(-1, self.dimension) for p in _recipes[self.name].known(self.dimension)]
        for points in known:
            points.flags.writeable = False  # all callers share them
        return _Known(*known)


def _function(start: Sequence[float], domain: Domain, known: Callable[[int], _Known], smallest: int = 2):
    """Makes a `Function` of a formula; the keywords of the formula are the parameters."""

    def make(formula: Callable[..., Array]) -> Function:
        _, *keywords = inspect.signature(formula).parameters.values()
        defaults = {keyword.name: keyword.default for keyword in keywords}
        _recipes[formula.__name__] = _Recipe(formula, defaults, start, domain, known, smallest)
        return Function(formula.__name__)

    return make


def _only(*minimum: float) -> Callable[[int], _Known]:
    return lambda n: _Known(minima=np.resize(minimum, n))  # one number is repeated over the axes


def _sums(minima: Points, maxima: Points, n: int, height: Callable[[Points], Points]) -> _Known:
    """The points of f(x) = Σ h(x_i) from those of h: minima in all coordinates make a minimum, a mix a saddle."""
    minima, axis = minima[np.argsort(height(minima))], np.concatenate([minima, maxima])
    if n * math.log(len(axis)) > math.log(10_000):  # too many to list
        return _Known(minima=np.full(n, minima[0]))
    points = np.array(list(itertools.product(axis, repeat=n)))
    points = points[np.argsort(height(points).sum(axis=1), kind="stable")]
    lows = np.isin(points, minima).sum(axis=1)
    return _Known(points[lows == n], points[(lows > 0) & (lows < n)], points[lows == 0])


def _known_rosenbrock(n: int) -> _Known:
    best = np.ones(n)
    if not 4 <= n <= 100:
        return _Known(minima=best)
    saddle = np.array([-0.66, 0.44, 0.2, 0.04] if n == 4 else [-0.555, 0.322, 0.115, 0.024, *[0.01] * (n - 5), 0.0])
    return _Known(minima=[best, _newton_rosenbrock(np.array([-1.0, *best[1:]]))], saddles=_newton_rosenbrock(saddle))


def _newton_rosenbrock(x: Points) -> Points:
    for _ in range(20):
        a, r = x[:-1], x[1:] - x[:-1] ** 2
        gradient = np.append(-400 * a * r - 2 * (1 - a), 0) + np.append(0, 200 * r)
        diagonal = np.append(-400 * r + 800 * a**2 + 2, 0) + np.append(0, np.full_like(a, 200))
        step = np.linalg.solve(np.diag(diagonal) + np.diag(-400 * a, 1) + np.diag(-400 * a, -1), gradient)
        x = x - step
        if np.abs(step).max() < 1e-9:  # it converges quadratically
            break
    return x


def _known_rastrigin(n: int) -> _Known:
    x = np.arange(-10, 11) / 2
    for _ in range(10):  # Newton's method for x² + 10 (1 - cos 2πx)
        x = x - (x + 10 * np.pi * np.sin(2 * np.pi * x)) / (1 + 20 * np.pi**2 * np.cos(2 * np.pi * x))
    return _sums(x[::2], x[1::2], n, lambda x: x**2 + 10 * (1 - np.cos(2 * np.pi * x)))


def _known_styblinski_tang(n: int) -> _Known:
    x = np.sort(np.array(np.roots([2, 0, -16, 2.5]), np.float64))  # of the derivative of one term
    return _sums(x[::2], x[1::2], n, lambda x: 0.5 * (x**4 - 16 * x**2 + 5 * x))


_BEALE = _Known([(3, 0.5)], [(0, 1), (0.1005379373241584, -2.6445135850231245)])
_HIMMELBLAU = _Known(
    minima=[(3, 2), (-2.805118086952745, 3.131312518250573)]
    + [(-3.779310253377747, -3.2831859912861696), (3.5844283403304917, -1.8481265269644034)],
    saddles=[(3.385154183607021, 0.07385187983774928), (0.08667750455539634, 2.884254701174776)]
    + [(-3.0730257507643897, -0.08135304428796751), (-0.12796134673068005, -1.9537149802445766)],
    maxima=[(-0.2708445906673476, -0.9230385564799816)],
)


# The functions --------------------------------------------------------------------------------------------------------


@_function((1.0,), ((-1.5, 1.5),), _only(0))
def bowl(x: Array, dimension: int = 2, condition: float = 10.0) -> Array:
    """A bowl, of n numbers: f(x) = 1/2 Σ λ_i x_i², with λ_i evenly spaced in log λ from 1 to `condition`.

    The minimum at 0 is the only stationary point. Parameters: dimension >= 2, condition >= 1.
    Source: Boyd & Vandenberghe (2004), Convex Optimization, section 9.3.
    """
    return 0.5 * jnp.sum(jnp.asarray(np.geomspace(1.0, condition, dimension), x.dtype) * x**2)


@_function((-9.0, 1.6), ((-10.0, 3.0), (-2.2, 2.2)), _only(0))
def valley(x: Array) -> Array:
    """A long valley: f(x, y) = 0.05 x² + 2 y², a minimum at 0. Condition number: 40. Source: the lecture."""
    return 0.05 * x[0] ** 2 + 2 * x[1] ** 2


@_function((-8.0, -6.0), ((-10.0, 10.0),), _only(1, 3))
def booth(x: Array) -> Array:
    """Booth's: f(x, y) = (x + 2y - 7)² + (2x + y - 5)², a minimum at (1, 3). Source: Jamil & Yang, arXiv:1308.4008."""
    return (x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2


@_function((9.0, -3.0), ((-10.0, 10.0),), _only(0))
def matyas(x: Array) -> Array:
    """Matyas': f(x, y) = 0.26 (x² + y²) - 0.48 x y, a minimum at 0. Source: Jamil & Yang, arXiv:1308.4008."""
    return 0.26 * (x[0] ** 2 + x[1] ** 2) - 0.48 * x[0] * x[1]


@_function((1.0, 1e-4), ((-1.5, 1.5),), lambda n: _Known(saddles=[(0, 0)]))
def saddle(x: Array) -> Array:
    """A saddle at 0: f(x, y) = x² - y². Source: the lecture. The race starts almost on the line that leads into it."""
    return x[0] ** 2 - x[1] ** 2


@_function((1.0, 1e-4), ((-1.5, 1.5),), lambda n: _Known(saddles=[(0, 0)]))
def monkey_saddle(x: Array) -> Array:
    """A saddle at 0 with three ways down and Hessian 0: f(x, y) = x³ - 3 x y². Source: Hilbert & Cohn-Vossen (1932)."""
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2


@_function((1.2, 1.6), ((-4.5, 4.5),), lambda n: _BEALE)
def beale(x: Array) -> Array:
    """Beale's function: f(x, y) = (1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)².

    All stationary points: the minimum (3, 0.5), with value 0, and the saddles (0, 1) and (0.1005, -2.6445). At y = 1,
    x must be 0; elsewhere one x solves df/dx = 0, and df/dy = 0 becomes a quartic in y, with two real roots.
    Source: Beale (1958), On an iterative method for finding a local minimum of a function of more than one variable.
    """
    x, y = x
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


@_function((-1.2, 1.0), ((-2.0, 2.0), (-1.0, 3.0)), _known_rosenbrock)
def rosenbrock(x: Array, dimension: int = 2) -> Array:
    """The banana, of n numbers: f(x) = Σ 100 (x_{i+1} - x_i²)² + (1 - x_i)², i from 1 to n - 1.

    The minimum (1, ..., 1) has value 0; for n = 2 and 3 it is the only stationary point. From n = 4 on there is a
    second minimum, near (-1, 1, ..., 1) for larger n, and a saddle of index 1; both are listed up to n = 100. A search
    found no other point from n = 4 to 11, and further saddles, not listed, from n = 12 on. Parameter: dimension >= 2.
    Sources: Rosenbrock (1960), Computer Journal 3. Shang & Qiu (2006), Evolutionary Computation 14: two minima for
    n = 4 to 30. Kok & Sandrock (2009), Evolutionary Computation 17: two minima up to n = 100, many saddles.
    """
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@_function((0.0, 0.0), ((-5.0, 5.0),), lambda n: _HIMMELBLAU)
def himmelblau(x: Array) -> Array:
    """Himmelblau's function: f(x, y) = (x² + y - 11)² + (x + y² - 7)².

    All stationary points: four minima with value 0, four saddles, one maximum; two cubic equations have at most nine
    solutions. Source: Himmelblau (1972), Applied Nonlinear Programming.
    """
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


@_function((2.4, -1.6), ((-5.12, 5.12),), _known_rastrigin, smallest=1)
def rastrigin(x: Array, dimension: int = 2) -> Array:
    """Rastrigin's function, of n numbers: f(x) = Σ x_i² + 10 (1 - cos 2πx_i). A bowl with many local minima.

    In the domain, each coordinate of a stationary point is one of 11 minima, near integers, or of 10 maxima between.
    All 21ⁿ points are listed for n <= 3; for n > 3 only the global minimum 0. Parameter: dimension >= 1.
    Sources: Rastrigin (1974), Systems of Extremal Control; Mühlenbein, Schomisch & Born (1991), for n numbers.
    """
    return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * math.pi * x)))


@_function((-3.4, 2.3), ((-5.0, 5.0),), lambda n: _Known(minima=np.zeros(n), kinks=np.zeros(n)), smallest=1)
def ackley(x: Array, dimension: int = 2) -> Array:
    """Ackley's function, of n numbers: f(x) = 20 (1 - exp(-0.2 r)) + e - exp(mean of cos 2πx_i), r² = mean of x_i².

    Only the global minimum, 0, with value 0, is listed, not the local ones. It is a kink: near it f grows like 4r, and
    JAX's gradient there is NaN. The domain is the middle of the usual |x_i| <= 32.768.
    Parameter: dimension >= 1. Source: Ackley (1987), A Connectionist Machine for Genetic Hillclimbing.
    """
    r, waves = jnp.sqrt(jnp.mean(x**2)), jnp.mean(jnp.cos(2 * math.pi * x) - 1)
    return -20 * jnp.expm1(-0.2 * r) - math.e * jnp.expm1(waves)  # expm1: exactly 0 at 0, and exact near it


@_function((0.5, 0.0), ((-5.0, 5.0),), _known_styblinski_tang, smallest=1)
def styblinski_tang(x: Array, dimension: int = 2) -> Array:
    """Styblinski and Tang's function, of n numbers: f(x) = 1/2 Σ x_i⁴ - 16 x_i² + 5 x_i.

    Each coordinate of a stationary point is a minimum, -2.9035 or 2.7468, or the maximum 0.1567. All 3ⁿ points are
    listed for n <= 8; for n > 8 only the global minimum, with value -39.16617 n. Parameter: dimension >= 1.
    Source: Styblinski & Tang (1990), Experiments in nonconvex optimization.
    """
    return 0.5 * jnp.sum(x**4 - 16 * x**2 + 5 * x)


EVERY: Mapping[str, Function] = MappingProxyType({name: Function(name) for name in _recipes})
"""All functions by name."""


@dataclass(frozen=True)
class Noisy:
    """A function with a noisy gradient, made by `noisy`. Its minima, saddles and maxima are those of its mean."""

    function: Function
    scale: float

    name = property(attrgetter("function.name"))
    dimension = property(attrgetter("function.dimension"))
    start = property(attrgetter("function.start"))
    domain = property(attrgetter("function.domain"))
    minima = property(attrgetter("function.minima"))
    saddles = property(attrgetter("function.saddles"))
    maxima = property(attrgetter("function.maxima"))
    kinks = property(attrgetter("function.kinks"))

    def __call__(self, x: Any, *, key: Array) -> Array:
        minibatches.check_key(f"{_WHO}.noisy({self.function!r}, {self.scale})", key)
        value, x = self.function(x), jnp.asarray(x)
        return value + self.scale * jnp.sum(jax.random.normal(key, x.shape, x.dtype) * x)


def noisy(function: Function, scale: float) -> Noisy:
    """The function with a random gradient, like that of a mini-batch: f(x) + scale <ξ, x>, ξ ~ N(0, I).

    Its gradient is ∇f(x) + scale ξ. The result is a loss, `loss(x, *, key)`, which draws ξ with the key.

    Args:
      function: a `Function` of this module.
      scale: the standard deviation of each entry of the gradient, a finite number >= 0.

    Errors: TypeError for a function not of this module or a scale that is not a number; ValueError for a scale below 0.

    >>> import jax
    >>> from gradtx import landscape
    >>> loss = landscape.functions.noisy(landscape.functions.valley, 0.5)
    >>> jax.grad(loss)(loss.start, key=jax.random.key(0)).shape
    (2,)
    """
    if not isinstance(cast(Any, function), Function):
        raise TypeError(f"{_WHO}.noisy: function is {function!r}; it must be one of {_WHO}, such as {_WHO}.beale.")
    return Noisy(function, arguments.read_number(f"{_WHO}.noisy", "scale", scale, 0, float))
