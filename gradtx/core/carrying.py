"""The state of one optimizer converted for another: fields that both have are kept, by name.

    state, report = carry_over(old, clip_by_global_norm(1.0) >> adamw(1e-3), params)

The state of a parameter is identified by the name of the field and the path of the parameter, whatever wrappers are
around it. So an old checkpoint can be used for an optimizer with a new clip in front, for params with a new head, or
for other groups. A state of version 0.1 or of optax can be used as well.
"""

import ast
import dataclasses
import functools
import math
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import sharding, tree
from gradtx.core import buckets
from gradtx.core.fields import Place
from gradtx.core.foreign import as_transform
from gradtx.core.state import held, named_paths, step_count
from gradtx.core.transform import Part

PyTree = Any

OPTAX = {
    "col": ("v_col",),
    "consecutive": ("notfinite_count",),
    "largest": ("max_lr",),
    "mean": ("ema",),
    "mean_square_gradient": ("e_g",),
    "mean_square_step": ("e_x",),
    "mu": ("trace", "ema"),
    "nu": ("v",),
    "prev": ("prev_updates",),
    "row": ("v_row",),
    "skipped": ("total_notfinite",),
    "update_count": ("gradient_step",),
}
"""Optax's names for fields, where they differ."""


@dataclasses.dataclass(frozen=True)
class CarryOver:
    """What became of a state: the paths that were kept, those that start fresh, and those that were dropped."""

    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    def __repr__(self) -> str:
        words = {"kept": self.kept, "new": self.new, "dropped": self.dropped}
        lines = [f"{what:<8}{len(paths):>5}  {_some(paths)}" for what, paths in words.items()]
        return "\n".join(line.rstrip() for line in lines)


def _some(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")


def carry_over(state: Any, tx: Any, params: PyTree) -> tuple[Any, CarryOver]:
    """The state of an optimizer, made from that of another or for other params: what both have is kept, by name.

    Args:
      state: the state of another optimizer, restored with or without a target, of version 0.1, or of optax; or an
        object that has one as `opt_state`.
      tx: the optimizer to continue with.
      params: the params to continue with; leaves that the state does not have start fresh.

    Returns the state and a report, which prints what was kept, what starts fresh, and what was dropped. A leaf is kept
    if the name of the field, the path of its parameter and its shape are the same; if several match, the one in a
    transform of the same name. Counters continue; a counter that the old state does not have is set to its step count
    (`set_step_count` sets another). If the old state has a step count instead of weights (optax), the weights of
    averages are computed from it. An unfinished accumulation of optax's MultiSteps is dropped. A state about all params
    together, such as the pairs of L-BFGS, starts fresh if a leaf of it does.

    Errors: TypeError for a tx that is not a transform. ValueError for a state of `pack` that was made for other params:
    pass `unpacked(state, those params)`.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2)}
    >>> old = gradtx.adam(1e-3).init(params)
    >>> tx = gradtx.clip_by_global_norm(1.0) >> gradtx.adam(1e-3)
    >>> state, report = gradtx.carry_over(old, tx, params | {"head": jnp.ones(3)})
    >>> report
    kept       10  clip_by_global_norm/count, scale_by_learning_rate/count, scale_by_momentum/count, ...
    new         2  scale_by_momentum/mu/head, scale_by_rms/nu/head
    dropped     0
    """
    tx = as_transform(tx, "gradtx.carry_over: tx")
    old = _Old(buckets.unpacked(_translated(_opened(held(state))), params))
    packed = tx.init(params)
    fresh = buckets.unpacked(packed, params)
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(fresh))
    parts = tx.parts
    made: dict[Place, Any] = {}
    order = {place: index for index, place in enumerate(parts)}

    def place_of(path: Place) -> Place:
        return next((path[:end] for end in range(len(path), 0, -1) if path[:end] in parts), path[:1])

    pairs = zip(named_paths(fresh), leaves, strict=True)
    for path, leaf in sorted(pairs, key=lambda pair: order.get(place_of(pair[0]), len(order))):
        place = place_of(path)
        found = old.take(path, place, leaf)
        if found is not None:
            made[path] = sharding.like(jnp.asarray(found).astype(leaf.dtype), leaf)
    anew = {place for place, part in parts.items() if _is_whole(part) and _lacks(place, part, fresh, made)}
    made = {path: value for path, value in made.items() if place_of(path) not in anew}
    kept = dict(made)
    for place, part in parts.items() if old.steps is not None else ():
        if place not in anew:
            made |= _forwarded(place, part, fresh, kept, old.steps)
    if old.steps is not None:
        old.rest = {path: value for path, value in old.rest.items() if path[-1:] != ("count",)}
    values = [made.get(path, leaf) for path, leaf in zip(named_paths(fresh), leaves, strict=True)]
    new = [path for path in named_paths(fresh) if path not in made]
    report = CarryOver(*(tuple(sorted("/".join(path) for path in paths)) for paths in (made, new, old.rest)))
    return buckets.packed(jax.tree.unflatten(structure, values), packed), report


def _is_whole(part: Part) -> bool:
    """Whether its state is about all params together: pairs of L-BFGS, a loss and its gradient."""
    return part.node.facts.reach == "tree" and any(field.exact for field in part.fields.values())


def _lacks(place: Place, part: Part, fresh: Any, made: dict[Place, Any]) -> bool:
    """Whether a leaf of it that belongs to a parameter was not found."""
    leaves = [name for name, field in part.fields.items() if field.per != "tree"]
    paths = [path for path in named_paths(fresh) if path[: len(place)] == place]
    return any(path not in made for path in paths if path[len(place)] in leaves)


_SOPHIA, _LBFGS = {"mu", "nu", "hessian_fn_state"}, {"updates", "diff_params_memory", "weights_memory"}


def _translated(state: Any) -> Any:
    """A state in which optax's entries of Sophia and L-BFGS have gradtx's names and forms."""

    def fields(node: Any) -> dict[str, Any]:
        made: Any = node._asdict() if hasattr(node, "_asdict") else node
        return cast(dict[str, Any], made) if isinstance(made, dict) else {}

    def is_known(node: Any) -> bool:
        names = fields(node).keys()
        return names >= _SOPHIA or names >= _LBFGS

    def translate(node: Any) -> Any:
        entry = fields(node)
        if entry.keys() >= _LBFGS:
            return {"scale_by_lbfgs": _pairs(entry)}
        return {"hessian" if name == "nu" else name: value for name, value in entry.items()} if entry else node

    return jax.tree.map(translate, state, is_leaf=is_known)


def _pairs(entry: dict[str, Any]) -> dict[str, Any]:
    """L-BFGS: the pairs that are kept, from the oldest, with empty places after them, and their products."""
    rho = np.asarray(entry["weights_memory"])
    order = (int(entry["count"]) - 1 + np.arange(rho.size)) % rho.size
    kept = order[rho[order] > 0]

    def in_order(rows: Any) -> Any:
        rows = np.asarray(rows)
        return np.zeros_like(rows) if kept.size == 0 else np.concatenate([rows[kept], 0 * rows[: rho.size - kept.size]])

    def products(a: Any, b: Any) -> Any:
        leaves: list[list[Any]] = [jax.tree.leaves(a), jax.tree.leaves(b)]
        rows = [[leaf.reshape(rho.size, -1) for leaf in side] for side in leaves]
        return sum((np.real(np.conj(x) @ y.T) for x, y in zip(*rows, strict=True)), np.zeros((rho.size, rho.size)))

    s, y = (jax.tree.map(in_order, entry[f"diff_{name}_memory"]) for name in ("params", "updates"))
    among = np.ix_(range(kept.size), range(kept.size))
    of_y, inverse = products(y, y), np.zeros((rho.size, rho.size))
    inverse[among] = np.linalg.inv(np.triu(products(s, y)[among]))
    newest = max(kept.size - 1, 0)
    scale = 1 / (inverse[newest, newest] * of_y[newest, newest]) if kept.size else 1.0
    return {
        **{name: entry[name] for name in ("count", "params", "updates")},
        "memory": jax.tree.map(lambda *both: np.stack(both), s, y),
        "inverse": inverse,
        "of_y": of_y,
        "pairs": np.int32(kept.size),
        "scale": np.asarray(scale),
    }


def _opened(state: Any) -> Any:
    """A state in which no `in_buckets` keeps a layout any more, as those of version 0.1 do; there leaf by leaf."""
    if not isinstance(state, dict):
        return state
    entry = cast(dict[str, Any], state)
    if entry.keys() == {"layout", "inner"} and buckets.is_node(entry["layout"]):
        split = functools.partial(_split, entry["layout"]["buckets"])
        return jax.tree.map(split, entry["inner"], is_leaf=buckets.is_node)
    return {name: _opened(value) for name, value in entry.items()}


def _split(layout: dict[str, dict[str, dict[str, Any]]], node: Any) -> Any:
    """A tree in buckets of version 0.1, whose layout has the shape of each leaf by the name of its path."""
    if not buckets.is_node(node):
        return node
    leaves: dict[str, Any] = dict(node["alone"])
    for bucket, inside in layout.items():
        shapes = {path: ast.literal_eval(next(iter(inside[path]))) for path in sorted(inside)}
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
        parts = jnp.split(jnp.asarray(node["buckets"][bucket]), ends)
        leaves |= {path: part.reshape(shape) for part, (path, shape) in zip(parts, shapes.items(), strict=True)}
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = [quoted or plain for quoted, plain in re.findall(r"\['(.*?)'\]|[\[.](\w+)", path)]
        functools.reduce(lambda inside, name: inside.setdefault(name, {}), above, nested)[last] = leaf
    return nested


class _Old:
    """The leaves of an old state; each is used once."""

    def __init__(self, state: Any):
        self.rest: dict[Place, Any] = dict(zip(named_paths(state), jax.tree.leaves(state), strict=True))
        self.ending: dict[Place, list[Place]] = {}
        for path in self.rest:
            for start in range(len(path) + 1):
                self.ending.setdefault(path[start:], []).append(path)
        try:
            self.steps = step_count(state)
        except KeyError:
            self.steps = None

    def take(self, path: Place, place: Place, leaf: Any) -> Any:
        """The old leaf for a new one: at the same path; in the same transform; of the same name, also in optax."""
        inside = path[len(place) :]
        fields = [inside, *((theirs, *inside[1:]) for theirs in OPTAX.get(inside[0] if inside else "", ()))]
        for end in (path, (place[-1], *inside), (_unnumbered(place[-1]), *inside), *fields):
            if end == ("count",):
                continue  # a counter belongs to a transform
            found = [old for old in self.ending.get(end, []) if old in self.rest and _is_like(self.rest[old], leaf)]
            if len(found) == 1 or (found and len(end) > len(inside)):
                return self.rest.pop(found[0])
        return None


def _is_like(value: Any, leaf: Any) -> bool:
    return jnp.shape(value) == leaf.shape and tree.is_discrete(value) == tree.is_discrete(leaf)


def _unnumbered(name: str) -> str:
    first, _, number = name.rpartition("_")
    return first if first and number.isdigit() else name


def _forwarded(place: Place, part: Part, fresh: Any, kept: dict[Place, Any], steps: Any) -> dict[Place, Any]:
    """The counter, and the weights of averages, of a part whose old state has none, after `steps` steps."""
    made: dict[Place, Any] = {}
    if (*place, "count") not in kept and part.node.timed:
        made[(*place, "count")] = jnp.asarray(steps, jnp.int32)
    some = any(path[: len(place)] == place for path in kept)
    lacking = {name for name, field in part.fields.items() if field.per == "tree" and not _has(kept, (*place, name))}
    if some and lacking:
        entry = fresh
        for name in place:
            entry = entry[name]
        after = part.node.numbers_after(entry, steps)
        for name in lacking & after.keys():
            for path, value in zip(named_paths(after[name]), jax.tree.leaves(after[name]), strict=True):
                made[(*place, name, *path)] = value
    return made


def _has(kept: dict[Place, Any], place: Place) -> bool:
    return any(path[: len(place)] == place for path in kept)
