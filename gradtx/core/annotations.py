"""Annotations of parameters: hyperparameter, transform, schedule or static, and the allowed range.

A hyperparameter is annotated with its range (`Unit`, `NonNegative`, ...). Its value is a number or a schedule, and
becomes a pytree leaf. Transforms and schedules are pytree children as well. All other arguments are static: part of
the tree structure.
"""

import copy
import difflib
import enum
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

ARRAYS: tuple[type[Any], ...] = (jax.Array, np.ndarray)
DTYPES: tuple[type[Any], ...] = (np.dtype,)
NUMPY_NUMBERS: tuple[type[Any], ...] = (np.integer, np.floating, jax.numpy.bfloat16.dtype.type)


def is_traced(value: Any) -> bool:
    """Whether this is the stand-in for an array that JAX traces."""
    return isinstance(value, Tracer)


class Interval(NamedTuple):
    """A range of numbers; `closed_low` says whether it includes a finite lower end, `closed_high` the upper end."""

    low: float = -math.inf
    high: float = math.inf
    closed_low: bool = True
    closed_high: bool = False

    def __contains__(self, value: Any) -> bool:
        above = value >= self.low if self.closed_low else value > self.low
        below = value <= self.high if self.closed_high else value < self.high
        return above and below and value > -math.inf

    def __str__(self) -> str:
        if self == Interval():
            return "any finite number"
        left = "[" if self.closed_low and math.isfinite(self.low) else "("
        right = "]" if self.closed_high else ")"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


Hyper = Annotated[Any, Interval()]
"""A hyperparameter: a float, a 0-d array, or a schedule."""
Finite = Hyper
Unit = Annotated[Any, Interval(0, 1)]
"""A hyperparameter in [0, 1): a decay."""
Fraction = Annotated[Any, Interval(0, 1, closed_high=True)]
"""A hyperparameter in [0, 1]."""
NonNegative = Annotated[Any, Interval(0)]
"""A hyperparameter that is 0 or greater."""
Positive = Annotated[Any, Interval(0, closed_low=False)]
"""A hyperparameter greater than 0."""
PositiveInt = Annotated[int, Interval(1)]
"""A static count of at least 1; a whole float is converted to an int."""
NonNegativeInt = Annotated[int, Interval(0)]
"""A static count of at least 0; a whole float is converted to an int."""
Dtype = Annotated[str, "a dtype"]
"""A static dtype, recorded by its name: give `jnp.bfloat16`, a NumPy dtype, or "bfloat16"."""


class Kind(enum.Enum):
    """How JAX sees a parameter: as a leaf, as a child, or as part of the structure."""

    HYPER = "hyperparameter"
    TRANSFORM = "transform"
    SCHEDULE = "schedule"
    STATIC = "static"


class Parameter(NamedTuple):
    """One parameter of a factory, as its annotation and its place in the signature describe it."""

    name: str
    kind: Kind
    default: Any
    keyword_only: bool = False
    variadic: bool = False
    optional: bool = False
    container: type | None = None
    interval: Interval = Interval()
    types: tuple[Any, ...] = ()

    @property
    def is_child(self) -> bool:
        return self.kind is not Kind.STATIC


def annotations_of(body: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a factory, also where they are strings."""
    written: dict[str, Any] = body.__annotations__
    if str not in map(type, written.values()):
        return {name: type(None) if annotation is None else annotation for name, annotation in written.items()}
    try:
        return typing.get_type_hints(body, include_extras=True)
    except NameError as error:
        raise NameError(
            f"{body.__name__}: the annotation {error.name!r} cannot be resolved; it is read from the names of "
            "the module when the factory is decorated. Import it at module level."
        ) from None


def parameters_of(
    body: Callable[..., Any], hints: Mapping[str, Any], reserved: Collection[str]
) -> tuple[Parameter, ...]:
    """The parameters of a factory, classified by annotation when it is decorated.

    They are read from its code: `inspect.signature` is three times as slow, and imports wait for each factory.
    """
    who, code, parameters = body.__name__, body.__code__, list[Parameter]()
    stars = "positional-only " if code.co_posonlyargcount else "**" if code.co_flags & inspect.CO_VARKEYWORDS else ""
    placed, named = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    rest = named if code.co_flags & inspect.CO_VARARGS else None
    if stars:
        given = code.co_varnames[0 if code.co_posonlyargcount else named + (rest is not None)]
        raise TypeError(f"{who}: {stars}{given} is not allowed in a factory; each argument must be passed by name.")
    empty, of_last = inspect.Parameter.empty, body.__defaults__ or ()
    defaults = dict(zip(code.co_varnames[placed - len(of_last) : placed], of_last, strict=True))
    defaults |= body.__kwdefaults__ or {}
    order = [*range(placed), *([] if rest is None else [rest]), *range(placed, named)]
    for place in order:
        given = code.co_varnames[place]
        if given not in hints:
            raise TypeError(
                f"{who}: parameter {given!r} has no annotation. Annotate a hyperparameter with its range "
                "(Unit, NonNegative, Positive, Finite ...), and everything else with its type."
            )
        if given in reserved or given[0] == "_":
            raise TypeError(f"{who}: {given!r} cannot be the name of a parameter; transforms use it. Rename it.")
        default = defaults[given] if given in defaults else empty  # noqa: SIM401 - imports wait for each call
        parameters += [_describe(given, default, hints[given], place == rest, place >= placed)]
    return tuple(parameters)


def _describe(name: str, default: Any, annotation: Any, variadic: bool, only_by_name: bool) -> Parameter:
    """Read one annotation: `Unit`, `Unit | None`, `tuple[Unit, ...]`, `dict[str, Transform]`, `bool`, ..."""
    read, mixed = _read(annotation)
    if mixed:
        raise TypeError(
            f"parameter {name!r} may be {annotation}: a hyperparameter, transform or schedule cannot be "
            "static as well (None is allowed); make two parameters of it."
        )
    if read.kind is Kind.HYPER and isinstance(default, int) and not isinstance(default, bool):
        default = float(default)
    only_by_name = only_by_name and not variadic
    container = tuple if variadic else read.container
    return Parameter(
        name, read.kind, default, only_by_name, variadic, read.optional, container, read.interval, read.types
    )


@functools.lru_cache(maxsize=512)
def _read(annotation: Any) -> tuple[Parameter, bool]:
    """An annotation read as a parameter: kind, range, container, whether None is allowed, types; if kinds differ."""
    options = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
    container: type | None = None
    if len(options) == 1 and typing.get_origin(options[0]) in (tuple, list, Sequence, dict, Mapping):
        inner = [argument for argument in typing.get_args(options[0]) if argument is not Ellipsis]
        if inner and _kind(inner[-1])[0] is not Kind.STATIC:
            container = dict if typing.get_origin(options[0]) in (dict, Mapping) else tuple
            options = [inner[-1]]
    kind, interval = _kind(options[0])
    optional = type(None) in typing.get_args(annotation)
    mixed = any(_kind(option)[0] is not kind for option in options)
    made = Parameter("", kind, None, optional=optional, container=container, interval=interval, types=tuple(options))
    return made, mixed


def _kind(annotation: Any) -> tuple[Kind, Interval]:
    if typing.get_origin(annotation) is Annotated:
        base, *metadata = typing.get_args(annotation)
        intervals = [item for item in metadata if isinstance(item, Interval)]
        if intervals:
            return (Kind.HYPER if base is Any else Kind.STATIC), intervals[0]
    family = getattr(annotation, "_kind", None)
    return (family if isinstance(family, Kind) else Kind.STATIC), Interval()


def as_hyper(value: Any, parameter: Parameter, who: str) -> Any:
    """A number given for a hyperparameter: a Python float, or a 0-d array unchanged; refused if out of range."""
    if type(value) is float and value in parameter.interval:
        return value
    where = f"{who}: {parameter.name}"
    allowed = f"it must be a number or a schedule, {parameter.interval}"
    if isinstance(value, np.ndarray):
        value = typing.cast(Any, value)[()]
    if isinstance(value, str):
        raise TypeError(f"{where} is the string {value!r}; {allowed}. Pass the number itself{_number_in(value)}.")
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{where} is {value!r}, a bool; {allowed}.")
    if isinstance(value, (int, float, *NUMPY_NUMBERS)):
        value = _as_float(value)
    if not isinstance(value, (float, *ARRAYS)):
        kind = "" if value is None else f" of type {type(typing.cast(Any, value)).__name__}"
        raise TypeError(f"{where} is {value!r}{kind}; {allowed}.")
    value = typing.cast(Any, value)
    if np.ndim(value) > 0:
        raise ValueError(
            f"{where} has shape {value.shape}; it must be a scalar. For many values at once, build the optimizer under "
            f"jax.vmap: jax.vmap(lambda x: {who}(..., {parameter.name}=x))(values)."
        )
    dtype = getattr(value, "dtype", np.dtype(float))
    if not any(jax.numpy.issubdtype(dtype, kind) for kind in (np.floating, np.integer)):
        raise TypeError(f"{where} is an array of dtype {dtype}; {allowed}.")
    if not is_traced(value) and float(value) not in parameter.interval:
        climbs = parameter.name == "learning_rate" and float(value) < 0
        hint = " To ascend, put scale(-1.0) in front of the optimizer." if climbs else ""
        raise ValueError(f"{where} is {float(value)!r}; {allowed}.{hint}")
    return value


def as_static(value: Any, parameter: Parameter, who: str) -> Any:
    """A static argument, checked against its annotation if that is simple enough."""
    if value is parameter.default and isinstance(value, (bool, int, str)):
        return value
    if value is None and (parameter.optional or parameter.default is None):
        return None
    if Dtype in parameter.types:
        return _as_dtype(value, f"{who}: {parameter.name}")
    if isinstance(value, (np.bool_, *NUMPY_NUMBERS)):
        value = typing.cast(Any, value).item()
    if _asks_for_int(parameter):
        value = as_count(value)
    problems = [problem for option in parameter.types if (problem := _static_problem(value, option))]
    if problems and len(problems) == len(parameter.types):
        words = " or ".join(map(str, problems)).replace(" or it must be ", " or ")
        hint = f" Round it: int({value})." if isinstance(value, float) and _asks_for_int(parameter) else ""
        none = ", or None" if parameter.optional or parameter.default is None else ""
        raise type(problems[0])(f"{who}: {parameter.name} is {value!r}; {words}{none}.{hint}")
    if isinstance(value, (list, Iterator)) and typing.get_origin(parameter.types[0]) in (tuple, Sequence):
        return tuple(typing.cast(Iterable[Any], value))
    if isinstance(value, (dict, list)):  # a copy, so that later changes by the caller do not affect the recorded value
        return copy.deepcopy(typing.cast(Any, value))
    return typing.cast(Any, value)


def as_count(value: Any) -> Any:
    """A whole number as an int, such as `steps_per_epoch * 2.0` or an array of one element. Other values unchanged."""
    if (
        isinstance(value, (*ARRAYS, np.generic))
        and value.ndim == 0
        and value.dtype.kind in "iuf"
        and not is_traced(value)
    ):
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _asks_for_int(parameter: Parameter) -> bool:
    """Whether it is a count."""
    bases = [
        typing.get_args(option)[0] if typing.get_origin(option) is Annotated else option for option in parameter.types
    ]
    return int in bases and float not in bases


def _as_dtype(value: Any, where: str) -> str:
    """The name of a floating-point dtype."""
    allowed = "it must be a floating-point dtype, such as jnp.bfloat16 or 'bfloat16'"
    try:
        dtype = jax.numpy.dtype(value)
    except TypeError:
        raise TypeError(f"{where} is {value!r}; {allowed}.") from None
    if not jax.numpy.issubdtype(dtype, np.floating):
        raise TypeError(f"{where} is {value!r}; {allowed}.")
    return dtype.name


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "an int"),
    float: ((int, float), "a number"),
    str: ((str,), "a str"),
}


def _static_problem(value: Any, annotation: Any) -> Exception | None:
    """What is wrong with a static value; None if nothing is (or it cannot be checked)."""
    if typing.get_origin(annotation) is Annotated:
        base, *metadata = typing.get_args(annotation)
        intervals = [item for item in metadata if isinstance(item, Interval) and value not in item]
        out_of_range = ValueError(f"it must be {intervals[0]}") if intervals else None
        return _static_problem(value, base) or out_of_range
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return None if value in choices else ValueError(f"allowed: {', '.join(map(repr, choices))}")
    if annotation in _PLAIN:
        allowed, words = _PLAIN[annotation]
        fits = isinstance(value, allowed) and (annotation is bool or not isinstance(value, bool))
        return None if fits else TypeError(f"it must be {words}")
    if annotation is Callable or typing.get_origin(annotation) is Callable:
        return None if callable(value) else TypeError("it must be a function")
    return None


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _number_in(text: str) -> str:
    try:
        return f", {float(text)!r}"
    except ValueError:
        return ""


def suggestion(name: str, names: Iterable[str]) -> str:
    """A hint at the nearest of `names`, or "" if none is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
