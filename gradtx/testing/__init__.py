"""The laws that every transform obeys, as functions to call on your own.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx import testing
    >>> params = {"w": jnp.array([[1.0, -2.0, 0.5]]), "b": jnp.array(0.1)}
    >>> testing.compiles_once(gradtx.adam(1e-3), params)
    >>> for law in testing.LAWS.values():
    ...     law(gradtx.sgd(0.1), params)
"""

from gradtx.testing.laws import LAWS as LAWS
from gradtx.testing.laws import compiles_once as compiles_once
from gradtx.testing.laws import configs_round_trip as configs_round_trip
from gradtx.testing.laws import constant_schedule_is_constant as constant_schedule_is_constant
from gradtx.testing.laws import donation_is_safe as donation_is_safe
from gradtx.testing.laws import dtypes_stay as dtypes_stay
from gradtx.testing.laws import eager_is_jit as eager_is_jit
from gradtx.testing.laws import empty_leaves_pass as empty_leaves_pass
from gradtx.testing.laws import expansion_is_equal as expansion_is_equal
from gradtx.testing.laws import gradients as gradients
from gradtx.testing.laws import hypergradients_are_finite as hypergradients_are_finite
from gradtx.testing.laws import integers_are_refused as integers_are_refused
from gradtx.testing.laws import passed_is_closed_over as passed_is_closed_over
from gradtx.testing.laws import pickles_round_trip as pickles_round_trip
from gradtx.testing.laws import reads_what_it_says as reads_what_it_says
from gradtx.testing.laws import repr_is_code as repr_is_code
from gradtx.testing.laws import resumed_is_uninterrupted as resumed_is_uninterrupted
from gradtx.testing.laws import scan_is_loop as scan_is_loop
from gradtx.testing.laws import sharded_is_replicated as sharded_is_replicated
from gradtx.testing.laws import state_is_as_declared as state_is_as_declared
from gradtx.testing.laws import sweep_is_separate as sweep_is_separate
from gradtx.testing.laws import vmap_is_loop as vmap_is_loop
