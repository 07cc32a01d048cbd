"""The path of an optimizer, from which trajectories and races are drawn."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx.core.foreign import as_transform
from gradtx.core.transform import Transform
from gradtx.landscape import costs
from gradtx.training import advancing, inputs, losses

PyTree = Any


def trajectory(tx: Any, loss: Any, params: PyTree, steps: int, *, key: Array | None = None) -> PyTree:
    """The params that an optimizer visits, beginning with the start.

        w_0 = params;   w_{t+1} = apply_updates(w_t, update of tx from the gradient at w_t)

    These are the steps of `gradtx.minimize`, in one compiled program that keeps the params of every step. A network
    trained on data has too many params for that. Record some of them instead: `minimize(..., evaluate=lambda w:
    {"params": w}, evaluate_every=100)` returns them in `history["params"]`, a tree with a leading axis of records. The
    start is not among them.

    Args:
      tx: an optimizer of gradtx, optax, or your own.
      loss: `loss(params)`, or a random one, `loss(params, *, key)`, which gets a new key at every step.
      params: a tree of real arrays: the start.
      steps: the number of updates, 1 or more.
      key: a random key for a random loss; None is key 0.

    Returns:
      A tree like the params, each leaf with a leading axis of steps + 1.

    Errors: TypeError for a tx that is not an optimizer, a loss of a batch, a loss that returns no real scalar, or steps
    that are not an int; ValueError for a sweep of several optimizers, or steps below 1.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx import landscape
    >>> def square(w):
    ...     return w**2
    >>> print(landscape.trajectory(gradtx.sgd(0.25), square, jnp.array(1.0), 3))
    [1.    0.5   0.25  0.125]
    """
    who = "gradtx.landscape.trajectory"
    tx = inputs.one_optimizer(who, as_transform(tx, f"{who}: tx"))
    params = costs.check_params(who, params)
    read = losses.read_loss(who, loss, has_aux=False, has_data=False)
    steps, key = inputs.positive(who, "steps", steps), inputs.read_key(who, key)
    losses.check_loss(who, read, params, None, inputs.key_like(), None)
    return _visited(advancing.Plan(read), tx, params, steps, key)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _visited(plan: advancing.Plan, tx: Transform, params: PyTree, steps: int, key: Array) -> PyTree:
    def step(carry: Any, _: None) -> Any:
        after = advancing.one_step(plan, tx, carry, None)[0]
        return after, after["params"]

    _, visited = jax.lax.scan(step, advancing.start(tx, params, None, key), length=steps)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), params, visited)
