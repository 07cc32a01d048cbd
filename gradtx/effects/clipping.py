"""Clipping: an update that is too long is shortened; any other passes unchanged.

    u = g min(1, limit / |g|)

The transforms differ in what |g| is taken over, and in where the limit comes from:

- `clip`: each element. `clip_by_leaf_norm`, `clip_by_block_rms`: each leaf. `clip_by_global_norm`: all leaves
  together, which keeps the direction of the whole update.
- `adaptive_grad_clip`: each unit of a layer, relative to the size of its weights.
- `clip_by_norm_growth`: each leaf, relative to the length of its previous update.
- `clip_by_percentile`: all leaves together, relative to the norms of the gradients so far.

Infinite elements are treated as the limit of ever larger ones: they share the allowed length, and finite elements
beside them become 0. NaN has no such limit. It stays NaN, and so does everything measured together with it.
"""

from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array

from gradtx import sharding, tree
from gradtx.core import fields
from gradtx.core.annotations import Interval, NonNegative, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element, per_leaf
from gradtx.core.rule import Rule
from gradtx.core.sums import Summed, norm_in_units

Percent = Annotated[Any, Interval(0, 100, closed_high=True)]
Limit = Annotated[Any, Interval(0, closed_low=False, closed_high=True)]


@transform
def clip(max_delta: Limit) -> Rule:
    """`u = min(max(g, -max_delta), max_delta)`, element by element.

    Args:
      max_delta: a number > 0 (inf: no limit), or a schedule, in the unit of the updates.

    State: `count`, a scalar. Errors: TypeError for complex leaves, which have no order.

    >>> import gradtx
    >>> tx = gradtx.clip(1.0)
    >>> tx.update(-4.0, tx.init(0.0))[0]
    Array(-1., dtype=float32)
    """
    return per_element(lambda u: jnp.clip(u, -max_delta, max_delta), traits=("real", "clips"))


@transform
def clip_by_global_norm(max_norm: Limit) -> Rule:
    """`u = g min(1, max_norm / |g|)`, where |g| is the norm over all leaves together.

    Source: Pascanu, Mikolov, Bengio 2013 (arXiv 1211.5063), algorithm 1. PyTorch adds 1e-6 to the norm; optax and
    gradtx do not. If squares overflow, the norm is still right (optax returns 0). If elements are infinite, they share
    max_norm (optax returns NaN). Complex leaves: |g|².

    Args:
      max_norm: a number > 0 (inf: no limit), or a schedule, in the unit of the updates.

    State: `count`, a scalar. Errors: ValueError for a max_norm that is not positive.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_global_norm(1.0)
    >>> tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init({"a": jnp.zeros(1), "b": jnp.zeros(1)}))[0]
    {'a': Array([0.6], dtype=float32), 'b': Array([0.8], dtype=float32)}
    """

    def update(u: Array, *, size: tree.Norm) -> Array:
        return tree.shorten(u, size, max_norm)

    return per_element(update, _measure_norm, traits=("clips",))


def _measure_norm(u: Array) -> dict[str, Summed]:
    return {"size": norm_in_units(u)}


@transform
def clip_by_leaf_norm(max_norm: Limit) -> Rule:
    """`u = g min(1, max_norm / |g|)`, where |g| is the norm of each leaf.

    Source: Pascanu, Mikolov, Bengio 2013 (arXiv 1211.5063), algorithm 1, for each leaf; Keras calls it clipnorm.
    Complex leaves: |g|².

    Args:
      max_norm: a number > 0 (inf: no limit), or a schedule, in the unit of the updates.

    State: `count`, a scalar. Errors: ValueError for a max_norm that is not positive.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.clip_by_leaf_norm(1.0), {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
    >>> tx.update(g, tx.init(g))[0]
    {'a': Array([0.6, 0.8], dtype=float32), 'b': Array([0.5], dtype=float32)}
    """
    return per_leaf(lambda u: tree.shorten(u, tree.norm(u), max_norm), traits=("clips", "norms"))


@transform
def clip_by_block_rms(threshold: Limit) -> Rule:
    """`u = g min(1, threshold / rms(g))`, where rms is the root mean square of each leaf.

    Source: as optax.clip_by_block_rms; Shazeer and Stern 2018 (arXiv 1804.04235), section 6, with d = threshold.
    Complex leaves: |g|².

    Args:
      threshold: a number > 0 (inf: no limit), or a schedule, in the unit of the updates.

    State: `count`, a scalar. Errors: ValueError for a threshold that is not positive.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_block_rms(1.0)
    >>> tx.update(jnp.array([2.0, -2.0]), tx.init(jnp.zeros(2)))[0]
    Array([ 1., -1.], dtype=float32)
    """

    def update(u: Array) -> Array:
        return tree.shorten(u, tree.norm(u), threshold * tree.number_of_elements(u) ** 0.5)

    return per_leaf(update, traits=("clips", "norms"))


@transform
def clip_by_norm_growth(max_growth: Limit = 1.01, eps: NonNegative = 1e-8) -> Rule:
    """Limits how fast the norm of each leaf's updates grows: `u = g min(1, max_growth (size + eps) / |g|)`.

    size is the norm of the previous update, after its own clipping. The first update is not clipped; nor is one after
    an update of 0, where the sources allow no more than eps, from which a norm needs 1850 steps to grow to 1.

    Source: Chen et al. 2024 (arXiv 2410.01623, Fira), section 4.3; eps as in apollo-torch. Complex leaves: |g|².

    Args:
      max_growth: a number > 0 (inf: no limit), or a schedule. [1]
      eps: >= 0, a number or a schedule. [unit of the updates]

    State: `size`, one number for each leaf; `count`, a scalar. Errors: ValueError for an argument outside its range.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_norm_growth(1.5, eps=0.0)
    >>> state = tx.init(jnp.zeros(2))
    >>> for g in [jnp.array([3.0, 4.0]), jnp.array([6.0, 8.0])]:
    ...     u, state = tx.update(g, state)
    >>> print(u)
    [4.5 6. ]
    """

    def update(u: Array, *, size: Array) -> tuple[Array, dict[str, Array]]:
        norm = tree.norm(u)
        limit = jnp.where(size > 0, max_growth * (size + eps), jnp.inf)
        return tree.shorten(u, norm, limit), {"size": jnp.minimum(norm.value, limit)}

    return per_leaf(update, traits=("clips", "norms"), size=fields.scalar(nonnegative=True))


@transform
def adaptive_grad_clip(clipping: Limit, eps: NonNegative = 1e-3, *, axis: int | tuple[int, ...] | None = None) -> Rule:
    """`u = g min(1, clipping max(|w|, eps) / |g|)`, where the norms are those of each unit of a layer.

    Source: Brock, De, Smith, Simonyan 2021 (arXiv 2102.06171), equation 3. A unit is the set of weights that feed one
    output. As in optax, the norms of a matrix go over axis 0, of a convolution kernel (HWIO, DHWIO) over all axes but
    the last, of three axes (input, head, size) over axis 0. A scalar or a vector, also of shape (1, n), is one unit.
    The paper does not clip the last linear layer: use `masked`. Complex leaves: |g|².

    Args:
      clipping: a number > 0 (inf: no limit), or a schedule: the longest allowed update in units of the weights.
        [unit of the updates / params]
      eps: >= 0, a number or a schedule; a lower bound of |w|, so that zero weights can move. [params]
      axis: the axes that a norm goes over, the same for all leaves; None chooses them by shape, as above.

    State: `count`, a scalar. It needs the params.

    Errors: ValueError for a clipping that is not positive, a negative eps, or update without params.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.adaptive_grad_clip(0.5), jnp.array([[3.0, 1.0], [4.0, 0.0]])
    >>> tx.update(jnp.array([[3.0, 6.0], [4.0, 8.0]]), tx.init(params), params)[0]
    Array([[1.5, 0.3],
           [2. , 0.4]], dtype=float32)
    """

    def update(u: Array, *, params: Array) -> Array:
        over = _unit_axes(u.shape) if axis is None else axis
        longest = clipping * jnp.maximum(tree.norm(params, over).value, eps)
        return tree.shorten(u, tree.norm(u, over), jnp.where(clipping == jnp.inf, clipping, longest))

    return per_leaf(update, traits=("idle", "clips"))


def _unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a leaf whose elements feed one output."""
    if sum(length != 1 for length in shape) <= 1:
        return tuple(range(len(shape)))
    return (0,) if len(shape) in (2, 3) else tuple(range(len(shape) - 1))


@transform
def clip_by_percentile(percentile: Percent, window: PositiveInt = 1000) -> Rule:
    """`u = g min(1, limit / |g|)`, where limit is a percentile of the recent global norms |g|, including this one.

    Source: Seetharaman, Wichern, Pardo, Le Roux 2020 (arXiv 2007.14469, AutoClip). The paper keeps the norms of all
    steps; this transform keeps the last `window`. The percentile is interpolated linearly, as by numpy.percentile.
    Norms that are not finite are never recorded; before the first finite one nothing is clipped.

    Args:
      percentile: in [0, 100], a number or a schedule; the paper takes 10: nine of ten gradients are shortened.
      window: how many norms are kept, at least 1.

    State: `norms`, 4 bytes for each of the window; `filled` and `next`, counters, and `count`: scalars.

    Errors: ValueError for a percentile outside [0, 100] or a window below 1.

    >>> import gradtx
    >>> tx = gradtx.clip_by_percentile(50.0)
    >>> state = tx.init(0.0)
    >>> for g in [1.0, 2.0, -8.0]:
    ...     u, state = tx.update(g, state)
    >>> u
    Array(-2., dtype=float32)
    """

    def once(*, size: tree.Norm, norms: Array, filled: Array, next: Array) -> dict[str, Any]:  # noqa: A002 - a field
        length = size.value
        finite = jnp.isfinite(length)
        one = finite.astype(jnp.int32)
        norms = jnp.where(finite & (jnp.arange(window, dtype=jnp.int32) == next), length, norms)
        filled = jnp.minimum(filled + one, window)
        moved = {"norms": norms, "filled": filled, "next": (next + one) % window}
        return moved | {"size": size, "limit": _percentile(norms, filled, percentile), "any": filled > 0}

    def update(u: Array, *, size: tree.Norm, limit: Array, any: Array) -> Array:  # noqa: A002 - of the norms
        return jnp.where(any, tree.shorten(u, size, limit), u)

    counts = {"filled": fields.integer(per="tree"), "next": fields.integer(per="tree")}
    norms = fields.history(window, per="tree", nonnegative=True)
    return per_element(update, _measure_norm, once, traits=("clips",), norms=norms, **counts)


def _percentile(norms: Array, filled: Array, percent: Any) -> Array:
    """The percentile of the recorded norms, interpolated linearly."""
    norms = sharding.whole(norms)  # avoids a sort across devices
    ordered = jnp.sort(jnp.where(jnp.arange(norms.size, dtype=jnp.int32) < filled, norms, jnp.inf))
    last = jnp.maximum(filled - 1, 0)
    place = (0.01 * percent).astype(norms.dtype) * last.astype(norms.dtype)
    below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, last)
    low, high = (jnp.take(ordered, index) for index in (below, jnp.minimum(below + 1, last)))
    return low + (place - below.astype(norms.dtype)) * (high - low)
