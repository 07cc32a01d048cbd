"""Views: an inner transform runs on another form of the tree, and its updates are converted back.

    u = up(inner(down(g)))

A mask shows some leaves, `pack` shows leaves joined end to end, SOAP shows an eigenbasis. A view may have a state, and
may be refreshed every few steps; then it defines how the state of the inner transform is carried along:

    return through(View(down, up, observe, refresh, every=10, move=move, left=fields.basis(0), ...), inner)

Extra arguments are converted with the gradients: trees like the params (`grad`, `observed`) by `down`, like gradients;
functions of the params (`value_fn`, `grad_fn`) are called with the result of `up` on the inner params. Others, such as
`value`, pass unchanged.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import numerics, tree
from gradtx.core.fields import Field, Place, at, put
from gradtx.core.formula import check_fields, names_of
from gradtx.core.program import Body, Compiled, Numbers, Pass, as_dict
from gradtx.core.rule import Reach, Rule, State, Wants

PyTree = Any
Extra = dict[str, Any]
Turn = Callable[[PyTree], PyTree]
_TREES = ("grad", "observed")
Dtype = np.dtype[Any]


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
            return down(made) if name == "grad_fn" else made

        if value is None:
            return None
        if name in ("value_fn", "grad_fn"):
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


class View:
    """Another form of each leaf, and the conversion back.

    Args:
      down: `down(x, *, names...)`: converts a leaf to the form that the inner transform sees. The names are fields of
        the view.
      up: `up(x, *, names...)`: converts the updates of the inner transform back.
      observe: `observe(g, *, names...)`, returning {field: value}: new fields after each step, from the gradient.
      refresh: `refresh(g, *, names...)`, returning {field: value}: new fields after the first step, and then every
        `every` steps, for all leaves in one branch.
      every: the number of steps from one refresh to the next, at least 1.
      move: `move(x, field, old, new)`: the new value of a field of the inner transform after a refresh; `field` is its
        declaration (`field.nonnegative` for squares), `old` and `new` are the fields of the view, by name. None keeps
        all values.
      reach: "leaf", or "matrix", which refuses other leaves.
      fields: the state of the view, for each leaf.
    """

    def __init__(
        self,
        down: Callable[..., Array],
        up: Callable[..., Array],
        observe: Pass = None,
        refresh: Pass = None,
        *,
        every: int = 1,
        move: Callable[[Array, Field, Any, Any], Array] | None = None,
        reach: Literal["leaf", "matrix"] = "leaf",
        **fields: Field,
    ):
        check_fields("gradtx.View", fields)
        self.passes: dict[str, Pass] = {"down": down, "up": up, "observe": observe, "refresh": refresh}
        self.every, self.move, self.fields = every, move, fields
        self.reach: Reach = reach

    def wanted(self, rule: Rule) -> Wants:
        """What its update names."""
        names_of(rule, self.passes, without_leaf="", closed=True)
        none = frozenset[str]()
        return Wants(True, False, True, self.passes["refresh"] is not None, none, none, passes_on=True)

    def program(self, who: str, rule: Rule, body: Body) -> "Seen":
        """The program of a rule with this view."""
        return Seen(who, rule, body)


def through(view: View, inner: Any) -> Rule:
    """The rule of a factory that runs `inner`, one of its arguments, on the form of each leaf that a view shows."""
    del inner  # not needed: it is among the arguments of the factory
    return Rule(
        update=cast(Any, view.passes["down"]), reach=view.reach, fields=view.fields, traits=("leaves",), formula=view
    )


class Seen(Compiled):
    """A view as a program."""

    def __init__(self, who: str, rule: Rule, body: Body):
        super().__init__(who, rule, body, lambda rule: rule.formula.passes)
        self.every, self.moves = rule.formula.every, rule.formula.move is not None
        self.moved: Callable[..., Array] = jax.jit(self._moved, static_argnums=1, inline=True)

    def init(self, numbers: Numbers, params: PyTree, inner: list[Any]) -> State:
        """The state before the first update."""
        own = self.first(numbers, params)
        return own | {"inner": inner[0].init(self._turned("down", tree.precision(params), numbers, params, own))}

    def update(
        self,
        real: Dtype,
        numbers: Numbers,
        u: PyTree,
        own: State,
        params: PyTree,
        count: Any,
        extra: Extra,
        inner: list[Any],
    ) -> tuple[PyTree, State]:
        """One step of the whole tree."""
        self.refuse_others(u)
        fields = {name: value for name, value in own.items() if name != "inner"}
        down, up = (functools.partial(self._turned, way, real, numbers, fields=fields) for way in ("down", "up"))
        result, state = inside(inner[0], u, own["inner"], params, extra, down, up)
        result, g = up(result), extra.get("observed", u)
        result = jax.tree.map(functools.partial(self.like, "what up returned"), result, u)
        if "observe" in self.names:
            fields = self._renewed("observe", real, numbers, g, fields)
        if "refresh" in self.names:
            due = (count - 1) % numerics.within_int32(self.every) == 0
            fields, state = numerics.branch(
                due,
                lambda: self._refreshed(real, numbers, g, fields, state, inner[0].declared),
                lambda: (fields, state),
            )
        return result, fields | {"inner": state}

    def _columns(self, fields: State) -> dict[str, list[Any]]:
        return {name: jax.tree.leaves(value) for name, value in fields.items()}

    def _turned(self, way: str, real: Dtype, numbers: Numbers, values: PyTree, fields: State) -> PyTree:
        leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(values))
        return structure.unflatten(self.each(way, real, numbers, leaves, {}, self._columns(fields)))

    def _renewed(self, title: str, real: Dtype, numbers: Numbers, g: PyTree, fields: State) -> State:
        leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(g))
        rows = self.each(title, real, numbers, leaves, {}, self._columns(fields))
        made = {name: structure.unflatten([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        return self.settled(made, fields)

    def _refreshed(
        self,
        real: Dtype,
        numbers: Numbers,
        g: PyTree,
        fields: State,
        state: State,
        declared: dict[Place, Field],
    ) -> tuple[State, State]:
        """New fields of the view, and the state of the inner transform carried along."""
        new = self._renewed("refresh", real, numbers, g, fields)
        structure = cast(Any, jax.tree.structure(g))
        old_rows, new_rows = (
            [dict(zip(some, row, strict=True)) for row in zip(*map(jax.tree.leaves, some.values()), strict=True)]
            for some in (fields, new)
        )
        for place, field in declared.items() if self.moves else ():
            if field.per == "leaf":
                xs = jax.tree.leaves(at(state, place))
                rows = zip(xs, old_rows, new_rows, strict=True)
                moved = [self.moved(numbers, field, x, old, now) for x, old, now in rows]
                state = put(state, place, structure.unflatten(moved))
        return new, state

    def _moved(self, numbers: Numbers, field: Field, x: Array, old: Any, new: Any) -> Array:
        move = self.body(numbers).formula.move
        with jax.numpy_dtype_promotion("standard"):
            return self.like("what move returned", move(x, field, old, new), x)

    def finished(self, title: str, made: Any, u: Any, named: dict[str, Any], real: Dtype) -> Any:
        if title in ("down", "up"):
            if tree.is_discrete(made) or tree.is_complex(made) != tree.is_complex(u):
                raise TypeError(
                    f"{self.who}: what {title} returned has dtype {made.dtype}; it must keep the dtype {u.dtype}."
                )
            return jnp.asarray(made).astype(tree.compute_dtype(u))
        return self.checked(made, named, (as_dict(made) or {}).keys() & self.kept.keys())
