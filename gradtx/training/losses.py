"""What a user's loss wants, read once from its signature, and called with just that.

    loss(params)                             a cost to minimize as it is
    loss(params, batch)                      the mean over a batch of samples
    loss(params, batch, *, key)              a random one: dropout, noise
    loss(params, batch, *, model_state)      one that carries something on: batch statistics

With `has_aux` it returns `(value, dict)`: what is called `model_state` there is carried on to the next step, the rest
is recorded step by step.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import partial_eval

from gradtx import tree

PyTree = Any
_KEYWORDS = ("key", "model_state")


@dataclass(frozen=True)
class Loss:
    """A loss function with what it wants: hashable, so that it can be a static argument of a compiled program."""

    function: Callable[..., Any]
    has_aux: bool
    wants_batch: bool
    wants_key: bool
    wants_model_state: bool

    def __call__(
        self, params: PyTree, batch: PyTree, key: Array | None, model_state: PyTree
    ) -> tuple[Array, tuple[dict[str, Any], PyTree]]:
        """`(value, (what to record, the next model_state))`."""
        returned = self.returned(params, batch, key, model_state)
        if not self.has_aux:
            return returned, ({}, model_state)
        value, aux = returned
        return value, ({k: v for k, v in aux.items() if k != "model_state"}, aux.get("model_state", model_state))

    def returned(self, params: PyTree, batch: PyTree, key: Array | None, model_state: PyTree) -> Any:
        """What the function itself returns."""
        arguments = (params, batch) if self.wants_batch else (params,)
        wanted = {"key": key} if self.wants_key else {}
        return self.function(*arguments, **wanted, **({"model_state": model_state} if self.wants_model_state else {}))


_returned = jax.jit(Loss.returned, static_argnums=0)  # as such it is traced once for a loss and its shapes


def read_loss(who: str, function: Any, *, has_aux: bool, has_data: bool) -> Loss:
    """A `Loss` from a user's function, or an error that says what is wrong with it."""
    if not callable(function):
        raise TypeError(f"{who}: loss is {function!r}; it must be a function: loss(params) or loss(params, batch).")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        raise TypeError(f"{who}: the signature of {function!r} cannot be read; wrap it in a def.") from None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in positional if p.default is p.empty]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    for p in keywords:
        if p.name not in _KEYWORDS and p.default is p.empty:
            raise TypeError(
                f"{who}: the loss wants the keyword {p.name!r}; it can be given {' and '.join(_KEYWORDS)}. "
                "Close over the rest, or give it a default."
            )
    starred = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    wants_batch = len(needed) == 2 or (has_data and len(needed) < 2 and (starred or len(positional) > 1))
    misplaced = [p.name for p in positional if p.name in _KEYWORDS]
    if len(needed) > 2 or misplaced or not (positional or starred):
        raise TypeError(
            f"{who}: the loss takes ({', '.join(p.name for p in positional)}) as positional arguments; it must be "
            "loss(params) or loss(params, batch), with key and model_state keyword-only: loss(params, batch, *, key)."
        )
    if wants_batch and not has_data:
        raise ValueError(f"{who}: the loss wants a batch, loss({', '.join(needed)}), and data is None. Pass data.")
    if has_data and not wants_batch:
        raise ValueError(f"{who}: the loss takes no batch, and data is given; write it as loss(params, batch).")
    bound = function.keywords if isinstance(function, functools.partial) else {}
    names = {p.name for p in keywords}.difference(bound)
    try:
        hash(function)
    except TypeError:  # a callable object that compares by value: a program of its own for this call
        function = functools.partial(function)
    return Loss(function, has_aux, wants_batch, "key" in names, "model_state" in names)


def check_loss(who: str, loss: Loss, params: PyTree, batch: PyTree, key: Any, model_state: PyTree) -> list[str]:
    """Trace the loss once: errors if it does not return a real scalar; else the params that it does not read."""
    if loss.wants_model_state and model_state is None:
        raise ValueError(f"{who}: the loss wants model_state, and there is none. Pass model_state=... to start from.")
    traced = _returned.trace(loss, params, batch, key, model_state)
    jaxpr, returned = traced.jaxpr.jaxpr, traced.out_info
    if loss.has_aux:
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise TypeError(f"{who}: with has_aux=True the loss must return (value, dict); it returned {returned}.")
        if "loss" in returned[1]:
            raise ValueError(f"{who}: the dict of the loss has an entry 'loss', the value's name. Call it otherwise.")
        if "model_state" in returned[1]:
            _check_carried(who, returned[1]["model_state"], model_state)
        returned = returned[0]
    if loss.wants_model_state and not loss.has_aux:
        raise TypeError(
            f"{who}: a loss with model_state must return (value, {{'model_state': ...}}), with has_aux=True."
        )
    shape, dtype = getattr(returned, "shape", None), getattr(returned, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        received = f"an array of dtype {dtype} and shape {shape}" if shape is not None else f"{returned!r}"
        hint = " Take its mean over the batch: values.mean()." if shape else ""
        hint = " For (value, dict) pass has_aux=True." if isinstance(returned, tuple) else hint
        raise TypeError(f"{who}: the loss returns {received}; it must be a real scalar.{hint}")
    # What else it returns has no gradient.
    _, used = partial_eval.dce_jaxpr(jaxpr, [i == 0 for i in range(len(jaxpr.outvars))])
    return [name for (name, _), is_used in zip(tree.named_leaves(params), used, strict=False) if not is_used]


def _check_carried(who: str, returned: PyTree, given: PyTree) -> None:
    """What is carried on must stay what it is, or a compiled loop cannot carry it."""
    returned, given = tree.shapes(returned), tree.shapes(given)
    if jax.tree.flatten(returned) != jax.tree.flatten(given):
        raise TypeError(
            f"{who}: the loss returns another model_state than it was given: {returned}, not {given}; shapes and "
            "dtypes must stay."
        )
