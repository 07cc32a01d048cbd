"""Weight decay: a pull on the weights themselves, towards zero or towards their initial values.

Its position in a composition decides which decay it is:

- before the direction: L2 regularization; the pull is averaged and scaled as if it came from the loss;
- after the direction and before the learning rate: decoupled, as in AdamW;
- after the learning rate, with `flip_sign=True`: independent of the learning rate too.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from gradtx.core import fields
from gradtx.core.annotations import NonNegative
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule


@transform
def add_decayed_weights(
    weight_decay: NonNegative = 0.0,
    mask: Any = None,
    *,
    cautious: bool = False,
    toward_initial: bool = False,
    flip_sign: bool = False,
) -> Rule:
    """`u = g + weight_decay w`, for the leaves that the mask selects.

        v = w, or w - w0 with toward_initial;   u = g + weight_decay v, or g - weight_decay v with flip_sign;
        cautious: v = 0 where the step g and the pull -v oppose each other

    Source: Loshchilov and Hutter 2017 (arXiv 1711.05101). Before a learning rate the decay is lr · weight_decay per
    step, as in PyTorch and optax. The paper's decay is independent of the learning rate: flip_sign=True, after the
    rate. Cautious: Chen et al. 2025 (arXiv 2510.12402), algorithm 1, whose mask is g w >= 0, zeros included; here the
    signs are compared, so that the product cannot underflow. toward_initial: Li, Grandvalet, Davoine 2018 (arXiv
    1802.01483, L2-SP), where weight_decay is called α and w0 are the params given to init. Their decay β of new layers
    is a second `add_decayed_weights` with another mask.

    Args:
      weight_decay: a number >= 0, or a schedule. [1] per step, times the learning rate that follows.
      mask: which leaves decay; None for all. A tree of bools, a function of (path, leaf), or patterns such as
        "*/kernel": see `masked`.
      cautious: decay only where the update moves the weight in the same direction.
      toward_initial: pull towards the params given to init instead of towards 0.
      flip_sign: subtract the decay: for use after the learning rate, where updates already point downhill.

    State: `count`, a scalar; with toward_initial also `initial`, a copy of the selected leaves in their own dtype (4
    bytes per parameter in float32, 2 in bfloat16). It needs the params.

    Errors: ValueError without params, for a mask of another structure or a pattern that matches nothing; TypeError
    for a mask with values other than bools, and for complex leaves with cautious.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.add_decayed_weights(0.5, mask={"kernel": True, "bias": False})
    >>> params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    >>> tx.update({"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}, tx.init(params), params)[0]
    {'bias': Array([0.], dtype=float32), 'kernel': Array([0.5], dtype=float32)}
    """
    sign = -1 if flip_sign else 1

    def update(u: Array, *, params: Array, initial: Array | None = None) -> Array:
        pull = sign * weight_decay * (params if initial is None else params - initial)
        return u + (jnp.where(jnp.sign(u) * jnp.sign(pull) >= 0, pull, 0) if cautious else pull)

    kept: dict[str, Any] = {"initial": fields.copy(dtype="params")} if toward_initial else {}
    return per_element(update, only=mask, traits=("real",) if cautious else (), **kept)


@transform
def decay_afterwards(learning_rate: NonNegative, weight_decay: NonNegative, *, skip_first: bool = False) -> Rule:
    """Weight decay of the weights after the step: w <- (w + u) (1 - lr λ).

        u <- u - lr λ (w + u)          (lr = learning_rate, λ = weight_decay)

    Source: the authors' SOAP (nikhilvyas/SOAP, commit a1e5535), GaLore and APOLLO. AdamW decays w itself.

    Args:
      learning_rate: >= 0, a number or a schedule; that of the step before it.
      weight_decay: >= 0, a number or a schedule.
      skip_first: no decay at the first step.

    State: `count`, a scalar. It needs the params.

    Errors: ValueError for a negative argument, and from update without params.

    >>> import gradtx
    >>> tx = gradtx.decay_afterwards(0.5, 0.5)
    >>> print(tx.update(-1.0, tx.init(3.0), 3.0)[0])
    -1.5
    """

    def update(u: Array, *, params: Array, count: Array) -> Array:
        pull = learning_rate * weight_decay * (params + u)
        return u - (jnp.where(count > 1, pull, 0) if skip_first else pull)

    return per_element(update)
