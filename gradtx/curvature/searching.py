"""The engine of all line searches: one loop that evaluates the loss along a path, and a rule that says where.

    trial = loss and slope after a step along the path
    rule(memory, trial) -> (the next memory, the next step, whether this trial is accepted)

A rule works on numbers only: steps, losses, slopes. So a search is a few lines, and the program has the loss once,
whatever the search. The engine does the rest: it keeps the trial with the lowest finite loss, counts, and stops at the
limit. A loss that is not finite counts as infinitely high, so that the rule shortens the step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.curvature import vectors

PyTree = Any
Memory = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trial:
    """A point on the path: the step to it, and the loss and its slope there. One array: one kernel for a choice."""

    numbers: Array

    @property
    def step(self) -> Array:
        """How far along the path, in lengths of the direction."""
        return self.numbers[0]

    @property
    def value(self) -> Array:
        """The loss."""
        return self.numbers[1]

    @property
    def slope(self) -> Array:
        """The derivative of the loss by the step."""
        return self.numbers[2]

    @property
    def fall(self) -> Array:
        """The change of the loss that its first gradient predicts: `<gradient, displacement>`, below 0."""
        return self.numbers[3]


class Point(NamedTuple):
    """What an evaluation on the path returns."""

    value: Array
    slope: Array
    fall: Array
    grad: PyTree
    """The gradient of the loss by the params."""


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


def beginning(value: Array, slope: Array, grad: PyTree) -> Found:
    """The params themselves, as the best so far."""
    zero = jnp.zeros_like(slope)
    numbers = jnp.stack([zero, value, slope, zero])
    return Found(Trial(numbers), grad, jnp.zeros((), bool), jnp.zeros((), jnp.int32))


def search(
    at: Callable[[Array], Point],
    start: Found,
    memory: Memory,
    first: Array,
    rule: Callable[[Memory, Trial], tuple[Memory, Array, Array]],
    limit: int,
) -> Found:
    """Search along a path: `at(step)` evaluates it, and `first` is the first step, 0 for none."""

    def goes_on(loop: _Loop) -> Array:
        moves = (loop.step > 0) & jnp.isfinite(loop.step)
        return ~loop.found.accepted & (loop.found.evaluations < limit) & moves

    def one(loop: _Loop) -> _Loop:
        found, point = loop.found, at(loop.step)
        numbers = jnp.stack([point.value, point.slope])
        finite = jnp.isfinite(numbers).all()
        numbers = jnp.where(finite, numbers, jnp.inf)
        trial = Trial(jnp.concatenate([loop.step[None], numbers, point.fall[None]]))
        memory, step, accepted = rule(loop.memory, trial)
        accepted = accepted & finite
        better = accepted | (trial.value < found.trial.value)
        trial, grad = vectors.choose(better, (trial, point.grad), (found.trial, found.grad))
        return _Loop(memory, step, Found(trial, grad, accepted, found.evaluations + 1))

    return jax.lax.while_loop(goes_on, one, _Loop(memory, first, start)).found
