"""The searches and L-BFGS once more in NumPy, float64, as their sources write them: loops and lists.

A search is given `evaluate(t) -> (loss, slope)` along the direction, the loss and the slope at 0, the first step and
the numbers. It returns a `Found`.
"""

import contextlib
from typing import NamedTuple

import numpy as np


class End(NamedTuple):
    """A trial."""

    step: float
    value: float
    slope: float


class Found(NamedTuple):
    step: float
    """The accepted step, or that with the lowest loss; 0 for none."""
    accepted: bool
    trials: list


class Path:
    """Evaluates, keeps what was tried, and says when to stop."""

    def __init__(self, evaluate, value, slope, limit, good):
        self.evaluate, self.start, self.limit, self.good = evaluate, End(0.0, value, slope), limit, good
        self.trials, self.best, self.accepted = [], self.start, False

    def __call__(self, step):
        if len(self.trials) == self.limit or not 0 < step < np.inf:
            raise StopIteration
        value, slope = self.evaluate(step)
        if not (np.isfinite(value) and np.isfinite(slope)):
            value, slope = np.inf, np.inf
        trial = End(step, value, slope)
        self.trials.append(step)
        self.accepted = bool(np.isfinite(value) and self.good(trial))
        if self.accepted or value < self.best.value:
            self.best = trial
        if self.accepted:
            raise StopIteration
        return trial

    def run(self, procedure):
        with contextlib.suppress(StopIteration):
            procedure(self)
        return Found(self.best.step, self.accepted, self.trials)


def armijo(start, c1, tol=0.0):
    return lambda trial: trial.value <= start.value + c1 * trial.step * start.slope + tol


def approximate(start, c1, eps):
    """Hager and Zhang 2005, equation 4.4 with the condition on the loss."""

    def holds(trial):
        return trial.slope <= (2 * c1 - 1) * start.slope and trial.value <= start.value + eps * abs(start.value)

    return holds


def backtracking(evaluate, value, slope, first, limit, *, c1=1e-4, decrease=0.8):
    """Nocedal and Wright 2006, algorithm 3.1."""
    path = Path(evaluate, value, slope, limit, armijo(End(0.0, value, slope), c1))

    def procedure(path):
        step = first
        while True:
            path(step)
            step *= decrease

    return path.run(procedure)


def zoom(evaluate, value, slope, first, limit, *, c1=1e-4, c2=0.9, eps=1e-6, increase=2.0, most=np.inf, precision=1e-5):
    """Nocedal and Wright 2006, algorithms 3.5 and 3.6, with the approximate condition of Hager and Zhang."""
    start = End(0.0, value, slope)
    enough, nearly = armijo(start, c1), approximate(start, c1, eps)

    def good(trial):
        flat = abs(trial.slope) <= c2 * abs(slope)
        furthest = trial.step >= most and trial.slope < 0
        return (flat and (enough(trial) or nearly(trial))) or (enough(trial) and furthest)

    def bracket(path):
        """Algorithm 3.5: the ends of an interval with a good step, the first with the lowest loss so far."""
        before, step = start, first
        while True:
            trial = path(step)
            if not enough(trial) or trial.value > before.value:
                return before, trial
            if trial.slope >= 0:
                return trial, before
            before, step = trial, min(increase * trial.step, most)

    def procedure(path):
        """Algorithm 3.6."""
        low, high = bracket(path)
        while not (abs(high.step - low.step) <= precision * high.step and enough(low) and low.step > 0):
            trial = path(inside(low, high))
            if not enough(trial) or trial.value > low.value:
                high = trial
            else:
                if trial.slope * (high.step - low.step) >= 0:
                    high = low
                low = trial

    return Path(evaluate, value, slope, limit, good).run(procedure)


def inside(low, high):
    """The minimum of the cubic through both ends, else of the parabola; else the middle, or nearer to `low`."""
    width = high.step - low.step
    shares = []
    if np.isfinite(high.value):
        # In units of the width: values and slopes at 0 and 1 give the coefficients.
        rows = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 1, 2, 3]], float)
        given = [low.value, high.value, low.slope * width, high.slope * width]
        _, b, c, d = np.linalg.solve(rows, given)
        with np.errstate(divide="ignore", invalid="ignore"):
            # The root of b + 2 c x + 3 d x² where it rises, also where d is 0.
            shares = [-b / (c + np.sqrt(max(c * c - 3 * b * d, 0.0))), -b / (2 * (given[1] - given[0] - b))]
    shares = [share for share in shares if 0.1 <= share <= 0.9]
    share = shares[0] if shares else 0.5 if np.isfinite(high.value) else 0.1
    return low.step + share * width


def hager_zhang(evaluate, value, slope, first, limit, *, c1=0.1, c2=0.9, eps=1e-6, increase=5.0, theta=0.5, gamma=0.66):
    """Hager and Zhang 2006, the line search of CG_DESCENT, step by step as in section 4 of the paper of 2005."""
    start = End(0.0, value, slope)
    enough, nearly = armijo(start, c1), approximate(start, c1, eps)

    def good(trial):
        return trial.slope >= c2 * slope and (enough(trial) or nearly(trial))

    def low(trial):
        return trial.value <= value + eps * abs(value)

    def close(path, a, b):
        """U3."""
        while True:
            d = path(a.step + theta * (b.step - a.step))
            if d.slope >= 0:
                return a, d
            if low(d):
                a = d
            else:
                b = d

    def update(path, a, b, step):
        """U0 to U3: the interval, and the trial if there was one."""
        if not a.step < step < b.step:
            return a, b, None
        c = path(step)
        if c.slope >= 0:
            return a, c, c
        if low(c):
            return c, b, c
        return *close(path, a, c), c

    def bracket(path):
        """B0 to B3."""
        a, step = start, first
        while True:
            c = path(step)
            if c.slope >= 0:
                return a, c
            if not low(c):
                return close(path, a, c)
            a, step = c, increase * step

    def secant2(path, a, b):
        """S1 to S4."""
        A, B, c = update(path, a, b, secant(a, b))
        if c is not None and c is B:
            return update(path, A, B, secant(b, B))[:2]
        if c is not None and c is A:
            return update(path, A, B, secant(a, A))[:2]
        return A, B

    def procedure(path):
        """L0 to L3."""
        a, b = bracket(path)
        while True:
            A, B = secant2(path, a, b)
            if B.step - A.step > gamma * (b.step - a.step):
                A, B, _ = update(path, A, B, (A.step + B.step) / 2)
            a, b = A, B

    return Path(evaluate, value, slope, limit, good).run(procedure)


def secant(a, b):
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a.step * np.float64(b.slope) - b.step * a.slope) / (np.float64(b.slope) - a.slope)


def inverse_hessian(pairs, scale, n):
    """BFGS: `H <- (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ` from scale I on."""
    H, one = scale * np.eye(n), np.eye(n)
    for s, y in pairs:
        rho = 1 / (s @ y)
        H = (one - rho * np.outer(s, y)) @ H @ (one - rho * np.outer(y, s)) + rho * np.outer(s, s)
    return H


def lbfgs(points, gradients, m, *, scaled=True, damped=False, bounds=None):
    """The direction at each of the points, from dense matrices, and the pairs kept at each."""
    pairs, scale, directions, kept = [], 1.0, [], []
    for t, (w, g) in enumerate(zip(points, gradients, strict=True)):
        still = False
        first = min(1.0, 1 / np.linalg.norm(g))
        if t > 0:
            s, y = w - points[t - 1], g - gradients[t - 1]
            still = not s.any()
            first = (1.0 if still else np.linalg.norm(s)) / np.linalg.norm(g)
            if damped and s @ y < s @ s / scale / 4:
                theta = 0.75 * (s @ s / scale) / (s @ s / scale - s @ y)
                y = theta * y + (1 - theta) * s / scale
            if s @ y > 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
                pairs.append((s, y))
                scale = s @ y / (y @ y) if scaled else 1.0
        first = first if scaled else 1.0
        begin = (scale if pairs else first) if scaled else 1.0
        free = np.ones(len(w), bool)
        if bounds is not None:
            free = ~((w <= bounds[0]) & (g > 0) | (w >= bounds[1]) & (g < 0))
        reduced = [(s[free], y[free]) for s, y in pairs[-m:]]
        reduced = [(s, y) for s, y in reduced if s @ y > 1e-10 * np.linalg.norm(s) * np.linalg.norm(y)]
        u = np.zeros(len(w))
        u[free] = inverse_hessian(reduced, begin, free.sum()) @ g[free]
        if not u @ np.where(free, g, 0) > 0 or still:
            u, pairs = first * np.where(free, g, 0), []
        directions.append(u)
        kept.append(list(pairs))
    return np.array(directions), kept
