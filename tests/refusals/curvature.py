"""What the methods that measure curvature refuse."""

import jax
import jax.numpy as jnp

import gradtx
from tests.refusals import Refusal

ONES = jnp.ones(3)
BARTLETT = {"estimator": "gauss_newton_bartlett"}
SOPHIA_G = gradtx.sophia(0.1, batch_size=2.0, **BARTLETT)
V, T = ValueError, TypeError


def step(tx, params=ONES, **extra):
    return tx.update(params, tx.init(params), params, **extra)


def loss(w, batch):
    return jnp.mean((batch @ w) ** 2)


def drawn(w, batch, *, key):
    return jnp.mean((batch @ w - jax.random.normal(key, (4,))) ** 2)


def minimize(tx, sampled_loss=None):
    return gradtx.minimize(loss, ONES, tx, jnp.ones((4, 3)), steps=1, sampled_loss=sampled_loss)


def sweep(sampled_loss):
    return gradtx.sweep(
        loss, lambda key: ONES, [gradtx.adam(0.1)], jnp.ones((4, 3)), steps=1, sampled_loss=sampled_loss
    )


WHO = "gradtx.scale_by_hessian_diagonal"
NEEDED = "gradtx.minimize: sophia needs the gradient at labels that the model draws. Pass sampled_loss=..., a function"
UNUSED = "sampled_loss is given, and no optimizer uses it; it is for sophia(..., estimator='gauss_newton_bartlett')."

REFUSALS = [
    Refusal("no batch size", lambda: gradtx.sophia(0.1, **BARTLETT), V, f"{WHO}: batch_size is None; it must be a num"),
    Refusal(
        "a batch size of no use",
        lambda: gradtx.sophia(0.1, batch_size=2.0),
        V,
        f"{WHO}: batch_size is given; it must be None without estimator='gauss_newton_bartlett'",
    ),
    Refusal(
        "a distribution of no use",
        lambda: gradtx.sophia(0.1, batch_size=2.0, distribution="normal", **BARTLETT),
        V,
        f"{WHO}: distribution is 'normal'; it is that of hutchinson's z. Leave it out.",
    ),
    Refusal(
        "an unknown estimator",
        lambda: gradtx.sophia(0.1, estimator="fisher"),
        V,
        "estimator is 'fisher'",
        "'hutchinson', 'gauss_newton_bartlett'",
    ),
    Refusal("sophia without grad_fn", lambda: step(gradtx.sophia(0.1)), T, "extra argument 'grad_fn' is missing"),
    Refusal("adahessian without grad_fn", lambda: step(gradtx.adahessian()), T, "extra argument 'grad_fn' is missing"),
    Refusal("sophia-g without sampled_grad_fn", lambda: step(SOPHIA_G), T, "extra argument 'sampled_grad_fn' is"),
    Refusal(
        "sophia-g with grad_fn",
        lambda: step(SOPHIA_G, grad_fn=jnp.sin, sampled_grad_fn=lambda w, key: w),
        T,
        "unknown extra argument 'grad_fn'. Did you mean 'sampled_grad_fn'?",
    ),
    Refusal(
        "another tree from grad_fn",
        lambda: step(gradtx.sophia(0.1), grad_fn=lambda w: w[:2]),
        V,
        f"{WHO}: what grad_fn returns do not match params",
    ),
    Refusal(
        "another tree from grad_fn of adahessian",
        lambda: step(gradtx.adahessian(), grad_fn=lambda w: (w,)),
        V,
        "gradtx.scale_by_hessian_rms: what grad_fn returns do not match params",
    ),
    Refusal(
        "another tree from sampled_grad_fn",
        lambda: step(SOPHIA_G, sampled_grad_fn=lambda w, key: w[:2]),
        V,
        f"{WHO}: what sampled_grad_fn returns do not match params",
    ),
    *(
        Refusal(
            f"complex leaves of {tx.name}",
            lambda tx=tx: tx.init(jnp.ones(3, jnp.complex64)),
            T,
            "is complex (complex64)",
        )
        for tx in (gradtx.scale_by_hessian_diagonal(), gradtx.scale_by_hessian_rms())
    ),
    Refusal("a power above 1", lambda: gradtx.adahessian(hessian_power=1.5), V, "hessian_power is 1.5", "in [0, 1]"),
    Refusal("no sampled_loss", lambda: minimize(SOPHIA_G), T, NEEDED, "sampled_loss(params, batch, *, key)"),
    Refusal("no sampled_loss inside", lambda: minimize(gradtx.skip_nonfinite(SOPHIA_G, 3)), T, "needs the gradient at"),
    Refusal("a sampled_loss of no use", lambda: minimize(gradtx.sophia(0.1), drawn), V, f"gradtx.minimize: {UNUSED}"),
    Refusal("a sampled_loss of no use in a sweep", lambda: sweep(drawn), V, f"gradtx.sweep: {UNUSED}"),
    Refusal("a sampled_loss that is none", lambda: minimize(SOPHIA_G, 3), T, "sampled_loss: loss is 3; it must be a f"),
    Refusal("a sampled_loss without key", lambda: minimize(SOPHIA_G, loss), T, "sampled_loss does not take a key; it"),
    Refusal(
        "a sampled_loss of each sample",
        lambda: minimize(SOPHIA_G, lambda w, batch, *, key: batch @ w),
        T,
        "sampled_loss returns",
        "(4,)",
        "it must be a real scalar, a mean over the labels.",
    ),
]
