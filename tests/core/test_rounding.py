"""Stochastic rounding: one of the two neighbours, right in the mean; and the bits that choose it."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradtx import numerics
from tests.core.samples import needs_float16

KEY = jax.random.key(5)
DRAWS = 2**17
BF16 = ml_dtypes.bfloat16
WAYS = [(np.float32, BF16), (np.float64, np.float32), (np.float64, BF16)]
LOW = pytest.param(np.float32, np.float16, marks=needs_float16)
ways = pytest.mark.parametrize(("wide", "narrow"), [*WAYS, LOW], ids=["32-bf16", "64-32", "64-bf16", "32-16"])
ROUND = jax.jit(numerics.round_stochastically, static_argnums=1)


def integers(values):
    """The bits of an array of low precision: neighbours of one sign are one apart."""
    values = np.asarray(values)
    return values.view({2: np.uint16, 4: np.uint32}[values.dtype.itemsize]).astype(np.int64)


def rounded(x, narrow, key=KEY):
    return np.asarray(ROUND(x, np.dtype(narrow), key))


def assert_right_in_the_mean(draws, low, high, exact):
    """Within 4.5 standard errors: the keys are fixed."""
    share = (exact - low) / (high - low)
    error = np.sqrt(share * (1 - share) / draws.size) * (high - low)
    assert abs(draws.astype(np.float64).mean() - exact) <= 4.5 * error


@ways
def test_draws_are_the_two_neighbours_and_right_in_the_mean(x64, wide, narrow):
    for value in (1.0003, -1.0003, 0.30001, -3.1e-5, 777.7, 1e-7, -65000.3):
        x = np.full(DRAWS, value, wide)
        draws, exact = rounded(x, narrow), float(x[0])
        values = np.unique(draws.astype(np.float64))
        if float(x[0].astype(narrow)) == exact:
            assert list(values) == [exact]
            continue
        assert len(values) == 2
        assert values[0] < exact < values[1]
        assert np.ptp(np.unique(integers(draws))) == 1  # nothing between them
        assert_right_in_the_mean(draws, *values, exact)


@needs_float16
def test_subnormals_of_both_signs_are_rounded_to_their_neighbours():
    for value in np.float32([3.3e-8, -3.3e-8, 1.01e-7, 5e-6]):  # float16's subnormals are ordinary float32 numbers
        draws = rounded(np.full(DRAWS, value), np.float16).astype(np.float64)
        low, high = np.unique(draws)
        assert np.isclose(high - low, 2.0**-24)
        assert_right_in_the_mean(draws, low, high, np.float64(value))
    # bfloat16's subnormals are float32's, which are made by bits, not by arithmetic: a processor may flush those.
    for sign in (0, 0x8000):
        x = np.full(DRAWS, 0x12345 | sign << 16, np.uint32).view(np.float32)
        draws = integers(rounded(jnp.asarray(x), BF16))
        assert set(draws) == {sign + 1, sign + 2}
        assert_right_in_the_mean(draws, sign + 1, sign + 2, sign + 1 + 0x2345 / 0x10000)


@ways
def test_what_the_dtype_has_is_kept_with_its_sign(x64, wide, narrow):
    """Every finite number of 16 bits (but bfloat16's subnormals, which a processor may flush in float32)."""
    if np.dtype(narrow).itemsize == 4:
        kept = np.array([0.0, -0.0, 1.5, -1e-30, np.finfo(np.float32).max], np.float32)
    else:
        bits, digits = np.arange(2**16, dtype=np.uint16), jnp.finfo(narrow).nmant
        exponent = (bits & 0x7FFF) >> digits
        normal = (exponent > 0) | ((bits & 0x7FFF) == 0)
        kept = bits[(exponent < (0x7FFF >> digits)) & (normal | (narrow is np.float16))].view(narrow)
    assert (integers(rounded(kept.astype(wide), narrow)) == integers(kept)).all()


@needs_float16
def test_infinity_and_nan_are_kept_and_what_is_too_large_is_rounded_to_the_nearest():
    x = np.tile(np.float32([np.inf, -np.inf, np.nan, 65519.0, 65521.0, -1e30]), (50, 1))
    expected = np.tile([np.inf, -np.inf, np.nan, 65504, np.inf, -np.inf], (50, 1))
    np.testing.assert_array_equal(rounded(x, np.float16).astype(np.float64), expected)
    largest, most = np.finfo(np.float32).max, float(jnp.finfo(BF16).max)
    # Above bfloat16's largest number, 3.39e38, and nearer to it than to what would be next; and not nearer.
    ends = np.tile(np.float32([np.inf, -np.inf, 3.392e38, -3.392e38, largest]), (50, 1))
    expected = np.tile([np.inf, -np.inf, most, -most, np.inf], (50, 1))
    np.testing.assert_array_equal(rounded(ends, BF16).astype(np.float64), expected)
    nans = np.array([0x7F800001, 0x7F80FFFF, 0x7FC00000, 0x7FFFFFFF], np.uint32)
    for sign in (0, 0x80000000):
        x = np.tile(nans | np.uint32(sign), 50).view(np.float32)
        assert np.isnan(rounded(jnp.asarray(x), BF16).astype(np.float64)).all()


RARE = [(BF16, 16, 2**22), pytest.param(np.float16, 13, 2**19, marks=needs_float16)]


@pytest.mark.parametrize(("narrow", "digits", "draws"), RARE, ids=["bf16", "16"])
def test_the_farther_neighbour_is_taken_as_rarely_as_the_last_digit_says(narrow, digits, draws):
    """One float32 away from a number that the dtype has, above and below: 64 times among this many elements."""
    one = np.float32(1).view(np.uint32)
    for bits, near in ((one + 1, 1.0), (one + 2**digits - 1, 1 + 2.0 ** (digits - 23))):
        x = np.full(draws, np.uint32(bits).view(np.float32))
        far = (rounded(x, narrow).astype(np.float32) != np.float32(near)).sum()
        assert abs(far - 64) <= 4.5 * 8


def test_equal_and_wider_dtypes_are_plain_casts_and_the_derivative_is_that_of_the_mean(x64):
    x = np.linspace(-1, 1, 7, dtype=np.float32)
    for given in (x, x.astype(BF16)):
        assert rounded(given, np.float32).tobytes() == given.astype(np.float32).tobytes()
    for wide, narrow in WAYS:
        x = np.linspace(-1, 1, 7, dtype=wide)
        _, slope = jax.jvp(lambda x, n=narrow: ROUND(x, np.dtype(n), KEY), (x,), (x,))
        assert slope.dtype == narrow
        np.testing.assert_array_equal(slope, x.astype(narrow))


def test_a_batch_of_keys_rounds_each_as_alone():
    keys, x = jax.random.split(KEY, 3), np.linspace(0.1, 2, 60, dtype=np.float32).reshape(3, 20)
    together = jax.vmap(lambda x, key: ROUND(x, np.dtype(BF16), key))(x, keys)
    alone = [ROUND(row, np.dtype(BF16), key) for row, key in zip(x, keys, strict=True)]
    assert np.asarray(together).tobytes() == np.stack(alone).tobytes()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@needs_float16
def test_devices_round_their_part_alike_and_do_not_talk(kind):
    x = np.linspace(0.1, 2, 64 * 24, dtype=np.float32).reshape(64, 24)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    for spec, narrow in [(PartitionSpec("a", "b"), BF16), (PartitionSpec(("a", "b")), np.float16)]:
        here = jax.device_put(x, NamedSharding(mesh, spec))
        compiled = ROUND.lower(here, np.dtype(narrow), KEY).compile()
        found = compiled(here, KEY)
        assert found.sharding.is_equivalent_to(here.sharding, 2)
        # Equal bits: integers, and for float16 one subtraction and one division of exact numbers.
        assert np.asarray(found).tobytes() == rounded(x, narrow).tobytes()
        assert not {word for word in ("all-", "collective", "reduce-scatter") if word in compiled.as_text()}


# The bits -------------------------------------------------------------------------------------------------------------

MANY = 2**16
SIGMAS = 5  # all the bounds below are this many standard errors; their keys are fixed
RAW = [(0, 0), (0, 1), (1, 0), (0, 5), (2**32 - 1, 2**32 - 1), (0x12345678, 0x9ABCDEF0)]


def key_of(words):
    return jax.random.wrap_key_data(jnp.array(words, np.uint32))


@functools.partial(jax.jit, static_argnums=1)
def bits_of_keys(keys, shape):
    return jax.vmap(lambda key: numerics.random_bits(key, shape))(keys)


def bits(keys, *shape):
    return np.asarray(bits_of_keys(keys, shape))


def step_keys(steps, leaves=1):
    """The keys of a number of updates: (steps, leaves)."""

    def step(bits, _):
        following, keys = numerics.leaf_keys(bits, list(range(leaves)))
        return following, jnp.stack(list(keys))

    return jax.lax.scan(step, jax.random.key_data(KEY), length=steps)[1]


def flips(a, b):
    """How often each of the 32 bits differs, in standard errors from one half."""
    rates = np.unpackbits((a ^ b).view(np.uint8)).reshape(-1, 32).mean(0)
    return np.abs(rates - 0.5).max() * 2 * np.sqrt(a.size)


def correlation(a, b):
    """Of two arrays of bits as numbers, in standard errors from zero."""
    return abs(np.corrcoef(a.ravel() / 2.0**32, b.ravel() / 2.0**32)[0, 1]) * np.sqrt(a.size)


def assert_unrelated(draws):
    for i in range(len(draws)):
        for j in range(i):
            assert correlation(draws[i], draws[j]) <= SIGMAS
            assert flips(draws[i], draws[j]) <= SIGMAS


def mixed(x):
    """lowbias32, in Python's integers."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4, 5), (3, 0, 2)])
def test_the_bits_are_the_hash_of_the_place_in_row_major_order(shape):
    found = bits(key_of(RAW), *shape)
    assert found.dtype == np.uint32
    for (first, second), one in zip(RAW, found, strict=True):
        expected = [mixed(mixed(place ^ first) ^ second) for place in range(int(np.prod(shape)))]
        np.testing.assert_array_equal(one, np.array(expected, np.uint32).reshape(shape))


def test_places_in_a_leaf_of_more_than_two_to_the_32_elements_go_on_modulo_that():
    """Seen in the program, without such a leaf: the strides are 3 * 2**33, 3 * 2**31, 2**31 and 1."""
    program = str(jax.make_jaxpr(lambda: numerics.random_bits(KEY, (2, 4, 3, 2**31)))())
    strides = [line.split()[-1] for line in program.splitlines() if "= mul" in line]
    assert strides[:3] == ["0:u32[]", "2147483648:u32[]", "2147483648:u32[]"]


def test_steps_and_leaves_are_not_correlated():
    keys = step_keys(3, 2)
    assert len({tuple(words) for words in np.asarray(jax.random.key_data(keys)).reshape(6, 2).tolist()}) == 6
    assert_unrelated(bits(keys.ravel(), MANY))


@pytest.mark.thorough
def test_each_bit_of_the_key_and_of_the_place_flips_half_of_the_bits():
    """A bit of the first word is one of the place too, `hash(place ^ word)`: of such a pair of places one is taken."""
    places = np.arange(MANY // 2)
    for words in [*RAW[1:], tuple(np.asarray(jax.random.key_data(step_keys(1)[0, 0])).tolist())]:
        number = words[0] << 32 | words[1]
        others = [((number ^ 1 << b) >> 32, (number ^ 1 << b) % 2**32) for b in range(64)]
        draws, *changed = bits(key_of([words, *others]), len(places))
        for b, other in enumerate(changed):
            once = places >> b - 32 & 1 == 0 if b >= 32 else places >= 0
            assert_unrelated([draws[once], other[once]])
