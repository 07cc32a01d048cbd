"""A user's loss function. Its signature, read once, says which arguments it takes.

    loss(params)                             a function of the params alone
    loss(params, batch)                      the mean over a batch of samples
    loss(params, batch, *, key)              a random loss: dropout, noise
    loss(params, batch, *, model_state)      a loss with a state of its own: batch statistics

With `has_aux` the loss returns `(value, dict)`. The entry `model_state` of the dict is passed to the next step; all
other entries are recorded at each step.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import partial_eval

from gradtx import tree
from gradtx.core.transform import Transform

PyTree = Any
_KEYWORDS = ("key", "model_state")


@dataclass(frozen=True)
class Loss:
    """A loss function and the arguments it takes: hashable, so that it can be a static argument of a program."""

    function: Callable[..., Any]
    has_aux: bool
    wants_batch: bool
    wants_key: bool
    wants_model_state: bool

    def __call__(
        self, params: PyTree, batch: PyTree, key: Array | None, model_state: PyTree
    ) -> tuple[Array, tuple[dict[str, Any], PyTree]]:
        """`(value, (entries to record, the next model_state))`."""
        returned = self.returned(params, batch, key, model_state)
        if not self.has_aux:
            return returned, ({}, model_state)
        value, aux = returned
        return value, ({k: v for k, v in aux.items() if k != "model_state"}, aux.get("model_state", model_state))

    def returned(self, params: PyTree, batch: PyTree, key: Array | None, model_state: PyTree) -> Any:
        """The return value of the function itself."""
        arguments = (params, batch) if self.wants_batch else (params,)
        wanted = {"key": key} if self.wants_key else {}
        return self.function(*arguments, **wanted, **({"model_state": model_state} if self.wants_model_state else {}))


class Outputs(NamedTuple):
    """The residuals or outputs of a model, and the cost of them; without a cost it is half the sum of their squares."""

    outputs: Loss
    cost: Loss | None

    def __call__(self, params: PyTree, *batch: PyTree) -> Array:
        return self.value(self.outputs.function(params, *batch), *batch)

    def value(self, outputs: PyTree, *batch: PyTree) -> Array:
        """The cost of outputs."""
        if self.cost is not None:
            return self.cost.function(outputs, *batch)
        outputs = tree.to_compute_dtype(outputs)
        return functools.reduce(jnp.add, [0.5 * jnp.sum(x * x) for x in jax.tree.leaves(outputs)])

    def functions(self, data: PyTree) -> dict[str, Callable[..., Any]]:
        """The extra arguments `residual_fn(params)` and, if there is a cost, `cost_fn(outputs)`."""
        batch = (data,) if self.outputs.wants_batch else ()
        given = {"residual_fn": lambda params: self.outputs.function(params, *batch)}
        return given if self.cost is None else given | {"cost_fn": lambda outputs: self.value(outputs, *batch)}


_returned = jax.jit(Loss.returned, static_argnums=0)  # under jit, so that a loss is traced once for its shapes


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
                f"{who}: the loss wants the keyword {p.name!r}; only {' and '.join(_KEYWORDS)} can be passed. "
                "Close over it, or give it a default."
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
    except TypeError:  # a callable object without a hash: compiled again for each call
        function = functools.partial(function)
    return Loss(function, has_aux, wants_batch, "key" in names, "model_state" in names)


def read_outputs(who: str, cost: Any, residuals: Any, *, has_data: bool) -> tuple[Loss, Outputs]:
    """The loss that a cost makes of residuals; the cost is a function, or None for half the sum of squares."""
    of = read_loss(who, residuals, has_aux=False, has_data=has_data)
    costs = None if cost is None else read_loss(who, cost, has_aux=False, has_data=has_data)
    for name, read in (("residuals", of), ("loss", costs)):
        if read is not None and (read.wants_key or read.wants_model_state):
            raise TypeError(f"{who}: {name} takes a key or model_state; with residuals it must be deterministic.")
    both = Outputs(of, costs)
    return Loss(both, has_aux=False, wants_batch=of.wants_batch, wants_key=False, wants_model_state=False), both


def read_sampled_loss(who: str, function: Any, txs: list[Transform], *, has_data: bool) -> Loss | None:
    """`sampled_loss` as a `Loss`, or None if no optimizer needs it; an error if one does and it is missing."""
    needed = [tx.name for tx in txs if "sampled_grad_fn" in tx.facts.required]
    if function is None and needed:
        raise TypeError(
            f"{who}: {needed[0]} needs the gradient at labels that the model draws. Pass sampled_loss=..., a function "
            "sampled_loss(params, batch, *, key): the loss at labels drawn with the key from the model's prediction."
        )
    if function is None:
        return None
    if not any("sampled_grad_fn" in tx.facts.extra for tx in txs):
        raise ValueError(
            f"{who}: sampled_loss is given, and no optimizer uses it; it is for "
            "sophia(..., estimator='gauss_newton_bartlett'). Leave it out."
        )
    loss = read_loss(f"{who}: sampled_loss", function, has_aux=False, has_data=has_data)
    if not loss.wants_key:
        raise TypeError(f"{who}: sampled_loss does not take a key; it must be sampled_loss(params, batch, *, key).")
    return loss


def check_sampled_loss(who: str, loss: Loss, params: PyTree, batch: PyTree, key: Any, model_state: PyTree) -> None:
    """Trace it once, and refuse it if it returns no real scalar."""
    returned = jax.eval_shape(loss.returned, params, batch, key, model_state)
    if not (hasattr(returned, "shape") and returned.shape == () and jnp.issubdtype(returned.dtype, jnp.floating)):
        raise TypeError(f"{who}: sampled_loss returns {returned}; it must be a real scalar, a mean over the labels.")


def check_outputs(who: str, outputs: Outputs, params: PyTree, batch: PyTree) -> None:
    """Trace the residuals once: refuse those that are not real, and one number, which looks like a loss."""
    found = jax.eval_shape(outputs.outputs.returned, params, batch, None, None)
    for path, leaf in tree.named_leaves(found):
        if tree.is_complex(leaf) or tree.is_discrete(leaf):
            raise TypeError(
                f"{who}: the residuals at {path} are {leaf.dtype}; they must be real floating-point arrays. Return the "
                "real and imaginary parts of complex ones."
            )
    if outputs.cost is None and [leaf.shape for leaf in jax.tree.leaves(found)] == [()]:
        raise TypeError(
            f"{who}: the residuals are one number, as if they were a loss; they must be an array. Return the residuals "
            "before they are squared and summed; of one equation, an array of one element: r[None]."
        )


def check_loss(who: str, loss: Loss, params: PyTree, batch: PyTree, key: Any, model_state: PyTree) -> list[str]:
    """Trace the loss once: refuse it if it returns no real scalar, else name the params that it does not read."""
    if loss.wants_model_state and model_state is None:
        raise ValueError(f"{who}: the loss wants model_state, and there is none. Pass model_state=... to start from.")
    traced = _returned.trace(loss, params, batch, key, model_state)
    jaxpr, returned = traced.jaxpr.jaxpr, traced.out_info
    if loss.has_aux:
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise TypeError(f"{who}: with has_aux=True the loss must return (value, dict); it returned {returned}.")
        if "loss" in returned[1]:
            raise ValueError(f"{who}: the dict of the loss has an entry 'loss', the value's name. Rename it.")
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
    # Only the value has a gradient, so only what the value depends on counts as read.
    _, used = partial_eval.dce_jaxpr(jaxpr, [i == 0 for i in range(len(jaxpr.outvars))])
    return [name for (name, _), is_used in zip(tree.named_leaves(params), used, strict=False) if not is_used]


def _check_carried(who: str, returned: PyTree, given: PyTree) -> None:
    """The model_state must keep its structure, shapes and dtypes, or a compiled loop cannot carry it."""
    returned, given = tree.shapes(returned), tree.shapes(given)
    if jax.tree.flatten(returned) != jax.tree.flatten(given):
        raise TypeError(
            f"{who}: the loss was given the model_state {given}, but returns {returned}; structure, shapes and "
            "dtypes must stay the same."
        )
