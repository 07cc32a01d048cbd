"""Gradient descent and momentum: directions without a scaling.

`sgd(0.1)` is w <- w - 0.1 g. `sgd(0.1, momentum=0.9)` follows the decayed sum of past gradients, and with
`nesterov=True` looks one step ahead. The gradient of a mini-batch makes it stochastic gradient descent; nothing else
changes.
"""

from gradtx.core.annotations import Dtype, NonNegative, Unit
from gradtx.core.elementary import transform
from gradtx.core.schedule import differs
from gradtx.core.storage import stored
from gradtx.core.transform import Transform
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.momentum import scale_by_momentum


@transform
def sgd(
    learning_rate: NonNegative,
    momentum: Unit | None = None,
    nesterov: bool = False,
    *,
    dampening: Unit | None = None,
    lr_inside_momentum: bool = False,
    accumulator_dtype: Dtype | None = None,
) -> Transform:
    """Gradient descent, by itself or with momentum.

        v <- b v + g;   w <- w - lr v;   nesterov: w <- w - lr (b v + g)   (b = momentum, lr = learning_rate)

    Source: Sutskever, Martens, Dahl, Hinton 2013. As in PyTorch and optax, v sums gradients and lr multiplies it.
    Keras has lr inside the velocity (`lr_inside_momentum=True`): v <- b v - lr g; w <- w + v. With a constant rate
    both are equal.

    Args:
      learning_rate: >= 0, a number or a schedule. [params² per loss]
      momentum: None, or b in [0, 1).
      nesterov: needs momentum.
      dampening: None, or in [0, 1): gradients after the first enter v with weight 1 - dampening (PyTorch).
      lr_inside_momentum: sum the steps instead of the gradients.
      accumulator_dtype: the dtype in which `mu` is `stored`; None for at least float32.

    State: without momentum only counters; with momentum `mu`, 4 bytes per parameter.

    Errors: ValueError for nesterov, dampening, lr_inside_momentum or a dtype without momentum.

    >>> import gradtx
    >>> gradtx.sgd(0.1, momentum=0.9).expand()
    scale_by_momentum(decay=0.9, form='sum') >> scale_by_learning_rate(learning_rate=0.1)
    """
    step = scale_by_learning_rate(learning_rate)
    if momentum is None:
        asked = {
            "nesterov": nesterov,
            "dampening": dampening is not None and differs(dampening, 0),
            "lr_inside_momentum": lr_inside_momentum,
            "accumulator_dtype": accumulator_dtype is not None,
        }
        for name in (name for name, given in asked.items() if given):
            raise ValueError(f"gradtx.sgd: {name} is given; it needs momentum. Pass momentum=0.9, for example.")
        return step
    velocity = scale_by_momentum(momentum, form="sum", nesterov=nesterov, dampening=dampening)
    velocity = stored(velocity, accumulator_dtype)
    return step >> velocity if lr_inside_momentum else velocity >> step
