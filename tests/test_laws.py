"""Every registered transform obeys every law of `gradtx.testing`.

`tests/law_entries.py` has them all. A law that cannot hold for an entry is named with its reason.
"""

import inspect
import os
import pickle
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


# Fields of the state that are meant to have fewer bits: stored low, of the params' dtype, or numbers for a logger.
LOWER = ("mu", "nu", "accumulated", "compensation", "loss_scale", "metrics")


def extra_of(entry: Entry) -> dict[str, Any]:
    """The extra arguments that an entry's update must be given."""
    return {name: value for name, value in EXTRA.items() if name in entry.value.extra_args}


def options(law: str, entry: Entry) -> dict[str, Any]:
    """Names that a law needs to know."""
    return {"repr_is_code": {"names": NAMES}, "dtypes_stay": {"lower": LOWER}}.get(law, {})


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
