"""Each law notices a transform that breaks it, and says which law, which transform, which leaf and what was allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import testing
from gradtx.core.annotations import is_traced
from gradtx.testing import runs
from tests.testing.broken import BREAKS, INNER, MEAN, OF_A_LEAF, OF_THE_TREE, SGD, Broken, centered, coupled

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)), "b": jnp.float32(0.5)}


@pytest.mark.parametrize("name", BREAKS)
def test_a_law_notices(name):
    law, tx, words = BREAKS[name]
    if law in ("sharded_is_replicated", "inside_shard_map_is_outside") and jax.device_count() < 2:
        pytest.skip("one device is where everything lies, and sees all")
    with pytest.raises(AssertionError) as caught:
        testing.LAWS[law](tx, PARAMS)
    said = str(caught.value)
    assert [word for word in [f"{law}: {tx!r}: ", *words] if word not in said] == [], said


def test_a_law_passes_on_what_is_not_about_its_subject():
    def update(tx, updates, state, params):
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(updates)):
            raise TypeError("something else")
        return tx.update(updates, state, params)

    with pytest.raises(TypeError, match="something else"):
        testing.dtypes_stay(Broken(update=update), PARAMS)


def test_the_law_of_dtypes_asks_these_of_a_step_and_compiles_none():
    asked, traced = [], []

    def update(tx, updates, state, params):
        asked.append(tuple(str(leaf["b"].dtype) for leaf in (params, updates)))
        traced.append(is_traced(tx.decay))
        assert is_traced(updates["b"])
        return tx.update(updates, state, params)

    testing.dtypes_stay(Broken(update=update), PARAMS)
    half, single, double = "bfloat16", "float32", "float64"
    pairs = [(half, half), ("float16", single), (single, "float16"), (single, double), (double, half), (double, double)]
    assert asked == [*pairs, ("complex64", "complex64")]
    assert traced == [True] + [False] * 6


def test_a_leaf_may_read_its_own():
    testing.reads_what_it_says(Broken(facts=OF_A_LEAF, update=centered), PARAMS)
    testing.reads_what_it_says(Broken(facts=OF_THE_TREE, update=coupled), PARAMS)


@pytest.mark.parametrize(("name", "varied"), [("momentum", {"momentum"}), ("weight_decay", set()), (None, set())])
def test_a_sweep_is_over_the_number_of_that_name_or_over_all(name, varied):
    replaced, seen = set(), set()

    def replace(**numbers):
        replaced.update(numbers)
        return Broken(SGD.replace(**numbers), update=update)

    def update(tx, updates, state, params):
        if not is_traced(tx.momentum):
            seen.add((float(tx.learning_rate), float(tx.momentum)))
        return tx.update(updates, state, params)

    with jax.disable_jit():
        testing.sweep_is_separate(Broken(SGD, replace=replace, update=update), PARAMS, name=name, size=2)
    assert replaced == varied
    expected = {(0.5, 0.025), (0.5, 0.25)} if varied else {(0.05, 0.025), (0.5, 0.25)}
    np.testing.assert_allclose(sorted(seen), sorted(expected), rtol=1e-6)


def test_the_law_of_donation_donates_params_and_state():
    begun = []

    def init(tx, params):
        begun.append((params, tx.init(params)))
        return begun[-1][1]

    testing.donation_is_safe(Broken(init=init), PARAMS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begun[1]))  # begun[0] is that of the run to compare with
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(PARAMS))


def test_a_resumed_run_is_cut_in_the_middle():
    """What is restored may be otherwise in the first two steps of four, which have been made; and not later."""

    def rates(first, then):
        return gradtx.scale(gradtx.piecewise_constant_schedule(first, {2: then / first}))

    testing.resumed_is_uninterrupted(Broken(rates(1.0, 1.0), copied=rates(2.0, 1.0)), PARAMS)
    with pytest.raises(AssertionError, match=r"resumed_is_uninterrupted: .*no difference in any bit"):
        testing.resumed_is_uninterrupted(Broken(rates(1.0, 1.0), copied=rates(1.0, 2.0)), PARAMS)


def test_a_law_notices_a_low_state_that_is_not_the_one_meant():
    law, tx, words = BREAKS["a low state"]
    testing.LAWS[law](tx, PARAMS, lower=("mu",))
    with pytest.raises(AssertionError, match=words[0]):
        testing.LAWS[law](tx, PARAMS, lower=("nu", "m"))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_the_law_of_sharding_splits_what_the_devices_divide():
    whole = {}

    def init(tx, params):
        assert jax.sharding.get_abstract_mesh().empty  # automatic axes need no mesh that is set
        for name, leaf in params.items():
            if not is_traced(leaf):
                whole.setdefault(name, leaf.sharding.is_fully_replicated)  # of the first run, which is sharded
        return tx.init(params)

    testing.sharded_is_replicated(Broken(init=init), PARAMS | {"odd": jnp.ones(3)})
    assert whole == {"w": False, "b": True, "odd": True}


def test_every_law_is_broken_here():
    assert set(testing.LAWS) - {law for law, _, _ in BREAKS.values()} == {"resumed_is_uninterrupted"}  # just above


def test_what_is_whole_obeys():
    for law in testing.LAWS.values():
        law(INNER, PARAMS)
    testing.repr_is_code(INNER.replace(decay=jnp.float32(0.9)), PARAMS)
    testing.constant_schedule_is_constant(MEAN, PARAMS)
    testing.sweep_is_separate(gradtx.identity(), PARAMS)


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_bounds_follow_from_what_is_read_and_from_schedules():
    rate = gradtx.linear_schedule(1.0, 0.1, 10)
    assert testing.bound(gradtx.adam(0.1)) == 8
    assert testing.bound(gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.1)) == 16
    assert testing.bound(gradtx.scale_by_trust_ratio()) == 16
    assert testing.bound(gradtx.adam(rate)) == 16
    assert testing.bound(gradtx.lamb(rate)) == 32
    assert testing.bound(gradtx.monitor(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(rate))) == 32


def test_so_many_ulps_of_the_largest_element():
    eps = float(jnp.finfo(jnp.float32).eps)
    expected = {"x": np.array([0.25, 2.0], np.float32)}
    for ulps, off in ((4, 3.9), (8, 7.9)):
        near = {"x": expected["x"] + np.array([off * 2 * eps, 0], np.float32)}
        far = {"x": expected["x"] + np.array([(off + 0.3) * 2 * eps, 0], np.float32)}
        runs.assert_same(near, expected, ulps)
        with pytest.raises(AssertionError, match=rf"at \['x'\], element \(0,\): .*; allowed: {ulps} ulps of the"):
            runs.assert_same(far, expected, ulps)
    runs.assert_same({"x": np.array([0.25 + 7 * eps, 2.0], np.float32)}, expected, 2, least=8.0)
    least = {"x": np.array([0.0, 3e-38], np.float32)}  # an ulp of it is below the least number of float32
    runs.assert_same({"x": np.array([0.0, 3.000002e-38], np.float32)}, least, 8)
    with pytest.raises(AssertionError, match=r"8 ulps of .* these are 1"):
        runs.assert_same({"x": np.array([0.0, 3.000004e-38], np.float32)}, least, 8)
    for other in ({"x": np.array([np.nan, 2.0], np.float32)}, {"x": np.array([0.25, np.inf], np.float32)}):
        with pytest.raises(AssertionError, match="ulps"):
            runs.assert_same(other, expected, 8)
    for other, words in (
        ({"y": expected["x"]}, r"one lacks \['x'\]"),
        ({"x": expected["x"].astype(np.float64)}, "has dtype float64, the other float32"),
        ({"x": expected["x"][:1]}, r"has shape \(1,\), the other \(2,\)"),
    ):
        with pytest.raises(AssertionError, match=words):
            runs.assert_same(other, expected, 8)
    with pytest.raises(AssertionError, match="no difference in any bit"):
        runs.assert_same({"x": np.array([1, 3])}, {"x": np.array([1, 2])}, 8)


def test_what_reads_the_params_is_measured_by_them():
    """A decayed weight rounds in units of the weight, which may be larger than the update."""
    large, near = {"x": np.array([100.0], np.float32)}, {"x": np.array([1 + 4e-5], np.float32)}
    one = {"x": np.array([1.0], np.float32)}
    runs.assert_close(gradtx.add_decayed_weights(0.1), near, one, large)
    with pytest.raises(AssertionError, match="8 ulps"):
        runs.assert_close(gradtx.scale(2.0), near, one, large)
    small, off = {"x": np.array([1e-3], np.float32)}, {"x": np.array([1e-3 + 2e-9], np.float32)}
    for tx, params in ((gradtx.scale(2.0), large), (gradtx.add_decayed_weights(0.1), {"x": np.zeros(0)})):
        with pytest.raises(AssertionError, match="8 ulps"):
            runs.assert_close(tx, off, small, params)


def test_what_becomes_a_schedule_is_what_the_repr_shows():
    def constant(tx):
        return repr(runs.with_schedules(tx, lambda number: gradtx.constant_schedule(2 * number)))

    numbers = gradtx.adam(gradtx.constant_schedule(0.1), b1=jnp.float32(0.5), nesterov=True)
    assert runs.numbers_of(numbers) == {"b1": jnp.float32(0.5), "b2": 0.999, "eps": 1e-8}
    nested = constant(gradtx.clip(1.0) >> gradtx.monitor(gradtx.sgd(0.1, momentum=0.25)))
    assert nested == (
        "clip(max_delta=constant_schedule(value=2.0)) >> monitor(inner=sgd(learning_rate=constant_schedule(value=0.2), "
        "momentum=constant_schedule(value=0.5), nesterov=False), prefix=None)"
    )
    decay, eps = "decay=constant_schedule(value=1.5)", "eps=constant_schedule(value=2.0)"
    assert constant(gradtx.scale_by_rms(0.75, 1.0)) == f"scale_by_rms({decay}, {eps})"
    scale = "initial_scale=constant_schedule(value=1.0)"
    assert constant(gradtx.scale_by_rms(0.75, 1.0, initial_scale=0.5)) == f"scale_by_rms({decay}, {eps}, {scale})"


def test_gradients_are_the_same_at_every_call_and_some_elements_are_zero():
    first, again, other = (testing.gradients({"x": jnp.ones(200)}, 3, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 3
    assert gradtx.tree_equal(first, again)
    assert not gradtx.tree_equal(first, other)
    zeros = float(jnp.mean(first[0]["x"] == 0))
    assert 0.02 < zeros < 0.25
    assert 0.7 < float(jnp.std(first[0]["x"])) < 1.2
