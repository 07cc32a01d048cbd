"""Averages of the parameters, kept beside the training and used in its place for evaluation.

    average <- average + c (w - average),   w being the params after the update

The iterates of stochastic gradient descent wander around a minimum; their average lies nearer to it. One formula, and
c says which of the iterates count:

- c = (1 - b) / (1 - b^t): an exponentially weighted average, `exponential_averaging`, right from the first step.
- c = 1 / t: all iterates alike, `polyak_averaging`.
- c = 1 / (n + 1) at every k-th update, n averaged before: `stochastic_weight_averaging`.

The updates pass through unchanged. So these go around the whole optimizer: what is applied must be what they have seen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics, tree
from gradtx.averages import total, weights_after
from gradtx.core import check, fields
from gradtx.core.annotations import NonNegativeInt, PositiveInt, Unit
from gradtx.core.apply import apply_updates
from gradtx.core.elementary import transform
from gradtx.core.fields import Field
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.wrappers.placing import refuse_waiting

PyTree = Any
State = dict[str, Any]


def towards(average: PyTree, values: PyTree, share: Array) -> PyTree:
    """`a + c (x - a)` at every leaf; where the share c is 0, a as it is, whatever x."""
    return tree.map(lambda a, x, c: jnp.where(c > 0, a + c * (x - a), a), average, values, c=share)


def _averaging(
    who: str,
    inner: Transform,
    share: Callable[[State, Array], Any],
    **kept: Field,
) -> Rule:
    """The params averaged around `inner`: `share(state, count)` gives c, and its own fields anew."""
    refuse_waiting(who, inner)

    def update(updates: PyTree, state: State, params: PyTree, *, count: Array, **extra: Any) -> tuple[PyTree, State]:
        updates, inner_state = inner.update(updates, state["inner"], params, **extra)
        c, own = share(state, count)
        average = towards(state["average"], apply_updates(params, updates), c)
        return updates, {"inner": inner_state, "average": average} | own

    return Rule(update=update, traits=("leaves",), fields={"average": fields.copy()} | kept)


@transform
def exponential_averaging(
    inner: Transform,
    decay: Unit = 0.999,
    *,
    debias: bool = True,
    from_first: bool = False,
) -> Rule:
    """Keeps an exponentially weighted average of the params that `inner` makes.

        average <- average + c (w - average);   c = (1 - b) / (1 - b^t), or 1 - b with debias=False     (b = decay)

    Source: the average is that of Kingma and Ba 2014 (arXiv 1412.6980), section 7.2, who correct its bias; with a decay
    that varies, b^t is the product of the decays so far. debias=False starts from the initial params instead, which
    keep the weight b^t. With from_first=True it starts from the params after the first update (c = 1 there), which keep
    b^(t-1): so PyTorch's `AveragedModel` with `get_ema_multi_avg_fn` and Keras's `use_ema`.

    Args:
      inner: a whole optimizer; what acts on the updates behind it is not averaged.
      decay: b in [0, 1), a number or a schedule. About 1 / (1 - b) iterates are remembered.
      debias: the initial params have no weight.
      from_first: for debias=False, start from the params after the first update.

    State: `inner`, its state; `average`, like the params in at least float32: 4 bytes per parameter; `weights` (with
    debias) and `count`, scalars. It needs the params. `averaged_params(state)` reads the average.

    Errors: ValueError for a decay outside [0, 1), from_first with debias, or from update without params; those of
    `inner`.

    >>> import gradtx
    >>> tx, w = gradtx.exponential_averaging(gradtx.sgd(1.0), 0.5), 4.0
    >>> state = tx.init(w)
    >>> for g in [1.0, 1.0]:
    ...     updates, state = tx.update(g, state, w)
    ...     w = gradtx.apply_updates(w, updates)
    >>> print(f"{w:.1f} {gradtx.averaged_params(state):.3f}")
    2.0 2.333
    """
    if from_first and debias:
        raise ValueError(
            "gradtx.exponential_averaging: from_first is True, and so is debias, with which the initial params have no "
            "weight either; allowed: from_first=True with debias=False."
        )

    def share(state: State, count: Array) -> tuple[Array, State]:
        if not debias:
            return jnp.where(count == 1, 1.0, 1 - decay) if from_first else 1 - decay, {}
        before = jax.tree.map(lambda number: number.astype(decay.dtype), state["weights"])
        weights = weights_after(before, decay)
        return (1 - decay) / total(weights), {"weights": weights}

    kept = {"weights": fields.weights()} if debias else {}
    return _averaging("exponential_averaging", inner, share, **kept)


@transform
def polyak_averaging(inner: Transform) -> Rule:
    """Keeps the mean of all the params that `inner` has made.

        average <- average + (w - average) / t

    Source: Polyak and Juditsky 1992 ("Acceleration of stochastic approximation by averaging"). Departure: their mean
    is of the params before the updates, w_0 to w_{t-1}; this one is of those after, w_1 to w_t.

    Args:
      inner: a whole optimizer; what acts on the updates behind it is not averaged.

    State: `inner`, its state; `average`, like the params in at least float32: 4 bytes per parameter; `count`, a scalar.
    It needs the params. `averaged_params(state)` reads the average.

    Errors: ValueError from update without params; those of `inner`.

    >>> import gradtx
    >>> tx, w = gradtx.polyak_averaging(gradtx.sgd(1.0)), 4.0
    >>> state = tx.init(w)
    >>> for g in [1.0, 1.0]:
    ...     updates, state = tx.update(g, state, w)
    ...     w = gradtx.apply_updates(w, updates)
    >>> print(f"{w:.1f} {gradtx.averaged_params(state):.1f}")
    2.0 2.5
    """

    def share(state: State, count: Array) -> tuple[Array, State]:
        return 1 / count.astype(tree.precision(state["average"])), {}

    return _averaging("polyak_averaging", inner, share)


@transform
def stochastic_weight_averaging(inner: Transform, start: NonNegativeInt, every: PositiveInt) -> Rule:
    """Keeps the mean of the params after update `start` and after every `every`-th from there on.

        at t = start + n every, n = 0, 1, ...:   average <- average + (w - average) / (n + 1)

    Source: Izmailov et al. 2018 (arXiv 1803.05407), algorithm 1: `start` ends their pretraining, whose result has the
    weight of one, and `every` is their cycle length. The learning rate, cyclical or constant and high, is that of
    `inner`. Statistics of batch normalization belong to no average: compute them anew for the averaged params.

    Args:
      inner: a whole optimizer; what acts on the updates behind it is not averaged.
      start: number of updates before the first that counts, and that one; 0 counts the initial params.
      every: updates from one that counts to the next.

    State: `inner`, its state; `average`, like the params in at least float32: 4 bytes per parameter, the initial params
    before update `start`; `count`, a scalar. It needs the params. `averaged_params(state)` reads the average.

    Errors: ValueError for a negative start, an `every` below 1, or from update without params; those of `inner`.

    >>> import gradtx
    >>> tx, w = gradtx.stochastic_weight_averaging(gradtx.sgd(1.0), start=2, every=2), 9.0
    >>> state = tx.init(w)
    >>> for g in [1.0, 1.0, 1.0, 1.0]:
    ...     updates, state = tx.update(g, state, w)
    ...     w = gradtx.apply_updates(w, updates)
    >>> print(f"{w:.1f} {gradtx.averaged_params(state):.1f}")
    5.0 6.0
    """
    cycle = numerics.within_int32(every)

    def share(state: State, count: Array) -> tuple[Array, State]:
        since = count - numerics.within_int32(start)
        number = jnp.maximum(since // cycle, 0) + 1
        c = 1 / number.astype(tree.precision(state["average"]))
        return jnp.where((since >= 0) & (since % cycle == 0), c, jnp.zeros_like(c)), {}

    return _averaging("stochastic_weight_averaging", inner, share)


def averaged_params(state: PyTree, params: PyTree = None) -> PyTree:
    """The average of the params that a state holds, however deep: what to evaluate.

    Args:
      state: the state of an optimizer with one of the wrappers of this page in it, or of `schedule_free`; or anything
        that contains it, such as optax's tuples, a TrainState, or the state of a run of `minimize`.
      params: the current params, for leaves in their dtypes, and for those leaves that are not averaged because a mask
        or a partition around the wrapper keeps them out. Without them these are None, and the average is as it is kept.

    Errors: KeyError if there is no average, or more than one; ValueError for params of another structure or shape.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"body": jnp.ones(2, jnp.bfloat16), "head": jnp.ones(2, jnp.bfloat16)}
    >>> tx = gradtx.train_only(gradtx.polyak_averaging(gradtx.sgd(0.5)), "head")
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> gradtx.averaged_params(state)
    {'body': None, 'head': Array([0.5, 0.5], dtype=float32)}
    >>> gradtx.averaged_params(state, params)
    {'body': Array([1, 1], dtype=bfloat16), 'head': Array([0.5, 0.5], dtype=bfloat16)}
    """
    who, found = "gradtx.averaged_params", _averages(state)
    if len(found) != 1:
        problem = f"the state holds {len(found)} averages of the params" if found else "the state holds no average"
        where = (
            f", in {', '.join(path for path, _ in found)}: pass the one part of it"
            if found
            else (" of the params: wrap the optimizer, gradtx.exponential_averaging(tx), and pass the state of that")
        )
        raise KeyError(f"{who}: {problem}{where}.")
    average = found[0][1]
    if params is None:
        return average
    check.check_leaves(who, "params", params)
    kept, own = _with_paths(average), _with_paths(params)
    if kept.keys() != own.keys():
        check.check_alike(who, "params", params, "the average", average)
    structure: Any = jax.tree.structure(params, is_leaf=_is_none)
    full = jax.tree.unflatten(structure, [own[path] if kept[path] is None else kept[path] for path in own])
    check.check_alike(who, "params", params, "the average", full)
    return tree.cast_like(full, params)


def _is_none(node: Any) -> bool:
    return node is None


def _with_paths(values: PyTree) -> dict[str, Any]:
    """The leaves by path, None among them: nnx keeps params and state in containers of different types."""
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(values, is_leaf=_is_none)
    }


def _averages(state: PyTree, path: str = "") -> list[tuple[str, PyTree]]:
    """Every average in a state, with the path of the wrapper that keeps it."""
    found: list[tuple[str, PyTree]] = []
    for key, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_keeps_average):
        if _keeps_average(node):
            here = path + (jax.tree_util.keystr(key) or "the root")
            found += [(here, node["average"]), *_averages(node["inner"], f"{here}['inner']")]
    return found


def _keeps_average(node: Any) -> bool:
    """Whether this is the state of such a wrapper; params by these names have no integers."""
    named = isinstance(node, dict) and {"average", "inner", "count"} <= node.keys()
    return named and jnp.issubdtype(tree.dtype_of(node["count"]), jnp.integer)
