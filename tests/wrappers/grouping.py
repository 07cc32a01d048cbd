"""The params and gradients that `partition` is tried on, and labels said in every way."""

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

GENERATOR = np.random.default_rng(12)
SHAPES = {
    "dense": {"bias": (8,), "kernel": (8, 3)},
    "norm": {"bias": (8,), "scale": (8,)},
    "out": {"bias": (1,), "kernel": (8, 1)},
}


def random():
    draw = lambda shape: jnp.asarray(GENERATOR.normal(size=shape).astype(np.float32))  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


PARAMS = random()
GRADS = [random() for _ in range(100)]
STACKED = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADS)
LABELS = {"*/kernel": "matrices", "*": "vectors"}
WAYS = {
    "tree": jax.tree.map(lambda leaf: "matrices" if leaf.ndim == 2 else "vectors", PARAMS),
    "upper part": {
        "dense": {"bias": "vectors", "kernel": "matrices"},
        "norm": "vectors",
        "out": {"bias": "vectors", "kernel": "matrices"},
    },
    "function": lambda path, leaf: "matrices" if leaf.ndim == 2 else "vectors",
    "function of the params": lambda params: jax.tree.map(
        lambda leaf: "matrices" if leaf.ndim == 2 else "vectors", params
    ),
    "patterns": LABELS,
}
TWO = {"matrices": gradtx.adam(0.1), "vectors": gradtx.sgd(0.5)}


@jax.jit
def hundred(tx, params=PARAMS, stacked=STACKED):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (gradtx.apply_updates(params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (params, tx.init(params)), stacked)
    return updates, state


def part(values, kernels):
    """The kernels, or the others, None in place of the rest."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if (path[-1].key == "kernel") == kernels else None, values
    )


def once(tx, grads, params=PARAMS, **extra):
    return tx.update(grads, tx.init(params), params, **extra)[0]
