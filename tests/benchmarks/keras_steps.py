"""A step of Keras's optimizers on JAX, as its trainer compiles it; needs Keras, and `KERAS_BACKEND=jax`."""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras

from tests.benchmarks import contenders


def contender(method: contenders.Method, given: contenders.Given) -> contenders.Contender:
    assert method.keras is not None
    if keras.backend.backend() != "jax":
        raise RuntimeError(f"Keras computes with {keras.backend.backend()}; set KERAS_BACKEND=jax")
    name, arguments = method.keras
    optimizer: list[Any] = []

    def init(params: Any) -> Any:
        optimizer[:] = [getattr(keras.optimizers, name)(**arguments)]
        optimizer[0].build([keras.Variable(leaf) for leaf in jax.tree.leaves(params)])
        return [contenders.copied(variable.value) for variable in optimizer[0].variables]

    def step(params: Any, state: Any, grads: Any) -> Any:
        leaves, structure = jax.tree.flatten(params)
        leaves, state = optimizer[0].stateless_apply(state, jax.tree.leaves(grads), leaves)
        return jax.tree.unflatten(structure, leaves), state

    return contenders.Contender(init, step, *given)


def versions() -> str:
    return f"keras {keras.__version__}"
