"""The kind of a critical point, with the evidence for it.

At a critical point the gradient is zero, and the eigenvalues of the Hessian tell the kind: all positive, a minimum; all
negative, a maximum; both signs, a saddle, whose index is the number of negative eigenvalues. In floating-point numbers
neither a zero nor a sign is certain. So both are tested with a margin, which is part of the answer.

For few params the whole Hessian and all its eigenvalues are computed; for many, Lanczos finds the extreme ones. A
negative and a positive Rayleigh quotient prove a saddle. Nothing that Lanczos finds proves a minimum: a direction of
negative curvature could be orthogonal to all its vectors. But Lanczos starts at a random vector, and the probability
that it misses such a direction has a known bound, which is part of the evidence.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.landscape.krylov import extreme
from gradtx.landscape.operators import Hessian, Operator, hessian_of
from gradtx.training import inputs

PyTree = Any
DENSE = 512
"""Maximum number of params for which the whole Hessian is computed."""
ULPS = 16
"""The distance, in rounding errors of the params, at which a point still counts as critical."""


class Evidence(NamedTuple):
    """The evidence for a classification."""

    reason: str
    """The argument in a sentence."""
    loss: float
    gradient_norm: float
    tolerance: float
    """The largest gradient norm that counts as zero."""
    eigenvalues: np.ndarray[Any, Any]
    """The eigenvalues of the Hessian in ascending order: all, or the Ritz values of Lanczos, whose ends matter."""
    margin: float
    """The sign of an eigenvalue nearer to zero than this is uncertain."""
    negative: int
    """The number of eigenvalues certainly below zero; a lower bound if not all are known."""
    positive: int
    """The number of eigenvalues certainly above zero; a lower bound if not all are known."""
    complete: bool
    """Whether all eigenvalues are known."""
    third_derivative: float
    """The largest third derivative found along directions without curvature; 0 if none was computed."""
    risk: float
    """A bound on the probability that the random start led to a wrong kind: 0 if nothing was random, 1 if no bound is
    known."""


@dataclass(frozen=True, eq=False)
class Classification:
    """The kind of a point."""

    kind: str
    """"minimum", "maximum", "saddle", "flat", "not critical" or "undecided"."""
    index: int | None
    """The number of eigenvalues that are certainly negative; a lower bound if not all are known. None for a point that
    is not critical or undecided."""
    evidence: Evidence


def classify(
    loss: Any,
    params: PyTree,
    data: PyTree = None,
    *,
    batch_size: int | None = None,
    tolerance: float | None = None,
    steps: int | None = None,
    risk: float = 1e-3,
    key: Array | None = None,
) -> Classification:
    """The kind of the point: a minimum, a maximum, a saddle, flat, not critical, or undecided.

        "not critical"   |gradient| > tolerance
        "saddle"         eigenvalues below -margin and above margin; or flat with a third derivative that proves it
        "minimum"        all above margin            "maximum"   all below -margin
        "flat"           no two signs, and some within the margin, where curvature cannot be distinguished from zero:
                         the loss may have a minimum there, the floor of a valley, or neither
        "undecided"      the evidence is not sufficient, or not finite

    Up to 512 params all eigenvalues of the Hessian are computed. Beyond that, Lanczos is used. Two Rayleigh quotients
    of opposite sign prove a saddle. A minimum is claimed if the probability that the random start misses a negative
    eigenvalue is at most `risk`. With m products, n params, and the lowest and highest Ritz values t and T, this
    probability is at most

        P(t / 2T) + 2 P(1 / 4),   P(e) = 1.6 √(n / e) exp(-2 (m - 1) √e)

    It is small for condition numbers up to about (m / 10)²; for larger ones the answer is "undecided".

    Source: docs/derivations/missed-curvature.md derives the probability, after Kuczyński and Woźniakowski 1992, whose
    bound is somewhat sharper.

    Args:
      loss: `loss(params)`, or `loss(params, batch)`, the mean over the samples of a batch.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples; None for `loss(params)`.
      batch_size: samples per batch, 1 or more; None for all samples in one batch.
      tolerance: the largest gradient norm that counts as zero, 0 or more; None is the gradient norm a few rounding
        errors away from a critical point: 16 eps max(|params|, 1) times the largest curvature.
      steps: products with the Hessian for more than 512 params, 2 or more; None is 128.
      risk: in (0, 1): the largest probability of an error at which a minimum or maximum of more than 512 params is
        claimed.
      key: a random key for Lanczos; None is key 0.

    Errors: as `hessian`; ValueError for a tolerance, steps or risk out of range.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> found = landscape.classify(lambda w: w[0] ** 2 - w[1] ** 2, jnp.zeros(2))
    >>> found.kind, found.index, found.evidence.reason
    ('saddle', 1, '1 of 2 eigenvalues are negative and 1 positive: -2 to 2, margin 1.9e-06')
    """
    who = "gradtx.landscape.classify"
    operator = hessian_of(who, loss, params, data, batch_size)
    if tolerance is not None and not (_is_number(tolerance) and tolerance >= 0):
        raise ValueError(f"{who}: tolerance is {tolerance!r}; it must be a number, 0 or more, or None.")
    if not (_is_number(risk) and 0 < risk < 1):
        raise ValueError(f"{who}: risk is {risk!r}; it must be a probability above 0 and below 1.")
    products = 128 if steps is None else inputs.count(who, "steps", steps, least=2)
    if operator.size <= DENSE:
        return _judged(operator, _all(operator), tolerance, risk, None)
    products = min(products, operator.size)
    return _judged(operator, _extremes(operator, inputs.read_key(who, key), products), tolerance, risk, products)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


# What is measured -----------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """Value, gradient and curvature at the params."""

    loss: Array
    gradient_norm: Array
    size: Array
    eigenvalues: Array
    margin: Array
    third: Array


def _at(operator: Operator) -> tuple[Array, Array, Array]:
    """The loss, the norm of its gradient, and the norm of the params."""
    cost = cast(Hessian, operator.product).cost
    value, gradient = operator.average(jax.value_and_grad(cost))
    return value, tree.global_norm(gradient), tree.global_norm(operator.params)


@jax.jit
def _all(operator: Operator) -> _Seen:
    """All eigenvalues; the margin comes from the asymmetry of the computed Hessian, and from rounding."""
    size, dtype = operator.size, operator.dtype
    whole = jax.lax.map(operator.times_vector, jnp.eye(size, dtype=dtype), batch_size=min(size, 32))
    eigenvalues, vectors = jnp.linalg.eigh((whole + whole.T) / 2)
    largest = jnp.max(jnp.abs(eigenvalues))
    margin = jnp.linalg.norm(whole - whole.T) / 2 + 4 * size * operator.eps * largest
    flat = jnp.abs(eigenvalues) <= margin
    third = jax.lax.cond(jnp.any(flat), _third, lambda *_: jnp.zeros((), dtype), operator, vectors, flat)
    value, gradient_norm, length = _at(operator)
    return _Seen(value, gradient_norm, length, eigenvalues, margin, third)


def _third(operator: Operator, vectors: Array, flat: Array) -> Array:
    """The largest third derivative along directions without curvature: each of them, and random mixtures."""
    mixtures = jax.random.normal(jax.random.key(0), (16, operator.size), operator.dtype)
    weights = jnp.where(flat, jnp.concatenate([jnp.eye(operator.size, dtype=operator.dtype), mixtures]), 0)
    cost = cast(Hessian, operator.product).cost

    def along(weight: Array) -> Array:
        length = jnp.linalg.norm(weight)
        direction = operator.unflat(vectors @ weight / jnp.where(length == 0, 1, length))

        def slope(function: Any) -> Any:
            return lambda params: jax.jvp(function, (params,), (direction,))[1]

        def third(params: PyTree, batch: PyTree) -> Array:
            return slope(slope(slope(lambda params: cost(params, batch))))(params)

        return jnp.where(length > 0, jnp.abs(operator.average(third)), 0)

    return jnp.max(jax.lax.map(along, weights)).astype(operator.dtype)


@functools.partial(jax.jit, static_argnums=2)
def _extremes(operator: Operator, key: Array, steps: int) -> _Seen:
    """Ritz values; only those outside the margin count."""
    ritz, margin = extreme(operator, key, 0, 0, steps)[1:]
    value, gradient_norm, length = _at(operator)
    return _Seen(value, gradient_norm, length, ritz, margin, jnp.zeros_like(margin))


# What follows from it -------------------------------------------------------------------------------------------------


def _judged(operator: Operator, seen: _Seen, tolerance: float | None, risk: float, steps: int | None) -> Classification:
    """The kind, from the measured numbers; `steps` are those of Lanczos, None if all eigenvalues are known."""
    loss, slope, length, margin, third = (
        float(x) for x in (seen.loss, seen.gradient_norm, seen.size, seen.margin, seen.third)
    )
    eigenvalues = np.asarray(seen.eigenvalues, np.float64)
    rounding = ULPS * operator.eps * max(length, 1.0)
    if tolerance is None:
        tolerance = rounding * float(np.max(np.abs(eigenvalues)))
    negative, positive = int(np.sum(eigenvalues < -margin)), int(np.sum(eigenvalues > margin))
    if not np.isfinite([loss, slope, *eigenvalues]).all():
        kind, chance, reason = "undecided", 1.0, "the loss, its gradient or its Hessian is not finite here"
    elif slope > tolerance:
        kind, chance, reason = "not critical", 0.0, f"the gradient norm is {slope:.2g}, above {tolerance:.2g}"
    elif negative and positive:
        kind, chance = "saddle", 0.0
        reason = _counted(eigenvalues, margin, negative, positive, steps)
    elif steps is None:
        kind, chance = _semidefinite(operator.size, negative, positive, margin, third, rounding), 0.0
        reason = _counted(eigenvalues, margin, negative, positive, steps)
        if kind == "saddle":
            reason += f"; the third derivative is {third:.2g} along one of the rest"
    else:
        kind, chance, reason = _probably(eigenvalues, margin, operator.size, steps, risk)
    index = None if kind in ("not critical", "undecided") else negative
    if kind == "maximum":
        index = operator.size
    evidence = Evidence(
        reason, loss, slope, tolerance, eigenvalues, margin, negative, positive, steps is None, third, chance
    )
    return Classification(kind, index, evidence)


def _semidefinite(size: int, negative: int, positive: int, margin: float, third: float, rounding: float) -> str:
    """All eigenvalues are known, and no two have opposite signs."""
    if positive == size:
        return "minimum"
    if negative == size:
        return "maximum"
    # With a third derivative and no curvature the loss decreases to one side. Curvature within the margin could prevent
    # that only at distances below the rounding of the params.
    return "saddle" if third > 0 and 2 * margin <= rounding * third else "flat"


def _probably(
    eigenvalues: np.ndarray[Any, Any], margin: float, size: int, steps: int, risk: float
) -> tuple[str, float, str]:
    """The kind, its risk and the reason, from Ritz values that all have one sign."""
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    if low == high == 0:
        return "flat", 0.0, "the Hessian maps a random vector to exactly zero"
    near, far = (low, high) if high > 0 else (-high, -low)
    near -= margin
    kind = "minimum" if high > 0 else "maximum"
    chance = missed(near / far, size, steps) if near > 0 else 1.0
    seen = f"{steps} products found curvatures from {low:.3g} to {high:.3g}, margin {margin:.1e}"
    if chance > risk:
        which = "negative" if kind == "minimum" else "positive"
        return "undecided", chance, f"{seen}; the probability of a missed {which} one has no bound below {risk:g}"
    return kind, chance, f"{seen}; the probability of a missed one of the other sign is below {chance:.1e}"


def missed(ratio: float, size: int, steps: int) -> float:
    """A bound on the probability that Lanczos from a random start misses a negative eigenvalue.

    `ratio` is the lowest Ritz value over the highest. See docs/derivations/missed-curvature.md.
    """

    def chance(e: float) -> float:
        return 1.6 * math.sqrt(size / e) * math.exp(-2 * (steps - 1) * math.sqrt(e))

    return min(chance(ratio / 2) + 2 * chance(1 / 4), 1.0)


def _counted(eigenvalues: np.ndarray[Any, Any], margin: float, negative: int, positive: int, steps: int | None) -> str:
    low, high = f"{eigenvalues[0]:.3g}", f"{eigenvalues[-1]:.3g}"
    of = f"of {len(eigenvalues)} eigenvalues" if steps is None else f"of {steps} Rayleigh quotients"
    return f"{negative} {of} are negative and {positive} positive: {low} to {high}, margin {margin:.1e}"
