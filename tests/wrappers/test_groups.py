"""partition: each group is an optimizer of its own; nested, mapped, split over devices."""

import warnings

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import gradtx
from gradtx import Rule, testing, tree
from tests.wrappers.grouping import GRADS, LABELS, PARAMS, STACKED, TWO, WAYS, hundred, once, part

# A group is an optimizer of its own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", WAYS.values(), ids=WAYS)
def test_each_group_by_itself_by_each_way_to_say_labels(labels):
    updates = once(gradtx.partition(TWO, labels), GRADS[0])
    for name, kernels in (("matrices", True), ("vectors", False)):
        alone = once(TWO[name], part(GRADS[0], kernels), part(PARAMS, kernels))
        assert gradtx.tree_equal(part(updates, kernels), alone)


def test_schedules_decay_and_b2_of_each_group_are_those_of_separate_optimizers():
    rate = gradtx.cosine_decay_schedule(0.1, 80)
    each = {
        "matrices": gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(rate, b2=0.95, weight_decay=0.1),
        "vectors": gradtx.adam(0.01, b2=gradtx.linear_schedule(0.9, 0.999, 50)),
    }
    updates, state = hundred(gradtx.partition(each, LABELS))
    for name, kernels in (("matrices", True), ("vectors", False)):
        alone, own = hundred(each[name], part(PARAMS, kernels), part(STACKED, kernels))
        chex.assert_trees_all_close(part(updates, kernels), alone, rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_close(state["partition"]["groups"][name], own, rtol=1e-5, atol=1e-7)


def test_parity_with_optax_partition():
    ours, _ = hundred(gradtx.partition({"matrices": gradtx.adamw(0.1), "vectors": gradtx.sgd(0.1, 0.9)}, LABELS))
    peer = optax.partition({"matrices": optax.adamw(0.1), "vectors": optax.sgd(0.1, 0.9)}, WAYS["tree"])

    def step(carry, grads):
        params, state = carry
        updates, state = peer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), updates

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = jax.lax.scan(step, (PARAMS, peer.init(PARAMS)), STACKED)[1]
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=1e-6)


def test_what_happens_in_one_group_stays_there():
    grads = GRADS[0] | {"norm": jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), GRADS[0]["norm"])}
    clipped = gradtx.clip_by_global_norm(0.5) >> gradtx.sgd(1.0)
    tx = gradtx.partition({"norms": clipped, "rest": clipped}, {"norm/*": "norms", "*": "rest"})
    updates, expected = once(tx, grads), once(tx, GRADS[0])
    assert gradtx.tree_equal([updates["dense"], updates["out"]], [expected["dense"], expected["out"]])
    assert abs(float(tree.global_norm([updates["dense"], updates["out"]])) - 0.5) < 1e-6


def test_a_group_keeps_state_for_its_leaves_only():
    state = gradtx.partition(TWO, LABELS).init(PARAMS)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(sizes) == 8 * (24 + 8)  # Adam's two averages of the kernels


# Nested ---------------------------------------------------------------------------------------------------------------


def test_partition_inside_partition():
    inner = gradtx.partition(
        {"bias": gradtx.sgd(1.0), "scale": gradtx.sgd(2.0)}, {"*/bias": "bias", "*/scale": "scale"}
    )
    tx = gradtx.partition({"matrices": gradtx.adam(0.1), "vectors": inner}, LABELS)
    flat = gradtx.partition(
        {"matrices": gradtx.adam(0.1), "bias": gradtx.sgd(1.0), "scale": gradtx.sgd(2.0)},
        {"*/kernel": "matrices", "*/bias": "bias", "*": "scale"},
    )
    assert gradtx.tree_equal(hundred(tx)[0], hundred(flat)[0])


def test_partition_in_and_around_the_others():
    tx = gradtx.train_only(gradtx.partition(TWO, LABELS), "out/*")
    updates = once(tx, GRADS[0])
    out = gradtx.partition(TWO, LABELS)
    assert gradtx.tree_equal(updates["out"], once(out, GRADS[0]["out"], PARAMS["out"]))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves([updates["dense"], updates["norm"]]))
    held = gradtx.partition({"still": gradtx.freeze("*"), "rest": gradtx.sgd(1.0)}, {"norm/*": "still", "*": "rest"})
    assert gradtx.tree_equal(
        once(held, GRADS[0]), once(gradtx.train_only(gradtx.sgd(1.0), lambda path, leaf: "norm" not in path), GRADS[0])
    )
    clipped = gradtx.clip_by_global_norm(1.0) >> gradtx.partition(TWO, LABELS) >> gradtx.scale(0.5)
    assert jax.tree.structure(hundred(clipped)[0]) == jax.tree.structure(PARAMS)


def test_a_partition_right_of_plus_measures_the_gradient_that_came_in():
    scalings = gradtx.partition({"matrices": gradtx.scale_by_rms(), "vectors": gradtx.scale_by_infinity_norm()}, LABELS)
    updates, _ = hundred(gradtx.scale_by_momentum() + scalings)
    assert gradtx.tree_equal(part(updates, True), part(hundred(gradtx.scale_by_adam())[0], True))
    other, _ = hundred(gradtx.scale_by_momentum() + gradtx.scale_by_infinity_norm())
    assert gradtx.tree_equal(part(updates, False), part(other, False))
    mixed = gradtx.partition({"matrices": gradtx.foreign(optax.trace(0.9)), "vectors": gradtx.scale(1.0)}, LABELS)
    with pytest.raises(TypeError, match=r"partition\(.* cannot stand right of \+"):
        gradtx.scale_by_momentum() + mixed


# Extra arguments ------------------------------------------------------------------------------------------------------


@gradtx.transform
def scale_by_value_for_groups() -> Rule:
    """Multiplies by the loss, or by what it says at the params."""

    def update(updates, state, params=None, *, value=None, value_fn=None, weights=None):
        number = value if value_fn is None else value_fn(params)
        updates = tree.map(lambda u, k: k * u, updates, k=number)
        return updates if weights is None else tree.map(jnp.multiply, updates, weights), state

    return Rule(update=update, reads="tree")


def test_extra_arguments_reach_the_groups_that_accept_them():
    tx = gradtx.partition({"matrices": scale_by_value_for_groups(), "vectors": gradtx.scale(1.0)}, LABELS)
    assert tx.extra_args == {"value", "value_fn", "weights"}
    for extra in ({"value": 3.0}, {"value_fn": lambda params: jnp.float32(len(jax.tree.leaves(params)) / 2)}):
        updates = once(tx, GRADS[0], **extra)
        assert gradtx.tree_equal(part(updates, True), part(jax.tree.map(lambda g: 3 * g, GRADS[0]), True))
        assert gradtx.tree_equal(part(updates, False), part(GRADS[0], False))
    weights = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), PARAMS)
    updates = once(tx, GRADS[0], value=2.0, weights=weights)
    assert gradtx.tree_equal(updates, GRADS[0])
    with pytest.raises(TypeError, match="unknown extra argument 'vale'"):
        once(tx, GRADS[0], vale=3.0)


# Compiled, mapped, donated, split over devices ------------------------------------------------------------------------


def test_a_sweep_of_learning_rates_inside_a_group():
    rates = jnp.array([0.01, 0.1, 1.0], jnp.float32)
    build = lambda rate: gradtx.partition({"matrices": gradtx.adam(rate), "vectors": gradtx.sgd(0.5)}, LABELS)  # noqa: E731
    txs = jax.vmap(build)(rates)
    swept, _ = jax.jit(jax.vmap(hundred))(txs)
    for index, rate in enumerate(rates):
        alone, _ = hundred(build(rate))
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=index: leaf[i], swept), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("law", ["donation_is_safe", "compiles_once", "sharded_is_replicated", "empty_leaves_pass"])
def test_laws_of_a_nested_one(law):
    tx = gradtx.partition(
        {
            "matrices": gradtx.masked(gradtx.adamw(0.1), lambda path, leaf: leaf.size > 8),
            "vectors": gradtx.train_only(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1, 0.9), "*/bias"),
        },
        lambda path, leaf: "matrices" if leaf.ndim == 2 else "vectors",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if law == "empty_leaves_pass" else "error")
        testing.LAWS[law](tx, PARAMS)


@pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")
def test_state_lies_where_the_params_lie():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    place = lambda leaf: jax.device_put(leaf, rows if leaf.shape[0] == 8 else NamedSharding(mesh, PartitionSpec()))  # noqa: E731
    params, grads = jax.tree.map(place, (PARAMS, GRADS[0]))
    tx = gradtx.partition(TWO | {"vectors": gradtx.train_only(gradtx.adam(0.1), "*/scale")}, LABELS)
    updates, state = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    for leaf in jax.tree.leaves([state, updates]):
        if leaf.ndim and leaf.shape[0] == 8:
            assert leaf.sharding.is_equivalent_to(rows, leaf.ndim)
    chex.assert_trees_all_close(updates, once(tx, GRADS[0]), rtol=1e-5)


def test_an_nnx_model_with_patterns():
    class Net(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))])

        def __call__(self, x):
            return self.layers[1](self.layers[0](x))

    model = Net()
    params = nnx.state(model, nnx.Param)
    before = jax.tree.map(jnp.copy, params)
    tx = gradtx.partition({"matrices": gradtx.adam(0.1), "vectors": gradtx.sgd(0.5)}, LABELS)
    assert [group.parameters for group in gradtx.groups(tx, params)] == [20, 6]
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        grads = nnx.grad(lambda model: jnp.mean(model(jnp.ones((1, 3))) ** 2))(model)
        optimizer.update(model, grads)
    expected = gradtx.apply_updates(before, once(tx, grads, before))
    chex.assert_trees_all_close(nnx.state(model, nnx.Param), expected, rtol=1e-6)
