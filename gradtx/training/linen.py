"""Flax's linen modules as losses for `minimize` and `sweep`.

    init = linen.init(network, images[:1])
    loss = linen.loss(network, cost)                                     cost(network, batch) -> a real scalar
    minimize(loss, init(key), tx, data);  sweep(loss, init, txs, data)

A module may have variables other than parameters, such as the averages of BatchNorm. They become the `model_state`:

    loss = linen.loss(network, cost, rngs="dropout", mutable="batch_stats")
    result = minimize(loss, init(key), tx, data, model_state=init.model_state, has_aux=True)
    network.apply({"params": result.params, **result.state["model_state"]}, images)
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax import Array

try:
    import flax.linen as nn
except ImportError as error:
    raise ImportError("gradtx.training.linen needs flax: pip install 'gradtx[flax]'.") from error

PyTree = Any
_WHO = "gradtx.training.linen"


class Init:
    """A function from a key to parameters. `model_state`, a dict, has the initial values of all other collections."""

    def __init__(self, module: nn.Module, example: tuple[Any, ...], options: dict[str, Any]):
        self._variables = lambda key: module.init(key, *example, **options)
        self.model_state: dict[str, PyTree] = dict(self._variables(jax.random.key(0)))
        if not jax.tree.leaves(self.model_state.pop("params", {})):
            raise ValueError(f"{_WHO}.init: {type(module).__name__} has no parameters; there is nothing to train.")

    def __call__(self, key: Array) -> PyTree:
        """The parameters for a key."""
        return self._variables(key)["params"]


def init(module: nn.Module, *example: Any, **options: Any) -> Init:
    """The initial parameters of a module, as a function of a key for `sweep`, and its initial `model_state`.

    Args:
      module: a linen module.
      example: inputs of the module, with the right shapes and dtypes; one sample is enough.
      options: keyword arguments of the module, such as `train=True`.

    Returns: an `Init`: `init(key) -> params`, and `init.model_state`, made with `jax.random.key(0)`.

    Errors: TypeError for an object that is not a linen module, ValueError for a module without parameters.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from gradtx.training import linen
    >>> init = linen.init(nn.BatchNorm(use_running_average=False), jnp.zeros((1, 3)))
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0)))
    {'bias': (3,), 'scale': (3,)}
    >>> jax.tree.map(jnp.shape, init.model_state)
    {'batch_stats': {'mean': (3,), 'var': (3,)}}
    """
    return Init(_checked("init", module), example, options)


def loss(
    module: nn.Module,
    cost: Callable[[Any, PyTree], Any],
    *,
    rngs: str | Iterable[str] = (),
    mutable: str | Iterable[str] = (),
) -> Callable[..., Any]:
    """Turn a cost of a network into a loss of its parameters. Make the loss once: each new one compiles again.

    Args:
      module: a linen module.
      cost: `cost(network, batch)`, a real scalar: the mean over the batch. `network` is the module with its parameters;
        call it, with any flags: `network(batch["image"], train=True)`.
      rngs: names of the random streams that the module draws from, such as "dropout". Stream i gets the key
        `jax.random.fold_in(key, i)`, where `key` is the loss's key for the step.
      mutable: names of the collections that make up the `model_state`, such as "batch_stats".

    Returns: `loss(params, batch)`. With `rngs`, it also takes the keyword `key`. With `mutable`, it also takes the
    keyword `model_state`, and returns `(value, {"model_state": ...})`, which needs `has_aux=True`.

    Errors: TypeError for an object that is not a linen module, a cost that is not a function, names that are not
    strings; ValueError for "params" in `mutable` and, when the loss is called, for a `model_state` of other
    collections. Flax's own errors name a stream or a collection that is missing.

    >>> import jax, jax.numpy as jnp
    >>> import gradtx
    >>> from flax import linen as nn
    >>> from gradtx.training import linen
    >>> network, data = nn.Dense(1), {"x": jnp.array([[1.0], [2.0]]), "y": jnp.array([[3.0], [5.0]])}
    >>> def squared_error(network, batch):
    ...     return jnp.mean((network(batch["x"]) - batch["y"]) ** 2)
    >>> loss = linen.loss(network, squared_error)
    >>> start = linen.init(network, data["x"])(jax.random.key(0))
    >>> result = gradtx.minimize(loss, start, gradtx.sgd(0.2), data, epochs=500)
    >>> result.params["kernel"].round(3).item(), result.params["bias"].round(3).item()
    (2.0, 1.0)
    """
    _checked("loss", module)
    if not callable(cost):
        raise TypeError(f"{_WHO}.loss: cost is {cost!r}; it must be a function: cost(network, batch).")
    streams, carried = _names("rngs", rngs), _names("mutable", mutable)
    if "params" in carried:
        raise ValueError(f"{_WHO}.loss: mutable has 'params', which the optimizer changes. Leave it out.")
    apply = nn.apply(cost, module, mutable=list(carried))

    def value(params: PyTree, batch: PyTree, *, key: Any = None, model_state: Any = None) -> Any:
        state = model_state or {}
        if sorted(state) != sorted(carried):
            raise ValueError(f"{_WHO}.loss: model_state has {sorted(state)}; it must have mutable's {sorted(carried)}.")
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(streams)}
        found, new = apply({"params": params, **state}, batch, rngs=keys)
        return (found, {"model_state": new}) if carried else found

    if streams and carried:
        return value
    if streams:
        return lambda params, batch, *, key: value(params, batch, key=key)
    if carried:
        return lambda params, batch, *, model_state: value(params, batch, model_state=model_state)
    return lambda params, batch: value(params, batch)


def _checked(name: str, module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{_WHO}.{name}: module is {module!r}; it must be an instance of flax.linen.Module.")
    return module


def _names(argument: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{_WHO}.loss: {argument} is {given!r}; it must be a name or several names, such as 'dropout'.")
    return names
