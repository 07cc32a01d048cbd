"""QK-clip: against pytorch_optimizer's MuonClip, and where heads and logits lie."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from tests import matrix_paths
from tests.records import matrix_problem as problem

ROLES = ("query", "key", "query_rotary", "key_rotary")
KERNELS = {role: problem.scattered((6, 4), 70 + number) for number, role in enumerate(ROLES)}


def clipped(tx, params, **extra):
    """The params after a step of zero."""
    params = {name: jnp.asarray(leaf) for name, leaf in params.items()}
    zero = {name: jnp.zeros_like(leaf) for name, leaf in params.items()}
    updates, _ = tx.update(zero, tx.init(params), params, **extra)
    return {name: np.asarray(leaf + updates[name]) for name, leaf in params.items()}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["qk_clip: pytorch_optimizer", "qk_clip: pytorch_optimizer, alpha"])
@pytest.mark.parametrize("of_all", [True, False])
def test_the_kernels_are_those_of_muonclip(name, of_all):
    case = matrix_paths.read(name)
    threshold, alpha = (
        case["arguments"].get(f"qk_clip_{key}", usual) for key, usual in [("threshold", 100.0), ("alpha", 0.5)]
    )
    exponents = {"query": alpha, "key": 1 - alpha, "query_rotary": 1.0}
    tx = gradtx.identity()
    for role, exponent in exponents.items():
        tx = tx >> gradtx.masked(gradtx.qk_clip(threshold, exponent), role)
    logits = jnp.array(case["arguments"]["logits"])
    ours = clipped(tx, KERNELS, max_logits=logits if of_all else dict.fromkeys(ROLES, logits))
    for role, theirs in case["values"].items():
        np.testing.assert_allclose(ours[role], np.array(theirs), rtol=1e-6)  # theirs has γ in float32


@pytest.mark.usefixtures("x64")
def test_it_acts_on_the_params_after_the_step_at_the_axis_of_the_heads():
    w, g = problem.scattered((3, 2, 4), 1), problem.scattered((3, 2, 4), 2)
    tx, logits = gradtx.qk_clip(10.0, 0.25), jnp.array([20.0, 5.0])
    w, g = jnp.asarray(w), jnp.asarray(g)
    factor = np.array([0.5**0.25, 1.0])[None, :, None]
    new = w + tx.update(g, tx.init(w), w, max_logits=logits)[0]
    np.testing.assert_allclose(new, factor * (w + g), rtol=1e-14)
    first = gradtx.qk_clip(10.0, 0.25, head_axis=0)
    turned = first.update(g.swapaxes(0, 1), first.init(w), w.swapaxes(0, 1), max_logits=logits)[0]
    np.testing.assert_allclose(turned.swapaxes(0, 1), new - w, rtol=1e-13)
