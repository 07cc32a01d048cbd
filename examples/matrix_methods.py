"""Do methods for whole matrices train faster than Adam? A character GPT on two cores, six methods, paired seeds.

    python examples/matrix_methods.py --tune             9 pairs of rates a method, on a seed of their own
    python examples/matrix_methods.py --steps 1000       6 other seeds at the best rates
    python examples/matrix_methods.py --pinned           3 methods, 3 seeds: some minutes

docs/pages/matrix-methods.md says what came out, and what does not follow from it. The text is the manual in Python.
"""

# %% Options
import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # with two, eigh took a hundred times as long where others use the cores

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

parser = argparse.ArgumentParser(description="Six methods for the matrices of a small GPT, paired by seed.")
parser.add_argument("--steps", type=int, default=300, help="updates of a run (default: 300, 0.73 epochs)")
parser.add_argument("--methods", help="some of them, separated by commas; the first one is the baseline")
parser.add_argument("--tune", action="store_true", help="each rate times 1/2, 1 and 2, with one seed, 100")
parser.add_argument("--pinned", action="store_true", help="3 seeds, and adamw, muon and soap unless told otherwise")
parser.add_argument("--out", help="a file for all results, as JSON, written after each method")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
STEPS, SEEDS = options.steps, 1 if options.tune else 3 if options.pinned else 6

# %% The text: the first 90 % for training, each character once an epoch; 512 windows of the rest for the table
symbols, text = np.unique(list("".join(topics.values()).encode("ascii", "ignore")), return_inverse=True)
LENGTH, WIDTH, HEADS = 64, 128, 4
windows = jnp.asarray(text[np.arange(0, len(text) - LENGTH, LENGTH)[:, None] + np.arange(LENGTH + 1)], jnp.int32)
train, held_out, _ = jnp.split(windows, len(windows) * 9 // 10 + np.array([0, 512]))


# %% The model: two blocks of attention and ReLU²; what writes to the residual stream starts at zero, as does the head
def init(key):
    keys = iter(jax.random.split(key, 10))

    def normal(rows, columns, scale=WIDTH**-0.5):
        return scale * jax.random.normal(next(keys), (rows, columns))

    params = {"embed": normal(len(symbols), WIDTH, 0.02), "place": normal(LENGTH, WIDTH, 0.02)}
    params |= {"norm": jnp.ones(WIDTH), "head": jnp.zeros((WIDTH, len(symbols)))}
    for block in ("block1", "block2"):
        params[block] = {name: normal(WIDTH, WIDTH) for name in "qkv"} | {"up": normal(WIDTH, 4 * WIDTH)}
        params[block] |= {"o": jnp.zeros((WIDTH, WIDTH)), "down": jnp.zeros((4 * WIDTH, WIDTH))}
        params[block] |= {"norm1": jnp.ones(WIDTH), "norm2": jnp.ones(WIDTH)}
    return params


def normed(x, gain):
    return gain * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def loss(params, tokens):
    x = (params["embed"][tokens[:, :-1]] + params["place"]).reshape(-1, WIDTH)
    for block in (params["block1"], params["block2"]):
        y = normed(x, block["norm1"])
        q, k, v = ((y @ block[name]).reshape(-1, LENGTH, HEADS, WIDTH // HEADS) for name in "qkv")
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(-1, WIDTH) @ block["o"]
        x = x + jax.nn.relu(normed(x, block["norm2"]) @ block["up"]) ** 2 @ block["down"]
    logits = normed(x, params["norm"]) @ params["head"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:].reshape(-1, 1), axis=1).mean()


# %% The methods: a direction for the matrices of the blocks, its best rate, and that of Adam for everything else
muon, mean = gradtx.scale_by_muon(), gradtx.scale_by_momentum(0.9)
roots = gradtx.graft(gradtx.scale_by_shampoo(0.95, precondition_frequency=10), gradtx.scale_by_rms(0.95), 10)
METHODS = {
    "adamw": (gradtx.scale_by_adam(0.9, 0.95), 2e-3, 6e-2),
    "muon": (muon >> gradtx.scale_by_fans(0.2), 8e-3, 2e-2),
    "normuon": (muon >> gradtx.scale_by_neuron_rms() >> gradtx.scale_by_fans(0.2), 8e-3, 2e-2),
    "soap": (gradtx.scale_by_soap(first_step="use"), 4e-3, 3e-2),
    "shampoo": (mean + roots, 4e-3, 3e-2),
    "kron": (mean + gradtx.scale_by_kron() >> gradtx.clip_by_block_rms(1.1), 2e-3, 1.5e-2),
}


def optimizer(direction, rate, aux):
    parts = STEPS // 20, STEPS - STEPS // 20 - STEPS * 3 // 5, STEPS * 3 // 5  # up in 5 %, down in the last 60 %
    rate, aux = (gradtx.warmup_stable_decay_schedule(peak, *parts) for peak in (rate, aux))
    matrices = direction >> gradtx.add_decayed_weights(0.1) >> gradtx.scale_by_learning_rate(rate)
    groups = {"matrices": matrices, "rest": gradtx.adam(aux, 0.9, 0.95)}
    return gradtx.partition(groups, {"*/norm*": "rest", "block*": "matrices", "*": "rest"})


# %% The runs: all rates and seeds of a method in one sweep, after a sweep of one step that compiles it
how = {"batch_size": 16, "drop_last": True, "seeds": SEEDS, "key": jax.random.key(100 if options.tune else 0)}
how["evaluate"] = lambda params: loss(params, held_out)
report = {"steps": STEPS, "cores": os.cpu_count(), "python": sys.version, "jax": jax.__version__, "runs": []}
print("method      rate  Adam's  held-out (sd)   gain (sd)         t  signs  CPU ms a step")
for name in options.methods.split(",") if options.methods else ["adamw", "muon", "soap"] if options.pinned else METHODS:
    direction, *best = METHODS[name]
    pairs = np.multiply(best, [(a, b) for a in (0.5, 1, 2) for b in (0.5, 1, 2)] if options.tune else [(1, 1)])
    txs = jax.vmap(functools.partial(optimizer, direction))(*pairs.T)
    for steps in (1, STEPS):
        begun, result = time.process_time(), gradtx.sweep(loss, init, txs, train, steps=steps, **how)
    cost = (time.process_time() - begun) / result.history["loss"].size * 1e3
    history = result.history["loss"].reshape(-1, SEEDS, STEPS).mean(1)
    curves = [[float(part.mean()) for part in np.array_split(row, -(-STEPS // 25))] for row in history]
    for (rate, aux), losses, curve in zip(pairs.tolist(), result.table["metric"].reshape(-1, SEEDS), curves):
        run = {"method": name, "rate": rate, "aux": aux, "held_out": losses.tolist(), "curve": curve, "ms": cost}
        gain = [*report["runs"], run][0]["held_out"] - losses
        spread, of_gain = (x.std(ddof=int(SEEDS > 1)) for x in (losses, gain))
        t, signs = gain.mean() / (of_gain or np.inf) * SEEDS**0.5, f"{(gain > 0).sum()} / {SEEDS}"
        start = f"{name:8} {rate:7.1e} {aux:7.1e}  {losses.mean():.3f} ({spread:.3f})"
        print(f"{start}  {gain.mean():6.3f} ({of_gain:.3f})  {t:6.1f}  {signs}  {cost:13.0f}", flush=True)
        report["runs"].append(run)
    if options.out:
        Path(options.out).write_text(json.dumps(report) + "\n")
print("gain: less than the first line; it counts if |t| >= 5 and all seeds agree in sign. CPU: without compilation")
