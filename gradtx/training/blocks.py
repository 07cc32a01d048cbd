"""Many runs in one program: blocks of seeds x optimizers, several blocks at a time.

A block is the compiled loop of `minimize` under two `vmap`s: over its seeds, each with its own initial parameters and
order of the samples, and over its optimizers, which share both. The best size of a block depends on the machine. Small
networks gain from running together until their arrays no longer fit the cache; large networks lose.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradtx.core.transform import Transform
from gradtx.training import advancing, inputs
from gradtx.training.advancing import Carry, Plan

PyTree = Any

# Which parts of the carry have an axis of runs. All runs are at the same step, so "step" has none.
_PER_TX = {"params": 0, "tx": 0, "model_state": 0, "step": None, "key": None, "ok": None}
_PER_SEED = _PER_TX | {"key": 0}
_CACHE_BYTES = 4e6  # limit of a worker's block on a CPU: above it, 64-32-10 to 64-2048-10 networks slow down


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(sharding: Any, size: int, txs: Transform, params: PyTree, model_state: PyTree, keys: Array) -> Carry:
    """The carry of a block before its first step. `params` and `keys`, as bits, have an axis of seeds."""
    over_txs = jax.vmap(advancing.start, in_axes=(0, None, None, None), out_axes=_PER_TX, axis_size=size)
    over_seeds = jax.vmap(over_txs, in_axes=(None, 0, None, 0), out_axes=_PER_SEED)
    carry = over_seeds(txs, params, model_state, jax.random.wrap_key_data(keys))
    if sharding is None:
        return carry
    placed = {name: carry[name] for name in ("params", "tx", "model_state")}
    return carry | jax.lax.with_sharding_constraint(placed, sharding)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def run(plan: Plan, txs: Transform, carry: Carry, data: PyTree, last: Any) -> tuple[Carry, dict[str, Any]]:
    """Run the steps of a block before step `last`; the records have axes (steps, seeds, optimizers)."""
    one = functools.partial(advancing.advance, plan)
    over_txs = _over(one, in_axes=(0, _PER_TX, None, None), out_axes=(_PER_TX, 1))
    over_seeds = _over(over_txs, in_axes=(None, _PER_SEED, None, None), out_axes=(_PER_SEED, 1))
    return over_seeds(txs, carry, data, last)


def _over(function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """`vmap` of a function of `(txs, carry, data, last)`. An axis of one run is taken off instead, and put back.

    Under vmap both branches of a condition run, such as a decomposition that is due every tenth step.
    """

    def mapped(*given: Any) -> Any:
        if jax.tree.leaves(given[1]["params"])[0].shape[0] > 1:
            return jax.vmap(function, in_axes, out_axes)(*given)
        made = function(*_at_axes(jnp.squeeze, in_axes, given))
        return _at_axes(jnp.expand_dims, out_axes, made)

    return mapped


def _at_axes(change: Callable[..., Array], axes: Any, values: PyTree) -> PyTree:
    """Each array changed at its axis; `axes` is written as for `vmap`."""

    def at(axis: int | None, part: PyTree) -> PyTree:
        return part if axis is None else jax.tree.map(lambda x: change(x, axis), part)

    return jax.tree.map(at, axes, values, is_leaf=lambda axis: axis is None)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(function: Callable[..., Any], params: PyTree, model_state: PyTree) -> dict[str, Any]:
    """The results of a user's `evaluate` for each run of a block."""
    return jax.vmap(jax.vmap(functools.partial(inputs.evaluated_now, function)))(params, model_state)


# How many at once -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How runs are cut into blocks: the seeds and optimizers of a block, and the number of blocks at the same time."""

    seeds: int
    txs: int
    workers: int

    @property
    def at_once(self) -> int:
        """The number of runs at the same time."""
        return self.seeds * self.txs * self.workers


def devices() -> list[Any]:
    """The devices that runs are spread over."""
    return jax.local_devices()


def lay_out(seeds: int, txs: int, member_bytes: float, at_once: int | None) -> Layout:
    """Blocks that fit the caches of a CPU, or the memory of an accelerator, with at most `at_once` runs at a time."""
    available = devices()
    total = seeds * txs
    on_cpu = available[0].platform == "cpu"
    threads = (os.cpu_count() or 1) if on_cpu and len(available) == 1 else 1
    room = _CACHE_BYTES if on_cpu else 0.3 * _free_bytes(available[0])
    wanted = max(1, int(room / max(member_bytes, 1))) * len(available)
    if at_once is not None:
        threads = min(threads, at_once)
        wanted = at_once // threads
    blocks = -(-total // min(wanted, total))
    workers = min(threads, total)
    blocks = -(-blocks // workers) * workers  # every worker runs the same number of blocks
    size = -(-total // blocks)
    in_txs = min(txs, size)
    in_seeds = max(1, min(seeds, size // in_txs))
    in_txs = -(-txs // -(-txs // in_txs))  # blocks of equal size: less padding
    return Layout(in_seeds, in_txs, workers)


def _free_bytes(device: Any) -> float:
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 8e9) - stats.get("bytes_in_use", 0)


def members_sharding(layout: Layout) -> tuple[Layout, Any]:
    """If there are several devices, shard a block over them, along its optimizers or its seeds, whichever are more."""
    available = devices()
    if len(available) == 1 or layout.seeds * layout.txs == 1:
        return layout, None
    mesh = Mesh(np.asarray(available), ("members",))
    if layout.txs >= layout.seeds:
        padded = -(-layout.txs // len(available)) * len(available)
        return Layout(layout.seeds, padded, 1), NamedSharding(mesh, P(None, "members"))
    padded = -(-layout.seeds // len(available)) * len(available)
    return Layout(padded, layout.txs, 1), NamedSharding(mesh, P("members"))


# Threads --------------------------------------------------------------------------------------------------------------

_CONTEXTS = ("enable_x64", "numpy_dtype_promotion", "numpy_rank_promotion", "default_matmul_precision", "debug_nans")


def settings() -> dict[str, Any]:
    """JAX's settings in this thread."""
    return {name: getattr(jax.config, f"jax_{name}") for name in _CONTEXTS}


def Threads() -> concurrent.futures.ThreadPoolExecutor:
    """A thread pool under the JAX settings of the thread that makes it, which new threads do not inherit."""
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), initializer=_set, initargs=(settings(),))


def _set(here: dict[str, Any]) -> None:
    """Set JAX's settings for the rest of this thread."""
    for name, value in here.items():
        getattr(jax, name)(value).__enter__()
