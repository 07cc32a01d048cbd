"""Fields: what a transform remembers, of a leaf or of the whole tree; its shape, dtype, start, and place on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import Rule, fields

KERNEL = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
PARAMS = {"kernel": KERNEL, "bias": np.float32([0.5, -2.0])}

HALF, SINGLE, DOUBLE, COMPLEX = (np.dtype(name) for name in (jnp.bfloat16, "float32", "float64", "complex64"))
WIDE = {HALF: SINGLE, SINGLE: SINGLE, DOUBLE: DOUBLE, COMPLEX: COMPLEX}
REAL = WIDE | {COMPLEX: SINGLE}
OF_A_LEAF = {
    "like": (fields.like(0.5), WIDE, np.full((4, 3), 0.5)),
    "squares": (fields.squares(2.0), REAL, np.full((4, 3), 2.0)),
    "copy": (fields.copy(), WIDE, KERNEL),
    "copy in its own dtype": (fields.copy(dtype="params"), {}, KERNEL),
    "remainder": (fields.remainder(), {}, np.zeros((4, 3))),
    "sums over the first axis": (fields.sums(0), REAL, np.zeros(3)),
    "sums over the last axis": (fields.sums(-1, 1.5), REAL, np.full(4, 1.5)),
    "gram": (fields.gram(1), WIDE, np.zeros((3, 3))),
    "basis": (fields.basis(-2), WIDE, np.eye(4)),
    "history": (fields.history(5), WIDE, np.zeros((5, 4, 3))),
    "scalar": (fields.scalar(2.0), REAL, np.full((), 2.0)),
    "integer": (fields.integer(7), dict.fromkeys(WIDE, np.dtype(np.int32)), np.int32(7)),
}


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("kind", OF_A_LEAF)
def test_a_field_of_a_leaf_is_made_of_the_leaf(x64, kind, dtype):
    field, dtypes, expected = OF_A_LEAF[kind]
    params = {"a": jnp.asarray(KERNEL).astype(dtype), "b": jnp.zeros((2, 2, 3), dtype)}
    made = field.init(params, field.start)
    assert made["a"].dtype == made["b"].dtype == dtypes.get(dtype, dtype)
    assert made["a"].shape == expected.shape
    rounded = jnp.asarray(expected).astype(dtype if expected is KERNEL else made["a"].dtype)
    np.testing.assert_array_equal(made["a"], rounded.astype(made["a"].dtype))
    assert made["a"] is not params["a"]
    assert field.storable == (kind not in ("copy in its own dtype", "remainder", "scalar", "integer"))


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_a_field_of_the_tree_is_in_its_precision(x64, wide):
    dtype = DOUBLE if wide else SINGLE
    params = {"a": jnp.zeros(2, dtype), "b": jnp.zeros(3, HALF), "n": np.arange(3)}
    for field, kind, expected in [
        (fields.scalar(0.25, per="tree"), dtype, 0.25),
        (fields.scalar("largest", per="tree"), dtype, np.finfo(dtype).max),
        (fields.history(3, per="tree"), dtype, np.zeros(3)),
        (fields.integer(5, per="tree"), np.int32, 5),
        (fields.flag(), np.bool_, False),
        (fields.key(3), np.uint32, jax.random.key_data(jax.random.key(3))),
    ]:
        made = field.init(params, field.start)
        assert (made.dtype, made.shape, field.storable) == (kind, np.shape(expected), False)
        np.testing.assert_array_equal(made, expected)
    weights = fields.weights().init(params, fields.weights().start)
    of_one = {"given": (0.0, dtype), "left": (1.0, dtype)}
    assert {name: (float(leaf), leaf.dtype) for name, leaf in weights.items()} == of_one
    several = fields.weights("mu", "nu").init(params, fields.weights("mu", "nu").start)
    assert jax.tree.map(lambda leaf: (float(leaf), leaf.dtype), several) == {"mu": of_one, "nu": of_one}


def test_what_a_field_says_of_itself():
    low, kept = fields.like(), fields.squares(exact="for this")
    assert (low.exact, kept.exact, low.nonnegative, kept.nonnegative) == (None, "for this", False, True)
    signed = fields.scalar(), fields.history(2), fields.gram(0), fields.copy()
    never = fields.sums(0), fields.scalar(nonnegative=True), fields.history(2, nonnegative=True), fields.integer()
    assert [field.nonnegative for field in (*signed, *never)] == [False] * 4 + [True] * 4
    assert fields.basis(0).exact
    assert [fields.argument().per, fields.argument("leaf").per] == ["tree", "leaf"]


@gradtx.transform
def starts_at(rate: gradtx.Hyper, other: gradtx.Hyper = 2.0) -> Rule:
    """Fields that start at hyperparameters."""

    def update(u, *, mu, size, once_size):
        return u, {"mu": mu + rate, "size": size}

    def once(*, once_size):
        return {"once_size": once_size + other}

    of_tree = fields.scalar(other, per="tree")
    return gradtx.per_element(update, once=once, mu=fields.like(rate), size=fields.scalar(rate), once_size=of_tree)


def test_a_field_may_start_at_a_number_or_a_schedule():
    """The body has run once, without the numbers."""
    for rate, first in [(0.25, 0.25), (0.75, 0.75), (gradtx.linear_schedule(1.0, 0.0, 4), 1.0)]:
        tx = starts_at(rate, other=3.0)
        own = tx.init(PARAMS)["starts_at"]
        assert own["mu"]["bias"].tolist() == [first, first]
        assert (float(own["size"]["kernel"]), float(own["once_size"])) == (first, 3.0)
        after = tx.update(PARAMS, tx.init(PARAMS))[1]["starts_at"]
        assert after["mu"]["bias"].tolist() == [2 * first, 2 * first]
        assert float(after["once_size"]) == 6.0
    starts = jax.vmap(lambda rate: starts_at(rate).init(PARAMS)["starts_at"]["mu"]["bias"])(jnp.array([0.5, 1.5]))
    assert starts.tolist() == [[0.5, 0.5], [1.5, 1.5]]


@gradtx.transform
def keeps(kept: str) -> Rule:
    """One field of a leaf, of any kind, which only waits."""
    field = OF_A_LEAF[kept][0]
    return gradtx.per_leaf(lambda u, *, own: (u, {"own": own}), own=field)


@pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")
@pytest.mark.parametrize("how", ["eager", "jit", "jit, explicit"])
def test_an_axis_lies_as_that_of_the_params(how):
    kind = AxisType.Explicit if "explicit" in how else AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))
    lie = {
        "like": ("rows", "columns"),
        "history": (None, "rows", "columns"),
        "gram": (None, None),
        "sums over the first axis": ("columns",),
        "sums over the last axis": ("rows",),
    }
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.zeros((8, 6)), NamedSharding(mesh, PartitionSpec("rows", "columns")))
        for name, axes in lie.items():
            tx = keeps(name)
            init = jax.jit(tx.init) if kind is AxisType.Explicit else tx.init  # else a traced leaf does not say it
            state, update = init(params), tx.update if how == "eager" else jax.jit(tx.update)
            for own in (state["keeps"]["own"], update(params, state)[1]["keeps"]["own"]):
                expected = NamedSharding(mesh, PartitionSpec(*axes))
                assert own.sharding.is_equivalent_to(expected, own.ndim), (name, own.sharding.spec)


@gradtx.transform
def counts_around(inner: gradtx.Transform, rate: gradtx.Unit = 0.5) -> Rule:
    """Written by hand: its own fields beside the state of what is inside."""

    def update(updates, state, params=None, **extra):
        updates, own = inner.update(updates, state["inner"], params, **extra)
        return updates, {"inner": own, "mu": state["mu"], "steps": state["steps"] + 1}

    return Rule(update=update, fields={"mu": fields.like(rate), "steps": fields.integer(per="tree")})


def test_a_rule_by_hand_starts_with_its_fields_and_what_is_inside():
    inner = gradtx.scale_by_momentum()
    tx = counts_around(inner, gradtx.linear_schedule(0.25, 1.0, 3))
    state = tx.init(PARAMS)
    own = state["counts_around"]
    assert list(own) == ["count", "mu", "steps", "inner"]
    assert own["mu"]["bias"].tolist() == [0.25, 0.25]
    assert gradtx.tree_equal(own["inner"], inner.init(PARAMS))
    around = {("counts_around", "inner", *place): field for place, field in inner.declared.items()}
    assert tx.declared == {("counts_around", name): field for name, field in tx.fields.items()} | around
    nodes = {place: part.node for place, part in tx.parts.items()}
    assert nodes == {("counts_around",): tx, ("counts_around", "inner", "scale_by_momentum"): inner}
    assert (tx.facts.reach, tx.facts.joinable, counts_around(gradtx.clip_by_leaf_norm(1.0)).facts.reach) == (
        *("element", True, "leaf"),
    )
    updates, state = tx.update(PARAMS, state)
    assert gradtx.tree_equal(updates, inner.update(PARAMS, inner.init(PARAMS))[0])
    assert (state["counts_around"]["steps"], state["counts_around"]["count"]) == (1, 1)


def test_what_is_declared_nonnegative_is_checked():
    @gradtx.transform
    def falls() -> Rule:
        return gradtx.per_element(lambda u, *, nu: (u, {"nu": nu - 1}), nu=fields.squares(0.5))

    tx = gradtx.checked(falls())
    error, _ = checkify.checkify(tx.update)(PARAMS, tx.init(PARAMS))
    assert "gradtx.falls: state 'nu' at ['bias']" in str(error.get())
    assert "negative" in str(error.get())


def test_a_gram_matrix_starts_as_a_multiple_of_the_identity():
    made = fields.gram(1, 0.5).init({"w": jnp.zeros((2, 3))}, 0.5)["w"]
    np.testing.assert_array_equal(made, 0.5 * np.eye(3))


def test_what_rounding_noise_would_ruin_is_not_stored_in_fewer_bits():
    @gradtx.transform
    def remembering() -> gradtx.Rule:
        def update(u, *, c, w):
            return u, {"c": c + u @ u.T}

        return gradtx.per_matrix(update, c=fields.gram(0), w=fields.copy(exact="steps are differences from it"))

    for name, why in {"c": "negative eigenvalues", "w": "differences from it"}.items():
        with pytest.raises(ValueError, match=f"{name} of .* cannot be in bfloat16: .*{why}"):
            gradtx.stored(remembering(), "bfloat16", name)
