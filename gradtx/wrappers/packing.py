"""Many small leaves as a few long ones: a program with a kernel for each bucket instead of each leaf.

`pack(adamw(1e-3))` is adamw, its statistics in buckets. With a thousand leaves it compiles in a fourth of the time and
steps in half, since what costs is no longer the number of leaves; leaves that are large stay alone.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp

from gradtx.core import check, views
from gradtx.core.annotations import PositiveInt
from gradtx.core.compose import Chain
from gradtx.core.elementary import transform
from gradtx.core.record import registry
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform, numbered
from gradtx.wrappers.layout import Layout, chosen, named

PyTree = Any
State = dict[str, Any]


def _layout(params: PyTree, fewest: int) -> Layout:
    """The layout for new params; where a state is in question, the one in it that is for these."""
    new = chosen(params, fewest)
    kept = [Layout.read(packed["layout"]) for packed in _packed_in(check.questioned.get())]
    if not kept or new in kept:
        return new
    fitting = [layout for layout in kept if layout.problem(params) is None]
    if not fitting:
        _refuse_other(
            "gradtx.in_buckets", max(kept, key=lambda layout: len(layout.names & named(params).keys())), params
        )
    return fitting[0]


def _refuse_other(who: str, layout: Layout, values: PyTree) -> None:
    if problem := layout.problem(values):
        raise ValueError(
            f"{who}: the state is laid out for other leaves: {problem}. Pass the state returned by init or by the "
            "last update for params of this structure and these shapes."
        )


# The transforms -------------------------------------------------------------------------------------------------------


def _refuse_whole(who: str, inner: Transform) -> None:
    raise TypeError(
        f"gradtx.{who}: {inner!r} needs the leaves one by one, their shapes, number or paths. Put {who} around "
        "what does not, inside it."
    )


@transform
def in_buckets(inner: Transform, *, fewest: PositiveInt = 2) -> Rule:
    """Runs `inner` on small leaves joined end to end, those of one dtype 32 at a time; large leaves stay alone.

        u = split(inner(join(g)));   join(g) = [g_1, g_2, ...] for each bucket, g_i for a leaf that stays alone

    Source: none; what other libraries call fused or multi-tensor updates, as a layout.

    Args:
      inner: any transform that does not need the leaves one by one; `pack` does this for those of which a part does.
      fewest: the smallest number of small leaves of one dtype that is joined; fewer stay alone.

    State: `{"in_buckets": {"layout": which leaves are where, in names alone: no bytes; "inner": the state of inner for
    params `{"buckets": {bucket: vector}, "alone": {path: leaf}}`}}`. `unpacked` shows it leaf by leaf.

    The layout is made at init and then kept. Joined are real, unsharded leaves of 1 to 8192 elements on the
    same devices. Sharded leaves stay alone; and under jit on a mesh with automatic axes, where this
    cannot be known, all do: call init outside jit.

    Errors: TypeError for an inner transform that needs whole leaves (its trait "leaves"): a mask, a norm for
    each leaf, a trust ratio, averages of the params that are to be read back, `stateless`, foreign objects, and
    buckets again. ValueError for a state that is laid out for other leaves or shapes.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.in_buckets(gradtx.scale_by_momentum()).init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    >>> gradtx.find(state, "mu")["buckets"]["0"].shape
    (6,)
    """
    if not inner.facts.joinable:
        _refuse_whole("in_buckets", inner)

    def init(params: PyTree) -> State:
        layout = _layout(params, fewest)
        return {"layout": layout.recorded(), "inner": inner.init(layout.join(params))}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        layout = Layout.read(state["layout"])
        _refuse_other("gradtx.in_buckets.update", layout, updates)
        up = functools.partial(layout.split, like=updates)
        result, inner_state = views.inside(inner, updates, state["inner"], params, extra, layout.join, up)
        return layout.split(result, updates), {"layout": state["layout"], "inner": inner_state}

    return Rule(init=init, update=update, traits=("idle", "leaves"))


@transform
def pack(inner: Transform, *, fewest: PositiveInt | None = None) -> Transform:
    """`inner` with its small leaves in buckets wherever that is possible and saves time; the same numbers.

        pack(a >> b >> c) = in_buckets(a) >> b >> in_buckets(c),   if b needs the leaves one by one

    Source: none; see `in_buckets`. Numbers are the same to the last bit where each element is computed by itself, and
    to 2 ulps behind a global norm, whose squares are added in another order. What draws random numbers (`add_noise`,
    `stored`) draws others, for each bucket instead of each leaf.

    Args:
      inner: any optimizer. Neighbouring stages run in buckets together if one of them keeps statistics or reads all
        elements; those that need the leaves one by one (masks, trust ratios) stay as they are, and so
        does what follows the last that keeps statistics from where it asks for the params (the decay of AdamW).
      fewest: the smallest number of small leaves of one dtype that is joined. Joining and cutting cost as well,
        and leaves of many sizes are cut by many kernels. None: 256, or 512 where all that is saved are the kernels of
        one statistic (momentum, Lion) or of a norm.

    State: that of inner, with an entry `in_buckets` for each run of packed stages. `unpacked` gives the one of inner,
    `packed` makes it of that again.

    Errors: TypeError where nothing can be packed, since every stage needs whole leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.pack(gradtx.adamw(1e-3, mask="*/kernel"))
    >>> tx.expand().stages[0]
    in_buckets(inner=scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08), fewest=256)
    >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> gradtx.find(gradtx.unpacked(tx.init(params), params), "mu")["bias"]
    Array([0., 0.], dtype=float32)
    """
    expanded = inner.expand(deep=True)
    stages = list(expanded.stages) if isinstance(expanded, Chain) else [expanded]
    if all(not stage.facts.joinable and stage.name != "in_buckets" for stage in stages):
        _refuse_whole("pack", inner)
    runs = [(whole, list(run)) for whole, run in itertools.groupby(stages, key=lambda stage: not stage.facts.joinable)]
    return registry["chain"](*itertools.chain(*(run if whole else _packed(run, fewest) for whole, run in runs)))


def _packed(run: list[Transform], fewest: int | None) -> list[Transform]:
    """Neighbouring stages that may be joined: in buckets if one of them gains by it.

    Behind the last that gains, what asks for the params stays as it is, and so do those that follow: XLA computes it
    while it cuts the leaves out of the buckets, and the params need not be joined.
    """
    saved = [_statistics(stage) + (stage.facts.reads == "tree") for stage in run]
    if not any(saved):
        return run
    behind = range(max(index for index, kernels in enumerate(saved) if kernels) + 1, len(run))
    end = next((index for index in behind if run[index].facts.params), len(run))
    fewest = (256 if sum(saved) > 1 else 512) if fewest is None else fewest
    return [in_buckets(registry["chain"](*run[:end]), fewest=fewest), *run[end:]]


def _statistics(stage: Transform) -> int:
    """How many numbers a stage keeps for each element."""
    leaf = jax.ShapeDtypeStruct((2, 3, 5), jnp.bfloat16)  # of which master weights are kept too
    return sum(kept.shape == leaf.shape for kept in jax.tree.leaves(jax.eval_shape(stage.init, leaf)))


# Their states, leaf by leaf -------------------------------------------------------------------------------------------


def unpacked(state: PyTree, params: PyTree) -> PyTree:
    """A state with every bucket taken apart: the state of the optimizer without `pack`, leaf by leaf.

    Args:
      state: that of a `pack` or `in_buckets`, or whatever contains such in dicts and tuples; it may have leading axes,
        as that of a sweep has.
      params: any tree of the params' structure; only that is asked.

    The same names and structure as those of the state of the optimizer alone, so that either reads the other's
    checkpoints; `packed` is the way back.

    Errors: ValueError for params without a leaf that the state has; or where a transform's name stands both in buckets
    and beside them, since a state does not say which of the two comes first.

    >>> import gradtx, jax.numpy as jnp
    >>> params, tx = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, gradtx.adam(1e-3)
    >>> gradtx.tree_equal(gradtx.unpacked(gradtx.pack(tx).init(params), params), tx.init(params))
    True
    """
    if isinstance(state, tuple):
        return _like(state, [unpacked(value, params) for value in cast(tuple[Any, ...], state)])
    if not isinstance(state, dict):
        return state
    entries = cast(State, state)
    result: State = {}
    for name, (box, own) in _places("gradtx.unpacked", entries).items():
        result[name] = unpacked(entries[own], params) if box is None else _opened(entries[box], own, params)
    return result


def packed(state: PyTree, like: PyTree) -> PyTree:
    """The state of an optimizer without `pack` in the layout of the state of the one with it: `unpacked` undone.

    Args:
      state: that of the optimizer alone, an older checkpoint say.
      like: a state of the packed optimizer; its layout and its own counters are taken: `pack(tx).init(params)`.

    Errors: ValueError for states of two optimizers, or of params of other shapes.

    >>> import gradtx, jax.numpy as jnp
    >>> params, tx = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, gradtx.adam(1e-3)
    >>> _, state = tx.update(params, tx.init(params))
    >>> gradtx.find(gradtx.packed(state, gradtx.pack(tx, fewest=2).init(params)), "mu")["buckets"]["0"].shape
    (6,)
    """
    result = _boxed(state, like)
    check.check_unchanged("gradtx.packed", "the state", result, "the state it is to be like", like)
    return result


def _opened(packed: State, own: str, params: PyTree) -> PyTree:
    """An entry of what runs in buckets, its trees like the params."""
    layout = Layout.read(packed["layout"])
    if more := sorted(layout.names - named(params).keys()):
        raise ValueError(
            f"gradtx.unpacked: the state has the leaf {more[0]}, the params have not. Pass those it is for."
        )
    entry = packed["inner"][own]
    return jax.tree.map(lambda node: layout.split(node, params) if _is_tree(node) else node, entry, is_leaf=_is_tree)


def _boxed(state: PyTree, like: PyTree) -> PyTree:
    if isinstance(like, tuple) and isinstance(state, tuple):
        pairs = zip(cast(Any, state), cast(Any, like), strict=False)
        return _like(like, [_boxed(value, other) for value, other in pairs])
    if not isinstance(like, dict) or not isinstance(state, dict):
        return state
    given, model = cast(State, state), cast(State, like)
    places = _places("gradtx.packed", model)
    if given.keys() != places.keys():
        raise ValueError(
            f"gradtx.packed: the state has the entries {', '.join(map(str, given))}; allowed are those of the "
            f"optimizer alone: {', '.join(map(str, places))}."
        )
    result: State = {own: _boxed(given[name], model[own]) for name, (box, own) in places.items() if box is None}
    for box in {box: None for box, _ in places.values() if box is not None}:
        join = functools.partial(_joined_as, Layout.read(model[box]["layout"]))
        inner = {own: (model[box]["inner"][own], given[name]) for name, (where, own) in places.items() if where == box}
        result[box] = model[box] | {
            "inner": {own: jax.tree.map(join, other, entry, is_leaf=_is_tree) for own, (other, entry) in inner.items()}
        }
    return result


def _joined_as(layout: Layout, node: Any, value: PyTree) -> PyTree:
    """A value in buckets, where the node at its place is."""
    if not _is_tree(node):
        return value
    leaves, leading = (
        named(value),
        max([jnp.ndim(bucket) - 1 for bucket in jax.tree.leaves(node["buckets"])], default=0),
    )
    for name, shape in layout.shapes.items():
        if name in leaves and jnp.shape(leaves[name])[leading:] != shape:
            raise ValueError(
                f"gradtx.packed: in the state {name} has shape {jnp.shape(leaves[name])}, in the layout {shape}. Pass "
                "states for params of the same shapes."
            )
    return layout.join(value)


def _places(who: str, state: State) -> dict[str, tuple[str | None, str]]:
    """The entries by the names they have without buckets: (the `in_buckets` it lies in, its own name there)."""
    boxes = [name for name in sorted(state, key=_in_order) if _is_packed(state[name])]
    inside = [(box, own) for box in boxes for own in sorted(state[box]["inner"], key=_in_order)]
    names = [_unnumbered(own, state[box]["inner"]) for box, own in inside]
    beside = {name: (None, name) for name in state if name not in boxes}
    if both := set(names).intersection(_unnumbered(name, beside) for name in beside):
        raise ValueError(
            f"{who}: {min(both)!r} is the name of a transform in buckets and of one beside them; a state does not say "
            "which of the two comes first. Read both by name: gradtx.find(state, 'in_buckets/...')."
        )
    places: dict[str, tuple[str | None, str]] = dict(zip(numbered(tuple(names)), inside, strict=True))
    return places | beside


def _in_order(name: Any) -> tuple[int, str]:
    return len(str(name)), str(name)


def _unnumbered(name: Any, names: Any) -> Any:
    """The name without the `_2` of a repeated one."""
    first, _, number = str(name).rpartition("_")
    return first if number.isdigit() and first in names else name


def _like(value: Any, values: list[Any]) -> Any:
    """A tuple of the kind of another."""
    return type(value)(*values) if hasattr(value, "_fields") else tuple(values)


def _is_tree(node: Any) -> bool:
    """Whether this is a tree like the params, in buckets."""
    return isinstance(node, dict) and cast(State, node).keys() == {"buckets", "alone"}


def _is_packed(entry: Any) -> bool:
    """Whether this is the state of an `in_buckets`."""
    return isinstance(entry, dict) and cast(State, entry).keys() == {"layout", "inner"} and _is_tree(entry["layout"])


def _packed_in(state: Any) -> Iterator[State]:
    """The states of `in_buckets` in a state, however deep."""
    if _is_packed(state):
        yield cast(State, state)
    inside: Any = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    for value in inside:
        yield from _packed_in(value)
