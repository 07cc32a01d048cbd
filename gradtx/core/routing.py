"""Routing: different transforms for different leaves, chosen by path, by shape, or leaf by leaf.

    partition({"matrices": muon_like, "vectors": adam(1e-3)}, {"*/kernel": "matrices", "*": "vectors"})
    by_shape(matrix=muon_like, other=scale_by_adam())

With routing, a named method can have a fallback for leaves on which it is not defined.
"""

import warnings
from collections.abc import Callable
from typing import Any, cast

import jax

from gradtx.core import batches, dimensions, selection, views
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform

PyTree = Any
State = dict[str, Any]
Flags = tuple[bool, ...]
MASKED = ("idle", "leaves", "integers")
"""The traits of a rule that passes some leaves to transforms inside."""


def on_leaves(
    inner: Transform, chosen: Flags, updates: PyTree, state: State, params: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, State]:
    """The update of the chosen leaves only; the others are None in the result."""

    def down(values: PyTree) -> PyTree:
        return selection.keep(values, chosen)

    def up(values: PyTree) -> PyTree:
        return selection.put(values, params, chosen)

    return views.inside(inner, updates, state, params, extra, down, up)


def asking(spec: Any, update: Callable[..., Any]) -> Callable[..., Any]:
    """The update; if a function of the params selects the leaves, params are required."""
    if not selection.is_function(spec):
        return update

    def asked(updates: PyTree, state: State, params: PyTree, **extra: Any) -> Any:
        return update(updates, state, params, **extra)

    return asked


@transform
def partition(transforms: dict[str, Transform], param_labels: Any) -> Rule:
    """Updates each leaf with the transform of its group.

    Source: as optax.partition. So each group has its own learning rate, schedule, decay or any other argument.

    Args:
      transforms: a dict of transforms by the group's name.
      param_labels: the name of each leaf's group, written like a mask (see `masked`), with names in place of bools:
        `{"*/kernel": "matrices", "*": "vectors"}`, or `lambda path, leaf: "vectors" if leaf.ndim < 2 else "matrices"`.
        Leaves with an integer or bool dtype belong in a group with `freeze("*")`.

    State: `{"partition": {"groups": {group: its transform's state}}}`, in which leaves of other groups are None;
    `find(state, "matrices/nu")` reads it.

    Errors: ValueError for a label without a transform, with the leaf's path; TypeError if some groups but not all take
    scaled gradients; those of `masked`. A warning for a transform without leaves. `groups(tx, params)` prints the
    leaves of each group.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> tx = gradtx.partition(
    ...     {"matrices": gradtx.adamw(1e-3), "vectors": gradtx.sgd(0.1)}, {"*/kernel": "matrices", "*": "vectors"}
    ... )
    >>> gradtx.groups(tx, params)
    group     leaves  parameters  transform
    matrices       1           6  adamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)
    vectors        1           3  sgd(learning_rate=0.1, momentum=None, nesterov=False)
    """
    who = "gradtx.partition"
    _refuse_wrong_groups(who, transforms)

    def labels(updates: PyTree, params: PyTree) -> tuple[str, ...]:
        return labels_of(who, transforms, param_labels, updates, params)

    def init(params: PyTree) -> State:
        found = labels(params, params)
        for name in transforms:
            if found and name not in found:
                warnings.warn(f"{who}: no leaf has the label {name!r}; its transform does nothing.", stacklevel=2)
        inside = {name: selection.keep(params, tuple(label == name for label in found)) for name in transforms}
        return {"groups": {name: tx.init(inside[name]) for name, tx in transforms.items()}}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        found, result, states = labels(updates, params), updates, {}
        for name, tx in transforms.items():
            chosen = tuple(label == name for label in found)
            new, states[name] = on_leaves(tx, chosen, updates, state["groups"][name], params, _known(tx, extra))
            result = selection.put(new, result, chosen)
        return result, {"groups": states}

    return Rule(init=init, update=asking(param_labels, update), traits=MASKED)


@transform
def by_shape(matrix: Transform, other: Transform, dimension_numbers: Any = None) -> Rule:
    """Gives matrices to one transform and all other leaves to another.

    For methods that are defined for matrices alone: `by_shape(matrix=orthogonalize(), other=scale_by_adam())`.

    Args:
      matrix: the transform of matrices.
      other: the transform of all other leaves: vectors, scalars.
      dimension_numbers: which leaves are matrices, and which of their axes are the rows and the columns: a tree of
        `MuonDimensionNumbers` and None, written like a mask (see `masked`): `{"*/conv/kernel": MuonDimensionNumbers((0,
        1, 2), 3), "*": None}`. With None, leaves with exactly two axes are matrices.

    State: `{"by_shape": {"groups": {"matrix": ..., "other": ...}}}`, in which leaves of the other group are None.
    `find(state, "matrix/mu")` reads the field of one group, `find(state, "mu")` that of both, as one tree. The state of
    `matrix` has the shapes of the matrices: the axes that count them, then rows, then columns.

    Errors: TypeError if one of the two takes scaled gradients and the other does not; ValueError for axes that a leaf
    does not have.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.by_shape(matrix=gradtx.scale_by_sign(), other=gradtx.scale(0.5))
    >>> params = {"kernel": jnp.full((1, 2), 3.0), "bias": jnp.full(2, 3.0)}
    >>> tx.update(params, tx.init(params))[0]
    {'bias': Array([1.5, 1.5], dtype=float32), 'kernel': Array([[1., 1.]], dtype=float32)}
    """
    who, transforms = "gradtx.by_shape", {"matrix": matrix, "other": other}
    _refuse_wrong_groups(who, transforms)

    def init(params: PyTree) -> State:
        at = Matrices(who, dimension_numbers, params, params)
        outside = selection.keep(params, at.others)
        return {"groups": {"matrix": at.init(matrix, params), "other": other.init(outside)}}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        at, groups = Matrices(who, dimension_numbers, updates, params), state["groups"]
        made, first = at.update(matrix, updates, groups["matrix"], params, _known(matrix, extra))
        rest, second = on_leaves(other, at.others, updates, groups["other"], params, _known(other, extra))
        return selection.put(rest, made, at.others), {"groups": {"matrix": first, "other": second}}

    return Rule(init=init, update=asking(dimension_numbers, update), traits=MASKED)


@transform
def as_matrices(inner: Transform, dimension_numbers: Any = None) -> Rule:
    """Shows a transform the matrices of each leaf: `as_matrices(scale_by_muon(), {"*": MuonDimensionNumbers(1, 2)})`.

    Args:
      inner: a transform of matrices.
      dimension_numbers: see `by_shape`; each leaf must have some.

    State: `{"as_matrices": {"inner": inner's state}}`, in the shapes of the matrices.

    Errors: ValueError for a leaf that is no matrix, with its path, and for axes that a leaf does not have.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.as_matrices(gradtx.scale_by_sign(), gradtx.MuonDimensionNumbers((0, 1), 2))
    >>> gradtx.find(gradtx.as_matrices(gradtx.ema(0.9), gradtx.MuonDimensionNumbers((0, 1), 2)).init(
    ...     jnp.zeros((3, 4, 5))), "mean").shape
    (12, 5)
    """
    who = "gradtx.as_matrices"

    def at(updates: PyTree, params: PyTree) -> Matrices:
        found = Matrices(who, dimension_numbers, updates, params)
        for path, other in zip(selection.paths(updates), found.others, strict=True):
            if other:
                raise ValueError(
                    f"{who}: the leaf {path!r} is no matrix; each leaf must have MuonDimensionNumbers. Route the "
                    "others elsewhere: by_shape(matrix=..., other=..., dimension_numbers=...)."
                )
        return found

    def init(params: PyTree) -> State:
        return {"inner": at(params, params).init(inner, params)}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        made, new = at(updates, params).update(inner, updates, state["inner"], params, extra)
        return made, {"inner": new}

    return Rule(init=init, update=asking(dimension_numbers, update), traits=MASKED)


class Matrices:
    """The matrices of the leaves of a tree."""

    def __init__(self, who: str, spec: Any, updates: PyTree, params: PyTree):
        self.who, self.axes = who, dimensions.axes_of(who, spec, updates, params)
        self.chosen = tuple(axes.a_matrix for axes in self.axes)
        self.others = tuple(not chosen for chosen in self.chosen)

    def init(self, inner: Transform, params: PyTree) -> State:
        """The state of a transform of the matrices."""
        with batches.declared(True):
            return inner.init(self._down(params))

    def update(
        self, inner: Transform, updates: PyTree, state: State, params: PyTree, extra: dict[str, Any]
    ) -> tuple[PyTree, State]:
        """The updates of the matrices, in the leaves that have them, and of the other leaves as they came."""

        def up(values: PyTree) -> PyTree:
            return self._up(values, updates if params is None else params)

        with batches.declared(True):
            made, new = views.inside(inner, updates, state, params, extra, self._down, up)
        return self._up(made, updates), new

    def _down(self, values: PyTree) -> PyTree:
        leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(values))
        rows = zip(selection.paths(values), self.axes, leaves, strict=True)
        shown = [
            dimensions.matrices_of(self.who, path, axes, leaf) if axes.a_matrix else None for path, axes, leaf in rows
        ]
        alone = len(shown) == 1 and leaves[0] is values
        return () if alone and shown[0] is None else structure.unflatten(shown)

    def _up(self, values: PyTree, like: PyTree) -> PyTree:
        leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(like))
        shown: list[Any] = structure.flatten_up_to(values) if any(self.chosen) else leaves
        rows = zip(selection.paths(like), self.axes, shown, leaves, strict=True)
        return structure.unflatten(
            [
                dimensions.leaf_of(self.who, path, axes, matrices, leaf) if axes.a_matrix else leaf
                for path, axes, matrices, leaf in rows
            ]
        )


def _known(tx: Transform, extra: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments that a transform accepts."""
    return {key: value for key, value in extra.items() if tx.facts.takes(key) or key == "observed"}


def _refuse_wrong_groups(who: str, transforms: dict[str, Transform]) -> None:
    if not transforms:
        raise ValueError(f"{who}: transforms is empty; it must be a dict of at least one.")
    for name in transforms:
        if type(name) is not str:
            raise TypeError(f"{who}: a group is called {name!r}; it must be a str.")
    scaled = [name for name, tx in transforms.items() if "first" in tx.facts]
    if scaled and len(scaled) < len(transforms):
        raise TypeError(
            f"{who}: the group {scaled[0]!r} scales the gradients back, and the other groups would get scaled ones: "
            f"{transforms[scaled[0]]!r}. Put {who.removeprefix('gradtx.')} inside it."
        )


def labels_of(
    who: str, transforms: dict[str, Transform], param_labels: Any, updates: PyTree, params: PyTree
) -> tuple[str, ...]:
    """The label of each leaf; each label has a transform."""
    labels = selection.labels(who, param_labels, updates, params, argument="param_labels")
    for path, label in zip(selection.paths(updates), labels, strict=True):
        if label not in transforms:
            raise ValueError(
                f"{who}: the leaf {path!r} has the label {label!r}, for which there is no transform; allowed: "
                f"{', '.join(map(repr, transforms))}."
            )
    return labels
