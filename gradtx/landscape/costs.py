"""The cost of the params, averaged over mini-batches, and the checks of the arguments that define it.

Some quantities are a mean over samples: the loss, its gradient, a product with its Hessian. Over all samples such a
quantity is the mean of its values on the mini-batches, weighted by their sizes. `over_batches` adds up one batch after
another, so memory for one batch is enough. Without a batch size, all samples are one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.training import inputs, losses, minibatches

PyTree = Any


@dataclass(frozen=True)
class Cost:
    """A loss of params and a batch, which is None if there are no data; hashable, so it hits the jit cache."""

    who: str
    loss: losses.Loss

    def __call__(self, params: PyTree, batch: PyTree) -> Array:
        value, _ = self.loss(params, batch, None, None)
        return check_scalar(self.who, "loss", value)


def check_scalar(who: str, name: str, value: Any) -> Any:
    """The value of a loss or a cost: a real scalar, else TypeError."""
    aval = jax.typeof(value) if hasattr(value, "dtype") or isinstance(value, float) else None
    if aval is not None and aval.shape == () and jnp.issubdtype(aval.dtype, jnp.floating):
        return value
    received = f"a {type(value).__name__}" if aval is None else f"{aval.dtype} of shape {aval.shape}"
    hint = f" Return the value alone: lambda *args: {name}(*args)[0]." if isinstance(value, tuple) else ""
    hint = " Take its mean over the samples: values.mean()." if aval is not None and aval.shape else hint
    raise TypeError(f"{who}: the {name} returns {received}; it must return a real scalar.{hint}")


def check_function(who: str, name: str, value: Any, of: str) -> None:
    """Refuse what is not a function."""
    if not callable(value):
        raise TypeError(f"{who}: {name} is {value!r}; it must be a function of {of}.")


def read_cost(who: str, loss: Any, data: PyTree) -> Cost:
    """A `Cost` from a user's `loss(params)` or `loss(params, batch)`."""
    read = losses.read_loss(who, loss, has_aux=False, has_data=data is not None)
    if read.wants_key:
        raise TypeError(
            f"{who}: the loss takes a key; it must be deterministic. Fix the key: lambda params: loss(params, key=key)."
        )
    if read.wants_model_state:
        raise TypeError(
            f"{who}: the loss takes model_state; it must be a function of the params and a batch. Fix the model_state: "
            "lambda params, batch: loss(params, batch, model_state=model_state)[0]."
        )
    return Cost(who, read)


def check_params(who: str, params: PyTree, name: str = "params") -> PyTree:
    """The params as JAX arrays. Leaves that are not real are refused by path."""
    if not jax.tree.leaves(params):
        raise ValueError(f"{who}: {name} has no leaves; it must be a tree with at least one array.")
    check_real(
        who,
        name,
        params,
        if_complex="Pass its real and imaginary parts as two leaves.",
        if_discrete="Leave it out here, and close over it in the loss.",
    )
    return jax.tree.map(jnp.asarray, params)


def check_real(who: str, name: str, value: PyTree, *, if_complex: str, if_discrete: str) -> None:
    """Refuse, by path, leaves that are not real floating-point arrays; `if_complex` and `if_discrete` are remedies."""
    for path, leaf in tree.named_leaves(value):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise TypeError(f"{who}: {name} at {path} is a {type(leaf).__name__}; allowed: floating-point arrays.")
        if tree.is_complex(leaf):
            raise TypeError(f"{who}: {name} at {path} is {tree.dtype_of(leaf)}; allowed: real arrays. {if_complex}")
        if tree.is_discrete(leaf):
            raise TypeError(
                f"{who}: {name} at {path} is {tree.dtype_of(leaf)}; allowed: floating-point arrays. {if_discrete}"
            )


def check_like(who: str, name: str, value: PyTree, params: PyTree, *, axes: int = 0) -> PyTree:
    """A tree with the structure and the shapes of the params, after `axes` leading axes; else ValueError, by path."""
    given, wanted = dict(tree.named_leaves(value)), dict(tree.named_leaves(params))
    for path in (*wanted, *given):
        if path not in given or path not in wanted:
            there, missing = (name, "params") if path in given else ("params", name)
            raise ValueError(
                f"{who}: {there} has a leaf at {path}, and {missing} does not; {name} must be a tree like params."
            )
        shape = jnp.shape(given[path])
        if shape[axes:] != jnp.shape(wanted[path]) or len(shape) < axes:
            more = f", after {axes} leading axis of steps" if axes else ""
            raise ValueError(
                f"{who}: {name} at {path} has shape {shape}; it must have the shape of params, "
                f"{jnp.shape(wanted[path])}{more}."
            )
    if jax.tree.structure(value) != jax.tree.structure(params):
        raise ValueError(
            f"{who}: {name} has the structure {jax.tree.structure(value)}; it must be that of params, "
            f"{jax.tree.structure(params)}."
        )
    check_real(who, name, value, if_complex="Take its real part.", if_discrete="Convert it with astype(float).")
    return jax.tree.map(jnp.asarray, value)


def check_data(who: str, data: PyTree, batch_size: int | None) -> tuple[PyTree, int | None]:
    """The data as JAX arrays with one number of samples, and the batch size; None is one batch of all samples."""
    if data is None:
        if batch_size is not None:
            raise ValueError(f"{who}: batch_size is {batch_size!r}, but data is None; leave it out, or pass data.")
        return None, None
    if inputs._is_stream(data):
        raise TypeError(f"{who}: data is a {type(data).__name__}; it must be arrays with a common axis of samples.")
    size, _ = minibatches.check_sizes(who, data, None, replacement=False, drop_last=False)
    if batch_size is None:
        return jax.tree.map(jnp.asarray, data), None
    batch_size = inputs.positive(who, "batch_size", batch_size)
    return jax.tree.map(jnp.asarray, data), batch_size if batch_size < size else None


def over_batches(quantity: Callable[[PyTree], PyTree], data: PyTree, batch_size: int | None) -> PyTree:
    """The mean of a quantity over mini-batches: the sum of (batch size / number of samples) quantity(batch)."""
    if batch_size is None:
        return quantity(data)
    size = jnp.shape(jax.tree.leaves(data)[0])[0]
    whole, rest = divmod(size, batch_size)

    def added(total: PyTree, start: Any, length: int) -> PyTree:
        batch = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, length), data)
        return tree.map(lambda t, x, share: t + share * x, total, quantity(batch), share=length / size)

    def step(total: PyTree, index: Array) -> tuple[PyTree, None]:
        return added(total, index * batch_size, batch_size), None

    one = jax.eval_shape(lambda: quantity(jax.tree.map(lambda leaf: leaf[:batch_size], data)))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, tree.precision(leaf)), one)
    total, _ = jax.lax.scan(step, nothing, jnp.arange(whole))
    return tree.cast_like(added(total, size - rest, rest) if rest else total, one)
