"""What the effects refuse."""

import jax.numpy as jnp

import gradtx
from tests.refusals import Refusal

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


def step(tx, gradient=PARAMS, params=PARAMS, **extra):
    return tx.update(gradient, tx.init(PARAMS if params is None else params), params, **extra)


REFUSALS = [
    *(
        Refusal(
            f"{tx.name} without params",
            lambda tx=tx: step(tx, params=None),
            ValueError,
            f"gradtx.{tx.name}.update: params are missing",
        )
        for tx in (
            gradtx.add_decayed_weights(0.1),
            gradtx.scale_by_trust_ratio(),
            gradtx.lamb(0.1),
            gradtx.lars(0.1),
            gradtx.adaptive_grad_clip(0.1),
        )
    ),
    *(
        Refusal(
            f"a pattern of {tx.name} that matches nothing",
            lambda tx=tx: step(tx),
            ValueError,
            f"gradtx.{tx.name}: mask: the pattern 'head' matches no leaf",
        )
        for tx in (gradtx.add_decayed_weights(0.1, "head"), gradtx.scale_by_trust_ratio(mask="head"))
    ),
    Refusal(
        "signs of complex params",
        lambda: gradtx.add_decayed_weights(0.5, cautious=True).init(jnp.ones(1, jnp.complex64)),
        TypeError,
        "gradtx.add_decayed_weights.init: the leaf at the root is complex",
    ),
    Refusal(
        "a mask without decay",
        lambda: gradtx.adadelta(mask="*"),
        ValueError,
        "gradtx.adadelta: mask is given; it needs weight",
    ),
    Refusal(
        "another output axis",
        lambda: gradtx.centralize(output_axis=2),
        ValueError,
        "gradtx.centralize: output_axis is 2; allowed: -2, -1, 0, 1.",
    ),
    Refusal(
        "an output axis that no matrix has",
        lambda: gradtx.centralize(output_axis=-3),
        ValueError,
        "gradtx.centralize: output_axis is -3; allowed: -2, -1, 0, 1.",
    ),
    Refusal(
        "a negative noise",
        lambda: gradtx.add_noise(-1.0, 0.55),
        ValueError,
        "gradtx.add_noise: eta is -1.0; it must be a number or a schedule, in [0, inf)",
    ),
    Refusal("half a key", lambda: gradtx.add_noise(0.1, 0.55, 0.5), TypeError, "gradtx.add_noise: key is 0.5"),
    Refusal(
        "a plateau without a loss",
        lambda: step(gradtx.reduce_on_plateau()),
        TypeError,
        "gradtx.reduce_on_plateau.update: the extra argument 'value' is missing",
    ),
    Refusal(
        "a plateau of several losses",
        lambda: step(gradtx.reduce_on_plateau(), value=jnp.ones(3)),
        ValueError,
        "value has shape (3,); it must be one number. Pass its mean.",
    ),
    Refusal(
        "a factor that reduces nothing",
        lambda: gradtx.reduce_on_plateau(1.0),
        ValueError,
        "factor is 1.0; it must be a number or a schedule, in (0, 1)",
    ),
    Refusal("no patience", lambda: gradtx.reduce_on_plateau(patience=0), ValueError, "patience is 0"),
    *(
        Refusal(f"{name} of nothing", lambda make=make: make(), ValueError, f"gradtx.{name}", allowed)
        for name, make, allowed in (
            ("clip", lambda: gradtx.clip(0.0), "(0, inf]"),
            ("clip_by_global_norm", lambda: gradtx.clip_by_global_norm(-1.0), "(0, inf]"),
            ("clip_by_percentile", lambda: gradtx.clip_by_percentile(101.0), "100"),
            ("clip_by_percentile", lambda: gradtx.clip_by_percentile(10.0, window=0), "window is 0"),
            ("scale_by_learning_rate", lambda: gradtx.scale_by_learning_rate(-0.1), "[0, inf)"),
        )
    ),
]
