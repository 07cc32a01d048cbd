"""The params and gradients that `masked`, `freeze` and `train_only` are tried on, and masks said in every way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

GENERATOR = np.random.default_rng(11)


def random(scale=1.0):
    shapes = {"body": {"bias": (2,), "kernel": (3, 2)}, "head": {"bias": (1,), "kernel": (2, 1)}}
    draw = lambda shape: jnp.asarray((scale * GENERATOR.normal(size=shape)).astype(np.float32))  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


PARAMS = random()
GRADS = [random() for _ in range(100)]
STACKED = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADS)
HEAD = {"body": False, "head": True}
WAYS = {
    "tree": {"body": {"bias": False, "kernel": False}, "head": {"bias": True, "kernel": True}},
    "upper part": HEAD,
    "function": lambda path, leaf: path.startswith("head"),
    "function of the params": lambda params: {name: name == "head" for name in params},
    "pattern": "head/*",
    "patterns": {"head/*": True, "*": False},
}
each_way = pytest.mark.parametrize("mask", WAYS.values(), ids=WAYS)


@jax.jit
def hundred(tx, params=PARAMS):
    """All updates of 100 steps and the last state."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (gradtx.apply_updates(params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (params, tx.init(params)), STACKED)
    return updates, state


def zeros_like(value):
    return jax.tree.map(jnp.zeros_like, value)


def once(tx, grads, params=PARAMS, **extra):
    return tx.update(grads, tx.init(params), params, **extra)[0]
