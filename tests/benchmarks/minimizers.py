"""Solvers for smooth minimization, of gradtx and others, each as one call: `solver(task, start)` gives x and a count.

The rules are the same for all: float64, at most 500 iterations, and an end where no entry of the gradient exceeds 1e-6,
for those that can be told so. What a solver counts is said where it is made; None asks for a count of the loss's calls.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

Solver = Callable[["Task", np.ndarray], tuple[Any, int | None]]

ITERATIONS, TOLERANCE = 500, 1e-6


@dataclass(eq=False)
class Task:
    """A problem as solvers want it: for JAX `loss` and `residuals`, for SciPy functions of NumPy arrays."""

    name: str
    start: np.ndarray
    loss: Callable[[Any], Any]
    residuals: Callable[[Any], Any] | None  # where it is a sum of squares
    value_and_grad: Callable[[np.ndarray], tuple[float, np.ndarray]]
    hessian: Callable[[np.ndarray], np.ndarray]
    product: Callable[[np.ndarray, np.ndarray], np.ndarray]
    calls: list[int] = field(default_factory=lambda: [0])  # how often NumPy has been called for a value, where counted


# gradtx ---------------------------------------------------------------------------------------------------------------


def gradtx_minimize(tx: Any, *, of_residuals: bool = False) -> Solver:
    """A method of gradtx; the tolerance of residuals is smaller, as MINPACK's."""

    def solve(task: Task, start: np.ndarray) -> tuple[Any, int]:
        function = task.residuals if of_residuals else task.loss
        tolerance = 1e-8 if of_residuals else TOLERANCE
        result = gradtx.minimize(function, jnp.asarray(start), tx, tolerance=tolerance, steps=ITERATIONS)
        return result.params, result.evaluations

    return solve


OURS: dict[str, Solver] = {
    "gradtx lbfgs": gradtx_minimize(gradtx.lbfgs()),
    "gradtx lbfgs, Hager-Zhang": gradtx_minimize(
        gradtx.lbfgs(linesearch=gradtx.scale_by_hager_zhang_linesearch(initial_guess_strategy="one"))
    ),
    "gradtx lbfgs, backtracking": gradtx_minimize(
        gradtx.lbfgs(linesearch=gradtx.scale_by_backtracking_linesearch(30, decrease_factor=0.5, increase_factor=1e9))
    ),
    "gradtx nonlinear_cg": gradtx_minimize(gradtx.nonlinear_cg()),
    "gradtx newton_cg": gradtx_minimize(gradtx.newton_cg()),
}
OURS_OF_RESIDUALS: dict[str, Solver] = {
    "gradtx levenberg_marquardt": gradtx_minimize(gradtx.levenberg_marquardt(), of_residuals=True),
    "gradtx gauss_newton": gradtx_minimize(gradtx.gauss_newton(), of_residuals=True),
}

# SciPy ----------------------------------------------------------------------------------------------------------------


def scipy(method: str, counted: str = "nfev", derivative: str = "", **options: Any) -> Solver:
    """`counted` is nfev, evaluations of value and gradient, or njev, of gradients. `derivative`: hess or hessp."""

    def solve(task: Task, start: np.ndarray) -> tuple[Any, int]:
        from scipy.optimize import minimize

        second = {"hess": task.hessian, "hessp": task.product}
        extra = {derivative: second[derivative]} if derivative else {}
        given = {"maxiter": ITERATIONS} | options
        found = minimize(task.value_and_grad, start, jac=True, method=method, options=given, **extra)
        return found.x, found[counted]

    return solve


def minpack(task: Task, start: np.ndarray) -> tuple[Any, int]:
    """Counts the evaluations of the residuals; Jacobians come beside them."""
    from scipy.optimize import least_squares

    residuals, jacobian = _least_squares(task.residuals)
    limits = {"xtol": 1e-10, "ftol": 1e-10, "gtol": 1e-10}
    found = least_squares(residuals, start, jacobian, method="lm", max_nfev=ITERATIONS, **limits)
    return found.x, found.nfev


@functools.lru_cache(1)
def _least_squares(residuals: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    value, slope = jax.jit(residuals), jax.jit(jax.jacfwd(residuals))
    return lambda x: np.asarray(value(x)), lambda x: np.asarray(slope(x))


# Libraries of JAX: one compiled program, kept until the next loss -----------------------------------------------------


def compiled(build: Callable[[Callable[..., Any]], Callable[[Any], Any]], what: str = "loss") -> Solver:
    """A solver of a function of the start, which `build` makes of a loss, or of residuals."""
    kept = functools.lru_cache(1)(lambda function: jax.jit(build(function)))

    def solve(task: Task, start: np.ndarray) -> tuple[Any, None]:
        return jax.block_until_ready(kept(getattr(task, what))(start)), None

    return solve


def optax_lbfgs(**options: Any) -> Solver:
    """The loop of optax's documentation."""

    def build(loss: Callable[..., Any]) -> Callable[[Any], Any]:
        import optax

        search = optax.scale_by_backtracking_linesearch(**options) if options else None
        tx = optax.lbfgs(linesearch=search) if search else optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carry: Any) -> Any:
            x, state, i = carry
            value, grad = value_and_grad(x, state=state)
            updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=loss)
            return optax.apply_updates(x, updates), state, i + 1

        def goes_on(carry: Any) -> Any:
            _, state, i = carry
            grad = optax.tree_utils.tree_get(state, "grad")
            return (i == 0) | (i < ITERATIONS) & (jnp.max(jnp.abs(grad)) > TOLERANCE)

        return lambda x: jax.lax.while_loop(goes_on, step, (x, tx.init(x), 0))[0]

    return compiled(build)


def jaxopt_lbfgs(linesearch: str) -> Solver:
    def build(loss: Callable[..., Any]) -> Callable[[Any], Any]:
        import jaxopt

        found = jaxopt.LBFGS(loss, maxiter=ITERATIONS, tol=TOLERANCE, linesearch=linesearch, implicit_diff=False)
        return lambda x: found.run(x).params

    return compiled(build)


def optimistix(method: str, what: str = "loss") -> Solver:
    """It ends by small changes of x and f, and counts rejected steps as steps."""

    def build(function: Callable[..., Any]) -> Callable[[Any], Any]:
        import optimistix

        run = optimistix.minimise if what == "loss" else optimistix.least_squares
        solver = getattr(optimistix, method)(rtol=1e-10, atol=1e-10)

        def solve(x: Any) -> Any:
            return run(lambda x, _: function(x), solver, x, max_steps=4 * ITERATIONS, throw=False).value

        return solve

    return compiled(build, what)


SMOOTH: dict[str, Solver] = {
    "SciPy L-BFGS-B": scipy("L-BFGS-B", maxcor=10, ftol=0.0, gtol=TOLERANCE, maxfun=100_000),
    "SciPy BFGS": scipy("BFGS", gtol=TOLERANCE),
    "optax L-BFGS": optax_lbfgs(),
    "optax L-BFGS, backtracking": optax_lbfgs(max_backtracking_steps=30, store_grad=True),
    "jaxopt L-BFGS": jaxopt_lbfgs("zoom"),
    "jaxopt L-BFGS, Hager-Zhang": jaxopt_lbfgs("hager-zhang"),
    "optimistix L-BFGS": optimistix("LBFGS"),
}
NEWTON: dict[str, Solver] = {
    "SciPy Newton-CG": scipy("Newton-CG", "njev", "hessp", xtol=1e-8),
    "SciPy trust-ncg": scipy("trust-ncg", "njev", "hessp", gtol=TOLERANCE),
    "SciPy trust-exact": scipy("trust-exact", "njev", "hess", gtol=TOLERANCE),
}
LEAST_SQUARES: dict[str, Solver] = {
    "SciPy least_squares, lm": minpack,
    "optimistix LevenbergMarquardt": optimistix("LevenbergMarquardt", "residuals"),
    "optimistix Dogleg": optimistix("Dogleg", "residuals"),
}
