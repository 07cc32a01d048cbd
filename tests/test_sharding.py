"""Split over eight (simulated) devices: the same numbers, the state with the params, no needless talk.

The law `sharded_is_replicated` runs over the registry in test_laws.py, on a mesh with automatic axes. Here are explicit
axes, two-dimensional meshes, what the compiler makes of it, and state that is sharded unlike the params (ZeRO).
"""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import gradtx
from gradtx import sharding, testing
from gradtx.core import meeting
from tests.records import RECORDS
from tests.test_laws import extra_of, forms

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")

GENERATOR = np.random.default_rng(0)
PARAMS = {
    "kernel": jnp.asarray(GENERATOR.normal(size=(16, 4)).astype(np.float32)),
    "bias": jnp.asarray(GENERATOR.normal(size=(8,)).astype(np.float32)),
    "odd": jnp.asarray(GENERATOR.normal(size=(3,)).astype(np.float32)),
}
SOME = {"adamw": gradtx.adamw(0.1), "clipped": gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1, 0.9)}
COLLECTIVE = re.compile(
    r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)\("
)


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def square(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
@pytest.mark.parametrize("tx", SOME.values(), ids=SOME)
def test_sharded_is_replicated(tx, kind):
    testing.sharded_is_replicated(tx, PARAMS, mesh=mesh_of(kind))


def placed(mesh, value):
    """Matrices split both ways, vectors along the rows, what the devices do not divide whole."""
    specs = {"kernel": PartitionSpec("rows", "columns"), "bias": PartitionSpec("rows"), "odd": PartitionSpec()}
    return {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in value.items()}


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
def test_state_lies_where_the_params_lie_on_a_mesh_of_two_axes(kind, jitted):
    mesh, tx = square(kind), gradtx.scale_by_rms(centered=True, maximum=None) + gradtx.scale_by_momentum()
    with jax.set_mesh(mesh):
        params = placed(mesh, PARAMS)
        state = (jax.jit(tx.init) if jitted else tx.init)(params)
        update = jax.jit(tx.update) if jitted else tx.update
        updates, later = update(params, state, params)
    for value in (
        gradtx.find(state, "nu"),
        gradtx.find(later, "nu"),
        gradtx.find(later, "scale_by_momentum/mu"),
        updates,
    ):
        for name, leaf in value.items():
            assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim), (name, leaf.sharding)


def compiled_text(tx, mesh) -> str:
    params = placed(mesh, PARAMS)
    state = jax.jit(tx.init)(params)
    return jax.jit(tx.update).lower(params, state, params).compile().as_text()


@pytest.mark.parametrize("tx", [tx for tx in SOME.values() if tx.facts.reads == "element"], ids=repr)
def test_element_wise_methods_need_no_talk_between_devices(tx):
    assert COLLECTIVE.findall(compiled_text(tx, square(AxisType.Auto))) == []


def test_the_global_norm_needs_one_all_reduce():
    """One number, whatever the number of leaves; and one in the branch for squares that overflow or vanish."""
    for tx in (gradtx.clip_by_global_norm(1.0), SOME["clipped"]):
        branches, _, main = compiled_text(tx, square(AxisType.Auto)).partition("\nENTRY ")
        assert COLLECTIVE.findall(main) == ["all-reduce"]
        assert COLLECTIVE.findall(branches) == ["all-reduce"]


def test_the_norm_gathers_nothing_where_only_jit_knows_how_leaves_are_split():
    """With `in_shardings` a traced leaf does not say that it is split, so on several devices none is joined."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx, split = gradtx.clip_by_global_norm(1.0), NamedSharding(mesh, PartitionSpec("data"))
    leaves = [jnp.ones((16, 3)) for _ in range(4)]
    compiled = jax.jit(tx.update, in_shardings=(split, None)).lower(leaves, tx.init(leaves)).compile()
    assert {*re.findall(r" (all-\w+|collective-\w+)\(", compiled.as_text())} == {"all-reduce"}


def test_a_sweep_over_devices_is_a_sweep():
    """Eight learning rates, one on each device."""
    mesh, rates = mesh_of(AxisType.Auto), jnp.logspace(-4, -1, 8, dtype=np.float32)
    (gradient,) = testing.gradients(PARAMS, 1)

    def updates_of(tx):
        return tx.update(gradient, tx.init(PARAMS), PARAMS)[0]

    here = jax.jit(jax.vmap(updates_of))(jax.vmap(gradtx.adam)(rates))
    there = jax.jit(jax.vmap(updates_of))(
        jax.vmap(gradtx.adam)(jax.device_put(rates, NamedSharding(mesh, PartitionSpec("data"))))
    )
    for leaf, other in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-6)


# State sharded unlike the params, as ZeRO has it ----------------------------------------------------------------------
# On explicit axes a sharding is part of the type, and JAX refuses to choose between two arrays that differ in it.

WHOLE, ROWS, COLUMNS = None, 0, 1
LAYOUTS = {  # of params, gradients and state
    "zero-1": (WHOLE, WHOLE, ROWS),
    "zero-2": (WHOLE, ROWS, ROWS),
    "scattered gradients": (WHOLE, ROWS, WHOLE),
    "fully sharded": (ROWS, ROWS, ROWS),
    "state across": (ROWS, ROWS, COLUMNS),
    "gradients across": (ROWS, COLUMNS, WHOLE),
    "whole gradients": (ROWS, WHOLE, ROWS),
    "whole state": (ROWS, ROWS, WHOLE),
}
MIXED = {
    name: jnp.asarray(GENERATOR.normal(size=shape).astype(np.float32))
    for name, shape in {"kernel": (16, 8), "bias": (8,)}.items()
}
LIGHT = gradtx.sgd(0.1, 0.9)
AROUND = {
    "adamw": gradtx.adamw(0.1, mask="*kernel"),
    "state stored low": gradtx.stored(gradtx.scale_by_momentum(), "bfloat16"),
    "a history of norms": gradtx.clip_by_percentile(50.0, 8),
    "accumulate": gradtx.accumulate(LIGHT, 2, skip_nonfinite=True),
    "skip_nonfinite": gradtx.skip_nonfinite(LIGHT, 3),
    "loss_scaling": gradtx.loss_scaling(LIGHT, 8.0),
    "lookahead": gradtx.lookahead(gradtx.pack(LIGHT, min_leaves=2), 2, reset_state=True),
    "optax": gradtx.skip_nonfinite(gradtx.foreign(optax.trace(0.9)), 3),
}


def laid(mesh, values, axis):
    """Floating-point leaves sharded along this axis where the devices divide it, the others whole."""

    def at_leaf(leaf):
        leaf = jnp.asarray(leaf)
        cut = axis is not None and leaf.ndim > axis and leaf.shape[axis] % 8 == 0
        cut = cut and jnp.issubdtype(leaf.dtype, jnp.inexact)
        spec = PartitionSpec(*[None] * axis, mesh.axis_names[0]) if cut else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(at_leaf, values)


def assert_lie_alike(what, values, others):
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(others), strict=True):
        said = f"{what} at {jax.tree_util.keystr(path)}: {leaf.sharding.spec}, before {other.sharding.spec}"
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim), said


def stepping(tx):
    def step(gradient, state, params):
        with jax.numpy_dtype_promotion("standard"):  # for optax's
            updates, state = testing.runs.take_step(tx, gradient, state, params, extra_of(tx))
        return updates, state, gradtx.apply_updates(params, updates)

    return step


def steps_unlike(tx, layout, step, mesh):
    """Two steps, each leaving state, updates and params sharded as they were."""
    of_params, of_gradients, of_state = LAYOUTS[layout]
    with jax.set_mesh(mesh):
        params, state = laid(mesh, MIXED, of_params), laid(mesh, tx.init(MIXED), of_state)
        for gradient in testing.gradients(MIXED, 2):
            given = laid(mesh, gradient, of_gradients)
            updates, later, moved = step(given, state, params)
            assert_lie_alike("the state", later, state)
            assert_lie_alike("the updates", updates, given)
            assert_lie_alike("the params", moved, params)
            state, params = later, moved
    return {"updates": updates, "state": state}


def check_unlike(tx, layouts, how=jax.jit):
    expected = {"state": tx.init(MIXED)}
    params, step = MIXED, how(stepping(tx))
    for gradient in testing.gradients(MIXED, 2):
        updates, state, params = step(gradient, expected["state"], params)
        expected = {"updates": updates, "state": state}
    for layout in layouts:
        actual = steps_unlike(tx, layout, step, mesh_of(AxisType.Explicit))
        testing.runs.assert_close(tx, actual, expected, MIXED)


@pytest.mark.parametrize("tx", AROUND.values(), ids=AROUND)
def test_state_and_gradients_may_be_sharded_unlike_the_params(tx):
    check_unlike(tx, ["zero-1", "scattered gradients"])


def test_any_two_shardings_meet():
    check_unlike(gradtx.exponential_averaging(LIGHT, 0.9), LAYOUTS)


def test_shardings_meet_outside_jit():
    check_unlike(AROUND["accumulate"], ["zero-1", "scattered gradients"], how=lambda step: step)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(tx, id=f"{name}-{number}")
        for name, record in RECORDS.items()
        for number, (tx, _) in enumerate(forms(record))
        if name != "checked"  # compiles under checkify only
    ],
)
def test_every_transform_has_shardings_meet(tx):
    of_matrices = RECORDS[tx.name].matrices
    check_unlike(gradtx.by_shape(matrix=tx, other=gradtx.identity()) if of_matrices else tx, LAYOUTS)


def test_parts_of_a_state_may_differ_too():
    """The finest counts, of what else comes in as well; and each goes back to where it was."""
    mesh, tx = mesh_of(AxisType.Explicit), gradtx.scale_by_momentum() + gradtx.scale_by_rms(maximum="raw")
    (gradient,) = testing.gradients(MIXED, 1)
    expected, _ = tx.update(gradient, tx.init(MIXED), observed=MIXED)
    with jax.set_mesh(mesh):
        state = laid(mesh, tx.init(MIXED), ROWS)
        state["scale_by_rms"] = laid(mesh, state["scale_by_rms"], COLUMNS)
        observed = laid(mesh, MIXED, COLUMNS)
        for given in (laid(mesh, gradient, WHOLE), gradient):  # the second on no mesh at all
            updates, later = jax.jit(tx.update)(given, state, observed=observed)
            assert_lie_alike("the state", later, state)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), updates, expected)


def test_gradients_on_no_mesh_are_replicated():
    mesh, tx = mesh_of(AxisType.Explicit), AROUND["accumulate"]
    with jax.set_mesh(mesh):
        params = laid(mesh, MIXED, ROWS)
        state = tx.init(params)
        for given in (MIXED, jax.device_get(MIXED)):
            _, later = jax.jit(tx.update)(given, state, params)
            assert_lie_alike("the sum", gradtx.find(later, "accumulated"), params)


def test_a_loop_of_steps_keeps_the_types_of_what_it_carries():
    mesh, tx = mesh_of(AxisType.Explicit), gradtx.accumulate(AROUND["skip_nonfinite"], 2)
    with jax.set_mesh(mesh):
        params, state = laid(mesh, MIXED, WHOLE), laid(mesh, tx.init(MIXED), ROWS)

        @jax.jit
        def run(params, state):
            def step(carry, _):
                _, state, params = stepping(tx)(carry[0], carry[1], carry[0])
                return (params, state), None

            return jax.lax.scan(step, (params, state), length=3)[0]

        assert_lie_alike("the carry", run(params, state), (params, state))


def test_gradients_that_are_still_to_be_summed_over_devices_are_summed():
    mesh, tx, w = mesh_of(AxisType.Explicit), gradtx.skip_nonfinite(LIGHT, 3), jnp.zeros((4, 16))
    batch = jnp.asarray(GENERATOR.normal(size=(8, 4)).astype(np.float32))
    targets = jnp.asarray(GENERATOR.normal(size=(8, 16)).astype(np.float32))
    with jax.set_mesh(mesh):
        here, x, y = laid(mesh, w, WHOLE), laid(mesh, batch, ROWS), laid(mesh, targets, ROWS)
        state = laid(mesh, tx.init(w), COLUMNS)

        @jax.jit
        def step(state, w, x, y):
            unreduced = PartitionSpec(unreduced={"data"})
            return tx.update(jnp.einsum("bi,bo->io", x, y, out_sharding=unreduced), state, w)

        updates, later = step(state, here, x, y)
    assert_lie_alike("the state", later, state)
    expected, _ = tx.update(batch.T @ targets, tx.init(w), w)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_the_loss_is_asked_with_params_that_lie_as_those_given():
    asked = []

    def grad_fn(params):
        asked.append(jax.tree.map(jax.typeof, params))
        return params

    mesh, tx = mesh_of(AxisType.Explicit), gradtx.sam(gradtx.exponential_averaging(gradtx.sgd(0.1, 0.9)))
    with jax.set_mesh(mesh):
        params, state = laid(mesh, MIXED, WHOLE), laid(mesh, tx.init(MIXED), ROWS)
        jax.jit(functools.partial(tx.update, grad_fn=grad_fn))(params, state, params)
    assert asked
    assert all(seen == jax.tree.map(jax.typeof, params) for seen in asked)


@pytest.mark.parametrize(
    ("tx", "layout", "gathered"),
    [
        (gradtx.skip_nonfinite(gradtx.scale_by_adam(), 3) >> gradtx.scale(-0.1), "zero-1", 2),  # the updates
        (gradtx.scale_by_adam(), "zero-2", 0),
        (gradtx.scale_by_adam(), "scattered gradients", 2),  # the gradients, and neither of the two averages
        (gradtx.add_decayed_weights(0.1), "zero-2", 0),
    ],
    ids=["state", "state and gradients", "gradients", "no state"],
)
def test_a_step_is_made_where_the_state_lies_and_else_in_the_smallest_parts(tx, layout, gathered):
    mesh, (of_params, of_gradients, of_state) = mesh_of(AxisType.Explicit), LAYOUTS[layout]
    with jax.set_mesh(mesh):
        params, gradient = laid(mesh, MIXED, of_params), laid(mesh, MIXED, of_gradients)
        compiled = jax.jit(tx.update).lower(gradient, laid(mesh, tx.init(MIXED), of_state), params).compile()
    assert COLLECTIVE.findall(compiled.as_text().partition("\nENTRY ")[2]).count("all-gather") == gathered


@pytest.mark.parametrize("kind", [None, AxisType.Auto, AxisType.Explicit], ids=["no mesh", "automatic", "explicit"])
def test_what_lies_alike_is_not_touched(kind, monkeypatch):
    """The program is the same to the letter as without all this."""
    tx, mesh = AROUND["accumulate"], kind and mesh_of(kind)

    def program(params):
        text = str(jax.make_jaxpr(stepping(tx))(params, tx.init(params), params))
        return re.sub(r"0x[0-9a-f]+", "", text)

    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        params = laid(mesh, MIXED, ROWS) if mesh else MIXED
        actual = program(params)
        monkeypatch.setattr(sharding, "resharded", lambda leaf, sharding: leaf)
        monkeypatch.setattr(meeting, "together", lambda who, *given: given)
        assert actual == program(params)
