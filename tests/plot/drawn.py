"""What the pictures are drawn of, and how a drawn one is read."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

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
