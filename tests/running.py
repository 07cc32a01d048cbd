"""Runs of hundreds of steps in float64, of gradtx or of anything with `init` and `update`, on the shared gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.core.transform import Transform
from tests.records import Scheduled, schedules, streams


def transform(name: str, arguments: dict[str, Any]) -> Any:
    """gradtx's transform of this name, its schedules made."""
    made = {key: value.of(gradtx) if isinstance(value, Scheduled) else value for key, value in arguments.items()}
    return getattr(gradtx, name)(*made.pop("stages", ()), **made)


def transcribed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments for a transcription."""
    return {key: value.of(schedules) if isinstance(value, Scheduled) else value for key, value in arguments.items()}


def slope(params: Any) -> Any:
    """A gradient at any params; `tests.records.curvature` has its derivative."""
    return jax.tree.map(lambda w: 2 * jnp.arctan(w) - w, params)


def slope_at_labels(params: Any, key: Any) -> Any:
    """The same at labels that a model has drawn, always the same ones."""
    return jax.tree.map(lambda w: w / (1 + w**2) + 0.5, params)


FUNCTIONS = {"grad_fn": slope, "sampled_grad_fn": slope_at_labels}


def _updates(tx: Any, params: Any, gradients: Any) -> Any:
    asked = tx.facts.extra if isinstance(tx, Transform) else ()
    extra = {name: function for name, function in FUNCTIONS.items() if name in asked}

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params, **extra)
        return (jax.tree.map(jnp.add, params, updates), state), updates

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]


_compiled = jax.jit(_updates)  # the transform is an argument: those that differ in their numbers share a program


def updates_of(tx: Any, params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """All updates of a gradtx transform."""
    run = jax.tree.map(jnp.asarray, (streams.split(params), streams.split(gradients)))
    return streams.flatten(_compiled(tx, *run), leading=1)


def updates_of_rows(tx: Any, params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The same for a transform of another library, for each row of the params."""
    run = jax.tree.map(jnp.asarray, (streams.split(params), streams.split(gradients)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        mapped = jax.jit(jax.vmap(lambda p, g: _updates(tx, p, g), in_axes=(0, 1), out_axes=1))
        return streams.flatten(mapped(*run), leading=2)
