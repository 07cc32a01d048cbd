"""Stochastic rounding: one of the two neighbours, right in the mean."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradtx import numerics

KEY = jax.random.key(5)
DRAWS = 100_000
WAYS = {
    "float32 to bfloat16": (np.float32, ml_dtypes.bfloat16),
    "float32 to float16": (np.float32, np.float16),
    "float64 to float32": (np.float64, np.float32),
    "float64 to bfloat16": (np.float64, ml_dtypes.bfloat16),
    "float64 to float16": (np.float64, np.float16),
}
ways = pytest.mark.parametrize(("wide", "narrow"), WAYS.values(), ids=WAYS)


def integers(values, narrow):
    """The bits of an array of low precision: neighbours of one sign are one apart."""
    return np.asarray(values).view({2: np.uint16, 4: np.uint32}[np.dtype(narrow).itemsize]).astype(np.int64)


def rounded(x, narrow, key=KEY):
    return np.asarray(jax.jit(numerics.round_stochastically, static_argnums=1)(x, np.dtype(narrow), key))


@ways
@pytest.mark.parametrize("value", [1.0003, -1.0003, 0.30001, -3.1e-5, 777.7, 1e-7, -65000.3])
def test_draws_are_the_two_neighbours_and_right_in_the_mean(x64, wide, narrow, value):
    x = jnp.full(DRAWS, value, wide)
    exact = np.float64(np.asarray(x)[0])
    draws = rounded(x, narrow)
    values = np.unique(draws.astype(np.float64))
    nearest = np.asarray(exact).astype(narrow)
    if float(nearest) == exact:
        assert list(values) == [exact]
        return
    assert len(values) == 2
    assert values[0] < exact < values[1]
    assert np.ptp(np.unique(integers(draws, narrow))) == 1  # nothing between them
    share = (exact - values[0]) / (values[1] - values[0])
    error = np.sqrt(share * (1 - share) / DRAWS) * (values[1] - values[0])
    assert abs(draws.astype(np.float64).mean() - exact) <= 4.5 * error


def test_subnormals_of_both_signs_are_rounded_to_their_neighbours(x64):
    # float16: its subnormals are ordinary float32 numbers.
    for value in (3.3e-8, -3.3e-8, 1.01e-7, 5e-6):
        draws = rounded(jnp.full(DRAWS, value, np.float32), np.float16).astype(np.float64)
        values = np.unique(draws)
        assert len(values) == 2
        assert np.isclose(np.ptp(values), 2.0**-24)
        share = (np.float32(value) - values[0]) / 2.0**-24
        assert abs(draws.mean() - np.float32(value)) <= 4.5 * np.sqrt(share * (1 - share) / DRAWS) * 2.0**-24
    # bfloat16: its subnormals are float32's, which are made by bits, not by arithmetic: a processor may flush those.
    bits = np.uint32(0x00012345)
    for sign in (np.uint32(0), np.uint32(0x80000000)):
        x = jnp.asarray(np.full(DRAWS, bits | sign).view(np.float32))
        found, counts = np.unique(integers(rounded(x, ml_dtypes.bfloat16), np.float16), return_counts=True)
        assert list(found) == [(int(sign) >> 16) + 1, (int(sign) >> 16) + 2]
        share = 0x2345 / 0x10000
        assert abs(counts[1] / DRAWS - share) <= 4.5 * np.sqrt(share * (1 - share) / DRAWS)


@ways
def test_what_the_dtype_has_is_kept_with_its_sign(x64, wide, narrow):
    """Every finite number of 16 bits (but bfloat16's subnormals, which a processor may flush in float32)."""
    if np.dtype(narrow).itemsize == 4:
        kept = np.array([0.0, -0.0, 1.5, -1e-30, np.finfo(np.float32).max], np.float32)
    else:
        bits = np.arange(2**16, dtype=np.uint16)
        digits = jnp.finfo(narrow).nmant
        exponent = (bits & 0x7FFF) >> digits
        finite = exponent < (0x7FFF >> digits)
        normal = (exponent > 0) | ((bits & 0x7FFF) == 0)
        kept = bits[finite & (normal | (narrow is np.float16))].view(narrow)
    result = rounded(jnp.asarray(kept.astype(wide)), narrow)
    assert (integers(result, narrow) == integers(kept, narrow)).all()


def test_infinity_and_nan_are_kept_and_what_is_too_large_is_rounded_to_the_nearest():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 65519.0, 65521.0, -1e30], jnp.float32)
    for seed in range(20):
        result = rounded(x, np.float16, jax.random.key(seed))
        np.testing.assert_array_equal(result.astype(np.float64), [np.inf, -np.inf, np.nan, 65504, np.inf, -np.inf])
    largest = np.float32(3.392e38)  # above bfloat16's largest, 3.39e38, and nearer to it than to what would be next
    assert set(rounded(jnp.full(1000, largest), ml_dtypes.bfloat16).astype(np.float64)) == {
        float(jnp.finfo(jnp.bfloat16).max)
    }


def test_every_nan_stays_nan_and_infinity_keeps_its_sign_in_bfloat16():
    bits = np.array([0x7F800001, 0x7F80FFFF, 0x7FC00000, 0x7FFFFFFF], np.uint32)
    for sign in (np.uint32(0), np.uint32(0x80000000)):
        x = jnp.asarray(np.tile(bits | sign, 100).view(np.float32))
        assert np.isnan(rounded(x, ml_dtypes.bfloat16).astype(np.float64)).all()
    ends = rounded(jnp.tile(jnp.array([jnp.inf, -jnp.inf]), 100), ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(ends, np.tile([np.inf, -np.inf], 100))


@pytest.mark.parametrize(
    ("narrow", "digits", "draws"), [(ml_dtypes.bfloat16, 16, 2**22), (np.float16, 13, 2**19)], ids=["bf16", "f16"]
)
def test_the_farther_neighbour_is_taken_as_rarely_as_the_last_digit_says(narrow, digits, draws):
    """One float32 away from a number that the dtype has: 64 times among so many, above and below."""
    one = np.float32(1).view(np.uint32)
    for bits, near in ((one + 1, 1.0), (one + 2**digits - 1, 1 + 2.0 ** (digits - 23))):
        x = jnp.full(draws, np.uint32(bits).view(np.float32))
        far = (rounded(x, narrow).astype(np.float32) != np.float32(near)).sum()
        assert abs(far - 64) <= 4.5 * 8


def test_equal_and_wider_dtypes_are_plain_casts():
    x = jnp.linspace(-1, 1, 7)
    assert rounded(x, np.float32).tobytes() == np.asarray(x).tobytes()
    low = x.astype(jnp.bfloat16)
    assert rounded(low, np.float32).tobytes() == np.asarray(low.astype(jnp.float32)).tobytes()


def test_its_derivative_is_that_of_the_mean(x64):
    for wide, narrow in WAYS.values():
        x = jnp.linspace(-1, 1, 7, dtype=wide)
        _, slope = jax.jvp(lambda x, narrow=narrow: numerics.round_stochastically(x, np.dtype(narrow), KEY), (x,), (x,))
        np.testing.assert_array_equal(slope, x.astype(narrow))
        assert slope.dtype == narrow


# The bits -------------------------------------------------------------------------------------------------------------

MANY = 2**16
SIGMAS = 5  # all the bounds below are so many standard errors; their keys are fixed
RAW = [(0, 0), (0, 1), (1, 0), (0, 5), (2**32 - 1, 2**32 - 1), (0x12345678, 0x9ABCDEF0)]


def key_of(words):
    return jax.random.wrap_key_data(jnp.array(words, np.uint32))


@functools.partial(jax.jit, static_argnums=1)
def bits_of_keys(keys, shape):
    return jax.vmap(lambda key: numerics.random_bits(key, shape))(keys)


def bits(keys, *shape):
    return np.asarray(bits_of_keys(keys, shape))


def step_keys(steps, leaves=1):
    """The keys of so many updates: (steps, leaves)."""

    def step(bits, _):
        following, keys = numerics.leaf_keys(bits, list(range(leaves)))
        return following, jnp.stack(list(keys))

    return jax.lax.scan(step, jax.random.key_data(KEY), length=steps)[1]


def flips(a, b):
    """How often each of the 32 bits differs, in standard errors from one half."""
    rates = np.unpackbits((a ^ b).view(np.uint8)).reshape(-1, 32).mean(0)
    return np.abs(rates - 0.5) * 2 * np.sqrt(a.size)


def correlation(a, b):
    """Of two arrays of bits as numbers, in standard errors from zero."""
    return abs(np.corrcoef(a.ravel() / 2.0**32, b.ravel() / 2.0**32)[0, 1]) * np.sqrt(a.size)


def mixed(x):
    """lowbias32, in Python's integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (3, 1, 4), (2, 3, 4, 5), (0,), (3, 0, 2)])
def test_the_bits_are_the_hash_of_the_place_in_row_major_order(shape):
    for first, second in RAW:
        expected = [mixed(mixed(place ^ first) ^ second) for place in range(int(np.prod(shape)))]
        draw = functools.partial(numerics.random_bits, key_of((first, second)))
        for found in (draw(shape), jax.jit(draw, static_argnums=0)(shape)):
            assert found.dtype == np.uint32
            np.testing.assert_array_equal(found, np.array(expected, np.uint32).reshape(shape))


def test_places_in_a_leaf_of_more_than_two_to_the_32_elements_go_on_modulo_that():
    """Seen in the program, without such a leaf: the strides are 3 * 2**33, 3 * 2**31, 2**31 and 1."""
    program = str(jax.make_jaxpr(lambda: numerics.random_bits(KEY, (2, 4, 3, 2**31)))())
    strides = [line.split()[-1] for line in program.splitlines() if "= mul" in line]
    assert strides[:3] == ["0:u32[]", "2147483648:u32[]", "2147483648:u32[]"]


def test_each_byte_and_each_bit_is_uniform():
    keys = [*bits(key_of(RAW), MANY), *bits(step_keys(6)[:, 0], MANY)]
    for draws in keys:
        for byte in draws.view(np.uint8).reshape(-1, 4).T:
            counts = np.bincount(byte, minlength=256)
            chi_square = ((counts - MANY / 256) ** 2).sum() / (MANY / 256)
            assert abs(chi_square - 255) <= SIGMAS * np.sqrt(2 * 255)
        assert flips(draws, np.zeros_like(draws)).max() <= SIGMAS


def test_neighbours_and_rows_are_not_correlated():
    for draws in bits(key_of(RAW), 256, MANY // 256):
        flat = draws.ravel()
        for lag in (1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 255, 256, 257, 512, 4096, MANY // 2):
            assert correlation(flat[lag:], flat[:-lag]) <= SIGMAS
            assert flips(flat[lag:], flat[:-lag]).max() <= SIGMAS
        assert correlation(draws[:, 1:], draws[:, :-1]) <= SIGMAS
        assert correlation(draws[1:], draws[:-1]) <= SIGMAS


def test_steps_and_leaves_are_not_correlated():
    draws = bits(step_keys(4, 3).ravel(), MANY)
    for i in range(len(draws)):
        for j in range(i):
            assert correlation(draws[i], draws[j]) <= SIGMAS
            assert flips(draws[i], draws[j]).max() <= SIGMAS


def test_what_an_element_draws_over_many_steps_averages_out():
    """The variance of an element's mean over 500 steps is that of independent draws."""
    draws = bits(step_keys(500)[:, 0], 4000) / 2.0**32
    score = (draws.mean(0) - 0.5) * np.sqrt(12 * 500)
    assert abs(score.mean()) <= SIGMAS / np.sqrt(4000)
    assert abs(score.var() - 1) <= SIGMAS * np.sqrt(2 / 4000)


def test_each_bit_of_the_key_and_of_the_place_flips_half_of_the_bits():
    """A bit of the first word is one of the place too, `hash(place ^ word)`: of such a pair of places one is taken."""
    places = np.arange(MANY // 2)
    for words in [*RAW[1:], tuple(np.asarray(jax.random.key_data(step_keys(1)[0, 0])).tolist())]:
        number = words[0] << 32 | words[1]
        others = [((number ^ 1 << b) >> 32, (number ^ 1 << b) % 2**32) for b in range(64)]
        draws, *changed = bits(key_of([words, *others]), len(places))
        for b, other in enumerate(changed):
            once = places >> b - 32 & 1 == 0 if b >= 32 else places >= 0
            assert flips(draws[once], other[once]).max() <= SIGMAS, (words, b)
            assert correlation(draws[once], other[once]) <= SIGMAS, (words, b)


def test_both_words_of_the_key_count():
    """Keys whose words are exchanged, or equal, or changed alike, give bits that have nothing in common."""
    first, second = RAW[-1]
    alike = [(first, second), (second, first), (first, first), (second, second), (first ^ 77, second ^ 77), (0, 0)]
    draws = bits(key_of(alike), MANY)
    for i in range(len(alike)):
        for j in range(i):
            assert correlation(draws[i], draws[j]) <= SIGMAS
            assert flips(draws[i], draws[j]).max() <= SIGMAS
            assert len(np.intersect1d(draws[i], draws[j])) < 20  # of 1 expected: 65536² / 2**32


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("narrow", [ml_dtypes.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_devices_round_their_part_alike_and_do_not_talk(kind, narrow):
    x = jnp.linspace(0.1, 2, 64 * 24).reshape(64, 24)
    expected = rounded(x, narrow)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    function = jax.jit(numerics.round_stochastically, static_argnums=1)
    for spec in (PartitionSpec("a", "b"), PartitionSpec(None, "a"), PartitionSpec(("a", "b")), PartitionSpec()):
        here = jax.device_put(x, NamedSharding(mesh, spec))
        compiled = function.lower(here, np.dtype(narrow), KEY).compile()
        found = compiled(here, KEY)
        assert found.sharding.is_equivalent_to(here.sharding, 2)
        assert np.asarray(found).tobytes() == expected.tobytes()
        assert not {word for word in ("all-", "collective", "reduce-scatter") if word in compiled.as_text()}


def test_a_batch_of_keys_rounds_each_as_alone():
    keys, x = jax.random.split(KEY, 3), jnp.linspace(0.1, 2, 60).reshape(3, 20)
    narrow = np.dtype(ml_dtypes.bfloat16)
    together = jax.vmap(lambda x, key: numerics.round_stochastically(x, narrow, key))(x, keys)
    alone = [numerics.round_stochastically(row, narrow, key) for row, key in zip(x, keys, strict=True)]
    assert np.asarray(together).tobytes() == np.stack(alone).tobytes()
