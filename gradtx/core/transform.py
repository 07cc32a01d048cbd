"""Recorded transforms: the pair (init, update) as a value, and the decorator that makes it from an author's closures.

    >>> import gradtx
    >>> @gradtx.transform
    ... def scale_by_half_life(half_life: gradtx.Positive = 10.0) -> gradtx.Rule:
    ...     def update(g, *, count):
    ...         return 0.5 ** (count / half_life) * g
    ...     return gradtx.per_element(update)
    >>> tx = scale_by_half_life(5.0)
    >>> tx
    scale_by_half_life(half_life=5.0)

The decorator provides what every transform needs: the recorded value, the counter, schedules, dtypes, the initial
state, checks, errors. A state is a dict with one entry for each elementary transform, whatever the nesting:
`{"scale_by_rms": {"count": ..., "nu": ...}, ...}`. So a checkpoint is restored by name, and adding a transform in
front renames no entry.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from gradtx import sharding, tree
from gradtx.core import check, meeting, record
from gradtx.core.annotations import Kind, is_traced
from gradtx.core.fields import Field, Place
from gradtx.core.record import Recorded
from gradtx.core.rule import OF_PARAMS, Facts, Params, State, Updates, with_data
from gradtx.core.schedule import blame

P = ParamSpec("P")
AxisName = str | tuple[str, ...] | None


class Transform(Recorded):
    """A gradient transform as a value. `init, update = tx` is the pure pair."""

    _kind = Kind.TRANSFORM

    # The pair, as users call it ---------------------------------------------------------------------------------------

    @functools.cached_property
    def init(self) -> Callable[[Params], State]:
        """`init(params, axis_name=None) -> state`."""
        return self._method("init", self._checked_init)

    @functools.cached_property
    def update(self) -> Callable[..., tuple[Updates, State]]:
        """`update(updates, state, params=None, axis_name=None, **extra_args) -> (updates, state)`.

        Inside `jax.shard_map`, where leaves are shards, `axis_name` names the axes of the mesh over which sums over a
        leaf or all leaves must go too: norms, guards, estimates. Extra arguments that none of the transforms takes, but
        a function among them names, are its data: `value_fn=loss, inputs=x` with `loss(params, inputs)`.
        """
        return self._method("update", self._checked_update)

    def _method(self, name: str, call: Callable[..., Any]) -> Any:
        method = Method(self, name, call)
        return kept(method) if all(isinstance(leaf, float) for leaf in jax.tree.leaves(self)) else method

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter((self.init, self.update))

    def _checked_init(self, params: Params, *, axis_name: AxisName = None) -> State:
        self._refuse_sweep("init")
        check.check_leaves(f"{self._who()}.init", "params", params, self)
        with sharding.over(axis_name):
            return self._init(params)

    def _checked_update(
        self, updates: Updates, state: State, params: Params = None, *, axis_name: AxisName = None, **extra: Any
    ) -> tuple[Updates, State]:
        who = f"{self._who()}.update"
        self._refuse_sweep("update")
        extra = with_data(extra, self.facts)
        if check.foreign_call.get():  # foreign code passes on all extra arguments
            extra = {name: value for name, value in extra.items() if self.facts.takes(name)}
        self._check_extra(who, extra)
        if params is None and self.facts.params:
            raise ValueError(f"{who}: params are missing; this optimizer needs them: tx.update(grads, state, params).")
        key = check.struct_key(updates, state, params)
        if key not in self._verified:
            with sharding.over(axis_name):
                self._check_trees(who, updates, state, params)
            check.hint_at_jit(who, updates)
            self._verified.add(key)
        met, own, weights, known = meeting.together(who, updates, state, params, extra)
        with sharding.over(axis_name):
            flowing, new_state = self._step(tree.to_compute_dtype(met), own, weights, known)
        bounded = functools.partial(tree.cast_like, finite="nonfinite" in self.facts)
        to_type = sharding.all_like if "last" in self.facts else bounded
        return to_type(flowing, updates), sharding.all_like(new_state, state)

    @functools.cached_property
    def _verified(self) -> set[Any]:
        """The structures of arguments of update that have passed the checks."""
        return set()

    @functools.cached_property
    def _sweep(self) -> int | None:
        """The number of optimizers in this value, if it is a sweep."""
        return next((leaf.shape[0] for leaf in jax.tree.leaves(self) if jnp.ndim(leaf) > 0), None)

    def _refuse_sweep(self, method: str) -> None:
        if self._sweep is not None:
            raise ValueError(
                f"{self._who()}.{method}: this is a sweep of {self._sweep} optimizers in one value. "
                f"Map over it: jax.vmap(lambda tx, ...: tx.{method}(...))(txs, ...)."
            )

    def _check_extra(self, who: str, extra: dict[str, Any]) -> None:
        facts = self.facts
        for name in extra:
            if not (facts.takes(name) or (name == "observed" and "unobserved" not in facts)):
                hint = record.suggestion(name, facts.extra)
                data = "".join(f", and what {function} names" for function in sorted(OF_PARAMS & facts.extra))
                known = f"It accepts: {', '.join(sorted(facts.extra)) or 'none'}{data}."
                raise TypeError(
                    f"{who}: unknown extra argument {name!r}.{hint} {known} Leave it out, or let gradtx.to_optax(tx) "
                    "drop it."
                )
        for name in sorted(facts.required - set(extra)):
            raise TypeError(
                f"{who}: the extra argument {name!r} is missing. Pass {name}=... to update. optax.chain passes it on "
                "only to gradtx.to_optax(tx)."
            )

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
        """The parts of this transform, one level down; with `deep=True`, down to the elementary ones."""
        return self

    @functools.cached_property
    def facts(self) -> Facts:
        """Its properties: its reach, where it may be placed, what it needs."""
        return self.expand().facts

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the elementary transforms in it that have a state, in order."""
        return self.expand().slots

    @property
    def parts(self) -> "dict[Place, Part]":
        """The elementary transforms in it that have a state, by the place of their entry, at any depth."""
        return self.expand().parts

    @property
    def declared(self) -> dict[Place, Field]:
        """The fields that they declare, by place: {("scale_by_rms", "nu"): Field(...)}."""
        return {(*place, name): field for place, part in self.parts.items() for name, field in part.fields.items()}

    def _init(self, params: Params) -> State:
        return self.expand()._init(params)

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        """The update in the compute dtype, without the checks at the boundary."""
        with jax.named_scope(self.name), blame(f"{self.name}.update"):
            return self.expand()._step(updates, state, params, extra)

    @property
    def _traced(self) -> bool:
        """Whether JAX is tracing. Making an array costs more than looking at the own numbers, so it comes last."""
        return any(is_traced(leaf) for leaf in jax.tree.leaves(self)) or is_traced(nothing())


nothing = jax.jit(lambda: jnp.zeros(()), inline=True)  # once compiled, cheaper than making any array


def numbered(names: tuple[str, ...]) -> list[str]:
    """The names, with `_2`, `_3` ... appended to repeated ones."""
    unique: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        unique.append(next(candidate for candidate in candidates if candidate not in unique))
    return unique


class Method:
    """`tx.init` or `tx.update`: compared and hashed by tx, so that `jax.jit(tx.update)` knows a rebuilt optimizer."""

    __slots__ = ("__name__", "__qualname__", "__weakref__", "_call", "_tx")

    def __init__(self, tx: Any, name: str, call: Callable[..., Any]):
        self._tx, self._call = tx, call
        self.__name__, self.__qualname__ = name, f"{tx.name}.{name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and self.__name__ == other.__name__ and self._tx == other._tx

    def __hash__(self) -> int:
        return hash((self.__name__, self._tx))

    def __repr__(self) -> str:
        return f"{self._tx!r}.{self.__name__}"


@functools.lru_cache(maxsize=256)
def kept(method: Method) -> Method:
    """The first of equal methods, kept alive: jit's cache goes with the function object that it has compiled."""
    return method


@dataclasses.dataclass(frozen=True)
class Part:
    """An elementary transform (`Elementary`) inside another, and the fields of its state as seen from the outer one."""

    node: Any
    fields: Mapping[str, Field]
    views: tuple[Field | None, ...] = ()
    """The forms (`View.form`) of the views around it, the outermost first."""


class Transparent(Transform):
    """A transform around another whose state has the names of the one inside."""

    inner: Transform

    def expand(self, *, deep: bool = False) -> Transform:
        return self._checked(self._arguments | {"inner": self.inner.expand(deep=deep)})

    @functools.cached_property
    def facts(self) -> Facts:
        return self.inner.facts

    @property
    def slots(self) -> tuple[str, ...]:
        return self.inner.slots

    @property
    def parts(self) -> dict[Place, Part]:
        return self.inner.parts
