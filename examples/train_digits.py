"""Train a Flax network to read handwritten digits, with Adam made from its parts.

    python examples/train_digits.py

It trains on 1437 images in mini-batches of 128, and is tested on 360 others (the same for every seed). Prints the test
accuracy of five seeds, and saves a picture of the cost J: noisy per batch, and falling smoothly per epoch.
"""

# %% Options
import argparse
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from flax import linen as nn
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx

parser = argparse.ArgumentParser(description="Train a network on handwritten digits with Adam made from its parts.")
parser.add_argument("--seeds", type=int, default=5, help="networks to train, each from its own start (default: 5)")
parser.add_argument("--epochs", type=int, default=30, help="passes over the training images (default: 30)")
parser.add_argument("--out", default="digits.png", help="where to save the picture (default: digits.png)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 2 seeds, 2 epochs")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
if options.smoke:
    options.seeds, options.epochs = 2, 2

# %% The data: 1797 real images of 8 x 8 pixels inside scikit-learn, normalised by the statistics of the training images
digits = load_digits()
train_images, test_images, train_labels, test_labels = train_test_split(
    digits.data.astype("float32"), digits.target, test_size=360, stratify=digits.target, random_state=0
)
mean, std = train_images.mean(), train_images.std()
train = {"image": jnp.asarray((train_images - mean) / std), "label": jnp.asarray(train_labels)}
test = {"image": jnp.asarray((test_images - mean) / std), "label": jnp.asarray(test_labels)}


# %% The network and its cost J
class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(256)(x))
        x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(x)


network = Network()


@jax.jit
def cost(params, batch):
    log_probabilities = jax.nn.log_softmax(network.apply(params, batch["image"]))
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


@jax.jit
def accuracy(params, batch):
    return (network.apply(params, batch["image"]).argmax(axis=1) == batch["label"]).mean()


# %% Adam: an average of past gradients, divided by the root of the average of their squares, times the learning rate
tx = gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(1e-3)


@partial(jax.jit, donate_argnames=("params", "state"))  # donated: the update overwrites the old values in place
def step(params, state, batch):
    batch_cost, gradient = jax.value_and_grad(cost)(params, batch)
    updates, state = tx.update(gradient, state, params)
    return gradtx.apply_updates(params, updates), state, batch_cost


# %% Training: every epoch is one pass over the data in a new order
j_per_batch, j_per_epoch, accuracies = [], [], []
start = time.perf_counter()
with Progress(disable=not sys.stdout.isatty()) as progress:
    task = progress.add_task("", total=options.seeds * options.epochs)
    for seed in range(options.seeds):
        init_key, order_key = jax.random.split(jax.random.key(seed))
        params = network.init(init_key, train["image"][:1])
        state = tx.init(params)
        batch_costs, epoch_costs = [], []
        for epoch in range(options.epochs):
            for batch in gradtx.batches(jax.random.fold_in(order_key, epoch), train, batch_size=128):
                params, state, batch_cost = step(params, state, batch)
                batch_costs.append(batch_cost)
            epoch_costs.append(cost(params, train))
            progress.update(task, advance=1, description=f"seed {seed}  epoch {epoch + 1}  J = {epoch_costs[-1]:.4f}")
        j_per_batch.append(jnp.stack(batch_costs))
        j_per_epoch.append(jnp.stack(epoch_costs))
        accuracies.append(float(accuracy(params, test)))
        print(f"seed {seed}: J = {epoch_costs[-1]:.4f}, test accuracy {accuracies[-1]:.1%}")
print(f"mean of {options.seeds} seeds: {sum(accuracies) / options.seeds:.2%} ({time.perf_counter() - start:.1f} s)")

# %% The picture: J per batch with its exponentially weighted average, and J per epoch
average = gradtx.ema(0.9)
_, averaged = jax.lax.scan(lambda s, j: average.update(j, s)[::-1], average.init(j_per_batch[0][0]), j_per_batch[0])
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
update = range(1, len(averaged) + 1)
left.semilogy(update, j_per_batch[0], color="tab:blue", alpha=0.35, linewidth=0.8, label="J of each batch")
left.semilogy(update, averaged, color="tab:blue", linewidth=1.8, label="exponentially weighted average, b = 0.9")
left.set(title="Per batch (seed 0)", xlabel="update", ylabel="cost J")
for seed, curve in enumerate(j_per_epoch):
    right.semilogy(range(1, options.epochs + 1), curve, linewidth=1.5, label=f"seed {seed}: {accuracies[seed]:.1%}")
right.set(title="Per epoch, over all training images", xlabel="epoch")
right.legend(title="test accuracy", frameon=False)
left.legend(frameon=False, loc="upper right")
for axes in (left, right):
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(options.out, dpi=160)
print(f"saved {options.out}")
