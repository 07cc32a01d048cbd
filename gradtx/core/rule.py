"""What an author's body returns, and what may be asked about it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, cast

Updates = Any
Params = Any
State = dict[str, Any]


def _missing(*args: Any) -> Any:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What an author's body returns: the pure pair, and what code and tests may ask about it.

    Args:
      init: `init(params) -> dict of fields`; None for a transform that remembers nothing.
      update: `update(updates, state, ...) -> (updates, state)`. It names what else it wants: `params` (positional,
        required unless it has a default); keyword-only `observed` (the gradient to measure, see `join`), `count` (1
        at the first update), and any extra argument, required unless it has a default. `**extra` passes on whatever
        the transforms among the factory's arguments accept.
      reads: what the update of one element depends on: that "element" alone, its "leaf", or the whole "tree".
      nonnegative: the fields of the state that are never negative.
      random: whether the state holds a random key.
      complex: whether complex leaves are handled; if not they are refused by name.
      discrete: whether leaves of integers and bools may be among those it is given; it computes with none of them, and
        gives them to no transform inside but one that is asked itself (`inner.update`).
      observable: False for what decides when others run, or cannot be told which gradient to measure; it may only
        stand first in `a + b`.
      statistics: the fields of the state that are kept in `state_dtype`.
      state_dtype: None to keep them in the compute dtype; else the decorator stores them in this one, rounded
        stochastically where it is narrower. The author computes with what `tree.map` hands over, as always.
      first: the gradients it is given are not to be touched before (they come scaled): it may only stand first.
      final: what it returns is to be applied as it is, in float32 whatever the gradients are: it may only stand last.
      guards: whether it deals with gradients that are not finite by itself.
      waits: whether it makes its step at some updates only (`accumulate`); at the others its updates are zero.
      idle: whether updates of zero pass through as zero and change nothing in the state, so that it may stand behind a
        transform that waits. None: what has no state of its own and names neither the params nor the count. A schedule
        among the arguments is never idle.
      descends: whether it makes a step of a direction, by a learning rate and the sign of a descent.
      clips: whether it limits the size of what flows through, which `monitor` then reports.
      whole_leaves: whether it needs the leaves one by one: their shapes, number or paths (a mask). What does not may be
        run on leaves joined end to end (`pack`). None: only what reads single elements does not.
    """

    init: Callable[[Params], State] | None = None
    update: Callable[..., tuple[Updates, State]] = _missing
    reads: Literal["element", "leaf", "tree"] = "element"
    nonnegative: tuple[str, ...] = ()
    random: bool = False
    complex: bool = True
    discrete: bool = False
    observable: bool = True
    statistics: tuple[str, ...] = ()
    state_dtype: str | None = None
    first: bool = False
    final: bool = False
    guards: bool = False
    waits: bool = False
    idle: bool | None = None
    descends: bool = False
    clips: bool = False
    whole_leaves: bool | None = None

    def __post_init__(self) -> None:
        if self.update is _missing:
            raise TypeError("gradtx.Rule: update is missing; allowed: Rule(init, update), or Rule(update=update).")
        if self.reads not in ("element", "leaf", "tree"):
            raise ValueError(f"gradtx.Rule: reads is {self.reads!r}; allowed: 'element', 'leaf', 'tree'.")


@dataclasses.dataclass(frozen=True)
class Wants:
    """What an author's update names."""

    params: bool
    params_required: bool
    observed: bool
    count: bool
    extra: frozenset[str]
    extra_required: frozenset[str]
    passes_on: bool


@functools.lru_cache(maxsize=4096)
def _wants(code: Any, defaults: int, keyword_defaults: frozenset[str]) -> Wants:
    names = code.co_varnames[: code.co_argcount]
    keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    if len(names) < 2 or names[2:] not in ((), ("params",)):
        raise TypeError(
            f"{code.co_name}({', '.join(names)}): allowed: update(updates, state) or update(updates, state, params), "
            "and behind a * whatever else it wants: observed, count, extra arguments."
        )
    extra = frozenset(keywords) - {"observed", "count", "params"}
    by_keyword = "params" in keywords
    return Wants(
        params=len(names) > 2 or by_keyword,
        params_required=(len(names) > 2 and defaults == 0) or (by_keyword and "params" not in keyword_defaults),
        observed="observed" in keywords,
        count="count" in keywords,
        extra=extra,
        extra_required=extra - keyword_defaults,
        passes_on=bool(code.co_flags & inspect.CO_VARKEYWORDS),
    )


def wants(rule: Rule) -> Wants:
    """What the rule's update names."""
    function = cast(Any, rule.update)
    if not inspect.isfunction(function):
        raise TypeError(f"gradtx.Rule: update is {function!r}; allowed: a plain function, whose arguments can be read.")
    return _wants(function.__code__, len(function.__defaults__ or ()), frozenset(function.__kwdefaults__ or ()))


def widest(reads: list[Literal["element", "leaf", "tree"]]) -> Literal["element", "leaf", "tree"]:
    """The widest of several reaches."""
    return "tree" if "tree" in reads else "leaf" if "leaf" in reads else "element"
