"""Training of bfloat16 and float16 parameters, though each step may be smaller than their last digit.

    1 - 0.0001 = 1 in bfloat16, however often it is repeated: the model does not train, and no error says so.

Three wrappers solve this for any optimizer. Each returns float32 updates that `apply_updates` rounds to exactly the
params that the wrapper chose:

- `stochastic_rounding(tx)` rounds to one of the two neighbours, at random, right on average. No memory.
- `kahan_summation(tx)` keeps what rounding took off, and adds it to the next step. 2 bytes per parameter.
- `master_weights(tx)` trains float32 parameters in the state; the params are rounded copies of them. 4 bytes.

For gradients that float16 cannot hold there is `loss_scaling(tx)`.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics, tree
from gradtx.core import fields, selection, views
from gradtx.core.annotations import NonNegativeInt, PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.rule import GRADIENTS, Rule
from gradtx.core.transform import Transform
from gradtx.wrappers.guards import update_if_finite
from gradtx.wrappers.placing import refuse_final, refuse_first

PyTree = Any
State = dict[str, Any]


def _difference(new: PyTree, params: PyTree) -> PyTree:
    """The update that takes the params to new ones of their dtype, in the compute dtype."""
    return tree.map(operator.sub, new, params)


def _is_low(leaf: Array) -> bool:
    """Whether a parameter has a lower precision than the one in which its step is computed."""
    return tree.dtype_of(leaf).itemsize < tree.precision(leaf).itemsize


def _low(params: PyTree) -> tuple[bool, ...]:
    """Which leaves have a low precision."""
    return tuple(_is_low(leaf) for leaf in jax.tree.leaves(params))


@transform
def stochastic_rounding(inner: Transform, key: NonNegativeInt = 0) -> Rule:
    """Rounds the new parameters to one of their two neighbours, at random, so that they are right on average.

        w <- down with probability (up - x) / (up - down), else up;   x = w + u;   down <= x <= up are neighbours

    Source: Gupta et al. 2015 (arXiv 1502.02551), section 3.1; for bfloat16 training Zamirai et al. 2020 (arXiv
    2010.06192). Leaves that are computed in their own dtype (float32, float64) are updated as usual.

    Args:
      inner: any optimizer; its update must be the step itself, the learning rate included.
      key: the seed of the key in the state. The draws depend on it, on the step and on the position of the leaf, but
        not on how arrays are sharded. So all replicas round in the same way.

    State: `{"stochastic_rounding": {"key": its bits, "inner": inner's state}}`: nothing per parameter. It needs the
    params, and returns float32 updates.

    Errors: TypeError for an inner transform that decides the bits of the params itself.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.stochastic_rounding(gradtx.sgd(1.0))
    >>> params = jnp.ones(100_000, jnp.bfloat16)
    >>> updates, _ = tx.update(jnp.full(100_000, 1e-4), tx.init(params), params)
    >>> print(f"{(gradtx.apply_updates(params, updates).astype(jnp.float32) - 1).mean():.1e}")
    -1.0e-04
    """
    refuse_final("stochastic_rounding", inner, also_final=True)

    def update(updates: PyTree, state: State, params: PyTree, **extra: Any) -> tuple[PyTree, State]:
        steps, inner_state = inner.update(updates, state["inner"], params, **extra)
        following, drawn = numerics.leaf_keys(state["key"], jax.tree.leaves(params))
        keys = jax.tree.unflatten(jax.tree.structure(params), drawn)

        def at_leaf(u: Array, w: Array, key: Array) -> Array:
            if not _is_low(w):
                return u
            wide = w.astype(u.dtype)
            return numerics.round_stochastically(wide + u, w.dtype, key).astype(u.dtype) - wide

        return jax.tree.map(at_leaf, steps, params, keys), {"key": following, "inner": inner_state}

    return Rule(update=update, place="last", fields={"key": fields.key(key)})


@transform
def kahan_summation(inner: Transform) -> Rule:
    """Keeps what rounding takes off each step, and adds it to the next.

        y = u + c;   w' = round(w + y);   c <- y - (w' - w);   w <- w'

    Source: Kahan 1965 ("Further remarks on reducing truncation errors"); for bfloat16 training Zamirai et al. 2020
    (arXiv 2010.06192), algorithm 3. The compensation has the dtype of the params, so bfloat16 params get 8 more binary
    digits. In float16 the smallest compensation is 6e-8, and smaller steps are rounded to multiples of it; use
    `master_weights` there.

    Args:
      inner: any optimizer; its update must be the step itself, the learning rate included.

    State: `{"kahan_summation": {"compensation": like the params, in their dtype: 2 bytes per bfloat16 parameter;
    "inner": inner's state}}`. It needs the params, and returns float32 updates.

    Errors: TypeError for an inner transform that decides the params' bits itself.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.kahan_summation(gradtx.sgd(1.0))
    >>> params = jnp.ones((), jnp.bfloat16)
    >>> state = tx.init(params)
    >>> for _ in range(200):
    ...     updates, state = tx.update(jnp.float32(1e-4), state, params)
    ...     params = gradtx.apply_updates(params, updates)
    >>> print(f"{params:.3f}")
    0.980
    """
    refuse_final("kahan_summation", inner, also_final=True)

    def update(updates: PyTree, state: State, params: PyTree, **extra: Any) -> tuple[PyTree, State]:
        steps, inner_state = inner.update(updates, state["inner"], params, **extra)
        wanted = tree.map(operator.add, steps, state["compensation"])
        new = tree.cast_like(tree.map(operator.add, params, wanted), params)
        made = _difference(new, params)
        return made, {"compensation": tree.map(operator.sub, wanted, made), "inner": inner_state}

    return Rule(update=update, place="last", fields={"compensation": fields.remainder()})


@transform
def master_weights(inner: Transform) -> Rule:
    """Trains float32 parameters that are kept in the state; the params are copies of them in low precision.

        W <- W + inner(g, W);   w <- round(W), or the largest number of its dtype where W is larger

    Source: Micikevicius et al. 2017 (arXiv 1710.03740), section 3.1. If the params are no longer copies of W (because
    they were loaded, clipped or exchanged), W is taken from them.

    Args:
      inner: any optimizer. It sees float32 gradients and float32 params; a function of the params,
        such as `grad_fn`, is called with the params in their own dtype.

    State: `{"master_weights": {"master": W, 4 bytes per parameter in bfloat16 or float16 (None for other dtypes);
    "inner": inner's state}}`. It needs the params, and returns float32 updates.

    Errors: TypeError for an inner transform that decides the params' bits itself.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.master_weights(gradtx.sgd(1.0))
    >>> params = jnp.ones((), jnp.bfloat16)
    >>> updates, state = tx.update(jnp.float32(1e-4), tx.init(params), params)
    >>> print(f"{gradtx.find(state, 'master'):.4f}")
    0.9999
    """
    refuse_final("master_weights", inner, also_final=True)

    def init(params: PyTree) -> State:
        low = _low(params)
        master = jax.tree.map(
            lambda leaf: jnp.array(leaf, copy=True), tree.to_compute_dtype(selection.keep(params, low))
        )
        return {"master": master, "inner": inner.init(selection.put(master, params, low))}

    def update(updates: PyTree, state: State, params: PyTree, **extra: Any) -> tuple[PyTree, State]:
        low = _low(params)
        outside = selection.keep(params, low)
        image = _image(state["master"], outside)
        master = tree.map(lambda W, i, w: jnp.where(i == w, W, w), state["master"], image, outside)
        known = views.translated(extra, updates, lambda values: values, lambda inside: tree.cast_like(inside, params))
        steps, inner_state = inner.update(updates, state["inner"], selection.put(master, params, low), **known)
        new = tree.map(operator.add, master, selection.keep(steps, low))
        moved = _difference(_image(new, outside), outside)
        return selection.put(moved, steps, low), {"master": new, "inner": inner_state}

    return Rule(
        init=init,
        update=update,
        place="last",
        fields={"master": fields.copy(low=False)},
    )


def _image(master: PyTree, like: PyTree) -> PyTree:
    """The master weights rounded to the params' dtypes; finite values stay finite."""
    nearest, bounded = tree.cast_like(master, like), tree.cast_like(master, like, finite=True)
    return jax.tree.map(lambda W, w, b: jnp.where(jnp.isfinite(W), b, w), master, nearest, bounded)


@transform
def loss_scaling(
    inner: Transform,
    scale: float = 2.0**15,
    *,
    dynamic: bool = True,
    period: PositiveInt = 2000,
    factor: float = 2.0,
    min_scale: float = 1.0,
) -> Rule:
    """Divides the gradients of a scaled loss by the scale, so that float16 gradients below 6e-8 are not lost.

        loss' = s loss;   g = g' / s;   dynamic: no step and s <- s / factor if g is not finite; s <- s factor after
        `period` steps without overflow

    Source: Micikevicius et al. 2017 (arXiv 1710.03740), section 3.2; dynamic as PyTorch's GradScaler, which starts at
    2**16. `minimize` and `sweep` scale the loss automatically. In your own loop multiply the loss by
    `gradtx.find(state, "loss_scale")`, in float32, before you differentiate it.

    Args:
      inner: any optimizer; it gets the gradients of the unscaled loss. `loss_scaling` must come first: a stage before
        it would see scaled gradients.
      scale: the initial s, > 0; a power of 2 adds no rounding error.
      dynamic: adapt s, and skip steps whose gradients are not finite; False keeps s constant and lets NaN pass.
      period: the number of steps without overflow after which s grows.
      factor: > 1, by which s grows and shrinks.
      min_scale: > 0, the lower bound of s.

    State: `{"loss_scaling": {"loss_scale" (float32), "inner": inner's state, and if dynamic "good_steps" and
    "skipped" (int32)}}`.

    Errors: ValueError for numbers out of range; TypeError if another transform would see the gradients first.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.loss_scaling(gradtx.sgd(1.0), 1024.0)
    >>> state = tx.init(jnp.float16(0))
    >>> tx.update(jnp.float16(2048), state)[0]
    Array(-2., dtype=float16)
    """
    refuse_first("loss_scaling", inner, also_first=True)
    allowed = {"scale": 0.0, "factor": 1.0, "min_scale": 0.0}
    for (name, low), number in zip(allowed.items(), (scale, factor, min_scale), strict=True):
        if not low < number < float("inf"):
            raise ValueError(f"gradtx.loss_scaling: {name} is {number!r}; it must be greater than {low:g} and finite.")
        if number > float(jnp.finfo(jnp.float32).max):
            raise ValueError(f"gradtx.loss_scaling: {name} is {number!r}; it must be a number that float32 can hold.")
    kept = {name: fields.integer(per="tree") for name in (("good_steps", "skipped") if dynamic else ())}

    def init(params: PyTree) -> State:
        numbers = {name: field.init(params, field.start) for name, field in kept.items()}
        return numbers | {"loss_scale": jnp.array(scale, jnp.float32), "inner": inner.init(params)}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        s = state["loss_scale"]

        def unscaled(gradients: PyTree) -> PyTree:
            return tree.map(lambda g, inverse: inverse * g, gradients, inverse=1 / s)

        known = extra | {name: unscaled(extra[name]) for name in ("grad", "observed") if name in extra}
        for name in GRADIENTS & extra.keys():
            known[name] = lambda *given, scaled=extra[name]: unscaled(scaled(*given))
        if not dynamic:
            result, inner_state = inner.update(unscaled(updates), state["inner"], params, **known)
            return result, {"loss_scale": s, "inner": inner_state}
        result, inner_state, fine = update_if_finite(inner, unscaled(updates), state["inner"], params, known)
        good = jnp.where(fine, state["good_steps"] + 1, 0)
        grows, skipped = good >= numerics.within_int32(period), numerics.saturating_increment(state["skipped"])
        return result, {
            "loss_scale": _next_scale(s, fine, grows),
            "good_steps": jnp.where(grows, 0, good),
            "skipped": jnp.where(fine, state["skipped"], skipped),
            "inner": inner_state,
        }

    def _next_scale(s: Array, fine: Array, grows: Array) -> Array:
        larger = jnp.where(jnp.isfinite(s * factor), s * factor, s)
        smaller = jnp.maximum(s / factor, jnp.minimum(s, min_scale))
        return jnp.where(fine, jnp.where(grows, larger, s), smaller)

    traits = ("sums", "nonfinite") if dynamic else ()
    return Rule(init, update, place="first", traits=traits, fields=kept)
