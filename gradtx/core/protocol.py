"""Names for annotations, as programs for optax write them."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from gradtx.core.rule import Params, Updates

OptState = Any
"""A state of any transform."""


@runtime_checkable
class GradientTransformation(Protocol):
    """What has `init` and `update`: a transform of gradtx, of optax, or your own.

    For annotations, and for `isinstance`. Code that asks for optax's own class needs `gradtx.to_optax(tx)`.

    >>> import gradtx, optax
    >>> isinstance(gradtx.adam(1e-3), gradtx.GradientTransformation)
    True
    >>> isinstance(optax.adam(1e-3), gradtx.GradientTransformation)
    True
    """

    @property
    def init(self) -> Callable[[Params], OptState]:
        """The state for these params."""
        ...

    @property
    def update(self) -> Callable[..., tuple[Updates, OptState]]:
        """The updates and the next state."""
        ...


GradientTransformationExtraArgs = GradientTransformation
