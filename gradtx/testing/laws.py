"""The laws: what every transform promises, whatever it computes.

An optimizer is a value and a pure pair, so much can be asked of it without knowing its equation: that compiling it, mapping
it, splitting it over devices, storing it or interrupting it changes nothing. Each law is a function

    law(tx, params, **extra)

that returns nothing, or raises an AssertionError which names the law, the transform and the leaf:

- `eager_is_jit(adam(1e-3), params)`: compiled or not, the same updates.
- `resumed_is_uninterrupted(...)`: a saved and restored run goes on as if nothing had been.
- `reads_what_it_says(...)`: an element-wise method leaves one element alone when another's gradient changes.

`params` is any tree of arrays (with several elements, so that there is something to see), `extra` the extra arguments that
`tx.update` needs. The gradients are `gradients(params)`: the same at every call. `LAWS` holds the laws by name.

Equal means equal bits, unless a law takes `ulps`. XLA compiles `b v + (1 - b) g` to a fused multiply-add, which rounds once
where eager arithmetic rounds twice; what remains is a few units in the last place *of the terms*, so `ulps` counts in units of
the largest element that the leaf has had in the run.
"""

import functools
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradtx import tree
from gradtx.core.apply import tree_equal
from gradtx.core.record import from_config, registry
from gradtx.core.transform import Transform
from gradtx.schedules.curves import constant_schedule, linear_schedule

PyTree = Any
Trajectory = dict[str, PyTree]
Law = Callable[..., None]

LAWS: dict[str, Law] = {}
"""Every law by name."""


def _law(function: Law) -> Law:
    LAWS[function.__name__] = function
    return function


# Running and comparing ------------------------------------------------------------------------------------------------


def gradients(params: PyTree, steps: int = 4, *, seed: int = 0) -> list[PyTree]:
    """Random gradients like the params, some elements exactly 0: the same ones for the same seed."""
    generator = np.random.default_rng(seed)

    def like(leaf: Any) -> jax.Array:
        values = generator.normal(size=leaf.shape) * (generator.uniform(size=leaf.shape) < 0.9)
        return jnp.asarray(values.astype(np.float32)).astype(leaf.dtype)

    return [jax.tree.map(like, params) for _ in range(steps)]


def _step(tx: Transform, gradient: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]) -> tuple[PyTree, PyTree]:
    return tx.update(gradient, state, params, **extra)


_jitted_step = jax.jit(_step)  # one function for all laws: they share what it compiles


def _trajectory(
    tx: Transform, params: PyTree, grads: list[PyTree], extra: dict[str, Any], step: Any = _jitted_step, state: Any = None
) -> Trajectory:
    """All updates and all states of a run, each leaf with a leading axis of steps."""
    states, updates = [tx.init(params) if state is None else state], []
    for gradient in grads:
        update, state = step(tx, gradient, states[-1], params, extra)
        updates.append(update)
        states.append(state)
    return {"updates": _stacked(updates), "state": _stacked(states)}


def _stacked(trees: Iterable[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def _at(index: Any, batch: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], batch)


def _fail(law: str, tx: Any, problem: str) -> None:
    raise AssertionError(f"{law}: {tx!r}: {problem}")


def _assert_same(law: str, tx: Any, actual: PyTree, expected: PyTree, ulps: float = 0) -> None:
    """Same structure, shapes, dtypes and values; to the bit, or to so many ulps of each leaf's largest element."""
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        _fail(law, tx, f"the structure is {jax.tree.structure(actual)}, not {jax.tree.structure(expected)}.")
    for (path, leaf), other in zip(tree.named_leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(leaf), np.asarray(other)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            _fail(law, tx, f"at {path}: {a.dtype}{list(a.shape)}, not {b.dtype}{list(b.shape)}.")
        if a.tobytes() == b.tobytes():
            continue
        exact = ulps == 0 or not jnp.issubdtype(b.dtype, jnp.inexact)
        unit = 1.0 if exact else float(jnp.finfo(b.dtype).eps) * max(float(np.abs(b).max()), float(jnp.finfo(b.dtype).tiny))
        off = np.abs(a.astype(np.complex128) - b.astype(np.complex128)) / unit
        worst = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
        if exact or not off[worst] <= ulps:
            allowed = "no difference in any bit" if exact else f"{ulps:g} ulps of the leaf's largest element, these are {off[worst]:.3g}"
            _fail(law, tx, f"at {path}, element {tuple(map(int, worst))}: {a[worst]!r}, not {b[worst]!r}; allowed: {allowed}.")


def _stack_of(tx: Transform, size: int) -> Transform:
    """So many copies of a transform in one value."""
    return jax.tree.map(lambda number: jnp.full((size,), number), tx)


def _numbers(tx: Transform) -> dict[str, Any]:
    """The transform's own hyperparameters that are numbers."""
    return {name: value for name, value in tx.arguments.items() if isinstance(value, float | jax.Array)}


# Compiled, mapped, scanned --------------------------------------------------------------------------------------------


@_law
def eager_is_jit(tx: Transform, params: PyTree, *, ulps: float = 8, **extra: Any) -> None:
    """`jit(update) = update`, to so many ulps."""
    grads = gradients(params)
    _assert_same("eager_is_jit", tx, _trajectory(tx, params, grads, extra), _trajectory(tx, params, grads, extra, _step), ulps)


@_law
def passed_is_closed_over(tx: Transform, params: PyTree, *, ulps: float = 0, **extra: Any) -> None:
    """`jit(lambda tx, g: tx.update(g))(tx, g) = jit(lambda g: tx.update(g))(g)`: numbers are the same however they arrive."""
    grads = gradients(params)
    closed = jax.jit(lambda gradient, state, params, extra: tx.update(gradient, state, params, **extra))
    actual = _trajectory(tx, params, grads, extra, lambda _, *args: closed(*args))
    _assert_same("passed_is_closed_over", tx, actual, _trajectory(tx, params, grads, extra), ulps)


@_law
def sweep_is_separate(
    tx: Transform, params: PyTree, *, name: str | None = "learning_rate", size: int = 3, ulps: float = 0, **extra: Any
) -> None:
    """`vmap(update)(txs) = [update(tx) for tx in txs]`, txs differing in one hyperparameter, eager and compiled.

    Where tx has no number of that name (or with `name=None`) the txs differ in all their numbers.
    """
    if not jax.tree.leaves(tx):
        return
    factors = jnp.linspace(0.1, 1.0, size, dtype=np.float32)
    chosen = {key: value for key, value in _numbers(tx).items() if key == name}

    def variant(factor: jax.Array) -> Transform:
        if chosen:
            return tx.replace(**{key: factor * np.float32(value) for key, value in chosen.items()})
        return jax.tree.map(lambda number: factor * jnp.float32(number), tx)

    grads, txs = gradients(params), jax.vmap(variant)(factors)
    mapped = jax.vmap(_step, in_axes=(0, None, 0, None, None))
    init = jax.vmap(lambda tx: tx.init(params))
    for step, together in ((_step, mapped), (_jitted_step, jax.jit(mapped))):
        batch = _trajectory(txs, params, grads, extra, together, init(txs))
        for index, factor in enumerate(factors):
            actual = jax.tree.map(lambda leaf, index=index: leaf[:, index], batch)
            one = variant(factor)
            _assert_same("sweep_is_separate", one, actual, _trajectory(one, params, grads, extra, step), ulps)


@_law
def vmap_is_loop(tx: Transform, params: PyTree, *, ulps: float = 8, **extra: Any) -> None:
    """`vmap(update)(gs, states, ps) = [update(g, s, p) for g, s, p in ...]`: several models under one optimizer."""
    models = [params, *gradients(params, 2, seed=1)]
    streams = [gradients(params, seed=seed) for seed in range(3)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    batch, grads = stack(*models), [stack(*step) for step in zip(*streams, strict=True)]
    together = jax.jit(jax.vmap(_step, in_axes=(None, 0, 0, 0, None)))
    actual = _trajectory(tx, batch, grads, extra, together, jax.vmap(tx.init)(batch))
    for index, (model, stream) in enumerate(zip(models, streams, strict=True)):
        one = jax.tree.map(lambda leaf, index=index: leaf[:, index], actual)
        _assert_same("vmap_is_loop", tx, one, _trajectory(tx, model, stream, extra), ulps)


@_law
def scan_is_loop(tx: Transform, params: PyTree, *, ulps: float = 8, **extra: Any) -> None:
    """`scan(update, init(p), gs) = for g in gs: update(g)`, init and loop compiled as one program."""
    grads = gradients(params)

    @jax.jit
    def run(tx: Transform, grads: PyTree, params: PyTree) -> Trajectory:
        def step(state: PyTree, gradient: PyTree) -> tuple[PyTree, Trajectory]:
            updates, state = tx.update(gradient, state, params, **extra)
            return state, {"updates": updates, "state": state}

        return jax.lax.scan(step, tx.init(params), grads)[1]

    actual = run(tx, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads), params)
    expected = _trajectory(tx, params, grads, extra)
    expected["state"] = _at(slice(1, None), expected["state"])  # scan gives no state before the first step
    _assert_same("scan_is_loop", tx, actual, expected, ulps)


@_law
def compiles_once(tx: Transform, params: PyTree, **extra: Any) -> None:
    """Nothing is traced again: not at the second step, not for a rebuilt tx, not for new numbers, not in `jit(tx.update)`."""
    grads = gradients(params, 2)
    rebuilt = jax.tree.unflatten(jax.tree.structure(tx), jax.tree.leaves(tx))
    moved = jax.tree.map(lambda number: 0.9 * number, tx)
    state = _trajectory(tx, params, grads, extra) and tx.init(params)
    jax.block_until_ready(jax.jit(tx.update)(grads[0], state, params, **extra))
    _, later = _jitted_step(tx, grads[0], state, params, extra)
    calls: dict[str, Callable[[], Any]] = {
        "the second step": lambda: _jitted_step(tx, grads[1], later, params, extra),
        "a rebuilt transform": lambda: _jitted_step(rebuilt, grads[0], state, params, extra),
        "other numbers": lambda: _jitted_step(moved, grads[0], state, params, extra),
        "jit(tx.update) of a rebuilt transform": lambda: jax.jit(rebuilt.update)(grads[0], state, params, **extra),
    }
    for what, call in calls.items():
        if (programs := _count_programs(call)) > 0:
            _fail("compiles_once", tx, f"{what} was traced again ({programs} new programs); allowed: none.")


def _count_programs(call: Callable[[], Any]) -> int:
    """How many newly traced functions a call hands to the compiler."""
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


@_law
def donation_is_safe(tx: Transform, params: PyTree, **extra: Any) -> None:
    """No buffer of the state is that of another leaf: params and state can be donated together right after init."""
    grads = gradients(params, 2)
    donating = jax.jit(_step_keeping_params, donate_argnums=(2, 3))
    for how, init in (("init", tx.init), ("jit(init)", jax.jit(tx.init))):
        params_now = jax.tree.map(jnp.copy, params)
        expected = _trajectory(tx, params, grads, extra)
        state = init(params_now)
        _assert_no_alias(tx, f"after {how}", {"params": params_now, "state": state})
        for index, gradient in enumerate(grads):
            updates, state, params_now = donating(tx, gradient, state, params_now, extra)
            _assert_same("donation_is_safe", tx, updates, _at(index, expected["updates"]), 8)
    _, state = _step(tx, grads[0], tx.init(params), params, extra)
    _assert_no_alias(tx, "after update", {"params": params, "state": state})


def _step_keeping_params(
    tx: Transform, gradient: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, PyTree, PyTree]:
    return *_step(tx, gradient, state, params, extra), params


def _assert_no_alias(tx: Transform, when: str, value: PyTree) -> None:
    seen: dict[int, str] = {}
    for path, leaf in tree.named_leaves(value):
        for shard in leaf.addressable_shards if leaf.size else ():
            pointer = shard.data.unsafe_buffer_pointer()
            if pointer in seen:
                _fail("donation_is_safe", tx, f"{when}, {path} has the buffer of {seen[pointer]}; make it a copy.")
            seen[pointer] = path


@_law
def sharded_is_replicated(tx: Transform, params: PyTree, *, mesh: Mesh | None = None, ulps: float = 8, **extra: Any) -> None:
    """`update(sharded) = update(replicated)`, and each field of the state lies where its parameter lies, after jit(init) too.

    A leaf is split along its first axis where the devices divide it. Without a mesh: all devices, in one automatic axis.
    """
    mesh = mesh or jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    axis = mesh.axis_names[0]

    def place(leaf: jax.Array) -> jax.Array:
        split = leaf.ndim > 0 and leaf.shape[0] % mesh.shape[axis] == 0
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(axis) if split else PartitionSpec()))

    def run() -> Trajectory:
        here, grads = jax.tree.map(place, (params, gradients(params, 2)))
        for how, init in (("init", tx.init), ("jit(init)", jax.jit(tx.init))):
            state = init(here)
            _assert_placed(tx, f"after {how}", state, here)
        for how, step in (("update", _step), ("jit(update)", _jitted_step)):
            _assert_placed(tx, f"after {how}", step(tx, grads[0], state, here, extra)[1], here)
        return _trajectory(tx, here, grads, extra, state=state)

    if all(kind is AxisType.Auto for kind in mesh.axis_types):
        actual = run()
    else:
        with jax.set_mesh(mesh):
            actual = run()
    expected = _trajectory(tx, params, gradients(params, 2), extra)
    _assert_same("sharded_is_replicated", tx, actual, expected, ulps)


def _assert_placed(tx: Transform, when: str, state: PyTree, params: PyTree) -> None:
    """Every subtree of the state that is shaped like the params lies on the devices as they do."""
    structure = jax.tree.structure(params)
    like_params = lambda node: jax.tree.structure(node) == structure  # noqa: E731 - a predicate
    for path, field in jax.tree_util.tree_leaves_with_path(state, is_leaf=like_params):
        if not like_params(field):
            continue
        for leaf, param in zip(jax.tree.leaves(field), jax.tree.leaves(params), strict=True):
            if leaf.shape == param.shape and not leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim):
                where = tree.path_name(path)
                _fail("sharded_is_replicated", tx, f"{when}, state at {where} lies as {leaf.sharding}, its parameter as {param.sharding}.")


# Dtypes, structure, leaves --------------------------------------------------------------------------------------------


@_law
def dtypes_stay(tx: Transform, params: PyTree, **extra: Any) -> None:
    """Updates have the gradients' dtype; the state has one dtype for ever, at least float32, float64 where the params are.

    For bfloat16, float16, float32 and float64 gradients on params of each; traced only.
    """
    with jax.enable_x64(True):
        kinds = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
        for of_params, of_gradients in ((p, g) for p in kinds for g in kinds):
            who = f"{np.dtype(of_gradients).name} gradients on {np.dtype(of_params).name} params"
            shapes = functools.partial(jax.tree.map, lambda leaf, dtype: jax.ShapeDtypeStruct(leaf.shape, dtype))
            like = [shapes(params, jax.tree.map(lambda _, d=d: d, params)) for d in (of_params, of_gradients)]
            state = jax.eval_shape(tx.init, like[0])
            updates, new = jax.eval_shape(lambda g, s, p: tx.update(g, s, p, **extra), like[1], state, like[0])
            for path, leaf in tree.named_leaves(updates):
                if leaf.dtype != of_gradients:
                    _fail("dtypes_stay", tx, f"{who}: the update at {path} is {leaf.dtype}, not {np.dtype(of_gradients)}.")
            if jax.tree.structure(new) != jax.tree.structure(state):
                _fail("dtypes_stay", tx, f"{who}: the state becomes {jax.tree.structure(new)}, was {jax.tree.structure(state)}.")
            for (path, leaf), old in zip(tree.named_leaves(new), jax.tree.leaves(state), strict=True):
                if (leaf.shape, leaf.dtype) != (old.shape, old.dtype):
                    _fail("dtypes_stay", tx, f"{who}: the state at {path} becomes {leaf}, was {old}.")
                least = 8 if of_params is jnp.float64 else 4
                if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype.itemsize < least:
                    _fail("dtypes_stay", tx, f"{who}: the state at {path} is {leaf.dtype}; allowed: {8 * least} bits or more.")


@_law
def state_is_as_declared(tx: Transform, params: PyTree, **extra: Any) -> None:
    """The state is a dict of dicts by name; counters are int32 and count; what a Rule calls nonnegative is; all is finite."""
    run = _trajectory(tx, params, gradients(params), extra)
    for path, leaf in tree.named_leaves(run):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            _fail("state_is_as_declared", tx, f"at {path}: not finite.")
    state = run["state"]
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        _fail("state_is_as_declared", tx, f"the state is {jax.tree.structure(state)}; allowed: a dict of dicts.")
    for name, entry in state.items():
        if "count" in entry and (entry["count"].dtype != np.int32 or list(entry["count"]) != list(range(len(entry["count"])))):
            _fail("state_is_as_declared", tx, f"at {name}: the count is {entry['count']}; allowed: int32 from 0 in steps of 1.")
    for name, rule in tx.rules.items():
        for field in rule.nonnegative:
            if any((leaf < 0).any() for leaf in jax.tree.leaves(state[name][field])):
                _fail("state_is_as_declared", tx, f"at {name}: {field!r} is declared nonnegative, and is negative.")


@_law
def empty_leaves_pass(tx: Transform, params: PyTree, **extra: Any) -> None:
    """A tree without leaves gives one; None and leaves of no elements stand among others and change nothing for them."""
    for empty in ({}, None, {"none": None, "empty": ()}):
        updates, _ = tx.update(empty, tx.init(empty), empty, **extra)
        _assert_same("empty_leaves_pass", tx, updates, empty)
    filled = {"params": params, "none": None, "empty": {}, "size 0": jnp.zeros((0,), jnp.float32)}
    (gradient,) = gradients(filled, 1)
    updates, state = _step(tx, gradient, tx.init(filled), filled, extra)
    expected, _ = _step(tx, gradient["params"], tx.init(params), params, extra)
    _assert_same("empty_leaves_pass", tx, updates, gradient | {"params": expected})
    if jax.tree.structure(state) != jax.tree.structure(tx.init(filled)):
        _fail("empty_leaves_pass", tx, "with None among the params, update changes the structure of the state.")


@_law
def integers_are_refused(tx: Transform, params: PyTree, **extra: Any) -> None:
    """int and bool leaves are refused with their path, by init and by update."""
    for dtype in (jnp.int32, jnp.bool_):
        wrong = {"params": params, "wrong": {"steps": jnp.zeros(2, dtype)}}
        right = {"params": params, "wrong": {"steps": jnp.zeros(2, jnp.float32)}}
        calls: dict[str, Callable[..., Any]] = {
            "init": lambda wrong=wrong: tx.init(wrong),
            "update": lambda wrong=wrong, right=right: tx.update(wrong, {}, right, **extra),
        }
        for what, call in calls.items():
            try:
                call()
            except TypeError as error:
                if "['wrong']['steps']" not in str(error) or np.dtype(dtype).name not in str(error):
                    _fail("integers_are_refused", tx, f"{what} does not name the leaf and its dtype: {error}")
            else:
                _fail("integers_are_refused", tx, f"{what} takes a leaf of dtype {np.dtype(dtype).name}.")


@_law
def reads_what_it_says(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`tx.reads` holds: "element": each update depends on its own gradients only, and elements may change places; "leaf": on those
    of its leaf.
    """
    if tx.reads == "tree":
        return
    grads = gradients(params)
    expected = _trajectory(tx, params, grads, extra, _step)["updates"]
    leaves, structure = jax.tree.flatten(params)
    for chosen in range(len(leaves)):  # another gradient for the first element of one leaf

        def moved(gradient: PyTree, chosen: int = chosen) -> PyTree:
            parts = jax.tree.leaves(gradient)
            first = jnp.arange(parts[chosen].size).reshape(parts[chosen].shape) == 0
            parts[chosen] = jnp.where(first, 3 * parts[chosen] + 1, parts[chosen])
            return jax.tree.unflatten(structure, parts)

        actual = _trajectory(tx, params, [moved(gradient) for gradient in grads], extra, _step)["updates"]
        rest, others = jax.tree.leaves(actual), jax.tree.leaves(expected)
        for parts in (rest, others):  # what may differ is taken out
            whole = parts[chosen].reshape(len(grads), -1)
            parts[chosen] = whole[:, 1:] if tx.reads == "element" else whole[:, :0]
        names = [path for path, _ in tree.named_leaves(params)]
        _assert_same("reads_what_it_says", tx, dict(zip(names, rest, strict=True)), dict(zip(names, others, strict=True)))
    if tx.reads == "element":
        mixed = functools.partial(jax.tree.map, lambda leaf: jnp.flip(jnp.ravel(leaf)).reshape(leaf.shape))
        actual = _trajectory(tx, mixed(params), [mixed(gradient) for gradient in grads], extra, _step)["updates"]
        _assert_same("reads_what_it_says", tx, actual, _stacked(mixed(_at(index, expected)) for index in range(len(grads))))


# As a value -----------------------------------------------------------------------------------------------------------


@_law
def pickles_round_trip(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`loads(dumps(tx)) = tx`, with the same hash; and it runs to the same bits."""
    copy = pickle.loads(pickle.dumps(tx))
    _assert_equal_value("pickles_round_trip", tx, copy)
    grads = gradients(params, 1)
    _assert_same("pickles_round_trip", tx, _trajectory(copy, params, grads, extra), _trajectory(tx, params, grads, extra))


@_law
def configs_round_trip(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`from_config(tx.to_config()) = tx`, through JSON."""
    import json

    _assert_equal_value("configs_round_trip", tx, from_config(json.loads(json.dumps(tx.to_config()))))


@_law
def repr_is_code(tx: Transform, params: PyTree, *, names: dict[str, Any] | None = None, **extra: Any) -> None:
    """`eval(repr(tx)) = tx`; `names` are those that the repr needs besides the registered factories."""
    _assert_equal_value("repr_is_code", tx, eval(repr(tx), dict(registry) | {"array": jnp.float32} | (names or {})))


def _assert_equal_value(law: str, tx: Transform, copy: Any) -> None:
    """Equal, arrays by value; equal in hash too where there are no arrays (those compare by identity)."""
    if type(copy) is not type(tx) or not tree_equal(copy, tx):
        _fail(law, tx, f"becomes {copy!r}.")
    if not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tx)) and (copy != tx or hash(copy) != hash(tx)):
        _fail(law, tx, f"becomes {copy!r}, which has the same values and does not compare (or hash) equal.")


@_law
def expansion_is_equal(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`tx.expand()` and `tx.expand(deep=True)` have the same state and updates."""
    grads = gradients(params, 2)
    expected = _trajectory(tx, params, grads, extra, _step)
    for deep in (False, True):
        _assert_same("expansion_is_equal", tx, _trajectory(tx.expand(deep=deep), params, grads, extra, _step), expected)


@_law
def resumed_is_uninterrupted(tx: Transform, params: PyTree, **extra: Any) -> None:
    """Half a run, everything saved and restored, the other half: the same as the whole."""
    grads = gradients(params)
    half = len(grads) // 2
    whole = _trajectory(tx, params, grads, extra)
    first = _trajectory(tx, params, grads[:half], extra)
    saved = pickle.dumps((tx, params, _at(-1, first["state"])))
    again, params_again, state = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, pickle.loads(saved))
    second = _trajectory(again, params_again, grads[half:], extra, state=state)
    expected = {"updates": _at(slice(half, None), whole["updates"]), "state": _at(slice(half, None), whole["state"])}
    _assert_same("resumed_is_uninterrupted", tx, second, expected)


@_law
def constant_schedule_is_constant(tx: Transform, params: PyTree, **extra: Any) -> None:
    """A schedule may stand for every number: a constant one changes no bit and no state structure, a moving one runs."""
    own, grads = _numbers(tx), gradients(params, 3)

    def scheduled(make: Callable[[Any], Any]) -> Transform:
        return tx.replace(**{name: make(value) for name, value in own.items()}) if own else jax.tree.map(make, tx)

    constant = scheduled(constant_schedule)
    expected = _trajectory(tx, params, grads, extra)
    _assert_same("constant_schedule_is_constant", constant, _trajectory(constant, params, grads, extra), expected)
    moving = scheduled(lambda number: linear_schedule(number, 0.9 * number, 3))
    updates, state = _step(moving, grads[0], moving.init(params), params, extra)
    _assert_same("constant_schedule_is_constant", moving, _stacked([state]), _at(slice(1, 2), _eager_states(tx, params, grads[:1], extra)))
    _assert_same("constant_schedule_is_constant", moving, _stacked([updates]), _trajectory(tx, params, grads[:1], extra, _step)["updates"])


def _eager_states(tx: Transform, params: PyTree, grads: list[PyTree], extra: dict[str, Any]) -> PyTree:
    return _trajectory(tx, params, grads, extra, _step)["state"]


@_law
def hypergradients_are_finite(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`d(all updates of a run)/d(tx, params, gradients)` is finite where gradients are 0: in some elements, in all."""

    @jax.jit
    @jax.grad
    def slope(inputs: tuple[Transform, PyTree, PyTree]) -> jax.Array:
        tx, params, grads = inputs

        def step(state: PyTree, gradient: PyTree) -> tuple[PyTree, jax.Array]:
            updates, state = tx.update(gradient, state, params, **extra)
            return state, sum(jnp.sum(jnp.real(leaf)) for leaf in jax.tree.leaves(updates))

        return jnp.sum(jax.lax.scan(step, tx.init(params), grads)[1])

    some = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients(params, 3))
    runs = {"some gradients are 0": some, "all gradients are 0": jax.tree.map(jnp.zeros_like, some)}
    for when, grads in runs.items():
        for path, leaf in tree.named_leaves(dict(zip(("tx", "params", "gradients"), slope((tx, params, grads)), strict=True))):
            if not np.isfinite(np.asarray(leaf)).all():
                _fail("hypergradients_are_finite", tx, f"where {when}, the derivative by {path} is {np.asarray(leaf)}.")
