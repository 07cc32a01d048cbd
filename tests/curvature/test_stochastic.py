"""Sophia and AdaHessian: the authors' paths, optax's, and estimates that are right on average."""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.curvature import stochastic
from tests import curvature_peers as peers
from tests.records import matrix_problem as problem
from tests.running import slope, slope_at_labels

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "curvature.json").read_text())
BARTLETT = {"estimator": "gauss_newton_bartlett"}
EACH = {"sampled_grad_fn": lambda params, key: {name: peers.at_labels(name, x) for name, x in params.items()}}
EACH["grad_fn"] = lambda params: {name: peers.gradient(name, x) for name, x in params.items()}


def extra_of(tx, functions=EACH):
    return {name: functions[name] for name in tx.facts.extra & functions.keys()}


# Others' paths --------------------------------------------------------------------------------------------------------


def path(tx):
    """Ours on the problem of `tests/curvature_peers.py`."""
    x, rows = {name: jnp.asarray(leaf) for name, leaf in problem.params(*peers.LEAVES).items()}, []
    state, update = tx.init(x), jax.jit(functools.partial(tx.update, **extra_of(tx)))
    for _ in range(peers.STEPS):
        updates, state = update(EACH["grad_fn"](x), state, x)
        x = gradtx.apply_updates(x, updates)
        rows.append(x)
    return {name: np.array([rows[at - 1][name].ravel() for at in peers.SHOWN]) for name in x}


def difference(ours, theirs):
    """The largest, over the longest way of a param of its leaf."""
    starts = problem.params(*peers.LEAVES)
    return max(
        np.abs(ours[name] - rows).max() / np.abs(rows - starts[name].ravel()).max()
        for name, rows in ((name, np.array(rows)) for name, rows in theirs.items())
    )


def of_author(method, said):
    """Our method with the author's arguments."""
    names = {"lr": "learning_rate", "rho": "gamma", "bs": "batch_size"}
    said = dict(said)
    betas = said.pop("betas", None)
    said = {names.get(name, name): value for name, value in said.items()} | (
        dict(zip(("b1", "b2"), betas, strict=True)) if betas else {}
    )
    if method == "SophiaG":
        return gradtx.sophia(**said, **BARTLETT, eps=1e-15, update_interval=peers.EVERY)
    return gradtx.adahessian(**said)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", GOLDEN["paths"])
def test_the_path_is_the_authors(name):
    case = GOLDEN["paths"][name]
    tx = of_author(name.split()[0], case["arguments"])
    assert difference(path(tx), case["path"]) < 1e-14
    moved = tx.replace(learning_rate=(1 + 1e-9) * tx.learning_rate)
    assert difference(path(moved), case["path"]) > 1e-11


@pytest.mark.usefixtures("x64")
def test_kernels_are_those_with_four_axes_and_their_average_can_be_left_out():
    case = GOLDEN["paths"]["Adahessian 0"]
    ours = path(gradtx.adahessian(average_kernels=False))
    apart = {name: difference(ours, {name: rows}) for name, rows in case["path"].items()}
    assert apart["kernel"] < 1e-14 > apart["bias"]
    assert apart["conv"] > 1e-2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "arguments",
    [{}, {"b1": 0.9, "b2": 0.75, "gamma": 2.0, "eps": 1e-3, "weight_decay": 0.1, "clip_threshold": 2.0}],
    ids=["defaults", "others"],
)
@pytest.mark.parametrize("interval", [1, 3])
def test_sophia_is_that_of_optax(arguments, interval):
    """On a diagonal quadratic with both signs, where every z gives the diagonal."""
    diagonal = jnp.asarray(np.concatenate([10.0 ** np.linspace(-3, 2, 20), [-0.5]]))
    start = jnp.asarray(np.random.default_rng(0).normal(size=21))
    loss = lambda x: 0.5 * jnp.sum(diagonal * x * x)  # noqa: E731
    arguments = arguments | {"update_interval": interval}

    def run(tx, extra):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jax.grad(loss)(x), state, x, **extra)
            return (x + updates, state), x + updates

        return jax.lax.scan(step, (start, tx.init(start)), length=60)[1]

    ours = run(gradtx.sophia(0.05, **arguments), {"grad_fn": jax.grad(loss)})
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = run(optax.contrib.sophia(0.05, **arguments), {"obj_fn": loss})
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert np.abs(ours - theirs).max() < 1e-14 * np.abs(theirs - np.asarray(start)).max()


# Estimates ------------------------------------------------------------------------------------------------------------

MATRIX = np.array([[2.0, 1.0, 0.0, -1.0], [1.0, -1.0, 0.5, 0.0], [0.0, 0.5, 0.5, 3.0], [-1.0, 0.0, 3.0, 1.5]])


def quadratic(x):
    """The gradient of a quadratic function of two leaves, whose Hessian is MATRIX."""
    g = jnp.asarray(MATRIX, x["a"].dtype) @ jnp.concatenate([x["a"], x["b"]])
    return {"a": g[:1], "b": g[1:]}


AT = {"a": jnp.array([0.3]), "b": jnp.array([1.0, -2.0, 0.1])}


def flat(values):
    return np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(values)])


def estimates(estimate, number, seed=0):
    """As many estimates, each with the next key."""

    def step(key, _):
        drawn, following = estimate(key)
        return following, jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(drawn)])

    first = jax.random.key_data(jax.random.key(seed))
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, first, length=number)[1])(), np.float64)


def assert_unbiased(drawn, expected):
    """The mean is within five standard errors; an estimate alone is not."""
    error = drawn.std(axis=0) / len(drawn) ** 0.5
    assert (np.abs(drawn.mean(axis=0) - expected) <= 5 * error + 1e-6).all()
    assert (drawn.std(axis=0) > 0.01 * np.abs(expected)).all()


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_hutchinsons_estimate_is_the_diagonal_on_average(distribution):
    drawn = estimates(lambda key: stochastic.hutchinson("x", quadratic, AT, key, distribution), 4000)
    assert_unbiased(drawn, MATRIX.diagonal())
    # The variance of z ∘ Hz: sum of the squares beside the diagonal; with normal z that and twice the diagonal's.
    beside = (MATRIX**2).sum(1) - MATRIX.diagonal() ** 2
    expected = beside if distribution == "rademacher" else beside + 2 * MATRIX.diagonal() ** 2
    np.testing.assert_allclose(drawn.var(axis=0), expected, rtol=0.2)


def test_each_estimate_is_that_of_some_signs():
    """z ∘ Hz for one of the 16 vectors z = ±1, nearly all of which are drawn: of both leaves, and at each step anew."""
    drawn = estimates(lambda key: stochastic.hutchinson("x", quadratic, AT, key), 100)
    possible = np.array([z * (MATRIX @ z) for z in itertools.product((-1, 1), repeat=4)])
    nearest = np.abs(drawn[:, None] - possible).max(axis=2)
    assert nearest.min(axis=1).max() < 1e-6
    assert len(np.unique(np.round(drawn, 3), axis=0)) == 8  # z and -z give the same


SAMPLES = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)


def logistic(w, labels):
    """The mean loss of a logistic regression."""
    logits = SAMPLES @ w
    return jnp.mean(jnp.logaddexp(0, logits) - labels * logits)


def at_drawn_labels(w, key):
    labels = jax.random.bernoulli(key, jax.nn.sigmoid(SAMPLES @ w)).astype(np.float32)
    return jax.grad(logistic)(w, labels)


def test_gauss_newton_bartlett_is_the_diagonal_of_the_gauss_newton_matrix_on_average():
    """Of a logistic regression, where it is also the Hessian's; the labels of the loss do not matter."""
    w = jnp.array([0.5, -1.0, 0.2])
    drawn = estimates(lambda key: stochastic.squared_gradient("x", at_drawn_labels, w, key), 4000)
    exact = jnp.diag(jax.hessian(logistic)(w, jnp.zeros(16)))
    assert_unbiased(len(SAMPLES) * drawn, np.asarray(exact))
    assert (drawn >= 0).all()


def test_the_scalings_average_these_estimates():
    """With decay 0 the state holds the last estimate: z ∘ Hz, or the square of |Hz|."""
    possible = np.array([z * (MATRIX @ z) for z in itertools.product((-1, 1), repeat=4)])
    of_sophia = gradtx.scale_by_hessian_diagonal(0.0, update_interval=1)
    of_adahessian = gradtx.scale_by_hessian_rms(0.0)
    for tx, power in [(of_sophia, 1), (of_adahessian, 2)]:
        _, state = tx.update(AT, tx.init(AT), AT, grad_fn=quadratic)
        kept = flat(gradtx.find(state, "hessian" if power == 1 else "nu"))
        assert np.abs(possible**power - kept).max(axis=1).min() < 1e-5


def test_keys_are_those_of_the_seed():
    runs = []
    for seed in (0, 0, 1):
        tx = gradtx.scale_by_hessian_diagonal(0.0, update_interval=1, key=seed)
        state = tx.init(jnp.ones(64))
        dense = lambda w: jnp.flip(w)  # noqa: E731 - H has nothing on its diagonal
        runs.append(tx.update(jnp.ones(64), state, jnp.ones(64), grad_fn=dense)[1])
    assert gradtx.tree_equal(runs[0], runs[1])
    assert not gradtx.tree_equal(runs[0], runs[2])


def test_the_labels_of_each_estimate_have_a_key_of_their_own():
    seen = []
    tx = gradtx.scale_by_hessian_diagonal(update_interval=2, batch_size=1.0, **BARTLETT)
    state = tx.init(AT)
    for _ in range(5):
        _, state = tx.update(AT, state, AT, sampled_grad_fn=lambda w, key: seen.append(key) or w)
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in seen}) == len(seen) == 3


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.sophia(0.1, update_interval=4),
        gradtx.sophia(0.1, update_interval=4, batch_size=2.0, **BARTLETT),
        gradtx.adahessian(update_interval=4),
    ],
    ids=["sophia-h", "sophia-g", "adahessian"],
)
def test_an_estimate_is_made_at_the_first_step_and_then_at_each_fourth(tx):
    asked, made = [], []
    functions = {"grad_fn": lambda w: asked.append(len(made)) or slope(w)}
    functions["sampled_grad_fn"] = lambda w, key: asked.append(len(made)) or slope_at_labels(w, key)
    state = tx.init(AT)
    for step in range(10):
        made.append(step)
        _, state = tx.update(AT, state, AT, **extra_of(tx, functions))
    assert asked == [1, 5, 9]
    program = jax.make_jaxpr(lambda g, s, w: tx.update(g, s, w, **extra_of(tx, functions)))(AT, state, AT)
    branches = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "cond"]
    assert len(branches) == 1  # compiled, it is one branch for all leaves
    outside = [eqn.primitive.name for eqn in program.jaxpr.eqns]
    assert "atan" not in outside
    assert "random_bits" not in outside


# At the edges ---------------------------------------------------------------------------------------------------------

METHODS = {
    "sophia-h": gradtx.sophia(0.1, update_interval=2),
    "sophia-h, no eps": gradtx.sophia(0.1, eps=0.0, update_interval=2),
    "sophia-g": gradtx.sophia(0.1, update_interval=2, batch_size=2.0, **BARTLETT),
    "adahessian": gradtx.adahessian(hessian_power=0.5),
    "adahessian, no eps": gradtx.adahessian(eps=0.0),
}


SIZES = np.array(list(itertools.product((0.0, 1e-20, 1e20), (0.0, 1e-20, 1.0, -1.0, 1e20))), np.float32)
"""Of the gradient and of the curvature."""


@pytest.mark.parametrize("tx", METHODS.values(), ids=METHODS)
def test_steps_are_finite_at_the_edges(tx):
    """No gradient, no curvature; huge and tiny ones; one element; bfloat16."""
    params = {"kernel": jnp.ones((2, 3)), "row": jnp.ones((1, 4), jnp.bfloat16), "number": jnp.ones(())}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0))
    def last(size, curvature):
        times = lambda w: jax.tree.map(lambda leaf: leaf * curvature.astype(leaf.dtype), w)  # noqa: E731
        functions = {"grad_fn": times, "sampled_grad_fn": lambda w, key: times(w)}
        state = tx.init(params)
        for _ in range(3):
            gradient = jax.tree.map(lambda w: jnp.full_like(w, size), params)
            updates, state = tx.update(gradient, state, params, **extra_of(tx, functions))
        return updates

    updates = last(*SIZES.T)
    for name, rows in updates.items():
        assert rows.dtype == params[name].dtype
        rows = np.asarray(rows, np.float32)
        assert np.isfinite(rows).all(), name
        assert np.abs(rows[SIZES[:, 0] == 0]).max() < 1e-3  # the decay alone


def test_the_power_zero_leaves_the_average_as_it_is():
    tx = gradtx.scale_by_hessian_rms(hessian_power=0.0, eps=0.0)
    for grad_fn in (slope, jnp.zeros_like):
        np.testing.assert_allclose(tx.update(3.0, tx.init(2.0), 2.0, grad_fn=grad_fn)[0], 3.0)


# Inside wrappers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tx", [METHODS["sophia-h"], METHODS["sophia-g"]], ids=["grad_fn", "sampled_grad_fn"])
def test_wrappers_pass_the_functions_on_in_the_form_that_the_method_sees(tx):
    params, functions = {"a": AT["b"], "b": AT["b"][:2]}, {"grad_fn": slope, "sampled_grad_fn": slope_at_labels}

    def last(tx, functions=functions, factor=1.0, params=params):
        state = tx.init(params)
        for _ in range(4):
            gradient = jax.tree.map(lambda w: factor * w, params)
            updates, state = tx.update(gradient, state, params, **extra_of(tx, functions))
        return updates

    alone = last(tx)
    for wrapped in (
        gradtx.skip_nonfinite(tx, 3),
        gradtx.pack(tx, min_leaves=2),
        gradtx.masked(tx, "*"),
        gradtx.partition({"x": tx, "y": tx}, {"a": "x", "b": "y"}),
        gradtx.master_weights(tx),
        gradtx.split_real_and_imaginary(tx),
    ):
        assert gradtx.global_norm(jax.tree.map(jnp.subtract, last(wrapped), alone)) < 1e-6
    eight = {"grad_fn": lambda w: jax.tree.map(lambda g: 8 * g, slope(w))}
    eight["sampled_grad_fn"] = lambda w, key: jax.tree.map(lambda g: 8 * g, slope_at_labels(w, key))
    scaled = last(gradtx.loss_scaling(tx, 8.0), eight, 8.0)
    assert gradtx.global_norm(jax.tree.map(jnp.subtract, scaled, alone)) < 1e-6
    # Low precision: the method sees float32 params, the functions bfloat16 ones.
    seen, low = [], jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    looking = {"grad_fn": lambda w: seen.append(w["a"].dtype) or slope(w)}
    looking["sampled_grad_fn"] = lambda w, key: seen.append(w["a"].dtype) or slope_at_labels(w, key)
    last(gradtx.master_weights(tx), looking, params=low)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


# In training ----------------------------------------------------------------------------------------------------------

DATA = {"x": SAMPLES, "y": (SAMPLES[:, 0] > SAMPLES[:, 1]).astype(np.float32)}


def of_batch(w, batch):
    logits = batch["x"] @ w
    return jnp.mean(jnp.logaddexp(0, logits) - batch["y"] * logits)


def with_drawn_labels(w, batch, *, key):
    labels = jax.random.bernoulli(key, jax.nn.sigmoid(batch["x"] @ w)).astype(np.float32)
    return of_batch(w, batch | {"y": labels})


SOPHIA_G = gradtx.sophia(0.1, gamma=1.0, update_interval=2, batch_size=4.0, **BARTLETT)


def by_hand(tx, steps):
    """The loop that one would write oneself."""
    w, state = jnp.zeros(3), tx.init(jnp.zeros(3))
    for step in range(steps):
        epoch, place = divmod(step, 4)
        order = gradtx.sample_batches(jax.random.fold_in(jax.random.key(0), epoch), 16, 4).full[place]
        batch = {name: jnp.asarray(rows)[order] for name, rows in DATA.items()}
        functions = {"grad_fn": jax.grad(lambda w, batch=batch: of_batch(w, batch))}
        functions["sampled_grad_fn"] = lambda w, key, batch=batch: jax.grad(with_drawn_labels)(w, batch, key=key)
        updates, state = tx.update(functions["grad_fn"](w), state, w, **extra_of(tx, functions))
        w = gradtx.apply_updates(w, updates)
    return w


@pytest.mark.parametrize("tx", [gradtx.sophia(0.1, gamma=1.0, update_interval=2), SOPHIA_G, gradtx.adahessian()])
def test_minimize_provides_the_functions_at_the_batch_of_the_step(tx):
    sampled = {"sampled_loss": with_drawn_labels} if "sampled_grad_fn" in tx.facts.extra else {}
    result = gradtx.minimize(of_batch, jnp.zeros(3), tx, DATA, batch_size=4, steps=6, **sampled)
    np.testing.assert_allclose(result.params, by_hand(tx, 6), rtol=1e-4, atol=1e-6)
    if sampled:
        scaled = gradtx.loss_scaling(tx, 8.0)
        again = gradtx.minimize(of_batch, jnp.zeros(3), scaled, DATA, batch_size=4, steps=6, **sampled)
        np.testing.assert_allclose(again.params, result.params, rtol=1e-4, atol=1e-6)


def test_a_sweep_gives_the_sampled_loss_to_those_that_need_it():
    options = {"data": DATA, "batch_size": 4, "steps": 6, "sampled_loss": with_drawn_labels}
    rates = jnp.array([0.05, 0.1])
    kinds = [jax.vmap(lambda rate: SOPHIA_G.replace(learning_rate=rate))(rates), gradtx.adam(0.1)]
    result = gradtx.sweep(of_batch, lambda key: jnp.zeros(3), kinds, **options)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[1]
    alone = gradtx.minimize(of_batch, jnp.zeros(3), SOPHIA_G, key=key, **options)
    np.testing.assert_allclose(result.history["loss"][1], alone.history["loss"], rtol=1e-5)
