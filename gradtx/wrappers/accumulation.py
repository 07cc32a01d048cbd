"""Several gradients, one step: a batch that does not fit, in parts.

`accumulate(adam(1e-3), every=4)` is Adam on batches four times as large. `adam(1e-3) >> accumulate(identity(), 4,
use_grad_mean=False)` collects four of Adam's steps and makes them at once (optax's `apply_every(4)`).
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import numerics, tree
from gradtx.core import fields
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.wrappers.placing import refuse_first

PyTree = Any
State = dict[str, Any]


@transform
def accumulate(
    inner: Transform,
    every: Any,
    *,
    use_grad_mean: bool = True,
    skip_nonfinite: bool = False,
) -> Rule:
    """Hands `inner` the mean of `every` gradients, once they are there; until then the updates are zero.

        a <- a + g;   at every k-th micro-step: u = inner(a / k), a <- 0        (k = every)

    Source: as optax.MultiSteps, which takes a running mean. `value` and other extra arguments are those of the last
    micro-step.

    Args:
      inner: any transform. It runs only when it is due: the other micro-steps cost the sum alone. (Under vmap, both
        are computed at each.)
      every: k, an int of at least 1; or a function of the number of updates already made that gives one
        (one that gives less is taken for 1).
      use_grad_mean: False hands over the sum.
      skip_nonfinite: leave a gradient with NaN or infinity out, and count it: k others make a step.

    State: `{"accumulate": {"accumulated": like the params, 4 bytes per parameter; "micro_step", "update_count",
    "skipped" (int32, the last with skip_nonfinite); "inner": inner's state}}`.

    Errors: ValueError for an `every` below 1, TypeError if it is neither an int nor a function that gives one, or for
    an inner transform that scales gradients back (`loss_scaling`, which is to be put outside).

    >>> import gradtx
    >>> tx = gradtx.accumulate(gradtx.sgd(1.0), every=2)
    >>> u, state = tx.update(1.0, tx.init(0.0))
    >>> float(u), float(tx.update(3.0, state)[0])
    (0.0, -2.0)
    """
    _check_every(every)
    refuse_first("accumulate", inner)

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        taken = tree.all_finite(updates) if skip_nonfinite else jnp.ones((), bool)
        begins = state["micro_step"] == 0
        total = tree.map(lambda a, g: jnp.where(taken, jnp.where(begins, g, a + g), a), state["accumulated"], updates)
        number = jnp.where(taken, numerics.saturating_increment(state["micro_step"]), state["micro_step"])
        due = taken & (number >= _every(every, state["update_count"]))

        def run() -> tuple[PyTree, State]:
            gradient = tree.map(lambda a, n: a / n, total, n=number) if use_grad_mean else total
            return inner.update(tree.cast_like(gradient, updates), state["inner"], params, **extra)

        def wait() -> tuple[PyTree, State]:
            return tree.zeros_like(updates), state["inner"]

        result, inner_state = numerics.branch(due, run, wait)
        made = state["update_count"]
        new = {
            "micro_step": jnp.where(due, 0, number),
            "update_count": jnp.where(due, numerics.saturating_increment(made), made),
            "accumulated": total,
            "inner": inner_state,
        }
        if skip_nonfinite:
            skipped = state["skipped"]
            new["skipped"] = jnp.where(taken, skipped, numerics.saturating_increment(skipped))
        return result, new

    counts = ["micro_step", "update_count", *(["skipped"] if skip_nonfinite else [])]
    kept = {name: fields.integer(per="tree") for name in counts} | {"accumulated": fields.like()}
    traits = ("unobserved", "sums") if skip_nonfinite else ("unobserved",)
    return Rule(update=update, acts="sometimes", traits=traits, fields=kept)


def _check_every(every: Any) -> None:
    if isinstance(every, int) and not isinstance(every, bool):
        if not 1 <= every < 2**31:
            raise ValueError(f"gradtx.accumulate: every is {every}; allowed: at least 1, and below 2**31.")
    elif not callable(every):
        raise TypeError(
            f"gradtx.accumulate: every is {every!r}; allowed: an int, or a function of the number of updates made."
        )


def _every(every: Any, update_count: Array) -> Array:
    """The number of micro-steps of this update."""
    if not callable(every):
        return jnp.asarray(every, jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        number = jnp.asarray(cast(Any, every)(update_count))
    if number.shape != () or not jnp.issubdtype(number.dtype, np.integer):
        raise TypeError(
            f"gradtx.accumulate: the function every returned an array of shape {number.shape} and dtype "
            f"{number.dtype}; allowed: one integer."
        )
    return number.astype(jnp.int32)
