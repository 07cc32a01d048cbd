"""Many small leaves as a few long ones: a program with a kernel for each bucket instead of each leaf.

`pack(adamw(1e-3))` is adamw, its statistics in buckets. With a thousand leaves it compiles in about half the time
and steps in about half, since fewer kernels are compiled and started. Large leaves stay alone.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gradtx.core import buckets, check, record, views
from gradtx.core.annotations import PositiveInt
from gradtx.core.compose import Chain
from gradtx.core.elementary import transform
from gradtx.core.rule import Facts, Params, State, Updates
from gradtx.core.transform import Transform, Transparent


class InBuckets(Transparent):
    """A transform that is run on leaves joined end to end."""

    min_leaves: int

    def _probe(self) -> None:
        if not self.inner.facts.joinable:
            _refuse_whole("in_buckets", self.inner)

    @functools.cached_property
    def facts(self) -> Facts:
        facts = self.inner.facts
        # A limit inside is none of what comes out, and there are no buckets of buckets.
        return dataclasses.replace(facts, traits=(facts.traits - {"clips"}) | {"leaves"})

    def _init(self, params: Params) -> State:
        layout, asked = buckets.chosen(params, self.min_leaves), check.questioned.get()
        if asked is not None:  # it may be laid out by what was known of the shardings outside jit
            layouts = [found for node in buckets.nodes_in(asked) if (found := buckets.read(node, params)) is not None]
            layout = layout if layout in layouts or not layouts else layouts[0]
        return self.inner._init(layout.join(params))

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        nodes = buckets.nodes_in(state)
        if nodes:
            layout = buckets.layout_of("gradtx.in_buckets.update", nodes[0], updates)
        else:
            layout = buckets.chosen(updates, self.min_leaves)
        weights, split = None if params is None else layout.join(params), functools.partial(layout.split, like=updates)
        known = views.translated(extra, updates, layout.join, split)
        result, new = self.inner._step(layout.join(updates), state, weights, known)
        return split(result), new


@record.recorded(InBuckets)
def in_buckets(inner: Transform, *, min_leaves: PositiveInt = 2) -> Transform:
    """Runs `inner` on small leaves joined end to end, up to 32 in a bucket; large leaves stay alone.

        u = split(inner(join(g)));   join(g) = [g_1, g_2, ...] for each bucket, g_i for a leaf that stays alone

    Source: none; what other libraries call fused or multi-tensor updates, as a layout.

    Args:
      inner: any transform that does not need the leaves one by one. `pack` does this for the parts of an optimizer
        that do not.
      min_leaves: the minimum number of leaves to join, at least 1; where there are fewer, all stay alone.

    State: that of inner, under its names, for params `{"buckets": {number: vector}, "alone": params without the joined
    leaves}`. `unpacked` gives it leaf by leaf.

    Joined are real, unsharded leaves of 1 to 8192 elements that have the dtype of most such leaves. The maximum in a
    bucket is the square root of the number of leaves of one shape, from 8 to 32. If init cannot know whether a leaf is
    sharded (under jit, on a mesh with automatic axes), the leaf stays alone: call init outside jit.

    Errors: TypeError for an inner transform that needs whole leaves (its trait "leaves"): a mask, a norm for
    each leaf, a trust ratio, averages of the params that are to be read back, `stateless`, foreign objects, and
    buckets again.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.in_buckets(gradtx.scale_by_momentum()).init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    >>> gradtx.find(state, "mu")["buckets"]["0"].shape
    (6,)
    """
    raise NotImplementedError  # a record only: its class says what it does


@transform
def pack(inner: Transform, *, min_leaves: PositiveInt | None = None) -> Transform:
    """`inner` with its small leaves in buckets wherever that is possible and saves time; the same numbers.

        pack(a >> b >> c) = in_buckets(a) >> b >> in_buckets(c),   if b needs the leaves one by one

    Source: none; see `in_buckets`. Numbers are the same to the last bit where each element is computed by itself, and
    to 2 ulps behind a global norm, whose squares are added in another order. What draws random numbers (`add_noise`,
    `stored`) draws others, for each bucket instead of each leaf.

    Args:
      inner: any optimizer. Neighbouring stages run in buckets together if one of them keeps statistics or reads all
        elements; those that need the leaves one by one (masks, trust ratios) stay as they are, and so
        does what follows the last that keeps statistics from where it asks for the params (the decay of AdamW).
      min_leaves: the minimum number of leaves to join; where there are fewer, all stay alone. Joining and splitting
        cost time too, and leaves of many sizes are split by many kernels. None: 256, or 512 where all that is saved
        are the kernels of one statistic (momentum, Lion) or of a norm.

    State: that of inner, under the same names, with buckets in it. `unpacked` gives that of inner, `packed` goes back.

    Errors: TypeError where no statistic can be packed, since the stages that keep some need whole leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.pack(gradtx.adamw(1e-3, mask="*/kernel"))
    >>> tx.expand().stages[0]
    in_buckets(inner=scale_by_momentum(decay=0.9) + scale_by_rms(decay=0.999, eps=1e-08), min_leaves=256)
    >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> gradtx.find(gradtx.unpacked(tx.init(params), params), "mu")["bias"]
    Array([0., 0.], dtype=float32)
    """
    expanded = inner.expand(deep=True)
    stages = list(expanded.stages) if isinstance(expanded, Chain) else [expanded]
    alone = [stage for stage in stages if not stage.facts.joinable and stage.name != "in_buckets"]
    if len(alone) == len(stages):
        _refuse_whole("pack", inner)
    kept = [stage for stage in stages if any(field.per == "leaf" for field in stage.declared.values())]
    if kept and all(stage in alone for stage in kept):
        _refuse_whole("pack", kept[0])
    runs = [(whole, list(run)) for whole, run in itertools.groupby(stages, key=lambda stage: not stage.facts.joinable)]
    chosen = itertools.chain(*(run if whole else _packed_run(run, min_leaves) for whole, run in runs))
    return record.registry["chain"](*chosen)


def _refuse_whole(who: str, inner: Transform) -> None:
    raise TypeError(
        f"gradtx.{who}: {inner!r} needs the leaves one by one, their shapes, number or paths. Put {who} around "
        "what does not, inside it."
    )


def _packed_run(run: list[Transform], min_leaves: int | None) -> Iterator[Transform]:
    """Neighbouring stages that may be joined: in buckets if one of them gains by it.

    Behind the last that gains, what asks for the params stays as it is, and so do those that follow: XLA computes it
    while it cuts the leaves out of the buckets, and the params need not be joined.
    """
    saved = [_statistics(stage) + (stage.facts.reads == "tree") for stage in run]
    if not any(saved):
        return iter(run)
    behind = range(max(index for index, kernels in enumerate(saved) if kernels) + 1, len(run))
    end = next((index for index in behind if run[index].facts.params), len(run))
    min_leaves = (256 if sum(saved) > 1 else 512) if min_leaves is None else min_leaves
    return iter((in_buckets(record.registry["chain"](*run[:end]), min_leaves=min_leaves), *run[end:]))


def _statistics(stage: Transform) -> int:
    """How many values a stage keeps for each element."""
    leaf = jax.ShapeDtypeStruct((2, 3, 5), jnp.bfloat16)  # of which master weights are kept too
    return sum(kept.shape == leaf.shape for kept in jax.tree.leaves(jax.eval_shape(stage.init, leaf)))
