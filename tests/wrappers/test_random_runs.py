"""Random params, random nestings of wrappers, random faults: no NaN reaches the params of a guarded run.

Every run has a `skip_nonfinite` somewhere: around everything, but for a few wrappers that may stand around it. What
gradtx refuses to nest must be refused by name. The runs are eager, with `jax.disable_jit`, which takes the branch of a
`cond` in Python: nothing is compiled but single operations. Each is traced once too, for the branches not taken.

More examples: `EXAMPLES=2000 pytest tests/wrappers/test_random_runs.py`.
"""

import collections
import functools
import os
from typing import Any, NamedTuple

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.core.annotations import Kind
from gradtx.wrappers.guards import has_failed

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


# Params ---------------------------------------------------------------------------------------------------------------


@chex.dataclass(frozen=True)
class Layer:
    kernel: Any
    bias: Any


class Leaf(NamedTuple):
    """What a leaf of the params is to be; not a leaf of JAX, so trees of these are walked by hand."""

    shape: tuple[int, ...]
    dtype: str


LEAVES = st.builds(
    Leaf,
    st.sampled_from([(), (1,), (3,), (2, 3)]),
    st.sampled_from(["float32", "bfloat16", "float16", "float32", "bfloat16", "float16", "float64", "complex64"]),
)
KEYS = st.sampled_from(["a", "b", "kernel"])


def branches(children):
    return st.one_of(
        st.dictionaries(KEYS, children, min_size=1, max_size=3),
        st.tuples(children, children),
        st.lists(children, min_size=1, max_size=2),
        st.builds(lambda kernel, bias: Layer(kernel=kernel, bias=bias), children, children),
    )


# None instead of all params means that they are missing.
TREES = LEAVES | branches(st.recursive(LEAVES | LEAVES | LEAVES | st.none(), branches, max_leaves=4))


def built(tree, seed):
    """The params: normal numbers away from 0."""
    generator = np.random.default_rng(seed)

    def leaf(spec):
        values = generator.normal(size=spec.shape)
        return jnp.asarray(values + np.sign(values)).astype(spec.dtype)

    return jax.tree.map(leaf, tree, is_leaf=lambda node: isinstance(node, Leaf))


# Transforms -----------------------------------------------------------------------------------------------------------

RATES = {"lars": 5.0, "adadelta": 1.0}
METHODS = {
    name: functools.partial(factory, learning_rate=RATES.get(name, 0.1))
    for name, factory in sorted(gradtx.registry.items())
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
}


def arrays(path, leaf):
    return leaf.ndim > 0


def everything(path, leaf):
    return True


def kind(path, leaf):
    return "arrays" if leaf.ndim else "scalars"


def two_groups(inner):
    return gradtx.partition({"arrays": inner, "scalars": gradtx.sgd(0.1)}, kind)


class Around(NamedTuple):
    """Something around an optimizer: how it is built, which leaves it moves, how many steps it may wait."""

    build: Any
    trains: Any = everything
    waits: int = 1


# Around the guard nothing may act that lets gradients pass it by (`masked`), or makes two of one step (`accumulate`
# would run the guard on sums).
OUTSIDE = {
    "monitor": Around(gradtx.monitor),
    "tunable": Around(gradtx.tunable),
    "pack": Around(lambda inner: gradtx.pack(inner, fewest=2)),
    "train_only": Around(lambda inner: gradtx.train_only(inner, arrays), arrays),
    "exponential_averaging": Around(lambda inner: gradtx.exponential_averaging(inner, 0.9)),
    "polyak_averaging": Around(gradtx.polyak_averaging),
    "loss_scaling": Around(lambda inner: gradtx.loss_scaling(inner, 8.0, period=3)),
    "stochastic_rounding": Around(gradtx.stochastic_rounding),
    "kahan_summation": Around(gradtx.kahan_summation),
    "master_weights": Around(gradtx.master_weights),
    "lookahead": Around(lambda inner: gradtx.lookahead(inner, 2)),
    "schedule_free": Around(lambda inner: gradtx.schedule_free(inner, 0.1)),
}
INSIDE = OUTSIDE | {
    "accumulate": Around(lambda inner: gradtx.accumulate(inner, 2), waits=2),
    "accumulate finite ones": Around(lambda inner: gradtx.accumulate(inner, 3, skip_nonfinite=True), waits=3),
    "accumulate in bfloat16": Around(lambda inner: gradtx.accumulate(inner, 2, state_dtype=jnp.bfloat16), waits=2),
    "stochastic_weight_averaging": Around(lambda inner: gradtx.stochastic_weight_averaging(inner, 1, 2)),
    "lookahead anew": Around(lambda inner: gradtx.lookahead(inner, 3, reset_state=True)),
    "masked": Around(lambda inner: gradtx.masked(inner, arrays)),
    "train all": Around(lambda inner: gradtx.train_only(inner, everything)),
    "partition": Around(two_groups),
    "conditionally": Around(lambda inner: gradtx.conditionally(inner, lambda count: count % 2 == 0)),
    "skip_nonfinite": Around(lambda inner: gradtx.skip_nonfinite(inner, 2)),
    "sam": Around(gradtx.sam),
    "static loss_scaling": Around(lambda inner: gradtx.loss_scaling(inner, 8.0, dynamic=False)),
    "clip": Around(lambda inner: gradtx.clip(1.0) >> inner),
    "clip_by_global_norm": Around(lambda inner: gradtx.clip_by_global_norm(1.0) >> inner),
    "clip_by_leaf_norm": Around(lambda inner: gradtx.clip_by_leaf_norm(1.0) >> inner),
    "clip_by_block_rms": Around(lambda inner: gradtx.clip_by_block_rms(1.0) >> inner),
    "clip_by_percentile": Around(lambda inner: gradtx.clip_by_percentile(50.0, window=3) >> inner),
    "adaptive_grad_clip": Around(lambda inner: gradtx.adaptive_grad_clip(0.1) >> inner),
    "centralize": Around(lambda inner: gradtx.centralize() >> inner),
    "zero_nonfinite": Around(lambda inner: gradtx.zero_nonfinite() >> inner),
    "add_noise": Around(lambda inner: gradtx.add_noise(0.01, 0.5) >> inner),
    "add_decayed_weights": Around(lambda inner: gradtx.add_decayed_weights(0.1) >> inner),
    "scale behind": Around(lambda inner: inner >> gradtx.scale(0.5)),
    "reduce_on_plateau": Around(lambda inner: inner >> gradtx.reduce_on_plateau(0.5, patience=2)),
}
PLACED = (
    "loss_scaling",
    "stochastic_rounding",
    "kahan_summation",
    "master_weights",
    "accumulate",
)  # what decides who stands where
STEERING = ("lookahead", "schedule_free")  # they move the params at steps at which what is inside makes none
ROUNDING = ("stochastic_rounding", "kahan_summation", "master_weights")


class Program(NamedTuple):
    """An optimizer as drawn; `outside` and `inside` the guard, outermost first."""

    method: str
    outside: tuple[str, ...]
    inside: tuple[str, ...]

    def build(self):
        tx = METHODS[self.method]()
        for name in reversed(self.inside):
            tx = wrap(INSIDE[name], tx)
        tx = wrap(Around(lambda inner: gradtx.skip_nonfinite(inner, 4)), tx)
        for name in reversed(self.outside):
            tx = wrap(OUTSIDE[name], tx)
        return tx

    @property
    def waits(self) -> int:
        return int(np.prod([INSIDE[name].waits for name in self.inside]))

    def trains(self, leaf) -> bool:
        around = [OUTSIDE[name] for name in self.outside] + [INSIDE[name] for name in self.inside]
        return all(each.trains("", leaf) for each in around)

    def guards(self, leaf) -> bool:
        """Whether the guard sees a leaf's gradient."""
        return all(OUTSIDE[name].trains("", leaf) for name in self.outside)


class RefusedError(Exception):
    """gradtx refuses to nest these."""


def wrap(around, inner):
    """The wrapper around a transform; a refusal names who refuses, and what."""
    try:
        return around.build(inner)
    except (TypeError, ValueError) as error:
        check_refusal(around.build(gradtx.sgd(0.1)).name, str(error))
        raise RefusedError from error


def nested(names, depth):
    """Some of the wrappers, outermost first; every depth as often as any other."""
    chosen = st.sampled_from(list(names))
    return st.integers(0, depth).flatmap(lambda size: st.tuples(*[chosen] * size))


def check_refusal(name, message):
    """Who refuses, what, and what to do."""
    assert message.startswith(f"gradtx.{name}: "), message
    assert any(placed in message.split(": ", 1)[1] for placed in PLACED) or "the leaves one by one" in message, message
    assert any(remedy in message for remedy in ("Put ", "put it around", "Keep one of the two")), message


PROGRAMS = st.builds(Program, st.sampled_from(list(METHODS)), nested(OUTSIDE, 2), nested(INSIDE, 4))


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
