"""Draws the pictures of the README and of the pages: seven methods on three surfaces, and what training looks like.

python docs/pictures.py
"""

import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import gradtx
from gradtx import plot
from gradtx.landscape import functions

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "pages" / "assets"
STEPS = 120


# For each surface: its name, where to start, what to show, and one learning rate for each method.
METHODS = ["gradient descent", "momentum", "Nesterov", "Adagrad", "RMSProp", "Adadelta", "Adam"]
SURFACES = [
    (
        functions.saddle,
        "A saddle",
        (-1.0, 1e-4),
        ((-1.2, 0.5), (-0.5, 1.0)),
        (0.02, 0.02, 0.02, 0.15, 0.015, 1.0, 0.02),
    ),
    (functions.valley, "A long valley", (-9.0, 1.6), ((-10, 3), (-2.2, 2.2)), (0.46, 0.06, 0.06, 1.5, 0.25, 12.0, 0.5)),
    (
        functions.beale,
        "Beale's function",
        (1.2, 1.6),
        ((-0.5, 4.0), (-1.2, 2.1)),
        (0.008, 0.0008, 0.0008, 0.5, 0.05, 4.0, 0.15),
    ),
]


def methods(rates):
    sgd, momentum, nesterov, adagrad, rmsprop, adadelta, adam = rates
    txs = [
        gradtx.sgd(sgd),
        gradtx.sgd(momentum, momentum=0.9),
        gradtx.sgd(nesterov, momentum=0.9, nesterov=True),
        gradtx.adagrad(adagrad),
        gradtx.rmsprop(rmsprop),
        gradtx.adadelta(adadelta),
        gradtx.adam(adam),
    ]
    return dict(zip(METHODS, txs, strict=True))


def races():
    plt.rcParams["font.size"] = 11
    figure, panels = plt.subplots(1, 3, figsize=(10, 4.2), layout="constrained")
    for axes, (surface, title, start, (x, y), rates) in zip(panels, SURFACES, strict=True):
        plot.race(methods(rates), surface, steps=STEPS, start=start, x=x, y=y, ax=axes)
        handles, names = axes.get_legend_handles_labels()
        axes.get_legend().remove()
        axes.set(title=title, xticks=[], yticks=[], xlabel="", ylabel="")
    drawn = [(handle, name) for handle, name in zip(handles, names, strict=True) if name in METHODS]
    figure.legend(
        *zip(*drawn, strict=True),
        loc="outside lower center",
        ncols=len(METHODS),
        frameon=False,
        columnspacing=1.2,
        handlelength=1.4,
    )
    save(figure, "races.png", dpi=130)


def save(figure, name, dpi=110):
    figure.savefig(ASSETS / name, dpi=dpi, facecolor="white", metadata={"Software": None})
    plt.close(figure)


# Training: the task of the page "Train, evaluate, adjust" -------------------------------------------------------------


def noisy_surface(key):
    """1024 points of a surface over the plane, with noise of variance 0.01, which no network can get below."""
    key_x, key_noise = jax.random.split(key)
    x = jax.random.normal(key_x, (1024, 2))
    return {"x": x, "y": jnp.sin(2 * x[:, 0]) + x[:, 1] + 0.1 * jax.random.normal(key_noise, (1024,))}


def network(key):
    key_in, key_out = jax.random.split(key)
    return {
        "in": {"w": jax.random.normal(key_in, (2, 32)), "b": jnp.zeros((1, 32))},
        "out": {"w": jax.random.normal(key_out, (32,)) / 6, "b": jnp.zeros(())},
    }


def cost(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"]["w"] + params["in"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] + params["out"]["b"] - batch["y"]) ** 2)


def training():
    """All pictures of that page; each saves one."""
    plt.rcParams["font.size"] = 11
    data = noisy_surface(jax.random.key(0))
    batch_sizes(data)
    one_run(data)
    runs(data)
    rates(data)
    pairs(data)
    schedules()


def batch_sizes(data):
    """The same network on the same data: one update a pass, 32 and 1024."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    kinds = {"batch of all 1024": (None, 0.1), "batches of 32": (32, 0.05), "single samples": (1, 0.01)}
    start = network(jax.random.key(1))
    drawn = []
    for (name, (size, rate)), color in zip(kinds.items(), ["#000000", "#0072B2", "#E69F00"], strict=True):
        result = gradtx.minimize(
            cost, start, gradtx.sgd(rate), data, batch_size=size, epochs=20, evaluate=lambda p: {"all": cost(p, data)}
        )
        losses, every = result.history["loss"], result.history["all"]
        updates = jnp.arange(1, len(losses) + 1)
        width, alpha = (0.25, 0.5) if size == 1 else (1.6, 1.0)
        left.plot(updates, losses, color=color, linewidth=width, alpha=alpha, zorder=3 - 0.1 * len(drawn))
        drawn += right.plot(
            range(21), [cost(start, data), *every], color=color, linewidth=1.8, marker="o", markersize=3
        )
        drawn[-1].set_label(f"{name}: sgd({rate})")
    for panel in (left, right):
        panel.set_yscale("log")
        panel.grid(color="#e4e4e4", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
    left.set(title="J of the batch", xscale="log", xlabel="update", ylabel="J", ylim=(2e-4, 20))
    right.set(title="J of all samples", xlabel="epoch: passes over the data", ylim=(0.03, 5))
    figure.legend(handles=drawn, loc="outside lower center", ncols=3, frameon=False)
    save(figure, "batch_sizes.png")


def one_run(data):
    result = gradtx.minimize(cost, network(jax.random.key(1)), gradtx.adam(1e-2), data, batch_size=32, epochs=12)
    save(plot.losses(result.history["loss"], decay=0.9, steps_per_epoch=32).figure, "losses.png")


def runs(data):
    txs = {
        "sgd(0.1)": gradtx.sgd(0.1),
        "sgd(0.3)": gradtx.sgd(0.3),
        "sgd(0.02, momentum=0.9)": gradtx.sgd(0.02, momentum=0.9),
        "rmsprop(0.003)": gradtx.rmsprop(0.003),
        "adam(0.01)": gradtx.adam(0.01),
    }
    losses = {}
    for name, tx in txs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one diverges, to be seen
            result = gradtx.minimize(cost, network(jax.random.key(1)), tx, data, batch_size=32, epochs=12)
        losses[name] = result.history["loss"]
    ax = plot.compare(losses, decay=0.95)
    ax.set_ylim(0.03, 60)  # the one that diverges leaves the picture
    save(ax.figure, "compare.png")


def rates(data):
    values = jnp.logspace(-4, 1, 26)
    txs = {
        "sgd": gradtx.grid(gradtx.sgd, learning_rate=values),
        "momentum": gradtx.grid(gradtx.sgd, learning_rate=values, momentum=0.9),
        "adam": gradtx.grid(gradtx.adam, learning_rate=values),
    }
    result = gradtx.sweep(cost, network, txs, data, batch_size=32, epochs=8, seeds=5)
    save(plot.sensitivity(result).figure, "sensitivity.png")


def pairs(data):
    momentum = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95]
    txs = gradtx.grid(gradtx.sgd, learning_rate=jnp.logspace(-3.25, -0.25, 13), momentum=momentum)
    result = gradtx.sweep(cost, network, txs, data, batch_size=32, epochs=8, seeds=3)
    ax = plot.heat_map(result, y="momentum")
    ax.figure.set_size_inches(8.5, 4.8)
    save(ax.figure, "heat_map.png")


def schedules():
    ax = plot.learning_rate(gradtx.warmup_cosine_decay_schedule(0.0, 1e-2, 100, decay_steps=1000), 1000)
    plot.learning_rate(gradtx.warmup_stable_decay_schedule(1e-2, 100, 600, 300), 1000, ax=ax)
    plot.learning_rate(gradtx.inverse_time_schedule(1e-2, 5e-3), 1000, ax=ax)
    plot.learning_rate(gradtx.piecewise_constant_schedule(1e-2, {400: 0.3, 700: 0.3}), 1000, ax=ax)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=2.6)
    ax.figure.set_size_inches(8.5, 3.6)
    save(ax.figure, "learning_rate.png")


def steps():
    """What the benchmark of steps found when it was last run in full."""
    sys.path.insert(0, str(ROOT))
    from tests.benchmarks import picture
    from tests.benchmarks import steps as benchmark

    title, rows = benchmark.load([ROOT / "tests" / "benchmarks" / "steps.json"])
    picture.draw(rows, title, ASSETS / "steps.png")


def matrix_methods():
    """What the example of matrix methods found when it was last run in full."""
    sys.path.insert(0, str(ROOT / "docs"))
    import evidence

    save(evidence.picture(), "matrix_methods.png")


if __name__ == "__main__":
    ASSETS.mkdir(exist_ok=True)
    races()
    training()
    steps()
    matrix_methods()
