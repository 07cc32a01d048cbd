"""Moré, Garbow and Hillstrom's problems: each method ends at a minimum, in float64 and float32."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import landscape

FEW = ["helical_valley", "gaussian", "penalty_2", "brown_and_dennis", "beale", "wood"]
DIRECTION = gradtx.scale_by_lbfgs() >> gradtx.scale(-1.0)
OF_RESIDUALS = {"levenberg_marquardt", "gauss_newton"}
METHODS = {
    "lbfgs": gradtx.lbfgs(),
    "hager_zhang": DIRECTION >> gradtx.scale_by_hager_zhang_linesearch(initial_guess_strategy="one"),
    "backtracking": DIRECTION >> gradtx.scale_by_backtracking_linesearch(30, increase_factor=1e9),
    "nonlinear_cg": gradtx.nonlinear_cg("hager_zhang"),
    "newton_cg": gradtx.newton_cg(),
    "levenberg_marquardt": gradtx.levenberg_marquardt(),
    "gauss_newton": gradtx.gauss_newton(1e-3),
}


def run(name, problem, dtype, tolerance):
    """The result, and the loss at the end."""
    loss = problem.residuals if name in OF_RESIDUALS else problem
    with jax.numpy_dtype_promotion("standard"):
        result = gradtx.minimize(loss, jnp.asarray(problem.start, dtype), METHODS[name], tolerance=tolerance)
    return result, float(problem(jnp.asarray(result.params, "float64")))


def is_solved(problem, value, relative=1e-6):
    """Moré and Wild's measure is of the decrease; this one is of the published digits."""
    return any(abs(value - least) <= max(relative * max(1, abs(least)), 1e-4 * abs(least)) for least in problem.minima)


@pytest.mark.thorough
def test_probe(x64):
    for name in METHODS:
        done, count = [], []
        for key, problem in landscape.problems.EVERY.items():
            result, value = run(name, problem, "float64", 1e-6)
            done.append(is_solved(problem, value))
            count.append(result.evaluations)
            if not done[-1]:
                print("   ", key, result.reason, result.evaluations, value, problem.minima)
        print(name, sum(done), statistics.median(count), count)
        bad = []
        for key, problem in landscape.problems.EVERY.items():
            result, value = run(name, problem, "float32", 1e-4)
            if not is_solved(problem, value, 1e-4):
                bad.append((key, result.reason, result.evaluations, value, problem.minima))
        print("   float32", 20 - len(bad), bad)
