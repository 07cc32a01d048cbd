"""Which optimizer is best, and how much does its learning rate matter? 1728 networks that read digits, in one call.

    python examples/sweep_digits.py

9 optimizers, 64 learning rates from 1e-4 to 100, 3 seeds: a minute on two cores. Prints a line per optimizer, and saves
a picture of test loss and accuracy over the learning rate, and the table of all runs as comma-separated values. The
best rate is chosen by the same test accuracy that is then reported, which favours all optimizers equally, by a little.
"""

# %% Options
import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx
from gradtx import plot

parser = argparse.ArgumentParser(description="Compare nine optimizers over 64 learning rates on handwritten digits.")
parser.add_argument("--epochs", type=int, default=10, help="passes over the training images (default: 10)")
parser.add_argument(
    "--out", default="sweep.png", help="the picture; the runs go beside it as .csv (default: sweep.png)"
)
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 3 optimizers, 6 rates")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
number, seeds, epochs = (6, 2, 2) if options.smoke else (64, 3, options.epochs)

# %% The data: 8 x 8 images inside scikit-learn, normalised by the mean and deviation of the training images
digits = load_digits()
train_images, test_images, train_labels, test_labels = train_test_split(
    digits.data.astype("float32"), digits.target, test_size=360, stratify=digits.target, random_state=0
)
mean, std = train_images.mean(), train_images.std()
train = {"image": jnp.asarray((train_images - mean) / std), "label": jnp.asarray(train_labels)}
test = {"image": jnp.asarray((test_images - mean) / std), "label": jnp.asarray(test_labels)}


# %% A network of two layers, its cost J, and what is measured at the end of a run
def init(key):
    hidden_key, output_key = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(hidden_key, (64, 128)) * (2 / 64) ** 0.5, "b": jnp.zeros((1, 128))},
        "output": {"w": jax.random.normal(output_key, (128, 10)) * (1 / 128) ** 0.5, "b": jnp.zeros((1, 10))},
    }


def predict(params, images):
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["output"]["w"] + params["output"]["b"]


def cost(params, batch):
    log_probabilities = jax.nn.log_softmax(predict(params, batch["image"]))
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


def evaluate(params):
    correct = predict(params, test["image"]).argmax(axis=1) == test["label"]
    return {"test_loss": cost(params, test), "test_accuracy": correct.mean()}


# %% The sweep
rates = np.logspace(-4, 2, number)
families = [
    {
        "sgd": gradtx.grid(gradtx.sgd, learning_rate=rates),
        "momentum": gradtx.grid(gradtx.sgd, learning_rate=rates, momentum=0.9),
        "nesterov": gradtx.grid(gradtx.sgd, learning_rate=rates, momentum=0.9, nesterov=True),
    },
    {f.__name__: gradtx.grid(f, learning_rate=rates) for f in (gradtx.adagrad, gradtx.rmsprop, gradtx.adadelta)},
    {f.__name__: gradtx.grid(f, learning_rate=rates) for f in (gradtx.adam, gradtx.adamax, gradtx.nadam)},
]
if options.smoke:
    families = [dict(list(family.items())[:1]) for family in families]
txs = {name: tx for family in families for name, tx in family.items()}
start = time.perf_counter()
result = gradtx.sweep(cost, init, txs, train, batch_size=128, epochs=epochs, seeds=seeds, evaluate=evaluate)
seconds = time.perf_counter() - start
result.to_csv(Path(options.out).with_suffix(".csv"))

# %% The table: which, and how sensitive
print("optimizer   best rate  test accuracy there     good rates         decades  diverged  failed")
for name in txs:
    own = result.table["optimizer"] == name
    diverged = result.table["diverged"][own]
    accuracy = np.where(diverged, 0.0, result.table["test_accuracy"][own]).reshape(number, seeds)
    middle = np.median(accuracy, axis=1)
    best, good = middle.argmax(), np.flatnonzero(middle >= middle.max() - 0.01)
    there = f"{accuracy[best].mean():.1%} ({accuracy[best].min():.1%} to {accuracy[best].max():.1%})"
    where, decades = f"{rates[good[0]]:.2g} to {rates[good[-1]]:.2g}", len(good) * 6 / (number - 1)
    failed = (accuracy[best:] < 0.5).sum()
    print(f"{name:10} {rates[best]:10.2g}  {there:22}  {where:17} {decades:8.2f} {diverged.sum():9d} {failed:7d}")
print("best: highest median of the seeds; good: a median within 1 percentage point of it, in decades altogether;")
print("diverged: J was NaN or infinite; failed: less than half right, at the best rate or above")
print(f"{len(result.table['seed'])} networks, {epochs} epochs each, in {seconds:.0f} s, {result.at_once} at once")

# %% The picture: a column for each family, all on the same scales
titles = ["A direction: g, or the sum of past g", "A scaling", "A direction and a scaling"]
figure, panels = plt.subplots(2, 3, figsize=(12, 7.6), layout="constrained", sharex=True, sharey="row")
for (upper, lower), family, title in zip(panels.T, families, titles):
    rows = np.isin(result.table["optimizer"], list(family))
    table = {name: values[rows] for name, values in result.table.items()}
    plot.sensitivity(table, y="test_loss", ax=upper).get_legend().remove()
    plot.sensitivity(table, y="test_accuracy", best="highest", ax=lower)
    lower.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, handlelength=2.6)
    upper.set_title(title)
    for panel in (upper, lower):
        panel.label_outer()
        panel.axhline(np.log(10) if panel is upper else 0.1, color="#888888", linewidth=0.8, linestyle=":", zorder=0)
panels[0, 0].set_ylim(0.05, 30)  # at rates that are far too large the cost reaches thousands
figure.suptitle(f"Digits after {epochs} epochs: median of {seeds} seeds, band from lowest to highest; dotted: guessing")
figure.savefig(options.out, dpi=150)
print(f"saved {options.out} and {Path(options.out).with_suffix('.csv')}")
