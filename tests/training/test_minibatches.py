"""Mini-batches: what the lecture says of them, and what a caller can rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import tree_equal
from gradtx.training.minibatches import Batches, batches, num_batches, sample_batches, take

KEY = jax.random.key(0)


def flat(epoch):
    return np.concatenate([np.asarray(indices) for indices in epoch])


def test_sixty_thousand_images_at_batch_128_are_469_updates():
    assert num_batches(60_000, 128) == 469
    assert num_batches(60_000, 128, drop_last=True) == 468
    assert (num_batches(7), num_batches(7, 7), num_batches(7, 1), num_batches(1)) == (1, 1, 7, 1)
    assert (num_batches(2**31 - 1), num_batches(np.int64(10), np.int32(4))) == (1, 3)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(("size", "batch_size"), [(7, None), (23, 5)])
def test_an_epoch_is_all_indices_in_batches(size, batch_size, replacement):
    epoch = sample_batches(KEY, size, batch_size, replacement=replacement)
    per_batch = batch_size or size
    assert epoch.full.shape == (size // per_batch, per_batch)
    assert epoch.rest.shape == (size % per_batch,)
    assert epoch.full.dtype == epoch.rest.dtype == np.int32
    assert len(epoch) == len(list(epoch)) == num_batches(size, batch_size)
    if replacement:
        draws = jax.random.randint(KEY, (size,), 0, size, dtype=jnp.int32)
        assert np.array_equal(flat(epoch), draws)
    else:
        assert sorted(flat(epoch)) == list(range(size))
        if per_batch == size:
            assert flat(epoch).tolist() == list(range(size))  # everything in its order
        else:
            assert flat(epoch).tolist() != list(range(size))
    dropped = sample_batches(KEY, size, batch_size, replacement=replacement, drop_last=True)
    assert np.array_equal(dropped.full, epoch.full)
    assert dropped.rest.shape == (0,)


@pytest.mark.parametrize(("size", "rounds"), [(2, 1), (257, 2), (60_000, 3)])
def test_the_order_is_that_of_sorting_by_random_numbers(size, rounds):
    """Of each round the low bits count that are free of a place; three random bits for each bit of an index, in all."""
    order = np.asarray(sample_batches(KEY, size, 1).full[:, 0])
    free = 32 - (size - 1).bit_length()
    assert rounds * free >= 3 * (32 - free) > (rounds - 1) * free
    expected = np.arange(size)
    for bits in np.asarray(jax.random.bits(KEY, (rounds, size))):
        expected = expected[np.argsort(bits % 2**free, kind="stable")]
    assert np.array_equal(order, expected)


def test_more_than_a_million_samples_are_permuted_by_jax():
    def keys_sorted_together(size):
        jaxpr = jax.make_jaxpr(lambda key: sample_batches(key, size, 1).full)(KEY)
        return [
            len(eqn.invars) for eqn in jax.tree.leaves(list(_equations(jaxpr.jaxpr))) if eqn.primitive.name == "sort"
        ]

    assert keys_sorted_together(2**20) == [1] * 5
    assert set(keys_sorted_together(2**20 + 1)) == {2}


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(inner, "jaxpr"):
                yield from _equations(inner.jaxpr)


def test_every_order_is_as_likely_as_any_other():
    # 24 orders of 4 indices, 9600 keys: 400 of each expected, standard deviation 19.6; 5 deviations are 98.
    orders = jax.vmap(lambda key: sample_batches(key, 4, 1).full[:, 0])(jax.random.split(KEY, 9600))
    counts = np.unique(np.asarray(orders), axis=0, return_counts=True)[1]
    assert counts.shape == (24,)
    assert np.abs(counts - 400).max() < 98


@pytest.mark.thorough
def test_orders_of_many_are_uniform():
    # Where each of 300 indices comes, in 10 parts of the order, 2000 keys: 200 expected, standard deviation 13.4. Of
    # 3000 counts the largest deviation is about 3.6 of them; 5.5 are 74.
    orders = np.asarray(jax.vmap(lambda key: sample_batches(key, 300, 1).full[:, 0])(jax.random.split(KEY, 2000)))
    places = np.argsort(orders, axis=1) // 30
    counts = np.stack([(places == part).sum(axis=0) for part in range(10)])
    assert np.abs(counts - 200).max() < 74
    assert abs((np.diff(orders) > 0).mean() - 0.5) < 0.005  # 598 000 pairs of neighbours rise as often as they fall


def test_the_order_depends_on_the_key_alone():
    sample = jax.jit(lambda key: sample_batches(key, 23, 5))
    keys = jax.random.split(KEY, 20)
    assert len({tuple(flat(sample(key))) for key in keys}) == 20
    expected = sample_batches(jax.random.key(3), 23, 5)
    legacy = jax.random.PRNGKey(3)
    for key in (legacy, np.asarray(legacy)):
        assert tree_equal(sample_batches(key, np.int64(23), np.int32(5)), expected)
    assert tree_equal(sample(jax.random.key(3)), expected)
    many = jax.vmap(sample)(keys)
    assert len(many) == 5
    assert [indices.shape for indices in many] == [(20, 5)] * 4 + [(20, 3)]
    assert all(np.array_equal(a[2], b) for a, b in zip(many, sample(keys[2]), strict=True))
    with jax.enable_x64(True):
        for replacement in (False, True):
            epoch = sample_batches(jax.random.key(0), 23, 5, replacement=replacement)
            assert epoch.full.dtype == epoch.rest.dtype == np.int32


def test_batches_iterate_in_order_and_are_a_pytree():
    epoch = Batches(full=jnp.array([[3, 1], [0, 4]]), rest=jnp.array([2]))
    assert [indices.tolist() for indices in epoch] == [[3, 1], [0, 4], [2]]
    assert len(epoch) == 3
    assert [leaf.shape for leaf in jax.tree.leaves(epoch)] == [(2, 2), (1,)]


# The iterator


@pytest.mark.parametrize(("array", "kind"), [(np.asarray, np.ndarray), (jnp.asarray, jax.Array)])
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"replacement": True}], ids=str)
def test_batches_are_the_samples_of_the_index_batches(array, kind, options):
    data = {"images": array(np.arange(69).reshape(23, 3)), "labels": (array(np.arange(23)), None)}
    epoch = sample_batches(KEY, 23, 5, **options)
    for batch, indices in zip(batches(KEY, data, 5, **options), epoch, strict=True):
        images, labels = batch["images"], batch["labels"][0]
        assert batch["labels"][1] is None
        for leaf, whole in ((images, data["images"]), (labels, data["labels"][0])):
            assert isinstance(leaf, kind)
            assert leaf.dtype == whole.dtype
            assert np.array_equal(leaf, np.asarray(whole)[np.asarray(indices)])


def test_numpy_jax_and_memory_mapped_arrays_mix_in_one_tree(tmp_path):
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.int32, shape=(23,))
    mapped[:] = np.arange(23)
    for batch in batches(KEY, {"x": np.arange(23), "y": jnp.arange(23), "z": mapped}, 5):
        assert isinstance(batch["x"], np.ndarray)
        assert isinstance(batch["y"], jax.Array)
        assert batch["x"].tolist() == batch["y"].tolist() == batch["z"].tolist()
        batch["x"] += 1
        batch["z"] += 1
    assert np.array_equal(mapped, np.arange(23))  # the data is not changed


def test_take_inside_scan_reads_numpy_data_as_constants():
    data = np.arange(10, dtype=np.float32)
    full = sample_batches(KEY, 10, 5).full
    totals = jax.lax.scan(lambda _, i: (None, take(data, i).sum()), None, full)[1]
    assert totals.tolist() == data[np.asarray(full)].sum(1).tolist()
