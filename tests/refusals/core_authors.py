"""What the language refuses of authors: annotations, names, what bodies return, and what inits and updates return."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx import Rule, Transform
from gradtx.core import fields, record
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
    module = {"gradtx": gradtx, "Rule": Rule, "__name__": __name__}
    exec(f"def body({name}: gradtx.Unit) -> Rule: ...", module)
    return gradtx.transform(module["body"])


def returning(annotation):
    def without(): ...

    without.__annotations__ = {"return": annotation} if annotation != "nothing" else {}
    return gradtx.transform(without)


EITHER = "it must be Rule or Transform."
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
RESERVED = ["init", "update", "expand", "replace", "name", "factory", "arguments", "facts", "declared", "slots", "_own"]
REFUSALS += [
    Refusal(f"the name {name}", lambda n=name: named(n), TypeError, f"body: '{name}' cannot be the name of a parameter")
    for name in RESERVED
]
REFUSALS += [
    Refusal(f"the result {a}", functools.partial(returning, a), TypeError, "without: its return annotation is ", EITHER)
    for a in (None, int, "nothing", record.Recorded, gradtx.Schedule)
]
for body, decorate, args, words in [
    (
        says_rule,
        gradtx.transform,
        [],
        "gradtx.says_rule: its body returned scale(step_size=1.0); it must return a Rule",
    ),
    (says_transform, gradtx.transform, [], "gradtx.says_transform: its result is "),
    (says_nothing, gradtx.transform, [], "gradtx.says_nothing: its result is None"),
    (says_number, gradtx.schedule, [1.0], "gradtx.says_number: its body returned "),
]:
    REFUSALS.append(Refusal(body.__name__, lambda b=body, d=decorate, a=args: registered(b, d)(*a), TypeError, words))
READABLE, NAMED = "it must be a plain function", "it must be update(updates, state) or update(updates, state, params)"
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
    for words in [("gradtx.breaks.init: returned ", "it must return a dict of fields, none called 'count'")]
    for fields in [(1, 2), {"count": 3}, np.ones(3)]
]
PAIR = "it must return a pair (updates, state)."
for result, given, words in [
    ("no state", lambda updates, state: (updates, {}), "the state it returned lacks ['m']"),
    ("another field", lambda updates, state: (updates, state | {"n": 0.0}), "has ['n'], not in the old state"),
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
MISSPELT = made(fields={"mu": fields.squares()}, init=lambda params: FIELDS)
REFUSALS += [
    Refusal("an odd reach", lambda: Rule(update=keep, reach="elements"), ValueError, "reach is 'elements'; allowed: "),
    Refusal("an odd trait", lambda: Rule(update=keep, traits=("clip",)), ValueError, "traits has 'clip'; allowed: "),
    Refusal("no update", lambda: Rule(), TypeError, "gradtx.Rule: update is missing"),
    Refusal(
        "a misspelt field",
        lambda: MISSPELT().init(PARAMS),
        ValueError,
        "gradtx.breaks: ",
        "'mu'",
        "did not return; it returned: m.",
    ),
]


# Formulas -------------------------------------------------------------------------------------------------------------


def formula(*passes, per=gradtx.per_leaf, **more):
    """A transform of one hyperparameter with this formula."""

    def breaks(rate: gradtx.Unit = 0.5) -> Rule:
        return per(*passes, **more)

    return registered(breaks)


def branching(argument="rate"):
    """A body, or a formula, that reads a hyperparameter."""

    def breaks(rate: gradtx.Unit = 0.5) -> Rule:
        if argument == "rate" and rate > 0.25:
            return gradtx.per_element(lambda u: u)
        return gradtx.per_element(lambda u: u if rate > 0.25 else 2 * u)

    return registered(breaks)


def square() -> Rule:
    return gradtx.per_matrix(lambda u: u @ u)


def stepped(*passes, tree=PARAMS, given=None, **more):
    """One update of such a transform."""

    def call():
        tx = formula(*passes, **more)()
        return tx.update(tree, tx.init(tree), **(given or {}))

    return call


def plain(u): ...
def named_mu(u, *, mu):
    return u, {"mu": mu}


def any_names(u, **names): ...
def several(*us): ...
def without(*, mu): ...
def once_of_a_leaf(u, *, size): ...
def taken(u, *, beta): ...
def of_size(u, *, size):
    return u, {}


def no_sums(u):
    return {"size": jnp.sum(u)}


VECTOR = {"w": np.ones(3, np.float32)}
LIKE, NUMBER_OF_TREE, LEAF = fields.like(), fields.scalar(per="tree"), "gradtx.per_leaf: "
OWN = "that name is reserved. Choose another name."
for name, call, error, *words in [
    (
        "no field",
        lambda: gradtx.per_leaf(named_mu, mu=0.0),
        TypeError,
        f"{LEAF}mu is 0.0; it must be a field",
        "like()",
    ),
    (
        "a factory",
        lambda: gradtx.per_leaf(named_mu, mu=fields.like),
        TypeError,
        f"{LEAF}mu is <function like",
        "a field",
    ),
    *(
        (f"a field {own}", lambda o=own: gradtx.per_leaf(plain, **{o: LIKE}), ValueError, f"is called '{own}'", OWN)
        for own in ("observed", "params", "count", "inner", "groups", "updates")
    ),
    (
        "no key",
        lambda: gradtx.per_leaf(plain, key=LIKE),
        ValueError,
        "called 'key', but only a random key may have that name",
    ),
    (
        "another key",
        lambda: gradtx.per_tree(plain, noise=fields.key()),
        ValueError,
        "gradtx.per_tree: ",
        "must be called key",
    ),
    ("an odd trait of a formula", lambda: gradtx.per_leaf(plain, traits=("odd",)), ValueError, "traits has 'odd'"),
    (
        "any names",
        formula(any_names),
        TypeError,
        "any_names: names stands for any arguments; a pass must name each field",
    ),
    ("any leaves", formula(several), TypeError, "several: us stands for any arguments; a pass must name"),
    (
        "no leaf",
        formula(without, mu=LIKE),
        TypeError,
        "without(*, mu); it must be update(u, *, names), where u is the update",
    ),
    (
        "once of a leaf",
        formula(of_size, None, once_of_a_leaf),
        TypeError,
        "once_of_a_leaf(u, *, size); it must be once(*,",
    ),
    (
        *("an unknown name", formula(taken), TypeError, "taken names 'beta', which is neither a field nor provided"),
        *(
            "fields: none",
            "provided: count, observed, params",
            "Declare it: beta=fields.like()",
            "beta=fields.argument()",
        ),
    ),
    ("a silent field", formula(named_mu, mu=LIKE, nu=LIKE), TypeError, "named_mu: the field 'nu' is declared, but no"),
    (
        *(
            "a field of the tree",
            formula(of_size, size=NUMBER_OF_TREE),
            TypeError,
            "of_size: the field 'size' is one for",
        ),
        *("but no `once` updates it", "per_leaf(update, once=once, size=...)"),
    ),
    (
        *(
            "a name of no pass",
            stepped(of_size, lambda u: {"length": gradtx.norm(u)}),
            TypeError,
            "its update names 'size'",
        ),
        *("gradtx.breaks: ", "allowed: count, length, observed, params"),
    ),
    ("once needs", stepped(plain, None, lambda *, size: {}), TypeError, "gradtx.breaks: its once names 'size', which"),
    (
        "another shape",
        stepped(lambda u: u.reshape(1, -1), tree=VECTOR),
        ValueError,
        "the update has shape (1, 3)",
        "keep the shape (3,)",
    ),
    (
        "a number",
        stepped(lambda u: jnp.sum(u)),
        ValueError,
        "gradtx.breaks: the update has shape (); it must keep the shape",
    ),
    ("another kind", stepped(lambda u: u + 1j), TypeError, "the update has dtype complex64; it must keep the dtype"),
    (
        "integers",
        stepped(lambda u: u > 0),
        TypeError,
        "gradtx.breaks: the update has dtype bool; it must keep the dtype",
    ),
    ("half", stepped(lambda u: u.astype(jnp.bfloat16)), TypeError, "the update has dtype bfloat16", "float32"),
    (
        *(
            "a field of another shape",
            stepped(lambda u, *, mu: (u, {"mu": mu[None]}), tree=VECTOR, mu=LIKE),
            ValueError,
        ),
        "gradtx.breaks: the field 'mu' has shape (1, 3); it must keep the shape (3,).",
    ),
    (
        *("a field of another kind", stepped(lambda u, *, mu: (u, {"mu": mu > 0}), mu=LIKE), TypeError),
        "gradtx.breaks: the field 'mu' has dtype bool; it must keep the dtype float32.",
    ),
    (
        "a field too many",
        stepped(lambda u, *, mu: (u, {"mu": mu, "nu": mu}), mu=LIKE),
        TypeError,
        "it returned the fields mu, nu",
    ),
    (
        "a field too few",
        stepped(lambda u, *, mu: (u, {}), mu=LIKE),
        TypeError,
        "the fields none; needed: mu. A pass retur",
    ),
    ("no fields", stepped(lambda u, *, mu: u, mu=LIKE), TypeError, "gradtx.breaks: ", "needed: mu"),
    ("three values", stepped(lambda u, *, mu: (u, {"mu": mu}, 1), mu=LIKE), TypeError, "its update returned 3 values"),
    ("fields in a list", stepped(lambda u, *, mu: (u, [mu]), mu=LIKE), TypeError, "gradtx.breaks: ", "needed: mu"),
    (
        "a measure of arrays",
        stepped(of_size, no_sums),
        TypeError,
        "its measure returned {",
        "total(x), norm(x) or largest(x)",
    ),
    ("a measure of no dict", stepped(of_size, lambda u: gradtx.norm(u)), TypeError, "a dict of total(x), norm(x)"),
    (
        *("once without its field", stepped(of_size, None, lambda *, size: {}, size=NUMBER_OF_TREE), TypeError),
        *("gradtx.breaks: it returned the fields none; needed: size",),
    ),
    ("once of no dict", stepped(of_size, None, lambda *, size: size, size=NUMBER_OF_TREE), TypeError, "needed: size"),
    (
        *(
            "a vector for a matrix",
            stepped(lambda u: u, per=gradtx.per_matrix),
            ValueError,
            "the leaf at ['b'] has the shape ()",
        ),
        *("gradtx.breaks: ", "it must be a matrix, with 2 axes", "by_shape(matrix=breaks(...), other=adam(...))"),
    ),
    (
        *(
            "an argument of one number",
            stepped(of_size, given={"size": np.ones(3)}, size=fields.argument()),
            ValueError,
        ),
        "gradtx.breaks.update: size has shape (3,); it must be one number. Pass its mean.",
    ),
    (
        "an argument is missing",
        stepped(of_size, size=fields.argument()),
        TypeError,
        "the extra argument 'size' is missing",
    ),
    (
        *(
            "a branch",
            branching(),
            TypeError,
            "gradtx.breaks: it reads the value of a traced number. Hyperparameters, counts and leaves have no value",
        ),
        *("jnp.where(condition, one, other)", "@transform(check=...)"),
    ),
    (
        *("a vector without a state", lambda: registered(square)().update(PARAMS, {}), ValueError),
        *("gradtx.square: the leaf at ['b'] has the shape (); it must be a matrix",),
    ),
    (
        "a branch in a formula",
        lambda: branching("u")().update(PARAMS, branching("u")().init(PARAMS)),
        TypeError,
        "gradtx.breaks: ",
        "reads the value of a traced number",
    ),
]:
    REFUSALS.append(Refusal(f"a formula: {name}", call, error, *words))
