"""The rules of line searches: where to evaluate the loss next, from the losses and slopes so far.

With f(t) the loss at params + t * direction, all three end where the loss has fallen enough (Armijo):

    f(t) <= f(0) + c1 t f'(0)

- `Backtracking` asks no more, and shortens the step until it holds.
- `Zoom` also asks for a flat end (strong Wolfe), |f'(t)| <= c2 |f'(0)|: it brackets a minimum, and interpolates.
- `HagerZhang` asks for f'(t) >= c2 f'(0), and closes the bracket from both sides with secants.

Near a minimum f(0) - f(t) is lost in rounding long before the slopes are. There the last two accept a step by its
slopes alone (the approximate Wolfe condition), which Armijo's condition implies for a parabola:

    (2 c1 - 1) f'(0) >= f'(t) >= c2 f'(0)    and    f(t) <= f(0) + eps |f(0)|
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from gradtx.curvature.searching import Trial
from gradtx.curvature.vectors import choose


class Interval(NamedTuple):
    """The steps between which a minimum lies: `low` has the lower loss; `high` is infinite until one is known."""

    low: Trial
    high: Trial


@dataclasses.dataclass(frozen=True)
class Backtracking:
    """Shorten the step until the loss has fallen enough."""

    start: Trial
    c1: Any
    decrease: Any
    rtol: Any = 0.0
    atol: Any = 0.0

    def __call__(self, memory: None, trial: Trial) -> tuple[None, Array, Array]:
        most = (1 + self.rtol) * self.start.value + self.c1 * trial.step * self.start.slope + self.atol
        return None, self.decrease * trial.step, trial.value <= most


@dataclasses.dataclass(frozen=True)
class Wolfe:
    """The conditions of Wolfe, and the approximate ones."""

    start: Trial
    c1: Any
    c2: Any
    eps: Any

    @property
    def highest(self) -> Array:
        """The largest loss at which the approximate condition may hold."""
        return self.start.value + self.eps * jnp.abs(self.start.value)

    def enough(self, trial: Trial) -> Array:
        """Whether the loss has fallen enough."""
        return trial.value <= self.start.value + self.c1 * trial.step * self.start.slope

    def approximate(self, trial: Trial) -> Array:
        """Whether the slopes show it where the losses cannot."""
        flat = (trial.slope <= (2 * self.c1 - 1) * self.start.slope) & (trial.slope >= self.c2 * self.start.slope)
        return flat & (trial.value <= self.highest)


@dataclasses.dataclass(frozen=True)
class Zoom:
    """Bracket a minimum, then interpolate between its ends (Nocedal and Wright 2006, algorithms 3.5 and 3.6)."""

    wolfe: Wolfe
    increase: Any
    most: Any

    def memory(self) -> Interval:
        """Before the first trial."""
        start = self.wolfe.start
        return Interval(start, Trial(jnp.full_like(start.numbers, jnp.inf)))

    def __call__(self, between: Interval, trial: Trial) -> tuple[Interval, Array, Array]:
        low, high = between
        enough, start = self.wolfe.enough(trial), self.wolfe.start
        flat = jnp.abs(trial.slope) <= self.wolfe.c2 * jnp.abs(start.slope)
        at_most = (trial.step >= self.most) & (trial.slope < 0)
        accepted = (enough & (flat | at_most)) | self.wolfe.approximate(trial)
        # The trial is the new high end if it is too high, else the new low end. If the loss falls from there toward
        # the old low end, that becomes the high end.
        above = ~enough | (trial.value > low.value)
        turned = trial.slope * jnp.sign(high.step - low.step) >= 0
        high = choose(above, trial, choose(turned, low, high))
        low = choose(above, low, trial)
        further = jnp.minimum(self.increase * low.step, self.most)
        return Interval(low, high), jnp.where(jnp.isfinite(high.step), between_ends(low, high), further), accepted


def between_ends(low: Trial, high: Trial) -> Array:
    """The minimum of the cubic through both ends; of the parabola without the slope at `high`; else nearer to `low`.

    Both are taken only well inside the interval.
    """
    width = high.step - low.step
    secant = (high.value - low.value) / width
    # The cubic: Nocedal and Wright, equation 3.59.
    d1 = low.slope + high.slope - 3 * secant
    d2 = jnp.sign(width) * jnp.sqrt(jnp.maximum(d1**2 - low.slope * high.slope, 0))
    cubic = high.step - width * (high.slope + d2 - d1) / (high.slope - low.slope + 2 * d2)
    parabola = low.step - low.slope * width / (2 * (secant - low.slope))
    share = (cubic - low.step) / width
    share = jnp.where((share >= 0.1) & (share <= 0.9), share, (parabola - low.step) / width)
    fallback = jnp.where(jnp.isfinite(high.value), 0.5, 0.1)
    share = jnp.where((share >= 0.1) & (share <= 0.9), share, fallback)
    return low.step + share * width
