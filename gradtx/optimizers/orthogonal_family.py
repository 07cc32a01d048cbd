"""Methods with an orthogonal direction for matrices, and Adam for everything else: Muon, NorMuon, Scion, Dion2."""

from typing import Any, Literal

from gradtx.core.annotations import Dtype, NonNegative, Positive, Unit
from gradtx.core.dimensions import hidden_matrices
from gradtx.core.elementary import transform
from gradtx.core.routing import by_shape
from gradtx.core.transform import Transform
from gradtx.effects.decay import add_decayed_weights
from gradtx.effects.scaling import scale, scale_by_learning_rate
from gradtx.matrices.orthogonal import (
    Preconditioning,
    orthogonalize,
    scale_by_dion2,
    scale_by_fans,
    scale_by_lmo,
    scale_by_muon,
    scale_by_neuron_rms,
)
from gradtx.momentum import scale_by_momentum
from gradtx.optimizers.adam_family import adamw


@transform
def muon(
    learning_rate: NonNegative,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = 5,
    beta: Unit = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: Unit = 0.9,
    adam_b2: Unit = 0.999,
    adam_eps_root: NonNegative = 0.0,
    adam_weight_decay: NonNegative = 0.0,
    adam_learning_rate: NonNegative | None = None,
    muon_weight_dimension_numbers: Any = None,
    consistent_rms: NonNegative | None = None,
    form: Literal["debiased", "average", "sum"] = "debiased",
    safety: Positive | None = None,
    eps_in_max: bool = False,
    ns_dtype: Dtype | None = None,
) -> Transform:
    """Muon: orthogonalized momentum for hidden matrices, Adam for everything else.

        w <- w - lr (sqrt(max(1, fan_out / fan_in)) orthogonalize(m) + weight_decay w)    (lr = learning_rate)

    Source: Jordan 2024 (github.com/KellerJordan/Muon); with consistent_rms=0.2 Liu et al. 2025 (arXiv 2502.16982). The
    arguments are those of optax.contrib.muon, with one other default: optax gives every leaf with two axes to Muon,
    here embeddings, heads and biases with two axes go to Adam (see `hidden_matrices`), as the author does it. PyTorch
    has eps 1e-7 with eps_in_max=True, form="sum", ns_dtype="bfloat16" and weight_decay 0.1.

    Args:
      learning_rate: >= 0, a number or a schedule.
      ns_coeffs, ns_steps, beta, eps, mu_dtype, nesterov, adaptive, preconditioning, form, safety, eps_in_max, ns_dtype:
        as `scale_by_muon`. eps, mu_dtype and nesterov are Adam's too, as in optax.
      weight_decay: >= 0, for the matrices; each step subtracts lr · weight_decay of each weight.
      weight_decay_mask: which of the matrices decay; see `add_decayed_weights`.
      adam_b1, adam_b2, adam_eps_root, adam_weight_decay: Adam's arguments for the other leaves.
      adam_learning_rate: Adam's learning rate; None for the same one.
      muon_weight_dimension_numbers: the matrices of each leaf, written like a mask, None for leaves that go to Adam;
        see `by_shape`. None for `hidden_matrices`.
      consistent_rms: None, or >= 0: another factor, see `scale_by_shape`.

    State: `matrix/mu`, 4 bytes per parameter; `other/mu` and `other/nu`, 8 bytes per parameter; counters. `groups(tx,
    params)` prints which leaves are in which group. It needs the params.

    Errors: ValueError for an argument outside its range, an unknown name, axes that a leaf does not have.

    >>> import gradtx, jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}, "embedding": jnp.ones((100, 4))}
    >>> print([(group.name, group.parameters) for group in gradtx.groups(gradtx.muon(0.02), params)])
    [('matrix', 32), ('other', 408)]
    """
    direction = scale_by_muon(
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov=nesterov,
        adaptive=adaptive,
        preconditioning=preconditioning,
        form=form,
        safety=safety,
        eps_in_max=eps_in_max,
        ns_dtype=ns_dtype,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    matrix = direction >> scale_by_fans(consistent_rms) >> decay >> scale_by_learning_rate(learning_rate)
    other = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        eps_root=adam_eps_root,
        weight_decay=adam_weight_decay,
        nesterov=nesterov,
        mu_dtype=mu_dtype,
    )
    return by_shape(matrix, other, muon_weight_dimension_numbers or hidden_matrices)


@transform
def normuon(
    learning_rate: NonNegative,
    beta: Unit = 0.95,
    beta2: Unit = 0.95,
    eps: NonNegative = 1e-10,
    weight_decay: NonNegative = 0.0,
    *,
    nesterov: bool = True,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = 5,
    ns_eps: NonNegative = 1e-7,
    ns_dtype: Dtype | None = None,
    consistent_rms: NonNegative | None = None,
    at_least_one: bool = True,
    adam_learning_rate: NonNegative | None = None,
    adam_b1: Unit = 0.9,
    adam_b2: Unit = 0.999,
    adam_eps: NonNegative = 1e-8,
    adam_weight_decay: NonNegative = 0.0,
    dimension_numbers: Any = None,
) -> Transform:
    """NorMuon: Muon whose neurons all move equally far; Adam for everything else.

        w <- w - lr (sqrt(max(1, fan_out / fan_in)) scale_by_neuron_rms(orthogonalize(m)) + weight_decay w)

    Source: Li et al. 2025 (arXiv 2510.05491), algorithm 1, and github.com/zichongli5/NorMuon, whose defaults these are.
    Dion's implementation has nesterov=False, ns_coeffs="polar_express", eps=1e-8, ns_eps=1e-6 and at_least_one=False.

    Args:
      learning_rate: >= 0, a number or a schedule. (lr)
      beta: in [0, 1): the decay of the momentum, an average.
      beta2, eps: as `scale_by_neuron_rms`.
      weight_decay: >= 0, for the matrices; each step subtracts lr · weight_decay of each weight.
      nesterov: look one step ahead.
      ns_coeffs, ns_steps, ns_dtype: as `orthogonalize`; ns_eps is its eps.
      consistent_rms, at_least_one: as `scale_by_shape`.
      adam_learning_rate: Adam's learning rate for the other leaves; None for the same one.
      adam_b1, adam_b2, adam_eps, adam_weight_decay: Adam's arguments.
      dimension_numbers: the matrices of each leaf; see `by_shape`. None for `hidden_matrices`.

    State: `matrix/mu`, 4 bytes per parameter, `matrix/nu`, one number for each neuron; `other/mu` and `other/nu`, 8
    bytes per parameter; counters. It needs the params.

    Errors: those of `muon`.

    >>> import gradtx
    >>> gradtx.normuon(0.02).expand().matrix.stages[2]
    scale_by_neuron_rms(decay=0.95, eps=1e-10)
    """
    matrix = (
        scale_by_momentum(beta, form="average", nesterov=nesterov)
        >> orthogonalize(ns_coeffs, ns_steps, ns_eps, dtype=ns_dtype)
        >> scale_by_neuron_rms(beta2, eps)
        >> scale_by_fans(consistent_rms, at_least_one=at_least_one)
        >> add_decayed_weights(weight_decay)
        >> scale_by_learning_rate(learning_rate)
    )
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    other = adamw(adam_rate, adam_b1, adam_b2, adam_eps, weight_decay=adam_weight_decay)
    return by_shape(matrix, other, dimension_numbers or hidden_matrices)


@transform
def dion2(
    learning_rate: NonNegative,
    fraction: float = 0.25,
    ef_decay: Unit = 0.95,
    weight_decay: NonNegative = 0.01,
    *,
    ns_coeffs: Any = "polar_express",
    ns_steps: int | None = 5,
    eps: NonNegative = 1e-8,
    ns_dtype: Dtype | None = None,
    consistent_rms: NonNegative | None = None,
    adam_learning_rate: NonNegative | None = None,
    adam_b1: Unit = 0.9,
    adam_b2: Unit = 0.95,
    adam_eps: NonNegative = 1e-8,
    adam_weight_decay: NonNegative = 0.01,
    dimension_numbers: Any = None,
) -> Transform:
    """Dion2: Muon that orthogonalizes a part of the rows or columns at each step; Adam for everything else.

        w <- w - lr (sqrt(fan_out / fan_in) scale_by_dion2(g) + weight_decay w)           (lr = learning_rate)

    Source: Ahn et al. 2025 (arXiv 2512.16928), and github.com/microsoft/dion, whose defaults these are, with "global"
    selection.

    Args:
      learning_rate: >= 0, a number or a schedule.
      fraction, ef_decay, ns_coeffs, ns_steps, eps, ns_dtype: as `scale_by_dion2`.
      weight_decay: >= 0, for the matrices; each step subtracts lr · weight_decay of each weight, of all slices.
      consistent_rms: None, or >= 0: another factor, see `scale_by_shape`.
      adam_learning_rate: Adam's learning rate for the other leaves; None for the same one.
      adam_b1, adam_b2, adam_eps, adam_weight_decay: Adam's arguments.
      dimension_numbers: the matrices of each leaf; see `by_shape`. None for `hidden_matrices`.

    State: `matrix/mu`, 4 bytes per parameter; `other/mu` and `other/nu`, 8 bytes per parameter; counters. It needs the
    params.

    Errors: those of `muon`.

    >>> import gradtx
    >>> gradtx.dion2(0.01).expand().matrix.stages[0].fraction
    0.25
    """
    matrix = (
        scale_by_dion2(fraction, ef_decay, ns_coeffs, ns_steps, eps, ns_dtype=ns_dtype)
        >> scale_by_fans(consistent_rms, at_least_one=False)
        >> add_decayed_weights(weight_decay)
        >> scale_by_learning_rate(learning_rate)
    )
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    other = adamw(adam_rate, adam_b1, adam_b2, adam_eps, weight_decay=adam_weight_decay)
    return by_shape(matrix, other, dimension_numbers or hidden_matrices)


@transform
def scion(
    learning_rate: NonNegative,
    beta: Unit = 0.9,
    radius: NonNegative = 1.0,
    *,
    norm: Literal["auto", "spectral", "sign", "in_rms", "out_norm", "rms"] = "auto",
    unconstrained: bool = False,
    normalized: bool = True,
    at_least_one: bool = False,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = 5,
    eps: NonNegative | None = None,
    ns_dtype: Dtype | None = None,
    dimension_numbers: Any = None,
) -> Transform:
    """Scion: the steepest direction in the norm that suits the layer, and weights that stay in a ball of that norm.

        m <- b m + (1 - b) g;   w <- (1 - lr) w - lr radius scale_by_lmo(m)          (b = beta, lr = learning_rate)

    Source: Pethick et al. 2025 (arXiv 2502.07529), algorithms 1 and 2, and github.com/LIONS-EPFL/scion, whose
    `momentum` is 1 - beta and whose `scale` is radius. The weights should begin in the ball; the authors' code starts
    them on its surface.

    Give each kind of layer its norm and radius with `partition`. The authors' example has radius 50 for hidden layers,
    and norm="sign" with radius 3000 for the last one.

    Args:
      learning_rate: in [0, 1], a number or a schedule.
      beta: in [0, 1): the decay of the momentum, an average.
      radius: >= 0, of the ball. [params]
      norm: as `scale_by_lmo`; "auto" for "spectral" for matrices and "rms" for all other leaves.
      unconstrained: leave out the decay of the weights: w <- w - lr radius u.
      normalized, at_least_one, ns_coeffs, ns_steps, eps, ns_dtype: as `scale_by_lmo`.
      dimension_numbers: the matrices of each leaf, with norm="auto"; see `by_shape`. None for all leaves with two axes.
        A kernel of a convolution is `MuonDimensionNumbers((0, 1, 2), 3)`; divide the radius by its width.

    State: `mu`, 4 bytes per parameter; counters. It needs the params unless unconstrained.

    Errors: those of `scale_by_lmo`.

    >>> import gradtx
    >>> gradtx.scion(2**-12, radius=50.0).expand().stages[2]
    scale(step_size=50.0)
    """
    given: dict[str, Any] = {"normalized": normalized, "at_least_one": at_least_one, "eps": eps}
    more: dict[str, Any] = {"ns_coeffs": ns_coeffs, "ns_steps": ns_steps, "ns_dtype": ns_dtype}
    if norm == "auto":
        direction = by_shape(scale_by_lmo("spectral", **given, **more), scale_by_lmo("rms", eps=eps), dimension_numbers)
    else:
        direction = scale_by_lmo(norm, **given, **more)
    step = scale_by_momentum(beta, form="average") >> direction >> scale(radius)
    return (step if unconstrained else step >> add_decayed_weights(1.0)) >> scale_by_learning_rate(learning_rate)
