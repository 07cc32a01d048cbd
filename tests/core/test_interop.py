"""gradtx among others: optax's objects inside gradtx, gradtx inside optax and flax."""

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


def steps(tx, n=2):
    """The updates and the params of some steps, in one program."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(GRADS, state, params)
        params = gradtx.apply_updates(params, updates)
        return (params, state), (updates, params)

    return jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=n)[1])(PARAMS)


def assert_close(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# optax inside gradtx --------------------------------------------------------------------------------------------------


def test_optax_objects_stand_in_a_chain():
    schedule = optax.linear_schedule(0.1, 0.0, 5)
    mixed = gradtx.chain(optax.clip_by_global_norm(0.5), gradtx.scale_by_momentum(0.9, form="sum"))
    expected = steps(optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(schedule, momentum=0.9)))
    for tx in (
        mixed >> optax.scale_by_learning_rate(schedule),
        optax.clip_by_global_norm(0.5) >> gradtx.sgd(schedule, 0.9),  # a schedule of optax's is a schedule
        gradtx.clip_by_global_norm(0.5) >> gradtx.foreign(optax.sgd(schedule, momentum=0.9)),
    ):
        assert_close(steps(tx), expected)
    assert gradtx.sgd(schedule) == gradtx.sgd(schedule)
    assert_close(steps(gradtx.clip(10.0) >> optax.adamw(1e-3)), steps(optax.adamw(1e-3)))


def test_the_state_of_a_foreign_object_is_kept_as_it_is_under_a_readable_name():
    tx = gradtx.chain(gradtx.clip(1.0), optax.trace(0.9), optax.scale_by_adam())
    state = tx.init(PARAMS)
    assert list(state) == list(tx.slots) == ["clip", "trace", "scale_by_adam"]
    assert isinstance(state["scale_by_adam"], optax.ScaleByAdamState)
    assert repr(tx.stages[1]) == "<foreign trace>"


def test_any_object_with_init_and_update():
    class Mine:
        def init(self, params):
            return {"n": jnp.zeros((), jnp.int32)}

        def update(self, updates, state, params=None):
            return jax.tree.map(lambda u: 2 * u, updates), {"n": state["n"] + 1}

    mine = Mine()
    tx = gradtx.scale(0.5) >> mine
    updates, state = tx.update(GRADS, tx.init(PARAMS))
    assert_close(updates, GRADS)
    assert state["Mine"]["n"] == 1
    assert tx == gradtx.scale(0.5) >> mine
    assert hash(tx) == hash(gradtx.scale(0.5) >> mine)
    assert tx != gradtx.scale(0.5) >> Mine()
    assert "<foreign Mine>" in repr(tx)
    inner = gradtx.tunable(mine)
    assert_close(inner.update(GRADS, inner.init(PARAMS))[0], jax.tree.map(lambda g: 2 * g, GRADS))


def foreign_with_extra(*, hide=False):
    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda u: u * value, updates), state

    def hidden(updates, state, params=None, **extra):
        return update(updates, state, params, value=extra["value"])

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), hidden if hide else update)


class PassesOn:
    """Someone's wrapper, which passes on whatever it is given."""

    def __init__(self, inner):
        self.init, self.inner = inner.init, inner

    def update(self, updates, state, params=None, **extra):
        return self.inner.update(updates, state, params, **extra)


def without_extra():
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params=None: (updates, state)
    )


@pytest.mark.parametrize("hide", [False, True])  # optax.chain's signature says **extra_args
def test_foreign_objects_get_the_extra_arguments_that_they_take(hide):
    theirs = optax.chain(without_extra(), foreign_with_extra(hide=True)) if hide else foreign_with_extra()
    expected = jax.tree.map(lambda g: 6 * g, GRADS)
    for around in (gradtx.identity, lambda tx: gradtx.masked(tx, "*"), lambda tx: gradtx.partition({"a": tx}, "a")):
        tx = gradtx.clip(1.0) >> around(theirs) if around is not gradtx.identity else gradtx.clip(1.0) >> theirs
        tx = tx >> without_extra() >> scale_by_other()
        assert tx.facts.takes("value")
        assert tx.facts.any_extra == hide
        assert tx.facts.extra == ({"other"} if hide else {"value", "other"})
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=2.0, other=3.0)
        assert_close(updates, expected)


def test_lbfgs_of_optax_behind_a_clip_and_in_a_partition_gets_what_it_asks_for():
    def loss(params):
        return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(params))

    def trained(tx):
        @jax.jit
        def step(params, state):
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return gradtx.apply_updates(params, updates), state

        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(3):
            params, state = step(params, state)
        return params

    expected = trained(optax.chain(optax.clip(1.0), optax.lbfgs()))
    assert_close(trained(gradtx.chain(gradtx.clip(1.0), optax.lbfgs())), expected)
    labelled = gradtx.partition({"a": gradtx.chain(gradtx.clip(1.0), optax.lbfgs())}, "a")
    assert_close(trained(labelled), expected)
    found = gradtx.minimize(loss, PARAMS, optax.lbfgs(), steps=3).params
    assert_close(found, jax.tree.map(jnp.ones_like, PARAMS))


def test_what_a_foreign_wrapper_passes_on_and_nobody_uses_is_ignored_there():
    inner = gradtx.chain(gradtx.sgd(0.1), scale_by_other())
    tx = gradtx.clip(1.0) >> PassesOn(inner)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=2.0, other=3.0)
    assert_close(updates, jax.tree.map(lambda g: -0.3 * g, GRADS))
    with pytest.raises(TypeError, match="the extra argument 'other' is missing"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value=2.0)
    with pytest.raises(TypeError, match="unknown extra argument 'value'"):  # not there any more
        inner.update(GRADS, inner.init(PARAMS), PARAMS, value=2.0, other=3.0)


def test_bfloat16_passes_through_foreign_objects():
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tx = gradtx.chain(optax.trace(0.9), gradtx.sgd(1e-3, 0.9))
    state = jax.eval_shape(tx.init, halves)
    updates, new_state = jax.eval_shape(tx.update, halves, state, halves)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(lambda leaf: leaf.dtype, new_state) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: tx,
        lambda tx: gradtx.masked(tx, {"w": True, "b": False}),
        lambda tx: gradtx.train_only(tx, "w"),
        lambda tx: gradtx.masked(tx, lambda params: jax.tree.map(lambda leaf: leaf.ndim == 1, params)),
        lambda tx: gradtx.partition({"a": tx, "b": gradtx.sgd(0.1)}, {"w": "a", "b": "b"}),
        lambda tx: gradtx.accumulate(gradtx.skip_nonfinite(tx, 3), 2),
    ],
)
def test_optax_tree_map_params_reaches_statistics_and_no_counters(around):
    tx = around(gradtx.adam(0.1))
    state = tx.init(PARAMS)
    mapped = optax.tree_map_params(tx, lambda leaf: leaf + 1, state)
    for name in ("mu", "nu"):
        assert gradtx.tree_equal(gradtx.find(mapped, name), jax.tree.map(lambda x: x + 1, gradtx.find(state, name)))
    assert int(gradtx.step_count(mapped)) == 0


# gradtx inside optax --------------------------------------------------------------------------------------------------


def test_gradtx_stands_in_an_optax_chain_as_it_is_and_converted():
    tx = gradtx.sgd(0.1, momentum=0.9)
    expected = steps(gradtx.clip_by_global_norm(0.5) >> tx)
    converted = gradtx.to_optax(tx)
    assert isinstance(converted, optax.GradientTransformationExtraArgs)
    for theirs in (tx, converted):
        assert_close(steps(optax.chain(optax.clip_by_global_norm(0.5), theirs)), expected)
    back = gradtx.clip_by_global_norm(0.5) >> gradtx.foreign(optax.chain(converted, optax.scale(1.0)))
    assert_close(steps(back), expected)


def test_optax_wrappers_take_gradtx():
    tx = gradtx.adam(1e-3)
    for wrapped in (
        optax.MultiSteps(tx, 2),
        optax.apply_if_finite(tx, 3),
        optax.masked(tx, {"w": True, "b": False}),
        optax.multi_transform({"a": tx, "b": gradtx.sgd(0.1)}, {"w": "a", "b": "b"}),
        optax.with_extra_args_support(tx),
        optax.named_chain(("adam", tx)),
    ):
        updates, _ = jax.eval_shape(wrapped.update, GRADS, jax.eval_shape(wrapped.init, PARAMS), PARAMS)
        assert updates == tree.shapes(GRADS)


@gradtx.transform
def scale_by_other() -> Rule:
    """Multiplies by an extra argument."""

    def update(updates, state, *, other):
        return tree.map(lambda u, other: other * u, updates, other=other), state

    return Rule(update=update)


def test_extra_arguments_through_optax_chain():
    tx = gradtx.clip(1.0) >> scale_by_other()
    chained = optax.chain(optax.identity(), gradtx.to_optax(tx), gradtx.to_optax(gradtx.scale(2.0)))
    updates, _ = chained.update(GRADS, chained.init(PARAMS), PARAMS, other=3.0, value="dropped")
    assert_close(updates, jax.tree.map(lambda g: 6 * g, GRADS))


# flax -----------------------------------------------------------------------------------------------------------------


def test_train_state():
    ours, theirs = (
        train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx.adamw(1e-2)) for tx in (gradtx, optax)
    )
    step = jax.jit(lambda state: state.apply_gradients(grads=GRADS))
    for _ in range(2):
        ours, theirs = step(ours), step(theirs)
    assert_close(ours.params, theirs.params)
    assert jax.tree.structure(ours) == jax.tree.structure(ours.replace(tx=gradtx.adamw(1e-2)))
    assert gradtx.step_count(ours.opt_state) == 2


@nnx.jit
def nnx_step(model, optimizer):
    optimizer.update(model, nnx.grad(lambda model: jnp.mean(model(jnp.ones((4, 3))) ** 2))(model))


def train_nnx(tx):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(2):
        nnx_step(model, optimizer)
    assert optimizer.step[...] == 2
    return nnx.state(model, nnx.Param)


def test_nnx_optimizer_with_a_schedule_and_with_an_array_hyperparameter():
    expected = train_nnx(optax.chain(optax.clip(1.0), optax.sgd(optax.linear_schedule(0.1, 0.0, 4))))
    assert_close(train_nnx(gradtx.clip(1.0) >> gradtx.sgd(gradtx.linear_schedule(0.1, 0.0, 4))), expected)
    rate = jnp.float32(0.1)
    assert_close(train_nnx(gradtx.to_optax(gradtx.sgd(rate, 0.9))), train_nnx(optax.sgd(0.1, 0.9)))
