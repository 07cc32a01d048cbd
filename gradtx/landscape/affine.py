"""What of a loss on a plane need not be computed at every point.

On a plane the params are affine in the coordinates, w = origin + x first + y second, and so is all that is linear in
them: the first layer of a network, above all, X w = X origin + x (X first) + y (X second). Its three products are the
same for all points. So the loss is evaluated operation by operation, and what goes in is one of

    known      the same at every point
    affine     a base and a slope along each direction, known ones
    at point   what depends on the coordinates otherwise

A linear operation on affine numbers gives affine ones; any other gets them as they are at the point. Under `jax.vmap`
over points the known ones have no axis of points, so they are computed once for all points side by side.

It is what the loss says at the point, but for rounding, and for known infinite numbers: infinite times an affine number
is NaN here where a slope or a coordinate is 0.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, core

PyTree = Any

_LINEAR = {
    "broadcast_in_dim",
    "copy",
    "cumsum",
    "neg",
    "reduce_sum",
    "reshape",
    "rev",
    "slice",
    "squeeze",
    "transpose",
}
"""Linear in their one operand."""
_BILINEAR = {"conv_general_dilated", "dot_general", "mul"}
"""Linear in each of two operands."""
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
"""Programs within the program, by the parameter that holds them."""


class Affine(NamedTuple):
    """`base + sum of coordinate_i slope_i`."""

    base: Any
    slopes: tuple[Any, ...]

    def at(self, coordinates: Array) -> Array:
        """The value at a point."""
        value = self.base
        for x, slope in zip(coordinates, self.slopes):
            value = value + x.astype(slope.dtype) * slope
        return value

    def mapped(self, function: Callable[[Any], Any]) -> "Affine":
        """A linear function of it."""
        return Affine(function(self.base), tuple(function(slope) for slope in self.slopes))


class _AtPoint(NamedTuple):
    """A value that depends on the coordinates."""

    value: Any


def evaluated(function: Callable[[PyTree], Array], params: PyTree, coordinates: Array) -> Array:
    """`function(params)` at a point, for a tree of `Affine` and, where a leaf cannot be, of plain arrays at the
    point.
    """
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_affine)
    like = [leaf.base if _is_affine(leaf) else leaf for leaf in leaves]
    closed = jax.make_jaxpr(lambda *leaves: function(jax.tree.unflatten(structure, leaves)))(*like)
    given = [leaf if _is_affine(leaf) else _AtPoint(leaf) for leaf in leaves]
    (result,) = _run(closed.jaxpr, closed.consts, given, coordinates)
    return _plain(result, coordinates)


def _is_affine(leaf: Any) -> bool:
    return isinstance(leaf, Affine)


def _plain(value: Any, coordinates: Array) -> Any:
    if isinstance(value, Affine):
        return value.at(coordinates)
    return value.value if isinstance(value, _AtPoint) else value


def _run(jaxpr: Any, consts: Any, given: list[Any], coordinates: Array) -> list[Any]:
    """The results of a program, each known, affine or at the point."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *given]))

    def read(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else values[variable]

    for eqn in jaxpr.eqns:
        results = _apply(jaxpr, eqn, [read(v) for v in eqn.invars], coordinates)
        values.update(zip(eqn.outvars, results))
    return [read(v) for v in jaxpr.outvars]


def _apply(jaxpr: Any, eqn: Any, operands: list[Any], coordinates: Array) -> list[Any]:
    name = eqn.primitive.name
    if name in _CALLS and any(isinstance(x, Affine | _AtPoint) for x in operands):
        body = eqn.params[_CALLS[name]]
        return _run(body.jaxpr, body.consts, operands, coordinates)

    bind = functools.partial(_bind, jaxpr, eqn)
    if not any(isinstance(x, Affine | _AtPoint) for x in operands):
        return bind(*operands)
    if not any(isinstance(x, _AtPoint) for x in operands):
        kept = _kept_affine(name, operands, bind)
        if kept is not None:
            return [kept]
    return [_AtPoint(value) for value in bind(*(_plain(x, coordinates) for x in operands))]


def _bind(jaxpr: Any, eqn: Any, *operands: Any) -> list[Any]:
    """The operation by itself on plain arrays."""
    given = {v: x for v, x in zip(eqn.invars, operands) if not hasattr(v, "val")}
    alone = jaxpr.replace(constvars=[], invars=list(given), outvars=eqn.outvars, eqns=[eqn])
    return core.eval_jaxpr(alone, [], *given.values())


def _kept_affine(name: str, operands: list[Any], bind: Callable[..., list[Any]]) -> Affine | None:
    """The result where the operation is linear in its affine operands, the others being known; else None."""
    affine = [i for i, x in enumerate(operands) if isinstance(x, Affine)]
    first = operands[affine[0]]

    def in_place(part: Any) -> Any:
        return bind(*(part if i == affine[0] else x for i, x in enumerate(operands)))[0]

    if name in _LINEAR or (name in _BILINEAR and len(affine) == 1) or (name == "div" and affine == [0]):
        return first.mapped(in_place)
    if name in ("add", "sub", "add_any"):
        a, b = (x if isinstance(x, Affine) else None for x in operands)
        base = bind(*(x.base if isinstance(x, Affine) else x for x in operands))[0]
        if a is not None and b is not None:
            return Affine(base, tuple(bind(s, t)[0] for s, t in zip(a.slopes, b.slopes)))
        slopes = first.slopes if a is not None or name != "sub" else tuple(-s for s in first.slopes)
        return Affine(base, tuple(jnp.broadcast_to(s, base.shape) for s in slopes))
    return None
