"""The parts of the laws: seeded gradients, runs, and a comparison that tells where two runs differ."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import tree
from gradtx.core.annotations import Kind
from gradtx.core.buckets import unpacked
from gradtx.core.check import difference
from gradtx.core.record import Recorded
from gradtx.core.transform import Transform

PyTree = Any
Trajectory = dict[str, PyTree]
Law = Callable[..., None]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class AtParams:
    """An extra argument that belongs to the params of each step, such as the loss there: `function(params)`."""

    function: Callable[[PyTree], Any]


LAWS: dict[str, Law] = {}
"""Every law by name."""


class BrokenLaw(AssertionError):
    """A law is broken: which one, by which transform, and how."""


def law(function: Law) -> Law:
    """Add a law to `LAWS`. Its errors start with its name and the transform."""

    @functools.wraps(function)
    def named(tx: Transform, params: PyTree, **extra: Any) -> None:
        try:
            function(tx, params, **extra)
        except BrokenLaw as broken:
            raise BrokenLaw(f"{function.__name__}: {tx!r}: {broken}") from None

    LAWS[function.__name__] = named
    return named


def gradients(params: PyTree, steps: int = 4, *, seed: int = 0) -> list[PyTree]:
    """Random gradients like the params, with some elements exactly 0; the same for the same seed."""
    generator = np.random.default_rng(seed)

    def like(leaf: Any) -> jax.Array:
        values = generator.normal(size=leaf.shape) * (generator.uniform(size=leaf.shape) < 0.9)
        return jnp.asarray(values.astype(np.float32)).astype(leaf.dtype)

    return [jax.tree.map(like, params) for _ in range(steps)]


def take_step(
    tx: Transform, gradient: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, PyTree]:
    """One update."""
    return tx.update(gradient, state, params, **at_params(extra, params))


def at_params(extra: dict[str, Any], params: PyTree) -> dict[str, Any]:
    """The extra arguments at these params."""
    return {name: value.function(params) if isinstance(value, AtParams) else value for name, value in extra.items()}


jitted_step = jax.jit(take_step)  # one function for all laws, which share its compiled programs


def trajectory(
    tx: Transform,
    params: PyTree,
    grads: list[PyTree],
    extra: dict[str, Any],
    step: Any = jitted_step,
    state: Any = None,
) -> Trajectory:
    """All updates and all states of a run, each leaf with a leading axis of steps."""
    states, updates = [tx.init(params) if state is None else state], []
    for gradient in grads:
        update, state = step(tx, gradient, states[-1], params, extra)
        updates.append(update)
        states.append(state)
    return {"updates": stacked(updates), "state": stacked(states)}


def stacked(trees: Iterable[PyTree]) -> PyTree:
    """The leaves of several trees, as NumPy arrays with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def leaf_by_leaf(run: Trajectory, params: PyTree) -> Trajectory:
    """A run with unpacked states: `pack` chooses the layout at init, and under a trace may choose another."""
    return run | {"state": unpacked(run["state"], params)}


def pick(index: Any, batch: PyTree) -> PyTree:
    """One or some of the entries along the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], batch)


def is_scheduled(tx: Any) -> bool:
    """Whether a number of tx, or of a transform in it, is a schedule."""
    nodes = jax.tree.leaves(tx, is_leaf=lambda node: isinstance(node, Recorded) and node is not tx)
    return any(isinstance(node, Recorded) and (node._kind is Kind.SCHEDULE or is_scheduled(node)) for node in nodes)


def bound(tx: Transform) -> float:
    """The number of ulps by which two ways of running tx may differ.

    It is 8 for element-wise transforms: a fused multiply-add rounds once where a product and a sum round twice, and the
    compiler chooses which product is fused. It doubles if elements are summed, in an order that the compiler chooses,
    and doubles again for products of matrices, many of which follow each other. It doubles if a number is a
    schedule, whose value is rounded first.
    """
    sums = 1 if tx.facts.reads == "element" else 4 if tx.facts.reach == "matrix" else 2
    return 8.0 * sums * (2 if is_scheduled(tx) else 1)


def fail(problem: str) -> NoReturn:
    """Raise a `BrokenLaw` with the problem."""
    raise BrokenLaw(problem)


def assert_close(tx: Transform, actual: PyTree, expected: PyTree, params: PyTree, ulps: float | None = None) -> None:
    """Assert that two ways of running tx agree within `bound(tx)` ulps, or within `ulps`.

    An ulp is that of the largest element of the leaf; for a transform that reads the params, at least that of the
    largest param.
    """
    leaves = jax.tree.leaves(params) if tx.facts.params else []
    least = max((float(np.abs(np.asarray(leaf)).max(initial=0)) for leaf in leaves), default=0.0)
    assert_same(actual, expected, bound(tx) if ulps is None else ulps, least)


def assert_same(actual: PyTree, expected: PyTree, ulps: float = 0, least: float = 0.0) -> None:
    """Assert the same structure, shapes, dtypes and values, to the bit or within ulps of each leaf's largest element.

    An ulp is at least that of the number `least`.
    """
    if words := difference("one", actual, "the other", expected):
        fail(words)
    for (path, leaf), other in zip(tree.named_leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(leaf), np.asarray(other)
        if a.dtype != b.dtype:
            fail(f"at {path}, one has dtype {a.dtype}, the other {b.dtype}.")
        if a.tobytes() == b.tobytes():
            continue
        exact = ulps == 0 or not jnp.issubdtype(b.dtype, jnp.inexact)
        off = np.abs(a.astype(np.complex128) - b.astype(np.complex128))
        if not exact:
            limits = jnp.finfo(b.dtype)
            off /= float(limits.eps) * max(float(np.abs(b).max()), float(limits.tiny), least)
        worst = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
        if exact or not off[worst] <= ulps:
            allowed = f"{ulps:g} ulps of the leaf's largest element, these are {off[worst]:.3g}"
            allowed = "no difference in any bit" if exact else allowed
            fail(f"at {path}, element {tuple(map(int, worst))}: {a[worst]!r}, not {b[worst]!r}; allowed: {allowed}.")


def numbers_of(tx: Transform) -> dict[str, Any]:
    """The transform's own hyperparameters that are numbers."""
    hyperparameters = [p.name for p in tx._parameters if p.kind is Kind.HYPER]
    return {name: tx.arguments[name] for name in hyperparameters if isinstance(tx.arguments[name], float | jax.Array)}


def with_schedules(tx: Transform, make: Callable[[Any], Any]) -> Transform:
    """The transform with `make(number)` for every number that its repr shows, including those of inner transforms."""
    hidden = [p.name for p in tx._parameters if p.keyword_only and tx.arguments[p.name] == p.default]
    changes = {name: make(value) for name, value in numbers_of(tx).items() if name not in hidden}
    for name, value in tx.arguments.items():
        if isinstance(value, Transform):
            changes[name] = with_schedules(value, make)
    if "stages" in tx.arguments:
        return tx.factory(*(with_schedules(stage, make) for stage in tx.arguments["stages"]))
    return tx.replace(**changes)
