"""What the tests of the wrappers share: a tree of params, runs, comparisons with a bound, transforms to wrap."""

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.testing.runs import assert_same
from tests.records import streams

SHAPES = {
    "dense": {"bias": (8,), "kernel": (8, 3)},
    "norm": {"bias": (8,), "scale": (8,)},
    "out": {"bias": (8,), "kernel": (8, 3)},
}
STEPS = 40


def drawn(seed, *leading, shapes=SHAPES):
    """Normal numbers, a leaf for each shape."""
    generator = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(generator.normal(size=(*leading, *shape)).astype(np.float32))  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


PARAMS, GRADS, STACKED = drawn(11), drawn(12), drawn(13, 8)


def once(tx, grads=GRADS, params=PARAMS, **extra):
    """The first updates."""
    return tx.update(grads, tx.init(params), params, **extra)[0]


@jax.jit
def run(tx, params, gradients):
    """Params, state and updates after each of the stacked gradients, in one program."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = gradtx.apply_updates(params, updates)
        return (params, state), (params, state, updates)

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]


def last(trees):
    return jax.tree.map(lambda leaf: leaf[-1], trees)


def train(tx, params, gradients, **extra):
    """The last params and state of an eager run over a list of gradients."""
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params, **extra)
        params = gradtx.apply_updates(params, updates)
    return params, state


def run_rows(tx, params, gradients):
    """Params after each step as rows, and the states, of a run on the rows of `tests/records`."""
    params, gradients = (jax.tree.map(jnp.asarray, streams.split(rows)) for rows in (params, gradients))
    params, states, _ = run(tx, params, gradients)
    return rows(params), states


def rows(trees):
    return streams.flatten(trees, leading=1)


def assert_rows(actual, expected, tolerance=1e-12):
    """To so much of the largest that an element has been in the run: sums are rounded in another order."""
    expected = np.asarray(expected)
    size = np.abs(expected).max(axis=0)
    assert np.isfinite(expected).all()
    off = np.abs(actual - expected) / np.where(size > 0, size, 1)
    assert off.max() <= tolerance, f"off by {off.max():.2e} of an element's largest; allowed: {tolerance}"


def assert_close(actual, expected, ulps=8):
    """Same structure, shapes and dtypes; values within `ulps` of the leaf's largest, 8 because of fused products."""
    assert_same(actual, expected, ulps)


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def all_finite(tree):
    return all(np.isfinite(np.asarray(leaf).astype(np.complex128)).all() for leaf in jax.tree.leaves(tree))


def distance(params):
    """A loss at any params."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda w: jnp.sum(w.astype(jnp.float32) ** 2), params))


def pulled(params):
    """A gradient at any params."""
    return jax.tree.map(lambda w: 0.5 * w + 1, params)


def matrices(path, leaf):
    return leaf.ndim == 2


def by_rank(path, leaf):
    return "matrices" if leaf.ndim == 2 else "vectors"


# Transforms that are wrapped ------------------------------------------------------------------------------------------

HEARD: list[dict] = []


@gradtx.transform
def hearing() -> gradtx.Rule:
    """Writes down in HEARD what it is told, and what the functions that it is given say at its params."""

    def update(updates, state, params=None, *, value, value_fn=None, grad_fn=None, grad=None, weights=None, note=None):
        measured = None if value_fn is None else value_fn(params)
        slopes = None if grad_fn is None else grad_fn(params)
        HEARD.append(
            {"updates": updates, "params": params, "value": value, "measured": measured, "slopes": slopes}
            | {"grad": grad, "weights": weights, "note": note}
        )
        return updates, state

    return gradtx.Rule(update=update, reach="element", traits=("sums",))


@gradtx.transform
def takes_scaled() -> gradtx.Rule:
    """Is to be given the gradients as they come."""
    return gradtx.Rule(update=lambda updates, state: (updates, state), place="first")


@gradtx.transform
def has_the_last_word() -> gradtx.Rule:
    """Its updates are to be applied as they are."""
    return gradtx.Rule(update=lambda updates, state: (updates, state), place="last")
