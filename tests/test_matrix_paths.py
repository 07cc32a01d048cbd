"""The file of outside paths of matrix methods is whole, and what is held against it would be noticed to differ."""

import numpy as np
import pytest

import gradtx
from tests import matrix_paths
from tests.records import matrix_problem as problem

PATHS = [name for name, case in matrix_paths.golden()["paths"].items() if "path" in case]


def test_the_steps_are_those_of_the_problem():
    assert matrix_paths.golden()["steps"] == problem.SHOWN


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_whole_and_moves(name):
    case = matrix_paths.read(name)
    assert list(case["path"]) == case["leaves"]
    for leaf, start in problem.params(*case["leaves"]).items():
        rows = np.array(case["path"][leaf])
        assert rows.shape == (len(problem.SHOWN), start.size)
        assert np.isfinite(rows).all()
        assert np.abs(rows[-1] - start.ravel()).max() > 0.01


def test_the_gradient_is_that_of_the_function():
    def f(x):
        return sum(0.5 * np.sum(g * (x[name] - target(name))) for name, g in problem.gradient(x).items())

    x = problem.params()
    for name, g in problem.gradient(x).items():
        direction = problem.scattered(g.shape, 99)
        either = [f(x | {name: x[name] + sign * 1e-3 * direction}) for sign in (1, -1)]
        np.testing.assert_allclose((either[0] - either[1]) / 2e-3, np.sum(g * direction), rtol=1e-10)


def target(name):
    """Where the gradient is zero, and f too: f is quadratic, so that it is half the gradient times the distance."""
    return problem.scattered(problem.SHAPES[name], 19 + problem.key(name))


@pytest.mark.usefixtures("x64")
def test_adam_on_the_bias_is_metas_soap_and_another_rate_is_noticed():
    case = matrix_paths.read("soap: meta")
    bias = case | {"leaves": ["bias"]}
    arguments = {"b1": 0.9, "b2": 0.95, "eps": case["arguments"]["epsilon"]}
    for factor, same in [(1.0, True), (1 + 1e-9, False)]:
        ours = matrix_paths.path(gradtx.adam(factor * case["arguments"]["lr"], **arguments), bias)
        assert (matrix_paths.difference(ours, bias) < 1e-12) == same
