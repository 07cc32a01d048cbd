"""Recorded transforms: the pair (init, update) as a value, and the decorator that makes one of an author's closures.

    >>> import gradtx
    >>> from gradtx import tree
    >>> @gradtx.transform
    ... def scale_by_half_life(half_life: gradtx.Positive = 10.0) -> gradtx.Rule:
    ...     def update(updates, state, *, count):
    ...         weight = 0.5 ** (count.astype(half_life.dtype) / half_life)
    ...         return tree.map(lambda u, weight: weight * u, updates, weight=weight), state
    ...     return gradtx.Rule(update=update)
    >>> tx = scale_by_half_life(5.0)
    >>> tx
    scale_by_half_life(half_life=5.0)

The decorator owns what every transform needs alike: the recorded value, the counter, schedules, dtypes, checks,
errors. A state is a dict with one entry for each elementary transform, whatever the nesting: `{"scale_by_rms":
{"count": ..., "nu": ...}, ...}`; so a checkpoint is restored by name, and a transform put in front renames nothing.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, ParamSpec, cast, overload

import jax
import jax.numpy as jnp

from gradtx import numerics, sharding, tree
from gradtx.core import check, meeting, record, storage
from gradtx.core.annotations import Kind, annotations_of, is_traced
from gradtx.core.attributes import Attributes
from gradtx.core.method import Method, kept
from gradtx.core.rule import Params, Rule, State, Updates, wants, widest
from gradtx.core.schedule import blame, concrete_numbers, placeholders

P = ParamSpec("P")


class Transform(Attributes):
    """A gradient transform as a value. `init, update = tx` is the pure pair."""

    __slots__ = ()
    _kind = Kind.TRANSFORM

    # The pair, as users call it ---------------------------------------------------------------------------------------

    @property
    def init(self) -> Callable[[Params], State]:
        """`init(params) -> state`."""
        return self._method("init", self._checked_init)

    @property
    def update(self) -> Callable[..., tuple[Updates, State]]:
        """`update(updates, state, params=None, **extra_args) -> (updates, state)`."""
        return self._method("update", self._checked_update)

    def _method(self, name: str, call: Callable[..., Any]) -> Any:
        if name not in self._cache:
            method = Method(self, name, call)
            plain = all(isinstance(leaf, float) for leaf in jax.tree.leaves(self))
            self._cache[name] = kept(method) if plain else method
        return self._cache[name]

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter((self.init, self.update))

    def _checked_init(self, params: Params) -> State:
        self._refuse_sweep("init")
        check.check_leaves(f"{self._who()}.init", "params", params, self)
        return self._init(params)

    def _checked_update(
        self, updates: Updates, state: State, params: Params = None, **extra: Any
    ) -> tuple[Updates, State]:
        who = f"{self._who()}.update"
        self._refuse_sweep("update")
        if check.in_foreign_call():  # they pass on whatever they are given
            extra = {name: value for name, value in extra.items() if self.takes(name)}
        self._check_extra(who, extra)
        if params is None and self.needs_params:
            raise ValueError(f"{who}: params are missing; this optimizer needs them: tx.update(grads, state, params).")
        key, verified = check.struct_key(updates, state, params), self._cache.setdefault("verified", set())
        if key not in verified:
            self._check_trees(who, updates, state, params)
            check.hint_at_jit(who, updates)
            verified.add(key)
        met, own, weights, known = meeting.together(who, updates, state, params, extra)
        flowing, new_state = self._step(tree.to_compute_dtype(met), own, weights, known)
        to_type = sharding.all_like if self.final else functools.partial(tree.cast_like, finite=self.guards)
        return to_type(flowing, updates), sharding.all_like(new_state, state)

    def _refuse_sweep(self, method: str) -> None:
        if "sweep" not in self._cache:
            self._cache["sweep"] = next((leaf.shape for leaf in jax.tree.leaves(self) if jnp.ndim(leaf) > 0), None)
        if self._cache["sweep"]:
            raise ValueError(
                f"{self._who()}.{method}: this is a sweep of {self._cache['sweep'][0]} optimizers in one value; "
                f"map over it: jax.vmap(lambda tx, ...: tx.{method}(...))(txs, ...)."
            )

    def _check_extra(self, who: str, extra: dict[str, Any]) -> None:
        for name in extra:
            if not (self.takes(name) or (name == "observed" and self.observable)):
                hint = record.suggestion(name, self.extra_args)
                known = f"It accepts: {', '.join(sorted(self.extra_args)) or 'none'}."
                raise TypeError(
                    f"{who}: unknown extra argument {name!r}.{hint} {known} Leave it out, or let gradtx.to_optax(tx) "
                    "drop it."
                )
        for name in sorted(self._required_extra - set(extra)):
            raise TypeError(f"{who}: the extra argument {name!r} is missing; pass {name}=... to update.")

    def _check_trees(self, who: str, updates: Updates, state: State, params: Params) -> None:
        check.check_leaves(who, "updates", updates, self)
        if params is not None:
            check.check_leaves(who, "params", params, self)
            check.check_alike(who, "updates", updates, "params", params)
        like = updates if params is None else params

        def init(params: Params) -> State:  # a function of its own, since it answers for this state
            return self._init(params)

        with check.questioned(state):
            expected = jax.eval_shape(init, like)
        check.check_state(who, state, expected, dtypes=params is not None)

    # The operators ----------------------------------------------------------------------------------------------------

    def __rshift__(self, other: Any) -> "Transform":
        return record.registry["chain"](self, other)

    def __rrshift__(self, other: Any) -> "Transform":
        return record.registry["chain"](other, self)

    def __add__(self, other: Any) -> "Transform":
        return record.registry["join"](self, other)

    def __radd__(self, other: Any) -> "Transform":
        return record.registry["join"](other, self)

    # What it is made of -----------------------------------------------------------------------------------------------

    def expand(self, *, deep: bool = False) -> "Transform":
        """What this transform is made of, one level down; with `deep=True`, down to the elementary ones."""
        raise NotImplementedError

    def _init(self, params: Params) -> State:
        return self._expanded._init(params)

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        """The update in the compute dtype, without the checks at the boundary."""
        with jax.named_scope(self.name), blame(f"{self.name}.update"):
            return self._expanded._step(updates, state, params, extra)

    @property
    def _expanded(self) -> "Transform":
        return self.expand()

    @property
    def _traced(self) -> bool:
        """Whether JAX is tracing. To ask for an array costs more than to look at the own numbers, so it comes last."""
        return any(is_traced(leaf) for leaf in jax.tree.leaves(self)) or is_traced(jnp.zeros(()))


class Elementary(Transform):
    """A transform whose body returns a Rule."""

    __slots__ = ()

    def _probe(self) -> None:
        rule = self.rule
        if not isinstance(cast(Any, rule), Rule):
            raise TypeError(f"{self._who()}: its body returned {rule!r}, and is annotated to return a Rule.")
        storage.check(self._who(), rule)
        with blame(self.name):
            wanted = wants(rule)
        for inner in self._inner:
            if inner._required_extra and not wanted.passes_on:
                needed = ", ".join(sorted(inner._required_extra))
                raise TypeError(
                    f"{self._who()}: {inner!r} needs {needed}, which its update does not pass on; let it accept "
                    "**extra and hand that to inner.update."
                )

    @property
    def rule(self) -> Rule:
        """The rule as the body gives it, with placeholders for what is not known yet: for asking, not for running."""
        if "rule" in self._cache:
            return self._cache["rule"]
        with blame(self.name):
            rule = self._call(placeholders(self))
        if not self._traced:  # a rule built while tracing may hold tracers
            self._cache["rule"] = rule
        return rule

    def expand(self, *, deep: bool = False) -> Transform:
        return self

    @property
    def _inner(self) -> list[Transform]:
        """The transforms among its arguments."""
        if "inner" not in self._cache:
            children = record.children(self._arguments)
            self._cache["inner"] = [child for _, child in children if isinstance(child, Transform)]
        return self._cache["inner"]

    @property
    def _timed(self) -> bool:
        return any(p.kind is Kind.HYPER for p in self._parameters) or wants(self.rule).count

    @property
    def slots(self) -> tuple[str, ...]:
        return (self.name,) if self._timed or self.rule.init is not None else ()

    @property
    def extra_args(self) -> frozenset[str]:
        wanted = wants(self.rule)
        passed_on = [inner.extra_args for inner in self._inner] if wanted.passes_on else []
        return wanted.extra.union(*passed_on)

    @property
    def takes_any(self) -> bool:
        return wants(self.rule).passes_on and any(inner.takes_any for inner in self._inner)

    @property
    def _required_extra(self) -> frozenset[str]:
        wanted = wants(self.rule)
        passed_on = [inner._required_extra for inner in self._inner] if wanted.passes_on else []
        return wanted.extra_required.union(*passed_on)

    @property
    def needs_params(self) -> bool:
        wanted = wants(self.rule)
        return wanted.params_required or (wanted.params and any(inner.needs_params for inner in self._inner))

    @property
    def observable(self) -> bool:
        wanted = wants(self.rule)
        hands_on = wanted.observed or wanted.passes_on or not self._inner
        return self.rule.observable and hands_on and all(inner.observable for inner in self._inner)

    @property
    def reads(self) -> Literal["element", "leaf", "tree"]:
        return widest([self.rule.reads, *(inner.reads for inner in self._inner)])

    @property
    def random(self) -> bool:
        rounds = self.rule.state_dtype is not None
        return rounds or self.rule.random or any(inner.random for inner in self._inner)

    @property
    def first(self) -> bool:
        return self.rule.first or any(inner.first for inner in self._inner)

    @property
    def final(self) -> bool:
        return self.rule.final or any(inner.final for inner in self._inner)

    @property
    def guards(self) -> bool:
        return self.rule.guards or (bool(self._inner) and all(inner.guards for inner in self._inner))

    @property
    def waits(self) -> bool:
        return self.rule.waits or any(inner.waits for inner in self._inner)

    @property
    def idle(self) -> bool:
        wanted, inside = wants(self.rule), [child for _, child in record.children(self._arguments)]
        own = self.rule.init is None and not wanted.count and not wanted.params
        own = own if self.rule.idle is None else self.rule.idle
        return own and all(isinstance(child, Transform) and child.idle for child in inside)

    @property
    def descends(self) -> bool:
        return self.rule.descends or any(inner.descends for inner in self._inner)

    @property
    def clips(self) -> bool:
        return self.rule.clips

    @property
    def whole_leaves(self) -> bool:
        own = self.rule.reads != "element" if self.rule.whole_leaves is None else self.rule.whole_leaves
        return own or any(inner.whole_leaves for inner in self._inner)

    @property
    def rules(self) -> dict[str, Rule]:
        return {self.name: self.rule} if self.slots else {}

    def _init(self, params: Params) -> State:
        if not self.slots:
            return {}
        with jax.named_scope(self.name), blame(f"{self.name}.init"):
            rule = cast(Rule, self._call(concrete_numbers(self, 0, tree.precision(params))))
            if not rule.complex:
                check.refuse_complex(f"{self._who()}.init", self.name, params)
            fields = {} if rule.init is None else rule.init(params)
        if not isinstance(cast(Any, fields), dict) or "count" in fields:
            raise TypeError(f"{self._who()}.init: returned {fields!r}; allowed: a dict of fields, none called 'count'.")
        fields = storage.lowered(self._who(), rule, fields, params)
        for field in set(rule.nonnegative) - set(fields):
            raise ValueError(
                f"{self._who()}: the Rule calls {field!r} nonnegative, a field that its state has not; its fields: "
                f"{', '.join(fields) or 'none'}."
            )
        return {self.name: ({"count": jnp.zeros((), jnp.int32)} if self._timed else {}) | fields}

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        own: State = state[self.name] if self.slots else {}
        with jax.named_scope(self.name), blame(f"{self.name}.update"):
            numbers = concrete_numbers(self, own.get("count", 0), tree.precision(updates, own, params))
            rule = cast(Rule, self._call(numbers))
            if not rule.complex:
                check.refuse_complex(f"{self._who()}.update", self.name, updates)
            fields = {name: value for name, value in own.items() if name not in ("count", storage.KEY)}
            timed = {"count": numerics.saturating_increment(own["count"])} if "count" in own else {}
            returned: Any = rule.update(updates, fields, **self._named(rule, updates, params, extra, timed))
            if not isinstance(returned, tuple) or len(cast(Any, returned)) != 2:
                raise TypeError(f"{self._who()}.update: returned {returned!r}; allowed: a pair (updates, state).")
            result, new_fields = cast(tuple[Any, Any], returned)
            check.check_unchanged(
                f"{self._who()}.update", "the updates it returned", result, "those it was given", updates
            )
            check.check_unchanged(f"{self._who()}.update", "the state it returned", new_fields, "the old state", fields)
            result = tree.cast_like(result, updates)
            new = timed | storage.rounded(rule, new_fields, fields, own.get(storage.KEY))
            if check.checking():
                check.check_values(self.name, result, own, new, rule.nonnegative)
        return result, ({self.name: new} if self.slots else {})

    def _named(
        self, rule: Rule, updates: Updates, params: Params, extra: dict[str, Any], timed: State
    ) -> dict[str, Any]:
        """The keyword arguments that the author's update names."""
        wanted = wants(rule)
        passed_on = [name for name in extra if wanted.passes_on and self.takes(name)]
        named = {name: value for name, value in extra.items() if name in wanted.extra.union(passed_on)}
        if wanted.observed or (wanted.passes_on and self.observable and "observed" in extra):
            named["observed"] = extra.get("observed", updates)
        if wanted.count:
            named |= timed
        if wanted.params:
            named["params"] = params
        return named


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
def transform(body: Callable[..., Any]) -> Callable[..., Transform]:
    """Make a recorded transform of a function that returns a `Rule` or another transform. See the module's example."""
    hints = annotations_of(body)
    returns = hints.get("return")
    bases: dict[Any, type[Transform]] = {Rule: Elementary, Transform: Named}
    if returns not in bases:
        raise TypeError(f"{body.__name__}: its return annotation is {returns!r}; allowed: Rule or Transform.")
    return record.factory_of(record.define(bases[returns], body, hints))
