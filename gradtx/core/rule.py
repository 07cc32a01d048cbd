"""What an author's body returns, and the facts that code and tests may ask about a transform."""

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
    "real": "complex leaves are refused by name",
    "integers": "leaves of integers and bools may be among those it is given; it computes with none of them",
    "leaves": "it tells leaves apart (a mask does), so that they cannot be joined end to end",
    "sums": "it sums over all leaves",
    "norms": "it reads a leaf as a whole by its norm alone, which sees all shards inside shard_map",
    "unobserved": "it cannot be told which gradient to measure, so it may only stand first in `a + b`",
    "nonfinite": "it deals with gradients that are not finite by itself",
    "idle": "updates of zero pass through as zero and change nothing in its state",
    "descends": "it makes a step of a direction, by a learning rate and the sign of a descent",
    "clips": "it limits the size of what flows through, which `monitor` then reports",
}
"""What a rule may say about itself besides, by name."""

_OF_ALL = frozenset({"idle", "integers"})
_OF_THE_FIRST = frozenset({"unobserved"})
_OF_ANY = frozenset(TRAITS) - _OF_ALL - _OF_THE_FIRST
_FROM_INSIDE = frozenset({"leaves", "sums", "unobserved", "descends"})


@dataclasses.dataclass(frozen=True)
class Rule:
    """The pure pair (init, update), and what may be asked about it.

    `per_element`, `per_matrix`, `per_leaf` and `per_tree` make one of a formula. By hand it is written for what has
    transforms inside:

    Args:
      init: `init(params) -> dict of fields`; None for the declared fields, and the state of the transform inside
        under "inner".
      update: `update(updates, state, ...) -> (updates, state)`. It names what else it wants: `params` (positional,
        required unless it has a default); keyword-only `observed` (the gradient to measure, see `join`), `count` (1
        at the first update), and any extra argument, required unless it has a default. `**extra` passes on whatever
        the transforms among the factory's arguments accept.
      reach: what the update of one element depends on: that "element" alone, its "matrix" or "leaf", or the "tree";
        None for the reach of the transforms inside, or the tree where there are none.
      fields: what it remembers, by name (see `gradtx.fields`).
      place: "first" if the gradients it is given are not to be touched before; "last" if what it returns is to be
        applied as it is, in float32 whatever the gradients are.
      acts: "always", or "sometimes" if it makes its step at some updates only (`accumulate`).
      traits: what else holds, any of `TRAITS`.
      formula: what `per_element` and its like, and `through`, add: passes that are compiled.
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
                raise ValueError(f"gradtx.Rule: {trait!r} is not a trait; allowed: {', '.join(map(repr, TRAITS))}.")


OFFERED = frozenset({"observed", "params", "count"})
"""What the language offers to every update by name."""


class Wants(NamedTuple):
    """What an author's update names, and whether it must be there; `passes_on` if it takes `**extra` besides."""

    names: dict[str, bool]
    passes_on: bool = False

    @property
    def extra(self) -> dict[str, bool]:
        """The extra arguments among them."""
        return {name: needed for name, needed in self.names.items() if name not in OFFERED}


def wants(rule: Rule) -> Wants:
    """What the update of a rule written by hand names."""
    function = rule.update
    if not inspect.isfunction(function):
        raise TypeError(f"gradtx.Rule: update is {function!r}; allowed: a plain function, whose arguments can be read.")
    parameters = list(inspect.signature(function).parameters.values())
    placed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(placed) < 2 or placed[2:] not in ([], ["params"]):
        raise TypeError(
            f"{function.__name__}({', '.join(placed)}): allowed: update(updates, state) or update(updates, state, "
            "params), and behind a * whatever else it wants: observed, count, extra arguments."
        )
    passes_on = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    named = parameters[2 : -1 if passes_on else None]
    return Wants({p.name: p.default is p.empty for p in named}, passes_on)


def widest(reaches: Iterable[Reach]) -> Reach:
    """The widest of several reaches; that of one element where there are none."""
    return max((_REACHES[0], *reaches), key=_REACHES.index)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What holds of a transform, whatever it is made of."""

    reach: Reach = "element"
    """What the update of one element depends on, sums over all leaves apart."""
    place: frozenset[str] = frozenset()
    """"first": nothing may touch the gradients before it. "last": nothing may act on what it returns."""
    sometimes: bool = False
    """Whether it makes its step at some updates only."""
    traits: frozenset[str] = frozenset()
    """Which of `TRAITS` hold."""
    random: bool = False
    """Whether it draws random numbers."""
    params: bool = False
    """Whether update must be given the params."""
    extra: frozenset[str] = frozenset()
    """The extra arguments that update names."""
    required: frozenset[str] = frozenset()
    """Those that it must be given."""
    any_extra: bool = False
    """Whether it takes every extra argument: something from elsewhere in it takes `**extra_args`."""

    @property
    def reads(self) -> Literal["element", "leaf", "tree"]:
        """What the update of one element depends on."""
        return "tree" if "sums" in self.traits else "leaf" if self.reach == "matrix" else self.reach

    @property
    def joinable(self) -> bool:
        """Whether its leaves may be joined end to end."""
        return self.reach == "element" and "leaves" not in self.traits

    def __contains__(self, fact: str) -> bool:
        """Whether a trait holds, or a place: `"clips" in tx.facts`, `"first" in tx.facts`."""
        return fact in self.traits or fact in self.place

    def takes(self, name: str) -> bool:
        """Whether update accepts this extra argument."""
        return name in self.extra or (self.any_extra and name != "observed")


@functools.lru_cache(maxsize=1024)
def in_a_row(stages: tuple[Facts, ...]) -> Facts:
    """The facts of several transforms, one behind another."""
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
    """Whether a rule has a state of its own, counters and transforms inside apart."""
    return rule.init is not None or any(not one.given for one in rule.fields.values())


def _any_of(*sets: frozenset[str]) -> frozenset[str]:
    return frozenset[str]().union(*sets)


def _all_of(*sets: frozenset[str]) -> frozenset[str]:
    return sets[0].intersection(*sets[1:])
