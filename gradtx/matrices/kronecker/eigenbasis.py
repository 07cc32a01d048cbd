"""SOAP and its kin: another method, in the eigenbasis of the gradients' Gram matrices.

    L <- b L + (1 - b) g gᵀ;   R <- b R + (1 - b) gᵀ g;   P, Q: the eigenvectors of L, R;   u = P inner(Pᵀ g Q) Qᵀ

Every few steps P and Q are renewed, and the averages of the inner method are carried along: those of gradients are
turned to the new basis, those of squares stay.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

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
from gradtx.matrices.kronecker.decompositions import eigenbasis, grown, kept, power_step
from gradtx.matrices.kronecker.roots import product, transposed

PyTree = Any
State = dict[str, Any]


@transform
def skip_first_step(inner: Transform) -> Rule:
    """Makes no step at the first gradient: the updates are zero, and the inner state does not change.

        u_1 = 0;   u_t = the update t - 1 of inner

    Source: SOAP (Vyas et al. 2024, arXiv 2409.11321, the authors' code), whose first gradient only finds the basis.

    Args:
      inner: any transform. It runs at the first step too, and its result is discarded.

    State: `{"skip_first_step": {"count", "inner": inner's state}}`. Errors: those of inner.

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
    whiten: bool = False,
    eps: NonNegative = 1e-8,
) -> Rule:
    """Runs a transform of matrices in the eigenbasis of the averages of `g gᵀ` and `gᵀ g`.

        L <- b L + (1 - b) g gᵀ;   R <- b R + (1 - b) gᵀ g;   u = P inner(Pᵀ g Q) Qᵀ                     (b = decay)
        first P, Q = eigenvectors of L, R;   every few steps P <- qr(L P), Q <- qr(R Q), steps of a power iteration

    With kl: L <- b L + (1 - b) g R⁻¹ gᵀ / n, R <- b R + (1 - b) gᵀ L⁻¹ g / m for an m x n matrix, where L⁻¹ and R⁻¹
    have the eigenvectors P, Q, and eigenvalues that are averages too; both are I at the first step:
        l <- b l + (1 - b) mean((Pᵀ g Q)² / r, columns);   r <- b r + (1 - b) mean((Pᵀ g Q)² / l, rows);   at first 0.1

    Source: Vyas et al. 2024 (arXiv 2409.11321), algorithm 3, as the authors' code (commit a1e5535): columns are
    orthogonalized by falling eigenvalues, but here keep their places. kl: Lin et al. 2025 (arXiv 2509.03378), as the
    authors' code (yorkerlin/KL-Methods, commit a02e622): qr from left to right, and no eigenvalue of a side of length d
    below 1 / max(10, min(d, 4000))². NVIDIA's Emerging-Optimizers has the eigenvalues diag(Pᵀ L P) of the last basis.

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
      whiten: only with kl: u = P (inner(Pᵀ g Q) / (sqrt(l rᵀ) + eps)) Qᵀ. Around `identity()` this is KL-Shampoo.
      eps: >= 0, for whiten. [gradient]

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
    if whiten and not kl:
        raise ValueError("gradtx.in_eigenbasis: whiten is True; it needs the eigenvalues of kl=True. Pass both.")
    sides, starts = Sides(decay, max_precond_dim, kl), refresh == "before"

    def down(x: Array, *, left_basis: Array, right_basis: Array) -> Array:
        return sides.turned(x, (left_basis, right_basis))

    def up(
        x: Array, *, left_basis: Array, right_basis: Array, left_values: Any = None, right_values: Any = None
    ) -> Array:
        if whiten:
            x = x / (jnp.sqrt(sides.along(0, x, left_values) * sides.along(1, x, right_values)) + eps)
        return sides.turned(x, (transposed(left_basis), transposed(right_basis)))

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
    ) -> State:
        values = sides.along(0, g, left_values), sides.along(1, g, right_values)
        seen = Observed(count == 1, g, (left_basis, right_basis), values)
        new, failed = sides.averages(seen, (left, right))
        made = {"left": new[0], "right": new[1], "failures": failures + failed}
        if kl:
            made["left_values"], made["right_values"] = sides.eigenvalues(seen, (left_values, right_values))
        return made

    def renew(
        g: Array,
        *,
        count: Array,
        left: Array,
        right: Array,
        left_basis: Array,
        right_basis: Array,
        failures: Array,
    ) -> State:
        bases, both = (left_basis, right_basis), (left, right)
        if starts:  # at the first step the averages are zero
            first, _ = sides.averages(Observed(jnp.ones((), bool), g, bases), both)
            both = [jnp.where(count == 1, new, old) for new, old in zip(first, both, strict=True)]
        bases, failed = sides.renewed(g, count, both, bases)
        return {"left_basis": bases[0], "right_basis": bases[1], "failures": failures + failed}

    def move(x: Array, field: Field, old: State, new: State) -> Array:
        turns = [product(transposed(old[name]), new[name]) for name in ("left_basis", "right_basis")]
        return x if field.nonnegative else sides.turned(x, turns)

    view = View(down, up, observe, renew, every=every, before=starts, move=move, reach="matrix", **sides.fields())
    return dataclasses.replace(through(view, inner), traits=("leaves", "real"))


class Observed(NamedTuple):
    """A gradient, whether it is the first, and what has been learned before it: bases, and with kl eigenvalues."""

    first: Array
    g: Array
    bases: Sequence[Array]
    values: tuple[Any, Any] = (1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Sides:
    """The rows and the columns of matrices: which of them are turned, and their averages and bases, in this order."""

    decay: Any
    longest: int
    kl: bool

    def fields(self) -> dict[str, Any]:
        """The form that a view shows, and its fields; none of them is stored in fewer bits."""
        made: dict[str, Any] = {"form": fields.like(), "failures": fields.integer()}
        for axis, side in enumerate(("left", "right")):
            square, row = (functools.partial(self._axes, axis, number) for number in (2, 1))
            made[side] = Field(0.0, axes=square, low=False, diagonal=True)
            made[f"{side}_basis"] = Field(1.0, axes=square, low=False, diagonal=True)
            if self.kl:
                made[f"{side}_values"] = Field(0.1, axes=row, real=True, nonnegative=True, low=False)
        return made

    def _axes(self, axis: int, number: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
        return (axis if shape[axis] <= self.longest else Length(1),) * number

    def of(self, x: Array) -> list[int]:
        """The sides of a matrix that are turned: 0 for its rows, 1 for its columns."""
        return [axis for axis in (0, 1) if x.shape[axis] <= self.longest]

    def turned(self, x: Array, by: Sequence[Array]) -> Array:
        """`Pᵀ x Q`."""
        x = product(transposed(by[0]), x) if 0 in self.of(x) else x
        return product(x, by[1]) if 1 in self.of(x) else x

    def averages(self, seen: Observed, old: Sequence[Array]) -> tuple[list[Array], Array]:
        """The averages after one more gradient, and whether one is not finite; then the old one is kept."""
        made, failed = list(old), jnp.zeros((), bool)
        for axis in self.of(seen.g):
            number = seen.g.shape[1 - axis] if self.kl else 1
            made[axis], bad = grown(old[axis], self._whitened(seen, axis), axis, self.decay, (1 - self.decay) / number)
            failed |= bad
        return made, failed

    def _whitened(self, seen: Observed, axis: int) -> Array:
        """The gradient; with kl `g R^-1/2` for the average of the rows, `L^-1/2 g` for that of the columns."""
        g, other = seen.g, 1 - axis
        if self.kl and other in self.of(g):
            g = product(transposed(seen.bases[0]), g) if axis else product(g, seen.bases[1])
            g = g / jnp.where(seen.first, 1, jnp.sqrt(seen.values[other]))
        return g

    def along(self, axis: int, x: Array, values: Array | None) -> Any:
        """The eigenvalues of a side, so that they divide what lies along it; 1 for a side that is not turned."""
        if values is None or axis not in self.of(x):
            return 1.0
        return values[None, :] if axis else values[:, None]

    def eigenvalues(self, seen: Observed, old: Sequence[Array]) -> list[Array]:
        """Those of both sides after one more gradient; the first one changes nothing."""
        squares, made = self.turned(seen.g, seen.bases) ** 2, list(old)
        for axis in self.of(seen.g):
            least = 1 / max(10, min(seen.g.shape[axis], 4000)) ** 2
            new = average(old[axis], jnp.mean(squares / seen.values[1 - axis], axis=1 - axis), self.decay)
            made[axis] = jnp.where(seen.first, old[axis], kept(jnp.maximum(new, least), old[axis])[0])
        return made

    def renewed(
        self, g: Array, count: Array, averages: Sequence[Array], bases: Sequence[Array]
    ) -> tuple[list[Array], Array]:
        """The bases, and how many were not finite and are the old ones."""

        def by(step: Callable[..., tuple[Array, Array]], **options: bool) -> list[tuple[Array, Array]]:
            return [step(averages[axis], bases[axis], **options) for axis in self.of(g)]

        made = numerics.branch(count == 1, lambda: by(eigenbasis), lambda: by(power_step, in_order=not self.kl))
        new, failures = list(bases), jnp.zeros((), int)
        for axis, (basis, failed) in zip(self.of(g), made, strict=True):
            new[axis], failures = basis, failures + failed
        return new, failures
