"""Checks made while tracing: trees of the same structure, shapes and kinds, and states that belong to their optimizer.

chex compares. If it finds a difference, our error says who, where, what was received and what is allowed.
"""

import contextlib
import contextvars
import sys
import warnings
from collections.abc import Generator
from typing import Any, cast

import chex  # pyright: ignore[reportMissingTypeStubs]
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental import checkify

from gradtx import tree


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
    for path, leaf in tree.named_leaves(value):
        if tree.is_discrete(leaf) and (remedy := _remedy(reader)):
            _refuse_sparse(who, argument, value)
            raise TypeError(
                f"{who}: {argument} at {path} has dtype {_dtype_name(leaf)}; it must be floating-point or complex. "
                f"{remedy}"
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
    """What to do about an integer leaf; nothing if all stages of the reader leave it out by a mask."""
    if reader is None:
        return "Keep leaves that are not trained out of the parameters."
    reading = reading_all(reader)
    if reading and len(reading) < len(_stages(reader)):
        return f"{reading[0]!r} reads all leaves: put it inside the mask."
    return "Keep leaves that are not trained out of the parameters (or mask them out)." if reading else ""


def reading_all(tx: Any) -> list[Any]:
    """The stages of a transform that compute with every leaf, integers and bools too (see `TRAITS`)."""
    return [stage for stage in _stages(tx) if "integers" not in stage.facts]


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
    try:
        chex.assert_trees_all_equal_shapes(tree.shapes(value), tree.shapes(like))
    except (AssertionError, TypeError, ValueError):
        raise ValueError(
            f"{who}: {name} do not match {like_name}: {_difference(name, value, like_name, like)}"
        ) from None
    for (path, leaf), other in zip(tree.named_leaves(value), jax.tree.leaves(like), strict=True):
        if tree.is_complex(leaf) != tree.is_complex(other):
            raise TypeError(
                f"{who}: {name} at {path} has dtype {tree.dtype_of(leaf)}, {like_name} {tree.dtype_of(other)}; "
                "both must be real, or both complex."
            )
        if tree.is_discrete(leaf) != tree.is_discrete(other) or (
            tree.is_discrete(leaf) and tree.dtype_of(leaf) not in (jax.dtypes.float0, tree.dtype_of(other))
        ):
            raise TypeError(
                f"{who}: {name} at {path} has dtype {_dtype_name(leaf)}, {like_name} {_dtype_name(other)}; both "
                "must be floating-point or complex. For integers and bools the first has the same dtype or float0, "
                "which jax.grad(..., allow_int=True) gives."
            )


def check_unchanged(who: str, name: str, value: Any, like_name: str, like: Any) -> None:
    """Same structure and shapes; runs at every step, so it looks for details only if they differ."""
    leaves: list[Any] = jax.tree.leaves(value)
    others: list[Any] = jax.tree.leaves(like)
    if not same_structure(value, like) or any(
        jnp.shape(leaf) != jnp.shape(other) for leaf, other in zip(leaves, others, strict=True)
    ):
        raise ValueError(f"{who}: {_difference(name, value, like_name, like)}")


def same_structure(value: Any, like: Any) -> bool:
    """Whether two trees have the same structure."""
    structures: list[Any] = [jax.tree.structure(value), jax.tree.structure(like)]
    return structures[0] == structures[1]


def check_state(who: str, state: Any, expected: Any, *, dtypes: bool) -> None:
    """The state has the structure, shapes and (if the params determine them) dtypes that `init` gives."""
    try:
        chex.assert_trees_all_equal_shapes(tree.shapes(state), tree.shapes(expected))
        if dtypes:
            chex.assert_trees_all_equal_dtypes(tree.shapes(state), tree.shapes(expected))
        elif not _same_kinds(state, expected):
            raise ValueError
    except (AssertionError, TypeError, ValueError):
        problem = (
            "the state is not one that init makes for these params" if dtypes else "updates and state do not match"
        )
        raise ValueError(
            f"{who}: {problem}: {_difference('the state', state, 'the expected state', expected, dtypes=dtypes)} "
            "Pass the state that init or the last update of this optimizer returned."
        ) from None


def _same_kinds(value: Any, like: Any) -> bool:
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(like), strict=True)
    return all(tree.is_complex(leaf) == tree.is_complex(other) for leaf, other in pairs)


def _difference(name: str, value: Any, like_name: str, like: Any, *, dtypes: bool = False) -> str:
    """The first difference between two trees, in words."""
    if jax.tree.structure(value) != jax.tree.structure(like):
        return _structural_difference(name, value, like_name, like)
    for (path, leaf), other in zip(tree.named_leaves(value), jax.tree.leaves(like), strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            shapes = f"shape {jnp.shape(leaf)}, {like_name} {jnp.shape(other)}"
            return f"at {path}, {name} has {shapes} (shapes must be equal; nothing is broadcast)."
        kinds_differ = tree.is_complex(leaf) != tree.is_complex(other)
        if kinds_differ or (dtypes and tree.dtype_of(leaf) != tree.dtype_of(other)):
            return f"at {path}, {name} has dtype {tree.dtype_of(leaf)}, {like_name} {tree.dtype_of(other)}."
    return "they differ."


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


_in_question: contextvars.ContextVar[Any] = contextvars.ContextVar("in_question", default=None)


@contextlib.contextmanager
def questioned(state: Any) -> Generator[None]:
    """In this context, `init` is called to find out what a state should look like, for comparison with this one."""
    token = _in_question.set(state)
    try:
        yield
    finally:
        _in_question.reset(token)


def state_in_question() -> Any:
    """The state with which the result of init is compared; None if init makes a new state."""
    return _in_question.get()


_foreign: contextvars.ContextVar[bool] = contextvars.ContextVar("foreign", default=False)


@contextlib.contextmanager
def foreign_call() -> Generator[None]:
    """In this context, foreign code runs, which may pass extra arguments on to a gradtx transform."""
    token = _foreign.set(True)
    try:
        yield
    finally:
        _foreign.reset(token)


def in_foreign_call() -> bool:
    """Whether foreign code is the caller."""
    return _foreign.get()


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


# Value checks in the running program ----------------------------------------------------------------------------------

_checking: contextvars.ContextVar[bool] = contextvars.ContextVar("checking", default=False)
_held: contextvars.ContextVar[list[bool] | None] = contextvars.ContextVar("held", default=None)


@contextlib.contextmanager
def value_checks() -> Generator[None]:
    """In this context, every transform's update checks the values of its state and of its result."""
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


@contextlib.contextmanager
def held_back() -> Generator[list[bool]]:
    """In this context, value checks are noted, not made: for a run whose result may be discarded."""
    token = _held.set(noted := [])
    try:
        yield noted
    finally:
        _held.reset(token)


def checking() -> bool:
    """Whether value checks are to be made here."""
    on, held = _checking.get(), _held.get()
    if on and held is not None:
        held.append(True)
    return on and held is None


def check_values(who: str, updates: Any, old: dict[str, Any], new: dict[str, Any], nonnegative: list[str]) -> None:
    """Make checkify's checks: all values finite, the named statistics not negative, the counter rising."""
    at_step = f"gradtx.{who}, step {{step}}: " if "count" in new else f"gradtx.{who}: "
    known: dict[str, Any] = {"step": new["count"]} if "count" in new else {}
    for field in nonnegative:
        for path, leaf in tree.named_leaves(new[field]):
            least = jnp.min(leaf, initial=0.0)
            checkify.check(
                least >= 0,
                at_step + f"state {field!r} at {_braces(path)}: negative value {{least}}",
                least=least,
                **known,
            )
    for what, value in (*((f"state {field!r}", new[field]) for field in new if field != "count"), ("updates", updates)):
        for path, leaf in tree.named_leaves(value):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                bad = jnp.sum(~jnp.isfinite(leaf))
                checkify.check(
                    bad == 0,
                    at_step + f"{what} at {_braces(path)}: {{bad}} of {leaf.size} elements not finite",
                    bad=bad,
                    **known,
                )
    if "count" in new:
        counts: dict[str, Any] = {"before": old["count"], "after": new["count"]}
        # The counter stays at the largest int32 once it is there.
        rising = (counts["after"] > counts["before"]) | (counts["before"] == jnp.iinfo(jnp.int32).max)
        rising = rising & (counts["before"] >= 0)
        checkify.check(rising, f"gradtx.{who}: the counter went from {{before}} to {{after}}", **counts)


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
