"""Arithmetic on pytrees of arrays, with one rule for dtypes.

A formula is written for one leaf and mapped over trees; hyperparameters are keyword arguments:

    >>> import jax.numpy as jnp
    >>> from gradtx import tree
    >>> gradients = {"w": jnp.array([1.0, 2.0], jnp.bfloat16)}
    >>> tree.map(lambda g, rate: -rate * g, gradients, rate=0.5)
    {'w': Array([-0.5, -1. ], dtype=float32)}

``map`` calls the function with leaves and numbers of one precision: float32, or float64 if one of the leaves is
float64. So arithmetic on low-precision leaves is in float32, eps does not underflow, and a number never promotes a
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
    """The dtype of a leaf in JAX; for a Python number, the default one."""
    if isinstance(leaf, Array):
        return leaf.dtype
    if isinstance(leaf, (np.ndarray, np.generic)):
        return jax.dtypes.canonicalize_dtype(leaf.dtype)
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def shapes(tree: PyTree, drop: int = 0) -> PyTree:
    """The tree with shapes and dtypes in place of arrays and Python numbers, without the first `drop` axes."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[drop:], dtype_of(leaf)), tree)


def is_discrete(leaf: Any) -> bool:
    """Whether a leaf has integers or bools, or is the gradient of such a leaf. Arithmetic here is not for these."""
    return not _is(dtype_of(leaf), jnp.inexact)


def is_complex(leaf: Any) -> bool:
    """Whether a leaf is complex."""
    return _is(dtype_of(leaf), jnp.complexfloating)


@functools.lru_cache(maxsize=256)
def _is(dtype: np.dtype[Any], kind: Any) -> bool:
    return bool(jnp.issubdtype(dtype, kind))


def precision(*trees: PyTree) -> np.dtype[Any]:
    """The dtype of arithmetic on these trees: float64 if any leaf is float64 or complex128, else float32."""
    double = any(dtype_of(leaf) in _DOUBLE for leaf in jax.tree.leaves(trees))
    return np.dtype(np.float64 if double else np.float32)


_precision = precision


def compute_dtype(leaf: Any, *, precision: np.dtype[Any] | None = None, real: bool = False) -> np.dtype[Any]:
    """The dtype of a leaf in arithmetic of this precision, by default its own; ``real`` for absolute values."""
    floating = _precision(leaf) if precision is None else precision
    return np.promote_types(floating, np.complex64) if is_complex(leaf) and not real else floating


def _cast(leaf: Any, dtype: np.dtype[Any]) -> Array:
    if isinstance(leaf, Array):
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)
    same = dtype == jax.dtypes.float0 and dtype_of(leaf) == dtype
    return leaf if same else jnp.asarray(leaf).astype(dtype)


def to_compute_dtype(tree: PyTree) -> PyTree:
    """Every leaf in at least float32: bfloat16 and float16 become float32; float64, complex and integers stay."""
    return jax.tree.map(lambda leaf: leaf if is_discrete(leaf) else _widened(leaf), tree)


def _widened(leaf: Any) -> Array:
    return _cast(leaf, compute_dtype(leaf))


def cast_like(tree: PyTree, like: PyTree, *, finite: bool = False) -> PyTree:
    """Each leaf in the dtype of the corresponding leaf of ``like``; ``finite`` clips to the range of that dtype.

    On a mesh with explicit axes the sharding is part of the type, so it becomes that of ``like`` too.
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

    The function must be pure. Inside jit it is traced once for each shape and dtype, for any number of leaves.
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
    """A number in the given dtype; Python and NumPy numbers become NumPy scalars, which cost nothing outside jit."""
    return number.astype(dtype) if isinstance(number, Array | np.generic) else dtype.type(number)


def zeros_like(tree: PyTree, *, real: bool = False) -> PyTree:
    """Zeros of the leaves' shapes and shardings, in at least float32; ``real`` for statistics of absolute values."""
    return full_like(tree, 0.0, real=real)


def full_like(tree: PyTree, value: Any, *, real: bool = False) -> PyTree:
    """Leaves filled with ``value``, of the leaves' shapes and shardings, in at least float32."""

    def fill(leaf: Any) -> Array:
        if dtype_of(leaf) == jax.dtypes.float0:  # the gradient of an integer, which is always zero
            return leaf
        dtype = compute_dtype(leaf, real=real)
        return lying_as(leaf, jnp.full_like(leaf, as_scalar(value, np.dtype(dtype)), dtype=dtype))

    return jax.tree.map(fill, tree)


def lying_as(leaf: Any, made: Array) -> Array:
    """The array, sharded like a leaf: on a mesh with automatic axes an array made under jit has no sharding yet."""
    if isinstance(leaf, Tracer) and jax.device_count() > 1:
        from jax.experimental.shard_alike import shard_alike

        return shard_alike(leaf, made)[1]
    return made


def stored_as(leaf: Array, dtype: Any, like: Any) -> Array:
    """A leaf in the given dtype, rounded to the nearest, sharded like another."""
    return lying_as(like, leaf.astype(np.dtype(dtype)))


def is_whole(leaf: Any) -> bool:
    """Whether a leaf is known to be unsharded; a sharded leaf must not be joined with others.

    For a traced leaf this is known, except on a mesh with automatic axes.
    """
    if isinstance(leaf, Tracer):
        return jax.typeof(leaf).sharding.mesh.empty or _is_whole_by_type(leaf)
    return not isinstance(leaf, Array) or leaf.sharding.is_fully_replicated


def _is_whole_by_type(leaf: Any) -> bool:
    """The same from the type alone, which a traced leaf has too: so eager and jitted sums are the same.

    On several devices a leaf without a mesh in its type does not count: `jit(in_shardings=...)` may shard it.
    """
    sharding = jax.typeof(leaf).sharding
    if sharding.mesh.empty:
        return jax.device_count() == 1
    return sharding.mesh.are_all_axes_explicit and all(axis is None for axis in sharding.spec)


SMALL = 2**13
"""Maximum number of elements of a leaf that is joined with others: joining larger ones costs more than it saves."""
MOST = 32
"""Maximum leaves per bucket: more take longer to compile, fewer make more kernels."""


def joined(leaves: list[Any]) -> list[Any]:
    """The leaves, with small ones of a dtype joined end to end, for sums over all elements: fewer and longer arrays."""
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
    """A norm as `relative / unit`, computed without squares of huge or tiny numbers.

    `unit` is 1 unless the sum of squares is too large or too small for its dtype, and 0 if an element is infinite.
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
    """The norm over all elements of all leaves; or along an axis, which is kept with length 1.

    Usually this is the root of the sum of squares. If that sum is not finite, or so small that squares may have
    underflowed, it is computed again in other units.
    """
    leaves, over = jax.tree.leaves(tree), sharding.named_axes()
    if over and axis is not None and sharding.axes_of(*leaves):
        raise ValueError(
            "gradtx: the norm is along an axis of a leaf that is sharded inside shard_map; allowed: norms of whole "
            "leaves, since the sharded axis is not known there. Gather the leaf, or leave it replicated."
        )
    whole = axis is None and not over
    return _traced_once(axis, precision(tree), over, joined(leaves) if whole else leaves)


def number_of_elements(leaf: Any) -> int:
    """The number of elements of a leaf; inside shard_map, of all its shards."""
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
    """`d|x| = sum of (x / |x|) dx`, and 0 if the norm is 0 or infinite."""
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
    """The norm in units of a power of two, in which the squares neither overflow nor underflow.

    An infinite element counts as `most`, whose square exceeds the sum of all finite squares in these units. So the sum
    tells the number of infinite elements. (NaN is found in the plain sum: on the CPU, XLA's minimum of long vectors
    loses it.)
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
    # The nearer 1 / unit is to the norm, the fewer digits are lost later; both stay within the range of the dtype.
    near = 1 / jnp.clip(length / unit, limits.tiny, 1 / limits.tiny)
    near = jnp.where(jnp.isfinite(length), near, unit)
    finite, others = Norm(length * (near / unit), near), Norm(numerics.root(infinite), jnp.zeros_like(unit))
    careful = jax.tree.map(functools.partial(jnp.where, infinite > 0), others, finite)
    return jax.tree.map(functools.partial(jnp.where, plain), _plain_norm(squares, plain, leaves), careful)


def _for_each(leaves: list[Array], *numbers: Array) -> list[tuple[Array, ...]]:
    """Each leaf with the numbers, behind a barrier: it hides from XLA that numbers are the same, or a leaf constant.

    Otherwise XLA keeps intermediate results that leaves of one shape share, each as large as a leaf. And for a constant
    leaf x it rewrites (u x) (u x) as (u u) (x x), where u u may be infinite or NaN.
    """
    return list(zip(*jax.lax.optimization_barrier((leaves, *([one] * len(leaves) for one in numbers))), strict=True))


def _halves(leaves: list[Any], dtype: np.dtype[Any]) -> list[Array]:
    """The leaves in one dtype; complex ones as their real and imaginary parts."""
    wide = [_cast(leaf, compute_dtype(leaf, precision=dtype)) for leaf in leaves]
    return [part for leaf in wide for part in ((leaf.real, leaf.imag) if is_complex(leaf) else (leaf,))]


@functools.partial(numerics.one_program, static_argnums=(1, 2))
def _sum_squares(leaf: Array, axis: Axis, over: tuple[str, ...]) -> Array:
    return sharding.summed(jnp.sum(numerics.abs_squared(leaf), axis=axis, keepdims=axis is not None))


def in_units(leaf: Array, unit: Array) -> Array:
    """`unit x`; for unit 0, which means 1 / infinity, infinite elements become 1 or -1 and the others 0."""
    if is_complex(leaf):
        return jax.lax.complex(in_units(leaf.real, unit), in_units(leaf.imag, unit))
    return jax.lax.select(jax.lax.is_finite(leaf) | (unit != 0), unit * leaf, jax.lax.sign(leaf))


def times(tree: PyTree, factor: Array, unit: Array) -> PyTree:
    """`factor (unit x)`, in this order: the product of the two numbers may be NaN."""
    return jax.tree.map(lambda leaf: _times(leaf, factor, unit.astype(factor.dtype)), tree)


@numerics.one_program
def _times(leaf: Array, factor: Array, unit: Array) -> Array:
    wide = _cast(leaf, compute_dtype(leaf, precision=factor.dtype))
    with jax.numpy_dtype_promotion("standard"):  # real factors of complex leaves
        return _cast(factor * in_units(wide, unit), dtype_of(leaf))


def shorten(tree: PyTree, norm: Norm, limit: Any) -> PyTree:
    """`x min(1, limit / |x|)`: the tree, or each part that has a norm of its own, scaled to at most the limit.

    If elements are infinite, they share the limit and the others become 0. One NaN makes all elements NaN. With an
    infinite limit nothing changes.
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

    It is correct also if the squares overflow or underflow the dtype.

    >>> import gradtx, jax.numpy as jnp
    >>> gradtx.global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])})
    Array(5., dtype=float32)
    """
    return norm(updates).value


def all_finite(tree: PyTree) -> Array:
    """Whether every element of every leaf is finite, as a bool array; True for an empty tree."""
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
        """Point users of optax.tree to its place."""
        words = "it has the functions that gradtx's own methods need. For others use optax.tree or jax.tree."
        raise AttributeError(f"gradtx.tree has no {name!r}; {words}", name=name)
