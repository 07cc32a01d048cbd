"""Every registered transform obeys every law of `gradtx.testing`.

`tests/law_entries.py` has them all. A law that cannot hold for an entry is named with its reason.
"""

import inspect
import os
import pickle
import platform
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import testing
from gradtx.core.annotations import Kind
from gradtx.core.config import from_config
from tests.law_entries import ELSEWHERE, EXTRA, MASK, NAMES, PARAMS, SCHEDULES, TRANSFORMS, Entry

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
from gradtx import testing
from tests.law_entries import PARAMS, TRANSFORMS
from tests.test_laws import BOUNDED, exception, extra_of
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
        "PYTHONPATH": os.pathsep.join(sys.path),
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
