"""The size of the step: a factor, a learning rate, a schedule, or the sign alone.

- `scale(-0.1)` is gradient descent, `scale_by_learning_rate(0.1)` the same with the sign built in.
- `scale_by_sign()` after an average of gradients is signum.
"""

import jax.numpy as jnp

from gradtx.core.annotations import Finite, NonNegative
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule
from gradtx.core.schedule import Schedule
from gradtx.core.transform import Transform


@transform
def scale(step_size: Finite) -> Rule:
    """`u = step_size g`.

    Args:
      step_size: any finite number, or a schedule.

    State: `count`, a scalar. Errors: TypeError or ValueError for anything else.

    >>> import gradtx
    >>> tx = gradtx.scale(-0.5)
    >>> tx.update(4.0, tx.init(0.0))[0]
    Array(-2., dtype=float32)
    """
    return per_element(lambda u: step_size * u)


@transform
def scale_by_learning_rate(learning_rate: NonNegative, *, flip_sign: bool = True) -> Rule:
    """`u = -learning_rate g`: the step down the gradient.

    Args:
      learning_rate: a number >= 0, or a schedule. [params per step] after a scaling such as Adam's, [params² per
        loss] otherwise.
      flip_sign: False keeps the sign, and ascends.

    State: `count`, a scalar. Errors: TypeError for None or a string, ValueError for NaN or a negative number.

    >>> import gradtx
    >>> tx = gradtx.scale_by_learning_rate(0.5)
    >>> tx.update(4.0, tx.init(0.0))[0]
    Array(-2., dtype=float32)
    """
    sign = -1 if flip_sign else 1
    return per_element(lambda u: sign * learning_rate * u, traits=("descends",) if flip_sign else ())


@transform
def scale_by_schedule(step_size_fn: Schedule) -> Transform:
    """`u = step_size_fn(count) g`, where count updates were already made.

    Args:
      step_size_fn: a schedule, or any function of the count. Its sign is kept: use `scale_by_learning_rate(schedule)`
        to descend.

    State: `count`, a scalar, in the entry of `scale`.

    Errors: TypeError for anything but a schedule or a function.

    >>> import gradtx
    >>> tx = gradtx.scale_by_schedule(gradtx.linear_schedule(1.0, 0.0, 10))
    >>> tx.update(4.0, tx.init(0.0))[0]
    Array(4., dtype=float32)
    """
    return scale(step_size_fn)


@transform
def scale_by_sign() -> Rule:
    """`u = sign(g)`, 0 at 0.

    Source: Bernstein et al. 2018 (arXiv 1802.04434), algorithm 1. Complex leaves are refused: the paper does not define
    them, and libraries differ (g / |g|, or the sign of each part).

    State: none. Errors: TypeError for complex leaves.

    >>> import gradtx
    >>> gradtx.scale_by_sign().update(-4.0, {})[0]
    Array(-1., dtype=float32)
    """
    return per_element(lambda u: jnp.sign(u), traits=("real",))
