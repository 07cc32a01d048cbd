"""The paths of the outside implementations that the records name, run in float64: PyTorch, Keras, optax.

    .venv/bin/pip install -e ".[bench]" && .venv/bin/python -m tests.peers        # writes tests/golden/*.json

A path is the updates of the params at a few steps of a run of 300, for the gradients of `tests/records/streams.py`. The
learning rate falls, lr / (1 + 0.05 t): that alone tells lr inside the momentum from lr outside. An update is null where
the peer itself is undetermined: where input moved by 1e-14 changes it by more than what is allowed.
"""

import importlib.metadata
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from tests.records import RECORDS, Peer, Scheduled, streams
from tests.records.expressions import EXPRESSIONS
from tests.running import transform, updates_of, updates_of_rows

FOLDER = pathlib.Path(__file__).parent / "golden"
COMMAND = "python -m tests.peers"
STEPS = 300
SHOWN = [1, 2, 3, 7, 20, 100, 300]
RATE = 0.05
TOLERANCE = 1e-10
"""Of the recent updates of the same element, beyond the rounding of the params that a framework adds them to."""

PEERS = {f"{record.name}: {peer.id}": (record.name, peer) for record in RECORDS.values() for peer in record.peers}
PEERS |= {f"an expression: {peer.id}": (peer.ours, peer) for peer in EXPRESSIONS}
FRAMEWORKS = {"torch": "torch.optim", "keras": "keras.optimizers", "optax": "optax"}


def falls(peer: Peer) -> bool:
    """Whether its learning rate is made to fall: it has one, and not a schedule of its own."""
    return "lr_decay" not in peer.theirs and ("lr" in peer.theirs or "learning_rate" in peer.theirs)


def ours(name: str, peer: Peer) -> np.ndarray:
    """Our updates, all of them."""
    if isinstance(peer.ours, str):
        rate = gradtx.inverse_time_schedule(peer.theirs["lr"], RATE)
        return updates_of(eval(peer.ours, vars(gradtx) | {"learning_rate": rate}), *streams.stream(STEPS))
    arguments = dict(peer.ours)
    if falls(peer):
        arguments["learning_rate"] = Scheduled("inverse_time_schedule", (arguments["learning_rate"], RATE))
    return updates_of(transform(name, arguments), *streams.stream(STEPS))


def allowed(updates: np.ndarray) -> np.ndarray:
    """By how much two implementations may differ, from the updates of one."""
    params = streams.stream(STEPS)[0] + np.cumsum(updates, axis=0)
    rounding = 8 * np.finfo(np.float64).eps * np.maximum.accumulate(np.abs(params), axis=0)
    return TOLERANCE * streams.recent_size(updates) + rounding


# Theirs ---------------------------------------------------------------------------------------------------------------


def torch_path(peer: Peer, params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The params after each step. NAdam keeps its product of mu in the default dtype, whatever the params are."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        paths = []
        for row, row_of_gradients in zip(params, np.swapaxes(gradients, 0, 1), strict=True):  # leaf by leaf
            leaves = [torch.tensor(leaf, requires_grad=True) for leaf in jax.tree.leaves(streams.split(row))]
            optimizer, after = getattr(torch.optim, peer.method)(leaves, **peer.theirs), []
            for made, gradient in enumerate(row_of_gradients):
                if falls(peer):
                    optimizer.param_groups[0]["lr"] = peer.theirs["lr"] / (1 + RATE * made)
                for leaf, own in zip(leaves, jax.tree.leaves(streams.split(gradient)), strict=True):
                    leaf.grad = torch.tensor(own)
                optimizer.step()
                after.append(np.concatenate([leaf.detach().numpy().ravel() for leaf in leaves]))
            paths.append(after)
    finally:
        torch.set_default_dtype(before)
    return np.array(paths).swapaxes(0, 1)


def keras_path(peer: Peer, params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    import keras

    assert keras.backend.backend() == "jax", "set KERAS_BACKEND=jax"
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            arguments = dict(peer.theirs)
            falling = keras.optimizers.schedules.InverseTimeDecay(arguments["learning_rate"], 1, RATE)
            optimizer = getattr(keras.optimizers, peer.method)(**arguments | {"learning_rate": falling})
            w = keras.Variable(params, dtype="float64")
            optimizer.build([w])

            def step(carry, gradient):
                w, variables = carry
                (w,), variables = optimizer.stateless_apply(variables, [gradient], [w])
                return (w, variables), w

            start = w.value, [variable.value for variable in optimizer.variables]
            run = jax.jit(lambda start, gradients: jax.lax.scan(step, start, gradients)[1])
            return np.asarray(run(start, jnp.asarray(gradients)))
    finally:
        keras.config.set_floatx(before)


def optax_updates(peer: Peer, params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    import optax

    arguments = dict(peer.theirs)
    if falls(peer):
        rate = arguments["learning_rate"]
        arguments["learning_rate"] = lambda count: rate / (1 + RATE * count.astype(jnp.float64))
    return updates_of_rows(getattr(optax, peer.method)(**arguments), params, gradients)


def theirs(peer: Peer) -> np.ndarray:
    """Their updates, all of them, nan where they are undetermined."""
    params, gradients = streams.stream(STEPS)
    params, gradients = streams.with_moved_copies(params, seed=1), streams.with_moved_copies(gradients, seed=2)
    if peer.framework == "optax":
        updates = optax_updates(peer, params, gradients)
    else:
        path = {"torch.optim": torch_path, "keras.optimizers": keras_path}[peer.framework]
        after = path(peer, params, gradients)
        updates = np.diff(np.concatenate([params[None], after]), axis=0)
    right = updates[:, 0]
    return np.where(streams.is_determined(updates, allowed(right)), right, np.nan)


# The files ------------------------------------------------------------------------------------------------------------


def shown(updates: np.ndarray) -> np.ndarray:
    return updates[np.array(SHOWN) - 1]


def read(framework: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{framework}.json").read_text())


def write(framework: str) -> None:
    """Make a framework's file: a line for each path, so that a change shows which."""
    distribution = {"torch": "torch", "keras": "keras", "optax": "optax"}[framework]
    versions = {name: importlib.metadata.version(name) for name in {distribution, "numpy", "jax"}}
    head = {"command": COMMAND, "versions": dict(sorted(versions.items())), "steps": SHOWN}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    rows = []
    for name, (_, peer) in PEERS.items():
        if peer.framework == FRAMEWORKS[framework]:
            numbers = [[None if np.isnan(x) else float(x) for x in row] for row in shown(theirs(peer))]
            said = json.dumps({"method": peer.method, "arguments": peer.theirs, "updates": numbers})
            rows.append(f"{json.dumps(name)}: {said}")
    lines.append('"paths": {\n' + ",\n".join(rows) + "\n}")
    (FOLDER / f"{framework}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for chosen in sys.argv[1:] or FRAMEWORKS:
        write(chosen)
        print(f"{FOLDER / chosen}.json, gradtx {gradtx.__version__}")
