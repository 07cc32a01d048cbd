"""Line searches as transforms: they find how far to go along any direction that flows in.

    scale_by_momentum() >> scale(-1) >> scale_by_backtracking_linesearch(20)        gradient descent without a rate
    scale_by_lbfgs() >> scale(-1) >> scale_by_zoom_linesearch(20)                   L-BFGS

A search evaluates the loss itself, several times in one update, with `value_fn`. Its state keeps the loss and the
gradient at the params that it found, so that the next step need not evaluate them again: `minimize` and
`value_and_grad_from_state` take them from there.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.core import check, fields
from gradtx.core.annotations import Fraction, Interval, NonNegative, Positive, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.state import held
from gradtx.curvature import searching, vectors
from gradtx.curvature.searching import Point, Trial, beginning, search
from gradtx.curvature.vectors import box

PyTree = Any
State = dict[str, Any]

KEPT = {
    "value": fields.scalar("largest", per="tree"),
    "grad": fields.like(exact="the next step starts from it"),
    "evaluations": fields.integer(per="tree"),
    "failures": fields.integer(per="tree"),
}
"""What a method that evaluates the loss keeps: the loss and the gradient that it found, how often it has evaluated the
loss, and how many steps in a row found nothing. The loss is the largest number until it is known."""


def searched(
    who: str, rule: Callable[[Trial], Any], first: Callable[[Array], Array], limit: int, bounds: Any = None
) -> Rule:
    """The transform of a search: the rule from its start, and the first step from the last one that was found."""

    def update(
        updates: PyTree, state: State, params: PyTree, *, value: Array, grad: PyTree, value_fn: Callable[..., Array]
    ) -> tuple[PyTree, State]:
        check.refuse_shards(who, updates)
        check.check_alike(who, "grad", grad, "params", params)
        vectors.check_number(who, value)
        real = tree.precision(updates, params)
        updates, grad, state = vectors.wide((updates, vectors.gradient(grad), state), real)
        limits = None if bounds is None else box(who, bounds, params)
        direction = updates if limits is None else limits.path(params, updates)
        slope = vectors.dot(grad, direction).astype(real)
        start = beginning(vectors.number(value, real), slope, grad)

        def at(step: Array) -> Point:
            point = moved(params, step, updates)
            point, along, fall = point, updates, step * slope
            if limits is not None:
                along = limits.path(point, updates)
                point = limits.project(point)
                went = vectors.plus(vectors.wide(point, real), -1.0, params)
                fall = vectors.dot(grad, went).astype(real)
            value, grad_there = value_and_grad(value_fn, point, real)
            return Point(value, vectors.dot(grad_there, along).astype(real), fall, grad_there)

        goes = rule(start.trial)
        sound = jnp.isfinite(start.trial.value) & jnp.isfinite(slope) & (slope < 0)
        begin = jnp.where(sound, first(state["learning_rate"]), 0).astype(real)
        found = search(at, start, goes.memory(), begin, goes, limit)
        step = found.trial.step
        failed = step == 0
        made = vectors.times(step, updates)
        if limits is not None:
            made = vectors.plus(limits.project(moved(params, step, updates)), -1.0, params)
        return made, {
            "learning_rate": jnp.where(step > 0, step, jnp.where(found.last > 0, found.last, state["learning_rate"])),
            "value": found.trial.value,
            "grad": found.grad,
            "evaluations": state["evaluations"] + found.evaluations,
            "failures": jnp.where(failed, state["failures"] + 1, 0),
        }

    kept = {"learning_rate": fields.scalar(1.0, per="tree"), **KEPT}
    traits = ("descends",) if bounds is None else ("descends", "real")
    return Rule(update=update, reach="tree", traits=traits, fields=kept)


def moved(params: PyTree, step: Any, direction: PyTree) -> PyTree:
    """The params after a step, in their own dtypes, as `apply_updates` makes them."""
    return tree.cast_like(vectors.plus(params, 1.0, vectors.times(step, direction)), params)


def value_and_grad(value_fn: Callable[[PyTree], Array], params: PyTree, real: np.dtype[Any]) -> tuple[Array, PyTree]:
    """The loss and its gradient, in this precision."""
    value, grad = jax.value_and_grad(value_fn)(params)
    return vectors.number(value, real), vectors.wide(vectors.gradient(grad), real)


Guess = Literal["one", "keep"]
Flatness = Annotated[Any, Interval(0, math.inf, closed_high=True)]
"""How flat the end of a step must be; with infinity any slope will do."""


def _from_last(strategy: Guess, most: Any = None) -> Callable[[Array], Array]:
    """The first step: 1, or the last one that was found."""

    def first(last: Array) -> Array:
        step = jnp.ones_like(last) if strategy == "one" else last
        return step if most is None else jnp.minimum(step, most)

    return first


@transform
def scale_by_backtracking_linesearch(
    max_backtracking_steps: PositiveInt,
    slope_rtol: Unit = 1e-4,
    decrease_factor: Unit = 0.8,
    increase_factor: Positive = 1.5,
    max_learning_rate: Positive = 1.0,
    atol: NonNegative = 0.0,
    rtol: NonNegative = 0.0,
    *,
    bounds: Any = None,
) -> Rule:
    """Shortens the step along a direction until the loss has fallen enough (Armijo's condition).

        u = t d with the first t of t0, t0 f, t0 f² ... for which
        loss(w + t d) <= (1 + rtol) loss(w) + c1 t <gradient, d> + atol;   t0 = min(f' t_last, max_learning_rate)

    with f = decrease_factor, f' = increase_factor, c1 = slope_rtol. The direction d must descend: after `scale(-1)`.

    Source: Armijo 1966; Nocedal and Wright 2006, algorithm 3.1. As optax.scale_by_backtracking_linesearch, except that
    every trial has its gradient, so that the accepted one need not be evaluated again (optax's `store_grad=True`), and
    that a search that finds nothing makes no step instead of a small one.

    Args:
      max_backtracking_steps: the most evaluations in one search. Then the trial with the lowest loss is taken, if it is
        lower than at the start; else there is no step.
      slope_rtol: in [0, 1): the part of the decrease that the slope predicts which is asked.
      decrease_factor: in [0, 1): each trial is this part of the one before.
      increase_factor: > 0: the first trial is this multiple of the last step.
      max_learning_rate: > 0: the largest step.
      atol, rtol: >= 0: how much the loss may rise, for losses with noise.
      bounds: None, or `(lower, upper)`, each None, a number, or a tree like the params: the step goes along the path
        `min(max(w + t d, lower), upper)`.

    Update needs the params and the extra arguments `value`, `grad` and `value_fn`: the loss and its gradient at the
    params, and the loss as a function of the params. `minimize` and `sweep` provide them. Further arguments that
    value_fn names, such as a batch, go on to it. A loss that is not finite shortens the step.

    State: `{"scale_by_backtracking_linesearch": {"learning_rate": the last step, or the last trial of a search that
    found nothing, "value", "grad": the loss and the gradient at the new params, "evaluations": of all searches,
    "failures": searches in a row that found nothing}}`; 4 bytes per parameter. `metrics` shows the evaluations.

    Errors: TypeError if one of the extra arguments is missing, and for complex params with bounds; ValueError for
    a gradient or bounds that do not fit the params, for numbers out of range, and for shards inside `shard_map`.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum((w - 3.0) ** 2)
    >>> tx = gradtx.scale(-1.0) >> gradtx.scale_by_backtracking_linesearch(20)
    >>> w = jnp.zeros(2)
    >>> value, grad = jax.value_and_grad(loss)(w)
    >>> updates, state = tx.update(grad, tx.init(w), w, value=value, grad=grad, value_fn=loss)
    >>> print(loss(w + updates) < value, gradtx.metrics(state)["evaluations"])
    True 2
    """

    def rule(start: Trial) -> searching.Backtracking:
        return searching.Backtracking(start, slope_rtol, decrease_factor, rtol, atol)

    def first(last: Array) -> Array:
        return jnp.minimum(increase_factor * last, max_learning_rate)

    who = "gradtx.scale_by_backtracking_linesearch"
    return searched(who, rule, first, max_backtracking_steps, bounds)


@transform
def scale_by_zoom_linesearch(
    max_linesearch_steps: PositiveInt,
    max_learning_rate: Positive | None = None,
    tol: NonNegative = 0.0,
    increase_factor: Positive = 2.0,
    slope_rtol: Unit = 1e-4,
    curv_rtol: Flatness = 0.9,
    approx_dec_rtol: NonNegative = 1e-6,
    stepsize_precision: NonNegative = 1e-5,
    initial_guess_strategy: Guess = "keep",
    *,
    bounds: Any = None,
) -> Rule:
    """Finds a step along a direction at which the strong Wolfe conditions hold, by bracketing and interpolation.

        loss(w + t d) <= loss(w) + c1 t <gradient, d> + tol      and      |slope(t)| <= c2 |slope(0)| + tol;   u = t d

    Near a minimum, where losses differ only by rounding, the first may be replaced by that of Hager and Zhang,

        slope(t) <= (2 c1 - 1) slope(0)     and     loss(w + t d) <= loss(w) + approx |loss(w)|

    with c1 = slope_rtol, c2 = curv_rtol, approx = approx_dec_rtol. The direction d must descend: after `scale(-1)`.

    Source: Nocedal and Wright 2006, algorithms 3.5 and 3.6; Hager and Zhang 2005 for the approximate conditions. As
    optax.scale_by_zoom_linesearch; the interpolation differs in its safeguards, so that the steps do too.

    Args:
      max_linesearch_steps: the most evaluations in one search. Then the trial with the lowest loss is taken, if it is
        lower than at the start; else there is no step.
      max_learning_rate: > 0: the largest step; None is no limit.
      tol: >= 0: how much the conditions may be missed.
      increase_factor: > 0: a step that is too short is multiplied by it.
      slope_rtol: c1 in [0, 1).
      curv_rtol: c2 > c1. Smaller is a more exact search: 0.9 for quasi-Newton methods, 0.1 for conjugate gradients.
        With infinity any slope will do.
      approx_dec_rtol: >= 0: the rise of the loss that counts as rounding.
      stepsize_precision: >= 0: the search ends in an interval that is relatively shorter, if the loss has fallen
        enough.
      initial_guess_strategy: the first step: "one", for quasi-Newton methods, or "keep", the last one.
      bounds: as `scale_by_backtracking_linesearch`.

    Update's extra arguments, state, metrics and errors: as `scale_by_backtracking_linesearch`.

    State: see there; 4 bytes per parameter.

    Errors: see there.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(jnp.cosh(w))
    >>> tx = gradtx.scale(-1.0) >> gradtx.scale_by_zoom_linesearch(20, curv_rtol=0.01)
    >>> w = jnp.ones(2)
    >>> value, grad = jax.value_and_grad(loss)(w)
    >>> updates, state = tx.update(grad, tx.init(w), w, value=value, grad=grad, value_fn=loss)
    >>> print(jnp.abs(jax.grad(loss)(w + updates)).max() <= 0.01 * jnp.abs(grad).max())
    True
    """

    def rule(start: Trial) -> searching.Zoom:
        most = jnp.inf if max_learning_rate is None else max_learning_rate
        wolfe = searching.Wolfe(start, slope_rtol, curv_rtol, approx_dec_rtol, tol)
        return searching.Zoom(wolfe, increase_factor, most, stepsize_precision)

    first = _from_last(initial_guess_strategy, max_learning_rate)
    return searched("gradtx.scale_by_zoom_linesearch", rule, first, max_linesearch_steps, bounds)


@transform
def scale_by_hager_zhang_linesearch(
    max_linesearch_steps: PositiveInt = 30,
    increase_factor: Positive = 5.0,
    slope_rtol: Unit = 0.1,
    curv_rtol: Fraction = 0.9,
    approx_dec_rtol: NonNegative = 1e-6,
    theta: Unit = 0.5,
    gamma: Unit = 0.66,
    initial_guess_strategy: Guess = "keep",
    *,
    bounds: Any = None,
) -> Rule:
    """Finds a step along a direction at which Wolfe's conditions hold, exactly or approximately, with secants.

        loss(w + t d) <= loss(w) + c1 t <gradient, d>      and      slope(t) >= c2 slope(0);   u = t d

    or the approximate condition of `scale_by_zoom_linesearch` in place of the first. An interval around a minimum is
    made shorter with two secants of the slopes an iteration, which is accurate to the last digits.

    Source: Hager and Zhang 2005 (SIAM J. Optim. 16), the line search of CG_DESCENT, with its constants δ = slope_rtol,
    σ = curv_rtol, ε = approx_dec_rtol, θ, γ and ρ = increase_factor. While bracketing, the last step that was low
    enough is kept as the left end, where the paper goes back to 0.

    Args:
      max_linesearch_steps, approx_dec_rtol, initial_guess_strategy, bounds: as `scale_by_zoom_linesearch`.
      increase_factor: ρ > 0: a step that is too short is multiplied by it.
      slope_rtol: δ in [0, 1/2).
      curv_rtol: σ in [δ, 1].
      theta: θ in [0, 1): where an interval is divided whose right end is too high but slopes down.
      gamma: γ in [0, 1): if two secants leave more than this part of the interval, it is halved.

    Update's extra arguments, state, metrics and errors: as `scale_by_backtracking_linesearch`.

    State: see there; 4 bytes per parameter.

    Errors: see there.

    >>> import gradtx, jax.numpy as jnp
    >>> def loss(w):
    ...     return jnp.sum((w**2 - 2.0) ** 2)
    >>> tx = gradtx.scale_by_lbfgs() >> gradtx.scale(-1.0) >> gradtx.scale_by_hager_zhang_linesearch()
    >>> result = gradtx.minimize(loss, jnp.ones(3), tx)
    >>> print(result.params)
    [1.4142135 1.4142135 1.4142135]
    """

    def rule(start: Trial) -> searching.HagerZhang:
        wolfe = searching.Wolfe(start, slope_rtol, curv_rtol, approx_dec_rtol, 0.0)
        return searching.HagerZhang(wolfe, increase_factor, theta, gamma)

    first = _from_last(initial_guess_strategy)
    return searched("gradtx.scale_by_hager_zhang_linesearch", rule, first, max_linesearch_steps, bounds)


def value_and_grad_from_state(value_fn: Callable[..., Array]) -> Callable[..., tuple[Array, PyTree]]:
    """A loss and its gradient, from the state of a line search if they are there, else evaluated.

    Args:
      value_fn: the loss, as for `jax.value_and_grad`.

    Returns:
      `value_and_grad(params, *args, state, **kwargs)`. The state must belong to these params, and the data must be the
      same as in the search: with mini-batches use `jax.value_and_grad`.

    Errors: ValueError for a state without a line search.

    >>> import gradtx, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum((w - 3.0) ** 2)
    >>> value_and_grad = gradtx.value_and_grad_from_state(loss)
    >>> tx, w = gradtx.lbfgs(), jnp.zeros(2)
    >>> state = tx.init(w)
    >>> for _ in range(5):
    ...     value, grad = value_and_grad(w, state=state)
    ...     updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=loss)
    ...     w = gradtx.apply_updates(w, updates)
    >>> print(w)
    [3. 3.]
    """

    def value_and_grad(params: PyTree, *args: Any, state: Any, **kwargs: Any) -> tuple[Array, PyTree]:
        value, grad = (_entry(state)[name] for name in ("value", "grad"))

        def evaluated() -> tuple[Array, PyTree]:
            new, slope = jax.value_and_grad(value_fn)(params, *args, **kwargs)
            return vectors.number(new, value.dtype), tree.cast_like(slope, grad)

        def kept() -> tuple[Array, PyTree]:
            return value, vectors.gradient(grad)

        return jax.lax.cond(value < jnp.finfo(value.dtype).max, kept, evaluated)

    return value_and_grad


def _entry(state: Any) -> State:
    """The entry of the method that evaluates the loss."""
    found = [entry for entry in held(state).values() if isinstance(entry, dict) and entry.keys() >= KEPT.keys()]
    if len(found) != 1:
        raise ValueError(
            f"gradtx.value_and_grad_from_state: the state has {', '.join(held(state)) or 'no entries'}; needed: one "
            "line search, or another method that keeps the loss and its gradient. Use jax.value_and_grad."
        )
    return found[0]
