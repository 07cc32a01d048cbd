"""Mini-batches: which samples each update of an epoch reads.

An epoch is one pass over the data, cut into index batches. A key decides the order of the samples, and the batch size
decides the method:

    sample_batches(key, 60_000)                        full-batch gradient descent: 1 update per epoch
    sample_batches(key, 60_000, 1)                     stochastic gradient descent: 60 000 updates
    sample_batches(key, 60_000, 128)                   mini-batches: 469 updates, each sample in exactly one of them
    sample_batches(key, 60_000, 128, replacement=True) the same shape, every index drawn independently

The sampler is a pure function: the same key gives the same batches, so give each epoch a key of its own,
`jax.random.fold_in(key, epoch)`. Under `jax.jit` its sizes are static. `lax.scan` can run over `.full`, whose batches
all have the same shape; the shorter last batch, if there is one, is `.rest`.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LARGEST_SIZE = 2**31 - 1  # the indices are int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Batches:
    """The index batches of one epoch: `len()` counts them, iteration gives them in order. A pytree of its two fields.

    Attributes:
      full: int32 of shape (k, batch_size), the k batches of equal size; `lax.scan` runs over it.
      rest: int32 of shape (r,), the shorter last batch; r is 0 if there is none.

    `jax.vmap` over keys adds a leading axis to both fields, and so to each index batch.
    """

    full: jax.Array
    rest: jax.Array

    def __len__(self) -> int:
        return self.full.shape[-2] + (self.rest.shape[-1] > 0)

    def __iter__(self) -> Iterator[jax.Array]:
        for i in range(self.full.shape[-2]):
            yield self.full[..., i, :]
        if self.rest.shape[-1] > 0:
            yield self.rest


def num_batches(size: int, batch_size: int | None = None, *, drop_last: bool = False) -> int:
    """Number of updates in one epoch.

        ceil(size / batch_size), or floor(size / batch_size) with `drop_last`

    Args:
      size: number of samples, 1 to 2³¹ - 1.
      batch_size: samples per batch, 1 to `size`; None is `size`.
      drop_last: leave out a last batch of fewer than `batch_size` samples.

    Errors: TypeError for a `size` or `batch_size` that is not an int, ValueError for one out of range.

    >>> import gradtx
    >>> gradtx.num_batches(60_000, 128)  # 468 full batches and one of 96
    469
    >>> gradtx.num_batches(60_000, 128, drop_last=True)
    468
    """
    size, batch_size = _sizes("gradtx.num_batches", size, batch_size, drop_last=drop_last)
    return size // batch_size if drop_last else -(-size // batch_size)


def sample_batches(
    key: jax.Array,
    size: int,
    batch_size: int | None = None,
    *,
    replacement: bool = False,
    drop_last: bool = False,
) -> Batches:
    """Index batches of one epoch: a shuffled partition of 0 .. size-1, or independent draws from it.

        order = 0 .. size-1, shuffled             without replacement: each index once
        order = randint(key, (size,), 0, size)    with replacement
        batch i = order[i * batch_size : (i + 1) * batch_size]

    A pure function of `key`: the same key gives the same batches, under `jax.jit` too. `jax.random.fold_in(key, epoch)`
    or `jax.random.split(key, epochs)` gives each epoch an order of its own. A single batch of all samples, without
    replacement, is not shuffled: 0, 1, .. size-1.

    Args:
      key: one JAX random key, new-style (`jax.random.key`) or legacy (`jax.random.PRNGKey`).
      size: number of samples, 1 to 2³¹ - 1. Static under `jax.jit`, as are the arguments below.
      batch_size: samples per batch, 1 to `size`; None is `size`, which is full-batch gradient descent.
      replacement: draw every index independently; an index may then occur twice in a batch, or not at all in an epoch.
      drop_last: leave out a last batch of fewer than `batch_size` samples. The key decides which samples these are.

    Returns:
      `Batches` with int32 fields `.full` of shape (size // batch_size, batch_size) and `.rest` of shape
      (size % batch_size,), or (0,) with `drop_last`. They take 4 bytes per sample, and up to 80 while they are drawn.

    Errors: TypeError for a key that is not a random key, a size that is not an int, a flag that is not a bool.
    ValueError for several keys and for a size out of range.

    >>> import gradtx, jax
    >>> epoch = gradtx.sample_batches(jax.random.key(0), 10, 4)
    >>> len(epoch), [indices.shape for indices in epoch]
    (3, [(4,), (4,), (2,)])
    >>> sorted(int(i) for indices in epoch for i in indices)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    A whole epoch as one compiled program, which computes the mean of each batch in place of an update:

    >>> data = jax.numpy.arange(10.0)
    >>> @jax.jit
    ... def means(key):
    ...     epoch = gradtx.sample_batches(key, 10, 2)
    ...     return jax.lax.scan(lambda carry, indices: (carry, gradtx.take(data, indices).mean()), None, epoch.full)[1]
    >>> means(jax.random.key(1)).shape
    (5,)
    """
    size, batch_size = _sizes("gradtx.sample_batches", size, batch_size, replacement=replacement, drop_last=drop_last)
    check_key("gradtx.sample_batches", key)
    return _sample(key, size, batch_size, replacement, drop_last)


def batches(
    key: jax.Array,
    data: Any,
    batch_size: int | None = None,
    *,
    replacement: bool = False,
    drop_last: bool = False,
) -> Iterator[Any]:
    """One epoch of `data` in mini-batches: an iterator over pytrees like `data`.

    The n-th item is `take(data, n-th batch of sample_batches(key, size, batch_size, ...))`, where `size` is the length
    of the leading axis that all leaves of `data` share. NumPy arrays (memory-mapped ones too) are indexed by NumPy and
    give NumPy arrays; JAX arrays are indexed on their device and give JAX arrays.

    Args:
      key: one JAX random key; a new one per epoch, for example `jax.random.fold_in(key, epoch)`.
      data: a pytree of NumPy or JAX arrays, one sample per entry of their common leading axis. Leaves may be None.
      batch_size, replacement, drop_last: as in `sample_batches`.

    Returns:
      An iterator for one epoch. It holds 4 bytes of indices per sample and copies one batch at a time.

    Errors, raised by the call and not by the iterator: those of `sample_batches`; TypeError for a leaf that is not an
    array; ValueError for data without arrays or samples, a scalar leaf, and unequal leading axes.

    >>> import gradtx, jax, numpy
    >>> data = {"x": numpy.zeros((10, 3)), "y": numpy.arange(10)}
    >>> for epoch in range(2):
    ...     key = jax.random.fold_in(jax.random.key(0), epoch)
    ...     print([batch["x"].shape for batch in gradtx.batches(key, data, 4)])
    [(4, 3), (4, 3), (2, 3)]
    [(4, 3), (4, 3), (2, 3)]
    """
    size, batch_size = check_sizes("gradtx.batches", data, batch_size, replacement=replacement, drop_last=drop_last)
    check_key("gradtx.batches", key)
    epoch = _sample(key, size, batch_size, replacement, drop_last)
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(data)):
        epoch = jax.device_get(epoch)  # once: fetching each batch would wait for the training step before it
        return (take(data, indices) for indices in epoch)
    return (_compiled_take(data, indices) for indices in epoch)


def take(data: Any, indices: jax.Array | np.ndarray) -> Any:
    """Samples `indices` of every leaf: `leaf[indices]`, by NumPy for NumPy arrays, by JAX for JAX arrays.

    If `indices` is traced, as inside `jax.jit` or `lax.scan`, NumPy arrays become constants of the program.

    Args:
      data: a pytree of NumPy or JAX arrays with one common leading axis.
      indices: integers of any shape, 0 to size - 1. JAX clamps larger ones instead of raising an error.

    >>> import gradtx, numpy
    >>> gradtx.take({"x": numpy.arange(6).reshape(3, 2), "y": numpy.array([7, 8, 9])}, numpy.array([2, 0]))
    {'x': array([[4, 5],
           [0, 1]]), 'y': array([9, 7])}
    """
    traced = isinstance(indices, Tracer)

    def rows(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray) and not traced:
            return leaf[np.asarray(indices)]
        return jnp.asarray(leaf)[indices]

    return jax.tree.map(rows, data)


_compiled_take = jax.jit(take)  # one small program per batch: five times as fast as indexing leaf by leaf


def _sample(key: jax.Array, size: int, batch_size: int, replacement: bool, drop_last: bool) -> Batches:
    if replacement:
        order = jax.random.randint(key, (size,), 0, size, dtype=jnp.int32)
    else:
        order = jnp.arange(size, dtype=jnp.int32) if batch_size == size else _shuffled(key, size)
    used = size - size % batch_size
    return Batches(full=order[:used].reshape(-1, batch_size), rest=order[used : used if drop_last else size])


def _shuffled(key: jax.Array, size: int) -> jax.Array:
    """0 .. size-1 in random order, in at most a third of the time of `jax.random.permutation`.

    Each round sorts random integers that hold their own position in the low bits, because one array of integers sorts
    faster than pairs of key and value. The high bits of one round are too few. So there are as many rounds as give, in
    all, three random bits for each bit of an index: two of n samples then tie with a chance of at most 1 in n³, as in
    JAX.
    """
    place_bits = (size - 1).bit_length()
    if place_bits > 20:  # this would need too many rounds
        return jax.random.permutation(key, size)
    places = jnp.arange(size, dtype=jnp.uint32)
    order = jnp.arange(size, dtype=jnp.int32)
    for bits in jax.random.bits(key, (-(-3 * place_bits // (32 - place_bits)), size), jnp.uint32):
        from_place = jnp.sort(bits << place_bits | places, stable=False) & (2**place_bits - 1)
        order = order.at[from_place].get(mode="promise_in_bounds")
    return order


def check_sizes(who: str, data: Any, batch_size: Any, **flags: Any) -> tuple[int, int]:
    """The number of samples in `data`, and the batch size; a batch size of None is all samples."""
    return _sizes(who, _common_size(who, data), batch_size, **flags)


def _sizes(who: str, size: Any, batch_size: Any, **flags: Any) -> tuple[int, int]:
    """`size` and `batch_size` as checked Python ints; a `batch_size` of None is `size`."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{who}: {name} is {_show(flag)}; it must be True or False.{_static_hint(flag)}")
    size = integer(who, "size", size)
    if not 1 <= size <= _LARGEST_SIZE:
        raise ValueError(f"{who}: size is {size}; it must be from 1 to 2**31 - 1, because the indices are int32.")
    if batch_size is None:
        return size, size
    batch_size = integer(who, "batch_size", batch_size)
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"{who}: batch_size is {batch_size}; it must be from 1 to the number of samples, {size}. "
            "Pass None for one batch of all samples."
        )
    return size, batch_size


def integer(who: str, name: str, value: Any) -> int:
    """`value` as a Python int; bools and traced values are refused."""
    try:
        if not isinstance(value, (bool, np.bool_, Tracer)):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{who}: {name} is {_show(value)}; it must be an int.{_static_hint(value)}")


def check_key(who: str, key: Any) -> None:
    """Refuse a value that is not one random key."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    one = () if typed else jax.eval_shape(jax.random.PRNGKey, 0).shape
    if not typed and (dtype != np.uint32 or shape[-1:] != one):
        raise TypeError(f"{who}: key is {_show(key)}; it must be a JAX random key. Make one with jax.random.key(seed).")
    if shape != one:
        raise ValueError(
            f"{who}: key is {_show(key)}, several keys; it must be one. Pass one, or map over all with jax.vmap."
        )


def _common_size(who: str, data: Any) -> int:
    """The length of the leading axis that all leaves of `data` share."""
    leaves = [(f"data{jax.tree_util.keystr(path)}", leaf) for path, leaf in jax.tree.leaves_with_path(data)]
    if not leaves:
        raise ValueError(f"{who}: data is {_show(data)}, a pytree without arrays; it must hold at least one.")
    for name, leaf in leaves:
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array, bool, int, float, complex)):
            raise TypeError(
                f"{who}: {name} is {_show(leaf)}; every leaf must be a NumPy or JAX array. Convert it: numpy.asarray."
            )
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"{who}: {name} is a scalar, {_show(leaf)}; every leaf needs a leading axis with one entry per sample. "
                "Lists are pytrees too: turn a list of numbers into an array with numpy.asarray."
            )
    first, reference = leaves[0]
    for name, leaf in leaves[1:]:
        if leaf.shape[0] != reference.shape[0]:
            raise ValueError(
                f"{who}: {first} has {reference.shape[0]} samples, shape {reference.shape}, but {name} has "
                f"{leaf.shape[0]}, shape {leaf.shape}; leading axes must be equal. Put the sample axis first in both."
            )
    if reference.shape[0] == 0:
        raise ValueError(
            f"{who}: data is empty: {first} has shape {reference.shape}; it must hold at least one sample."
        )
    return reference.shape[0]


def _show(value: Any) -> str:
    """A value for an error message: arrays by dtype and shape, the rest by value and type."""
    if isinstance(value, (np.ndarray, jax.Array)):
        kind = "a traced value" if isinstance(value, Tracer) else "an array"
        return f"{kind} of dtype {value.dtype} and shape {value.shape}"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} of type {type(value).__name__}"


def _static_hint(value: Any) -> str:
    if not isinstance(value, Tracer):
        return ""
    names = '("size", "batch_size", "replacement", "drop_last")'
    return f" Shapes depend on it, so it is static: jax.jit(sample_batches, static_argnames={names})."
