"""Split over eight (simulated) devices: the same numbers, the state with the params, no needless talk.

The law `sharded_is_replicated` runs over the registry in test_laws.py, on a mesh with automatic axes. Here are explicit
axes, two-dimensional meshes, and what the compiler makes of it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import gradtx
from gradtx import testing

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


@pytest.mark.parametrize("tx", [tx for tx in SOME.values() if tx.reads == "element"], ids=repr)
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
