"""Train 64 networks with 64 learning rates at once: an optimizer is a value, so `jax.vmap` makes 64 of them.

    python examples/sweep_learning_rates.py

The learning rates are leaves of that value. The training of one network is written once and mapped over them.
"""

# %% Options
import argparse
import sys
import time

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx

parser = argparse.ArgumentParser(description="Train 64 networks with 64 learning rates in one program.")
parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 8 rates, 2 epochs")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
if options.smoke:
    options.epochs = 2
number = 8 if options.smoke else 64

# %% The data: 8 x 8 images inside scikit-learn, normalised by the mean and deviation of the training images
digits = load_digits()
train_images, test_images, train_labels, test_labels = train_test_split(
    digits.data.astype("float32"), digits.target, test_size=360, stratify=digits.target, random_state=0
)
mean, std = train_images.mean(), train_images.std()
train = {"image": jnp.asarray((train_images - mean) / std), "label": jnp.asarray(train_labels)}
test = {"image": jnp.asarray((test_images - mean) / std), "label": jnp.asarray(test_labels)}


# %% A network of two layers, and its cost J
def init(key):
    hidden_key, output_key = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(hidden_key, (64, 64)) * (2 / 64) ** 0.5, "b": jnp.zeros((1, 64))},
        "output": {"w": jax.random.normal(output_key, (64, 10)) * (1 / 64) ** 0.5, "b": jnp.zeros((1, 10))},
    }


def predict(params, images):
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["output"]["w"] + params["output"]["b"]


def cost(params, batch):
    log_probabilities = jax.nn.log_softmax(predict(params, batch["image"]))
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


# %% One epoch of one network, written as if there were only one
def train_epoch(tx, params, state, key):
    def step(carry, indices):
        params, state = carry
        gradient = jax.grad(cost)(params, gradtx.take(train, indices))
        updates, state = tx.update(gradient, state, params)
        return (gradtx.apply_updates(params, updates), state), None

    order = gradtx.sample_batches(key, len(train["label"]), 128, drop_last=True)
    (params, state), _ = jax.lax.scan(step, (params, state), order.full)
    return params, state


# %% The sweep: all networks have the same start and the same batches; only the learning rate differs
learning_rates = jnp.logspace(-5, 0, number)
txs = jax.vmap(gradtx.adam)(learning_rates)  # one value that holds all the optimizers
key = jax.random.key(0)
params = jax.vmap(init)(jnp.broadcast_to(key, number))
states = jax.vmap(lambda tx, params: tx.init(params))(txs, params)
train_all = jax.jit(jax.vmap(train_epoch, in_axes=(0, 0, 0, None)), donate_argnums=(1, 2))

start = time.perf_counter()
for epoch in range(options.epochs):
    params, states = train_all(txs, params, states, jax.random.fold_in(key, epoch))
costs = jax.vmap(cost, in_axes=(0, None))(params, train)
accuracies = jax.vmap(lambda params: (predict(params, test["image"]).argmax(axis=1) == test["label"]).mean())(params)
seconds = time.perf_counter() - start

# %% The table
print(f"{'learning rate':>13}  {'J (train)':>9}  {'test accuracy':>13}")
for rate, final_cost, accuracy in zip(learning_rates, costs, accuracies):
    print(f"{rate:13.1e}  {final_cost:9.4f}  {accuracy:13.1%}  {'#' * round(40 * float(accuracy))}")
best = accuracies.argmax()
print(f"best: {learning_rates[best]:.1e}. {number} networks, {options.epochs} epochs each, in {seconds:.1f} s")
