"""The laws of running: an optimizer gives the same results compiled, mapped, scanned, donated, or sharded."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradtx import tree
from gradtx.core.state import state_sharding
from gradtx.core.transform import Transform
from gradtx.testing.runs import (
    PyTree,
    Trajectory,
    assert_close,
    at_params,
    fail,
    gradients,
    jitted_step,
    law,
    leaf_by_leaf,
    numbers_of,
    pick,
    take_step,
    trajectory,
)

# Compiled, mapped, scanned --------------------------------------------------------------------------------------------


@law
def eager_is_jit(tx: Transform, params: PyTree, *, ulps: float | None = None, **extra: Any) -> None:
    """`jit(update) = update`, within `ulps` ulps."""
    grads = gradients(params)
    compiled, eager = trajectory(tx, params, grads, extra), trajectory(tx, params, grads, extra, take_step)
    assert_close(tx, compiled, eager, params, ulps)


@law
def passed_is_closed_over(tx: Transform, params: PyTree, *, ulps: float | None = None, **extra: Any) -> None:
    """`jit(lambda tx, g: tx.update(g))(tx, g) = jit(tx.update)(g)`: numbers may be arguments or closed over."""
    grads = gradients(params)
    closed = jax.jit(lambda gradient, state, params, extra: take_step(tx, gradient, state, params, extra))
    actual = trajectory(tx, params, grads, extra, lambda _, *args: closed(*args))
    assert_close(tx, actual, trajectory(tx, params, grads, extra), params, ulps)


@law
def sweep_is_separate(
    tx: Transform,
    params: PyTree,
    *,
    name: str | None = "learning_rate",
    size: int = 3,
    ulps: float | None = None,
    **extra: Any,
) -> None:
    """`jit(vmap(update))(txs) = [jit(update)(tx) for tx in txs]`, where the txs differ in one hyperparameter.

    If tx has no number of that name, or with `name=None`, they differ in all their numbers.
    """
    if not jax.tree.leaves(tx):
        return
    factors = jnp.linspace(0.1, 1.0, size, dtype=np.float32)
    chosen = {key: value for key, value in numbers_of(tx).items() if key == name}

    def variant(factor: jax.Array) -> Transform:
        if chosen:
            return tx.replace(**{key: factor * np.float32(value) for key, value in chosen.items()})
        return jax.tree.map(lambda number: factor * jnp.float32(number), tx)

    grads, txs = gradients(params), jax.vmap(variant)(factors)
    together = jax.jit(jax.vmap(take_step, in_axes=(0, None, 0, None, None)))
    batch = trajectory(txs, params, grads, extra, together, jax.vmap(lambda tx: tx.init(params))(txs))
    for index, factor in enumerate(factors):
        actual = jax.tree.map(lambda leaf, index=index: leaf[:, index], batch)
        one = variant(factor)
        assert_close(one, actual, trajectory(one, params, grads, extra), params, ulps)


@law
def vmap_is_loop(tx: Transform, params: PyTree, *, ulps: float | None = None, **extra: Any) -> None:
    """`vmap(update)(gs, states, ps) = [update(g, s, p) for g, s, p in ...]`: several models under one optimizer."""
    models = [params, *gradients(params, 2, seed=1)]
    streams = [gradients(params, seed=seed) for seed in range(3)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    batch, grads = stack(*models), [stack(*step) for step in zip(*streams, strict=True)]
    together = jax.jit(jax.vmap(take_step, in_axes=(None, 0, 0, 0, None)))
    actual = trajectory(tx, batch, grads, extra, together, jax.vmap(tx.init)(batch))
    for index, (model, stream) in enumerate(zip(models, streams, strict=True)):
        one = jax.tree.map(lambda leaf, index=index: leaf[:, index], actual)
        alone = trajectory(tx, model, stream, extra)
        assert_close(tx, leaf_by_leaf(one, model), leaf_by_leaf(alone, model), model, ulps)


@law
def scan_is_loop(tx: Transform, params: PyTree, *, ulps: float | None = None, **extra: Any) -> None:
    """`scan(update, init(p), gs) = for g in gs: update(g)`, with init and the loop in one compiled program."""
    grads = gradients(params)

    @jax.jit
    def run(tx: Transform, grads: PyTree, params: PyTree) -> Trajectory:
        def step(state: PyTree, gradient: PyTree) -> tuple[PyTree, Trajectory]:
            updates, state = take_step(tx, gradient, state, params, extra)
            return state, {"updates": updates, "state": state}

        return jax.lax.scan(step, tx.init(params), grads)[1]

    actual = run(tx, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads), params)
    expected = trajectory(tx, params, grads, extra)
    expected["state"] = pick(slice(1, None), expected["state"])  # scan does not return the initial state
    assert_close(tx, leaf_by_leaf(actual, params), leaf_by_leaf(expected, params), params, ulps)


@law
def compiles_once(tx: Transform, params: PyTree, **extra: Any) -> None:
    """Nothing is traced again: neither at the second step, nor for a rebuilt tx, new numbers or `jit(tx.update)`."""
    grads = gradients(params, 2)
    rebuilt = jax.tree.unflatten(jax.tree.structure(tx), jax.tree.leaves(tx))
    moved = jax.tree.map(lambda number: 0.9 * number, tx)
    state = trajectory(tx, params, grads, extra) and tx.init(params)
    given = at_params(extra, params)
    jax.block_until_ready(jax.jit(tx.update)(grads[0], state, params, **given))
    _, later = jitted_step(tx, grads[0], state, params, extra)
    calls: dict[str, Callable[[], Any]] = {
        "the second step": lambda: jitted_step(tx, grads[1], later, params, extra),
        "a rebuilt transform": lambda: jitted_step(rebuilt, grads[0], state, params, extra),
        "other numbers": lambda: jitted_step(moved, grads[0], state, params, extra),
        "jit(tx.update) of a rebuilt transform": lambda: jax.jit(rebuilt.update)(grads[0], state, params, **given),
    }
    for what, call in calls.items():
        if programs := _count_programs(call):
            fail(f"{what} was traced again ({programs} new programs); allowed: none.")


def _count_programs(call: Callable[[], Any]) -> int:
    """The number of functions that a call traces and compiles."""
    count = 0

    def listen(event: str, *_: Any, **__: Any) -> None:
        nonlocal count
        count += event == "/jax/core/compile/jaxpr_to_mlir_module_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return count


# Memory and devices ---------------------------------------------------------------------------------------------------


@law
def donation_is_safe(tx: Transform, params: PyTree, *, ulps: float | None = None, **extra: Any) -> None:
    """No two leaves of params and state share a buffer: both can be donated right after init."""
    grads = gradients(params, 2)
    donating = jax.jit(_step_keeping_params, donate_argnums=(2, 3))
    for how, init in (("init", tx.init), ("jit(init)", jax.jit(tx.init))):
        params_now = jax.tree.map(jnp.copy, params)
        expected = trajectory(tx, params, grads, extra)
        state = init(params_now)
        _assert_no_alias(f"after {how}", {"params": params_now, "state": state})
        for index, gradient in enumerate(grads):
            updates, state, params_now = donating(tx, gradient, state, params_now, extra)
            assert_close(tx, updates, pick(index, expected["updates"]), params, ulps)
    _, state = take_step(tx, grads[0], tx.init(params), params, extra)
    _assert_no_alias("after update", {"params": params, "state": state})


def _step_keeping_params(
    tx: Transform, gradient: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, PyTree, PyTree]:
    return *take_step(tx, gradient, state, params, extra), params


def _assert_no_alias(when: str, value: PyTree) -> None:
    seen: dict[int, str] = {}
    for path, leaf in tree.named_leaves(value):
        for shard in leaf.addressable_shards if leaf.size else ():
            pointer = shard.data.unsafe_buffer_pointer()
            if pointer in seen:
                fail(f"{when}, {path} has the buffer of {seen[pointer]}; make it a copy.")
            seen[pointer] = path


def _all_devices() -> Mesh:
    return jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))


def _along_first_axis(leaf: Any, mesh: Mesh) -> NamedSharding:
    """A leaf sharded along its first axis where the devices divide it."""
    axis = mesh.axis_names[0]
    divided = leaf.ndim > 0 and leaf.shape[0] % mesh.shape[axis] == 0
    return NamedSharding(mesh, PartitionSpec(axis) if divided else PartitionSpec())


@law
def sharded_is_replicated(
    tx: Transform, params: PyTree, *, mesh: Mesh | None = None, ulps: float | None = None, **extra: Any
) -> None:
    """`update(sharded) = update(replicated)`, and the state is sharded like the params, after jit(init) too.

    A leaf is sharded along its first axis if the number of devices divides it. The default mesh has all devices on one
    automatic axis.
    """
    mesh = mesh or _all_devices()
    explicit = any(kind is not AxisType.Auto for kind in mesh.axis_types)
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        here, grads = jax.tree.map(
            lambda leaf: jax.device_put(leaf, _along_first_axis(leaf, mesh)), (params, gradients(params, 2))
        )
        for how, init in (("init", tx.init), ("jit(init)", jax.jit(tx.init))):
            state = init(here)
            _assert_placed(f"after {how}", tx, state, here)
        _assert_placed("after jit(update)", tx, jitted_step(tx, grads[0], state, here, extra)[1], here)
        actual = trajectory(tx, here, grads, extra, state=state)
    expected = trajectory(tx, params, gradients(params, 2), extra)
    assert_close(tx, leaf_by_leaf(actual, params), leaf_by_leaf(expected, params), params, ulps)


@law
def inside_shard_map_is_outside(
    tx: Transform, params: PyTree, *, mesh: Mesh | None = None, ulps: float | None = None, **extra: Any
) -> None:
    """`shard_map(update)(shards) = update(whole)`, where `axis_name=` names the axis that leaves are sharded along.

    A leaf is sharded along its first axis if the number of devices divides it. A transform that needs whole leaves
    refuses shards. One that draws random numbers draws different ones for shards, so it is not tested.
    """
    mesh = mesh or _all_devices()

    def placed(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_along_first_axis(leaf, mesh))

    like = jax.tree.map(placed, params)
    of_params = jax.tree.map(lambda leaf: leaf.sharding.spec, like)
    of_state = jax.tree.map(lambda leaf: leaf.spec, state_sharding(tx, like))
    step = functools.partial(take_step, tx, extra=extra)
    inside = functools.partial(take_step, tx, extra=extra | {"axis_name": mesh.axis_names[0]})
    together = jax.shard_map(
        inside, mesh=mesh, in_specs=(of_params, of_state, of_params), out_specs=(of_params, of_state)
    )
    state, expected = tx.init(params), tx.init(params)
    if jax.tree.structure(state) != jax.tree.structure(of_state):
        return  # laid out by where the params lie (`in_buckets`)
    for gradient in gradients(params, 2):
        try:
            updates, state = jax.jit(together)(gradient, state, params)
        except ValueError as error:
            if "shards" in str(error) and tx.facts.reach != "element":
                return
            raise
        wanted, expected = jax.jit(step)(gradient, expected, params)
        if not tx.facts.random:
            found = {"updates": updates, "state": state}
            assert_close(tx, found, {"updates": wanted, "state": expected}, params, ulps)


def _assert_placed(when: str, tx: Transform, state: PyTree, params: PyTree) -> None:
    """Every field that is declared like the params is sharded like them."""
    structure, wanted = jax.tree.structure(params), state_sharding(tx, params)
    if jax.tree.structure(wanted) != jax.tree.structure(state):
        return  # laid out by where the params lie (`in_buckets`)
    like_params = lambda node: jax.tree.structure(node) == structure  # noqa: E731 - a predicate
    found = jax.tree_util.tree_leaves_with_path(state, is_leaf=like_params)
    for (path, field), own in zip(found, jax.tree.leaves(wanted, is_leaf=like_params), strict=True):
        rows = zip(*map(jax.tree.leaves, (field, own, params)), strict=True) if like_params(field) else ()
        for leaf, meant, param in rows:
            # Of other shapes, the compiler decides.
            if leaf.shape == param.shape and not (
                meant.is_fully_replicated or leaf.sharding.is_equivalent_to(meant, leaf.ndim)
            ):
                where = tree.path_name(path)
                fail(f"{when}, state at {where} lies as {leaf.sharding}, its parameter as {param.sharding}.")
