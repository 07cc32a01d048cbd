"""Adam with low-rank averages: `galore` steps in a projected space; `apollo` only learns there how long a step to make.

Both keep rank · m numbers in place of n · m for each average of an n x m matrix, and the projector.
"""

from typing import Any, Literal

from gradtx.adaptive import scale_by_adam, scale_by_rms
from gradtx.core.annotations import NonNegative, NonNegativeInt, PositiveInt, Unit
from gradtx.core.compose import identity
from gradtx.core.elementary import transform
from gradtx.core.routing import by_shape
from gradtx.core.transform import Transform
from gradtx.effects.clipping import clip_by_norm_growth
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.matrices.low_rank import Proj, Side, scale_by_bias_correction, scale_by_galore, scale_by_low_rank
from gradtx.momentum import scale_by_momentum


@transform
def galore(
    learning_rate: NonNegative,
    rank: PositiveInt = 128,
    update_proj_gap: PositiveInt = 200,
    scale: NonNegative = 1.0,
    base_optimizer: Transform | None = None,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    proj_type: Side = "reverse_std",
) -> Transform:
    """GaLore: Adam on gradients of matrices that are projected onto their leading singular vectors.

        w <- w - lr (scale P adam(Pᵀ g) + λ w);   every update_proj_gap steps P <- the leading singular vectors of g
        (lr = learning_rate, λ = weight_decay; other leaves: AdamW)

    Source: Zhao et al. 2024 (arXiv 2403.03507), algorithm 1. Arguments and meaning as optax.contrib.galore. The
    authors' galore-torch projects the shorter axis (proj_type="std", scale=0.25), and has
    base_optimizer=scale_by_adam(eps=1e-6, eps_hat=True). It decays after the step: without weight_decay, `>> scale(1 -
    lr * λ) >> add_decayed_weights(lr * λ, flip_sign=True)`. Adam's averages are not changed when P is, as there.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      rank, update_proj_gap, proj_type: as `low_rank`.
      scale: a factor >= 0 of the matrices' updates, a number or a schedule. [1]
      base_optimizer: a transform without learning rate and decay; None for `scale_by_adam()`. It sees projected params.
      weight_decay: λ >= 0, a number or a schedule.
      mask: which leaves decay; see `add_decayed_weights`.
      weight_dimension_numbers: the matrices of each leaf; see `by_shape`. None for all leaves with two axes.

    State: `projector`, n · rank numbers for the projected axis of length n of an n x m matrix; `matrix/mu`,
    `matrix/nu`, rank · m numbers each; `other/mu`, `other/nu`, 8 bytes per parameter. It needs the params.

    Errors: ValueError for an argument outside its range.

    Singular vectors are unique at most up to their signs, so that after the second refresh runs differ between
    backends; see `low_rank`.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.galore(1e-2, rank=8).init({"kernel": jnp.zeros((300, 200)), "bias": jnp.zeros(200)})
    >>> gradtx.find(state, "projector")["kernel"].shape, gradtx.find(state, "matrix/mu")["kernel"].shape
    ((300, 8), (8, 200))
    """
    steps = scale_by_galore(
        rank,
        update_proj_gap,
        scale,
        base_optimizer,
        weight_dimension_numbers=weight_dimension_numbers,
        proj_type=proj_type,
    )
    return steps >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)


@transform
def apollo(
    learning_rate: NonNegative,
    rank: PositiveInt = 256,
    update_proj_gap: PositiveInt = 200,
    scale: NonNegative = 1.0,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    scale_type: Literal["channel", "tensor"] = "channel",
    max_growth: NonNegative | None = 1.01,
    proj_type: Side = "std",
    proj: Proj = "random",
    key: NonNegativeInt = 0,
) -> Transform:
    """APOLLO: gradients of matrices, with their rows or columns scaled as Adam scales them in a random projection.

        r = Pᵀ g;   s = norm(a) / (norm(r) + 1e-8), a = Adam's m / (sqrt(v) + eps) of r;   u = g s sqrt(scale)
        norm(u) at most max_growth times the previous one;   w <- w - lr (c u + λ w), c = sqrt(1 - b2^t) / (1 - b1^t)
        (lr = learning_rate, λ = weight_decay; other leaves: AdamW, with eps_hat)

    Source: Zhu et al. 2024 (arXiv 2412.05270), algorithm 1; the limit of growth is of Chen et al. 2024 (arXiv
    2410.01623, Fira). As the authors' apollo-torch 1.0.3 with scale_front=True: the root of the scale comes before the
    limit, which differs from the default by the 1e-8 that the limit adds. Other departures: those of
    `scale_by_low_rank` and `clip_by_norm_growth`, and the decay, which the authors' code applies after the step; see
    `galore`. Projectors are drawn by JAX.

    Args:
      learning_rate: >= 0, a number or a schedule; the authors use 0.01. [params per step]
      rank: the number of random directions, at least 1. The authors use a quarter of the width.
      update_proj_gap: the number of steps from one projector to the next, at least 1.
      scale: >= 0, a number or a schedule, of which the root is taken. [1]
      b1, b2, eps: as `scale_by_adam`, with eps_hat.
      weight_decay: λ >= 0, a number or a schedule.
      mask: which leaves decay; see `add_decayed_weights`.
      scale_type: "channel", one s for each row or column; "tensor", one for a matrix.
      max_growth: as `clip_by_norm_growth`; None for no limit.
      proj_type, proj, key: as `low_rank`.

    State: as `galore`, `key` and, for each matrix, `size`, a scalar; with proj="random". It needs the params.

    Errors: ValueError for an argument outside its range.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.apollo(1e-2, rank=8).init({"kernel": jnp.zeros((300, 200)), "bias": jnp.zeros(200)})
    >>> gradtx.find(state, "projector")["kernel"].shape, gradtx.find(state, "matrix/mu")["kernel"].shape
    ((200, 8), (300, 8))
    """
    inner = scale_by_momentum(b1, form="average") + scale_by_rms(b2, eps, debias=False)
    options: dict[str, Any] = {"scale_type": scale_type, "proj_type": proj_type, "proj": proj, "key": key}
    matrix = scale_by_low_rank(inner, rank, update_proj_gap, scale, **options)
    matrix = matrix >> (identity() if max_growth is None else clip_by_norm_growth(max_growth))
    matrix = matrix >> scale_by_bias_correction(b1, b2)
    steps = by_shape(matrix=matrix, other=scale_by_adam(b1, b2, eps, eps_hat=True))
    return steps >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)


@transform
def apollo_mini(
    learning_rate: NonNegative,
    update_proj_gap: PositiveInt = 200,
    scale: NonNegative = 128.0,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    max_growth: NonNegative | None = 1.01,
    key: NonNegativeInt = 0,
) -> Transform:
    """APOLLO-Mini: `apollo` with rank 1 and one factor for each matrix, in the memory of SGD.

        r = pᵀ g, p a random vector;   s = norm(a) / (norm(r) + 1e-8), a = Adam's m / (sqrt(v) + eps) of r
        u = g s sqrt(scale), and then as `apollo`

    Source: Zhu et al. 2024 (arXiv 2412.05270), section 4.2, with the scale of their code's examples.

    Args:
      learning_rate, update_proj_gap, scale, b1, b2, eps, weight_decay, mask, max_growth, key: as `apollo`.

    State: as `apollo` with rank 1: for an n x m matrix with n <= m, n + 2 m numbers. It needs the params.

    Errors: ValueError for an argument outside its range.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.find(gradtx.apollo_mini(1e-2).init(jnp.zeros((300, 200))), "matrix/mu").shape
    (300, 1)
    """
    numbers = (1, update_proj_gap, scale, b1, b2, eps, weight_decay, mask)
    return apollo(learning_rate, *numbers, scale_type="tensor", max_growth=max_growth, key=key)
