"""Methods with a factor for the rows of a matrix and one for its columns: Shampoo, PSGD-Kron, SOAP."""

from typing import Any, Literal

from gradtx.core.annotations import Dtype, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Unit
from gradtx.core.compose import identity
from gradtx.core.dimensions import every_leaf
from gradtx.core.elementary import transform
from gradtx.core.routing import as_matrices, by_shape
from gradtx.core.storage import stored
from gradtx.core.transform import Transform
from gradtx.effects.clipping import clip_by_block_rms
from gradtx.effects.decay import add_decayed_weights, decay_afterwards
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.matrices.grafting import graft
from gradtx.matrices.kronecker.blocks import in_blocks
from gradtx.matrices.kronecker.eigenbasis import skip_first_step
from gradtx.matrices.kronecker.kron import scale_by_kron
from gradtx.matrices.kronecker.shampoo import scale_by_shampoo
from gradtx.matrices.kronecker.soap import FirstStep, adam_direction, scale_by_kl_shampoo, scale_by_soap
from gradtx.momentum import scale_by_momentum


@transform
def shampoo(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Fraction = 1.0,
    eps: NonNegative = 1e-12,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    grafting: Transform | None = None,
    precondition_frequency: PositiveInt = 1,
    start_preconditioning_step: NonNegativeInt | None = None,
    max_preconditioner_dim: PositiveInt = 1024,
    exponent: NonNegative | None = None,
    debias: bool = True,
    dimension_numbers: Any = None,
) -> Transform:
    """Shampoo: momentum times inverse roots of the averages of `g gᵀ` and `gᵀ g`, with the size of another method.

        m <- b1 m + (1 - b1) g;   u = L^(-1/4) m / (1 - b1^t) R^(-1/4);   u <- u |graft(m / (1 - b1^t))| / |u|
        w <- w - lr (u + λ w)          (L, R: see `scale_by_shampoo`; lr = learning_rate, λ = weight_decay)

    Source: Gupta, Koren, Singer 2018 (arXiv 1802.09568), algorithm 1; momentum, grafting, bias correction, blocks and
    defaults as DistributedShampoo (Shi et al. 2023, arXiv 2309.06497, commit f606606), where b2 is betas[1] and debias
    use_bias_correction. Departures: blocks have equal sizes; small axes are not merged: there a 16 x 16 leaf is a
    vector with one factor, here `dimension_numbers=MuonDimensionNumbers((), (0, 1))`.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1: the decay of the momentum in [0, 1), a number or a schedule.
      b2, eps, exponent, debias: see `scale_by_shampoo`. debias is also that of the momentum.
      weight_decay, mask: λ >= 0, and which leaves decay; see `add_decayed_weights`.
      grafting: a transform whose update of the momentum gives the norm, for each block: `scale_by_rms(0.999)` for
        Adam's, `scale_by_rms(0.99, debias=False)` for RMSProp's, `scale_by_adagrad(0.0, 1e-10, eps_in_sqrt=False)`,
        `identity()` for SGD's. Its update is used as it is before the first roots. None: no grafting.
      precondition_frequency: the number of steps from one computation of the roots to the next.
      start_preconditioning_step: the first step, counted from 1, that computes roots; None for precondition_frequency.
      max_preconditioner_dim: the largest number of rows or columns of a block; see `in_blocks`.
      dimension_numbers: see `by_shape`; each leaf must have some. With None, leaves with two axes are matrices, a
        vector is a matrix with one row, and of leaves with more axes the last counts columns, the others rows.

    State: `mu`, 4 bytes per parameter, that of grafting, and that of `scale_by_shampoo` for each block: for a matrix of
    m x n in one block 8 (m² + n²) bytes, for a vector 8 n².

    Errors: ValueError for an argument outside its range; TypeError for complex leaves.

    >>> import gradtx
    >>> tx = gradtx.shampoo(1e-3, b2=0.95, grafting=gradtx.scale_by_rms(0.999), precondition_frequency=10)
    >>> [stage.name for stage in tx.expand().stages]
    ['as_matrices', 'add_decayed_weights', 'scale_by_learning_rate']
    """
    scaling = scale_by_shampoo(
        b2,
        eps,
        precondition_frequency=precondition_frequency,
        start_preconditioning_step=start_preconditioning_step,
        exponent=exponent,
        debias=debias,
    )
    if grafting is not None:
        start = precondition_frequency if start_preconditioning_step is None else start_preconditioning_step
        scaling = graft(scaling, grafting, start)
    momentum = scale_by_momentum(b1, form="debiased" if debias else "average")
    direction = as_matrices(momentum + in_blocks(scaling, max_preconditioner_dim), dimension_numbers or every_leaf)
    return direction >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)


@transform
def kron(
    learning_rate: NonNegative = 0.001,
    b1: Unit = 0.9,
    weight_decay: NonNegative = 0.0,
    weight_decay_mask: Any = None,
    preconditioner_update_probability: Fraction | None = None,
    max_size_triangular: PositiveInt = 8192,
    min_ndim_triangular: PositiveInt = 2,
    memory_save_mode: Literal["one_diag", "all_diag"] | None = None,
    momentum_into_precond_update: bool = True,
    preconditioner_lr: NonNegative = 0.1,
    preconditioner_init_scale: Positive = 1.0,
    mu_dtype: Dtype | None = None,
    *,
    balance_probability: Fraction = 0.01,
    max_rms: Positive | None = 1.1,
    seed: int = 0,
    dimension_numbers: Any = None,
) -> Transform:
    """PSGD-Kron: momentum times factors that are fitted to it, one for the rows and one for the columns of a matrix.

        m <- b1 m + (1 - b1) g;   u = Qlᵀ Ql m / (1 - b1^t) Qrᵀ Qr;   u <- u min(1, max_rms / rms(u))
        w <- w - lr (u + λ w)           (Ql, Qr: see `scale_by_kron`; lr = learning_rate, λ = weight_decay)

    Source: Li 2018 (arXiv 1512.04202) and 2022 (arXiv 2211.04422); arguments and defaults as psgd-jax 0.2.9. In
    kron_torch learning_rate is 3e-4. Departures: those of `scale_by_kron`, and leaves with more than two axes are
    matrices, as in kron_torch; in psgd-jax each axis has a factor.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1: the decay of the momentum in [0, 1), a number or a schedule.
      weight_decay, weight_decay_mask: λ >= 0, and which leaves decay; see `add_decayed_weights`.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.
      max_rms: > 0, the largest root mean square of a leaf's update; None for no limit.
      dimension_numbers: see `by_shape`; each leaf must have some. With None, leaves with two axes are matrices, a
        vector is a matrix with one row, and of leaves with more axes the last counts columns, the others rows.
      preconditioner_update_probability, max_size_triangular, min_ndim_triangular: see `scale_by_kron`.
      memory_save_mode, momentum_into_precond_update, preconditioner_lr: see `scale_by_kron`.
      preconditioner_init_scale, balance_probability, seed: see `scale_by_kron`.

    State: `mu`, 4 bytes per parameter, and that of `scale_by_kron`: 4 (m² + n²) bytes for a matrix of m x n, and 4 n
    for a vector.

    Errors: ValueError for an argument outside its range; TypeError for complex leaves.

    >>> import gradtx
    >>> [stage.name for stage in gradtx.kron(1e-3).expand().stages]
    ['as_matrices', 'clip_by_block_rms', 'add_decayed_weights', 'scale_by_learning_rate']
    """
    scaling = scale_by_kron(
        preconditioner_update_probability,
        max_size_triangular,
        min_ndim_triangular,
        memory_save_mode,
        momentum_into_precond_update,
        preconditioner_lr,
        preconditioner_init_scale,
        balance_probability=balance_probability,
        seed=seed,
    )
    direction = as_matrices(stored(scale_by_momentum(b1), mu_dtype) + scaling, dimension_numbers or every_leaf)
    limit = identity() if max_rms is None else clip_by_block_rms(max_rms)
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    return direction >> limit >> decay >> scale_by_learning_rate(learning_rate)


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
    adam = adam_direction(b1, b2, eps, correct_bias, normalize_grads)
    other = skip_first_step(adam) if skip else adam
    direction = by_shape(matrix, other, dimension_numbers)
    decay = decay_afterwards(learning_rate, weight_decay, skip_first=skip)
    return direction >> scale_by_learning_rate(learning_rate) >> decay


@transform
def kl_shampoo(
    learning_rate: NonNegative = 1e-4,
    b1: Unit = 0.9,
    b2: Unit = 0.98,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    *,
    precondition_frequency: PositiveInt = 10,
    max_precond_dim: PositiveInt = 10000,
    first_step: FirstStep = "skip",
    dimension_numbers: Any = None,
) -> Transform:
    """KL-Shampoo: whitened momentum, without a second moment; Adam for leaves that are no matrices.

        w <- (w - lr u) (1 - lr λ),   u: see `scale_by_kl_shampoo`;   w_1 = w_0   (lr = learning_rate, λ = weight_decay)

    Source: Lin et al. 2025 (arXiv 2509.03378); first step, decay and defaults as the authors' code
    (yorkerlin/KL-Methods, commit a02e622), which has another optimizer for vectors.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1, b2, eps, precondition_frequency, max_precond_dim: see `scale_by_kl_shampoo`. b1, b2 and eps are Adam's too.
      weight_decay: λ >= 0, a number or a schedule; the weights after the step decay.
      first_step: "skip": the first gradient changes no weight, in any leaf; "use": it makes a step.
      dimension_numbers: see `by_shape`.

    Runs on matrices that are not square differ between backends: see `in_eigenbasis`.

    State: that of `scale_by_kl_shampoo`; 8 bytes per parameter of other leaves. It needs the params.

    Errors: ValueError for an argument outside its range, and from update without params; TypeError for complex
    matrices.

    >>> import gradtx
    >>> [stage.name for stage in gradtx.kl_shampoo().expand().stages]
    ['by_shape', 'scale_by_learning_rate', 'decay_afterwards']
    """
    skip = first_step == "skip"
    matrix = scale_by_kl_shampoo(
        b1,
        b2,
        eps,
        precondition_frequency=precondition_frequency,
        max_precond_dim=max_precond_dim,
        first_step=first_step,
    )
    adam = adam_direction(b1, b2, eps, correct_bias=True, normalize=False)
    direction = by_shape(matrix, skip_first_step(adam) if skip else adam, dimension_numbers)
    decay = decay_afterwards(learning_rate, weight_decay, skip_first=skip)
    return direction >> scale_by_learning_rate(learning_rate) >> decay
