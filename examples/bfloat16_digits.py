"""Does a network in bfloat16 train? The same network and optimizer, with and without a remedy, on digits.

    python examples/bfloat16_digits.py

Two learning rates, five seeds each. At the lower rate most steps are smaller than half of the last digit of a bfloat16
weight, and rounding to nearest loses them. Prints test accuracy, and bytes of params and state per parameter.
"""

# %% Options
import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx

parser = argparse.ArgumentParser(description="Train a network in float32 and in bfloat16 with three remedies.")
parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 2 seeds, 2 epochs, 3 ways")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
seeds, epochs = (2, 2) if options.smoke else (5, options.epochs)

# %% The data: 8 x 8 images inside scikit-learn, normalised by the mean and deviation of the training images
digits = load_digits()
train_images, test_images, train_labels, test_labels = train_test_split(
    digits.data.astype("float32"), digits.target, test_size=360, stratify=digits.target, random_state=0
)
mean, std = train_images.mean(), train_images.std()
train = {"image": jnp.asarray((train_images - mean) / std), "label": jnp.asarray(train_labels)}
test = {"image": jnp.asarray((test_images - mean) / std), "label": jnp.asarray(test_labels)}


# %% A network of two layers that computes in the dtype of its parameters; the cost is a float32 number
def init_in(dtype):
    def init(key):
        hidden_key, output_key = jax.random.split(key)
        params = {
            "hidden": {"w": jax.random.normal(hidden_key, (64, 64)) * (2 / 64) ** 0.5, "b": jnp.zeros((1, 64))},
            "output": {"w": jax.random.normal(output_key, (64, 10)) * (1 / 64) ** 0.5, "b": jnp.zeros((1, 10))},
        }
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return init


def predict(params, images):
    images = images.astype(params["hidden"]["w"].dtype)
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    return (hidden @ params["output"]["w"] + params["output"]["b"]).astype(jnp.float32)


def cost(params, batch):
    log_probabilities = jax.nn.log_softmax(predict(params, batch["image"]))
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


def evaluate(params):
    return {"accuracy": (predict(params, test["image"]).argmax(axis=1) == test["label"]).mean()}


# %% Five ways to train it
ways = {
    "float32": (jnp.float32, lambda tx: tx),
    "bfloat16, rounded to the nearest": (jnp.bfloat16, lambda tx: tx),
    "bfloat16, stochastic_rounding": (jnp.bfloat16, gradtx.stochastic_rounding),
    "bfloat16, kahan_summation": (jnp.bfloat16, gradtx.kahan_summation),
    "bfloat16, master_weights": (jnp.bfloat16, gradtx.master_weights),
}
if options.smoke:
    ways = dict(list(ways.items())[:3])
rates = [1e-3, 1e-4]


def bytes_per_parameter(dtype, tx):
    params = init_in(dtype)(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return round(sum(leaf.nbytes for leaf in jax.tree.leaves((params, tx.init(params)))) / count)


rows = []
for name, (dtype, remedy) in ways.items():
    txs = gradtx.grid(lambda learning_rate, remedy=remedy: remedy(gradtx.adam(learning_rate)), learning_rate=rates)
    result = gradtx.sweep(
        cost, init_in(dtype), txs, train, batch_size=128, epochs=epochs, seeds=seeds, evaluate=evaluate, progress=False
    )
    accuracies = np.asarray(result.table["accuracy"]).reshape(len(rates), seeds)
    shown = [f"{a.mean():.1%} ({a.min():.1%} to {a.max():.1%})" for a in accuracies]
    rows.append([name, str(bytes_per_parameter(dtype, remedy(gradtx.adam(1e-3)))), *shown])

# %% The table
head = ["params", "bytes", *(f"learning rate {rate:g}" for rate in rates)]
for row in [head, *rows]:
    print(f"{row[0]:33} {row[1]:>5}  {row[2]:26}  {row[3]}")
