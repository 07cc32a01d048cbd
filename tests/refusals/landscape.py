"""What the landscape refuses: losses, params, data, operators, planes, slices, functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import landscape as land
from gradtx import sgd
from gradtx.landscape import (
    functions,
    plane_along,
    plane_through,
    problems,
    random_plane,
    slice_1d,
    slice_2d,
    trajectory_plane,
)
from tests.refusals import Refusal

KEY, ONES = jax.random.key(0), np.ones(2, np.float32)
W, X = {"a": {"b": ONES}}, np.ones((5, 2), np.float32)
T, V = TypeError, ValueError
NAN, INF = float("nan"), float("inf")
REFUSALS = []


def refused(who, words, error, call, *arguments, **options):
    """A row: the caller's name begins the text; `words` have several parts, divided by three dots."""
    who = f"gradtx.landscape.{who if isinstance(who, str) else who.__name__}: "
    row = Refusal(f"{who}{words}", functools.partial(call, *arguments, **options), error, who, *words.split(" ... "))
    REFUSALS.append(row)


# Curvature ------------------------------------------------------------------------------------------------------------

MAKERS = {
    "hessian": lambda params, **kwargs: land.hessian(lambda w: 1.0, params, **kwargs),
    "gauss_newton": lambda params, **kwargs: land.gauss_newton(lambda w: w, lambda y: 1.0, params, **kwargs),
    "fisher": lambda params, **kwargs: land.fisher(lambda w: w, params, **kwargs),
    "operator": lambda params, **kwargs: land.operator(lambda w, v: v, params, **kwargs),
    "classify": lambda params, **kwargs: land.classify(lambda w: 1.0, params, **kwargs),
    "find_critical_point": lambda params, **kwargs: land.find_critical_point(lambda w: 1.0, params, **kwargs),
}
for _name, _make in MAKERS.items():
    refused(_name, "params has no leaves; it must be a tree with at least one array.", V, _make, [None, ()])
    refused(_name, "batch_size is 3, but data is None; leave it out, or pass data.", V, _make, W, batch_size=3)
_hessian, _who = MAKERS["hessian"], "hessian"
for _params, _words in (
    ({"a": jnp.ones(2, complex)}, "params at ['a'] is complex64; allowed: real arrays. Pass its real and"),
    ({"a": [ONES, np.arange(2)]}, "params at ['a'][1] is int ... allowed: floating-point arrays. Leave it out here"),
    (jnp.array([True]), "params at the root is bool; allowed: floating"),
    (["weights"], "params at [0] is a str; allowed: floating-point arrays."),
):
    refused(_who, _words, T, _hessian, _params)


def total(w, *batch):
    return jnp.sum(w["a"]["b"]) ** 2


for _data, _size, _error, _words in (
    (X, 0, V, "batch_size is 0; it must be at least 1."),
    (X, 2.0, T, "batch_size is 2.0 of type float; it must be an int."),
    (X, True, T, "batch_size is True of type bool; it must be an int."),
    ({"x": X, "y": X[:3]}, None, V, "data['x'] has 5 samples ... data['y'] has 3 ... Put the sample axis first"),
    (np.ones(()), None, V, "data is a scalar ... a leading axis"),
    (X[:0], None, V, "data is empty ... at least one sample"),
    ({}, None, V, "data is {} ... must hold at least one"),
    (iter([X]), None, T, "data is a list_iterator; it must be arrays"),
):
    refused(_who, _words, _error, land.hessian, total, W, _data, batch_size=_size)

for _loss, _words in (
    (None, "loss is None; it must be a function: loss(params) or loss(params, batch)."),
    (lambda w, *, key: 1.0, "the loss takes a key; it must be deterministic. Fix the key: ... loss(params, key=key)"),
    (
        lambda w, *, model_state: 1.0,
        "the loss takes model_state; it must be ... Fix the model_state: lambda params, batch: loss(params",
    ),
    (lambda w: w["a"]["b"], "returns float32 of shape (2,); it must return a real scalar. ... values.mean()"),
    (lambda w: (total(w), {}), "the loss returns a tuple; it must ... lambda *args: loss(*args)[0]"),
    (lambda w: jax.lax.complex(total(w), 0.0), "the loss returns complex64 of shape (); it must return a real"),
    (lambda w: jnp.array(1), "the loss returns int32 of shape (); it must return a real scalar."),
    (lambda w: None, "the loss returns a NoneType; it must return a real scalar."),
):
    refused(_who, _words, T, land.hessian_product, _loss, W, W)
refused(_who, "the loss wants a batch", V, land.hessian, lambda w, b: 1.0, W)
refused(_who, "the loss takes no batch", V, land.hessian, lambda w: 1.0, W, X)
refused(
    _who,
    "the loss returns float32 of shape (3,); it must return a real scalar",
    T,
    lambda: land.trace(land.hessian(lambda w: w, jnp.ones(3))),
)

for _v, _error, _words in (
    ({"a": {"b": jnp.ones(3)}}, V, "v at ['a']['b'] has shape (3,); it must have the shape of params, (2,)."),
    ({"a": {"c": ONES}}, V, "params has a leaf at ['a']['b'], and v does not; v must be a tree like params."),
    ({"a": {"b": ONES, "c": ONES}}, V, "v has a leaf at ['a']['c'], and params does not"),
    (ONES, V, "params has a leaf at ['a']['b'], and v does not"),
    ({"a": {"b": ONES * 1j}}, T, "v at ['a']['b'] is complex ... allowed: real arrays. Take its real part."),
    ({"a": {"b": np.arange(2)}}, T, "v at ['a']['b'] is int ... floating-point arrays. Convert it with astype"),
):
    refused("Operator", _words, _error, land.hessian(total, W).__matmul__, _v)
refused(
    "Operator",
    "v has the structure PyTreeDef([*]); it must be that of params, PyTreeDef((*,)).",
    V,
    land.hessian(lambda w: w[0], (1.0,)).__matmul__,
    [1.0],
)

_two = jnp.ones(2)
for _model, _cost, _words in (
    (None, jnp.sum, "model is None; it must be a function of the params, and a batch."),
    (lambda w: w, 3, "cost is 3; it must be a function of the model's outputs, and a batch."),
    (lambda w: w, lambda y: y, "the cost returns float32 of shape (2,); it must return a real scalar."),
    (lambda w: w, lambda y: (jnp.sum(y),), "the cost returns a tuple; it must ... cost(*args)[0]"),
    (lambda w: w, lambda y: 1, "the cost returns a int; it must return a real scalar."),
    (
        lambda w: {"z": jax.lax.complex(w, w)},
        jnp.sum,
        "what the model returns at ['z'] is complex64; allowed: real arrays. Return its real and",
    ),
    (
        lambda w: (w, jnp.arange(3)),
        jnp.sum,
        "what the model returns at [1] is int32; allowed: floating ... Leave it out.",
    ),
):
    refused("gauss_newton", _words, T, land.gauss_newton_product, _model, _cost, _two, _two)
for _model, _data, _kind, _words in (
    (None, None, "normal", "model is None; it must be a function of the params, and a batch."),
    (lambda w: (w, w), None, "categorical", "the model returns a tuple; for distribution='categorical' it must return"),
    (
        lambda w, x: x @ w,
        X,
        "categorical",
        "an array of shape (5,) ... at least 2 axes; the first is the axis of samples.",
    ),
    (lambda w: w[0], None, "normal", "an array of shape () ... at least 1 axis; the first is the axis of samples."),
    (lambda w: w[0], None, "categorical", "an array of shape () ... at least 1 axis"),
):
    refused("fisher", _words, T, land.fisher_product, _model, _two, _two, _data, distribution=_kind)
refused(
    "fisher",
    "distribution is 'poisson'; allowed: 'categorical', 'bernoulli', 'normal'.",
    V,
    land.fisher,
    jnp.sum,
    _two,
    distribution="poisson",
)
_who = "operator"
refused(_who, "product is None; it must be a function of the params, a batch", T, land.operator, None, _two)
for _product, _words in (
    (lambda w, v: v[:1], "what product returns at the root has shape (1,); it must have the shape of params, (2,)."),
    (lambda w, v: (v,), "params has a leaf at the root, and what product returns does not"),
):
    refused(_who, _words, V, land.operator(_product, _two).__matmul__, _two)

# What is asked of an operator -----------------------------------------------------------------------------------------

_whole = land.hessian(lambda w: jnp.sum(w**2), jnp.ones(3))
for _ask in (land.lanczos, land.spectral_density, land.trace, land.diagonal):
    for _wrong, _got in ((jnp.eye(3), "ArrayImpl"), (None, "NoneType")):
        refused(
            _ask,
            f"operator is a {_got}; it must be a gradtx.landscape.Operator. Make one with hessian, gauss",
            T,
            _ask,
            _wrong,
        )
    refused(_ask, "key is 3 of type int ... jax.random.key(seed)", T, _ask, _whole, key=3)
for _ask, _asked, _words in (
    (land.lanczos, {"smallest": -1}, "smallest is -1; it must be at least 0."),
    (land.lanczos, {"largest": -1}, "largest is -1; it must be at least 0."),
    (land.lanczos, {"smallest": 0, "largest": 0}, "smallest + largest is 0 + 0 = 0; allowed: 1 to 3"),
    (land.lanczos, {"smallest": 2, "largest": 2}, "smallest + largest is 2 + 2 = 4; allowed: 1 to 3"),
    (land.lanczos, {"steps": 0}, "steps is 0; it must be at least 1."),
    (land.lanczos, {"steps": 1}, "steps is 1; allowed: 2 or more, one for each eigenvalue."),
    (land.lanczos, {"steps": 2.0}, "steps is 2.0 of type float; it must be an int."),
    (land.lanczos, {"largest": True}, "largest is True of type bool; it must be an int."),
    (land.spectral_density, {"probes": 0}, "probes is 0; it must be at least 1."),
    (land.spectral_density, {"steps": 0}, "steps is 0; it must be at least 1."),
    (land.trace, {"probes": 1}, "probes is 1; it must be at least 2."),
    (land.diagonal, {"probes": 1}, "probes is 1; it must be at least 2."),
    (land.diagonal, {"probes": 2.0}, "probes is 2.0 of type float; it must be an int."),
):
    refused(_ask, _words, T if "an int" in _words else V, _ask, _whole, **_asked)
_density = land.SpectralDensity(jnp.ones((2, 3)), jnp.ones((2, 3)) / 3, 3).density
for _width in (0, -1.0, True, "wide", NAN, INF, [1.0]):
    _words = f"width is {_width!r}; it must be a number above 0."
    refused("SpectralDensity", _words, V, _density, 0.0, _width)

# Critical points ------------------------------------------------------------------------------------------------------

for _call, _asked, _words in (
    (land.classify, {"tolerance": -1.0}, "tolerance is -1.0; it must be a number, 0 or more, or None."),
    (land.classify, {"tolerance": True}, "tolerance is True"),
    (land.classify, {"tolerance": INF}, "tolerance is inf"),
    (land.classify, {"risk": 0.0}, "risk is 0.0; it must be a probability above 0 and below 1."),
    (land.classify, {"risk": 1}, "risk is 1"),
    (land.classify, {"steps": 1}, "steps is 1; it must be at least 2."),
    (land.classify, {"steps": 2.0}, "steps is 2.0 of type float; it must be an int."),
    (land.find_critical_point, {"steps": 0}, "steps is 0; it must be at least 1"),
    (land.find_critical_point, {"products": 1.0}, "products is 1.0 of type float; it must be an int"),
    (land.find_critical_point, {"products": 0}, "products is 0; it must be at least 1"),
    (land.find_critical_point, {"tolerance": -1}, "tolerance is -1; it must be a number, 0 or more, or None"),
):
    refused(_call, _words, T if "an int" in _words else V, _call, jnp.sum, ONES, **_asked)

# Planes ---------------------------------------------------------------------------------------------------------------

ONE = {"a": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
OTHER = {"a": np.eye(2, dtype=np.float32), "b": ONES}
LINE, PLANE = plane_through(ONE, OTHER), plane_through(*np.float32([[0, 0], [1, 0], [0, 1]]))


def between(one, two, share):
    return jax.tree.map(lambda a, b: a + np.float32(share) * (b - a), one, two)


_path = between(*jax.tree.map(lambda a: a[None], (ONE, OTHER)), np.linspace(0, 1, 9).reshape(9, 1, 1) ** 2)
_path = {"a": _path["a"], "b": between(ONE["b"][None], ONES[None], np.linspace(0, 1, 9).reshape(9, 1) ** 2)}
_still = jax.tree.map(lambda a: np.stack([a] * 5), ONE)
_line = (
    "the orthogonalized directions have lengths ... span no plane; they must be finite and longer than rounding errors"
)
for _call, _error, _words, _arguments, _options in (
    (random_plane, T, "params at ['a'] is int ... close over it", ({"a": np.ones((2, 2), int)}, KEY), {}),
    (random_plane, T, "key is None ... jax.random.key(seed)", (ONE, None), {}),
    (random_plane, V, "params has no leaves", ({}, KEY), {}),
    (random_plane, V, "dimensions is 3; allowed: 1 or 2.", (ONE, KEY), {"dimensions": 3}),
    (random_plane, V, "normalize is 'layer'; allowed: 'filter'", (ONE, KEY), {"normalize": "layer"}),
    (random_plane, V, "lengths 0, 0 and span no plane", (ONES, KEY), {}),
    (random_plane, V, "span no plane ... not parallel", (np.ones((1, 1)), KEY), {}),
    (random_plane, V, "must be finite", (np.full((1, 1), np.nan), KEY), {"dimensions": 1}),
    (plane_through, V, "['b'] ... second does not", (ONE, {"a": ONE["a"]}), {}),
    (plane_through, V, "third at ['b'] has shape (3,)", (ONE, OTHER, ONE | {"b": np.ones(3)}), {}),
    (plane_through, V, "third has a leaf at ['c']", (ONE, OTHER, ONE | {"c": np.ones(3)}), {}),
    (plane_through, T, "second at ['b'] is int", (ONE, ONE | {"b": np.ones(2, int)}), {}),
    (plane_through, T, "first at ['b'] is complex", (ONE | {"b": ONES * 1j}, ONE), {}),
    (plane_through, V, "have lengths 0 and span no line", (ONE, ONE), {}),
    (plane_through, V, "span no plane ... parallel", (ONE, OTHER, OTHER), {}),
    (plane_through, V, "span no plane ... longer", (ONE, ONE, OTHER), {}),
    (plane_through, V, _line, (ONE, OTHER, between(ONE, OTHER, 0.3)), {}),
    (plane_through, V, f"{_line} (", (ONE, between(ONE, OTHER, 0.01), OTHER), {}),
    (plane_along, V, "params has a leaf at ['b'], and second does not", (ONE, OTHER, {"a": ONE["a"]}), {}),
    (plane_along, V, "span no plane", (ONE, OTHER, jax.tree.map(lambda a: 2 * a, OTHER)), {}),
    (plane_along, V, "span no line", (ONE, jax.tree.map(np.zeros_like, OTHER)), {}),
    (plane_along, V, "normalize is 'all'; allowed: 'filter'", (ONE, OTHER), {"normalize": "all"}),
    (trajectory_plane, V, "at ['b'] has shape (3, 2)", ({"a": np.ones((4, 2)), "b": np.ones((3, 2))},), {}),
    (trajectory_plane, V, "has shape (2, 5); it must have a leading axis of at least 3 steps", (np.ones((2, 5)),), {}),
    (trajectory_plane, V, "at least 2 steps", (np.ones((1, 5)),), {"dimensions": 1}),
    (trajectory_plane, V, "at ['w'] has shape ()", ({"w": np.float32(1.0)},), {}),
    (trajectory_plane, V, "dimensions is 0; allowed: 1 or 2.", (np.ones((4, 5)),), {"dimensions": 0}),
    (trajectory_plane, T, "trajectory at the root is int", (np.ones((4, 5), int),), {}),
    (trajectory_plane, V, f"{_line} ... not parallel", (_path,), {}),
    (trajectory_plane, V, "span no line", (_still,), {"dimensions": 1}),
):
    refused(_call, _words, _error, _call, *_arguments, **_options)
_who = "Plane"
refused(
    f"{_who}.project", "trajectory at ['a'] has shape (2, 2) ... after 1 leading axis of steps", V, LINE.project, ONE
)
refused(f"{_who}.project", "['b'], and trajectory does not", V, LINE.project, {"a": np.ones((4, 2, 2))})
refused(f"{_who}.at", "2 coordinates are given; allowed: 1, one for each direction.", T, LINE.at, 1.0, 2.0)
refused("lanczos", "operator is a Plane", T, land.curved_plane, LINE)

# Slices and ways ------------------------------------------------------------------------------------------------------

for _error, _options, _words in (
    (T, {"plane": 3.0}, "plane is a float; it must be a gradtx.landscape.Plane. Make one with random_plane"),
    (V, {"plane": LINE}, "plane has 1 directions; allowed: 2. Use slice_1d, or make the plane with dimensions=2"),
    (V, {"x": (0.0, np.nan)}, "x is (0.0, nan); allowed: (from, to), or an array ... finite"),
    (V, {"y": [1.0]}, "y is [1.0] ... two or more"),
    (V, {"x": "ab"}, "x is 'ab'"),
    (V, {"x": [[1.0, 2.0], [3.0]]}, "x is [[1.0, 2.0], [3.0]]"),
    (V, {"y": [[1.0, 2.0]]}, "y is [[1.0, 2.0]]"),
    (V, {"y": (1j, 2.0)}, "y is (1j, 2.0)"),
    (V, {"points": 1}, "points is 1; it must be at least 2."),
    (T, {"points": 5.0}, "points is 5.0 of type float; it must be an int."),
    (V, {"at_once": 0}, "at_once is 0; it must be at least 1."),
    (T, {"at_once": True}, "at_once is True"),
    (V, {"batch_size": 2}, "batch_size is 2, but data is None"),
    (T, {"loss": 1.0}, "loss is 1.0; it must be a function"),
    (T, {"loss": lambda w: w}, "the loss returns float32 of shape (2,); it must return a real scalar."),
    (V, {"data": {"x": np.ones(3), "y": np.ones(2)}, "loss": lambda w, batch: w[0]}, "data['x'] has 3"),
):
    _given = {"loss": jnp.sum, "plane": PLANE, "data": None} | _options
    _first = [_given.pop(name) for name in ("loss", "plane", "data")]
    refused("slice_2d", _words, _error, slice_2d, *_first, **_given)
_words = "line has 2 directions; allowed: 1. Use slice_2d, or make the plane with dimensions=1."
refused("slice_1d", _words, V, slice_1d, jnp.sum, PLANE)

for _error, _options, _words in (
    (T, {"tx": 0.1}, "tx ... 0.1"),
    (V, {"tx": jax.vmap(sgd)(np.array([0.1, 0.2], np.float32))}, "tx is a sweep of 2 optimizers"),
    (T, {"loss": 3.0}, "loss is 3.0; it must be a function"),
    (T, {"loss": lambda w: w}, "the loss returns an array of dtype float32 and shape (2,) ... real scalar"),
    (V, {"loss": lambda w, batch: w[0]}, "the loss wants a batch"),
    (T, {"params": {"w": ONES * 1j}}, "params at ['w'] is complex"),
    (V, {"params": {}}, "params has no leaves"),
    (V, {"steps": 0}, "steps is 0; it must be at least 1."),
    (T, {"steps": True}, "steps is True of type bool; it must be an int."),
    (T, {"key": 3}, "key is 3"),
):
    _given = {"tx": sgd(0.1), "loss": jnp.sum, "params": ONES, "steps": 2} | _options
    _first = [_given.pop(name) for name in ("tx", "loss", "params", "steps")]
    refused("trajectory", _words, _error, land.trajectory, *_first, **_given)

# Functions ------------------------------------------------------------------------------------------------------------

_who, _beale = "functions", functions.beale
for _x in (jnp.zeros(3), 0.5, jnp.zeros((1, 2)), []):
    _words = f"x has shape {np.shape(_x)}; allowed: (2,), one point. For many: jax.vmap."
    refused(f"{_who}.beale", _words, V, _beale, _x)
_words = "x has shape (2,); allowed: (3,) ... For another length: replace(dimension=...)."
refused(f"{_who}.rosenbrock", _words, V, functions.rosenbrock.replace(dimension=3), [1.0, 2.0])
for _x in ([1, 2], jnp.array([True, False])):
    refused(f"{_who}.beale", "x has dtype ... Make it float: jnp.asarray(x, float)", T, _beale, _x)
_words = "x has dtype complex64; allowed: real floating-point numbers. Take its real part: x.real"
refused(f"{_who}.beale", _words, T, _beale, jnp.array([1j, 0]))
for _x in ({"x": 1.0}, "xy", [[1.0], [1.0, 2.0]]):
    _words = f"x is {_x!r}, a {type(_x).__name__}; it must be an array of 2 floats."
    refused(f"{_who}.beale", _words, T, _beale, _x)
_at_least_1 = "it must be a finite number, at least 1."
for _function, _asked, _error, _words in (
    (functions.rosenbrock, {"dimensions": 3}, T, "no parameter 'dimensions'; allowed: dimension."),
    (functions.bowl, {"a": 1}, T, "no parameter 'a'; allowed: dimension, condition."),
    (_beale, {"dimension": 2}, T, "no parameter 'dimension'; allowed: none."),
    *((functions.rosenbrock, {"dimension": d}, T, f"is {d!r}; it must be an int, at least 2.") for d in (True, 2.0)),
    *((f, {"dimension": 1}, V, "is 1; it must be an int, at least 2.") for f in (functions.bowl, functions.rosenbrock)),
    (functions.ackley, {"dimension": 0}, V, "dimension is 0; it must be an int, at least 1."),
    *((functions.bowl, {"condition": c}, V, f"condition is {c!r}; {_at_least_1}") for c in (0.5, INF, NAN)),
    *((functions.bowl, {"condition": c}, T, f"condition is {c!r}; {_at_least_1}") for c in (True, "10", 1j)),
):
    refused(f"{_who}.{_function.name}", _words, _error, _function.replace, **_asked)
_noisy = functions.noisy(_beale, 0.1)
for _call, _error, _words, _arguments, _options in (
    ("Function", V, "name is 'mine'; allowed: bowl, valley,", (functions.Function, "mine"), {}),
    ("noisy", T, "function is 3; it must be one of gradtx.landscape.functions", (functions.noisy, 3, 0.1), {}),
    ("noisy", V, "scale is -0.1; it must be a finite number, at least 0.", (functions.noisy, _beale, -0.1), {}),
    ("noisy", V, "scale is inf", (functions.noisy, _beale, INF), {}),
    ("noisy", T, "scale is True", (functions.noisy, _beale, True), {}),
    ("noisy(beale, 0.1)", T, "key is 3 ... jax.random.key", (_noisy, [1.0, 1.0]), {"key": 3}),
    ("noisy(beale, 0.1)", V, "jax.vmap", (_noisy, [1.0, 1.0]), {"key": jax.random.split(KEY, 3)}),
    ("beale", V, "x has shape (1,)", (_noisy, [1.0]), {"key": KEY}),
):
    refused(f"{_who}.{_call}", _words, _error, *_arguments, **_options)

# Problems -------------------------------------------------------------------------------------------------------------

_who, _watson, _residuals = "problems", problems.watson, problems.watson.residuals
for _x in (jnp.zeros(3), 0.5, jnp.zeros((1, 4)), []):
    _words = f"x has shape {np.shape(_x)}; allowed: (4,), one point. For many: jax.vmap."
    refused(f"{_who}.wood", _words, V, problems.wood, _x)
for _call in (_watson, _residuals):
    refused(f"{_who}.watson", "(6,), one point. For many: jax.vmap. For another length: replace", V, _call, [1.0, 2.0])
    refused(f"{_who}.watson", "x has dtype int32; allowed: real ... Make it float", T, _call, [1, 2])
refused(f"{_who}.beale", "x is 'xy', a str; it must be an array of 2 floats.", T, problems.beale, "xy")
for _problem, _n, _error, _words in (
    (problems.wood, 5, V, "dimension is 5; allowed: 4."),
    (problems.wood, 3, V, "dimension is 3; it must be an int, at least 4."),
    (_watson, 32, V, "dimension is 32; allowed: 2 to 31."),
    (_watson, 1, V, "dimension is 1; it must be an int, at least 2."),
    (problems.extended_rosenbrock, 3, V, "dimension is 3; allowed: 2 or more, a multiple of 2."),
    (problems.extended_powell_singular, 6, V, "dimension is 6; allowed: 4 or more, a multiple of 4."),
    (problems.chebyquad, 0, V, "dimension is 0; it must be an int, at least 1."),
    *((_watson, n, T, f"dimension is {n!r}; it must be an int, at least 2.") for n in (True, 6.0, "6", None)),
):
    refused(f"{_who}.{_problem.name}", _words, _error, _problem.replace, _n)
refused(f"{_who}.Problem", "name is 'mine'; allowed: helical_valley, biggs,", V, problems.Problem, "mine", 2)

for _name, _call, _words in (
    ("a problem's name that is set", lambda: setattr(problems.wood, "name", "mine"), "name"),
    ("a name that is set", lambda: setattr(_beale, "name", "mine"), "name"),
    ("a minimum that is set", lambda: _beale.minima.__setitem__(0, 1.0), "read-only"),
):
    REFUSALS.append(Refusal(_name, _call, (AttributeError, V), _words))
