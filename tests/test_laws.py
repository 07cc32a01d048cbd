"""Every transform obeys the laws of `gradtx.testing`.

What is asked of a transform follows from what it is:

- one with a formula of its own (`scale_by_rms`): every law of its usual form; of a variant with other code, what that
  code can break.
- a named method (`adam`) is a composition, and is asked what composing can break: its expansion, its texts and copies,
  its dtypes, numbers that are traced or scheduled.
- a wrapper (`skip_nonfinite`): all but what follows from the laws of what is inside.

`pytest -m thorough` asks every law of everything, on every instruction set (`tests/test_machines.py`).
"""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import testing
from gradtx.core.config import from_config
from gradtx.core.elementary import Named
from gradtx.core.record import children
from gradtx.core.transform import Transform
from tests.records import RECORDS, SCHEDULES, Scheduled
from tests.records.wrappers import FUNCTIONS
from tests.running import slope, transform

# A matrix whose rows 8 devices divide, and a scalar.
PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32)),
    "temperature": jnp.float32(0.3),
}


ONE_LEAF = {"kernel": PARAMS["kernel"]}
MATRICES = ONE_LEAF | {"square": jnp.asarray(np.random.default_rng(4).normal(size=(8, 8)).astype(np.float32))}


def sampled(params, key):
    """A gradient at any params, at labels drawn with a key."""
    return jax.tree.map(lambda w: w + jax.random.normal(key, (), w.dtype), params)


def loss(params):
    """A loss whose gradient is `slope`: a hill on either side of a valley."""
    parts = [2 * w * jnp.arctan(w) - jnp.log1p(w**2) - w**2 / 2 for w in jax.tree.leaves(params)]
    return sum((jnp.sum(jnp.real(part)).astype(jnp.float32) for part in parts), jnp.float32(0))


def residuals(params):
    """A curved residual for each param."""
    return jax.tree.map(lambda w: w + w**2 / 4 - jnp.asarray(0.3, w.dtype), params)


EXTRA = {
    "grad_fn": jax.tree_util.Partial(slope),
    "grad": testing.AtParams(slope),
    "value_fn": jax.tree_util.Partial(loss),
    "residual_fn": jax.tree_util.Partial(residuals),
    "sampled_grad_fn": jax.tree_util.Partial(sampled),
    "value": jnp.float32(0.7),
    "max_logits": jnp.full(1, 150.0),
}


def extra_of(tx):
    """The extra arguments that a transform takes."""
    extra = {name: value for name, value in EXTRA.items() if name in tx.facts.extra}
    return extra | ({"value": testing.AtParams(loss)} if "value_fn" in extra else {})


# Fields of the state that are meant to have fewer bits: stored low, of the params' dtype, or numbers for a logger.
LOWER = ("mu", "nu", "slow", "accumulated", "compensation", "loss_scale", "metrics", "initial")

OF_VALUES = {"configs_round_trip", "pickles_round_trip", "repr_is_code"}
OF_COMPOSITIONS = OF_VALUES | {
    "constant_schedule_is_constant",
    "dtypes_stay",
    "expansion_is_equal",
    "integers_are_refused",
    "state_is_as_declared",
}
OF_OTHER_CODE = OF_VALUES | {"dtypes_stay", "hypergradients_are_finite"}
OF_OTHER_COMPOSITIONS = OF_VALUES | {"expansion_is_equal"}
# Asked of one of several that share all code but a rule.
OF_SHARED_CODE = {
    "constant_schedule_is_constant",
    "donation_is_safe",
    "eager_is_jit",
    "empty_leaves_pass",
    "expansion_is_equal",
    "vmap_is_loop",
}
# That each part is compiled, scanned, mapped and donated as it is looped is asked of the parts; of each kind of wrapper
# in tests/wrappers.
NOT_OF_WRAPPERS = {
    "compiles_once",
    "donation_is_safe",
    "eager_is_jit",
    "passed_is_closed_over",
    "scan_is_loop",
    "vmap_is_loop",
}
# What concerns several leaves, of a transform that works on each element by itself, or on each matrix: the others are
# asked of one leaf.
OF_SEVERAL_MATRICES = {"reads_what_it_says"}
OF_SEVERAL_LEAVES = OF_SEVERAL_MATRICES | {"dtypes_stay", "empty_leaves_pass", "integers_are_refused"}
UNDER_CHECKIFY_ONLY = OF_VALUES | {
    "dtypes_stay",
    "empty_leaves_pass",
    "expansion_is_equal",
    "integers_are_refused",
    "reads_what_it_says",
}
THOROUGH = os.environ.get("GRADTX_LAWS") == "all"


def forms(record):
    """The transforms of a record: its usual form, then one for each other choice of arguments that are no numbers."""
    seen = set()
    for arguments in (*record.variants, *record.laws):
        tx = transform(record.name, arguments)
        code = jax.tree.structure(tx)
        if code not in seen:
            yield tx, arguments
        seen.add(code)


def is_wrapper(tx):
    return any(isinstance(child, Transform) for _, child in children(tx.arguments))


def asked(law, tx, usual):
    """Whether a law is asked of a transform in the plain run."""
    if isinstance(tx, Named):
        return law in (OF_COMPOSITIONS if usual else OF_OTHER_COMPOSITIONS)
    if not usual:
        return law in OF_OTHER_CODE
    if RECORDS[tx.name].alike and law in OF_SHARED_CODE:
        return False
    return not (is_wrapper(tx) and law in NOT_OF_WRAPPERS)


def cannot_hold(law, tx):
    """Why a law cannot hold, or None."""
    if law == "configs_round_trip" and any(name in repr(tx) + repr(tx.arguments) for name in FUNCTIONS):
        return "JSON holds no functions"
    if law == "constant_schedule_is_constant" and tx.name == "tunable":
        return "its state names the hyperparameters, those of a schedule differently"
    if law == "hypergradients_are_finite" and tx.facts.extra & {"value_fn", "residual_fn"}:
        return "a loop that ends by itself has no derivative in reverse"
    if tx.name == "checked" and law not in UNDER_CHECKIFY_ONLY:
        return "compiles under checkify only"
    return None


def cases(everything):
    for record in RECORDS.values():
        for number, (tx, arguments) in enumerate(forms(record)):
            form = "-".join([record.name, *(f"{key}={_short(value)}" for key, value in arguments.items() if number)])
            for law in testing.LAWS:
                if cannot_hold(law, tx) is None and (everything or asked(law, tx, number == 0)):
                    yield pytest.param(law, tx, id=f"{form}-{law}")


def _short(value):
    if isinstance(value, Scheduled):
        return str(value)
    return getattr(value, "name", None) or getattr(value, "__name__", None) or str(value)[:30]


@pytest.mark.parametrize(("law", "tx"), list(cases(THOROUGH)))
def test_transform_obeys_law(law, tx):
    extra = extra_of(tx)
    names = {"repr_is_code": {"names": FUNCTIONS}, "dtypes_stay": {"lower": LOWER}}
    if RECORDS[tx.name].matrices:
        params = MATRICES if law in OF_SEVERAL_MATRICES else ONE_LEAF
    else:
        alone = tx.facts.reads == "element" and law not in OF_SEVERAL_LEAVES and not is_wrapper(tx)
        params = ONE_LEAF if alone else PARAMS
    testing.LAWS[law](tx, params, **names.get(law, {}), **extra)


def statistics(tx):
    """What an elementary transform keeps for each element, by name."""
    return {name: field for (*_, name), field in tx.declared.items() if field.storable}


def with_statistics():
    """The transforms with averages or maxima of their own."""
    for record in RECORDS.values():
        for tx, arguments in forms(record):
            if not (isinstance(tx, Named) or is_wrapper(tx)) and statistics(tx):
                yield pytest.param(tx, id=f"{record.name}-{arguments}")


@pytest.mark.parametrize("tx", list(with_statistics()))
def test_statistics_are_declared_nonnegative_if_they_are(tx):
    extra = {name: value for name, value in extra_of(tx).items() if name in tx.facts.required}
    states = testing.runs.trajectory(tx, ONE_LEAF, testing.gradients(ONE_LEAF, 3), extra)["state"][tx.name]
    declared = {name: field.nonnegative for name, field in statistics(tx).items()}
    declared = {name: declared[name] for name in declared if states[name]["kernel"].any()}  # steps that are kept are 0
    assert {name: (states[name]["kernel"] >= 0).all() for name in declared} == declared


def test_every_factory_has_a_record():
    ours = {name for name, factory in gradtx.registry.items() if factory.node.__module__.startswith("gradtx.")}
    elsewhere = {"foreign", "custom_schedule"}  # somebody else's object, somebody's function: tests/core
    assert ours == set(RECORDS) | {scheduled.name for scheduled in SCHEDULES} | elsewhere


ONE_OF_EACH = list({each.name: each for each in SCHEDULES}.values())


@pytest.mark.parametrize("scheduled", ONE_OF_EACH, ids=lambda each: each.name)
def test_schedule_is_a_value(scheduled):
    """Round trips; passed and mapped as a value it is what it is alone; compiled once."""
    value = (
        gradtx.join_schedules([p.of(gradtx) for p in scheduled.arguments[0]], scheduled.arguments[1])
        if (scheduled.name == "join_schedules")
        else scheduled.of(gradtx)
    )
    for copy in (
        pickle.loads(pickle.dumps(value)),
        eval(repr(value), dict(gradtx.registry)),
        from_config(value.to_config()),
    ):
        assert copy == value
        assert hash(copy) == hash(value)
    counts = jnp.arange(60)
    compiled = jax.jit(lambda value, counts: jax.vmap(value)(counts))
    passed = compiled(value, counts)
    assert passed.dtype == np.float32
    assert np.isfinite(passed).all()
    np.testing.assert_allclose([value(count) for count in counts[:12:4]], passed[:12:4], rtol=1e-6, atol=1e-7)
    compiled(copy, counts)
    assert compiled._cache_size() == 1
