"""How numbers arrive: always as the same number, whatever its type, in the dtype of the tree, at its time."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import gradtx
from gradtx import Rule, averages, tree
from gradtx.core.schedule import differs
from gradtx.testing.runs import with_schedules
from tests.core.samples import PARAMS

INT32_MAX = np.iinfo(np.int32).max
SCALARS = [1, 1.0, np.float64(1), np.float32(1), np.float16(1), np.int64(1), np.uint8(1), np.array(1.0), np.array(1)]
SCALARS += [ml_dtypes.bfloat16(1), np.array(1.0, ml_dtypes.bfloat16), np.ones(2, ml_dtypes.bfloat16)[0]]


def test_python_and_numpy_scalars_become_floats_and_jax_scalars_stay():
    for number in SCALARS:
        tx = gradtx.scale(number)
        assert type(tx.step_size) is float
        assert tx == gradtx.scale(1.0)
        assert hash(tx) == hash(gradtx.scale(1.0))
        assert type(tx.replace(step_size=number).step_size) is float
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8):
        rate = dtype(1)
        assert gradtx.scale(rate).step_size is rate


RANGES = [
    (gradtx.Unit, [0, 0.5]),
    (gradtx.Fraction, [0, 1]),
    (gradtx.NonNegative, [0, 1e30]),
    (gradtx.Positive, [1e-30, 1e30]),
    (gradtx.Hyper, [-1e30, 0, 1e30]),
    (gradtx.PositiveInt, [1, 10]),
    (gradtx.NonNegativeInt, [0, 10]),
]


@pytest.mark.parametrize(("annotation", "good"), RANGES)
def test_what_lies_in_the_range_is_accepted_and_a_traced_number_is_not_asked(annotation, good):
    @gradtx.transform
    def ranged(x: annotation) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    for value in good:
        assert ranged(value).x == value
        if annotation not in (gradtx.PositiveInt, gradtx.NonNegativeInt):
            assert float(ranged(jnp.float32(value)).x) == np.float32(value)
            jax.eval_shape(lambda x: ranged(x), -1.5)


# In the dtype of the tree ---------------------------------------------------------------------------------------------


def dtypes(tx, params):
    """Those of the updates, and those of the floating-point part of the state before and after; only traced."""
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, params, state, params)
    assert gradtx.tree_equal(*(jax.tree.map(lambda leaf: leaf.dtype.num, s) for s in (state, new)))
    return {leaf.dtype for leaf in jax.tree.leaves(updates)}, {leaf.dtype for leaf in jax.tree.leaves(state)} - {
        jnp.dtype(jnp.int32)
    }


@pytest.mark.parametrize("number", [0.5, 1, np.float32(0.5), "float32", "bfloat16", "float16", "int32"], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_a_number_never_promotes_or_lowers_updates_or_state(number, wide):
    with jax.enable_x64(wide):
        number = jnp.ones((), number) if isinstance(number, str) else number
        tx = gradtx.adamw(number, eps=number, weight_decay=number)
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, *([jnp.float64] if wide else [])):
            params = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), PARAMS)
            assert dtypes(tx, params) == ({jnp.dtype(dtype)}, {np.promote_types(dtype, np.float32)})


def test_numpy_leaves_and_python_floats_are_float32_without_x64():
    tx, single = gradtx.clip_by_global_norm(10.0) >> gradtx.adamw(1e-3), {np.dtype(np.float32)}
    for params in ({"w": np.ones(3)}, np.float64(1.0), {"w": np.ones(3, np.float32)}, 1.0, [1.0, np.ones(2)]):
        assert dtypes(tx, params) == (single, single)
        assert jax.tree.structure(gradtx.apply_updates(params, params)) == jax.tree.structure(params)


def test_a_leaf_of_float64_makes_nothing_worse_for_others(x64):
    """Adam's first step is the sign; the decay of the second moment cannot be told from 1 in float32."""
    params = {"narrow": jnp.array([3.0, -0.7], jnp.float32), "wide": jnp.array([3.0, -0.7])}
    tx = gradtx.scale_by_adam(0.9, 0.999, 0.0)
    updates, _ = tx.update(params, tx.init(params), params)
    for name, dtype in [("narrow", np.float32), ("wide", np.float64)]:
        np.testing.assert_array_max_ulp(np.asarray(updates[name]), dtype([1, -1]), maxulp=2)
    tx = gradtx.adam(1e-3, b2=1 - 1e-9)
    updates, _ = tx.update({"wide": params["wide"]}, tx.init({"wide": params["wide"]}))
    np.testing.assert_allclose(updates["wide"], [-1e-3, 1e-3], rtol=1e-7)
    narrow = {"wide": params["narrow"]}  # such a gradient is computed with in the precision of the params
    jax.eval_shape(tx.update, narrow, tx.init({"wide": params["wide"]}), {"wide": params["wide"]})


def test_bodies_compute_with_their_numbers_whatever_they_are_given_as():
    seen = []

    @gradtx.transform
    def computes(decay: gradtx.Unit, pair: tuple[gradtx.Unit, ...], named: dict[str, gradtx.Unit]) -> Rule:
        weight, one = 1 - decay, jnp.ones((), decay.dtype)  # in the compute dtype, like everything else

        def update(updates, state):
            numbers = [decay, one, *pair, *named.values()]
            seen.extend((jnp.shape(number), np.dtype(number.dtype)) for number in numbers)
            return tree.map(lambda u, weight: weight * u, updates, weight=weight), state

        return Rule(update=update)

    low = {"w": np.ones(1, ml_dtypes.bfloat16)}
    for decay in (
        0.75,
        np.float32(0.75),
        jnp.bfloat16(0.75),
        gradtx.constant_schedule(0.75),
        lambda c: np.float64(0.75),
    ):
        tx = computes(decay, (decay, 0.5), {"a": decay})
        updates, _ = tx.update(low, tx.init(low))
        assert updates["w"].tolist() == [0.25]
    assert set(seen) == {((), np.dtype(np.float32))}


# Time -----------------------------------------------------------------------------------------------------------------

GRADS = {"w": np.float32([0.3, -2.0, 0.1]), "b": np.float32(1.5)}
TIMED = [gradtx.adamw(0.1, mask={"w": True, "b": False}), gradtx.tunable(gradtx.clip(1.0) >> gradtx.sgd(0.1, 0.9))]


@pytest.mark.parametrize("tx", TIMED, ids=lambda tx: tx.name)
@pytest.mark.parametrize(
    "make", [gradtx.constant_schedule, lambda value: lambda count: value], ids=["schedule", "function"]
)
def test_every_hyperparameter_can_be_a_schedule(tx, make):
    scheduled = with_schedules(tx, make)
    assert not all(isinstance(leaf, float) for leaf in scheduled.arguments.values())
    (expected, _), (updates, _) = (one.update(GRADS, one.init(PARAMS), PARAMS) for one in (tx, scheduled))
    for name in GRADS:  # other programs, which may be fused otherwise: 8 ulps
        np.testing.assert_allclose(updates[name], expected[name], rtol=8 * 1.2e-7)


def test_a_schedule_is_asked_with_the_number_of_updates_already_made():
    tx, steps = gradtx.scale_by_momentum(0.5) >> gradtx.scale(lambda count: 10.0 ** -count.astype(float)), []
    state = tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(PARAMS, state, PARAMS)
        steps.append(float(updates["w"][0]))
    np.testing.assert_allclose(steps, [1.0, 0.1, 0.01], rtol=1e-6)
    assert gradtx.step_count(state) == 3


def test_a_schedule_of_many_counts_and_of_a_concrete_dtype(x64):
    line = gradtx.linear_schedule(1.0, 0.0, 4)
    assert line(jnp.arange(6)).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert line(1).dtype == np.float64
    assert line.at(np.int8(1), np.float32).dtype == np.float32
    assert gradtx.custom_schedule(lambda count: 3)(jnp.arange(2)).tolist() == [3.0, 3.0]


def test_what_is_known_to_differ():
    assert [differs(value, 0.5) for value in (0.5, jnp.float32(0.5), 0.25, np.ones(2))] == [False, False, True, True]
    assert differs(gradtx.constant_schedule(0.5), 0.5)
    assert jax.eval_shape(lambda x: None if differs(x, 0.5) else x, 1.0).shape == ()


def test_counters_saturate():
    seen = []

    @gradtx.transform
    def counts(rate: gradtx.Unit = 0.5) -> Rule:
        def update(updates, state, *, count):
            seen.append((int(count), count.dtype))
            return updates, state

        return Rule(update=update)

    tx = gradtx.scale_by_momentum(0.9) >> counts() >> gradtx.scale(gradtx.linear_schedule(1.0, 0.5, 10))
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS)
    for name in state:
        state[name]["count"] = jnp.int32(INT32_MAX - 1)
    for _ in range(2):
        updates, state = tx.update(PARAMS, state, PARAMS)
        assert {int(state[name]["count"]) for name in state} == {INT32_MAX}
        assert np.isfinite(updates["w"]).all()
    assert seen == [(n, np.int32) for n in (1, INT32_MAX, INT32_MAX)]
    assert gradtx.step_count(state) == INT32_MAX


def test_a_constant_and_a_scheduled_optimizer_take_each_others_state():
    constant = gradtx.adam(1e-3)
    scheduled = gradtx.adam(gradtx.linear_schedule(1e-3, 0.0, 10), b1=gradtx.linear_schedule(0.9, 0.5, 10))
    _, state = jax.eval_shape(scheduled.update, PARAMS, jax.eval_shape(constant.init, PARAMS), PARAMS)
    jax.eval_shape(constant.update, PARAMS, state, PARAMS)


@pytest.mark.parametrize("decay", [0.9, 0.999, 1 - 1e-6])
def test_the_sum_of_the_weights_is_right_from_the_first_value_on(decay):
    """1 - b^t: near 0, as the sum of what was given; near 1, as 1 less what is left."""
    field, b = gradtx.fields.weights(), np.float32(decay)
    weights = field.init(jnp.zeros(3), field.start)
    for t in range(1, 301):
        weights = averages.weights_after(weights, b)
        total = averages.total(weights)
        assert total.dtype == np.float32
        np.testing.assert_allclose(total, -np.expm1(t * np.log(np.float64(b))), rtol=(4 + t / 10) * 2.0**-24)
    if decay == 0.9:
        assert total == 1


def test_a_state_of_zeros_is_one_before_the_first_value():
    zeros = {"given": jnp.zeros(()), "left": jnp.zeros(())}
    assert averages.total(zeros) == 0
    after = averages.weights_after(zeros, jnp.float32(0.75))
    assert (after["given"], after["left"], averages.total(after)) == (0.25, 0.75, 0.25)
    made = averages.debiasing(jnp.float32(0.75))(weights=after)
    assert (made["total"], made["correction"]) == (np.float32(7 / 16), 1 / np.float32(7 / 16))


def test_300_steps_of_adam_in_float32_are_closer_to_float64_than_optaxs():
    """float32 has no 0.999: optax corrects an average of 0.001 g² by what 1 - 0.999 is in float32."""
    rng = np.random.default_rng(0)
    gradients = (rng.normal(size=(300, 1000)) * np.exp(rng.normal(size=1000))).astype(np.float32)
    m = v = exact = np.zeros(1000)
    for t, g in enumerate(gradients.astype(np.float64), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        exact = -1e-3 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    def error(tx):
        last = lambda carry, g: tx.update(g, carry[1], jnp.zeros(1000))  # noqa: E731
        start = jnp.zeros(1000), tx.init(jnp.zeros(1000))
        updates = jax.lax.scan(lambda carry, g: (last(carry, g), None), start, gradients)[0][0]
        return np.abs(updates - exact).max() / np.abs(exact).max()

    with jax.numpy_dtype_promotion("standard"):
        theirs = error(optax.adam(1e-3))
    assert error(gradtx.adam(1e-3)) < 1.5e-6 < 5e-6 < theirs


def test_radam_in_float32_is_right_where_its_scaling_starts():
    """Optax's ρ, a small difference of large numbers, is off by 1% there."""
    gradients = np.random.default_rng(0).normal(size=(12, 50))

    def run(lib, dtype):
        tx = lib.radam(1e-3)
        state, found = tx.init(jnp.zeros(50, dtype)), []
        with jax.numpy_dtype_promotion("standard"):
            for g in gradients.astype(dtype):
                updates, state = tx.update(jnp.asarray(g), state)
                found.append(np.asarray(updates, np.float64))
        return np.array(found)

    with jax.enable_x64(True):
        exact = run(optax, np.float64)

    def error(lib):
        return (np.abs(run(lib, np.float32) - exact).max(1) / np.abs(exact).max(1)).max()

    assert error(gradtx) < 1e-4 < 5e-3 < error(optax)


def test_whole_floats_are_counts():
    """As programs compute them: `steps_per_epoch * 2.0`."""
    for count in (6.0, np.float64(6.0), np.float32(6.0)):
        assert gradtx.linear_schedule(1.0, 0.0, count) == gradtx.linear_schedule(1.0, 0.0, 6)
        assert gradtx.warmup_cosine_decay_schedule(0.0, 1.0, count, 2 * count).warmup_steps == 6
        assert type(gradtx.lookahead(gradtx.sgd(0.1), count).sync_period) is int


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("piecewise_constant_schedule", (1.0, {20.0: 0.5, 4: 0.25})),
        ("piecewise_constant_schedule", (1.0, {0: 0.5, 3: 0.5})),
        ("piecewise_interpolate_schedule", ("linear", 1.0, {20.0: 0.5, 4: 3.0})),
        ("piecewise_interpolate_schedule", ("cosine", 1.0, {6: 0.5, 2: 3.0})),
        ("warmup_cosine_decay_schedule", (0.0, 1.0, 3, 15, -0.1, 2.0)),
        ("warmup_cosine_decay_schedule", (0.5, 1.0, 4.0, 20.0, 0.2, 0.5)),
        ("exponential_decay", (1.0, 2.0 * 3, 0.5)),
    ],
)
def test_schedules_take_what_those_of_optax_take(name, arguments):
    counts = np.arange(25)
    with jax.numpy_dtype_promotion("standard"):
        expected = [float(getattr(optax, name)(*arguments)(count)) for count in counts]
    np.testing.assert_allclose(jax.vmap(getattr(gradtx, name)(*arguments))(counts), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("boundaries", [(5, 9), (5, 9, 15), (0, 9), (5, 5), (0, 0, 3), (5.0, 9.0), (0.0, 0.0)])
def test_pieces_may_be_empty_and_a_last_boundary_ends_nothing(boundaries):
    def joined(module):
        ends = ((1.0, 0.5), (0.25, 0.0), (0.7, 0.1))
        return module.join_schedules([module.linear_schedule(*pair, 6) for pair in ends], boundaries)

    counts = np.arange(25)
    with jax.numpy_dtype_promotion("standard"):
        expected = [float(joined(optax)(count)) for count in counts]
    np.testing.assert_allclose(jax.vmap(joined(gradtx))(counts), expected, rtol=1e-6, atol=1e-7)


def test_a_scale_at_0_holds_from_the_beginning():
    """optax's interpolation gives NaN there."""
    rate = gradtx.piecewise_interpolate_schedule("linear", 1.0, {0: 0.5, 2: 2.0})
    np.testing.assert_allclose(jax.vmap(rate)(np.arange(4)), [0.5, 0.75, 1.0, 1.0])
