"""Arithmetic on pytrees of arrays, and the one place where dtypes meet.

A formula is written for one leaf and mapped over trees; the hyperparameters go in by keyword:

    >>> import jax.numpy as jnp
    >>> from gradtx import tree
    >>> gradients = {"w": jnp.array([1.0, 2.0], jnp.bfloat16)}
    >>> tree.map(lambda g, rate: -rate * g, gradients, rate=0.5)
    {'w': Array([-0.5, -1. ], dtype=float32)}

``map`` hands the function leaves and numbers of one precision: float32, or float64 where one of the leaves is
float64. So low-precision leaves are computed with in float32, eps does not underflow, and a number never promotes a
leaf.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx import numerics, sharding

PyTree = Any

_DOUBLE = (np.dtype(np.float64), np.dtype(np.complex128))


def dtype_of(leaf: Any) -> np.dtype[Any]:
    """The dtype JAX gives a leaf (of a Python number: the default one)."""
    if isinstance(leaf, Array):
        return leaf.dtype
    if isinstance(leaf, (np.ndarray, np.generic)):
        return jax.dtypes.canonicalize_dtype(leaf.dtype)
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def shapes(tree: PyTree, drop: int = 0) -> PyTree:
    """Shapes and dtypes in place of arrays and Python numbers; without the first `drop` axes."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[drop:], dtype_of(leaf)), tree)


def is_discrete(leaf: Any) -> bool:
    """Whether a leaf is of integers or bools, or the gradient of such a leaf: what no arithmetic here is for."""
    return not _is(dtype_of(leaf), jnp.inexact)


def is_complex(leaf: Any) -> bool:
    """Whether a leaf is complex."""
    return _is(dtype_of(leaf), jnp.complexfloating)


@functools.lru_cache(maxsize=256)
def _is(dtype: np.dtype[Any], kind: Any) -> bool:
    return bool(jnp.issubdtype(dtype, kind))


def precision(*trees: PyTree) -> np.dtype[Any]:
    """The dtype to compute with: float64 if any leaf is float64 or complex128, else float32."""
    double = any(dtype_of(leaf) in _DOUBLE for leaf in jax.tree.leaves(trees))
    return np.dtype(np.float64 if double else np.float32)


_precision = precision


def compute_dtype(leaf: Any, *, precision: np.dtype[Any] | None = None, real: bool = False) -> np.dtype[Any]:
    """The dtype of one leaf in arithmetic of this precision, its own if none is given; ``real`` for absolute values."""
    floating = _precision(leaf) if precision is None else precision
    return np.promote_types(floating, np.complex64) if is_complex(leaf) and not real else floating


def _cast(leaf: Any, dtype: np.dtype[Any]) -> Array:
    if isinstance(leaf, Array):
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)
    same = dtype == jax.dtypes.float0 and dtype_of(leaf) == dtype
    return leaf if same else jnp.asarray(leaf).astype(dtype)


def to_compute_dtype(tree: PyTree) -> PyTree:
    """Every leaf in at least float32 (bfloat16 and float16 become float32; float64, complex and integers stay)."""
    return jax.tree.map(lambda leaf: leaf if is_discrete(leaf) else _widened(leaf), tree)


def _widened(leaf: Any) -> Array:
    return _cast(leaf, compute_dtype(leaf))


def cast_like(tree: PyTree, like: PyTree, *, finite: bool = False) -> PyTree:
    """Each leaf in the dtype of the leaf of ``like`` at the same place; ``finite``: too large is the largest there.

    On a mesh with explicit axes the sharding is part of the type, and taken over too.
    """

    def cast(leaf: Any, other: Any) -> Array:
        dtype = dtype_of(other)
        bounded = finite and not is_complex(other) and not is_discrete(other)
        if bounded and jnp.finfo(dtype).max < jnp.finfo(dtype_of(leaf)).max:
            leaf = jnp.clip(leaf, *(as_scalar(end, dtype_of(leaf)) for end in _ends(dtype)))
        return sharding.like(_cast(leaf, dtype), other)

    return jax.tree.map(cast, tree, like)


def _ends(dtype: np.dtype[Any]) -> tuple[float, float]:
    return float(jnp.finfo(dtype).min), float(jnp.finfo(dtype).max)


def map(function: Callable[..., Array], *trees: PyTree, **numbers: Any) -> PyTree:  # noqa: A001 - reads as tree.map
    """Apply ``function(*leaves, **numbers)`` at every leaf, leaves and numbers in one precision of at least float32.

    The function is pure, and inside jit traced once for each kind of leaf (shape and dtype), however many leaves there
    are.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))
    once = jax.jit(function, inline=True) if traced else function

    def at_leaf(*leaves: Any) -> Array:
        real = precision(leaves)
        wide = [_cast(leaf, compute_dtype(leaf, precision=real)) for leaf in leaves]
        with jax.numpy_dtype_promotion("standard"):  # real numbers scale complex leaves: not a promotion to forbid
            return once(*wide, **{name: as_scalar(number, real) for name, number in numbers.items()})

    return jax.tree.map(at_leaf, *trees)


def as_scalar(number: Any, dtype: np.dtype[Any]) -> Any:
    """A number in the given dtype; Python and NumPy numbers stay NumPy scalars, which cost nothing outside jit."""
    return number.astype(dtype) if isinstance(number, Array | np.generic) else dtype.type(number)


def zeros_like(tree: PyTree, *, real: bool = False) -> PyTree:
    """Zeros of the leaves' shapes and shardings, in at least float32; ``real`` for statistics of absolute values."""
    return full_like(tree, 0.0, real=real)


def full_like(tree: PyTree, value: Any, *, real: bool = False) -> PyTree:
    """Leaves filled with ``value``, of the leaves' shapes and shardings, in at least float32."""

    def fill(leaf: Any) -> Array:
        if dtype_of(leaf) == jax.dtypes.float0:  # the gradient of an integer, which is nothing but zero
            return leaf
        dtype = compute_dtype(leaf, real=real)
        return _lying_as(leaf, jnp.full_like(leaf, as_scalar(value, np.dtype(dtype)), dtype=dtype))

    return jax.tree.map(fill, tree)


def _lying_as(leaf: Any, made: Array) -> Array:
    """An array made under jit, which has no sharding of its own on a mesh with automatic axes, with that of a leaf."""
    if isinstance(leaf, Tracer) and jax.device_count() > 1:
        from jax.experimental.shard_alike import shard_alike

        return shard_alike(leaf, made)[1]
    return made


def stored_as(leaf: Array, dtype: Any, like: Any) -> Array:
    """A leaf in the given dtype, rounded to the nearest, sharded as another."""
    return _lying_as(like, leaf.astype(np.dtype(dtype)))


def is_whole(leaf: Any) -> bool:
    """Whether a leaf is known to be unsharded; a sharded one must not be joined with others.

    A traced one says so, unless it lies on a mesh with automatic axes.
    """
    if isinstance(leaf, Tracer):
        return jax.typeof(leaf).sharding.mesh.empty or _is_whole_by_type(leaf)
    return not isinstance(leaf, Array) or leaf.sharding.is_fully_replicated


def _is_whole_by_type(leaf: Any) -> bool:
    """The same by its type alone, which a traced leaf has too: so sums are the same, eager and jitted.

    `jit(in_shardings=...)` may split what lies on no mesh, of which its type says nothing.
    """
    sharding = jax.typeof(leaf).sharding
    if sharding.mesh.empty:
        return jax.device_count() == 1
    return sharding.mesh.are_all_axes_explicit and all(axis is None for axis in sharding.spec)


SMALL = 2**13
"""Leaves with more elements are not joined with others: that costs more, in time and memory, than it saves."""
MOST = 32
"""Maximum leaves per bucket: more take longer to compile, fewer make more kernels."""


def joined(leaves: list[Any]) -> list[Any]:
    """The leaves, small ones of a dtype joined end to end: fewer and longer, for what does not care where they end."""
    kinds: dict[Any, list[Any]] = {}
    for leaf in leaves:
        kinds.setdefault((dtype_of(leaf), jnp.size(leaf) <= SMALL and _is_whole_by_type(leaf)), []).append(leaf)
    runs = [(small, group[i : i + MOST]) for (_, small), group in kinds.items() for i in range(0, len(group), MOST)]
    return [part for small, run in runs for part in ([join(run)] if small and len(run) > 1 else run)]


@numerics.one_program
def join(leaves: list[Any]) -> Array:
    """Leaves end to end, as one vector."""
    return jax.lax.concatenate([jax.lax.reshape(leaf, (jnp.size(leaf),)) for leaf in leaves], 0)


class Norm(NamedTuple):
    """A norm as `relative / unit`, found without squaring what is huge or tiny.

    `unit` is 1 unless the sum of squares is too large or too small for its dtype, and 0 where an element is infinite.
    """

    relative: Array
    unit: Array

    @property
    def value(self) -> Array:
        """The norm as a number, which may be infinite."""
        infinite = self.unit == 0
        return jnp.where(infinite, jnp.inf, self.relative / jnp.where(infinite, 1, self.unit))


Axis = int | tuple[int, ...] | None


def norm(tree: PyTree, axis: Axis = None) -> Norm:
    """The norm over all elements of all leaves; with an axis, along it, where it stays with length 1.

    Usually the root of the plain sum of squares. Only where that is not finite, or so small that squares may have been
    lost on the way, the elements are measured again, in other units.
    """
    leaves, over = jax.tree.leaves(tree), sharding.named_axes()
    if over and axis is not None and sharding.axes_of(*leaves):
        raise ValueError(
            "gradtx: a norm along an axis of a leaf that is sharded inside shard_map; allowed: norms of whole leaves. "
            "Which axis is sharded is not known there: gather the leaf, or leave it replicated."
        )
    whole = axis is None and not over
    return _traced_once(axis, precision(tree), over, joined(leaves) if whole else leaves)


def number_of_elements(leaf: Any) -> int:
    """The elements of a leaf, those of all shards inside shard_map."""
    return jnp.size(leaf) * (sharding.number_of_shards(leaf) if sharding.named_axes() else 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _norm(axis: Axis, dtype: np.dtype[Any], over: tuple[str, ...], leaves: list[Any]) -> Norm:
    squares = jnp.zeros((), dtype)
    for leaf in leaves:
        squares = squares + _sum_squares(_cast(leaf, compute_dtype(leaf, precision=dtype)), axis, over)
    lost = max(1, sum(number_of_elements(leaf) for leaf in leaves)) * jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps
    plain = (squares >= dtype.type(lost)) & jnp.isfinite(squares)
    careful = functools.partial(_careful_norm, axis, over, float(lost))
    return numerics.branch(jnp.all(plain), _plain_norm, careful, squares, plain, leaves)


@_norm.defjvp
def _norm_jvp(
    axis: Axis, dtype: np.dtype[Any], over: tuple[str, ...], primals: tuple[Any], tangents: tuple[Any]
) -> tuple[Norm, Norm]:
    """`d|x| = sum of (x / |x|) dx`, in whichever way the norm was found: 0 where it is 0 or infinite."""
    size = _norm(axis, dtype, over, *primals)
    change = jnp.zeros_like(size.relative)
    for x, dx in zip(_halves(primals[0], dtype), _halves(tangents[0], dtype), strict=True):
        along = numerics.divide(in_units(x, size.unit), size.relative) * dx
        change = change + sharding.summed(jnp.sum(along, axis=axis, keepdims=axis is not None))
    return size, Norm(size.unit * change, jnp.zeros_like(size.unit))


_traced_once = numerics.one_program(_norm, static_argnums=(0, 1, 2))  # for each kind of leaf


def _plain_norm(squares: Array, plain: Array, leaves: list[Any]) -> Norm:
    return Norm(numerics.root(squares), jnp.ones_like(squares))


def _careful_norm(
    axis: Axis, over: tuple[str, ...], lost: float, squares: Array, plain: Array, leaves: list[Any]
) -> Norm:
    """In units of a power of two, which brings what is too large or too small into the middle.

    An infinite element is measured as `most`, whose square is more than all finite ones add up to in such units: by it
    they are counted. (NaN is found in the plain sum: XLA on the CPU has a minimum of long vectors that loses it.)
    """
    limits, number = jnp.finfo(squares.dtype), squares.dtype.type
    most = 2.0 ** (3 * limits.maxexp // 8)
    to_small, to_large = 2.0 ** (-25 * limits.maxexp // 32), 2.0 ** math.floor(math.log2(most / 2 / lost**0.5))
    unit = jnp.where(squares > 1, number(to_small), number(to_large))
    measured = jnp.zeros_like(squares)
    for leaf, u, limit in _for_each(_halves(leaves, squares.dtype), unit, jnp.asarray(most, squares.dtype)):
        measured = measured + _sum_squares(jnp.minimum(u * jnp.abs(leaf), limit), axis, over)
    measured = jnp.where(jnp.isnan(squares), squares, measured)
    infinite, length = jnp.round(measured / number(most**2)), numerics.root(measured)
    # The nearer 1 / unit is to the norm, the fewer digits are lost later; both stay within the numbers.
    near = 1 / jnp.clip(length / unit, limits.tiny, 1 / limits.tiny)
    near = jnp.where(jnp.isfinite(length), near, unit)
    finite, others = Norm(length * (near / unit), near), Norm(numerics.root(infinite), jnp.zeros_like(unit))
    careful = jax.tree.map(functools.partial(jnp.where, infinite > 0), others, finite)
    return jax.tree.map(functools.partial(jnp.where, plain), _plain_norm(squares, plain, leaves), careful)


def _for_each(leaves: list[Array], *numbers: Array) -> list[tuple[Array, ...]]:
    """Each leaf with the numbers, of which XLA does not know that they are the same, nor that a leaf is constant.

    What leaves of one shape share it keeps in memory, as large as a leaf; and of a constant leaf x it makes (u u) (x x)
    of (u x) (u x), where u u may be infinite or NaN.
    """
    return list(zip(*jax.lax.optimization_barrier((leaves, *([one] * len(leaves) for one in numbers))), strict=True))


def _halves(leaves: list[Any], dtype: np.dtype[Any]) -> list[Array]:
    """The leaves in one dtype, of complex ones real and imaginary part."""
    wide = [_cast(leaf, compute_dtype(leaf, precision=dtype)) for leaf in leaves]
    return [part for leaf in wide for part in ((leaf.real, leaf.imag) if is_complex(leaf) else (leaf,))]


@functools.partial(numerics.one_program, static_argnums=(1, 2))
def _sum_squares(leaf: Array, axis: Axis, over: tuple[str, ...]) -> Array:
    return sharding.summed(jnp.sum(numerics.abs_squared(leaf), axis=axis, keepdims=axis is not None))


def in_units(leaf: Array, unit: Array) -> Array:
    """`unit x`; with unit 0, which stands for 1 / infinity, the infinite elements are 1 or -1 and the others 0."""
    if is_complex(leaf):
        return jax.lax.complex(in_units(leaf.real, unit), in_units(leaf.imag, unit))
    return jax.lax.select(jax.lax.is_finite(leaf) | (unit != 0), unit * leaf, jax.lax.sign(leaf))


def times(tree: PyTree, factor: Array, unit: Array) -> PyTree:
    """`factor (unit x)`: one multiplication after the other, since the product of the two may not be a number."""
    return jax.tree.map(lambda leaf: _times(leaf, factor, unit.astype(factor.dtype)), tree)


@numerics.one_program
def _times(leaf: Array, factor: Array, unit: Array) -> Array:
    wide = _cast(leaf, compute_dtype(leaf, precision=factor.dtype))
    with jax.numpy_dtype_promotion("standard"):  # real factors of complex leaves
        return _cast(factor * in_units(wide, unit), dtype_of(leaf))


def shorten(tree: PyTree, norm: Norm, limit: Any) -> PyTree:
    """`x min(1, limit / |x|)`: the tree with this norm, or each unit of it, no longer than the limit.

    Where elements are infinite, they share the limit and the others become 0; NaN anywhere makes all of it NaN. An
    infinite limit leaves all as it is.
    """
    return times(tree, *_shortening(norm, as_scalar(limit, norm.relative.dtype)))


@numerics.one_program
def _shortening(norm: Norm, limit: Array) -> tuple[Array, Array]:
    """The factor and the unit."""
    short = (norm.relative <= limit * norm.unit) | jnp.isposinf(limit)
    factor = jnp.where(short, 1, limit / jnp.where(short, 1, norm.relative))
    return factor, jnp.where(short, 1, norm.unit)


def global_norm(updates: PyTree) -> Array:
    """``sqrt(sum of |x|²)`` over all elements of all leaves, in at least float32, with derivative 0 at 0.

    It is right also where the squares are too large or too small for the dtype.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])})
    Array(5., dtype=float32)
    """
    return norm(updates).value


def all_finite(tree: PyTree) -> Array:
    """Whether every element of every leaf is finite: a bool; true for an empty tree."""
    fine = jnp.ones((), bool)
    for leaf in jax.tree.leaves(tree):
        fine = fine & jnp.all(jnp.isfinite(leaf))
    return sharding.everywhere(fine)


def path_name(path: tuple[Any, ...]) -> str:
    """A readable name of a leaf's path; the tree itself is called "the root"."""
    return jax.tree_util.keystr(path) or "the root"


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves with the names of their paths."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        """Say where optax's names are."""
        words = "it has what gradtx's own methods are written with. For optax.tree stay with optax, or see jax.tree."
        raise AttributeError(f"gradtx.tree has no {name!r}; {words}", name=name)
