"""SOAP and its kin: another method, in the eigenbasis of the gradients' Gram matrices.

    L <- b L + (1 - b) g gᵀ;   R <- b R + (1 - b) gᵀ g;   P, Q: the eigenvectors of L, R;   u = P inner(Pᵀ g Q) Qᵀ

Every few steps P and Q are renewed, and the averages of the inner method are carried along: those of gradients are
turned to the new basis, those of squares stay.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import numerics
from gradtx.averages import average
from gradtx.core import fields
from gradtx.core.annotations import NonNegative, PositiveInt, Unit
from gradtx.core.elementary import transform
from gradtx.core.fields import Field, Length
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform
from gradtx.core.views import View, through
from gradtx.matrices.kronecker.decompositions import eigenbasis, gram, power_step, rayleigh
from gradtx.matrices.kronecker.roots import product, transposed

PyTree = Any
State = dict[str, Any]
Pair = tuple[Any, Any]


@transform
def skip_first_step(inner: Transform) -> Rule:
    """Makes no step at the first gradient: the updates are zero, and the inner state does not change.

        u_1 = 0;   u_t = the update t - 1 of inner

    Source: SOAP (Vyas et al. 2024, arXiv 2409.11321, the authors' code), whose first gradient only finds the basis.

    Args:
      inner: any transform. It runs at the first step too, and its result is discarded.

    State: `{"skip_first_step": {"count", "inner": inner's state}}`.

    >>> import gradtx
    >>> tx = gradtx.skip_first_step(gradtx.scale(2.0))
    >>> u, state = tx.update(4.0, tx.init(0.0))
    >>> float(u), float(tx.update(4.0, state)[0])
    (0.0, 8.0)
    """

    def update(
        updates: PyTree, state: State, params: PyTree = None, *, count: Array, **extra: Any
    ) -> tuple[PyTree, State]:
        result, new = inner.update(updates, state["inner"], params, **extra)
        later = count > 1
        result = jax.tree.map(lambda u: jnp.where(later, u, jnp.zeros_like(u)), result)
        return result, {"inner": jax.tree.map(lambda a, b: jnp.where(later, a, b), new, state["inner"])}

    return Rule(update=update)


@transform
def in_eigenbasis(
    inner: Transform,
    decay: Unit = 0.95,
    every: PositiveInt = 10,
    *,
    refresh: Literal["before", "after"] = "before",
    max_precond_dim: PositiveInt = 10000,
    kl: bool = False,
    eps: NonNegative = 1e-8,
) -> Rule:
    """Runs a transform of matrices in the eigenbasis of the averages of `g gᵀ` and `gᵀ g`.

        L <- b L + (1 - b) g gᵀ;   R <- b R + (1 - b) gᵀ g;   u = P inner(Pᵀ g Q) Qᵀ                     (b = decay)
        first P, Q = eigenvectors of L, R;   every few steps P <- qr(L P), Q <- qr(R Q), steps of a power iteration

    With kl: L <- b L + (1 - b) g R⁻¹ gᵀ / n, R <- b R + (1 - b) gᵀ L⁻¹ g / m for an m x n matrix, where L⁻¹ and R⁻¹ are
    those of the last basis, with the eigenvalues diag(Pᵀ L P), at least eps; I at the first step.

    Source: Vyas et al. 2024 (arXiv 2409.11321), algorithm 3, as the authors' code (commit a1e5535); kl: Lin et al. 2025
    (arXiv 2509.03378). The order of columns in qr is the authors', but they keep their places.

    Eigenvectors are not unique: of equal eigenvalues any basis, and each up to its sign. An m x n gradient leaves
    |m - n| eigenvalues 0 at first, so that runs on matrices that are not square differ between backends.

    Args:
      inner: a transform, which sees gradients in the basis. Its fields like the parameter are turned when the basis
        is renewed; fields of squares stay.
      decay: b in [0, 1), a number or a schedule.
      every: the number of steps from one basis to the next.
      refresh: "before" a step, with the averages up to the last gradient, and at first with the gradient itself;
        "after" a step: then the first basis is the identity, and SOAP's authors put `skip_first_step` around inner.
      max_precond_dim: a longer side is not rotated.
      kl: the averages of KL-Shampoo.
      eps: >= 0, the least eigenvalue for kl. [L]

    State: for an m x n matrix `left` and `left_basis` with m² numbers, `right` and `right_basis` with n², 8 (m² + n²)
    bytes; a side that is not rotated has one number each. With kl `left_values` and `right_values`, m + n numbers.
    `failures`, one int32 for each matrix: how often an average or a basis was not finite, so that the previous one was
    kept. And the state of inner.

    Errors: ValueError for an argument outside its range, and for leaves that are not matrices; TypeError for complex
    leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.in_eigenbasis(gradtx.scale_by_sign())
    >>> g = jnp.array([[2.0, 2.0], [2.0, 2.0]])
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [[0.5 0.5]
     [0.5 0.5]]
    """
    starts = refresh == "before"

    def rotated(size: int) -> bool:
        return size <= max_precond_dim

    def square(axis: int, start: float, exact: str) -> Field:
        def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
            return (axis, axis) if rotated(shape[axis]) else (Length(1), Length(1))

        return Field(start, axes=axes, exact=exact, diagonal=True)

    def values(axis: int) -> Field:
        def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
            return (axis,) if rotated(shape[axis]) else (Length(1),)

        return Field(1.0, axes=axes, real=True, nonnegative=True, exact="it divides")

    def turned(x: Array, left: Array, right: Array) -> Array:
        """`leftᵀ x right`, where a side of one number is not turned."""
        x = product(transposed(left), x) if rotated(x.shape[0]) else x
        return product(x, right) if rotated(x.shape[1]) else x

    def down(x: Array, *, left_basis: Array, right_basis: Array) -> Array:
        return turned(x, left_basis, right_basis)

    def up(x: Array, *, left_basis: Array, right_basis: Array) -> Array:
        return turned(x, transposed(left_basis), transposed(right_basis))

    def seen(g: Array, axis: int, count: Array, bases: Pair, values: Pair) -> Array:
        """What the average of a side gets: `g gᵀ`; with kl `g R⁻¹ gᵀ / n`, where at the first step R = I."""
        if not kl:
            return gram(g, axis)
        other = 1 - axis
        if rotated(g.shape[other]):
            g = product(transposed(bases[0]), g) if axis else product(g, bases[1])
        roots = jnp.where(count == 1, 1, jnp.sqrt(jnp.maximum(values[other], eps)))
        return gram(g / (roots[:, None] if axis else roots[None, :]), axis) / g.shape[other]

    def observe(
        g: Array,
        *,
        count: Array,
        left: Array,
        right: Array,
        left_basis: Array,
        right_basis: Array,
        failures: Array,
        left_values: Any = None,
        right_values: Any = None,
    ) -> dict[str, Array]:
        bases, values = (left_basis, right_basis), (left_values, right_values)
        kept, failed = [left, right], jnp.zeros((), bool)
        for axis, old in enumerate(kept):
            if rotated(g.shape[axis]):
                new = average(old, seen(g, axis, count, bases, values), decay)
                fine = jnp.isfinite(new).all()
                kept[axis], failed = jnp.where(fine, new, old), failed | ~fine
        return {"left": kept[0], "right": kept[1], "failures": failures + failed}

    def renew(
        g: Array,
        *,
        count: Array,
        left: Array,
        right: Array,
        left_basis: Array,
        right_basis: Array,
        failures: Array,
        left_values: Any = None,
        right_values: Any = None,
    ) -> dict[str, Array]:
        averages, bases, values = [left, right], [left_basis, right_basis], [left_values, right_values]
        sides = [axis for axis in (0, 1) if rotated(g.shape[axis])]
        if starts:  # at the first step the averages are zero
            for i in sides:
                first = average(averages[i], seen(g, i, count, bases, values), decay)
                averages[i] = jnp.where(count == 1, first, averages[i])

        def renewed(by: Callable[[Array, Array], tuple[Array, Array]]) -> list[tuple[Array, Array]]:
            return [by(averages[i], bases[i]) for i in sides]

        made = numerics.branch(count == 1, lambda: renewed(eigenbasis), lambda: renewed(power_step))
        for i, (basis, failed) in zip(sides, made, strict=True):
            bases[i], failures = basis, failures + failed
            if kl:
                values[i] = jnp.where(failed, values[i], rayleigh(averages[i], basis))
        new = {"left_basis": bases[0], "right_basis": bases[1], "failures": failures}
        return new | ({"left_values": values[0], "right_values": values[1]} if kl else {})

    def move(x: Array, field: Field, old: dict[str, Array], new: dict[str, Array]) -> Array:
        if field.nonnegative:
            return x
        turns = [product(transposed(old[name]), new[name]) for name in ("left_basis", "right_basis")]
        return turned(x, *turns)

    whole, orthonormal = "a rounded Gram matrix may have negative eigenvalues", "a rounded basis is not orthonormal"
    kept = {"left_values": values(0), "right_values": values(1)} if kl else {}
    view = View(
        down,
        up,
        observe,
        renew,
        every=every,
        before=starts,
        move=move,
        reach="matrix",
        form=fields.like(),
        left=square(0, 0.0, whole),
        right=square(1, 0.0, whole),
        left_basis=square(0, 1.0, orthonormal),
        right_basis=square(1, 1.0, orthonormal),
        failures=fields.integer(),
        **kept,
    )
    return dataclasses.replace(through(view, inner), traits=("leaves", "real"))
