"""Statistics stored in fewer bits than they are computed in.

    stored v = round(b v + (1 - b) g²),   where rounding chooses one of the two neighbours at random

An average with decay 0.999 changes by a thousandth of itself per step, and bfloat16 has steps of 1/256 to 1/128.
Rounded to nearest, the average would not change; rounded stochastically, it is right on average. Fields whose noise
would not average out (a largest value so far, a difference of two averages) declare this, and are refused.
"""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable
from typing import Any, cast

import jax
from jax import Array

from gradtx import numerics, tree
from gradtx.core import check, meeting, record
from gradtx.core.annotations import Dtype
from gradtx.core.arguments import set_in
from gradtx.core.fields import Field, Place, at
from gradtx.core.foreign import as_transform
from gradtx.core.rule import Facts, Params, State, Updates
from gradtx.core.transform import Part, Transform, Transparent, numbered

_ALLOWED = ("bfloat16", "float32", "float64")


class Stored(Transparent):
    """A transform with some fields in another dtype; the names in its state do not change."""

    inner: Transform
    dtype: str
    fields: tuple[str, ...] | None

    def _probe(self) -> None:
        who = "gradtx.stored"
        if self.dtype not in _ALLOWED:
            why = "its largest number is 65504, which the square of a gradient of 256 exceeds"
            why = why if self.dtype == "float16" else "it has too few digits or too small a range for statistics"
            raise ValueError(
                f"{who}: dtype is {self.dtype!r}; allowed: {', '.join(map(repr, _ALLOWED))}. In {self.dtype} "
                f"statistics would be wrong without notice: {why}."
            )
        known = {place[-1]: field for place, field in self.inner.declared.items() if field.storable}
        for name in self.fields or ():
            if name not in known:
                raise ValueError(
                    f"{who}: fields has {name!r}; allowed for {self.inner!r}: {', '.join(known) or 'none'}."
                )
        if not known:
            raise ValueError(f"{who}: inner is {self.inner!r}; it must be a transform that has statistics.")
        for place, field in self._places:
            if field.exact is not None and self.dtype == "bfloat16":
                others = tuple(name for name, other in known.items() if other.exact is None)
                hint = f" Name the fields that may be: fields={others!r}." if others else ""
                raise ValueError(
                    f"{who}: {'/'.join(place)} of {self.inner!r} cannot be in bfloat16: {field.exact}.{hint}"
                )

    @property
    def _places(self) -> list[tuple[Place, Field]]:
        """The fields that it stores, with their places in the state."""
        chosen = self.fields
        return [(p, f) for p, f in self.inner.declared.items() if f.storable and (chosen is None or p[-1] in chosen)]

    @functools.cached_property
    def facts(self) -> Facts:
        return dataclasses.replace(self.inner.facts, random=True)

    @property
    def slots(self) -> tuple[str, ...]:
        return (*self.inner.slots, self.name)

    @property
    def _own(self) -> str:
        """The name of its own entry."""
        return numbered(self.slots)[-1]

    @property
    def parts(self) -> dict[Place, Part]:
        kept = {place for place, _ in self._places}  # a field is stored in one dtype only

        def seen(place: Place, part: Part) -> Part:
            stored = {n: dataclasses.replace(f, low=False) for n, f in part.fields.items() if (*place, n) in kept}
            return dataclasses.replace(part, fields={**part.fields, **stored})

        return {place: seen(place, part) for place, part in self.inner.parts.items()}

    def _init(self, params: Params) -> State:
        state = self.inner._init(params)
        for place, _ in self._places:
            field = at(state, place)
            for path, leaf in tree.named_leaves(field):
                if tree.is_complex(leaf):
                    raise TypeError(
                        f"gradtx.stored: {'/'.join(place)} at {path} is complex ({tree.dtype_of(leaf)}); it must be "
                        "real. Put split_real_and_imaginary around it."
                    )
            state = set_in(state, place, self._rounded_to_nearest(field, params))
        seed = zlib.crc32("/".join(self.inner.slots).encode())
        return state | {self._own: {"key": jax.random.key_data(jax.random.key(seed))}}

    def _rounded_to_nearest(self, field: Any, params: Params) -> Any:
        """A field in the dtype, each leaf sharded as its parameter."""
        places, leaves = meeting.Places(params), cast(Any, jax.tree_util.tree_leaves_with_path(params))
        known = dict(leaves)

        def at_leaf(path: Any, leaf: Array) -> Array:
            return tree.stored_as(leaf, self.dtype, known.get(places.of(path, leaf.shape), leaf))

        return jax.tree_util.tree_map_with_path(at_leaf, field)

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        own = {name: entry for name, entry in state.items() if name != self._own}
        low = [at(own, place) for place, _ in self._places]
        shapes = self._computed(own, updates if params is None else params)
        for (place, _), field in zip(self._places, low, strict=True):
            own = set_in(own, place, tree.cast_like(field, at(shapes, place)))
        updates, new = self.inner._step(updates, own, params, extra)
        following, drawn = numerics.leaf_keys(state[self._own]["key"], jax.tree.leaves(low))
        keys = cast(Any, jax.tree.structure(low)).unflatten(drawn)

        def rounded(x: Array, old: Array, key: Array) -> Array:
            return numerics.round_stochastically(x, old.dtype, key)

        for (place, _), old, own_keys in zip(self._places, low, keys, strict=True):
            new = set_in(new, place, jax.tree.map(rounded, at(new, place), old, own_keys))
        return updates, new | {self._own: {"key": following}}

    def _computed(self, state: State, like: Params) -> State:
        """The shapes of the inner state, in the dtypes in which it is computed."""
        key = check.struct_key(like)
        if key not in self._shapes:
            with check.questioned(state):
                self._shapes[key] = jax.eval_shape(self.inner._init, like)
        return self._shapes[key]

    @functools.cached_property
    def _shapes(self) -> dict[Any, State]:
        return {}


def _stored(inner: Transform, dtype: Dtype, fields: tuple[str, ...] | None = None) -> Transform:
    raise NotImplementedError  # only recorded; Stored implements it


_stored.__name__ = "stored"
_node = record.define(Stored, _stored)


def stored(inner: Any, dtype: Any, fields: Any = None) -> Transform:
    """Runs `inner` with its statistics stored in another dtype, in fewer bits; they are computed in at least float32.

        v <- round(f(v)),   to one of the two neighbours, at random, so that v is right on average

    Source: for the rounding, Gupta et al. 2015 (arXiv 1502.02551), section 3.1.

    Args:
      inner: any transform with statistics. Their names do not change, and it can be used anywhere in a composition:
        `stored(scale_by_momentum(), "bfloat16") + scale_by_rms()` is Adam with its first average in bfloat16, like
        optax's `mu_dtype`.
      dtype: jnp.bfloat16, float32 or float64; None returns `inner` unchanged.
      fields: the names of the statistics to store, such as ("mu",) or "mu"; None for all.

    State: that of inner, with the statistics in `dtype`: in bfloat16, 2 bytes per parameter instead of 4; and an entry
    `stored` with a random key, 8 bytes.

    Errors: ValueError for another dtype, in which statistics would be wrong without notice; for a transform without
    statistics, or without one of these names; and for statistics that rounding noise would dominate (`amsgrad`'s
    maximum, the averages of a centered RMSProp). TypeError from init for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.stored(gradtx.adam(1e-3), jnp.bfloat16)
    >>> gradtx.find(tx.init(jnp.zeros(2)), "nu").dtype
    dtype(bfloat16)
    """
    inner = as_transform(inner, "gradtx.stored: inner")
    fields = (fields,) if isinstance(fields, str) else fields
    return inner if dtype is None else _node._from_call((inner, dtype, fields), {})


record.enter(_node, stored)


def stored_by(argument: str) -> Callable[[Callable[..., Transform]], Callable[..., Transform]]:
    """A factory with one more argument: `ema(0.9, accumulator_dtype=dtype)` is `stored(ema(0.9), dtype)`."""

    def decorate(factory: Callable[..., Transform]) -> Callable[..., Transform]:
        @functools.wraps(factory)
        def called(*args: Any, **kwargs: Any) -> Transform:
            dtype = kwargs.pop(argument, None)
            return stored(factory(*args, **kwargs), dtype)

        signature = inspect.signature(factory)
        more = inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Dtype | None)
        cast(Any, called).__signature__ = signature.replace(parameters=[*signature.parameters.values(), more])
        return record.enter(cast(Any, factory).node, called)

    return decorate
