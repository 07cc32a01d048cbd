"""Views: an inner transform is shown another form of the tree, and what it remembers moves along when that changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule, Transform, fields, testing
from tests.wrappers.runs import HEARD, assert_close, distance, hearing, pulled

PARAMS = {"kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "bias": np.float32([0.5, -2.0])}
GRADS = testing.gradients(jax.tree.map(jnp.asarray, PARAMS), 6)


@gradtx.transform
def in_units(inner: Transform, every: int = 2, least: gradtx.Positive = 0.5) -> Rule:
    """Shows each leaf in units of the length that its gradient had at the last refresh; counts what it has observed."""

    def down(x, *, size):
        return x / size

    def up(x, *, size):
        return x * size

    def observe(g, *, seen):
        return {"seen": seen + jnp.sum(g)}

    def refresh(g, *, size, seen):
        return {"size": least + jnp.sqrt(jnp.sum(g * g)) + 0 * (seen + size)}

    def move(x, field, old, new):
        ratio = old["size"] / new["size"]
        return x * ratio**2 if field.nonnegative else x * ratio

    kept = {"size": fields.scalar(1.0), "seen": fields.scalar()}
    return gradtx.through(gradtx.View(down, up, observe, refresh, every=every, move=move, **kept), inner)


def train(tx):
    state, found = tx.init(PARAMS), []
    for gradient in GRADS:
        updates, state = tx.update(gradient, state, PARAMS)
        found.append(updates)
    return found, state


@pytest.mark.parametrize("every", [1, 4])
def test_what_the_inner_transform_remembers_moves_along(every):
    """An average of gradients in other units is the same average; divided by the root of squares it has none."""
    expected, _ = train(gradtx.scale_by_momentum())
    found, state = train(in_units(gradtx.scale_by_momentum(), every))
    assert_close(found, expected, 16)
    own, last = state["in_units"], GRADS[(len(GRADS) - 1) // every * every]
    for name, leaf in last.items():
        np.testing.assert_allclose(own["size"][name], 0.5 + np.linalg.norm(leaf), rtol=1e-6)
        np.testing.assert_allclose(own["seen"][name], sum(float(g[name].sum()) for g in GRADS), rtol=1e-5, atol=1e-5)
    signs, _ = train(gradtx.scale_by_rms(0.9, 0.0))
    scaled, _ = train(in_units(gradtx.scale_by_rms(0.9, 0.0), every))
    sizes = [jax.tree.map(lambda leaf: jnp.ones(()), PARAMS)]  # at each step those of the last refresh before it
    for step, gradient in enumerate(GRADS[:-1]):
        sizes.append(jax.tree.map(lambda g: 0.5 + jnp.linalg.norm(g), gradient) if step % every == 0 else sizes[-1])
    assert_close(scaled, [jax.tree.map(lambda u, s: u * s, *pair) for pair in zip(signs, sizes, strict=True)], 16)


def test_what_a_view_is_and_remembers():
    inner = gradtx.scale_by_rms()
    tx = in_units(inner)
    assert (tx.facts.reach, tx.facts.joinable, tx.facts.traits) == ("leaf", False, {"leaves"})
    assert "unobserved" not in tx.facts
    state = tx.init(PARAMS)
    assert list(state["in_units"]) == ["count", "size", "seen", "inner"]
    assert state["in_units"]["inner"].keys() == inner.init(PARAMS).keys()
    assert tx.declared["in_units", "inner", "scale_by_rms", "nu"].nonnegative
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    updates, new = tx.update(low, tx.init(low), low)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {"bfloat16"}
    assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, state)


def test_a_field_may_be_written_without_being_read():
    """By `refresh` and by `once`, which know it by its name."""

    @gradtx.transform
    def longest(inner: Transform) -> Rule:
        same = lambda x, *, size: x + 0 * size  # noqa: E731
        return gradtx.through(gradtx.View(same, same, None, lambda g: {"size": g[0]}, size=fields.scalar()), inner)

    @gradtx.transform
    def lengths() -> Rule:
        measure, once = (lambda u: {"length": gradtx.norm(u)}), (lambda *, length: {"last": length})
        return gradtx.per_element(lambda u, *, last: u / last, measure, once, last=fields.scalar(per="tree"))

    for tx, name in ((longest(gradtx.scale(1.0)), "size"), (lengths(), "last")):
        _, state = tx.update({"w": jnp.float32([3.0, 4.0])}, tx.init({"w": jnp.zeros(2)}), {"w": jnp.zeros(2)})
        assert float(jax.tree.leaves(gradtx.find(state, name))[0]) == (3.0 if name == "size" else 5.0)


def test_extra_arguments_are_shown_as_the_gradients_are():
    tx = in_units(hearing())
    state = tx.init(PARAMS)
    state["in_units"]["size"] = jax.tree.map(lambda leaf: jnp.float32(4.0), PARAMS)
    given = {"value": 2.0, "value_fn": distance, "grad_fn": pulled, "grad": PARAMS, "weights": PARAMS, "note": PARAMS}
    updates, _ = tx.update(PARAMS, state, PARAMS, **given)
    heard, quarter = HEARD[-1], jax.tree.map(lambda leaf: leaf / 4, PARAMS)
    assert_close(updates, PARAMS, 2)
    for name in ("updates", "params", "grad", "weights", "note"):
        assert_close(jax.tree.map(jnp.asarray, heard[name]), quarter, 2)
    assert (heard["value"], float(heard["measured"])) == (2.0, pytest.approx(float(distance(PARAMS)), rel=1e-6))
    assert_close(heard["slopes"], jax.tree.map(lambda leaf: leaf / 4, pulled(PARAMS)), 2)


def test_a_view_of_another_shape():
    """Each matrix transposed, once: nothing is observed or refreshed, and nothing is counted."""

    @gradtx.transform
    def transposed(inner: Transform) -> Rule:
        return gradtx.through(gradtx.View(lambda x: x.T, lambda x: x.T), inner)

    tx = transposed(gradtx.scale_by_momentum())
    state = tx.init(PARAMS)
    assert list(state["transposed"]) == ["inner"]
    assert gradtx.find(state, "mu")["kernel"].shape == (2, 3)
    found, _ = train(tx)
    assert gradtx.tree_equal(found, train(gradtx.scale_by_momentum())[0])


@gradtx.transform
def projected(inner: Transform, rank: int = 2, every: int = 2, seed: int = 0) -> Rule:
    """GaLore: gradients in the basis of the largest singular vectors, found before the step; or in a random one."""

    def basis_of(g, *, p):
        return {"p": jnp.linalg.svd(g, full_matrices=False)[0][:, :rank]}

    def drawn(g, *, p, key):
        return {"p": jax.random.normal(key, p.shape)}

    of_leaf = fields.Field(axes=lambda shape: (0, fields.Length(rank)))
    more = {"key": fields.key(seed)} if seed else {}
    refresh = drawn if seed else basis_of
    down, up = (lambda x, *, p: p.T @ x), (lambda x, *, p: p @ x)
    view = gradtx.View(down, up, None, refresh, every=every, before=True, reach="matrix", p=of_leaf, **more)
    return gradtx.through(view, inner)


MATRICES = {"a": jnp.zeros((4, 3)), "b": jnp.zeros((5, 3))}


def test_a_view_may_be_refreshed_before_the_step(x64):
    """GaLore (Zhao et al. 2024, algorithm 1): the projection of step t is that of the gradient of step t."""
    gradients = testing.gradients(jax.tree.map(jnp.float64, MATRICES), 5)
    tx, plain = projected(gradtx.scale_by_momentum(0.9, form="sum")), projected(gradtx.scale(2.0))
    state, other, means, bases = tx.init(gradients[0]), plain.init(gradients[0]), {}, {}
    for step, gradient in enumerate(gradients):
        updates, state = tx.update(gradient, state)
        doubled, other = plain.update(gradient, other)
        for name, g in gradient.items():
            if step % 2 == 0:
                bases[name] = np.linalg.svd(np.asarray(g), full_matrices=False)[0][:, :2]
            seen = bases[name].T @ np.asarray(g)
            means[name] = 0.9 * means.get(name, 0) + seen
            np.testing.assert_allclose(doubled[name], bases[name] @ (2 * seen), rtol=1e-10, atol=1e-12)
            # The signs of singular vectors are arbitrary: a sum over two bases depends on them.
            if step < 2:
                np.testing.assert_allclose(updates[name], bases[name] @ means[name], rtol=1e-10, atol=1e-12)


def test_a_view_draws_new_numbers_at_each_refresh_for_each_leaf():
    tx = projected(gradtx.identity() >> gradtx.scale_by_momentum(), rank=3, seed=7)
    state, found = tx.init(MATRICES), []
    for gradient in testing.gradients(MATRICES, 4):
        _, state = jax.jit(tx.update)(gradient, state)
        found.append(gradtx.find(state, "p"))
    same = [gradtx.tree_equal(found[0], other) for other in found]
    assert same == [True, True, False, False]
    assert not np.allclose(found[0]["a"], found[0]["b"][:4])
    testing.eager_is_jit(tx, MATRICES, ulps=1000)
    testing.resumed_is_uninterrupted(tx, MATRICES)


def refused(error, *words, inner=None, **passes):
    """A view of which one pass is wrong."""

    def wrong(inner: Transform) -> Rule:
        plain = {"down": lambda x: x, "up": lambda x: x}
        return gradtx.through(gradtx.View(**plain | passes), inner)

    tx = functools.partial(gradtx.transform(wrong), gradtx.scale_by_momentum())
    with pytest.raises(error) as caught:
        tx().update(PARAMS, tx().init(PARAMS), PARAMS)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_is_refused():
    refused(ValueError, "gradtx.wrong: what up returned has shape (2, 3); it must keep the shape", up=lambda x: x.T)
    refused(TypeError, "what up returned has dtype", up=lambda x: x > 0)
    refused(ValueError, "the leaf at ['bias'] has the shape (2,); it must be a matrix", reach="matrix")
    refused(TypeError, "names 'size', which is neither a field nor provided", down=lambda x, *, size: x)
    refused(TypeError, "the field 'size' is declared, but no pass names it", size=fields.scalar())
    refused(TypeError, "mu is 0.0; it must be a field", mu=0.0)
    refused(ValueError, "every is 0; it must be an int of at least 1", every=0)
    whole = fields.scalar(per="tree")
    refused(TypeError, "size is Field(", "it must be a field of each leaf, or a key", size=whole)
    refused(TypeError, "it must be a field of each leaf, or a key", size=fields.argument())
    refused(
        *(TypeError, "it returned the fields"),
        observe=lambda g, *, size: g,
        size=fields.scalar(),
    )


def test_fields_that_move_are_not_in_buckets():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((3, 3))}
    tx = in_units(gradtx.in_buckets(gradtx.scale_by_momentum()))
    with pytest.raises(TypeError, match=r"scale_by_momentum/mu is stored in buckets; .* Leave pack out of the view"):
        tx.update(params, tx.init(params), params)
