"""Checks of values in the running program, on request."""

from typing import Any

from gradtx.core.elementary import transform
from gradtx.core.rule import Params, Rule, State, Updates
from gradtx.core.transform import Transform
from gradtx.core.values import value_checks


@transform
def checked(inner: Transform) -> Rule:
    """Runs `inner` and checks its values: everything finite, second moments not negative, counters rising.

    Under jit the function must be transformed by checkify: `error, (updates, state) =
    jax.jit(checkify.checkify(tx.update))(grads, state, params)`, then `error.throw()`. Otherwise JAX does not compile
    the function and says that a check was not functionalized. Outside jit a failed check raises at once.

    Args:
      inner: any transform. A message names the inner transform, the field, the leaf's path and the step.

    State: `{"checked": {"inner": inner's state}}`. Without this wrapper there is no cost.

    Errors: a failed check raises checkify's error, as above; also those of `inner`.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> from jax.experimental import checkify
    >>> tx = gradtx.checked(gradtx.adam(1e-3))
    >>> params = {"w": jnp.zeros(2)}
    >>> update = jax.jit(checkify.checkify(tx.update))
    >>> error, _ = update({"w": jnp.array([1.0, jnp.nan])}, tx.init(params), params)
    >>> print(error.get().splitlines()[0])
    gradtx.scale_by_momentum, step 1: state 'mu' at ['w']: 1 of 2 elements not finite (`check` failed)
    """

    def update(updates: Updates, state: State, params: Params = None, **extra: Any) -> tuple[Updates, State]:
        with value_checks(True):
            updates, inner_state = inner.update(updates, state["inner"], params, **extra)
        return updates, {"inner": inner_state}

    return Rule(update=update, traits=("idle",))
