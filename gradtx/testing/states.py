"""A check of an optimizer's state, for users' unit tests."""

from typing import Any

import chex  # pyright: ignore[reportMissingTypeStubs]
import jax
import numpy as np

from gradtx import tree
from gradtx.core.fields import at
from gradtx.core.foreign import as_transform

PyTree = Any


def assert_state(tx: Any, state: PyTree, params: PyTree) -> None:
    """Assert that a state is a valid state of an optimizer for these params.

    The structure, shapes and dtypes are those of `init` (compared by chex). Fields that are declared nonnegative are
    nonnegative, all floating-point numbers are finite, and counters are int32 and at least 0.

    Args:
      tx: an optimizer.
      state: its state, with concrete values. Under jit use `checked`.
      params: the params.

    Errors: AssertionError with the place, the value found, and the allowed values.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.adam(1e-3), {"w": jnp.zeros(2)}
    >>> gradtx.testing.assert_state(tx, tx.init(params), params)
    """
    tx = as_transform(tx, "gradtx.testing.assert_state: tx")
    expected = jax.eval_shape(tx.init, params)
    chex.assert_trees_all_equal_structs(state, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(tree.shapes(state), expected)
    signed = {place for place, field in tx.declared.items() if field.nonnegative}
    counted = {(*place, "count") for place, part in tx.parts.items() if part.node.timed}
    for place in sorted(signed | counted):
        for path, leaf in tree.named_leaves(at(state, place)):
            if np.any(np.asarray(leaf) < 0):
                _fail(tx, "/".join(place), path, f"{np.asarray(leaf).min()}; allowed: 0 or more")
    for path, leaf in tree.named_leaves(state):
        if not tree.is_discrete(leaf) and not np.isfinite(np.asarray(leaf, np.complex128)).all():
            _fail(tx, "the state", path, "a number that is not finite; allowed: finite numbers")


def _fail(tx: Any, where: str, path: str, problem: str) -> None:
    raise AssertionError(f"gradtx.testing.assert_state: {tx!r}: {where} at {path} has {problem}.")
