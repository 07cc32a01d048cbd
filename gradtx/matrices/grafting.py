"""Grafting: the direction of one method with the size of another's step.

graft(scale_by_shampoo(), scale_by_rms())        Shampoo with Adam's step size
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics, tree
from gradtx.core import batches
from gradtx.core.annotations import NonNegativeInt
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform

PyTree = Any
State = dict[str, Any]


@transform
def graft(direction: Transform, magnitude: Transform, start: NonNegativeInt = 0) -> Rule:
    """The direction of one transform's update, with the norm of another's, leaf by leaf.

        u = d |s| / |d|,   where d is the update of `direction` and s that of `magnitude`;   u = s before the step start

    Source: Agarwal, Anil, Hazan, Koren, Zhang 2020 (arXiv 2002.11803), algorithm 1, with one learning rate. As
    DistributedShampoo, which adds 1e-16 to |d|; here 0/0 is 0.

    Args:
      direction, magnitude: transforms that get the same updates. In a sum both are measured on the gradient that came
        in: in `scale_by_momentum() + graft(scale_by_shampoo(), scale_by_rms())` both scale the momentum.
      start: the first step, counted from 1, at which the direction is used. Both transforms see all steps.

    A leaf with dimension numbers has a norm for each of its matrices.

    State: `{"graft": {"groups": {"direction": ..., "magnitude": ...}}}`; `count`, a scalar.

    Errors: ValueError for a negative start.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.graft(gradtx.scale_by_sign(), gradtx.identity()), jnp.array([3.0, 4.0])
    >>> print([f"{u:.3f}" for u in tx.update(g, tx.init(g))[0]])
    ['3.536', '3.536']
    """
    transforms = {"direction": direction, "magnitude": magnitude}

    def init(params: PyTree) -> State:
        return {"groups": {name: tx.init(params) for name, tx in transforms.items()}}

    def update(
        updates: PyTree, state: State, params: PyTree = None, *, count: Array, **extra: Any
    ) -> tuple[PyTree, State]:
        made: dict[str, PyTree] = {}
        states: State = {}
        for name, tx in transforms.items():
            known = {key: value for key, value in extra.items() if tx.facts.takes(key) or key == "observed"}
            made[name], states[name] = tx.update(updates, state["groups"][name], params, **known)

        def at_leaf(d: Array, s: Array) -> Array:
            return jnp.where(count < start, s, _resized(d, s))

        return jax.tree.map(at_leaf, made["direction"], made["magnitude"]), {"groups": states}

    return Rule(init=init, update=update, reach="leaf")


def _resized(d: Array, s: Array) -> Array:
    """The first with the norm of the second; for a batch of matrices, each of them."""
    axes = (-2, -1) if batches.declared.get() and jnp.ndim(d) > 2 else None
    direction, size = tree.norm(d, axes), tree.norm(s, axes)
    with jax.numpy_dtype_promotion("standard"):
        unit = numerics.divide(d * direction.unit, direction.relative)
        return (unit * size.value).astype(d.dtype)
