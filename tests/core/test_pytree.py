"""A transform as a pytree: built at the call and never at unflatten, without leaks, known to JAX by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule, tree
from tests.core.samples import PARAMS, every

CHAIN = gradtx.clip(1.0) >> gradtx.adam(gradtx.linear_schedule(1.0, 0.0, 10))


def test_a_body_runs_once_whatever_its_numbers_are(bodies):
    tx = gradtx.scale_by_rms(0.9)
    for other in (0.5, jnp.float32(0.7), gradtx.linear_schedule(0.5, 0.9, 10)):
        tx.replace(decay=other)
    assert bodies == {"scale_by_rms": 1, "linear_schedule": 1}
    tx.replace(maximum="raw")
    assert bodies["scale_by_rms"] == 2
    bodies.clear()
    tx = gradtx.adam(1e-3)
    assert bodies == {"adam": 1, "scale_by_momentum": 1, "scale_by_learning_rate": 1}
    bodies.clear()
    tx.replace(learning_rate=1e-2)
    assert bodies == {"adam": 1}  # what a method is made of may depend on its numbers


def test_a_body_runs_no_more_where_its_program_is_known(bodies):
    for number in (0.9, 0.5):
        tx = gradtx.scale_by_rms(number)
        state = tx.update(PARAMS, tx.init(PARAMS))[1]
        tx.update(PARAMS, state)
        assert bool(bodies) is (number == 0.9)
        bodies.clear()


@every
def test_unflatten_never_runs_the_body(tx, bodies):
    structure = jax.tree.structure(tx)
    bodies.clear()
    for leaf in (None, "x", object(), jax.ShapeDtypeStruct((), jnp.float32), (3,), -1.0, np.ones(3), True):
        node = jax.tree.unflatten(structure, [leaf] * structure.num_leaves)
        assert type(node) is type(tx)
        if leaf is not None and not isinstance(leaf, tuple):
            assert jax.tree.structure(node) == structure
        repr(node), hash(node), node == tx
    assert jax.tree.unflatten(structure, jax.tree.leaves(tx)) == tx
    assert not bodies


def test_jaxs_own_walks_never_run_the_body(bodies):
    bodies.clear()
    jax.eval_shape(lambda tx: tx, CHAIN)
    jax.make_jaxpr(jax.vmap(lambda tx: tx, axis_size=3, in_axes=None))(CHAIN)
    jax.tree.map(lambda a, b: a + b, CHAIN, CHAIN)
    jax.tree_util.tree_map_with_path(lambda path, leaf: leaf, CHAIN)
    jax.tree.transpose(jax.tree.structure(CHAIN), None, jax.tree.map(lambda leaf: [leaf, leaf], CHAIN))
    arrays = jax.tree.map(np.float32, CHAIN)
    jax.make_jaxpr(lambda tx: jax.lax.scan(lambda carry, _: (carry, None), tx, None, length=2))(arrays)
    jax.block_until_ready(jax.device_put(CHAIN))
    assert not bodies


def test_hyperparameters_transforms_and_schedules_are_children_everything_else_is_static():
    @gradtx.transform
    def everything(
        rate: gradtx.Positive,
        inner: gradtx.Transform,
        slow: gradtx.Schedule,
        n: int,
        *,
        maybe: gradtx.Unit | None = None,
        flag: bool = False,
        both: tuple[gradtx.Unit, ...] = (0.9, 0.99),
        named: dict[str, gradtx.Transform] | None = None,
        count_of: gradtx.PositiveInt = 3,
        sizes: tuple[int, ...] = (),
        function: object = None,
    ) -> Rule:
        return Rule(update=lambda updates, state: (updates, state))

    named = {"x": gradtx.clip(1), "y": gradtx.sgd(1)}
    tx = everything(1, gradtx.scale(2), lambda count: 1.0, np.int8(7), named=named, sizes=[1], function=len)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tx)]
    assert paths == [
        *(".rate", ".inner.step_size", ".both[0]", ".both[1]", ".named['x'].max_delta"),
        ".named['y'].learning_rate",
    ]
    assert jax.tree.leaves(tx) == [1.0, 2.0, 0.9, 0.99, 1.0, 1.0]
    again = jax.tree.map(lambda leaf: leaf, tx)
    assert again == tx
    assert (again.n, again.sizes, again.function, again.count_of, again.maybe) == (7, (1,), len, 3, None)
    assert type(again.n) is int
    assert everything(1, gradtx.scale(2), lambda count: 1.0, 7, maybe=0.5).maybe == 0.5
    assert tx.named == named


def test_prefix_trees_of_transforms_work():
    txs = jax.vmap(lambda rate: gradtx.sgd(rate, 0.5 * rate / rate))(jnp.arange(1.0, 4.0))
    axes = jax.tree.map(lambda _: 0, txs)
    assert jax.vmap(lambda tx: tx.learning_rate, in_axes=(axes,))(txs).tolist() == [1.0, 2.0, 3.0]
    mixed = jax.tree.unflatten(jax.tree.structure(txs), [0, None])  # sweep the rate, share the momentum
    one = jax.tree.unflatten(jax.tree.structure(txs), [jnp.arange(3.0), 0.0])
    assert jax.vmap(lambda tx: tx.learning_rate, in_axes=(mixed,))(one).shape == (3,)


def test_a_gradient_with_respect_to_a_transform_is_a_transform():
    tx = gradtx.clip(1.0) >> gradtx.sgd(0.5)
    slope = jax.grad(lambda tx: tx.update(PARAMS, tx.init(PARAMS))[0]["w"].sum())(tx)
    assert jax.tree.structure(slope) == jax.tree.structure(tx)
    assert repr(slope).startswith("clip(max_delta=array(")
    assert float(slope.learning_rate) == pytest.approx(-3.0, rel=1e-5)


def test_key_paths_are_readable():
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(CHAIN)]
    assert [jax.tree_util.keystr(path) for path in paths] == [
        *(".stages[0].max_delta", ".stages[1].learning_rate.init_value", ".stages[1].learning_rate.end_value"),
        *(".stages[1].b1", ".stages[1].b2", ".stages[1].eps"),
    ]
    assert jax.tree_util.keystr(paths[1], simple=True, separator="/") == "stages/1/learning_rate/init_value"


# Nothing leaks --------------------------------------------------------------------------------------------------------


def inside(rate):
    own = gradtx.clip(1.0) >> gradtx.adam(rate)
    return jax.lax.scan(lambda carry, _: own.update(PARAMS, carry, PARAMS)[::-1], own.init(PARAMS), None, length=2)


def step(tx, grads):
    return tx.update(grads, tx.init(grads))


def asked(tx):
    return (tx.expand(), hash(tx), repr(tx), tx.declared, tx.facts) and tx


FRESH = jax.tree.map(lambda leaf: leaf, CHAIN)  # nothing cached in it
PROGRAMS = {
    "passed": lambda: jax.eval_shape(step, CHAIN, PARAMS),
    "closed over": lambda: jax.eval_shape(lambda grads: step(FRESH, grads), PARAMS),
    "built inside, mapped": lambda: jax.eval_shape(jax.vmap(inside), jnp.ones(3)),
    "differentiated": lambda: jax.eval_shape(jax.grad(lambda rate: inside(rate)[1]["w"].sum()), 1e-3),
    "asked inside": lambda: jax.eval_shape(asked, CHAIN),
    "scheduled": lambda: jax.eval_shape(lambda end: inside(gradtx.linear_schedule(1.0, end, 3)), 0.5),
    "tunable": lambda: jax.eval_shape(lambda tx, grads: step(gradtx.tunable(tx), grads), CHAIN, PARAMS),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_tracer_leaks(program):
    with jax.checking_leaks():
        program()


def test_what_a_body_makes_while_tracing_is_not_kept():
    @gradtx.transform
    def computes(factor: gradtx.Positive) -> Rule:
        weights = factor * jnp.arange(3.0)  # under jit this is a tracer, although no argument is
        return Rule(update=lambda updates, state: (tree.map(lambda u, w: u * w, updates, {"w": weights}), state))

    @gradtx.transform
    def expands(factor: gradtx.Positive) -> gradtx.Transform:
        weights = jnp.arange(3.0)
        return gradtx.stateless(lambda updates, params: {"w": updates["w"] * weights}) >> gradtx.scale(factor)

    for tx in (computes(2.0), expands(2.0)):
        fresh, grads = jax.tree.map(lambda leaf: leaf, tx), {"w": np.ones(3, np.float32)}
        with jax.checking_leaks():
            jax.eval_shape(lambda grads, fresh=fresh: step(fresh, grads), grads)
        np.testing.assert_array_equal(step(fresh, grads)[0]["w"], [0.0, 2.0, 4.0])


def test_a_transform_built_under_jit_works_outside_if_its_numbers_do():
    kept = []
    jax.eval_shape(lambda x: (kept.append(gradtx.clip(1.0) >> gradtx.adam(1e-3)), step(kept[0], PARAMS)) and x, 1.0)
    np.testing.assert_allclose(step(kept[0], PARAMS)[0]["w"], -1e-3, rtol=1e-5)
