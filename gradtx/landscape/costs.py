"""What is looked at: a cost of the params, averaged over mini-batches, and how it is read from what users pass.

A quantity of a mini-batch that is a mean over its samples (the loss, its gradient, a product with its Hessian) is, for
all samples, the mean over the mini-batches, each weighted by its size. `over_batches` adds them up one after another,
so that memory for one batch is enough; the same quantity for all samples at once is the case of one batch.
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
    """A loss of params and a batch, None where it takes none; hashable, so that compiled programs know it again."""

    who: str
    loss: losses.Loss

    def __call__(self, params: PyTree, batch: PyTree) -> Array:
        value, _ = self.loss(params, batch, None, None)
        return check_scalar(self.who, "loss", value)


def check_scalar(who: str, name: str, value: Any) -> Any:
    """What a loss or a cost must return."""
    aval = jax.typeof(value) if hasattr(value, "dtype") or isinstance(value, float) else None
    if aval is not None and aval.shape == () and jnp.issubdtype(aval.dtype, jnp.floating):
        return value
    received = f"a {type(value).__name__}" if aval is None else f"{aval.dtype} of shape {aval.shape}"
    hint = f" Return the value alone: lambda *args: {name}(*args)[0]." if isinstance(value, tuple) else ""
    hint = " Take its mean over the samples: values.mean()." if aval is not None and aval.shape else hint
    raise TypeError(f"{who}: the {name} returns {received}; it must return a real scalar.{hint}")


def check_function(who: str, name: str, value: Any, of: str) -> None:
    """A function, which must be there."""
    if not callable(value):
        raise TypeError(f"{who}: {name} is {value!r}; it must be a function of {of}.")


def read_cost(who: str, loss: Any, data: PyTree) -> Cost:
    """A `Cost` from a user's `loss(params)` or `loss(params, batch)`, or an error that says what is wrong with it."""
    read = losses.read_loss(who, loss, has_aux=False, has_data=data is not None)
    if read.wants_key:
        raise TypeError(
            f"{who}: the loss wants a key, and a random loss has no landscape; fix the key: "
            "lambda params: loss(params, key=key)."
        )
    if read.wants_model_state:
        raise TypeError(
            f"{who}: the loss wants model_state; fix it: "
            "lambda params, batch: loss(params, batch, model_state=model_state)[0]."
        )
    return Cost(who, read)


def check_params(who: str, params: PyTree, name: str = "params") -> PyTree:
    """The params as JAX arrays, all real; errors name the leaf."""
    if not jax.tree.leaves(params):
        raise ValueError(f"{who}: {name} has no leaves; allowed: a tree with at least one array.")
    check_real(
        who,
        name,
        params,
        if_complex="Make it two leaves, its real and its imaginary part.",
        if_discrete="Close over it in the loss, and leave it out here.",
    )
    return jax.tree.map(jnp.asarray, params)


def check_real(who: str, name: str, value: PyTree, *, if_complex: str, if_discrete: str) -> None:
    """A tree of floating-point arrays; errors name the leaf and say what to do."""
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
    """A tree of the params' structure and shapes, with `axes` more leading axes; errors name the leaf."""
    given, wanted = dict(tree.named_leaves(value)), dict(tree.named_leaves(params))
    for path in (*wanted, *given):
        if path not in given or path not in wanted:
            there, missing = (name, "params") if path in given else ("params", name)
            raise ValueError(
                f"{who}: {there} has a leaf at {path}, and {missing} has none; {name} must be a tree like params."
            )
        shape = jnp.shape(given[path])
        if shape[axes:] != jnp.shape(wanted[path]) or len(shape) < axes:
            more = f", after {axes} leading axis of steps" if axes else ""
            raise ValueError(
                f"{who}: {name} at {path} has shape {shape}; it must be that of params, "
                f"{jnp.shape(wanted[path])}{more}."
            )
    if jax.tree.structure(value) != jax.tree.structure(params):
        raise ValueError(
            f"{who}: {name} is {jax.tree.structure(value)}, and params {jax.tree.structure(params)}; {name} must be a "
            "tree like params."
        )
    check_real(who, name, value, if_complex="Take its real part.", if_discrete="Convert it with astype(float).")
    return jax.tree.map(jnp.asarray, value)


def check_data(who: str, data: PyTree, batch_size: int | None) -> tuple[PyTree, int | None]:
    """Arrays with a common number of samples, and how many are looked at together."""
    if data is None:
        if batch_size is not None:
            raise ValueError(f"{who}: batch_size is {batch_size!r}, but data is None; leave it out, or pass data.")
        return None, None
    if inputs._is_stream(data):
        raise TypeError(f"{who}: data is a {type(data).__name__}; allowed: arrays with a common axis of samples.")
    size, _ = minibatches.check_sizes(who, data, None, replacement=False, drop_last=False)
    if batch_size is None:
        return jax.tree.map(jnp.asarray, data), None
    batch_size = inputs.positive(who, "batch_size", batch_size)
    return jax.tree.map(jnp.asarray, data), batch_size if batch_size < size else None


def over_batches(quantity: Callable[[PyTree], PyTree], data: PyTree, batch_size: int | None) -> PyTree:
    """The mean of a quantity over mini-batches: the sum of (samples in the batch / all samples) quantity(batch)."""
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
