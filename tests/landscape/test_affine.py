"""A loss evaluated operation by operation on a plane: what plain evaluation gives, and no more products than needed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.landscape import affine

POINTS = np.array([[0.0, 0.0], [1.0, -0.5], [0.3, -1.9]])
SHAPE = (3, 4)
pytestmark = pytest.mark.usefixtures("x64")


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


A, B, WIDE = drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2), drawn(4, 5, seed=3)
IMAGES, KERNEL = drawn(2, 6, 6, 2, seed=4), drawn(3, 3, 2, 3, seed=5)


def on_a_plane(params):
    """Affine leaves: an origin, and two directions."""
    leaves, structure = jax.tree.flatten(params)
    slopes = [[drawn(*w.shape, seed=7 * i + j).astype(w.dtype) for j in (8, 9)] for i, w in enumerate(leaves)]
    return jax.tree.unflatten(structure, [affine.Affine(w, tuple(s)) for w, s in zip(leaves, slopes)])


def is_affine(leaf):
    return isinstance(leaf, affine.Affine)


def plain(plane, point):
    return jax.tree.map(lambda w: w.base + point[0] * w.slopes[0] + point[1] * w.slopes[1], plane, is_leaf=is_affine)


def both_ways(functions, params):
    """The values of each function on a plane through the params, ours and by plain evaluation; in one program."""
    plane = on_a_plane(params)

    @jax.jit
    def values(points):
        ours = [jax.vmap(functools.partial(affine.evaluated, f, plane))(points) for f in functions]
        return ours, [jax.vmap(lambda point, f=f: f(plain(plane, point)))(points) for f in functions]

    return zip(*values(POINTS), strict=True)


def assert_plain(named, params, tolerance=1e-11):
    for name, (found, wanted) in zip(named, both_ways([*named.values()], params), strict=True):
        atol = (1e-6 if "float32" in name else tolerance) * np.abs(wanted).max()
        assert found.dtype == wanted.dtype, name
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=name)


def kept(function):
    """Whether the result is known, affine in the coordinates, or evaluated at the point; and the operations."""
    closed = jax.make_jaxpr(function)(A)
    found = []
    jax.eval_shape(lambda: found.extend(affine._run(closed.jaxpr, closed.consts, [on_a_plane(A)], jnp.zeros(2))))
    names = {affine.Affine: "affine", affine._AtPoint: "at point"}
    return names.get(type(found[0]), "known"), names_in(closed.jaxpr)


def bodies(eqn):
    return [body.jaxpr for body in jax.tree.leaves([*eqn.params.values()]) if hasattr(body, "jaxpr")]


def names_in(jaxpr):
    return {eqn.primitive.name for eqn in jaxpr.eqns}.union(*(names_in(b) for eqn in jaxpr.eqns for b in bodies(eqn)))


# The rules ------------------------------------------------------------------------------------------------------------


def convolved(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def added_cotangents(w):
    return jax.vjp(lambda x: (x * A, x * B), A)[1]((w, w))[0]


@jax.custom_jvp
def times_a(w):
    return w * A


times_a.defjvp(lambda primals, tangents: (primals[0] * A, tangents[0] * A))

LINEAR = {
    "broadcast_in_dim": lambda w: jnp.broadcast_to(w[None], (2, *SHAPE)),
    "copy": lambda w: jnp.array(w, copy=True),
    "cumsum": lambda w: jnp.cumsum(w, axis=1),
    "neg": lambda w: -w,
    "reduce_sum": lambda w: jnp.sum(w, axis=0),
    "reshape": lambda w: w.reshape(4, 3),
    "rev": lambda w: w[::-1],
    "slice": lambda w: jax.lax.slice(w, (1, 0), (3, 2)),
    "squeeze": lambda w: jax.lax.squeeze(jax.lax.slice(w, (1, 0), (2, 4)), (0,)),
    "transpose": lambda w: w.T,
}
CALLS = {"jit": lambda w: jax.jit(lambda w, a: jax.jit(lambda w: 2.0 * w)(w) + a)(w, A), "custom_jvp_call": times_a}
BILINEAR = {
    "mul": [lambda w: w * A, lambda w: A * w, lambda w: w[0, 0].reshape(1, 1) * A],
    "dot_general": [
        lambda w: w @ WIDE,
        lambda w: A.T @ w,
        lambda w: jnp.einsum("bij,bjk->bik", np.stack([A, B]), jnp.broadcast_to(w.T, (2, 4, 3))),
    ],
    "conv_general_dilated": [
        lambda w: convolved(w.reshape(1, 3, 2, 2), KERNEL),
        lambda w: convolved(IMAGES, jnp.broadcast_to(jnp.sum(w, axis=1).reshape(3, 1, 1, 1), (3, 3, 2, 3))),
    ],
}
SUMS = {
    "div": [lambda w: w / A],
    "add": [lambda w: w + A, lambda w: A + w, lambda w: w + w[::-1], lambda w: w + w[0, 0].reshape(()) + 1.5],
    "sub": [lambda w: w - A, lambda w: A - w, lambda w: w - w[::-1], lambda w: w[:1] - w[0, 0].reshape(1, 1)],
    "add_any": [added_cotangents],
}
RULES = {f"{name} 0": (name, rule) for name, rule in (LINEAR | CALLS).items()} | {
    f"{name} {i}": (name, rule) for name, rules in (BILINEAR | SUMS).items() for i, rule in enumerate(rules)
}
PRODUCTS = {
    "square": lambda w: w * w,
    "matrix product of two": lambda w: w @ w.T,
    "quotient by one": lambda w: A / (7.0 + w),
    "quotient of two": lambda w: w / (w + 7.0),
    "convolution of two": lambda w: convolved(
        w.reshape(1, 3, 2, 2), jnp.broadcast_to(w[:1, :2].reshape(1, 1, 2, 1), (3, 3, 2, 3))
    ),
}


def test_the_rules_keep_what_is_affine_and_nothing_else():
    assert (affine._LINEAR, affine._BILINEAR, {*affine._CALLS}) == ({*LINEAR}, {*BILINEAR}, {*CALLS})
    for key, (name, rule) in RULES.items():
        how, names = kept(rule)
        assert (how, name in names) == ("affine", True), key
    assert {name: kept(f)[0] for name, f in PRODUCTS.items()} == dict.fromkeys(PRODUCTS, "at point")
    assert kept(lambda w: jnp.sum(jnp.tanh(A @ WIDE)))[0] == "known"
    assert kept(lambda w: w[0, 0] + jnp.tanh(np.float64(2.0)))[0] == "affine"
    assert_plain({key: rule for key, (_, rule) in RULES.items()} | PRODUCTS, drawn(*SHAPE))


# Whole functions ------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def tripled(w):
    return 3.0 * w**2


tripled.defvjp(lambda w: (tripled(w), w), lambda w, g: (6.0 * w * g,))


def root(w):
    """Of w² + 1, by Newton's method."""
    square = w**2 + 1
    return jax.lax.while_loop(lambda c: jnp.any(jnp.abs(c**2 - square) > 1e-9), lambda c: (c + square / c) / 2, square)


NONLINEAR = {
    "relu": lambda w: jax.nn.relu(A.T @ w),
    "softmax": lambda w: jax.nn.log_softmax(w - 1.0),
    "custom_vjp": lambda w: tripled(w + A),
    "checkpoint": jax.checkpoint(lambda w: jnp.tanh(w @ WIDE) @ WIDE.T),
    "scan": lambda w: jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * row), w[0], w)[1],
    "while": root,
    "cond": lambda w: jax.lax.cond(w[0, 0] > 0.2, lambda w: w * A, jnp.tanh, w),
    "where": lambda w: jnp.where(w > A, w, A - w) + jnp.where(B > 0, w, 0.0),
    "gather": lambda w: w[np.array([2, 0, 0]), np.array([1, 3, 3])],
    "dynamic slice": lambda w: jax.lax.dynamic_slice(w, (jnp.sum(w > 0) % 2, 0), (2, 2)),
    "one of two results": lambda w: jax.lax.top_k(w, 2)[0],
    "gradient inside": lambda w: jax.grad(lambda v: jnp.sum(jnp.sin(v) * A))(w),
    "in float32": lambda w: (w.astype(jnp.float32) @ WIDE.astype(np.float32)).astype(jnp.float64),
    "a constant": lambda w: jnp.asarray(0.25),
    "a mask of minus infinity": lambda w: jax.nn.softmax(w + np.where(np.tri(*SHAPE), 0.0, -np.inf)),
}


def test_other_operations_are_plain_evaluation():
    assert_plain(NONLINEAR, drawn(*SHAPE))


def attention(params):
    """A block of a transformer, and a convolution beside it; reads one leaf twice, and one not at all."""
    x = params["embedding"][np.array([[0, 2, 1, 2, 3], [3, 3, 0, 1, 6]])]
    q, k, v = (jnp.einsum("btd,dhe->bhte", x, params[name]) for name in "qkv")
    scores = jnp.where(np.tri(5, dtype=bool)[None, None], jnp.einsum("bhte,bhse->bhts", q, k) / 2.0, -jnp.inf)
    x = x + jnp.einsum("bhte,hed->btd", jax.nn.softmax(scores) @ v, params["out"])
    h = jax.nn.relu(convolved(IMAGES, params["kernel"]))
    h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(h) - jnp.mean(jax.nn.log_softmax(jax.nn.standardize(x) @ params["embedding"].T)[..., 0])


def test_a_network_is_plain_evaluation():
    heads = {name: drawn(4, 2, 4, seed=i) for i, name in enumerate("qkv")}
    params = {"embedding": drawn(7, 4), "out": drawn(2, 4, 4), "kernel": KERNEL, "unread": drawn(2, 2), **heads}
    assert_plain({"attention": attention}, params)


def test_a_leaf_that_is_given_at_the_point_goes_in_as_it_is():
    w = np.ones(4, np.float32)
    at = affine.evaluated(lambda p: 2 * p[0] + p[1], (w, affine.Affine(w, (w,))), jnp.full(1, 3.0))
    assert at.tolist() == [6.0] * 4
    assert affine.Affine(w, (w, 2 * w)).at(jnp.array([0.5, 2.0])).tolist() == [5.5] * 4


# What it costs --------------------------------------------------------------------------------------------------------


def multiplications(jaxpr):
    """In the matrix products of a program without loops."""
    count = sum(multiplications(body) for eqn in jaxpr.eqns for body in bodies(eqn))
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            count += int(np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])) * eqn.outvars[0].aval.size
    return count


def test_the_first_layer_is_computed_once_for_all_points():
    samples, inputs, hidden, points = 5, 78, 12, 64
    plane = on_a_plane({"first": np.ones((inputs, hidden)), "bias": np.ones(hidden), "last": np.ones((hidden, 10))})
    batch, grid = np.ones((samples, inputs)), np.asarray([*itertools.product(np.linspace(-1, 1, 8), repeat=2)])

    def layers(params):
        h = jax.nn.relu(batch @ params["first"] + params["bias"][None])
        return jnp.mean((h @ params["last"]) ** 2)

    ours = jax.make_jaxpr(jax.vmap(functools.partial(affine.evaluated, layers, plane)))(grid)
    first, rest = samples * inputs * hidden, samples * hidden * 10
    assert multiplications(ours.jaxpr) == 3 * first + points * rest
