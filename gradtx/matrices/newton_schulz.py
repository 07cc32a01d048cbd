"""The Newton-Schulz iteration: the nearest orthogonal matrix by products alone.

    X <- a X + (b A + c A²) X,   A = X Xᵀ

It moves each singular value s of X to a s + b s³ + c s⁵ and keeps the singular vectors. A few steps with well chosen
(a, b, c) bring all singular values close to 1. Muon, NorMuon, Scion and Dion2 differ in their coefficients.
"""

import functools
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gradtx.numerics import divide, root

Triple = tuple[float, float, float]

KELLER_JORDAN: Triple = (3.4445, -4.7750, 2.0315)
YOU: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
CANS: tuple[Triple, ...] = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)
CUBIC: Triple = (1.5, -0.5, 0.0)


@functools.lru_cache(maxsize=64)
def polar_express(
    steps: int = 5, lower: float = 1e-3, cushion: float = 0.02, safety: float = 1.02, *, safety_last: bool = False
) -> tuple[Triple, ...]:
    """The coefficients of the Polar Express: in each step the best polynomial for the singular values that may be left.

        p minimizes max |1 - p(s)| for s in [max(l, cushion u), u];   then l <- p(l), u <- 2 - p(l)

    Source: Amsel, Persson, Musco, Gower 2025 (arXiv 2505.16932), algorithm 1 and section 4.4. With the defaults these
    are the coefficients of modded-nanogpt and Dion; `polar_express(8, cushion=0.02407327424182761, safety=1.01,
    safety_last=True)` gives those of the paper.

    Args:
      steps: the number of steps, at least 1.
      lower: l in (0, 1): the smallest singular value, where the largest is 1, that should come close to 1.
      cushion: in [0, 1): the smallest ratio of the bounds for which p is optimized; p is then scaled to stay centered.
      safety: at least 1: p(s / safety) replaces p(s) in all steps but the last, against rounding in bfloat16.
      safety_last: change the coefficients for `safety` at the end, so that the bounds are those of the exact p; else
        the bounds follow what is used.

    Returns: a tuple of triples (a, b, c), for `ns_coeffs`.

    Errors: ValueError for an argument outside its range.

    >>> import gradtx
    >>> [[round(c, 4) for c in triple] for triple in gradtx.polar_express(2)]
    [[8.1566, -22.4833, 15.8788], [4.1238, -2.9808, 0.5521]]
    """
    for name, value, allowed in (
        ("steps", steps, steps == int(steps) >= 1),
        ("lower", lower, 0 < lower < 1),
        ("cushion", cushion, 0 <= cushion < 1),
        ("safety", safety, safety >= 1),
    ):
        if not allowed:
            ranges = {
                "steps": "an int, at least 1",
                "lower": "in (0, 1)",
                "cushion": "in [0, 1)",
                "safety": "at least 1",
            }
            raise ValueError(f"gradtx.polar_express: {name} is {value!r}; it must be {ranges[name]}.")
    low, high, triples = lower, 1.0, list[Triple]()
    for step in range(int(steps)):
        p = _best_quintic(max(low, cushion * high), high)
        if cushion * high > low:
            p = p * 2 / (_at(p, low) + _at(p, high))
        smaller = p / safety ** np.array([1, 3, 5]) if step < steps - 1 else p
        tracked = p if safety_last else smaller
        low = float(_at(tracked, low))
        high = 2 - low
        triples.append(cast(Triple, tuple(smaller.tolist())))
    return tuple(triples)


def _at(p: Any, s: Any) -> Any:
    """A s + b s³ + c s⁵."""
    return p[0] * s + p[1] * s**3 + p[2] * s**5


def _best_quintic(low: float, high: float) -> Any:
    """The odd quintic that is closest to 1 on [low, high], by the algorithm of Remez."""
    if low > 0.999 * high:  # Taylor's polynomial at the center
        return np.array([15, -10, 3]) / 8 / ((low + high) / 2) ** np.array([1, 3, 5])
    inner, before, p = low + (high - low) * np.array([0.25, 0.75]), np.zeros(2), np.zeros(3)
    for _ in range(100):
        points = np.array([low, *inner, high])
        system = np.stack([points, points**3, points**5, np.array([1, -1, 1, -1])], 1)
        p = np.linalg.solve(system, np.ones(4))[:3]
        if np.abs(inner - before).max() <= 1e-15 * high:
            break
        before, half = inner, 0.3 * p[1] / p[2]  # the extrema: a + 3 b s² + 5 c s⁴ = 0
        inner = np.sqrt(-half + np.array([-1, 1]) * np.sqrt(max(half**2 - 0.2 * p[0] / p[2], 0.0)))
    return p


PRESETS: dict[str, Any] = {
    "keller_jordan": KELLER_JORDAN,
    "standard": KELLER_JORDAN,
    "muon": KELLER_JORDAN,
    "you": YOU,
    "dion": YOU,
    "quintic": YOU,
    "cans": CANS,
    "cubic": CUBIC,
}
"""Coefficients by the names that libraries have for them; and "polar_express"."""


def coefficients(who: str, ns_coeffs: Any, ns_steps: int | None) -> tuple[Triple, ...]:
    """A triple for each step: a name, a triple, or several; the last one is repeated if there are too few."""
    if isinstance(ns_coeffs, str):
        if ns_coeffs not in (*PRESETS, "polar_express"):
            names = ", ".join(map(repr, (*PRESETS, "polar_express")))
            raise ValueError(f"{who}: ns_coeffs is {ns_coeffs!r}; allowed: {names}, a triple, or a tuple of triples.")
        ns_coeffs = PRESETS[ns_coeffs] if ns_coeffs in PRESETS else polar_express(ns_steps or 5)
    rows = np.asarray(ns_coeffs)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows) or rows.dtype.kind not in "iuf":
        raise ValueError(
            f"{who}: ns_coeffs is {ns_coeffs!r}; it must be a name, a triple of numbers, or a tuple of triples."
        )
    if ns_steps is not None and ns_steps < 1:
        raise ValueError(f"{who}: ns_steps is {ns_steps}; it must be at least 1, or None for a step for each triple.")
    steps = ns_steps if ns_steps is not None else 5 if len(rows) == 1 else len(rows)
    if steps < len(rows):
        raise ValueError(
            f"{who}: ns_coeffs has {len(rows)} triples, and ns_steps is {steps}; it must be at least {len(rows)}, or "
            "None to run all of them. Or cut the list."
        )
    triples = [cast(Triple, tuple(map(float, row))) for row in rows.tolist()]
    return (*triples, *(steps - len(triples)) * triples[-1:])


def gram(x: Array) -> Array:
    """The smaller one of X Xᵀ and Xᵀ X."""
    return x.T @ x if x.shape[0] > x.shape[1] else x @ x.T


def iterate(x: Array, triples: tuple[Triple, ...]) -> Array:
    """One Newton-Schulz step for each triple.

    Three steps at a time on the Gram matrix A where X is long: they need two products with X instead of six. Rounding
    moves the small eigenvalues of A, which each step multiplies by up to a², so that more than three would harm them.
    """
    if jnp.finfo(x.dtype).bits < 32:
        return _iterate_low(x, triples)
    tall = x.shape[0] > x.shape[1]
    at_once = 3 if max(x.shape) > 1.5 * min(x.shape) else 1
    for start in range(0, len(triples), at_once):
        a, some = gram(x), triples[start : start + at_once]
        p = one = jnp.eye(*a.shape, dtype=a.dtype)
        for index, (c1, c3, c5) in enumerate(some):
            q = c3 * a + c5 * (a @ a)  # the step is X <- (c1 I + q) X
            p = c1 * p + (q if p is one else q @ p)
            if index + 1 < len(some):
                half = c1 * a + q @ a
                a = c1 * half + half @ q
        x = x @ p if tall else p @ x
    return x


def _iterate_low(x: Array, triples: tuple[Triple, ...]) -> Array:
    """The steps in bfloat16 as PyTorch makes them: sums in float32, and three roundings a step.

    Rounding products before they are added is three times as far from float64, an exact A beside a rounded A² twice.
    """
    tall, bits = x.shape[0] > x.shape[1], jnp.finfo(x.dtype)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def rounded(y: Array) -> Array:  # compilers leave out casts down and up again, but not this
        return lax.reduce_precision(y, bits.nexp, bits.nmant).astype(x.dtype)

    for c1, c3, c5 in triples:
        a = rounded(product(x.T, x) if tall else product(x, x.T))
        q = rounded(c3 * a.astype(jnp.float32) + c5 * product(a, a))
        x = rounded(c1 * x.astype(jnp.float32) + (product(x, q) if tall else product(q, x)))
    return x


def preconditioned(x: Array, preconditioning: str, eps: Any) -> Array:
    """X divided so that its singular values are at most 1 ; "frobenius" is not done here."""
    unit = jnp.maximum(jnp.max(jnp.abs(x), initial=0), 1)  # so that no square overflows
    x = x / unit
    if preconditioning == "spectral":
        return x / (jnp.linalg.norm(x, ord=2) + eps / unit)
    a, eps = gram(x), eps / unit / unit
    if preconditioning == "schatten":
        return divide(x, root(jnp.maximum(root(jnp.sum(a * a)), eps)))
    size = root(jnp.maximum(jnp.sum(jnp.abs(a), axis=1), eps))
    return divide(x, size[None] if x.shape[0] > x.shape[1] else size[:, None])
