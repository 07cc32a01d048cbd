"""Noise: a random perturbation at every step, which decays over time.

`add_noise(eta, 0.55)` in front of a method helps it out of bad starting points. `scale_by_learning_rate(lr) >>
add_noise(2 * lr, 0.0)`, whose noise does not decay, is Langevin dynamics.
"""

import jax
from jax import Array

from gradtx.core import fields
from gradtx.core.annotations import NonNegative, NonNegativeInt
from gradtx.core.elementary import transform
from gradtx.core.formula import per_element
from gradtx.core.rule import Rule
from gradtx.numerics import root


@transform
def add_noise(eta: NonNegative, gamma: NonNegative, key: NonNegativeInt = 0) -> Rule:
    """`u = g + n`, n normal with mean 0 and variance eta / (1 + t)^gamma, where t updates were already made.

    Source: Neelakantan et al. 2015 (arXiv 1511.06807), section 3: gamma = 0.55, eta one of 0.01, 0.3, 1. As in optax,
    t is 0 at the first update; for the same key the bits are the same. Complex leaves: the variance is that of both
    parts together.

    Args:
      eta: the initial variance, >= 0, a number or a schedule. [updates²]
      gamma: how fast it decays, >= 0, a number or a schedule. [1]
      key: the seed, an int >= 0. Two `add_noise` in one composition need different seeds to be independent.

    State: `key`, the bits of a random key, 8 bytes; `count`, a scalar.

    Errors: ValueError for a negative argument, TypeError for a key that is not an int.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.add_noise(0.01, 0.55)
    >>> u, state = tx.update(jnp.zeros(10_000), tx.init(jnp.zeros(10_000)))
    >>> print(f"{jnp.std(u):.2f}")
    0.10
    """

    def update(u: Array, *, key: Array, count: Array) -> Array:
        return u + root(eta / count**gamma) * jax.random.normal(key, u.shape, u.dtype)

    return per_element(update, key=fields.key(key))
