"""Every registered transform and schedule of gradtx as a value, for the laws.

The registry says what there is, the annotations say what a required hyperparameter may be; a table gives the few
arguments that neither can know, and the variants with another equation.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.core.annotations import Kind

# A matrix whose rows 8 devices divide, and a scalar.
PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32)),
    "temperature": jnp.float32(0.3),
}
MASK = {"kernel": True, "temperature": False}
KERNELS = {"*/kernel": True, "*": False}
LABELS = {"*/kernel": "matrices", "*": "others"}


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def named(path, leaf):
    return "matrices" if leaf.ndim == 2 else "others"


def halves(updates, params):
    return jax.tree.map(lambda u: u / 2, updates)


def falling(count):
    return 0.1 / (1 + count)


def pulled(params):
    """A gradient at any params."""
    return jax.tree.map(lambda w: 0.5 * w + 1, params)


def even(count):
    return count % 2 == 0


def one_then_two(made):
    return jnp.where(made < 1, 1, 2)


NAMES = {
    "even": even,
    "one_then_two": one_then_two,
    "matrices": matrices,
    "named": named,
    "halves": halves,
    "falling": falling,
}
DECAY = gradtx.linear_schedule(0.5, 0.95, 10)
RATE = gradtx.inverse_time_schedule(0.1, 0.3)


# What the annotations cannot say --------------------------------------------------------------------------------------

POSITIONAL: dict[str, tuple[Any, ...]] = {
    "chain": (gradtx.clip(0.5), gradtx.adam(0.1)),
    "join": (gradtx.scale_by_momentum(), gradtx.scale_by_infinity_norm()),
    "accumulate": (gradtx.adam(0.1), 2),
    "conditionally": (gradtx.adam(0.1), even),
    "skip_nonfinite": (gradtx.adam(0.1), 3),
    "masked": (gradtx.clip(0.5) >> gradtx.adam(0.1), MASK),
    "freeze": (MASK,),
    "train_only": (gradtx.clip_by_global_norm(0.5) >> gradtx.sgd(0.1, 0.9), MASK),
    "partition": ({"matrices": gradtx.adam(0.1), "others": gradtx.sgd(RATE, 0.9)}, LABELS),
    "custom_schedule": (falling,),
    "stateless": (halves,),
    "linear_schedule": (1.0, 0.1, 20),
    "polynomial_schedule": (1.0, 0.1, 2.0, 20),
    "exponential_decay": (1.0, 10, 0.5),
    "cosine_decay_schedule": (1.0, 40),
    "warmup_constant_schedule": (0.1, 1.0, 10),
    "warmup_cosine_decay_schedule": (0.1, 1.0, 10, 40),
    "warmup_exponential_decay_schedule": (0.1, 1.0, 10, 8, 0.5),
    "warmup_stable_decay_schedule": (1.0, 10, 20, 15),
    "inverse_sqrt_schedule": (1.0, 10),
    "piecewise_constant_schedule": (1.0, {10: 0.1, 20: 0.5}),
    "piecewise_interpolate_schedule": ("cosine", 1.0, {10: 0.1, 20: 0.5}),
    "linear_onecycle_schedule": (50, 1.0),
    "cosine_onecycle_schedule": (50, 1.0),
    "sgdr_schedule": (
        ({"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20, "end_value": 0.1},),
    ),
    "stochastic_weight_averaging": (gradtx.adam(0.1), 1, 2),
    "join_schedules": ((gradtx.linear_schedule(0.0, 1.0, 10), gradtx.constant_schedule(0.1)), (10,)),
}

# Extra arguments that an update must be given, in a form that jit passes.
EXTRA = {"grad_fn": jax.tree_util.Partial(pulled), "value": jnp.float32(0.7)}

ELSEWHERE = {"foreign": "records somebody else's object: test_compositions.py"}

# Each gives another equation. (The debiased variance of a first step is the rounding error of zero, where no two ways
# to compute agree: it is given an initial scale.)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "accumulate": [
        {"every": one_then_two, "use_grad_mean": False, "skip_nonfinite": True},
        {"state_dtype": "bfloat16"},
    ],
    "loss_scaling": [{"dynamic": False}],
    "monitor": [{"inner": gradtx.clip_by_global_norm(0.5) >> gradtx.sgd(RATE, 0.9), "prefix": "all"}],
    "scale_by_momentum": [
        {"nesterov": True},
        {"form": "average", "nesterov": True},
        {"form": "sum", "nesterov": True, "dampening": 0.3},
        {"decay": DECAY, "nesterov": True},
    ],
    "ema": [{"debias": False}, {"decay": 0.0}],
    "scale_by_adagrad": [{"initial_accumulator_value": 0.0, "eps": 0.0, "eps_in_sqrt": False}],
    "scale_by_rms": [
        {"decay": 0.0},
        {"debias": False, "eps_in_sqrt": True, "eps": 0.0, "initial_scale": 0.1},
        {"centered": True, "initial_scale": 0.1},
        {"eps_hat": True, "maximum": "raw"},
        {"maximum": "corrected", "eps_root": 1e-6},
        {"maximum": "raw", "decay": DECAY},
    ],
    "scale_by_infinity_norm": [{"eps_in_max": False, "eps": 0.0}],
    "scale_by_adam": [{"nesterov": True, "eps_root": 1e-6}],
    "scale_by_learning_rate": [{"learning_rate": RATE, "flip_sign": False}],
    "add_decayed_weights": [
        {"weight_decay": 0.1, "mask": MASK},
        {"weight_decay": 0.1, "mask": matrices},
        {"weight_decay": 0.1, "cautious": True, "flip_sign": True},
        {"weight_decay": 0.1, "mask": "*kernel", "toward_initial": True},
    ],
    "adaptive_grad_clip": [{"axis": ()}],
    "clip_by_block_rms": [{"threshold": 100.0}],
    "clip_by_global_norm": [{"max_norm": 100.0}],
    "clip_by_leaf_norm": [{"max_norm": 2.0}],
    "clip_by_percentile": [{"percentile": 100.0, "window": 2}],
    "centralize": [{"output_axis": -1}],
    "scale_by_trust_ratio": [{"min_norm": 1.0, "eps": 1e-3, "mask": "*kernel"}],
    "reduce_on_plateau": [{"patience": 1, "cooldown": 1, "accumulation_size": 2, "min_scale": 0.02}],
    "lamb": [{"weight_decay": 0.1, "mask": matrices, "learning_rate": RATE}],
    "lars": [{"weight_decay": 0.1, "mask": MASK, "nesterov": True}],
    "sgd": [
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.3, "lr_inside_momentum": True, "learning_rate": RATE},
    ],
    "adagrad": [{"eps_in_sqrt": False}],
    "rmsprop": [
        {"centered": True, "momentum": 0.9, "nesterov": True},
        {"bias_correction": True, "initial_scale": 1.0, "momentum": 0.9, "lr_inside_momentum": False},
    ],
    "adadelta": [{"weight_decay": 0.1, "mask": MASK}],
    "adam": [
        {"eps_hat": True},
        {"state_dtype": "bfloat16"},
        {"learning_rate": RATE, "b1": DECAY, "b2": gradtx.linear_schedule(0.9, 0.999, 20)},
        {"learning_rate": jnp.float32(0.1), "b2": jnp.float32(0.99)},
    ],
    "adamw": [{"mask": matrices, "weight_decay": gradtx.linear_schedule(0.1, 0.0, 10)}],
    "amsgrad": [{"maximum": "raw", "eps_hat": True}],
    "adamax": [{"eps_in_max": False}],
    "nadam": [{"momentum_decay": 4e-3}],
    "nadamw": [{"momentum_decay": 1.0, "mask": MASK}],
    "chain": [
        {"stages": (gradtx.add_decayed_weights(0.1), gradtx.clip(1.0) + gradtx.scale_by_rms(), gradtx.clip(2.0))}
    ],
    "exponential_averaging": [{"debias": False}, {"decay": DECAY}],
    "lookahead": [{"sync_period": 2, "reset_state": True}, {"sync_period": 3, "slow_step_size": RATE}],
    "schedule_free": [{"learning_rate": RATE, "inner": gradtx.sgd(RATE), "weight_lr_power": 0.5}],
    "schedule_free_sgd": [{"weight_decay": 0.1, "learning_rate": gradtx.warmup_constant_schedule(0.0, 0.5, 3)}],
    "masked": [{"mask": "*/kernel"}, {"mask": ("*/k*", "*nel")}, {"mask": matrices, "inner": gradtx.sgd(RATE, 0.9)}],
    "freeze": [{"mask": KERNELS}, {"mask": matrices}],
    "train_only": [{"mask": KERNELS}, {"mask": matrices, "inner": gradtx.adamw(RATE, mask="*")}],
    "partition": [
        {"param_labels": named},
        {"transforms": {"matrices": gradtx.masked(gradtx.adam(0.1), "*"), "others": gradtx.freeze("*")}},
    ],
    "in_buckets": [{"inner": gradtx.clip_by_global_norm(0.5) >> gradtx.sgd(RATE, 0.9)}],
    "pack": [
        {"inner": gradtx.clip_by_global_norm(0.5) >> gradtx.adamw(RATE, mask="*kernel"), "fewest": 2},
        {"inner": gradtx.lamb(0.1, weight_decay=0.1), "fewest": 2},
    ],
    "tunable": [{"inner": gradtx.clip(0.5) >> gradtx.adam(RATE)}],
}


# The entries ----------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    id: str
    value: Any

    @property
    def arguments(self) -> str:
        """All that it was called with, in words: functions by name."""
        return repr(self.value) + repr(self.value.arguments)


def required(parameter) -> Any:
    """A value for a required parameter, from its annotation."""
    if parameter.kind is Kind.TRANSFORM:
        return gradtx.adam(0.1)
    if parameter.kind is Kind.SCHEDULE:
        return gradtx.linear_schedule(-1.0, 1.0, 10)
    assert parameter.kind is Kind.HYPER, f"no value for the required {parameter.name}: add one to POSITIONAL"
    return next(value for value in (-0.5, 0.1, 0.9) if value in parameter.interval)


def entries(kind: Kind) -> list[Entry]:
    found = []
    for name, factory in sorted(gradtx.registry.items()):
        node = factory.node
        if node._kind is not kind or name in ELSEWHERE or not node.__module__.startswith("gradtx."):
            continue
        needed = [p for p in node._parameters if p.default is inspect.Parameter.empty]
        base = {} if name in POSITIONAL else {p.name: required(p) for p in needed}
        for variant in ({}, *VARIANTS.get(name, [])):
            positional = variant["stages"] if "stages" in variant else POSITIONAL.get(name, ())
            keywords = {} if "stages" in variant else base | variant
            if name not in ("chain", "join"):
                keywords, positional = dict(zip((p.name for p in node._parameters), positional)) | keywords, ()
            described = "-".join(f"{key}={_short(value)}" for key, value in variant.items())
            found.append(Entry("-".join(filter(None, [name, described])), factory(*positional, **keywords)))
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict | tuple | jax.Array):
        return type(value).__name__
    return getattr(value, "__name__", None) or getattr(value, "name", None) or str(value)


TRANSFORMS = entries(Kind.TRANSFORM)
SCHEDULES = entries(Kind.SCHEDULE)
