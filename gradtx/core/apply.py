"""After the update: adding it to the parameters, and comparing trees in tests."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import tree
from gradtx.core import check, meeting, selection
from gradtx.core.rule import Params, Updates

_MOST_VERIFIED = 256
_verified: dict[Any, None] = {}


def apply_updates(params: Params, updates: Updates) -> Params:
    """`params + updates`, computed in at least float32 and rounded once to each parameter's dtype.

    Bool leaves do not change. Integer leaves do not change if their update is float0 (from `jax.grad(...,
    allow_int=True)`) or zero (from an optimizer with a mask).

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.apply_updates({"w": jnp.ones(2)}, {"w": jnp.array([-0.5, 0.5])})
    {'w': Array([0.5, 1.5], dtype=float32)}
    """
    if (key := check.struct_key(updates, params)) not in _verified:
        check.check_arrays("gradtx.apply_updates", "params", params)
        check.check_arrays("gradtx.apply_updates", "updates", updates)
        check.check_alike("gradtx.apply_updates", "updates", updates, "params", params)
        _verified[key] = None
        if len(_verified) > _MOST_VERIFIED:
            del _verified[next(iter(_verified))]
    moving = tuple(not tree.is_discrete(leaf) for leaf in jax.tree.leaves(params))
    trained = selection.keep(params, moving)
    steps, _, weights, _ = meeting.together("gradtx.apply_updates", selection.keep(updates, moving), {}, trained, {})
    others = params if all(moving) else jax.tree.map(_counted_on, params, updates)
    return selection.put(tree.cast_like(tree.map(operator.add, weights, steps), trained), others, moving)


def _counted_on(param: Any, update: Any) -> Any:
    """An integer plus its update, if that is an integer too; any other leaf unchanged."""
    integers = all(jnp.issubdtype(tree.dtype_of(leaf), jnp.integer) for leaf in (param, update))
    return param + update if integers else param


def tree_equal(first: Any, second: Any) -> bool:
    """Whether two trees have the same structure and equal values. It reads the arrays, so it cannot run under jit.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.tree_equal(gradtx.adam(jnp.float32(0.5)), gradtx.adam(jnp.float32(0.5)))
    True
    """
    if jax.tree.structure(first) != jax.tree.structure(second):
        return False
    pairs = zip(*(map(np.asarray, jax.tree.leaves(values)) for values in (first, second)), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
