"""Transforms of an author's body: a rule or a formula (`Elementary`), or another transform (`Named`).

The body of an elementary transform runs with hyperparameters that have no values. Its result is the same for all
transforms of the factory with these static arguments, and is kept as their `Form`. The counter, the schedules and the
initial state are added here.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import numerics, tree
from gradtx.core import check, record
from gradtx.core.annotations import Kind, annotations_of, is_traced
from gradtx.core.arguments import Static
from gradtx.core.fields import Field, Place
from gradtx.core.program import no_values, without_values
from gradtx.core.rule import Facts, Params, Rule, State, Updates, Wants, around, remembers, wants
from gradtx.core.schedule import Schedule, blame, concrete_numbers
from gradtx.core.transform import Part, Transform

P = ParamSpec("P")


class Form:
    """What all transforms of a factory with equal static arguments have in common, whatever their hyperparameters.

    The body runs once for it, with hyperparameters that have no values.
    """

    def __init__(self, node: "Elementary"):
        self.who, self._node_type, self._statics = node._who(), type(node), node._fixed()
        self._nonzero = [p.name for p in node._parameters if _is_nonzero(node._arguments[p.name])]
        found: list[Any] = []
        children = {p.name: node._arguments[p.name] for p in node._parameters if p.is_child}
        hyper = {p.name: _abstract(children[p.name]) for p in node._parameters if p.kind is Kind.HYPER}

        def read(numbers: dict[str, Any]) -> None:
            found.append(self._read(children | numbers))

        with blame(node.name), no_values(self.who):
            jax.eval_shape(read, hyper)
        self.facts, self.timed, self.wanted, self.fields, self.has_init, self.remembers, self.program = found[0]

    facts: Facts
    timed: bool
    wanted: Wants
    fields: dict[str, Field]
    has_init: bool
    remembers: bool
    program: Any

    def body(self, children: dict[str, Any]) -> Rule:
        """The rule, with these numbers and transforms."""
        node = self._node_type._from_arguments(self._statics | children)
        with numerics.known_nonzero(children, self._nonzero) as asked:
            rule = node._call(node._arguments)
        _asked[self._node_type] = _asked.get(self._node_type, frozenset()) | asked
        return rule

    def _read(self, children: dict[str, Any]) -> tuple[Any, ...]:
        rule = self.body(children)
        if not isinstance(cast(Any, rule), Rule):
            raise TypeError(f"{self.who}: its body returned {rule!r}; it must return a Rule, as annotated.")
        inner = [child for _, child in record.children(children) if isinstance(child, Transform)]
        wanted = wants(rule) if rule.formula is None else rule.formula.wanted(rule)
        for child in inner:
            if child.facts.required and not wanted.passes_on:
                needed = ", ".join(sorted(child.facts.required))
                raise TypeError(
                    f"{self.who}: {child!r} needs {needed}, which its update does not pass on. Let it accept "
                    "**extra and pass that to inner.update."
                )
        timed = wanted.count or any(p.kind is Kind.HYPER for p in self._node_type._parameters)
        facts = around(rule, wanted, [child.facts for child in inner])
        program = None if rule.formula is None else rule.formula.program(self.who, rule, self.body)
        fields = {name: field for name, field in without_values(rule.fields).items() if not field.given}
        remembered = remembers(rule) or bool(inner)
        return facts, timed, wanted, fields, rule.init is not None, remembered, program


def _abstract(value: Any) -> Any:
    """Hyperparameters without their values."""

    def number(_: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), np.float32)

    return jax.tree.map(number, value, is_leaf=_is_schedule)


_forms: dict[Any, Form] = {}
_asked: dict[type, frozenset[str]] = {}
"""For each factory, the hyperparameters that its body compares with 0 (`numerics.is_nonzero`)."""
_MOST_FORMS = 1024


class Elementary(Transform):
    """A transform whose body returns a Rule."""

    __slots__ = ()

    def _probe(self) -> None:
        _ = self._form

    @property
    def _form(self) -> Form:
        if "form" not in self._cache:
            form = _forms.get((type(self), *self._kinds())) or Form(self)
            key = (type(self), *self._kinds())  # the first body of a factory says what it asks about
            # What is built while tracing may hold tracers, in functions among the static arguments.
            if not any(map(callable, self._fixed().values())) or not self._traced:
                if len(_forms) >= _MOST_FORMS:
                    del _forms[next(iter(_forms))]
                _forms[key] = form
            self._cache["form"] = form
        return self._cache["form"]

    def _kinds(self) -> Iterator[Any]:
        """What a form depends on: static arguments by value, the others by structure, and which numbers are 0."""
        for name in sorted(_asked.get(type(self), ())):
            yield _is_nonzero(self._arguments[name])
        for p in self._parameters:
            value = self._arguments[p.name]
            if p.kind is Kind.STATIC:
                yield Static(value)
            elif p.kind is not Kind.HYPER or isinstance(value, tuple | dict):
                yield jax.tree.structure(value, is_leaf=_is_schedule if p.kind is Kind.HYPER else None)
            else:
                yield value is None

    def _fixed(self) -> dict[str, Any]:
        """The static arguments."""
        return {p.name: self._arguments[p.name] for p in self._parameters if not p.is_child}

    def expand(self, *, deep: bool = False) -> Transform:
        return self

    @property
    def facts(self) -> Facts:
        facts = self._form.facts
        if "idle" in facts and any(_is_schedule(child) for _, child in record.children(self._arguments)):
            return dataclasses.replace(facts, traits=facts.traits - {"idle"})  # a schedule depends on the count
        return facts

    @property
    def slots(self) -> tuple[str, ...]:
        return (self.name,) if self._form.timed or self._form.remembers else ()

    @property
    def fields(self) -> dict[str, Field]:
        """The fields of its own state, by name, without those of inner transforms."""
        return self._form.fields

    @property
    def timed(self) -> bool:
        """Whether it counts the updates."""
        return self._form.timed

    def numbers_after(self, entry: State, steps: Any) -> State:
        """Its fields of the whole tree after `steps` steps, if they depend only on the number of steps."""
        program = self._form.program
        if program is None or "once" not in program.names:
            return {}
        names = [name for name, field in self.fields.items() if field.per == "tree" and name != "key"]
        if not names or not program.names["once"].keys() <= {*names, "count"}:
            return {}
        dtype = tree.precision(entry)

        def step(count: Any, numbers: State) -> State:
            arguments = self._children(self._numbers(count, dtype))
            made = program.step("once", dtype)(arguments, None, program.named("once", numbers | {"count": count + 1}))
            return {name: made[name] for name in numbers}

        first = {name: entry[name] for name in names}
        return cast(State, jax.lax.fori_loop(0, jnp.asarray(steps, jnp.int32), step, first))

    @property
    def parts(self) -> dict[Place, Part]:
        own = {(self.name,): Part(self, self.fields)} if self.slots else {}
        for place, child in record.children(self._arguments):
            if isinstance(child, Transform):
                inside = ("inner",) if place == ("inner",) else ("groups", str(place[-1]))
                own |= {(self.name, *inside, *deeper): part for deeper, part in child.parts.items()}
        return own

    def _numbers(self, count: Any, dtype: np.dtype[Any]) -> dict[str, Any]:
        """The arguments as the body gets them at this count, in this dtype."""
        key = ("numbers", dtype)
        if key not in self._cache:
            numbers = concrete_numbers(self, count, dtype)
            fixed = all(isinstance(leaf, float) for leaf in jax.tree.leaves(self)) and not any(
                _is_schedule(child) for _, child in record.children(self._arguments)
            )
            if not fixed:
                return numbers
            self._cache[key] = numbers
        return self._cache[key]

    def _init(self, params: Params) -> State:
        if not self.slots:
            return {}
        form = self._form
        with jax.named_scope(self.name), blame(f"{self.name}.init"):
            if "real" in form.facts:
                check.refuse_complex(f"{self._who()}.init", self.name, params)
            numbers = self._numbers(0, tree.precision(params))
            if form.program is not None:
                fields = form.program.init(self._children(numbers), params, self._inner)
            else:
                fields = self._init_by_hand(self._call(numbers), params)
        return {self.name: ({"count": jnp.zeros((), jnp.int32)} if form.timed else {}) | fields}

    def _init_by_hand(self, rule: Rule, params: Params) -> State:
        if rule.init is not None:
            fields = rule.init(params)
            if not isinstance(cast(Any, fields), dict) or "count" in fields:
                raise TypeError(
                    f"{self._who()}.init: returned {fields!r}; it must return a dict of fields, none called 'count'."
                )
            for name in rule.fields.keys() - fields.keys():
                raise ValueError(
                    f"{self._who()}: the Rule declares the field {name!r}, which init did not return; it returned: "
                    f"{', '.join(fields) or 'none'}."
                )
            return fields
        declared = {name: field.init(params, field.start) for name, field in rule.fields.items() if not field.given}
        return declared | ({"inner": self._inner[0].init(params)} if self._inner else {})

    @property
    def _inner(self) -> list[Transform]:
        """The transforms among its arguments."""
        if "inner" not in self._cache:
            children = record.children(self._arguments)
            self._cache["inner"] = [child for _, child in children if isinstance(child, Transform)]
        return self._cache["inner"]

    def _children(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are not static."""
        return {p.name: arguments[p.name] for p in self._parameters if p.is_child}

    def _known(self, extra: dict[str, Any]) -> dict[str, Any]:
        """The extra arguments that its update names or passes on."""
        facts, observable = self.facts, "unobserved" not in self.facts
        return {n: value for n, value in extra.items() if facts.takes(n) or (n == "observed" and observable)}

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        own: State = state[self.name] if self.slots else {}
        form = self._form
        with jax.named_scope(self.name), blame(f"{self.name}.update"):
            if "real" in form.facts:
                check.refuse_complex(f"{self._who()}.update", self.name, updates)
            dtype = tree.precision(updates, own, params)
            numbers = self._numbers(own.get("count", 0), dtype)
            fields = {name: value for name, value in own.items() if name != "count"}
            timed = {"count": numerics.saturating_increment(own["count"])} if "count" in own else {}
            if form.program is not None:
                count, extra = timed.get("count"), self._known(extra)
                result, new = form.program.update(
                    dtype, self._children(numbers), updates, fields, params, count, extra, self._inner
                )
            else:
                named = self._named(updates, params, extra, timed)
                result, new = self._by_hand(self._call(numbers), updates, fields, named)
            new = timed | new
            if check.checking():
                signed = [name for name, field in form.fields.items() if field.nonnegative]
                check.check_values(self.name, result, own, new, signed)
        return result, ({self.name: new} if self.slots else {})

    def _by_hand(self, rule: Rule, updates: Updates, fields: State, named: dict[str, Any]) -> tuple[Updates, State]:
        returned: Any = rule.update(updates, fields, **named)
        if not isinstance(returned, tuple) or len(cast(Any, returned)) != 2:
            raise TypeError(f"{self._who()}.update: returned {returned!r}; it must return a pair (updates, state).")
        result, new = cast(tuple[Any, Any], returned)
        who = f"{self._who()}.update"
        check.check_unchanged(who, "the updates it returned", result, "those it was given", updates)
        check.check_unchanged(who, "the state it returned", new, "the old state", fields)
        return tree.cast_like(result, updates), tree.cast_like(new, fields)

    def _named(self, updates: Updates, params: Params, extra: dict[str, Any], timed: State) -> dict[str, Any]:
        """The keyword arguments that the author's update names."""
        wanted, named = self._form.wanted, self._known(extra)
        if not (wanted.observed or wanted.passes_on):
            named.pop("observed", None)
        if wanted.observed:
            named.setdefault("observed", updates)
        if wanted.count:
            named |= timed
        if wanted.params:
            named["params"] = params
        return named


def _is_nonzero(value: Any) -> bool:
    """Whether an argument is a number that is not 0, in float32 too."""
    return isinstance(value, float) and abs(value) >= float(np.finfo(np.float32).tiny)


def _is_schedule(value: Any) -> bool:
    return isinstance(value, Schedule)


class Named(Transform):
    """A transform whose body returns another transform."""

    __slots__ = ()

    def _probe(self) -> None:
        self.expand()

    def expand(self, *, deep: bool = False) -> Transform:
        expanded = self._cache.get("expanded")
        if expanded is None:
            with blame(self.name):
                expanded = cast(
                    Transform, record.coerce(Kind.TRANSFORM, self._call(self._arguments), f"{self._who()}: its result")
                )
            # What is built while tracing may hold tracers.
            if not self._traced and not any(is_traced(leaf) for leaf in jax.tree.leaves(expanded)):
                self._cache["expanded"] = expanded
        return expanded.expand(deep=True) if deep else expanded


@overload
def transform(body: Callable[P, Rule]) -> Callable[P, Transform]: ...
@overload
def transform(body: Callable[P, Transform]) -> Callable[P, Transform]: ...
@overload
def transform(*, check: Callable[..., None]) -> Callable[[Callable[P, Any]], Callable[P, Transform]]: ...
def transform(body: Any = None, *, check: Any = None) -> Any:
    """Makes a recorded transform of a function that returns a `Rule` or another transform. See the module's example.

    Args:
      body: the factory; its annotations say which of its arguments are hyperparameters, and in which range.
      check: a function of the same arguments that raises an error if they do not fit together. Unlike in the body,
        hyperparameters have their values here, unless JAX traces them.
    """
    if body is None:
        return functools.partial(transform, check=check)
    hints = annotations_of(body)
    returns = hints.get("return")
    bases: dict[Any, type[Transform]] = {Rule: Elementary, Transform: Named}
    if returns not in bases:
        raise TypeError(f"{body.__name__}: its return annotation is {returns!r}; it must be Rule or Transform.")
    node = record.define(bases[returns], body, hints)
    node._check = None if check is None else staticmethod(check)
    return record.factory_of(node)
