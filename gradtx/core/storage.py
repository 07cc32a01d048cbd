"""Statistics stored in another dtype than they are computed in: the decorator's part of `state_dtype=`.

    stored v = round(b v + (1 - b) g²),   the rounding a random choice between the two neighbours

An average with decay 0.999 changes by a thousandth of itself per step, and bfloat16 has steps of 1/256 to 1/128:
rounded to the nearest it would stand still. Rounded stochastically it is right in the mean. What is never averaged away
(a largest value so far, a difference of two averages) is refused by those who keep it.
"""

import zlib
from typing import Any

import jax
from jax import Array

from gradtx import numerics, tree
from gradtx.core.rule import Params, Rule, State

KEY = "rounding_key"
_ALLOWED = ("bfloat16", "float32", "float64")


def one_of(who: str, **dtypes: str | None) -> str | None:
    """The one that is given of two names for the dtype of the only statistic."""
    given = {name: dtype for name, dtype in dtypes.items() if dtype is not None}
    if len(given) > 1:
        raise ValueError(f"gradtx.{who}: {' and '.join(given)} say the same here; pass one of them.")
    return next(iter(given.values()), None)


def check(who: str, rule: Rule) -> None:
    """Refuse a dtype that statistics cannot live in."""
    if rule.state_dtype is None:
        return
    if not rule.statistics:
        raise ValueError(f"{who}: its Rule has a state_dtype and names no statistics; name the fields it is about.")
    if rule.state_dtype not in _ALLOWED:
        why = "its largest number is 65504, which the square of a gradient of 256 exceeds"
        why = why if rule.state_dtype == "float16" else "it has too few digits or too small a range for statistics"
        raise ValueError(
            f"{who}: state_dtype is {rule.state_dtype!r}; allowed: {', '.join(map(repr, _ALLOWED))}, or None for the "
            f"compute dtype. In {rule.state_dtype} statistics would be wrong without notice: {why}."
        )


def lowered(who: str, rule: Rule, fields: State, params: Params) -> State:
    """The fields as they are stored at first, with the key for rounding."""
    if rule.state_dtype is None:
        return fields
    stored = {
        name: _cast(who, name, fields[name], rule.state_dtype, params) for name in rule.statistics if name in fields
    }
    return fields | stored | {KEY: jax.random.key_data(jax.random.key(zlib.crc32(who.encode())))}


def _cast(who: str, name: str, field: Any, dtype: str, params: Params) -> Any:
    for path, leaf in tree.named_leaves(field):
        if tree.is_complex(leaf):
            raise TypeError(
                f"{who}.init: {name} at {path} is complex ({tree.dtype_of(leaf)}); allowed with state_dtype: real "
                "leaves. Put split_real_and_imaginary around it."
            )
    return tree.stored_as(field, dtype, params)


def rounded(rule: Rule, new: State, old: State, bits: Array | None) -> State:
    """The new fields in the dtypes of the old ones, the statistics without bias; and the next key."""
    if bits is None:
        return tree.cast_like(new, old)
    kept = {name: field for name, field in old.items() if name not in rule.statistics}
    stored = {name: old[name] for name in new if name not in kept}
    following, keys = numerics.leaf_keys(bits, stored)

    def at_leaf(x: Array, like: Array) -> Array:
        return numerics.round_stochastically(x, like.dtype, next(keys))

    fields: State = {KEY: following}
    fields.update(jax.tree.map(at_leaf, {name: new[name] for name in stored}, stored))
    fields.update(tree.cast_like({name: new[name] for name in kept}, kept))
    return fields
