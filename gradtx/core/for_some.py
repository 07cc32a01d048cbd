"""A formula for some of the leaves, which a mask selects: centering for kernels only, weight decay for no biases."""

import functools
from typing import Any

from gradtx.core import selection
from gradtx.core.program import Body, Numbers, Program, PyTree, Step
from gradtx.core.rule import Rule, State


class ForSome(Program):
    """A formula for the leaves that a mask selects; the others pass through."""

    def __init__(self, who: str, rule: Rule, body: Body):
        super().__init__(who, rule, body)
        self.only = rule.formula.only

    def init(self, numbers: Numbers, params: PyTree, inner: list[Any]) -> State:
        return super().init(
            numbers, selection.keep(params, selection.flags(self.who, self.only, params, params)), inner
        )

    def update(self, step: Step, own: State, inner: list[Any]) -> tuple[PyTree, State]:
        chosen = selection.flags(self.who, self.only, step.updates, step.params)
        keep = functools.partial(selection.keep, chosen=chosen)
        trees = {"observed", *(name for name, field in self.fields.items() if field.per == "leaf")}
        for name in trees & step.extra.keys() - {"observed"}:
            self.refuse_unlike(name, step.extra[name], step.updates)
        extra = {name: keep(value) if name in trees else value for name, value in step.extra.items()}
        params = None if step.params is None else keep(step.params)
        kept = step._replace(updates=keep(step.updates), params=params, extra=extra)
        result, new = super().update(kept, own, inner)
        return selection.put(result, step.updates, chosen), new
