"""When a run ends by itself, and why: a word, and what it means."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx.curvature import vectors

PyTree = Any

REASONS = {
    "steps": "it has made all its steps",
    "gradient": "the gradient is at most the tolerance",
    "change": "neither the loss nor the gradient gets smaller, except by rounding",
    "search": "no step that was tried lowers the loss",
    "nonfinite": "the loss or its gradient is not finite",
    "unbounded": "the loss falls without limit",
    "stop": "`stop` returned True",
    "interrupted": "Ctrl-C",
    "data": "the data ended",
    "failed": "more steps in a row were not finite than skip_nonfinite allows",
}
CODE = {word: number for number, word in enumerate(REASONS)}


def sentence(code: int) -> str:
    """The word and its meaning."""
    word = list(REASONS)[code]
    return f"{word}: {REASONS[word]}"


def sentences(codes: Any) -> Any:
    """The sentence of a code; of an array of codes, an array of sentences."""
    codes = np.asarray(codes)
    return sentence(int(codes)) if codes.ndim == 0 else np.vectorize(sentence, otypes=[object])(codes)


class _Reached(NamedTuple):
    params: PyTree
    state: dict[str, Any]
    history: dict[str, np.ndarray[Any, Any]]


class Result(_Reached):
    """What `minimize` returns: a tuple of three, `params, state, history = result`, that also knows why it ended.

    Attributes:
      params: the parameters after the last update.
      state: a dict from which `minimize(..., state=state)` continues the run: the optimizer's state ("tx"),
        "model_state", the number of updates made ("step") and the bits of the key ("key"); of a run that ends by itself
        "ends" in place of the key, how near it was to its end.
      history: a dict of arrays, empty inside `jit` or `vmap`. "loss", and each entry that the loss returns with
        `has_aux`, has one value per step, including a step whose loss ended the run; in a run that ends by itself
        "loss" has the final loss as well. Each entry that `evaluate` returns has one value per evaluation;
        "evaluated_at" has the number of updates made before each evaluation.
      evaluations: how often the loss was evaluated, with or without its gradient; for least squares, the residuals.
      code: why the run ended, as a number; of a batch of runs, an array.
      reason: why the run ended, a word and what it means; of a batch of runs, an array of them.

    A pytree, so that compiled functions may return it.
    """

    evaluations: Any
    code: Any

    def __new__(cls, params: PyTree, state: Any, history: Any, evaluations: Any = None, code: Any = 0) -> "Result":
        self = super().__new__(cls, params, state, history)
        self.evaluations, self.code = evaluations, code
        return self

    def _replace(self, **changes: Any) -> "Result":  # pyright: ignore[reportIncompatibleMethodOverride] - keeps the rest
        return Result(**(self._asdict() | {"evaluations": self.evaluations, "code": self.code} | changes))

    @property
    def reason(self) -> Any:
        return sentences(self.code)


jax.tree_util.register_pytree_with_keys(
    Result,
    lambda result: (
        [(jax.tree_util.GetAttrKey(name), getattr(result, name)) for name in (*result._fields, "evaluations", "code")],
        None,
    ),
    lambda _, children: Result(*children),
)


# When it ends ---------------------------------------------------------------------------------------------------------

_STALLED = 10  # steps in a row without progress
_FAILURES = 2  # in a row; after the first, a method starts again


class Ends(NamedTuple):
    """How near the run is to its end."""

    code: Array
    """0 while it goes on, else why it ended (`reasons`)."""
    tolerance: Array
    first: Array
    """The largest element of the first gradient; -1 before it is known."""
    lowest: Array
    flattest: Array
    """The lowest loss and the smallest gradient so far."""
    stalled: Array
    """Steps since one of them improved."""


def begun(tolerance: Array, real: np.dtype[Any]) -> Ends:
    """Before the first loss is known."""
    unknown = jnp.full((), jnp.inf, real)
    zero = jnp.zeros((), jnp.int32)
    return Ends(zero, tolerance.astype(real), -jnp.ones((), real), unknown, unknown, zero)


def at_first(ends: Ends, value: Array, grad: PyTree) -> Ends:
    """At the first loss and gradient."""
    size = vectors.size(grad).astype(ends.first.dtype)
    ends = ends._replace(first=size, lowest=value.astype(size.dtype), flattest=size)
    sound = jnp.isfinite(size) & jnp.isfinite(ends.lowest)
    return ends._replace(code=jnp.where(sound, _flat(ends, size), CODE["nonfinite"]).astype(jnp.int32))


def _flat(ends: Ends, size: Array) -> Array:
    """The code of a small gradient, else 0."""
    return jnp.where(size <= ends.tolerance * jnp.minimum(ends.first, 1), CODE["gradient"], 0)


def after(ends: Ends, value: Array, grad: PyTree, failures: Array) -> Ends:
    """After a step: the loss and the gradient at the new params, and how many steps in a row found nothing."""
    value, size = value.astype(ends.first.dtype), vectors.size(grad).astype(ends.first.dtype)
    limits = jnp.finfo(value.dtype)
    better = (value < ends.lowest - limits.eps * jnp.abs(ends.lowest)) | (size < 0.9 * ends.flattest)
    stalled = jnp.where(better, 0, ends.stalled + (failures == 0).astype(jnp.int32))
    code = _flat(ends, size)
    for holds, word in (
        (stalled >= _STALLED, "change"),
        (failures >= _FAILURES, "search"),
        (value < -(limits.max**0.5), "unbounded"),
    ):
        code = jnp.where((code == 0) & holds, CODE[word], code)
    lowest, flattest = jnp.minimum(ends.lowest, value), jnp.minimum(ends.flattest, size)
    return ends._replace(code=code.astype(jnp.int32), lowest=lowest, flattest=flattest, stalled=stalled)
