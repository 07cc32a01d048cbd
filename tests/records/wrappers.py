"""What goes around a method, and the two compositions: with what to call them. `iterates` has their formulas.

What is inside is one light method, unless a wrapper shows what it is only around another: the laws of wrappers around
representatives of each kind are in `tests/wrappers/test_around_methods.py`.
"""

import jax
import jax.numpy as jnp

import gradtx
from tests.records.base import Record


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def named(path, leaf):
    return "matrices" if leaf.ndim == 2 else "others"


def halves(updates, params):
    return jax.tree.map(lambda u: u / 2, updates)


def even(count):
    return count % 2 == 0


def one_then_two(made):
    return jnp.where(made < 1, 1, 2)


FUNCTIONS = {function.__name__: function for function in (matrices, named, halves, even, one_then_two)}
"""Arguments that are functions: a repr shows their names, JSON cannot hold them."""

RATE = gradtx.inverse_time_schedule(0.1, 0.3)
INNER = gradtx.scale_by_momentum(0.9, form="sum")
NORMED = gradtx.clip_by_global_norm(0.5) >> gradtx.sgd(RATE, 0.9)  # reads the whole tree, and is scheduled
TWO = {"matrices": INNER, "others": gradtx.scale_by_rms()}
LABELS = {"*kernel": "matrices", "*": "others"}


def around(name, *variants, laws=()):
    """A wrapper around the light method, unless a variant says another."""
    return Record(name, None, *({"inner": INNER} | variant for variant in variants or ({},)), laws=laws)


WRAPPERS = [
    Record(
        "chain",
        None,
        {"stages": (gradtx.clip(0.5), gradtx.add_decayed_weights(0.1), gradtx.clip(1.0) + gradtx.scale_by_rms())},
    ),
    Record("join", None, {"stages": (gradtx.scale_by_momentum(), gradtx.scale_by_infinity_norm())}),
    Record("stateless", None, {"f": halves}),
    around("stored", {"dtype": "bfloat16"}, {"inner": gradtx.lookahead(gradtx.adam(RATE)), "dtype": "bfloat16"}),
    around("checked"),
    around("skip_first_step"),
    around("tunable", {"inner": gradtx.clip(0.5) >> gradtx.sgd(RATE)}),
    around("accumulate", {"every": 2}, {"every": one_then_two, "use_grad_mean": False, "skip_nonfinite": True}),
    around("cautious", {}, {"scaling": "count"}),
    around("conditionally", {"should_transform_fn": even}),
    around("conditionally_mask", {"should_transform_fn": even}),
    around("skip_nonfinite", {"max_consecutive": 3}),
    Record("zero_nonfinite", None),
    around("monitor", {"inner": NORMED, "prefix": "all"}),
    around("masked", {"mask": "*kernel"}, {"mask": matrices, "inner": NORMED}),
    Record("freeze", None, {"mask": "*kernel"}),
    around("train_only", {"mask": {"*kernel": True, "*": False}}, {"mask": matrices, "inner": NORMED}),
    Record("partition", None, {"transforms": TWO, "param_labels": LABELS}, {"transforms": TWO, "param_labels": named}),
    Record("by_shape", None, {"matrix": INNER, "other": gradtx.scale_by_rms()}),
    Record("as_matrices", None, {"inner": gradtx.scale_by_muon(), "dimension_numbers": None}, matrices=True),
    around("in_blocks", {"block_size": 3}),
    Record("graft", None, {"direction": INNER, "magnitude": gradtx.scale_by_rms(), "start": 2}),
    around("exponential_averaging", {"decay": 0.9}, {"decay": gradtx.linear_schedule(0.5, 0.95, 10), "debias": False}),
    around("polyak_averaging"),
    around("stochastic_weight_averaging", {"start": 1, "every": 2}),
    around("lookahead", {"sync_period": 2, "reset_state": True}, {"sync_period": 3, "slow_step_size": RATE}),
    around("schedule_free", {"learning_rate": RATE, "inner": gradtx.sgd(RATE), "weight_lr_power": 0.5}),
    Record(
        "schedule_free_sgd", None, {"weight_decay": 0.1, "learning_rate": gradtx.warmup_constant_schedule(0.0, 0.5, 3)}
    ),
    Record("schedule_free_adamw", None, {"learning_rate": 0.1}),
    around("stochastic_rounding"),
    around("kahan_summation"),
    around("master_weights"),
    around("loss_scaling", {"scale": 8.0}, {"scale": 8.0, "dynamic": False}),
    around("in_buckets"),
    around("pack", {"min_leaves": 2, "inner": gradtx.clip_by_global_norm(0.5) >> gradtx.adamw(RATE, mask="*kernel")}),
    around("sam"),
    around("split_real_and_imaginary"),
]
