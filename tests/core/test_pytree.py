"""A transform as a pytree: built at the call and never at unflatten, without leaks, known to JAX by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import Rule, tree
from tests.core.samples import PARAMS, every

# Built at the call, never at unflatten --------------------------------------------------------------------------------


def test_the_call_runs_each_body_once(bodies):
    gradtx.scale_by_rms(0.9)
    assert bodies == {"scale_by_rms": 1}
    bodies.clear()
    gradtx.adam(1e-3)
    assert bodies == {"adam": 1, "scale_by_momentum": 1, "scale_by_rms": 1, "scale_by_learning_rate": 1}
    bodies.clear()
    gradtx.adam(1e-3).replace(learning_rate=1e-2)
    assert bodies["adam"] == 2


def test_errors_come_at_the_call():
    @gradtx.transform
    def late(n: int) -> Rule:
        raise RuntimeError("from the body")

    with pytest.raises(RuntimeError, match="from the body") as caught:
        late(3)
    assert "in gradtx.late" in caught.value.__notes__


LEAVES = {
    "None": None,
    "string": "x",
    "object": object(),
    "ShapeDtypeStruct": jax.ShapeDtypeStruct((), jnp.float32),
    "shape": (3,),
    "negative": -1.0,
    "nan": float("nan"),
    "vector": np.ones(3),
    "bool": True,
}


@every
def test_unflatten_never_runs_the_body(tx, bodies):
    structure = jax.tree.structure(tx)
    bodies.clear()
    for leaf in LEAVES.values():
        node = jax.tree.unflatten(structure, [leaf] * structure.num_leaves)
        assert type(node) is type(tx)
        if leaf is not None and not isinstance(leaf, tuple):
            assert jax.tree.structure(node) == structure
        repr(node), hash(node), node == tx
    assert jax.tree.unflatten(structure, jax.tree.leaves(tx)) == tx
    assert not bodies


def test_jaxs_own_walks_never_run_the_body(bodies):
    tx = gradtx.clip(1.0) >> gradtx.adam(gradtx.linear_schedule(1.0, 0.5, 3))
    bodies.clear()
    jax.eval_shape(lambda tx: tx, tx)
    jax.jit(lambda tx: tx)(tx)
    jax.vmap(lambda tx: tx, axis_size=3, in_axes=None)(tx)
    jax.tree.map(jnp.ones_like, tx)
    jax.tree.map(lambda a, b: a + b, tx, tx)
    jax.tree_util.tree_map_with_path(lambda path, leaf: leaf, tx)
    jax.tree.transpose(jax.tree.structure(tx), None, jax.tree.map(lambda leaf: [leaf, leaf], tx))
    jax.lax.scan(lambda carry, _: (carry, None), jax.tree.map(jnp.float32, tx), None, length=2)
    jax.device_put(tx)
    jax.block_until_ready(tx)
    assert not bodies


def test_prefix_trees_of_transforms_work():
    txs = jax.vmap(gradtx.sgd)(jnp.arange(1.0, 4.0))
    axes = jax.tree.map(lambda _: 0, txs)
    assert jax.vmap(lambda tx: tx.learning_rate, in_axes=(axes,))(txs).tolist() == [1.0, 2.0, 3.0]
    mixed = jax.tree.unflatten(jax.tree.structure(txs), [0, None])  # sweep the rate, share the dampening
    one = jax.tree.unflatten(jax.tree.structure(txs), [jnp.arange(3.0), 0.0])
    assert jax.vmap(lambda tx: tx.learning_rate, in_axes=(mixed,))(one).shape == (3,)


def test_a_gradient_with_respect_to_a_transform_is_a_transform():
    tx = gradtx.clip(1.0) >> gradtx.adam(0.5)
    slope = jax.grad(lambda tx: tx.update(PARAMS, tx.init(PARAMS))[0]["w"].sum())(tx)
    assert jax.tree.structure(slope) == jax.tree.structure(tx)
    assert repr(slope).startswith("clip(max_delta=array(")
    assert all(bool(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slope))
    assert float(slope.learning_rate) == pytest.approx(-3.0, rel=1e-5)


# Nothing leaks --------------------------------------------------------------------------------------------------------


def programs():
    """(name, a function that traces)."""
    tx = gradtx.clip(1.0) >> gradtx.adam(1e-3)
    fresh = jax.tree.map(lambda leaf: leaf, tx)  # nothing cached in it
    state = tx.init(PARAMS)
    step = jax.jit(lambda tx, grads, state: tx.update(grads, state, PARAMS))

    def inside(rate):
        own = gradtx.clip(1.0) >> gradtx.adam(rate)
        return jax.lax.scan(lambda carry, _: own.update(PARAMS, carry, PARAMS)[::-1], own.init(PARAMS), None, length=2)

    return {
        "passed": lambda: step(tx, PARAMS, state),
        "closed over": lambda: jax.jit(lambda grads, state: tx.update(grads, state, PARAMS))(PARAMS, state),
        "closed over, first use": lambda: jax.jit(lambda grads: fresh.update(grads, fresh.init(grads)))(PARAMS),
        "built inside": lambda: jax.jit(inside)(1e-3),
        "vmap": lambda: jax.vmap(inside)(jnp.ones(3)),
        "grad": lambda: jax.grad(lambda rate: inside(rate)[1]["w"].sum())(1e-3),
        "asked inside": lambda: jax.jit(lambda tx: (tx.expand(), hash(tx), repr(tx), tx.rules) and tx)(tx),
        "scheduled": lambda: jax.jit(lambda end: inside(gradtx.linear_schedule(1.0, end, 3)))(0.5),
        "eval_shape": lambda: jax.eval_shape(inside, 1e-3),
        "checked": lambda: jax.jit(lambda tx: gradtx.tunable(tx).update(PARAMS, gradtx.tunable(tx).init(PARAMS)))(tx),
    }


@pytest.mark.parametrize("name", programs())
def test_no_tracer_leaks(name):
    program = programs()[name]
    with jax.checking_leaks():
        jax.block_until_ready(program())


def test_no_tracer_leaks_from_a_body_that_computes():
    @gradtx.transform
    def computes(rate: gradtx.Positive = 2.0) -> Rule:
        factor = jnp.sqrt(jnp.float32(2.0))  # under jit this is a tracer, although no argument is

        def update(updates, state):
            return tree.map(lambda u, factor: factor * u, updates, factor=factor), state

        return Rule(update=update)

    fresh = jax.tree.map(lambda leaf: leaf, computes())
    with jax.checking_leaks():
        jax.jit(lambda grads: fresh.update(grads, fresh.init(grads)))(PARAMS)
    fresh.update(PARAMS, fresh.init(PARAMS))


def test_a_transform_built_under_jit_works_outside_if_its_numbers_do():
    kept = []

    @jax.jit
    def build(x):
        kept.append(gradtx.clip(1.0) >> gradtx.adam(1e-3))
        kept[0].update(PARAMS, kept[0].init(PARAMS))
        return x

    build(1.0)
    tx = kept[0]
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    assert gradtx.tree_equal(updates, gradtx.adam(1e-3).update(PARAMS, gradtx.adam(1e-3).init(PARAMS))[0])


# Key paths and JAX's messages -----------------------------------------------------------------------------------------


def test_key_paths_are_readable():
    tx = gradtx.clip(1.0) >> gradtx.adam(gradtx.linear_schedule(1.0, 0.0, 10))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tx)]
    assert paths == [
        ".stages[0].max_delta",
        ".stages[1].learning_rate.init_value",
        ".stages[1].learning_rate.end_value",
        ".stages[1].b1",
        ".stages[1].b2",
        ".stages[1].eps",
    ]


def test_key_paths_can_be_written_simply():
    tx = gradtx.clip(1.0) >> gradtx.sgd(0.1)
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(tx)]
    assert paths == ["stages/0/max_delta", "stages/1/learning_rate", "stages/1/dampening"]


def test_the_treedef_names_the_transform():
    assert "adam" in str(jax.tree.structure(gradtx.adam(1e-3)))


def arrays(tx):
    return jax.tree.map(jnp.float32, tx)


def cond(first, second):
    return jax.lax.cond(jnp.bool_(True), lambda: first, lambda: second)


def scan(first, second):
    return jax.lax.scan(lambda carry, _: (second, None), first, None, length=2)


def while_loop(first, second):
    return jax.lax.while_loop(lambda carry: True, lambda carry: second, first)


@pytest.mark.parametrize("loop", [cond, scan, while_loop])
def test_structure_errors_name_both_transforms(loop):
    with pytest.raises(TypeError, match=r"(?s)adam.*sgd"):
        loop(arrays(gradtx.adam(1e-3)), arrays(gradtx.sgd(1e-3)))


@pytest.mark.parametrize("loop", [cond, scan, while_loop])
def test_structure_errors_inside_a_composition_say_where(loop):
    first = gradtx.clip(1.0) >> gradtx.adam(1e-3)
    second = gradtx.clip(1.0) >> gradtx.sgd(1e-3)
    with pytest.raises(TypeError, match=WHERE + "adam.*sgd"):
        loop(arrays(first), arrays(second))


@pytest.mark.parametrize("loop", [cond, scan, while_loop])
def test_structure_errors_of_static_arguments_show_them(loop):
    with pytest.raises(TypeError, match=r"(?s)adam.*metadata.*False.*True"):
        loop(arrays(gradtx.adam(1e-3)), arrays(gradtx.adam(1e-3, nesterov=True)))


@pytest.mark.parametrize("loop", [cond, scan, while_loop])
def test_type_errors_name_the_hyperparameter(loop):
    halves = jax.tree.map(jnp.float16, gradtx.adam(1e-3))
    with pytest.raises(TypeError, match=r"(?s)\.learning_rate.*float32\[\].*float16\[\]"):
        loop(arrays(gradtx.adam(1e-3)), halves)


@pytest.mark.parametrize("loop", [cond, scan, while_loop])
def test_state_errors_name_the_stage(loop):
    first = gradtx.adam(1e-3).init(PARAMS)
    second = (gradtx.scale_by_momentum() >> gradtx.scale_by_learning_rate(1.0)).init(PARAMS)
    with pytest.raises(TypeError, match="scale_by_rms"):
        loop(first, second)
    second = jax.tree.map(lambda x: x, first)
    second["scale_by_rms"]["nu"]["w"] = jnp.ones(3, jnp.bfloat16)
    with pytest.raises(TypeError, match=r"\['scale_by_rms'\]\['nu'\]\['w'\]"):
        loop(first, second)


WHERE = r"(?s)stages\[1\].*" if jax.__version_info__ >= (0, 10) else "(?s)"  # older messages have no path


def test_tree_map_over_different_transforms_says_where():
    first, second = gradtx.clip(1.0) >> gradtx.adam(1e-3), gradtx.clip(1.0) >> gradtx.sgd(1e-3)
    with pytest.raises(ValueError, match=WHERE + "adam.*sgd"):
        jax.tree.map(lambda a, b: a, first, second)
    with pytest.raises(ValueError, match=WHERE + "adam"):
        jax.tree.map(lambda a, b: a, first, gradtx.clip(1.0) >> gradtx.adam(1e-3, nesterov=True))
