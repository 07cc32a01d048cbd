"""What masks and labels refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.core import selection
from tests.refusals import Refusal
from tests.refusals.core import update

NET = {part: {"bias": np.zeros(2), "kernel": np.zeros((3, 2))} for part in ("body", "head")}
MANY = {f"layer_{i}": np.zeros(1) for i in range(20)}


def flags(spec, params=NET, given=NET):
    return selection.flags("gradtx.someone", spec, params, given)


def labels(spec):
    return selection.labels("gradtx.someone", spec, NET, NET, argument="param_labels")


BIAS, BOOLS, A_NAME = (
    "gradtx.someone: mask at 'body/bias' is ",
    "it must be True or False",
    "it must be a str, the name of a",
)
REFUSALS = [
    Refusal(name, functools.partial(flags, spec), error, *words)
    for name, spec, error, *words in [
        ("an int in a mask", {"body": 2, "head": True}, TypeError, f"{BIAS}2; {BOOLS}"),
        ("a number in a pattern", {"*": 0.5}, TypeError, f"gradtx.someone: mask['*'] is 0.5; {BOOLS}"),
        ("an array", jax.tree.map(lambda leaf: leaf > 0, NET), TypeError, f"{BIAS}array([False, False]); {BOOLS}"),
        ("what a function returns", lambda path, leaf: path, TypeError, f"{BIAS}'body/bias'; {BOOLS}"),
        (
            "another tree",
            {"body": True},
            ValueError,
            "has the structure",
            "the params have ",
            "one bool",
            "path patterns",
        ),
        ("the mask None", None, ValueError, "gradtx.someone: mask has the structure"),
        (
            "a function of three",
            lambda a, b, c: 1,
            TypeError,
            "of 3 arguments; it must take the path and the leaf, or",
        ),
        ("a builtin", max, TypeError, "gradtx.someone: mask"),
        (
            "a useless pattern",
            ("*/kernel", "*/s"),
            ValueError,
            "the pattern '*/s' matches no leaf; the leaves: body/bias,",
        ),
        ("a branch as a pattern", "head", ValueError, "'head' matches no leaf; ", "For all leaves below it: 'head/*'"),
        (
            *(
                "a leaf without a pattern",
                {"*/kernel": True},
                ValueError,
                "no pattern matches the leaf 'body/bias'; the",
            ),
            *("the patterns: '*/kernel'. Add '*' for the rest.",),
        ),
        (
            *(
                "a pattern behind the rest",
                {"*": False, "*/kernel": True},
                ValueError,
                "pattern '*/kernel' has no effect",
            ),
            *("all its leaves already match '*'. Put it in front.",),
        ),
    ]
]
DECAY = [gradtx.add_decayed_weights(0.1, mask=mask) for mask in ({"w": True}, {"w": 2, "b": True})]
REFUSALS += [
    Refusal(
        "a mask that reads a value",
        lambda: flags(lambda path, leaf: leaf.sum() > 0),
        TypeError,
        "a function of the params reads the values of StandIn(float32[2]) (sum); allowed: shape, ndim, size, dtype",
        "gradtx.someone: mask is a function of the params, and gets arrays without values.",
    ),
    Refusal(
        "a mask that compares a value",
        lambda: flags(lambda path, leaf: leaf > 0),
        TypeError,
        "(__gt__); allowed: shape",
    ),
    Refusal(
        "a mask that computes", lambda: flags(lambda path, leaf: np.float32(1) + leaf), TypeError, "(__radd__); allowed"
    ),
    Refusal(
        "a mask that asks jax.numpy",
        lambda: flags(lambda params: jax.tree.map(lambda leaf: jnp.any(leaf), params)),
        Exception,
        "gradtx.someone: mask is a function of the params, and gets arrays without values.",
    ),
    Refusal("without params", lambda: flags(lambda path, leaf: True, NET, None), ValueError, "params are missing"),
    Refusal(
        "an int label", lambda: labels({"body": 0, "head": 1}), TypeError, f"param_labels at 'body/bias' is 0; {A_NAME}"
    ),
    Refusal("a bool label", lambda: labels({"*/kernel": True, "*": "a"}), TypeError, f"['*/kernel'] is True; {A_NAME}"),
    Refusal(
        "of 20 leaves", lambda: flags("nothing", MANY, MANY), ValueError, "leaves: layer_0, layer_1,", "layer_15, ...."
    ),
    Refusal(
        "decay's mask",
        lambda: jax.eval_shape(update, DECAY[0]),
        ValueError,
        "gradtx.add_decayed_weights: mask has the structure",
    ),
    Refusal(
        "decay's int",
        lambda: jax.eval_shape(update, DECAY[1]),
        TypeError,
        "gradtx.add_decayed_weights: mask at 'w' is 2; it must be",
    ),
]
