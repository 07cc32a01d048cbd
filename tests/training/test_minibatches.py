"""Mini-batches: what the lecture says of them, and what a caller can rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtx.training.minibatches import Batches, batches, num_batches, sample_batches, take

STATIC = ("size", "batch_size", "replacement", "drop_last")
KEY = jax.random.key(0)


@st.composite
def sizes(draw):
    size = draw(st.integers(1, 60))
    return size, draw(st.one_of(st.none(), st.integers(1, size)))


seeds = st.integers(0, 2**31 - 1)


def flat(epoch: Batches) -> np.ndarray:
    return np.concatenate([np.asarray(indices) for indices in epoch])


def bits_equal(a: Batches, b: Batches) -> bool:
    return np.array_equal(a.full, b.full) and np.array_equal(a.rest, b.rest)


# The lecture


def test_sixty_thousand_images_at_batch_128_are_469_updates():
    assert num_batches(60_000, 128) == 469
    assert num_batches(60_000, 128, drop_last=True) == 468
    epoch = sample_batches(KEY, 60_000, 128)
    assert epoch.full.shape == (468, 128)
    assert epoch.rest.shape == (96,)
    assert len(epoch) == 469


def test_batch_of_everything_is_gradient_descent():
    assert num_batches(7) == num_batches(7, 7) == 1
    for epoch in (sample_batches(KEY, 7), sample_batches(KEY, 7, None), sample_batches(KEY, 7, 7)):
        assert epoch.full.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
        assert epoch.rest.shape == (0,)


def test_batch_of_one_is_stochastic_gradient_descent():
    epoch = sample_batches(KEY, 7, 1)
    assert num_batches(7, 1) == len(epoch) == 7
    assert epoch.full.shape == (7, 1)
    assert sorted(flat(epoch)) == list(range(7))


# The sampler


@given(seeds, sizes())
@settings(max_examples=25, deadline=None)
def test_without_replacement_each_index_comes_exactly_once(seed, size_and_batch):
    size, batch_size = size_and_batch
    epoch = sample_batches(jax.random.key(seed), size, batch_size)
    assert np.array_equal(np.sort(flat(epoch)), np.arange(size))


@given(seeds, sizes(), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_shapes_lengths_and_range(seed, size_and_batch, replacement, drop_last):
    size, batch_size = size_and_batch
    epoch = sample_batches(jax.random.key(seed), size, batch_size, replacement=replacement, drop_last=drop_last)
    per_batch = batch_size or size
    assert epoch.full.shape == (size // per_batch, per_batch)
    assert epoch.rest.shape == (0 if drop_last else size % per_batch,)
    assert epoch.full.dtype == epoch.rest.dtype == np.int32
    assert len(epoch) == len(list(epoch)) == num_batches(size, batch_size, drop_last=drop_last)
    assert flat(epoch).min() >= 0
    assert flat(epoch).max() < size


@given(seeds, sizes(), st.booleans())
@settings(max_examples=15, deadline=None)
def test_dropping_the_last_batch_changes_no_other(seed, size_and_batch, replacement):
    size, batch_size = size_and_batch
    kept, dropped = (
        sample_batches(jax.random.key(seed), size, batch_size, replacement=replacement, drop_last=drop_last)
        for drop_last in (False, True)
    )
    assert np.array_equal(kept.full, dropped.full)
    assert dropped.rest.size == 0


def test_same_key_same_order_another_key_another_order():
    assert bits_equal(sample_batches(KEY, 100, 7), sample_batches(KEY, 100, 7))
    orders = {tuple(flat(sample_batches(jax.random.fold_in(KEY, epoch), 100, 7))) for epoch in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize("batch_size", [1, 7, 99])
def test_all_but_the_full_batch_are_shuffled(batch_size):
    assert not np.array_equal(flat(sample_batches(KEY, 100, batch_size)), np.arange(100))


def test_the_order_is_uniform():
    # Index 0 at each of 5 places, 2000 keys: 400 expected, standard deviation 17.9; 5 deviations are 90.
    keys = jax.random.split(KEY, 2000)
    orders = jax.vmap(lambda key: sample_batches(key, 5, 1).full[:, 0])(keys)
    counts = np.bincount(np.argmin(np.asarray(orders), axis=1), minlength=5)
    assert np.abs(counts - 400).max() < 90


def test_every_order_is_as_likely_as_any_other():
    # 24 orders of 4 indices, 9600 keys: 400 of each expected, standard deviation 19.6; 5 deviations are 98.
    orders = jax.vmap(lambda key: sample_batches(key, 4, 1).full[:, 0])(jax.random.split(KEY, 9600))
    counts = np.unique(np.asarray(orders), axis=0, return_counts=True)[1]
    assert counts.shape == (24,)
    assert np.abs(counts - 400).max() < 98


def test_orders_of_many_are_uniform():
    # Where each of 300 indices comes, in 10 parts of the order, 2000 keys: 200 expected, standard deviation 13.4. Of
    # 3000 counts the largest deviation is about 3.6 of them; 5.5 are 74.
    orders = np.asarray(jax.vmap(lambda key: sample_batches(key, 300, 1).full[:, 0])(jax.random.split(KEY, 2000)))
    places = np.argsort(orders, axis=1) // 30
    counts = np.stack([(places == part).sum(axis=0) for part in range(10)])
    assert np.abs(counts - 200).max() < 74
    assert abs((np.diff(orders) > 0).mean() - 0.5) < 0.005  # 598 000 pairs of neighbours rise as often as they fall


@pytest.mark.parametrize("size", [2, 3, 256, 257, 1437, 60_000, 2**20, 2**20 + 1])
def test_the_order_is_that_of_sorting_by_random_numbers(size):
    order = np.asarray(sample_batches(KEY, size, 1).full[:, 0])
    assert order.dtype == np.int32
    assert np.array_equal(np.sort(order), np.arange(size))
    place_bits = (size - 1).bit_length()
    if place_bits > 20:
        return
    expected, free = np.arange(size), 32 - place_bits
    rounds = -(-3 * place_bits // free)  # so many times `free` random bits are three for each bit of an index, or more
    for bits in np.asarray(jax.random.bits(KEY, (rounds, size))):
        expected = expected[np.argsort(bits % 2**free, kind="stable")]
    assert np.array_equal(order, expected)


def test_with_replacement_draws_are_independent_and_uniform():
    # 40 000 draws of 4 indices: 10 000 expected, standard deviation 86.6; 5 deviations are 433.
    epochs = jax.vmap(lambda key: sample_batches(key, 4, replacement=True).full[0])(jax.random.split(KEY, 10_000))
    epochs = np.asarray(epochs)
    assert np.abs(np.bincount(epochs.ravel(), minlength=4) - 10_000).max() < 433
    # All four different in 4!/4^4 = 9.4% of the epochs: 937.5 expected, standard deviation 29.1.
    distinct = (np.sort(epochs, axis=1) == np.arange(4)).all(axis=1).sum()
    assert abs(distinct - 937.5) < 5 * 29.1


@pytest.mark.parametrize("batch_size", [None, 1, 4, 12])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_jit_equals_eager(batch_size, replacement, drop_last):
    jitted = jax.jit(sample_batches, static_argnames=STATIC)
    options = {"replacement": replacement, "drop_last": drop_last}
    assert bits_equal(jitted(KEY, 13, batch_size, **options), sample_batches(KEY, 13, batch_size, **options))


def test_another_key_does_not_retrace():
    traces = []

    @jax.jit
    def sample(key):
        traces.append(key)
        return sample_batches(key, 10, 3)

    for epoch in range(3):
        sample(jax.random.fold_in(KEY, epoch))
    assert len(traces) == 1


def test_legacy_keys_give_the_batches_of_new_style_ones():
    legacy = jax.random.PRNGKey(3)
    expected = sample_batches(jax.random.wrap_key_data(legacy), 10, 3)
    assert bits_equal(sample_batches(legacy, 10, 3), expected)
    assert bits_equal(sample_batches(np.asarray(legacy), 10, 3), expected)


def test_indices_are_int32_in_x64_too():
    with jax.enable_x64(True):
        for replacement in (False, True):
            epoch = sample_batches(jax.random.key(0), 10, 3, replacement=replacement)
            assert epoch.full.dtype == epoch.rest.dtype == np.int32


def test_numpy_sizes_are_sizes():
    assert num_batches(np.int64(10), np.int32(4)) == 3
    assert bits_equal(sample_batches(KEY, np.int64(10), np.int32(4)), sample_batches(KEY, 10, 4))


# The value


def test_batches_is_a_pytree_that_scan_runs_over():
    epoch = sample_batches(KEY, 10, 3)
    assert [leaf.shape for leaf in jax.tree.leaves(epoch)] == [(3, 3), (1,)]
    _, sums = jax.lax.scan(lambda carry, indices: (carry, indices.sum()), None, epoch.full)
    assert sums.shape == (3,)
    assert int(sums.sum()) + int(epoch.rest.sum()) == 45


def test_iteration_is_in_order():
    epoch = Batches(full=jnp.array([[3, 1], [0, 4]]), rest=jnp.array([2]))
    assert [indices.tolist() for indices in epoch] == [[3, 1], [0, 4], [2]]
    assert len(epoch) == 3


def test_vmapped_keys_stay_in_front():
    keys = jax.random.split(KEY, 5)
    many = jax.vmap(lambda key: sample_batches(key, 10, 4))(keys)
    assert len(many) == 3
    assert [indices.shape for indices in many] == [(5, 4), (5, 4), (5, 2)]
    alone = sample_batches(keys[2], 10, 4)
    assert all(np.array_equal(a[2], b) for a, b in zip(many, alone, strict=True))


# The iterator


def dataset(size, array):
    return {"images": array(np.arange(3 * size).reshape(size, 3)), "labels": (array(np.arange(size)), None)}


@pytest.mark.parametrize(("array", "kind"), [(np.asarray, np.ndarray), (jnp.asarray, jax.Array)])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("replacement", [False, True])
def test_batches_are_the_samples_of_the_index_batches(array, kind, batch_size, replacement):
    data = dataset(10, array)
    epoch = sample_batches(KEY, 10, batch_size, replacement=replacement)
    for batch, indices in zip(batches(KEY, data, batch_size, replacement=replacement), epoch, strict=True):
        images, labels = batch["images"], batch["labels"][0]
        assert isinstance(images, kind)
        assert isinstance(labels, kind)
        assert batch["labels"][1] is None
        assert images.dtype == data["images"].dtype
        assert labels.dtype == data["labels"][0].dtype
        assert np.array_equal(labels, np.asarray(indices))
        assert np.array_equal(images, np.arange(30).reshape(10, 3)[np.asarray(indices)])


def test_numpy_and_jax_arrays_mix_in_one_tree():
    data = {"x": np.arange(10), "y": jnp.arange(10)}
    for batch in batches(KEY, data, 3):
        assert isinstance(batch["x"], np.ndarray)
        assert isinstance(batch["y"], jax.Array)
        assert np.array_equal(batch["x"], batch["y"])


def test_memory_mapped_arrays_are_read_a_batch_at_a_time(tmp_path):
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(10, 2))
    mapped[:] = np.arange(20).reshape(10, 2)
    seen = np.concatenate(list(batches(KEY, mapped, 4)))
    assert np.array_equal(np.sort(seen[:, 0]), np.arange(0, 20, 2))


def test_the_last_batch_is_dropped_on_request():
    assert [len(batch) for batch in batches(KEY, np.arange(10), 4)] == [4, 4, 2]
    assert [len(batch) for batch in batches(KEY, np.arange(10), 4, drop_last=True)] == [4, 4]


def test_the_data_is_not_changed():
    data = np.arange(10)
    for batch in batches(KEY, data):
        batch += 1
    assert np.array_equal(data, np.arange(10))


def test_take_inside_scan_reads_numpy_data_as_constants():
    data = np.arange(10, dtype=np.float32)

    @jax.jit
    def totals(key):
        return jax.lax.scan(lambda _, i: (None, take(data, i).sum()), None, sample_batches(key, 10, 5).full)[1]

    assert totals(KEY).shape == (2,)
    assert float(totals(KEY).sum()) == 45.0


# Errors: who, what was received, what is allowed, how to fix it


def refused(error, *parts):
    """Expects `error` with every part in its text."""
    return pytest.raises(error, match=r"(?s)" + "".join(f"(?=.*{part})" for part in parts))


@pytest.mark.parametrize(
    ("size", "batch_size", "error", "parts"),
    [
        (60_000.0, 128, TypeError, [r"size is 60000\.0 \(float\)", "must be an int"]),
        (60_000, 128.0, TypeError, [r"batch_size is 128\.0 \(float\)", "must be an int"]),
        (60_000, "128", TypeError, [r"batch_size is '128' \(str\)", "must be an int"]),
        (True, None, TypeError, [r"size is True \(bool\)", "must be an int"]),
        (10, np.True_, TypeError, [r"batch_size is np\.True_ \(bool\)", "must be an int"]),
        (None, 128, TypeError, [r"size is None", "must be an int"]),
        (10, np.arange(3), TypeError, [r"batch_size is an array of dtype int64 and shape \(3,\)"]),
        (0, None, ValueError, ["size is 0", r"from 1 to 2\*\*31 - 1"]),
        (-3, 1, ValueError, ["size is -3", r"from 1 to 2\*\*31 - 1"]),
        (2**31, 1, ValueError, ["size is 2147483648", "int32"]),
        (100, 128, ValueError, ["batch_size is 128", "from 1 to the number of samples, 100", "None"]),
        (100, 0, ValueError, ["batch_size is 0", "from 1 to"]),
        (100, -1, ValueError, ["batch_size is -1", "from 1 to"]),
    ],
)
def test_sizes_out_of_range_or_kind(size, batch_size, error, parts):
    with refused(error, r"^gradtx\.num_batches: ", *parts):
        num_batches(size, batch_size)
    for replacement in (False, True):
        with refused(error, r"^gradtx\.sample_batches: ", *parts):
            sample_batches(KEY, size, batch_size, replacement=replacement)


@pytest.mark.parametrize("name", ["replacement", "drop_last"])
def test_flags_are_bools(name):
    with refused(TypeError, rf"^gradtx\.sample_batches: {name} is 1 \(int\)", "True or False"):
        sample_batches(KEY, 10, 2, **{name: 1})
    with refused(TypeError, rf"^gradtx\.batches: {name} is 'yes' \(str\)", "True or False"):
        batches(KEY, np.arange(10), 2, **{name: "yes"})


def test_traced_sizes_say_how_to_make_them_static():
    with refused(TypeError, r"^gradtx\.sample_batches: size is a traced value", "static_argnames="):
        jax.jit(sample_batches)(KEY, 10, 2)
    with refused(TypeError, r"^gradtx\.sample_batches: drop_last is a traced value", "static_argnames="):
        jax.jit(sample_batches, static_argnames=("size", "batch_size"))(KEY, 10, 2, drop_last=True)


@pytest.mark.parametrize("key", [0, None, 3.5, np.arange(2), jnp.zeros(2), np.zeros(3, np.uint32), np.uint32(1), "key"])
def test_a_non_key_is_refused(key):
    with refused(
        TypeError, r"^gradtx\.sample_batches: key is ", "must be a JAX random key", r"jax\.random\.key\(seed\)"
    ):
        sample_batches(key, 10, 2)
    with refused(TypeError, r"^gradtx\.batches: key is "):
        batches(key, np.arange(10), 2)


@pytest.mark.parametrize("keys", [jax.random.split(KEY, 3), jax.random.split(jax.random.PRNGKey(0), 3)])
def test_several_keys_are_refused(keys):
    with refused(ValueError, r"^gradtx\.sample_batches: key is an array of dtype", "several keys", r"jax\.vmap"):
        sample_batches(keys, 10, 2)


@pytest.mark.parametrize(
    ("data", "error", "parts"),
    [
        ({}, ValueError, [r"data is \{\} \(dict\)", "without arrays"]),
        (None, ValueError, ["data is None", "without arrays"]),
        (np.zeros((0, 3)), ValueError, ["data is empty", r"data has shape \(0, 3\)"]),
        ({"x": np.zeros(0), "y": np.zeros(0)}, ValueError, ["data is empty", r"data\['x'\] has shape \(0,\)"]),
        (
            {"x": np.zeros((5, 3)), "y": {"a": np.zeros(4)}},
            ValueError,
            [r"data\['x'\] has 5 samples, shape \(5, 3\)", r"data\['y'\]\['a'\] has 4, shape \(4,\)", "sample axis"],
        ),
        ((np.zeros(3), np.float32(2)), ValueError, [r"data\[1\] is a scalar", r"2\.0", "leading axis"]),
        ({"x": jnp.float32(2)}, ValueError, [r"data\['x'\] is a scalar", r"float32 and shape \(\)"]),
        ([1, 2, 3], ValueError, [r"data\[0\] is a scalar, 1 \(int\)", r"numpy\.asarray"]),
        ({"x": "three"}, TypeError, [r"data\['x'\] is 'three' \(str\)", "NumPy or JAX array"]),
        ({"x": range(3)}, TypeError, [r"data\['x'\] is range\(0, 3\) \(range\)", "NumPy or JAX array"]),
    ],
)
def test_data_that_cannot_be_batched(data, error, parts):
    with refused(error, r"^gradtx\.batches: ", *parts):
        batches(KEY, data, 2)


def test_a_batch_larger_than_the_data_is_refused_at_the_call():
    with refused(ValueError, r"^gradtx\.batches: batch_size is 128", "number of samples, 100"):
        batches(KEY, np.zeros((100, 3)), 128)
