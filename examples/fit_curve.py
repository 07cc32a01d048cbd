"""Fit a curve to measurements, with errors of the parameters, and then 1000 such curves in one program.

    python examples/fit_curve.py

A peak on a sloping background is fitted with Levenberg-Marquardt, which ends by itself. The parameters are a dict.
`jax.vmap` makes a thousand fits of one, each of which ends for its own reason. They also check the standard errors:
the fitted parameters must scatter as widely as the errors of a single fit say.
"""

# %% Options
import argparse
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import gradtx

jax.config.update("jax_enable_x64", True)

parser = argparse.ArgumentParser(description="Fit a curve, and then a thousand curves.")
parser.add_argument("--out", default="fit_curve.png", help="where to save the picture (default: fit_curve.png)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 50 curves")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
curves = 50 if options.smoke else 1000

# %% The measurements: a peak at 4, noise of 0.1
x = jnp.linspace(0.0, 10.0, 60)
true = {"height": 2.0, "center": 4.0, "width": 0.8, "background": 0.5, "slope": 0.05}
start = {"height": 1.0, "center": 5.0, "width": 1.0, "background": 0.0, "slope": 0.0}


def model(params, x):
    peak = params["height"] * jnp.exp(-0.5 * ((x - params["center"]) / params["width"]) ** 2)
    return peak + params["background"] + params["slope"] * x


def measure(key):
    return model(true, x) + 0.1 * jax.random.normal(key, x.shape)


# %% One fit, and its standard errors: s² (JᵀJ)⁻¹ is the covariance, with s² the variance of the residuals
def residuals(params, y):
    return model(params, x) - y


def fit(y):
    begin = jax.tree.map(jnp.asarray, start)
    return gradtx.minimize(partial(residuals, y=y), begin, gradtx.levenberg_marquardt())


def standard_errors(params, y):
    vector, as_dict = ravel_pytree(params)
    r, J = residuals(params, y), jax.jacobian(lambda v: residuals(as_dict(v), y))(vector)
    variance = r @ r / (r.size - vector.size)
    return as_dict(jnp.sqrt(variance * jnp.diag(jnp.linalg.inv(J.T @ J))))


y = measure(jax.random.key(0))
result = fit(y)
errors = standard_errors(result.params, y)
print(f"{result.reason}; {result.evaluations} evaluations")
for name, value in result.params.items():
    print(f"{name:10}  {value:7.4f} ± {errors[name]:.4f}   true {true[name]}")

# %% All fits at once
many = jax.jit(jax.vmap(lambda y: fit(y)))
ys = jax.vmap(measure)(jax.random.split(jax.random.key(1), curves))
many = many.lower(ys).compile()
begun = time.perf_counter()
fits = jax.block_until_ready(many(ys))
seconds = time.perf_counter() - begun
reasons, counts = np.unique(fits.reason, return_counts=True)
print(f"\n{curves} curves in {seconds * 1000:.0f} ms, {fits.evaluations.min()} to {fits.evaluations.max()} evaluations")
print(*(f"{count} ended with {reason}" for reason, count in zip(reasons, counts, strict=True)), sep="\n")
for name, values in fits.params.items():
    print(f"{name:10}  mean {values.mean():7.4f}, scatter {values.std():.4f}, standard error {errors[name]:.4f}")

# %% The picture
plt.rc("axes.spines", top=False, right=False)
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
left.errorbar(x, y, 0.1, fmt=".", color="#666666", label="measured")
left.plot(x, model(result.params, x), color="#0072B2", label="fitted")
left.plot(x, model(start, x), color="#D55E00", linestyle="--", label="start")
left.set(title="One curve", xlabel="x", ylabel="y")
left.legend(frameon=False)
right.hist(fits.params["center"], bins=30, color="#0072B2")
right.axvline(true["center"], color="black", linestyle="--")
right.set(title=f"The center of the peak in {curves} fits", xlabel="center", ylabel="fits")
figure.savefig(options.out, dpi=110)
print(f"saved {options.out}")
