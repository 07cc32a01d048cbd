"""Layer-wise effects: each leaf is treated as a whole, as the weights of a layer.

- `scale_by_trust_ratio()` makes every layer's step as long as its weights. After Adam's direction this is LAMB, after
  the plain gradient LARS.
- `centralize()` subtracts the mean over the inputs of each output.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core.annotations import NonNegative
from gradtx.core.elementary import transform
from gradtx.core.formula import per_leaf
from gradtx.core.rule import Rule


@transform
def scale_by_trust_ratio(
    min_norm: NonNegative = 0.0, trust_coefficient: NonNegative = 1.0, eps: NonNegative = 0.0, *, mask: Any = None
) -> Rule:
    """Makes the step of every leaf as long as its weights, times a coefficient.

        u = trust_coefficient g |w| / (|g| + eps),   norms at least min_norm;   u = g where |w| = 0 or |g| = 0

    Source: You, Gitman, Ginsburg 2017 (arXiv 1708.03888), equation 6; You et al. 2019 (arXiv 1904.00962), algorithm 2,
    with φ(|w|) = max(|w|, min_norm). Arguments and zero norms as in optax. The norms are right even if squares overflow
    or underflow. Complex leaves: |g|².

    Args:
      min_norm: a lower bound of both norms, >= 0, a number or a schedule. [params]
      trust_coefficient: >= 0, a number or a schedule. [1]
      eps: >= 0, a number or a schedule, in the unit of the updates.
      mask: which leaves adapt; the others pass unchanged. See `masked`.

    State: `count`, a scalar. It needs the params.

    Errors: ValueError for a negative argument or update without params; those of `masked`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.scale_by_trust_ratio(), jnp.array([30.0, 40.0])
    >>> tx.update(jnp.array([0.0, 2.0]), tx.init(params), params)[0]
    Array([ 0., 50.], dtype=float32)
    """

    def update(u: Array, *, params: Array) -> Array:
        size, length = tree.norm(u), jnp.maximum(tree.norm(params).value, min_norm)
        relative = jnp.maximum(size.relative, min_norm * size.unit)
        as_it_is = (length == 0) | (relative == 0)
        below = jnp.where(as_it_is, 1, relative + eps * size.unit)
        factor = jnp.where(as_it_is, 1, trust_coefficient * length / below)
        return tree.times(u, factor, jnp.where(as_it_is, 1, size.unit))

    return per_leaf(update, only=mask, traits=("idle", "norms"))


@transform
def centralize(*, output_axis: int = 0) -> Rule:
    """`u = g - mean(g)`, the mean over all axes but one, for leaves with at least two axes.

    Source: Yong et al. 2020 (arXiv 2004.01461), equation 1: the mean over the weights that feed one output. As in
    optax, the first axis is that of the outputs, as in PyTorch's layout. In the kernels of Flax and Keras it is the
    last: output_axis=-1.

    Args:
      output_axis: the axis that the mean does not go over, from -2 to 1, so that every matrix has it.

    State: none. Errors: ValueError for another axis.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.centralize().update(jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]), {})[0]
    Array([[-1.,  0.,  1.],
           [-2., -1.,  3.]], dtype=float32)
    """
    if not -2 <= output_axis <= 1:
        raise ValueError(f"gradtx.centralize: output_axis is {output_axis}; allowed: -2, -1, 0, 1.")

    def update(u: Array) -> Array:
        if u.ndim < 2:
            return u
        others = tuple(axis for axis in range(u.ndim) if axis != output_axis % u.ndim)
        return u - jnp.mean(u, others, keepdims=True)

    return per_leaf(update)
