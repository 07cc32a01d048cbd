"""The two compositions: `a >> b`, one after another, and `a + b`, side by side.

In `a >> b`, b gets the output of a. In `a + b` the updates pass from left to right as well, but a scaling measures
the incoming gradient, not the output of the part to its left:

    >>> import gradtx
    >>> gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(1e-3)       # Adam
    scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08) >> scale_by_learning_rate(learning_rate=0.001)
    >>> gradtx.scale_by_rms(0.9) >> gradtx.scale_by_momentum(0.9, form="sum")                  # RMSProp with momentum
    scale_by_rms(decay=0.9, eps=1e-08) >> scale_by_momentum(decay=0.9, form='sum')

The incoming gradient is passed as the keyword `observed`; a transform that measures past gradients names it. Both
compositions are associative, and `identity()` is neutral in both.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import Array

from gradtx.core import record
from gradtx.core.elementary import transform
from gradtx.core.fields import Place
from gradtx.core.foreign import as_transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Facts, Params, Rule, State, Updates, in_a_row
from gradtx.core.transform import Part, Transform, numbered


class Composition(Transform):
    """Several transforms as one."""

    __slots__ = ()
    symbol = ""

    stages: tuple[Transform, ...]
    """The transforms it is made of (its argument)."""

    def _probe(self) -> None:
        return None

    def _rebuilt(self, arguments: dict[str, Any]) -> Transform:
        return self.factory(*arguments["stages"])

    def expand(self, *, deep: bool = False) -> Transform:
        return self.factory(*(stage.expand(deep=deep) for stage in self.stages))

    def __repr__(self) -> str:
        inside = [f"({s!r})" if isinstance(s, Chain) else repr(s) for s in self.stages]
        return f" {self.symbol} ".join(inside)

    @property
    def facts(self) -> Facts:
        if "facts" not in self._cache:
            self._cache["facts"] = in_a_row(tuple([stage.facts for stage in self.stages]))
        return self._cache["facts"]

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(name for stage in self.stages for name in stage.slots)

    @property
    def parts(self) -> dict[Place, Part]:
        found: dict[Place, Part] = {}
        for stage, keys in self._layout():
            names = dict(keys)
            found |= {(names[place[0]], *place[1:]): part for place, part in stage.parts.items()}
        return found

    def _layout(self) -> list[tuple[Transform, list[tuple[str, str]]]]:
        """Each stage with its entries in the state: (the name it gives itself, its name in the composition)."""
        if "layout" not in self._cache:
            names = iter(numbered(self.slots))
            self._cache["layout"] = [(s, [(own, next(names)) for own in numbered(s.slots)]) for s in self.stages]
        return self._cache["layout"]

    def _init(self, params: Params) -> State:
        state: State = {}
        for stage, keys in self._layout():
            own = stage._init(params)
            state |= {key: own[name] for name, key in keys}
        return state

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        new: State = {}
        result = updates
        for _, result, own in self._steps(updates, state, params, extra):  # noqa: B007 - the last one is returned
            new |= own
        return result, new

    def _steps(
        self, updates: Updates, state: State, params: Params, extra: dict[str, Any]
    ) -> Iterator[tuple[Transform, Updates, State]]:
        """Stage by stage: the stage, the updates after it, and its part of the new state."""
        extras = self._extras(updates, extra)
        for stage, keys in self._layout():
            updates, own = stage._step(updates, {name: state[key] for name, key in keys}, params, next(extras))
            yield stage, updates, {key: own[name] for name, key in keys}

    def _extras(self, updates: Updates, extra: dict[str, Any]) -> Any:
        raise NotImplementedError


class Chain(Composition):
    """One after another: each gets the output of the one before."""

    __slots__ = ()
    symbol = ">>"

    def _extras(self, updates: Updates, extra: dict[str, Any]) -> Any:
        yield extra  # only the first stage gets `observed`; the others measure their input
        extra = {name: value for name, value in extra.items() if name != "observed"}
        while True:
            yield extra


class Join(Composition):
    """Side by side: each scaling measures the incoming gradient."""

    __slots__ = ()
    symbol = "+"

    def _extras(self, updates: Updates, extra: dict[str, Any]) -> Any:
        extra = {"observed": updates} | extra
        while True:
            yield extra


def _is_identity(stage: Transform) -> bool:
    expanded = stage.expand(deep=True)
    return expanded.name == "identity"


def _flat(kind: type[Composition], stages: tuple[Transform, ...]) -> list[Transform]:
    """The stages: compositions of the same kind are flattened, and stages that do nothing are dropped."""
    flat: list[Transform] = []
    for stage in stages:
        flat.extend(stage.stages if isinstance(stage, kind) else [stage])
    return [stage for stage in flat if not _is_identity(stage)]


def _composition(kind: type[Composition]) -> Callable[[Callable[..., Any]], Callable[..., Transform]]:
    """The factory of a composition; it may return the only remaining stage instead, or identity()."""

    def decorate(body: Callable[..., Any]) -> Callable[..., Transform]:
        node = record.define(kind, body)

        @functools.wraps(body)
        def compose(*stages: Any) -> Transform:
            flat = _flat(kind, _given(f"gradtx.{body.__name__}", stages))
            if kind is Join:
                for stage in flat[1:]:
                    _refuse_unobservable(stage)
            _refuse_misplaced(f"gradtx.{body.__name__}", flat)
            if len(flat) < 2:
                return flat[0] if flat else identity()
            return node._from_arguments({"stages": tuple(flat)})

        return record.enter(node, compose)

    return decorate


def _given(who: str, stages: tuple[Any, ...]) -> tuple[Transform, ...]:
    """The stages as transforms; at least one."""
    if not stages:
        raise TypeError(f"{who}: got no transforms. Pass at least one, or identity(), which does nothing.")
    return tuple(as_transform(stage, f"{who}: stage {index}") for index, stage in enumerate(stages))


def _refuse_unobservable(stage: Transform) -> None:
    if "unobserved" in stage.facts:
        raise TypeError(
            f"gradtx.join: {stage!r} cannot be on the right of +, since it cannot measure the incoming gradient. "
            "Put it first, or use >> to run it on the output of the transforms before it."
        )


def _refuse_misplaced(who: str, stages: list[Transform]) -> None:
    for stage in stages[1:]:
        if "first" in stage.facts:
            raise TypeError(
                f"{who}: {stage!r} cannot come after {stages[0]!r}, which would get scaled gradients. "
                "Put it first, or put the others inside it."
            )
    for place, stage in enumerate(stages):
        for behind in stages[place + 1 :] if stage.facts.sometimes else []:
            if "idle" not in behind.facts:
                raise TypeError(
                    f"{who}: {behind!r} cannot come after {stage!r}, which makes its step at some updates only; at "
                    "the others it would get zeros, and still decay, count or keep statistics. Put it inside: "
                    f"{stage.name}(... >> {behind.name}(...), ...)."
                )
    for stage in stages[:-1]:
        if "last" in stage.facts:
            raise TypeError(
                f"{who}: {stages[-1]!r} cannot come after {stage!r}, whose updates decide the bits of the params and "
                "must be applied unchanged. Put it last, or put the others inside it."
            )


@_composition(Chain)
def chain(*stages: Transform) -> Transform:
    """`a >> b`: one after another; each transform gets the output of the one before it.

    Args:
      stages: transforms, or any objects with `init` and `update` (optax's). Nested chains are flattened, and stages
        that do nothing are dropped, so the composition is associative and `identity()` is neutral.

    State: one flat dict with an entry for each elementary transform that has a state, in order. A repeated name gets
    `_2`; so a second transform with the same name, put in front, renames the first.

    Errors: TypeError for no stages, a list, or a factory that was not called; also for a decay, a schedule or a stage
    with a state after a stage that makes its step at some updates only (`accumulate`, `conditionally_mask`), since it
    would act at the other updates too.

    >>> import gradtx
    >>> gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(1e-3))
    clip_by_global_norm(max_norm=1.0) >> adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)
    """
    raise NotImplementedError  # only recorded; the class implements it


@_composition(Join)
def join(*stages: Transform) -> Transform:
    """`a + b`: side by side; updates pass from left to right, and each scaling measures the incoming gradient.

    Args:
      stages: transforms. A transform that cannot take `observed` (optax's, or a wrapper that decides when others run)
        must come first.

    State: as `chain`.

    Errors: as `chain`; also TypeError for such a transform anywhere but first.

    >>> import gradtx
    >>> gradtx.join(gradtx.scale_by_momentum(), gradtx.scale_by_rms()) == gradtx.scale_by_adam().expand()
    True
    """
    raise NotImplementedError  # only recorded; the class implements it


@transform
def identity() -> Rule:
    """Returns the updates unchanged; neutral in both compositions.

    State: none.

    Errors: none.

    >>> import gradtx
    >>> gradtx.identity() >> gradtx.clip(1.0) == gradtx.clip(1.0)
    True
    """

    def update(u: Array) -> Array:
        return u

    return per_element(update)


@transform
def stateless(f: Callable[[Updates, Params], Updates]) -> Rule:
    """A transform without state, made from a function of the updates and the params.

    Args:
      f: `f(updates, params) -> updates`; params is None if update was called without params. It is called under JAX's
        standard dtype promotion rules, and the result is cast to the dtype of the updates.

    State: none. Extra arguments: none.

    Errors: ValueError if f returns a tree of another structure or other shapes.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> halve = gradtx.stateless(lambda updates, params: jax.tree.map(lambda u: u / 2, updates))
    >>> halve.update({"w": jnp.ones(2)}, halve.init({"w": jnp.zeros(2)}))
    ({'w': Array([0.5, 0.5], dtype=float32)}, {})
    """

    def update(updates: Updates, state: State, params: Params = None) -> tuple[Updates, State]:
        with jax.numpy_dtype_promotion("standard"):
            return f(updates, params), state

    return Rule(update=update, reach="tree")
