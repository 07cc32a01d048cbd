"""The two compositions: `a >> b`, one after another, and `a + b`, side by side.

In `a >> b`, b reads what a wrote. In `a + b` the effects are applied left to right as well, but a scaling is measured
on the gradient that came in, not on what the left made of it:

    >>> import gradtx
    >>> gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(1e-3)       # Adam
    scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08) >> scale_by_learning_rate(learning_rate=0.001)
    >>> gradtx.scale_by_rms(0.9) >> gradtx.scale_by_momentum(0.9, form="sum")                  # RMSProp with momentum
    scale_by_rms(decay=0.9, eps=1e-08) >> scale_by_momentum(decay=0.9, form='sum')

That gradient travels as the keyword `observed`: a transform that divides by a measure of past gradients names it. Both
compositions are associative, and `identity()` is neutral in both.
"""

import functools
import itertools
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

    symbol = ""

    stages: tuple[Transform, ...]
    """The transforms it is made of (its argument)."""

    @classmethod
    def _from_call(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Transform:
        """The composition; or less than one: the only stage that is left, or `identity()`."""
        who, stages = cls._who(), list[Transform]()
        for index, given in enumerate(cls._bound(args, kwargs)["stages"]):
            stage = as_transform(given, f"{who}: stage {index}")
            # Those of the same kind of composition are opened, and what does nothing is dropped.
            inside = stage.stages if isinstance(stage, Composition) and stage.name == cls.name else (stage,)
            stages += [one for one in inside if one.expand(deep=True).name != "identity"]
        if not args:
            raise TypeError(
                f"{who}: got no transforms; pass at least one, or use identity() for one that does nothing."
            )
        cls._refuse(stages)
        if len(stages) < 2:
            return stages[0] if stages else identity()
        return cls._from_arguments({"stages": tuple(stages)})

    @classmethod
    def _refuse(cls, stages: list[Transform]) -> None:
        """Refuse what cannot stand where it does."""
        for before, stage in itertools.combinations(stages, 2):
            if "first" in stage.facts:
                raise TypeError(
                    f"{cls._who()}: {stage!r} cannot stand behind {before!r}, which would see gradients that are still "
                    "scaled. Put it first, or the others inside it."
                )
            if before.facts.sometimes and "idle" not in stage.facts:
                raise TypeError(
                    f"{cls._who()}: {stage!r} cannot stand behind {before!r}, which makes its step at some updates "
                    "only: at the others it would get zeros, and decay, count or remember all the same. Put it inside: "
                    f"{before.name}(... >> {stage.name}(...), ...)."
                )
            if "last" in before.facts:
                raise TypeError(
                    f"{cls._who()}: {stage!r} cannot stand behind {before!r}, whose updates decide the bits of the "
                    "params and are to be applied as they are. Put it last, or the others inside it."
                )

    def _rebuilt(self, arguments: dict[str, Any]) -> Transform:
        return self.factory(*arguments["stages"])

    def expand(self, *, deep: bool = False) -> Transform:
        return self.factory(*(stage.expand(deep=deep) for stage in self.stages))

    def __repr__(self) -> str:
        inside = [f"({s!r})" if isinstance(s, Chain) else repr(s) for s in self.stages]
        return f" {self.symbol} ".join(inside)

    @functools.cached_property
    def facts(self) -> Facts:
        return in_a_row(tuple([stage.facts for stage in self.stages]))

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(name for stage in self.stages for name in stage.slots)

    @property
    def parts(self) -> dict[Place, Part]:
        found: dict[Place, Part] = {}
        for stage, keys in self._layout:
            names = dict(keys)
            found |= {(names[place[0]], *place[1:]): part for place, part in stage.parts.items()}
        return found

    @functools.cached_property
    def _layout(self) -> list[tuple[Transform, list[tuple[str, str]]]]:
        """Each stage with its entries in the state: (the name it gives itself, its name in the composition)."""
        names = iter(numbered(self.slots))
        return [(stage, [(own, next(names)) for own in numbered(stage.slots)]) for stage in self.stages]

    def _init(self, params: Params) -> State:
        state: State = {}
        for stage, keys in self._layout:
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
        """Stage by stage: the stage, the updates behind it, and its part of the new state."""
        extra, later = self._told(updates, extra)
        for stage, keys in self._layout:
            updates, own = stage._step(updates, {name: state[key] for name, key in keys}, params, extra)
            yield stage, updates, {key: own[name] for name, key in keys}
            extra = later

    def _told(self, updates: Updates, extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The extra arguments of the first stage, and those of the others."""
        raise NotImplementedError


class Chain(Composition):
    """One after another: each reads what the one before wrote."""

    symbol = ">>"

    def _told(self, updates: Updates, extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        # The first stage may be told what to measure; the others measure what flows.
        return extra, {name: value for name, value in extra.items() if name != "observed"}


class Join(Composition):
    """Side by side: each scaling is measured on the gradient that came in."""

    symbol = "+"

    @classmethod
    def _refuse(cls, stages: list[Transform]) -> None:
        for stage in stages[1:]:
            if "unobserved" in stage.facts:
                raise TypeError(
                    f"gradtx.join: {stage!r} cannot stand right of +: it cannot be told to measure the gradient that "
                    "came in. Put it first, or use >> if it is to read what the transforms before it wrote."
                )
        super()._refuse(stages)

    def _told(self, updates: Updates, extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        told = {"observed": updates} | extra
        return told, told


@record.recorded(Chain)
def chain(*stages: Transform) -> Transform:
    """`a >> b`: one after another; each transform reads what the one before it wrote.

    Args:
      stages: transforms, or any objects with `init` and `update` (optax's). Chains among them are opened, and stages
        that do nothing are dropped, so the composition is associative and `identity()` is neutral.

    State: one flat dict, an entry for each elementary transform that has a state, in order; a repeated name gets `_2`,
    so that a second transform of a name put in front renames the first.

    Errors: TypeError for no stages, a list, a factory that was not called, or a stage behind one that makes its step at
    some updates only (`accumulate`, `conditionally_mask`), if it does something at the others too: a decay, a
    schedule, a state.

    >>> import gradtx
    >>> gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(1e-3))
    clip_by_global_norm(max_norm=1.0) >> adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)
    """
    raise NotImplementedError  # a record only: its class says what it does


@record.recorded(Join)
def join(*stages: Transform) -> Transform:
    """`a + b`: side by side; effects are applied left to right, each scaling is measured on the gradient that came in.

    Args:
      stages: transforms. What cannot be told which gradient to measure (optax's objects, wrappers that decide when
        others run) may only stand first.

    State: as `chain`.

    Errors: as `chain`; also TypeError for such a transform anywhere but first.

    >>> import gradtx
    >>> gradtx.join(gradtx.scale_by_momentum(), gradtx.scale_by_rms()) == gradtx.scale_by_adam().expand()
    True
    """
    raise NotImplementedError  # a record only: its class says what it does


@transform
def identity() -> Rule:
    """Leaves the updates as they are; neutral in both compositions.

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
    """A transform without memory from a function of the updates and the params.

    Args:
      f: `f(updates, params) -> updates`; params are None where update was given none. It is called under JAX's
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
