"""Line searches as transforms: they find how far to go along any direction that flows in.

    scale_by_momentum() >> scale(-1) >> scale_by_backtracking_linesearch(20)        gradient descent without a rate
    scale_by_lbfgs() >> scale(-1) >> scale_by_zoom_linesearch(20)                   L-BFGS

A search evaluates the loss itself, several times in one update, with `value_fn`. Its state keeps the loss and the
gradient at the params that it found, so that the next step need not evaluate them again.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core import fields
from gradtx.core.annotations import NonNegative, Positive, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.curvature import rules, vectors
from gradtx.curvature.searching import Found, Trial, search

PyTree = Any
State = dict[str, Any]


def searched(rule: Callable[[Trial], tuple[Any, Any]], first: Callable[[Array], Array], limit: int) -> Rule:
    """The transform of a search. `rule(start)` is the rule and its memory, `first(last step)` the first step."""

    def update(
        updates: PyTree, state: State, params: PyTree, *, value: Array, grad: PyTree, value_fn: Callable[..., Array]
    ) -> tuple[PyTree, State]:
        real = tree.precision(updates, params)
        grad = vectors.gradient(grad)
        zero = jnp.zeros((), real)
        start = Trial.of(zero, vectors.number(value, real), vectors.dot(grad, updates).astype(real))
        sound = jnp.isfinite(start.value) & (start.slope < 0)
        goes, memory = rule(start)
        found = search(
            lambda step: value_and_grad(value_fn, moved(params, step, updates)),
            updates,
            Found(start, grad, jnp.zeros((), bool), jnp.zeros((), jnp.int32)),
            memory,
            jnp.where(sound, first(state["learning_rate"]), zero),
            goes,
            limit,
        )
        step = found.trial.step
        failed = step == 0
        kept = {
            "learning_rate": jnp.where(failed, state["learning_rate"], step),
            "value": found.trial.value,
            "grad": found.grad,
            "evaluations": state["evaluations"] + found.evaluations,
            "failures": jnp.where(failed, state["failures"] + 1, 0),
        }
        return vectors.times(step, updates), kept

    return Rule(
        update=update,
        reach="tree",
        fields={
            "learning_rate": fields.scalar(1.0, per="tree"),
            "value": fields.scalar(jnp.inf, per="tree"),
            "grad": fields.like(exact="the next step starts from it"),
            "evaluations": fields.integer(per="tree"),
            "failures": fields.integer(per="tree"),
        },
    )


def moved(params: PyTree, step: Array, direction: PyTree) -> PyTree:
    """The params after this step, in their own dtypes, as `apply_updates` makes them."""
    return tree.cast_like(vectors.plus(params, 1.0, tree.cast_like(vectors.times(step, direction), params)), params)


def value_and_grad(value_fn: Callable[[PyTree], Array], params: PyTree) -> tuple[Array, PyTree]:
    """The loss and its gradient."""
    value, grad = jax.value_and_grad(value_fn)(params)
    return value, vectors.gradient(grad)


@transform
def scale_by_zoom_linesearch(
    max_linesearch_steps: PositiveInt,
    max_learning_rate: Positive | None = None,
    increase_factor: Positive = 2.0,
    slope_rtol: Positive = 1e-4,
    curv_rtol: Positive = 0.9,
    approx_dec_rtol: NonNegative = 1e-6,
    initial_guess_strategy: Literal["one", "keep"] = "keep",
) -> Rule:
    """..."""

    def rule(start: Trial) -> tuple[Any, Any]:
        most = jnp.inf if max_learning_rate is None else max_learning_rate
        zoom = rules.Zoom(rules.Wolfe(start, slope_rtol, curv_rtol, approx_dec_rtol), increase_factor, most)
        return zoom, zoom.memory()

    def first(last: Array) -> Array:
        step = jnp.ones_like(last) if initial_guess_strategy == "one" else last
        return step if max_learning_rate is None else jnp.minimum(step, max_learning_rate)

    return searched(rule, first, max_linesearch_steps)


@transform
def scale_by_backtracking_linesearch(
    max_backtracking_steps: PositiveInt,
    slope_rtol: Positive = 1e-4,
    decrease_factor: Positive = 0.8,
    increase_factor: Positive = 1.5,
    max_learning_rate: Positive = 1.0,
    atol: NonNegative = 0.0,
    rtol: NonNegative = 0.0,
) -> Rule:
    """..."""

    def rule(start: Trial) -> tuple[Any, Any]:
        return rules.Backtracking(start, slope_rtol, decrease_factor, rtol, atol), None

    def first(last: Array) -> Array:
        return jnp.minimum(increase_factor * last, max_learning_rate)

    return searched(rule, first, max_backtracking_steps)
