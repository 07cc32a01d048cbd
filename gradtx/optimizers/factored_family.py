"""Adafactor: Adam's scaling in a fraction of the memory.

`adafactor` keeps row and column means of the squared gradients, and makes steps relative to the size of the weights.
`came` averages such updates, and makes longer steps where they agree.
"""

from typing import Any

from gradtx.averages import ema
from gradtx.core.annotations import Dtype, NonNegative, NonNegativeInt, Positive, PositiveInt, Unit
from gradtx.core.compose import identity
from gradtx.core.elementary import transform
from gradtx.core.storage import stored
from gradtx.core.transform import Transform
from gradtx.effects.clipping import clip_by_block_rms
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.matrices.factored import scale_by_confidence, scale_by_factored_rms, scale_by_param_block_rms


@transform
def adafactor(
    learning_rate: NonNegative | None = None,
    min_dim_size_to_factor: PositiveInt = 128,
    decay_rate: Unit = 0.8,
    decay_offset: NonNegativeInt = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Positive | None = 1.0,
    momentum: Unit | None = None,
    dtype_momentum: Dtype | None = None,
    weight_decay_rate: NonNegative | None = None,
    eps: NonNegative = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
    *,
    eps_in_sum: bool = True,
) -> Transform:
    """Adafactor: steps relative to the size of the weights, scaled by row and column means of squared gradients.

        u = g / sqrt(r cᵀ / mean(r));   u <- u min(1, d / rms(u));   w <- w - lr max(rms(w), 0.001) u - λ w
        (d = clipping_threshold, lr = learning_rate, λ = weight_decay_rate)

    Source: Shazeer and Stern 2018 (arXiv 1804.04235), algorithms 4 to 6. Arguments as in optax, where the decay is not
    multiplied by the learning rate either. PyTorch: `adafactor(lambda t: jnp.minimum(lr, (t + 1) ** -0.5), 2, eps=eps1,
    weight_decay_rate=lr * λ, eps_in_sum=False)`.

    Args:
      learning_rate: >= 0, a number or a schedule; None for 1. [1] relative to the weights, [params per step] without
        multiply_by_parameter_scale.
      min_dim_size_to_factor, decay_rate, decay_offset, eps, factored, eps_in_sum: as `scale_by_factored_rms`, where
        decay_offset is called step_offset.
      multiply_by_parameter_scale: steps relative to the size of the weights.
      clipping_threshold: d > 0, the largest root mean square of a leaf's update; None for no limit.
      momentum: None, or the decay in [0, 1) of an average of the steps, not debiased.
      dtype_momentum: the dtype in which that average is `stored`; None for at least float32.
      weight_decay_rate: None, or λ >= 0: each step subtracts this fraction of each weight.
      weight_decay_mask: which leaves decay; see `add_decayed_weights`.

    State: `row` and `col`, m + n numbers for an m x n matrix; `nu` of other leaves, 4 bytes per parameter; with
    momentum `mean`, 4 bytes per parameter. It needs the params.

    Errors: ValueError for an argument outside its range, weight_decay_mask without weight_decay_rate, or dtype_momentum
    without momentum; TypeError for complex leaves.

    >>> import gradtx
    >>> [stage.name for stage in gradtx.adafactor(1e-2).expand().stages[1:4]]
    ['clip_by_block_rms', 'scale_by_learning_rate', 'scale_by_param_block_rms']
    """
    if weight_decay_rate is None and weight_decay_mask is not None:
        raise ValueError("gradtx.adafactor: weight_decay_mask is given; it needs weight_decay_rate. Pass both.")
    if momentum is None and dtype_momentum is not None:
        raise ValueError("gradtx.adafactor: dtype_momentum is given; it needs momentum. Pass both.")
    numbers = (factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)
    steps = scale_by_factored_rms(*numbers, eps_in_sum=eps_in_sum)
    steps = steps >> (identity() if clipping_threshold is None else clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        steps = steps >> scale_by_learning_rate(learning_rate, flip_sign=False)
    steps = steps >> (scale_by_param_block_rms() if multiply_by_parameter_scale else identity())
    steps = steps >> (identity() if momentum is None else stored(ema(momentum, debias=False), dtype_momentum))
    if weight_decay_rate is not None:
        steps = steps >> add_decayed_weights(weight_decay_rate, weight_decay_mask)
    return steps >> scale_by_learning_rate(1.0)


@transform
def came(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    b3: Unit = 0.9999,
    eps: NonNegative = 1e-30,
    eps_confidence: NonNegative = 1e-16,
    clipping_threshold: Positive | None = 1.0,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    min_dim_size_to_factor: PositiveInt = 1,
) -> Transform:
    """CAME: Adafactor's updates, averaged, and divided by how far single ones are from their average.

        u = g / sqrt(r cᵀ / mean(r));   u <- u min(1, d / rms(u));   m <- b1 m + (1 - b1) u
        w <- w - lr (m / sqrt(R Cᵀ / mean(R)) + λ w);   of vectors w <- w - lr (m + λ w)
        (r, c: row and column means of g² + eps, averaged with b2; R, C: of (u - m)² + eps_confidence, with b3;
        d = clipping_threshold, lr = learning_rate, λ = weight_decay)

    Source: Luo et al. 2023 (arXiv 2307.02047), algorithm 2. As the authors' came-pytorch 0.1.3, which calls the two eps
    a pair and the b's betas, and whose decay is the same: λ is multiplied by the learning rate. Leaves with more than
    two axes: see `scale_by_confidence`. None of the averages is debiased.

    Args:
      learning_rate: >= 0, a number or a schedule. The authors use 2e-4 where AdamW has 1e-3 or less. [params per step]
      b1, b2, b3: decays in [0, 1), numbers or schedules: of the updates, of g², of the instability.
      eps: >= 0. [gradient²]
      eps_confidence: >= 0. [1]
      clipping_threshold: d > 0, the largest root mean square of a leaf's update; None for no limit.
      weight_decay: λ >= 0, a number or a schedule.
      mask: which leaves decay; see `add_decayed_weights`.
      min_dim_size_to_factor: the minimum length of a leaf's two longest axes; smaller leaves keep every element of g²,
        and have no confidence. The authors have no minimum.

    State: `mu`, 4 bytes per parameter; `scale_by_factored_rms/row`, `col` and `scale_by_confidence/row`, `col`: 2 (m +
    n) numbers for an m x n matrix; `nu` of other leaves, 4 bytes per parameter. It needs the params.

    Errors: ValueError for an argument outside its range; TypeError for complex leaves.

    >>> import gradtx
    >>> [stage.name for stage in gradtx.came(2e-4).expand().stages[:3]]
    ['scale_by_factored_rms', 'clip_by_block_rms', 'scale_by_confidence']
    """
    steps = scale_by_factored_rms(True, 0.8, 0, min_dim_size_to_factor, eps, decay=b2)
    steps = steps >> (identity() if clipping_threshold is None else clip_by_block_rms(clipping_threshold))
    steps = steps >> scale_by_confidence(b1, b3, eps_confidence, min_dim_size_to_factor)
    return steps >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)
