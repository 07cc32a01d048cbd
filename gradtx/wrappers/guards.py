"""Guards: what to do with a step whose gradients cannot be trusted.

- `skip_nonfinite(adam(1e-3), max_consecutive=5)`: the step is skipped and counted.
- `zero_nonfinite() >> adam(1e-3)`: the elements that are not finite become 0; the others do not change.
- `conditionally(clip(1.0), lambda count: count < 1000)`: a transform at some steps only.

All of them select with `where` or a branch, never by multiplication: 0 * nan is nan.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from gradtx import numerics, sharding, tree
from gradtx.core import fields, meeting, record, values
from gradtx.core.annotations import PositiveInt
from gradtx.core.apply import apply_updates
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import OF_PARAMS, Rule
from gradtx.core.transform import Transform
from gradtx.wrappers.placing import refuse_final, refuse_first

PyTree = Any
State = dict[str, Any]


def _all_fine(updates: PyTree, result: PyTree, old: tuple[State, PyTree], new: tuple[State, PyTree]) -> Array:
    """Whether gradients and updates are finite, and no finite value of state and params became infinite or NaN.

    All checks of one parameter (its gradient, its update, its statistics) are combined element by element and reduced
    together: one pass over memory instead of one for each tree.
    """
    places, fine = meeting.Places(updates), dict[Any, Array]()

    def ask(path: tuple[Any, ...], answer: Array) -> None:
        place = places.of(path, answer.shape, path)
        fine[place] = fine[place] & answer if place in fine else answer

    for path, leaf in jax.tree_util.tree_leaves_with_path((updates, result)):
        ask(path[1:], jnp.isfinite(leaf))
    for (path, after), before in zip(jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(old), strict=True):
        if jnp.issubdtype(after.dtype, jnp.inexact):
            ask(path, jnp.isfinite(after) | ~jnp.isfinite(before))
    return sharding.everywhere(functools.reduce(jnp.logical_and, map(jnp.all, fine.values()), jnp.ones((), bool)))


def _is_light(tx: Transform) -> bool:
    """Whether running it twice costs little: element-wise arithmetic and clips, no random draws, no loss calls."""
    if tx.facts.random or any(map(tx.facts.takes, OF_PARAMS)):
        return False
    tx = tx.expand(deep=True)
    inside = [child for _, child in record.children(tx.arguments) if isinstance(child, Transform)]
    light = tx.facts.reads == "element" or "clips" in tx.facts or bool(inside)
    return light and all(map(_is_light, inside))


def update_if_finite(
    inner: Transform, updates: PyTree, state: State, params: PyTree, extra: dict[str, Any], allowed: Array | None = None
) -> tuple[PyTree, State, Array]:
    """The inner update if all inputs and outputs are finite, else zeros and the old state; and whether they were.

    The outputs are the updates, the new state and, if params are given, the new params.

    A light transform runs twice: once to be checked, and again if the step is taken. In a compiled program the first
    run is fused into the pass that checks, and writes little to memory; the second costs as much as without a guard.
    Writing a second state and choosing between the two would cost more than the repeated arithmetic. (The two runs may
    round differently. So a value within the last digits before overflow may be finite in one and not in the other.)
    """

    def run() -> tuple[PyTree, State]:
        return inner.update(updates, state, params, **extra)

    with values.held_back() as held:
        result, new = run()
    before, after = (state, None), (new, None)
    if params is not None:
        before, after = (state, params), (new, apply_updates(params, result))
    fine = _all_fine(updates, result, before, after)
    fine = fine if allowed is None else fine & allowed
    again = bool(held) or (isinstance(fine, Tracer) and _is_light(inner))
    taken = numerics.branch(fine, run if again else lambda: (result, new), lambda: (tree.zeros_like(updates), state))
    return *taken, fine


@transform
def skip_nonfinite(inner: Transform, max_consecutive: PositiveInt) -> Rule:
    """Skips a step whose loss, gradients, updates, new statistics or new params are not finite.

        s', u = inner(g, s);   u <- u if all of g, u, s', w + u are finite else 0;   s <- s' if so else s

    Source: like optax.apply_if_finite, which checks only the gradients, and applies non-finite ones after its limit;
    this wrapper never does. A gradient whose square overflows is finite, but would make Adam's average infinite for
    ever. Such a step is skipped too.

    Args:
      inner: any transform; at a skipped step it runs too, and its result is discarded. Under jit, a transform of
        element-wise arithmetic and clips runs twice at a step that is taken, the first time to be checked: this is
        cheaper than keeping both states. One that draws random numbers, calls the loss or reads whole leaves runs once.
      max_consecutive: how many steps in a row may be skipped. After one more, `failed` is set in the state, no further
        step is made, and `minimize` ends the run with a message.

    Extra arguments: `value`, the loss, is checked if it is given (`minimize` gives it), and passed on with the others.

    State: `{"skip_nonfinite": {"skipped", "consecutive" (int32), "failed" (bool), "inner": inner's state}}`. The check
    reads gradients, params and inner's state once more: 16 bytes per parameter, beside the 28 of a step of Adam.

    Errors: TypeError for an inner transform that must get the gradients unchanged (`loss_scaling`).

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.skip_nonfinite(gradtx.adam(1e-3), max_consecutive=5)
    >>> state = tx.init(jnp.ones(2))
    >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), state)
    >>> print(updates, gradtx.find(state, "skipped"), gradtx.find(state, "mu"))
    [0. 0.] 1 [0. 0.]
    """
    refuse_first("skip_nonfinite", inner)

    def update(
        updates: PyTree, state: State, params: PyTree = None, *, value: Any = None, **extra: Any
    ) -> tuple[PyTree, State]:
        if inner.facts.takes("value"):
            extra["value"] = value
        allowed = ~state["failed"] if value is None else ~state["failed"] & jnp.isfinite(value)
        result, inner_state, fine = update_if_finite(inner, updates, state["inner"], params, extra, allowed)
        one_more = {name: numerics.saturating_increment(state[name]) for name in ("skipped", "consecutive")}
        consecutive = jnp.where(fine, 0, one_more["consecutive"])
        return result, {
            "skipped": jnp.where(fine, state["skipped"], one_more["skipped"]),
            "consecutive": consecutive,
            "failed": state["failed"] | (consecutive > numerics.within_int32(max_consecutive)),
            "inner": inner_state,
        }

    kept = {name: fields.integer(per="tree") for name in ("skipped", "consecutive")} | {"failed": fields.flag()}
    return Rule(update=update, traits=("sums", "unobserved", "nonfinite"), fields=kept)


def has_failed(state: Any) -> Array:
    """Whether a `skip_nonfinite` anywhere in a state has exceeded its limit."""
    if isinstance(state, dict) and "failed" in state and "consecutive" in state:
        return state["failed"]
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    return functools.reduce(jnp.logical_or, map(has_failed, inside), jnp.zeros((), bool))


@transform
def zero_nonfinite() -> Rule:
    """`u = g` where g is finite, 0 elsewhere.

    Source: like optax.zero_nans, which replaces NaN only.

    State: none. Errors: none.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.zero_nonfinite().update(jnp.array([1.0, jnp.nan, -jnp.inf]), {})[0]
    Array([1., 0., 0.], dtype=float32)
    """
    return per_element(lambda g: jnp.where(jnp.isfinite(g), g, 0))


@transform
def conditionally(inner: Transform, should_transform_fn: Callable[..., Any]) -> Rule:
    """Applies `inner` at the steps that a predicate selects; at the others the updates pass through.

    Source: as optax.conditionally_transform. Around a whole optimizer this is refused: at the other steps the raw
    gradients would be added to the params, uphill. Use `conditionally_mask` there.

    Args:
      inner: any transform; its state does not change at the other steps. Under vmap it runs at every step, and its
        result is discarded at the others.
      should_transform_fn: a function of the number of updates already made (int32, 0 at first) that returns True at
        the steps where `inner` runs.

    State: `{"conditionally": {"count", "inner": inner's state}}`.

    Errors: TypeError if should_transform_fn returns anything but one bool, or for an inner transform with a learning
    rate.

    >>> import gradtx
    >>> tx = gradtx.conditionally(gradtx.scale(0.5), lambda count: count < 1)
    >>> u, state = tx.update(4.0, tx.init(0.0))
    >>> float(u), float(tx.update(4.0, state)[0])
    (2.0, 4.0)
    """
    if "descends" in inner.facts:
        raise TypeError(
            f"gradtx.conditionally: inner is {inner!r}, which has a learning rate; at the other steps the gradients "
            "would pass through, and apply_updates would add them to the params, uphill. Use conditionally_mask, whose "
            "updates are zero at those steps."
        )
    return _conditional("conditionally", inner, should_transform_fn, lambda updates: updates)


@transform
def conditionally_mask(inner: Transform, should_transform_fn: Callable[..., Any]) -> Rule:
    """Applies `inner` at the steps that a predicate selects; at the others the updates are zero.

    Source: as optax.conditionally_mask. For a whole optimizer: at the other steps the params do not change.

    Args:
      inner: any transform; its state does not change at the other steps. Under vmap it runs at every step, and its
        result is discarded at the others.
      should_transform_fn: a function of the number of updates already made (int32, 0 at first) that returns True at
        the steps where `inner` runs.

    State: `{"conditionally_mask": {"count", "inner": inner's state}}`.

    Errors: TypeError if should_transform_fn returns anything but one bool, or for an inner transform whose updates
    must be applied unchanged.

    >>> import gradtx
    >>> tx = gradtx.conditionally_mask(gradtx.sgd(0.5), lambda count: count < 1)
    >>> u, state = tx.update(4.0, tx.init(0.0))
    >>> float(u), float(tx.update(4.0, state)[0])
    (-2.0, 0.0)
    """
    return _conditional("conditionally_mask", inner, should_transform_fn, tree.zeros_like, waits=True)


def _conditional(
    who: str,
    inner: Transform,
    should_transform_fn: Callable[..., Any],
    otherwise: Callable[[PyTree], PyTree],
    *,
    waits: bool = False,
) -> Rule:
    """`inner` at the selected steps, and `otherwise` at the others, where the state of `inner` does not change."""
    refuse_final(who, inner)
    refuse_first(who, inner)

    def update(
        updates: PyTree, state: State, params: PyTree = None, *, count: Array, **extra: Any
    ) -> tuple[PyTree, State]:
        with jax.numpy_dtype_promotion("standard"):
            chosen = jnp.asarray(should_transform_fn(count - 1))
        if chosen.shape != () or chosen.dtype != bool:
            raise TypeError(
                f"gradtx.{who}: should_transform_fn returned an array of shape {chosen.shape} and dtype "
                f"{chosen.dtype}; it must return one bool."
            )
        result, inner_state = numerics.branch(
            chosen,
            lambda: inner.update(updates, state["inner"], params, **extra),
            lambda: (otherwise(updates), state["inner"]),
        )
        return result, {"inner": inner_state}

    return Rule(update=update, acts="sometimes" if waits else "always", traits=("unobserved",))
