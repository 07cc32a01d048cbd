"""pack and in_buckets: the same numbers from fewer kernels, which leaves are joined, states leaf by leaf, devices."""

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
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import testing
from gradtx.core import buckets
from gradtx.core.annotations import Kind
from tests.wrappers.runs import HEARD, assert_close, by_rank, distance, hearing, kinds, pulled, train

pytestmark = pytest.mark.usefixtures("small_buckets")
pack = functools.partial(gradtx.pack, min_leaves=2)
MOMENTUM = gradtx.sgd(0.1, 0.9)


@pytest.fixture
def small_buckets(monkeypatch):
    """Buckets of which a test fills several: of at most 4 leaves, of at most 6 elements each."""
    monkeypatch.setattr(gradtx.tree, "SMALL", 6)
    monkeypatch.setattr(buckets, "MOST", (4, 4))


def drawn(*shape, dtype=jnp.float32, generator=np.random.default_rng(5)):  # noqa: B008 - one stream for all leaves
    return jnp.asarray(generator.normal(size=shape).astype(np.float32)).astype(dtype)


# Several ranks, no axes, no elements, two dtypes, one leaf that is larger; more than a bucket holds.
PARAMS = {
    "layers": [{"kernel": drawn(2, 3), "bias": drawn(3, dtype=jnp.bfloat16)} for _ in range(3)],
    "deep": drawn(2, 1, 2),
    "temperature": drawn(),
    "nothing": drawn(0, 3),
    "large": drawn(7),
    "missing": None,
}
SINGLE = {"a": drawn(2, 3), "b": drawn(3), "large": drawn(7)}
METHODS = {
    name: factory
    for name, factory in sorted(gradtx.registry.items())
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
    if name != "adafactor"  # of which nothing can be joined
}


def same(tx, packed=None, params=SINGLE, ulps=2, **extra):
    """Packed and alone, the same params and, leaf by leaf, the same state, which is returned."""
    packed, grads = pack(tx) if packed is None else packed, testing.gradients(params, 2)
    ends, state = train(packed, params, grads, **extra)
    unpacked = gradtx.unpacked(state, params)
    assert_close((ends, unpacked), train(tx, params, grads, **extra), ulps)
    return unpacked


def stages_of(tx):
    expanded = tx.expand(deep=True)
    return expanded.stages if expanded.name == "chain" else (expanded,)


def names_of(tx):
    return [stage.name for stage in stages_of(pack(tx))]


def layout_of(state, params):
    """The names of the leaves in each bucket, and of those that are alone: each element of the average is its place."""
    mu = gradtx.find(state, "mu")
    numbers, named = itertools.count(), gradtx.tree.named_leaves(params)
    marked = jax.tree.map(lambda leaf: jnp.full(jnp.shape(leaf), next(numbers), jnp.float32), params)
    buckets = gradtx.find(gradtx.packed({"mu": marked}, {"mu": mu}), "mu")["buckets"]
    found = [sorted({named[int(place)][0] for place in set(np.asarray(vector))}) for vector in buckets.values()]
    return found, sorted({name for name, _ in named} - set(itertools.chain(*found)))


# The same numbers -----------------------------------------------------------------------------------------------------


def test_a_method_of_each_kind_is_the_same_in_buckets():
    beside = gradtx.join(gradtx.scale_by_momentum(), gradtx.scale_by_rms()) >> gradtx.scale(-0.1)
    for tx in (MOMENTUM, beside, MOMENTUM >> gradtx.scale_by_trust_ratio() >> MOMENTUM):
        same(tx)
    same(gradtx.clip_by_global_norm(0.5) >> MOMENTUM, params=PARAMS)


@pytest.mark.thorough
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_in_buckets_compiled(name):
    tx, (gradient,) = METHODS[name](learning_rate=0.1), testing.gradients(PARAMS, 1)
    for alone, packed in ((tx, pack(tx)), (gradtx.accumulate(tx, 1), gradtx.accumulate(pack(tx), 1))):
        updates, state = jax.jit(packed.update)(gradient, packed.init(PARAMS), PARAMS)
        found = updates, gradtx.unpacked(state, PARAMS)
        assert_close(found, jax.jit(alone.update)(gradient, alone.init(PARAMS), PARAMS), 16)


INSIDE = {
    "accumulate": lambda tx: gradtx.accumulate(tx, 2),
    "lookahead": lambda tx: gradtx.lookahead(tx, 2, reset_state=True),
    "masked": lambda tx: gradtx.masked(tx, lambda path, leaf: leaf.ndim < 2),
    "master_weights": gradtx.master_weights,
    "partition": lambda tx: gradtx.partition({"matrices": tx, "vectors": tx}, by_rank),
    "skip_nonfinite": lambda tx: gradtx.skip_nonfinite(tx, 2),
    "exponential_averaging": gradtx.exponential_averaging,
    "sam": gradtx.sam,
    "in a chain": lambda tx: gradtx.clip_by_leaf_norm(1.0) >> tx >> gradtx.scale(0.5),
}


@pytest.mark.parametrize("name", INSIDE)
def test_inside_and_around_others(name):
    """Their state unpacked is that of the others around the transform alone."""
    wrap, extra = INSIDE[name], {"grad_fn": pulled} if name == "sam" else {}
    alone = wrap(MOMENTUM)
    same(alone, wrap(pack(MOMENTUM)), **extra)
    if alone.facts.joinable and name != "in a chain":
        assert names_of(alone) == ["in_buckets"]
        same(alone)


def test_dtypes_of_leaves_and_gradients(x64):
    """A bucket has the widest of its gradients; float64 stays, and complex leaves stay alone."""
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3), "c": jnp.ones(2, jnp.float32), "z": jnp.ones(2, complex)}
    params["y"] = params["z"]
    state = same(MOMENTUM, params=params)
    assert gradtx.find(state, "mu")["z"].dtype == jnp.complex128
    state = pack(MOMENTUM).init(params)
    assert layout_of(state, params) == ([["['a']", "['b']"]], ["['c']", "['y']", "['z']"])
    assert gradtx.find(state, "mu")["buckets"]["0"].dtype == jnp.float64
    single = {"a": drawn(2), "b": drawn(3)}
    grads = [{"a": drawn(2), "b": drawn(3, dtype=jnp.bfloat16)}]
    assert_close(train(pack(MOMENTUM), single, grads)[0], train(MOMENTUM, single, grads)[0], 2)


def test_extra_arguments_are_seen_in_buckets():
    tx = gradtx.in_buckets(hearing())
    once = tx.update(SINGLE, tx.init(SINGLE), SINGLE, value=2.0, value_fn=distance, grad_fn=pulled, grad=SINGLE)[0]
    heard, joined = HEARD[-1], jnp.concatenate([SINGLE["b"], SINGLE["a"].ravel()])
    assert (heard["value"], heard["measured"]) == (2.0, distance(SINGLE))
    for name, expected in (("params", joined), ("grad", joined), ("slopes", joined / 2 + 1)):
        np.testing.assert_array_equal(heard[name]["buckets"]["0"], expected)
        assert jax.tree.leaves(heard[name]["alone"])[0].shape == (7,)
    assert gradtx.tree_equal(once, SINGLE)


# What is packed -------------------------------------------------------------------------------------------------------


def test_which_leaves_are_joined():
    """Those of the dtype that most have, by size, at most 4 at once; not what is empty, larger, or last by itself."""
    layer = "['layers'][{}]['{}']".format
    small = [["['deep']", layer(0, "kernel"), layer(1, "kernel"), "['temperature']"]]
    biases = [layer(i, "bias") for i in range(3)]
    buckets, alone = layout_of(pack(MOMENTUM).init(PARAMS), PARAMS)
    assert buckets == small
    assert alone == sorted(["['large']", layer(2, "kernel"), "['nothing']", *biases])
    for min_leaves, joined in ((4, 1), (5, 1), (6, 0)):  # of 5
        assert len(layout_of(pack(MOMENTUM, min_leaves=min_leaves).init(PARAMS), PARAMS)[0]) == joined
    assert layout_of(pack(MOMENTUM).init(jnp.ones(3)), jnp.ones(3)) == ([], ["the root"])


def test_stages_that_need_whole_leaves_stay():
    decayed = ["in_buckets", "add_decayed_weights", "scale_by_learning_rate"]  # behind all statistics, with the params
    for tx, names in (
        (gradtx.adam(0.1), ["in_buckets"]),
        (gradtx.adamw(0.1), decayed),
        (gradtx.adamw(0.1, mask="*kernel"), decayed),
        (gradtx.adamw(0.1) >> gradtx.ema(0.9), ["in_buckets"]),
        (gradtx.lamb(0.1), [*decayed[:2], "scale_by_trust_ratio", "scale_by_learning_rate"]),
        (gradtx.clip_by_leaf_norm(1.0) >> gradtx.adam(0.1), ["clip_by_leaf_norm", "in_buckets"]),
        (gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1), ["in_buckets"]),
        (gradtx.sgd(0.1), ["scale_by_learning_rate"]),  # nothing to gain
        (gradtx.accumulate(gradtx.adam(0.1), 2), ["in_buckets"]),
    ):
        assert names_of(tx) == names, tx
    for tx, min_leaves in (  # one statistic is worth joining where there are more leaves
        (gradtx.adam(0.1), 256),
        (gradtx.clip_by_global_norm(1.0) >> MOMENTUM, 256),
        (MOMENTUM, 512),
        (gradtx.scale_by_rms(), 512),
        (gradtx.scale_by_rms(centered=True), 256),
    ):
        assert stages_of(gradtx.pack(tx))[0].min_leaves == min_leaves, tx
    packed = pack(gradtx.adam(0.1))
    assert pack(packed).expand() == packed.expand()
    assert packed.replace(learning_rate=0.2) == pack(gradtx.adam(0.2))
    low = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    state = pack(gradtx.master_weights(gradtx.sgd(0.1))).init(low)  # masters are worth joining
    assert gradtx.find(state, "master")["buckets"]["0"].shape == (5,)


def test_what_computes_each_element_by_itself_needs_no_whole_leaves():
    """What takes a mask does need them."""
    for name, factory in METHODS.items():
        parameters = {p.name for p in factory.node._parameters}
        rest = {name: 0.1 for name in ("learning_rate", "weight_decay") if name in parameters}
        assert "mask" not in parameters or not factory(mask="*kernel", **rest).facts.joinable, name
    plain = "adam", "adamw", "sgd", "lion", "adadelta"
    assert all(METHODS[name](learning_rate=0.1).facts.joinable for name in plain)
    assert (gradtx.scale_by_momentum() + gradtx.scale_by_rms()).facts.joinable


TRACED: list[tuple[int, ...]] = []


@gradtx.transform
def noting_shapes() -> gradtx.Rule:
    """Notes the shapes it is given."""

    def update(updates, state):
        return jax.tree.map(lambda u: TRACED.append(u.shape) or u, updates), state

    return gradtx.Rule(update=update, reach="element")


def test_200_leaves_are_few_kernels(monkeypatch):
    monkeypatch.setattr(buckets, "MOST", (8, 32))
    many = {f"{i:03}": jnp.full((2, 3), 1.0 + i) for i in range(200)}
    tx = gradtx.in_buckets(noting_shapes())
    state = tx.init(many)
    TRACED.clear()
    jax.eval_shape(tx.update, many, state)
    assert sorted(collections.Counter(TRACED).items()) == [((24,), 1), ((84,), 14)]


# States leaf by leaf --------------------------------------------------------------------------------------------------


class Holding(NamedTuple):
    params: dict
    opt_state: dict


def test_a_state_unpacked_and_packed_again():
    groups = {"matrices": gradtx.adam(0.1), "vectors": gradtx.accumulate(MOMENTUM, 2)}
    twice = gradtx.scale_by_momentum(0.1) >> gradtx.clip_by_leaf_norm(9.0) >> gradtx.scale_by_momentum(0.9)
    for tx, packed in (
        (gradtx.clip_by_global_norm(1.0) >> gradtx.adamw(0.1, mask="a"), None),
        (twice, None),
        (gradtx.partition(groups, by_rank), gradtx.partition({k: pack(v) for k, v in groups.items()}, by_rank)),
    ):
        packed, grads = packed or pack(tx), testing.gradients(SINGLE, 1)
        params, alone = train(tx, SINGLE, grads)
        _, state = train(packed, SINGLE, grads)
        again = gradtx.packed(alone, packed.init(SINGLE))
        assert gradtx.tree_equal(gradtx.unpacked(again, params), alone)
        assert_close(*(packed.update(grads[0], each, params)[0] for each in (again, state)))
        held = gradtx.unpacked((Holding(params, state), 3), params)
        assert type(held[0]) is Holding
        assert jax.tree.structure(held[0].opt_state) == jax.tree.structure(alone)
        like = Holding(params, packed.init(SINGLE))
        for back in (gradtx.packed(held, (like, 3))[0], gradtx.packed(held[0], like)):
            assert jax.tree.structure(back.opt_state) == jax.tree.structure(state)
            assert gradtx.tree_equal(gradtx.unpacked(back, params), held[0])
    state = same(twice)  # repeated names are numbered in their order
    assert state.keys() == {"scale_by_momentum", "clip_by_leaf_norm", "scale_by_momentum_2"}
    first = twice.init(SINGLE)
    assert gradtx.tree_equal(gradtx.unpacked(gradtx.packed(first, pack(twice).init(SINGLE)), SINGLE), first)


def test_a_single_leaf_that_is_left_out_and_groups_without_a_bucket():
    params = jnp.ones(3)
    for flag in (True, False):
        packed = gradtx.masked(pack(MOMENTUM), flag).init(params)
        assert gradtx.tree_equal(gradtx.unpacked(packed, params), gradtx.masked(MOMENTUM, flag).init(params))
    params = {"w": jnp.ones((2, 2)), "a": jnp.ones(3), "b": jnp.ones(2)}
    alone, packed = ({name: make(MOMENTUM) for name in ("matrices", "vectors")} for make in (lambda tx: tx, pack))
    same(gradtx.partition(alone, by_rank), gradtx.partition(packed, by_rank), params)


def test_params_may_be_called_like_the_parts_of_a_state():
    params = {"layout": {"buckets": jnp.ones(2), "alone": jnp.ones(2)}, "inner": jnp.ones(3)}
    for named in (params, params | {"layout": jnp.ones(2)}):
        assert gradtx.tree_equal(gradtx.unpacked(pack(MOMENTUM).init(named), named), MOMENTUM.init(named))
    tx, flat = gradtx.schedule_free(pack(MOMENTUM), 0.1), {"layout": jnp.ones(2), "inner": jnp.ones(3)}
    assert jax.tree.structure(tx.update(flat, tx.init(flat), flat)[0]) == jax.tree.structure(flat)


def test_saved_restored_and_known_without_arrays():
    tx, grads = pack(MOMENTUM), testing.gradients(PARAMS, 2)
    _, state = tx.update(grads[0], tx.init(PARAMS), PARAMS)
    expected, _ = tx.update(grads[1], state, PARAMS)
    restored = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    for again in (restored, pickle.loads(pickle.dumps(state)), jax.jit(lambda s: s)(state)):
        assert gradtx.tree_equal(tx.update(grads[1], again, PARAMS)[0], expected)
    shapes = jax.eval_shape(functools.partial(gradtx.unpacked, params=PARAMS), state)
    assert kinds(shapes) == kinds(MOMENTUM.init(PARAMS))


def test_leading_axes_of_a_sweep_stay():
    def run(make):
        return jax.vmap(lambda rate: (tx := make(rate)).update(SINGLE, tx.init(SINGLE), SINGLE))(jnp.array([0.1, 0.2]))

    updates, state = run(lambda rate: pack(gradtx.sgd(rate, 0.9)))
    expected = run(lambda rate: gradtx.sgd(rate, 0.9))
    assert_close((updates, gradtx.unpacked(state, SINGLE)), expected)
    assert kinds(gradtx.packed(expected[1], state)) == kinds(state)


@pytest.mark.parametrize(("equal", "smaller"), [(100, 1), (81, 1), (100, 11), (121, 12), (82, 0), (65, 1)])
def test_a_leaf_that_is_last_by_itself_does_not_change_the_buckets(monkeypatch, equal, smaller):
    """The number of equal leaves decides the size of a bucket, and one of them may stay alone."""
    monkeypatch.setattr(buckets, "MOST", (8, 32))
    params = {f"large {i:03}": jnp.ones(3) for i in range(equal)} | {f"small {i}": jnp.ones(2) for i in range(smaller)}
    state = pack(MOMENTUM).init(params)
    updates, new = jax.jit(pack(MOMENTUM).update)(params, state, params)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    np.testing.assert_allclose(updates["large 000"], -0.1 * np.ones(3), rtol=1e-6)


def test_buckets_of_another_size_are_refused(monkeypatch):
    """As those of another version might be: the same leaves are in them, but not the same in each."""
    state = pack(MOMENTUM).init(PARAMS)
    monkeypatch.setattr(buckets, "MOST", (2, 2))
    for call in (lambda: gradtx.unpacked(state, PARAMS), lambda: pack(MOMENTUM).update(PARAMS, state, PARAMS)):
        with pytest.raises(ValueError, match="buckets"):
            call()


def test_in_an_optimizer_of_nnx():
    """There init sees Variables, and update the arrays in them."""

    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(3)])
            self.out = nnx.Linear(2, 4, rngs=nnx.Rngs(3))  # its kernel is alone

    def loss(model, x):
        for layer in model.layers:
            x = jnp.tanh(layer(x))
        return jnp.sum(model.out(x) ** 2)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(loss)(model, x))

    ends = []
    for tx in (gradtx.adamw(0.1), pack(gradtx.adamw(0.1))):
        model = Model()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for x in (jnp.ones((3, 2)), jnp.full((3, 2), 0.5)):
            step(model, optimizer, x)
        ends.append(nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state)))
    assert gradtx.find(ends[1][1], "mu")["buckets"].keys() == {"0", "1"}
    assert_close((ends[1][0], gradtx.unpacked(ends[1][1], ends[1][0])), ends[0], 8)


# Devices --------------------------------------------------------------------------------------------------------------

SENT = re.compile(r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)\(")
devices = pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")
WHOLE = ["['bias']", "['more']", "['scale']"]


@devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
def test_sharded_leaves_stay_alone_and_nothing_is_sent(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    shapes, spec = {"kernel": (8, 2), "bias": (3,), "scale": (), "more": (2, 2)}, {"kernel": PartitionSpec("data")}
    tx = gradtx.clip_by_global_norm(1.0) >> MOMENTUM
    with jax.set_mesh(mesh):
        params = {
            k: jax.device_put(drawn(*shape), NamedSharding(mesh, spec.get(k, PartitionSpec())))
            for k, shape in shapes.items()
        }
        state, update = pack(tx).init(params), jax.jit(pack(tx).update)
        assert layout_of(state, params) == ([WHOLE], ["['kernel']"])
        compiled = update.lower(params, state, params).compile()
        branches, _, main = compiled.as_text().partition("\nENTRY ")
        assert (SENT.findall(main), SENT.findall(branches)) == (["all-reduce"], ["all-reduce"])  # of the norm
        updates, new = compiled(params, state, params)
        kernel = gradtx.find(gradtx.unpacked(new, params), "mu")["kernel"]
        assert kernel.sharding.is_equivalent_to(params["kernel"].sharding, 2)
        assert_close(jax.device_get(updates), jax.device_get(tx.update(params, tx.init(params), params)[0]))
        # Under jit it packs what it knows to lie whole.
        state = jax.jit(pack(tx).init)(params)
        assert list(itertools.chain(*layout_of(state, params)[0])) == ([] if kind is AxisType.Auto else WHOLE)
        pack(tx).update(params, state, params)  # eager, where all is known, a state with this layout is still right


@devices
def test_leaves_on_different_devices_are_not_joined():
    here, there = jax.devices()[:2]
    params = {name: jax.device_put(jnp.ones(2), where) for name, where in zip("abcde", (here, there) * 3)}
    buckets, _ = layout_of(gradtx.in_buckets(gradtx.scale_by_momentum()).init(params), jax.device_get(params))
    assert buckets == [["['a']", "['c']", "['e']"]]


def test_a_clip_alone_is_not_packed():
    masked = gradtx.accumulate(gradtx.adamw(1e-3, mask={"kernel": True, "bias": False}), 4)
    with pytest.raises(TypeError, match=r"gradtx.pack: accumulate\(.* needs the leaves one by one.*inside it"):
        gradtx.pack(gradtx.clip_by_global_norm(1.0) >> masked)
