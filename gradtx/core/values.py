"""Value checks in the running program, which `checked` asks for: finite numbers, signs, counters."""

from contextlib import AbstractContextManager
from typing import Any

import jax.numpy as jnp
from jax.experimental import checkify

from gradtx import tree
from gradtx.scoped import Scoped

value_checks = Scoped(False)
"""Whether every transform's update checks the values of its state and of its result."""

_held = Scoped[list[bool] | None](None)


def held_back() -> AbstractContextManager[list[bool] | None]:
    """In this context, value checks are noted, not made: for a run whose result may be discarded."""
    return _held([])


def check_values(who: str, updates: Any, old: dict[str, Any], new: dict[str, Any], nonnegative: list[str]) -> None:
    """Make checkify's checks: all values finite, the named statistics not negative, the counter rising."""
    if (held := _held.get()) is not None:
        held.append(True)
        return
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
