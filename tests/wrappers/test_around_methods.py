"""Every wrapper around a method of each kind, and which wrapper may stand around which.

`tests/test_laws.py` has the laws of every wrapper around one light method. Here a run shows at small cost what a
wrapper may break: structure and dtypes, memory, saving and resuming, extra arguments on their way in. All pairs of
wrapper and method, all laws for them, and all runs of a wrapper around another take hours: `pytest -m thorough` has
them.
"""

import functools
import inspect
import itertools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import testing
from gradtx.core.annotations import Kind
from gradtx.core.dimensions import every_leaf
from tests.wrappers.runs import HEARD, all_finite, assert_close, by_rank, distance, drawn, hearing, kinds, pulled

PARAMS = drawn(3, shapes={"kernel": (4, 3), "bias": (3,)})
MIXED = PARAMS | {"bias": PARAMS["bias"].astype(jnp.bfloat16)}
STEPS = 4


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def odd(count):
    return count % 2 == 1


# Of the wrappers, all but what annotations and defaults say; each runs what is inside it at the last of four steps.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "accumulate": {"every": 2},
    "as_matrices": {"dimension_numbers": every_leaf},
    "conditionally_mask": {"should_transform_fn": odd},
    "loss_scaling": {"scale": 8.0},
    "lookahead": {"sync_period": 2},
    "pack": {"min_leaves": 2},
    "masked": {"mask": matrices},
    "partition": {"param_labels": by_rank},
    "skip_nonfinite": {"max_consecutive": 2},
    "stochastic_weight_averaging": {"start": 1, "every": 2},
    "train_only": {"mask": matrices},
}


def is_wrapper(name, factory) -> bool:
    ours = factory.__module__.startswith(("gradtx.wrappers", "gradtx.core.routing")) or name == "tunable"
    return ours and any(p.kind is Kind.TRANSFORM for p in factory.node._parameters)


WRAPPERS = sorted(name for name, factory in gradtx.registry.items() if is_wrapper(name, factory))
WRAPPERS.remove("conditionally")  # goes around directions and effects, and refuses methods
METHODS = sorted(
    name
    for name, factory in gradtx.registry.items()
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
)
REPRESENTATIVES = {  # by what they read: one element, a leaf, a matrix with another route for the rest, the tree
    "element": gradtx.adam(0.1),
    "leaf": gradtx.lars(0.1),
    "matrix": gradtx.muon(0.1, form="sum"),
    "tree": gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(0.1),
}
around_each = pytest.mark.parametrize("wrapper", WRAPPERS)


def around(name: str, inner: Any) -> Any:
    """The wrapper around a transform."""
    arguments = dict(ARGUMENTS.get(name, {}))
    for p in gradtx.registry[name].node._parameters:
        if p.kind is Kind.TRANSFORM:
            arguments[p.name] = inner if p.container is None else {"matrices": inner, "vectors": gradtx.sgd(0.1)}
        elif p.default is inspect.Parameter.empty and p.name not in arguments:
            assert p.kind is Kind.HYPER, f"no value for the required {p.name} of {name}: add one to ARGUMENTS"
            arguments[p.name] = 0.1
    return gradtx.registry[name](**arguments)


def method(name: str) -> Any:
    factory = gradtx.registry[name]
    rate = "learning_rate" in [p.name for p in factory.node._parameters]
    return factory(learning_rate=0.1) if rate else factory()


def extra_of(tx, step=0):
    """The extra arguments that a transform takes."""
    given = {"value": jnp.float32(step + 0.5), "value_fn": distance, "grad_fn": jax.tree_util.Partial(pulled)}
    return {name: value for name, value in given.items() if name in tx.facts.extra}


def go_on(tx, params, state, grads, first=0):
    """Params and state after each update."""
    for number, gradient in enumerate(grads, first):
        updates, state = tx.update(gradient, state, params, **extra_of(tx, number))
        params = gradtx.apply_updates(params, updates)
        yield params, state


# Around methods -------------------------------------------------------------------------------------------------------


@around_each
@pytest.mark.parametrize("kind", REPRESENTATIVES)
def test_a_wrapper_around_a_method_of_each_kind(wrapper, kind):
    runs_around(wrapper, REPRESENTATIVES[kind])


@pytest.mark.thorough
@around_each
@pytest.mark.parametrize("name", METHODS)
def test_a_wrapper_around_a_method(wrapper, name):
    runs_around(wrapper, method(name))


def runs_around(wrapper, inner):
    inner = inner >> hearing()
    if is_refused(wrapper, inner):
        return
    tx = around(wrapper, inner)
    copy = pickle.loads(pickle.dumps(tx))
    assert (copy, hash(copy)) == (tx, hash(tx))

    state, grads = tx.init(MIXED), testing.gradients(MIXED, STEPS)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((MIXED, state)) if leaf.size]
    assert len(set(buffers)) == len(buffers), "params and state cannot be donated together"
    step = lambda gradient, state, params: next(go_on(tx, params, state, [gradient]))  # noqa: E731
    assert kinds(jax.eval_shape(step, grads[0], state, MIXED)) == kinds((MIXED, state))

    run = list(go_on(tx, MIXED, state, grads))
    for after in run:
        assert kinds(after) == kinds((MIXED, state))
        assert all_finite(after)
    assert not gradtx.tree_equal(run[-1][0]["kernel"], MIXED["kernel"])
    heard = HEARD[-1]
    assert (float(heard["value"]), float(heard["measured"])) == (STEPS - 0.5, float(distance(run[-2][0])))

    params, middle = pickle.loads(pickle.dumps(run[STEPS // 2 - 1]))
    again = list(go_on(copy, params, middle, grads[STEPS // 2 :], STEPS // 2))
    assert gradtx.tree_equal(again, run[STEPS // 2 :]), "resumed, it goes on otherwise"


def is_refused(wrapper, inner) -> bool:
    """In one bucket leaves have one norm together, and no rows or columns, which Adafactor and matrices need."""
    factored = any("factored" in "/".join(place) for place in inner.declared)
    matrices = inner.facts.reach == "matrix"
    if not {"in_buckets": not inner.facts.joinable, "pack": factored or matrices}.get(wrapper, False):
        return False
    with pytest.raises(TypeError, match=f"gradtx.{wrapper}: .* needs the leaves one by one"):
        around(wrapper, inner)
    return True


@pytest.mark.parametrize("name", [*METHODS, *WRAPPERS])
def test_no_method_may_run_at_some_steps_while_gradients_pass_at_the_others(name):
    tx = method(name) if name in METHODS else around(name, gradtx.clip(1.0) >> gradtx.adam(0.1))
    with pytest.raises(TypeError, match=r"has a learning rate.* uphill. Use conditionally_mask"):
        gradtx.conditionally(tx, odd)


# Around each other ----------------------------------------------------------------------------------------------------

# What is to see the gradients as they come, since they are scaled: nothing that measures or changes them goes around.
FIRST = {"loss_scaling"}
# What decides the bits of the params: nothing that changes the updates goes around.
FINAL = {"kahan_summation", "master_weights", "stochastic_rounding"}
# What makes its steps at some updates only: nothing that counts steps goes around.
WAITING = {"accumulate", "conditionally_mask"}
AVERAGING = ("exponential_averaging", "polyak_averaging", "stochastic_weight_averaging")
# What needs the leaves one by one, for their paths, or since params are to be read from its state: no buckets around.
WHOLE = {
    *AVERAGING,
    "as_matrices",
    "by_shape",
    "cautious",
    "masked",
    "partition",
    "sam",
    "schedule_free",
    "split_real_and_imaginary",
    "train_only",
}
REFUSED = {
    **dict.fromkeys(AVERAGING, WAITING),
    "monitor": FIRST,
    "accumulate": FIRST,
    "cautious": FINAL,
    "conditionally_mask": FIRST | FINAL,
    "in_buckets": WHOLE | {"in_buckets", "pack"},  # and no buckets of buckets
    "kahan_summation": FINAL,
    "lookahead": FINAL | WAITING,
    "loss_scaling": FIRST,
    "masked": FIRST,
    "master_weights": FINAL,
    "pack": WHOLE,
    "partition": FIRST,
    "sam": FIRST,
    "schedule_free": FINAL | WAITING,
    "skip_nonfinite": FIRST,
    "stochastic_rounding": FINAL,
}


def remedy(outer: str, inner: str) -> str:
    """What a refusal advises."""
    if {outer, inner} <= FINAL or {outer, inner} <= FIRST:
        return "Keep one of the two."
    return {
        "in_buckets": "Put in_buckets around what does not, inside it.",
        "pack": "Put pack around what does not, inside it.",
    }.get(outer, f"Put {outer} inside it.")


def accepted(outer: str, inner: str) -> Any:
    """One around the other around Adam; None if it is refused by name, with a remedy."""
    wrapped = around(inner, gradtx.adam(0.1))
    try:
        return around(outer, wrapped)
    except TypeError as error:
        said = str(error)
        assert said.startswith(f"gradtx.{outer}: "), said
        assert repr(wrapped) in said, said
        assert said.endswith(remedy(outer, inner)), said
        return None


@pytest.mark.parametrize("outer", WRAPPERS)
def test_which_wrapper_may_stand_around_which(outer):
    assert {inner for inner in WRAPPERS if accepted(outer, inner) is None} == REFUSED.get(outer, set())


PAIRS = [(outer, inner) for outer in WRAPPERS for inner in WRAPPERS if inner not in REFUSED.get(outer, ())]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:gradtx.partition. no leaf has the label")  # masks may leave a group empty
@pytest.mark.filterwarnings("ignore:gradtx.* mask, the function matrices, selects none")  # a route without matrices
@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_a_wrapper_around_another_runs(outer, inner):
    tx = accepted(outer, inner)
    state = tx.init(MIXED)
    run = list(go_on(tx, MIXED, state, testing.gradients(MIXED, STEPS)))
    assert all(kinds(after) == kinds(state) for _, after in run)
    assert all_finite(run)
    assert not gradtx.tree_equal(run[-1][0]["kernel"], MIXED["kernel"])
    both = jax.jit(functools.partial(tx.update, **extra_of(tx)))
    assert_close(both(MIXED, state, MIXED)[0], tx.update(MIXED, state, MIXED, **extra_of(tx))[0], 2 * testing.bound(tx))


# All laws for all pairs -----------------------------------------------------------------------------------------------


def exception(law: str, wrapper: str) -> str | None:
    """Why a law cannot hold for a wrapper, or None."""
    if law == "configs_round_trip" and any(callable(value) for value in ARGUMENTS.get(wrapper, {}).values()):
        return "JSON holds no functions"
    if law == "constant_schedule_is_constant" and wrapper == "tunable":
        return "its state names the hyperparameters, those of a schedule differently"
    return None


OPTIONS = {
    "repr_is_code": {"names": {"matrices": matrices, "by_rank": by_rank, "odd": odd}},
    # of fewer bits than the compute dtype, as meant
    "dtypes_stay": {"lower": ("accumulated", "compensation", "loss_scale", "metrics")},
}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:gradtx.partition. no leaf has the label")  # the laws try trees without leaves
@pytest.mark.parametrize(("wrapper", "name"), list(itertools.product(WRAPPERS, METHODS)))
def test_all_laws_around_all_methods(wrapper, name):
    if is_refused(wrapper, method(name)):
        return
    tx, failures = around(wrapper, method(name)), []
    for law in testing.LAWS:
        if exception(law, wrapper) is not None:
            continue
        try:
            testing.LAWS[law](tx, PARAMS, **OPTIONS.get(law, {}), **extra_of(tx))
        except Exception as error:
            failures.append(f"{law}: {type(error).__name__}: {error}")
    assert not failures, "\n\n".join(failures)


# Random nestings around a guard, random faults ------------------------------------------------------------------------

# Around the guard nothing may act that lets gradients pass it by (`masked`), or makes two of one step (`accumulate`
# would run the guard on sums), or moves the params at steps at which what is inside makes none (`lookahead`).
OUTSIDE = ["monitor", "tunable", "pack", "train_only", *AVERAGING, "loss_scaling", *sorted(FINAL)]
FRONT = [
    gradtx.clip_by_global_norm(1.0),
    gradtx.clip_by_percentile(50.0, window=3),
    gradtx.adaptive_grad_clip(0.1),
    gradtx.centralize(),
    gradtx.add_noise(0.01, 0.5),
    gradtx.add_decayed_weights(0.1),
    gradtx.conditionally(gradtx.clip(0.1), odd),
]
FAULTS = [np.nan, np.inf, -np.inf, 0.0]


def random_program(rng):
    """A method in up to four wrappers and effects, a guard around, and up to two wrappers around that."""
    tx = method(rng.choice(METHODS))
    guarded = [name for name in WRAPPERS if name not in FIRST]
    names = [*rng.choice([*guarded, *range(len(FRONT))], rng.integers(5)), "skip_nonfinite"]
    for name in (*names, *rng.choice(OUTSIDE, rng.integers(3))):
        try:
            tx = FRONT[int(name)] >> tx if name.isdigit() else around(name, tx)
        except TypeError as error:
            who = "chain" if name.isdigit() else name
            if not str(error).startswith(f"gradtx.{who}: "):
                raise
    return tx


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:gradtx.partition. no leaf has the label")
@pytest.mark.parametrize("seed", range(60))
def test_no_nan_reaches_the_params_of_a_guarded_run(seed):
    """And no step that has a fault where the guard looks moves them; the state stays as it is made."""
    rng = np.random.default_rng(seed)
    tx, dtypes = random_program(rng), rng.choice(["float32", "bfloat16", "float16"], 2)
    params = {"kernel": PARAMS["kernel"].astype(dtypes[0]), "bias": PARAMS["bias"].astype(dtypes[1])}
    state = tx.init(params)
    for gradient in testing.gradients(params, 8, seed=seed):
        if rng.uniform() < 0.4:
            fault = jnp.asarray(rng.choice(FAULTS), dtypes[0])
            gradient["kernel"] = gradient["kernel"].at[0, 0].set(fault)
        updates, new_state = tx.update(gradient, state, params, **extra_of(tx))
        new = gradtx.apply_updates(params, updates)
        assert kinds((new, new_state)) == kinds((params, state)), tx
        assert all_finite(new), tx
        if not all_finite(gradient) and "kahan_summation" not in repr(tx):  # which adds what it has kept
            assert gradtx.tree_equal(new, params), tx
        params, state = new, new_state
