"""The laws of an optimizer as a value: dtypes, leaves, copies, reprs, numbers and their derivatives."""

import functools
import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import tree
from gradtx.core.apply import tree_equal
from gradtx.core.check import difference
from gradtx.core.config import from_config
from gradtx.core.fields import Place, at
from gradtx.core.record import registry
from gradtx.core.transform import Transform
from gradtx.schedules.curves import constant_schedule, linear_schedule
from gradtx.testing.runs import (
    PyTree,
    assert_close,
    assert_same,
    fail,
    gradients,
    law,
    pick,
    stacked,
    take_step,
    trajectory,
    with_schedules,
)

# Dtypes, structure, leaves --------------------------------------------------------------------------------------------


@law
def dtypes_stay(tx: Transform, params: PyTree, *, lower: tuple[str, ...] = (), **extra: Any) -> None:
    """Updates have the dtype of the gradients; the dtypes of the state do not change.

    The state has at least float32, and float64 for float64 params; `lower` names the fields that may have fewer bits.
    Tested on equal and mixed bfloat16, float16, float32 and float64 params and gradients, by tracing only. Also on
    complex64, unless tx refuses it; nonnegative fields must then be real. A transform that must be last returns updates
    in at least float32.
    """
    half, single, double = jnp.bfloat16, jnp.float32, jnp.float64
    pairs = [(half, half), (jnp.float16, single), (single, jnp.float16), (single, double), (double, half)]
    step = functools.partial(take_step, extra=extra)
    with jax.enable_x64(True):
        for of_params, of_gradients in [*pairs, (double, double), (jnp.complex64, jnp.complex64)]:
            who = f"{np.dtype(of_gradients).name} gradients on {np.dtype(of_params).name} params"
            like = [
                jax.tree.map(functools.partial(lambda dtype, leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), d), params)
                for d in (of_params, of_gradients)
            ]
            try:
                state = jax.eval_shape(tx.init, like[0])
                passed = of_gradients is of_params is half  # tx is an argument once, closed over else
                call: tuple[Any, ...] = (step, tx) if passed else (functools.partial(step, tx),)
                updates, new = jax.eval_shape(*call, like[1], state, like[0])
            except TypeError as error:
                if of_params is jnp.complex64 and "is complex (complex64)" in str(error):
                    continue
                raise
            for path, leaf in tree.named_leaves(updates):
                expected = np.promote_types(of_gradients, np.float32) if "last" in tx.facts else np.dtype(of_gradients)
                if leaf.dtype != expected:
                    fail(f"{who}: the update at {path} is {leaf.dtype}, not {expected}.")
            for place in _signed(tx):
                for path, leaf in tree.named_leaves(at(state, place)):
                    if tree.is_complex(leaf):
                        fail(f"{who}: in {'/'.join(place)}, {path} is complex; allowed: real, as it is >= 0.")
            if words := difference("the new state", new, "the old", state, tree.dtype_of):
                fail(f"{who}: {words}")
            for path, leaf in tree.named_leaves(new):
                least = 8 if of_params is jnp.float64 else 4
                meant = any(f"['{name}']" in path for name in lower)
                if not meant and jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype.itemsize < least:
                    fail(f"{who}: the state at {path} is {leaf.dtype}; allowed: {8 * least} bits or more.")


@law
def state_is_as_declared(tx: Transform, params: PyTree, **extra: Any) -> None:
    """The state is a dict of dicts by name; counters count in int32; nonnegative fields are; all is finite."""
    run = trajectory(tx, params, gradients(params), extra)
    for path, leaf in tree.named_leaves(run):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            fail(f"at {path}: not finite.")
    state = run["state"]
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        fail(f"the state is {jax.tree.structure(state)}; it must be a dict of dicts.")
    for name, entry in state.items():
        count = entry.get("count", np.zeros(0, np.int32))
        if count.dtype != np.int32 or list(count) != list(range(len(count))):
            fail(f"at {name}: the count is {count}; allowed: int32 from 0 in steps of 1.")
    for place in _signed(tx):
        if any((leaf < 0).any() for leaf in jax.tree.leaves(at(state, place))):
            fail(f"{'/'.join(place)} is declared nonnegative, and is negative.")


def _signed(tx: Transform) -> list[Place]:
    """The fields that are declared nonnegative."""
    return [place for place, field in tx.declared.items() if field.nonnegative]


@law
def empty_leaves_pass(tx: Transform, params: PyTree, **extra: Any) -> None:
    """An empty tree gives an empty tree; None and leaves without elements do not affect other leaves."""
    for empty in ({}, (None,), {"none": None, "empty": ()}):
        updates, _ = take_step(tx, empty, tx.init(empty), empty, extra)
        assert_same(updates, empty)
    for shape in ((0, 3),) if tx.facts.reach == "matrix" else ((0,), (0, 3)):
        filled = {"params": params, "none": None, "empty": {}, "size 0": jnp.zeros(shape)}
        (gradient,) = gradients(filled, 1)
        updates, state = take_step(tx, gradient, tx.init(filled), filled, extra)
        expected, _ = take_step(tx, gradient["params"], tx.init(params), params, extra)
        assert_same(updates, gradient | {"params": expected})
        if jax.tree.structure(state) != jax.tree.structure(tx.init(filled)):
            fail("with None among the params, update changes the structure of the state.")


@law
def integers_are_refused(tx: Transform, params: PyTree, **extra: Any) -> None:
    """Leaves of ints and bools are refused with their path, by init and by update, unless a mask excludes them."""
    for dtype in (jnp.int32, jnp.bool_):
        wrong = {"params": params, "wrong": {"steps": jnp.zeros(2, dtype)}}
        right = {"params": params, "wrong": {"steps": jnp.zeros(2, jnp.float32)}}
        calls: list[tuple[Any, ...]] = [("update", take_step, tx, wrong, {}, right, extra)]
        if "integers" not in tx.facts:
            calls.append(("init", tx.init, wrong))
        for what, call, *given in calls:
            try:
                call(*given)
            except TypeError as error:
                if "['wrong']['steps']" not in str(error) or np.dtype(dtype).name not in str(error):
                    fail(f"{what} does not name the leaf and its dtype: {error}")
            else:
                fail(f"{what} takes a leaf of dtype {np.dtype(dtype).name}.")


@law
def reads_what_it_says(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`tx.facts.reads` is correct: what an update depends on.

    "element": only the gradients of its own element, and not the element's position. "leaf": only the gradients of its
    leaf. "tree" is not tested. The position is not tested if the transform draws random numbers, which depend on it.
    """
    if tx.facts.reads == "tree":
        return
    grads = gradients(params)
    expected = trajectory(tx, params, grads, extra, take_step)["updates"]
    leaves, structure = jax.tree.flatten(params)
    for chosen in range(len(leaves)):  # with a different gradient for the first element of one leaf

        def moved(gradient: PyTree, chosen: int = chosen) -> PyTree:
            parts = jax.tree.leaves(gradient)
            first = jnp.arange(parts[chosen].size).reshape(parts[chosen].shape) == 0
            parts[chosen] = jnp.where(first, 3 * parts[chosen] + 1, parts[chosen])
            return jax.tree.unflatten(structure, parts)

        actual = trajectory(tx, params, [moved(gradient) for gradient in grads], extra, take_step)["updates"]
        rest, others = jax.tree.leaves(actual), jax.tree.leaves(expected)
        for parts in (rest, others):  # remove what may differ
            whole = parts[chosen].reshape(len(grads), -1)
            parts[chosen] = whole[:, 1:] if tx.facts.reads == "element" else whole[:, :0]
        names = [path for path, _ in tree.named_leaves(params)]
        assert_same(dict(zip(names, rest, strict=True)), dict(zip(names, others, strict=True)))
    if tx.facts.reads == "element" and not tx.facts.random:
        mixed = functools.partial(jax.tree.map, lambda leaf: jnp.flip(jnp.ravel(leaf)).reshape(leaf.shape))
        actual = trajectory(tx, mixed(params), [mixed(gradient) for gradient in grads], extra, take_step)["updates"]
        in_their_places = stacked(mixed(pick(index, expected)) for index in range(len(grads)))
        assert_close(tx, actual, in_their_places, params)


# As a value -----------------------------------------------------------------------------------------------------------


@law
def pickles_round_trip(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`loads(dumps(tx)) = tx`, with the same hash, so the copy hits the jit cache."""
    _assert_equal_value(tx, pickle.loads(pickle.dumps(tx)))


@law
def configs_round_trip(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`from_config(tx.to_config()) = tx`, through JSON."""
    _assert_equal_value(tx, from_config(json.loads(json.dumps(tx.to_config()))))


@law
def repr_is_code(tx: Transform, params: PyTree, *, names: dict[str, Any] | None = None, **extra: Any) -> None:
    """`eval(repr(tx)) = tx`; `names` are the names in the repr besides the registered factories."""
    _assert_equal_value(tx, eval(repr(tx), dict(registry) | {"array": jnp.float32} | (names or {})))


def _assert_equal_value(tx: Transform, copy: Any) -> None:
    """Assert equality, with arrays compared by value; without arrays also `==` and equal hashes."""
    if type(copy) is not type(tx) or not tree_equal(copy, tx):
        fail(f"becomes {copy!r}.")
    if not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tx)) and (copy != tx or hash(copy) != hash(tx)):
        fail(f"becomes {copy!r}, which has the same values and does not compare (or hash) equal.")


@law
def expansion_is_equal(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`tx.expand()` and `tx.expand(deep=True)` have the same state and updates."""
    grads = gradients(params, 2)
    expected = trajectory(tx, params, grads, extra, take_step)
    for deep in (False, True):
        assert_same(trajectory(tx.expand(deep=deep), params, grads, extra, take_step), expected)


@law
def resumed_is_uninterrupted(tx: Transform, params: PyTree, **extra: Any) -> None:
    """Half a run, saving and restoring everything, and the other half equal the whole run."""
    grads = gradients(params)
    half = len(grads) // 2
    whole = trajectory(tx, params, grads, extra)
    first = trajectory(tx, params, grads[:half], extra)
    saved = pickle.dumps((tx, params, pick(-1, first["state"])))
    again, params_again, state = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, pickle.loads(saved)
    )
    second = trajectory(again, params_again, grads[half:], extra, state=state)
    expected = {"updates": pick(slice(half, None), whole["updates"]), "state": pick(slice(half, None), whole["state"])}
    assert_same(second, expected)


@law
def constant_schedule_is_constant(tx: Transform, params: PyTree, *, ulps: float | None = None, **extra: Any) -> None:
    """Any number may be a schedule: a constant one changes nothing; any other has the same first step."""
    grads = gradients(params, 3)
    constant = with_schedules(tx, constant_schedule)
    expected = trajectory(tx, params, grads, extra)
    actual = trajectory(constant, params, grads, extra)
    assert_close(constant, actual, expected, params, ulps)
    moving = with_schedules(tx, lambda number: linear_schedule(number, 0.9 * number, 3))
    updates, state = take_step(moving, grads[0], moving.init(params), params, extra)
    first = {"updates": pick(0, expected["updates"]), "state": pick(1, expected["state"])}
    actual = {"updates": updates, "state": state}
    assert_close(moving, actual, first, params, ulps)


@law
def hypergradients_are_finite(tx: Transform, params: PyTree, **extra: Any) -> None:
    """`d(updates, state)/d(tx, params, gradients, state)` of a step is finite if some or all gradients are 0.

    This holds at the first and at later steps. So the derivative of a whole run, a product of these, is finite too.
    """

    @jax.jit
    @functools.partial(jax.grad, allow_int=True, has_aux=True)
    def slope(inputs: tuple[Transform, PyTree, PyTree, PyTree]) -> tuple[jax.Array, PyTree]:
        tx, params, gradient, state = inputs
        updates, state = take_step(tx, gradient, state, params, extra)
        results = [x for x in jax.tree.leaves((updates, state)) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum((jnp.sum(jnp.real(x)).astype(jnp.float32) for x in results), jnp.float32(0)), state

    names, state = ("tx", "params", "gradients", "state"), tx.init(params)
    for step, gradient in enumerate(gradients(params, 3), start=1):
        for some, given in (("some", gradient), ("all", jax.tree.map(jnp.zeros_like, params))):
            slopes, following = slope((tx, params, given, state))
            for path, leaf in tree.named_leaves(dict(zip(names, slopes, strict=True))):
                if leaf.dtype != jax.dtypes.float0 and not np.isfinite(np.asarray(leaf)).all():
                    where = f"at step {step}, where {some} gradients are 0"
                    fail(f"{where}, the derivative by {path} is {np.asarray(leaf)}.")
            state = following if some == "some" else state
