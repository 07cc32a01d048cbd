"""`pack`: the same numbers from fewer kernels, its layout, and its state leaf by leaf."""

import collections
import functools
import itertools
import pickle
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from flax.training.train_state import TrainState
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import testing
from gradtx.core.annotations import Kind
from tests.core.words import assert_words, refusal

pack = functools.partial(gradtx.pack, fewest=2)
GENERATOR = np.random.default_rng(5)


def leaf(*shape, dtype=jnp.float32):
    return jnp.asarray(GENERATOR.normal(size=shape).astype(np.float32)).astype(dtype)


# Several ranks, no axes, no elements, two dtypes, one larger than SMALL below; more than a bucket holds.
PARAMS = {
    "layers": [{"kernel": leaf(2, 3), "bias": leaf(3, dtype=jnp.bfloat16)} for _ in range(3)],
    "deep": leaf(2, 1, 2),
    "temperature": leaf(),
    "nothing": leaf(0, 3),
    "large": leaf(5, 7),
    "missing": None,
}
SINGLE = jax.tree.map(lambda w: w.astype(jnp.float32), PARAMS)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(gradtx.tree, "SMALL", 20)
    monkeypatch.setattr(gradtx.tree, "MOST", 4)


def steps(tx, params, grads, *, jitted=True, unpack=True, **extra):
    """Params, and the state leaf by leaf, after some steps; compiled with both donated, or eager."""

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params, **extra)
        return gradtx.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1)) if jitted else step
    params, state = jax.tree.map(jnp.copy, params), tx.init(params)
    for gradient in grads:
        params, state = step(params, state, gradient)
    return params, gradtx.unpacked(state, params) if unpack else state


def assert_close(actual, expected, ulps=2):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        if jnp.issubdtype(a.dtype, jnp.inexact):
            x, y = (np.asarray(v).astype(np.complex128) for v in (a, b))
            bound = ulps * float(jnp.finfo(a.dtype).eps) * np.abs(y).max(initial=0)
            assert (np.abs(x - y) <= bound).all(), (jax.tree_util.keystr(path), a, b)
        else:
            np.testing.assert_array_equal(a, b)


def same(tx, packed=None, params=PARAMS, ulps=0, **extra):
    """Packed and alone, the same params and the same state leaf by leaf: eager to so many ulps, 0 being to the bit."""
    packed, grads = pack(tx) if packed is None else packed, testing.gradients(params, 3)
    for jitted in (False, True):
        run = [steps(each, params, grads, jitted=jitted, **extra) for each in (packed, tx)]
        if tx.name == "tunable" or (jitted and tx.name == "kahan_summation"):
            run = [(params, None) for params, _ in run]  # other names; what is kept is a rounding error
        if jitted or ulps:
            assert_close(*run, ulps=max(ulps, 8 * jitted))  # products fused with sums
        else:
            assert gradtx.tree_equal(*run)
    return run[0][1]


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# The same numbers -----------------------------------------------------------------------------------------------------

METHODS = {
    name: factory
    for name, factory in sorted(gradtx.registry.items())
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_in_buckets(name):
    """Eager to the last bit, element by element; compiled to what fused multiply-adds leave."""
    same(METHODS[name](learning_rate=0.1))


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.clip_by_global_norm(0.5) >> gradtx.adamw(0.1),
        gradtx.clip_by_percentile(50.0, window=2) >> gradtx.sgd(0.1, 0.9),
    ],
    ids=["global norm", "percentile"],
)
def test_behind_a_norm_of_all_elements_to_2_ulps(tx):
    assert any(stage.name == "in_buckets" and stage.reads == "tree" for stage in stages_of(pack(tx)))
    same(tx, ulps=2)


def stages_of(tx):
    expanded = tx.expand(deep=True)
    return expanded.stages if expanded.name == "chain" else (expanded,)


def test_what_draws_random_numbers_draws_others():
    """One draw for each bucket; without a bucket the same."""
    for tx in (gradtx.adam(0.1, state_dtype="bfloat16"), gradtx.add_noise(0.1, 0.5) >> gradtx.sgd(0.1, 0.9)):
        assert tx.random
        grads = testing.gradients(SINGLE, 2)
        (params, state), (others, alone) = (steps(each, SINGLE, grads) for each in (pack(tx), tx))
        assert shapes((params, state)) == shapes((others, alone))
        assert not gradtx.tree_equal(params, others)


def test_float64_stays(x64):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3), "c": jnp.ones(2, jnp.float32)}
    state = pack(gradtx.adam(0.1)).init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradtx.find(state, "mu")["buckets"])} == {np.dtype("float64")}
    same(gradtx.adam(0.1), params=params)


def test_gradients_of_several_dtypes_for_leaves_of_one_bucket():
    grads = [jax.tree.map(lambda g: g.astype(jnp.bfloat16) if g.ndim == 1 else g, g) for g in testing.gradients(SINGLE)]
    run = [steps(tx, SINGLE, grads, jitted=False) for tx in (pack(gradtx.adam(0.1)), gradtx.adam(0.1))]
    assert gradtx.tree_equal(*run)


def test_complex_leaves_stay_alone():
    params = {"z": jnp.ones(2, jnp.complex64), "y": jnp.ones(3, jnp.complex64), "a": jnp.ones(2), "b": jnp.ones(1)}
    state = same(gradtx.adam(0.1), params=params)
    assert gradtx.find(state, "mu")["z"].dtype == jnp.complex64
    text = refusal(TypeError, pack(gradtx.clip(1.0) >> gradtx.adam(0.1)).init, params)
    assert_words(text, "complex", "['y']")


# What is packed -------------------------------------------------------------------------------------------------------


def names_of(tx):
    return [stage.name for stage in stages_of(pack(tx))]


def test_stages_that_need_whole_leaves_stay():
    assert names_of(gradtx.adamw(0.1)) == ["in_buckets"]
    assert names_of(gradtx.adamw(0.1, mask="*kernel")) == [
        "in_buckets",
        "add_decayed_weights",
        "scale_by_learning_rate",
    ]
    assert names_of(gradtx.lamb(0.1)) == ["in_buckets", "scale_by_trust_ratio", "scale_by_learning_rate"]
    assert names_of(gradtx.clip_by_leaf_norm(1.0) >> gradtx.adam(0.1)) == ["clip_by_leaf_norm", "in_buckets"]
    assert names_of(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1)) == ["in_buckets"]
    assert names_of(gradtx.sgd(0.1)) == ["scale_by_learning_rate"]  # nothing to gain
    assert names_of(gradtx.accumulate(gradtx.adam(0.1), 2)) == ["in_buckets"]
    assert pack(pack(gradtx.adam(0.1))).expand() == pack(gradtx.adam(0.1)).expand()
    assert pack(gradtx.adam(0.1)).replace(learning_rate=0.2) == pack(gradtx.adam(0.2))


MASK = "*kernel"
WHOLE = [
    gradtx.masked(gradtx.adam(0.1), MASK),
    gradtx.clip_by_leaf_norm(1.0),
    gradtx.exponential_averaging(gradtx.adam(0.1)),
    gradtx.stateless(lambda updates, params: updates),
    gradtx.skip_nonfinite(gradtx.adamw(0.1, mask=MASK), 2),
    gradtx.centralize(),
]


@pytest.mark.parametrize("tx", WHOLE, ids=repr)
@pytest.mark.parametrize("wrap", [gradtx.pack, gradtx.in_buckets])
def test_what_needs_whole_leaves_is_refused_by_name(wrap, tx):
    name = wrap.node.name
    text = refusal(TypeError, wrap, tx)
    assert_words(text, f"gradtx.{name}: ", repr(tx), "one by one", f"Put {name} around what does not, inside it.")


def test_buckets_in_buckets_are_refused():
    assert_words(refusal(TypeError, gradtx.in_buckets, pack(gradtx.adam(0.1))), "gradtx.in_buckets: pack(")


def test_every_transform_says_whether_it_needs_whole_leaves():
    """What takes a mask, or labels, does; what computes each element by itself does not."""
    for name, factory in gradtx.registry.items():
        if factory.node._kind is not Kind.TRANSFORM or not factory.__module__.startswith("gradtx."):
            continue
        parameters = {p.name for p in factory.node._parameters}
        if name in ("chain", "join", "foreign", "tunable", "partition") or "mask" not in parameters:
            continue
        inner = {"inner": gradtx.adam(0.1)} if "inner" in parameters else {}
        rest = {p: 0.1 for p in ("learning_rate", "weight_decay", "trust_coefficient") if p in parameters}
        assert factory(mask=MASK, **inner, **rest).whole_leaves is True, name
    assert gradtx.partition({"a": gradtx.adam(0.1)}, {"*": "a"}).whole_leaves
    for method in ("adam", "adamw", "sgd", "lion", "adadelta"):
        assert METHODS[method](learning_rate=0.1).whole_leaves is False, method
    assert (gradtx.scale_by_momentum() + gradtx.scale_by_rms()).whole_leaves is False


@gradtx.transform
def noting_shapes() -> gradtx.Rule:
    """Notes the shapes it is given."""

    def update(updates, state):
        return jax.tree.map(lambda u: TRACED.append(u.shape) or u, updates), state

    return gradtx.Rule(init=lambda params: {"x": jnp.zeros(())}, update=update)


TRACED: list[tuple[int, ...]] = []
MANY = {f"{i:03}": jnp.full((2, 3), 1.0 + i) for i in range(200)}


def test_leaf_functions_are_traced_once_per_bucket(monkeypatch):
    monkeypatch.setattr(gradtx.tree, "MOST", 32)
    tx = pack(noting_shapes())
    state = tx.init(MANY)
    TRACED.clear()
    jax.eval_shape(tx.update, MANY, state)
    assert sorted(collections.Counter(TRACED).items()) == [((48,), 1), ((192,), 6)]


def test_200_leaves_need_few_kernels(monkeypatch):
    monkeypatch.setattr(gradtx.tree, "MOST", 32)

    def kernels(tx):
        compiled = jax.jit(tx.update).lower(MANY, tx.init(MANY), MANY).compile()
        return len(re.findall(r"(?:fusion|call)\(", compiled.as_text().partition("\nENTRY ")[2]))

    tx = gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(0.1)
    packed, plain = kernels(pack(tx)), kernels(tx)
    assert packed < plain / 3, (packed, plain)
    assert packed < len(MANY) + 60, packed  # each leaf is cut out of its bucket at the end


# Among other transforms -----------------------------------------------------------------------------------------------


def distance(params):
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda w: jnp.sum(w.astype(jnp.float32) ** 2), params))


def pulled(params):
    return jax.tree.map(lambda w: (w.astype(jnp.float32) / 2 + 1).astype(w.dtype), params)


def matrices(path, leaf):
    return "matrices" if leaf.ndim > 1 else "others"


INSIDE = {
    "accumulate": lambda tx: gradtx.accumulate(tx, 2),
    "conditionally": lambda tx: gradtx.conditionally(tx, lambda count: count % 2 == 0),
    "kahan_summation": gradtx.kahan_summation,
    "lookahead": lambda tx: gradtx.lookahead(tx, 2, reset_state=True),
    "loss_scaling": lambda tx: gradtx.loss_scaling(tx, 8.0),
    "masked": lambda tx: gradtx.masked(tx, lambda path, leaf: leaf.ndim != 2),
    "master_weights": gradtx.master_weights,
    "monitor": gradtx.monitor,
    "partition": lambda tx: gradtx.partition({"matrices": tx, "others": tx}, matrices),
    "schedule_free": lambda tx: gradtx.schedule_free(tx, 0.1),
    "skip_nonfinite": lambda tx: gradtx.skip_nonfinite(tx, 2),
    "train_only": lambda tx: gradtx.train_only(tx, "layers/0/*"),
    "tunable": gradtx.tunable,
    "exponential_averaging": gradtx.exponential_averaging,
    "sam": gradtx.sam,
    "in a chain": lambda tx: gradtx.clip_by_leaf_norm(1.0) >> tx >> gradtx.scale(0.5),
}


@pytest.mark.parametrize("name", INSIDE)
def test_pack_inside_others(name):
    """Their state unpacked is that of the others around the transform alone."""
    wrap, tx = INSIDE[name], gradtx.adam(0.1)
    around, extra = wrap(pack(tx)), {"grad_fn": pulled} if name == "sam" else {}
    params = SINGLE if name == "kahan_summation" else PARAMS
    same(wrap(tx), around, params, ulps=0, **extra)


OUTSIDE = ("accumulate", "conditionally", "loss_scaling", "master_weights", "skip_nonfinite", "tunable", "lookahead")


@pytest.mark.parametrize("name", OUTSIDE)
def test_pack_around_others(name):
    tx = INSIDE[name](gradtx.adam(0.1))
    packed = pack(tx)
    assert [stage.name for stage in stages_of(packed)] == ["in_buckets"]
    same(tx, packed)


def test_a_join_measures_the_gradient_that_came_in():
    parts = gradtx.scale_by_momentum(), gradtx.scale_by_rms()
    tx = gradtx.join(*parts) >> gradtx.scale(-0.1)
    same(tx, pack(parts[0]) + pack(parts[1]) >> gradtx.scale(-0.1))
    same(tx, pack(parts[0]) + parts[1] >> gradtx.scale(-0.1))


@gradtx.transform
def asking_for_three() -> gradtx.Rule:
    """Wants a loss, its gradient's function and the gradient; writes down what they give."""

    def init(params):
        return {"measured": jnp.zeros(()), "pulled": jax.tree.map(jnp.copy, params)}

    def update(updates, state, params, *, value, value_fn, grad_fn, grad):
        assert jax.tree.structure(grad) == jax.tree.structure(params)
        return updates, {"measured": value * value_fn(params), "pulled": grad_fn(params)}

    return gradtx.Rule(init=init, update=update, reads="tree", whole_leaves=False)


def test_extra_arguments_are_seen_in_buckets():
    extra = {"value": jnp.float32(2.0), "value_fn": distance, "grad_fn": pulled, "grad": PARAMS}
    state = same(asking_for_three() >> gradtx.sgd(0.1, 0.9), **extra)
    assert gradtx.find(state, "measured") > 0


def test_checked_names_the_entry():
    params = {"a": jnp.ones(2), "b": jnp.ones(1)}
    tx = gradtx.checked(pack(gradtx.adam(0.1)))
    run = checkify.checkify(tx.update)
    error, _ = run(params, tx.init(params), params)
    assert error.get() is None
    error, _ = run({"a": jnp.array([1, jnp.nan]), "b": jnp.ones(1)}, tx.init(params), params)
    assert "gradtx.scale_by_momentum" in error.get()
    assert "['buckets']['0']" in error.get()


def test_minimize_and_sweeps():
    """A sweep has leading axes, which `unpacked` keeps."""
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    ends = [gradtx.minimize(distance, params, tx, steps=5) for tx in (pack(gradtx.adam(0.1)), gradtx.adam(0.1))]
    assert_close(ends[0].params, ends[1].params)
    rates = jnp.array([0.1, 0.2])

    def run(make):
        def one(rate):
            tx = make(rate)
            updates, state = tx.update(params, tx.init(params), params)
            return updates, state

        return jax.vmap(one)(rates)

    updates, state = run(lambda rate: pack(gradtx.adam(rate)))
    expected = run(gradtx.adam)
    assert gradtx.find(state, "mu")["buckets"]["0"].shape in ((2, 7), (7,))
    assert_close((updates, gradtx.unpacked(state, params)), expected)
    back = gradtx.packed(expected[1], state)
    assert shapes(back) == shapes(state)


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
    tx = gradtx.add_decayed_weights(0.1, mask=MASK) >> gradtx.adamw(0.1)
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
        assert COLLECTIVE.findall(branches) == ["all-reduce"] * 2
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
