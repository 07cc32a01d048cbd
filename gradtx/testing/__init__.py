"""The laws: what every transform promises, whatever it computes.

An optimizer is a value and a pure pair, so much can be asked of it without knowing its equation: that compiling it,
mapping it, splitting it over devices, storing it or interrupting it changes nothing. Each law is a function

    law(tx, params, **extra)

that returns nothing, or raises an AssertionError which names the law, the transform and the leaf:

- `eager_is_jit(adam(1e-3), params)`: compiled or not, the same updates.
- `resumed_is_uninterrupted(...)`: a saved and restored run goes on as if nothing had been.
- `reads_what_it_says(...)`: an element-wise method leaves one element alone when another's gradient changes.

`params` is any tree of arrays (with several elements, so that there is something to see), `extra` the extra arguments
that `tx.update` needs. The gradients are `gradients(params)`: the same at every call. `LAWS` holds the laws by name.

Two runs of the same compiled program are equal to the bit. Two programs need not be. XLA compiles `b v + (1 - b) g` to
a fused multiply-add, which rounds once where eager arithmetic rounds twice, and it sums a leaf in an order of its own.
What remains is a few units in the last place *of the terms*. So a bound counts in units of the largest element that the
leaf has had in the run, and where the params are read, in units of those. `bound(tx)` says how many, from what tx reads
and whether its numbers are schedules; `ulps=` asks for another bound.

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
