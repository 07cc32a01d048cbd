"""Adam and its variants: a debiased average for the direction, a measure of past magnitudes for the scaling.

    adam    scale_by_momentum                + scale_by_rms
    amsgrad scale_by_momentum                + scale_by_rms, never smaller than before
    adamax  scale_by_momentum                + scale_by_infinity_norm
    nadam   scale_by_momentum, one step ahead + scale_by_rms

`adamw` and `nadamw` add decoupled weight decay.
"""

from typing import Any, Literal

from gradtx.adaptive import scale_by_adam, scale_by_infinity_norm, scale_by_rms
from gradtx.core.annotations import Dtype, NonNegative, Unit
from gradtx.core.elementary import transform
from gradtx.core.storage import stored
from gradtx.core.transform import Transform
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.momentum import scale_by_momentum, scale_by_nadam_momentum


@transform
def adam(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_root: NonNegative | None = None,
    nesterov: bool = False,
    eps_hat: bool = False,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """Adam: momentum and RMSProp side by side, both with their bias corrected.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g²
        w <- w - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)   (lr = learning_rate)

    Source: Kingma and Ba 2014 (arXiv 1412.6980), algorithm 1. As PyTorch and optax. Keras has the paper's eps-hat
    (section 2): eps_hat=True, 1e-7.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1, b2: decays in [0, 1), numbers or schedules.
      eps: >= 0. [gradient]
      eps_root: >= 0, added inside the root as well. [gradient²]
      nesterov: Nadam's direction.
      eps_hat: Kingma's eps-hat in place of eps.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu` and `nu`, 8 bytes per parameter.

    Errors: ValueError for a decay outside [0, 1), a negative eps or learning rate, or NaN; TypeError for None, a
    string or a bool.

    >>> import gradtx
    >>> gradtx.adam(1e-3).expand()
    scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08) >> scale_by_learning_rate(learning_rate=0.001)
    """
    direction = stored(scale_by_momentum(b1, nesterov=nesterov), mu_dtype)
    scaling = scale_by_rms(b2, eps, eps_root=eps_root, eps_hat=eps_hat)
    return direction + scaling >> scale_by_learning_rate(learning_rate)


@transform
def adamw(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    weight_decay: NonNegative = 1e-4,
    mask: Any = None,
    eps_root: NonNegative | None = None,
    nesterov: bool = False,
    eps_hat: bool = False,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """Adam with decoupled weight decay.

        w <- w - lr (u + weight_decay w),   where u is Adam's direction   (lr = learning_rate)

    Source: Loshchilov and Hutter 2017 (arXiv 1711.05101), algorithm 2, with the decay multiplied by the learning rate,
    as in PyTorch (weight_decay 0.01), Keras (0.004) and optax (1e-4, the default here).

    Args:
      learning_rate, b1, b2, eps, eps_root, nesterov, eps_hat: as `adam`.
      weight_decay: >= 0, a number or a schedule; each step subtracts lr · weight_decay of each weight.
      mask: which leaves decay; see `add_decayed_weights`.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: that of `adam`, 8 bytes per parameter. It needs the params.

    Errors: as `adam`; ValueError from update without params, or for a mask of another structure.

    >>> import gradtx
    >>> gradtx.adamw(1e-3).expand().stages[-2:]
    (add_decayed_weights(weight_decay=0.0001, mask=None), scale_by_learning_rate(learning_rate=0.001))
    """
    adam_direction = scale_by_adam(
        b1, b2, eps, eps_root=eps_root, nesterov=nesterov, eps_hat=eps_hat, mu_dtype=mu_dtype
    )
    return adam_direction >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)


@transform
def amsgrad(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    maximum: Literal["raw", "corrected"] = "corrected",
    eps_root: NonNegative | None = None,
    eps_hat: bool = False,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """Adam that divides by the largest second moment so far, so that no step size grows again.

        x <- max(x, v / (1 - b2^t));   w <- w - lr m / (1 - b1^t) / (sqrt(x) + eps)   (lr = learning_rate)

    Source: Reddi, Kale, Kumar 2018 (arXiv 1904.09237), algorithm 2, which corrects no bias. The default is optax's;
    PyTorch takes the maximum of the raw v and corrects it afterwards (maximum="raw"). So does Keras, with eps-hat
    (eps_hat=True).

    Args:
      learning_rate, b1, b2, eps, eps_root, eps_hat: as `adam`.
      maximum: take the maximum of the "corrected" or the "raw" average.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu`, `nu`, `nu_max`, 12 bytes per parameter.

    Errors: as `adam`; ValueError for eps_hat with maximum="corrected".

    >>> import gradtx
    >>> gradtx.amsgrad(1e-3).expand().stages[0]
    scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08, maximum='corrected')
    """
    scaling = scale_by_rms(b2, eps, eps_root=eps_root, eps_hat=eps_hat, maximum=maximum)
    return stored(scale_by_momentum(b1), mu_dtype) + scaling >> scale_by_learning_rate(learning_rate)


@transform
def adamax(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_in_max: bool = True,
) -> Transform:
    """Adam with a decayed maximum of the absolute gradients in place of their root mean square.

        n <- max(b2 n, |g| + eps);   w <- w - lr m / (1 - b1^t) / n   (lr = learning_rate)

    Source: Kingma and Ba 2014 (arXiv 1412.6980), algorithm 2. eps as in PyTorch and optax; Keras adds it after the
    maximum (eps_in_max=False, 1e-7).

    Args:
      learning_rate, b1, b2, eps: as `adam`.
      eps_in_max: add eps inside the maximum; False adds it after the maximum.

    State: `mu` and `nu`, 8 bytes per parameter.

    Errors: as `adam`.

    >>> import gradtx
    >>> gradtx.adamax(2e-3).expand().stages[0]
    scale_by_momentum(decay=0.9) + scale_by_infinity_norm(decay=0.999, eps=1e-08)
    """
    scaling = scale_by_infinity_norm(b2, eps, eps_in_max=eps_in_max)
    return scale_by_momentum(b1) + scaling >> scale_by_learning_rate(learning_rate)


def _nadam_direction(b1: Any, momentum_decay: Any, mu_dtype: str | None) -> Transform:
    """Nadam's direction with constant b1, or with Dozat's momentum, which warms up."""
    warming = momentum_decay is not None
    direction = scale_by_nadam_momentum(b1, momentum_decay) if warming else scale_by_momentum(b1, nesterov=True)
    return stored(direction, mu_dtype)


@transform
def nadam(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    momentum_decay: NonNegative | None = None,
    eps_root: NonNegative | None = None,
    eps_hat: bool = False,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """Adam with Nesterov's look-ahead in its direction.

        w <- w - lr (b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Source: Dozat 2016 ("Incorporating Nesterov momentum into Adam"). The default, constant b1, is optax's. PyTorch
    and Keras warm the momentum up: momentum_decay=4e-3 and 1 (see `scale_by_nadam_momentum`).

    Args:
      learning_rate (lr), b1, b2, eps, eps_root, eps_hat: as `adam`.
      momentum_decay: None for constant b1, or ψ >= 0 in Dozat's μ_t = b1 (1 - 0.96^(t ψ) / 2).
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: `mu` and `nu`, 8 bytes per parameter.

    Errors: as `adam`; ValueError for a negative momentum_decay.

    >>> import gradtx
    >>> gradtx.nadam(2e-3).expand().stages[0]
    scale_by_momentum(decay=0.9, nesterov=True) + scale_by_rms(decay=0.999, eps=1e-08)
    """
    scaling = scale_by_rms(b2, eps, eps_root=eps_root, eps_hat=eps_hat)
    return _nadam_direction(b1, momentum_decay, mu_dtype) + scaling >> scale_by_learning_rate(learning_rate)


@transform
def nadamw(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    weight_decay: NonNegative = 1e-4,
    mask: Any = None,
    momentum_decay: NonNegative | None = None,
    eps_root: NonNegative | None = None,
    eps_hat: bool = False,
    mu_dtype: Dtype | None = None,
) -> Transform:
    """Nadam with decoupled weight decay: w <- w - lr (u + weight_decay w), where u is Nadam's direction.

    Source: as `nadam` and `adamw`.

    Args:
      learning_rate, b1, b2, eps, momentum_decay, eps_root, eps_hat: as `nadam`.
      weight_decay, mask: as `adamw`.
      mu_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: that of `nadam`, 8 bytes per parameter. It needs the params.

    Errors: as `adamw`.

    >>> import gradtx
    >>> gradtx.nadamw(1e-3, weight_decay=0.01).expand().stages[1]
    add_decayed_weights(weight_decay=0.01, mask=None)
    """
    scaling = scale_by_rms(b2, eps, eps_root=eps_root, eps_hat=eps_hat)
    direction = _nadam_direction(b1, momentum_decay, mu_dtype) + scaling
    return direction >> add_decayed_weights(weight_decay, mask) >> scale_by_learning_rate(learning_rate)
