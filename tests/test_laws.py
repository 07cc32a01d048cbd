"""Every registered transform obeys every law of `gradtx.testing`.

The registry says what there is, the annotations say what a required hyperparameter may be; a table gives the few
arguments that neither can know, and the variants with another equation. A law that cannot hold for an entry is named
with its reason.
"""

import inspect
import os
import pickle
import platform
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import testing
from gradtx.core.annotations import Kind
from gradtx.core.config import from_config

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


# Where a law cannot hold, and where not to the bit --------------------------------------------------------------------

EAGER_LAWS = {
    "configs_round_trip",
    "dtypes_stay",
    "empty_leaves_pass",
    "expansion_is_equal",
    "integers_are_refused",
    "reads_what_it_says",
    "repr_is_code",
}


def exception(law: str, entry: Entry) -> str | None:
    """Why a law cannot hold for an entry, or None."""
    words = entry.arguments
    if law == "configs_round_trip" and any(name in words for name in NAMES):
        return "JSON holds no functions"
    if law in ("empty_leaves_pass", "integers_are_refused") and repr(MASK) in words:
        return "its mask is a tree like PARAMS, and the law changes the tree"
    if law == "constant_schedule_is_constant" and entry.value.name == "tunable":
        return "its state names the hyperparameters, those of a schedule differently"
    if law == "dtypes_stay" and "'toward_initial': True" in words:
        return "what it keeps are the params themselves, in their own dtype"
    if law not in EAGER_LAWS and entry.value.name == "checked":
        return "compiles under checkify only"
    return None


AVERAGING = ("exponential_averaging", "polyak_averaging", "stochastic_weight_averaging", "schedule_free")
BOUNDED = [name for name, law in testing.LAWS.items() if "ulps" in inspect.signature(law).parameters]


BRANCHING = ("accumulate", "conditionally", "loss_scaling", "skip_nonfinite")
# Fields of the state that are meant to have fewer bits: stored low, of the params' dtype, or numbers for a logger.
LOWER = ("mu", "nu", "accumulated", "compensation", "loss_scale", "metrics")


def extra_of(entry: Entry) -> dict[str, Any]:
    """The extra arguments that an entry's update must be given."""
    return {name: value for name, value in EXTRA.items() if name in entry.value.extra_args}


def options(law: str, entry: Entry) -> dict[str, Any]:
    """Names and bounds that an entry needs: twice what was measured; without fused multiply-adds, 0 (tested below)."""
    words = entry.arguments
    if law == "repr_is_code":
        return {"names": NAMES}
    if law == "dtypes_stay":
        return {"lower": LOWER}
    if law in BOUNDED and entry.value.name == "kahan_summation":
        return {"ulps": 1e9}  # it keeps the rounding error itself, of which a fused multiply-add makes another
    if law == "sweep_is_separate" and entry.value.name in BRANCHING:
        return {"ulps": 4}  # mapped over, a branch is a choice between two results, in which other products are fused
    if law == "passed_is_closed_over" and "_schedule(" in words:
        return {"ulps": 8}  # XLA fuses other products where the schedule's numbers are constants
    if law == "passed_is_closed_over" and entry.value.name in AVERAGING:
        return {"ulps": 4}  # w + lr u: the product of the step is fused with the sum that is averaged, or it is not
    if (
        law in ("passed_is_closed_over", "sweep_is_separate")
        and entry.value.name == "rmsprop"
        and "momentum=0.9" in words
    ):
        return {"ulps": 4}  # b m + lr u: which of the two products is fused with the sum is up to the compiler
    if law == "sweep_is_separate" and entry.value.name == "lars":
        return {"ulps": 4}  # b m + (c / norm) u, likewise
    if law == "sweep_is_separate" and "weight_decay=0.1" in words and entry.value.name == "adadelta":
        return {"ulps": 4}  # likewise g + wd w
    return {}


# A variant is another equation, and is asked what that could break. The ways of running it are asked of one entry of
# each transform; of every variant too with GRADTX_LAWS=all. Another version of JAX is asked a few laws only (.ci/run).
WAYS = ("compiles_once", "donation_is_safe", "sweep_is_separate", "vmap_is_loop", "resumed_is_uninterrupted")
FEW = (
    "compiles_once",
    "dtypes_stay",
    "eager_is_jit",
    "resumed_is_uninterrupted",
    "scan_is_loop",
    "sharded_is_replicated",
)
ASKED = os.environ.get("GRADTX_LAWS", "")
SHORT = ASKED == "few"


def is_asked(law: str, entry: Entry) -> bool:
    """Whether a law is run for an entry."""
    is_variant = entry.id != entry.value.name
    if SHORT:
        return law in FEW and not is_variant
    return ASKED == "all" or not (is_variant and law in WAYS)


CASES = [
    pytest.param(law, entry, id=f"{entry.id}-{law}")
    for entry in TRANSFORMS
    for law in testing.LAWS
    if exception(law, entry) is None and is_asked(law, entry)
]


@pytest.mark.parametrize(("law", "entry"), CASES)
def test_transform_obeys_law(law, entry):
    testing.LAWS[law](entry.value, PARAMS, **options(law, entry), **extra_of(entry))


def test_every_registered_factory_is_covered():
    covered = {entry.value.name for entry in TRANSFORMS + SCHEDULES} | set(ELSEWHERE)
    ours = {name for name, factory in gradtx.registry.items() if factory.node.__module__.startswith("gradtx.")}
    assert ours == covered


def test_every_hyperparameter_is_somewhere_a_schedule():
    """The law replaces every number by a schedule, so a number must be given somewhere."""
    for name, factory in gradtx.registry.items():
        ours = factory.__module__.startswith("gradtx.")  # other tests enter their own
        if not ours or factory.node._kind is not Kind.TRANSFORM or name in ELSEWHERE:
            continue
        values = [entry.value.arguments for entry in TRANSFORMS if entry.value.name == name]
        for parameter in factory.node._parameters:
            if parameter.kind is Kind.HYPER and parameter.name not in (
                "eps_root",
                "momentum_decay",
                "momentum",
                "weight_decay",
            ):
                assert any(arguments[parameter.name] is not None for arguments in values), (name, parameter.name)


# To the bit -----------------------------------------------------------------------------------------------------------

METHODS = {
    "sgd": lambda lr: gradtx.sgd(lr, 0.9, nesterov=True),
    "adagrad": gradtx.adagrad,
    "rmsprop": gradtx.rmsprop,
    "adadelta": gradtx.adadelta,
    "adam": gradtx.adam,
    "adamw": gradtx.adamw,
    "amsgrad": gradtx.amsgrad,
    "adamax": gradtx.adamax,
    "nadam": lambda lr: gradtx.nadam(lr, momentum_decay=4e-3),
    "nadamw": gradtx.nadamw,
    "lion": gradtx.lion,
    "signum": gradtx.signum,
}
ODD = {"a": (), "b": (1,), "c": (7,), "d": (3, 5), "e": (37,), "f": (64, 33)}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_sweep_of_8_learning_rates_is_8_optimizers_to_the_bit(method):
    """`vmap(method)(rates)`, eager and compiled, over leaves whose sizes leave every kind of tail to vector loops.

    All methods but RMSProp with momentum: in `b m + k u`, which product is fused with the sum is up to
    the compiler; there the law `sweep_is_separate` allows 4 ulps.
    """
    generator = np.random.default_rng(0)
    random = lambda: {k: jnp.asarray(generator.normal(size=s).astype(np.float32)) for k, s in ODD.items()}  # noqa: E731
    params, grads, rates = random(), [random() for _ in range(3)], jnp.logspace(-4, 0, 8, dtype=np.float32)

    def step(tx, gradient, state):
        return tx.update(gradient, state, params)

    mapped = jax.vmap(step, in_axes=(0, None, 0))
    for separate, together in ((step, mapped), (jax.jit(step), jax.jit(mapped))):
        txs = jax.vmap(method)(rates)
        states = jax.vmap(lambda tx: tx.init(params))(txs)
        alone = [(method(rate), method(rate).init(params)) for rate in rates]
        for gradient in grads:
            updates, states = together(txs, gradient, states)
            for index, (tx, state) in enumerate(alone):
                expected, state = separate(tx, gradient, state)
                alone[index] = tx, state
                actual = jax.tree.map(lambda leaf, index=index: leaf[index], (updates, states))
                assert gradtx.tree_equal(actual, (expected, state)), (tx, index)


WITHOUT_FMA = """
import sys
from test_laws import BOUNDED, PARAMS, TRANSFORMS, exception, extra_of
from gradtx import testing
part, variants = int(sys.argv[1]), sys.argv[2] == "all"
chosen = [entry for entry in TRANSFORMS if variants or entry.id == entry.value.name]
for entry in chosen[part::2]:
    for law in BOUNDED:
        if law != "sharded_is_replicated" and exception(law, entry) is None:
            ulps = 0 if entry.value.reads == "element" else 4  # in which order a leaf is summed is up to the compiler
            testing.LAWS[law](entry.value, PARAMS, ulps=ulps, **extra_of(entry))
"""


@pytest.mark.skipif(SHORT, reason="about the compiler's products, not the version of JAX")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flag names x86's instruction sets")
@pytest.mark.parametrize("part", [0, 1])
def test_laws_hold_to_the_bit_where_the_compiler_has_no_fused_multiply_add(part):
    """The only difference that `ulps` allows is the fused multiply-add: without it there is none, but for sums.

    For one entry of each transform; for the variants too (4 minutes more) with GRADTX_LAWS=all.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    command = [sys.executable, "-c", WITHOUT_FMA, str(part), ASKED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda entry: entry.id)
def test_schedule_is_a_value(entry):
    """Round trips; the same compiled, passed, mapped and in each precision; compiled once."""
    value = entry.value
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(pickle.loads(pickle.dumps(value))) == hash(value)
    assert eval(repr(value), dict(gradtx.registry) | NAMES) == value
    if entry.id != "custom_schedule":
        assert from_config(value.to_config()) == value
    counts = jnp.arange(60)
    eager = np.stack([value(count) for count in counts[:12]])
    compiled = jax.jit(lambda value, count: value(count))
    passed = np.stack([compiled(value, count) for count in counts])
    assert np.isfinite(passed).all()
    assert passed.dtype == np.float32
    np.testing.assert_allclose(passed[:12], eager, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(value)(counts), passed, rtol=1e-6, atol=1e-7)
    assert compiled._cache_size() == 1
    with jax.enable_x64(True):
        assert value.at(3, jnp.float64).dtype == jnp.float64
        np.testing.assert_allclose(value.at(3, jnp.float64), passed[3], rtol=1e-5, atol=1e-7)
