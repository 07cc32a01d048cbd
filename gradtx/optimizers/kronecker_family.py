"""SOAP: Adam in the eigenbasis of the gradients' Gram matrices; and its form with KL-Shampoo's averages."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from gradtx.adaptive import scale_by_rms
from gradtx.core.annotations import NonNegative, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.routing import by_shape
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.matrices.kronecker.eigenbasis import in_eigenbasis, skip_first_step
from gradtx.matrices.low_rank import scale_by_bias_correction
from gradtx.matrices.orthogonal import scale_by_lmo
from gradtx.momentum import scale_by_momentum

FirstStep = Literal["skip", "use"]


@transform
def decay_afterwards(learning_rate: NonNegative, weight_decay: NonNegative, *, skip_first: bool = False) -> Rule:
    """Weight decay of the weights after the step: w <- (w + u) (1 - lr λ).

        u <- u - lr λ (w + u)          (lr = learning_rate, λ = weight_decay)

    Source: the authors' SOAP (nikhilvyas/SOAP, commit a1e5535), GaLore and APOLLO. AdamW decays w itself.

    Args:
      learning_rate: >= 0, a number or a schedule; that of the step before it.
      weight_decay: >= 0, a number or a schedule.
      skip_first: no decay at the first step.

    State: `count`, a scalar. It needs the params.

    Errors: ValueError for a negative argument, and from update without params.

    >>> import gradtx
    >>> tx = gradtx.decay_afterwards(0.5, 0.5)
    >>> print(tx.update(-1.0, tx.init(3.0), 3.0)[0])
    -1.5
    """

    def update(u: Array, *, params: Array, count: Array) -> Array:
        pull = learning_rate * weight_decay * (params + u)
        return u - (jnp.where(count > 1, pull, 0) if skip_first else pull)

    return per_element(update)


@transform
def scale_by_soap(
    b1: Unit = 0.95,
    b2: Unit = 0.95,
    eps: NonNegative = 1e-8,
    *,
    shampoo_beta: Unit | None = None,
    precondition_frequency: PositiveInt = 10,
    max_precond_dim: PositiveInt = 10000,
    normalize_grads: bool = False,
    correct_bias: bool = True,
    first_step: FirstStep = "skip",
    kl: bool = False,
) -> Transform:
    """SOAP's direction for matrices: Adam in the eigenbasis of the averages of `g gᵀ` and `gᵀ g`.

        u = P (m sqrt(1 - b2^k) / ((1 - b1^k) (sqrt(v) + eps))) Qᵀ,   m and v the averages of Pᵀ g Q and its square

    with P and Q as `in_eigenbasis` finds them, and k the number of steps made.

    Source: Vyas et al. 2024 (arXiv 2409.11321), algorithm 3, as the authors' code (commit a1e5535). There m is an
    average of g that is turned at each step; it is the same average in the basis, turned when the basis is renewed.

    Args:
      b1, b2: decays in [0, 1), numbers or schedules.
      eps: >= 0, not corrected for bias (eps-hat). [gradient]
      shampoo_beta: the decay of the averages of `g gᵀ` and `gᵀ g`; None for b2.
      precondition_frequency, max_precond_dim, kl: see `in_eigenbasis`, where the first is called every.
      normalize_grads: divide u, before the correction of bias, by its root mean square.
      correct_bias: False uses m and v as they are.
      first_step: "skip": the first gradient only finds the basis (the authors' code); "use": it makes a step.

    Runs on matrices that are not square differ between backends: see `in_eigenbasis`.

    State: for an m x n matrix `mu` and `nu`, 8 bytes per parameter, and 8 (m² + n²) bytes of `in_eigenbasis`.

    Errors: as `in_eigenbasis`.

    >>> import gradtx
    >>> gradtx.scale_by_soap(first_step="use").expand()
    in_eigenbasis(inner=scale_by_momentum(decay=0.95) + scale_by_rms(decay=0.95, eps=1e-08, eps_hat=True), decay=0.95)
    """
    direction = _adam(b1, b2, eps, correct_bias, normalize_grads)
    return in_eigenbasis(
        skip_first_step(direction) if first_step == "skip" else direction,
        b2 if shampoo_beta is None else shampoo_beta,
        precondition_frequency,
        refresh="after" if first_step == "skip" else "before",
        max_precond_dim=max_precond_dim,
        kl=kl,
    )


def _adam(b1: Any, b2: Any, eps: Any, correct_bias: bool, normalize: bool) -> Transform:
    """Adam's direction with eps-hat; without correction both averages as they are."""
    if normalize:
        size_one = _adam(b1, b2, eps, correct_bias=False, normalize=False) >> scale_by_lmo("rms", eps=1e-30)
        return size_one >> scale_by_bias_correction(b1, b2) if correct_bias else size_one
    momentum = scale_by_momentum(b1, form="debiased" if correct_bias else "average")
    return momentum + scale_by_rms(b2, eps, debias=correct_bias, eps_hat=correct_bias)


@transform
def soap(
    learning_rate: NonNegative = 3e-3,
    b1: Unit = 0.95,
    b2: Unit = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    *,
    shampoo_beta: Unit | None = None,
    precondition_frequency: PositiveInt = 10,
    max_precond_dim: PositiveInt = 10000,
    normalize_grads: bool = False,
    correct_bias: bool = True,
    first_step: FirstStep = "skip",
    kl: bool = False,
    dimension_numbers: Any = None,
) -> Transform:
    """SOAP: Adam in the eigenbasis of the gradients' Gram matrices; Adam for leaves that are no matrices.

        w <- (w - lr u) (1 - lr λ),   u: see `scale_by_soap`;   w_1 = w_0         (lr = learning_rate, λ = weight_decay)

    Source: Vyas et al. 2024 (arXiv 2409.11321), algorithm 3; first step, decay and defaults as the authors' code
    (nikhilvyas/SOAP, commit a1e5535), whose betas are (b1, b2). Departures: leaves with more than two axes are matrices
    by `dimension_numbers` instead of having a basis for each axis; others have none.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1, b2, eps, shampoo_beta, precondition_frequency, max_precond_dim: see `scale_by_soap`.
      normalize_grads, correct_bias, kl: see `scale_by_soap`.
      weight_decay: λ >= 0, a number or a schedule; the weights after the step decay.
      first_step: "skip": the first gradient changes no weight, in any leaf; "use": it makes a step.
      dimension_numbers: see `by_shape`.

    Runs on matrices that are not square differ between backends: see `in_eigenbasis`.

    State: that of `scale_by_soap`; 8 bytes per parameter of other leaves. It needs the params.

    Errors: ValueError for an argument outside its range, and from update without params; TypeError for complex
    matrices.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.soap(0.1), jnp.ones((2, 2))
    >>> updates, state = tx.update(w, tx.init(w), w)
    >>> print(updates, gradtx.find(state, "left_basis").shape)
    [[-0. -0.]
     [-0. -0.]] (2, 2)
    """
    skip = first_step == "skip"
    matrix = scale_by_soap(
        b1,
        b2,
        eps,
        shampoo_beta=shampoo_beta,
        precondition_frequency=precondition_frequency,
        max_precond_dim=max_precond_dim,
        normalize_grads=normalize_grads,
        correct_bias=correct_bias,
        first_step=first_step,
        kl=kl,
    )
    adam = _adam(b1, b2, eps, correct_bias, normalize_grads)
    other = skip_first_step(adam) if skip else adam
    direction = by_shape(matrix, other, dimension_numbers)
    decay = decay_afterwards(learning_rate, weight_decay, skip_first=skip)
    return direction >> scale_by_learning_rate(learning_rate) >> decay
