"""The radius of a matrix: how long its steps are, measured by its own length, and what they do to that length.

A weight matrix in front of a normalization acts by its direction only. A step along the matrix changes its length; a
step across it turns it, by an angle of about `lr |u| / |w|`, and makes it longer too.

- `hyperball(lr)` keeps the length and turns the matrix by the same angle at every step: no weight decay is needed.
- `pin_radius(lr)` lets the length follow the part of the step along the matrix, without the growth by turning.
- `brake_radius()` slows the growth; `floor_updates(c)` gives every neuron a least angle.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from gradtx.core.annotations import NonNegative
from gradtx.core.elementary import transform
from gradtx.core.formula import per_matrix
from gradtx.core.rule import Rule
from gradtx.matrices.orthogonal import frobenius, lengths
from gradtx.numerics import divide


def along(u: Array, w: Array) -> tuple[Array, Array, Array]:
    """The length of w, its direction, and the component of u along it."""
    size = frobenius(w)
    direction = divide(w, size)
    return size, direction, jnp.sum(u * direction)


def with_length(x: Array, length: Any) -> Array:
    """x, made so long; 0 where x is 0."""
    return divide(x, frobenius(x)) * length


@transform
def hyperball(learning_rate: NonNegative) -> Rule:
    """Turns each matrix by an angle and keeps its Frobenius norm: the last part of MuonH, AdamH, SOAP-H.

        n = w - lr ‖w‖ g / ‖g‖;   w <- ‖w‖ n / ‖n‖                                             (lr = learning_rate)

    It ends a composition in place of `scale_by_learning_rate`: its updates are the new w less the old. The size of g
    has no effect. If g is orthogonal to w, the angle is arctan(lr): 0.018 is about one degree.

    Source: Wen et al. 2025 ("Fantastic pretraining optimizers and where to find them 2.1: hyperball optimization") and
    results 4 and 5 of track 3 of github.com/KellerJordan/modded-nanogpt. There and in levanter ‖g‖ is at least 1e-10.

    A matrix of zeros has no length to keep. It makes the plain step -lr g, and keeps the length that this gives it,
    which may be far from useful; in the sources it never moves. Start it at random, or route it elsewhere with
    `by_shape` or `partition`. Where g is zero, or the step would end at zero, the matrix stays as it is.

    Args:
      learning_rate: >= 0, a number or a schedule: the tangent of the angle. [1]

    State: `count`, a scalar. It needs the params.

    Errors: ValueError for a leaf that is not a matrix, a negative learning_rate, or update without params; TypeError
    for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.hyperball(0.75), jnp.array([[4.0, 0.0]])
    >>> w + tx.update(jnp.array([[0.0, 100.0]]), tx.init(w), w)[0]
    Array([[ 3.2, -2.4]], dtype=float32)
    """

    def update(g: Array, *, params: Array) -> Array:
        radius, direction, _ = along(g, params)
        turned = direction - learning_rate * with_length(g, 1)
        moved = with_length(turned, radius) - params
        stays = (frobenius(g) == 0) | (frobenius(turned) == 0)
        return jnp.where(stays, 0, jnp.where(radius == 0, -learning_rate * g, moved))

    return per_matrix(update, traits=("real", "descends"))


@transform
def pin_radius(learning_rate: NonNegative, weight_decay: NonNegative = 0.0) -> Rule:
    """Steps down, and gives the matrix the length that the part of the step along it asks for.

        r = ‖w‖ - lr <g, w> / ‖w‖;   n = w - lr g;   w <- r n / ‖n‖                            (lr = learning_rate)
        then  w <- w - lr weight_decay 1[g w > 0] w,   w being the one before the step in g w

    It ends a composition in place of `scale_by_learning_rate`. A step across the matrix makes it longer, by about
    (lr ‖g‖)² / (2 ‖w‖); this takes that away. The decay comes last, so that it changes the shape of the matrix: its
    part of the length would otherwise be given back.

    Source: results 29 (radius) and 46 (decay) of track 3 of github.com/KellerJordan/modded-nanogpt, where weight_decay
    is 0.025; for the decay also Chen et al. 2025 (arXiv 2510.12402), whose mask includes zeros. r is at least 0; there
    at least 1e-8.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      weight_decay: >= 0, a number or a schedule: the cautious decay, for elements that the step makes smaller.

    State: `count`, a scalar. It needs the params. A matrix of zeros makes the plain step.

    Errors: ValueError for a leaf that is not a matrix, an argument outside its range, or update without params;
    TypeError for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.pin_radius(0.5), jnp.array([[3.0, 4.0]])
    >>> w + tx.update(jnp.array([[-4.0, 3.0]]), tx.init(w), w)[0]
    Array([[4.472136, 2.236068]], dtype=float32)
    """

    def update(g: Array, *, params: Array) -> Array:
        size, _, parallel = along(g, params)
        moved = params - learning_rate * g
        pinned = jnp.where(size == 0, moved, with_length(moved, jnp.maximum(size - learning_rate * parallel, 0)))
        shrinks = jnp.sign(g) * jnp.sign(params) > 0
        return jnp.where(shrinks, 1 - learning_rate * weight_decay, 1) * pinned - params

    return per_matrix(update, traits=("real", "descends"))


@transform
def brake_radius(outward: NonNegative = 0.5, inward: NonNegative = 1.0) -> Rule:
    """Shortens the part of a step along the matrix, where it makes the matrix longer.

        p = <g, w> w / ‖w‖²;   u = g - p + (outward if <g, w> < 0 else inward) p

    The step is -u: it goes outward where <g, w> is negative.

    Source: result 29 of track 3 of github.com/KellerJordan/modded-nanogpt, whose constants these are. With 0 for both,
    only the step across the matrix is left (Riemannian descent on the sphere).

    Args:
      outward, inward: >= 0, numbers or schedules: factors of the part along w. [1]

    State: `count`, a scalar. It needs the params. Errors: those of `pin_radius`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.brake_radius(0.5), jnp.array([[1.0, 0.0]])
    >>> tx.update(jnp.array([[-2.0, 3.0]]), tx.init(w), w)[0]
    Array([[-1.,  3.]], dtype=float32)
    """

    def update(g: Array, *, params: Array) -> Array:
        _, direction, parallel = along(g, params)
        factor = jnp.where(parallel < 0, outward, inward)
        return g - (1 - factor) * parallel * direction

    return per_matrix(update, traits=("real",))


@transform
def floor_updates(floor: NonNegative, *, per_output: bool = True) -> Rule:
    """Makes updates longer that are short beside the weights: `u = g max(1, floor ‖w‖ / ‖g‖)`.

    The norms are those of the weights that feed one output, a column of a kernel (in, out), or of the whole matrix.
    Zero updates stay zero. Weights that grow then move less than their share, so that no weight decay is needed.

    Source: results 9 (whole matrices, 0.35) and 46 (each output, 0.3825) of track 3 of
    github.com/KellerJordan/modded-nanogpt, after Muon's scaling and before the learning rate; norms there are at least
    1e-8.

    Args:
      floor: >= 0, a number or a schedule: the least length. [updates / params]
      per_output: False for the norms of whole matrices.

    State: `count`, a scalar. It needs the params. Errors: those of `pin_radius`.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, w = gradtx.floor_updates(0.5), jnp.array([[3.0, 1.0], [4.0, 0.0]])
    >>> tx.update(jnp.array([[0.3, 7.0], [0.4, 0.0]]), tx.init(w), w)[0]
    Array([[1.5, 7. ],
           [2. , 0. ]], dtype=float32)
    """

    def length(x: Array) -> Array:
        return lengths(x, 0) if per_output else frobenius(x)

    def update(g: Array, *, params: Array) -> Array:
        size, least = length(g), floor * length(params)
        return jnp.where(size < least, divide(g, size) * least, g)

    return per_matrix(update, traits=("real",))
