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
import itertools
from collections.abc import Callable
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
        """The composition; or the only remaining stage instead, or `identity()`."""
        who, stages = cls._who(), list[Transform]()
        for index, given in enumerate(cls._bound(args, kwargs)["stages"]):
            stage = as_transform(given, f"{who}: stage {index}")
            # Compositions of the same kind are flattened, and stages that do nothing are dropped.
            inside = stage.stages if isinstance(stage, Composition) and stage.name == cls.name else (stage,)
            stages += [one for one in inside if one.expand(deep=True).name != "identity"]
        if not args:
            raise TypeError(f"{who}: got no transforms. Pass at least one, or identity(), which does nothing.")
        cls._refuse(stages)
        if len(stages) < 2:
            return stages[0] if stages else identity()
        return cls._from_arguments({"stages": tuple(stages)})

    @classmethod
    def _refuse(cls, stages: list[Transform]) -> None:
        """Refuse a stage that cannot be where it is."""
        for before, stage in itertools.combinations(stages, 2):
            if "first" in stage.facts:
                raise TypeError(
                    f"{cls._who()}: {stage!r} cannot come after {before!r}, which would get scaled gradients. "
                    "Put it first, or put the others inside it."
                )
            if "gradients" in stage.facts:
                raise TypeError(
                    f"{cls._who()}: {stage!r} cannot come after {before!r}: it takes the gradients as they are. Put it "
                    "first."
                )
            if before.facts.sometimes and "idle" not in stage.facts:
                raise TypeError(
                    f"{cls._who()}: {stage!r} cannot come after {before!r}, which makes its step at some updates "
                    "only; at the others it would get zeros, and still decay, count or keep statistics. Put it inside: "
                    f"{before.name}(... >> {stage.name}(...), ...)."
                )
            if "last" in before.facts:
                raise TypeError(
                    f"{cls._who()}: {stage!r} cannot come after {before!r}, whose updates decide the bits of the "
                    "params and must be applied unchanged. Put it last, or put the others inside it."
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

    def _step(
        self,
        updates: Updates,
        state: State,
        params: Params,
        extra: dict[str, Any],
        watch: Callable[[Transform, Updates, Updates], None] | None = None,
    ) -> tuple[Updates, State]:
        """The stages in order. `watch(stage, before, after)` is called with the updates before and after each."""
        new: State = {}
        extra, later = self._told(updates, extra)
        for stage, keys in self._layout:
            before = updates
            updates, own = stage._step(before, {name: state[key] for name, key in keys}, params, extra)
            for name, key in keys:
                new[key] = own[name]
            if watch is not None:
                watch(stage, before, updates)
            extra = later
        return updates, new

    def _told(self, updates: Updates, extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The extra arguments of the first stage, and those of the others."""
        raise NotImplementedError


class Chain(Composition):
    """One after another: each gets the output of the one before."""

    symbol = ">>"

    def _told(self, updates: Updates, extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        # Only the first stage gets `observed`; the others measure their input.
        return extra, {name: value for name, value in extra.items() if name != "observed"}


class Join(Composition):
    """Side by side: each scaling measures the incoming gradient."""

    symbol = "+"

    @classmethod
    def _refuse(cls, stages: list[Transform]) -> None:
        for stage in stages[1:]:
            if "unobserved" in stage.facts:
                raise TypeError(
                    f"gradtx.join: {stage!r} cannot be on the right of +, since it cannot measure the incoming "
                    "gradient. Put it first, or use >> to run it on the output of the transforms before it."
                )
        super()._refuse(stages)

    def _told(self, updates: Updates, extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        told = {"observed": updates} | extra
        return told, told


@record.recorded(Chain)
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


@record.recorded(Join)
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
