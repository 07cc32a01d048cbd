"""Train a linen network with Flax's TrainState, which takes a gradtx optimizer unchanged.

    python examples/train_state.py

A TrainState keeps its optimizer as a static field, which is part of the cache key of `jax.jit`. Equal gradtx
optimizers give equal keys, so a TrainState that is rebuilt with an equal optimizer is not compiled again.
"""

# %% Options
import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx

parser = argparse.ArgumentParser(description="Train a linen network with Flax's TrainState and gradtx.")
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
train = {"image": (train_images - mean) / std, "label": train_labels}
test = {"image": (test_images - mean) / std, "label": test_labels}

# %% The network, and a learning rate that warms up for 20 updates and then falls along a cosine to 0
network = nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(10)])
updates_per_epoch = gradtx.num_batches(len(train["label"]), 128)
learning_rate = gradtx.warmup_cosine_decay_schedule(
    init_value=0.0, peak_value=3e-3, warmup_steps=20, decay_steps=options.epochs * updates_per_epoch
)


def new_train_state(seed):
    params = network.init(jax.random.key(seed), train["image"][:1])
    return TrainState.create(apply_fn=network.apply, params=params, tx=gradtx.adamw(learning_rate, weight_decay=1e-2))


# %% One update, in the memory of the old TrainState
@partial(jax.jit, donate_argnames="train_state")
def step(train_state, batch):
    print(f"compiling the update of {len(batch['label'])} images")  # runs while JAX traces, once per compilation

    def cost(params):
        log_probabilities = jax.nn.log_softmax(train_state.apply_fn(params, batch["image"]))
        return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()

    batch_cost, gradient = jax.value_and_grad(cost)(train_state.params)
    return train_state.apply_gradients(grads=gradient), batch_cost


# %% Training, from two starts: the second TrainState finds both compiled updates of the first
for seed in range(2):
    train_state = new_train_state(seed)
    for epoch in range(options.epochs):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        for batch in gradtx.batches(key, train, batch_size=128):
            train_state, batch_cost = step(train_state, batch)
    accuracy = (network.apply(train_state.params, test["image"]).argmax(axis=1) == test["label"]).mean()
    print(f"seed {seed}: J of the last batch {batch_cost:.4f}, test accuracy {accuracy:.1%}")
