"""Scalings: a step size for each parameter, from a measure of its past gradients.

Every scaling divides by such a measure. They differ only in the measure:

- Adagrad: the root of the sum of squared gradients, which only grows.
- RMSProp, Adam: the root of the exponentially weighted average of squared gradients, which can fall again.
- Adadelta: the same, times the root of the average of its own past squared steps, so that the units cancel.
- AdaMax: a decayed maximum of the absolute gradients.

A scaling measures the gradient `observed` and divides the updates. In `direction + scaling`, `observed` is the
incoming gradient.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from gradtx.averages import average, average_squares, debiasing
from gradtx.core import fields
from gradtx.core.annotations import Dtype, NonNegative, Unit
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule
from gradtx.core.storage import stored, stored_by
from gradtx.core.transform import Transform
from gradtx.momentum import Step, scale_by_momentum
from gradtx.numerics import abs_squared, divide, root


def _over_root(u: Array, v: Array, eps: Array, eps_in_sqrt: bool) -> Array:
    """`u / sqrt(v + eps)`, or `u / (sqrt(v) + eps)`; 0 / 0 = 0."""
    return divide(u, root(v + eps) if eps_in_sqrt else root(v) + eps)


@transform
def scale_by_adagrad(
    initial_accumulator_value: NonNegative = 0.1,
    eps: NonNegative = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> Rule:
    """Divides by the root of the sum of all squared gradients.

        s <- s + g²;   u = g / sqrt(s + eps), or g / (sqrt(s) + eps) with eps_in_sqrt=False;   0 / 0 = 0

    Source: Duchi, Hazan, Singer 2011 (JMLR 12), the diagonal case; the paper's δ is eps outside the root. optax (as
    `scale_by_rss`) and Keras start at 0.1 with eps 1e-7 inside, PyTorch at 0 with 1e-10 outside. Complex leaves:
    |g|².

    Args:
      initial_accumulator_value: s before the first update, >= 0. [gradient²]
      eps: >= 0, [gradient²] inside the root, [gradient] outside.
      eps_in_sqrt: add eps inside the root; False adds it outside.

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

    def update(u: Array, *, observed: Array, sum_of_squares: Array) -> Step:
        s = sum_of_squares + abs_squared(observed)
        return _over_root(u, s, eps, eps_in_sqrt), {"sum_of_squares": s}

    return per_element(update, sum_of_squares=fields.squares(initial_accumulator_value))


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
) -> Rule:
    """Divides by the root of the exponentially weighted average of squared gradients.

        v <- b v + (1 - b) g²;   v̂ = v / (1 - b^t);   u = g / (sqrt(v̂) + eps);   0 / 0 = 0                 (b = decay)

    Source: Hinton 2012 (lecture 6e; RMSProp: debias=False); Kingma and Ba 2014 (arXiv 1412.6980), algorithm 1, for the
    correction; Graves 2013 (arXiv 1308.0850), section 4.2, for `centered`; Reddi, Kale, Kumar 2018 (arXiv 1904.09237),
    algorithm 2, for the maximum, which the paper takes of the raw v. The defaults here are Adam's; optax's function of
    this name has decay 0.9, no debiasing and eps inside the root. Complex leaves: |g|².

    Args:
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [gradient], or [gradient²] with eps_in_sqrt.
      debias: use v̂; False uses v.
      centered: subtract the square of the average gradient: v̂ - |m̂|², an estimate of the variance.
      eps_in_sqrt: g / sqrt(v̂ + eps).
      eps_hat: Kingma's eps-hat, as in Keras: g sqrt(1 - b^t) / (sqrt(v) + eps). Needs debias.
      eps_root: >= 0, added inside the root, in addition to eps outside, as in optax's Adam. [gradient²]
      initial_scale: v before the first update, >= 0. [gradient²]
      maximum: AMSGrad: divide by the largest v ("raw", as PyTorch and Keras) or v̂ ("corrected", as optax) so far.

    State: `nu`, real, like the params in at least float32: 4 bytes per parameter, 4 more each for `mu` (centered) and
    `nu_max` (maximum); `weights` (debiased) and `count`, scalars.

    Errors: ValueError for a decay outside [0, 1), a negative eps, eps_hat without debias or together with eps_in_sqrt
    or eps_root or maximum='corrected', or centered together with maximum or eps_hat. `stored` refuses centered and
    maximum, because rounding noise would dominate them.

    >>> import gradtx
    >>> tx = gradtx.scale_by_rms(0.9, 0.0)
    >>> tx.update(-3.0, tx.init(0.0))[0]
    Array(-1., dtype=float32)
    """
    _refuse(eps_hat and not debias, "eps_hat is True; it needs debias=True")
    _refuse(
        eps_hat and (eps_in_sqrt or eps_root is not None),
        "eps_hat is True; it excludes eps_in_sqrt and eps_root",
    )
    _refuse(eps_in_sqrt and eps_root is not None, "eps_root is given; it must be None with eps_in_sqrt=True")
    _refuse(eps_hat and maximum == "corrected", "maximum is 'corrected'; it must be 'raw' with eps_hat=True")
    _refuse(centered and (eps_hat or maximum is not None), "centered is True; it excludes eps_hat and maximum")

    def update(
        u: Array, *, observed: Array, nu: Array, mu: Any = None, nu_max: Any = None, correction: Any = 1, total: Any = 1
    ) -> Step:
        nu = average_squares(nu, observed, decay)
        new = {"nu": nu}
        measure = nu if maximum == "raw" or eps_hat else correction * nu
        if maximum:
            new["nu_max"] = measure = jnp.maximum(nu_max, measure)
        if maximum == "raw" and not eps_hat:
            measure = correction * measure
        if centered:
            new["mu"] = mu = average(mu, observed, decay)
            measure = jnp.maximum(measure - abs_squared(correction * mu), 0)  # rounding could make it negative
        if eps_root is not None:
            measure = measure + eps_root
        u = _over_root(u, measure, eps, eps_in_sqrt)
        return root(total) * u if eps_hat else u, new

    noise = "rounding leaves noise of 1% in each average, and "
    exact = f"{noise}centered would take their difference for variance" if centered else None
    kept: dict[str, Any] = {"nu": fields.squares(initial_scale, exact=exact)}
    kept |= {"mu": fields.like(exact=exact)} if centered else {}
    kept |= {"nu_max": fields.squares(exact=f"{noise}the maximum would collect its peaks")} if maximum else {}
    if not debias:
        return per_element(update, **kept)
    return per_element(update, once=debiasing(decay), weights=fields.weights(), **kept)


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise ValueError(f"gradtx.scale_by_rms: {reason}.")


@transform
def scale_by_adadelta(rho: Unit = 0.9, eps: NonNegative = 1e-6) -> Rule:
    """Divides by the root mean square of the gradients and multiplies by that of the past steps.

        s <- r s + (1 - r) g²;   u = g sqrt(d + eps) / sqrt(s + eps);   d <- r d + (1 - r) u²                 (r = rho)

    Source: Zeiler 2012 (arXiv 1212.5701), algorithm 1. Complex leaves: |g|² and |u|².

    Args:
      rho: r in [0, 1), a number or a schedule.
      eps: >= 0. [gradient²] under one root, [params²] under the other; with 0 nothing ever moves.

    State: `mean_square_gradient`, `mean_square_step`, real, like the params in at least float32: 8 bytes per
    parameter; `count`.

    Errors: ValueError for rho outside [0, 1) or a negative eps.

    >>> import gradtx
    >>> tx = gradtx.scale_by_adadelta(0.9, 1e-6)
    >>> u, state = tx.update(1.0, tx.init(0.0))
    >>> print(f"{u:.6f}")
    0.003162
    """

    def update(u: Array, *, observed: Array, mean_square_gradient: Array, mean_square_step: Array) -> Step:
        s, d = average_squares(mean_square_gradient, observed, rho), mean_square_step
        u = u * divide(root(d + eps), root(s + eps))
        return u, {"mean_square_gradient": s, "mean_square_step": average_squares(d, u, rho)}

    return per_element(update, mean_square_gradient=fields.squares(), mean_square_step=fields.squares())


@transform
def scale_by_infinity_norm(decay: Unit = 0.999, eps: NonNegative = 1e-8, *, eps_in_max: bool = True) -> Rule:
    """Divides by the decayed maximum of the absolute gradients.

        n <- max(b n, |g| + eps);   u = g / n;   or n <- max(b n, |g|);   u = g / (n + eps)                 (b = decay)

    Source: Kingma and Ba 2014 (arXiv 1412.6980), algorithm 2, which has no eps. PyTorch and optax add it inside the
    maximum, Keras after it (eps_in_max=False, 1e-7). Complex leaves: |g|.

    Args:
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [gradient]
      eps_in_max: add eps inside the maximum; False adds it after the maximum.

    State: `nu`, real, like the params in at least float32: 4 bytes per parameter; `count`, a scalar.

    Errors: ValueError for a decay outside [0, 1) or a negative eps.

    >>> import gradtx
    >>> tx = gradtx.scale_by_infinity_norm(0.5, 0.0)
    >>> u, state = tx.update(4.0, tx.init(0.0))
    >>> tx.update(1.0, state)[0]
    Array(0.5, dtype=float32)
    """

    def update(u: Array, *, observed: Array, nu: Array) -> Step:
        size = jnp.abs(observed)
        nu = jnp.maximum(decay * nu, size + eps if eps_in_max else size)
        return divide(u, nu if eps_in_max else nu + eps), {"nu": nu}

    return per_element(update, nu=fields.squares())


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
) -> Transform:
    """Adam's direction and scaling: `scale_by_momentum(b1) + scale_by_rms(b2, eps)`.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g²;   u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Source: Kingma and Ba 2014 (arXiv 1412.6980), algorithm 1.

    Args:
      b1, b2: decays in [0, 1), numbers or schedules.
      eps: >= 0. [gradient]
      eps_root: >= 0, added inside the root as well. [gradient²]
      nesterov: Nadam's direction.
      eps_hat: Kingma's eps-hat in place of eps (Keras).
      mu_dtype: the dtype in which the first average, `mu`, is `stored`; None for at least float32.

    State: that of the two parts: 8 bytes per parameter.

    Errors: ValueError for a decay outside [0, 1) or a negative eps.

    >>> import gradtx
    >>> gradtx.scale_by_adam().expand()
    scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08)
    """
    direction = stored(scale_by_momentum(b1, nesterov=nesterov), mu_dtype)
    return direction + scale_by_rms(b2, eps, eps_root=eps_root, eps_hat=eps_hat)


@stored_by("mu_dtype")
@transform
def scale_by_lion(b1: Unit = 0.9, b2: Unit = 0.99) -> Rule:
    """The sign of one average of gradients; the state keeps another.

        u = sign(b1 m + (1 - b1) g);   m <- b2 m + (1 - b2) g

    Source: Chen et al. 2023 (arXiv 2302.06675), algorithm 2. Complex leaves are refused.

    Args:
      b1: in [0, 1), the weight of the past in the direction.
      b2: in [0, 1), the decay of the average in the state.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu`, like the params in at least float32: 4 bytes per parameter; `count`, a scalar.

    Errors: ValueError for a decay outside [0, 1); TypeError for complex leaves.

    >>> import gradtx
    >>> tx = gradtx.scale_by_lion()
    >>> tx.update(-3.0, tx.init(0.0))[0]
    Array(-1., dtype=float32)
    """

    def update(g: Array, *, mu: Array) -> Step:
        return jnp.sign(average(mu, g, b1)), {"mu": average(mu, g, b2)}

    return per_element(update, traits=("real",), mu=fields.like())
