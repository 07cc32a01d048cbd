"""The recorded value: what transforms and schedules have in common.

A call of a decorated factory records its arguments in a node of a type generated for that factory. The node is a
pytree: hyperparameters, transforms and schedules are its children, everything else is its structure. The author's
code never runs when JAX flattens and unflattens it.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NoReturn, ParamSpec, Self, TypeVar, cast

import jax

from gradtx.core import elsewhere
from gradtx.core.annotations import Kind, Parameter, annotations_of, as_hyper, as_static, parameters_of, suggestion
from gradtx.core.arguments import ArgumentKey, Static, copied, encode, freeze, set_in, show

_registry: dict[str, Callable[..., Any]] = {}

registry: Mapping[str, Callable[..., Any]] = types.MappingProxyType(_registry)
"""Every recorded factory by name: the methods, their parts, and your own."""


class Recorded:
    """A call of a factory, as a value."""

    _kind: ClassVar[Kind]
    name: ClassVar[str]
    """The name of the factory."""
    factory: ClassVar[Callable[..., Any]]
    _parameters: ClassVar[tuple[Parameter, ...]]
    _placed: ClassVar[tuple[str, ...]]
    _rest: ClassVar[str | None]
    _defaults: ClassVar[dict[str, Any]]
    _required: ClassVar[frozenset[str]]
    _body: ClassVar[Callable[..., Any]]
    _check: ClassVar[Callable[..., None] | None] = None

    _arguments: dict[str, Any]

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> Self:
        node = object.__new__(cls)
        vars(node)["_arguments"] = arguments
        return node

    @classmethod
    def _from_call(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = cls._bound(args, kwargs)
        return cls._checked({p.name: cls._normalize(p, arguments[p.name]) for p in cls._parameters})

    @classmethod
    def _bound(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, with defaults filled in; arguments that do not fit are refused."""
        placed = dict(zip(cls._placed, args, strict=False))
        given, rest = placed | kwargs, args[len(placed) :]
        fits = cls._required <= given.keys() <= cls._defaults.keys() and len(given) == len(placed) + len(kwargs)
        if not fits or cls._rest in kwargs or (rest and not cls._rest):
            known = ", ".join(cls._defaults) or "none"
            raise TypeError(f"{cls._who()}: {cls._misfit(args, kwargs)} Its arguments: {known}.")
        return cls._defaults | given | ({cls._rest: rest} if cls._rest else {})

    @classmethod
    def _misfit(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What is wrong with a call."""
        for name in kwargs:
            if name not in cls._defaults:
                hint = elsewhere.argument(cls.name, name) or suggestion(name, cls._defaults)
                return f"got an unexpected keyword argument {name!r}.{hint}"
        named = [parameter.name for parameter in cls._parameters if parameter.keyword_only]
        if len(args) > len(cls._placed) and named and not cls._rest:
            return (
                f"{len(args)} arguments were given by position; allowed: {', '.join(cls._placed)}. Give the others by "
                f"keyword: {named[0]}=..."
            )
        try:
            inspect.signature(cls._body).bind(*args, **kwargs)
        except TypeError as error:
            return f"{error}."
        raise NotImplementedError  # _bound and Python have the same rules

    @classmethod
    def _checked(cls, arguments: dict[str, Any]) -> Self:
        """A node of normalized arguments whose body has run once, so that every error comes at the call."""
        node = cls._from_arguments(arguments)
        if cls._check is not None:
            cls._check(**arguments)
        node._probe()
        return node

    def _probe(self) -> None:
        """Run the body, or check the arguments; each family in its own way."""

    @classmethod
    def _normalize(cls, parameter: Parameter, value: Any) -> Any:
        if value is None and parameter.optional:
            return None
        if parameter.container is None:
            return cls._normalize_one(parameter, value)
        is_dict = parameter.container is dict
        if not isinstance(value, Mapping if is_dict else (tuple, list)):
            allowed = "a dict" if is_dict else "a tuple or list"
            raise TypeError(f"{cls._who()}: {parameter.name} is {value!r}; it must be {allowed}.")
        if is_dict:
            return {key: cls._normalize_one(parameter, item) for key, item in cast(Any, value).items()}
        return tuple(cls._normalize_one(parameter, item) for item in cast(Any, value))

    @classmethod
    def _normalize_one(cls, parameter: Parameter, value: Any) -> Any:
        if parameter.kind is Kind.STATIC:
            return as_static(value, parameter, cls._who())
        if parameter.kind is Kind.HYPER and not callable(value):
            return as_hyper(value, parameter, cls._who())
        kind = Kind.SCHEDULE if parameter.kind is Kind.HYPER else parameter.kind  # a hyperparameter may be a schedule
        return coerce(kind, value, f"{cls._who()}: {parameter.name}")

    @classmethod
    def _who(cls) -> str:
        return f"gradtx.{cls.name}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the call, by name (a copy)."""
        return dict(self._arguments)

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        """Run the author's body with these arguments."""
        placed = [arguments[name] for name in self._placed]
        named = {p.name: arguments[p.name] for p in self._parameters if p.keyword_only}
        return type(self)._body(*placed, *(arguments[self._rest] if self._rest else ()), **named)

    # Reading and changing ---------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if hasattr(type(self), name):
            return object.__getattribute__(self, name)  # a property failed: show its own error
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._arguments:
            return copied(self._arguments[name])
        return getattr(self._owner(name, self._arguments, AttributeError)[1], name)

    def replace(self, **changes: Any) -> Self:
        """The same value with some arguments changed, checked like a new call.

        An argument that is not its own is looked up in the transforms inside, and exactly one of them must have it:
        `(clip(1.0) >> adam(1e-3)).replace(learning_rate=3e-4)`.
        """
        arguments = dict(self._arguments)
        parameters = {parameter.name: parameter for parameter in self._parameters}
        for name, value in changes.items():
            if name in parameters:
                arguments[name] = self._normalize(parameters[name], value)
                continue
            path, owner = self._owner(name, arguments, TypeError)
            arguments = set_in(arguments, path, owner.replace(**{name: value}))
        return cast(Self, self._rebuilt(arguments))

    def _rebuilt(self, arguments: dict[str, Any]) -> "Recorded":
        return self._checked(arguments)

    def _owner(
        self, name: str, arguments: dict[str, Any], error: type[Exception]
    ) -> "tuple[tuple[Any, ...], Recorded]":
        """The one transform in these arguments that has an argument of this name, and its place."""
        transforms = [pair for pair in children(arguments) if pair[1]._kind is Kind.TRANSFORM]
        owners = [(place, child) for place, child in transforms if name in child._names()]
        if len(owners) == 1:
            return owners[0]
        if owners:
            names = ", ".join(child.name for _, child in owners)
            raise error(
                f"{self._who()}: {name!r} is an argument of several of its transforms ({names}); rebuild that one."
            )
        own, known = self._names(), elsewhere.ATTRIBUTES.get(name)
        hint = f" Instead: {known}." if known else suggestion(name, own)
        raise error(f"{self._who()} has no argument {name!r}.{hint} Its arguments: {', '.join(own) or 'none'}.")

    def _names(self) -> list[str]:
        """The names of its arguments and of those of the transforms inside."""
        names = [parameter.name for parameter in self._parameters]
        for _, child in children(self._arguments):
            names.extend(name for name in child._names() if child._kind is Kind.TRANSFORM and name not in names)
        return names

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(
            f"{self._who()} is a value and cannot be changed. Use .replace({name}=...) to get a new one."
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self._who()} is a value and cannot be changed.")

    # Equality, hash, copies -------------------------------------------------------------------------------------------

    @functools.cached_property
    def _identity(self) -> Any:
        return tuple(freeze(value) for value in self._arguments.values())

    @functools.cached_property
    def _statics(self) -> tuple[Static, ...]:
        """The static arguments, as a treedef has them."""
        return tuple(Static(self._arguments[p.name]) for p in self._parameters if not p.is_child)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._identity == cast(Recorded, other)._identity

    def __hash__(self) -> int:
        return hash((type(self), self._identity))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a value: its copy is itself

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self).factory, self._arguments)

    # Words ------------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        shown: list[str] = []
        for parameter in self._parameters:
            value = self._arguments[parameter.name]
            if parameter.variadic:
                shown.extend(show(item) for item in value)
            elif not (parameter.keyword_only and freeze(value) == freeze(parameter.default)):
                shown.append(f"{parameter.name}={show(value)}")
        return f"{self.name}({', '.join(shown)})"

    def to_config(self) -> dict[str, Any]:
        """The call as JSON: `{"name": ..., "arguments": {...}}`, to be read by `from_config`."""
        arguments: dict[str, Any] = {}
        for p in self._parameters:
            value: Any = self._arguments[p.name]
            is_tuple = p.container is tuple and value is not None  # as its parameter says, so that a list will do
            arguments[p.name] = encode(list(cast(Any, value)) if is_tuple else value, f"{self._who()}: {p.name}")
        return {"name": self.name, "arguments": arguments}


R = TypeVar("R", bound=Recorded)
P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def _reserved(base: type[Recorded]) -> frozenset[str]:
    """The names that no parameter may have."""
    return frozenset(name for name in dir(base) if not name.startswith("_")) | {"name", "factory"}


def define(base: type[R], body: Callable[..., Any], hints: Mapping[str, Any] | None = None) -> type[R]:
    """Generate the node type of a factory and register it with JAX; `hints` are the annotations, if already read."""
    name = body.__name__
    hints = annotations_of(body) if hints is None else hints
    parameters = parameters_of(body, hints, _reserved(base))
    rest = next(iter([p.name for p in parameters if p.variadic]), None)  # imports wait for this: lists are quicker
    members = {
        "__module__": body.__module__,
        "__doc__": body.__doc__,
        "name": name,
        "_body": staticmethod(body),
        "_parameters": parameters,
        "_placed": tuple([p.name for p in parameters if not (p.keyword_only or p.variadic)]),
        "_rest": rest,
        "_defaults": {p.name: p.default for p in parameters},
        "_required": frozenset([p.name for p in parameters if p.default is inspect.Parameter.empty]) - {rest},
    }
    node = cast(type[R], types.new_class(name, (base,), exec_body=lambda namespace: namespace.update(members)))
    children = [parameter.name for parameter in parameters if parameter.kind is not Kind.STATIC]
    statics = [parameter.name for parameter in parameters if parameter.kind is Kind.STATIC]
    keys = [ArgumentKey(child) for child in children]

    def flatten(node: R) -> tuple[tuple[Any, ...], tuple[Static, ...]]:
        return tuple(node._arguments[name] for name in children), node._statics

    def flatten_with_keys(node: R) -> tuple[tuple[tuple[ArgumentKey, Any], ...], tuple[Static, ...]]:
        values, aux = flatten(node)
        return tuple(zip(keys, values, strict=True)), aux

    def unflatten(aux: tuple[Static, ...], values: Iterable[Any]) -> R:
        arguments = dict(zip(children, values, strict=True)) | {n: s.value for n, s in zip(statics, aux, strict=True)}
        return node._from_arguments({p.name: arguments[p.name] for p in parameters})

    jax.tree_util.register_pytree_with_keys(node, flatten_with_keys, unflatten, flatten)
    return node


def recorded(base: type[Recorded]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator that makes a factory of nodes of this base."""
    return lambda body: factory_of(define(base, body))


def factory_of(node: type[Recorded]) -> Callable[..., Any]:
    """The function that users call: it records its arguments in a node."""

    def factory(*args: Any, **kwargs: Any) -> Recorded:
        return node._from_call(args, kwargs)

    # As functools.wraps, but imports wait for each factory, and it takes fifteen calls.
    body: Any = node._body
    factory.__name__, factory.__qualname__, factory.__module__ = body.__name__, body.__qualname__, body.__module__
    factory.__doc__, factory.__annotations__ = body.__doc__, body.__annotations__
    factory.__wrapped__ = body  # pyright: ignore[reportFunctionMemberAccess] - as functools.wraps does
    return enter(node, factory)


def _place(factory: Any) -> tuple[str, int]:
    """Where a factory is defined: a module that runs as a script and is imported too defines it twice."""
    code = factory.node._body.__code__
    return code.co_filename, code.co_firstlineno


def enter(node: type[R], factory: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a factory in the registry under the name of its node."""
    cast(Any, factory).node = node
    known = _registry.get(node.name)
    if known is not None and known.__module__ != factory.__module__ and _place(known) != _place(factory):
        raise ValueError(
            f"{factory.__module__}: a factory called {node.name!r} is already defined in {known.__module__}; "
            "configurations and checkpoints find a transform by its name, so choose another."
        )
    node.factory = staticmethod(factory)
    _registry[node.name] = factory
    return factory


def refuse_factory(value: Any, where: str) -> None:
    """Refuse a factory that was passed without being called."""
    node = getattr(value, "node", None)
    if isinstance(node, type) and issubclass(node, Recorded):
        raise TypeError(f"{where} is the factory gradtx.{node.name} itself. Call it: {node.name}(...).")


def _restore(factory: Any, arguments: dict[str, Any]) -> Recorded:
    """Unpickle: the arguments were checked when the value was first built."""
    return factory.node._from_arguments(arguments)


_coercions: dict[Kind, Callable[[Any, str], Recorded]] = {}


def enter_coercion(kind: Kind, coercion: Callable[[Any, str], Recorded]) -> None:
    """Register how a value becomes a schedule or a transform; each family registers its own."""
    _coercions[kind] = coercion


def coerce(kind: Kind, value: Any, where: str) -> Recorded:
    """The value as a schedule or transform, or an error that says `where`."""
    return _coercions[kind](value, where)


def children(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Recorded]]:
    """The recorded values directly inside the arguments, with their places."""
    if isinstance(value, Recorded):
        return [(place, value)]
    found: list[tuple[tuple[Any, ...], Recorded]] = []
    if isinstance(value, dict):
        for key, item in cast(dict[Any, Any], value).items():
            found.extend(children(item, (*place, key)))
    elif isinstance(value, tuple):
        for index, item in enumerate(cast(tuple[Any, ...], value)):
            found.extend(children(item, (*place, index)))
    return found
