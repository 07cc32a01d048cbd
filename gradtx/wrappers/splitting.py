"""Complex leaves as pairs of real leaves, for methods that should treat both parts separately, or need real leaves.

`split_real_and_imaginary(adam(1e-3))` is PyTorch's Adam for complex params, with a step size for each part.
`adam(1e-3)` alone measures |g|², and has one step size for both parts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gradtx import tree
from gradtx.core import views
from gradtx.core.elementary import transform
from gradtx.core.rule import Rule
from gradtx.core.transform import Transform

PyTree = Any
State = dict[str, Any]


def _split(values: PyTree) -> PyTree:
    """Every complex leaf as a dict of two real ones."""
    parts = lambda leaf: {"real": jnp.real(leaf), "imaginary": jnp.imag(leaf)}  # noqa: E731
    return jax.tree.map(lambda leaf: parts(leaf) if tree.is_complex(leaf) else leaf, values)


def _merged(values: PyTree, like: PyTree) -> PyTree:
    """The two parts merged into one leaf where `like` has a complex leaf."""
    both = lambda parts: jax.lax.complex(parts["real"], parts["imaginary"])  # noqa: E731
    return jax.tree.map(lambda leaf, value: both(value) if tree.is_complex(leaf) else value, like, values)


@transform
def split_real_and_imaginary(inner: Transform) -> Rule:
    """Runs `inner` on the real and the imaginary part of each complex leaf as two leaves; real leaves do not change.

        u = x + i y,   x, y = inner(Re g, Im g)

    Source: none. PyTorch's optimizers do the same (`view_as_real`), and optax.contrib has it under the same name.
    Gradients must be the direction of ascent, the conjugate of what `jax.grad` returns; `minimize` and `sweep` do this.

    Args:
      inner: any transform. It sees a leaf `w` as a dict `{"real", "imaginary"}`, so a mask inside uses the pattern
        "w/*".

    State: `{"split_real_and_imaginary": {"inner": the state of inner for the split params}}`. An average of the params
    inside would be split too, so put averages around this wrapper.

    Errors: those of `inner`. Methods that do not accept complex leaves, such as `lion`, work inside.

    >>> import gradtx, jax.numpy as jnp
    >>> gradient, w = jnp.array([3.0 + 4.0j]), jnp.zeros(1, jnp.complex64)
    >>> for tx in (gradtx.adam(1.0), gradtx.split_real_and_imaginary(gradtx.adam(1.0))):
    ...     print(tx.update(gradient, tx.init(w))[0].round(3))
    [-0.6-0.8j]
    [-1.-1.j]
    """

    def init(params: PyTree) -> State:
        return {"inner": inner.init(_split(params))}

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        up = lambda values: _merged(values, updates)  # noqa: E731 - the way back
        result, inner_state = views.inside(inner, updates, state["inner"], params, extra, _split, up)
        return _merged(result, updates), {"inner": inner_state}

    return Rule(init=init, update=update, traits=("leaves",))
