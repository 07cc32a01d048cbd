"""Every method of whole matrices: hard matrices give finite steps, and what goes around it may go around it.

A method has one compiled step for all gradients, and one with everything around it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import gradtx
from gradtx import MuonDimensionNumbers as Numbers
from tests.records import matrix_problem as problem
from tests.wrappers.runs import all_finite, assert_close, kinds

SHAPES = {"square": (4, 4), "row": (1, 5), "column": (5, 1), "layers": (200, 3, 5), "bias": (3,)}
LOW = ("column", "layers")


def last_two(path, leaf):
    return Numbers(-2, -1) if leaf.ndim > 1 else None


def or_a_row(path, leaf):
    return last_two(path, leaf) or Numbers((), 0)


numbered, factors = {"dimension_numbers": last_two}, {"dimension_numbers": or_a_row}

used = {"precondition_frequency": 1, "first_step": "use", "weight_decay": 0.0}
"""Of methods whose first step may be skipped. Their decay follows the step, so that it is not linear in the rate."""
METHODS = {
    "muon": functools.partial(gradtx.muon, muon_weight_dimension_numbers=last_two),
    "normuon": functools.partial(gradtx.normuon, **numbered),
    "dion2": functools.partial(gradtx.dion2, **numbered),
    "scion": functools.partial(gradtx.scion, **numbered),
    "shampoo": functools.partial(gradtx.shampoo, **factors),
    "soap": functools.partial(gradtx.soap, **used, **numbered),
    "kl_shampoo": functools.partial(gradtx.kl_shampoo, **used, **numbered),
    "kron": functools.partial(gradtx.kron, **factors),
    "came": gradtx.came,
    "galore": functools.partial(gradtx.galore, rank=2, update_proj_gap=2, weight_dimension_numbers=last_two),
    "apollo": functools.partial(gradtx.apollo, rank=2, update_proj_gap=2),
    "apollo_mini": functools.partial(gradtx.apollo_mini, update_proj_gap=2),
}
FORMULAS = {
    "orthogonalize, spectral": gradtx.orthogonalize(preconditioning="spectral"),
    "orthogonalize, aol": gradtx.orthogonalize(preconditioning="aol"),
    "orthogonalize, schatten": gradtx.orthogonalize(preconditioning="schatten"),
    "orthogonalize, bfloat16": gradtx.orthogonalize("polar_express", dtype="bfloat16", adaptive=True),
} | {f"scion, {norm}": gradtx.scion(0.1, norm=norm) for norm in ("sign", "in_rms", "out_norm", "rms")}
PARTS = {
    "shampoo, graft": gradtx.shampoo(
        0.1, b2=0.9, grafting=gradtx.scale_by_rms(0.9), precondition_frequency=2, **factors
    ),
    "soap, KL": gradtx.soap(0.1, kl=True, first_step="use", precondition_frequency=2, **numbered),
    "galore, std": gradtx.galore(0.1, 2, 2, proj_type="std", weight_dimension_numbers=last_two),
    "apollo, svd": gradtx.apollo(0.1, 2, 2, proj="svd"),
    "adafactor": gradtx.adafactor(0.1, 1),
} | {name: gradtx.by_shape(formula, gradtx.sgd(0.1), last_two) for name, formula in FORMULAS.items()}
SOME = {name: problem.scattered(shape, key) for key, (name, shape) in enumerate(SHAPES.items())}
ZERO = {name: 0 * leaf for name, leaf in SOME.items()}
GRADIENTS = {
    "zero": ZERO,
    "rank one": {name: np.ones(shape) * np.arange(shape[-1]) for name, shape in SHAPES.items()},
    "1e-20": {name: 1e-20 * leaf for name, leaf in SOME.items()},
    "1e20": {name: 1e20 * leaf for name, leaf in SOME.items()} | {"bias": SOME["bias"]},  # its squares overflow in Adam
    "condition 1e12": SOME | {"square": problem.factor(4, 1e12, 1), "layers": SOME["layers"] * 1e3 ** -np.arange(5)},
    "equal values": SOME | {"square": np.eye(4)},
}


def typed(tree):
    return {name: jnp.asarray(leaf, jnp.bfloat16 if name in LOW else jnp.float32) for name, leaf in tree.items()}


@pytest.mark.parametrize("name", [*METHODS, *PARTS])
def test_hard_matrices_give_finite_steps(name):
    """One row, one column, 200 matrices, in bfloat16 too; and the step after a gradient of zero."""
    tx = PARTS[name] if name in PARTS else METHODS[name](0.1)
    params, zero, step = typed(SOME), typed(ZERO), jax.jit(tx.update)
    start = tx.init(params)
    for what, gradient in GRADIENTS.items():
        state, gradient = start, typed(gradient)
        for given in (gradient, zero, gradient):
            updates, state = step(given, state, params)
            assert kinds(updates) == kinds(params)
            assert all_finite(updates), what
        leaves = jax.tree.leaves_with_path(state)  # in Adam squares of 1e20 are infinite, and such a step is 0
        assert all_finite([leaf for path, leaf in leaves if what != "1e20" or "'nu'" not in str(path)]), what


# What goes around --------------------------------------------------------------------------------------------------

MATRIX, BIAS = problem.scattered((4, 4), 10), problem.scattered((3,), 11)
LAYERS = problem.scattered((2, 4, 4), 12)
OF_TWO_AXES = {"came", "apollo"}  # which have no dimension numbers
RATES = np.float32([0.1, 0.05])


def around(method, rate):
    """One step for each two gradients; none for what is not finite; statistics in bfloat16; a group of its own."""
    groups = gradtx.partition({"all": gradtx.stored(method(rate), "bfloat16")}, {"*": "all"})
    return gradtx.accumulate(gradtx.skip_nonfinite(groups, 3), 2)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "apollo_mini"])  # it is apollo
def test_wrappers_around_it_do_what_they_say(name):
    """Two learning rates at once, with a donated state, saved and read by name in between."""
    make = functools.partial(around, METHODS[name])
    matrix = MATRIX if name in OF_TWO_AXES else LAYERS
    one, params = make(0.1), {"matrix": jnp.float32(matrix), "bias": jnp.float32(BIAS)}
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, one.init(params)))]
    assert len(set(buffers)) == len(buffers), "params and state cannot be donated together"
    txs = jax.vmap(make)(RATES)
    state = jax.vmap(lambda tx: tx.init(params))(txs)
    mapped = jax.vmap(lambda tx, g, state: tx.update(g, state, params), in_axes=(0, None, 0))
    step = jax.jit(mapped, donate_argnums=2)

    def two_steps(gradient, state):
        waiting, state = step(txs, gradient, state)
        assert not any(leaf.any() for leaf in jax.tree.leaves(waiting))
        return step(txs, gradient, state)

    first, state = two_steps(params, state)
    plain = METHODS[name](0.1)
    expected, _ = plain.update(params, plain.init(params), params)
    assert_close(jax.tree.map(lambda leaf: leaf[0], first), expected, 256)
    assert_close(jax.tree.map(lambda leaf: leaf[1], first), jax.tree.map(lambda leaf: leaf / 2, expected), 256)
    for place in plain.declared:
        assert jax.tree.leaves(gradtx.find(state, "/".join(place)))
    fault, state = two_steps(params | {"bias": params["bias"] * np.nan}, state)
    assert not any(leaf.any() for leaf in jax.tree.leaves(fault))
    saved = serialization.to_bytes(state)
    later, state = two_steps(params, state)
    again, _ = two_steps(params, serialization.msgpack_restore(saved))
    assert all_finite((later, state))
    assert gradtx.tree_equal(later, again)
    assert any(leaf.any() for leaf in jax.tree.leaves(later))
