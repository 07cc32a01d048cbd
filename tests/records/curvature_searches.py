"""What evaluates the loss itself, or its residuals: line searches, and the directions and methods of smooth problems.

Their transcriptions are in `tests/curvature`, along runs on problems: here is what to call them with.
"""

from tests.records.base import FALLING, Record

CG = {"method": "hager_zhang"}
BOUNDED = {"bounds": (-1.0, 1.5)}

CURVATURE_SEARCHES = [
    Record(
        "scale_by_backtracking_linesearch",
        None,
        {"max_backtracking_steps": 8},
        laws=[{"max_backtracking_steps": 8} | BOUNDED],
        alike="scale_by_zoom_linesearch",
    ),
    Record(
        "scale_by_zoom_linesearch",
        None,
        {"max_linesearch_steps": 8},
        laws=[{"max_linesearch_steps": 8, "initial_guess_strategy": "one", "max_learning_rate": 1.0}],
    ),
    Record("scale_by_hager_zhang_linesearch", None, {"max_linesearch_steps": 8}, alike="scale_by_zoom_linesearch"),
    Record(
        "scale_by_lbfgs", None, {"memory_size": 2}, laws=[{"memory_size": 2, "damped": True, "bounds": (-1.0, 1.5)}]
    ),
    Record("scale_by_nonlinear_cg", None, {}, CG),
    Record("scale_by_gauss_newton", None, {"damping": 0.1}, {"damping": 0.1, "dense_below": 0, "max_cg_steps": 5}),
    Record("newton_cg", None, {"max_cg_steps": 5}),
    Record("levenberg_marquardt", None, {}, {"dense_below": 0}),
    Record("lbfgs", None, {"memory_size": 2}, laws=[{"learning_rate": FALLING, "linesearch": None, "memory_size": 2}]),
    Record("nonlinear_cg", None, {}, CG),
    Record("gauss_newton", None, {"damping": 0.1}),
]
