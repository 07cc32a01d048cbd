"""What the pictures are drawn of, and how a drawn one is read."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import gradtx
from gradtx import landscape, plot

NAN, INF = float("nan"), float("inf")
LOSS = np.exp(np.random.default_rng(0).normal(size=50)) * np.linspace(2.0, 0.5, 50)


EIGENVALUES = np.concatenate([np.linspace(-1.0, 1.0, 97), [8.0, 9.0, 20.0]])


def plain(w):
    return w[0] + 10 * w[1]


def bowl(w):
    return w[0] ** 2 + w[1] ** 2


def holed(w):
    return jnp.where(w[0] > 0.9, jnp.nan, jnp.where(w[0] < -0.9, jnp.inf, w[1]))


def square(points=41):
    return {"x": (-1.0, 1.0), "y": (-2.0, 2.0), "points": points}


def on_axes(draw, three=False):
    """The same picture on axes of a figure that nothing draws."""

    def drawn(*args, **kwargs):
        return draw(*args, ax=Figure().add_subplot(projection="3d" if three else None), **kwargs)

    return drawn


def labelled(ax):
    return {line.get_label(): line for line in ax.lines}


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bands_and_lines(ax):
    """The filled contours and, where there are some, the lines."""
    sets = [each for each in ax.collections if hasattr(each, "levels")]
    return sets if len(sets) == 2 else (sets[0], None)


def averaged(values, decay):
    """The average in NumPy, with its bias corrected."""
    v, out = 0.0, []
    for t, value in enumerate(values, 1):
        v = decay * v + (1 - decay) * value
        out.append(v / (1 - decay**t))
    return out


def sweep(values, x="learning_rate"):
    """A table of (optimizer, x, outcomes of the seeds); an outcome of None diverged, with a finite loss."""
    table = {name: [] for name in ("optimizer", x, "seed", "final_loss", "diverged", "accuracy")}
    for name, at, outcomes in values:
        for seed, outcome in enumerate(outcomes):
            row = (name, at, seed, 50.0 if outcome is None else outcome, outcome is None, 0.5)
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
    return table


TABLE = sweep(
    [
        ("sgd", 1.0, (0.4, None, 0.4)),
        ("sgd", 0.1, (0.2, 0.3, 0.7)),
        ("sgd", 0.01, (0.8, 0.6, 1.0)),
        ("adam", 0.001, (0.1, 0.3, 0.2)),
        ("adam", 0.01, (0.5, 0.5, 0.5)),
        ("adam", 0.1, (NAN, 1.0, 1.0)),
        ("adam", 1.0, (INF, INF, INF)),
        ("adadelta", NAN, (0.1, 0.1, 0.1)),
    ]
)


GRID = sweep(
    [
        ((rate, b1), rate, outcomes)
        for (rate, b1), outcomes in {
            (0.1, 0.9): (0.2, 0.4),
            (0.01, 0.9): (0.5, 0.7),
            (0.1, 0.0): (0.1, None),
            (0.01, 0.0): (1.0, 3.0),
            (1.0, 0.0): (4.0, 6.0),
            (1.0, 0.9): (NAN, 1.0),
        }.items()
    ]
)
GRID["b1"] = [name[1] for name in GRID["optimizer"]]
GRID["optimizer"] = ["sgd"] * 12


# One picture of each kind ---------------------------------------------------------------------------------------------

WAYS = {f"the optimizer of number {i}": np.array([[1.0, 1.0 + i], [2.0, float(i)]]) for i in range(7)}
X, Y = np.linspace(-1.0, 1.0, 9), np.linspace(-2.0, 2.0, 8)
PLANE = landscape.Slice(
    X[None] ** 2 + 1 + Y[:, None] ** 2,
    X,
    Y,
    landscape.Plane(jnp.zeros(2), (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])), ("first", "second")),
)
LINE = landscape.Slice(X**2, X, None, landscape.Plane(jnp.zeros(2), (jnp.ones(2),), ("x",)))
EVERY = {
    "losses": lambda **kwargs: plot.losses(LOSS, steps_per_epoch=10, **kwargs),
    "compare": lambda **kwargs: plot.compare({"a": LOSS}, **kwargs),
    "sensitivity": lambda **kwargs: plot.sensitivity(TABLE, **kwargs),
    "heat_map": lambda **kwargs: plot.heat_map(GRID, **kwargs),
    "contour": lambda **kwargs: plot.contour(plain, WAYS, **square(20), **kwargs),
    "plane": lambda **kwargs: plot.slice(PLANE, trajectories=WAYS, **kwargs),
    "line": lambda **kwargs: plot.slice(LINE, trajectories=WAYS, **kwargs),
    "spectrum": lambda **kwargs: plot.spectrum({"start": EIGENVALUES, "end": EIGENVALUES / 2}, **kwargs),
    "learning_rate": lambda **kwargs: plot.learning_rate(0.1, 5, **kwargs),
    "surface": lambda **kwargs: plot.surface(plain, WAYS, **square(12), **kwargs),
}
DENSITY = landscape.SpectralDensity(
    jnp.array([[0.0, 1.0, 8.0], [0.1, 1.0, 20.0]]), jnp.array([[0.3, 0.69, 0.01]] * 2), 100
)
SCORES = sweep([((rate, b1), rate, (rate, b1 + rate)) for rate in 10.0 ** -np.arange(14) for b1 in (0.5, 0.9)])
SCORES["b1"] = [name[1] for name in SCORES["optimizer"]]
SCORES |= {"optimizer": ["a name"] * 56, "accuracy": SCORES["final_loss"]}
ENDS = {"dot": [[0.5, 1.5], [0.2, 0.1], [0.9, 3.0]], "cross": [[0.5, 1.5], [0.2, 0.4], [NAN, 0.0]]}
PICTURES = EVERY | {
    "losses that end": lambda ax: plot.losses([*LOSS, *[NAN] * 400], steps_per_epoch=5, decay=0.8, log=False, ax=ax),
    "losses, none finite": lambda ax: plot.losses([NAN, INF], ax=ax),
    "compared to the end": lambda ax: plot.compare({"a": LOSS, "b": [3.0, 2.0, INF], "c": LOSS[::-1]}, ax=ax),
    "scores": lambda ax: plot.heat_map(SCORES, z="accuracy", best="highest", ax=ax),
    "two optimizers": lambda ax: plot.sensitivity(TABLE, y="accuracy", best="highest", ax=ax),
    "holes": lambda ax: plot.contour(holed, ENDS, **square(30), ax=ax),
    "levels": lambda ax: plot.contour(landscape.functions.himmelblau, levels=8, points=50, ax=ax),
    "beale": lambda ax: plot.contour(landscape.functions.beale, ax=ax),
    "in decades": lambda ax: plot.surface(landscape.functions.beale, ENDS, ax=ax),
    "with holes": lambda ax: plot.surface(holed, ENDS, **square(30), elevation=20, azimuth=10, ax=ax),
    "nothing finite": lambda ax: plot.surface(lambda w: w[0] * NAN, **square(5), ax=ax),
    "plane in three dimensions": lambda ax: plot.surface(PLANE, {"a": [[0.5, 0.5]]}, ax=ax),
    "lines": lambda ax: plot.slice(
        {"one": LINE, "two": LINE._replace(values=np.where(X == 0, INF, 1 / (X + 5)))}, ax=ax
    ),
    "line with holes": lambda ax: plot.slice(LINE._replace(values=np.where(X > 0.6, NAN, X**2 + 0.01)), ax=ax),
    "estimated": lambda ax: plot.spectrum({"a": DENSITY, "b": EIGENVALUES}, points=100, ax=ax),
    "one density": lambda ax: plot.spectrum(EIGENVALUES, points=100, log=False, ax=ax),
    "schedule": lambda ax: plot.learning_rate(gradtx.cosine_decay_schedule(0.1, 10), 30, ax=ax),
    "race": lambda ax: plot.race({"sgd": gradtx.sgd(0.01)}, landscape.functions.beale, steps=4, ax=ax),
}
THREE = ("surface", "in decades", "with holes", "nothing finite", "plane in three dimensions")
