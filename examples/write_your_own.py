"""Write your own transform: clip gradients that are much larger than usual.

    python examples/write_your_own.py

Clipping at a fixed norm needs a number that nobody knows before training. `clip_spikes` learns it: the usual norm is an
exponentially weighted average of the norms so far, and a gradient longer than `factor` times that is shortened.
"""

# %% Options
import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

parser = argparse.ArgumentParser(description="Write your own transform: clip gradients much larger than usual.")
parser.add_argument("--updates", type=int, default=1000, help="updates of each run (default: 1000)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 50 updates")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
if options.smoke:
    options.updates = 50


# %% The transform: a measurement over all leaves, the numbers of the whole tree, and the formula for one leaf
@gradtx.transform
def clip_spikes(factor: gradtx.Positive = 2.0, decay: gradtx.Unit = 0.9) -> gradtx.Rule:
    def measure(u):
        return {"norm": gradtx.norm(u)}

    def once(*, norm, usual, count):
        usual = jnp.where(count == 1, norm, usual)  # at the first update, the first norm is the usual one
        allowed = jnp.minimum(norm, factor * usual)
        shrink = jnp.where(norm > 0, allowed / norm, 1.0)
        return {"usual": decay * usual + (1 - decay) * allowed, "shrink": shrink}

    def update(u, *, shrink):
        return shrink * u

    return gradtx.per_element(update, measure, once, usual=gradtx.fields.scalar(per="tree", nonnegative=True))


# %% It is a value like every other transform: it prints as code, composes, and is checked when it is called
tx = clip_spikes() >> gradtx.adam(0.01)
print(tx)
try:
    clip_spikes(decay=1.5)
except ValueError as error:
    print(f"refused: {error}")

# %% The same in NumPy, as the proof: five gradients, the fourth a spike
gradients = np.array([[3, 4], [6, 8], [0, 1], [300, 400], [4, 3]], np.float32)
clipped, usual = [], np.linalg.norm(gradients[0])
for gradient in gradients:
    norm = np.linalg.norm(gradient)
    allowed = min(norm, 2.0 * usual)
    clipped.append(gradient * allowed / norm)
    usual = 0.9 * usual + 0.1 * allowed

alone = clip_spikes()
_, updates = jax.lax.scan(lambda state, g: alone.update(g, state)[::-1], alone.init(gradients[0]), gradients)
np.testing.assert_allclose(updates, clipped, rtol=1e-6)
print(f"equal to NumPy; norms {np.linalg.norm(gradients, axis=1)} became {np.linalg.norm(updates, axis=1).round(2)}")


# %% In use: fit a line through batches of which every 50th is corrupt. tx is an argument, compiled once per structure
@partial(jax.jit, donate_argnames=("params", "state"))
def step(tx, params, state, batch):
    def cost(params):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

    updates, state = tx.update(jax.grad(cost)(params), state, params)
    return gradtx.apply_updates(params, updates), state


def distance_from_truth(tx):
    """Train with tx and return the distance of the final weights from those that generated the data."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20).astype(np.float32)
    params = {"w": jnp.zeros(20)}
    state = tx.init(params)
    for i in range(options.updates):
        x = rng.normal(size=(32, 20)).astype(np.float32)
        batch = {"x": x, "y": x @ truth + 0.1 * rng.normal(size=32).astype(np.float32)}
        if i % 50 == 49:
            batch["y"] = 1000 * rng.normal(size=32).astype(np.float32)
        params, state = step(tx, params, state, batch)
    return np.linalg.norm(params["w"] - truth)


print(f"{'distance from the truth':<25}{'alone':>8}{'clipped':>10}")
for tx in (gradtx.sgd(0.01), gradtx.adam(0.01), gradtx.rmsprop(0.01)):
    print(f"{tx.name:<25}{distance_from_truth(tx):8.3f}{distance_from_truth(clip_spikes() >> tx):10.3f}")
