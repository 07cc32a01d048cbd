"""A loss evaluated operation by operation on a plane: what plain evaluation gives, and no more products than needed."""

import functools
import itertools

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gradtx.landscape import affine
from gradtx.training import linen, nnx

POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [-0.7, 0.4], [0.3, -1.9], [2.5, 3.5]])
SHAPE = (3, 4)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


A, B, WIDE = drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2), drawn(4, 5, seed=3)
IMAGES, KERNEL = drawn(2, 6, 6, 2, seed=4), drawn(3, 3, 2, 3, seed=5)


def on_a_plane(params):
    """Affine leaves: an origin, and two directions."""
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, params))

    def slope(leaf, seed):
        return jnp.asarray(drawn(*leaf.shape, seed=seed), leaf.dtype)

    every = [affine.Affine(leaf, (slope(leaf, 7 * i + 8), slope(leaf, 7 * i + 9))) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, every)


def plain(plane, point):
    x, y = (jnp.asarray(c) for c in point)
    return jax.tree.map(
        lambda w: w.base + x.astype(w.base.dtype) * w.slopes[0] + y.astype(w.base.dtype) * w.slopes[1],
        plane,
        is_leaf=lambda leaf: isinstance(leaf, affine.Affine),
    )


def both_ways(functions, params):
    """The values of each function on a plane through the params, ours and by plain evaluation; in one program."""
    plane = on_a_plane(params)

    def ours(function, points):
        return jax.vmap(lambda point: affine.evaluated(function, plane, point))(points)

    def theirs(function, points):
        return jax.vmap(lambda point: function(plain(plane, point)))(points)

    return jax.jit(lambda points: [(ours(f, points), theirs(f, points)) for f in functions])(POINTS)


def assert_equal(found, wanted, tolerance=1e-12):
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


def kept(function, params):
    """Whether the result is known, affine in the coordinates, or evaluated at the point."""
    leaves, structure = jax.tree.flatten(on_a_plane(params), is_leaf=lambda leaf: isinstance(leaf, affine.Affine))
    found = []

    def run(leaves):
        bases = [leaf.base for leaf in leaves]
        closed = jax.make_jaxpr(lambda *leaves: function(jax.tree.unflatten(structure, leaves)))(*bases)
        found.extend(affine._run(closed.jaxpr, closed.consts, leaves, jnp.zeros(2)))
        return 0.0

    jax.eval_shape(run, leaves)
    return {affine.Affine: "affine", affine._AtPoint: "at point"}.get(type(found[0]), "known")


def names_in(jaxpr):
    bodies = [b for eqn in jaxpr.eqns for b in jax.tree.leaves(list(eqn.params.values())) if hasattr(b, "jaxpr")]
    return {eqn.primitive.name for eqn in jaxpr.eqns}.union(*(names_in(body.jaxpr) for body in bodies))


# The rules ------------------------------------------------------------------------------------------------------------


def convolved(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def added_cotangents(w):
    return jax.vjp(lambda x: (x * A, x * B), A)[1]((w, w))[0]


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
BILINEAR = {
    "mul": [lambda w: w * A, lambda w: A * w, lambda w: 2.5 * w, lambda w: w[0, 0].reshape(1, 1) * A],
    "dot_general": [
        lambda w: w @ WIDE,
        lambda w: A.T @ w,
        lambda w: jnp.einsum("ij,kj->ik", A, w, preferred_element_type=jnp.float64),
        lambda w: jnp.einsum("bij,bjk->bik", np.stack([A, B]), jnp.broadcast_to(w.T, (2, 4, 3))),
    ],
    "conv_general_dilated": [
        lambda w: convolved(w.reshape(1, 3, 2, 2), KERNEL),
        lambda w: convolved(IMAGES, jnp.broadcast_to(jnp.sum(w, axis=1).reshape(3, 1, 1, 1), (3, 3, 2, 3))),
    ],
}
AFFINE = {
    "div": [lambda w: w / A, lambda w: w / 3.0],
    "add": [lambda w: w + A, lambda w: A + w, lambda w: w + w[::-1], lambda w: w + 1.5],
    "sub": [lambda w: w - A, lambda w: A - w, lambda w: w - w[::-1], lambda w: w - w, lambda w: 1.5 - w],
    "add_any": [added_cotangents],
}
CALLS = {
    "jit": lambda w: jax.jit(lambda w, a: jax.jit(lambda w: 2.0 * w)(w) + a)(w, A),
    "custom_jvp_call": jax.custom_jvp(lambda w: w * A),
}
CALLS["custom_jvp_call"].defjvp(lambda primals, tangents: (primals[0] * A, tangents[0] * A))
RULES = [*(LINEAR | CALLS).items(), *((name, f) for name, rules in (BILINEAR | AFFINE).items() for f in rules)]
PRODUCTS = [
    lambda w: w * w,
    lambda w: w * w[::-1],
    lambda w: w @ w.T,
    lambda w: A / (3.0 + w**2),
    lambda w: A / w,
    lambda w: w / (w + 7.0),
    lambda w: convolved(w.reshape(1, 3, 2, 2), jnp.broadcast_to(w[:1, :2].reshape(1, 1, 2, 1), (3, 3, 2, 3))),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "rule"), RULES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_rule_keeps_what_is_affine(name, rule):
    assert name in names_in(jax.make_jaxpr(rule)(A).jaxpr)
    assert kept(rule, A) == "affine"


@pytest.mark.usefixtures("x64")
def test_the_rules_are_plain_evaluation():
    for (name, _), values in zip(RULES, both_ways([rule for _, rule in RULES], drawn(*SHAPE)), strict=True):
        assert values[0].shape[0] == len(POINTS), name
        assert_equal(*values)
    for values in both_ways(PRODUCTS, drawn(*SHAPE)):
        assert_equal(*values, tolerance=1e-11)


def test_every_rule_has_a_case():
    assert {*LINEAR} == affine._LINEAR
    assert {*BILINEAR} == affine._BILINEAR
    assert {*CALLS} == {*affine._CALLS}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("function", PRODUCTS)
def test_products_and_quotients_of_two_are_found_at_the_point(function):
    assert kept(function, A) == "at point"


@pytest.mark.usefixtures("x64")
def test_what_does_not_depend_on_the_params_is_known():
    assert kept(lambda w: jnp.sum(jnp.tanh(A @ WIDE)), A) == "known"
    assert kept(lambda w: w[0, 0] + jnp.tanh(np.float64(2.0)), A) == "affine"


# Whole functions ------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def tripled(w):
    return 3.0 * w**2


tripled.defvjp(lambda w: (tripled(w), w), lambda w, g: (6.0 * w * g,))


@jax.custom_jvp
def squared(w):
    return w**2


squared.defjvp(lambda primals, tangents: (squared(*primals), 2.0 * primals[0] * tangents[0]))


def newton(w):
    """The root of w² + 1."""
    square = w**2 + 1
    return jax.lax.while_loop(lambda c: jnp.any(jnp.abs(c**2 - square) > 1e-9), lambda c: (c + square / c) / 2, square)


NONLINEAR = {
    "relu": lambda w: jax.nn.relu(A.T @ w),
    "gelu": jax.nn.gelu,
    "softmax": lambda w: jax.nn.log_softmax(w - 1.0) + jax.nn.softmax(2.0 * w, axis=0),
    "custom_jvp": lambda w: squared(w + A),
    "custom_vjp": lambda w: tripled(w + A),
    "checkpoint": jax.checkpoint(lambda w: jnp.tanh(w @ WIDE) @ WIDE.T),
    "scan": lambda w: jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * row), w[0], w)[1],
    "fori": lambda w: jax.lax.fori_loop(0, 3, lambda i, c: c * w[i % 3] + A[0], w[0]),
    "while": newton,
    "cond": lambda w: jax.lax.cond(w[0, 0] > 0.2, lambda w: w * A, jnp.tanh, w),
    "switch": lambda w: jax.lax.switch(jnp.sum(w > 0), [lambda w: w, lambda w: w * w, jnp.tanh] * 4, w),
    "where": lambda w: jnp.where(w > A, w, A - w) + jnp.where(B > 0, w, 0.0),
    "clip and max": lambda w: jnp.clip(w, -0.5, 0.5) + jnp.max(w, axis=0, keepdims=True) * np.ones(SHAPE),
    "gather": lambda w: w[np.array([2, 0, 0]), np.array([1, 3, 3])],
    "scatter": lambda w: jnp.asarray(A).at[np.array([0, 2])].add(w[:2]),
    "dynamic slice": lambda w: jax.lax.dynamic_slice(w, (jnp.sum(w > 0) % 2, 0), (2, 2)),
    "sort": lambda w: jnp.sort(w, axis=0),
    "one of two results": lambda w: jax.lax.top_k(w, 2)[0],
    "another of two": lambda w: jax.lax.sort((w, jnp.asarray(A)), num_keys=1)[1],
    "gradient inside": lambda w: jax.grad(lambda v: jnp.sum(jnp.sin(v) * A))(w),
    "vmap inside": lambda w: jax.vmap(lambda row: jnp.outer(row, row))(w + A),
    "random numbers": lambda w: w * jax.random.uniform(jax.random.split(jax.random.key(0))[1], SHAPE) + w**3,
    "in float32": lambda w: (w.astype(jnp.float32) @ WIDE.astype(np.float32)).astype(jnp.float64),
    "a constant": lambda w: jnp.asarray(0.25),
    "a mask of minus infinity": lambda w: jax.nn.softmax(w + np.where(np.tri(*SHAPE), 0.0, -np.inf)),
}


@functools.cache
def nonlinear():
    return dict(zip(NONLINEAR, both_ways(NONLINEAR.values(), drawn(*SHAPE)), strict=True))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NONLINEAR)
def test_other_operations_are_plain_evaluation(name):
    assert_equal(*nonlinear()[name], tolerance=1e-12 if name != "in float32" else 1e-6)


def attention(params, batch):
    """A block of a transformer: embedded words, two heads with a mask, a normalisation."""
    x = params["embedding"][batch["words"]]
    q, k, v = (jnp.einsum("btd,dhe->bhte", x, params[name]) for name in "qkv")
    scores = jnp.where(np.tri(5, dtype=bool)[None, None], jnp.einsum("bhte,bhse->bhts", q, k) / 2.0, -jnp.inf)
    x = x + jnp.einsum("bhte,hed->btd", jax.nn.softmax(scores) @ v, params["out"])
    x = params["scale"][None, None] * jax.nn.standardize(x)
    return -jnp.mean(jax.nn.log_softmax(x @ params["embedding"].T)[..., 0])


def network(params, batch):
    """Reads one leaf twice and one not at all."""
    h = jax.nn.relu(batch["x"] @ params["first"] + params["bias"][None])
    h = jax.nn.relu(h @ params["first"].T) @ params["first"] + params["bias"][None]
    return jnp.mean(jax.nn.logsumexp(h, axis=1) - h[np.arange(6), batch["y"]])


def convolutional(params, batch):
    h = jax.nn.relu(convolved(batch["images"], params["first"]))
    h = h + jax.nn.relu(convolved(h, params["second"]))
    h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean((h.mean(axis=(1, 2)) @ params["last"]) ** 2)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), param_dtype=jnp.float64)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3, param_dtype=jnp.float64)(x.reshape(x.shape[0], -1))


class Nnx(flax.nnx.Module):
    def __init__(self, rngs):
        self.hidden = flax.nnx.Linear(72, 8, rngs=rngs, param_dtype=jnp.float64)
        self.last = flax.nnx.Linear(8, 3, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        return self.last(jnp.tanh(self.hidden(x.reshape(x.shape[0], -1))))


WORDS = np.array([[0, 2, 1, 2, 3], [3, 3, 0, 1, 6]])
BATCH = {"x": drawn(6, 4, seed=6), "y": np.array([0, 2, 1, 2, 0, 1]), "images": IMAGES, "words": WORDS}


def mean_square(module, batch):
    return jnp.mean(module(batch["images"]) ** 2)


def models():
    """name -> (loss, params); made when asked for, in float64."""
    yield "network", network, {"first": drawn(4, 3), "bias": drawn(3), "unread": drawn(2, 2)}
    yield "convolutional", convolutional, {"first": KERNEL, "second": drawn(3, 3, 3, 3), "last": drawn(3, 2)}
    heads = {name: drawn(4, 2, 4, seed=i) for i, name in enumerate("qkv")}
    yield "attention", attention, {"embedding": drawn(7, 4), "scale": np.ones(4), "out": drawn(2, 4, 4), **heads}
    shapes = jax.eval_shape(Linen().init, jax.random.key(0), IMAGES)["params"]
    yield "linen", linen.loss(Linen(), mean_square), jax.tree.map(lambda leaf: drawn(*leaf.shape), shapes)
    module = flax.nnx.eval_shape(lambda: Nnx(flax.nnx.Rngs(0)))
    yield "nnx", nnx.loss(module, mean_square), jax.tree.map(lambda leaf: drawn(*leaf.shape), nnx.split(module)[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["network", "convolutional", "attention", "linen", "nnx"])
def test_models_are_plain_evaluation(name):
    loss, params = next((loss, params) for found, loss, params in models() if found == name)
    assert_equal(*both_ways([functools.partial(loss, batch=BATCH)], params)[0])


def test_a_leaf_that_is_given_at_the_point_goes_in_as_it_is():
    w = np.ones(4, np.float32)
    twice = jax.jit(lambda w: affine.evaluated(lambda p: 2 * p[0] + p[1], (w, affine.Affine(w, (w,))), jnp.ones(1)))
    assert twice(w).tolist() == [4.0] * 4


# Programs at random ---------------------------------------------------------------------------------------------------

UNARY = [
    *(lambda a: -a, lambda a: a.T, lambda a: a[::-1], lambda a: 0.5 * a, lambda a: 1.0 - a, jnp.tanh, jax.nn.relu),
    *(lambda a: jnp.cumsum(a, axis=0) / 3.0, lambda a: a.reshape(9)[::-1].reshape(3, 3), jax.nn.softmax),
    *(lambda a: jnp.broadcast_to(jnp.sum(a, axis=1)[:, None], (3, 3)) / 3.0, jax.jit(lambda a: 2.0 * a - 1.0)),
    *(lambda a: jnp.concatenate([a[1:], a[:1]]), jax.checkpoint(lambda a: jnp.sin(a) + a)),
    lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a, lambda a: 1.0 - a, a),
]
BINARY = [
    *(jnp.add, jnp.subtract, lambda a, b: a @ b / 3.0, lambda a, b: a * b / (1.0 + b**2), jnp.maximum),
    *(lambda a, b: a / (2.0 + jnp.abs(b)), lambda a, b: jnp.where(a > b, a, b - a)),
    *(lambda a, b: a * b[0, 0], jax.jit(lambda a, b: a - b)),
]


def program(seed):
    """A function of two leaves: ten operations, each on what there is by then."""
    rng = np.random.default_rng(seed)
    steps = [(rng.integers(2), rng.integers(99), rng.integers(99), rng.integers(99)) for _ in range(10)]
    constants = [drawn(3, 3, seed=seed + i) for i in (1, 2)]

    def function(params):
        values = [params["a"], params["b"], *map(jnp.asarray, constants)]
        for binary, which, i, j in steps:
            operation = (BINARY if binary else UNARY)[which % len(BINARY if binary else UNARY)]
            operands = [values[i % len(values)], values[j % len(values)]][: 1 + binary]
            values.append(operation(*operands))
        return jnp.sum(jnp.stack([jnp.sum(value * constants[0]) for value in values[-6:]]))

    return function


@pytest.mark.usefixtures("x64")
def test_programs_at_random_are_plain_evaluation():
    params = {"a": drawn(3, 3, seed=11), "b": drawn(3, 3, seed=12)}
    for values in both_ways([program(seed) for seed in range(8)], params):
        assert_equal(*values, tolerance=1e-11)


# What it costs --------------------------------------------------------------------------------------------------------


def products(jaxpr):
    """Multiplications and additions in the matrix products of a program without loops."""
    count = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = [eqn.invars[0].aval.shape[axis] for axis in contracted]
            count += 2 * int(np.prod(inner)) * eqn.outvars[0].aval.size
        bodies = [b for b in jax.tree.leaves(list(eqn.params.values())) if hasattr(b, "jaxpr")]
        count += sum(products(body.jaxpr) for body in bodies)
    return count


def layers(params, batch):
    h = jax.nn.relu(batch @ params["first"] + params["bias"][None])
    return jnp.mean((h @ params["last"]) ** 2)


def test_the_first_layer_is_computed_once_for_all_points():
    samples, wide, hidden, points = 50, 784, 128, 64
    params = {"first": np.ones((wide, hidden)), "bias": np.ones(hidden), "last": np.ones((hidden, 10))}
    params, batch = jax.tree.map(lambda a: a.astype(np.float32), (params, np.ones((samples, wide))))
    plane, grid = on_a_plane(params), np.asarray([*itertools.product(np.linspace(-1, 1, 8), repeat=2)], np.float32)

    def ours(plane, batch, grid):
        return jax.vmap(lambda point: affine.evaluated(lambda params: layers(params, batch), plane, point))(grid)

    def point_by_point(plane, batch, grid):
        return jax.vmap(lambda point: layers(plain(plane, point), batch))(grid)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    first, rest = 2 * samples * wide * hidden, 2 * samples * hidden * 10
    assert products(jax.make_jaxpr(layers)(params, batch).jaxpr) == first + rest
    assert products(jax.make_jaxpr(ours)(plane, batch, grid).jaxpr) == 3 * first + points * rest
    one = flops(layers, params, batch)
    assert one > first + rest
    assert flops(ours, plane, batch, grid) < 0.1 * points * one
    assert flops(point_by_point, plane, batch, grid) > 0.9 * points * one
