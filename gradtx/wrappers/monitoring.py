"""Metrics for a logger, recorded by `monitor`.

    tx = skip_nonfinite(monitor(clip_by_global_norm(1.0) >> adam(schedule)), max_consecutive=5)
    ... log(gradtx.metrics(state))        {"gradient_norm": 3.2, "clipped_norm": 1.0, "learning_rate": 1e-3, ...}

`monitor` measures inside the compiled step. `metrics` reads from any state what a monitor has recorded, and what other
wrappers count anyway. An optimizer without a monitor has no extra cost.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.core.compose import Chain
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.state import held
from gradtx.core.transform import Transform
from gradtx.wrappers.hyperparameters import numbers_of
from gradtx.wrappers.placing import refuse_first

PyTree = Any
State = dict[str, Any]

# The counts of other wrappers, by (transform, field).
_COUNTED = {
    ("skip_nonfinite", "skipped"): "skipped_steps",
    ("skip_nonfinite", "failed"): "failed",
    ("accumulate", "micro_step"): "accumulated_micro_steps",
    ("accumulate", "skipped"): "skipped_micro_steps",
    ("loss_scaling", "loss_scale"): "loss_scale",
    ("loss_scaling", "skipped"): "skipped_steps",
    ("reduce_on_plateau", "scale"): "plateau_scale",
}


@transform
def monitor(inner: Transform, prefix: str | None = None) -> Rule:
    """Records the norms before and after `inner`, its learning rates and its clipping, for `metrics`.

    `gradient_norm` and `update_norm` are the global norms of the input and the output. `learning_rate` is that of the
    last update; in a `partition` there is one for each group. If a stage of `inner` clips, it also records
    `clipped_norm`, the norm after the last clip, and `clipped_fraction`, the fraction of steps so far that a clip has
    shortened. A clip within a wrapper does not count as a stage: put `monitor` inside, `pack(monitor(clip >> adam))`.

    Args:
      inner: any transform; its updates do not change.
      prefix: put in front of the names: `monitor(clip(1.0), "clip")` records "clip/gradient_norm".

    State: `{"monitor": {"count", "metrics": {name: a scalar}, "inner": inner's state}}`.

    Errors: TypeError for an inner transform that must get the gradients unchanged (`loss_scaling`): their norms would
    be scaled.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.monitor(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.5))
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> for key, value in gradtx.metrics(state).items():
    ...     print(f"{key}: {value:.2f}")
    clipped_fraction: 1.00
    clipped_norm: 1.00
    gradient_norm: 5.00
    learning_rate: 0.50
    update_norm: 0.50
    """
    refuse_first("monitor", inner)
    front = "" if prefix is None else f"{prefix}/"

    def named(numbers: dict[str, Array], state: State) -> dict[str, Array]:
        numbers = numbers | _rates(inner, state)
        return {f"{front}{key}": jnp.asarray(value, jnp.float32) for key, value in numbers.items()}

    def init(params: PyTree) -> State:
        names = [
            "gradient_norm",
            "update_norm",
            *(["clipped_norm", "clipped_fraction"] if "clips" in inner.facts else []),
        ]
        state = inner.init(params)
        return {"metrics": named({key: jnp.zeros(()) for key in names}, state), "inner": state}

    def update(
        updates: PyTree, state: State, params: PyTree = None, *, count: Array, **extra: Any
    ) -> tuple[PyTree, State]:
        norm = tree.global_norm(updates)
        numbers, clipped = {"gradient_norm": norm}, list[Array]()

        def watch(stage: Transform, before: PyTree, after: PyTree) -> None:
            if "clips" in stage.facts:
                numbers["clipped_norm"] = tree.global_norm(after)
                unclipped = norm if before is updates else tree.global_norm(before)
                clipped.append(numbers["clipped_norm"] < unclipped * (1 - 1e-6))

        if isinstance(inner, Chain):
            result, new = inner._step(updates, state["inner"], params, extra, watch)
        else:
            result, new = inner.update(updates, state["inner"], params, **extra)
            watch(inner, updates, result)
        numbers["update_norm"] = tree.global_norm(result)
        if clipped:
            before = state["metrics"][f"{front}clipped_fraction"]
            now = functools.reduce(jnp.logical_or, clipped).astype(jnp.float32)
            numbers["clipped_fraction"] = before + (now - before) / count.astype(jnp.float32)
        return result, {"metrics": named(numbers, new), "inner": new}

    return Rule(init=init, update=update)


def _rates(tx: Transform, state: State) -> dict[str, Any]:
    """The learning rates of the last update, by name."""
    rates: dict[str, Any] = {}
    for groups, path, rate in numbers_of(tx, state, (tx.name,)):
        if path[-1] == "learning_rate":
            name = full = "/".join((*groups, "learning_rate"))
            number = 1
            while name in rates:
                number += 1
                name = f"{full}_{number}"
            rates[name] = rate
    return rates


def metrics(state: Any) -> dict[str, Any]:
    """The metrics in a state, for a logger, by readable name.

    It finds what each `monitor` has recorded, and what wrappers count anyway: "skipped_steps", "failed",
    "accumulated_micro_steps", "skipped_micro_steps", "loss_scale", "plateau_scale", and for line searches and trust
    regions "evaluations" (of the loss, in all) and "failures" (steps in a row that found nothing). It works for any
    nesting, and under jit.

    Args:
      state: the state of any transform, or an object that has it as `opt_state`: a TrainState, an nnx.Optimizer. A name
        that occurs twice gets its path in front: "partition/heads/monitor/update_norm".

    Errors: none; a state without such numbers gives an empty dict.

    >>> import gradtx
    >>> tx = gradtx.accumulate(gradtx.sgd(0.1), every=4)
    >>> u, state = tx.update(1.0, tx.init(0.0))
    >>> gradtx.metrics(state)
    {'accumulated_micro_steps': Array(1, dtype=int32)}
    """
    found = [(path, name, _array(value)) for path, name, value in _recorded(held(state), ())]
    names = [name for _, name, _ in found]
    numbers = {name if names.count(name) == 1 else "/".join((*path, name)): value for path, name, value in found}
    return dict(sorted(numbers.items()))


def _array(value: Any) -> Any:
    """The array itself, taken out of the variable in which an nnx.Optimizer keeps it."""
    return jax.tree.leaves(value)[0]


def _recorded(state: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    if isinstance(state, tuple):
        state = {str(index): item for index, item in enumerate(state)}
    for key, entry in state.items() if isinstance(state, dict) else ():
        here = (*path, str(key))
        if isinstance(entry, dict):
            yield from _own(str(key), entry, here)
            entry = entry.get("inner", entry.get("groups", entry))
        yield from _recorded(entry, here)


def _own(key: str, entry: State, here: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """The metrics in the entry of one transform."""
    kind = key.rstrip("0123456789").rstrip("_")  # its name, without the number of a repeated one
    if kind == "monitor" and "metrics" in entry:
        yield from ((here, name, value) for name, value in entry["metrics"].items())
    if entry.keys() >= {"value", "grad", "evaluations", "failures"}:  # a method that evaluates the loss itself
        yield from ((here, name, entry[name]) for name in ("evaluations", "failures"))
    for (transform_name, field), name in _COUNTED.items():
        if kind == transform_name and field in entry:
            yield here, name, entry[field]
