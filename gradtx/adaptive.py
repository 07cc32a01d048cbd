"""Scalings: a step size for each parameter, from a measure of its past gradients.

Every scaling divides by such a measure, and is one line of a table:

- Adagrad: the root of the sum of squared gradients, which only grows.
- RMSProp, Adam: the root of their exponentially weighted average, which can fall again.
- Adadelta: the same, times the root of the average of its own past squared steps, so that the units cancel.
- AdaMax: their decayed maximum.

A scaling measures the gradient `observed`, which in `direction + scaling` is the gradient that came in, and divides
what flows through.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from gradtx import averages, numerics, tree
from gradtx.core import storage
from gradtx.core.annotations import Dtype, NonNegative, Unit
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform, transform
from gradtx.momentum import scale_by_momentum

PyTree = Any
State = dict[str, Any]


def _divide_by_root(updates: PyTree, squares: PyTree, eps: Any, eps_in_sqrt: bool) -> PyTree:
    """`u / sqrt(v + eps)`, or `u / (sqrt(v) + eps)`; 0 / 0 = 0, which cannot be where eps is known and not 0."""
    if eps_in_sqrt:
        return tree.map(lambda u, v, eps: numerics.divide(u, numerics.root(v + eps)), updates, squares, eps=eps)
    if isinstance(eps, np.floating) and eps >= np.finfo(np.float32).tiny:
        return tree.map(lambda u, v, eps: u / (numerics.root(v) + eps), updates, squares, eps=eps)
    return tree.map(lambda u, v, eps: numerics.divide(u, numerics.root(v) + eps), updates, squares, eps=eps)


@transform
def scale_by_adagrad(
    initial_accumulator_value: NonNegative = 0.1,
    eps: NonNegative = 1e-7,
    *,
    eps_in_sqrt: bool = True,
    state_dtype: Dtype | None = None,
) -> Rule:
    """Divides by the root of the sum of all squared gradients.

        s <- s + g²;   u = g / sqrt(s + eps), or g / (sqrt(s) + eps) with eps_in_sqrt=False;   0 / 0 = 0

    Source: Duchi, Hazan, Singer 2011 (JMLR 12), the diagonal case; the paper's δ is eps outside the root. optax (as
    `scale_by_rss`) and Keras start at 0.1 with eps 1e-7 inside, PyTorch at 0 with 1e-10 outside. Complex leaves:
    |g|².

    Args:
      initial_accumulator_value: s before the first update, >= 0. [gradient²]
      eps: >= 0, [gradient²] inside the root, [gradient] outside.
      eps_in_sqrt: where eps is added.
      state_dtype: None for at least float32; jnp.bfloat16 stores the statistics in half the bytes, rounded
        stochastically (see the page on low precision).

    State: `sum_of_squares`, real, like the params in at least float32: 4 bytes per parameter; `count`, a scalar.

    Errors: ValueError for a negative argument.

    >>> import gradtx
    >>> tx = gradtx.scale_by_adagrad(0.0, 0.0)
    >>> state = tx.init(0.0)
    >>> for g in [-2.0, -1.5, -1.25, -1.0]:
    ...     u, state = tx.update(g, state)
    >>> gradtx.find(state, "sum_of_squares")
    Array(8.8125, dtype=float32)
    """

    def init(params: PyTree) -> State:
        return {"sum_of_squares": tree.full_like(params, initial_accumulator_value, real=True)}

    def update(updates: PyTree, state: State, *, observed: PyTree) -> tuple[PyTree, State]:
        # The maximum changes no value; it keeps XLA from fusing product and sum in some programs and not in others.
        total = tree.map(lambda s, g: s + jnp.maximum(numerics.abs_squared(g), 0), state["sum_of_squares"], observed)
        return _divide_by_root(updates, total, eps, eps_in_sqrt), {"sum_of_squares": total}

    statistics = ("sum_of_squares",)
    return Rule(init=init, update=update, nonnegative=statistics, statistics=statistics, state_dtype=state_dtype)


@transform
def scale_by_rms(
    decay: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    debias: bool = True,
    centered: bool = False,
    eps_in_sqrt: bool = False,
    eps_hat: bool = False,
    eps_root: NonNegative | None = None,
    initial_scale: NonNegative = 0.0,
    maximum: Literal["raw", "corrected"] | None = None,
    state_dtype: Dtype | None = None,
) -> Rule:
    """Divides by the root of the exponentially weighted average of squared gradients.

        v <- b v + (1 - b) g²;   v̂ = v / (1 - b^t);   u = g / (sqrt(v̂) + eps);   0 / 0 = 0                 (b = decay)

    Source: Hinton 2012 (lecture 6e; RMSProp: debias=False); Kingma and Ba 2014 (arXiv 1412.6980), algorithm 1, for
    the correction; Graves 2013 (arXiv 1308.0850), section 4.2, for `centered`; Reddi, Kale, Kumar 2018 (arXiv
    1904.09237), algorithm 2, for the maximum, there of the raw v. optax's function of this name has decay 0.9, no
    debiasing and eps inside the root; these defaults make Adam. Complex leaves: |g|².

    Args:
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [gradient], or [gradient²] with eps_in_sqrt.
      debias: use v̂; else v.
      centered: take off the square of the average gradient: v̂ - |m̂|², an estimate of the variance.
      eps_in_sqrt: g / sqrt(v̂ + eps).
      eps_hat: Kingma's eps-hat, as Keras has it: g sqrt(1 - b^t) / (sqrt(v) + eps). Needs debias.
      eps_root: >= 0, added inside the root besides eps outside, as optax's Adam has it. [gradient²]
      initial_scale: v before the first update, >= 0. [gradient²]
      maximum: AMSGrad: divide by the largest v ("raw", as PyTorch and Keras) or v̂ ("corrected", as optax) so far.
      state_dtype: None for at least float32; jnp.bfloat16 stores the statistics in half the bytes, rounded
        stochastically (see the page on low precision).

    State: `nu`, real, like the params in at least float32: 4 bytes per parameter, 4 more each for `mu` (centered) and
    `nu_max` (maximum); `weights` (debiased) and `count`, scalars.

    Errors: ValueError for a decay outside [0, 1), a negative eps, eps_hat without debias or together with eps_in_sqrt
    or eps_root, or with maximum='corrected', centered together with maximum or eps_hat, state_dtype='bfloat16'
    together with centered or maximum, which rounding noise would dominate.

    >>> import gradtx
    >>> tx = gradtx.scale_by_rms(0.9, 0.0)
    >>> tx.update(-3.0, tx.init(0.0))[0]
    Array(-1., dtype=float32)
    """
    _refuse(eps_hat and not debias, "eps_hat needs debias=True")
    _refuse(eps_hat and (eps_in_sqrt or eps_root is not None), "eps_hat excludes eps_in_sqrt and eps_root")
    _refuse(eps_in_sqrt and eps_root is not None, "eps_in_sqrt puts eps inside the root; eps_root is not needed")
    _refuse(eps_hat and maximum == "corrected", "eps_hat measures the raw average; take maximum='raw'")
    _refuse(centered and (eps_hat or maximum is not None), "centered excludes eps_hat and maximum")
    noise = "leaves rounding noise of 1% in each average; "
    _refuse(
        centered and state_dtype == "bfloat16", f"bfloat16 {noise}centered would take their difference for variance"
    )
    _refuse(maximum is not None and state_dtype == "bfloat16", f"bfloat16 {noise}the maximum would collect its peaks")

    def init(params: PyTree) -> State:
        fields = {"nu": tree.full_like(params, initial_scale, real=True)}
        fields |= {"mu": tree.zeros_like(params)} if centered else {}
        fields |= {"nu_max": tree.zeros_like(params, real=True)} if maximum else {}
        return fields | {"weights": averages.Weights.none(params) if debias else None}

    def update(updates: PyTree, state: State, *, observed: PyTree) -> tuple[PyTree, State]:
        nu = averages.average_squares(state["nu"], observed, decay)
        weights = state["weights"].after(decay) if debias else None
        new = {"nu": nu, "weights": weights}
        measure = nu if maximum == "raw" or eps_hat else averages.correct_bias(nu, weights)
        if maximum:
            new["nu_max"] = measure = tree.map(jnp.maximum, state["nu_max"], measure)
        if maximum == "raw" and not eps_hat:
            measure = averages.correct_bias(measure, weights)
        if centered:
            new["mu"] = averages.average(state["mu"], observed, decay)
            measure = _variance(measure, averages.correct_bias(new["mu"], weights))
        if eps_root is not None:
            measure = tree.map(lambda v, eps_root: v + eps_root, measure, eps_root=eps_root)
        scaled = _divide_by_root(updates, measure, eps, eps_in_sqrt)
        if eps_hat and weights:
            correction = numerics.root(weights.total)
            scaled = tree.map(lambda u, correction: correction * u, scaled, correction=correction)
        return scaled, new

    return Rule(
        init=init,
        update=update,
        nonnegative=("nu", "nu_max") if maximum else ("nu",),
        statistics=("nu", "mu", "nu_max"),
        state_dtype=state_dtype,
    )


def _variance(mean_square: PyTree, mean: PyTree) -> PyTree:
    """`v - |m|²`, not below 0, where rounding could put it."""
    return tree.map(lambda v, m: jnp.maximum(v - numerics.abs_squared(m), 0), mean_square, mean)


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise ValueError(f"gradtx.scale_by_rms: {reason}.")


@transform
def scale_by_adadelta(rho: Unit = 0.9, eps: NonNegative = 1e-6, *, state_dtype: Dtype | None = None) -> Rule:
    """Divides by the root mean square of the gradients and multiplies by that of the past steps.

        s <- r s + (1 - r) g²;   u = g sqrt(d + eps) / sqrt(s + eps);   d <- r d + (1 - r) u²                 (r = rho)

    Source: Zeiler 2012 (arXiv 1212.5701), algorithm 1. Complex leaves: |g|² and |u|².

    Args:
      rho: r in [0, 1), a number or a schedule.
      eps: >= 0. [gradient²] under the one root, [params²] under the other; with 0 nothing ever moves.
      state_dtype: None for at least float32; jnp.bfloat16 stores the statistics in half the bytes, rounded
        stochastically (see the page on low precision).

    State: `mean_square_gradient`, `mean_square_step`, real, like the params in at least float32: 8 bytes per
    parameter; `count`.

    Errors: ValueError for rho outside [0, 1) or a negative eps.

    >>> import gradtx
    >>> tx = gradtx.scale_by_adadelta(0.9, 1e-6)
    >>> u, state = tx.update(1.0, tx.init(0.0))
    >>> print(f"{u:.6f}")
    0.003162
    """

    def init(params: PyTree) -> State:
        zeros = tree.zeros_like
        return {"mean_square_gradient": zeros(params, real=True), "mean_square_step": zeros(params, real=True)}

    def update(updates: PyTree, state: State, *, observed: PyTree) -> tuple[PyTree, State]:
        s = averages.average_squares(state["mean_square_gradient"], observed, rho)
        d = state["mean_square_step"]
        steps = tree.map(
            lambda u, s, d, eps: u * numerics.divide(numerics.root(d + eps), numerics.root(s + eps)),
            updates,
            s,
            d,
            eps=eps,
        )
        return steps, {"mean_square_gradient": s, "mean_square_step": averages.average_squares(d, steps, rho)}

    statistics = ("mean_square_gradient", "mean_square_step")
    return Rule(init=init, update=update, nonnegative=statistics, statistics=statistics, state_dtype=state_dtype)


@transform
def scale_by_infinity_norm(
    decay: Unit = 0.999, eps: NonNegative = 1e-8, *, eps_in_max: bool = True, state_dtype: Dtype | None = None
) -> Rule:
    """Divides by the decayed maximum of the absolute gradients.

        n <- max(b n, |g| + eps);   u = g / n;   or n <- max(b n, |g|);   u = g / (n + eps)                 (b = decay)

    Source: Kingma and Ba 2014 (arXiv 1412.6980), algorithm 2, which has no eps. PyTorch and optax add it inside the
    maximum, Keras after it (eps_in_max=False, 1e-7). Complex leaves: |g|.

    Args:
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [gradient]
      eps_in_max: where eps is added.
      state_dtype: None for at least float32; jnp.bfloat16 stores the statistics in half the bytes, rounded
        stochastically (see the page on low precision).

    State: `nu`, real, like the params in at least float32: 4 bytes per parameter; `count`, a scalar.

    Errors: ValueError for a decay outside [0, 1) or a negative eps.

    >>> import gradtx
    >>> tx = gradtx.scale_by_infinity_norm(0.5, 0.0)
    >>> u, state = tx.update(4.0, tx.init(0.0))
    >>> tx.update(1.0, state)[0]
    Array(0.5, dtype=float32)
    """

    def init(params: PyTree) -> State:
        return {"nu": tree.zeros_like(params, real=True)}

    def update(updates: PyTree, state: State, *, observed: PyTree) -> tuple[PyTree, State]:
        sizes = tree.map(jnp.abs, observed)
        if eps_in_max:
            sizes = tree.map(lambda size, eps: size + eps, sizes, eps=eps)
        nu = tree.map(lambda n, size, b: jnp.maximum(b * n, size), state["nu"], sizes, b=decay)
        below = nu if eps_in_max else tree.map(lambda n, eps: n + eps, nu, eps=eps)
        return tree.map(numerics.divide, updates, below), {"nu": nu}

    statistics = ("nu",)
    return Rule(init=init, update=update, nonnegative=statistics, statistics=statistics, state_dtype=state_dtype)


@transform
def scale_by_adam(
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_root: NonNegative | None = None,
    nesterov: bool = False,
    eps_hat: bool = False,
    mu_dtype: Dtype | None = None,
    state_dtype: Dtype | None = None,
) -> Transform:
    """Adam's direction and scaling: `scale_by_momentum(b1) + scale_by_rms(b2, eps)`.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g²;   u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Source: Kingma and Ba 2014 (arXiv 1412.6980), algorithm 1.

    Args:
      b1, b2: decays in [0, 1), numbers or schedules.
      eps: >= 0. [gradient]
      eps_root: >= 0, added inside the root besides. [gradient²]
      nesterov: Nadam's direction.
      eps_hat: Kingma's eps-hat in place of eps (Keras).
      mu_dtype: of the first average, `mu`, alone; None for state_dtype.
      state_dtype: of both averages; to store only `nu` in bfloat16, give it to that part.

    State: that of the two: 8 bytes per parameter.

    Errors: ValueError for a decay outside [0, 1) or a negative eps.

    >>> import gradtx
    >>> gradtx.scale_by_adam().expand()
    scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08)
    """
    direction = scale_by_momentum(b1, nesterov=nesterov, state_dtype=mu_dtype or state_dtype)
    return direction + scale_by_rms(b2, eps, eps_root=eps_root, eps_hat=eps_hat, state_dtype=state_dtype)


@transform
def scale_by_lion(
    b1: Unit = 0.9, b2: Unit = 0.99, *, mu_dtype: Dtype | None = None, state_dtype: Dtype | None = None
) -> Rule:
    """The sign of one average of gradients, while another is kept.

        u = sign(b1 m + (1 - b1) g);   m <- b2 m + (1 - b2) g

    Source: Chen et al. 2023 (arXiv 2302.06675), algorithm 2. Complex leaves are refused.

    Args:
      b1: in [0, 1), the weight of the past in the direction.
      b2: in [0, 1), the decay of what is remembered.
      state_dtype: None for at least float32; jnp.bfloat16 stores the statistics in half the bytes, rounded
        stochastically (see the page on low precision).
      mu_dtype: another name for it, optax's: `mu` is its only statistic.

    State: `mu`, like the params in at least float32: 4 bytes per parameter; `count`, a scalar.

    Errors: ValueError for a decay outside [0, 1), or both dtypes; TypeError for complex leaves.

    >>> import gradtx
    >>> tx = gradtx.scale_by_lion()
    >>> tx.update(-3.0, tx.init(0.0))[0]
    Array(-1., dtype=float32)
    """
    stored = storage.one_of("scale_by_lion", mu_dtype=mu_dtype, state_dtype=state_dtype)

    def init(params: PyTree) -> State:
        return {"mu": tree.zeros_like(params)}

    def update(updates: PyTree, state: State) -> tuple[PyTree, State]:
        direction = tree.map(jnp.sign, averages.average(state["mu"], updates, b1))
        return direction, {"mu": averages.average(state["mu"], updates, b2)}

    return Rule(init=init, update=update, complex=False, statistics=("mu",), state_dtype=stored)
