"""What the transcriptions are fed with and how a library's updates are held against theirs."""

import math

import numpy as np

SHAPES = {"dense": {"bias": (7,), "kernel": (5, 6)}}
"""The leaves of the tested tree, in the order in which JAX flattens it; two, because each is compiled by itself."""

SIZE = 37

KERNELS = {"dense": {"bias": False, "kernel": True}}
"""Which leaves the pattern "*kernel" chooses."""

COPIES = 8
"""How often the reference is asked again. Once is too few: two roundings are often the same number."""


def split(rows: np.ndarray, shapes=SHAPES):
    """Cut the last axis of `rows` into the leaves of the tree."""
    begin = 0

    def build(shape):
        nonlocal begin
        if isinstance(shape, dict):
            return {name: build(shape[name]) for name in sorted(shape)}
        size = math.prod(shape)
        leaf = rows[..., begin : begin + size].reshape(rows.shape[:-1] + shape)
        begin += size
        return leaf

    return build(shapes)


def flatten(tree, leading: int) -> np.ndarray:
    """The opposite of `split`; `leading` axes are kept."""
    if isinstance(tree, dict):
        return np.concatenate([flatten(tree[name], leading) for name in sorted(tree)], axis=-1)
    leaf = np.asarray(tree)
    return leaf.reshape(leaf.shape[:leading] + (-1,))


def masked(mask, chosen: np.ndarray, others) -> np.ndarray:
    """`chosen` where a mask chooses ("*kernel", its tree, or None for all), elsewhere `others`."""
    if mask is None:
        return chosen
    assert mask in ("*kernel", KERNELS), mask
    zeros = split(np.zeros(SIZE))["dense"]
    row = flatten({"dense": {name: np.full(leaf.shape, name == "kernel") for name, leaf in zeros.items()}}, leading=0)
    return np.where(row, chosen, others)


def stream(steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and gradients that reach every branch.

    Each element has its own size, from 1e-4 to 1e2, and all sizes drift by a factor of 30 up and down. Some elements
    are exactly zero: always, at first, for a long while, or nearly always; one is constant, one alternates.
    """
    rng = np.random.default_rng(seed)
    params = rng.normal(size=SIZE)
    sizes = 10.0 ** rng.uniform(-4, 2, size=SIZE)
    drift = 10.0 ** (1.5 * np.sin(np.arange(steps) / 40 + 1))
    gradients = rng.normal(size=(steps, SIZE)) * sizes * drift[:, None]
    always, at_first, for_a_while, nearly_always, constant, alternating = np.split(rng.permutation(SIZE)[:18], 6)
    gradients[:, always] = 0
    gradients[: steps // 10, at_first] = 0
    gradients[steps // 4 : steps // 2, for_a_while] = 0
    gradients[:, nearly_always] *= rng.random((steps, nearly_always.size)) < 0.05
    gradients[:, constant[:1]] = 0.3
    gradients[:, alternating[:1]] = 0.3 * (-1.0) ** np.arange(steps)[:, None]
    return params, gradients


def with_moved_copies(values: np.ndarray, seed: int) -> np.ndarray:
    """The same numbers, then `COPIES` of them each moved by up to 1e-14 of its size, on a new axis before the last."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-1e-14, 1e-14, size=(*values.shape[:-1], COPIES, SIZE))
    return np.concatenate([values[..., None, :], values[..., None, :] * (1 + moves)], axis=-2)


WINDOW = 20
"""How many steps count as recent."""


def recent(rows: np.ndarray) -> np.ndarray:
    """Per element and step, the maximum of the last `WINDOW` rows."""
    padded = np.concatenate([np.zeros((WINDOW - 1, rows.shape[1]), rows.dtype), rows])
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0).max(axis=-1)


def recent_size(updates: np.ndarray) -> np.ndarray:
    """The largest recent update of the same element.

    An error is held against this and not against the update itself, which passes through zero, nor against other
    elements, behind which a small one would hide.
    """
    return recent(np.nan_to_num(np.abs(updates)))


def is_determined(updates: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Where input moved by 1e-14 leaves all recent updates as they are.

    `updates`: of the true input, then of its copies. All recent ones count, because one alone may agree by chance.
    """
    changed = ~(np.abs(updates[:, 1:] - updates[:, :1]) <= allowed[:, None]).all(axis=1)
    return ~recent(changed)


def largest_of_matrix(size: np.ndarray) -> np.ndarray:
    """For each element of the kernel the largest of all its elements, which products of matrices mix."""
    leaves = split(size)["dense"]
    kernel = np.broadcast_to(leaves["kernel"].max((-2, -1), keepdims=True), leaves["kernel"].shape)
    return flatten({"dense": leaves | {"kernel": kernel}}, leading=size.ndim - 1)


def compare(
    actual: np.ndarray, expected: np.ndarray, *, tolerance: float, at_least: float = 1.0, products: bool = False
) -> None:
    """Assert that `actual` is `expected[:, 0]` wherever `expected` is determined by its input.

    `expected` holds the reference's updates for `with_moved_copies`. Where a move of 1e-14 alone changes an update by
    more than the tolerance (a sign decided by the last bit, a difference of equal numbers), no answer is right, and
    none is compared. `at_least` is the share of entries that must remain. With `products` of matrices, errors in the
    kernel are held against its largest element.
    """
    right = expected[:, 0]
    assert actual.shape == right.shape
    assert np.isfinite(actual).all(), "an update is not finite"
    size = largest_of_matrix(recent_size(right)) if products else recent_size(right)
    determined = is_determined(expected, tolerance * size)
    assert determined.mean() >= at_least, (
        f"only {determined.mean():.4f} of the reference is stable: too little to compare"
    )
    error = np.where(determined, np.abs(actual - right), 0)
    wrong = np.argwhere(error > tolerance * size)
    if len(wrong):
        first = tuple(wrong[0])
        raise AssertionError(
            f"{len(wrong)} of {error.size} updates differ, first at step {first[0] + 1}, element {first[1]}: "
            f"{actual[first]!r}, expected {right[first]!r}, off by {error[first] / (size[first] or 1):.2e} of its size"
        )
