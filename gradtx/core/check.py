"""Checks made while tracing: trees of the same structure, shapes and kinds, and states that belong to their optimizer.

The errors say who, where, what was received and what is allowed.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.core import Tracer

from gradtx import sharding, tree
from gradtx.scoped import Scoped


def check_arrays(who: str, argument: str, value: Any) -> None:
    """Every leaf is an array or a number."""
    for path, leaf in tree.named_leaves(value):
        if not isinstance(leaf, (bool, int, float, complex)) and not (
            hasattr(leaf, "dtype") and hasattr(leaf, "shape")
        ):
            hint = "Give the arrays alone, as equinox.filter(model, equinox.is_inexact_array) does."
            raise TypeError(
                f"{who}: {argument} at {path} is {leaf!r} of type {type(leaf).__name__}; it must be an array."
                + (f" {hint}" if callable(leaf) else "")
            )


def check_leaves(who: str, argument: str, value: Any, reader: Any = None) -> None:
    """Every leaf is an array or number of a floating-point or complex dtype, or masked out by the transform."""
    check_arrays(who, argument, value)
    if reader is not None and "integers" in reader.facts:
        return
    for path, leaf in tree.named_leaves(value):
        if tree.is_discrete(leaf):
            _refuse_sparse(who, argument, value)
            raise TypeError(
                f"{who}: {argument} at {path} has dtype {_dtype_name(leaf)}; it must be floating-point or complex. "
                f"{_remedy(reader)}"
            )


def _refuse_sparse(who: str, argument: str, value: Any) -> None:
    """A sparse array is a tree of numbers and places, which are integers."""
    sparse: Any = sys.modules.get("jax.experimental.sparse")

    def is_sparse(node: Any) -> bool:
        return sparse is not None and isinstance(node, sparse.JAXSparse)

    for path, node in cast(Any, jax.tree_util.tree_leaves_with_path(value, is_leaf=is_sparse)):
        if is_sparse(node):
            raise TypeError(
                f"{who}: {argument} at {jax.tree_util.keystr(path) or 'the root'} is sparse, a {type(node).__name__}; "
                "it must be a dense array. Give its `.todense()`."
            )


def _remedy(reader: Any) -> str:
    """What to do about an integer leaf."""
    stages = [] if reader is None else _stages(reader)
    reading = [stage for stage in stages if "integers" not in stage.facts]
    if len(reading) < len(stages):
        return f"{reading[0]!r} reads all leaves: put it inside the mask."
    return f"Keep leaves that are not trained out of the parameters{' (or mask them out)' if stages else ''}."


def _stages(tx: Any) -> list[Any]:
    """The transforms that the gradient passes through: the stages of its compositions."""
    tx = tx.expand(deep=True)
    return [stage for inside in tx.stages for stage in _stages(inside)] if tx.name in ("chain", "join") else [tx]


def _dtype_name(leaf: Any) -> str:
    dtype = tree.dtype_of(leaf)
    return "float0" if dtype == jax.dtypes.float0 else str(dtype)


def refuse_complex(who: str, name: str, leaves: Any) -> None:
    """Every leaf is real, for a transform that is not defined for others."""
    for path, leaf in tree.named_leaves(leaves):
        if tree.is_complex(leaf):
            raise TypeError(
                f"{who}: the leaf at {path} is complex ({tree.dtype_of(leaf)}); it must be real, since {name} is "
                "not defined for complex leaves. Put split_real_and_imaginary around it."
            )


def check_alike(who: str, name: str, value: Any, like_name: str, like: Any) -> None:
    """Same structure, same shapes, and complex where the other is complex."""
    if words := difference(name, value, like_name, like):
        raise ValueError(f"{who}: {name} do not match {like_name}: {words}")
    for (path, leaf), other in zip(tree.named_leaves(value), jax.tree.leaves(like), strict=True):
        zero = tree.is_discrete(other) and tree.dtype_of(leaf) == jax.dtypes.float0
        same = tree.dtype_of(leaf) == tree.dtype_of(other)
        if not (zero or same or (_kind(leaf) == _kind(other) and not tree.is_discrete(leaf))):
            raise TypeError(
                f"{who}: {name} at {path} has dtype {_dtype_name(leaf)}, {like_name} {_dtype_name(other)}; both "
                "must be real, or both complex. For integers and bools the first has the same dtype or float0, which "
                "jax.grad(..., allow_int=True) gives."
            )


def check_unchanged(who: str, name: str, value: Any, like_name: str, like: Any) -> None:
    """Same structure and shapes."""
    if words := difference(name, value, like_name, like):
        raise ValueError(f"{who}: {words}")


def check_state(who: str, state: Any, expected: Any, *, dtypes: bool) -> None:
    """The state has the structure, shapes and (if the params determine them) dtypes that `init` gives."""
    compared = tree.dtype_of if dtypes else tree.is_complex
    if words := difference("the state", state, "the expected state", expected, compared):
        problem = (
            "the state is not one that init makes for these params" if dtypes else "updates and state do not match"
        )
        raise ValueError(
            f"{who}: {problem}: {words} Pass the state that init or the last update of this optimizer returned."
        )


def same_structure(value: Any, like: Any) -> bool:
    """Whether two trees have the same structure."""
    structures: list[Any] = [jax.tree.structure(value), jax.tree.structure(like)]
    return structures[0] == structures[1]


def _kind(leaf: Any) -> tuple[bool, bool]:
    return tree.is_complex(leaf), tree.is_discrete(leaf)


def difference(
    name: str, value: Any, like_name: str, like: Any, compared: Callable[[Any], Any] = lambda leaf: None
) -> str:
    """The first difference in structure, shapes, or the values of `compared`, as a sentence; "" if there is none."""
    if not same_structure(value, like):
        return _structural_difference(name, value, like_name, like)
    for index, (leaf, other) in enumerate(zip(jax.tree.leaves(value), jax.tree.leaves(like), strict=True)):
        words = ""
        if jnp.shape(leaf) != jnp.shape(other):
            shapes = f"shape {jnp.shape(leaf)}, {like_name} {jnp.shape(other)}"
            words = f"{shapes} (shapes must be equal; nothing is broadcast)"
        elif compared(leaf) != compared(other):
            words = f"dtype {tree.dtype_of(leaf)}, {like_name} {tree.dtype_of(other)}"
        if words:
            return f"at {tree.named_leaves(value)[index][0]}, {name} has {words}."
    return ""


def _structural_difference(name: str, value: Any, like_name: str, like: Any) -> str:
    paths, like_paths = (
        [tree.path_name(path) for path, _ in cast(Any, jax.tree_util.tree_leaves_with_path(t, is_leaf=_is_empty))]
        for t in (value, like)
    )
    extra = [path for path in paths if path not in like_paths]
    missing = [path for path in like_paths if path not in paths]
    words: list[str] = []
    if missing:
        words.append(f"{name} lacks {_some(missing)}")
    if extra:
        words.append(f"{name} has {_some(extra)}, not in {like_name}")
    if not words:
        words.append(f"{name} has the structure {jax.tree.structure(value)}, {like_name} {jax.tree.structure(like)}")
    return "; ".join(words) + "."


def _is_empty(node: Any) -> bool:
    return isinstance(node, (dict, tuple)) and not node


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def struct_key(*trees: Any) -> Any:
    """What a structural check depends on: structure, shapes and dtypes. Equal keys are checked only once."""
    leaves: list[Any] = jax.tree.leaves(trees)
    kinds: list[Any] = [(getattr(leaf, "shape", ()), getattr(leaf, "dtype", None) or type(leaf)) for leaf in leaves]
    return jax.tree.structure(trees), tuple(kinds)


questioned = Scoped[Any](None)
"""The state with which the result of `init` is compared; None if init makes a new state."""

foreign_call = Scoped(False)
"""Whether foreign code is the caller, which may pass extra arguments on to a gradtx transform."""

_MANY_LEAVES, _MANY_ELEMENTS = 100, 10_000_000
_hints: set[str] = set()


def hint_at_jit(who: str, updates: Any) -> None:
    """Warn once, if a large tree is updated outside jit."""
    leaves: list[Any] = jax.tree.leaves(updates)
    large = len(leaves) >= _MANY_LEAVES or sum(jnp.size(leaf) for leaf in leaves) >= _MANY_ELEMENTS
    if large and "jit" not in _hints and not any(isinstance(leaf, Tracer) for leaf in leaves):
        _hints.add("jit")
        warnings.warn(
            f"{who}: {len(leaves)} leaves with {sum(jnp.size(leaf) for leaf in leaves)} elements are updated outside "
            "jit, leaf by leaf; jax.jit of the whole step, with params and state donated, is many times faster. This "
            "warning appears once.",
            stacklevel=4,
        )


def refuse_shards(who: str, values: Any) -> None:
    """Refuse shards inside shard_map, for what needs whole leaves."""
    if sharding.named_axes() and any(map(sharding.axes_of, jax.tree.leaves(values))):
        raise ValueError(
            f"{who}: it needs whole leaves, and axis_name={sharding.named_axes()} says that these are shards; "
            "inside shard_map only element-wise formulas and norms are possible. Gather the leaves, or call "
            "update outside shard_map."
        )
