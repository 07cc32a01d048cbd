"""Adagrad and its successors: a step size for each parameter, from its own past gradients.

`adagrad` divides by the size of all past gradients, `rmsprop` by that of the recent ones. `adadelta` also multiplies
by the size of its own recent steps, so that it needs no learning rate.
"""

from typing import Any

from gradtx.adaptive import scale_by_adadelta, scale_by_adagrad, scale_by_rms
from gradtx.core.annotations import NonNegative, Unit
from gradtx.core.compose import identity
from gradtx.core.elementary import transform
from gradtx.core.transform import Transform
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.momentum import scale_by_momentum


@transform
def adagrad(
    learning_rate: NonNegative,
    initial_accumulator_value: NonNegative = 0.1,
    eps: NonNegative = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> Transform:
    """Adagrad: each parameter's steps shrink as its squared gradients add up.

        s <- s + g²;   w <- w - lr g / sqrt(s + eps)   (lr = learning_rate)

    Source: Duchi, Hazan, Singer 2011 (JMLR 12). Defaults as in optax and Keras. PyTorch: (lr, 0.0, 1e-10,
    eps_in_sqrt=False); its lr_decay is `inverse_time_schedule`.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step] at first.
      initial_accumulator_value: s before the first update, >= 0. [gradient²]
      eps: >= 0. [gradient²] inside the root, [gradient] outside.
      eps_in_sqrt: add eps inside the root; False adds it outside.

    State: `sum_of_squares`, 4 bytes per parameter.

    Errors: as `adam`, for its own arguments.

    >>> import gradtx
    >>> gradtx.adagrad(0.01).expand()
    scale_by_adagrad(initial_accumulator_value=0.1, eps=1e-07) >> scale_by_learning_rate(learning_rate=0.01)
    """
    scaling = scale_by_adagrad(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt)
    return scaling >> scale_by_learning_rate(learning_rate)


@transform
def rmsprop(
    learning_rate: NonNegative,
    decay: Unit = 0.9,
    eps: NonNegative = 1e-8,
    *,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Unit | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    lr_inside_momentum: bool = True,
) -> Transform:
    """RMSProp: Adagrad with an average, which forgets; with momentum, a decayed sum of the *scaled* gradients.

        v <- b v + (1 - b) g²;   w <- w - lr g / sqrt(v + eps)   (b = decay, lr = learning_rate)

    Source: Hinton 2012 (lecture 6e). By default eps and lr are placed as in optax. PyTorch: eps_in_sqrt=False,
    lr_inside_momentum=False, decay 0.99. Keras: eps 1e-7.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      decay: b in [0, 1), a number or a schedule.
      eps: >= 0. [gradient²] inside the root, [gradient] outside.
      initial_scale: v before the first update, >= 0. [gradient²]
      eps_in_sqrt: add eps inside the root; False adds it outside.
      centered: divide by the root of the variance instead of the mean square.
      momentum: None, or the decay in [0, 1) of a sum of the scaled gradients.
      nesterov: needs momentum.
      bias_correction: divide v by 1 - b^t.
      lr_inside_momentum: apply the learning rate inside the sum; False multiplies the sum by it.

    State: `nu`, 4 bytes per parameter; 4 more for each `mu`, one with centered and one with momentum.

    Errors: ValueError for nesterov without momentum.

    >>> import gradtx
    >>> gradtx.rmsprop(1e-3, momentum=0.9, lr_inside_momentum=False).expand().stages[1:]
    (scale_by_momentum(decay=0.9, form='sum'), scale_by_learning_rate(learning_rate=0.001))
    """
    if momentum is None and nesterov:
        raise ValueError("gradtx.rmsprop: nesterov is True; it needs momentum. Pass momentum=0.9, for example.")
    scaling = scale_by_rms(
        decay,
        eps,
        debias=bias_correction,
        centered=centered,
        eps_in_sqrt=eps_in_sqrt,
        initial_scale=initial_scale,
    )
    step = scale_by_learning_rate(learning_rate)
    velocity = identity()
    if momentum is not None:
        velocity = scale_by_momentum(momentum, form="sum", nesterov=nesterov)
    return scaling >> step >> velocity if lr_inside_momentum else scaling >> velocity >> step


@transform
def adadelta(
    learning_rate: NonNegative = 1.0,
    rho: Unit = 0.9,
    eps: NonNegative = 1e-6,
    *,
    weight_decay: NonNegative | None = None,
    mask: Any = None,
) -> Transform:
    """Adadelta: gradients relative to their recent size, times the size of the recent steps.

        s <- r s + (1 - r) g²;   u = g sqrt(d + eps) / sqrt(s + eps);   d <- r d + (1 - r) u²;   w <- w - lr u

    Source: Zeiler 2012 (arXiv 1212.5701), algorithm 1, which has no learning rate: the default is 1. optax's default
    (None) ascends. Keras: (0.001, 0.95, 1e-7).

    Args:
      learning_rate: >= 0, a number or a schedule. [1]
      rho: r in [0, 1), a number or a schedule.
      eps: >= 0; sets the size of the first steps.
      weight_decay: None, or >= 0: adds weight_decay · w to the gradient (L2), as in optax.
      mask: which leaves decay; see `add_decayed_weights`.

    State: `mean_square_gradient`, `mean_square_step`, 8 bytes per parameter.

    Errors: ValueError for a mask without weight_decay.

    >>> import gradtx
    >>> gradtx.adadelta().expand()
    scale_by_adadelta(rho=0.9, eps=1e-06) >> scale_by_learning_rate(learning_rate=1.0)
    """
    if weight_decay is None and mask is not None:
        raise ValueError("gradtx.adadelta: mask is given; it needs weight_decay. Pass both.")
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return decay >> scale_by_adadelta(rho, eps) >> scale_by_learning_rate(learning_rate)
