"""Averages of the parameters, kept during training and used for evaluation.

    average <- average + c (w - average),   where w are the params after the update

The iterates of stochastic gradient descent wander around a minimum; their average is closer to it. The averages differ
only in c:

- c = (1 - b) / (1 - b^t): an exponentially weighted average, unbiased from the first step: `exponential_averaging`.
- c = 1 / t: the mean of all iterates: `polyak_averaging`.
- c = 1 / (n + 1) at every k-th update, after n averaged ones: `stochastic_weight_averaging`.

The updates pass through unchanged. Put these around the whole optimizer, so that they see the updates that are applied.
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
    return tree.map(_towards, average, values, c=share)


def _towards(a: Array, x: Array, c: Array) -> Array:
    return jnp.where(c > 0, a + c * (x - a), a)


def _averaging(
    who: str,
    inner: Transform,
    share: Callable[[State, Array], Any],
    **kept: Field,
) -> Rule:
    """The params averaged around `inner`: `share(state, count)` gives c, and the new values of its own fields."""
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
    start: NonNegativeInt = 0,
) -> Rule:
    """Keeps an exponentially weighted average of the params after each update.

        average <- average + c (w - average);   c = (1 - b) / (1 - b^t), or 1 - b with debias=False     (b = decay)
        before update `start`: c = 1, then t counts from it, itself the first

    Source: Kingma and Ba 2014 (arXiv 1412.6980), section 7.2, with bias correction; with a decay that varies, b^t is
    the product of the decays so far. debias=False starts from the initial params instead, which keep the weight b^t.
    With from_first=True it starts from the params after the first update (c = 1 there), which keep the weight b^(t-1),
    as in PyTorch's `AveragedModel` with `get_ema_multi_avg_fn` and Keras's `use_ema`. An average of the tail of a run
    has a start: results 45 and 46 of track 3 of github.com/KellerJordan/modded-nanogpt have 2400 of 2690 updates, decay
    1 - 1/150 and debias=False, and are evaluated at 0.4 w + 0.6 average.

    Args:
      inner: a whole optimizer; the average ignores transforms that come after it.
      decay: b in [0, 1), a number or a schedule. The average spans about 1 / (1 - b) iterates.
      debias: give the initial params no weight.
      from_first: with debias=False, start from the params after the first update: start=1.
      start: the update whose params count first; before it the average is the params. 0 counts the initial params, if
        debias=False.

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
            "gradtx.exponential_averaging: from_first is True; it must be False with debias=True, which already gives "
            "the initial params no weight. Pass debias=False."
        )

    first = numerics.within_int32(max(start, 1) if from_first else start)

    def share(state: State, count: Array) -> tuple[Array, State]:
        if not debias:
            return jnp.where(count <= first, 1.0, 1 - decay), {}
        before = jax.tree.map(lambda number: number.astype(decay.dtype), state["weights"])
        after = weights_after(before, decay)
        weights = jax.tree.map(lambda old, new: jnp.where(count < first, old, new), before, after)
        return jnp.where(count < first, 1.0, (1 - decay) / total(after)), {"weights": weights}

    kept = {"weights": fields.weights()} if debias else {}
    return _averaging("exponential_averaging", inner, share, **kept)


@transform
def polyak_averaging(inner: Transform) -> Rule:
    """Keeps the mean of the params after each update.

        average <- average + (w - average) / t

    Source: Polyak and Juditsky 1992 ("Acceleration of stochastic approximation by averaging"). Departure: theirs is
    the mean of the params before the updates, w_0 to w_{t-1}; here it is that of the params after them, w_1 to w_t.

    Args:
      inner: a whole optimizer; the average ignores transforms that come after it.

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
    """Keeps the mean of the params after update `start` and after every `every`-th update from then on.

        at t = start + n every, n = 0, 1, ...:   average <- average + (w - average) / (n + 1)

    Source: Izmailov et al. 2018 (arXiv 1803.05407), algorithm 1. `start` is the end of their pretraining, whose result
    counts as one iterate, and `every` is their cycle length. `inner` has the learning rate, cyclical, or constant and
    high. Statistics of batch normalization are not averaged: compute them again for the averaged params.

    Args:
      inner: a whole optimizer; the average ignores transforms that come after it.
      start: the update whose params count first; 0 counts the initial params.
      every: the number of updates from one averaged iterate to the next.

    State: `inner`, its state; `average`, like the params in at least float32: 4 bytes per parameter, equal to the
    initial params before update `start`; `count`, a scalar. It needs the params. `averaged_params(state)` reads the
    average.

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
    """The average of the params in a state, however deeply nested, for evaluation.

    Args:
      state: the state of an optimizer that contains one of the averaging wrappers or `schedule_free`; or anything that
        contains such a state: optax's tuples, a TrainState, the state of a run of `minimize`.
      params: the current params. With them, the result has their dtypes, and leaves that a mask or a partition around
        the wrapper excludes are taken from them. Without them, such leaves are None, and the dtypes are those stored.

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
    """Every average in a state, with the path of its wrapper."""
    found: list[tuple[str, PyTree]] = []
    for key, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_keeps_average):
        if _keeps_average(node):
            here = path + (jax.tree_util.keystr(key) or "the root")
            found += [(here, node["average"]), *_averages(node["inner"], f"{here}['inner']")]
    return found


def _keeps_average(node: Any) -> bool:
    """Whether this is the state of an averaging wrapper; params with these names would have no integers."""
    named = isinstance(node, dict) and {"average", "inner", "count"} <= node.keys()
    return named and jnp.issubdtype(tree.dtype_of(node["count"]), jnp.integer)
