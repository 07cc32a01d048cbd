"""A state for another optimizer or other params, its bytes and shardings, its counters, and assertions about it."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import testing

PARAMS = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "b": np.ones(3, np.float32)}
GRADS = [jax.tree.map(lambda leaf, k=k: np.cos(k + 3 * leaf), PARAMS) for k in range(8)]


def run(tx, state, grads, params=PARAMS):
    updates = []
    for gradient in grads:
        made, state = tx.update(gradient, state, params)
        updates.append(made)
    return updates, state


Weights = collections.namedtuple("Weights", ["given", "left"])  # as version 0.1 had them

BOTH = {
    "adam": lambda lib: lib.adam(0.1),
    "a falling rate": lambda lib: lib.adamw(lib.linear_schedule(0.1, 0.01, 10)),
    "sgd": lambda lib: lib.sgd(0.1, 0.9, True),
    "rmsprop": lambda lib: lib.rmsprop(0.1, centered=True, momentum=0.9),
    "adagrad": lambda lib: lib.adagrad(0.1),
    "adadelta": lambda lib: lib.adadelta(0.1),
    "adamax": lambda lib: lib.adamax(0.1),
    "amsgrad": lambda lib: lib.amsgrad(0.1),
    "nadam": lambda lib: lib.nadam(0.1),
    "nadamw": lambda lib: lib.nadamw(0.1),
    "signum": lambda lib: lib.signum(0.1),
    "ema": lambda lib: lib.ema(0.9),
    "lion": lambda lib: lib.lion(0.1),
    "lamb": lambda lib: lib.lamb(0.1),
    "lars": lambda lib: lib.lars(0.1),
    "yogi": lambda lib: lib.yogi(0.1),
    "radam": lambda lib: lib.radam(0.1),
    "adabelief": lambda lib: lib.adabelief(0.1, eps_root=1e-6),
    "adafactor": lambda lib: lib.adafactor(0.1, 2, momentum=0.9),
    "groups": lambda lib: lib.partition({"w": lib.adam(0.1), "b": lib.sgd(0.1, 0.9)}, {"w": "w", "b": "b"}),
    "a mask": lambda lib: lib.masked(lib.adam(0.1), {"w": True, "b": False}),
}


@pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
def test_a_run_of_optax_goes_on(x64, make):
    params, grads = jax.tree.map(np.float64, (PARAMS, GRADS))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = make(optax)
        _, state = run(theirs, theirs.init(params), grads[:5], params)
        expected, _ = run(theirs, state, grads[5:], params)
    ours = make(gradtx)
    state, report = gradtx.carry_over(state, ours, params)
    actual, _ = run(ours, state, grads[5:], params)
    for made, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            made, wanted, rtol=1e-6, atol=1e-9
        )  # optax's schedules, and Adafactor's decay, are float32
    empty = {f"scale_by_factored_rms/{name}" for name in ("row/b", "col/b", "nu/w")}  # w is in factors, b is not
    assert all(path.endswith("/count") for path in set(report.new) - empty)
    assert not any(gradtx.find(ours.init(params), path).size for path in set(report.new) & empty)


def valley(params):
    w = params["w"]
    return jnp.sum(100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2) + params.get("head", 0.0) ** 2


def searched(tx, params, state, steps):
    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(valley)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=valley)
        return jax.tree.map(jnp.add, params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def in_optax(make, steps):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return searched(make, start := {"w": jnp.zeros(6)}, make.init(start), steps)


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 12])
def test_lbfgs_of_optax_goes_on_with_its_pairs(x64, steps):
    """The next direction is optax's, before and after the memory is full; the loss at the params is evaluated anew."""
    theirs, ours = optax.lbfgs(memory_size=4), gradtx.lbfgs(memory_size=4)
    params, state = in_optax(theirs, steps)
    carried, report = gradtx.carry_over(state, ours, params)
    gradient = jax.grad(valley)(params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, _ = optax.scale_by_lbfgs(memory_size=4).update(gradient, state[0], params)
    entry = {"scale_by_lbfgs": carried["scale_by_lbfgs"]}
    direction, _ = gradtx.scale_by_lbfgs(memory_size=4).update(gradient, entry, params)
    np.testing.assert_allclose(direction["w"], expected["w"], rtol=1e-12, atol=1e-12 * np.abs(expected["w"]).max())
    value, _ = gradtx.value_and_grad_from_state(valley)(params, state=carried)
    assert value == valley(params)
    assert set(report.new) == {f"scale_by_zoom_linesearch/{name}" for name in ("evaluations", "failures", "value")}
    assert valley(searched(ours, params, carried, 5)[0]) < valley(params)


def test_what_is_about_all_params_starts_anew_with_other_params(x64):
    """Pairs of other params are no pairs, and the gradient that a search has kept lacks the new leaf."""
    tx, start = gradtx.lbfgs(), {"w": jnp.zeros(6)}
    params, state = searched(tx, start, tx.init(start), 5)
    more = params | {"head": jnp.ones(())}
    carried, report = gradtx.carry_over(state, tx, more)
    fresh = tx.init(more)
    for name in ("scale_by_lbfgs", "scale_by_zoom_linesearch"):
        assert gradtx.tree_equal(carried[name], fresh[name])
    assert report.kept == ("scale/count",)
    assert gradtx.tree_equal(gradtx.carry_over(state, tx, params)[0], state)


def test_sophia_of_optax_goes_on_with_its_hessian(x64):
    theirs, ours, params = optax.contrib.sophia(1e-3), gradtx.sophia(1e-3), {"w": jnp.zeros(6)}
    slope = jax.grad(valley)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = theirs.init(params)
        for _ in range(5):
            updates, state = theirs.update(slope(params), state, params, obj_fn=valley)
            params = optax.apply_updates(params, updates)
        expected, _ = theirs.update(slope(params), state, params, obj_fn=valley)
    state, report = gradtx.carry_over(state, ours, params)
    assert (report.new, report.dropped) == ((), ())
    updates, _ = ours.update(slope(params), state, params, grad_fn=slope)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


def test_what_wrappers_of_optax_count_is_known():
    theirs, ours = optax.MultiSteps(optax.adam(0.1), 3), gradtx.accumulate(gradtx.adam(0.1), 3)
    with jax.numpy_dtype_promotion("standard"):
        _, state = run(theirs, theirs.init(PARAMS), GRADS[:3])
        expected, begun = run(theirs, state, GRADS[3:6])
    state, _ = gradtx.carry_over(state, ours, PARAMS)
    assert (int(gradtx.find(state, "micro_step")), int(gradtx.find(state, "update_count"))) == (0, 1)
    np.testing.assert_allclose(run(ours, state, GRADS[3:6])[0][2]["w"], expected[2]["w"], rtol=1e-4, atol=1e-6)
    again = gradtx.carry_over(begun, ours, PARAMS)[1]  # a mean there, a sum here: begun anew
    assert again.dropped == ("acc_grads/b", "acc_grads/w", "mini_step")
    assert again.new == tuple(f"accumulate/{name}" for name in ("accumulated/b", "accumulated/w", "micro_step"))


def test_a_clip_in_front_another_leaf_other_groups():
    old, tx = gradtx.adam(0.1), gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.2)
    _, state = run(old, old.init(PARAMS), GRADS[:3])
    more = PARAMS | {"head": np.zeros(2, np.float32)}
    new, report = gradtx.carry_over(state, tx, more)
    assert report.dropped == ()
    assert report.new == ("scale_by_momentum/mu/head", "scale_by_rms/nu/head")
    assert gradtx.tree_equal({name: gradtx.find(new, "nu")[name] for name in PARAMS}, gradtx.find(state, "nu"))
    assert int(gradtx.step_count(new)) == 3
    routed = gradtx.by_shape(matrix=gradtx.scale_by_adam(), other=gradtx.scale_by_adam())
    new, _ = gradtx.carry_over(state, routed, PARAMS)
    assert gradtx.tree_equal(gradtx.find(new, "nu"), gradtx.find(state, "nu"))
    back, report = gradtx.carry_over(new, old, {"w": PARAMS["w"]})
    of_b = ("momentum/mu/b", "momentum/weights/given", "momentum/weights/left")
    of_b += ("rms/nu/b", "rms/weights/given", "rms/weights/left")
    assert report.dropped == tuple(f"by_shape/groups/other/scale_by_{path}" for path in of_b)
    assert gradtx.tree_equal(gradtx.find(back, "mu")["w"], gradtx.find(state, "mu")["w"])


def test_states_of_version_0_1_and_of_a_checkpoint_without_a_target():
    tx = gradtx.adam(0.1)
    _, state = run(tx, tx.init(PARAMS), GRADS[:4])
    old = {
        name: entry | ({"weights": Weights(**entry["weights"])} if "weights" in entry else {})
        for name, entry in state.items()
    }
    for restored in (old, jax.tree.map(np.asarray, state)):
        new, report = gradtx.carry_over(restored, tx, PARAMS)
        assert (report.new, report.dropped) == ((), ())
        assert gradtx.tree_equal(new, state)
    tx.update(GRADS[4], jax.tree.map(np.asarray, state), PARAMS)  # plain dicts are a state


def test_buckets_are_carried_over_leaf_by_leaf():
    params = {"layers": [{"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}], "b": jnp.ones(2), "big": jnp.ones(9000)}
    grads = testing.gradients(params, 2)
    plain = gradtx.sgd(0.1, 0.9)
    packed = gradtx.pack(plain, min_leaves=2)
    _, state = packed.update(grads[0], packed.init(params), params)
    alone = gradtx.unpacked(state, params)
    clipped = gradtx.pack(gradtx.clip_by_global_norm(1e9) >> plain, min_leaves=2)
    more = params | {"head": jnp.ones(4)}
    for old in (state, alone):
        new, report = gradtx.carry_over(old, clipped, params)
        assert report.dropped == ()
        expected = packed.update(grads[1], state, params)[0]
        for found, wanted in zip(
            *map(jax.tree.leaves, (clipped.update(grads[1], new, params)[0], expected)), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
    new, report = gradtx.carry_over(alone, clipped, more)
    assert [path for path in report.new if "count" not in path] == ["scale_by_momentum/mu/head"]
    assert gradtx.tree_equal(
        gradtx.find(gradtx.unpacked(new, more), "mu")["layers"], gradtx.find(alone, "mu")["layers"]
    )
    mu = gradtx.find(alone, "mu")
    layer = "['layers'][0]['{}']".format
    joined = [mu["b"], mu["layers"][0]["bias"], mu["layers"][0]["kernel"].ravel()]
    of_0_1 = {
        "inner": {
            "scale_by_learning_rate": {"count": jnp.int32(1)},
            "scale_by_momentum": {
                "count": jnp.int32(1),
                "mu": {"alone": {"['big']": mu["big"]}, "buckets": {"0": jnp.concatenate(joined)}},
                "weights": None,
            },
        },
        "layout": {
            "alone": {"['big']": ()},
            "buckets": {"0": {"['b']": {"(2,)": ()}, layer("bias"): {"(3,)": ()}, layer("kernel"): {"(2, 3)": ()}}},
        },
    }
    for tx, expected in ((packed, state), (plain, alone)):
        new, report = gradtx.carry_over({"in_buckets": of_0_1}, tx, params)
        assert gradtx.tree_equal(new, expected)
        assert (report.new, report.dropped) == ((), ())


def test_the_report_says_what_happened():
    _, report = gradtx.carry_over(gradtx.sgd(0.1, 0.9).init(PARAMS), gradtx.lion(0.1), PARAMS)
    lines = repr(report).splitlines()
    assert [line.split()[0] for line in lines] == ["kept", "new", "dropped"]
    assert "scale_by_lion/mu/b" in report.kept
    with pytest.raises(TypeError, match="tx is 3; it must be a transform"):
        gradtx.carry_over({}, 3, PARAMS)


# Before there is a state ----------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_state():
    for tx in (gradtx.adam(0.1), gradtx.stored(gradtx.adam(0.1), "bfloat16"), gradtx.adafactor(0.1, 2)):
        state = tx.init(PARAMS)
        assert gradtx.state_bytes(tx, PARAMS) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.skipif(jax.device_count() < 2, reason="one device")
def test_the_state_lies_where_it_is_said_to():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs = {"w": PartitionSpec("data", None), "b": PartitionSpec()}
    here = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = jax.device_put(PARAMS, here)
    for tx in (
        gradtx.adam(0.1),
        gradtx.adafactor(0.1, 2),
        gradtx.masked(gradtx.lookahead(gradtx.adam(0.1)), "w"),
        gradtx.by_shape(gradtx.adam(0.1), gradtx.sgd(0.1, 0.9)),
        gradtx.stored(gradtx.adam(0.1), "bfloat16"),
        gradtx.pack(gradtx.adam(0.1), min_leaves=1),
        gradtx.foreign(optax.adam(0.1)),
    ):
        said = gradtx.state_sharding(tx, params)
        made = jax.jit(tx.init, out_shardings=said)(params)
        state = tx.init(params)
        for leaf, one, eager in zip(*map(jax.tree.leaves, (made, said, state)), strict=True):
            assert leaf.sharding.is_equivalent_to(one, leaf.ndim)
            sharded = isinstance(eager.sharding, NamedSharding)
            assert not sharded or eager.sharding.is_equivalent_to(one, leaf.ndim)
    rows = gradtx.find(gradtx.state_sharding(gradtx.adafactor(0.1, 2), params), "col")["w"]
    assert rows.spec == PartitionSpec("data")  # a number for each row of w, which are sharded
    with pytest.raises(ValueError, match="no parameter has a sharding"):
        gradtx.state_sharding(gradtx.adam(0.1), jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS))


# Counters and assertions ----------------------------------------------------------------------------------------------


def test_counters_are_set_and_schedules_go_on_from_there():
    tx = gradtx.clip_by_global_norm(100.0) >> gradtx.sgd(gradtx.linear_schedule(1.0, 0.0, 10))
    state = gradtx.set_step_count(tx.init(PARAMS), 5)
    updates, state = tx.update(PARAMS, state)
    np.testing.assert_allclose(updates["w"], -0.5 * PARAMS["w"], rtol=1e-6)
    assert int(gradtx.step_count(state)) == 6
    assert int(gradtx.step_count(gradtx.set_step_count(optax.adam(0.1).init(PARAMS), jnp.int32(7)))) == 7
    for wrong in (-1, 2.5, 2**31):
        with pytest.raises(ValueError, match="set_step_count: n is "):
            gradtx.set_step_count(state, wrong)
    with pytest.raises(KeyError, match="no counter"):
        gradtx.set_step_count({}, 1)


def test_a_state_is_asserted():
    tx = gradtx.accumulate(gradtx.adam(0.1), 3)
    _, state = run(tx, tx.init(PARAMS), GRADS[:4])
    testing.assert_state(tx, state, PARAMS)
    inner = state["accumulate"]["inner"]

    def changed(entry, field, value):
        other = inner | {entry: inner[entry] | {field: value}}
        return {"accumulate": state["accumulate"] | {"inner": other}}

    nu = inner["scale_by_rms"]["nu"]
    wrong = [
        (changed("scale_by_rms", "nu", jax.tree.map(lambda leaf: -1 - leaf, nu)), "nu at .* has -.*allowed: 0 or more"),
        (changed("scale_by_rms", "nu", nu | {"w": jnp.zeros(2)}), "shapes|Shapes"),
        (changed("scale_by_rms", "nu", nu | {"w": nu["w"].astype(jnp.bfloat16)}), "dtype"),
        (changed("scale_by_rms", "count", jnp.int32(-2)), "count at the root has -2"),
        (changed("scale_by_momentum", "mu", nu | {"w": jnp.full((4, 3), jnp.nan)}), "not finite"),
        ({}, "structs"),
    ]
    for state, words in wrong:
        with pytest.raises(AssertionError, match=words):
            testing.assert_state(tx, state, PARAMS)
