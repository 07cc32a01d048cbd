"""What init and update refuse: trees, states, leaves, extra arguments."""

import functools
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import sparse
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import Rule
from tests.refusals import Refusal
from tests.refusals.core import CHAIN, MOMENTUM, PARAMS, TX, registered, shapes, traced, update

# Trees and states -----------------------------------------------------------------------------------------------------

ALIKE, NONE = "gradtx.adam.update: updates do not match params: ", "updates lacks ['b'], ['w']"
NO_STATE = "gradtx.adam.update: the state is not one that init makes for these params: "
PASS = "Pass the state that init or the last update of this optimizer returned."
MISSING = "params are missing; this optimizer needs them: tx.update(grads, state, params)."


def changed(name, field, leaf):
    """Adam's state with one leaf replaced."""
    state = shapes(TX)
    state[name] = dict(state[name]) | {field: leaf if field == "count" else state[name][field] | {"w": leaf}}
    return state


TREES = [
    Refusal(f"{tx.name}: {name} of shape {shape}", functools.partial(update, tx, grads), ValueError, words)
    for tx in (TX, MOMENTUM, gradtx.sgd(0.1), gradtx.identity())
    for name, shape in [("w", (1,)), ("w", ()), ("b", (1,)), ("w", (3, 3)), ("w", (2,))]
    for grads in [PARAMS | {name: np.ones(shape)}]
    for words in [
        f"gradtx.{tx.name}.update: updates do not match params: at ['{name}'], updates has shape {shape}, "
        f"params {PARAMS[name].shape} (shapes must be equal; nothing is broadcast)."
    ]
]
WIDER, LOW = shapes(TX, PARAMS | {"w": np.ones(4)}), changed("scale_by_rms", "nu", np.ones(3, ml_dtypes.bfloat16))
BROADCAST = PARAMS | {"w": np.ones(1)}
AT_MU, DO_NOT = "at ['scale_by_momentum']['mu']['w'], ", "gradtx.adam.update: updates and state do not match: "
BESIDE = PARAMS | {name: np.ones(1) for name in "cdef"}
TREES += [
    Refusal(name, functools.partial(update, TX, **given), ValueError, *words)
    for name, given, *words in [
        ("no b", {"grads": {"w": PARAMS["w"]}}, f"{ALIKE}updates lacks ['b']."),
        ("one more", {"grads": PARAMS | {"c": np.ones(1)}}, f"{ALIKE}updates has ['c'], not in params."),
        ("four more", {"grads": BESIDE}, f"{ALIKE}updates has ['c'], ['d'], ['e'] and 1 more, not in params."),
        ("a list", {"grads": [*PARAMS.values()]}, f"{ALIKE}{NONE}; updates has [0], [1], not in params."),
        ("a tuple", {"grads": (1.0, 1.0), "params": [1.0, 1.0]}, ALIKE, "the structure PyTreeDef((*, *))", "[*, *]"),
        ("an array", {"grads": np.ones(3)}, f"{ALIKE}{NONE}", "the root"),
        ("other params", {"params": PARAMS | {"w": np.ones(4)}}, f"{ALIKE}at ['w'], updates has shape (3,), params (4"),
        ("another state", {"state": shapes(MOMENTUM)}, f"{NO_STATE}the state lacks ", "['scale_by_rms']", PASS),
        *((f"state {s!r}", {"state": s}, f"{NO_STATE}the state lacks ", PASS) for s in ((), {}, (np.ones(3),), 0.0)),
        (
            "other params' state",
            {"state": WIDER},
            NO_STATE,
            f"{AT_MU}the state has shape (4,), the expected state (3,)",
        ),
        (
            "its dtype",
            {"state": LOW},
            NO_STATE,
            "['nu']['w'], the state has dtype bfloat16, the expected state float32.",
        ),
        ("3 counts", {"state": changed("scale_by_rms", "count", np.zeros(3, np.int32))}, "['count']", "shape (3,)"),
        (
            "without params",
            {"grads": BROADCAST, "params": None},
            DO_NOT,
            f"{AT_MU}",
            "(3,)",
            "(1,)",
            "nothing is broadcast",
        ),
    ]
]
TREES += [
    Refusal("another state, traced", traced(TX.update, PARAMS, shapes(CHAIN)), ValueError, "the state has ['clip']"),
    Refusal("a shape, traced", traced(TX.update, PARAMS | {"b": np.ones(1)}, shapes(TX), PARAMS), ValueError, ALIKE),
]
for tx in (gradtx.adamw(1e-3), gradtx.lion(1e-3), gradtx.add_decayed_weights(0.1), gradtx.checked(gradtx.adamw(1e-3))):
    for whole in (tx, gradtx.clip(1.0) >> tx):
        words = f"gradtx.{whole.name}.update: {MISSING}"
        TREES.append(Refusal(f"{whole!r} needs params", lambda tx=whole: update(tx, params=None), ValueError, words))


def elsewhere(**trees):
    """Adam's update of replicated trees, on meshes of one device whose axes have these names."""

    def on(axis, values):
        mesh = jax.make_mesh((1,), (axis,), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
        return jax.device_put(values, NamedSharding(mesh, PartitionSpec()))

    given = {"grads": PARAMS, "state": TX.init(PARAMS), "params": PARAMS}
    return update(TX, **{name: on(trees.get(name, "data"), value) for name, value in given.items()})


ONE_MESH = "on {'data': 1}; both must be on one mesh. Move gradients, params and state to it: jax.device_put("
TREES += [
    Refusal(f"{name} on another mesh", functools.partial(elsewhere, **{name: "model"}), ValueError, words, ONE_MESH)
    for name, words in [
        ("params", "gradtx.adam.update: params at ['b'] is on the mesh {'model': 1}, updates at ['b'] on"),
        ("state", "gradtx.adam.update: state at ['scale_by_learning_rate']['count'] is on the mesh {'model': 1}, "),
    ]
]

# Leaves ---------------------------------------------------------------------------------------------------------------

LEAVES = []
for dtype in ("int32", "bool", "uint8"):
    good = {"layer": {"w": np.ones(3, np.float32), "step": np.ones(2, np.float32)}}
    bad = {"layer": good["layer"] | {"step": np.ones(2, dtype)}}
    rest = f" at ['layer']['step'] has dtype {dtype}; it must be floating-point or complex. Keep leaves that are not "
    rest += "trained out of the parameters (or mask them out)."
    both_ = f"gradtx.apply_updates: updates at ['layer']['step'] has dtype float32, params {dtype}; both must be real"
    state = shapes(TX, good)
    for call, words in [
        (functools.partial(TX.init, bad), f"gradtx.adam.init: params{rest}"),
        (traced(TX.init, bad), f"gradtx.adam.init: params{rest}"),
        (functools.partial(update, TX, bad, state, None), f"gradtx.adam.update: updates{rest}"),
        (functools.partial(update, TX, good, state, bad), f"gradtx.adam.update: params{rest}"),
        (functools.partial(gradtx.apply_updates, bad, good), both_),
        (functools.partial(gradtx.identity().init, bad), f"gradtx.identity.init: params{rest}"),
        (functools.partial(CHAIN.init, bad), f"gradtx.chain.init: params{rest}"),
    ]:
        LEAVES.append(Refusal(f"{dtype}: {words[:30]}", call, TypeError, words))
for leaf in ("weights", object(), jnp.ones):
    bad, words = {"w": leaf, "b": 0.0}, (" at ['w'] is ", f"of type {type(leaf).__name__}; it must be an array.")
    if callable(leaf):
        words = (
            *words,
            "it must be an array. Give the arrays alone, as equinox.filter(model, equinox.is_inexact_array) does.",
        )
    for who, call in [
        ("gradtx.adam.init: params", functools.partial(TX.init, bad)),
        ("gradtx.adam.update: updates", functools.partial(update, TX, bad)),
        ("gradtx.adam.update: params", functools.partial(update, TX, params=bad)),
        ("gradtx.apply_updates: updates", functools.partial(gradtx.apply_updates, PARAMS, bad)),
        ("gradtx.apply_updates: params", functools.partial(gradtx.apply_updates, bad, PARAMS)),
    ]:
        LEAVES.append(Refusal(f"{type(leaf).__name__}: {who}", call, TypeError, who, *words))
for kind in (sparse.BCOO, sparse.BCSR):
    bad = {"w": kind.fromdense(jnp.eye(2)), "b": 0.0}
    words = f" at ['w'] is sparse, a {kind.__name__}; it must be a dense array. Give its `.todense()`."
    for who, call in [
        ("gradtx.adam.init: params", functools.partial(TX.init, bad)),
        ("gradtx.chain.init: params", traced(CHAIN.init, bad)),
        ("gradtx.adam.update: updates", functools.partial(update, TX, bad)),
    ]:
        LEAVES.append(Refusal(f"{kind.__name__}: {who}", call, TypeError, f"{who}{words}"))
COMPLEX, REAL = ({"layer": {"w": np.ones(2, dtype)}} for dtype in (np.complex64, np.float32))
IMAGINARY = ("['layer']['w']", "is complex (complex64); it must be real", "Put split_real_and_imaginary around it")
for tx, who in [
    (gradtx.clip(1.0), "clip"),
    (gradtx.lion(0.1), "scale_by_lion"),
    (gradtx.signum(0.1), "scale_by_sign"),
    (gradtx.scale(1.0) + gradtx.checked(gradtx.scale_by_sign()), "scale_by_sign"),
]:
    call = functools.partial(lambda tx: jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), COMPLEX), tx)
    LEAVES.append(Refusal(f"complex: {who}", call, TypeError, f"gradtx.{who}.", *IMAGINARY))
KINDS = "updates at ['layer']['w'] has dtype complex64, params float32; both must be real, or both complex."
MOMENT = gradtx.stored(gradtx.scale_by_momentum(), jnp.bfloat16)
LEAVES += [
    Refusal(name, call, error, *words)
    for name, call, error, *words in [
        ("a Python bool", lambda: TX.init({"a": [True]}), TypeError, "params at ['a'][0] has dtype bool; it must be "),
        ("a Python int", lambda: TX.init({"a": [3]}), TypeError, "params at ['a'][0] has dtype int32; it must be "),
        ("complex gradients", lambda: update(TX, COMPLEX, shapes(TX, REAL), REAL), TypeError, "adam.update: ", KINDS),
        (
            "a real state",
            lambda: TX.update(COMPLEX, shapes(TX, REAL)),
            ValueError,
            DO_NOT,
            "dtype float32",
            "complex64",
        ),
        (
            *("a complex field in bfloat16", lambda: MOMENT.init(np.zeros(2, np.complex64)), TypeError),
            "gradtx.stored: scale_by_momentum/mu at the root is complex (complex64); it must be real",
            "Put split_real",
        ),
        (
            *("updates of other params", lambda: gradtx.apply_updates(PARAMS, BROADCAST), ValueError),
            "gradtx.apply_updates: updates do not match params: at ['w'], updates has shape (1,), params (3,)",
        ),
    ]
]

# Extra arguments, schedules, hyperparameters in the state, sweeps -----------------------------------------------------


def wants_value(rate: gradtx.Unit = 0.5) -> Rule:
    return Rule(update=lambda updates, state, params, *, value, other=None: (updates, state))


WANTS = registered(wants_value)()
PAIR = types.SimpleNamespace(init=id, update=lambda updates, state, params=None, *, value: updates)
THEIRS = gradtx.clip(1.0) >> gradtx.foreign(PAIR)
TUNABLE, BOTH = (gradtx.tunable(tx) for tx in (TX, gradtx.scale(1.0) >> gradtx.scale(2.0)))
CUSTOM, LINE, NO_COUNTS = (
    gradtx.custom_schedule,
    gradtx.linear_schedule(1.0, 0.0, 10),
    (1.5, "1", None, True, float("inf"), 1j),
)
NO_RATES = [(np.ones(3), "shape (3,)"), (np.ones(1), "shape (1,)"), (1j, "dtype complex64"), (True, "dtype bool")]
COUNTS = ("Name one of: scale_by_learning_rate/count, scale_by_momentum/count, scale_by_rms/count.",)
UNKNOWN = "gradtx.adam.update: unknown extra argument 'value'. It accepts: none."
CALLS = [
    Refusal(name, call, error, *words)
    for name, call, error, *words in [
        ("an extra argument", lambda: update(TX, value=1.0), TypeError, UNKNOWN),
        ("another one", lambda: update(THEIRS, state={}, vale=1), TypeError, "'vale'. Did you mean 'value'?", "value"),
        ("none", lambda: update(WANTS), TypeError, "wants_value.update: the extra argument 'value' is missing. Pass "),
        ("none through checked", lambda: update(gradtx.checked(WANTS)), TypeError, "'value' is missing"),
        *(
            (f"a schedule of {v}", lambda v=v: CUSTOM(lambda c: v)(0), TypeError, "custom_schedule", w)
            for v, w in NO_RATES
        ),
        *(
            (f"the count {v!r}", lambda v=v: LINE(v), TypeError, f"linear_schedule: the count is {v!r}")
            for v in NO_COUNTS
        ),
        (
            "no entry",
            lambda: gradtx.find(shapes(TX), "trace"),
            KeyError,
            "no entry is called 'trace'",
            "scale_by_rms/nu",
        ),
        ("several", lambda: gradtx.find(shapes(TX), "count"), KeyError, "several entries are called 'count'", *COUNTS),
        ("no counter", lambda: gradtx.step_count({}), KeyError, "gradtx.step_count: the state has no counter."),
        ("no tunable", lambda: gradtx.tune(shapes(TX), b1=0.5), KeyError, "gradtx.tune: ", "gradtx.tunable(tx)"),
    ]
]
for tx, changes, error, *words in [
    (TUNABLE, {"b3": 0.5}, KeyError, "no hyperparameter is called 'b3'", "There are: b1, b2, eps, learning_rate."),
    (TUNABLE, {"lerning_rate": 0.5}, KeyError, "Did you mean 'learning_rate'?"),
    (BOTH, {"step_size": 3.0}, KeyError, "several", "'step_size'", "There are: stages[0].step_size, stages[1].step_si"),
    *((TUNABLE, {"b1": v}, TypeError, f"b1 is {v!r}; it must be a number") for v in ("0.5", True, None, np.ones(3))),
    (TUNABLE, {"b1": float("nan")}, ValueError, "gradtx.tune: b1 is nan; it must be in [0, 1)"),
    (TUNABLE, {"b1": 1.5}, ValueError, "gradtx.tune: b1 is 1.5; it must be in [0, 1)"),
    (TUNABLE, {"learning_rate": -1.0}, ValueError, "learning_rate is -1.0; it must be in [0, inf)"),
]:
    call = functools.partial(lambda tx, changes: gradtx.tune(shapes(tx), **changes), tx, changes)
    CALLS.append(Refusal(f"tune {changes}", call, error, *words))
RATES = np.logspace(-4, 0, 8)
SWEEPS = [jax.vmap(gradtx.scale), jax.vmap(lambda rate: gradtx.clip(1.0) >> gradtx.adam(rate))]
SWEEPS.append(jax.vmap(lambda rate: gradtx.adam(gradtx.linear_schedule(rate, 0.0, 10))))
for build in SWEEPS:
    for method, args in [("init", [PARAMS]), ("update", [PARAMS, {}, PARAMS])]:
        call = functools.partial(lambda build, method, args: getattr(build(RATES), method)(*args), build, method, args)
        words = (
            "this is a sweep of 8 optimizers in one value",
            f"jax.vmap(lambda tx, ...: tx.{method}(...))(txs, ...)",
        )
        CALLS.append(Refusal(f"{method} of sweep {SWEEPS.index(build)}", call, ValueError, *words))

# Where JAX refuses, it names the transform, the argument or the stage -------------------------------------------------


def cond(first, second):
    return jax.lax.cond(jnp.bool_(True), lambda: first, lambda: second)


def scan(first, second):
    return jax.lax.scan(lambda carry, _: (second, None), first, None, length=2)


def arrays(tx, dtype=np.float32):
    return jax.tree.map(dtype, tx)


WHERE = ("stages[1]",) if jax.__version_info__ >= (0, 10) else ()  # older messages have no path
NESTEROV = gradtx.adam(1e-3, nesterov=True)
JAXS = [
    Refusal(f"{loop.__name__} {words}", functools.partial(loop, first, second), TypeError, *words)
    for loop in (cond, scan)
    for first, second, *words in [
        (arrays(TX), arrays(MOMENTUM), "adam", "sgd"),
        (arrays(CHAIN), arrays(gradtx.clip(1.0) >> MOMENTUM), "adam", "sgd", *WHERE),
        (arrays(TX), arrays(NESTEROV), "adam", "metadata", "False", "True"),
        (arrays(TX), arrays(TX, np.float16), ".learning_rate", "float32[]", "float16[]"),
        ({"a": {"nu": np.float32(1)}}, {"a": {"mu": np.float32(1)}}, "nu"),
    ]
]
JAXS.append(
    Refusal("tree.map", lambda: jax.tree.map(max, CHAIN, gradtx.clip(1.0) >> MOMENTUM), ValueError, "sgd", *WHERE)
)

REFUSALS = TREES + LEAVES + CALLS + JAXS
