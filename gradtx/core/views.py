"""Views: an inner transform runs on another form of the tree, and its updates are converted back.

    u = up(inner(down(g)))

A mask shows some leaves, `pack` shows leaves joined end to end, SOAP shows an eigenbasis. A view may have a state, and
may be refreshed every few steps; then it defines how the state of the inner transform is carried along:

    return through(View(down, up, observe, refresh, every=10, move=move, left=fields.basis(0), ...), inner)

Extra arguments are converted with the gradients: trees like the params (`grad`, `observed`) by `down`, like gradients;
functions of the params (`value_fn`, `grad_fn`, `sampled_grad_fn`) are called with the result of `up` on the inner
params. Others, such as `value`, pass unchanged.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NoReturn, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import numerics, sharding, tree
from gradtx.core import batches
from gradtx.core.arguments import set_in
from gradtx.core.fields import Field, Place, at, of_matrix
from gradtx.core.formula import check_fields, names_of
from gradtx.core.program import Body, Columns, Compiled, Numbers, Pass, Step, as_dict
from gradtx.core.rule import GRADIENTS, OF_PARAMS, Reach, Rule, State, Wants

PyTree = Any
Extra = dict[str, Any]
Turn = Callable[[PyTree], PyTree]
_TREES = ("grad", "observed")
FOR_UP = frozenset({"update", "shown"})
"""What only `up` may name: the incoming update of the leaf, and what `down` made of it."""


def inside(
    inner: Any, updates: PyTree, state: State, params: PyTree, extra: Extra, down: Turn, up: Turn
) -> tuple[PyTree, State]:
    """The inner update, on the form that `down` shows; its result is in that form too.

    Args:
      inner, updates, state, params, extra: a transform, and the arguments of its update in their outer form.
      down: converts a tree like the params to the form that the inner transform sees.
      up: converts inner params to outer params, for functions of the params.
    """
    known = translated(extra, updates, down, up)
    return inner.update(down(updates), state, None if params is None else down(params), **known)


def translated(extra: Extra, like: PyTree, down: Turn, up: Turn) -> Extra:
    """The extra arguments in the inner form; `like` is a tree with the structure of the outer params."""

    def translate(name: str, value: Any) -> Any:
        def at_inner(params: PyTree, *args: Any, **kwargs: Any) -> Any:
            made = value(up(params), *args, **kwargs)
            return down(made) if name in GRADIENTS else made

        if value is None:
            return None
        if name in OF_PARAMS:
            return at_inner
        return down(value) if name in _TREES or (name != "value" and _alike(value, like)) else value

    return {name: translate(name, value) for name, value in extra.items()}


def _alike(value: Any, like: PyTree) -> bool:
    """Whether a tree has the structure of another, with the same shapes or with numbers in place of arrays."""
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(value))
    if structure != jax.tree.structure(like) or any(callable(leaf) for leaf in leaves):
        return False
    numbers = not jax.tree_util.treedef_is_leaf(structure)
    return all(
        np.shape(a) == np.shape(b) or (numbers and np.ndim(a) == 0)
        for a, b in zip(leaves, jax.tree.leaves(like), strict=True)
    )


# Views of a leaf ------------------------------------------------------------------------------------------------------


class Seen(Compiled):
    """A view as a program."""

    def __init__(self, who: str, rule: Rule, body: Body):
        super().__init__(who, rule, body)
        view: View = rule.formula
        self.every, self.before, self.moves, self.views = view.every, view.before, view.move is not None, (view.form,)
        self.moved: Callable[..., Array] = jax.jit(self._moved, static_argnums=1, inline=True)

    def init(self, numbers: Numbers, params: PyTree, inner: list[Any]) -> State:
        """The state before the first update."""
        own = self.first(numbers, params)
        step = Step(tree.precision(params), numbers, params, params, None, {})
        return own | {"inner": inner[0].init(self._turned("down", step, _of_leaves(own), params))}

    def update(self, step: Step, own: State, inner: list[Any]) -> tuple[PyTree, State]:
        """One step of the whole tree."""
        u, extra, state, fields = step.updates, step.extra, own["inner"], _of_leaves(own)
        self.refuse_others(u)
        keys: State = {}
        following: State = {}
        if "key" in own:
            following["key"], each = numerics.leaf_keys(own["key"], jax.tree.leaves(u))
            keys["key"] = cast(Any, jax.tree.structure(u)).unflatten(each)
        g = extra.get("observed", u)
        renew = functools.partial(self._refreshed_when_due, step, keys, g, inner[0].declared)
        if self.before:
            fields, state = renew(fields, state)
        down = functools.partial(self._turned, "down", step, fields)
        shown, offered = down(u), self.names["up"].keys() & FOR_UP
        back = self._no_way_back if offered else functools.partial(self._turned, "up", step, fields)
        known = translated(extra, u, down, back)
        result, state = inner[0].update(shown, state, None if step.params is None else down(step.params), **known)
        told = {"update": u, "shown": shown}
        result = self._turned("up", step, fields | {name: told[name] for name in offered}, result)
        result = jax.tree.map(functools.partial(self.like, "what up returned"), result, u)
        if "observe" in self.names:
            fields = fields | self._renewed("observe", step, fields | keys, g)
        if not self.before:
            fields, state = renew(fields, state)
        return sharding.all_like(result, u), fields | following | {"inner": state}

    def _refreshed_when_due(
        self, step: Step, keys: State, g: PyTree, declared: dict[Place, Field], fields: State, state: State
    ) -> tuple[State, State]:
        """The fields after `refresh`, if it is due; and the state of the inner transform."""
        if "refresh" not in self.names:
            return fields, state
        due = (step.count - 1) % numerics.within_int32(self.every) == 0
        return numerics.branch(
            due, lambda: self._refreshed(step, keys, fields, g, state, declared), lambda: (fields, state)
        )

    def _no_way_back(self, params: PyTree) -> NoReturn:
        raise TypeError(
            f"{self.who}: the transform inside evaluates a function of the params, but `up` converts updates only: it "
            f"names {' and '.join(sorted(self.names['up'].keys() & FOR_UP))}. Put it outside the view."
        )

    def _rows(self, title: str, step: Step, fields: State, values: PyTree) -> tuple[list[Any], Any]:
        """The result of a pass for each leaf of a tree, and the structure of the tree."""
        leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(values))
        columns: Columns = {name: jax.tree.leaves(value) for name, value in fields.items()}
        return self.each(title, step, leaves, {"count": step.count}, columns), structure

    def _turned(self, way: str, step: Step, fields: State, values: PyTree) -> PyTree:
        rows, structure = self._rows(way, step, fields, values)
        if way == "down":  # sharded as declared, else replicated
            (form,) = self.views
            for i, (row, leaf) in enumerate(zip(rows, jax.tree.leaves(values), strict=True)):
                axes = [None] * row.ndim if form is None else form.kept_axes(jnp.shape(leaf))
                own = axes == [*range(row.ndim)] and row.shape == jnp.shape(leaf)
                rows[i] = sharding.with_axes_of(tree.lying_as(leaf, row) if own else row, leaf, axes)
        return structure.unflatten(rows)

    def _renewed(self, title: str, step: Step, fields: State, g: PyTree) -> State:
        rows, structure = self._rows(title, step, fields, g)
        made = {name: structure.unflatten([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        return self.as_before(made, fields, unread=title)

    def _refreshed(
        self, step: Step, keys: State, fields: State, g: PyTree, state: State, declared: dict[Place, Field]
    ) -> tuple[State, State]:
        """New fields of the view, and the state of the inner transform carried along."""
        new = fields | self._renewed("refresh", step, fields | keys, g)
        us, structure = cast(tuple[list[Any], Any], jax.tree.flatten(g))
        old_rows, new_rows = (
            [dict(zip(some, row, strict=True)) for row in zip(*map(jax.tree.leaves, some.values()), strict=True)]
            for some in (fields, new)
        )
        for place, field in declared.items() if self.moves else ():
            if field.per == "leaf":
                value = at(state, place)
                if jax.tree.structure(value) != structure:
                    raise TypeError(
                        f"{self.who}: {'/'.join(place)} is stored in buckets; it must be leaf by leaf, for `move`. "
                        "Leave pack out of the view."
                    )
                rows: list[batches.Row] = [
                    (x, {"old": old, "new": now})
                    for x, old, now in zip(jax.tree.leaves(value), old_rows, new_rows, strict=True)
                ]
                moved = functools.partial(self.moved, step.numbers, field)
                state = set_in(state, place, structure.unflatten(self.in_batches("move", moved, rows, us)))
        return new, state

    def _moved(self, numbers: Numbers, field: Field, x: Array, views: dict[str, Any]) -> Array:
        move = self.body(numbers).formula.move
        with jax.numpy_dtype_promotion("standard"):
            return self.like("what move returned", move(x, field, views["old"], views["new"]), x)

    def finished(self, title: str, made: Any, u: Any, named: Numbers, real: np.dtype[Any]) -> Any:
        if title not in ("down", "up"):
            if as_dict(made) is None or not made.keys() <= self.kept.keys():
                self.refuse_fields(made, ())
            return self.as_before(made, named)
        if tree.is_discrete(made) or tree.is_complex(made) != tree.is_complex(u):
            raise TypeError(
                f"{self.who}: what {title} returned has dtype {made.dtype}; it must keep the dtype {u.dtype}."
            )
        return jnp.asarray(made).astype(tree.compute_dtype(u))


def _of_leaves(own: State) -> State:
    """The fields of a view that have a value for each leaf."""
    return {name: value for name, value in own.items() if name not in ("inner", "key")}


class View:
    """Another form of each leaf, and the conversion back.

    Args:
      down: `down(x, *, names...)`: converts a leaf to the form that the inner transform sees. The names are fields of
        the view.
      up: `up(x, *, names...)`: converts the updates of the inner transform back. It may also name `update`, the
        incoming update of the leaf, and `shown`, what `down` made of it: APOLLO scales the one by what the inner
        transform made of the other. Then the inner transform cannot evaluate functions of the params.
      observe: `observe(g, *, names...)`, returning {field: value}: new fields after each step, from the gradient.
      refresh: `refresh(g, *, names...)`, returning {field: value}: new fields after the first step, and then every
        `every` steps, for all leaves in one branch. All passes may name `count`, which is 1 at the first step.
      every: the number of steps from one refresh to the next, at least 1.
      before: refresh before the step (GaLore) instead of after it (SOAP). `observe` always comes after the step.
      move: `move(x, field, old, new)`: the new value of a field of the inner transform after a refresh; `field` is its
        declaration (`field.nonnegative` for squares), `old` and `new` are the fields of the view, by name. None keeps
        all values.
      reach: "leaf", or "matrix", which refuses other leaves.
      form: the inner form, declared as a field. The inner state is sharded along the axes that the form shares with the
        leaf: all of them for `fields.like()`. With None the inner state is replicated.
      fields: the state of the view, for each leaf; and a `key`, which `observe` and `refresh` may name.
    """

    def __init__(
        self,
        down: Callable[..., Array],
        up: Callable[..., Array],
        observe: Pass = None,
        refresh: Pass = None,
        *,
        every: int = 1,
        before: bool = False,
        move: Callable[[Array, Field, Any, Any], Array] | None = None,
        reach: Literal["leaf", "matrix"] = "leaf",
        form: Field | None = None,
        **fields: Field,
    ):
        check_fields("gradtx.View", fields, reserved=FOR_UP)
        for name, field in fields.items():
            if field.given or (field.per == "tree" and field.dtype != "key"):
                raise TypeError(f"gradtx.View: {name} is {field!r}; it must be a field of each leaf, or a key.")
        if not isinstance(cast(Any, every), int) or every < 1:
            raise ValueError(f"gradtx.View: every is {every!r}; it must be an int of at least 1.")
        self.passes: dict[str, Pass] = {"down": down, "up": up, "observe": observe, "refresh": refresh}
        self.every, self.before, self.move = every, before, move
        self.stack = False  # a batch is copied in and out at each pass, of which most are two products
        self.reach: Reach = reach
        self.form, self.fields = form, fields
        if reach == "matrix":
            self.form = None if form is None else of_matrix(form)
            self.fields = {name: of_matrix(field) for name, field in fields.items()}

    program = Seen

    def wanted(self, rule: Rule) -> Wants:
        """The names that its update wants."""
        named = names_of(rule, without_leaf="", closed=True, offered={"up": FOR_UP})
        counted = {"count": True} if self.passes["refresh"] is not None or "count" in named else {}
        return Wants({"params": False, "observed": False} | counted, passes_on=True)


def through(view: View, inner: Any) -> Rule:
    """The rule of a factory that runs `inner`, one of its arguments, on the form of each leaf that a view shows."""
    del inner  # not needed: it is among the arguments of the factory
    return Rule(
        update=cast(Any, view.passes["down"]), reach=view.reach, fields=view.fields, traits=("leaves",), formula=view
    )
