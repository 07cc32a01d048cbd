"""Formulas: what happens to one leaf, and the program that the language makes of it.

    def update(g, *, mu):                                  # one leaf, in the compute dtype
        mu = b * mu + (1 - b) * g
        return mu, {"mu": mu}

    return per_element(update, mu=fields.like())

A formula names what it wants: the fields it has declared, `observed` (the gradient to measure), `params`, `count`
(int32, 1 at the first update), `key`, and extra arguments. It returns the update, and what it remembers by name.
Hyperparameters come by closure. What needs sums over all leaves has up to three passes: `measure`, leaf by leaf, whose
results are added up; `once`, for what is one number for the whole tree; and the update itself.

A formula is one program: the body runs with numbers that have no value yet, and what it computes is compiled once for
each dtype and shape, whatever the numbers are.
"""

import contextlib
import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx import sharding, tree
from gradtx.core import elsewhere, selection
from gradtx.core.fields import Field
from gradtx.core.rule import Reach, Rule, State, Wants

PyTree = Any
Numbers = dict[str, Any]
Dtype = np.dtype[Any]
Pass = Callable[..., Any] | None
Body = Callable[[Numbers], Rule]

OFFERED = frozenset({"observed", "params", "count"})
RESERVED = OFFERED | {"inner", "groups", "updates"}


# What authors write ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Formula:
    """The passes of a formula before its update; a mask of the leaves that it is for, None for all; and `stack`."""

    measure: Pass = None
    once: Pass = None
    only: Any = None
    stack: bool = False

    def wanted(self, rule: Rule) -> Wants:
        """What the passes name, checked against what there is."""
        passes = {"measure": self.measure, "once": self.once, "update": rule.update}
        wanted = names_of(rule, passes, without_leaf="once", closed=self.measure is None and self.once is None)
        for name, field in rule.fields.items():
            if field.per == "tree" and not field.given and name != "key" and self.once is None:
                raise TypeError(
                    f"{rule.update.__name__}: the field {name!r} is one for the whole tree, and there is no `once` to "
                    f"move it: per_{rule.reach}(update, once=once, {name}=...)."
                )
        given = frozenset(name for name, field in rule.fields.items() if field.given and name in wanted)
        by_params = selection.is_function(self.only)
        return Wants(
            params="params" in wanted or by_params,
            params_required=wanted.get("params", by_params),
            observed="observed" in wanted,
            count="count" in wanted,
            extra=given,
            extra_required=frozenset(name for name in given if wanted[name]),
        )

    def program(self, who: str, rule: Rule, body: Body) -> "Program":
        """The program of a rule with this formula."""
        return Program(who, rule, body)


def per_element(
    update: Callable[..., Any],
    measure: Pass = None,
    once: Pass = None,
    *,
    only: Any = None,
    traits: tuple[str, ...] = (),
    **fields: Field,
) -> Rule:
    """A formula that treats each element of a leaf by itself; small leaves may be joined end to end (`pack`).

    Args:
      update: `update(u, *, names...)`, returning u, or (u, {field: value}) with fields. See the module.
      measure: `measure(u, *, names...)`, returning {name: total(x), norm(x) or largest(x)}, added up over all leaves;
        or (that, {field: value}) where it moves fields as well.
      once: `once(*, names...)`, returning {name: number}: the fields of the whole tree, and what the update names.
      only: which leaves it is for, a mask (see `masked`); None for all. The others pass.
      traits: see `Rule`.
      fields: what is remembered, by name (`gradtx.fields`).
    """
    return _formula("element", update, Formula(measure, once, only), traits, fields)


def per_matrix(
    update: Callable[..., Any],
    measure: Pass = None,
    once: Pass = None,
    *,
    only: Any = None,
    stack: bool = False,
    traits: tuple[str, ...] = (),
    **fields: Field,
) -> Rule:
    """A formula for a matrix; other leaves are refused by name: `by_shape` routes them elsewhere.

    Args:
      stack: run matrices of one shape as one batch, whose state stays leaf by leaf.
      update, measure, once, only, traits, fields: as `per_element`.
    """
    return _formula("matrix", update, Formula(measure, once, only, stack), traits, fields)


def per_leaf(
    update: Callable[..., Any],
    measure: Pass = None,
    once: Pass = None,
    *,
    only: Any = None,
    traits: tuple[str, ...] = (),
    **fields: Field,
) -> Rule:
    """A formula for a leaf of any shape, whose elements may depend on each other. Its arguments: see `per_element`."""
    return _formula("leaf", update, Formula(measure, once, only), traits, fields)


def per_tree(update: Callable[..., Any], once: Pass = None, *, traits: tuple[str, ...] = (), **fields: Field) -> Rule:
    """A formula for the whole tree: it is given trees and returns trees. Its arguments: see `per_element`."""
    return _formula("tree", update, Formula(once=once), traits, fields)


def _formula(
    reach: Reach, update: Callable[..., Any], formula: Formula, traits: tuple[str, ...], fields: dict[str, Field]
) -> Rule:
    check_fields(f"gradtx.per_{reach}", fields)
    more = {"sums": formula.measure is not None, "leaves": formula.only is not None}
    traits = (*traits, *(name for name, holds in more.items() if holds))
    return Rule(update=update, reach=reach, fields=fields, traits=traits, formula=formula)


def check_fields(who: str, fields: dict[str, Field]) -> None:
    """Refuse what is no field, and names that are taken."""
    for name, field in fields.items():
        if not isinstance(cast(Any, field), Field):
            raise TypeError(f"{who}: {name} is {field!r}; allowed: a field, such as gradtx.fields.like().")
        if name in RESERVED or (name == "key") != (field.dtype == "key"):
            why = "only a random key is called so" if name == "key" else "that is what the language calls its own"
            why = "a random key is called key" if field.dtype == "key" else why
            raise ValueError(f"{who}: a field is called {name!r}, but {why}; choose another name.")


@functools.lru_cache(maxsize=4096)
def _names(function: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """The names that a pass wants, and whether each must be there; and whether it takes what flows first."""
    parameters = list(inspect.signature(function).parameters.values())
    leads = bool(parameters) and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    for p in parameters:
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise TypeError(
                f"{function.__name__}: {p.name} stands for any arguments; allowed: names, of fields and of what the "
                "language offers (observed, params, count, key)."
            )
    return {p.name: p.default is p.empty for p in (parameters[1:] if leads else parameters)}, leads


def names_of(rule: Rule, passes: dict[str, Pass], *, without_leaf: str, closed: bool) -> dict[str, bool]:
    """What some passes name, and whether it must be there; `closed` if nothing but fields and what is offered can be.

    `without_leaf` is the pass that is not given what flows through.
    """
    wanted: dict[str, bool] = {}
    for title, function in passes.items():
        if function is None:
            continue
        names, leads = _names(function)
        if leads == (title == without_leaf):
            allowed = f"{title}(*, names)" if title == without_leaf else f"{title}(u, *, names), u being what flows"
            raise TypeError(f"{function.__name__}{inspect.signature(function)}; allowed: {allowed}.")
        wanted |= {name: needed or wanted.get(name, False) for name, needed in names.items()}
    for name, needed in wanted.items():
        if closed and needed and name not in OFFERED and name not in rule.fields:
            raise TypeError(
                f"{rule.update.__name__} names {name!r}, which is neither a field nor offered; fields: "
                f"{', '.join(rule.fields) or 'none'}; offered: {', '.join(sorted(OFFERED))}. Declare it: "
                f"{name}=fields.like(), or {name}=fields.argument() for an extra argument."
            )
    for name in rule.fields.keys() - wanted.keys() - {"key"}:
        raise TypeError(f"{rule.update.__name__}: the field {name!r} is declared, and no pass names it.")
    return wanted


# Sums over leaves -----------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Summed:
    """What `measure` asks for: a number or an array of one leaf, and how those of all leaves become one."""

    value: Array
    how: str = dataclasses.field(metadata={"static": True})


def total(x: Array) -> Summed:
    """The sum of all elements, over all leaves."""
    return Summed(jnp.sum(x), "total")


def largest(x: Array) -> Summed:
    """The largest element of all leaves, and not below 0."""
    return Summed(jnp.max(x, initial=0), "largest")


def norm(x: Array) -> Summed:
    """`sqrt(sum of |x|²)` over all leaves, right also where squares overflow or underflow."""
    return Summed(x, "norm")


def norm_in_units(x: Array) -> Summed:
    """The same as a `tree.Norm`, for what is larger than any number."""
    return Summed(x, "norm_in_units")


def _sum_up(parts: list[Summed], real: Dtype) -> Any:
    values = [part.value for part in parts]
    if parts[0].how in ("norm", "norm_in_units"):
        size = tree.norm(values)
        return size.value if parts[0].how == "norm" else size
    over_shards = sharding.summed if parts[0].how == "total" else sharding.largest
    numbers = [over_shards(value.astype(tree.compute_dtype(value, precision=real))) for value in values]
    return functools.reduce(jnp.add if parts[0].how == "total" else jnp.maximum, numbers)


@contextlib.contextmanager
def no_values(who: str) -> Generator[None]:
    """While this is open, a body or a formula runs with numbers that have no value; a branch on one is refused."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            f"{who}: it asks for the value of a number while it is compiled; allowed: arithmetic. Hyperparameters may "
            "be schedules, or of many optimizers at once, so a branch is written jnp.where(condition, one, other), and "
            "a check of an argument belongs into its annotation, or into @transform(check=...)."
        ) from error
    except TypeError as error:
        if words := elsewhere.of_rule(error):
            error.add_note(words)
        raise


# Programs -------------------------------------------------------------------------------------------------------------


def without_values(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Fields of a body that ran without values: where one starts at a hyperparameter is not known."""
    unknown = {name for name, field in fields.items() if isinstance(field.start, Tracer)}
    return {
        name: dataclasses.replace(field, start=None) if name in unknown else field for name, field in fields.items()
    }


class Compiled:
    """Some passes over leaves, each compiled once for each dtype and shape. `body(numbers)` gives the rule anew."""

    def __init__(self, who: str, rule: Rule, body: Body, passes: Callable[[Rule], dict[str, Pass]]):
        self.who, self.body, self.passes, self.reach = who, body, passes, rule.reach
        self.fields = without_values(rule.fields)
        self.needs_whole = rule.reach != "element" and "norms" not in rule.traits
        self.unread: set[str] = set()
        self.names = {title: _names(f)[0] for title, f in passes(rule).items() if f is not None}
        self.kept = {name: field for name, field in self.fields.items() if not field.given}
        self.of_leaves = {name for name, field in self.fields.items() if field.per == "leaf"}
        self.of_tree = {name for name, field in self.kept.items() if field.per == "tree"} - {"key"}
        self.jitted: dict[str, Callable[..., Any]] = {
            title: jax.jit(self._run, static_argnums=(0, 1, 2), inline=True) for title in self.names
        }
        traced = [name for name, field in rule.fields.items() if isinstance(field.start, Tracer)]

        def starts(numbers: Numbers) -> dict[str, Any]:
            return {name: body(numbers).fields[name].start for name in traced}

        self.starts: Callable[[Numbers], dict[str, Any]] | None = jax.jit(starts) if traced else None

    def first(self, numbers: Numbers, params: PyTree) -> State:
        """The fields before the first update."""
        self.refuse_others(params)
        starts: dict[str, Any] = {} if self.starts is None else self.starts(numbers)
        return {name: field.init(params, starts.get(name, field.start)) for name, field in self.kept.items()}

    def refuse_others(self, values: PyTree) -> None:
        """Refuse what is no matrix, for a formula of matrices; and shards, for one of whole leaves."""
        if self.needs_whole and sharding.named_axes() and any(map(sharding.axes_of, jax.tree.leaves(values))):
            raise ValueError(
                f"{self.who}: it needs whole leaves, and axis_name={sharding.named_axes()} says that these are shards; "
                "allowed inside shard_map: what works element by element or by norms. Gather the leaves, or call "
                "update outside shard_map."
            )
        for path, leaf in tree.named_leaves(values) if self.reach == "matrix" else ():
            if jnp.ndim(leaf) != 2:
                raise ValueError(
                    f"{self.who}: the leaf at {path} has {jnp.ndim(leaf)} axes; allowed: matrices, which have 2. Route "
                    f"the others elsewhere: by_shape(matrix={self.who.removeprefix('gradtx.')}(...), other=adam(...))."
                )

    def each(
        self,
        title: str,
        real: Dtype,
        numbers: Numbers,
        us: list[Any],
        shared: Any,
        columns: dict[str, list[Any]],
        stack: bool = False,
    ) -> list[Any]:
        """One pass over all leaves: what `us` has of each, with what is one for all and what is of each leaf."""
        fixed, step = self.named(title, shared, columns), self.step(title, real)
        mine = [(name, columns[name]) for name in self.names[title] if name in columns]
        rows = [(u, {name: column[i] for name, column in mine}) for i, u in enumerate(us)]

        def one(u: Any, own: dict[str, Any]) -> Any:
            return step(numbers, u, fixed | own)

        return _in_batches(one, rows) if stack and len(rows) > 1 else [one(u, own) for u, own in rows]

    def step(self, title: str, real: Dtype) -> Callable[..., Any]:
        """A pass as a program in this precision; another one inside shard_map, where sums go over axes of the mesh."""
        return functools.partial(self.jitted[title], title, real, sharding.named_axes())

    def named(self, title: str, shared: dict[str, Any], columns: Any = ()) -> dict[str, Any]:
        """What a pass names, of what is one for the whole tree."""
        names = self.names[title]
        for name, needed in names.items():
            if needed and name not in shared and name not in columns:
                there = sorted({*shared, *columns})
                raise TypeError(
                    f"{self.who}: its {title} names {name!r}, which neither a field nor a pass before it gives; there "
                    f"are: {', '.join(there)}."
                )
        return {name: shared[name] for name in names if name in shared and name not in columns}

    def _run(
        self, title: str, real: Dtype, over: tuple[str, ...], numbers: Numbers, u: Any, named: dict[str, Any]
    ) -> Any:
        """One pass over one leaf, traced: all in the compute dtype, and back in the dtypes that came."""

        def wide(x: Any) -> Any:
            x = jnp.asarray(x)
            return x if tree.is_discrete(x) else x.astype(tree.compute_dtype(x, precision=real))

        def number(x: Array) -> Array:
            return x.astype(real)

        function = self.passes(self.body(jax.tree.map(number, numbers)))[title]
        given = jax.tree.map(wide, named)
        assert function is not None
        # Standard promotion: real numbers scale complex leaves, and a count is one.
        with no_values(self.who), jax.numpy_dtype_promotion("standard"):
            made = function(**given) if u is None else function(jax.tree.map(wide, u), **given)
        return self.finished(title, made, u, named, real)

    def finished(self, title: str, made: Any, u: Any, named: dict[str, Any], real: Dtype) -> Any:
        """What a pass returned, checked, in the dtypes that came."""
        raise NotImplementedError

    def checked(self, made: Any, named: dict[str, Any], needed: set[str], *, more: bool = False) -> dict[str, Any]:
        """The fields that a pass returned, in the dtypes that they have."""
        fields = as_dict(made)
        if fields is None or not (needed <= fields.keys() if more else needed == fields.keys()):
            got = repr(made) if fields is None else ", ".join(fields) or "none"
            raise TypeError(
                f"{self.who}: it returned the fields {got}; needed: {', '.join(sorted(needed)) or 'none'}. A pass "
                "returns each field that it names, with its new value."
            )

        self.unread |= fields.keys() & self.kept.keys() - named.keys()

        def like(name: str, value: Any) -> Any:
            if name not in self.kept or name in self.unread:
                return value
            return jax.tree.map(functools.partial(self.like, f"the field {name!r}"), value, named[name])

        return {name: like(name, value) for name, value in fields.items()}

    def settled(self, new: State, own: State) -> State:
        """The new fields; those that a pass wrote and did not read are looked at here."""
        for name in self.unread & new.keys():
            new[name] = jax.tree.map(functools.partial(self.like, f"the field {name!r}"), new[name], own[name])
        return {name: new.get(name, own[name]) for name in own}

    def like(self, what: str, new: Any, old: Any, real: Any = None) -> Any:
        """A value that the author returned, in the dtype of the one that came; another kind or shape is refused."""
        new = jnp.asarray(new)
        if new.shape != jnp.shape(old):
            raise ValueError(
                f"{self.who}: {what} has shape {new.shape}; allowed: the shape that came, {jnp.shape(old)}."
            )
        wanted = new.dtype if real is None else tree.compute_dtype(old, precision=real)
        kinds = tree.is_complex(new) == tree.is_complex(old) and tree.is_discrete(new) == tree.is_discrete(old)
        if new.dtype != wanted or not kinds:
            raise TypeError(
                f"{self.who}: {what} has dtype {new.dtype}; allowed: the dtype that came, "
                f"{tree.dtype_of(old) if real is None else wanted}."
            )
        return new.astype(tree.dtype_of(old))


def as_dict(made: Any) -> dict[str, Any] | None:
    """What a pass returned, if that is a dict."""
    return cast(dict[str, Any], made) if isinstance(made, dict) else None


def _in_batches(step: Callable[..., Any], rows: Sequence[tuple[Any, Any]]) -> list[Any]:
    """One step for each row, those of one shape and dtype as one batch."""
    kinds: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        kinds.setdefault(str(tree.shapes(row)), []).append(index)
    made: dict[int, Any] = {}
    for indices in kinds.values():
        if len(indices) == 1:
            made[indices[0]] = step(*rows[indices[0]])
            continue
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(rows[index] for index in indices))
        together = jax.vmap(step)(*batch)
        made |= {i: jax.tree.map(operator.itemgetter(n), together) for n, i in enumerate(indices)}
    return [made[index] for index in range(len(rows))]


class Program(Compiled):
    """A formula as a program."""

    def __init__(self, who: str, rule: Rule, body: Body):
        def passes(rule: Rule) -> dict[str, Pass]:
            assert isinstance(rule.formula, Formula)
            return {"measure": rule.formula.measure, "once": rule.formula.once, "update": rule.update}

        super().__init__(who, rule, body, passes)
        assert isinstance(rule.formula, Formula)
        self.only, self.stack, self.whole = rule.formula.only, rule.formula.stack, rule.reach == "tree"
        self.measured: set[str] = set()

    def init(self, numbers: Numbers, params: PyTree, inner: list[Any]) -> State:
        """The state before the first update."""
        if self.only is not None:
            params = selection.keep(params, selection.flags(self.who, self.only, params, params))
        return self.first(numbers, params)

    def update(
        self,
        real: Dtype,
        numbers: Numbers,
        u: PyTree,
        own: State,
        params: PyTree,
        count: Any,
        extra: Numbers,
        inner: list[Any],
    ) -> tuple[PyTree, State]:
        """One step of the whole tree."""
        if self.only is None:
            return self._update(real, numbers, u, own, params, count, extra)
        keep = functools.partial(selection.keep, chosen=selection.flags(self.who, self.only, u, params))
        trees = {name: keep(extra[name]) for name in extra.keys() & (self.of_leaves | {"observed"})}
        weights = None if params is None else keep(params)
        result, new = self._update(real, numbers, keep(u), own, weights, count, extra | trees)
        return selection.put(result, u, keep.keywords["chosen"]), new

    def _update(
        self, real: Dtype, numbers: Numbers, u: PyTree, own: State, params: PyTree, count: Any, extra: Numbers
    ) -> tuple[PyTree, State]:
        self.refuse_others(u)
        structure = cast(Any, jax.tree.structure(u))
        flat: Callable[[Any], list[Any]] = (lambda value: [value]) if self.whole else jax.tree.leaves
        us = flat(u)
        columns = {"observed": flat(extra.get("observed", u))}
        columns["params"] = [None] * len(us) if params is None else flat(params)
        shared: dict[str, Any] = {"count": count}
        new: State = {}
        for name, field in self.fields.items():
            if name == "key":
                new[name], columns[name] = _drawn(own[name], len(us))
            elif not field.given or name in extra:
                value = extra[name] if field.given else own[name]
                if field.per == "leaf":
                    columns[name] = flat(value)
                else:
                    shared[name] = self._number(name, value) if field.given else value
        if "measure" in self.names:
            # A tree without leaves is measured as one leaf without elements.
            nothing = [jnp.zeros(0)]
            some = (us, columns) if us else (nothing, dict.fromkeys(columns, nothing))
            rows = self.each("measure", real, numbers, some[0], shared, some[1])
            for name in rows[0][1]:
                columns[name] = [row[1][name] for row in rows][: len(us)]
                new[name] = structure.unflatten(columns[name])
            shared |= {name: _sum_up([row[0][name] for row in rows], real) for name in rows[0][0]}
        if "once" in self.names:
            made = self.step("once", real)(numbers, None, self.named("once", shared))
            shared |= made
            new |= {name: made[name] for name in self.of_tree}
        rows = self.each("update", real, numbers, us, shared, columns, self.stack)
        for name in (own.keys() & self.names["update"].keys()) - new.keys():
            parts = [row[1][name] for row in rows]
            new[name] = parts[0] if self.whole else structure.unflatten(parts)
        result = rows[0][0] if self.whole else structure.unflatten([row[0] for row in rows])
        return result, self.settled(new, own)

    def _number(self, name: str, value: Any) -> Any:
        if jnp.shape(value):
            raise ValueError(
                f"{self.who}.update: {name} has shape {jnp.shape(value)}; allowed: one number. Pass its mean."
            )
        return value

    def finished(self, title: str, made: Any, u: Any, named: dict[str, Any], real: Dtype) -> Any:
        if title == "once":
            return self.checked(made, named, self.of_tree, more=True)
        own = {name for name in named if name in self.kept and name in self.of_leaves}
        is_pair = isinstance(made, tuple) and (own or not self.whole)
        first, fields = cast(tuple[Any, Any], made if is_pair else (made, {}))
        if title == "measure":
            sums = as_dict(first)
            if sums is None or not all(isinstance(value, Summed) for value in sums.values()):
                raise TypeError(
                    f"{self.who}: its measure returned {first!r}; allowed: a dict of total(x), norm(x), largest(x)."
                )
            self.measured = set(fields)
            left = {name for name in own - self.names["update"].keys() if self.kept[name].start != "params"}
            return first, self.checked(fields, named, (own & self.measured) | left)
        needed = own - self.measured
        given = as_dict(fields)
        if given is not None:  # what is a copy of the params stays, unless it is returned
            fields = {name: named[name] for name in needed if self.kept[name].start == "params"} | given
        new = self.checked(fields, named, needed)
        return jax.tree.map(functools.partial(self.like, "the update", real=real), first, u), new


def _drawn(bits: Array, number: int) -> tuple[Array, list[Array]]:
    """From a key's bits those of the next step's key, and a key for each leaf."""
    following, now = jax.random.split(cast(Array, jax.random.wrap_key_data(bits)))
    return jax.random.key_data(following), [jax.random.fold_in(now, index) for index in range(number)]
