"""Gradient accumulation: one step from several gradients, for batches that do not fit into memory.

`accumulate(adam(1e-3), every=4)` is Adam on batches four times as large. `adam(1e-3) >> accumulate(identity(), 4,
use_grad_mean=False)` sums four of Adam's steps and makes them at once (optax's `apply_every(4)`).
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
    """Passes the mean of `every` gradients to `inner`; at the micro-steps in between the updates are zero.

        a <- a + g;   at every k-th micro-step: u = inner(a / k), a <- 0        (k = every)

    Source: as optax.MultiSteps, which takes a running mean. `inner` gets the extra arguments, such as `value`, of the
    last micro-step.

    Args:
      inner: any transform. It runs at every k-th micro-step only; the others cost just the sum. (Under vmap, both are
        computed at every micro-step.)
      every: k, an int of at least 1; or a function of the number of updates already made that returns an int (less
        than 1 counts as 1).
      use_grad_mean: False passes the sum.
      skip_nonfinite: leave out a gradient with NaN or infinity, and count it; a step then still has k gradients.

    State: `{"accumulate": {"accumulated": like the params, 4 bytes per parameter; "micro_step", "update_count",
    "skipped" (int32; "skipped" only with skip_nonfinite); "inner": inner's state}}`.

    Errors: ValueError for an `every` below 1; TypeError if it is neither an int nor a function that returns one, or for
    an inner transform that divides by a loss scale (put `loss_scaling` outside).

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
            raise ValueError(f"gradtx.accumulate: every is {every}; it must be from 1 to 2**31 - 1.")
    elif not callable(every):
        raise TypeError(
            f"gradtx.accumulate: every is {every!r}; it must be an int, or a function of the number of updates made."
        )


def _every(every: Any, update_count: Array) -> Array:
    """The number of micro-steps of this update."""
    if not callable(every):
        return jnp.asarray(every, jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        number = jnp.asarray(cast(Any, every)(update_count))
    if number.shape != () or not jnp.issubdtype(number.dtype, np.integer):
        raise TypeError(
            f"gradtx.accumulate: every returned an array of shape {number.shape} and dtype {number.dtype}; "
            "it must return one integer."
        )
    return number.astype(jnp.int32)
