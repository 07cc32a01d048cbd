"""Train an nnx network with flax.nnx.Optimizer, which takes a gradtx optimizer unchanged.

    python examples/nnx_optimizer.py

The nnx.Optimizer holds the state and changes the network in place; `nnx.jit` may donate both.
"""

# %% Options
import argparse
import sys

import jax
import jax.numpy as jnp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx

parser = argparse.ArgumentParser(description="Train an nnx network with flax.nnx.Optimizer and gradtx.")
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


# %% The network
class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 256, rngs=rngs)
        self.output = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.hidden(x)))


def cost(network, batch):
    log_probabilities = jax.nn.log_softmax(network(batch["image"]))
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


# %% The optimizer, and one update: it changes the network and the optimizer's state in place, in donated memory
network = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(network, gradtx.adam(1e-3), wrt=nnx.Param)


@nnx.jit(donate_argnames=("network", "optimizer"))
def step(network, optimizer, batch):
    batch_cost, gradient = nnx.value_and_grad(cost)(network, batch)
    optimizer.update(network, gradient)
    return batch_cost


# %% Training
key = jax.random.key(0)
for epoch in range(options.epochs):
    for batch in gradtx.batches(jax.random.fold_in(key, epoch), train, batch_size=128):
        batch_cost = step(network, optimizer, batch)
    accuracy = (network(test["image"]).argmax(axis=1) == test["label"]).mean()
    print(f"epoch {epoch + 1}: J of the last batch {batch_cost:.4f}, test accuracy {accuracy:.1%}")
