"""Draws the picture of the README and of the first page: seven methods on three surfaces.

python docs/pictures.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import gradtx

ASSETS = Path(__file__).parent / "pages" / "assets"
STEPS = 120


def saddle(w):
    return w[0] ** 2 - w[1] ** 2


def valley(w):
    return 0.05 * w[0] ** 2 + 2.0 * w[1] ** 2


def beale(w):
    x, y = w
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


# For each surface: the function, its name, where to start, what to show, and one learning rate for each method.
METHODS = ["gradient descent", "momentum", "Nesterov", "Adagrad", "RMSProp", "Adadelta", "Adam"]
SURFACES = [
    (saddle, "A saddle", (-1.0, 1e-4), ((-1.2, 0.5), (-0.5, 1.0)), (0.02, 0.02, 0.02, 0.15, 0.015, 1.0, 0.02)),
    (valley, "A long valley", (-9.0, 1.6), ((-10, 3), (-2.2, 2.2)), (0.46, 0.06, 0.06, 1.5, 0.25, 12.0, 0.5)),
    (beale, "Beale's function", (1.2, 1.6), ((-0.5, 4.0), (-1.2, 2.1)), (0.008, 0.0008, 0.0008, 0.5, 0.05, 4.0, 0.15)),
]


def methods(rates):
    sgd, momentum, nesterov, adagrad, rmsprop, adadelta, adam = rates
    return [
        gradtx.sgd(sgd),
        gradtx.sgd(momentum, momentum=0.9),
        gradtx.sgd(nesterov, momentum=0.9, nesterov=True),
        gradtx.adagrad(adagrad),
        gradtx.rmsprop(rmsprop),
        gradtx.adadelta(adadelta),
        gradtx.adam(adam),
    ]


def path(tx, surface, start):
    """The points that `tx` visits, one row a step."""

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(surface)(w), state, w)
        return (gradtx.apply_updates(w, updates), state), w

    w = jnp.array(start)
    return jax.lax.scan(step, (w, tx.init(w)), length=STEPS)[1]


def races():
    plt.rcParams["font.size"] = 11
    colors = ["#666666", "#1f77b4", "#17becf", "#2ca02c", "#d62728", "#9467bd", "#ff7f0e"]
    figure, panels = plt.subplots(1, 3, figsize=(10, 4.2), layout="constrained")
    for axes, (surface, title, start, (xs, ys), rates) in zip(panels, SURFACES, strict=True):
        x, y = jnp.meshgrid(jnp.linspace(*xs, 240), jnp.linspace(*ys, 240))
        heights = surface(jnp.stack([x, y]))
        levels = 24 if surface is not beale else jnp.logspace(-1.5, 2.6, 20)
        axes.contour(x, y, heights, levels=levels, colors="#b8b8b8", linewidths=0.6, linestyles="solid")
        for tx, color, name in zip(methods(rates), colors, METHODS, strict=True):
            points = path(tx, surface, start)
            axes.plot(points[:, 0], points[:, 1], color=color, linewidth=1.7, label=name)
            inside = (xs[0] < points[:, 0]) & (points[:, 0] < xs[1]) & (ys[0] < points[:, 1]) & (points[:, 1] < ys[1])
            last = int(jnp.argmin(jnp.append(inside, False))) - 1  # the last point before it leaves the picture
            axes.plot(*points[last], "o", color=color, markersize=5)
        if surface is not saddle:
            axes.plot(*((0, 0) if surface is valley else (3, 0.5)), "k*", markersize=11, zorder=9)
        axes.plot(*start, "k+", markersize=10, markeredgewidth=1.6)
        axes.set(title=title, xlim=xs, ylim=ys, xticks=[], yticks=[])
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, columnspacing=1.2, handlelength=1.4
    )
    figure.savefig(ASSETS / "races.png", dpi=130, facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    ASSETS.mkdir(exist_ok=True)
    races()
