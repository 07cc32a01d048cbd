"""SOAP: Adam in the eigenbasis of the gradients' Gram matrices. KL-Shampoo: other averages, and their eigenvalues."""

from typing import Any, Literal

from gradtx.adaptive import scale_by_rms
from gradtx.core.annotations import NonNegative, PositiveInt, Unit
from gradtx.core.compose import identity
from gradtx.core.elementary import transform
from gradtx.core.transform import Transform
from gradtx.matrices.kronecker.eigenbasis import in_eigenbasis, skip_first_step
from gradtx.matrices.low_rank import scale_by_bias_correction
from gradtx.matrices.orthogonal import scale_by_lmo
from gradtx.momentum import scale_by_momentum

FirstStep = Literal["skip", "use"]


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
    >>> gradtx.scale_by_soap(first_step="use").expand().inner
    scale_by_momentum(decay=0.95) + scale_by_rms(decay=0.95, eps=1e-08, eps_hat=True)
    """
    direction = adam_direction(b1, b2, eps, correct_bias, normalize_grads)
    return in_eigenbasis(
        skip_first_step(direction) if first_step == "skip" else direction,
        b2 if shampoo_beta is None else shampoo_beta,
        precondition_frequency,
        refresh="after" if first_step == "skip" else "before",
        max_precond_dim=max_precond_dim,
        kl=kl,
    )


def adam_direction(b1: Any, b2: Any, eps: Any, correct_bias: bool, normalize: bool) -> Transform:
    """Adam's direction with eps-hat; without correction both averages as they are."""
    if normalize:
        size_one = adam_direction(b1, b2, eps, correct_bias=False, normalize=False) >> scale_by_lmo("rms", eps=1e-30)
        return size_one >> scale_by_bias_correction(b1, b2) if correct_bias else size_one
    momentum = scale_by_momentum(b1, form="debiased" if correct_bias else "average")
    return momentum + scale_by_rms(b2, eps, debias=correct_bias, eps_hat=correct_bias)


@transform
def scale_by_kl_shampoo(
    b1: Unit = 0.9,
    b2: Unit = 0.98,
    eps: NonNegative = 1e-8,
    *,
    precondition_frequency: PositiveInt = 10,
    max_precond_dim: PositiveInt = 10000,
    first_step: FirstStep = "skip",
) -> Transform:
    """KL-Shampoo's direction for matrices: momentum, whitened from both sides by factors that belong together.

        m <- b1 m + (1 - b1) g;   u = P ((Pᵀ m Q) / (sqrt(l rᵀ) + eps)) Qᵀ

    with the bases P, Q and the eigenvalues l, r of `in_eigenbasis` with kl. Shampoo's factors are found one by one;
    these minimize the KL divergence between the gradients' normal distribution and one with the covariance R ⊗ L.

    Source: Lin et al. 2025 (arXiv 2509.03378), as the authors' code (yorkerlin/KL-Methods, commit a02e622), whose betas
    are (b1, b2).

    Args:
      b1, b2: decays in [0, 1), numbers or schedules: of the momentum, and of the factors.
      eps: >= 0. [gradient]
      precondition_frequency, max_precond_dim: see `in_eigenbasis`, where the first is called every.
      first_step: "skip": the first gradient only finds the bases (the authors' code); "use": it makes a step.

    Runs on matrices that are not square differ between backends: see `in_eigenbasis`.

    State: for an m x n matrix `mu`, 4 bytes per parameter, and 8 (m² + n²) + 4 (m + n) bytes of `in_eigenbasis`.

    Errors: as `in_eigenbasis`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_kl_shampoo(first_step="use"), jnp.array([[2.0, 0.0], [0.0, -1.0]])
    >>> print(tx.update(g, tx.init(g))[0].diagonal().round(2))
    [ 2. -1.]
    """
    momentum, skip = scale_by_momentum(b1, form="average"), first_step == "skip"
    whitened = in_eigenbasis(
        identity(),
        b2,
        precondition_frequency,
        refresh="after" if skip else "before",
        max_precond_dim=max_precond_dim,
        kl=True,
        whiten=True,
        eps=eps,
    )
    return (skip_first_step(momentum) if skip else momentum) + whitened
