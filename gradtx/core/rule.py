"""Rules, which an author's body returns, and the facts of a transform, for code and tests."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from gradtx.core.fields import Field

Updates = Any
Params = Any
State = dict[str, Any]
Reach = Literal["element", "matrix", "leaf", "tree"]

_REACHES: tuple[Reach, ...] = ("element", "matrix", "leaf", "tree")

TRAITS = {
    "real": "it refuses complex leaves",
    "integers": "it accepts integer and bool leaves, but does not compute with them",
    "leaves": "it distinguishes leaves (as a mask does), so that they cannot be joined end to end",
    "sums": "it sums over all leaves",
    "norms": "it needs a whole leaf only for its norm, which includes all shards inside shard_map",
    "unobserved": "it cannot take `observed`, so it must come first in `a + b`",
    "nonfinite": "it handles gradients that are not finite",
    "idle": "updates of zero pass through as zero and do not change its state",
    "descends": "it turns a direction into a step downhill, with a learning rate or a search",
    "gradients": "it takes the gradients at the params, so that no transform may come before it",
    "clips": "it limits the size of the updates, which `monitor` then reports",
}
"""Further properties that a rule may declare, by name."""

_OF_ALL = frozenset({"idle", "integers"})
_OF_THE_FIRST = frozenset({"unobserved", "gradients"})
_OF_ANY = frozenset(TRAITS) - _OF_ALL - _OF_THE_FIRST
_FROM_INSIDE = frozenset({"leaves", "sums", "unobserved", "descends", "gradients"})


@dataclasses.dataclass(frozen=True)
class Rule:
    """A pair of pure functions, init and update, with their properties.

    `per_element`, `per_matrix`, `per_leaf` and `per_tree` make a rule from a formula. Write one by hand for a transform
    with transforms inside:

    Args:
      init: `init(params) -> dict of fields`; None for the declared fields, and the state of the inner transform under
        "inner".
      update: `update(updates, state, ...) -> (updates, state)`. It names its other inputs: `params` (positional,
        required unless it has a default); keyword-only `observed` (the gradient to measure, see `join`), `count` (1
        at the first update), and any extra argument, required unless it has a default. `**extra` receives whatever
        the transforms among the factory's arguments accept.
      reach: what the update of one element depends on: that "element" alone, its "matrix" or "leaf", or the "tree";
        None for the reach of the inner transforms, or the tree if there are none.
      fields: its state, by name (see `gradtx.fields`).
      place: "first" if no transform may change the gradients before it; "last" if its updates must be applied
        unchanged, in float32 whatever the dtype of the gradients.
      acts: "always", or "sometimes" if it makes its step at some updates only (`accumulate`).
      traits: further properties, any of `TRAITS`.
      formula: compiled passes, which `per_element` and its like, and `through`, add.
    """

    init: Callable[[Params], State] | None = None
    update: Any = None
    reach: Reach | None = None
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict[str, Field])
    place: Literal["first", "last"] | None = None
    acts: Literal["always", "sometimes"] = "always"
    traits: tuple[str, ...] = ()
    formula: Any = None

    def __post_init__(self) -> None:
        if self.update is None:
            raise TypeError("gradtx.Rule: update is missing; allowed: Rule(init, update), or Rule(update=update).")
        if self.reach not in (*_REACHES, None):
            raise ValueError(f"gradtx.Rule: reach is {self.reach!r}; allowed: {', '.join(map(repr, _REACHES))}, None.")
        for trait in self.traits:
            if trait not in TRAITS:
                raise ValueError(f"gradtx.Rule: traits has {trait!r}; allowed: {', '.join(map(repr, TRAITS))}.")


OFFERED = frozenset({"observed", "params", "count"})
"""The inputs that every update may name."""
GRADIENTS = frozenset({"grad_fn", "sampled_grad_fn"})
"""The extra arguments that are functions from params to gradients; the second also takes a random key."""
OF_PARAMS = GRADIENTS | {"value_fn", "residual_fn"}
"""The extra arguments that are functions of the params."""


def with_data(extra: dict[str, Any], facts: "Facts") -> dict[str, Any]:
    """The extra arguments, where a function of the params has those that it names and no transform takes, as its data.

    With `loss(params, inputs)`, `value_fn=loss, inputs=x` becomes `value_fn=functools.partial(loss, inputs=x)`.
    """
    others = extra.keys() - facts.extra - {"observed"}
    data: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    functions = {name for name in OF_PARAMS & extra.keys() if facts.takes(name) and callable(extra[name])}
    for function in functions if others else ():
        named = {name: extra[name] for name in others & inspect.signature(extra[function]).parameters.keys()}
        if named:
            data, bound[function] = data | named, functools.partial(extra[function], **named)
    # A foreign transform in it may have a use for them too.
    return {name: value for name, value in extra.items() if name not in data or facts.any_extra} | bound


class Wants(NamedTuple):
    """The names that an author's update wants, and whether each is required; `passes_on` if it also takes `**extra`."""

    names: dict[str, bool]
    passes_on: bool = False

    @property
    def extra(self) -> dict[str, bool]:
        """The extra arguments among them."""
        return {name: needed for name, needed in self.names.items() if name not in OFFERED}


def wants(rule: Rule) -> Wants:
    """The names that the update of a rule written by hand wants."""
    function = rule.update
    if not inspect.isfunction(function):
        raise TypeError(f"gradtx.Rule: update is {function!r}; it must be a plain function with readable arguments.")
    parameters = list(inspect.signature(function).parameters.values())
    placed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(placed) < 2 or placed[2:] not in ([], ["params"]):
        raise TypeError(
            f"{function.__name__}({', '.join(placed)}); it must be update(updates, state) or update(updates, state, "
            "params), with everything else (observed, count, extra arguments) keyword-only, after a *."
        )
    passes_on = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    named = parameters[2 : -1 if passes_on else None]
    return Wants({p.name: p.default is p.empty for p in named}, passes_on)


def widest(reaches: Iterable[Reach]) -> Reach:
    """The widest of several reaches; that of one element if there are none."""
    return max((_REACHES[0], *reaches), key=_REACHES.index)


@dataclasses.dataclass(frozen=True)
class Facts:
    """The properties of a transform, whatever it is made of."""

    reach: Reach = "element"
    """What the update of one element depends on, apart from sums over all leaves."""
    place: frozenset[str] = frozenset()
    """"first": no transform may change the gradients before it. "last": none may change its updates."""
    sometimes: bool = False
    """Whether it makes its step at some updates only."""
    traits: frozenset[str] = frozenset()
    """The `TRAITS` that it has."""
    random: bool = False
    """Whether it draws random numbers."""
    params: bool = False
    """Whether update needs the params."""
    extra: frozenset[str] = frozenset()
    """The extra arguments that update names."""
    required: frozenset[str] = frozenset()
    """The extra arguments that are required."""
    any_extra: bool = False
    """Whether it takes every extra argument, because a foreign transform in it takes `**extra_args`."""

    @property
    def reads(self) -> Literal["element", "leaf", "tree"]:
        """What the update of one element depends on."""
        return "tree" if "sums" in self.traits else "leaf" if self.reach == "matrix" else self.reach

    @property
    def joinable(self) -> bool:
        """Whether its leaves may be joined end to end."""
        return self.reach == "element" and "leaves" not in self.traits

    def __contains__(self, fact: str) -> bool:
        """Whether it has a trait or a place: `"clips" in tx.facts`, `"first" in tx.facts`."""
        return fact in self.traits or fact in self.place

    def takes(self, name: str) -> bool:
        """Whether update accepts this extra argument."""
        return name in self.extra or (self.any_extra and name != "observed")


@functools.lru_cache(maxsize=1024)
def in_a_row(stages: tuple[Facts, ...]) -> Facts:
    """The facts of several transforms, one after another."""
    every, some = (combine(*(stage.traits for stage in stages)) for combine in (_all_of, _any_of))
    return Facts(
        reach=widest(stage.reach for stage in stages),
        place=(stages[0].place & {"first"}) | (stages[-1].place & {"last"}),
        sometimes=any(stage.sometimes for stage in stages),
        traits=(every & _OF_ALL) | (some & _OF_ANY) | (stages[0].traits & _OF_THE_FIRST),
        random=any(stage.random for stage in stages),
        params=any(stage.params for stage in stages),
        extra=_any_of(*(stage.extra for stage in stages)),
        required=_any_of(*(stage.required for stage in stages)),
        any_extra=any(stage.any_extra for stage in stages),
    )


def around(rule: Rule, wanted: Wants, inner: list[Facts]) -> Facts:
    """The facts of a rule with these transforms inside."""
    passed_on = inner if wanted.passes_on else []
    place = frozenset[str]() if rule.place is None else frozenset({rule.place})
    own, inside = frozenset(rule.traits), _any_of(*(one.traits for one in inner))
    everywhere = _all_of(*(one.traits for one in inner)) if inner else frozenset[str]()
    rests = not inner or "idle" in everywhere
    if rests and not (remembers(rule) or inner or wanted.names.keys() & {"count", "params"}):
        own |= {"idle"}
    if inner and not ("observed" in wanted.names or wanted.passes_on):
        own |= {"unobserved"}
    return Facts(
        reach=widest([rule.reach or ("element" if inner else "tree"), *(one.reach for one in inner)]),
        place=_any_of(place, *(one.place for one in inner)),
        sometimes=rule.acts == "sometimes" or any(one.sometimes for one in inner),
        traits=(own if rests else own - {"idle"}) | (inside & _FROM_INSIDE) | (everywhere & {"nonfinite"}),
        random=any(one.dtype == "key" for one in rule.fields.values()) or any(one.random for one in inner),
        params=wanted.names.get("params", False) or ("params" in wanted.names and any(one.params for one in inner)),
        extra=_any_of(frozenset(wanted.extra), *(one.extra for one in passed_on)),
        required=_any_of(
            frozenset(name for name, needed in wanted.extra.items() if needed), *(one.required for one in passed_on)
        ),
        any_extra=any(one.any_extra for one in passed_on),
    )


def remembers(rule: Rule) -> bool:
    """Whether a rule has its own state, apart from counters and inner transforms."""
    return rule.init is not None or any(not one.given for one in rule.fields.values())


def _any_of(*sets: frozenset[str]) -> frozenset[str]:
    return frozenset[str]().union(*sets)


def _all_of(*sets: frozenset[str]) -> frozenset[str]:
    return sets[0].intersection(*sets[1:])
