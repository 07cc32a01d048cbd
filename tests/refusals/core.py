"""What the language refuses before anything runs: arguments."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from gradtx import Rule, Transform
from gradtx.core import record
from tests.core.samples import PARAMS
from tests.refusals import Refusal

TX, MOMENTUM, CHAIN = gradtx.adam(1e-3), gradtx.sgd(0.1, momentum=0.9), gradtx.clip(1.0) >> gradtx.adam(1e-3)
FOREIGN = optax.trace(0.9)
NAN, INF, LOW = float("nan"), float("inf"), "bfloat16"


def in_float64():
    """A number that is wide enough meets leaves that are not."""
    with jax.enable_x64(True):
        gradtx.adam(1, b2=jnp.float64(1 - 1e-9)).init(PARAMS)


def traced(function, *args):
    """The call under jit, as far as tracing goes."""
    return lambda: jax.eval_shape(function, *args)


def shapes(tx, params=PARAMS):
    return jax.eval_shape(tx.init, params)


def update(tx, grads=PARAMS, state=None, params=PARAMS, **extra):
    return tx.update(grads, shapes(tx) if state is None else state, params, **extra)


def registered(body, decorate=gradtx.transform):
    """A factory of this body, which the registry forgets again."""
    factory = decorate(body)
    del record._registry[body.__name__]
    return factory


def keep(updates, state):
    return updates, state


def made(update=keep, init=None, **facts):
    """A transform of one hyperparameter with this Rule."""

    def breaks(rate: gradtx.Unit = 0.5) -> Rule:
        return Rule(init, update, **facts)

    return registered(breaks)


# Arguments ------------------------------------------------------------------------------------------------------------

RATE, NUMBER = "gradtx.adam: learning_rate", "it must be a number or a schedule, in [0, inf)"
STRING = f"{RATE} is the string '%s'; {NUMBER}. Pass the number itself%s."
VMAP = "build the optimizer under jax.vmap: jax.vmap(lambda x: gradtx.adam(..., learning_rate=x))(values)."
NO_NUMBERS = {
    "None": (None, TypeError, f"{RATE} is None; {NUMBER}."),
    "a number in quotes": ("1e-3", TypeError, STRING % ("1e-3", ", 0.001")),
    "a word": ("fast", TypeError, STRING % ("fast", "")),
    "bytes": (b"1", TypeError, f"{RATE} is b'1' of type bytes; {NUMBER}"),
    "a bool": (True, TypeError, f"{RATE} is True, a bool; {NUMBER}."),
    "NumPy's bool": (np.bool_(True), TypeError, f"{RATE} is np.True_, a bool; {NUMBER}"),
    "an array of a bool": (np.array(True), TypeError, f"{RATE} is np.True_, a bool; {NUMBER}"),
    "JAX's bool": (jnp.array(True), TypeError, f"{RATE} is an array of dtype bool; {NUMBER}."),
    "an array of a str": (np.array("0.1"), TypeError, f"{RATE} is the string ", NUMBER),
    "an array of an object": (np.array(None, object), TypeError, f"{RATE} is None; {NUMBER}"),
    "complex": (1j, TypeError, f"{RATE} is 1j of type complex; {NUMBER}."),
    "NumPy's complex": (np.array(1j), TypeError, f"{RATE} is ", "of type complex128", NUMBER),
    "JAX's complex": (jnp.complex64(1), TypeError, f"{RATE} is an array of dtype complex64; {NUMBER}"),
    "nan": (NAN, ValueError, f"{RATE} is nan; {NUMBER}."),
    "JAX's nan": (jnp.float32(NAN), ValueError, f"{RATE} is nan; {NUMBER}."),
    "inf": (INF, ValueError, f"{RATE} is inf; {NUMBER}."),
    "negative": (-0.1, ValueError, f"{RATE} is -0.1; {NUMBER}."),
    "a huge int": (10**400, ValueError, f"{RATE} is inf; {NUMBER}."),
    "a list": ([0.1], TypeError, f"{RATE} is [0.1] of type list; {NUMBER}."),
    "a tuple": ((0.1,), TypeError, f"{RATE} is (0.1,) of type tuple; {NUMBER}."),
    "a vector": (
        jnp.ones(3),
        ValueError,
        f"{RATE} has shape (3,); it must be a scalar. For many values at once, {VMAP}",
    ),
    "one in a vector": (np.ones(1), ValueError, f"{RATE} has shape (1,); it must be a scalar."),
    "a factory": (gradtx.linear_schedule, TypeError, f"{RATE} is the factory gradtx.linear_schedule itself. Call it"),
    "a transform": (gradtx.scale(1.0), TypeError, f"{RATE} is scale(step_size=1.0) of type scale; {NUMBER}."),
    "a type": (float, TypeError, f"{RATE} is <class 'float'>; it must be a schedule, or a function of the count."),
    "a shape": (jax.ShapeDtypeStruct((), jnp.float32), TypeError, f"{RATE} is ShapeDtypeStruct(", NUMBER),
    "a key": (jax.random.key(0), TypeError, f"{RATE} is an array of dtype key<fry>; {NUMBER}"),
}
ARGUMENTS = [
    Refusal(f"a rate that is {name}", functools.partial(gradtx.adam, value), error, *words)
    for name, (value, error, *words) in NO_NUMBERS.items()
]
ARGUMENTS += [
    Refusal(f"a rate that is {value}, replaced", lambda v=value: TX.replace(learning_rate=v), error, RATE, NUMBER)
    for value, error in [(None, TypeError), ("1e-3", TypeError), (NAN, ValueError)]
]
ARGUMENTS += [
    Refusal(
        f"a traced rate of {word}", traced(gradtx.adam, value), (TypeError, ValueError), RATE, word, "it must be a "
    )
    for value, word in [(jnp.complex64(1), "complex64"), (jnp.bool_(True), "bool"), (jnp.ones(3), "shape (3,)")]
]
BY_NAME = [gradtx.sgd, gradtx.adagrad, gradtx.rmsprop, gradtx.adadelta, gradtx.adamw, gradtx.lion, gradtx.signum]
ARGUMENTS += [
    Refusal(f"{f.__name__} by its own name", lambda f=f: f(None), TypeError, f"gradtx.{f.__name__}: learning_rate is")
    for f in BY_NAME
]
UNIT = "it must be a number or a schedule, in [0, 1)"
TWICE = gradtx.clip(1.0) >> gradtx.sgd(gradtx.linear_schedule(1.0, 0.0, 10)) >> gradtx.clip(2.0)
TWICE_KNOWN = "stages, max_delta, learning_rate, momentum, nesterov, dampening, lr_inside_momentum, accumulator_dtype."
ARGUMENTS.append(
    Refusal(
        "an argument of no part",
        lambda: TWICE.replace(rate=1),
        TypeError,
        f"gradtx.chain has no argument 'rate'. Its arguments: {TWICE_KNOWN}",
    )
)
FIVE = "5 arguments were given by position; allowed: learning_rate, b1, b2, eps. Give the others by keyword: eps_root="
KNOWN = "Its arguments: learning_rate, b1, b2, eps, eps_root, nesterov, eps_hat, mu_dtype."
for f, args, kwargs, error, *words in [
    *((gradtx.adam, [1], {"b1": b}, ValueError, f"gradtx.adam: b1 is {b!r}; {UNIT}.") for b in (1.0, 1.5, -0.1)),
    (gradtx.scale_by_lion, [], {"b2": 1}, ValueError, f"gradtx.scale_by_lion: b2 is 1.0; {UNIT}."),
    (gradtx.adam, [1e-3], {"eps": -1e-8}, ValueError, f"gradtx.adam: eps is -1e-08; {NUMBER}."),
    (
        gradtx.clip_by_global_norm,
        [0],
        {},
        ValueError,
        "max_norm is 0.0; it must be a number or a schedule, in (0, inf].",
    ),
    (
        gradtx.sgd,
        [1],
        {"nesterov": True},
        ValueError,
        "gradtx.sgd: nesterov is given; it needs momentum. Pass momentum=0.9",
    ),
    (gradtx.rmsprop, [1], {"nesterov": True}, ValueError, "gradtx.rmsprop: nesterov is True; it needs momentum. Pass"),
    (gradtx.sgd, [0.1], {"dampening": 0.5}, ValueError, "gradtx.sgd: dampening is given; it needs momentum"),
    (
        gradtx.sgd,
        [0.1],
        {"dampening": jnp.float32(0.5)},
        ValueError,
        "gradtx.sgd: dampening is given; it needs momentum",
    ),
    (
        gradtx.sgd,
        [0.1],
        {"dampening": gradtx.constant_schedule(0.5)},
        ValueError,
        "dampening is given; it needs momentum",
    ),
    (gradtx.sgd, [0.1], {"lr_inside_momentum": True}, ValueError, "gradtx.sgd: lr_inside_momentum is given; it needs"),
    (gradtx.sgd, [0.1], {"accumulator_dtype": LOW}, ValueError, "gradtx.sgd: accumulator_dtype is given; it needs"),
    (
        gradtx.scale_by_momentum,
        [0.9],
        {"dampening": 0.5},
        ValueError,
        "dampening is 0.5; it needs form='sum'",
        "'debiased'",
    ),
    (gradtx.scale_by_momentum, [0.9], {"dampening": jnp.float32(0.5)}, ValueError, "needs form='sum'"),
    (gradtx.scale_by_rms, [], {"debias": False, "eps_hat": True}, ValueError, "eps_hat is True; it needs debias=True"),
    *(
        (
            gradtx.scale_by_rms,
            [],
            {"eps_hat": True} | also,
            ValueError,
            "eps_hat is True; it excludes eps_in_sqrt and eps_root",
        )
        for also in ({"eps_in_sqrt": True}, {"eps_root": 0.0})
    ),
    (gradtx.scale_by_rms, [], {"eps_in_sqrt": True, "eps_root": 0.0}, ValueError, "eps_root is given; it must be None"),
    (gradtx.scale_by_rms, [], {"eps_hat": True, "maximum": "corrected"}, ValueError, "it must be 'raw' with eps_hat"),
    *(
        (
            gradtx.scale_by_rms,
            [],
            {"centered": True} | also,
            ValueError,
            "centered is True; it excludes eps_hat and maximum",
        )
        for also in ({"eps_hat": True}, {"maximum": "raw"})
    ),
    (gradtx.adadelta, [], {"mask": {"w": True}}, ValueError, "gradtx.adadelta: mask is given; it needs weight_decay"),
    (gradtx.scale_by_momentum, [], {"form": "mean"}, ValueError, "form is 'mean'; allowed: 'debiased', 'average', 's"),
    *((gradtx.adam, [1], {"nesterov": v}, TypeError, f"nesterov is {v!r}; it must be ") for v in (1, "yes", 0.0)),
    (
        gradtx.adam,
        [1],
        {"nesterov": jnp.array(True)},
        TypeError,
        "gradtx.adam: nesterov is ",
        "it must be True or False",
    ),
    (
        *(gradtx.adam, [1], {"nesterv": 1}, TypeError),
        f"gradtx.adam: got an unexpected keyword argument 'nesterv'. Did you mean 'nesterov'? {KNOWN}",
    ),
    (gradtx.adam, [1], {"beta": 0.5}, TypeError, f"gradtx.adam: got an unexpected keyword argument 'beta'. {KNOWN}"),
    (gradtx.adam, [], {}, TypeError, f"gradtx.adam: missing a required argument: 'learning_rate'. {KNOWN}"),
    (gradtx.adam, [1, 0.9, 0.9, 1, 1], {}, TypeError, f"gradtx.adam: {FIVE}... {KNOWN}"),
    (gradtx.clip, [1.0, 2], {}, TypeError, "gradtx.clip: too many positional arguments. Its arguments: max_delta."),
    (gradtx.adam, [], {"lerning_rate": 1}, TypeError, "argument 'lerning_rate'. Did you mean 'learning_rate'?"),
    (gradtx.linear_schedule, [1.0, 0.0, 10], {"maximumx": 1}, TypeError, "gradtx.linear_schedule: got an unexpected"),
    (
        gradtx.scale_by_schedule,
        [0.1],
        {},
        TypeError,
        "step_size_fn is 0.1; it must be a schedule, or a function of the",
    ),
    *((w, [TX.factory], {}, TypeError, "inner is the factory gradtx.adam") for w in (gradtx.checked, gradtx.tunable)),
    (
        gradtx.checked,
        [0.1],
        {},
        TypeError,
        "gradtx.checked: inner is 0.1; it must be a transform, or any object with in",
    ),
    (gradtx.to_optax, ["adam"], {}, TypeError, "gradtx.to_optax: tx is 'adam'; it must be a transform, or any object"),
    (gradtx.sgd, [-0.1], {}, ValueError, "learning_rate is -0.1;", "in [0, inf). To ascend, put scale(-1.0) in front"),
    (gradtx.stored, [TX, "float16"], {}, ValueError, "gradtx.stored: dtype is 'float16'; allowed: 'bfloat16'", "65504"),
    (gradtx.stored, [TX, "float8_e4m3fn"], {}, ValueError, "'float8_e4m3fn'; allowed: 'bfloat16', 'float32'", "few"),
    (gradtx.stored, [TX, "int8"], {}, TypeError, "dtype is 'int8'; it must be a floating-point dt"),
    (gradtx.stored, [TX, "bf16"], {}, TypeError, "gradtx.stored: dtype is 'bf16'; it must be a floating"),
    (gradtx.stored, [TX], {}, TypeError, "dtype"),
    (gradtx.stored, [gradtx.adam, LOW], {}, TypeError, "gradtx.stored: inner is the factory gradtx.adam itself"),
    (gradtx.stored, [0.1, LOW], {}, TypeError, "gradtx.stored: inner is 0.1; it must be a transform"),
    (gradtx.stored, [gradtx.sgd(1.0), LOW], {}, ValueError, "sgd(", "it must be a transform that has statistics"),
    (gradtx.stored, [FOREIGN, LOW], {}, ValueError, "gradtx.stored: inner is <foreign trace>; it must be"),
    (gradtx.stored, [TX, LOW, ("mean",)], {}, ValueError, "adam(", "fields has 'mean'; allowed for adam("),
    (gradtx.stored, [TX, LOW, ("weights",)], {}, ValueError, "fields has 'weights'; allowed for adam("),
    (gradtx.stored, [TX, LOW, "rho"], {}, ValueError, "fields has 'rho'; allowed for adam("),
    (gradtx.stored, [gradtx.scale_by_rms(centered=True), LOW], {}, ValueError, "scale_by_rms/nu of", "difference"),
    (gradtx.stored, [gradtx.amsgrad(0.1), LOW], {}, ValueError, "scale_by_rms/nu_max of amsgrad(", "its peaks"),
    (gradtx.scale_by_momentum, [], {"state_dtype": LOW}, TypeError, "unexpected keyword argument 'state_dtype'"),
    (gradtx.adam, [1], {"mu_dtype": "float16"}, ValueError, "gradtx.stored: dtype is 'float16'", "in gradtx.adam"),
    (gradtx.lion, [1], {"mu_dtype": "int8"}, TypeError, "mu_dtype is 'int8'; it must be a floating-point dt"),
]:
    name = f"{f.__name__} {len(ARGUMENTS)}: {', '.join([*map(str, args), *kwargs])[:50]}"
    ARGUMENTS.append(Refusal(name, functools.partial(f, *args, **kwargs), error, *words))
for tx, changes, error, *words in [
    (TX, {"b1": 1.5}, ValueError, f"gradtx.adam: b1 is 1.5; {UNIT}"),
    (TX, {"b1": True}, TypeError, "gradtx.adam: b1 is True, a bool"),
    (TX, {"nesterov": "yes"}, TypeError, "gradtx.adam: nesterov is 'yes'; it must be True or False"),
    (TX, {"learnin_rate": 1}, TypeError, "gradtx.adam has no argument 'learnin_rate'. Did you mean 'learning_rate'?"),
    (CHAIN, {"learnin_rate": 1}, TypeError, "gradtx.chain has no argument 'learnin_rate'. Did you mean 'learning_rate"),
    (gradtx.sgd(0.1), {"nesterov": True}, ValueError, "nesterov is given; it needs momentum"),
    (gradtx.sgd(gradtx.constant_schedule(0.1)), {"value": 1}, TypeError, "gradtx.sgd has no argument 'value'"),
    (
        gradtx.scale_by_adam().expand(),
        {"decay": 1},
        TypeError,
        "argument of several",
        "scale_by_momentum, scale_by_rms",
    ),
]:
    ARGUMENTS.append(Refusal(f"replace {changes} in {tx.name}", lambda t=tx, c=changes: t.replace(**c), error, *words))
ARGUMENTS += [
    Refusal("an ambiguous name", lambda: gradtx.scale_by_adam().expand().decay, AttributeError, "argument of several"),
    Refusal("a misspelt name", lambda: TX.learnin_rate, AttributeError, "Did you mean 'learning_rate'?"),
    Refusal("a change", lambda: setattr(TX, "b1", 0), AttributeError, "gradtx.adam is a value", "Use .replace(b1=...)"),
    Refusal("a deletion", lambda: delattr(TX, "b1"), AttributeError, "gradtx.adam is a value and cannot be changed"),
    Refusal("an entry in the registry", lambda: gradtx.registry.update(mine=1), AttributeError, "update"),
]


# Ranges ---------------------------------------------------------------------------------------------------------------


def one_of(annotation):
    """A factory of one argument."""

    def ranged(x: annotation) -> Rule:
        return Rule(update=keep)

    return registered(ranged)


RANGES = [
    ("[0, 1)", gradtx.Unit, [-1e-9, 1.0, 1.5]),
    ("[0, 1]", gradtx.Fraction, [-1e-9, 1.001]),
    ("[0, inf)", gradtx.NonNegative, [-1e-9]),
    ("(0, inf)", gradtx.Positive, [0.0, -1.0]),
    ("any finite number", gradtx.Hyper, []),
    ("[1, inf)", gradtx.PositiveInt, [0, -1]),
    ("[0, inf)", gradtx.NonNegativeInt, [-1]),
]
for interval, annotation, outside in RANGES:
    for value in [*outside, *([] if isinstance((outside or [0.0])[0], int) else [NAN, INF, -INF])]:
        for kind in (float, np.float64, np.array, jnp.float32) if value == 1.5 else (type(value),):
            call = functools.partial(lambda annotation, value: one_of(annotation)(value), annotation, kind(value))
            words = (ValueError, "gradtx.ranged: x is ", interval)
            ARGUMENTS.append(Refusal(f"{kind.__name__} {value} in {interval}", call, *words))
for annotation, value, words in [
    (bool, 1, "x is 1; it must be True or False."),
    (int, 0.5, "x is 0.5; it must be an int."),
    (int, True, "x is True; it must be an int."),
    (gradtx.PositiveInt, 1.5, "x is 1.5; it must be an int"),
    (float, "1", "x is '1'; it must be a number."),
    (float, True, "x is True; it must be a number."),
    (str, 1, "x is 1; it must be a str."),
    (bool | str, 1, "x is 1; it must be True or False or a str."),
    (Callable[[int], int], 1, "x is 1; it must be a function."),
    (tuple[gradtx.Unit, ...], 0.5, "x is 0.5; it must be a tuple or list."),
    (dict[str, gradtx.Unit], [0.5], "x is [0.5]; it must be a dict."),
    (Transform, 3, "x is 3; it must be a transform, or any object with init and update."),
    (gradtx.Schedule, 3, "x is 3; it must be a schedule, or a function of the count."),
]:
    call = functools.partial(lambda annotation, value: one_of(annotation)(value), annotation, value)
    ARGUMENTS.append(Refusal(f"{value!r} for {annotation}", call, TypeError, f"gradtx.ranged: {words}"))
TWO = one_of(tuple[gradtx.Unit, ...])((0.5, 0.5))
ARGUMENTS.append(Refusal("one of two", lambda: TWO.replace(x=(0.5, 1.5)), ValueError, f"x is 1.5; {UNIT}"))
CLOSE, ROUNDS = gradtx.adam(1, b2=1 - 1e-9), "gradtx.scale_by_rms: decay is 0.999999999, which rounds to 1.0 in float32"
ARGUMENTS += [
    Refusal("1 - 1e-9, init", lambda: CLOSE.init(PARAMS), ValueError, f"{ROUNDS}; it must be in [0, 1)", "float64"),
    Refusal("1 - 1e-9, update", lambda: update(CLOSE, state=shapes(TX)), ValueError, ROUNDS),
    Refusal("1 - 1e-9, traced", lambda: jax.eval_shape(CLOSE.init, PARAMS), ValueError, ROUNDS),
    Refusal(
        "1 - 1e-9 in an array", in_float64, ValueError, "gradtx.scale_by_rms: decay is ", "rounds to 1.0 in float32"
    ),
]

REFUSALS = ARGUMENTS
