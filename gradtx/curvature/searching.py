"""The engine of all line searches: one loop that evaluates the loss along a path, and a rule that says where.

    trial = loss and slope after a step along the path
    rule(memory, trial) -> (the next memory, the next step, whether this trial is accepted)

A rule works on numbers only: steps, losses, slopes. So a search is a few lines, and the program has the loss once,
whatever the search. The engine does the rest: it keeps the trial with the lowest finite loss, counts, and stops at the
limit. A loss that is not finite counts as infinitely high, so that the rule shortens the step.

The rules of line searches: where to evaluate the loss next, from the losses and slopes so far.

With f(t) the loss after a step t, all three end where the loss has fallen enough (Armijo):

    f(t) <= f(0) + c1 t f'(0)

- `Backtracking` asks no more, and shortens the step until it holds.
- `Zoom` also asks for a flat end (strong Wolfe), |f'(t)| <= c2 |f'(0)|. It brackets a minimum, and interpolates.
- `HagerZhang` asks for f'(t) >= c2 f'(0) (Wolfe), and closes the bracket from both sides with secants.

Near a minimum f(0) - f(t) is lost in rounding long before the slopes are. There the last two take the decrease from the
slopes (the approximate Wolfe condition of Hager and Zhang), which for a parabola is Armijo's condition:

    f'(t) <= (2 c1 - 1) f'(0)    and    f(t) <= f(0) + eps |f(0)|
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.curvature import vectors

PyTree = Any
Memory = Any


class Trial(NamedTuple):
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
    last: Array
    """The last step that was tried, 0 if none was."""


class _Loop(NamedTuple):
    memory: Memory
    step: Array
    found: Found


def beginning(value: Array, slope: Array, grad: PyTree) -> Found:
    """The params themselves, as the best so far."""
    zero = jnp.zeros_like(slope)
    numbers = jnp.stack([zero, value, slope, zero])
    return Found(Trial(numbers), grad, jnp.zeros((), bool), jnp.zeros((), jnp.int32), zero)


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
        finite = jnp.isfinite(point.value) & jnp.isfinite(point.slope)
        value, slope = (jnp.where(finite, number, jnp.inf) for number in (point.value, point.slope))
        trial = Trial(jnp.stack([loop.step, value, slope, point.fall]))
        memory, step, accepted = rule(loop.memory, trial)
        accepted = accepted & finite
        better = accepted | (trial.value < found.trial.value)
        trial, grad = vectors.choose(better, (trial, point.grad), (found.trial, found.grad))
        return _Loop(memory, step, Found(trial, grad, accepted, found.evaluations + 1, loop.step))

    return jax.lax.while_loop(goes_on, one, _Loop(memory, first, start)).found


# Rules ----------------------------------------------------------------------------------------------------------------


class Backtracking(NamedTuple):
    """Shorten the step until the loss has fallen enough."""

    start: Trial
    c1: Any
    decrease: Any
    rtol: Any = 0.0
    atol: Any = 0.0

    def memory(self) -> tuple[()]:
        """It needs none."""
        return ()

    def __call__(self, memory: tuple[()], trial: Trial) -> tuple[tuple[()], Array, Array]:
        most = (1 + self.rtol) * self.start.value + self.c1 * trial.fall + self.atol
        return memory, self.decrease * trial.step, trial.value <= most


class Wolfe(NamedTuple):
    """The conditions of Wolfe, and the approximate one."""

    start: Trial
    c1: Any
    c2: Any
    eps: Any
    tol: Any

    @property
    def highest(self) -> Array:
        """The largest loss at which the approximate condition may hold."""
        return self.start.value + self.eps * jnp.abs(self.start.value)

    def enough(self, trial: Trial) -> Array:
        """Whether the loss has fallen enough."""
        return trial.value <= self.start.value + self.c1 * trial.fall + self.tol

    def nearly(self, trial: Trial) -> Array:
        """Whether the slopes show that it has, where the losses cannot."""
        return (trial.slope <= (2 * self.c1 - 1) * self.start.slope) & (trial.value <= self.highest)


class Interval(NamedTuple):
    """Two steps with a minimum between them; `high` is infinite until it is known."""

    low: Trial
    high: Trial


def unbounded(start: Trial) -> Interval:
    """From the start on."""
    return Interval(start, Trial(jnp.full_like(start.numbers, jnp.inf)))


# Zoom -----------------------------------------------------------------------------------------------------------------


class Zoom(NamedTuple):
    """Bracket a minimum, then interpolate between its ends (Nocedal and Wright 2006, algorithms 3.5 and 3.6)."""

    wolfe: Wolfe
    increase: Any
    most: Any
    precision: Any

    def memory(self) -> Interval:
        """Before the first trial. `low` will have the lowest loss so far, and may lie behind `high`."""
        return unbounded(self.wolfe.start)

    def __call__(self, between: Interval, trial: Trial) -> tuple[Interval, Array, Array]:
        low, high = between
        enough, start = self.wolfe.enough(trial), self.wolfe.start
        flat = jnp.abs(trial.slope) <= self.wolfe.c2 * jnp.abs(start.slope) + self.wolfe.tol
        as_far_as_allowed = (trial.step >= self.most) & (trial.slope < 0)
        accepted = (flat & (enough | self.wolfe.nearly(trial))) | (enough & as_far_as_allowed)
        # A trial that is too high is the new high end; else it is the new low end. If the loss then falls toward the
        # old low end, that is the high end.
        above = ~enough | (trial.value > low.value)
        turned = trial.slope * jnp.sign(high.step - low.step) >= 0
        high = vectors.choose(above, trial, vectors.choose(turned, low, high))
        low = vectors.choose(above, low, trial)
        bracketed = jnp.isfinite(high.step)
        # In a short interval a low end that is low enough will do.
        short = bracketed & (jnp.abs(high.step - low.step) <= self.precision * high.step) & self.wolfe.enough(low)
        further = jnp.minimum(self.increase * low.step, self.most)
        step = jnp.where(bracketed, between_ends(low, high), further)
        return Interval(low, high), jnp.where(short & (low.step > 0), 0, step), accepted


def between_ends(low: Trial, high: Trial) -> Array:
    """The minimum of the cubic through both ends; of the parabola without the slope at `high`; else nearer to `low`.

    Both are taken only well inside the interval.
    """
    width = high.step - low.step
    secant = (high.value - low.value) / width
    # The cubic: Nocedal and Wright, equation 3.59.
    d1 = low.slope + high.slope - 3 * secant
    d2 = jnp.sign(width) * jnp.sqrt(jnp.maximum(d1**2 - low.slope * high.slope, 0))
    cubic = 1 - (high.slope + d2 - d1) / (high.slope - low.slope + 2 * d2)
    parabola = -low.slope / (2 * (secant - low.slope))
    share = jnp.where(_inside(cubic), cubic, parabola)
    share = jnp.where(_inside(share), share, jnp.where(jnp.isfinite(high.value), 0.5, 0.1))
    return low.step + share * width


def _inside(share: Array) -> Array:
    return (share >= 0.1) & (share <= 0.9)


# Hager-Zhang ----------------------------------------------------------------------------------------------------------

_FIRST, _SECOND, _MIDDLE = 1, 2, 3  # the two secants of an iteration, and the middle of the interval


class Bracket(NamedTuple):
    """The interval [a, b], the one at the start of the iteration, and what the last trial was for."""

    now: Interval
    before: Interval
    secant: Array
    """The step of the first secant."""
    stage: Array
    closing: Array
    """Whether b lies higher than the start and still slopes down, so that it is moved toward a."""


class HagerZhang(NamedTuple):
    """Close an interval [a, b] around a minimum with two secants an iteration (Hager and Zhang 2006, CG_DESCENT).

    At a the loss is at most that of the start and falls; at b it rises.
    """

    wolfe: Wolfe
    increase: Any
    theta: Any
    gamma: Any

    def memory(self) -> Bracket:
        """Before the first trial."""
        interval, zero = unbounded(self.wolfe.start), jnp.zeros_like(self.wolfe.start.step)
        return Bracket(interval, interval, zero, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def __call__(self, bracket: Bracket, trial: Trial) -> tuple[Bracket, Array, Array]:
        flat = trial.slope >= self.wolfe.c2 * self.wolfe.start.slope
        accepted = flat & (self.wolfe.enough(trial) | self.wolfe.nearly(trial))
        # The new interval: their steps B1 to B3 and U1 to U3.
        rises, high = trial.slope >= 0, ~(trial.value <= self.wolfe.highest)
        a = vectors.choose(rises | high, bracket.now.low, trial)
        b = vectors.choose(rises | high, trial, bracket.now.high)
        bracketed = jnp.isfinite(b.step)
        closing = ~rises & (high | bracket.closing) & bracketed
        # The next trial: a second secant from the end that the first one moved, the middle if the interval is not
        # much shorter, else the first secant of a new iteration.
        second = vectors.choose(trial.step == b.step, secant(bracket.before.high, b), secant(bracket.before.low, a))
        to_second = (bracket.stage == _FIRST) & (trial.step == bracket.secant) & _between(a, second, b)
        slow = b.step - a.step > self.gamma * (bracket.before.high.step - bracket.before.low.step)
        to_middle = ~to_second & (bracket.stage != _MIDDLE) & (bracket.stage != 0) & slow
        first = secant(a, b)
        fits = _between(a, first, b)
        stage = jnp.where(to_second, _SECOND, jnp.where(to_middle | ~fits, _MIDDLE, _FIRST))
        middle = (a.step + b.step) / 2
        step = jnp.where(to_second, second, jnp.where(to_middle | ~fits, middle, first))
        new = ~to_second & ~to_middle
        interval = Interval(a, b)
        before = vectors.choose(new & ~closing, interval, bracket.before)
        after = Bracket(
            interval,
            before,
            jnp.where(closing, bracket.secant, jnp.where(stage == _FIRST, step, bracket.secant)),
            jnp.where(closing, bracket.stage, jnp.where(bracketed, stage, 0)).astype(jnp.int32),
            closing,
        )
        step = jnp.where(closing, a.step + self.theta * (b.step - a.step), step)
        return after, jnp.where(bracketed, step, self.increase * trial.step), accepted


def secant(a: Trial, b: Trial) -> Array:
    """Where the line through both slopes is 0."""
    return (a.step * b.slope - b.step * a.slope) / (b.slope - a.slope)


def _between(a: Trial, step: Array, b: Trial) -> Array:
    return (step > a.step) & (step < b.step)
