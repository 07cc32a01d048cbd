"""Runs that end by themselves: a deterministic loss, and a method that evaluates it and keeps what it found.

    while it is not at a minimum:   u, state = tx.update(gradient, state, params);   params += u

Such a method (`searches` says which) has the loss and the gradient at the new params in its state, from its last
evaluation. So a step evaluates the loss only where the method asks for it. The whole run is one program, in which each
member of a batch (`jax.vmap`) ends for its own reason.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx import tree
from gradtx.core.apply import apply_updates
from gradtx.core.transform import Transform, nothing
from gradtx.curvature import trust, vectors
from gradtx.curvature.linesearches import KEPT
from gradtx.curvature.vectors import Box, box
from gradtx.training import ending
from gradtx.training.advancing import Carry, Plan
from gradtx.training.losses import Loss, Outputs

PyTree = Any
MOST_STEPS = 10_000


def searches(tx: Transform) -> str | None:
    """The name of the entry in the state that has the loss and the gradient; None if tx does not evaluate the loss."""
    found = [place for place, part in tx.parts.items() if len(place) == 1 and part.fields.keys() >= KEPT.keys()]
    return found[0][0] if len(found) == 1 else None


@dataclass(frozen=True)
class Problem(Plan):
    """What the program is compiled for, apart from shapes."""

    outputs: Outputs | None = None
    """The residuals, or the outputs of a model whose cost is the loss; None if the loss is a function of the params."""
    entry: str = ""
    """That of the method, in the state."""
    stop_at_nonfinite: bool = True

    def offered(self, params: PyTree, data: PyTree, known: dict[str, Any]) -> dict[str, Any]:
        """The extra arguments of an update."""

        def value_fn(params: PyTree) -> Array:
            return self.loss(params, data, None, None)[0]

        def grad_fn(params: PyTree) -> PyTree:
            return vectors.gradient(jax.grad(value_fn)(params))

        functions = {"value_fn": value_fn, "grad_fn": grad_fn}
        if self.outputs is not None:
            functions |= self.outputs.functions(data)
        return functions | {"value": known["value"], "grad": vectors.gradient(known["grad"])}


def _box(tx: Transform, entry: str, params: PyTree) -> Box | None:
    """The bounds of the method, if it has any."""
    node = tx.parts[(entry,)].node
    bounds = node.arguments.get("bounds")
    return None if bounds is None else box(f"gradtx.{node.name}", bounds, params)


def _free(tx: Transform, entry: str, params: PyTree, grad: PyTree) -> PyTree:
    """The gradient, 0 at params that bounds fix."""
    limits = _box(tx, entry, params)
    return grad if limits is None else limits.free(params, grad)


def start(entry: str, tx: Transform, params: PyTree, tolerance: Array) -> Carry:
    """The carry before the first step: a copy, within the bounds."""
    limits = _box(tx, entry, params)
    params = params if limits is None else limits.project(params)
    ends = ending.begun(tolerance, tree.precision(params))
    return own({"params": params, "tx": tx.init(params), "step": jnp.zeros((), jnp.int32), "ends": ends})


def go_on(entry: str, state: Carry, params: PyTree, tolerance: Array) -> Carry:
    """The carry that continues an earlier run: a copy, whose end is not yet reached."""
    ends = state["ends"]
    on = ends._replace(code=jnp.zeros_like(ends.code), stalled=jnp.zeros_like(ends.stalled))
    return own({**state, "params": params, "ends": on._replace(tolerance=tolerance.astype(ends.first.dtype))})


def own(carry: Carry) -> Carry:
    """A copy without weak types, and whether the run goes on."""
    carry = carry | {"ok": True, "model_state": None}
    return jax.tree.map(lambda leaf: jnp.array(leaf, tree.dtype_of(leaf), copy=True), carry)


def advance(
    problem: Problem, recorded: bool, tx: Transform, carry: Carry, data: PyTree, last: Any
) -> tuple[Carry, dict[str, Array]]:
    """Run to the end, or to step `last`: the carry, and the losses before each step, in `problem.capacity` rows."""
    entry, first = problem.entry, carry["step"]
    losses = {"loss": jnp.zeros(problem.capacity if recorded else 0, carry["tx"][entry]["value"].dtype)}

    def evaluated(carry: Carry) -> Carry:
        known = carry["tx"][entry]
        value, grad = jax.value_and_grad(problem.offered(carry["params"], data, known)["value_fn"])(carry["params"])
        known = known | {"value": vectors.number(value, known["value"].dtype), "grad": vectors.gradient(grad)}
        ends = ending.at_first(carry["ends"], known["value"], _free(tx, entry, carry["params"], known["grad"]))
        return carry | {"tx": carry["tx"] | {entry: known}, "ends": ends}

    def step(running: tuple[Carry, Any]) -> tuple[Carry, Any]:
        carry, rows = running
        params, known = carry["params"], carry["tx"][entry]
        offered = problem.offered(params, data, known)
        extra = {name: value for name, value in offered.items() if name in tx.facts.extra}
        updates, state = tx.update(known["grad"], carry["tx"], params, **extra)
        params, found = apply_updates(params, updates), state[entry]
        grad = _free(tx, entry, params, found["grad"])
        ends = ending.after(carry["ends"], found["value"], grad, found["failures"])
        if recorded:
            rows = {"loss": rows["loss"].at[carry["step"] - first].set(known["value"])}
        return carry | {"params": params, "tx": state, "step": carry["step"] + 1, "ends": ends}, rows

    def goes_on(running: tuple[Carry, Any]) -> Array:
        return (running[0]["step"] < last) & (running[0]["ends"].code == 0)

    carry = jax.lax.cond(carry["ends"].first < 0, evaluated, lambda carry: carry, carry)
    carry, rows = jax.lax.while_loop(goes_on, step, (carry, losses))
    return carry | {"ok": carry["ends"].code == 0}, rows


def is_traced(problem: Problem, tx: Transform, params: PyTree, data: PyTree, others: PyTree) -> bool:
    """Whether the run is inside a trace, or the loss closes over traced arrays."""
    given = jax.tree.leaves((tx, params, data, others))
    if any(isinstance(leaf, Tracer) for leaf in [*given, nothing()]):
        return True
    leaves, structure = jax.tree.flatten(tree.shapes((params, data)))
    try:
        _refuse_traced(problem.loss, structure, tuple(leaves))
    except _TracedError:
        return True
    return False


class _TracedError(Exception):
    """The loss closes over traced arrays."""


@functools.lru_cache(256)
def _refuse_traced(loss: Loss, structure: Any, leaves: tuple[Any, ...]) -> None:
    """Errors are not remembered, so that no tracer is kept alive."""
    params, data = jax.tree.unflatten(structure, leaves)
    jaxpr = jax.make_jaxpr(lambda params, data: loss(params, data, None, None)[0])(params, data)
    if any(isinstance(value, Tracer) for value in jaxpr.consts):
        raise _TracedError


@functools.cache  # compiled functions are made when they are needed: imports wait for each
def compiled(function: Callable[..., Any], static: tuple[int, ...] = (0,), donated: tuple[int, ...] = ()) -> Any:
    """A function as a program."""
    return jax.jit(function, static_argnums=static, donate_argnums=donated)


def run(problem: Problem, tx: Transform, carry: Carry, data: PyTree, last: Any) -> tuple[Carry, dict[str, Array]]:
    """The program of a run whose losses are recorded."""
    return compiled(advance, (0, 1), (3,))(problem, True, tx, carry, data, last)


def traced(problem: Problem, tx: Transform, carry: Carry, data: PyTree, last: Any, *, implicit: bool) -> Carry:
    """A whole run inside a trace: `jit`, `vmap`, `grad`, `scan`.

    With `implicit` the params have derivatives, by the equation that they solve, gradient(params) = 0:

        d params = -H⁻¹ d gradient,     H the Hessian at the params
    """

    def to_the_end(params: PyTree) -> Carry:
        return compiled(advance, (0, 1))(problem, False, tx, carry | {"params": params}, data, last)[0]

    def with_the_rest(_: Any, params: PyTree) -> tuple[PyTree, PyTree]:
        after = to_the_end(params)
        return after["params"], jax.tree.map(_as_floats, after | {"params": None})

    def gradient(params: PyTree) -> PyTree:
        return jax.grad(problem.offered(params, data, {"value": None, "grad": None})["value_fn"])(params)

    if not implicit:
        return to_the_end(carry["params"])
    params, rest = jax.lax.custom_root(gradient, carry["params"], with_the_rest, _constant, has_aux=True)
    return jax.tree.map(_as_before, rest, carry | {"params": None}) | {"params": _implicit(gradient, params)}


def _constant(_: Any, right: PyTree) -> PyTree:
    """No derivative, for `custom_root`, which takes a run as it is, with all that the loss closes over."""
    return vectors.times(0.0, right)


def _implicit(gradient: Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """The params with the derivatives of the solution of gradient(params) = 0."""

    def hessian_times(params: PyTree, v: PyTree) -> PyTree:
        return jax.jvp(gradient, (params,), (v,))[1]

    params = jax.lax.stop_gradient(params)
    product, closed_over = jax.closure_convert(hessian_times, params, params)

    @jax.custom_jvp
    def solution(params: PyTree, gradient: PyTree, closed_over: PyTree) -> PyTree:
        return params

    @solution.defjvp
    def _(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
        params, _, closed_over = primals
        right = vectors.times(-1.0, tangents[1])
        return params, trust.solve(lambda v: product(params, v, *closed_over), right)

    return solution(params, gradient(params), closed_over)


def _as_floats(x: Array) -> Array:
    """A leaf in floating point, exactly: `custom_root` differentiates all that it returns. Integers in two halves."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    wide = x.astype(np.uint32)
    return jnp.stack([wide >> 16, wide & 0xFFFF]).astype(np.float32)


def _as_before(made: Array, like: Array) -> Array:
    if made.dtype == like.dtype:
        return made
    high, low = made.astype(np.uint32)
    return (high << 16 | low).astype(like.dtype)
