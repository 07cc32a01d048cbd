"""A physics-informed network: solve a differential equation with Adam, and with methods that use curvature.

    python examples/pinn.py

The equation is -u'' = f on [0, 1] with u = 0 at both ends; f is chosen so that u is known. A network is asked for a
small residual u'' + f at 100 points. This is a least-squares problem without noise, so digits count: Adam ends at an
error of about 1e-6. In the same time methods that know the curvature end far below.
"""

# %% Options
import argparse
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp

import gradtx

jax.config.update("jax_enable_x64", True)  # in float32 all methods end at about the same error

parser = argparse.ArgumentParser(description="Solve a differential equation with a network.")
parser.add_argument("--seeds", type=int, default=3, help="starts of the network (default: 3)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: few steps, one start")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
seeds, shorter = (1, 100) if options.smoke else (options.seeds, 1)

# %% The problem: the solution that the network has to find, and the right side that belongs to it
points, test_points = jnp.linspace(0.0, 1.0, 100), jnp.linspace(0.0, 1.0, 1001)


def solution(x):
    return jnp.sin(jnp.pi * x) + jnp.sin(4 * jnp.pi * x) / 4


def second_derivative(u, x):
    return jax.vmap(jax.grad(jax.grad(u)))(x)


f = -second_derivative(solution, points)


# %% The network, which is 0 at both ends whatever its params are, and its residuals
def init(key):
    one, two, three, four = jax.random.split(key, 4)
    return {
        "in": {"w": 4 * jax.random.normal(one, (16,)), "b": jax.random.uniform(two, (16,), minval=-3.0, maxval=3.0)},
        "hidden": {"w": jax.random.normal(three, (16, 16)) / 4, "b": jnp.zeros(16)},
        "out": {"w": jax.random.normal(four, (16,)) / 4, "b": jnp.zeros(())},
    }


def network(params, x):
    hidden = jnp.tanh(x * params["in"]["w"] + params["in"]["b"])
    hidden = jnp.tanh(hidden @ params["hidden"]["w"] + params["hidden"]["b"])
    return x * (1 - x) * (hidden @ params["out"]["w"] + params["out"]["b"])


def residuals(params):
    return (second_derivative(partial(network, params), points) + f) / jnp.sqrt(points.size)


def loss(params):
    return jnp.sum(residuals(params) ** 2) / 2


@jax.jit
def error(params):
    """The distance to the solution, relative to its size."""
    u, exact = jax.vmap(partial(network, params))(test_points), solution(test_points)
    return jnp.linalg.norm(u - exact) / jnp.linalg.norm(exact)


# %% The methods: Adam alone, and two others that start where a short run of Adam ends
def run(cost, params, tx, steps):
    """The params and the seconds of a run of at most so many steps; the program is compiled before."""
    run = partial(gradtx.minimize, cost, params, tx, progress=False)
    run(steps=1)
    begun = time.perf_counter()
    result = run(steps=max(1, steps // shorter))
    return jax.block_until_ready(result.params), time.perf_counter() - begun


def adam(steps):
    return gradtx.adam(gradtx.cosine_decay_schedule(1e-2, max(1, steps // shorter)))


methods = {
    "L-BFGS": (loss, gradtx.lbfgs(memory_size=50), 8000),
    "Gauss-Newton": (residuals, gradtx.gauss_newton(damping=1e-10, dense_below=400), 500),
}
rows = {}
for seed in range(seeds):
    start = init(jax.random.key(seed))
    rows.setdefault("Adam, 60000 steps", []).append(run(loss, start, adam(60_000), 60_000))
    short, seconds = run(loss, start, adam(2000), 2000)
    rows.setdefault("Adam, 2000 steps", []).append((short, seconds))
    for name, (cost, tx, steps) in methods.items():
        params, more = run(cost, short, tx, steps)
        rows.setdefault(f"  then {name}, {steps}", []).append((params, seconds + more))

# %% The table: medians of all starts
devices = (
    f"{len(jax.devices())} {jax.devices()[0].platform} device(s), jax {jax.__version__}, gradtx {gradtx.__version__}"
)
size = sum(leaf.size for leaf in jax.tree.leaves(start))
print(f"{size} params, {points.size} points, {seeds} start(s), {devices}")
print(f"{'':32}   loss     error   seconds")
for name, found in rows.items():
    losses, errors = (jnp.median(jnp.stack([of(params) for params, _ in found])) for of in (loss, error))
    print(f"{name:32} {losses:.1e}  {errors:.1e}  {jnp.median(jnp.array([each for _, each in found])):6.1f}")
