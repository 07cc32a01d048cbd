"""What the language refuses of an author's fields, arguments and results."""

import jax.numpy as jnp

import gradtx
from gradtx import fields
from tests.core.samples import PARAMS
from tests.refusals import Refusal
from tests.refusals.core_authors import formula, stepped

VECTOR, MATRIX = {"v": jnp.ones(3)}, {"m": jnp.ones((2, 3))}


def scaled(u, *, h):
    return u * h


def with_sums(u, *, rows):
    return u, {"rows": rows}


def with_numbers(u, *, n, size=0):
    return u + size, {"n": n}


def told(h, tree=PARAMS):
    """A step with this extra argument, which is to be a tree like the params."""
    return stepped(scaled, tree=tree, given={"h": h}, h=fields.argument(per="leaf"))


def noisy(u, *, key):
    return u


NUMBERS = {"n": fields.like()}
TAKEN = "which is already the name of a field or of an input. Choose another name."
REFUSALS = [
    Refusal(f"fields: {name}", call, error, *words)
    for name, call, error, *words in [
        (
            "an argument with other leaves",
            told({"other": 2.0}),
            *(ValueError, "gradtx.breaks.update: h must be a tree like the updates", "h has ['other'], not in the"),
        ),
        (
            "an argument of another shape",
            told({"v": jnp.ones(2)}, VECTOR),
            *(ValueError, "at ['v'], h has shape (2,), the updates (3,)"),
        ),
        ("an argument of one number", told(2.0), ValueError, "h must be a tree like the updates", "h has the root"),
        (
            "a measured field",
            stepped(with_numbers, lambda u: {"n": gradtx.norm(u)}, **NUMBERS),
            *(TypeError, "gradtx.breaks: its measure returned 'n'", TAKEN),
        ),
        (
            "measured params",
            stepped(lambda u: u, lambda u: {"params": gradtx.norm(u)}),
            *(TypeError, "its measure returned 'params'", TAKEN),
        ),
        (
            "a count from once",
            stepped(lambda u, *, count: u, None, lambda *, count: {"count": count + 1}),
            *(TypeError, "gradtx.breaks: its once returned 'count'", TAKEN),
        ),
        (
            "a field of a leaf from once",
            stepped(with_numbers, None, lambda *, count: {"n": count}, **NUMBERS),
            *(TypeError, "gradtx.breaks: its once returned 'n'", TAKEN),
        ),
        ("None", stepped(lambda u: None), TypeError, "its update returned None; it must return an array like the"),
        (
            "another tree",
            stepped(lambda u: list(u.values()), per=gradtx.per_tree),
            *(TypeError, "it must return a tree like the one it got"),
        ),
        ("NumPy", stepped(lambda u: jnp.asarray(float(u.sum()))), TypeError, "leaves have no value", "jax.numpy"),
        (
            "where",
            stepped(lambda u: u @ u, tree=MATRIX),
            TypeError,
            "in its update, at the leaf Shape",
        ),
        ("an undeclared key", formula(noisy), TypeError, "noisy names 'key'", "Declare it: key=fields.key()"),
        (
            "an axis that a leaf does not have",
            stepped(with_sums, tree=VECTOR, rows=fields.sums(1)),
            *(ValueError, "gradtx.fields.sums: axis is 1, and a leaf has the shape (3,); it must be one of its axes"),
        ),
        (
            "an axis of no matrix",
            stepped(with_sums, tree=MATRIX, rows=fields.gram(-3)),
            *(ValueError, "gradtx.fields.gram: axis is -3, and a leaf has the shape (2, 3)"),
        ),
        ("no history", lambda: fields.history(0), ValueError, "gradtx.fields.history: length is 0; it must be an int"),
        ("a part of a history", lambda: fields.history(2.5), ValueError, "length is 2.5"),
        ("half a seed", lambda: fields.key(0.5), TypeError, "gradtx.fields.key: seed is 0.5; it must be an int."),
    ]
] + [
    Refusal(
        "a part of a step",
        lambda: gradtx.linear_schedule(1.0, 0.0, 1.2),
        *(TypeError, "transition_steps is 1.2; it must be an int. Round it: int(1.2)."),
    ),
]
