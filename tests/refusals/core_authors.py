"""What the language refuses of authors: annotations, names, what bodies return, and what inits and updates return."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx import Rule, Transform
from gradtx.core import record
from tests.refusals import Refusal
from tests.refusals.core import PARAMS, keep, made, registered


def unannotated(a: gradtx.Unit, b=0.5) -> Rule: ...
def variable(**more: float) -> Rule: ...
def positional(a: gradtx.Unit, /) -> Rule: ...
def lost(rate: "Nowhere") -> Rule: ...  # noqa: F821 - that is the point
def both(rate: "gradtx.Positive | bool") -> Rule: ...
def adam(learning_rate: gradtx.NonNegative) -> Transform: ...
def says_rule() -> Rule:
    return gradtx.scale(1.0)


def says_transform() -> Transform:
    return Rule(update=keep)


def says_nothing() -> Transform: ...
def says_number(rate: gradtx.Finite) -> gradtx.Rate:
    return rate


def named(name):
    def body(argument: gradtx.Unit) -> Rule: ...

    body.__annotations__ = {name: gradtx.Unit, "return": Rule}
    body.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)])
    return gradtx.transform(body)


def returning(annotation):
    def without(): ...

    without.__annotations__ = {"return": annotation} if annotation != "nothing" else {}
    return gradtx.transform(without)


EITHER = "allowed: Rule or Transform."
GAP = "unannotated: parameter 'b' has no annotation. Annotate a hyperparameter with its range"
ONCE = "a factory called 'adam' is already defined in gradtx.optimizers.adam_family"
REFUSALS = [
    Refusal(f"an author's {body.__name__}", functools.partial(gradtx.transform, body), error, *words)
    for body, error, *words in [
        (unannotated, TypeError, GAP),
        (variable, TypeError, "variable: **more is not allowed"),
        (positional, TypeError, "positional: positional-only a is not allowed"),
        (lost, NameError, "lost: the annotation 'Nowhere'", "module level"),
        (both, TypeError, "'rate'", "cannot be static"),
        (adam, ValueError, ONCE),
    ]
]
RESERVED = ["init", "update", "expand", "replace", "name", "factory", "arguments", "rule", "reads", "_own"]
REFUSALS += [
    Refusal(f"the name {name}", lambda n=name: named(n), TypeError, f"body: '{name}' cannot be the name of a parameter")
    for name in RESERVED
]
REFUSALS += [
    Refusal(f"the result {a}", functools.partial(returning, a), TypeError, "without: its return annotation is ", EITHER)
    for a in (None, int, "nothing", record.Recorded, gradtx.Schedule)
]
for body, decorate, args, words in [
    (says_rule, gradtx.transform, [], "gradtx.says_rule: its body returned scale(step_size=1.0), and is annotated"),
    (says_transform, gradtx.transform, [], "gradtx.says_transform: its result is "),
    (says_nothing, gradtx.transform, [], "gradtx.says_nothing: its result is None"),
    (says_number, gradtx.schedule, [1.0], "gradtx.says_number: its body returned "),
]:
    REFUSALS.append(Refusal(body.__name__, lambda b=body, d=decorate, a=args: registered(b, d)(*a), TypeError, words))
READABLE, NAMED = "allowed: a plain function", "allowed: update(updates, state) or update(updates, state, params)"
for update_, words in [
    (functools.partial(lambda updates, state, *, factor: 0, factor=2.0), READABLE),
    (jax.jit(keep), READABLE),
    (3, READABLE),
    (lambda updates: updates, NAMED),
    (lambda updates, state, p: 0, NAMED),
    (lambda updates, state, params, more: 0, NAMED),
]:
    REFUSALS.append(Refusal(f"update {len(REFUSALS)}", lambda u=update_: made(u)(), TypeError, words))


FIELDS, BREAKS = {"m": np.zeros(3, np.float32)}, "gradtx.breaks.update: "
STATE = {"breaks": FIELDS | {"count": np.int32(0)}}
REFUSALS += [
    Refusal(f"init gives {fields}", lambda f=fields: made(init=lambda _: f)().init(PARAMS), TypeError, *words)
    for words in [("gradtx.breaks.init: returned ", "allowed: a dict of fields, none called 'count'")]
    for fields in [(1, 2), {"count": 3}, np.ones(3)]
]
PAIR = "allowed: a pair (updates, state)."
for result, given, words in [
    ("no state", lambda updates, state: (updates, {}), "the state it returned lacks ['m']"),
    ("another field", lambda updates, state: (updates, state | {"n": 0.0}), "has ['n'], which the old state has not"),
    (
        "a longer field",
        lambda updates, state: (updates, {"m": jnp.zeros(4)}),
        "at ['m'], the state it returned has shape",
    ),
    (
        "short ones",
        lambda updates, state: (updates | {"w": jnp.zeros(1)}, state),
        "at ['w'], the updates it returned has",
    ),
    ("fewer ones", lambda updates, state: ({"w": updates["w"]}, state), "the updates it returned lacks ['b']."),
    ("no pair", lambda updates, state: updates["w"], PAIR),
    ("three", lambda updates, state: (updates, state, state), PAIR),
    ("None", lambda updates, state: None, f"returned None; {PAIR}"),
]:
    wrong = functools.partial(lambda given: made(given, lambda _: FIELDS)().update(PARAMS, STATE), given)
    REFUSALS.append(Refusal(f"update gives {result}", wrong, (TypeError, ValueError), BREAKS, words))
MISSPELT = made(nonnegative=("mu",), init=lambda params: FIELDS)
REFUSALS += [
    Refusal("an odd reach", lambda: Rule(update=keep, reads="elements"), ValueError, "reads is 'elements'; allowed: "),
    Refusal("no update", lambda: Rule(), TypeError, "gradtx.Rule: update is missing"),
    Refusal("a misspelt field", lambda: MISSPELT().init(PARAMS), ValueError, "gradtx.breaks: ", "'mu'", "fields: m."),
    Refusal(
        "a dtype of nothing", lambda: made(state_dtype="bfloat16")(), ValueError, "breaks: ", "names no statistics"
    ),
]
