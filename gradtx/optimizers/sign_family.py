"""Methods that step by the sign of an average: every parameter moves by the learning rate, whatever its gradient."""

from typing import Any

from gradtx.adaptive import scale_by_lion
from gradtx.core.annotations import Dtype, NonNegative, Unit
from gradtx.core.elementary import transform
from gradtx.core.storage import stored
from gradtx.core.transform import Transform
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale_by_learning_rate, scale_by_sign
from gradtx.momentum import scale_by_momentum


@transform
def signum(
    learning_rate: NonNegative,
    beta: Unit = 0.9,
    *,
    accumulator_dtype: Dtype | None = None,
) -> Transform:
    """Steps by the sign of the average gradient.

        m <- b m + (1 - b) g;   w <- w - lr sign(m)   (b = beta, lr = learning_rate)

    Source: Bernstein et al. 2018 (arXiv 1802.04434), algorithm 2. beta=0 is signSGD.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      beta: b in [0, 1), a number or a schedule.
      accumulator_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu`, 4 bytes per parameter. Errors: TypeError for complex leaves.

    >>> import gradtx
    >>> gradtx.signum(1e-3).expand().stages[:2]
    (scale_by_momentum(decay=0.9, form='average'), scale_by_sign())
    """
    direction = stored(scale_by_momentum(beta, form="average"), accumulator_dtype)
    return direction >> scale_by_sign() >> scale_by_learning_rate(learning_rate)


@transform
def lion(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.99,
    *,
    weight_decay: NonNegative = 1e-3,
    mask: Any = None,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """Lion: steps by the sign of an average of gradients, with decoupled weight decay.

        w <- w - lr (sign(b1 m + (1 - b1) g) + weight_decay w);   m <- b2 m + (1 - b2) g   (lr = learning_rate)

    Source: Chen et al. 2023 (arXiv 2302.06675), algorithm 2. weight_decay 1e-3 is optax's default; Keras has no decay
    by default.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]; 3 to 10 times smaller than Adam's.
      b1, b2: decays in [0, 1), numbers or schedules.
      weight_decay: >= 0, a number or a schedule.
      mask: which leaves decay; see `add_decayed_weights`.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu`, 4 bytes per parameter. It needs the params. Errors: TypeError for complex leaves.

    >>> import gradtx
    >>> gradtx.lion(1e-4).expand().stages[0]
    scale_by_lion(b1=0.9, b2=0.99)
    """
    direction = scale_by_lion(b1, b2, mu_dtype=mu_dtype)
    return direction >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)
