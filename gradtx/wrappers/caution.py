"""Cautious updates: an element moves only where its update goes down the present gradient.

`cautious(scale_by_adam()) >> scale_by_learning_rate(1e-3)` is C-Adam; any direction or optimizer may be inside.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core.annotations import NonNegative
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.numerics import divide
from gradtx.wrappers.placing import refuse_final

PyTree = Any
State = dict[str, Any]


@transform
def cautious(
    inner: Transform, scaling: Literal["max", "add", "count", "none"] = "max", eps: NonNegative = 1e-3
) -> Rule:
    """Sets those elements of the updates of `inner` to zero that oppose the gradient, and makes the others longer.

        u = k 1[inner(g) g > 0] inner(g),   with s the share of the elements of a leaf that are kept:
        max: k = 1 / max(s, eps);   add: k = 1 / (s + eps);   count: k = n / (n s + 1), n elements;   none: k = 1

    Where `inner` has a learning rate, its updates go down, and the elements kept are those with inner(g) g < 0.

    Source: Liang et al. 2024 (arXiv 2411.16085), algorithm 1, with "count"; the authors' code (github.com/
    kyleliang919/C-Optim) has "max" in C-AdamW and "count" in C-Lion, as pytorch_optimizer; levanter has "add". Signs
    are compared, so that no product underflows. In the authors' code decay is not masked: put `add_decayed_weights`
    after `cautious`, not inside it; its own argument `cautious` is another mask.

    Args:
      inner: a direction, or an optimizer. The gradient is what `cautious` is given: with `accumulate` inside, that of
        the last batch alone.
      scaling: k, as above.
      eps: >= 0, a number or a schedule. [1]

    State: `{"cautious": {"count", "inner": inner's state}}`.

    Errors: TypeError for an inner transform whose updates must be applied unchanged, and for complex leaves; ValueError
    for an unknown scaling or a negative eps.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.cautious(gradtx.scale_by_momentum(0.5, form="sum")), jnp.zeros(2)
    >>> updates, state = tx.update(jnp.array([4.0, 1.0]), tx.init(w))
    >>> tx.update(jnp.array([-1.0, 1.0]), state)[0]
    Array([0., 3.], dtype=float32)
    """
    refuse_final("cautious", inner)
    sign = -1 if "descends" in inner.facts else 1

    def masked(u: Array, g: Array, eps: Array) -> Array:
        kept = sign * jnp.sign(u) * jnp.sign(g) > 0
        elements = max(tree.number_of_elements(u), 1)
        share = tree.norm(kept.astype(u.dtype)).value ** 2 / elements
        below = {"max": jnp.maximum(share, eps), "add": share + eps, "count": share + 1 / elements}
        return jnp.where(kept, u if scaling == "none" else divide(u, below[scaling]), 0)

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        result, inner_state = inner.update(updates, state["inner"], params, **extra)
        return tree.map(masked, result, updates, eps=eps), {"inner": inner_state}

    return Rule(update=update, reach="leaf", traits=("real", "norms", "unobserved"))
