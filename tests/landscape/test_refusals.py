"""What products with curvature, Lanczos and the estimates refuse, and what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import landscape
from tests.core.words import assert_words, refusal

W, X = {"a": {"b": np.ones(2, np.float32)}}, np.ones((5, 2), np.float32)
MAKERS = {
    "hessian": lambda params, **kwargs: landscape.hessian(lambda w: 1.0, params, **kwargs),
    "gauss_newton": lambda params, **kwargs: landscape.gauss_newton(lambda w: w, lambda y: 1.0, params, **kwargs),
    "fisher": lambda params, **kwargs: landscape.fisher(lambda w: w, params, **kwargs),
    "operator": lambda params, **kwargs: landscape.operator(lambda w, v: v, params, **kwargs),
}


def total(w, *batch):
    return jnp.sum(w["a"]["b"]) ** 2


@pytest.mark.parametrize("name", MAKERS)
def test_refused_params_and_data(name):
    who, make = f"gradtx.landscape.{name}: ", MAKERS[name]
    text = refusal(TypeError, make, {"a": {"b": jnp.ones(2, complex)}})
    assert_words(text, who, "params at ['a']['b'] is complex64; allowed: real arrays.", "Make it two leaves")
    text = refusal(TypeError, make, {"a": [jnp.ones(2), np.arange(2)]})
    assert_words(text, who, "params at ['a'][1] is int32; allowed: floating-point arrays.", "Close over it in the loss")
    assert_words(refusal(TypeError, make, jnp.array([True])), who, "params at the root is bool; allowed: floating")
    assert_words(refusal(TypeError, make, 3), who, "params at the root is int32; allowed: floating")
    assert_words(refusal(TypeError, make, ["weights"]), who, "params at [0] is a str; allowed: floating-point arrays.")
    for empty in ({}, None, [None, ()]):
        assert_words(refusal(ValueError, make, empty), who, "params has no leaves; allowed: a tree with at least one")
    text = refusal(ValueError, make, W, batch_size=3)
    assert_words(text, who, "batch_size is 3, but data is None; leave it out, or pass data.")


def test_refused_batches():
    def make(data, batch_size=None):
        return landscape.hessian(total, W, data, batch_size=batch_size)

    who = "gradtx.landscape.hessian: "
    for wrong, error, words in (
        (0, ValueError, "batch_size is 0; it must be at least 1."),
        (-2, ValueError, "batch_size is -2; it must be at least 1."),
        (2.0, TypeError, "batch_size is 2.0 of type float; it must be an int."),
        (True, TypeError, "batch_size is True of type bool; it must be an int."),
    ):
        assert_words(refusal(error, make, X, wrong), who, words)
    text = refusal(ValueError, make, {"x": X, "y": X[:3]})
    assert_words(text, who, "data['x'] has 5 samples", "data['y'] has 3", "Put the sample axis first in both")
    assert_words(refusal(ValueError, make, np.ones(())), who, "data is a scalar", "a leading axis")
    assert_words(refusal(ValueError, make, X[:0]), who, "data is empty", "at least one sample")
    assert_words(refusal(ValueError, make, {}), who, "data is {}", "must hold at least one")
    assert_words(refusal(TypeError, make, iter([X])), who, "data is a list_iterator; allowed: arrays")


def test_refused_vectors():
    at = landscape.hessian(total, W).__matmul__
    who = "gradtx.landscape.Operator: "
    text = refusal(ValueError, at, {"a": {"b": jnp.ones(3)}})
    assert_words(text, who, "v at ['a']['b'] has shape (3,); it must be that of params, (2,).")
    text = refusal(ValueError, at, {"a": {"c": jnp.ones(2)}})
    assert_words(text, who, "params has a leaf at ['a']['b'], and v has none; v must be a tree like params.")
    text = refusal(ValueError, at, {"a": {"b": jnp.ones(2), "c": jnp.ones(2)}})
    assert_words(text, who, "v has a leaf at ['a']['c'], and params has none; v must be a tree like params.")
    assert_words(refusal(ValueError, at, jnp.ones(2)), who, "params has a leaf at ['a']['b'], and v has none")
    text = refusal(TypeError, at, {"a": {"b": jnp.ones(2, complex)}})
    assert_words(text, who, "v at ['a']['b'] is complex64; allowed: real arrays. Take its real part.")
    text = refusal(TypeError, at, {"a": {"b": np.arange(2)}})
    assert_words(text, who, "v at ['a']['b'] is int32; allowed: floating-point arrays. Convert it with astype(float).")
    text = refusal(ValueError, landscape.hessian(lambda w: w[0], (1.0,)).__matmul__, [1.0])
    assert_words(text, who, "v is PyTreeDef([*]), and params PyTreeDef((*,)); v must be a tree like params.")
    text = refusal(ValueError, landscape.hessian_product, total, W, jnp.ones(2))
    assert_words(text, who, "params has a leaf at ['a']['b'], and v has none")


def test_refused_losses():
    who, call = "gradtx.landscape.hessian: ", landscape.hessian_product
    for wrong, words in (
        (None, ("loss is None; it must be a function: loss(params) or loss(params, batch).",)),
        (lambda w, *, key: 1.0, ("wants a key, and a random loss has no landscape", "loss(params, key=key)")),
        (lambda w, *, model_state: 1.0, ("the loss wants model_state; fix it: lambda params, batch: loss(params",)),
        (lambda w, key: 1.0, ("the loss takes (w, key)", "loss(params, batch), with key and model_state keyword-only")),
        (lambda w, *, rate: 1.0, ("the loss wants the keyword 'rate'", "Close over the rest")),
        (lambda w: w["a"]["b"], ("returns float32 of shape (2,); it must return a real scalar.", "values.mean()")),
        (lambda w: (total(w), {}), ("the loss returns a tuple; it must", "lambda *args: loss(*args)[0]")),
        (lambda w: total(w) * jnp.complex64(1), ("the loss returns complex64 of shape (); it must return a real",)),
        (lambda w: jnp.array(1), ("the loss returns int32 of shape (); it must return a real scalar.",)),
        (lambda w: None, ("the loss returns a NoneType; it must return a real scalar.",)),
    ):
        with jax.numpy_dtype_promotion("standard"):
            assert_words(refusal(TypeError, call, wrong, W, W), who, *words)
    text = refusal(ValueError, call, lambda w, b: 1.0, W, W)
    assert_words(text, who, "the loss wants a batch, loss(w, b), and data is None; pass data.")
    text = refusal(ValueError, call, lambda w: 1.0, W, W, X)
    assert_words(text, who, "the loss takes no batch, and data is given; write it as loss(params, batch).")


def test_refused_models_costs_and_products():
    ones = jnp.ones(2)
    who, call = "gradtx.landscape.gauss_newton: ", landscape.gauss_newton_product
    text = refusal(TypeError, call, None, jnp.sum, ones, ones)
    assert_words(text, who, "model is None; it must be a function of the params, and a batch.")
    text = refusal(TypeError, call, lambda w: w, 3, ones, ones)
    assert_words(text, who, "cost is 3; it must be a function of the model's outputs, and a batch.")
    for cost, received in (
        (lambda y: y, "float32 of shape (2,)"),
        (lambda y: (jnp.sum(y),), "a tuple"),
        (lambda y: jax.lax.complex(y[0], y[1]), "complex64 of shape ()"),
        (lambda y: 1, "a int"),
    ):
        text = refusal(TypeError, call, lambda w: w, cost, ones, ones)
        assert_words(text, who, f"the cost returns {received}; it must return a real scalar.")
    text = refusal(TypeError, call, lambda w: {"z": jax.lax.complex(w, w)}, lambda y: 1.0, ones, ones)
    assert_words(text, who, "what the model returns at ['z'] is complex64; allowed: real arrays. Return its real and")
    text = refusal(TypeError, call, lambda w: (w, jnp.arange(3)), lambda y: 1.0, ones, ones)
    assert_words(text, who, "what the model returns at [1] is int32; allowed: floating-point arrays. Leave it out.")

    who, call = "gradtx.landscape.fisher: ", landscape.fisher_product
    text = refusal(ValueError, call, lambda w: w, ones, ones, distribution="poisson")
    assert_words(text, who, "distribution is 'poisson'; allowed: 'categorical', 'bernoulli', 'normal'.")
    assert_words(refusal(TypeError, call, None, ones, ones), who, "model is None; it must be a function")
    text = refusal(TypeError, call, lambda w: (w, w), ones, ones)
    assert_words(text, who, "the model returns a tuple; for distribution='categorical' it must return one array")
    text = refusal(TypeError, call, lambda w, x: x @ w, ones, ones, X)
    assert_words(text, who, "the model returns an array of shape (5,)", "at least 2 axes, the first of samples.")
    text = refusal(TypeError, call, lambda w: w[0], ones, ones, distribution="normal")
    assert_words(text, who, "the model returns an array of shape ()", "at least 1 axis, the first of samples.")

    who = "gradtx.landscape.operator: "
    text = refusal(TypeError, landscape.operator, None, ones)
    assert_words(text, who, "product is None; it must be a function of the params, a batch, and a vector.")
    text = refusal(ValueError, landscape.operator(lambda w, v: v[:1], ones).__matmul__, ones)
    assert_words(text, who, "what product returns at the root has shape (1,); it must be that of params, (2,).")
    text = refusal(ValueError, landscape.operator(lambda w, v: (v,), ones).__matmul__, ones)
    assert_words(text, who, "params has a leaf at the root, and what product returns has none")


# What is asked of an operator -----------------------------------------------------------------------------------------

ASKED = {
    "lanczos": landscape.lanczos,
    "spectral_density": landscape.spectral_density,
    "trace": landscape.trace,
    "diagonal": landscape.diagonal,
}


def whole(**kwargs):
    return landscape.hessian(lambda w: jnp.sum(w**2), jnp.ones(3), **kwargs)


@pytest.mark.parametrize("name", ASKED)
def test_refused_operators_and_keys(name):
    who, ask = f"gradtx.landscape.{name}: ", ASKED[name]
    for wrong, received in ((jnp.eye(3), "ArrayImpl"), (lambda v: v, "function"), (None, "NoneType")):
        text = refusal(TypeError, ask, wrong)
        assert_words(text, who, f"operator is a {received}; allowed: what gradtx.landscape.hessian, gauss_newton,")
    assert_words(refusal(TypeError, ask, whole(), key=3), who, "key is 3 (int)", "jax.random.key(seed)")
    text = refusal(ValueError, ask, whole(), key=jax.random.split(jax.random.key(0), 2))
    assert_words(text, who, "several keys")


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("lanczos", {"smallest": -1}, "smallest is -1; it must be at least 0."),
        ("lanczos", {"largest": -1}, "largest is -1; it must be at least 0."),
        ("lanczos", {"smallest": 0, "largest": 0}, "smallest=0 and largest=0 are 0 eigenvalues of 3; allowed: 1 to 3"),
        ("lanczos", {"smallest": 2, "largest": 2}, "smallest=2 and largest=2 are 4 eigenvalues of 3; allowed: 1 to 3"),
        ("lanczos", {"steps": 0}, "steps is 0; it must be at least 1."),
        ("lanczos", {"steps": 1}, "steps is 1; allowed: 2 or more, one for each eigenvalue."),
        ("lanczos", {"steps": 2.0}, "steps is 2.0 of type float; it must be an int."),
        ("lanczos", {"largest": True}, "largest is True of type bool; it must be an int."),
        ("spectral_density", {"probes": 0}, "probes is 0; it must be at least 1."),
        ("spectral_density", {"steps": 0}, "steps is 0; it must be at least 1."),
        ("spectral_density", {"steps": "all"}, "steps is 'all' of type str; it must be an int."),
        ("trace", {"probes": 1}, "probes is 1; it must be at least 2."),
        ("trace", {"probes": None}, "probes is None of type NoneType; it must be an int."),
        ("diagonal", {"probes": 1}, "probes is 1; it must be at least 2."),
        ("diagonal", {"probes": 2.0}, "probes is 2.0 of type float; it must be an int."),
    ],
)
def test_refused_counts(name, asked, words):
    (value,) = list(asked.values())[-1:]
    error = ValueError if isinstance(value, int) and not isinstance(value, bool) else TypeError
    assert_words(refusal(error, ASKED[name], whole(), **asked), f"gradtx.landscape.{name}: ", words)


@pytest.mark.parametrize("width", [0, 0.0, -1.0, True, "wide", float("nan"), float("inf"), 1j, [1.0]])
def test_refused_widths(width):
    found = landscape.SpectralDensity(jnp.ones((2, 3)), jnp.ones((2, 3)) / 3, 3)
    text = refusal(ValueError, found.density, 0.0, width)
    assert text == f"gradtx.landscape.SpectralDensity: width is {width!r}; allowed: a number above 0."


def test_errors_under_jit_are_the_same():
    text = refusal(TypeError, jax.jit(lambda w: whole() @ w), jnp.arange(3))
    assert_words(text, "gradtx.landscape.Operator: v at the root is int32; allowed: floating-point arrays.")
    text = refusal(TypeError, landscape.trace, landscape.hessian(lambda w: w, jnp.ones(3)))
    assert_words(text, "gradtx.landscape.hessian: the loss returns float32 of shape (3,); it must return a real scalar")
