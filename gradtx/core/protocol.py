"""Names for annotations, as in programs for optax."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from gradtx.core.rule import Params, Updates

OptState = Any
"""A state of any transform."""
ScalarOrSchedule = Any
"""A number, or a function of the count; what a hyperparameter may be."""
MaskOrFn = Any
"""A mask, or a function of the params that gives one (see `masked`)."""
TransformInitFn = Callable[[Params], OptState]
TransformUpdateFn = Callable[..., tuple[Updates, OptState]]
TransformUpdateExtraArgsFn = TransformUpdateFn


class EmptyState(NamedTuple):
    """The state of your own transform without state."""


class Pair(NamedTuple):
    """A pair of functions, `init` and `update`, as a transform."""

    init: TransformInitFn
    update: TransformUpdateFn


@runtime_checkable
class GradientTransformation(Protocol):
    """An object with `init` and `update`: a transform of gradtx, of optax, or your own.

    For annotations, and for `isinstance`. Code that checks for optax's own class needs `gradtx.to_optax(tx)`.
    Called with two functions, as in programs for optax, it makes a transform of them.

    >>> import gradtx, optax
    >>> isinstance(gradtx.adam(1e-3), gradtx.GradientTransformation)
    True
    >>> isinstance(optax.adam(1e-3), gradtx.GradientTransformation)
    True
    >>> double = gradtx.GradientTransformation(lambda params: (), lambda g, state, params=None: (2 * g, state))
    >>> tx = gradtx.chain(double, gradtx.sgd(0.5))
    >>> tx.update(1.0, tx.init(0.0))[0]
    Array(-1., dtype=float32)
    """

    def __new__(cls, init: TransformInitFn, update: TransformUpdateFn) -> Any:
        return Pair(init, update)

    @property
    def init(self) -> TransformInitFn:
        """The state for these params."""
        ...

    @property
    def update(self) -> TransformUpdateFn:
        """The updates and the next state."""
        ...


GradientTransformationExtraArgs = GradientTransformation
