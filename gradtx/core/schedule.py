"""Recorded schedules: a value that maps the number of updates already made to a number.

An author writes the function of time and the decorator records the call:

    >>> import gradtx, jax.numpy as jnp
    >>> @gradtx.schedule
    ... def halving(init_value: gradtx.Positive, every: gradtx.PositiveInt) -> gradtx.Rate:
    ...     return lambda count: init_value * 0.5 ** (count // every).astype(init_value.dtype)
    >>> halving(0.1, every=10)
    halving(init_value=0.1, every=10)
    >>> halving(0.1, every=10)(20)
    Array(0.025, dtype=float32)

The function gets its hyperparameters as arrays in the precision in which the schedule is used, and `count` as an int32.
A direct call may use a count beyond int32; then it is a whole NumPy float64.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.core import record
from gradtx.core.annotations import Kind, Parameter, is_traced
from gradtx.core.record import Recorded

P = ParamSpec("P")
Rate = Callable[[Array], Any]
"""What a schedule's body returns: a function from the count (int32) to a number."""


class Schedule(Recorded):
    """A hyperparameter that depends on time. Call it with the number of updates already made."""

    _kind = Kind.SCHEDULE

    def _probe(self) -> None:
        with blame(self.name):
            rate = self._call(concrete_numbers(self, None, np.float32))
        if not callable(rate):
            raise TypeError(f"{self._who()}: its body returned {rate!r}; it must return a function of the count.")

    def __call__(self, count: Any) -> Array:
        """The value after `count` updates, in JAX's default float dtype."""
        return self.at(count, jnp.result_type(float))

    def at(self, count: Any, dtype: Any) -> Array:
        """The value after `count` updates, computed in `dtype`."""
        whole = _traced_count(count) if is_traced(count) else _concrete_count(count)
        if whole is None:
            raise TypeError(
                f"{self._who()}: the count is {count!r}; it must be a whole number of updates, under jit of an "
                "integer dtype. Round it: jnp.round(count).astype(int)."
            )
        numbers = concrete_numbers(self, whole, dtype)
        with blame(self.name):
            value = jnp.asarray(self._call(numbers)(whole))
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        if value.shape not in ((), whole.shape) or not real:
            raise TypeError(
                f"{self._who()}: its function returned an array of shape {value.shape} and dtype {value.dtype}; "
                "it must return one real number."
            )
        return jnp.broadcast_to(value, whole.shape).astype(dtype)


@contextlib.contextmanager
def blame(where: str) -> Generator[None]:
    """Add to any error the name of the transform in which it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in gradtx.{where}")
        raise


def concrete_numbers(node: Recorded, count: Any, dtype: Any) -> dict[str, Any]:
    """The arguments as a body gets them: hyperparameters in `dtype`, schedules evaluated at `count`.

    Without a count it is a run at the call, when neither dtype nor count is known: then a schedule is 1.
    """
    return {p.name: _numbers(node, p, node._arguments[p.name], count, dtype) for p in node._parameters}


def _numbers(node: Recorded, parameter: Parameter, value: Any, count: Any, dtype: Any) -> Any:
    def number(leaf: Any) -> Any:
        if isinstance(leaf, Schedule):
            return np.dtype(dtype).type(1) if count is None else leaf.at(count, dtype)
        is_python = isinstance(leaf, (float, int))
        made = np.dtype(dtype).type(leaf) if is_python else leaf.astype(dtype)
        rounds = is_python or (leaf.dtype != made.dtype and made.ndim == 0)
        if rounds and count is not None and not is_traced(made):
            _refuse_rounded(node, parameter, leaf, made)
        return made

    if parameter.kind is not Kind.HYPER or value is None:
        return value
    return number(value) if parameter.container is None else jax.tree.map(number, value, is_leaf=is_schedule)


def _refuse_rounded(node: Recorded, parameter: Parameter, value: Any, number: Any) -> None:
    if float(number) not in parameter.interval:
        rounded = f"which rounds to {float(number)!r} in {number.dtype}"
        raise ValueError(
            f"gradtx.{node.name}: {parameter.name} is {value!r}, {rounded}; it must be {parameter.interval}. "
            f"Choose a value that {number.dtype} can tell from the limit, or compute in float64."
        )


def is_schedule(leaf: Any) -> bool:
    """Whether a hyperparameter is a schedule."""
    return isinstance(leaf, Schedule)


def differs(value: Any, number: float) -> bool:
    """Whether a hyperparameter is known to differ from this number: a schedule is, a traced value is not."""
    return isinstance(value, Schedule) or (not is_traced(value) and bool(np.any(np.asarray(value) != number)))


def _traced_count(count: Array) -> Any:
    """A count that JAX traces: an int32, or an int64 if it may be larger and x64 is on. None if not an integer."""
    if not jnp.issubdtype(count.dtype, jnp.integer):
        return None
    wide = np.dtype(np.int32) if np.can_cast(count.dtype, np.int32) else jax.dtypes.canonicalize_dtype(np.int64)
    largest = np.iinfo(wide).max
    return (jnp.minimum(count, largest) if np.iinfo(count.dtype).max > largest else count).astype(wide)


def _concrete_count(count: Any) -> Any:
    """An int32, or beyond it a NumPy float64, exact for whole numbers up to 2**53. None if it is not whole."""
    if isinstance(count, jax.Array):
        number = jnp.issubdtype(count.dtype, jnp.integer) or jnp.issubdtype(count.dtype, jnp.floating)
    elif isinstance(count, (int, float)):
        number = not isinstance(count, bool)
    else:
        number = isinstance(count, (np.ndarray, np.generic)) and cast(Any, count).dtype.kind in "iuf"
    if not number:
        return None
    if isinstance(count, jax.Array) and count.dtype == np.int32:
        return jnp.asarray(count, np.int32)  # not weak
    numbers = np.asarray(count, np.float64)
    if not (np.isfinite(numbers) & (numbers == np.floor(numbers))).all():
        return None
    return jnp.asarray(numbers.astype(np.int32)) if (np.abs(numbers) < 2**31).all() else numbers


def schedule(body: Callable[P, Rate]) -> Callable[P, Schedule]:
    """Makes a recorded schedule of a function that returns a function of the count. See the module's example."""
    return cast(Callable[P, Schedule], record.factory_of(record.define(Schedule, body)))


@schedule
def custom_schedule(function: Callable[[Any], Any]) -> Rate:
    """Any function of the count as a schedule; plain functions are wrapped in this wherever a schedule is allowed.

    Args:
      function: `function(count) -> number`, where count is an int32 array, or beyond int32 a whole NumPy float64. It is
        called under JAX's standard dtype promotion rules.

    Errors: TypeError if the function returns anything but one real number.

    >>> import gradtx
    >>> gradtx.custom_schedule(lambda count: 0.1 / (1 + count))(3)
    Array(0.025, dtype=float32)
    """

    def rate(count: Array) -> Any:
        try:
            with jax.numpy_dtype_promotion("standard"):
                return function(count)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            error.add_note("The count is traced here: write jnp.where for if, and jnp for np.")
            raise

    return rate


def as_schedule(value: Any, where: str) -> Schedule:
    """A schedule unchanged; a function of the count wrapped; anything else refused."""
    if isinstance(value, Schedule):
        return value
    record.refuse_factory(value, where)
    if callable(value) and not isinstance(value, Recorded) and not isinstance(value, type):
        return custom_schedule(value)
    raise TypeError(f"{where} is {value!r}; it must be a schedule, or a function of the count.")


record.enter_coercion(Kind.SCHEDULE, as_schedule)
