"""The program of a formula: its passes, each compiled once for each dtype and shape, whatever the numbers are.

    measure   leaf by leaf    -> what is summed over all leaves
    once      the whole tree  -> numbers for the update, and the fields of the whole tree
    refresh   leaf by leaf    -> fields, at the steps at which `once` says that it is due
    update    leaf by leaf    -> the updates, and the fields of each leaf

All passes compute in one dtype, float64 if any leaf has it and else float32. The results have the dtypes of the inputs.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx import numerics, sharding, tree
from gradtx.core import batches, check, elsewhere
from gradtx.core.fields import Field
from gradtx.core.rule import OFFERED, Rule, State
from gradtx.core.sums import Summed, sum_up

PyTree = Any
Numbers = dict[str, Any]
Dtype = np.dtype[Any]
Pass = Callable[..., Any] | None
Body = Callable[[Numbers], Rule]
Columns = dict[str, list[Any]]


class Step(NamedTuple):
    """The inputs of a program at one step, besides its state."""

    real: Dtype
    """The dtype to compute in."""
    numbers: Numbers
    """The hyperparameters and the transforms inside, by name."""
    updates: PyTree
    params: PyTree
    count: Any
    extra: dict[str, Any]


def names_in(function: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """The names that a pass wants, and whether each is required; and whether its first argument is the update."""
    parameters = list(inspect.signature(function).parameters.values())
    leads = bool(parameters) and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    for p in parameters:
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise TypeError(
                f"{function.__name__}: {p.name} stands for any arguments; a pass must name each field and each of "
                "observed, params, count and key that it needs."
            )
    return {p.name: p.default is p.empty for p in (parameters[1:] if leads else parameters)}, leads


@contextlib.contextmanager
def no_values(who: str) -> Generator[None]:
    """In this context a body or a formula runs with numbers that have no values; a branch on one is refused."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            f"{who}: it reads the value of a traced number. Hyperparameters, counts and leaves have no value here: the "
            "formula is compiled, and a hyperparameter may be a schedule, or many at once. Compute with jax.numpy, "
            "write jnp.where(condition, one, other) for a branch, and check an argument by its annotation, or in "
            "@transform(check=...)."
        ) from error
    except TypeError as error:
        if words := elsewhere.of_rule(error):
            error.add_note(words)
        raise


def without_values(fields: Mapping[str, Field]) -> dict[str, Field]:
    """The fields of a body that ran without values; initial values that are hyperparameters are not known."""
    unknown = {name for name, field in fields.items() if isinstance(field.start, Tracer)}
    return {
        name: dataclasses.replace(field, start=None) if name in unknown else field for name, field in fields.items()
    }


class Compiled:
    """Passes over leaves, each compiled once for each dtype and shape. `body(numbers)` makes the rule again."""

    views: tuple[Field | None, ...] = ()
    """The form of the params that the transform inside sees (`View.form`); empty if it sees them as they are."""

    def __init__(self, who: str, rule: Rule, body: Body):
        self.who, self.body, self.reach, self.stack = who, body, rule.reach, rule.formula.stack
        self.needs_whole = rule.reach != "element" and "norms" not in rule.traits
        self.fields = without_values(rule.fields)
        self.kept = {name: field for name, field in self.fields.items() if not field.given}
        self.at_numbers = [name for name, field in rule.fields.items() if isinstance(field.start, Tracer)]
        self.starts: Callable[[Numbers], Numbers] = jax.jit(self._starts)
        self.names = {title: names_in(f)[0] for title, f in rule.formula.passes.items() if f is not None}
        self.jitted: dict[str, Callable[..., Any]] = {
            title: jax.jit(self._run, static_argnums=(0, 1, 2), inline=True) for title in self.names
        }

    def first(self, numbers: Numbers, params: PyTree) -> State:
        """The fields before the first update."""
        self.refuse_others(params)
        starts = self.starts(numbers) if self.at_numbers else {}
        return {name: field.init(params, starts.get(name, field.start)) for name, field in self.kept.items()}

    def _starts(self, numbers: Numbers) -> dict[str, Any]:
        """The initial values of the fields that start at a hyperparameter."""
        fields = self.body(numbers).fields
        return {name: fields[name].start for name in self.at_numbers}

    def refuse_others(self, values: PyTree) -> None:
        """Refuse leaves that are not matrices, for a formula of matrices; and shards, for one of whole leaves."""
        if self.needs_whole:
            check.refuse_shards(self.who, values)
        for path, leaf in tree.named_leaves(values) if self.reach == "matrix" else ():
            if jnp.ndim(leaf) != 2 and not (jnp.ndim(leaf) > 2 and batches.declared.get()):
                raise ValueError(
                    f"{self.who}: the leaf at {path} has the shape {jnp.shape(leaf)}; it must be a matrix, with 2 "
                    f"axes. Route the others elsewhere: by_shape(matrix={self.who.removeprefix('gradtx.')}(...), "
                    "other=adam(...)). Or say which axes are those of a matrix: by_shape(..., dimension_numbers=...)."
                )

    def each(self, title: str, step: Step, us: list[Any], shared: Any, columns: Columns) -> list[Any]:
        """One pass over all leaves: the leaves `us`, with values shared by all and values of each leaf."""
        fixed, run = self.named(title, shared, columns), self.run(title, step.real, step.numbers)
        mine = [(name, columns[name]) for name in self.names[title] if name in columns]
        rows = [(u, {name: column[i] for name, column in mine}) for i, u in enumerate(us)]

        def one(u: Any, own: Numbers) -> Any:
            try:
                return run(u, fixed | own)
            except Exception as error:
                error.add_note(f"in its {title}, at the leaf {tree.shapes(u)}")
                raise

        return self.in_batches(title, one, rows, us)

    def in_batches(self, title: str, one: Callable[..., Any], rows: list[batches.Row], us: list[Any]) -> list[Any]:
        """One step for each row; matrices of one shape run as one batch, if the formula says so."""
        if self.reach != "matrix":
            return [one(*row) for row in rows]
        stack = self.stack and title != "measure"
        return batches.each(one, rows, [batches.axes_of(u) for u in us], stack=stack)

    def run(self, title: str, real: Dtype, numbers: Numbers) -> Callable[..., Any]:
        """A pass as a program in this precision; another one inside shard_map, where sums go over axes of the mesh."""
        return functools.partial(self.jitted[title], title, real, sharding.named_axes(), numbers)

    def named(self, title: str, shared: dict[str, Any], columns: Any = ()) -> dict[str, Any]:
        """The values of the whole tree that a pass names."""
        names = self.names[title]
        for name, needed in names.items():
            if needed and name not in shared and name not in columns:
                there = sorted({*shared, *columns})
                raise TypeError(
                    f"{self.who}: its {title} names {name!r}, which is neither a field nor from an earlier pass; "
                    f"allowed: {', '.join(there)}."
                )
        return {name: shared[name] for name in names if name in shared and name not in columns}

    def _run(self, title: str, real: Dtype, over: tuple[str, ...], numbers: Numbers, u: Any, named: Numbers) -> Any:
        """One pass over one leaf, traced: computed in the compute dtype, returned in the dtypes of the inputs."""

        def wide(x: Any) -> Any:
            x = jnp.asarray(x)
            return x if tree.is_discrete(x) else x.astype(tree.compute_dtype(x, precision=real))

        def number(x: Array) -> Array:
            return x.astype(real)

        def run(numbers: Numbers, u: Any, given: Numbers) -> Any:
            function: Any = self.body(numbers).formula.passes[title]
            # Standard promotion: real numbers scale complex leaves, and a count is one.
            with no_values(self.who), jax.numpy_dtype_promotion("standard"):
                return function(**given) if u is None else function(u, **given)

        def sharded_like(path: Any, result: Any) -> Any:
            """The field of the same name, or the update, if it has the same shape."""
            found = [named.get(str(getattr(path[-1], "key", ""))) if path else None, u]
            return next((x for x in found if x is not None and jnp.shape(x) == result.shape), None)

        args = jax.tree.map(number, numbers), None if u is None else jax.tree.map(wide, u), jax.tree.map(wide, named)
        whole = self.reach in ("matrix", "leaf") and u is not None
        made = sharding.decided_by_compiler(run, *args, like=sharded_like) if whole else run(*args)
        return self.finished(title, made, u, named, real)

    def finished(self, title: str, made: Any, u: Any, named: Numbers, real: Dtype) -> Any:
        """The result of a pass, checked, in the dtypes of the inputs."""
        raise NotImplementedError

    def refuse_fields(self, made: Any, needed: Collection[str]) -> NoReturn:
        """Refuse what is not a dict of the right fields."""
        got = repr(made) if as_dict(made) is None else ", ".join(made) or "none"
        raise TypeError(
            f"{self.who}: it returned the fields {got}; needed: {', '.join(sorted(needed)) or 'none'}. A pass returns "
            "each field that it names, with its new value."
        )

    def as_before(self, made: Numbers, old: Numbers, unread: str | None = None) -> Numbers:
        """The result of a pass, each field in the dtype of its old value; of a pass `unread`, those it did not get."""
        named = self.names[unread] if unread else ()
        settled = dict(made)
        for name, value in made.items():
            if name in old and name in self.kept and name not in named:
                settled[name] = jax.tree.map(functools.partial(self.like, f"the field {name!r}"), value, old[name])
        return settled

    def like(self, what: str, new: Any, old: Any, real: Any = None) -> Any:
        """A value that the author returned, in the dtype of the old one; another kind or shape is refused."""
        new = jnp.asarray(new)
        if new.shape != jnp.shape(old):
            raise ValueError(f"{self.who}: {what} has shape {new.shape}; it must keep the shape {jnp.shape(old)}.")
        wanted = new.dtype if real is None else tree.compute_dtype(old, precision=real)
        kinds = tree.is_complex(new) == tree.is_complex(old) and tree.is_discrete(new) == tree.is_discrete(old)
        if new.dtype != wanted or not kinds:
            raise TypeError(
                f"{self.who}: {what} has dtype {new.dtype}; it must keep the dtype "
                f"{tree.dtype_of(old) if real is None else wanted}."
            )
        return new.astype(tree.dtype_of(old))


def as_dict(made: Any) -> Numbers | None:
    """The result of a pass, if it is a dict."""
    return cast(Numbers, made) if isinstance(made, dict) else None


class Program(Compiled):
    """A formula as a program."""

    def __init__(self, who: str, rule: Rule, body: Body):
        super().__init__(who, rule, body)
        self.whole = rule.reach == "tree"
        self.of_tree = {name for name, field in self.kept.items() if field.per == "tree"} - {"key"}
        of_leaves = {name for name, field in self.kept.items() if field.per == "leaf"}
        self.read = {title: names.keys() & of_leaves for title, names in self.names.items()}
        self.copies = {name for name in of_leaves if self.kept[name].start == "params"}
        self.refreshable = of_leaves

    def init(self, numbers: Numbers, params: PyTree, inner: list[Any]) -> State:
        """The state before the first update."""
        return self.first(numbers, params)

    def update(self, step: Step, own: State, inner: list[Any]) -> tuple[PyTree, State]:
        """One step of the whole tree."""
        u = step.updates
        self.refuse_others(u)
        structure = cast(Any, jax.tree.structure(u))
        flat: Callable[[Any], list[Any]] = (lambda value: [value]) if self.whole else jax.tree.leaves
        us, new = flat(u), dict(own)
        columns = {"observed": flat(step.extra.get("observed", u))}
        columns["params"] = [None] * len(us) if step.params is None else flat(step.params)
        shared: dict[str, Any] = {"count": step.count}
        for name, field in self.fields.items():
            if field.given and name not in step.extra:
                continue
            value = step.extra[name] if field.given else own[name]
            if name == "key":
                new[name], columns[name] = numerics.leaf_keys(value, us)
            elif field.per == "leaf":
                if field.given:
                    self.refuse_unlike(name, value, u)
                columns[name] = flat(value)
            elif field.given and jnp.shape(value):
                raise ValueError(
                    f"{self.who}.update: {name} has shape {jnp.shape(value)}; it must be one number. Pass its mean."
                )
            else:
                shared[name] = value

        def moved(rows: list[Any], needed: set[str], allowed: set[str]) -> Columns:
            """The fields that a pass has moved, of each leaf."""
            returned: Numbers = rows[0][1] if rows else {}
            if rows and not needed <= returned.keys() <= allowed:
                self.refuse_fields(returned, needed)
            made = {name: [fields[name] for _, fields in rows[: len(us)]] for name in returned}
            for name, column in made.items():
                new[name] = column[0] if self.whole else structure.unflatten(column)
            return made

        measured: Columns = {}
        if "measure" in self.names:
            # A tree without leaves is measured as one leaf without elements.
            nothing = [jnp.zeros(0)]
            some = (us, columns) if us else (nothing, dict.fromkeys(columns, nothing))
            rows = self.each("measure", step, some[0], shared, some[1])
            left = self.read["measure"] - self.read["update"] - self.copies
            measured = moved(rows, left, self.read["measure"])
            columns |= measured
            shared |= {name: sum_up([sums[name] for sums, _ in rows], step.real) for name in rows[0][0]}
        if "once" in self.names:
            made = self.run("once", step.real, step.numbers)(None, self.named("once", shared))
            shared |= self.as_before(made, own, unread="once")
            new |= {name: shared[name] for name in self.of_tree}
        if "refresh" in self.names and us:
            measured |= moved(self.refreshed(step, us, shared, columns), set(), self.refreshable)
            columns |= measured
        rows = self.each("update", step, us, shared, columns)
        needed = self.read["update"] - measured.keys()
        moved(rows, needed - self.copies, needed)
        return rows[0][0] if self.whole else structure.unflatten([u for u, _ in rows]), new

    def refreshed(self, step: Step, us: list[Any], shared: dict[str, Any], columns: Columns) -> list[Any]:
        """For each leaf, the fields of the pass `refresh`: new ones if it is due, else those that are there."""
        if "due" not in shared:
            raise TypeError(f"{self.who}: it has a pass `refresh`, so `once` must return 'due': whether it runs now.")
        first = {name: column[:1] for name, column in columns.items()}
        names = list(jax.eval_shape(lambda: self.each("refresh", step, us[:1], shared, first))[0])
        there = [{name: columns[name][i] for name in names} for i in range(len(us))]

        def renewed() -> list[Numbers]:
            rows = self.each("refresh", step, us, shared, columns)
            return [self.as_before(row, old, unread="refresh") for row, old in zip(rows, there, strict=True)]

        new = numerics.branch(shared["due"], renewed, lambda: there)
        return [(None, fields) for fields in new]

    def refuse_unlike(self, name: str, value: Any, u: PyTree) -> None:
        """Refuse an extra argument unless it is a tree like the updates, with equal shapes or with numbers."""

        def at_leaf(x: Any, leaf: Any) -> Any:
            return x if jnp.ndim(x) else leaf

        value = jax.tree.map(at_leaf, value, u) if check.same_structure(value, u) else value
        if words := check.difference(name, value, "the updates", u):
            raise ValueError(
                f"{self.who}.update: {name} must be a tree like the updates, with arrays or numbers: {words}"
            )

    def refuse_taken(self, title: str, made: Numbers, taken: Collection[str]) -> None:
        """Refuse a result of a pass under a name that means something else."""
        for name in made.keys() & {*taken, *OFFERED}:
            raise TypeError(
                f"{self.who}: its {title} returned {name!r}, which is already the name of a field or of an input. "
                "Choose another name."
            )

    def finished(self, title: str, made: Any, u: Any, named: Numbers, real: Dtype) -> Any:
        if title == "once":
            if as_dict(made) is None or not self.of_tree <= made.keys():
                self.refuse_fields(made, self.of_tree)
            self.refuse_taken(title, made, self.fields.keys() - self.of_tree)
            return self.as_before(made, named)
        if title == "refresh":
            if as_dict(made) is None or not made.keys() <= self.refreshable:
                self.refuse_fields(made, self.refreshable)
            return self.as_before(made, named)
        is_pair = isinstance(made, tuple) and (self.read[title] or not self.whole)
        parts = cast(tuple[Any, ...], made if is_pair else (made, {}))
        if len(parts) != 2:
            raise TypeError(
                f"{self.who}: its {title} returned {len(parts)} values; it must return one, or one and a "
                "dict of fields."
            )
        first, fields = parts
        if as_dict(fields) is None:
            self.refuse_fields(fields, self.read[title])
        moved = self.as_before(fields, named)
        if title == "update":
            if not check.same_structure(first, u):
                what = "a tree" if self.whole else "an array"
                raise TypeError(
                    f"{self.who}: its update returned {first!r}; it must return {what} like the one it got, or a pair "
                    "of that and a dict of fields."
                )
            return jax.tree.map(functools.partial(self.like, "the update", real=real), first, u), moved
        sums = as_dict(first)
        if sums is None or not all(isinstance(value, Summed) for value in sums.values()):
            raise TypeError(
                f"{self.who}: its measure returned {first!r}; it must return a dict of total(x), norm(x) or largest(x)."
            )
        self.refuse_taken(title, sums, self.fields)
        return sums, moved
