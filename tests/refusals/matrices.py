"""What transforms of matrices refuse: numbers and names, dimension numbers, leaves that are no matrices, orders."""

import jax.numpy as jnp

import gradtx
from gradtx import MuonDimensionNumbers as Numbers
from tests.refusals import Refusal
from tests.refusals.wrappers import first_update

MATRIX = jnp.ones((2, 6))
MUON, ADAM, SHAMPOO = gradtx.scale_by_muon(), gradtx.scale_by_adam(), gradtx.scale_by_shampoo()
EIGHT = gradtx.polar_express(8)
ARGUMENTS = {
    "muon: learning_rate is -0.1; it must be a number or a schedule, in [0, inf). To as": lambda: gradtx.muon(-0.1),
    "muon: beta is 1.0; it must be a number or a schedule, in [0, 1)": lambda: gradtx.muon(0.1, beta=1.0),
    "muon: eps is -1.0; it must be a number or a schedule, in [0, inf)": lambda: gradtx.muon(0.1, eps=-1.0),
    "muon: form is 'mean'; allowed: 'debiased', 'average', 'sum'": lambda: gradtx.muon(0.1, form="mean"),
    "orthogonalize: ns_coeffs is 'keller'; allowed: 'keller_jordan',": lambda: gradtx.muon(0.1, "keller"),
    "orthogonalize: ns_coeffs is (1, 2); it must be a name, a triple": lambda: gradtx.orthogonalize((1, 2)),
    "orthogonalize: ns_coeffs is ('a', 'b', 'c'); it must be a name": lambda: gradtx.orthogonalize(("a", "b", "c")),
    "orthogonalize: ns_coeffs has 8 triples, and ns_steps is 5; it must be at least 8, or None to": lambda: gradtx.muon(
        0.1, EIGHT
    ),
    "scale_by_dion2: ns_coeffs has 8 triples": lambda: gradtx.dion2(0.1, ns_coeffs=EIGHT),
    "scale_by_lmo: ns_coeffs has 8 triples": lambda: gradtx.scion(0.1, ns_coeffs=EIGHT),
    "orthogonalize: ns_steps is 0; it must be at least 1, or None": lambda: gradtx.orthogonalize(ns_steps=0),
    "orthogonalize: preconditioning is 'none'; allowed: 'frobenius', 'spectral', 'aol', 'schatten'": lambda: (
        gradtx.orthogonalize(preconditioning="none")
    ),
    "orthogonalize: safety is 0.0; it must be a number or a sch": lambda: gradtx.orthogonalize(safety=0.0),
    "polar_express: steps is 2.5; it must be an int, at least 1": lambda: gradtx.polar_express(2.5),
    "polar_express: lower is 1.0; it must be in (0, 1)": lambda: gradtx.polar_express(5, 1.0),
    "polar_express: cushion is 1.0; it must be in [0, 1)": lambda: gradtx.polar_express(cushion=1.0),
    "polar_express: safety is 0.5; it must be at least 1": lambda: gradtx.polar_express(safety=0.5),
    "normuon: beta2 is 1.0; it must be a number or a schedule, in [0, 1)": lambda: gradtx.normuon(0.1, beta2=1.0),
    "scale_by_dion2: fraction is 0.0; it must be in (0, 1]": lambda: gradtx.dion2(0.1, 0.0),
    "scion: norm is 'max'; allowed: 'auto', 'spectral', 'sign', 'in_rms', 'out_norm', 'rms'": lambda: gradtx.scion(
        0.1, norm="max"
    ),
    "scale_by_lmo: norm is 'auto'; allowed: 'spectral', 'sign'": lambda: gradtx.scale_by_lmo("auto"),
    "scion: radius is -1.0; it must be a number or a schedule, in [0, inf)": lambda: gradtx.scion(0.1, radius=-1.0),
    "shampoo: b2 is 1.5; it must be a number or a schedule, in [0, 1]": lambda: gradtx.shampoo(0.1, b2=1.5),
    "shampoo: precondition_frequency is 0; it must be in [1, inf)": lambda: gradtx.shampoo(
        0.1, precondition_frequency=0
    ),
    "shampoo: exponent is -1.0; it must be a number": lambda: gradtx.shampoo(0.1, exponent=-1.0),
    "kl_shampoo: precondition_frequency is 0; it must be in [1": lambda: gradtx.kl_shampoo(
        0.1, precondition_frequency=0
    ),
    "in_blocks: block_size is 0; it must be in [1, inf)": lambda: gradtx.in_blocks(SHAMPOO, 0),
    "kron: preconditioner_update_probability is 1.5; it must be a number or a schedule, in [0, 1]": lambda: gradtx.kron(
        0.1, preconditioner_update_probability=1.5
    ),
    "kron: preconditioner_init_scale is 0.0; it must be a number or a schedule, in (0": lambda: gradtx.kron(
        0.1, preconditioner_init_scale=0.0
    ),
    "kron: memory_save_mode is 'some'; allowed: 'one_diag', 'all_diag', or None": lambda: gradtx.kron(
        0.1, memory_save_mode="some"
    ),
    "soap: first_step is 'none'; allowed: 'skip', 'use'": lambda: gradtx.soap(0.1, first_step="none"),
    "soap: max_precond_dim is 0; it must be in [1, inf)": lambda: gradtx.soap(0.1, max_precond_dim=0),
    "in_eigenbasis: every is 0; it must be in [1, inf)": lambda: gradtx.in_eigenbasis(ADAM, every=0),
    "in_eigenbasis: whiten is True; it needs the eigenvalues of kl=True. Pass both": lambda: gradtx.in_eigenbasis(
        ADAM, whiten=True
    ),
    "galore: rank is 0; it must be in [1, inf)": lambda: gradtx.galore(0.1, 0),
    "galore: update_proj_gap is 0; it must be in [1, inf)": lambda: gradtx.galore(0.1, 1, 0),
    "galore: proj_type is 'full'; allowed: 'std', 'reverse_std', 'left', 'right'": lambda: gradtx.galore(
        0.1, proj_type="full"
    ),
    "apollo: rank is 0; it must be in [1, inf)": lambda: gradtx.apollo(0.1, 0),
    "apollo: scale_type is 'row'; allowed: 'channel', 'tensor'": lambda: gradtx.apollo(0.1, scale_type="row"),
    "apollo: proj is 'qr'; allowed: 'svd', 'random'": lambda: gradtx.apollo(0.1, proj="qr"),
    "apollo: max_growth is -1.0; it must be a number": lambda: gradtx.apollo(0.1, max_growth=-1.0),
    "apollo_mini: update_proj_gap is 0; it must be in [1": lambda: gradtx.apollo_mini(0.1, 0),
    "low_rank: rank is 0; it must be in [1, inf)": lambda: gradtx.low_rank(ADAM, 0),
    "came: b3 is 1.0; it must be a number or a schedule, in [0, 1)": lambda: gradtx.came(0.1, b3=1.0),
    "came: clipping_threshold is 0.0; it must be a number": lambda: gradtx.came(0.1, clipping_threshold=0.0),
    "hyperball: learning_rate is -0.1; it must be": lambda: gradtx.hyperball(-0.1),
    "pin_radius: weight_decay is -1.0; it must be a number": lambda: gradtx.pin_radius(0.1, -1.0),
    "brake_radius: outward is -1.0; it must be a number": lambda: gradtx.brake_radius(-1.0),
    "floor_updates: floor is -1.0; it must be a number": lambda: gradtx.floor_updates(-1.0),
    "cautious: scaling is 'rows'; allowed: 'max', 'add', 'count', 'none'": lambda: gradtx.cautious(
        ADAM, scaling="rows"
    ),
    "qk_clip: threshold is 0.0; it must be a number or a schedule, in (0": lambda: gradtx.qk_clip(0.0),
    "qk_clip: exponent is 2.0; it must be a number or a schedule, in [0, 1]": lambda: gradtx.qk_clip(exponent=2.0),
}
TYPES = {
    "orthogonalize: dtype is 'int32'; it must be a floating-point dtype": lambda: gradtx.orthogonalize(dtype="int32"),
    "shampoo: grafting is 'adam'; it must be a transform": lambda: gradtx.shampoo(0.1, grafting="adam"),
    "graft: magnitude is 3; it must be a transform": lambda: gradtx.graft(SHAMPOO, 3),
    "by_shape: matrix is 3; it must be a transform": lambda: gradtx.by_shape(3, ADAM),
    "cautious: inner is 3; it must be a transform": lambda: gradtx.cautious(3),
}


def dimension_numbers():
    for numbers, error, words in (
        (Numbers(0, 5), ValueError, "the axes (0,) and (5,) for the leaf 'w' of shape (2, 6); they must be different"),
        (Numbers(0, 0), ValueError, "the axes (0,) and (0,) for the leaf 'w' of shape (2, 6); they must be different"),
        (Numbers(0, 1, 4), ValueError, "parts=4 for the leaf 'w', which has 6 columns; it must be a number that div"),
        (Numbers(0, 1, 0), ValueError, "parts=0 for the leaf 'w', which has 6 columns; it must be a number that div"),
        (Numbers(0, 1, (4, 4)), ValueError, "parts=(4, 4) for the leaf 'w', which has 6 columns"),
        (Numbers(0, 1, (7, -1)), ValueError, "parts=(7, -1) for the leaf 'w', which has 6 columns"),
        (3, TypeError, "dimension_numbers['*'] is 3; it must be MuonDimensionNumbers(rows, columns), or None"),
    ):
        call = lambda one=numbers: gradtx.by_shape(MUON, ADAM, {"*": one}).init({"w": MATRIX})  # noqa: E731
        yield Refusal(f"dimension numbers {numbers}", call, error, "gradtx.by_shape: dimension_numbers", words)
    for numbers, words in (
        (Numbers("in", 1), "reduction_axis is 'in'"),
        (Numbers(0, 0.5), "output_axis is 0.5"),
        (Numbers(0, 1, 2.5), "parts is 2.5"),
    ):
        call = lambda one=numbers: gradtx.as_matrices(MUON, one).init({"w": MATRIX})  # noqa: E731
        words = f"gradtx.MuonDimensionNumbers: {words}; it must be an int, or a tuple of ints"
        yield Refusal(f"dimension numbers {numbers}", call, TypeError, words)
    for name, given, words in (
        ("no pattern", {"*q": Numbers()}, "no pattern matches the leaf 'w'; the patterns: '*q'. Add '*' for the rest"),
        ("another tree", {"a": Numbers(), "w": None}, "it must have MuonDimensionNumbers or None for each leaf"),
    ):
        call = lambda given=given: gradtx.by_shape(MUON, ADAM, given).init({"w": MATRIX})  # noqa: E731
        yield Refusal(f"dimension numbers: {name}", call, ValueError, "gradtx.by_shape: dimension_numbers", words)
    call = lambda: gradtx.by_shape(MUON, ADAM, lambda path, leaf: "matrix").init({"w": MATRIX})  # noqa: E731
    words = "it must be MuonDimensionNumbers(rows, columns), or None"
    yield Refusal("dimension numbers: a function of a str", call, TypeError, "gradtx.by_shape", "'matrix'", words)


def leaves():
    remedy = "by_shape(matrix={}(...), other=adam(...)). Or say which axes are those of a matrix: by_shape(..., dimen"
    for tx in (
        gradtx.orthogonalize(),
        gradtx.scale_by_neuron_rms(),
        gradtx.scale_by_fans(),
        gradtx.scale_by_dion2(),
        gradtx.scale_by_lmo(),
        SHAMPOO,
        gradtx.scale_by_kron(),
        gradtx.in_eigenbasis(ADAM),
        gradtx.low_rank(ADAM, 2),
        gradtx.hyperball(0.1),
        gradtx.pin_radius(0.1),
        gradtx.brake_radius(),
        gradtx.floor_updates(0.5),
    ):
        for shape in ((3,), (2, 3, 4)):
            words = f"gradtx.{tx.name}: the leaf at ['b'] has the shape {shape}; it must be a matrix, with 2 axes"
            call = lambda tx=tx, shape=shape: tx.init({"b": jnp.ones(shape)})  # noqa: E731
            yield Refusal(f"{tx.name} of {shape}", call, ValueError, words, remedy.format(tx.name))
        if tx.name not in ("low_rank", "scale_by_fans"):
            call = lambda tx=tx: tx.init({"b": jnp.ones((2, 2), jnp.complex64)})  # noqa: E731
            words = f"gradtx.{tx.name}.init: the leaf at ['b'] is complex (complex64); it must be real"
            yield Refusal(f"{tx.name} of a complex leaf", call, TypeError, words, "Put split_real_and_imaginary around")
        if tx.name in ("hyperball", "pin_radius", "brake_radius", "floor_updates"):
            call = lambda tx=tx: tx.update(MATRIX, tx.init(MATRIX))  # noqa: E731
            words = f"gradtx.{tx.name}.update: params are missing"
            yield Refusal(f"{tx.name} without params", call, ValueError, words)
    call = lambda: gradtx.as_matrices(MUON).init({"bias": jnp.ones(3)})  # noqa: E731
    words = (
        "gradtx.as_matrices: the leaf 'bias' is no matrix; each leaf must have MuonDimensionNumbers. Route the others"
    )
    yield Refusal("as_matrices of a vector", call, ValueError, words)
    for tx in (gradtx.came(0.1), gradtx.cautious(ADAM)):
        call = lambda tx=tx: tx.init({"b": jnp.ones((2, 2), jnp.complex64)})  # noqa: E731
        yield Refusal(f"{tx.name} of a complex leaf", call, TypeError, "['b'] is complex (complex64); it must be real")


@gradtx.transform
def asks() -> gradtx.Rule:
    """Evaluates the loss."""
    return gradtx.Rule(update=lambda updates, state, *, value_fn: (updates, value_fn(updates) and state))


def calls():
    yield Refusal(
        "qk_clip without logits",
        lambda: first_update(gradtx.qk_clip(), MATRIX),
        TypeError,
        "gradtx.qk_clip",
        "max_logits",
    )
    for leaf, logits in (
        (MATRIX, jnp.ones(4)),
        (MATRIX, jnp.ones((1, 2))),
        (MATRIX, jnp.ones(0)),
        (MATRIX[0], jnp.ones(3)),
    ):
        words = f"gradtx.qk_clip: a leaf has the shape {leaf.shape}, and max_logits {logits.shape}; it must be (heads,)"
        call = lambda leaf=leaf, logits=logits: first_update(gradtx.qk_clip(), leaf, max_logits=logits)  # noqa: E731
        name = f"qk_clip of {leaf.shape}, logits of {logits.shape}"
        yield Refusal(
            name, call, ValueError, words, "axis 1 of the leaf a multiple of the heads. Choose the leaves wit"
        )
    call = lambda: first_update(gradtx.qk_clip(), {"q": MATRIX}, max_logits={"k": jnp.ones(2)})  # noqa: E731
    words = "gradtx.qk_clip: max_logits has the structure", "it must be one array (heads,), or a tree of arrays like"
    yield Refusal("qk_clip with logits of another tree", call, ValueError, *words)
    call = lambda: first_update(gradtx.scale_by_kron(), MATRIX, probe=jnp.ones(3))  # noqa: E731
    words = "gradtx.scale_by_kron.update: probe must be a tree like the updates", "(3,), the updates (2, 6)"
    yield Refusal("kron with a short probe", call, ValueError, *words)
    call = lambda: first_update(gradtx.low_rank(asks(), 1), MATRIX, value_fn=jnp.sum)  # noqa: E731
    words = "low_rank: the transform inside evaluates a function of the params, but"
    yield Refusal("a loss behind a projection", call, TypeError, words)
    call = lambda: gradtx.stored(gradtx.amsgrad(0.1), "bfloat16")  # noqa: E731
    words = "scale_by_rms/nu_max of amsgrad(", "cannot be in bfloat16: ", "that may be: fields=('mu', 'nu')"
    yield Refusal("a maximum stored low", call, ValueError, *words)
    call = lambda: gradtx.cautious(gradtx.master_weights(gradtx.sgd(0.1)))  # noqa: E731
    words = "gradtx.cautious: inner is master_weights(", "they must be applied unchanged. Put cautious inside it."
    yield Refusal("cautious around last words", call, TypeError, *words)


REFUSALS = [
    *[Refusal(words, call, ValueError, f"gradtx.{words}") for words, call in ARGUMENTS.items()],
    *[Refusal(words, call, TypeError, f"gradtx.{words}") for words, call in TYPES.items()],
    *dimension_numbers(),
    *leaves(),
    *calls(),
]
