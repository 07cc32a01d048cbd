"""What an update becomes: no dead or repeated work, no checks, named operations; and what is compiled again."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training import train_state
from jax.extend.core import Literal
from jax.interpreters import partial_eval

import gradtx
from gradtx import Rule
from gradtx.core import check

LEAF = np.ones(5, np.float32)
CLIPPED = gradtx.clip(1.0) >> gradtx.adam(gradtx.cosine_decay_schedule(0.1, 10))
METHODS = [
    gradtx.sgd(0.1, momentum=0.9, nesterov=True),
    gradtx.rmsprop(0.1, momentum=0.9, centered=True),
    gradtx.adadelta(0.1),
    gradtx.amsgrad(0.1),
    gradtx.nadamw(0.1, momentum_decay=4e-3),
    CLIPPED,
]


def program(tx, leaf=LEAF, *, passed=False):
    state = tx.init(leaf)
    if passed:
        return jax.make_jaxpr(lambda tx, g, s, p: tx.update(g, s, p))(tx, leaf, state, leaf).jaxpr
    return jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p))(leaf, state, leaf).jaxpr


def operations(jaxpr, names=None, stack=""):
    """All primitive operations, calls opened: (equation, inputs named across the calls, scope)."""
    names = {} if names is None else names

    def name(atom):
        return ("literal", str(atom)) if isinstance(atom, Literal) else names.get(atom, atom)

    for equation in jaxpr.eqns:
        scope = f"{stack}/{equation.source_info.name_stack}".strip("/")
        inside = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        inside = [value for value in inside if hasattr(value, "eqns")]
        if len(inside) == 1:
            (inner,) = inside
            own = dict(zip(inner.invars, map(name, equation.invars), strict=True))
            yield from operations(inner, own, scope)
            results = (name(v) if isinstance(v, Literal) else own.get(v, v) for v in inner.outvars)
            names.update(zip(equation.outvars, results, strict=True))
        else:
            yield equation, tuple(map(name, equation.invars)), scope


def on_leaves(jaxpr):
    """The operations whose result has the size of a leaf, but for constants spread out to that size."""
    for equation, inputs, scope in operations(jaxpr):
        constant = equation.primitive.name == "broadcast_in_dim" and all(i.aval.ndim == 0 for i in equation.invars)
        if any(out.aval.ndim > 0 for out in equation.outvars) and not constant:
            yield equation, inputs, scope


def counted(tx):
    return collections.Counter(equation.primitive.name for equation, _, _ in on_leaves(program(tx)))


def test_how_many_operations_a_leaf_costs():
    # Adam: b m, (1-b) g, their sum; b v, g², (1-b) g², their sum; m / c, v / c; the root, + eps; the quotient, which is
    # 0 where it would be 0 / 0 (compare and select); times the learning rate.
    adam = counted(gradtx.adam(0.1))
    assert adam.total() <= 15, adam
    assert (adam["sqrt"], adam["convert_element_type"]) == (1, 0)
    assert adam["square"] + adam["integer_pow"] <= 1
    assert counted(gradtx.sgd(0.1)) == {"mul": 1}
    assert counted(gradtx.sgd(0.1, momentum=0.9)).total() <= 4


def live_part(jaxpr):
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


@pytest.mark.parametrize("tx", METHODS, ids=lambda tx: tx.name)
def test_no_operation_is_dead_repeated_converted_or_a_check(tx):
    jaxpr, passed = program(tx), program(tx, passed=True)
    assert len(list(operations(live_part(jaxpr)))) == len(list(operations(jaxpr)))
    # Here a number that only init reads may be cast in vain: one scalar.
    assert len(list(on_leaves(live_part(passed)))) == len(list(on_leaves(passed)))
    seen = collections.Counter()
    for equation, inputs, _ in on_leaves(jaxpr):
        assert equation.primitive.name != "convert_element_type"
        parameters = sorted((key, str(value)) for key, value in equation.params.items())
        seen[(equation.primitive.name, str(parameters), inputs)] += 1
    assert not [key[0] for key, times in seen.items() if times > 1]
    text = str(jaxpr).replace("symbolic_zeros", "")
    assert not [w for w in ("callback", "check", "debug", "assert", "error", "isfinite", "is_finite") if w in text]


def test_bfloat16_is_converted_once_each_way_and_the_state_never():
    casts = [
        e
        for e, _, _ in operations(program(gradtx.clip(1.0) >> gradtx.adam(0.1), np.ones(5, jnp.bfloat16)))
        if e.primitive.name == "convert_element_type" and e.outvars[0].aval.ndim
    ]
    assert [str(e.params["new_dtype"]) for e in casts] == ["float32", "bfloat16"]


def test_the_composition_costs_nothing():
    parts = gradtx.scale_by_momentum(0.9) + gradtx.scale_by_rms(0.999) >> gradtx.scale_by_learning_rate(0.1)
    nested = gradtx.identity() >> (gradtx.identity() + gradtx.adam(0.1)) >> gradtx.identity()
    expected = [e.primitive.name for e, _, _ in operations(program(gradtx.adam(0.1)))]
    for tx in (parts, nested, gradtx.adam(0.1)):
        assert [e.primitive.name for e, _, _ in operations(program(tx))] == expected


def test_the_structural_checks_run_once_for_each_structure(monkeypatch):
    calls = collections.Counter()

    def counted(original, *args, **kwargs):
        calls[original.__name__] += 1
        return original(*args, **kwargs)

    for original in (check.check_state, check.check_alike):
        monkeypatch.setattr(check, original.__name__, functools.partial(counted, original))
    tx = gradtx.sgd(0.1234)  # no other test's, whose structures it would know
    state = tx.init(LEAF)
    for _ in range(3):
        _, state = tx.update(LEAF, state, LEAF)
        gradtx.apply_updates(np.ones((5, 1)), np.ones((5, 1)))
    assert calls["check_state"] == 1
    assert calls["check_alike"] <= 2  # of update, and of apply_updates where no other test asked
    with pytest.raises(ValueError, match="gradtx"):
        tx.update(jnp.ones(4), state, LEAF)


def test_every_operation_is_under_the_name_of_its_transform():
    scopes = {scope for _, _, scope in on_leaves(program(CLIPPED))}
    for expected in ("clip", "adam/scale_by_momentum", "adam/scale_by_rms", "adam/scale_by_learning_rate"):
        assert any(expected in scope for scope in scopes), scopes
    assert all("clip" in scope or "adam/scale_by_" in scope for scope in scopes), scopes
    text = jax.jit(gradtx.adam(0.1).init).lower(LEAF).as_text(debug_info=True)
    assert "scale_by_rms" in text


# What is compiled again -----------------------------------------------------------------------------------------------


@pytest.fixture
def traces():
    """A transform that counts how often its update is traced or run."""
    counter = {"update": 0}

    @gradtx.transform
    def spy() -> Rule:
        def update(updates, state):
            counter["update"] += 1
            return updates, state

        return Rule(update=update)

    counter["spy"] = spy
    return counter


def step(tx, grads, state):
    return tx.update(grads, state, grads)


def test_numbers_passed_through_jit_retrace_nothing_and_statics_do(traces):
    jitted = jax.jit(lambda tx, grads, state: step(tx, grads, state))
    tx = traces["spy"]() >> gradtx.sgd(1e-3, momentum=0.9)
    state = tx.init(LEAF)
    for rate in (1e-3, 3e-4, 1, np.float32(0.5), np.int64(2), 0.0):
        jitted(tx.replace(learning_rate=rate), LEAF, state)
    jitted(traces["spy"]() >> gradtx.sgd(7.0, momentum=0.5), LEAF, state)
    assert (traces["update"], jitted._cache_size()) == (1, 1)
    jitted(traces["spy"]() >> gradtx.sgd(7.0, momentum=0.5, nesterov=True), LEAF, state)
    assert traces["update"] == 2


def test_a_rebuilt_optimizer_retraces_nothing(traces):
    static = jax.jit(lambda tx, grads, state: step(tx, grads, state), static_argnums=0)

    @jax.jit
    def in_train_state(state, grads):
        return state.apply_gradients(grads=grads)

    @nnx.jit
    def in_nnx(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 3)))))(model))

    def build(rate=1e-3):
        return traces["spy"]() >> gradtx.add_decayed_weights(1e-2, mask={"w": True}) >> gradtx.sgd(rate, 0.9)

    def of_update(tx):
        jax.jit(tx.update, donate_argnums=1)(leaves, jax.jit(tx.init)(leaves), leaves)

    def of_train_state(tx):
        state = train_state.TrainState.create(apply_fn=None, params=leaves, tx=tx)
        assert in_train_state(in_train_state(state, leaves), leaves).step == 2

    def of_nnx(tx):
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, traces["spy"]() >> gradtx.sgd(1e-2), wrt=nnx.Param)
        in_nnx(model, optimizer), in_nnx(model, optimizer)

    leaves, expected = {"w": jnp.ones(5)}, 0
    for use in (of_update, lambda tx: static(tx, leaves, tx.init(leaves)), of_train_state, of_nnx):
        expected += 1
        for _ in range(2):
            use(build())
        assert traces["update"] == expected
    of_update(build(1e-2))
    assert traces["update"] == expected + 1


# Numbers that arrive otherwise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_closed_over_passed_and_mapped_numbers_are_the_same(dtype):
    """Element-wise parts, compiled in three ways: 8 ulps of float32, or one of bfloat16 where that is rounded."""
    tx, steps = gradtx.clip(1.0) >> gradtx.adamw(gradtx.linear_schedule(0.1, 0.05, 4)), []
    grads = jnp.asarray(np.random.default_rng(7).normal(size=12), dtype)
    state = tx.init(grads)
    steps.append(jax.jit(tx.update)(grads, state, grads))
    steps.append(jax.jit(step)(jax.tree.map(jnp.float32, tx), grads, state))
    txs = jax.tree.map(lambda leaf: jnp.float32([leaf, 0.5 * leaf]), tx)
    mapped = jax.jit(jax.vmap(step, in_axes=(0, None, None)))(txs, grads, state)
    steps.append(jax.tree.map(lambda leaf: leaf[0], mapped))
    ulps = 8 * 2.0**-23 if dtype == "float32" else 2.0**-7
    for other in steps[1:]:
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(steps[0]), strict=True):
            bound = ulps * np.abs(np.float64(b)).max()
            np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=0, atol=bound)
