"""Flax's nnx modules as losses for `minimize` and `sweep`.

    params, model_state = nnx.split(network)
    loss = nnx.loss(network, cost)                                       cost(network, batch) -> a real scalar
    result = minimize(loss, params, tx, data, model_state=model_state, has_aux=True)
    nnx.update(network, result.params, result.state["model_state"])

`params` are the variables of type `nnx.Param`. All other variables, such as BatchNorm's averages and Dropout's random
streams, are the `model_state`, which is passed from step to step. A network without other variables needs neither
`model_state` nor `has_aux`. For a sweep, `init` is `lambda key: nnx.split(Network(rngs=flax.nnx.Rngs(key)))[0]`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("gradtx.training.nnx needs flax: pip install 'gradtx[flax]'.") from error

PyTree = Any
_WHO = "gradtx.training.nnx"


def split(module: Any) -> tuple[PyTree, PyTree]:
    """The parameters of a module, and all its other variables.

    Args:
      module: an nnx module.

    Returns: `(params, model_state)`, nested dicts of arrays. `model_state` is empty if there are no other variables.
    Random keys are given as their bits, `jax.random.key_data`, which can be saved.

    Errors: TypeError for an object that is not an nnx module, ValueError for a module without parameters.

    >>> import jax, jax.numpy as jnp
    >>> import flax
    >>> from gradtx.training import nnx
    >>> params, model_state = nnx.split(flax.nnx.BatchNorm(3, rngs=flax.nnx.Rngs(0)))
    >>> jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, model_state)
    ({'bias': (3,), 'scale': (3,)}, {'mean': (3,), 'var': (3,)})
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"{_WHO}: module is {module!r}; it must be an instance of flax.nnx.Module.")
    params, rest = (nnx.to_pure_dict(part) for part in nnx.split(module, nnx.Param, ...)[1:])
    if not jax.tree.leaves(params):
        raise ValueError(f"{_WHO}: {type(module).__name__} has no nnx.Param; there is nothing to train.")
    return params, jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, rest)


def loss(module: Any, cost: Callable[[Any, PyTree], Any]) -> Callable[..., Any]:
    """Turn a cost of a network into a loss of its parameters. Make the loss once: each new one compiles again.

    Args:
      module: an nnx module. Only its structure is used, with its flags as they are now: train() or eval().
      cost: `cost(network, batch)`, a real scalar: the mean over the batch. `network` is a module of that structure.

    Returns: `loss(params, batch)`. If the module has a `model_state`, the loss also takes the keyword `model_state`,
    and returns `(value, {"model_state": ...})`, which needs `has_aux=True`. It takes no `key`: the random streams are
    in the `model_state`.

    Errors: those of `split`, and TypeError for a cost that is not a function.

    >>> import jax.numpy as jnp
    >>> import flax, gradtx
    >>> from gradtx.training import nnx
    >>> network = flax.nnx.Linear(1, 1, rngs=flax.nnx.Rngs(0))
    >>> data = {"x": jnp.array([[1.0], [2.0]]), "y": jnp.array([[3.0], [5.0]])}
    >>> def squared_error(network, batch):
    ...     return jnp.mean((network(batch["x"]) - batch["y"]) ** 2)
    >>> loss = nnx.loss(network, squared_error)
    >>> params, _ = nnx.split(network)
    >>> result = gradtx.minimize(loss, params, gradtx.sgd(0.2), data, epochs=500)
    >>> nnx.update(network, result.params)
    >>> jnp.allclose(network(jnp.array([[3.0]])), 7.0, atol=1e-3)
    Array(True, dtype=bool)
    """
    if not callable(cost):
        raise TypeError(f"{_WHO}.loss: cost is {cost!r}; it must be a function: cost(network, batch).")
    has_rest, kinds = bool(split(module)[1]), _kinds(module)
    form = nnx.graphdef(module)

    def value(params: PyTree, batch: PyTree, *, model_state: PyTree) -> tuple[Any, dict[str, Any]]:
        network = nnx.merge(form, params, _with_keys(model_state, kinds))
        return cost(network, batch), {"model_state": split(network)[1]}

    return value if has_rest else lambda params, batch: value(params, batch, model_state={})[0]


def update(module: Any, params: PyTree, model_state: PyTree = None) -> None:
    """Put parameters, and other variables if given, back into a module, in place.

    Args:
      module: the nnx module, or one of the same structure.
      params: as `split` gives them, for example `result.params` of `minimize`.
      model_state: as `split` gives it, for example `result.state["model_state"]`; None leaves the variables unchanged.

    Errors: those of `split`, and ValueError for another structure or other shapes; the module is then unchanged.

    >>> import jax, jax.numpy as jnp
    >>> import flax
    >>> from gradtx.training import nnx
    >>> network = flax.nnx.Linear(2, 1, rngs=flax.nnx.Rngs(0))
    >>> params, _ = nnx.split(network)
    >>> nnx.update(network, jax.tree.map(jnp.zeros_like, params))
    >>> network(jnp.ones((1, 2))).item()
    0.0
    """
    own = split(module)
    parts = (params, own[1] if model_state is None else model_state)
    shapes = (jax.tree.map(jnp.shape, each) for each in (parts, own))
    for name, given, there in zip(("params", "model_state"), *shapes, strict=True):
        if given != there:
            raise ValueError(f"{_WHO}.update: {name} is {given}; {type(module).__name__} has {there}.")
    nnx.update(module, parts[0], _with_keys(parts[1], _kinds(module)))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kinds(module: nnx.Module) -> PyTree:
    """For each variable that is not a parameter: the implementation of its random keys, or "" for other arrays."""
    rest = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))
    return jax.tree.map(lambda leaf: jax.random.key_impl(leaf) if _is_key(leaf) else "", rest)


def _with_keys(state: PyTree, kinds: PyTree) -> PyTree:
    """The state with bits turned back into random keys."""
    return jax.tree.map(lambda leaf, kind: jax.random.wrap_key_data(leaf, impl=kind) if kind else leaf, state, kinds)
