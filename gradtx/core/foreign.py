"""Transforms of other libraries, such as optax, among gradtx's transforms, and the conversion to optax."""

import functools
import importlib
import inspect
from typing import Any

import jax

from gradtx import tree
from gradtx.core import check, record, values
from gradtx.core.annotations import Kind
from gradtx.core.fields import Place
from gradtx.core.rule import Facts, Params, State, Updates
from gradtx.core.schedule import blame
from gradtx.core.transform import Part, Transform


class Foreign(Transform):
    """An object of another library with `init` and `update`."""

    def _probe(self) -> None:
        _check_pair(self._arguments["object"], self._who())

    @property
    def _title(self) -> str:
        """The name of what made it: the function in which an optax pair's init was defined, else the type."""
        pair = self._arguments["object"]
        made_in, is_local, _ = getattr(pair.init, "__qualname__", "").rpartition(".<locals>")
        made_in = made_in.rpartition("<locals>.")[2]
        return made_in if is_local and not inspect.ismethod(pair.init) else type(pair).__name__

    def __repr__(self) -> str:
        return f"<foreign {self._title}>"

    @property
    def slots(self) -> tuple[str, ...]:
        return (self._title,)

    @functools.cached_property
    def facts(self) -> Facts:
        # Its properties are not known, and it cannot take `observed`.
        parameters = inspect.signature(self._arguments["object"].update).parameters.values()
        named = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        any_extra = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return Facts(reach="tree", traits=frozenset({"unobserved"}), extra=named, any_extra=any_extra)

    @property
    def parts(self) -> dict[Place, Part]:
        return {}

    def _init(self, params: Params) -> State:
        return {self._title: self._arguments["object"].init(params)}

    def _step(self, updates: Updates, state: State, params: Params, extra: dict[str, Any]) -> tuple[Updates, State]:
        known = {name: value for name, value in extra.items() if self.facts.takes(name)}
        with jax.named_scope(self._title), blame(f"foreign.update ({self._title})"), check.foreign_call(True):
            old = state[self._title]
            result, new = self._arguments["object"].update(updates, old, params, **known)
            result, new = tree.cast_like(result, updates), tree.cast_like(new, old)
            if values.value_checks.get():
                values.check_values(self._title, result, {}, {"state": new}, [])
        return result, {self._title: new}


@record.recorded(Foreign)
def foreign(object: Any) -> Transform:  # noqa: A002 - any object at all
    """Any object with `init` and `update` as a transform; compositions and wrappers apply this automatically.

    Args:
      object: has `init(params)` and `update(updates, state, params)`. Compared by its own equality. It gets the extra
        arguments that its update names, or all of them if that takes `**extra_args`. If it passes them on to a gradtx
        transform inside it, those that the inner transform does not accept are dropped.

    State: its own state, unchanged, under the name of the function that made it. It cannot take `observed`, so in
    `a + b` it must come first. It is called as it is, and computes in the precision of its inputs.

    Errors: TypeError for an object without init and update.

    >>> import gradtx, optax, jax.numpy as jnp
    >>> tx = gradtx.foreign(optax.clip(1.0)) >> gradtx.scale_by_learning_rate(0.5)
    >>> tx.update(jnp.array([3.0]), tx.init(jnp.zeros(1)))[0]
    Array([-0.5], dtype=float32)
    """
    raise NotImplementedError  # only recorded; Foreign implements it


def _check_pair(value: Any, where: str) -> None:
    record.refuse_factory(value, where)
    kind = type(value).__name__
    if kind in ("list", "tuple"):
        maker = where.partition(":")[0].removeprefix("gradtx.")
        raise TypeError(f"{where} is a {kind}. Pass the transforms themselves: {maker}(*transforms).")
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise TypeError(f"{where} is {value!r}; it must be a transform, or any object with init and update.")


def as_transform(value: Any, where: str) -> Transform:
    """A transform unchanged; any other object with init and update recorded as `foreign`; anything else refused."""
    if isinstance(value, Transform):
        return value
    _check_pair(value, where)
    return foreign(value)


record.enter_coercion(Kind.TRANSFORM, as_transform)


def to_optax(tx: Any) -> Any:
    """A transform as optax's own `GradientTransformationExtraArgs`; needs optax installed.

    Most uses do not need it: a gradtx transform works unchanged in optax.chain, TrainState and nnx.Optimizer. Two cases
    do: extra arguments (`value=...`) through optax.chain, and array hyperparameters in nnx.Optimizer. Extra arguments
    that the transform does not accept are dropped, as optax expects.

    >>> import gradtx
    >>> type(gradtx.to_optax(gradtx.adam(1e-3))).__name__
    'GradientTransformationExtraArgs'
    """
    made = as_transform(tx, "gradtx.to_optax: tx")
    try:
        optax: Any = importlib.import_module("optax")
    except ImportError as error:
        raise ImportError("gradtx.to_optax needs optax: pip install optax.") from error

    def update(updates: Updates, state: State, params: Params = None, **extra: Any) -> tuple[Updates, State]:
        with check.foreign_call(True):
            return made.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(made.init, update)
