"""What concerns the matrices of attention: its logits are kept from growing (MuonClip's QK-clip)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core.annotations import Fraction, Positive
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.numerics import divide

PyTree = Any
State = dict[str, Any]


@transform
def qk_clip(threshold: Positive = 100.0, exponent: Fraction = 0.5, *, head_axis: int = 1) -> Rule:
    """Shrinks the weights of each attention head whose logits exceed a threshold, after the step.

        γ = min(1, threshold / max_logits), a number for each head;   w <- γ^exponent (w + g)

    It comes last in a composition, where g is the step. With 1/2 for the kernels of queries and for those of keys, the
    logits shrink by γ. Choose the kernels with `masked`, one `qk_clip` for each exponent.

    Source: Kimi Team 2025 (arXiv 2507.20534), algorithm 1, where threshold is 100 and the exponents of queries and keys
    are α = 1/2 and 1 - α. In multi-head latent attention the parts of queries and keys without rotation have 1/2, the
    rotated part of the queries 1, the rotated part of the keys, which all heads share, none.

    Args:
      threshold: > 0, a number or a schedule. [logits]
      exponent: in [0, 1], a number or a schedule.
      head_axis: the axis of the heads. Its length is a multiple of their number; each head has a block of it, as in a
        kernel (in, heads * size); in one (in, heads, size) it is one each.

    Extra argument: `max_logits`, the largest logit of each head in this step's batch: a tree like the params, with an
    array (heads,) in place of each leaf, or one such array for all leaves.

    State: `count`, a scalar. It needs the params.

    Errors: TypeError from update without max_logits; ValueError for a leaf whose head_axis the heads do not divide, an
    argument outside its range, or update without params.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.qk_clip(100.0), jnp.ones((1, 4))
    >>> w + tx.update(jnp.zeros((1, 4)), tx.init(w), w, max_logits=jnp.array([50.0, 400.0]))[0]
    Array([[1. , 1. , 0.5, 0.5]], dtype=float32)
    """

    def clipped(g: Array, w: Array, logits: Array, threshold: Array, exponent: Array) -> Array:
        if w.size == 0:
            return g
        heads = logits.shape[0] if logits.ndim else 0
        length = w.shape[head_axis] if -w.ndim <= head_axis < w.ndim else 0
        if logits.ndim != 1 or heads == 0 or length % heads or not length:
            raise ValueError(
                f"gradtx.qk_clip: a leaf has the shape {w.shape}, and max_logits {logits.shape}; it must be (heads,), "
                f"and axis {head_axis} of the leaf a multiple of the heads. Choose the leaves with masked."
            )
        shrunk = jnp.where(logits > threshold, divide(threshold, logits) ** exponent, 1)
        shape = [1] * w.ndim
        shape[head_axis] = length
        factor = jnp.repeat(shrunk, length // heads).reshape(shape)
        return g * factor + (factor - 1) * w

    def update(updates: PyTree, state: State, params: PyTree, *, max_logits: PyTree) -> tuple[PyTree, State]:
        if isinstance(max_logits, Array):
            max_logits = jax.tree.map(lambda _: max_logits, updates)
        try:
            each = jax.tree.map(
                lambda u, one: None if u is None else one, updates, max_logits, is_leaf=lambda u: u is None
            )
        except ValueError as error:
            raise ValueError(
                f"gradtx.qk_clip: max_logits has the structure {jax.tree.structure(max_logits)}, the params "
                f"{jax.tree.structure(updates)}; it must be one array (heads,), or a tree of arrays like the params."
            ) from error
        return tree.map(clipped, updates, params, each, threshold=threshold, exponent=exponent), state

    return Rule(update=update, reach="leaf", traits=("real",))
