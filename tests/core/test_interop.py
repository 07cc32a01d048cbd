"""gradtx among others: optax's objects inside gradtx, gradtx inside optax and flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import gradtx
from gradtx import Rule, tree

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.float32(0.5)}
GRADS = {"w": jnp.array([0.1, -0.2, 0.3]), "b": jnp.float32(-1.0)}


@pytest.fixture(autouse=True)
def optax_is_not_written_for_strict_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def steps(tx, n=3, **extra):
    state, params, out = tx.init(PARAMS), PARAMS, []
    for _ in range(n):
        updates, state = tx.update(GRADS, state, params, **extra)
        params = gradtx.apply_updates(params, updates)
        out.append(updates)
    return out, params


def assert_close(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# optax inside gradtx --------------------------------------------------------------------------------------------------


def test_optax_objects_stand_in_a_chain():
    mixed = gradtx.chain(optax.clip_by_global_norm(0.5), gradtx.scale_by_momentum(0.9, form="sum"), optax.scale(-0.1))
    peer = optax.chain(optax.clip_by_global_norm(0.5), optax.trace(0.9), optax.scale(-0.1))
    for ours, theirs in zip(steps(mixed)[0], steps(peer)[0], strict=True):
        assert_close(ours, theirs)
    assert_close(*(steps(tx)[0] for tx in (optax.clip_by_global_norm(0.5) >> gradtx.sgd(0.1), peer_of_sgd())))


def peer_of_sgd():
    return optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))


@pytest.mark.parametrize(
    "theirs",
    [
        optax.adam(1e-3),
        optax.adamw(1e-3),
        optax.sgd(optax.linear_schedule(0.1, 0.0, 5), momentum=0.9),
        optax.lion(1e-3),
    ],
)
def test_optax_optimizers_work_as_they_are(theirs):
    tx = gradtx.clip(10.0) >> gradtx.foreign(theirs)
    assert_close(steps(tx), steps(optax.chain(optax.clip(10.0), theirs)))
    jitted = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = jitted(GRADS, state, PARAMS)


def test_the_state_of_a_foreign_object_is_kept_as_it_is_under_a_readable_name():
    tx = gradtx.clip(1.0) >> gradtx.foreign(optax.trace(0.9)) >> gradtx.foreign(optax.scale_by_adam())
    state = tx.init(PARAMS)
    assert list(state) == ["clip", "trace", "scale_by_adam"]
    assert isinstance(state["scale_by_adam"], optax.ScaleByAdamState)


def test_any_object_with_init_and_update():
    class Mine:
        def init(self, params):
            return {"n": jnp.zeros((), jnp.int32)}

        def update(self, updates, state, params=None):
            return jax.tree.map(lambda u: 2 * u, updates), {"n": state["n"] + 1}

    mine = Mine()
    tx = gradtx.scale(0.5) >> mine
    updates, state = tx.update(GRADS, tx.init(PARAMS))
    assert gradtx.tree_equal(updates, GRADS)
    assert state["Mine"]["n"] == 1
    assert tx == gradtx.scale(0.5) >> mine
    assert hash(tx) == hash(gradtx.scale(0.5) >> mine)
    assert tx != gradtx.scale(0.5) >> Mine()
    assert "Mine" in repr(tx)
    for inner in (gradtx.checked(mine), gradtx.tunable(mine)):
        assert gradtx.tree_equal(
            inner.update(GRADS, inner.init(PARAMS), PARAMS)[0], jax.tree.map(lambda g: 2 * g, GRADS)
        )


def test_foreign_objects_stand_only_first_in_a_join():
    theirs = gradtx.foreign(optax.trace(0.9))
    first = theirs + gradtx.scale_by_rms()
    first.update(GRADS, first.init(PARAMS))
    for build in (
        lambda: gradtx.scale_by_momentum() + theirs,
        lambda: gradtx.scale_by_momentum() + gradtx.checked(theirs),
        lambda: gradtx.scale_by_momentum() + (theirs >> gradtx.scale(1.0)),
        lambda: gradtx.scale_by_momentum() + gradtx.tunable(gradtx.checked(theirs)),
        lambda: gradtx.join(gradtx.scale_by_momentum(), optax.trace(0.9)),
    ):
        with pytest.raises(TypeError, match=r"gradtx\.join: .*trace.* cannot stand right of \+"):
            build()


def foreign_with_extra():
    def update(updates, state, params=None, *, value, **more):
        return jax.tree.map(lambda u: u * value, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_foreign_objects_get_the_extra_arguments_that_they_name():
    tx = gradtx.clip(1.0) >> gradtx.foreign(foreign_with_extra())
    assert tx.extra_args == {"value"}
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=2.0)
    assert_close(updates, jax.tree.map(lambda g: 2 * g, GRADS))
    with pytest.raises(TypeError, match=r"unknown extra argument 'vale'\. Did you mean 'value'\?"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, vale=2.0)


def test_foreign_objects_get_the_extra_arguments_that_accepts_lists():
    hidden = optax.chain(foreign_with_extra())  # its signature says **extra_args
    tx = gradtx.clip(1.0) >> gradtx.foreign(hidden, accepts=("value",))
    assert tx.extra_args == {"value"}
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=2.0)
    assert_close(updates, jax.tree.map(lambda g: 2 * g, GRADS))
    plain = gradtx.clip(1.0) >> gradtx.foreign(hidden)
    with pytest.raises(TypeError, match="unknown extra argument 'value'"):
        plain.update(GRADS, plain.init(PARAMS), PARAMS, value=2.0)
    assert gradtx.foreign(hidden, accepts=("value",)) == gradtx.foreign(hidden, accepts=["value"])
    assert gradtx.foreign(hidden, accepts=("value",)) != gradtx.foreign(hidden)


def test_accepts_is_a_tuple_of_names():
    for accepts in ("value", 3, (3,)):
        with pytest.raises(TypeError, match=r"gradtx\.foreign: accepts"):
            gradtx.foreign(optax.sgd(0.1), accepts=accepts)


def test_a_config_of_a_foreign_object_is_refused_in_words():
    with pytest.raises(TypeError, match=r"gradtx\.foreign: object is .*which JSON cannot hold"):
        gradtx.foreign(optax.sgd(0.1)).to_config()


def test_bfloat16_passes_through_foreign_objects():
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tx = gradtx.chain(optax.trace(0.9), gradtx.adam(1e-3))
    state = tx.init(halves)
    updates, new_state = tx.update(halves, state, halves)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(lambda leaf: leaf.dtype, new_state) == jax.tree.map(lambda leaf: leaf.dtype, state)


# gradtx inside optax --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tx", [gradtx.adam(1e-3), gradtx.adamw(1e-3), gradtx.clip(1.0) >> gradtx.sgd(0.1, momentum=0.9), gradtx.lion(1e-3)]
)
def test_gradtx_stands_in_an_optax_chain(tx):
    mixed = optax.chain(optax.clip_by_global_norm(0.5), tx)
    ours = gradtx.clip_by_global_norm(0.5) >> tx
    assert_close(steps(mixed), steps(ours))
    wrapped = optax.chain(optax.clip_by_global_norm(0.5), gradtx.to_optax(tx))
    assert_close(steps(wrapped), steps(ours))


def test_optax_wrappers_take_gradtx():
    tx = gradtx.adam(1e-3)
    for wrap in (
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.multi_transform({"a": tx, "b": gradtx.sgd(0.1)}, {"w": "a", "b": "b"}),
        lambda tx: optax.with_extra_args_support(tx),
        lambda tx: optax.named_chain(("adam", tx)),
    ):
        wrapped = wrap(tx)
        wrapped.update(GRADS, wrapped.init(PARAMS), PARAMS)


@gradtx.transform
def scale_by_value_for_interop() -> Rule:
    """Multiplies by an extra argument."""

    def update(updates, state, *, value):
        return tree.map(lambda u, value: value * u, updates, value=value), state

    return Rule(update=update)


def test_extra_arguments_through_optax_chain():
    tx = gradtx.clip(1.0) >> scale_by_value_for_interop()
    chained = optax.chain(optax.identity(), gradtx.to_optax(tx), gradtx.to_optax(gradtx.adam(1e-3)))
    updates, _ = chained.update(GRADS, chained.init(PARAMS), PARAMS, value=2.0, other="dropped")
    expected = tx >> gradtx.adam(1e-3)
    assert_close(updates, expected.update(GRADS, expected.init(PARAMS), PARAMS, value=2.0)[0])
    with pytest.raises(TypeError, match="'value' is missing"):
        chained.update(GRADS, chained.init(PARAMS), PARAMS)


def test_to_optax_is_optax():
    converted = gradtx.to_optax(gradtx.adam(1e-3))
    assert isinstance(converted, optax.GradientTransformationExtraArgs)
    assert_close(steps(converted), steps(gradtx.adam(1e-3)))


def test_there_and_back():
    tx = gradtx.scale(2.0) >> gradtx.foreign(optax.chain(gradtx.to_optax(gradtx.clip(1.0)), optax.scale(0.5)))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert_close(updates, jax.tree.map(lambda g: jnp.clip(2 * g, -1, 1) / 2, GRADS))


def test_optax_schedules_are_schedules():
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, 5, 20)
    ours = gradtx.sgd(theirs)
    assert_close(steps(ours, 8), steps(optax.sgd(theirs), 8))
    assert ours == gradtx.sgd(theirs)


# flax -----------------------------------------------------------------------------------------------------------------


def test_train_state():
    model = nn.Dense(2)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    ours = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=gradtx.adamw(1e-2))
    theirs = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-2))
    for _ in range(3):
        ours, theirs = ours.apply_gradients(grads=params), theirs.apply_gradients(grads=params)
    assert_close(ours.params, theirs.params)
    assert jax.tree.structure(ours) == jax.tree.structure(ours.replace(tx=gradtx.adamw(1e-2)))
    assert gradtx.step_count(ours.opt_state) == 3


class Net(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(x)


@nnx.jit
def nnx_step(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
    optimizer.update(model, grads)
    return loss


def train_nnx(tx):
    model = Net()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = [nnx_step(model, optimizer, jnp.ones((4, 3))) for _ in range(4)]
    return losses, nnx.state(model, nnx.Param), optimizer


def test_nnx_optimizer():
    losses, params, optimizer = train_nnx(gradtx.clip(1.0) >> gradtx.adam(1e-2))
    _, expected, _ = train_nnx(optax.chain(optax.clip(1.0), optax.adam(1e-2)))
    assert losses[-1] < losses[0]
    assert_close(params, expected)
    assert optimizer.step[...] == 4


def test_array_hyperparameters_in_nnx_optimizer():
    rate = jnp.float32(1e-2)
    _, params, _ = train_nnx(gradtx.to_optax(gradtx.adam(rate)))
    _, expected, _ = train_nnx(gradtx.adam(1e-2))
    assert_close(params, expected)


def test_scheduled_optimizers_in_nnx_optimizer():
    _, params, _ = train_nnx(gradtx.sgd(gradtx.linear_schedule(0.1, 0.0, 4)))
    _, expected, _ = train_nnx(optax.sgd(optax.linear_schedule(0.1, 0.0, 4)))
    assert_close(params, expected)


def test_optax_is_not_needed():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['optax'] = None; sys.modules['flax'] = None\n"
        "import gradtx, jax.numpy as jnp\n"
        "tx = gradtx.clip(1.0) >> gradtx.adam(1e-3)\n"
        "tx.update(jnp.ones(3), tx.init(jnp.ones(3)))\n"
        "try: gradtx.to_optax(tx)\n"
        "except ImportError as error: assert 'pip install optax' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
