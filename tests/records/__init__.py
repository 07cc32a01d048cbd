"""One record for each factory of gradtx: all that the tests know about it. Every list and loop derives from these.

    Record(
        "lion",
        lion,                                                # the formula once more: NumPy, float64, one step
        {"learning_rate": 0.1},                              # what to call it with; the first is its usual form
        {"learning_rate": FALLING, "b1": 0.8, "mask": "*kernel"},
        peers=[optax("lion", {"learning_rate": 0.001})],     # who else computes the same, with which arguments
    )

- `parts`: what methods are made of; `relatives`: Adam's relatives, Rprop, Adafactor. `effects`: clipping, decay, what
  goes by layers. `methods`, `layerwise`, `orthogonal`: the named methods. `wrappers`: what goes around a method.
  `schedules`: learning rates.
- `eigenbasis`: what sees a turned gradient. `low_rank`: what sees a projected one. `radius`: steps measured by the
  length of a matrix. `curvature`: what also asks for gradients at other params; `curvature_searches`: for losses.
- `base`: what a record is, the frameworks' calls, and what a transcription needs. `streams`: the gradients, and how two
  answers are compared.

No transcription imports JAX or the library under test. A step reads like the paper:

    def step(s, g, t, w, **numbers): ...                     # returns what is added to the params

with a dict `s` for what it remembers (empty at first), the gradient g, t = 1 at the first step and the params w, all
leaves side by side in one vector. A number that is a schedule comes as its value at this step.

A method is added in three places: its factory, its export, its record here.
"""

from tests.records.base import Peer, Record, Scheduled
from tests.records.curvature import CURVATURE
from tests.records.curvature_searches import CURVATURE_SEARCHES
from tests.records.effects import EFFECTS
from tests.records.eigenbasis import EIGENBASIS
from tests.records.layerwise import LAYERWISE
from tests.records.low_rank import LOW_RANK
from tests.records.methods import METHODS
from tests.records.orthogonal import ORTHOGONAL
from tests.records.parts import PARTS
from tests.records.preconditioned import PRECONDITIONED
from tests.records.radius import RADIUS
from tests.records.relatives import RELATIVES
from tests.records.schedule_cases import SCHEDULES
from tests.records.wrappers import WRAPPERS

METHODS_AND_PARTS = (*PARTS, *EFFECTS, *METHODS, *LAYERWISE, *RELATIVES, *CURVATURE, *CURVATURE_SEARCHES)
OF_MATRICES = (*EIGENBASIS, *LOW_RANK, *ORTHOGONAL, *PRECONDITIONED, *RADIUS)
RECORDS = {record.name: record for record in (*METHODS_AND_PARTS, *OF_MATRICES, *WRAPPERS)}
"""Every transform's record by name."""

__all__ = ["RECORDS", "SCHEDULES", "Peer", "Record", "Scheduled"]
