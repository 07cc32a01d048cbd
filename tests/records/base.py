"""What a record is, the calls of other frameworks, and what a transcription needs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Arguments = dict[str, Any]


class Scheduled(NamedTuple):
    """An argument that is a schedule: of gradtx for gradtx, its transcription for the transcription."""

    name: str
    arguments: tuple = ()

    def __str__(self) -> str:
        return self.name.removesuffix("_schedule")

    def of(self, module: Any) -> Any:
        return getattr(module, self.name)(*self.arguments)


K = {"learning_rate": 0.001}  # of the comparisons with Keras and optax
FALLING = Scheduled("inverse_time_schedule", (0.1, 0.05))
RISING = Scheduled("linear_schedule", (0.5, 0.95, 100))
RISING_B2 = Scheduled("linear_schedule", (0.9, 0.999, 200))


class Peer(NamedTuple):
    """An outside implementation: `framework.method(**theirs)` makes the updates of `gradtx.factory(**ours)`.

    What is left out is the default on either side. Where it takes several parts, `ours` is the expression.
    """

    framework: str
    method: str
    theirs: Arguments
    ours: Any

    @property
    def id(self) -> str:
        options = [f"{name}={value}" for name, value in self.theirs.items() if name not in ("lr", "learning_rate")]
        return "-".join([self.framework.split(".")[0], self.method, *options])


def torch(method: str, theirs: Arguments, **ours: Any) -> Peer:
    """Ours has their learning rate, unless it is said."""
    return Peer("torch.optim", method, theirs, {"learning_rate": theirs["lr"]} | ours)


def keras(method: str, theirs: Arguments, **ours: Any) -> Peer:
    return Peer("keras.optimizers", method, theirs, {"learning_rate": theirs["learning_rate"]} | ours)


def optax(method: str, theirs: Arguments | None = None, **ours: Any) -> Peer:
    """Ours has the same arguments, unless others are said."""
    theirs = theirs or {}
    return Peer("optax", method, theirs, ours or theirs)


class Record:
    """A factory of gradtx, its formula written down again, its arguments, its peers."""

    def __init__(
        self,
        name: str,
        step: Callable[..., Array] | None,
        *variants: Arguments,
        peers: Sequence[Peer] = (),
        laws: Sequence[Arguments] = (),
        at_least: dict[int, float] | float | None = None,
        first_step: dict[int, int] | None = None,
        matrices: bool = False,
        tolerance: float = 1e-12,
        alike: str | None = None,
    ):
        self.name, self.step, self.peers = name, step, tuple(peers)
        self.variants = variants or ({},)
        """What to call it with: the usual form, then arguments that make another equation."""
        self.laws = tuple(laws)
        """More calls for the laws: forms of an argument that change no equation."""
        every = range(len(self.variants))
        self.at_least = dict.fromkeys(every, at_least) if isinstance(at_least, float) else at_least or {}
        """By variant: the share of the updates that the transcription's conditioning lets us compare, if not all."""
        self.first_step = first_step or {}
        """By variant: the first step to compare, if not 1."""
        self.matrices = matrices
        """Whether it refuses leaves that are no matrices."""
        self.tolerance = tolerance
        """What rounding may be of an update: more if an update is a difference of params that are much larger."""
        self.alike = alike
        """The factory with which it shares all code but a rule: laws of that code are asked of the other."""


# What a transcription needs ------------------------------------------------------------------------------------------


def memory(s: dict, name: str) -> dict:
    """What the part of this name remembers."""
    return s.setdefault(name, {})


def divide(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, with 0/0 = 0."""
    both_zero = (numerator == 0) & (denominator == 0)
    return np.where(both_zero, 0.0, numerator) / np.where(both_zero, 1.0, denominator)


def not_negative(variance: Array) -> Array:
    """The variance, or nan where rounding made a zero negative: there the method has no answer to be held against."""
    return np.where(variance < 0, np.nan, variance)


def average(s: dict, name: str, x: Array, b: float, start: float = 0.0) -> Array:
    """`v = b v + (1 - b) x`, which is carried on."""
    s[name] = b * s.get(name, start) + (1 - b) * x
    return s[name]


def given(s: dict, b: float) -> float:
    """1 - b^t, the weights that an average has given away; where b depends on the step, 1 less their product."""
    s["left"] = s.get("left", 1.0) * b
    return 1 - s["left"]


def updates_of(step: Callable[..., Array], params: Array, gradients: Sequence[Array], **numbers: Any) -> list[Array]:
    """What a transcription adds to the params, step by step; a number that is callable is asked for its value."""
    w, s, updates = params, {}, []
    for t, g in enumerate(gradients, start=1):
        now = {name: value(t - 1) if callable(value) else value for name, value in numbers.items()}
        updates.append(step(s, g, t, w, **now))
        w = w + updates[-1]
    return updates
