"""Counts and lengths beyond int32: schedules of 10^10 updates, asked by hand and inside an optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.core.samples import PARAMS
from tests.records import SCHEDULES, schedules

INT32_MAX = np.iinfo(np.int32).max
LONG = 10**10
COUNTS = [0, 10**3, 10**9, INT32_MAX - 1, 3 * 10**9, LONG - 1, LONG, 10**12, 10**15]
CYCLE = {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": LONG // 10, "decay_steps": LONG, "end_value": 0.1}
CASES = [
    ("constant_schedule", (0.3,)),
    ("linear_schedule", (1.0, 0.1, LONG)),
    ("linear_schedule", (0.2, 1.0, LONG, 2 * 10**9)),
    ("linear_schedule", (0.2, 1.0, 1000, LONG)),
    ("polynomial_schedule", (1.0, 0.1, 2.0, 2 * 10**9, 10**9)),
    ("polynomial_schedule", (1.0, 0.1, 2.0, LONG, LONG)),
    ("exponential_decay", (1.0, LONG, 0.5)),
    ("exponential_decay", (1.0, 10**9, 0.5, LONG // 10, True)),
    ("exponential_decay", (1.0, LONG, 0.5, LONG, True, 0.2)),
    ("exponential_decay", (1.0, LONG, 1.5, 5, False, 2.0)),
    ("cosine_decay_schedule", (1000.0, LONG)),
    ("warmup_constant_schedule", (0.1, 1.0, LONG)),
    ("warmup_cosine_decay_schedule", (0.1, 1.0, LONG // 10, LONG)),
    ("warmup_cosine_decay_schedule", (0.1, 1.0, LONG, 2 * LONG, 0.05, 1.5)),
    ("warmup_exponential_decay_schedule", (0.1, 1.0, LONG // 4, LONG, 0.5)),
    ("warmup_exponential_decay_schedule", (0.1, 1.0, 2 * 10**9, LONG, 0.5, 2 * 10**9, True, 0.1)),
    ("warmup_stable_decay_schedule", (1.0, 2 * 10**9, 2 * 10**9, LONG, 0.2, 0.1)),
    ("inverse_sqrt_schedule", (1.0, LONG)),
    ("inverse_sqrt_schedule", (1.0, 1000)),
    ("inverse_time_schedule", (1.0, 1e-9)),
    ("piecewise_constant_schedule", (1.0, {2 * 10**9: 0.1, LONG: 0.5})),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {2 * 10**9: 0.1, LONG: 0.5})),
    ("piecewise_interpolate_schedule", ("cosine", 1.0, {LONG: 0.1, 2 * LONG: 0.5})),
    ("linear_onecycle_schedule", (LONG, 1.0, 0.3, 0.85, 10.0, 10.0)),
    ("cosine_onecycle_schedule", (LONG, 1.0, 0.3, 10.0, 10.0)),
    ("sgdr_schedule", ((CYCLE, CYCLE),)),
    ("join_schedules", (LONG,)),
]


def whole_floats(value):
    """The arguments as optax takes them: lengths and boundaries as floats."""
    if isinstance(value, dict):
        return {whole_floats(key): whole_floats(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(whole_floats(item) for item in value)
    return float(value) if type(value) is int else value


def build(module, name, arguments):
    if name == "join_schedules":
        up, down = module.linear_schedule(0.1, 1.0, 10**9), module.polynomial_schedule(1.0, 0.1, 1.0, arguments[0])
        return module.join_schedules([up, down, module.constant_schedule(0.1)], [10**9, 12 * 10**9])
    return getattr(module, name)(*arguments)


def exact(name, arguments):
    schedule = build(schedules, name, arguments)
    with np.errstate(over="ignore", under="ignore"):
        return np.array([schedule(np.float64(count)) for count in COUNTS], np.float64)


def test_every_schedule_is_asked_beyond_int32():
    assert {name for name, _ in CASES} == {scheduled.name for scheduled in SCHEDULES}


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: str(value)[:60])
def test_a_schedule_of_ten_billion_updates_is_its_formula(name, arguments):
    schedule = build(gradtx, name, arguments)
    expected = exact(name, arguments)
    values = [schedule(count) for count in COUNTS]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-38)
    np.testing.assert_allclose(schedule(np.array(COUNTS)), values, rtol=1e-6)
    again = build(gradtx, name, whole_floats(arguments))
    assert again == schedule or [again(count) for count in COUNTS] == values
    counters = np.array([count for count in COUNTS if count <= INT32_MAX], np.int32)
    compiled = jax.jit(jax.vmap(schedule))(counters)
    np.testing.assert_allclose(compiled, expected[: len(counters)], rtol=1e-5)
    if hasattr(optax, name) and "onecycle" not in name:  # optax's of one cycle is for int32 alone
        theirs = build(optax, name, whole_floats(arguments))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            others = [float(theirs(float(count))) for count in COUNTS]
        same = [not (True in arguments and count == LONG - 1) for count in COUNTS]  # it floors a float32
        np.testing.assert_allclose(np.array(values)[same], np.array(others)[same], rtol=1e-5, atol=1e-38)


def test_counts_in_float64(x64):
    for name, arguments in CASES:
        schedule, expected = build(gradtx, name, arguments), exact(name, arguments)
        np.testing.assert_allclose(schedule(np.array(COUNTS)), expected, rtol=1e-10)
        np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(np.array(COUNTS)), expected, rtol=1e-10)
        np.testing.assert_allclose(schedule(jnp.array(COUNTS)), expected, rtol=1e-10)


def test_the_cosine_of_ten_billion_updates():
    """optax's value."""
    for length in (LONG, 1e10, np.float64(1e10)):
        schedule = gradtx.cosine_decay_schedule(1000.0, length)
        np.testing.assert_allclose([schedule(10**9), jax.jit(schedule)(10**9)], 975.52826, rtol=1e-7)


def test_one_update_is_seen_at_a_count_that_float32_rounds():
    """float32 has one number in 1024 there."""
    steps = gradtx.piecewise_constant_schedule(1.0, {LONG + 1: 0.5})
    assert [float(steps(LONG + n)) for n in range(3)] == [1.0, 0.5, 0.5]
    line = gradtx.linear_schedule(0.0, 8.0, 8, LONG)
    assert [float(line(LONG + n)) for n in range(-1, 10)] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    joined = gradtx.join_schedules([gradtx.constant_schedule(9.0), line, line], [8, 2 * LONG])
    assert [float(joined(3 * LONG + n)) for n in range(3)] == [0, 1, 2]
    end = gradtx.polynomial_schedule(0.0, 1.0, 1.0, 10, INT32_MAX - 5)
    rest = jax.vmap(jax.grad(lambda start, count: end.replace(init_value=start)(count)), (None, 0))
    left = rest(0.0, np.arange(INT32_MAX - 6, INT32_MAX, dtype=np.int32))
    np.testing.assert_allclose(left, [1.0, 1.0, 0.9, 0.8, 0.7, 0.6], rtol=1e-6)


def test_a_boundary_beyond_int32_is_never_reached_by_a_counter():
    """The counter stays at the largest int32."""
    last = np.int32(INT32_MAX)
    for boundary in (INT32_MAX + 1, LONG):
        assert gradtx.piecewise_constant_schedule(1.0, {boundary: 0.5})(last) == 1
        assert gradtx.linear_schedule(1.0, 0.0, 1, boundary)(last) == 1
        flat = [gradtx.constant_schedule(value) for value in (1.0, 2.0)]
        assert gradtx.join_schedules(flat, [boundary])(last) == 1
    assert gradtx.piecewise_constant_schedule(1.0, {INT32_MAX: 0.5})(last) == 0.5


@pytest.mark.parametrize("count", [np.uint32(3 * 10**9), jnp.uint32(3 * 10**9), 3e9, np.array(3e9)], ids=repr)
def test_counts_of_other_types(count):
    np.testing.assert_allclose(gradtx.linear_schedule(0.0, 1.0, LONG)(count), 0.3, rtol=1e-6)


def test_lengths_and_counts_may_be_arrays_as_programs_compute_them():
    line = gradtx.linear_schedule(0.0, 1.0, 10)
    assert gradtx.linear_schedule(0.0, 1.0, jnp.array(10)) == gradtx.linear_schedule(0.0, 1.0, np.array(10.0)) == line
    assert line(jnp.float32(3.0)) == line(3)
    np.testing.assert_array_equal(line(jnp.linspace(0, 10, 6)), line(np.arange(0, 11, 2)))
    joined = gradtx.join_schedules([line, line], jnp.array([4]))
    assert joined(5) == line(1)
    cycle = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 5}
    assert gradtx.sgdr_schedule(cycle for _ in range(2)) == gradtx.sgdr_schedule([cycle] * 2)


def test_a_function_that_asks_for_the_value_of_its_count_is_told_how():
    for function in (lambda count: 0.1 if count < 5 else 0.01, lambda count: np.interp(count, [0, 1], [0, 1])):
        with pytest.raises(TypeError) as caught:
            jax.jit(gradtx.custom_schedule(function))(3)
        assert "The count is traced here: write jnp.where for if, and jnp for np." in caught.value.__notes__


def test_an_unsigned_count_under_jit_stays_at_the_largest_int32():
    line = gradtx.linear_schedule(0.0, 1.0, LONG)
    assert jax.jit(line)(jnp.uint32(3 * 10**9)) == line(INT32_MAX)


def test_a_function_of_the_count_gets_a_number_of_the_right_size():
    assert gradtx.custom_schedule(lambda count: jnp.minimum(count, 7.0))(LONG) == 7
    np.testing.assert_allclose(gradtx.custom_schedule(lambda count: jnp.sqrt(count))(LONG), 1e5, rtol=1e-6)
    np.testing.assert_allclose(gradtx.custom_schedule(lambda count: 1 / (1 + count))(LONG), 1e-10, rtol=1e-6)


def test_numbers_may_be_traced_at_a_count_beyond_int32():
    tx = gradtx.cosine_decay_schedule(gradtx.linear_schedule(1.0, 2.0, LONG), LONG)
    slopes = jax.jit(jax.grad(lambda tx: tx(5 * 10**9)))(tx)
    np.testing.assert_allclose(slopes.init_value.init_value, 0.25, rtol=1e-6)
    values = jax.vmap(lambda peak: gradtx.linear_schedule(peak, 0.0, LONG)(5 * 10**9))(jnp.arange(3.0))
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.sgd(gradtx.warmup_cosine_decay_schedule(0.5, 1.0, LONG, 10**12)),
        gradtx.lookahead(gradtx.sgd(0.5), LONG),
        gradtx.stochastic_weight_averaging(gradtx.sgd(0.5), LONG, LONG),
        gradtx.skip_nonfinite(gradtx.sgd(0.5), LONG),
        gradtx.loss_scaling(gradtx.sgd(0.5), 1.0, period=LONG),
        gradtx.scale(-0.5) >> gradtx.reduce_on_plateau(patience=LONG, cooldown=LONG, accumulation_size=LONG),
    ],
    ids=lambda tx: tx.name,
)
def test_a_length_beyond_int32_inside_an_optimizer(tx):
    extra = {"value": jnp.float32(1.0)} if "value" in tx.facts.extra else {}
    step, state, updates = jax.jit(tx.update), tx.init(PARAMS), None
    for _ in range(3):
        updates, state = step(PARAMS, state, PARAMS, **extra)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.5 * g, rtol=1e-6), updates, PARAMS)
