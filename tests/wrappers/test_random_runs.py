"""Random params, random nestings of wrappers, random faults: no NaN reaches the params of a guarded run.

Every run has a `skip_nonfinite` somewhere: around everything, but for a few wrappers that may stand around it. What
gradtx refuses to nest must be refused by name. The runs are eager, with `jax.disable_jit`, which takes the branch of a
`cond` in Python: nothing is compiled but single operations. Each is traced once too, for the branches not taken.

More examples: `EXAMPLES=2000 pytest tests/wrappers/test_random_runs.py`.
"""

import collections
import os
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.wrappers.guards import has_failed
from tests.wrappers.programs import PROGRAMS, ROUNDING, STEERING, TREES, Leaf, RefusedError, built

EXAMPLES = int(os.environ.get("EXAMPLES", "40"))
STEPS, GOOD_AT_THE_END = 12, 6
tried: collections.Counter[str] = collections.Counter()


@pytest.fixture(scope="module", autouse=True)
def report(request):
    yield
    if not tried:
        return
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\nrandom guarded runs:", ", ".join(f"{tried[what]} {what}" for what in sorted(tried)))  # noqa: T201


# Gradients ------------------------------------------------------------------------------------------------------------

FAULTS = ("NaN", "inf", "-inf", "huge", "-huge", "denormal", "zeros", "a value that is NaN")


class Fault(NamedTuple):
    step: int
    what: str
    leaf: int
    whole: bool


PLACES = st.tuples(st.sampled_from([None, *FAULTS]), st.integers(0, 4), st.booleans())


def as_faults(places, calm):
    """At most one fault at each of the first steps; what is huge may drown all later steps, so not in calm runs."""
    faults = [Fault(step, *place) for step, place in enumerate(places)]
    return [fault for fault in faults if fault.what is not None and not (calm and "huge" in fault.what)]


FAULTY = st.builds(as_faults, st.tuples(*[PLACES] * (STEPS - GOOD_AT_THE_END)), st.booleans())


def faulty_number(what, dtype):
    """The number of this name in a dtype."""
    info = jnp.finfo(dtype)
    finite = {"huge": info.max, "-huge": info.min, "denormal": info.smallest_subnormal, "zeros": 0}
    return float(finite.get(what, what))


def gradient_dtype(leaf, wanted):
    return leaf.dtype if wanted is None or jnp.issubdtype(leaf.dtype, jnp.complexfloating) else jnp.dtype(wanted)


def gradients(params, faults, wanted, seed):
    """One gradient for each step; of another dtype than the params, if wanted."""
    generator = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(params)
    for step in range(STEPS):
        values = []
        for index, leaf in enumerate(leaves):
            dtype = gradient_dtype(leaf, wanted)
            value = np.asarray(jnp.asarray(generator.normal(size=leaf.shape)).astype(dtype)).copy()
            for fault in faults:
                if fault.what in FAULTS[:-1] and (fault.step, fault.leaf % len(leaves)) == (step, index):
                    place = slice(None) if fault.whole else slice(0, 1)
                    value.reshape(-1)[place] = faulty_number(fault.what, dtype)
            values.append(jnp.asarray(value))
        yield jax.tree.unflatten(structure, values)


def pulled(params):
    """A gradient at any params, for those who ask for one."""
    return jax.tree.map(lambda w: (w.astype(w.dtype) / 2).astype(w.dtype), params)


def all_finite(tree):
    return all(np.isfinite(np.asarray(leaf).astype(np.complex128)).all() for leaf in jax.tree.leaves(tree))


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# The law --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:gradtx.partition. no leaf has the label")
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # a failing run is short enough to be read
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    TREES, PROGRAMS, FAULTY, st.sampled_from([None, None, "float32", "bfloat16", "float16"]), st.integers(0, 99)
)
def test_no_nan_reaches_the_params_of_a_guarded_run(tree, program, faults, wanted, seed):
    try:
        tx = program.build()
    except RefusedError:
        tried["refused by name"] += 1
        return
    if any(name in ROUNDING for name in program.outside):  # they round what the guard has let pass
        faults = [fault for fault in faults if "huge" not in fault.what]
    double = any(leaf.dtype == "float64" for leaf in jax.tree.leaves(tree, is_leaf=lambda n: isinstance(n, Leaf)))
    with jax.enable_x64(double):
        params = built(tree, seed)
        try:
            traced(tx, params, next(gradients(params, (), wanted, seed)))
        except TypeError as error:
            check_refused_for_complex(str(error))
            tried["refused for complex params"] += 1
            return
        tried["tried"] += 1
        tried["steps skipped"] += guarded_run(tx, program, params, faults, wanted, seed)


def check_refused_for_complex(message):
    assert message.startswith("gradtx."), message
    assert "complex" in message, message


def extra_of(tx, value=0.7):
    """The extra arguments that a transform takes."""
    given = {"value": jnp.float32(value), "grad_fn": pulled}
    return {name: value for name, value in given.items() if name in tx.extra_args}


def traced(tx, params, gradient):
    """A step under jit, where both branches of each `cond` are looked at: the state stays as it is made."""
    state = jax.eval_shape(tx.init, params)
    _, new = jax.eval_shape(lambda g, s, p: tx.update(g, s, p, **extra_of(tx)), gradient, state, params)
    assert kinds(new) == kinds(state)


def guarded_run(tx, program, params, faults, wanted, seed):
    state, skipped, moved = tx.init(params), 0, False
    bad_values = {fault.step for fault in faults if fault.what == FAULTS[-1]}
    for number, gradient in enumerate(gradients(params, faults, wanted, seed)):
        extra = extra_of(tx, np.nan if number in bad_values else 0.7)
        with jax.disable_jit():
            updates, new_state = tx.update(gradient, state, params, **extra)
            new = gradtx.apply_updates(params, updates)
        assert kinds(new_state) == kinds(state)
        assert kinds(new) == kinds(params)
        assert all_finite(new), (number, updates)
        if not program.outside:
            assert all_finite(new_state), number
        seen = [g for g in jax.tree.leaves(gradient) if program.guards(g)]
        bad = not all_finite(seen) or number in bad_values
        if bad and not any(name in (*STEERING, "kahan_summation") for name in program.outside):
            assert gradtx.tree_equal(new, params), f"step {number} changed the params"
        skipped += bad
        moved |= number >= STEPS - GOOD_AT_THE_END and not gradtx.tree_equal(new, params)
        params, state = new, new_state
    huge = any("huge" in fault.what for fault in faults)
    visible = [leaf for leaf in jax.tree.leaves(params) if program.trains(leaf) and leaf.dtype.itemsize >= 4]
    if visible and not huge and program.waits <= GOOD_AT_THE_END and not has_failed(state):
        tried["of them moved on"] += 1
        assert moved, "the good steps at the end change nothing"
    return skipped


# Finite, until it is rounded or added ---------------------------------------------------------------------------------


@pytest.mark.parametrize("remedy", [lambda inner: inner, *(getattr(gradtx, name) for name in ROUNDING)])
@pytest.mark.parametrize(
    ("params", "gradients", "size", "rate"),
    [
        ("float16", "float32", 1e6, 1.0),  # the params would be infinite
        ("float16", "float16", 6e4, 1.0),  # so they would be after the second step
        ("float32", "float16", 6e4, 2.0),  # the update would be, in the gradients' dtype
        ("float32", "bfloat16", 3.38e38, 1.006),
        ("float32", "float32", 3e38, 0.9),
    ],
)
def test_an_update_that_is_too_large_for_the_params_or_its_dtype_leaves_them_finite(
    params, gradients, size, rate, remedy
):
    tx = gradtx.skip_nonfinite(remedy(gradtx.sgd(rate)), 9)
    weights = jnp.full(2, 5, params)
    state = tx.init(weights)
    for sign in (1, 1, 1, -1, -1, 1, 1, 1):
        updates, state = tx.update(jnp.full(2, sign * size, gradients), state, weights)
        weights = gradtx.apply_updates(weights, updates)
        assert weights.dtype == params
        assert all_finite((weights, state))
