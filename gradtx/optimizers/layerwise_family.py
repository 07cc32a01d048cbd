"""Methods for large batches: every layer's step is as long as its weights, whatever its gradient.

lars    the gradient,     scaled to the length of the weights, then momentum
    lamb    Adam's direction, scaled to the length of the weights
"""

from typing import Any

from gradtx.adaptive import scale_by_adam
from gradtx.core.annotations import NonNegative, Unit
from gradtx.core.elementary import transform
from gradtx.core.transform import Transform
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.layerwise import scale_by_trust_ratio
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.momentum import scale_by_momentum


@transform
def lamb(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-6,
    *,
    eps_root: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
) -> Transform:
    """LAMB: AdamW, with every layer's step as long as the layer's weights.

        r = u + weight_decay w,   where u is Adam's direction;   w <- w - lr r |w| / |r|   (lr = learning_rate)

    Source: You et al. 2019 (arXiv 1904.00962), algorithm 2, where φ is the identity. If a leaf's weights or r are 0,
    it takes AdamW's step. As optax. To exclude biases from the adaptation too: `scale_by_adam(eps=1e-6) >>
    add_decayed_weights(wd, mask) >> scale_by_trust_ratio(mask=mask) >> scale_by_learning_rate(lr)`. Keras: eps 1e-7.

    Args:
      learning_rate: >= 0, a number or a schedule. [1]: the length of a step in units of the weights' length.
      b1, b2, eps, eps_root: as `adam`.
      weight_decay: >= 0, a number or a schedule.
      mask: which leaves decay; all adapt. See `add_decayed_weights`.

    State: that of `adam`, 8 bytes per parameter. It needs the params.

    Errors: as `adamw`.

    >>> import gradtx
    >>> gradtx.lamb(1e-3).expand().stages[2:]
    (scale_by_trust_ratio(min_norm=0.0, trust_coefficient=1.0, eps=0.0), scale_by_learning_rate(learning_rate=0.001))
    """
    direction = scale_by_adam(b1, b2, eps, eps_root=eps_root)
    decayed = direction >> add_decayed_weights(weight_decay, mask)
    return decayed >> scale_by_trust_ratio() >> scale_by_learning_rate(learning_rate)


@transform
def lars(
    learning_rate: NonNegative,
    weight_decay: NonNegative = 0.0,
    *,
    trust_coefficient: NonNegative = 0.001,
    eps: NonNegative = 0.0,
    momentum: Unit = 0.9,
    nesterov: bool = False,
    mask: Any = None,
) -> Transform:
    """LARS: momentum on gradients that are scaled, layer by layer, to the length of the weights.

        r = g + weight_decay w;   v <- b v + lr trust_coefficient r |w| / (|r| + eps);   w <- w - v
        (b = momentum, lr = learning_rate)

    Source: You, Gitman, Ginsburg 2017 (arXiv 1708.03888), algorithm 1, which divides by |g| + weight_decay |w| instead
    of |r|; this is optax's form. The learning rate is inside the velocity, as in both. optax has two masks, one for the
    decay and one for the adaptation; here one mask is for both. For two masks write `add_decayed_weights(wd, one) >>
    scale_by_trust_ratio(trust_coefficient=0.001, mask=other) >> scale_by_learning_rate(lr) >> scale_by_momentum(0.9,
    form="sum")`.

    Args:
      learning_rate: >= 0, a number or a schedule. [1]: times trust_coefficient, the length of a step in units of the
        weights' length.
      weight_decay: >= 0, a number or a schedule. [gradient per param]
      trust_coefficient: >= 0, a number or a schedule. [1]
      eps: >= 0, a number or a schedule. [gradient]
      momentum: b in [0, 1), a number or a schedule.
      nesterov: look one step ahead.
      mask: which leaves decay and adapt; the others follow plain momentum. See `masked`.

    State: `mu`, 4 bytes per parameter. It needs the params.

    Errors: ValueError for a momentum outside [0, 1) or a negative argument, and from update without params.

    >>> import gradtx
    >>> gradtx.lars(0.1).expand().stages[-2:]
    (scale_by_learning_rate(learning_rate=0.1), scale_by_momentum(decay=0.9, form='sum'))
    """
    adapted = add_decayed_weights(weight_decay, mask) >> scale_by_trust_ratio(0.0, trust_coefficient, eps, mask=mask)
    velocity = scale_by_momentum(momentum, form="sum", nesterov=nesterov)
    return adapted >> scale_by_learning_rate(learning_rate) >> velocity
