"""Train a network written in plain JAX: parameters in a dict, and each epoch one compiled program.

    python examples/plain_loop.py

The sampler is a pure function, so it runs inside the program: shuffle, then scan over the index batches.
"""

# %% Options
import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx

parser = argparse.ArgumentParser(description="Train a network written in plain JAX with gradtx.")
parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 2 epochs")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
if options.smoke:
    options.epochs = 2

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
        "hidden": {"w": jax.random.normal(hidden_key, (64, 256)) * (2 / 64) ** 0.5, "b": jnp.zeros((1, 256))},
        "output": {"w": jax.random.normal(output_key, (256, 10)) * (1 / 256) ** 0.5, "b": jnp.zeros((1, 10))},
    }


def predict(params, images):
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["output"]["w"] + params["output"]["b"]


def cost(params, batch):
    log_probabilities = jax.nn.log_softmax(predict(params, batch["image"]))
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


# %% One epoch: a scan over index batches of equal size; the last few images of each order are left out
tx = gradtx.sgd(0.1, momentum=0.9, nesterov=True)


@partial(jax.jit, donate_argnames=("params", "state"))
def train_epoch(params, state, key):
    def step(carry, indices):
        params, state = carry
        batch_cost, gradient = jax.value_and_grad(cost)(params, gradtx.take(train, indices))
        updates, state = tx.update(gradient, state, params)
        return (gradtx.apply_updates(params, updates), state), batch_cost

    order = gradtx.sample_batches(key, len(train["label"]), 128, drop_last=True)
    (params, state), costs = jax.lax.scan(step, (params, state), order.full)
    return params, state, costs.mean()


# %% Training
key = jax.random.key(0)
params = init(key)
state = tx.init(params)
for epoch in range(options.epochs):
    params, state, mean_cost = train_epoch(params, state, jax.random.fold_in(key, epoch))
    accuracy = (predict(params, test["image"]).argmax(axis=1) == test["label"]).mean()
    print(f"epoch {epoch + 1}: mean J {mean_cost:.4f}, test accuracy {accuracy:.1%}")
