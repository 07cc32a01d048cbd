"""Selection of leaves: masks and labels, as a tree, a function, or path patterns.

A leaf's path is written `dense/kernel`. There are three ways to select leaves of `{"dense": {"kernel": ..., "bias":
...}}`:

- a tree of values like the params or their upper part: `{"dense": {"kernel": True, "bias": False}}`, `{"dense": True}`;
- a function of the path and the leaf, `lambda path, leaf: leaf.ndim > 1`; or of the whole params, returning a tree;
- patterns: `"*/kernel"`, several in a tuple, or `{"*/kernel": True, "*": False}`, in which the first match wins.

A function gets stand-ins for arrays, without values: the selection can depend neither on a value nor on a gradient.
`init` calls it, and so does every update (under jit, when that is traced).
"""

import collections
import fnmatch
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from gradtx import tree
from gradtx.core.annotations import ARRAYS, is_traced
from gradtx.core.rule import Params
from gradtx.core.stand_ins import StandIn

PyTree = Any
Patterns = dict[str, Any]
NUMBERS = "MuonDimensionNumbers(rows, columns), or None for a leaf that is no matrix"


class _Question(NamedTuple):
    """A mask or labels, for params of given shapes."""

    who: str
    argument: str
    kind: type
    spec: Any
    shapes: PyTree
    paths: tuple[str, ...]

    @property
    def what(self) -> str:
        return f"{self.who}: {self.argument}"

    def as_kind(self, value: Any) -> Any:
        return bool(value) if self.kind is bool else value


def flags(who: str, spec: Any, updates: PyTree, params: Params = None, *, argument: str = "mask") -> tuple[bool, ...]:
    """Whether each leaf is selected, in the order of the leaves."""
    return _answer(who, argument, bool, spec, updates, params)


def labels(who: str, spec: Any, updates: PyTree, params: Params = None, *, argument: str) -> tuple[str, ...]:
    """The label of each leaf, in the order of the leaves."""
    return _answer(who, argument, str, spec, updates, params)


def values(
    who: str, spec: Any, updates: PyTree, params: Params = None, *, argument: str, kind: type
) -> tuple[Any, ...]:
    """The value of each leaf, of another kind, in the order of the leaves."""
    return _answer(who, argument, kind, spec, updates, params)


def is_function(spec: Any) -> bool:
    """Whether a mask or labels are a function of the params; a tree of values may have `__call__` too."""
    if not callable(spec):
        return False
    leaves: list[Any] = jax.tree.leaves(spec)
    return not leaves or not all(isinstance(leaf, str) or _is_flag(leaf) for leaf in leaves)


def paths(params: PyTree) -> tuple[str, ...]:
    """The paths of the leaves, in the form that patterns match: `dense/kernel`.

    The array inside a flax variable has the variable's path.
    """
    leaves = cast(list[tuple[tuple[Any, ...], Any]], jax.tree_util.tree_leaves_with_path(params))
    keys = [path for path, _ in leaves]
    siblings = collections.Counter(path[:-1] for path in keys)

    def written(path: tuple[Any, ...]) -> str:
        names = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        boxed = len(path) > 1 and hasattr(path[-1], "name") and names[-1] in ("value", "raw_value")
        return "/".join(names[:-1] if boxed and siblings[path[:-1]] == 1 else names)

    return tuple(written(path) for path in keys)


def keep(values: PyTree, chosen: tuple[bool, ...]) -> PyTree:
    """The tree with None, which JAX skips, for leaves that are not chosen; an empty tuple for a single such leaf."""
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(values))
    if len(leaves) == 1 and leaves[0] is values and not chosen[0]:
        return ()  # None alone would stand for params that are missing
    return jax.tree.unflatten(structure, [leaf if flag else None for leaf, flag in zip(leaves, chosen, strict=True)])


def put(values: PyTree, into: PyTree, chosen: tuple[bool, ...]) -> PyTree:
    """The tree `into` with the leaves of `values` at the chosen places: the inverse of `keep`."""
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(into))
    chosen_leaves: list[Any] = jax.tree.leaves(values)
    kept = iter(chosen_leaves)
    return jax.tree.unflatten(
        structure, [next(kept) if flag else leaf for leaf, flag in zip(leaves, chosen, strict=True)]
    )


def _answer(who: str, argument: str, kind: type, spec: Any, updates: PyTree, params: Params) -> tuple[Any, ...]:
    if params is None and is_function(spec):
        raise ValueError(
            f"{who}: {argument} is a function of the params, and params are missing. Call "
            "tx.update(grads, state, params)."
        )
    like = updates if params is None else params
    question = _Question(who, argument, kind, spec, tree.shapes(like), paths(like))
    if is_function(spec):
        return _asked(question, spec)
    patterns = _as_patterns(question)
    return _spread(question, spec) if patterns is None else _matched(question, patterns)


def _asked(question: _Question, function: Callable[..., Any]) -> tuple[Any, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise TypeError(f"{question.what}: the signature of {function!r} cannot be read. Wrap it in a def.") from None
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) not in (1, 2):
        raise TypeError(
            f"{question.what} is a function of {len(needed)} arguments; it must take the path and the leaf, or the "
            "params."
        )
    params: PyTree = jax.tree.map(StandIn, question.shapes)
    leaves: list[Any] = jax.tree.leaves(params)
    try:
        if len(needed) == 1:
            given = function(params)
        else:
            given = [function(path, leaf) for path, leaf in zip(question.paths, leaves, strict=True)]
    except Exception as error:
        error.add_note(f"{question.what} is a function of the params, and gets arrays without values.")
        raise
    chosen = _spread(question, given) if len(needed) == 1 else _checked(question, given)
    if question.kind is bool and leaves and not any(chosen):
        warnings.warn(
            f"{question.what}, the function {getattr(function, '__name__', function)}, selects none of {len(leaves)} "
            f"leaves; the first is {question.paths[0]!r}: {leaves[0].dtype}{list(leaves[0].shape)}.",
            stacklevel=2,
        )
    return chosen


def _as_patterns(question: _Question) -> Patterns | None:
    """The patterns that a spec is made of, or None if it is a tree."""
    spec = question.spec
    if question.kind is bool and isinstance(spec, str):
        spec = (spec,)
    if question.kind is bool and isinstance(spec, (tuple, list)) and spec:
        items = cast(tuple[Any, ...], spec)
        if all(isinstance(item, str) for item in items):
            return dict.fromkeys((*items, "*"), False) | dict.fromkeys(items, True)
    if not isinstance(spec, dict):
        return None
    entries = cast(dict[Any, Any], spec)
    flat = all(isinstance(key, str) and not isinstance(value, (dict, list, tuple)) for key, value in entries.items())
    if not flat or not any(set(key) & set("*?[/") for key in entries):
        return None
    return None if _by_leaf(question, entries) is not None else entries  # the keys of a tree may have a slash


def _matched(question: _Question, patterns: Patterns) -> tuple[Any, ...]:
    for pattern, value in patterns.items():
        _check(question, f"[{pattern!r}]", value)
    # A pattern describes the whole path; `*/kernel` does so for a `kernel` at the top too.
    matches = [(pattern, re.compile(fnmatch.translate(pattern)).match) for pattern in patterns]
    found = [[one for one, match in matches if match(path) or match(f"/{path}")] for path in question.paths]
    for path, matching in zip(question.paths, found, strict=True):
        if not matching:
            raise ValueError(
                f"{question.what}: no pattern matches the leaf {path!r}; the patterns: "
                f"{', '.join(map(repr, patterns))}. Add '*' for the rest."
            )
    for pattern in patterns:
        if pattern != "*" and found:
            _refuse_useless(question, patterns, pattern, [matching for matching in found if pattern in matching])
    return tuple(question.as_kind(patterns[matching[0]]) for matching in found)


def _refuse_useless(question: _Question, patterns: Patterns, pattern: str, found: list[list[str]]) -> None:
    """Refuse a pattern that matches no leaf, or only leaves for which an earlier pattern decides differently."""
    if not found:
        below = any(path.startswith(f"{pattern}/") for path in question.paths)
        shown = ", ".join(question.paths[:8]) + (", ..." if len(question.paths) > 8 else "")
        hint = f" For all leaves below it: {pattern + '/*'!r}." if below else ""
        raise ValueError(f"{question.what}: the pattern {pattern!r} matches no leaf; the leaves: {shown}.{hint}")
    firsts = list(dict.fromkeys(matching[0] for matching in found))
    if pattern not in firsts and any(patterns[first] != patterns[pattern] for first in firsts):
        raise ValueError(
            f"{question.what}: the pattern {pattern!r} has no effect, because the first match wins and all its "
            f"leaves already match {', '.join(map(repr, firsts))}. Put it in front."
        )


def _by_leaf(question: _Question, values: PyTree) -> list[Any] | None:
    """The value for each leaf, from a tree like the params or their upper part; None if it is not such a tree.

    If the containers differ from those of the params, it is the value at the leaf's path, or at a branch above it.
    """
    try:
        return jax.tree.leaves(jax.tree.broadcast(values, question.shapes))
    except ValueError:
        leaves: list[Any] = jax.tree.leaves(values)
        given = dict(zip(paths(values), leaves, strict=True))
        found = [next((path for path in _upward(leaf) if path in given), None) for leaf in question.paths]
        fits = None not in found and len(set(found)) == len(leaves)
        return [given[cast(str, path)] for path in found] if fits else None


def _upward(path: str) -> Iterator[str]:
    """The path, and those of the branches above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def _spread(question: _Question, values: PyTree) -> tuple[Any, ...]:
    # Params without leaves accept any mask: optax's tree_map_params uses such params.
    found = _by_leaf(question, values) if question.paths else []
    if found is None:
        one = {bool: "one bool", str: "one str"}.get(question.kind, "MuonDimensionNumbers or None")
        raise ValueError(
            f"{question.what} has the structure {jax.tree.structure(values)}, the params have "
            f"{jax.tree.structure(question.shapes)}; it must have {one} for each leaf of the "
            "params (or each branch of their upper part). Or give a function of (path, leaf), or path patterns."
        )
    return _checked(question, found)


def _checked(question: _Question, values: list[Any]) -> tuple[Any, ...]:
    for path, value in zip(question.paths, values, strict=True):
        _check(question, f" at {path or 'the root'!r}", value)
    return tuple(map(question.as_kind, values))


def _check(question: _Question, place: str, value: Any) -> None:
    if not (_is_flag(value) if question.kind is bool else isinstance(value, question.kind)):
        words = {bool: "True or False", str: "a str, the name of a group"}.get(question.kind, NUMBERS)
        raise TypeError(f"{question.what}{place} is {value!r}; it must be {words}.")


def _is_flag(value: Any) -> bool:
    """Whether this is True, False, 1 or 0, as Python, NumPy and JAX write them."""
    scalar = isinstance(value, (*ARRAYS, np.generic)) and value.ndim == 0 and not is_traced(value)
    number = value.item() if scalar else value
    return isinstance(number, (bool, int)) and number in (0, 1)
