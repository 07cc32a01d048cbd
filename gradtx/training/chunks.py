"""Chunks of steps: between two chunks, the host looks at the losses, the clock and the keyboard."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gradtx.core.transform import Transform
from gradtx.training.advancing import Carry, Plan

PyTree = Any
SECONDS = 0.3  # the duration of a chunk, once the time of a step is known


def advance(
    run: Callable[..., Any], plan: Plan, tx: Transform, carry: Carry, feed: Iterator[PyTree], *, until: int, steps: int
) -> tuple[Carry, dict[str, Any]]:
    """Run the `steps` steps before step `until`: the carry after them, and their records, on the host.

    The feed gives arrays once for all steps, or one batch of a stream for each step. If a stream ends, there are fewer
    rows.
    """
    parts: list[dict[str, Any]] = []
    for data in itertools.islice(feed, steps if plan.streamed else 1):
        carry, rows = run(plan, tx, carry, data, np.int32(until))
        parts.append(rows)
    records = [jax.tree.map(lambda row: row[:steps], rows) for rows in jax.device_get(parts)]
    return carry, jax.tree.map(lambda *rows: np.concatenate(rows), *records) if records else {"loss": np.zeros(0)}


@dataclass
class Pace:
    """How long a step takes; until this is known, a chunk is one step."""

    seconds: float = math.inf

    def size(self, plan: Plan) -> int:
        """Steps in the next chunk."""
        return int(min(max(1, SECONDS / self.seconds), plan.capacity))


@functools.lru_cache(256)
def pace(program: Any) -> Pace:
    """The pace of a program, as measured in its last run."""
    return Pace()
