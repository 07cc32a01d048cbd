"""Products with curvature: against NumPy matrices, over batches, in every kind of tree.

The matrices owe nothing to JAX's derivatives. For an analytic function and a tiny step h, (f(w + i h v)).imag / h is
its derivative along v to the last digits, since nothing is subtracted; the gradient is written out by hand.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradtx import landscape
from gradtx.landscape.costs import over_batches

RNG = np.random.default_rng(0)
SAMPLES, N = 7, 14
PARAMS = {"bias": RNG.normal(size=2), "in": RNG.normal(size=(3, 2)), "out": RNG.normal(size=(2, 3))}
DATA = {"x": RNG.normal(size=(SAMPLES, 3)), "y": RNG.normal(size=(SAMPLES, 3)), "label": RNG.integers(0, 3, SAMPLES)}


def network(params, x, tanh=jnp.tanh):
    return tanh(x @ params["in"] + params["bias"][None]) @ params["out"]


def model(params, batch):
    return network(params, batch["x"])


def squares(outputs, batch):
    return jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, axis=-1))


def cross_entropy(logits, batch):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][..., None], axis=-1))


def loss(params, batch):
    return squares(model(params, batch), batch)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def like_params(vector):
    parts = zip(np.split(vector, [2, 8]), PARAMS.items())
    return {name: part.reshape(leaf.shape) for part, (name, leaf) in parts}


VECTOR = like_params(RNG.normal(size=N))


def along(function, v, step=1e-30):
    """The derivative of an analytic function at PARAMS along v."""
    return np.imag(function(jax.tree.map(lambda w, d: w + 1j * step * d, PARAMS, v))) / step


def jacobian(function):
    """Of each sample's outputs."""
    return np.stack([along(function, like_params(v)) for v in np.eye(N)], axis=-1)


def numpy_outputs(params):
    return network(params, DATA["x"], np.tanh)


def numpy_gradient(params):
    """Of `loss` on all data, by hand."""
    h = np.tanh(DATA["x"] @ params["in"] + params["bias"])
    out = 2 * (h @ params["out"] - DATA["y"]) / SAMPLES
    inner = out @ params["out"].T * (1 - h**2)
    return np.concatenate([inner.sum(0), (DATA["x"].T @ inner).ravel(), (h.T @ out).ravel()])


def information(distribution):
    """The Fisher information of each sample's outputs, matrices: the mean square of the score."""
    z, eye = numpy_outputs(PARAMS), np.eye(3)
    if distribution == "categorical":
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        scores = eye - p[:, None]  # of each sample and label
        return np.einsum("sc,sca,scb->sab", p, scores, scores)
    p = 1 / (1 + np.exp(-z))
    return (p * (1 - p) if distribution == "bernoulli" else np.ones_like(z))[:, :, None] * eye


def sandwich(middle):
    j = jacobian(numpy_outputs)
    return np.einsum("sai,sab,sbj->ij", j, middle, j) / SAMPLES


# Against matrices -----------------------------------------------------------------------------------------------------


def assert_close(found, expected, tolerance=1e-11):
    np.testing.assert_allclose(flat(found), flat(expected), rtol=0, atol=tolerance * (1 + np.abs(flat(expected)).max()))


@pytest.mark.usefixtures("x64")
def test_hessian_products_over_batches():
    expected, batch = jacobian(numpy_gradient) @ flat(VECTOR), jax.tree.map(jnp.asarray, DATA)
    without = landscape.hessian(lambda params: loss(params, batch), PARAMS)
    assert (without.size, without.dtype, without.eps) == (N, np.float64, np.finfo(float).eps)
    found = [without @ VECTOR]
    found += [landscape.hessian_product(loss, PARAMS, VECTOR, DATA, batch_size=3)]
    found += [landscape.hessian(loss, PARAMS, DATA) @ VECTOR]
    for one in found:  # of all at once, and in batches with a rest
        assert_close(one, expected)
    sizes = [landscape.hessian(loss, PARAMS, DATA, batch_size=size).batch_size for size in (6, SAMPLES, 50)]
    assert sizes == [6, None, None]
    assert_close(without.flat(without.unflat(jnp.arange(14.0))), np.arange(14.0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("distribution", ["categorical", "bernoulli", "normal"])
def test_fisher_is_the_information_between_jacobians(distribution):
    found = landscape.fisher_product(model, PARAMS, VECTOR, DATA, distribution=distribution, batch_size=3)
    assert_close(found, sandwich(information(distribution)) @ flat(VECTOR))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cost", [squares, cross_entropy])
def test_gauss_newton_of_squares_and_of_cross_entropy(cost):
    expected = sandwich(information("categorical") if cost is cross_entropy else 2 * information("normal"))
    found = landscape.gauss_newton_product(model, cost, PARAMS, VECTOR, DATA, batch_size=3)
    assert_close(found, expected @ flat(VECTOR))


@pytest.mark.usefixtures("x64")
def test_gauss_newton_of_a_tree_of_outputs_that_the_cost_couples():
    x = DATA["x"].copy()  # a constant of a float64 program is no array of a float32 one, says JAX

    def outputs(params):
        return {"net": network(params, x), "norm": (jnp.sum(params["out"] ** 2),)}

    def cost(out):  # Hessian by (net, norm): sum of squares, and one product
        return jnp.sum(out["net"] ** 2) / 2 + out["net"][0, 0] * out["norm"][0]

    middle = np.eye(3 * SAMPLES + 1)
    middle[-1, -1], middle[0, -1], middle[-1, 0] = 0, 1, 1
    j = np.concatenate([jacobian(numpy_outputs).reshape(-1, N), jacobian(lambda w: np.sum(w["out"] ** 2))[None]])
    assert_close(landscape.gauss_newton(outputs, cost, PARAMS) @ VECTOR, j.T @ middle @ j @ flat(VECTOR))


@pytest.mark.usefixtures("x64")
def test_each_place_of_a_sequence_is_a_sample():
    def tagger(params, batch):
        return network(params, batch.reshape(-1, 3)).reshape(*batch.shape)

    found = landscape.fisher_product(tagger, PARAMS, VECTOR, DATA["x"][None])
    assert_close(found, sandwich(information("categorical")) @ flat(VECTOR))
    numbers = jnp.zeros((2, 4))  # of two samples, whose numbers are independent
    found = landscape.fisher(lambda w: w * numbers + w, jnp.array(0.0), distribution="bernoulli") @ 1.0
    assert_close(found, 4 * 0.25)


def test_information_of_half_precision_outputs_is_computed_in_float32():
    x = jnp.asarray(RNG.uniform(0.5, 1, 70_000), jnp.float16)  # more samples than float16 has numbers for
    operator = landscape.fisher(lambda w, x: w * x, jnp.array(0.5, jnp.float16), x, distribution="normal")
    assert float(operator @ jnp.array(1, jnp.float16)) == pytest.approx(7 / 12, rel=0.02)


def test_a_mean_over_batches_keeps_its_dtype_and_adds_up_in_float32():
    x = jnp.asarray([1.0] + [2.0**-9] * 512, jnp.bfloat16)
    found = jax.jit(lambda x: over_batches(lambda x: {"mean": 513 * jnp.mean(x, dtype=x.dtype)}, x, 1))(x)
    assert (found["mean"].dtype, float(found["mean"])) == (jnp.bfloat16, 2.0)


# Compiled programs ----------------------------------------------------------------------------------------------------


def cubes(w, x):
    return jnp.mean(x) * jnp.sum(w**3)  # H v = 6 mean(x) w v


def test_other_params_of_equal_shape_are_not_traced_again():
    traces = []

    def counted(w, x):
        traces.append(1)
        return cubes(w, x)

    product = jax.jit(lambda operator, v: operator @ v)
    for scale in (1.0, 2.0):
        before, w, v = len(traces), jnp.full(3, scale), jnp.arange(3.0) + scale
        operator = landscape.hessian(counted, w, scale * jnp.ones(5), batch_size=2)
        for found in (operator @ v, product(operator, v)):
            assert_close(found, 6 * scale**2 * v, 1e-6)
    assert len(traces) == before > 0


@dataclasses.dataclass
class Scaled:
    """A loss that compares by value, and so has no hash."""

    factor: float

    def __call__(self, w, x):
        return self.factor * cubes(w, x)


def test_any_callable_is_a_loss():
    w, x, v = jnp.array([1.0, 2.0]), jnp.ones(3), jnp.array([1.0, -1.0])
    partial = functools.partial(lambda w, x, factor: factor * cubes(w, x), factor=1.0)
    for loss in (Scaled(1.0), Scaled(2.0), partial, jax.jit(cubes), functools.partial(Scaled(1.0))):
        assert_close(landscape.hessian_product(loss, w, v, x), getattr(loss, "factor", 1.0) * 6 * w * v, 1e-6)
    found = landscape.gauss_newton_product(lambda w, x: x[0] * w, Scaled(0.5), w, v, x)
    assert_close(found, 3 * w * v, 1e-6)
    assert_close(landscape.operator(functools.partial(lambda w, v, by: by * v, by=3.0), w) @ v, 3 * v)
    averaged = landscape.operator(lambda w, x, v: jnp.mean(x) * v, w, jnp.arange(5.0), batch_size=2)
    assert_close(averaged @ v, 2 * v, 1e-6)


def test_a_product_needs_the_memory_of_a_few_gradients_and_one_batch():
    def temporary(samples, batch_size, inputs=64, hidden=256):
        params = {"bias": jnp.zeros(hidden), "in": jnp.zeros((inputs, hidden)), "out": jnp.zeros((hidden, 8))}
        data = {"x": jnp.zeros((samples, inputs)), "y": jnp.zeros((samples, 8))}
        operator = landscape.hessian(loss, params, data, batch_size=batch_size)
        compiled = jax.jit(lambda operator, v: operator @ v).lower(operator, params).compile()
        gradient = sum(leaf.nbytes for leaf in params.values())
        return compiled.memory_analysis().temp_size_in_bytes, 4 * gradient + 16 * 4 * 64 * (inputs + hidden + 8)

    (few, most), (many, _) = temporary(512, 64), temporary(4096, 64)
    assert few < most, "64 samples at a time"
    assert many < 1.1 * few, "however many samples there are"
    assert temporary(4096, None)[0] > 10 * many, "all at a time"


@pytest.mark.skipif(jax.device_count() < 8, reason="XLA_FLAGS was set without 8 devices")
@pytest.mark.parametrize(("kind", "batch_size"), [("Auto", 5), ("Explicit", 8)])
def test_sharded_the_products_are_the_same(kind, batch_size):
    def cost(params, batch):
        return squares(jnp.tanh(batch["x"] @ params["in"] + params["offsets"]), batch)

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType[kind],))
    draw = np.random.default_rng(1).standard_normal
    params = {"in": draw((16, 3), np.float32), "offsets": draw((1, 3), np.float32)}
    data = {"x": draw((32, 16), np.float32), "y": draw((32, 3), np.float32)}
    whole, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("d"))
    there, batches = jax.tree.map(lambda a: jax.device_put(a, parts if len(a) > 1 else whole), (params, data))
    found = landscape.hessian_product(cost, there, there, batches, batch_size=batch_size)
    assert_close(found, landscape.hessian_product(cost, params, params, data), 1e-6)  # sums in another order


# Every kind of tree ---------------------------------------------------------------------------------------------------


def test_trees_of_any_kind():
    def cubes(params):
        return sum(jnp.sum(jnp.asarray(leaf) ** 3) for leaf in jax.tree.leaves(params))

    tree = {"a": None, "b": jnp.ones((1, 2, 1)), "empty": jnp.ones((0, 3)), "c": (jnp.array(1.0), [2.0])}
    for params in (3.0, np.float32(3.0), tree):
        found = landscape.hessian_product(cubes, params, jax.tree.map(lambda leaf: 2.0 * leaf, params))
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert_close(found, 12 * flat(params) ** 2, 1e-6)
        assert landscape.hessian(cubes, params).size == flat(params).size


def test_products_are_in_the_params_dtypes():
    params = {name: leaf.astype("float32" if name == "out" else "bfloat16") for name, leaf in PARAMS.items()}

    def wide(params, batch):
        return network(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), batch["x"])

    operator = landscape.hessian(lambda w, b: squares(wide(w, b), b), params, DATA)
    assert (operator.dtype, operator.eps) == (jnp.float32, 2**-7)
    found = [operator @ VECTOR]  # is cast
    found.append(landscape.gauss_newton_product(wide, squares, params, VECTOR, DATA, batch_size=6))
    ggn = 2 * sandwich(information("normal")) @ flat(VECTOR)
    for one, expected in zip(found, (along(numpy_gradient, VECTOR), ggn), strict=True):
        assert jax.tree.map(lambda leaf: leaf.dtype, one) == jax.tree.map(lambda leaf: leaf.dtype, params)
        assert_close(one, expected, 0.03)
    with jax.enable_x64(True):
        params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0], jnp.float32)}
        operator = landscape.hessian(lambda w: jnp.sum(w["a"] ** 2) * jnp.sum(w["b"].astype(float)) ** 2, params)
        assert (operator.dtype, operator.eps) == (jnp.float64, 2**-23)
        found = operator @ {"a": np.float32([1, 0]), "b": np.array([0.0])}
        assert (found["a"].dtype, found["b"].dtype) == (jnp.float64, jnp.float32)
        assert_close(found, [18, 0, 12])


def test_at_the_kink_of_a_relu_there_is_no_curvature_and_nan_stays_nan():
    half = landscape.hessian(lambda w: 0.5 * jnp.sum(jax.nn.relu(w) ** 2), jnp.array([-1.0, 0.0, 2.0]))
    assert (half @ jnp.ones(3)).tolist() == [0.0, 0.0, 1.0]
    assert np.isnan(half @ jnp.array([0.0, 0.0, np.nan])).any()
