"""Groups and masks: different transforms for different leaves.

- `partition({"matrices": muon_like, "vectors": adam(1e-3)}, labels)` updates each leaf with the transform of its
  group. So each group can have its own learning rate, schedule or decay.
- `train_only(tx, "*/head/*")` freezes the other leaves, which have no state and count in no norm.
- `masked(tx, mask)` passes the other leaves through; `freeze(mask)` sets the updates of the selected leaves to zero.

Masks and labels can be written in three ways (see `gradtx.masked`). They depend on the params, never on a gradient.
"""

import dataclasses
from typing import Any

import jax

from gradtx import tree
from gradtx.core import dimensions, record, selection
from gradtx.core.elementary import transform
from gradtx.core.routing import MASKED, asking, labels_of, on_leaves
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform

PyTree = Any
State = dict[str, Any]


@transform
def masked(inner: Transform, mask: Any) -> Rule:
    """Applies `inner` to the leaves that the mask selects; the others pass through unchanged, without state.

    Source: as optax.masked. The updates of unselected leaves are still raw gradients, which `apply_updates` would add
    to the params; to freeze leaves, use `train_only`. Unselected leaves may have an integer or bool dtype. Their
    gradients are then float0 (`jax.grad(..., allow_int=True)`) or of the leaf's dtype, and `apply_updates` does not
    change them.

    Args:
      inner: any transform; whatever it measures, such as a norm, it measures on the selected leaves only.
      mask: which leaves to select, in one of these ways. A tree of bools with the structure of the params, or of their
        upper part: `{"dense": True, "out": False}`. A function of the path ("dense/kernel") and the leaf, `lambda path,
        leaf: leaf.ndim > 1`, or of the whole params; it sees arrays without values, and update then needs the params.
        Patterns: "*/kernel", a tuple of several, or a dict, `{"*/bias": False, "*": True}`, in which the first match
        wins; `*` matches any part of a path.

    State: `{"masked": {"inner": inner's state}}`, in which unselected leaves are None.

    Errors: ValueError for a mask of another structure, a pattern that matches no leaf, or a leaf that no pattern of a
    dict matches. TypeError for a mask with values other than bools, for a selected leaf with an integer or bool dtype,
    and for an inner transform that divides by a loss scale, since the other leaves would stay scaled. A warning for a
    function that selects no leaf.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    >>> tx = gradtx.masked(gradtx.scale(0.5), "*/kernel")
    >>> tx.update(params, tx.init(params), params)[0]
    {'bias': Array([1., 1.], dtype=float32), 'kernel': Array([0.5, 0.5], dtype=float32)}
    """
    if "first" in inner.facts:
        raise TypeError(
            f"gradtx.masked: inner is {inner!r}, which scales the gradients back; the unselected leaves would stay "
            "scaled. Put masked inside it."
        )

    def init(params: PyTree) -> State:
        return {"inner": inner.init(selection.keep(params, selection.flags("gradtx.masked", mask, params, params)))}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        chosen = selection.flags("gradtx.masked", mask, updates, params)
        new, inner_state = on_leaves(inner, chosen, updates, state["inner"], params, extra)
        return selection.put(new, updates, chosen), {"inner": inner_state}

    return Rule(init=init, update=asking(mask, update), traits=MASKED)


@transform
def freeze(mask: Any) -> Rule:
    """Sets the updates of the selected leaves to zero.

    Source: as optax.transforms.freeze. Transforms before it still measure the frozen leaves and keep statistics of
    them; with `train_only` they do not. Leaves with an integer or bool dtype are allowed (see `masked`), if no
    transform before it computes with them.

    Args:
      mask: which leaves to freeze; see `masked`.

    State: none. Errors: those of `masked`.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    >>> gradtx.freeze("bias").update(params, {}, params)[0]
    {'bias': Array([0., 0.], dtype=float32), 'kernel': Array([1., 1.], dtype=float32)}
    """

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        chosen = selection.flags("gradtx.freeze", mask, updates, params)
        return selection.put(tree.zeros_like(selection.keep(updates, chosen)), updates, chosen), state

    return Rule(update=asking(mask, update), reach="element", traits=MASKED)


@transform
def train_only(inner: Transform, mask: Any) -> Rule:
    """Trains the selected leaves with `inner`; the others are frozen, have no state and count in no norm inside.

    Args:
      inner: any transform; it sees only the selected leaves.
      mask: which leaves to train; see `masked`. The others may have an integer or bool dtype.

    State: `{"train_only": {"inner": inner's state}}`, in which frozen leaves are None: they take no bytes.

    Errors: those of `masked`.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> tx = gradtx.train_only(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(1.0), "head")
    >>> grads = {"body": jnp.full(2, jnp.nan), "head": jnp.array([3.0, 4.0])}
    >>> tx.update(grads, tx.init(params), params)[0]
    {'body': Array([0., 0.], dtype=float32), 'head': Array([-0.6, -0.8], dtype=float32)}
    """

    def init(params: PyTree) -> State:
        return {"inner": inner.init(selection.keep(params, selection.flags("gradtx.train_only", mask, params, params)))}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        chosen = selection.flags("gradtx.train_only", mask, updates, params)
        new, inner_state = on_leaves(inner, chosen, updates, state["inner"], params, extra)
        frozen = tuple(not flag for flag in chosen)
        still = selection.put(tree.zeros_like(selection.keep(updates, frozen)), updates, frozen)
        return selection.put(new, still, chosen), {"inner": inner_state}

    return Rule(init=init, update=asking(mask, update), traits=MASKED)


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of leaves and its transform; `parameters` counts their elements."""

    name: str
    leaves: int
    parameters: int
    transform: str


class Groups(tuple[Group, ...]):
    """The groups of a transform for given params; printed as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        head = ("group", "leaves", "parameters", "transform")
        rows = [head, *((g.name, f"{g.leaves:,}", f"{g.parameters:,}", g.transform) for g in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{name:<{widths[0]}}  {leaves:>{widths[1]}}  {count:>{widths[2]}}  {tx}"
            for name, leaves, count, tx in rows
        )


def groups(tx: Transform, params: PyTree) -> Groups:
    """The groups of leaves that a `partition`, `masked`, `train_only` or `freeze` makes; a table when printed.

    Args:
      tx: such a transform, or one that contains it; the outermost one is used.
      params: the params, or their shapes.

    Errors: ValueError for a transform without groups, or with groups in several places; those of the transform.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.train_only(gradtx.sgd(0.1), "head")
    >>> gradtx.groups(tx, {"body": jnp.zeros((1000, 5)), "head": jnp.zeros(5)})
    group   leaves  parameters  transform
    chosen       1           5  sgd(learning_rate=0.1, momentum=None, nesterov=False)
    others       1       5,000  frozen
    """
    found = _grouping(tx)
    if len(found) != 1:
        problem = "groups in several places" if found else "no groups"
        raise ValueError(
            f"gradtx.groups: tx is {tx!r}, with {problem}; it must contain one partition, by_shape, masked, train_only "
            "or freeze. Pass that one."
        )
    grouping, arguments = found[0], found[0].arguments
    if grouping.name == "partition":
        transforms = arguments["transforms"]
        labels = labels_of("gradtx.partition", transforms, arguments["param_labels"], params, params)
        names = {name: repr(inner) for name, inner in transforms.items()}
    elif grouping.name == "by_shape":
        found_axes = dimensions.axes_of("gradtx.by_shape", arguments["dimension_numbers"], params, params)
        labels = tuple("matrix" if axes.a_matrix else "other" for axes in found_axes)
        names = {name: repr(arguments[name]) for name in ("matrix", "other")}
    else:
        who = f"gradtx.{grouping.name}"
        labels = tuple(
            "chosen" if flag else "others" for flag in selection.flags(who, arguments["mask"], params, params)
        )
        names = {
            "chosen": repr(arguments["inner"]) if "inner" in arguments else "frozen",
            "others": "frozen" if grouping.name == "train_only" else "passed through",
        }
    sizes = [(label, leaf.size) for label, leaf in zip(labels, jax.tree.leaves(tree.shapes(params)), strict=True)]
    return Groups(
        Group(name, len(own := [size for label, size in sizes if label == name]), sum(own), words)
        for name, words in names.items()
    )


def _grouping(tx: Transform) -> list[Transform]:
    """The outermost transforms inside `tx` that treat leaves differently."""
    if tx.name in ("partition", "by_shape", "masked", "train_only", "freeze"):
        return [tx]
    inside = [child for _, child in record.children(tx.arguments) if isinstance(child, Transform)]
    found = [grouping for child in inside for grouping in _grouping(child)]
    expanded = tx.expand()
    return found if found or expanded == tx else _grouping(expanded)
