"""Many optimizers in one value: every combination of hyperparameter values, or random draws of them.

    grid(adam, learning_rate=jnp.logspace(-4, 0, 9), b1=[0.5, 0.9])             18 optimizers: the product
    grid(adam, learning_rate=[1e-3, 1e-2], b1=[0.9, 0.5], how="zip")           2: pairs
    grid(adam, learning_rate=log_uniform(1e-4, 1.0), draws=64, key=key)        64 random ones

The result is an optimizer whose leaves have a leading axis, as from `jax.vmap(adam)(learning_rates)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.core.transform import Transform
from gradtx.training import inputs

_WHO = "gradtx.grid"


@dataclass(frozen=True)
class Draw:
    """A distribution to draw a hyperparameter from; made by `uniform` and `log_uniform`."""

    low: float
    high: float
    log: bool

    def sample(self, key: Array, size: int) -> Array:
        """`size` independent values."""
        low, high = (np.log(self.low), np.log(self.high)) if self.log else (self.low, self.high)
        drawn = jax.random.uniform(key, (size,), jnp.float32, low, high)
        return jnp.exp(drawn) if self.log else drawn


def uniform(low: float, high: float) -> Draw:
    """A uniform distribution between `low` and `high`, for `grid`.

    Args:
      low, high: finite numbers, low < high.

    Errors: TypeError for a bound that is not a number, ValueError unless low < high.

    >>> import gradtx
    >>> gradtx.uniform(0.5, 0.99)
    Draw(low=0.5, high=0.99, log=False)
    """
    return _draw("gradtx.uniform", low, high, log=False)


def log_uniform(low: float, high: float) -> Draw:
    """A distribution with a uniform logarithm, for `grid`: 1e-4 to 1e-3 is as likely as 1e-3 to 1e-2.

    Args:
      low, high: finite numbers, 0 < low < high.

    Errors: TypeError for a bound that is not a number, ValueError unless 0 < low < high.

    >>> import gradtx
    >>> gradtx.log_uniform(1e-4, 1.0)
    Draw(low=0.0001, high=1.0, log=True)
    """
    return _draw("gradtx.log_uniform", low, high, log=True)


def _draw(who: str, low: Any, high: Any, *, log: bool) -> Draw:
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{who}: {name} is {value!r}; it must be a number.")
    if not (-np.inf < low < high < np.inf) or (log and low <= 0):
        raise ValueError(f"{who}: low={low!r}, high={high!r}; allowed: {'0 < ' if log else ''}low < high, both finite.")
    return Draw(float(low), float(high), log)


def grid(
    factory: Callable[..., Transform],
    *,
    how: str = "product",
    draws: int | None = None,
    key: Array | None = None,
    **values: Any,
) -> Transform:
    """Many optimizers in one value, for `sweep` or `jax.vmap`.

    Args:
      factory: a function that makes one optimizer from the values: `gradtx.adam`, or a function of your own.
      how: "product" makes every combination, and the last argument changes fastest; "zip" combines the first values of
        all arguments, then the second ones, and so on.
      draws: the number of optimizers to draw, if a value is `uniform(...)` or `log_uniform(...)`. Values are then drawn
        from the lists too, each with the same probability.
      key: a JAX random key for the draws.
      values: the arguments of the factory, by name: a list or 1-D array of numbers, a distribution, or one value for
        all optimizers (a number, a schedule, a bool, a string).

    Returns: a transform whose hyperparameters have a leading axis, one entry per optimizer.

    Errors: TypeError and ValueError if no argument has several values, a list is empty or holds anything but numbers
    (make a grid for each of its entries, and sweep over the list of grids), lengths are unequal with "zip", or `draws`
    comes without a key; and the errors of the factory.

    >>> import gradtx
    >>> txs = gradtx.grid(gradtx.adam, learning_rate=[1e-3, 1e-2, 1e-1], b1=[0.5, 0.9])
    >>> txs.learning_rate.shape, txs.b1.tolist()[:2]
    ((6,), [0.5, 0.8999999761581421])
    """
    if not callable(factory):
        raise TypeError(f"{_WHO}: factory is {factory!r}; it must make an optimizer when called, such as gradtx.adam.")
    inputs.choice(_WHO, "how", how, ("product", "zip"))
    several = {name: value for name, value in values.items() if _is_several(value)}
    fixed = {name: value for name, value in values.items() if name not in several}
    if not several:
        raise ValueError(f"{_WHO}: no argument has several values. Pass a list, an array, or a distribution for one.")
    if any(isinstance(value, Draw) for value in several.values()):
        columns = _drawn(several, draws, key)
    elif draws is not None or key is not None:
        raise ValueError(f"{_WHO}: draws and key are for distributions: gradtx.uniform(...), gradtx.log_uniform(...).")
    else:
        columns = _combined({name: _numbers(name, value) for name, value in several.items()}, how)
    for row in range(len(next(iter(columns.values())))):  # each one first, so that errors show its numbers
        factory(**fixed, **{name: float(column[row]) for name, column in columns.items()})
    return jax.vmap(lambda columns: factory(**fixed, **columns))(columns)


def _is_several(value: Any) -> bool:
    return isinstance(value, (list, tuple, range, Draw)) or (isinstance(value, (np.ndarray, Array)) and value.ndim > 0)


def _numbers(name: str, value: Any) -> np.ndarray[Any, Any]:
    column = np.asarray(value)
    if column.ndim != 1 or column.size == 0:
        raise ValueError(f"{_WHO}: {name} has shape {column.shape}; it must be a list of at least one number.")
    if column.dtype == bool or not np.issubdtype(column.dtype, np.number):
        raise TypeError(
            f"{_WHO}: {name} is {value!r}; a grid is over numbers. Make one grid for each entry, and "
            "sweep over the list of grids."
        )
    return column.astype(np.float64)


def _combined(columns: dict[str, np.ndarray[Any, Any]], how: str) -> dict[str, Array]:
    if how == "product":
        columns = dict(zip(columns, np.meshgrid(*columns.values(), indexing="ij"), strict=True))
    lengths = {name: column.size for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{_WHO}: how='zip' needs lists of equal length; the lengths are {lengths}.")
    return {name: jnp.asarray(column.ravel(), jnp.float32) for name, column in columns.items()}


def _drawn(several: dict[str, Any], draws: int | None, key: Array | None) -> dict[str, Array]:
    if draws is None or key is None:
        raise ValueError(f"{_WHO}: distributions need draws=..., how many optimizers, and key=jax.random.key(...).")
    draws = inputs.positive(_WHO, "draws", draws)
    columns: dict[str, Array] = {}
    for each, (name, value) in zip(jax.random.split(key, len(several)), several.items(), strict=True):
        if isinstance(value, Draw):
            columns[name] = value.sample(each, draws)
        else:
            columns[name] = jax.random.choice(each, jnp.asarray(_numbers(name, value), jnp.float32), (draws,))
    return columns
