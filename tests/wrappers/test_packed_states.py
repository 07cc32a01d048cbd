"""`pack`: its state leaf by leaf, its layout, and where both lie on several devices."""

import functools
import itertools
import pickle
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import serialization
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import testing
from tests.core.words import assert_words, refusal
from tests.wrappers.buckets import MASK, PARAMS, SINGLE, assert_close, leaf, matrices, pack, same, shapes, steps

pytestmark = pytest.mark.usefixtures("small_buckets")


# States ---------------------------------------------------------------------------------------------------------------


class Holding(NamedTuple):
    params: dict
    opt_state: dict


def test_a_state_unpacked_and_packed_again():
    for tx in (
        gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(0.1, mask=MASK),
        gradtx.scale_by_momentum() >> gradtx.clip_by_leaf_norm(1.0) >> gradtx.scale_by_momentum() >> gradtx.scale(0.1),
        gradtx.partition(
            {"matrices": gradtx.adam(0.1), "others": gradtx.accumulate(gradtx.sgd(0.1, 0.9), 2)}, matrices
        ),
    ):
        inside = tx.name == "partition"
        packed = gradtx.partition({k: pack(v) for k, v in tx.transforms.items()}, matrices) if inside else None
        packed = packed or pack(tx)
        grads = testing.gradients(SINGLE, 2)
        params, alone = steps(tx, SINGLE, grads, jitted=False)
        _, state = steps(packed, SINGLE, grads, jitted=False, unpack=False)
        again = gradtx.packed(alone, packed.init(SINGLE))
        assert gradtx.tree_equal(gradtx.unpacked(again, params), alone)
        assert_close(*(packed.update(grads[0], each, params)[0] for each in (again, state)))
        held = gradtx.unpacked((Holding(params, state), 3), params)
        assert isinstance(held[0], Holding)
        assert jax.tree.structure(held[0].opt_state) == jax.tree.structure(alone)
        assert jax.tree.structure(gradtx.packed(held, (Holding(params, state), 3))[0].opt_state) == jax.tree.structure(
            state
        )


def test_repeated_names_are_numbered_in_their_order():
    tx = gradtx.scale_by_momentum(0.1) >> gradtx.clip_by_leaf_norm(9.0) >> gradtx.scale_by_momentum(0.9)
    state = same(tx)
    assert list(state) == ["scale_by_momentum", "scale_by_momentum_2", "clip_by_leaf_norm"]
    assert gradtx.find(state, "scale_by_momentum_2/mu")["deep"].shape == (2, 1, 2)


def test_a_name_in_buckets_and_beside_them_is_refused():
    tx = gradtx.add_decayed_weights(0.1, mask=MASK) >> gradtx.add_decayed_weights(0.1) >> gradtx.adam(0.1)
    state = pack(tx).init(PARAMS)
    assert_words(
        refusal(ValueError, gradtx.unpacked, state, PARAMS), "gradtx.unpacked: 'add_decayed_weights'", "beside them"
    )


def test_a_single_leaf_that_is_left_out():
    params = jnp.ones(3)
    for flag in (True, False):
        tx, packed = (gradtx.masked(make(gradtx.adam(0.1)), flag) for make in (lambda tx: tx, gradtx.pack))
        assert gradtx.tree_equal(gradtx.unpacked(packed.init(params), params), tx.init(params))


def test_saved_and_restored():
    tx, grads = pack(gradtx.adam(0.1)), testing.gradients(PARAMS, 2)
    state = tx.init(PARAMS)
    _, state = tx.update(grads[0], state, PARAMS)
    expected, _ = tx.update(grads[1], state, PARAMS)
    restored = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    for again in (restored, pickle.loads(pickle.dumps(state)), jax.jit(lambda s: s)(state)):
        assert gradtx.tree_equal(tx.update(grads[1], again, PARAMS)[0], expected)
    assert gradtx.tree_equal(gradtx.unpacked(restored, PARAMS), gradtx.unpacked(state, PARAMS))


def test_in_a_train_state():
    ours = TrainState.create(apply_fn=None, params=SINGLE, tx=pack(gradtx.adam(0.1)))
    plain = TrainState.create(apply_fn=None, params=SINGLE, tx=gradtx.adam(0.1))
    (gradient,) = testing.gradients(SINGLE, 1)
    ours, plain = ours.apply_gradients(grads=gradient), plain.apply_gradients(grads=gradient)
    assert_close(ours.params, plain.params)
    assert_close(gradtx.unpacked(ours.opt_state, SINGLE), plain.opt_state)


def test_the_layout_is_checked():
    tx = pack(gradtx.adam(0.1))
    a, shapes_swapped, other, more = (
        {"a": jnp.ones(3), "b": jnp.ones(2)},
        {"a": jnp.ones(2), "b": jnp.ones(3)},
        {"a": jnp.ones(3), "c": jnp.ones(2)},
        {"a": jnp.ones(3), "b": jnp.ones(2), "d": jnp.ones(1)},
    )
    state = tx.init(a)
    wrong = {
        "['a'] has shape (2,), in bucket '0' it has (3,)": shapes_swapped,
        "the tree lacks ['b'] and it has ['c']": other,
        "it has ['d']": more,
    }
    for words, params in wrong.items():
        text = refusal(ValueError, tx.update, params, state, params)
        assert_words(
            text, "gradtx.in_buckets: the state is laid out for other leaves", words, "Pass the state returned"
        )
    text = refusal(ValueError, tx.update, a, gradtx.adam(0.1).init(a), a)
    assert_words(text, "gradtx.pack.update: the state is not one that init makes", "lacks ['in_buckets']")
    text = refusal(ValueError, gradtx.adam(0.1).update, a, state, a)
    assert_words(text, "the state has ['in_buckets']")
    assert_words(refusal(ValueError, gradtx.unpacked, state, other), "gradtx.unpacked: the state has the leaf ['b']")
    assert_words(
        refusal(ValueError, gradtx.packed, {}, state), "gradtx.packed: the state has the entries", "scale_by_rms"
    )
    alone = gradtx.adam(0.1).init(shapes_swapped | {"b": jnp.ones(4)})
    assert_words(
        refusal(ValueError, gradtx.packed, alone, state),
        "gradtx.packed: in the state ['a'] has shape (2,), in the layout (3,)",
    )


def test_two_packed_groups_of_which_one_has_no_bucket():
    """The check finds the layout of each group."""
    params = {"w": jnp.ones((2, 2)), "a": jnp.ones(3), "b": jnp.ones(2)}
    same(
        gradtx.partition({"matrices": gradtx.adam(0.1), "others": gradtx.adam(0.2)}, matrices),
        gradtx.partition({"matrices": pack(gradtx.adam(0.1)), "others": pack(gradtx.adam(0.2))}, matrices),
        params,
    )


# Devices --------------------------------------------------------------------------------------------------------------

COLLECTIVE = re.compile(
    r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)\("
)
devices = pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")
kinds = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])


def placed(mesh):
    """One leaf is split, the others lie whole on all devices."""
    params = {"kernel": leaf(8, 2), "bias": leaf(3), "scale": leaf(), "more": leaf(2, 2)}
    spec = {"kernel": PartitionSpec("data")}
    return {k: jax.device_put(v, NamedSharding(mesh, spec.get(k, PartitionSpec()))) for k, v in params.items()}


def in_bucket(state):
    recorded = gradtx.find(state, "in_buckets")["layout"]
    return sorted(itertools.chain(*recorded["buckets"].values()))


@devices
@kinds
def test_split_leaves_stay_alone_and_nothing_is_sent(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    tx = gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(0.1)
    packed = pack(tx)
    with jax.set_mesh(mesh):
        params = placed(mesh)
        state = packed.init(params)
        assert in_bucket(state) == ["['bias']", "['more']", "['scale']"]
        compiled = jax.jit(packed.update).lower(params, state, params).compile()
        branches, _, main = compiled.as_text().partition("\nENTRY ")
        assert COLLECTIVE.findall(main) == ["all-reduce"]
        assert COLLECTIVE.findall(branches) == ["all-reduce"]
        updates, new = compiled(params, state, params)
        kernel = gradtx.find(gradtx.unpacked(new, params), "mu")["kernel"]
        assert kernel.sharding.is_equivalent_to(params["kernel"].sharding, 2)
        assert_close(updates, jax.jit(tx.update)(params, tx.init(params), params)[0])


@devices
@kinds
def test_init_under_jit_packs_what_it_knows_to_lie_whole(kind):
    mesh, packed = jax.make_mesh((8,), ("data",), axis_types=(kind,)), pack(gradtx.adam(0.1))
    with jax.set_mesh(mesh):
        params = placed(mesh)
        state = jax.jit(packed.init)(params)
        assert in_bucket(state) == ([] if kind is AxisType.Auto else ["['bias']", "['more']", "['scale']"])
        updates, _ = jax.jit(packed.update)(params, state, params)
        eager, _ = packed.update(params, packed.init(params), params)
        assert_close(updates, eager, 8)
        packed.update(params, state, params)  # eager, where all is known, a state with this layout is still right


@devices
def test_leaves_on_different_devices_are_in_different_buckets():
    here, there = jax.devices()[:2]
    params = {name: jax.device_put(jnp.ones(2), where) for name, where in zip("abcd", (here, here, there, there))}
    recorded = gradtx.find(gradtx.in_buckets(gradtx.scale_by_momentum()).init(params), "in_buckets")["layout"]
    assert [sorted(inside) for inside in recorded["buckets"].values()] == [["['a']", "['b']"], ["['c']", "['d']"]]


def test_shapes_of_a_state_are_known_without_arrays():
    tx = pack(gradtx.adam(0.1))
    assert shapes(jax.eval_shape(functools.partial(gradtx.unpacked, params=PARAMS), tx.init(PARAMS))) == shapes(
        gradtx.adam(0.1).init(PARAMS)
    )
    if jax.device_count() == 1:
        assert shapes(jax.eval_shape(tx.init, PARAMS)) == shapes(tx.init(PARAMS))


def test_params_may_be_called_like_the_parts_of_a_state():
    params = {"layout": {"buckets": jnp.ones(2), "alone": jnp.ones(2)}, "inner": jnp.ones(3)}
    for named in (params, params | {"layout": jnp.ones(2)}):
        plain = gradtx.adam(0.1)
        assert gradtx.tree_equal(gradtx.unpacked(pack(plain).init(named), named), plain.init(named))
    flat = {"layout": jnp.ones(2), "inner": jnp.ones(3)}
    tx = gradtx.schedule_free(pack(gradtx.adam(0.1)), 0.1)
    updates, _ = tx.update(flat, tx.init(flat), flat)
    assert jax.tree.structure(updates) == jax.tree.structure(flat)


def test_the_masters_of_low_precision_params_are_worth_joining():
    state = gradtx.pack(gradtx.master_weights(gradtx.sgd(0.1)), fewest=2).init(
        {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    )
    assert gradtx.find(state, "master")["buckets"]["0"].shape == (5,)
