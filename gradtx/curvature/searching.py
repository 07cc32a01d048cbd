"""The engine of all line searches: one loop that evaluates the loss along a direction, and a rule that says where.

    trial = loss and slope at params + step * direction
    rule(memory, trial) -> (the next memory, the next step, whether this trial is accepted)

A rule works on numbers only: steps, losses, slopes. So a search is a few lines, and the program has the loss once,
whatever the search. The engine does the rest: it keeps the trial with the lowest finite loss, shortens steps to where
the loss is not finite, and stops at the limit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.curvature import vectors

PyTree = Any
Memory = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trial:
    """A point along the direction, as one array: the step to it, and the loss and its slope there."""

    numbers: Array

    @classmethod
    def of(cls, step: Array, value: Array, slope: Array) -> "Trial":
        return cls(jnp.stack([step, value, slope]))

    @property
    def step(self) -> Array:
        return self.numbers[0]

    @property
    def value(self) -> Array:
        return self.numbers[1]

    @property
    def slope(self) -> Array:
        return self.numbers[2]


Rule = Callable[[Memory, Trial], tuple[Memory, Array, Array]]
Evaluate = Callable[[Array], tuple[Array, PyTree]]


class Found(NamedTuple):
    """The result of a search."""

    trial: Trial
    grad: PyTree
    """The gradient at the trial."""
    accepted: Array
    """Whether the rule accepted it; else it is the best that was found."""
    evaluations: Array


class _Loop(NamedTuple):
    memory: Memory
    step: Array
    found: Found


def search(
    evaluate: Evaluate, direction: PyTree, start: Found, memory: Memory, first: Array, rule: Rule, limit: int
) -> Found:
    """Search along a direction from the trial `start` of step 0. `evaluate(step)` gives the loss and the gradient."""

    def goes_on(loop: _Loop) -> Array:
        moves = (loop.step > 0) & jnp.isfinite(loop.step)
        return ~loop.found.accepted & (loop.found.evaluations < limit) & moves

    def one(loop: _Loop) -> _Loop:
        value, grad = evaluate(loop.step)
        numbers = jnp.stack([value.astype(loop.step.dtype), vectors.dot(grad, direction)])
        finite = jnp.isfinite(numbers).all()
        trial = Trial(jnp.concatenate([loop.step[None], jnp.where(finite, numbers, jnp.inf)]))
        memory, step, accepted = rule(loop.memory, trial)
        found, accepted = loop.found, accepted & finite
        better = accepted | (trial.value < found.trial.value)
        kept = vectors.choose(better, (trial, grad), (found.trial, found.grad))
        return _Loop(memory, step, Found(*kept, accepted, found.evaluations + 1))

    return jax.lax.while_loop(goes_on, one, _Loop(memory, first, start)).found
