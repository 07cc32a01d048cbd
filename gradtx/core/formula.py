"""Formulas: what happens to one leaf, and how it becomes a program.

    def update(g, *, mu):                                  # one leaf, in the compute dtype
        mu = b * mu + (1 - b) * g
        return mu, {"mu": mu}

    return per_element(update, mu=fields.like())

A formula names its inputs: the declared fields, `observed` (the gradient to measure), `params`, `count` (int32, 1 at
the first update), `key`, and extra arguments. It returns the update, and the new values of its fields by name. It
closes over the hyperparameters. A formula that needs sums over all leaves has up to three passes: `measure`, leaf by
leaf, whose results are added up; `once`, for numbers of the whole tree; and the update itself.

A formula is one program: the body runs with hyperparameters that have no values yet, and its computation is compiled
once for each dtype and shape, whatever the hyperparameters are.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from gradtx.core import selection
from gradtx.core.fields import Field, of_matrix
from gradtx.core.for_some import ForSome
from gradtx.core.program import Pass, Program, names_in
from gradtx.core.rule import OFFERED, Reach, Rule, Wants

RESERVED = OFFERED | {"inner", "groups", "updates"}


# What authors write ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Formula:
    """The passes of a formula by name; the mask of its leaves, None for all; and `stack`."""

    passes: dict[str, Pass]
    only: Any
    stack: bool

    @property
    def program(self) -> type[Program]:
        """The kind of program that it becomes."""
        return Program if self.only is None else ForSome

    def wanted(self, rule: Rule) -> Wants:
        """The names that the passes want, checked against those that exist."""
        alone = self.passes["measure"] is None and self.passes["once"] is None
        if alone and self.passes["refresh"] is not None:
            raise TypeError(f"{rule.update.__name__}: it has a pass `refresh`, so `once` must return 'due'.")
        wanted = names_of(rule, without_leaf="once", closed=alone)
        for name, field in rule.fields.items():
            if field.per == "tree" and not field.given and name != "key" and self.passes["once"] is None:
                raise TypeError(
                    f"{rule.update.__name__}: the field {name!r} is one for the whole tree, but no `once` updates "
                    f"it: per_{rule.reach}(update, once=once, {name}=...)."
                )
        given = OFFERED | {name for name, field in rule.fields.items() if field.given}
        by_params = {"params": True} if selection.is_function(self.only) else {}
        return Wants(by_params | {name: needed for name, needed in wanted.items() if name in given})


def per_element(
    update: Callable[..., Any],
    measure: Pass = None,
    once: Pass = None,
    *,
    only: Any = None,
    traits: tuple[str, ...] = (),
    **fields: Field,
) -> Rule:
    """A formula that works element by element; small leaves may be joined end to end (`pack`).

    Args:
      update: `update(u, *, names...)`, returning u, or (u, {field: value}) with fields. See the module.
      measure: `measure(u, *, names...)`, returning {name: total(x), norm(x) or largest(x)}, summed over all leaves; or
        a pair of that and {field: value} if it updates fields as well.
      once: `once(*, names...)`, returning {name: number}: fields of the whole tree, and numbers for the update.
      only: a mask of the leaves that it applies to (see `masked`), None for all; the others pass through.
      traits: see `Rule`.
      fields: the state, by name (`gradtx.fields`).

    >>> import gradtx, jax.numpy as jnp
    >>> @gradtx.transform
    ... def scale_by_gap(lowest: gradtx.Finite = 0.0) -> gradtx.Rule:       # Polyak's step: (f - lowest) / |g|²
    ...     def measure(u):
    ...         return {"size": gradtx.norm(u)}
    ...     def once(*, size, value):
    ...         return {"step": (value - lowest) / (size**2 + 1e-12)}
    ...     def update(u, *, step):
    ...         return step * u
    ...     return gradtx.per_element(update, measure, once, value=gradtx.fields.argument())
    >>> tx, params = scale_by_gap(), {"w": jnp.array([3.0, -4.0])}
    >>> tx.update(params, tx.init(params), params, value=12.5)[0]
    {'w': Array([ 1.5, -2. ], dtype=float32)}
    """
    return _formula("element", (measure, once, None, update), fields, traits, only)


def per_matrix(
    update: Callable[..., Any],
    measure: Pass = None,
    once: Pass = None,
    *,
    refresh: Pass = None,
    only: Any = None,
    stack: bool = False,
    traits: tuple[str, ...] = (),
    **fields: Field,
) -> Rule:
    """A formula for a matrix; other leaves raise an error, unless `by_shape` routes them elsewhere.

    A leaf with more axes, of which `by_shape` has dimension numbers, is a batch of matrices, and so are its fields.

    Args:
      update, measure, once, only, traits, fields: as `per_element`.
      refresh: `refresh(u, *, names...)`, returning {field: value}, before the update; it runs at the steps at which
        `once` returns a true `due`, for all leaves in one branch.
      stack: run matrices of the same shape in batches of up to 8; their state stays leaf by leaf.
    """
    fields = {name: of_matrix(field) for name, field in fields.items()}
    return _formula("matrix", (measure, once, refresh, update), fields, traits, only, stack)


def per_leaf(
    update: Callable[..., Any],
    measure: Pass = None,
    once: Pass = None,
    *,
    refresh: Pass = None,
    only: Any = None,
    traits: tuple[str, ...] = (),
    **fields: Field,
) -> Rule:
    """A formula for a leaf of any shape, whose elements may depend on each other. Its arguments: see `per_matrix`."""
    return _formula("leaf", (measure, once, refresh, update), fields, traits, only)


def per_tree(update: Callable[..., Any], once: Pass = None, *, traits: tuple[str, ...] = (), **fields: Field) -> Rule:
    """A formula for the whole tree: it takes and returns trees. Its arguments: see `per_element`."""
    return _formula("tree", (None, once, None, update), fields, traits)


def _formula(
    reach: Reach,
    passes: tuple[Pass, Pass, Pass, Callable[..., Any]],
    fields: dict[str, Field],
    traits: tuple[str, ...],
    only: Any = None,
    stack: bool = False,
) -> Rule:
    check_fields(f"gradtx.per_{reach}", fields)
    named: dict[str, Pass] = dict(zip(("measure", "once", "refresh", "update"), passes, strict=True))
    more = {"sums": named["measure"] is not None, "leaves": only is not None}
    traits = (*traits, *(name for name, holds in more.items() if holds))
    return Rule(update=passes[-1], reach=reach, fields=fields, traits=traits, formula=Formula(named, only, stack))


def check_fields(who: str, fields: dict[str, Field], reserved: frozenset[str] = frozenset()) -> None:
    """Refuse anything but fields, and reserved names: those of all rules, and more."""
    for name, field in fields.items():
        if not isinstance(cast(Any, field), Field):
            raise TypeError(f"{who}: {name} is {field!r}; it must be a field, such as gradtx.fields.like().")
        if name in RESERVED | reserved or (name == "key") != (field.dtype == "key"):
            why = "only a random key may have that name" if name == "key" else "that name is reserved"
            why = "a random key must be called key" if field.dtype == "key" else why
            raise ValueError(f"{who}: a field is called {name!r}, but {why}. Choose another name.")


def names_of(
    rule: Rule, *, without_leaf: str, closed: bool, offered: Mapping[str, frozenset[str]] = MappingProxyType({})
) -> dict[str, bool]:
    """The names that the passes want, and whether each is required; `closed` if only fields and `OFFERED` are allowed.

    `without_leaf` is the pass that does not get the update; `offered` has more names, allowed in one pass only.
    """
    wanted: dict[str, bool] = {}
    for title, function in rule.formula.passes.items():
        if function is None:
            continue
        names, leads = names_in(function)
        if leads == (title == without_leaf):
            allowed = f"{title}(*, names)" if title == without_leaf else f"{title}(u, *, names), where u is the update"
            raise TypeError(f"{function.__name__}{inspect.signature(function)}; it must be {allowed}.")
        more = offered.get(title, frozenset())
        wanted |= {name: needed or wanted.get(name, False) for name, needed in names.items() if name not in more}
    for name, needed in wanted.items():
        if closed and needed and name not in OFFERED and name not in rule.fields:
            raise TypeError(
                f"{rule.update.__name__} names {name!r}, which is neither a field nor provided; fields: "
                f"{', '.join(rule.fields) or 'none'}; provided: {', '.join(sorted(OFFERED))}. Declare it: "
                f"{name}=fields.{'key' if name == 'key' else 'like'}(), or as an extra argument: "
                f"{name}=fields.argument()."
            )
    for name in rule.fields.keys() - wanted.keys() - {"key"}:
        raise TypeError(f"{rule.update.__name__}: the field {name!r} is declared, but no pass names it.")
    return wanted
