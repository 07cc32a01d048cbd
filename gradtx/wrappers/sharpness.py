"""Sharpness-aware minimization: gradients at the worst point nearby lead to flat minima.

`sam(sgd(0.1))` is the paper's method, `sam(adamw(1e-3))` that of its experiments with Adam. Each update needs two
gradients: the one that it is given, and one at the perturbed params, which it gets from `grad_fn`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics, sharding, tree
from gradtx.core import check, fields
from gradtx.core.annotations import NonNegative, NonNegativeInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.wrappers.placing import refuse_first

PyTree = Any
State = dict[str, Any]


@transform
def sam(inner: Transform, rho: NonNegative = 0.05, key: NonNegativeInt = 0) -> Rule:
    """Gives `inner` the gradient at the nearby point of steepest ascent instead of the gradient at the params.

        e = rho g / |g|;   inner gets the gradient at w + e                         (|g| over all leaves)

    Source: Foret, Kleiner, Mobahi, Neyshabur 2020 (arXiv 2010.01412), algorithm 1, with p = 2. A gradient of 0, for
    which the paper has 0 / 0, gives e = 0. optax.contrib.sam spreads the two gradients over two updates, or takes both
    in one with `opaque_mode=True`; its e is a step of a second optimizer.

    Args:
      inner: any optimizer; it gets the params without e.
      rho: >= 0, a number or a schedule: the length of e. [params]
      key: the seed of the key in the state, which is used for rounding.

    Update takes the extra argument `grad_fn`: `grad_fn(params)` returns the gradients at other params on the same batch
    (for complex params the direction of ascent, the conjugate of `jax.grad`'s). `minimize` and `sweep` provide it.

    The perturbed params have the dtype of the params. In bfloat16 neighbours differ by 1/256 of a weight, and the one
    nearest to w + e is usually w. So bfloat16 and float16 are rounded stochastically: e is right on average, and noisy.
    `master_weights` goes inside; around sam it would round w + e to nearest.

    State: `{"sam": {"count", "key": the bits of a random key, which change only if something is rounded; "inner":
    inner's state}}`: nothing per parameter. It needs the params. A gradient that is not finite gives NaN.

    Errors: TypeError without grad_fn, or for an inner transform that must get the gradients unchanged (`loss_scaling`);
    ValueError for a negative rho, from update without params, or for a grad_fn that returns another tree.

    >>> import gradtx, jax
    >>> loss = lambda w: w**4
    >>> tx = gradtx.sam(gradtx.sgd(0.1), rho=0.5)
    >>> updates, state = tx.update(jax.grad(loss)(1.0), tx.init(1.0), 1.0, grad_fn=jax.grad(loss))
    >>> print(f"{updates:.2f}")
    -1.35
    """
    refuse_first("sam", inner)

    def update(
        updates: PyTree, state: State, params: PyTree, *, grad_fn: Callable[[PyTree], PyTree], **extra: Any
    ) -> tuple[PyTree, State]:
        # e <- rho g / |g|
        unit, size = _scaled(updates)
        perturbed = tree.map(lambda w, g, k: w + k * g, params, unit, k=numerics.divide(rho.astype(size.dtype), size))
        point, following = _rounded(perturbed, params, state["key"])
        gradient = grad_fn(point)
        check.check_alike("gradtx.sam", "what grad_fn returns", gradient, "params", params)
        known = {"grad_fn": grad_fn} if "grad_fn" in inner.facts.extra else {}
        updates, inner_state = inner.update(tree.cast_like(gradient, updates), state["inner"], params, **extra, **known)
        return updates, {"key": following, "inner": inner_state}

    return Rule(update=update, reach="tree", traits=("unobserved",), fields={"key": fields.key(key)})


def _rounded(point: PyTree, params: PyTree, bits: Array) -> tuple[PyTree, Array]:
    """The point in the dtypes of the params, right on average where those have fewer digits; and the next key."""
    dtypes = jax.tree.map(tree.dtype_of, params)
    if all(x.dtype == dtype for x, dtype in zip(jax.tree.leaves(point), jax.tree.leaves(dtypes), strict=True)):
        return point, bits
    following, drawn = numerics.leaf_keys(bits, jax.tree.leaves(params))
    keys = jax.tree.unflatten(jax.tree.structure(params), drawn)
    return jax.tree.map(numerics.round_stochastically, point, dtypes, keys), following


def _scaled(gradient: PyTree) -> tuple[PyTree, Array]:
    """The gradient divided by its largest element, so that no square over- or underflows; and the norm of that."""
    dtype = tree.precision(gradient)
    largest = jnp.zeros((), dtype)
    for leaf in jax.tree.leaves(gradient):
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0).astype(dtype))
    largest = sharding.largest(largest)
    # g / |g| does not depend on the scale, so neither do its derivatives. The inverse must be a normal number too.
    tiny = jnp.finfo(dtype).tiny
    scale = 1 / jnp.clip(jax.lax.stop_gradient(largest), tiny, 1 / tiny)
    unit = tree.map(lambda g, k: k * g, gradient, k=scale)
    return unit, tree.global_norm(unit)
