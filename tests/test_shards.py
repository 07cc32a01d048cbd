"""What the language owes authors on several devices: formulas of whole matrices, views, random numbers of shards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import PositiveInt, Rule, Transform, Unit, fields, testing

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")

SHARDED = [PartitionSpec("data", None), PartitionSpec(None, "data")]
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32))


def mesh_of(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


@gradtx.transform
def orthogonalized(steps: PositiveInt = 5) -> Rule:
    """The Newton-Schulz iteration of Muon: products over either axis."""

    def update(x):
        x = x / (jnp.sqrt(jnp.sum(x * x)) + 1e-7)
        for _ in range(steps):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x

    return gradtx.per_matrix(update, stack=True)


def in_basis(form):
    """SOAP's view, whose inner state is sharded as `form` says."""

    def basis(inner: Transform, decay: Unit = 0.95) -> Rule:
        def refresh(g, *, c, q):
            return {"c": c, "q": jnp.linalg.qr(c @ q)[0]}

        view = gradtx.View(
            lambda x, *, q: q.T @ x,
            lambda x, *, q: q @ x,
            lambda g, *, c: {"c": decay * c + (1 - decay) * g @ g.T},
            refresh,
            every=3,
            form=form,
            reach="matrix",
            c=fields.gram(0, 1.0),
            q=fields.basis(0),
        )
        return gradtx.through(view, inner)

    return gradtx.transform(basis)


@gradtx.transform
def rows_projected(inner: Transform) -> Rule:
    """Four numbers for each column in place of all rows, sharded along the columns."""
    view = gradtx.View(
        lambda x: x[:4],
        lambda x: jnp.concatenate([x, jnp.zeros((12, 8), x.dtype)]),
        form=fields.Field(axes=lambda shape: (fields.Length(4), 1)),
    )
    return gradtx.through(view, inner)


METHODS = {
    "muon": gradtx.scale_by_momentum() >> orthogonalized(),
    "soap": in_basis(fields.like())(gradtx.scale_by_adam()),
    "soap, replicated": in_basis(None)(gradtx.scale_by_adam()),
    "projected": rows_projected(gradtx.scale_by_momentum()),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
@pytest.mark.parametrize("spec", SHARDED, ids=["rows", "columns"])
@pytest.mark.parametrize("tx", METHODS.values(), ids=METHODS)
def test_whole_matrices_may_be_sharded(tx, spec, kind):
    """On explicit axes JAX refuses products over a sharded axis; there the compiler decides, as on automatic ones."""
    placed = jax.device_put(KERNEL, NamedSharding(mesh_of(kind), spec))
    wanted, state = tx.init({"w": KERNEL}), tx.init({"w": placed})
    wanted_sharding = gradtx.state_sharding(tx, {"w": placed})
    for step in range(2):
        for leaf, own in zip(jax.tree.leaves(state), jax.tree.leaves(wanted_sharding), strict=True):
            assert own.is_fully_replicated or leaf.sharding.is_equivalent_to(own, leaf.ndim)
        updates, state = (jax.jit(tx.update) if step else tx.update)({"w": placed}, state, {"w": placed})
        expected, wanted = tx.update({"w": KERNEL}, wanted, {"w": KERNEL})
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-4, atol=1e-5)


def test_the_state_in_a_view_is_sharded_along_the_axes_of_its_form():
    """Or replicated, where the view declares none."""
    rows, columns = (NamedSharding(mesh_of(AxisType.Explicit), spec) for spec in SHARDED)

    def mu(tx, sharding):
        params = {"w": jax.ShapeDtypeStruct(KERNEL.shape, KERNEL.dtype, sharding=sharding)}
        return gradtx.find(gradtx.state_sharding(tx, params), "mu")["w"]

    assert mu(METHODS["soap"], rows) == rows
    assert mu(METHODS["soap, replicated"], rows).is_fully_replicated
    assert mu(METHODS["projected"], rows).is_fully_replicated
    assert mu(METHODS["projected"], columns).is_equivalent_to(columns, 2)


DRAWING = {
    "add_noise": lambda: gradtx.add_noise(1.0, 0.55),
    "stored": lambda: gradtx.stored(gradtx.ema(0.999, debias=False), "bfloat16"),
    "stochastic_rounding": lambda: gradtx.stochastic_rounding(gradtx.sgd(1e-3)),
}


@pytest.mark.parametrize("name", DRAWING)
def test_shards_draw_numbers_of_their_own(name):
    """What is replicated gets the same numbers on all devices: shard_map checks that it does."""
    tx, mesh = DRAWING[name](), mesh_of(AxisType.Auto)
    params = jax.tree.map(lambda size: jnp.ones(size, jnp.bfloat16), {"shards": 800, "whole": 100})
    of_params = {"shards": PartitionSpec("data"), "whole": PartitionSpec()}
    like = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
        params,
        of_params,
    )
    of_state = jax.tree.map(lambda leaf: leaf.spec, gradtx.state_sharding(tx, like))
    step = jax.shard_map(
        functools.partial(tx.update, axis_name="data"),
        mesh=mesh,
        in_specs=(of_params, of_state, of_params),
        out_specs=(of_params, of_state),
    )
    updates, state = jax.jit(step)(params, tx.init(params), params)
    drawn = gradtx.find(state, "mean") if name == "stored" else updates
    shards = np.asarray(drawn["shards"], np.float32).reshape(8, 100)
    assert len(np.unique(shards, axis=0)) == 8
    copies = [np.asarray(shard.data, np.float32) for shard in drawn["whole"].addressable_shards]
    assert all((copy == copies[0]).all() for copy in copies)


def test_the_law_of_sharding_holds_for_a_view():
    testing.sharded_is_replicated(METHODS["soap"], {"w": KERNEL}, ulps=200)
