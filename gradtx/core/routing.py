"""Routing: different transforms for different leaves, chosen by path, by shape, or leaf by leaf.

    partition({"matrices": muon_like, "vectors": adam(1e-3)}, {"*/kernel": "matrices", "*": "vectors"})
    by_shape(matrix=muon_like, other=scale_by_adam())

With routing, a named method can have a fallback for leaves on which it is not defined.
"""

import warnings
from collections.abc import Callable
from typing import Any

from gradtx.core import selection, views
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
    return _routed("gradtx.partition", transforms, param_labels)


@transform
def by_shape(matrix: Transform, other: Transform) -> Rule:
    """Gives matrices to one transform and all other leaves to another.

    For methods that are defined for matrices alone: `by_shape(matrix=orthogonalize(), other=scale_by_adam())`.

    Args:
      matrix: the transform of leaves with exactly two axes.
      other: the transform of all others: vectors, scalars, the kernels of convolutions.

    State: `{"by_shape": {"groups": {"matrix": ..., "other": ...}}}`, in which leaves of the other group are None.
    `find(state, "matrix/mu")` reads the field of one group, `find(state, "mu")` that of both, as one tree.

    Errors: TypeError if one of the two takes scaled gradients and the other does not.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.by_shape(matrix=gradtx.scale_by_sign(), other=gradtx.scale(0.5))
    >>> params = {"kernel": jnp.full((1, 2), 3.0), "bias": jnp.full(2, 3.0)}
    >>> tx.update(params, tx.init(params))[0]
    {'bias': Array([1.5, 1.5], dtype=float32), 'kernel': Array([[1., 1.]], dtype=float32)}
    """
    return _routed("gradtx.by_shape", {"matrix": matrix, "other": other}, shape_of)


def shape_of(path: str, leaf: Any) -> str:
    """The route of a leaf by its shape."""
    return "matrix" if leaf.ndim == 2 else "other"


def _routed(who: str, transforms: dict[str, Transform], param_labels: Any) -> Rule:
    """Each leaf to the transform of its label."""
    by_rule = param_labels is shape_of  # reads shapes of params or gradients, and may leave a route empty
    _refuse_wrong_groups(who, transforms)

    def labels(updates: PyTree, params: PyTree) -> tuple[str, ...]:
        return labels_of(who, transforms, param_labels, updates, updates if by_rule else params)

    def init(params: PyTree) -> State:
        found = labels(params, params)
        for name in transforms:
            if found and name not in found and not by_rule:
                warnings.warn(f"{who}: no leaf has the label {name!r}; its transform does nothing.", stacklevel=2)
        inside = {name: selection.keep(params, tuple(label == name for label in found)) for name in transforms}
        return {"groups": {name: tx.init(inside[name]) for name, tx in transforms.items()}}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        found, result, states = labels(updates, params), updates, {}
        for name, tx in transforms.items():
            chosen = tuple(label == name for label in found)
            known = {key: value for key, value in extra.items() if tx.facts.takes(key) or key == "observed"}
            new, states[name] = on_leaves(tx, chosen, updates, state["groups"][name], params, known)
            result = selection.put(new, result, chosen)
        return result, {"groups": states}

    return Rule(init=init, update=update if by_rule else asking(param_labels, update), traits=MASKED)


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
