"""Muon and its kin: the paths of other implementations, coefficients, and what the directions leave unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import MuonDimensionNumbers as Numbers
from gradtx.core import selection
from gradtx.matrices import newton_schulz
from tests import matrix_paths
from tests.records import matrix_problem as problem

LR = 2.0**-5
TORCH = {"eps": 1e-7, "eps_in_max": True, "form": "average"}
AUTHOR = {"eps": 1e-7, "form": "average"}
LAYERS = Numbers(1, 2)
DION = {"ns_coeffs": "polar_express", "ns_eps": 0.05e-8, "eps": 1e-8}
CONV = {"*conv": Numbers((0, 1, 2), 3), "*": None}

OURS = {
    "muon: torch": gradtx.muon(LR, **TORCH),
    "muon: torch, match_rms_adamw": gradtx.muon(LR, consistent_rms=0.2, **TORCH),
    "muon: torch, no nesterov": gradtx.muon(LR, nesterov=False, **TORCH),
    "muon: torch, decay": gradtx.muon(LR, beta=0.875, weight_decay=0.5, **TORCH),
    "muon: torch, ns": gradtx.muon(LR, (2.0, -1.5, 0.5), 9, **(TORCH | {"eps": 0.5})),
    "muon: author": gradtx.muon(LR, weight_decay=0.5, **AUTHOR),
    "muon: optax": gradtx.muon(LR),
    "muon: optax, no nesterov": gradtx.muon(LR, nesterov=False),
    "muon: optax, adaptive": gradtx.muon(LR, adaptive=True, beta=0.875),
    "muon: optax, consistent_rms": gradtx.muon(LR, consistent_rms=0.2, weight_decay=0.5),
    "muon: optax, spectral": gradtx.muon(LR, preconditioning="spectral"),
    "muon: optax, aol": gradtx.muon(LR, preconditioning="aol"),
    "muon: optax, schatten": gradtx.muon(LR, preconditioning="schatten"),
    "muon: optax, you": gradtx.muon(LR, "dion"),
    "muon: optax, the rest": gradtx.muon(LR, adam_weight_decay=0.5, adam_learning_rate=LR / 2),
    "muon: optax, dimension numbers": gradtx.muon(
        LR, muon_weight_dimension_numbers={"conv": Numbers((0, 1, 2), 3), "stack": Numbers(1, 2)}
    ),
    "normuon: author": gradtx.normuon(LR, weight_decay=0.5),
    "normuon: author, betas": gradtx.normuon(LR, 0.875, 0.75),
    "normuon: dion": gradtx.normuon(LR, weight_decay=0.5, nesterov=False, at_least_one=False, **DION),
    "normuon: dion, rms_norm": gradtx.normuon(LR, beta2=0.75, weight_decay=0.01, consistent_rms=0.2, **DION),
    "scion: Spectral": gradtx.scion(LR, 0.9, 2.0, norm="spectral"),
    "scion: Spectral, max": gradtx.scion(LR, 0.9, norm="spectral", at_least_one=True, unconstrained=True),
    "scion: Spectral, not normalized": gradtx.scion(LR, 0.9, norm="spectral", normalized=False, ns_steps=7),
    "scion: Sign": gradtx.scion(LR, 0.9, 4.0, norm="sign"),
    "scion: Sign, not normalized": gradtx.scion(LR, 0.9, norm="sign", normalized=False, unconstrained=True),
    "scion: ColNorm": gradtx.scion(LR, 0.9, norm="in_rms", normalized=False),
    "scion: ColNorm, normalized": gradtx.scion(LR, 0.9, 2.0, norm="in_rms"),
    "scion: RowNorm": gradtx.scion(LR, 0.9, norm="out_norm"),
    "scion: RowNorm, not normalized": gradtx.scion(LR, 0.9, norm="out_norm", normalized=False),
    "scion: BiasRMS": gradtx.scion(LR, 0.9, norm="rms", unconstrained=True),
    "scion: SpectralConv": gradtx.scion(LR, 0.9, 0.5, dimension_numbers=CONV),
    "scion: Auto, momentum 1": gradtx.scion(LR, 0.0),
    "normuon: dion, stack": gradtx.normuon(
        LR, weight_decay=0.01, nesterov=False, at_least_one=False, dimension_numbers=LAYERS, **DION
    ),
    "dion2: fraction 0.5, stack": gradtx.dion2(LR, 0.5, dimension_numbers=LAYERS),
    "dion2: fraction 1": gradtx.dion2(LR, 1.0, weight_decay=0.5),
    "dion2: fraction 0.5": gradtx.dion2(LR, 0.5),
    "dion2: fraction 0.5, you": gradtx.dion2(LR, 0.5, 0.75, ns_coeffs="you", consistent_rms=0.2),
}
ELSEWHERE = {
    "muon: dion": "sqrt(fan_out / fan_in) without a maximum is a part: scale_by_fans(at_least_one=False)",
    "muon: dion, you, rms_norm": "cautious weight decay is a part of its own",
    "muon: dion, conv": "as the one before",
    "muon: dion, stack": "as the one before",
    "muon: dion, split_sizes": "as the one before",
    "muon: dion, num_heads": "as the one before",
    "scion: ColNorm, transpose": "an embedding that torch stores the other way round is a kernel (in, out) here",
}
"""The cases that are no argument of a named method, and why."""


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OURS)
def test_its_path_is_the_committed_one(name):
    """Within rounding; but for NorMuon, whose authors add an eps to a norm where ours divides by it."""
    case = matrix_paths.read(name)
    allowed = 1e-10 if name.startswith("normuon: author") else 1e-8 if "normuon" in name else matrix_paths.allowed(case)
    assert matrix_paths.difference(matrix_paths.path(OURS[name], case), case) < allowed


def test_every_committed_path_is_asked_for():
    every = matrix_paths.golden()["paths"]
    trajectories = {name for name, case in every.items() if case["family"] == "orthogonal" and "path" in case}
    assert OURS.keys() | ELSEWHERE.keys() == trajectories


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("muon: dion", None),
        ("muon: dion, conv", Numbers((0, 1, 2), 3)),
        ("muon: dion, stack", LAYERS),
        ("muon: dion, split_sizes", Numbers(0, 1, parts=(1, 3))),
        ("muon: dion, num_heads", Numbers(0, 1, parts=2)),
    ],
)
def test_parts_that_are_no_argument(name, numbers):
    """Dion's Muon out of parts, with its matrices of a leaf."""
    case = matrix_paths.read(name)
    direction = gradtx.scale_by_muon("polar_express", nesterov=case["arguments"].get("nesterov", False), form="sum")
    matrix = gradtx.as_matrices(direction >> gradtx.scale_by_fans(at_least_one=False), numbers)
    decay = gradtx.add_decayed_weights(case["arguments"].get("weight_decay", 0.01))
    tx = matrix >> decay >> gradtx.scale_by_learning_rate(LR)
    assert matrix_paths.difference(matrix_paths.path(tx, case), case) < matrix_paths.allowed(case)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("orthogonalize: dion, polar_express", {"ns_coeffs": "polar_express"}),
        ("orthogonalize: dion, you", {"ns_coeffs": "you", "eps": 1e-7}),
        ("orthogonalize: optax, spectral", {"preconditioning": "spectral"}),
        ("orthogonalize: optax, aol", {"preconditioning": "aol"}),
        ("orthogonalize: optax, schatten", {"preconditioning": "schatten"}),
    ],
)
def test_one_matrix(case, arguments):
    values = matrix_paths.read(case)["values"]
    x = jax.tree.map(jnp.asarray, problem.gradient(problem.params(*values)))
    tx = gradtx.orthogonalize(**arguments)
    for name, made in tx.update(x, tx.init(x))[0].items():
        np.testing.assert_allclose(made, values[name], atol=1e-12)


# Coefficients ---------------------------------------------------------------------------------------------------------


def test_polar_express_is_the_published_list():
    """modded-nanogpt's, and the paper's with its last row (github.com/NoahAmsel/PolarExpress)."""
    record = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ]
    np.testing.assert_allclose(gradtx.polar_express(), record, rtol=0, atol=1e-13)
    paper = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ]
    made = gradtx.polar_express(8, cushion=0.02407327424182761, safety=1.0)
    np.testing.assert_allclose(made[:5], paper[:5], rtol=0, atol=1e-13)
    np.testing.assert_allclose(made, paper, rtol=0, atol=1e-10)  # then the interval is tiny, and so are digits of p
    safe = np.array(gradtx.polar_express(8, cushion=0.02407327424182761, safety=1.01, safety_last=True))
    np.testing.assert_allclose(safe[:-1], np.array(paper)[:-1] / 1.01 ** np.array([1, 3, 5]), rtol=0, atol=1e-10)
    np.testing.assert_allclose(safe[-1], paper[-1], rtol=0, atol=1e-11)


def test_each_step_of_polar_express_is_the_best_quintic():
    """Its error alternates at four points, so that no other odd quintic is better (Chebyshev)."""
    ((a, b, c),) = gradtx.polar_express(1, 0.1, 0.0, 1.0)
    s = np.linspace(0.1, 1.0, 100_001)
    error = a * s + b * s**3 + c * s**5 - 1
    peaks = [error[0], error[1:-1][np.diff(np.sign(np.diff(error))) != 0], error[-1]]
    np.testing.assert_allclose(np.hstack(peaks) / error[0], [1, -1, 1, -1], rtol=1e-6)


def test_coefficients():
    """A single triple and the last of a list are repeated; a longer list runs with ns_steps=None."""
    found = newton_schulz.coefficients
    assert found("", "keller_jordan", 3) == (newton_schulz.KELLER_JORDAN,) * 3
    assert found("", [(1, 2, 3), (4, 5, 6)], 4) == ((1, 2, 3), *[(4, 5, 6)] * 3)
    assert len(found("", gradtx.polar_express(8), None)) == 8
    assert len(found("", "muon", None)) == 5
    assert found("", "quintic", 5) == found("", "dion", 5) == found("", "you", 5)


# Directions -----------------------------------------------------------------------------------------------------------


def turn(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(6, 4), (3, 8), (5, 5)])
def test_it_moves_along_when_the_bases_turn(shape):
    """U(Q g P) = Q U(g) P, for orthogonal Q and P; the singular values end between 0.68 and 1.21."""
    g, tx = np.random.default_rng(0).normal(size=shape), gradtx.orthogonalize()
    left, right = turn(shape[0], 1), turn(shape[1], 2)
    one, other = (np.asarray(tx.update(jnp.asarray(x), tx.init(jnp.asarray(x)))[0]) for x in (g, left @ g @ right))
    np.testing.assert_allclose(other, left @ one @ right, atol=1e-12)
    values = np.linalg.svd(one, compute_uv=False)
    assert 0.68 < values.min() <= values.max() < 1.21


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["keller_jordan", "you", "polar_express", "cans", "cubic"])
@pytest.mark.parametrize("shape", [(6, 4), (3, 8)])
def test_the_gram_matrix_gives_the_same(name, shape):
    """Three steps at a time on the Gram matrix, against the iteration as it is written."""
    x = np.random.default_rng(3).normal(size=shape)
    x = x / np.linalg.norm(x)
    made = newton_schulz.iterate(jnp.asarray(x), newton_schulz.coefficients("", name, 7))
    x = x if shape[0] < shape[1] else x.T
    for a, b, c in newton_schulz.coefficients("", name, 7):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    np.testing.assert_allclose(made, x if shape[0] < shape[1] else x.T, atol=1e-12)


@pytest.mark.parametrize("coefficients", ["keller_jordan", "polar_express", gradtx.polar_express(8)])
@pytest.mark.parametrize("shape", [(16, 16), (8, 32)])
def test_float32_is_accurate_where_the_condition_is_1e12(coefficients, shape):
    """Against float64, in the largest singular value of the difference; the smallest values are rounding alone."""
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    g = u * 10.0 ** -np.linspace(0, 12, len(v)) @ v
    x = jnp.asarray(g, jnp.float32)
    tx = gradtx.orthogonalize(coefficients, None if isinstance(coefficients, tuple) else 5)
    exact = np.float64(x) / np.linalg.norm(np.float64(x)) / (1.02 if coefficients == "polar_express" else 1)
    for a, b, c in newton_schulz.coefficients("", coefficients, None):
        exact = a * exact + (b * exact @ exact.T + c * exact @ exact.T @ exact @ exact.T) @ exact
    made = np.float64(tx.update(x, tx.init(x))[0])
    assert np.isfinite(made).all()
    assert np.linalg.norm(made - exact, 2) < 5e-2


EDGES = {"one element": np.ones((1, 1)), "no element": np.zeros((0, 3)), "zero": np.zeros((4, 6))}
DIRECTIONS = [
    gradtx.scale_by_muon(),
    gradtx.orthogonalize(preconditioning="aol"),
    gradtx.orthogonalize(preconditioning="schatten"),
    gradtx.orthogonalize(preconditioning="spectral"),
    gradtx.orthogonalize("polar_express", dtype="bfloat16", adaptive=True),
    gradtx.orthogonalize() >> gradtx.scale_by_neuron_rms() >> gradtx.scale_by_fans(),
    gradtx.scale_by_neuron_rms(),
    gradtx.scale_by_dion2(),
    *(gradtx.scale_by_lmo(norm) for norm in ("spectral", "sign", "in_rms", "out_norm", "rms")),
]


@pytest.mark.parametrize("edge", EDGES)
def test_matrices_without_a_direction(edge):
    """Others that are hard, for whole methods: test_every_method."""
    x = jnp.asarray(EDGES[edge], jnp.float32)
    for tx in DIRECTIONS:
        if edge == "no element" and "spectral" in repr(tx.arguments):
            continue
        updates, _ = tx.update(x, tx.init(x))
        assert np.isfinite(updates).all(), tx
        assert edge != "zero" or not np.any(updates)


def test_one_matrix_and_two_hundred():
    """Batches of eight change nothing but roundings."""
    g = np.random.default_rng(5).normal(size=(200, 4, 3)).astype(np.float32)
    tx = gradtx.orthogonalize()
    together = {str(index): jnp.asarray(one) for index, one in enumerate(g)}
    made, _ = jax.jit(tx.update)(together, tx.init(together))
    layers = gradtx.as_matrices(tx, Numbers(1, 2))
    stacked, _ = jax.jit(layers.update)(jnp.asarray(g), layers.init(jnp.asarray(g)))
    for index in (0, 7, 8, 199):
        alone, _ = tx.update(jnp.asarray(g[index]), tx.init(jnp.asarray(g[index])))
        np.testing.assert_allclose(made[str(index)], alone, atol=1e-5)
        np.testing.assert_allclose(stacked[index], alone, atol=1e-5)


def test_heads_and_parts_are_matrices_of_their_own():
    """Queries, keys and values in one weight, and the heads of a weight, move as separate leaves do."""
    g = jnp.asarray(np.random.default_rng(6).normal(size=(4, 12)).astype(np.float32))
    tx = gradtx.scale_by_muon() >> gradtx.scale_by_fans()
    for parts, ends in ((3, [4, 8]), ((6, 4, 2), [6, 10])):
        apart = jnp.split(g, ends, axis=1)
        expected, _ = tx.update(apart, tx.init(apart))
        fused = gradtx.as_matrices(tx, Numbers(0, 1, parts))
        made, state = fused.update(g, fused.init(g))
        np.testing.assert_allclose(made, jnp.concatenate(expected, axis=1), atol=1e-6)
        again, _ = fused.update(g, state)
        assert again.shape == g.shape
    heads = gradtx.as_matrices(tx, Numbers(0, 2))
    made, _ = heads.update(g.reshape(4, 3, 4), heads.init(g.reshape(4, 3, 4)))
    for index, apart in enumerate(jnp.split(g, 3, axis=1)):
        np.testing.assert_allclose(made[:, index], tx.update(apart, tx.init(apart))[0], atol=1e-6)


def test_the_groups_of_a_transformer():
    """Embeddings, heads, norms and biases go to Adam, with two axes too."""
    params = {
        "wte": jnp.zeros((50, 4)),
        "block_0": {
            "attention": {"query": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros((2, 2))}},
            "LayerNorm_0": {"scale": jnp.zeros(4)},
            "mlp_head_gate": {"kernel": jnp.zeros((4, 8))},
        },
        "token_embedder": {"embedding": jnp.zeros((50, 4))},
        "lm_head": {"kernel": jnp.zeros((4, 50))},
        "output_layer": {"kernel": jnp.zeros((4, 50))},
    }
    leaves = zip(selection.paths(params), jax.tree.leaves(params), strict=True)
    chosen = {path for path, leaf in leaves if gradtx.hidden_matrices(path, leaf)}
    assert chosen == {"block_0/attention/query/kernel", "block_0/mlp_head_gate/kernel"}
    table = gradtx.groups(gradtx.muon(0.02), params)
    assert [(group.name, group.leaves) for group in table] == [("matrix", 2), ("other", 6)]
