"""Groups and masks: other transforms for other leaves.

- `partition({"matrices": muon_like, "vectors": adam(1e-3)}, labels)`: each leaf by the transform of its group. A
  learning rate, schedule or decay for each group is a group of its own.
- `train_only(tx, "*/head/*")`: the other leaves are frozen, have no state and count in no norm.
- `masked(tx, mask)`: the other leaves pass through; `freeze(mask)`: the selected ones stay where they are.

Masks and labels are said in one of three ways (see `gradtx.masked`), and are about the params, never about a gradient.
"""

import dataclasses
from typing import Any

import jax

from gradtx import tree
from gradtx.core import record, selection
from gradtx.core.elementary import transform
from gradtx.core.routing import MASKED, asking, labels_of, on_leaves, shape_of
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform

PyTree = Any
State = dict[str, Any]


@transform
def masked(inner: Transform, mask: Any) -> Rule:
    """Applies `inner` to the leaves that the mask selects; the others pass through unchanged, without state.

    Source: as optax.masked. Unselected gradients stay in the updates as they are: behind it, `apply_updates` adds them
    to the params. To hold leaves still, use `train_only`. Unselected leaves may be of integers or bools, their
    gradients float0 (`jax.grad(..., allow_int=True)`) or of the leaf's dtype; `apply_updates` leaves such leaves alone.

    Args:
      inner: any transform; what it measures (a norm, say) it measures on the selected leaves.
      mask: which leaves, in one of these ways. A tree of bools like the params, or like their upper part:
        `{"dense": True, "out": False}`. A function of the path ("dense/kernel") and the leaf, `lambda path, leaf:
        leaf.ndim > 1`, or of the whole params; it sees arrays without values, and update needs the params then.
        Patterns: "*/kernel", or several in a tuple, or a dict, `{"*/bias": False, "*": True}`, in which the first that
        matches wins; `*` matches any part of a path.

    State: `{"masked": {"inner": inner's state}}`, in which unselected leaves are None.

    Errors: TypeError for a mask that is not of bools, ValueError for one of another structure, a pattern that matches
    no leaf, or a leaf that no pattern of a dict matches. TypeError for a selected leaf of integers or bools, and for an
    inner transform that takes gradients which are scaled: those of the other leaves would stay so. A warning for a
    function that selects no leaf.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    >>> tx = gradtx.masked(gradtx.scale(0.5), "*/kernel")
    >>> tx.update(params, tx.init(params), params)[0]
    {'bias': Array([1., 1.], dtype=float32), 'kernel': Array([0.5, 0.5], dtype=float32)}
    """
    if "first" in inner.facts:
        raise TypeError(
            f"gradtx.masked: {inner!r} takes gradients that are still scaled, and those of the leaves that are not "
            "selected would stay so; put it around, with masked inside it."
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
    them; `train_only` does neither. There may be leaves of integers or bools (see `masked`), if no transform before it
    computes with them.

    Args:
      mask: which leaves to hold still; see `masked`.

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
      inner: any transform; it sees the selected leaves and nothing else.
      mask: which leaves to train; see `masked`. The others may be of integers or bools.

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
    """Some leaves and what happens to them; `parameters` counts their elements."""

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
    """What a `partition`, `masked`, `train_only` or `freeze` does with which leaves; a table when printed.

    Args:
      tx: such a transform, or one that contains it; the outermost counts.
      params: the params, or their shapes.

    Errors: ValueError for a transform without groups or with several beside each other; those of the transform.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.train_only(gradtx.sgd(0.1), "head")
    >>> gradtx.groups(tx, {"body": jnp.zeros((1000, 5)), "head": jnp.zeros(5)})
    group   leaves  parameters  transform
    chosen       1           5  sgd(learning_rate=0.1, momentum=None, nesterov=False)
    others       1       5,000  frozen
    """
    found = _grouping(tx)
    if len(found) != 1:
        problem = "has no groups" if not found else "has groups in several places: ask for each by itself"
        raise ValueError(f"gradtx.groups: {tx!r} {problem}; allowed: partition, masked, train_only, freeze in it.")
    grouping, arguments = found[0], found[0].arguments
    if grouping.name in ("partition", "by_shape"):
        transforms = arguments.get("transforms", arguments)
        param_labels = arguments.get("param_labels", shape_of)
        labels = labels_of(f"gradtx.{grouping.name}", transforms, param_labels, params, params)
        names = {name: repr(inner) for name, inner in transforms.items()}
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
    """The outermost transforms in it that treat leaves differently."""
    if tx.name in ("partition", "by_shape", "masked", "train_only", "freeze"):
        return [tx]
    inside = [child for _, child in record.children(tx.arguments) if isinstance(child, Transform)]
    found = [grouping for child in inside for grouping in _grouping(child)]
    expanded = tx.expand()
    return found if found or expanded == tx else _grouping(expanded)
