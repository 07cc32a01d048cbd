"""Learn a learning rate by gradient descent, with gradients through a whole training run.

    python examples/hypergradient.py

An optimizer is a value, so `jax.grad` can differentiate the validation loss after 99 updates with respect to it. The
result is again an optimizer: its `learning_rate` is the derivative with respect to the learning rate. Gradient descent
from a learning rate 2000 times too small finds the valley that a sweep shows. Start below the valley: far above it
training is chaotic, and the derivatives are huge and useless.
"""

# %% Options
import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradtx

parser = argparse.ArgumentParser(description="Learn a learning rate by its gradient through training.")
parser.add_argument("--out", default="hypergradient.png", help="where to save the picture (default: hypergradient.png)")
parser.add_argument("--smoke", action="store_true", help="a quick check that all of it runs: 5 updates")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
outer_steps, epochs, rates_of_sweep = (5, 2, 6) if options.smoke else (40, 9, 31)  # an epoch is 11 updates

# %% The data: 8 x 8 images inside scikit-learn, normalised by the mean and deviation of the training images
digits = load_digits()
train_images, other_images, train_labels, other_labels = train_test_split(
    digits.data.astype("float32"), digits.target, test_size=360, stratify=digits.target, random_state=0
)
mean, std = train_images.mean(), train_images.std()
train = {"image": jnp.asarray((train_images - mean) / std), "label": jnp.asarray(train_labels)}
validation = {"image": jnp.asarray((other_images - mean) / std), "label": jnp.asarray(other_labels)}


# %% A small network and its cost J; tanh, because second derivatives need a smooth function
def init(key):
    hidden, output = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(hidden, (64, 32)) / 8, "b": jnp.zeros((1, 32))},
        "output": {"w": jax.random.normal(output, (32, 10)) / 32**0.5, "b": jnp.zeros((1, 10))},
    }


def cost(params, batch):
    hidden = jnp.tanh(batch["image"] @ params["hidden"]["w"] + params["hidden"]["b"])
    log_probabilities = jax.nn.log_softmax(hidden @ params["output"]["w"] + params["output"]["b"])
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


# %% Training as a function of the optimizer: all its updates are one lax.scan, which JAX can differentiate
epoch = jax.vmap(lambda key: gradtx.sample_batches(key, 1437, 128, drop_last=True).full)
order = epoch(jax.random.split(jax.random.key(1), epochs)).reshape(-1, 128)


def validation_loss(tx):
    def step(carry, indices):
        params, state = carry
        updates, state = tx.update(jax.grad(cost)(params, gradtx.take(train, indices)), state, params)
        return (gradtx.apply_updates(params, updates), state), None

    params = init(jax.random.key(0))
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), order)
    return cost(params, validation)


# %% The outer loop: another optimizer descends the logarithm of the learning rate
tx = gradtx.sgd(1e-4, momentum=0.9)
outer = gradtx.clip(0.1) >> gradtx.sgd(4.0)  # no step changes the learning rate by more than a factor exp(0.4) = 1.5


@partial(jax.jit, donate_argnames=("log_rate", "state"))
def outer_step(log_rate, state):
    now = tx.replace(learning_rate=jnp.exp(log_rate))
    loss, hypergradient = jax.value_and_grad(validation_loss)(now)
    updates, state = outer.update(hypergradient.learning_rate * now.learning_rate, state)  # the chain rule of exp
    return gradtx.apply_updates(log_rate, updates), state, now.learning_rate, loss


hypergradient = jax.jit(jax.grad(validation_loss))(tx)
print("the gradient is an optimizer:", jax.tree.map(lambda g: round(float(g), 3), hypergradient))
log_rate = jnp.log(1e-4)
state, rates, losses = outer.init(log_rate), [], []
for t in range(outer_steps):
    log_rate, state, rate, loss = outer_step(log_rate, state)
    rates, losses = [*rates, float(rate)], [*losses, float(loss)]
    print(f"outer step {t:2d}: learning rate {rate:.2e}, validation loss {loss:.4f}")
print(f"learned: {rates[-1]:.2e}, validation loss {losses[-1]:.4f}")

# %% The reference: a sweep over learning rates, each from three starts
txs = gradtx.grid(gradtx.sgd, learning_rate=jnp.logspace(-4, 0.5, rates_of_sweep), momentum=[0.9])
evaluate = partial(cost, batch=validation)
sweep = gradtx.sweep(cost, init, txs, train, batch_size=128, epochs=epochs, drop_last=True, seeds=3, evaluate=evaluate)
swept = jnp.unique(sweep.table["learning_rate"])
valley = jnp.stack([jnp.median(sweep.table["metric"][sweep.table["learning_rate"] == rate]) for rate in swept])
print(f"the sweep's best: {swept[valley.argmin()]:.2e}, validation loss {valley.min():.4f} (median of three starts)")

# %% The picture
plt.rc("axes.spines", top=False, right=False)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
path = {"color": "#0072B2", "marker": "o", "markersize": 3, "linewidth": 1.2, "label": "learned by its gradient"}
good = swept[valley < 1.25 * valley.min()]
left.axhspan(good.min(), good.max(), color="#D55E00", alpha=0.2, label="sweep: within 25% of its best")
left.semilogy(rates, **path)
left.set(title="The learning rate", xlabel="outer step", ylabel="learning rate")
middle.axhline(valley.min(), color="#D55E00", linestyle="--", label="the sweep's best")
middle.semilogy(losses, **path)
middle.set(title="What it leads to", xlabel="outer step", ylabel="validation loss after training")
right.loglog(swept, valley, color="#D55E00", linestyle="--", label="sweep, median of three starts")
right.loglog(rates, losses, **path)
right.set(title="The valley", xlabel="learning rate", ylabel="validation loss after training")
for axes in (left, middle, right):
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
figure.savefig(options.out, dpi=160)
print(f"saved {options.out}")
