"""Transforms of an author's body: a rule or a formula (`Elementary`), or another transform (`Named`).

The body of an elementary transform runs with hyperparameters that have no values. Its result is the same for all
transforms of the factory with these static arguments, and is kept as their `Form`. The counter, the schedules and the
initial state are added here.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import numerics, tree
from gradtx.core import check, record, values
from gradtx.core.annotations import Kind, annotations_of, is_traced
from gradtx.core.arguments import Static
from gradtx.core.fields import Field, Place
from gradtx.core.program import Body, Numbers, Step, no_values, without_values
from gradtx.core.rule import Facts, Params, Rule, State, Updates, around, remembers, wants
from gradtx.core.schedule import blame, concrete_numbers, is_schedule
from gradtx.core.transform import Part, Transform

P = ParamSpec("P")


class ByHand:
    """The program of a rule that is written by hand: its own two functions, whose results are checked."""

    names: Mapping[str, Any] = {}
    views = ()

    def __init__(self, who: str, rule: Rule, body: Body):
        self.who, self.body, self.wants = who, body, wants(rule)

    def init(self, numbers: Numbers, params: Params, inner: list[Transform]) -> State:
        """The state before the first update."""
        rule = self.body(numbers)
        if rule.init is None:
            kept = {name: field.init(params, field.start) for name, field in rule.fields.items() if not field.given}
            return kept | ({"inner": inner[0].init(params)} if inner else {})
        fields = rule.init(params)
        if not isinstance(cast(Any, fields), dict) or "count" in fields:
            raise TypeError(
                f"{self.who}.init: returned {fields!r}; it must return a dict of fields, none called 'count'."
            )
        for name in rule.fields.keys() - fields.keys():
            raise ValueError(
                f"{self.who}: the Rule declares the field {name!r}, which init did not return; it returned: "
                f"{', '.join(fields) or 'none'}."
            )
        return fields

    def update(self, step: Step, own: State, inner: list[Transform]) -> tuple[Updates, State]:
        """One step, with the keyword arguments that the author's update names."""
        there = {"observed": step.updates, "count": step.count, "params": step.params} | step.extra
        named = {name: value for name, value in there.items() if name in self.wants.names}
        if self.wants.passes_on:
            named |= step.extra
        returned: Any = self.body(step.numbers).update(step.updates, own, **named)
        if not isinstance(returned, tuple) or len(cast(Any, returned)) != 2:
            raise TypeError(f"{self.who}.update: returned {returned!r}; it must return a pair (updates, state).")
        result, new = cast(tuple[Any, Any], returned)
        who = f"{self.who}.update"
        check.check_unchanged(who, "the updates it returned", result, "those it was given", step.updates)
        check.check_unchanged(who, "the state it returned", new, "the old state", own)
        return tree.cast_like(result, step.updates), tree.cast_like(new, own)


class Form:
    """What all transforms of a factory with equal static arguments have in common, whatever their hyperparameters.

    The body runs once for it, with hyperparameters that have no values.
    """

    def __init__(self, node: "Elementary"):
        self.who, self._node_type, self._statics = node._who(), type(node), node._fixed()
        children = {p.name: node._arguments[p.name] for p in node._parameters if p.is_child}
        hyper = {p.name: _abstract(children[p.name]) for p in node._parameters if p.kind is Kind.HYPER}

        def read(numbers: Numbers) -> None:
            self._read(children | numbers)

        with blame(node.name), no_values(self.who):
            jax.eval_shape(read, hyper)

    def body(self, children: dict[str, Any]) -> Rule:
        """The rule, with these numbers and transforms."""
        node = self._node_type._from_arguments(self._statics | children)
        return node._call(node._arguments)

    def _read(self, children: dict[str, Any]) -> None:
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
        self.timed = "count" in wanted.names or any(p.kind is Kind.HYPER for p in self._node_type._parameters)
        self.facts = around(rule, wanted, [child.facts for child in inner])
        self.fields = {name: field for name, field in without_values(rule.fields).items() if not field.given}
        self.remembers = self.timed or remembers(rule) or bool(inner)
        self.program: Any = (ByHand if rule.formula is None else rule.formula.program)(self.who, rule, self.body)


def _abstract(value: Any) -> Any:
    """Hyperparameters without their values."""

    def number(_: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), np.float32)

    return jax.tree.map(number, value, is_leaf=is_schedule)


_forms: dict[Any, Form] = {}
_MOST_FORMS = 1024


class Elementary(Transform):
    """A transform whose body returns a Rule."""

    def _probe(self) -> None:
        _ = self._form

    @functools.cached_property
    def _form(self) -> Form:
        key = (type(self), *self._kinds())
        form = _forms.get(key) or Form(self)
        # What is built while tracing may hold tracers, in functions among the static arguments.
        if not any(map(callable, self._fixed().values())) or not self._traced:
            if len(_forms) >= _MOST_FORMS:
                del _forms[next(iter(_forms))]
            _forms[key] = form
        return form

    def _kinds(self) -> Iterator[Any]:
        """What a form depends on: static arguments by value, the others by structure."""
        for p in self._parameters:
            value = self._arguments[p.name]
            if p.kind is Kind.STATIC:
                yield Static(value)
            elif p.kind is not Kind.HYPER or isinstance(value, tuple | dict):
                yield jax.tree.structure(value, is_leaf=is_schedule if p.kind is Kind.HYPER else None)
            else:
                yield value is None

    def _fixed(self) -> dict[str, Any]:
        """The static arguments."""
        return {p.name: self._arguments[p.name] for p in self._parameters if not p.is_child}

    @functools.cached_property
    def facts(self) -> Facts:
        facts = self._form.facts
        if "idle" in facts and any(is_schedule(child) for _, child in record.children(self._arguments)):
            return dataclasses.replace(facts, traits=facts.traits - {"idle"})  # a schedule depends on the count
        return facts

    @property
    def slots(self) -> tuple[str, ...]:
        return (self.name,) if self._form.remembers else ()

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
        names = [name for name, field in self.fields.items() if field.per == "tree" and name != "key"]
        if not names or "once" not in program.names or not program.names["once"].keys() <= {*names, "count"}:
            return {}
        dtype = tree.precision(entry)

        def step(count: Any, numbers: State) -> State:
            run = program.run("once", dtype, self._numbers(count, dtype))
            made = run(None, program.named("once", numbers | {"count": count + 1}))
            return {name: made[name] for name in numbers}

        first = {name: entry[name] for name in names}
        return cast(State, jax.lax.fori_loop(0, jnp.asarray(steps, jnp.int32), step, first))

    @property
    def parts(self) -> dict[Place, Part]:
        own: dict[Place, Part] = {(self.name,): Part(self, self.fields)} if self.slots else {}
        for place, child in self.inside.items():
            for deeper, part in child.parts.items():
                views = (*self._form.program.views, *part.views)
                own[(self.name, *place, *deeper)] = dataclasses.replace(part, views=views)
        return own

    @property
    def inside(self) -> dict[Place, Transform]:
        """The transforms among its arguments, by the place of their state in its entry: "inner", or by group."""
        found = [(place, child) for place, child in record.children(self._arguments) if isinstance(child, Transform)]
        alone = len(found) == 1 and len(found[0][0]) == 1
        return {("inner",) if alone else ("groups", str(place[-1])): child for place, child in found}

    def _numbers(self, count: Any, dtype: np.dtype[Any]) -> Numbers:
        """The hyperparameters and the transforms inside as the body is given them, at this count and in this dtype."""
        known = self._known_numbers
        if known is not None and dtype in known:
            return known[dtype]
        numbers = concrete_numbers(self, count, dtype)
        numbers = {p.name: numbers[p.name] for p in self._parameters if p.is_child}
        if known is not None:
            known[dtype] = numbers
        return numbers

    @functools.cached_property
    def _known_numbers(self) -> dict[np.dtype[Any], Numbers] | None:
        """The same by dtype, where they depend on nothing else."""
        children = [child for _, child in record.children(self._arguments)]
        fixed = all(isinstance(leaf, float) for leaf in jax.tree.leaves(self)) and not any(map(is_schedule, children))
        return {} if fixed else None

    def _init(self, params: Params) -> State:
        if not self.slots:
            return {}
        with jax.named_scope(self.name), blame(f"{self.name}.init"):
            self._refuse_complex("init", params)
            numbers = self._numbers(0, tree.precision(params))
            fields = self._form.program.init(numbers, params, self._inner)
        return {self.name: ({"count": jnp.zeros((), jnp.int32)} if self._form.timed else {}) | fields}

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        own: State = state[self.name] if self.slots else {}
        form, facts = self._form, self._form.facts
        with jax.named_scope(self.name), blame(f"{self.name}.update"):
            self._refuse_complex("update", updates)
            dtype = tree.precision(updates, own, params)
            numbers = self._numbers(own.get("count", 0), dtype)
            timed = {"count": numerics.saturating_increment(own["count"])} if form.timed else {}
            told = [name for name in extra if facts.takes(name) or (name == "observed" and "unobserved" not in facts)]
            step = Step(dtype, numbers, updates, params, timed.get("count"), {name: extra[name] for name in told})
            fields = {name: value for name, value in own.items() if name != "count"}
            result, new = form.program.update(step, fields, self._inner)
            new = timed | new
            if values.value_checks.get():
                signed = [name for name, field in form.fields.items() if field.nonnegative]
                values.check_values(self.name, result, own, new, signed)
        return result, ({self.name: new} if self.slots else {})

    @functools.cached_property
    def _inner(self) -> list[Transform]:
        """The transforms among its arguments."""
        return [child for _, child in record.children(self._arguments) if isinstance(child, Transform)]

    def _refuse_complex(self, method: str, leaves: Any) -> None:
        if "real" in self._form.facts:
            check.refuse_complex(f"{self._who()}.{method}", self.name, leaves)


class Named(Transform):
    """A transform whose body returns another transform."""

    def _probe(self) -> None:
        self.expand()

    def expand(self, *, deep: bool = False) -> Transform:
        expanded: Transform | None = vars(self).get("_made_of")
        if expanded is None:
            with blame(self.name):
                made = record.coerce(Kind.TRANSFORM, self._call(self._arguments), f"{self._who()}: its result")
            expanded = cast(Transform, made)
            # What is built while tracing may hold tracers.
            if not self._traced and not any(is_traced(leaf) for leaf in jax.tree.leaves(expanded)):
                vars(self)["_made_of"] = expanded
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
