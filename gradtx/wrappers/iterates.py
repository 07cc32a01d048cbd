"""Wrappers that keep other points beside the params: slow weights, or an average.

- `lookahead`: the params run ahead for some steps, then are drawn back towards the slow weights.
- `schedule_free`: gradients are taken between the point that the optimizer moves and the average of its path. The
  average replaces a decaying learning rate.

Their updates lead to a point that they chose, so no other transform may change these updates. If the params are changed
from outside (loaded, projected), the points that these wrappers keep move along.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import numerics, sharding, tree
from gradtx.adaptive import scale_by_rms
from gradtx.core import check, fields
from gradtx.core.annotations import Fraction, NonNegative, PositiveInt, Unit
from gradtx.core.apply import apply_updates
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.wrappers.averaging import towards
from gradtx.wrappers.placing import refuse_final, refuse_waiting

PyTree = Any
State = dict[str, Any]


def moved_from_outside(params: PyTree, expected: PyTree, stored: PyTree) -> PyTree:
    """How far the params are from the point of the last update; 0 where rounding of params or state explains it."""

    def at_leaf(w: Array, e: Array, eps: float) -> Array:
        return jnp.where(abs(w - e) <= eps * jnp.maximum(abs(w), abs(e)), jnp.zeros_like(e), w - e)

    def digits(*leaves: Any) -> float:
        return max(float(jnp.finfo(tree.dtype_of(leaf)).eps) for leaf in leaves)

    wide = tree.to_compute_dtype(expected)
    return jax.tree.map(at_leaf, tree.cast_like(params, wide), wide, jax.tree.map(digits, params, stored))


@transform
def lookahead(
    inner: Transform,
    sync_period: PositiveInt = 6,
    slow_step_size: Fraction = 0.5,
    *,
    reset_state: bool = False,
) -> Rule:
    """Lets `inner` run ahead, and draws the params back towards slow weights every `sync_period` updates.

        fast = w + u;   at every k-th update:   slow <- slow + α (fast - slow);   u = slow - w
        otherwise u is that of inner                                (k = sync_period, α = slow_step_size)

    Source: Zhang, Lucas, Hinton, Ba 2019 (arXiv 1907.08610), algorithm 1; k and α are those of their experiments on
    CIFAR. optax.lookahead takes and returns pairs of fast and slow params; here the params are the fast weights, and
    the slow ones are in the state. After a synchronization both are equal; if the params are then changed from outside,
    the slow weights follow. If they are changed at another step, only the fast weights change.

    Args:
      inner: any optimizer.
      sync_period: k >= 1, the number of updates from one synchronization to the next.
      slow_step_size: α in [0, 1], a number or a schedule.
      reset_state: reset the state of `inner`, counters and schedules included, at each synchronization. Its random keys
        are not reset, or every period would draw the same numbers.

    State: `inner`, its state; `slow`, like the params in at least float32: 4 bytes per parameter; `count`, a scalar. It
    needs the params.

    Errors: TypeError for an inner transform whose updates must be applied unchanged, or that makes its steps at some
    updates only; ValueError for a sync_period below 1, a step size outside [0, 1], or from update without params.

    >>> import gradtx
    >>> tx, w = gradtx.lookahead(gradtx.sgd(1.0), sync_period=2), 4.0
    >>> state = tx.init(w)
    >>> for g in [1.0, 1.0]:
    ...     updates, state = tx.update(g, state, w)
    ...     w = gradtx.apply_updates(w, updates)
    ...     print(f"{w:.1f}")
    3.0
    3.0
    """
    refuse_final("lookahead", inner)
    refuse_waiting("lookahead", inner)

    def update(updates: PyTree, state: State, params: PyTree, *, count: Array, **extra: Any) -> tuple[PyTree, State]:
        updates, inner_state = inner.update(updates, state["inner"], params, **extra)
        period = numerics.within_int32(sync_period)
        begins, due = (count - 1) % period == 0, count % period == 0
        outside = moved_from_outside(params, state["slow"], state["slow"])
        slow = tree.map(lambda s, d: jnp.where(begins, s + d, s), state["slow"], outside)
        fast = tree.map(operator.add, params, updates)
        slow = towards(slow, fast, jnp.where(due, slow_step_size, jnp.zeros_like(slow_step_size)))
        updates = tree.map(lambda u, s, w: jnp.where(due, s - w, u), updates, slow, params)
        if reset_state:
            with check.questioned(state["inner"]):  # a new state laid out as the old one
                fresh = sharding.all_like(inner.init(apply_updates(params, updates)), inner_state)
            inner_state = jax.tree.map(lambda old, new: _reset(old, new, due), inner_state, fresh)
        return updates, {"inner": inner_state, "slow": slow}

    return Rule(update=update, traits=("unobserved",), fields={"slow": fields.copy()})


def _reset(old: Array, new: Array, due: Array) -> Array:
    """The new leaf where due; random keys, or their bits, are not reset."""
    random = old.dtype == np.uint32 or jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
    return old if random else jnp.where(due, new, old)


@transform
def schedule_free(
    inner: Transform,
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    weight_lr_power: NonNegative = 2.0,
) -> Rule:
    """Averages the path of `inner`, so that its learning rate need not decay.

        z <- z + u(g at y, params y);   m <- max(m, lr);   c = m^p / sum of m^p so far
        x <- x + c (z - x);   y <- x + (1 - b1) (z - x)             (lr = learning_rate, p = weight_lr_power)

    The params are y, where gradients are taken; x is the average, the point to evaluate. If the params are changed from
    outside by more than rounding, z and x move along.

    Source: Defazio et al. 2024 (arXiv 2405.15682), algorithm 1. Departure: the paper's weights are lr²; for a learning
    rate that only rises, m² is the same. The authors' code and optax use the running maximum m too. optax evaluates the
    schedule of the weights one step ahead of that of `inner`. It keeps only z and computes x from y, which needs
    b1 > 0.

    Args:
      inner: an optimizer without momentum, which b1 replaces; weight decay in it acts on y.
      learning_rate: >= 0, the same number or schedule as in `inner`; only its ratios matter. It may warm up
        (`warmup_constant_schedule`), and should never fall.
      b1: in [0, 1): how close y is to x.
      weight_lr_power: p >= 0; with 0 all steps have the same weight, also those of a warmup.

    State: `inner`, its state; `z`, and `average` for x, like the params in at least float32: 8 bytes per parameter;
    `b1`, `weight_sum`, `largest` and `count`, scalars. It needs the params. `averaged_params(state)` reads x.

    Errors: TypeError for an inner transform whose updates must be applied unchanged, or that makes its steps at some
    updates only; ValueError for a number out of range, or from update without params.

    >>> import gradtx
    >>> tx, w = gradtx.schedule_free(gradtx.sgd(1.0), 1.0), 4.0
    >>> state = tx.init(w)
    >>> for g in [1.0, 1.0]:
    ...     updates, state = tx.update(g, state, w)
    ...     w = gradtx.apply_updates(w, updates)
    >>> print(f"{gradtx.find(state, 'z'):.2f} {gradtx.averaged_params(state):.2f} {w:.2f}")
    2.00 2.50 2.45
    """
    refuse_final("schedule_free", inner)
    refuse_waiting("schedule_free", inner)

    def update(updates: PyTree, state: State, params: PyTree, **extra: Any) -> tuple[PyTree, State]:
        updates, inner_state = inner.update(updates, state["inner"], params, **extra)
        outside = moved_from_outside(params, _between(state["average"], state["z"], state["b1"]), state["z"])
        average, z = (tree.map(operator.add, state[name], outside) for name in ("average", "z"))
        z = tree.map(operator.add, z, updates)
        largest = jnp.maximum(state["largest"].astype(learning_rate.dtype), learning_rate)
        weight = _power(largest, weight_lr_power)
        weight_sum = state["weight_sum"].astype(weight.dtype) + weight
        # While the learning rate is 0, the weights are 0 and nothing has moved: c is 0.
        x = towards(average, z, numerics.divide(weight, weight_sum))
        y = _between(x, z, b1)
        scalars = {"weight_sum": weight_sum, "largest": largest, "b1": b1}
        return tree.map(operator.sub, y, params), {"inner": inner_state, "z": z, "average": x} | scalars

    numbers = {"weight_sum": 0.0, "largest": 0.0, "b1": b1}
    kept = {name: fields.scalar(start, per="tree", nonnegative=True) for name, start in numbers.items()}
    kept |= {"z": fields.copy(), "average": fields.copy()}
    return Rule(update=update, traits=("unobserved", "leaves"), fields=kept)


def _between(x: PyTree, z: PyTree, b1: Array) -> PyTree:
    """y, where gradients are taken."""
    return tree.map(_part_way, x, z, share=1 - b1)


def _part_way(x: Array, z: Array, share: Array) -> Array:
    return x + share * (z - x)


def _power(x: Array, power: Array) -> Array:
    """`x ** power` for x >= 0, with 0⁰ = 1 and derivative 0 at 0."""
    safe = jnp.where(x > 0, x, jnp.ones_like(x))
    return jnp.where(x > 0, safe**power, (power == 0).astype(x.dtype))


@transform
def schedule_free_sgd(
    learning_rate: NonNegative = 1.0,
    b1: Unit = 0.9,
    *,
    weight_decay: NonNegative | None = None,
    weight_lr_power: NonNegative = 2.0,
) -> Transform:
    """Gradient descent under `schedule_free`.

        z <- z - lr (g + weight_decay y);   x and y as in `schedule_free`                 (lr = learning_rate)

    Source: Defazio et al. 2024 (arXiv 2405.15682), equations 3 to 5; the decay acts on y, as in the authors' code and
    optax. In place of optax's `warmup_steps`, the learning rate is a schedule.

    Args:
      learning_rate: >= 0, a number or a schedule that does not fall. [params² per loss]
      b1, weight_lr_power: as `schedule_free`.
      weight_decay: None, or >= 0, a number or a schedule.

    State: that of `schedule_free`, 8 bytes per parameter. It needs the params.

    Errors: those of `schedule_free`; ValueError for a negative decay.

    >>> import gradtx
    >>> gradtx.schedule_free_sgd(gradtx.warmup_constant_schedule(0.0, 1.0, 100)).expand().inner
    scale_by_learning_rate(learning_rate=warmup_constant_schedule(init_value=0.0, peak_value=1.0, warmup_steps=100))
    """
    step = scale_by_learning_rate(learning_rate)
    inner = step if weight_decay is None else add_decayed_weights(weight_decay) >> step
    return schedule_free(inner, learning_rate, b1, weight_lr_power)


@transform
def schedule_free_adamw(
    learning_rate: NonNegative = 0.0025,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    *,
    weight_decay: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
) -> Transform:
    """AdamW, with its momentum replaced by that of `schedule_free`.

        v <- b2 v + (1 - b2) g²;   x and y as in `schedule_free`                                 (lr = learning_rate)
        z <- z - lr (g / (sqrt(v / (1 - b2^t)) + eps) + weight_decay y)

    Source: Defazio et al. 2024 (arXiv 2405.15682), algorithm 1. As the authors' code and optax; in place of their
    `warmup_steps`, the learning rate is a schedule.

    Args:
      learning_rate: >= 0, a number or a schedule that does not fall. [params per step]
      b1, weight_lr_power: as `schedule_free`.
      b2: in [0, 1), a number or a schedule.
      eps: >= 0. [gradient]
      weight_decay: >= 0, a number or a schedule; each step subtracts lr · weight_decay · y.

    State: that of `schedule_free`, and `nu`: 12 bytes per parameter. It needs the params.

    Errors: those of `schedule_free`; ValueError for a decay outside [0, 1), a negative eps or weight decay.

    >>> import gradtx
    >>> [stage.name for stage in gradtx.schedule_free_adamw().expand().inner.stages]
    ['scale_by_rms', 'add_decayed_weights', 'scale_by_learning_rate']
    """
    scaling = scale_by_rms(b2, eps)
    step = scaling >> add_decayed_weights(weight_decay) >> scale_by_learning_rate(learning_rate)
    return schedule_free(step, learning_rate, b1, weight_lr_power)
