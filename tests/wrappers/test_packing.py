"""`pack`: the same numbers from fewer kernels, what it takes into buckets, and its place among other transforms."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import gradtx
from gradtx import testing
from gradtx.core.annotations import Kind
from tests.core.words import assert_words, refusal
from tests.wrappers.buckets import MASK, PARAMS, SINGLE, assert_close, matrices, pack, same, shapes, steps

pytestmark = pytest.mark.usefixtures("small_buckets")


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
    assert names_of(gradtx.adam(0.1)) == ["in_buckets"]
    decayed = ["in_buckets", "add_decayed_weights", "scale_by_learning_rate"]  # behind all statistics, with the params
    assert names_of(gradtx.adamw(0.1)) == decayed
    assert names_of(gradtx.adamw(0.1, mask="*kernel")) == decayed
    assert names_of(gradtx.adamw(0.1) >> gradtx.ema(0.9)) == ["in_buckets"]
    assert names_of(gradtx.lamb(0.1)) == [*decayed[:2], "scale_by_trust_ratio", "scale_by_learning_rate"]
    assert names_of(gradtx.clip_by_leaf_norm(1.0) >> gradtx.adam(0.1)) == ["clip_by_leaf_norm", "in_buckets"]
    assert names_of(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1)) == ["in_buckets"]
    assert names_of(gradtx.sgd(0.1)) == ["scale_by_learning_rate"]  # nothing to gain
    assert names_of(gradtx.accumulate(gradtx.adam(0.1), 2)) == ["in_buckets"]
    assert pack(pack(gradtx.adam(0.1))).expand() == pack(gradtx.adam(0.1)).expand()
    assert pack(gradtx.adam(0.1)).replace(learning_rate=0.2) == pack(gradtx.adam(0.2))


@pytest.mark.parametrize(
    ("tx", "fewest"),
    [
        (gradtx.adam(0.1), 256),
        (gradtx.scale_by_adadelta(), 256),
        (gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1, 0.9), 256),
        (gradtx.sgd(0.1, 0.9), 512),
        (gradtx.lion(0.1), 512),
        (gradtx.scale_by_rms(), 512),
        (gradtx.scale_by_rms(centered=True), 256),
    ],
    ids=repr,
)
def test_one_statistic_is_worth_joining_where_there_are_more_leaves(tx, fewest):
    def joined(leaves):
        state = gradtx.pack(tx).init({str(i): jnp.zeros(2) for i in range(leaves)})
        return len(state["in_buckets"]["layout"]["alone"]) == 0

    assert not joined(fewest - 1)
    assert joined(fewest)


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

    return gradtx.Rule(update=update)


TRACED: list[tuple[int, ...]] = []
MANY = {f"{i:03}": jnp.full((2, 3), 1.0 + i) for i in range(200)}


def test_leaf_functions_are_traced_once_per_bucket(monkeypatch):
    monkeypatch.setattr(gradtx.tree, "MOST", 32)
    tx = gradtx.in_buckets(noting_shapes())
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
