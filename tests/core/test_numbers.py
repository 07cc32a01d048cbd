"""How numbers arrive: always as the same number, whatever its type, and whether closed over, passed or mapped over."""

import contextlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gradtx
from gradtx import Rule, tree
from gradtx.core.annotations import Kind
from gradtx.core.schedule import Schedule
from tests.core.samples import PARAMS, every

INT32_MAX = np.iinfo(np.int32).max

# What becomes a Python float ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [1, 1.0, np.float64(1), np.float32(1), np.float16(1), np.int64(1), np.uint8(1), np.array(1.0), np.array(1)]
    + [ml_dtypes.bfloat16(1), np.array(1.0, ml_dtypes.bfloat16), np.ones(2, ml_dtypes.bfloat16)[0]],
    ids=lambda number: f"{type(number).__name__}-{getattr(number, 'dtype', '')}",
)
def test_python_and_numpy_scalars_become_floats(number):
    tx = gradtx.adam(number)
    assert type(tx.learning_rate) is float
    assert tx == gradtx.adam(1.0)
    assert hash(tx) == hash(gradtx.adam(1.0))
    assert type(tx.replace(learning_rate=number).learning_rate) is float


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8])
def test_jax_scalars_stay_as_they_came(dtype):
    rate = dtype(1)
    assert gradtx.adam(rate).learning_rate is rate


NOT_NUMBERS = {
    "None": (None, TypeError),
    "str": ("1e-3", TypeError),
    "word": ("fast", TypeError),
    "bytes": (b"1", TypeError),
    "bool": (True, TypeError),
    "numpy bool": (np.bool_(True), TypeError),
    "numpy bool array": (np.array(True), TypeError),
    "jax bool": (jnp.array(True), TypeError),
    "numpy str": (np.str_("0.1"), TypeError),
    "numpy str array": (np.array("0.1"), TypeError),
    "numpy object array": (np.array(None, dtype=object), TypeError),
    "complex": (1j, TypeError),
    "numpy complex": (np.complex64(1), TypeError),
    "numpy complex array": (np.array(1j), TypeError),
    "jax complex": (jnp.complex64(1), TypeError),
    "nan": (float("nan"), ValueError),
    "numpy nan": (np.float32("nan"), ValueError),
    "jax nan": (jnp.float32("nan"), ValueError),
    "inf": (float("inf"), ValueError),
    "jax inf": (jnp.float32("inf"), ValueError),
    "huge int": (10**400, (ValueError, TypeError)),
    "list": ([0.1], TypeError),
    "tuple": ((0.1,), TypeError),
    "dict": ({"a": 0.1}, TypeError),
    "vector": (jnp.ones(3), ValueError),
    "numpy vector": (np.ones(3), ValueError),
    "one in a vector": (jnp.ones(1), ValueError),
    "empty": (jnp.ones((0,)), ValueError),
    "factory": (gradtx.adam, TypeError),
    "schedule factory": (gradtx.linear_schedule, TypeError),
    "transform": (gradtx.scale(1.0), TypeError),
    "type": (float, TypeError),
    "object": (object(), TypeError),
    "ShapeDtypeStruct": (jax.ShapeDtypeStruct((), jnp.float32), TypeError),
    "key": (jax.random.key(0), TypeError),
}


@pytest.mark.parametrize(("value", "error"), NOT_NUMBERS.values(), ids=NOT_NUMBERS)
@pytest.mark.parametrize(
    "build",
    [gradtx.adam, lambda v: gradtx.adam(learning_rate=v), lambda v: gradtx.adam(1.0).replace(learning_rate=v)],
    ids=["call", "keyword", "replace"],
)
def test_what_is_no_number_is_refused_with_the_argument_named(build, value, error):
    with pytest.raises(error, match=r"^gradtx\.adam: learning_rate ") as caught:
        build(value)
    assert "allowed" in str(caught.value) or "call it" in str(caught.value)


@pytest.mark.parametrize("tracer_of", [jnp.complex64(1), jnp.bool_(True), jnp.ones(3)], ids=str)
def test_what_is_no_number_is_refused_under_jit_too(tracer_of):
    with pytest.raises((TypeError, ValueError), match=r"gradtx\.adam: learning_rate "):
        jax.jit(lambda value: gradtx.adam(value))(tracer_of)


RANGES = [
    (gradtx.Unit, [0, 0.5], [-1e-9, 1, 1.5]),
    (gradtx.Fraction, [0, 1], [-1e-9, 1.001]),
    (gradtx.NonNegative, [0, 1e30], [-1e-9]),
    (gradtx.Positive, [1e-30], [0, -1.0]),
    (gradtx.Finite, [-1e30, 0, 1e30], []),
    (gradtx.Hyper, [-1e30, 0, 1e30], []),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), RANGES)
@pytest.mark.parametrize("as_type", [float, np.float64, np.array, jnp.float32], ids=["float", "numpy", "0-d", "jax"])
def test_ranges_are_checked_wherever_the_value_is_concrete(annotation, good, bad, as_type):
    @gradtx.transform
    def ranged(x: annotation) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    config = ranged(good[-1]).to_config()
    for value in good:
        assert float(ranged(as_type(value)).x) == float(as_type(value))
    for value in [*bad, float("nan"), float("inf"), -float("inf")]:
        with pytest.raises(ValueError, match=r"gradtx\.ranged: x is .*; allowed: "):
            ranged(as_type(value))
        with pytest.raises(ValueError, match=r"gradtx\.ranged: x is .*; allowed: "):
            ranged(good[-1]).replace(x=as_type(value))
        with pytest.raises(ValueError, match=r"gradtx\.ranged: x is .*; allowed: "):
            gradtx.from_config({"name": "ranged", "arguments": config["arguments"] | {"x": float(value)}})


def test_a_range_is_not_asked_of_a_traced_number():
    jax.jit(lambda b1: gradtx.adam(1e-3, b1=b1).init(PARAMS))(1.5)
    jax.vmap(lambda b1: gradtx.adam(1e-3, b1=b1).init(PARAMS))(jnp.array([0.5, 1.5]))


# In the dtype of the tree ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1 - 1e-9, np.float64(1 - 1e-9)])
def test_a_decay_that_rounds_to_one_is_refused(decay):
    tx = gradtx.adam(1e-3, b2=decay)
    words = r"gradtx\.scale_by_rms: decay is 0\.999999999, which rounds to 1\.0 in float32; allowed: in \[0, 1\)"
    with pytest.raises(ValueError, match=words):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match=words):
        tx.update(PARAMS, gradtx.adam(1e-3).init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=words):
        jax.jit(tx.update)(PARAMS, gradtx.adam(1e-3).init(PARAMS), PARAMS)


@pytest.mark.usefixtures("x64")
def test_a_decay_that_rounds_to_one_is_welcome_in_float64():
    params = {"w": jnp.ones(2)}
    tx = gradtx.adam(1e-3, b2=1 - 1e-9)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -1e-3, rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_an_array_decay_that_rounds_to_one_is_refused():
    params = {"w": jnp.ones(2, jnp.float32)}
    tx = gradtx.adam(1e-3, b2=jnp.float64(1 - 1e-9))
    with pytest.raises(ValueError, match="rounds to 1"):
        tx.init(params)


@pytest.mark.usefixtures("x64")
def test_a_decay_that_rounds_to_one_at_a_float32_leaf_beside_a_float64_leaf_does_no_harm():
    params = {"narrow": jnp.ones(2, jnp.float32), "wide": jnp.ones(2)}
    tx = gradtx.adam(1e-3, b2=1 - 1e-9)
    updates = None
    with contextlib.suppress(ValueError):  # refusing it is as good
        updates, _ = tx.update(params, tx.init(params), params)
    if updates is not None:
        np.testing.assert_allclose(updates["narrow"], -1e-3, rtol=1e-5)


def first_step(params, **changes):
    tx = gradtx.scale_by_adam(0.9, 0.999, 0.0).replace(**changes)
    return tx.update(params, tx.init(params), params)[0]


def test_adams_first_float32_step_is_the_sign_to_the_last_bit_or_two():
    updates = first_step({"w": jnp.array([3.0, -0.7])})
    np.testing.assert_array_max_ulp(np.asarray(updates["w"]), np.float32([1, -1]), maxulp=2)


@pytest.mark.usefixtures("x64")
def test_adams_first_step_at_a_float32_leaf_is_as_good_beside_a_float64_leaf():
    updates = first_step({"narrow": jnp.array([3.0, -0.7], jnp.float32), "wide": jnp.array([3.0, -0.7])})
    np.testing.assert_array_max_ulp(np.asarray(updates["wide"]), np.float64([1, -1]), maxulp=2)
    np.testing.assert_array_max_ulp(np.asarray(updates["narrow"]), np.float32([1, -1]), maxulp=2)


@pytest.mark.parametrize("number", [0.9, jnp.float32(0.9), jnp.bfloat16(0.9), jnp.float16(0.9)], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_number_never_promotes_or_lowers_updates_or_state(number, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    tx = gradtx.adamw(number, b1=number, eps=number, weight_decay=number)
    state = tx.init(params)
    updates, new_state = tx.update(params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True):
        assert old.dtype == new.dtype
        assert old.dtype in (jnp.float32, jnp.int32)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("number", [0.9, np.float32(0.9), 1], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_with_x64_the_leaves_decide(number, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    tx = gradtx.adamw(number, eps=number, weight_decay=number)
    state = tx.init(params)
    updates, new_state = tx.update(params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(new_state)} == {jnp.dtype(dtype), jnp.dtype(jnp.int32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(dtype), jnp.dtype(jnp.int32)}


@pytest.mark.parametrize(
    "params",
    [{"w": np.ones(3)}, np.float64(1.0), {"w": np.ones(3, np.float32)}, 1.0, [1.0, np.ones(2)]],
    ids=["float64 array", "float64 scalar", "float32 array", "float", "mixed"],
)
def test_numpy_leaves_work_without_x64(params):
    tx = gradtx.clip_by_global_norm(10.0) >> gradtx.adamw(1e-3)
    state = tx.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    updates, state = tx.update(params, state, params)
    assert jax.tree.structure(gradtx.apply_updates(params, updates)) == jax.tree.structure(params)
    tx.update(params, state, params)


def test_int_arrays_count_as_numbers():
    updates, _ = gradtx.scale(jnp.int32(2)).update(PARAMS, gradtx.scale(jnp.int32(2)).init(PARAMS))
    assert updates["w"].tolist() == [2.0] * 3
    assert updates["w"].dtype == jnp.float32


def test_bodies_may_compute_with_their_numbers():
    @gradtx.transform
    def computes(decay: gradtx.Unit = 0.9) -> Rule:
        weight = 1 - decay  # in the compute dtype, like everything else

        def update(updates, state):
            assert weight.dtype == decay.dtype
            return tree.map(lambda u, weight: weight * u, updates, weight=weight), state

        return Rule(update=update)

    expected = np.float32(1) - np.float32(0.9)
    for decay in (0.9, jnp.float32(0.9), gradtx.constant_schedule(0.9), lambda count: 0.9):
        tx = computes(decay)
        updates, _ = tx.update(PARAMS, tx.init(PARAMS))
        assert updates["w"][0] == expected


def test_bodies_may_ask_for_the_dtype_of_their_numbers():
    @gradtx.transform
    def asks(decay: gradtx.Unit = 0.9) -> Rule:
        one = jnp.ones((), decay.dtype)

        def update(updates, state):
            return tree.map(lambda u, k: k * u, updates, k=one - decay), state

        return Rule(update=update)

    tx = asks(0.25)
    assert tx.update(PARAMS, tx.init(PARAMS))[0]["w"].tolist() == [0.75] * 3


# Time -----------------------------------------------------------------------------------------------------------------


def hyperparameters(tx):
    return [p.name for p in tx._parameters if p.kind is Kind.HYPER and isinstance(tx._arguments[p.name], float)]


@every
def test_every_hyperparameter_can_be_a_schedule(tx):
    grads = {"w": jnp.array([0.3, -2.0, 0.1]), "b": jnp.float32(1.5)}
    expected = tx.update(grads, tx.init(PARAMS), PARAMS)
    for name in hyperparameters(tx):
        value = tx._arguments[name]
        if name == "dampening" and tx.arguments.get("momentum", tx.arguments.get("form") == "sum") in (None, False):
            continue  # it would do nothing there, and is refused
        scheduled = tx.replace(**{name: gradtx.constant_schedule(value)})
        assert isinstance(getattr(scheduled, name), Schedule)
        state = scheduled.init(PARAMS)
        assert gradtx.tree_equal(state, tx.init(PARAMS)), name
        assert gradtx.tree_equal(scheduled.update(grads, state, PARAMS), expected), name
        by_function = tx.replace(**{name: lambda count, value=value: value})
        assert gradtx.tree_equal(by_function.update(grads, state, PARAMS), expected), name


def test_a_schedule_is_asked_with_the_number_of_updates_already_made():
    seen = []

    def rate(count):
        jax.debug.callback(lambda count: seen.append(int(count)), count)
        return 0.5

    tx = gradtx.adam(1.0, b1=rate)
    state = tx.init(PARAMS)
    seen.clear()
    for _ in range(3):
        _, state = tx.update(PARAMS, state, PARAMS)
    jax.effects_barrier()
    assert seen == [0, 1, 2]
    assert gradtx.step_count(state) == 3


def test_a_schedule_reaches_authors_as_a_number_of_the_compute_dtype():
    seen = []

    @gradtx.transform
    def sees(rate: gradtx.Unit) -> Rule:
        def update(updates, state):
            seen.append((jnp.shape(rate), rate.dtype))
            return updates, state

        return Rule(update=update)

    halves = jax.tree.map(jnp.bfloat16, PARAMS)
    for rate in (
        0.5,
        jnp.float16(0.5),
        gradtx.constant_schedule(0.5),
        lambda count: 0.5,
        lambda count: np.float64(0.5),
    ):
        sees(rate).update(halves, sees(rate).init(halves))
    assert set(seen) == {((), np.dtype(np.float32))}


@pytest.mark.parametrize("value", [jnp.ones(3), jnp.ones(1), np.ones((3,)), [0.1, 0.2, 0.3]], ids=repr)
def test_a_schedule_that_gives_no_scalar_is_refused(value):
    tx = gradtx.scale(lambda count: value)
    with pytest.raises((TypeError, ValueError), match=r"scalar|shape"):
        tx.update(PARAMS, {"scale": {"count": jnp.int32(0)}})


@pytest.mark.parametrize("value", [None, "0.1", 1j, True], ids=repr)
def test_a_schedule_that_gives_no_number_is_refused(value):
    tx = gradtx.scale(lambda count: value)
    with pytest.raises((TypeError, ValueError), match=r"custom_schedule|scale") as caught:
        tx.update(PARAMS, {"scale": {"count": jnp.int32(0)}})
    assert "custom_schedule" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


@pytest.mark.parametrize("count", [1.5, "1", None, True], ids=repr)
def test_a_schedule_wants_an_integer_count(count):
    with pytest.raises(TypeError, match=r"gradtx\.linear_schedule: the count is .*; allowed: an integer"):
        gradtx.linear_schedule(1.0, 0.0, 10)(count)


def test_counters_saturate():
    tx = gradtx.clip(10.0) >> gradtx.adam(gradtx.linear_schedule(1.0, 0.5, 10))
    state = tx.init(PARAMS)
    for name in state:
        state[name]["count"] = jnp.int32(INT32_MAX - 1)
    for _ in range(3):
        updates, state = tx.update(PARAMS, state, PARAMS)
        assert {int(state[name]["count"]) for name in state} == {INT32_MAX}
        assert bool(jnp.all(jnp.isfinite(updates["w"])))
    assert gradtx.step_count(state) == INT32_MAX


def test_count_is_one_at_the_first_update_and_saturates_with_the_counter():
    seen = []

    @gradtx.transform
    def counts(rate: gradtx.Unit = 0.5) -> Rule:
        def update(updates, state, *, count):
            seen.append(int(count))
            assert count.dtype == jnp.int32
            return updates, state

        return Rule(update=update)

    state = counts().init(PARAMS)
    for _ in range(2):
        _, state = counts().update(PARAMS, state)
    counts().update(PARAMS, {"counts": {"count": jnp.int32(INT32_MAX)}})
    assert seen == [1, 2, INT32_MAX]


def test_a_constant_and_a_scheduled_optimizer_take_each_others_state():
    constant = gradtx.adam(1e-3)
    scheduled = gradtx.adam(gradtx.linear_schedule(1e-3, 0.0, 10), b1=gradtx.linear_schedule(0.9, 0.5, 10))
    state = scheduled.update(PARAMS, constant.init(PARAMS), PARAMS)[1]
    constant.update(PARAMS, state, PARAMS)
