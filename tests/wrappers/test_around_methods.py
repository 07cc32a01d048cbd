"""Every wrapper around every named method, and around every other wrapper.

`tests/test_laws.py` has every law for every wrapper around Adam. Here each wrapper meets each method once, in a run
that shows at small cost what a wrapper may break: structure and dtypes, memory, saving and resuming, extra arguments on
their way in. A few methods of different kinds are compiled as well. All laws for all pairs take hours: `pytest -m bench
tests/wrappers/test_around_methods.py`.
"""

import functools
import inspect
import itertools
import os
import pathlib
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

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)),
    "bias": jnp.asarray(np.random.default_rng(4).normal(size=3).astype(np.float32)),
}
MIXED = PARAMS | {"bias": PARAMS["bias"].astype(jnp.bfloat16)}
STEPS = 4


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def named(path, leaf):
    return "matrices" if leaf.ndim == 2 else "others"


def odd(count):
    return count % 2 == 1


def distance(params):
    """A loss at any params."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda w: jnp.sum(w.astype(jnp.float32) ** 2), params))


def pulled(params):
    """A gradient at any params."""
    return jax.tree.map(lambda w: (w.astype(jnp.float32) / 2 + 1).astype(w.dtype), params)


NAMES = {"matrices": matrices, "named": named, "odd": odd}

# Of the wrappers, all but what annotations and defaults say; each runs what is inside it at the last of four steps.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "accumulate": {"every": 2},
    "conditionally": {"predicate": odd},
    "loss_scaling": {"scale": 8.0},
    "lookahead": {"sync_period": 2},
    "pack": {"fewest": 2},
    "masked": {"mask": matrices},
    "partition": {"param_labels": named},
    "skip_nonfinite": {"max_consecutive": 2},
    "stochastic_weight_averaging": {"start": 1, "every": 2},
    "train_only": {"mask": matrices},
}


def is_wrapper(name, factory) -> bool:
    ours = factory.__module__.startswith("gradtx.wrappers") or name == "tunable"
    return ours and any(p.kind is Kind.TRANSFORM for p in factory.node._parameters)


WRAPPERS = sorted(name for name, factory in gradtx.registry.items() if is_wrapper(name, factory))
METHODS = sorted(
    name
    for name, factory in gradtx.registry.items()
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
)


def around(name: str, inner: Any) -> Any:
    """The wrapper around a transform."""
    arguments = dict(ARGUMENTS.get(name, {}))
    for p in gradtx.registry[name].node._parameters:
        if p.kind is Kind.TRANSFORM:
            arguments[p.name] = inner if p.container is None else {"matrices": inner, "others": gradtx.sgd(0.1)}
        elif p.default is inspect.Parameter.empty and p.name not in arguments:
            assert p.kind is Kind.HYPER, f"no value for the required {p.name} of {name}: add one to ARGUMENTS"
            arguments[p.name] = 0.1
    return gradtx.registry[name](**arguments)


def method(name: str) -> Any:
    return gradtx.registry[name](learning_rate=0.1)


@gradtx.transform
def asking() -> gradtx.Rule:
    """Wants a loss, its value at the params that it sees, and them; writes down what it gets."""

    def init(params):
        return {"value": jnp.zeros(()), "measured": jnp.zeros(())}

    def update(updates, state, params, *, value, value_fn):
        return updates, {"value": value, "measured": value_fn(params)}

    return gradtx.Rule(init=init, update=update, reads="tree", whole_leaves=False)


def extra_of(tx, step=0):
    """The extra arguments that a transform takes."""
    given = {"value": jnp.float32(step + 0.5), "value_fn": distance, "grad_fn": jax.tree_util.Partial(pulled)}
    return {name: value for name, value in given.items() if name in tx.extra_args}


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def all_finite(tree):
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(tree))


def go_on(tx, params, state, grads, first=0):
    """Params and state after each update, without compiling: `disable_jit` takes the branch of a `cond` in Python."""
    for number, gradient in enumerate(grads, first):
        with jax.disable_jit():
            updates, state = tx.update(gradient, state, params, **extra_of(tx, number))
            params = gradtx.apply_updates(params, updates)
        yield params, state


def compiled(tx, params, state, grads):
    """The same in one program: the last params and state, and all of them."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params, **extra_of(tx))
        params = gradtx.apply_updates(params, updates)
        return (params, state), (params, state)

    return jax.lax.scan(step, (params, state), jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))


# Around methods -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_around_a_method(wrapper, name):
    inner = method(name) >> asking()
    if wrapper == "in_buckets" and inner.whole_leaves:
        refused_for_whole_leaves(wrapper, inner)
        return
    tx = around(wrapper, inner)
    assert extra_of(tx).keys() >= {"value", "value_fn"}
    copy = pickle.loads(pickle.dumps(tx))
    assert copy == tx
    assert hash(copy) == hash(tx)

    state, grads = tx.init(MIXED), testing.gradients(MIXED, STEPS)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((MIXED, state)) if leaf.size]
    assert len(set(buffers)) == len(buffers), "params and state cannot be donated together"
    last, _ = jax.eval_shape(functools.partial(compiled, tx), MIXED, state, grads)
    assert kinds(last) == kinds((MIXED, state))

    run = list(go_on(tx, MIXED, state, grads))
    for params, after in run:
        assert kinds(params) == kinds(MIXED)
        assert kinds(after) == kinds(state)
        assert all_finite((params, after))
    assert not gradtx.tree_equal(run[-1][0]["kernel"], MIXED["kernel"])

    half, (params, middle) = STEPS // 2, pickle.loads(pickle.dumps(run[STEPS // 2 - 1]))
    again = list(go_on(copy, params, middle, grads[half:], half))
    assert gradtx.tree_equal(again, run[half:]), "resumed, it goes on otherwise"

    assert float(gradtx.find(run[-1][1], "asking/value")) == STEPS - 0.5
    assert float(gradtx.find(run[-1][1], "asking/measured")) == float(distance(run[-2][0]))


def refused_for_whole_leaves(wrapper, inner):
    """A trust ratio needs the norm of each leaf: in one bucket they have a norm together."""
    with pytest.raises(TypeError, match=f"gradtx.{wrapper}: .* needs the leaves one by one"):
        around(wrapper, inner)


KINDS = {  # what they keep and read: an average of gradients; of squares too; also the params, leaf by leaf
    "sgd": lambda: gradtx.sgd(0.1, 0.9),
    "adamw": lambda: gradtx.adamw(0.1),
    "lars": lambda: gradtx.lars(1.0, 0.1),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_around_a_method_compiled(wrapper, name):
    """With params and state donated; to 8 ulps of each leaf's largest element, as the laws: fused multiply-adds.

    Only the rounding errors that `kahan_summation` keeps are others where products and sums are fused.
    """
    if wrapper == "in_buckets" and KINDS[name]().whole_leaves:
        refused_for_whole_leaves(wrapper, KINDS[name]())
        return
    tx = around(wrapper, KINDS[name]())
    grads = testing.gradients(PARAMS, STEPS)
    run = list(go_on(tx, PARAMS, tx.init(PARAMS), grads))
    given = jax.tree.map(jnp.copy, (PARAMS, tx.init(PARAMS)))
    _, actual = jax.jit(functools.partial(compiled, tx), donate_argnums=(0, 1))(*given, grads)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *run)
    if wrapper == "kahan_summation":
        actual, expected = actual[:1], expected[:1]
    assert_close(actual, expected)


def assert_close(actual, expected, ulps=8):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree_util.tree_leaves_with_path(actual)
    for (path, leaf), other in zip(paths, jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(leaf), np.asarray(other)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        if not np.issubdtype(a.dtype, np.inexact):
            np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
            continue
        bound = ulps * np.finfo(a.dtype).eps * np.abs(b).max(initial=0)
        assert np.abs(a - b).max(initial=0) <= bound, (jax.tree_util.keystr(path), a, b)


# Around each other ----------------------------------------------------------------------------------------------------

# What is to see the gradients as they come, since they are scaled: nothing that measures or changes them goes around.
FIRST = {"loss_scaling"}
# What decides the bits of the params: nothing that changes the updates goes around.
FINAL = {"kahan_summation", "master_weights", "stochastic_rounding"}
# What makes its steps at some updates only: nothing that counts steps goes around.
WAITING = {"accumulate"}
AVERAGING = ("exponential_averaging", "polyak_averaging", "stochastic_weight_averaging")
# What needs the leaves one by one, for their paths, or since params are to be read from its state: no buckets around.
WHOLE = {*AVERAGING, "masked", "partition", "sam", "schedule_free", "train_only"}
REFUSED = {
    **dict.fromkeys(AVERAGING, WAITING),
    "monitor": FIRST,
    "accumulate": FIRST,
    "conditionally": FIRST | FINAL,
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


@pytest.mark.filterwarnings("ignore:gradtx.partition. no leaf has the label")  # masks may leave a group empty
@pytest.mark.parametrize("outer", WRAPPERS)
def test_a_wrapper_around_another_runs_or_is_refused_by_name(outer):
    refused = {inner for inner in WRAPPERS if runs(outer, inner) is False}
    assert refused == REFUSED.get(outer, set())


def runs(outer: str, inner: str) -> bool:
    """Whether two wrappers may stand around Adam in this order; if so, its three steps are finite."""
    wrapped = around(inner, gradtx.adam(0.1))
    try:
        tx = around(outer, wrapped)
    except TypeError as error:
        message = str(error)
        assert message.startswith(f"gradtx.{outer}: "), message
        assert repr(wrapped) in message, message
        assert any(way in message for way in ("inside it.", "around the partition.", "Keep one of the two.")), message
        return False
    state = tx.init(MIXED)
    run = list(go_on(tx, MIXED, state, testing.gradients(MIXED, 4 if outer == inner == "accumulate" else 3)))
    assert all(kinds(after) == kinds(state) for _, after in run), (outer, inner)
    assert all_finite(run), (outer, inner)
    assert not gradtx.tree_equal(run[-1][0]["kernel"], MIXED["kernel"]), (outer, inner)
    return True


# All laws for all pairs -----------------------------------------------------------------------------------------------


def exception(law: str, wrapper: str) -> str | None:
    """Why a law cannot hold for a wrapper, or None."""
    if law == "configs_round_trip" and any(callable(value) for value in ARGUMENTS.get(wrapper, {}).values()):
        return "JSON holds no functions"
    if law == "constant_schedule_is_constant" and wrapper == "tunable":
        return "its state names the hyperparameters, those of a schedule differently"
    return None


BOUNDED = [name for name, law in testing.LAWS.items() if "ulps" in inspect.signature(law).parameters]
LOWER = ("accumulated", "compensation", "loss_scale", "metrics")  # of fewer bits than the compute dtype, as meant
# Their update is a difference of two iterates, with the rounding errors of those, which are larger than it is. Around
# sgd `eager_is_jit` has 8.6 ulps; without fused multiply-adds it has none (the last test).
STEERING = ("lookahead", "schedule_free")


def options(law: str, wrapper: str) -> dict[str, Any]:
    """Names and bounds, as in `tests/test_laws.py`, which has the reasons; here for methods of all kinds at once."""
    if law == "repr_is_code":
        return {"names": NAMES}
    if law == "dtypes_stay":
        return {"lower": LOWER}
    if law in BOUNDED:
        return {"ulps": 1e9 if wrapper == "kahan_summation" else 16 if wrapper in STEERING else 8}
    return {}


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore:gradtx.partition. no leaf has the label")  # the laws try trees without leaves
@pytest.mark.parametrize(("wrapper", "name"), list(itertools.product(WRAPPERS, METHODS)))
def test_all_laws_around_all_methods(wrapper, name):
    if wrapper == "in_buckets" and method(name).whole_leaves:
        refused_for_whole_leaves(wrapper, method(name))
        return
    tx, failures = around(wrapper, method(name)), []
    for law in testing.LAWS:
        if exception(law, wrapper) is not None:
            continue
        try:
            testing.LAWS[law](tx, PARAMS, **options(law, wrapper), **extra_of(tx))
        except Exception as error:
            failures.append(f"{law}: {type(error).__name__}: {error}")
    assert not failures, "\n\n".join(failures)


WITHOUT_FMA = """
from gradtx import testing
from tests.wrappers.test_around_methods import BOUNDED, METHODS, PARAMS, STEERING, around, extra_of, method
for wrapper in STEERING:
    for name in METHODS:
        tx = around(wrapper, method(name))
        for law in BOUNDED:
            # In which order the elements of a leaf are summed is up to the compiler.
            testing.LAWS[law](tx, PARAMS, ulps=0 if tx.reads == "element" else 4, **extra_of(tx))
"""


@pytest.mark.bench
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flag names x86's instruction sets")
def test_what_steers_obeys_the_laws_to_the_bit_where_the_compiler_has_no_fused_multiply_add():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX",
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *sys.path]),
    }
    command = [sys.executable, "-c", WITHOUT_FMA]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
