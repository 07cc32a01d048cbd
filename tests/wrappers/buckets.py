"""Params that fill several buckets (of the fixture `small_buckets`), and what is the same in buckets and alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx import testing

pack = functools.partial(gradtx.pack, fewest=2)
MASK = "*kernel"
GENERATOR = np.random.default_rng(5)


def leaf(*shape, dtype=jnp.float32):
    return jnp.asarray(GENERATOR.normal(size=shape).astype(np.float32)).astype(dtype)


# Several ranks, no axes, no elements, two dtypes, one larger than SMALL below; more than a bucket holds.
PARAMS = {
    "layers": [{"kernel": leaf(2, 3), "bias": leaf(3, dtype=jnp.bfloat16)} for _ in range(3)],
    "deep": leaf(2, 1, 2),
    "temperature": leaf(),
    "nothing": leaf(0, 3),
    "large": leaf(5, 7),
    "missing": None,
}
SINGLE = jax.tree.map(lambda w: w.astype(jnp.float32), PARAMS)


def matrices(path, leaf):
    return "matrices" if leaf.ndim > 1 else "others"


def steps(tx, params, grads, *, jitted=True, unpack=True, **extra):
    """Params, and the state leaf by leaf, after some steps; compiled with both donated, or eager."""

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params, **extra)
        return gradtx.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1)) if jitted else step
    params, state = jax.tree.map(jnp.copy, params), tx.init(params)
    for gradient in grads:
        params, state = step(params, state, gradient)
    return params, gradtx.unpacked(state, params) if unpack else state


def assert_close(actual, expected, ulps=2):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        if jnp.issubdtype(a.dtype, jnp.inexact):
            x, y = (np.asarray(v).astype(np.complex128) for v in (a, b))
            bound = ulps * float(jnp.finfo(a.dtype).eps) * np.abs(y).max(initial=0)
            assert (np.abs(x - y) <= bound).all(), (jax.tree_util.keystr(path), a, b)
        else:
            np.testing.assert_array_equal(a, b)


def same(tx, packed=None, params=PARAMS, ulps=0, **extra):
    """Packed and alone, the same params and the same state leaf by leaf: eager to so many ulps, 0 being to the bit."""
    packed, grads = pack(tx) if packed is None else packed, testing.gradients(params, 3)
    for jitted in (False, True):
        run = [steps(each, params, grads, jitted=jitted, **extra) for each in (packed, tx)]
        if tx.name == "tunable" or (jitted and tx.name == "kahan_summation"):
            run = [(params, None) for params, _ in run]  # other names; what is kept is a rounding error
        if jitted or ulps:
            assert_close(*run, ulps=max(ulps, 8 * jitted))  # products fused with sums
        else:
            assert gradtx.tree_equal(*run)
    return run[0][1]


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)
