"""The laws: properties of every transform, whatever its equation.

An optimizer is a value and a pure pair of functions. So much can be tested without its equation: compiling it, mapping
it, sharding it, saving it or interrupting it must change nothing. Each law is a function

    law(tx, params, **extra)

that returns None, or raises an AssertionError that names the law, the transform and the leaf:

- `eager_is_jit(adam(1e-3), params)`: the same updates, compiled or not.
- `resumed_is_uninterrupted(...)`: a saved and restored run continues as if it had not been interrupted.
- `reads_what_it_says(...)`: in an element-wise method the gradient of one element does not affect another element.

`params` is any tree of arrays with several elements; `extra` are the extra arguments that `tx.update` needs; one
that belongs to the params of a step, such as the loss there, is `AtParams(function)`. The gradients are
`gradients(params)`, the same at every call. `LAWS` has the laws by name.

Two runs of one compiled program are equal to the bit; runs of two programs need not be. XLA compiles `b v + (1 - b) g`
to a fused multiply-add, which rounds once where eager arithmetic rounds twice, and it chooses the order of a sum. The
difference is a few units in the last place *of the terms*. So a bound is in ulps of the largest element of the leaf in
the run, and for a transform that reads the params, at least in ulps of the largest param. `bound(tx)` is the number of
ulps: it depends on the reach of tx and on its schedules. `ulps=` sets another bound.

>>> import gradtx, jax.numpy as jnp
>>> from gradtx import testing
>>> params = {"w": jnp.array([[1.0, -2.0, 0.5]]), "b": jnp.array(0.1)}
>>> testing.compiles_once(gradtx.adam(1e-3), params)
>>> for law in testing.LAWS.values():
...     law(gradtx.sgd(0.1), params)
"""

from gradtx.testing.running import compiles_once as compiles_once
from gradtx.testing.running import donation_is_safe as donation_is_safe
from gradtx.testing.running import eager_is_jit as eager_is_jit
from gradtx.testing.running import inside_shard_map_is_outside as inside_shard_map_is_outside
from gradtx.testing.running import passed_is_closed_over as passed_is_closed_over
from gradtx.testing.running import scan_is_loop as scan_is_loop
from gradtx.testing.running import sharded_is_replicated as sharded_is_replicated
from gradtx.testing.running import sweep_is_separate as sweep_is_separate
from gradtx.testing.running import vmap_is_loop as vmap_is_loop
from gradtx.testing.runs import LAWS as LAWS
from gradtx.testing.runs import AtParams as AtParams
from gradtx.testing.runs import bound as bound
from gradtx.testing.runs import gradients as gradients
from gradtx.testing.states import assert_state as assert_state
from gradtx.testing.value import configs_round_trip as configs_round_trip
from gradtx.testing.value import constant_schedule_is_constant as constant_schedule_is_constant
from gradtx.testing.value import dtypes_stay as dtypes_stay
from gradtx.testing.value import empty_leaves_pass as empty_leaves_pass
from gradtx.testing.value import expansion_is_equal as expansion_is_equal
from gradtx.testing.value import hypergradients_are_finite as hypergradients_are_finite
from gradtx.testing.value import integers_are_refused as integers_are_refused
from gradtx.testing.value import pickles_round_trip as pickles_round_trip
from gradtx.testing.value import reads_what_it_says as reads_what_it_says
from gradtx.testing.value import repr_is_code as repr_is_code
from gradtx.testing.value import resumed_is_uninterrupted as resumed_is_uninterrupted
from gradtx.testing.value import state_is_as_declared as state_is_as_declared
