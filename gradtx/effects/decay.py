"""Weight decay: a pull on the weights themselves, towards zero or towards where they began.

Where it stands in a composition says which decay it is:

- in front of the direction, L2 regularization: the pull is averaged and scaled as if it came from the loss;
- behind the direction, in front of the learning rate, decoupled: AdamW's;
- behind the learning rate, with `flip_sign=True`, decoupled from the learning rate too.
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

    Source: Loshchilov and Hutter 2017 (arXiv 1711.05101). In front of a learning rate the decay is lr · weight_decay
    per step, as in PyTorch and optax; the paper's is independent of the learning rate, which is flip_sign=True behind
    it. Cautious: Chen et al. 2025 (arXiv 2510.12402), algorithm 1, whose mask is g w >= 0, zeros included, here
    asked of the signs so that the product cannot underflow. w0, the params given to init: Li, Grandvalet, Davoine 2018
    (arXiv 1802.01483, L2-SP), where weight_decay is called α; the decay β of new layers there is a second one with
    another mask.

    Args:
      weight_decay: a number >= 0, or a schedule. [1] per step, times the learning rate that follows.
      mask: which leaves decay; None for all. A tree of bools, a function of (path, leaf), or patterns such as
        "*/kernel": see `masked`.
      cautious: decay only where what flows through moves the weight the same way.
      toward_initial: pull towards the params that init was given instead of towards 0.
      flip_sign: subtract: for what stands behind the learning rate, where updates point downhill already.

    State: `count`, a scalar; with toward_initial also `initial`, a copy of the selected leaves in their own dtype (4
    bytes per parameter, of bfloat16 2). It needs the params.

    Errors: ValueError without params, for a mask of another structure or a pattern that matches nothing, TypeError
    for a mask that is not of bools, and for complex leaves with cautious.

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
