"""The optimizer of a record as one expression: result 46 of track 3 of modded-nanogpt (2690 steps, June 2026).

    python examples/record_stack.py

The optimizer is that of github.com/KellerJordan/modded-nanogpt, records/track_3_optimization, for a GPT whose matrices
are in blocks; here it trains a small network. Three things are left out. The record has a gate between the eigenbasis
and plain momentum for the output projections of attention; its page says that the gate is not known to help. It gives a
whitened update its norm back, which the orthogonalization removes again. And it does not whiten the first update.
"""

# %% Schedules and groups
import argparse
import functools

import jax
import jax.numpy as jnp

import gradtx


def cooled(rate, begin):
    """Constant, then a power of the remaining steps, to 0 at 2900: `min(rate, c (2900 - step)^1.2)`."""
    return gradtx.polynomial_schedule(rate, 0.0, 1.2, 2900 - begin, begin)


def adam(rate, b2):
    """Adam without correction, for the vectors."""
    direction = gradtx.scale_by_momentum(0.8, form="average") + gradtx.scale_by_rms(b2, 1e-10, debias=False)
    return direction >> gradtx.scale_by_learning_rate(cooled(rate, 1487))


# The shares of the learning rate that the record's lookahead follows, and Muon's momentum.
AHEAD = gradtx.join_schedules(
    [
        gradtx.constant_schedule(0.0),
        gradtx.polynomial_schedule(0.3, 0.0, 1.2, 1413, 1188),
        gradtx.constant_schedule(0.0),
    ],
    [299, 1949],
)
MOMENTUM = gradtx.piecewise_interpolate_schedule("linear", 0.85, {300: 0.95 / 0.85, 2700: 1.0, 2900: 0.85 / 0.95})
GROUPS = {
    "embed": "embed",
    "head": "head",
    "*/gains": "gains",
    "*/proj_bias": "proj_bias",
    "*bias": "biases",
    "*": "matrices",
}

# %% The record
# fmt: off
record = gradtx.exponential_averaging(gradtx.partition({
    "embed": gradtx.adam(cooled(0.3, 1487), 0.8, 0.99, 1e-10),
    "head": gradtx.adam(cooled(1 / 320, 1487), 0.8, 0.99, 1e-10),
    "gains": adam(0.01, 0.99), "biases": adam(0.01, 0.997), "proj_bias": adam(0.01, 0.9965),
    "matrices": gradtx.scale_by_momentum(MOMENTUM, form="average", nesterov=True)
        >> gradtx.in_eigenbasis(gradtx.scale_by_rms(0.9, debias=False), 0.9, every=1, refresh="after")
        >> gradtx.orthogonalize((2.0, -1.5, 0.5), 12, 1e-7, preconditioning="schatten", dtype="bfloat16")
        >> gradtx.scale_by_fans() >> gradtx.brake_radius(0.5) >> gradtx.floor_updates(0.3825)
        >> gradtx.pin_radius(cooled(0.0375, 514), weight_decay=0.025),
    }, GROUPS) >> gradtx.ema_nesterov(AHEAD, 0.99), 1 - 1 / 150, debias=False, start=2400,
)
# fmt: on


def readout(state, params):
    """What the record evaluates: 0.4 w + 0.6 average, but for the embedding."""
    blend = jax.tree.map(lambda w, a: 0.4 * w + 0.6 * a, params, gradtx.averaged_params(state, params))
    return blend | {"embed": params["embed"]}


# %% A small network
def loss_of(params, tokens):
    """The next token from the present one, through one residual block."""
    x = params["embed"][tokens[:-1]]
    block = params["block"]
    hidden = jax.nn.relu(block["gains"] * x @ block["fc"] + block["fc_bias"])
    x = x + hidden @ block["proj"] + block["proj_bias"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x @ params["head"]), tokens[1:, None], axis=1))


def start(key, size=32, width=64):
    keys = jax.random.split(key, 4)
    block = {"fc": 0.1 * jax.random.normal(keys[1], (width, 4 * width)), "fc_bias": jnp.zeros(4 * width)}
    block |= {"proj": 0.1 * jax.random.normal(keys[2], (4 * width, width)), "proj_bias": jnp.zeros(width)}
    block |= {"gains": jnp.ones(width)}
    return {"embed": jax.random.normal(keys[0], (size, width)), "block": block, "head": jnp.zeros((width, size))}


def main(steps):
    params = start(jax.random.key(0))
    tokens = jnp.cumsum(jnp.arange(256) % 5) % 32  # follows a rule
    state = record.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        loss, gradient = jax.value_and_grad(loss_of)(params, tokens)
        updates, state = record.update(gradient, state, params)
        return gradtx.apply_updates(params, updates), state, loss

    print(gradtx.groups(record, params))
    for number in range(steps):
        params, state, loss = step(params, state)
        if number in (0, steps - 1):
            print(f"loss before update {number + 1}: {loss:.3f}")
    print(f"evaluated: {loss_of(readout(state, params), tokens):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The optimizer of result 46 of track 3 of modded-nanogpt.")
    parser.add_argument("--smoke", action="store_true", help="few steps")
    main(20 if parser.parse_args().smoke else 200)
