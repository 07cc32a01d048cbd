"""The training loops that people write today, against which one-program sweeps and one-call training are measured.

    python -m tests.benchmarks.peers --check      # all of them compute the same losses

The task is scikit-learn's digits, a network 64-hidden-10 with relu written in plain JAX, cross entropy, Adam, and some
epochs in mini-batches; the last batch of an epoch is partial and kept, unless drop_last. Every loop returns the loss
of each step.

`most_people` sweeps learning rates as a tutorial does: NumPy makes the batches, and the jitted step closes over the
optimizer, so it is compiled again for every learning rate (and for the partial batch).

`expert` has one compiled step for all learning rates, which are part of its state (`optax.inject_hyperparams`); NumPy
makes the batches, and the host reads the losses of a run at its end. With `donate` the step overwrites what it changes.

`tuned` is as good as a Python loop over steps can be: besides, the data and all orders are on the device, the step
counts for itself, takes its batch and writes down its loss there. The host only calls it.

`hand_written` is one training run, in three forms, of any optimizer with init and update. `step` is the tuned loop,
`epoch` a jitted scan over the full batches of an epoch and a second jitted step for the partial one, and `run` a single
jitted program, a scan over epochs that shuffles, then scans over the batches.

The loops take `data` as {"image", "label"} of NumPy arrays. With the same initial parameters and orders they agree to
rounding: `hand_written` has both from its arguments, the others from `seed`.
"""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx


@functools.cache
def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """1437 images that train and 360 that test, those of examples/train_digits.py."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        data.data.astype("float32"), data.target.astype("int32"), test_size=360, stratify=data.target, random_state=0
    )
    mean, std = train_images.mean(), train_images.std()
    train = {"image": (train_images - mean) / std, "label": train_labels}
    return train, {"image": (test_images - mean) / std, "label": test_labels}


def init(key: jax.Array, hidden: int) -> dict[str, jax.Array]:
    """He's start of the network 64-hidden-10."""
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (64, hidden)) * (2 / 64) ** 0.5,
        "b1": jnp.zeros(hidden),
        "w2": jax.random.normal(second, (hidden, 10)) * (2 / hidden) ** 0.5,
        "b2": jnp.zeros(10),
    }


def loss(params: dict[str, jax.Array], batch: dict[str, Any]) -> jax.Array:
    """Mean cross entropy of a batch."""
    x = jax.nn.relu(batch["image"] @ params["w1"] + params["b1"])
    log_probabilities = jax.nn.log_softmax(x @ params["w2"] + params["b2"])
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()


def numpy_batches(
    data: dict[str, np.ndarray], epochs: int, batch_size: int, seed: int, drop_last: bool
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of all epochs, made by NumPy on the host."""
    n, rng = len(data["label"]), np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(n)
        for begin in range(0, n - batch_size + 1 if drop_last else n, batch_size):
            index = order[begin : begin + batch_size]
            yield {"image": data["image"][index], "label": data["label"][index]}


def most_people(
    data: dict[str, np.ndarray],
    rates: Sequence[float],
    *,
    hidden: int,
    epochs: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
) -> np.ndarray:
    """Losses (rates, steps) of the tutorial's loop; it compiles in every call."""
    curves = []
    for rate in rates:
        params = init(jax.random.key(seed), hidden)
        tx = optax.adam(rate)
        state = tx.init(params)

        @jax.jit
        def step(params: Any, state: Any, batch: Any) -> Any:
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params)  # noqa: B023
            return optax.apply_updates(params, updates), state, value

        losses = []
        for batch in numpy_batches(data, epochs, batch_size, seed, drop_last):
            params, state, value = step(params, state, batch)
            losses.append(value)
        curves.append([float(value) for value in losses])
    return np.array(curves, "float32")


def step_on(tx: Any, params: Any, state: Any, data: Any, index: jax.Array) -> tuple[Any, Any, jax.Array]:
    """One step on the batch at these indices: params, state, loss."""
    batch = {name: leaf.at[index].get(mode="promise_in_bounds") for name, leaf in data.items()}
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def counting_step(tx: Any) -> Callable[..., Any]:
    """A jitted step carry, data, order, size -> carry that takes the next `size` of `order` and notes its loss."""

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
    def step(carry: Any, data: Any, order: jax.Array, size: int) -> Any:
        params, state, at, count, losses = carry
        index = jax.lax.dynamic_slice(order, (at,), (size,))
        params, state, value = step_on(tx, params, state, data, index)
        return params, state, at + size, count + 1, losses.at[count].set(value)

    return step


def sizes(n: int, batch_size: int, drop_last: bool) -> list[int]:
    """The sizes of the batches of an epoch."""
    full, rest = divmod(n, batch_size)
    return [batch_size] * full + [rest] * (rest > 0 and not drop_last)


def fresh(tx: Any, params: Any, steps: int) -> Any:
    """The carry before the first step; it shares no buffer with params, which the caller keeps."""
    return jax.tree.map(jnp.copy, params), tx.init(params), jnp.int32(0), jnp.int32(0), jnp.zeros(steps)


INJECTED = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)


def injected_step(params: Any, state: Any, batch: Any) -> Any:
    """One step: params, state, loss."""
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, state = INJECTED.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


INJECTED_STEPS = {donate: jax.jit(injected_step, donate_argnums=(0, 1) if donate else ()) for donate in (False, True)}


def expert(
    data: dict[str, np.ndarray],
    rates: Sequence[float],
    *,
    hidden: int,
    epochs: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
    donate: bool = False,
) -> np.ndarray:
    """Losses (rates, steps) with one compiled step for all rates; what it compiles is kept for the next call."""
    curves = []
    for rate in rates:
        params = init(jax.random.key(seed), hidden)
        state = INJECTED.init(params)
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        losses = []
        for batch in numpy_batches(data, epochs, batch_size, seed, drop_last):
            params, state, value = INJECTED_STEPS[donate](params, state, batch)
            losses.append(value)
        curves.append([float(value) for value in losses])
    return np.array(curves, "float32")


# The others of Adam's numbers are static, so that they are neither arguments nor results of the step.
TUNED = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))(learning_rate=0.0)
tuned_step = counting_step(TUNED)


@functools.partial(jax.jit, static_argnums=2)
def tuned_start(params: Any, rate: Any, steps: int) -> Any:
    """The carry with the learning rate in its state."""
    params, state, *rest = fresh(TUNED, params, steps)
    return params, state._replace(hyperparams={"learning_rate": jnp.float32(rate)}), *rest


def tuned(
    data: dict[str, np.ndarray],
    rates: Sequence[float],
    *,
    hidden: int,
    epochs: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
) -> np.ndarray:
    """Losses (rates, steps) of the best Python loop over steps; what it compiles is kept for the next call."""
    n = len(data["label"])
    batches = sizes(n, batch_size, drop_last)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(n)[: sum(batches)] for _ in range(epochs)])
    order, data = jax.device_put((order.astype("int32"), data))
    params = init(jax.random.key(seed), hidden)
    curves = []
    for rate in rates:
        carry = tuned_start(params, rate, epochs * len(batches))
        for _ in range(epochs):
            for size in batches:
                carry = tuned_step(carry, data, order, size)
        curves.append(carry[-1])
    return np.stack(jax.device_get(curves))


def shuffled(key: jax.Array, epoch: Any, n: int) -> jax.Array:
    """The order of an epoch."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)


FORMS = ("step", "epoch", "run")


def hand_written(
    form: str,
    data: dict[str, np.ndarray],
    tx: Any,
    *,
    epochs: int,
    batch_size: int,
    drop_last: bool = False,
    shuffle: Callable[[jax.Array, Any, int], jax.Array] = shuffled,
) -> Callable[[Any, jax.Array], tuple[Any, Any, jax.Array]]:
    """A function params, key -> params, state, losses (steps,) of one run, to call often: it compiles in the first."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, not {form!r}")
    data = jax.device_put(data)
    n = len(data["label"])
    batches = sizes(n, batch_size, drop_last)
    full, steps = n // batch_size, epochs * len(batches)
    partial = len(batches) > full

    if form == "run":

        @jax.jit
        def run(params: Any, data: Any, key: jax.Array) -> Any:
            def step(carry: Any, index: jax.Array) -> Any:
                params, state, value = step_on(tx, *carry, data, index)
                return (params, state), value

            def one_epoch(carry: Any, epoch: jax.Array) -> Any:
                order = shuffle(key, epoch, n)
                carry, losses = jax.lax.scan(step, carry, order[: full * batch_size].reshape(full, batch_size))
                if partial:
                    carry, last = step(carry, order[full * batch_size :])
                    losses = jnp.append(losses, last)
                return carry, losses

            (params, state), losses = jax.lax.scan(one_epoch, (params, tx.init(params)), jnp.arange(epochs))
            return params, state, losses.ravel()

        return lambda params, key: run(params, data, key)

    @jax.jit
    def start(params: Any, key: jax.Array) -> Any:
        order = jax.vmap(lambda epoch: shuffle(key, epoch, n)[: sum(batches)])(jnp.arange(epochs))
        return fresh(tx, params, steps), order.ravel()

    step = counting_step(tx)

    @functools.partial(jax.jit, donate_argnums=0)
    def full_batches(carry: Any, data: Any, order: jax.Array) -> Any:
        return jax.lax.scan(lambda carry, _: (step(carry, data, order, batch_size), None), carry, length=full)[0]

    def train(params: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        carry, order = start(params, key)
        for _ in range(epochs):
            if form == "step":
                for size in batches:
                    carry = step(carry, data, order, size)
            else:
                carry = full_batches(carry, data, order)
                if partial:
                    carry = step(carry, data, order, batches[-1])
        return carry[0], carry[1], carry[-1]

    return train


def check() -> None:
    """All loops on the same orders from the same parameters."""
    data, _ = digits()
    n, rates, seed = len(data["label"]), [1e-3, 1e-2], 3
    rng = np.random.default_rng(seed)
    orders = jnp.array([rng.permutation(n) for _ in range(3)])
    for drop_last in (False, True):
        options: dict[str, Any] = {"epochs": 3, "batch_size": 128, "drop_last": drop_last}
        expected = most_people(data, rates, hidden=32, seed=seed, **options)
        assert expected.shape == (2, 33 if drop_last else 36)
        found = {loop.__name__: loop(data, rates, hidden=32, seed=seed, **options) for loop in (expert, tuned)}
        for form in FORMS:
            for name, adam in {"optax": optax.adam, "gradtx": gradtx.adam}.items():
                curves = []
                for rate in rates:
                    train = hand_written(form, data, adam(rate), shuffle=lambda _, e, n: orders[e], **options)
                    params = init(jax.random.key(seed), 32)
                    curves.append(train(params, jax.random.key(0))[-1])
                    np.testing.assert_array_equal(curves[-1], train(params, jax.random.key(1))[-1])
                found[f"{form}, {name}"] = np.stack(curves)
        for name, curves in found.items():
            np.testing.assert_allclose(curves, expected, rtol=1e-4, atol=1e-5, err_msg=name)
            difference = abs(curves / expected - 1).max()
            print(f"drop_last={drop_last!s:<6} {name:<14} largest relative difference {difference:.1e}")


def main() -> None:
    """Check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="that all loops compute the same losses")
    if parser.parse_args().check:
        check()
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
