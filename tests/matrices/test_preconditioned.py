"""Shampoo and PSGD-Kron against the outside implementations, in float64, and what they are by definition."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.matrices.kronecker import kron
from tests.records import matrix_problem as problem

pytestmark = pytest.mark.usefixtures("x64")

PATHS = json.loads((pathlib.Path(__file__).parent.parent / "golden" / "matrices.json").read_text())["paths"]
LR = 2.0**-5
ADAM = {"grafting": gradtx.scale_by_rms(0.75, 1e-6), "b2": 0.95}
LATE = {"precondition_frequency": 5, "start_preconditioning_step": 10}
ADAGRAD, RMSPROP = gradtx.scale_by_adagrad(0.0, 1e-6, eps_in_sqrt=False), gradtx.scale_by_rms(0.75, 1e-6, debias=False)
ROW = gradtx.MuonDimensionNumbers((), (0, 1))
ONE_SIDE = gradtx.scale_by_momentum(0.9) + gradtx.scale_by_shampoo(0.95, 1e-3, max_preconditioner_dim=4)
make = functools.partial(gradtx.shampoo, LR)
SHAMPOO = {
    "": make(eps=1e-6),
    ", eps 1e-12": make(),
    ", beta2, f 5": make(b2=0.95, eps=1e-3, precondition_frequency=5),
    ", Adam graft, decay": make(eps=1e-6, weight_decay=0.5, **ADAM),
    ", Adam graft, start 10": make(eps=1e-6, **ADAM, **LATE),
    ", no graft, start 10": make(eps=1e-6, **LATE),
    ", SGD graft": make(b2=0.95, eps=1e-3, grafting=gradtx.identity()),
    ", AdaGrad graft": make(eps=1e-3, grafting=ADAGRAD, **LATE),
    ", RMSprop graft": make(eps=1e-3, grafting=RMSPROP, **LATE),
    ", no bias correction": make(b2=0.95, eps=1e-3, debias=False),
    ", beta1 0": make(b1=0.0, b2=0.95, eps=1e-3),
    ", blocks of 3": make(eps=1e-3, max_preconditioner_dim=3, **ADAM),
    ", merged": make(b2=0.95, eps=1e-3, dimension_numbers=ROW),
    ", one side": gradtx.as_matrices(ONE_SIDE) >> gradtx.scale_by_learning_rate(LR),
}
KRON = [name for name in PATHS if name.startswith("kron: psgd-jax")]


def path(tx, leaves, extra=lambda t: {}):
    """The params after the steps that are compared, by leaf."""
    x = jax.tree.map(jnp.asarray, problem.params(*leaves))
    state, step, shown = tx.init(x), jax.jit(tx.update), []
    for t in range(problem.STEPS):
        gradient = jax.tree.map(jnp.asarray, problem.gradient(jax.tree.map(np.asarray, x)))
        updates, state = step(gradient, state, x, **extra(t))
        x = jax.tree.map(jnp.add, x, updates)
        shown += [x] if t + 1 in problem.SHOWN else []
    return {name: np.array([np.ravel(x[name]) for x in shown]) for name in leaves}


@pytest.mark.parametrize("case", SHAMPOO)
def test_shampoo_is_distributed_shampoo(case):
    said = PATHS[f"shampoo: meta{case}"]
    # Its blocks are cut otherwise where they do not divide a side.
    compared = ["bias"] if "blocks" in case else said["leaves"]
    found = path(SHAMPOO[case], compared)
    for name in compared:
        np.testing.assert_allclose(found[name], said["path"][name], rtol=0, atol=1e-11, err_msg=name)


def test_exponents_are_those_of_distributed_shampoo():
    said = PATHS["shampoo: meta, exponents"]["path"]
    for leaf, exponent in (("wide", 0.5), ("bias", 0.25)):
        found = path(make(b2=0.95, eps=1e-3, exponent=exponent), [leaf])
        np.testing.assert_allclose(found[leaf], said[leaf], rtol=0, atol=1e-10)


def probes(t, leaves=("bias", "wide")):
    values = PATHS["kron: probes"]["values"]
    return {name: jnp.asarray(values[name][t]).reshape(problem.SHAPES[name]) for name in leaves}


def annealed(max_prob, min_prob, decay, flat_start):
    return lambda count: jnp.clip(max_prob * jnp.exp(-decay * (count + 1 - flat_start)), min_prob, max_prob)


@pytest.mark.parametrize("case", KRON)
def test_kron_is_psgd_jax_with_its_probes(case):
    said = PATHS[case]
    ours = dict(said["arguments"])
    ours["balance_probability"] = 1.0 if ours.pop("balance", None) else 0.0
    probability = ours.get("preconditioner_update_probability")
    if isinstance(probability, list):
        ours["preconditioner_update_probability"] = annealed(**probability[1])
    found = path(gradtx.kron(**ours), said["leaves"], lambda t: {"probe": probes(t, said["leaves"])})
    for name in said["leaves"]:
        np.testing.assert_allclose(found[name], said["path"][name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", [name for name in PATHS if name.startswith("kron: one update")])
def test_one_update_of_the_factors(case):
    values, leaf = PATHS[case]["values"], PATHS[case]["arguments"]["leaf"]
    g, v = jnp.asarray(problem.gradient(problem.params(leaf))[leaf]), probes(0)[leaf]
    start = tuple(map(jnp.asarray, values["start"]))
    rows = (jnp.ones(1),) if g.ndim == 1 else ()
    g, v = jnp.atleast_2d(g), jnp.atleast_2d(v)
    new = jax.jit(kron.fitted)((*rows, *start), g, v, 0.1)
    new = (*rows, *new[len(rows) :])
    for own, theirs in zip(new[len(rows) :], values["updated"], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)
    u = kron.preconditioned(new, g)
    np.testing.assert_allclose(np.ravel(u), np.ravel(values["preconditioned"]), rtol=0, atol=1e-14)


def test_the_lower_bound_of_a_norm():
    for name, value in PATHS["kron: norm lower bound"]["values"].items():
        a = np.zeros((5, 5)) if name == "zero" else problem.factor(5, 10, int(name.split()[1]))
        np.testing.assert_allclose(kron.norm_lower_bound(jnp.asarray(a @ a.T)), value, rtol=1e-14)


def test_a_side_of_two_has_a_triangular_factor():
    state = gradtx.scale_by_kron().init(jnp.ones((2, 3)))
    assert [gradtx.find(state, side).shape for side in ("left", "right")] == [(2, 2), (3, 3)]


def test_the_first_step_of_shampoo_is_the_polar_factor():
    g = problem.factor(6, 10, 3)
    u, _, vt = np.linalg.svd(g)
    tx = gradtx.scale_by_shampoo()
    np.testing.assert_allclose(tx.update(jnp.asarray(g), tx.init(g))[0], u @ vt, atol=1e-9)


def test_without_roots_shampoo_is_its_graft():
    x = {"w": jnp.asarray(problem.scattered((4, 3), 1)), "b": jnp.asarray(problem.scattered((5,), 2))}
    grafted = gradtx.shampoo(0.1, grafting=gradtx.scale_by_rms(0.999), start_preconditioning_step=10**9)
    states, txs = {}, {"graft": grafted, "adam": gradtx.adam(0.1)}
    for _ in range(3):
        found = {}
        for name, tx in txs.items():
            found[name], states[name] = tx.update(x, states.get(name) or tx.init(x), x)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13), found["graft"], found["adam"])


def test_kron_whitens():
    """A fixed Gaussian with a Kronecker covariance of condition 1e4: that of the update has eigenvalues near 1."""
    a, b = (10.0 ** np.linspace(0, -1, 4) for _ in range(2))
    steps = lambda rate: gradtx.scale_by_kron(1.0, preconditioner_lr=rate, balance_probability=0.0)  # noqa: E731

    def gradient(key):
        return jnp.asarray(a)[:, None] * jax.random.normal(key, (4, 4)) * jnp.asarray(b)[None]

    state = steps(0.1).init(jnp.zeros((4, 4)))
    keys = jax.random.split(jax.random.key(1), (2, 1500))
    for rate, some in zip((0.1, 0.01), keys, strict=True):
        tx = steps(rate)
        state, _ = jax.lax.scan(lambda s, key, tx=tx: (tx.update(gradient(key), s)[1], None), state, some)
    left, right = (np.asarray(gradtx.find(state, name)) for name in ("left", "right"))
    one, other = (q.T @ q @ np.diag(sizes**2) @ q.T @ q for q, sizes in ((left, a), (right, b)))
    covariance = np.kron(one, other)
    eigenvalues = np.linalg.eigvals(covariance).real
    assert eigenvalues.min() > 0.6
    assert eigenvalues.max() < 1.6


def test_a_root_that_fails_keeps_the_previous_one_and_is_counted():
    tx, g = gradtx.scale_by_shampoo(eps=0.0), jnp.diag(jnp.array([1.0, 0.0]))
    _, state = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(gradtx.find(state, "left_root"), np.eye(2))
    assert gradtx.find(state, "failures") == 1


@pytest.mark.parametrize("size", [1e200, np.inf, np.nan])
def test_averages_that_are_not_finite_stay_as_they_were_and_roots_go_on(size):
    tx, g = gradtx.scale_by_shampoo(0.9, 1e-3), jnp.eye(2)
    _, state = tx.update(g, tx.init(g))
    before = gradtx.find(state, "left"), gradtx.find(state, "right")
    _, state = tx.update(jnp.full((2, 2), size), state)
    assert gradtx.tree_equal((gradtx.find(state, "left"), gradtx.find(state, "right")), before)
    assert gradtx.find(state, "failures") == 1
    _, state = tx.update(2 * g, state)
    assert gradtx.find(state, "failures") == 1
    np.testing.assert_allclose(gradtx.find(state, "left"), 0.49 * np.eye(2), rtol=1e-12)


def test_blocks_are_matrices_of_their_own():
    g = jnp.asarray(problem.scattered((6, 5), 1))
    whole, part = gradtx.in_blocks(gradtx.scale_by_shampoo(eps=1e-3), 3), gradtx.scale_by_shampoo(eps=1e-3)
    found = whole.update(g, whole.init(g))[0]
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 3), slice(3, 5)):
            block = g[rows, columns]
            np.testing.assert_allclose(found[rows, columns], part.update(block, part.init(block))[0], atol=1e-13)


def test_a_batch_of_matrices_is_cut_matrix_by_matrix():
    g = jnp.asarray(problem.scattered((2, 6, 5), 1))
    blocks = gradtx.in_blocks(gradtx.scale_by_shampoo(eps=1e-3), 3)
    batch = gradtx.as_matrices(blocks, gradtx.MuonDimensionNumbers(1, 2))
    found = batch.update(g, batch.init(g))[0]
    for number, one in enumerate(g):
        np.testing.assert_allclose(found[number], blocks.update(one, blocks.init(one))[0], atol=1e-6)
