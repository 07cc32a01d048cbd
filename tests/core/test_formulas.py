"""Formulas: what a leaf's formula is given and returns, sums over all leaves, its programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule, fields, numerics, testing
from tests.core.compilations import compilations

KERNEL = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
PARAMS = {"kernel": KERNEL, "bias": np.float32([0.5, -2.0])}

HALF, SINGLE, DOUBLE, COMPLEX = (np.dtype(name) for name in (jnp.bfloat16, "float32", "float64", "complex64"))
WIDE = {HALF: SINGLE, SINGLE: SINGLE, DOUBLE: DOUBLE, COMPLEX: COMPLEX}
REAL = WIDE | {COMPLEX: SINGLE}


def halves(values):
    return jax.tree.map(lambda leaf: 0.5 * leaf, values)


# What a leaf is given and returns -------------------------------------------------------------------------------------


def test_a_tree_is_computed_in_one_precision_and_comes_back_in_its_dtypes(x64):
    seen = {}

    @gradtx.transform
    def notes(rate: gradtx.Unit = 0.5) -> Rule:
        def update(u, *, params, observed, mu, nu, lost, seen_so_far, size):
            named = {"u": u, "params": params, "observed": observed, "mu": mu, "nu": nu, "lost": lost, "rate": rate}
            seen[u.shape] = {name: str(value.dtype) for name, value in (named | {"size": size}).items()}
            new = {"mu": mu + u, "nu": nu + 1, "lost": lost + 1, "seen_so_far": seen_so_far + 1, "size": size + rate}
            return rate * u, new

        return gradtx.per_element(
            update,
            mu=fields.like(),
            nu=fields.squares(),
            lost=fields.remainder(),
            seen_so_far=fields.integer(),
            size=fields.scalar(),
        )

    dtypes = {1: HALF, 3: SINGLE, 4: DOUBLE, 5: COMPLEX}
    params = {str(size): jnp.ones(size, dtype) for size, dtype in dtypes.items()}
    tx = notes()
    state = tx.init(params)
    updates, new = tx.update(params, state, params)
    for size, dtype in dtypes.items():
        wide = "complex128" if dtype == COMPLEX else "float64"  # since one of the leaves is
        expected = dict.fromkeys(["u", "params", "observed", "mu", "lost"], wide)
        assert seen[size,] == expected | dict.fromkeys(["nu", "rate", "size"], "float64")
        assert updates[str(size)].dtype == dtype
        assert (updates[str(size)] == 0.5).all()
    assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert new["notes"]["lost"]["1"].dtype == HALF
    assert new["notes"]["seen_so_far"]["1"] == 1
    low, wide = {"4": params["4"].astype(jnp.bfloat16)}, {"4": params["4"]}
    updates, _ = tx.update(low, tx.init(wide), wide)  # a gradient is computed with in the precision of its param
    assert (updates["4"].dtype, seen[4,]["u"]) == (HALF, "float64")


def test_a_formula_names_the_count_and_mixes_numbers_of_all_kinds():
    @gradtx.transform
    def counts() -> Rule:
        return gradtx.per_element(lambda u, *, count: u * count * np.float64(0.5) + jnp.int32(1))

    tx = counts()
    state = tx.init(PARAMS)
    for t in (1, 2):
        updates, state = tx.update(PARAMS, state)
        np.testing.assert_array_equal(updates["bias"], PARAMS["bias"] * np.float32(0.5 * t) + 1)
    assert state == {"counts": {"count": 2}}


def test_whole_trees():
    @gradtx.transform
    def moves(decay: gradtx.Unit = 0.5) -> Rule:
        def update(us, *, mu, lowest):
            mu = jax.tree.map(lambda m, u: decay * m + u, mu, us)
            return jax.tree.map(lambda m: m + lowest, mu), {"mu": mu}

        def once(*, lowest):
            return {"lowest": lowest - 1}

        return gradtx.per_tree(update, once, mu=fields.like(), lowest=fields.scalar(per="tree"))

    tx = moves()
    assert (tx.facts.reach, tx.facts.joinable) == ("tree", False)
    updates, state = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_array_equal(updates["bias"], PARAMS["bias"] - 1)
    updates, state = tx.update(PARAMS, state)
    np.testing.assert_array_equal(updates["kernel"], np.float32(1.5) * KERNEL - 2)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    updates, state = tx.update(low, tx.init(low))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {"bfloat16"}
    assert state["moves"]["mu"]["bias"].dtype == np.float32


@gradtx.transform
def jitters(rate: gradtx.Finite = 1.0) -> Rule:
    """Noise."""

    def update(u, *, key):
        return rate * jax.random.normal(key, u.shape, u.dtype)

    return gradtx.per_element(update, key=fields.key(3))


def test_each_leaf_and_step_has_a_key_of_its_own():
    tx, params = jitters(), {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    first, state = tx.update(params, tx.init(params))
    second, later = tx.update(params, state)
    drawn = [*first.values(), *second.values()]
    assert len({np.asarray(leaf).tobytes() for leaf in drawn}) == 4
    assert (
        len({leaf.tobytes() for leaf in (np.asarray(s["jitters"]["key"]) for s in (tx.init(params), state, later))})
        == 3
    )
    assert gradtx.tree_equal(tx.init(params)["jitters"]["key"], jax.random.key_data(jax.random.key(3)))


@gradtx.transform
def weighs(rate: gradtx.Unit = 0.5, mask: Any = None) -> Rule:
    """Two extra arguments: a number that must be there, a tree that need not."""

    def update(u, *, value, trust=2.0):
        return value * trust * u

    return gradtx.per_element(update, only=mask, value=fields.argument(), trust=fields.argument("leaf"))


def test_extra_arguments_are_numbers_or_trees():
    tx = weighs()
    assert (tx.facts.extra, tx.facts.required, tx.declared) == ({"value", "trust"}, {"value"}, {})
    assert list(tx.init(PARAMS)["weighs"]) == ["count"]
    state = tx.init(PARAMS)
    np.testing.assert_array_equal(tx.update(PARAMS, state, value=3.0)[0]["bias"], 6 * PARAMS["bias"])
    updates = tx.update(PARAMS, state, value=jnp.bfloat16(3.0), trust=PARAMS)[0]
    np.testing.assert_allclose(updates["kernel"], 3 * KERNEL**2, rtol=1e-6)
    masked = weighs(mask={"kernel": True, "bias": False})
    updates = masked.update(PARAMS, masked.init(PARAMS), value=3.0, trust=PARAMS)[0]
    np.testing.assert_allclose(updates["kernel"], 3 * KERNEL**2, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], PARAMS["bias"])


# Sums over all leaves -------------------------------------------------------------------------------------------------


@gradtx.transform
def sums_up(rate: gradtx.Unit = 0.5, mask: Any = None) -> Rule:
    """Every kind of sum, and what comes of them."""

    def measure(u, *, mu):
        mu = rate * mu + u
        found = {"sum": gradtx.total(mu), "high": gradtx.largest(jnp.abs(mu)), "length": gradtx.norm(mu)}
        return found, {"mu": mu}

    def once(*, longest, sum, high, length, count):  # noqa: A002 - the name of a sum
        longest = jnp.maximum(longest, length)
        return {"longest": longest, "factor": {"of": (sum + high) / longest, "step": count * rate}}

    def update(u, *, mu, factor, longest):
        return factor["of"] * mu + factor["step"] + 0 * longest

    return gradtx.per_element(
        update, measure, once, only=mask, mu=fields.like(), longest=fields.scalar(per="tree", nonnegative=True)
    )


def by_numpy(gradients, leaves):
    """The same in float64, of leaves in one vector."""
    mu, longest = 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        mu = 0.5 * mu + np.concatenate([np.asarray(gradient[name], np.float64).ravel() for name in leaves])
        longest = max(longest, np.linalg.norm(mu))
        yield (mu.sum() + np.abs(mu).max()) / longest * mu + 0.5 * t


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "mixed"])
def test_three_passes(x64, dtype):
    dtypes = {"kernel": dtype, "bias": dtype} if dtype != "mixed" else {"kernel": "float64", "bias": "bfloat16"}
    params = {name: jnp.asarray(leaf).astype(dtypes[name]) for name, leaf in PARAMS.items()}
    gradients = [params, halves(params), halves(params)]
    tx = sums_up()
    assert (tx.facts.reach, tx.facts.reads, tx.facts.joinable) == ("element", "tree", True)
    state = tx.init(params)
    assert state["sums_up"]["longest"].dtype == (DOUBLE if "64" in str(dtypes) else SINGLE)
    tolerance = 1e-14 if dtype == "float64" else 2**-7
    for gradient, expected in zip(gradients, by_numpy(gradients, ["kernel", "bias"]), strict=True):
        updates, state = tx.update(gradient, state)
        assert {name: leaf.dtype.name for name, leaf in updates.items()} == dtypes
        found = np.concatenate([np.asarray(updates[name], np.float64).ravel() for name in ("kernel", "bias")])
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_a_mask_leaves_the_others_as_they_are_and_out_of_the_sums():
    tx = sums_up(mask={"kernel": False, "bias": True})
    assert (tx.facts.reads, tx.facts.joinable) == ("tree", False)
    state = tx.init(PARAMS)
    assert state["sums_up"]["mu"]["kernel"] is None
    gradients = [PARAMS, halves(PARAMS)]
    for gradient, expected in zip(gradients, by_numpy(gradients, ["bias"]), strict=True):
        updates, state = tx.update(gradient, state)
        np.testing.assert_array_equal(updates["kernel"], gradient["kernel"])
        np.testing.assert_allclose(updates["bias"], expected, rtol=1e-6, atol=1e-6)
    of_path = sums_up(mask="bias")
    assert gradtx.tree_equal(of_path.update(PARAMS, of_path.init(PARAMS))[0], tx.update(PARAMS, tx.init(PARAMS))[0])


def test_sums_of_nothing_and_of_what_squares_cannot_hold():
    @gradtx.transform
    def measured() -> Rule:
        def measure(u):
            return {"length": gradtx.norm(u), "sum": gradtx.total(u), "high": gradtx.largest(u)}

        def update(u, *, length, sum, high):  # noqa: A002 - the name of a sum
            return u / length + 0 * (sum + high)

        return gradtx.per_element(update, measure)

    tx = measured()
    for empty in ({}, {"a": jnp.zeros(0)}, {"a": None}):
        assert jax.tree.structure(tx.update(empty, tx.init(empty))[0]) == jax.tree.structure(empty)
    with_none = {"a": jnp.zeros(0), "b": jnp.float32([3.0, 4.0]), "c": None}
    np.testing.assert_allclose(tx.update(with_none, {})[0]["b"], [0.6, 0.8], rtol=1e-6)
    huge = {"a": jnp.float32([3e30]), "b": jnp.float32([4e30])}
    np.testing.assert_allclose(tx.update(huge, {})[0]["b"], [0.8], rtol=1e-6)


# Two methods of ten lines, and every law ------------------------------------------------------------------------------


@gradtx.transform
def scale_by_factors(decay: gradtx.Unit = 0.9, eps: gradtx.Positive = 1e-6) -> Rule:
    """Adafactor's scaling: an average of squares for each row and each column."""

    def update(u, *, observed, rows, columns, correction):
        squares = numerics.abs_squared(observed) + eps
        rows = decay * rows + (1 - decay) * jnp.mean(squares, axis=1)
        columns = decay * columns + (1 - decay) * jnp.mean(squares, axis=0)
        measure = correction * rows[:, None] * (columns / jnp.mean(columns))[None, :]
        return u / jnp.sqrt(measure), {"rows": rows, "columns": columns}

    once, kept = gradtx.averages.debiasing(decay), {"rows": fields.sums(1), "columns": fields.sums(0)}
    return gradtx.per_matrix(update, once=once, weights=fields.weights(), **kept)


@gradtx.transform
def scale_by_distance(decay: gradtx.Unit = 0.9, first: gradtx.Positive = 1e-2) -> Rule:
    """Prodigy's estimate of the distance to a minimum."""

    def measure(g, *, params, start, s, distance):
        s = decay * s + (1 - decay) * distance * g
        return {"along": gradtx.total(g * (start - params)), "length": gradtx.total(jnp.abs(s))}, {"s": s}

    def once(*, way, distance, along, length):
        way = decay * way + (1 - decay) * distance * along
        return {"way": way, "distance": jnp.maximum(distance, numerics.divide(way, length))}

    numbers = {"way": fields.scalar(per="tree"), "distance": fields.scalar(first, per="tree", nonnegative=True)}
    kept = {"start": fields.copy(), "s": fields.like()}
    return gradtx.per_element(lambda g, *, distance: distance * g, measure, once, traits=("real",), **kept, **numbers)


OF_ALL_LEAVES = {
    "factored": gradtx.by_shape(matrix=scale_by_factors(), other=gradtx.scale_by_rms()),
    "distance": scale_by_distance(),
}
EIGHT = {"kernel": jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32)), "b": jnp.float32(0.3)}


@pytest.mark.parametrize("law", testing.LAWS)
@pytest.mark.parametrize("name", OF_ALL_LEAVES)
def test_what_an_author_writes_obeys_every_law(name, law):
    testing.LAWS[law](OF_ALL_LEAVES[name], EIGHT)


def test_a_distance_is_found():
    """From 0.01 up to that of the minimum."""
    tx, goal = scale_by_distance() >> gradtx.scale(-1.0), jnp.array([3.0, -2.0])
    w = jnp.zeros(2)
    state = tx.init(w)
    for _ in range(200):
        updates, state = tx.update(jnp.sign(w - goal), state, w)
        w = w + updates / 2
    assert 0.3 < float(gradtx.find(state, "distance")) < 5
    np.testing.assert_allclose(w, goal, atol=3)


def test_factors_are_of_rows_and_columns():
    tx = scale_by_factors(0.0)
    state = tx.init({"w": jnp.zeros((4, 3))})
    assert {
        name: leaf["w"].shape for name, leaf in state["scale_by_factors"].items() if name in ("rows", "columns")
    } == {
        "rows": (4,),
        "columns": (3,),
    }
    rank_one = jnp.outer(jnp.arange(1.0, 5), jnp.array([1.0, -2.0, 0.5]))
    updates, state = tx.update({"w": rank_one}, state)
    np.testing.assert_allclose(updates["w"], np.sign(rank_one), rtol=1e-4)
    assert (tx.facts.reach, tx.facts.reads, tx.facts.joinable) == ("matrix", "leaf", False)


def test_matrices_of_one_shape_in_one_batch():
    """As one by one, their states and updates in their places."""

    @gradtx.transform
    def turned(stack: bool, rate: gradtx.Unit = 0.5) -> Rule:
        def update(u, *, params, count, key, rows, size, correction):
            shapes.append(u.shape)
            rows = rate * rows + count * jnp.mean(u * u, axis=1)
            noise = jax.random.normal(key, u.shape, u.dtype)
            return correction * (u @ u.T @ params + noise) + rows[:, None], {"rows": rows, "size": size + jnp.sum(rows)}

        kept = {"rows": fields.sums(1), "size": fields.scalar(), "key": fields.key(), "weights": fields.weights()}
        return gradtx.per_matrix(update, once=gradtx.averages.debiasing(rate), stack=stack, **kept)

    shapes = []
    draw = np.random.default_rng(5).normal
    sizes = {"a": (3, 2), "b": (2, 4), "c": (3, 2), "d": (3, 2), "e": (3, 2)}
    params = {name: jnp.asarray(draw(size=size), jnp.bfloat16 if name == "d" else None) for name, size in sizes.items()}
    expected, states = {}, {}
    for stack in (False, True):
        tx = turned(stack)
        states[stack] = tx.init(params)
        for _ in range(2):
            expected[stack], states[stack] = tx.update(params, states[stack], params)
        jax.eval_shape(turned(stack, 0.25).update, params, states[stack], params)
    first, second = ((expected[stack], states[stack]["turned"]) for stack in (False, True))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float64(one), np.float64(other), rtol=1e-5, atol=1e-5)
    assert set(shapes) == {(3, 2), (2, 4)}  # of which an author sees one


# Programs -------------------------------------------------------------------------------------------------------------


def test_a_formula_is_compiled_once_for_each_dtype_and_shape():
    @gradtx.transform
    def fresh(rate: gradtx.Unit = 0.5) -> Rule:
        return gradtx.per_element(lambda u, *, mu: (mu + rate * u, {"mu": mu + 1}), mu=fields.like())

    def stepped(tx, params):
        state = tx.init(params)
        with compilations() as names:
            for _ in range(2):
                _, state = tx.update(params, state)
        return len(names)

    params = {str(i): jnp.ones((3, 2)) for i in range(4)}
    assert stepped(fresh(), params) == 1
    assert stepped(fresh(0.25), params) == stepped(fresh(gradtx.linear_schedule(0.5, 0.0, 3)), params) == 0
    assert stepped(fresh(0.125), params | {"more": jnp.ones(5)}) == 1
    assert stepped(fresh(), {"a": jnp.ones((3, 2), jnp.bfloat16)}) <= 3  # and the casts, there and back
    assert stepped(fresh(0.75), {"a": jnp.ones((3, 2), jnp.bfloat16)}) == 0
