"""What code and tests may ask about a transform: for one made of another, what that other says."""

from typing import Literal

from gradtx.core.record import Recorded
from gradtx.core.rule import Rule


class Attributes(Recorded):
    """The attributes of a transform, those of what it expands to."""

    __slots__ = ()

    @property
    def _expanded(self) -> "Attributes":
        raise NotImplementedError

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the elementary transforms in it that have a state, in order."""
        return self._expanded.slots

    @property
    def extra_args(self) -> frozenset[str]:
        """The extra keyword arguments that update names."""
        return self._expanded.extra_args

    @property
    def takes_any(self) -> bool:
        """Whether update accepts every extra argument: something from elsewhere in it takes `**extra_args`."""
        return self._expanded.takes_any

    def takes(self, name: str) -> bool:
        """Whether update accepts this extra argument."""
        return name in self.extra_args or (self.takes_any and name != "observed")

    @property
    def _required_extra(self) -> frozenset[str]:
        return self._expanded._required_extra

    @property
    def needs_params(self) -> bool:
        """Whether update must be given the params."""
        return self._expanded.needs_params

    @property
    def observable(self) -> bool:
        """Whether it may stand anywhere in `a + b` (see `Rule`)."""
        return self._expanded.observable

    @property
    def reads(self) -> Literal["element", "leaf", "tree"]:
        """What the update of one element depends on: that "element" alone, its "leaf", or the whole "tree"."""
        return self._expanded.reads

    @property
    def random(self) -> bool:
        """Whether its state holds a random key."""
        return self._expanded.random

    @property
    def first(self) -> bool:
        """Whether nothing may touch the gradients before it (see `Rule`)."""
        return self._expanded.first

    @property
    def final(self) -> bool:
        """Whether nothing may act on what it returns, which is float32 (see `Rule`)."""
        return self._expanded.final

    @property
    def guards(self) -> bool:
        """Whether it deals with gradients that are not finite by itself."""
        return self._expanded.guards

    @property
    def waits(self) -> bool:
        """Whether it makes its step at some updates only."""
        return self._expanded.waits

    @property
    def idle(self) -> bool:
        """Whether updates of zero pass through it as zero and change nothing in the state (see `Rule`)."""
        return self._expanded.idle

    @property
    def descends(self) -> bool:
        """Whether there is a learning rate in it, so that its updates are steps to be applied."""
        return self._expanded.descends

    @property
    def clips(self) -> bool:
        """Whether it limits the size of what flows through."""
        return self._expanded.clips

    @property
    def whole_leaves(self) -> bool:
        """Whether it needs the leaves one by one (see `Rule`)."""
        return self._expanded.whole_leaves

    @property
    def rules(self) -> dict[str, Rule]:
        """The elementary rules in it that have a state, by the name of their entry in the state."""
        return self._expanded.rules
