"""Reads and checks the arguments of `minimize` and `sweep`, before anything is compiled."""

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from gradtx import tree
from gradtx.core.transform import Transform
from gradtx.training import losses, minibatches, solving
from gradtx.training.advancing import Carry, Plan, Sampling

PyTree = Any


# Data -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where batches come from: arrays on the device and a way to sample them, a stream from the host, or nothing."""

    data: PyTree = None
    sampling: Sampling | None = None
    stream: Iterable[PyTree] | None = None
    example: PyTree = None  # a batch, or its shapes and dtypes

    @property
    def per_epoch(self) -> int | None:
        """Updates per epoch; None if the number is not known."""
        if self.sampling is not None:
            return self.sampling.per_epoch
        try:
            return len(self.stream)  # type: ignore[arg-type]
        except TypeError:  # no stream, or one without a length, such as some PyTorch loaders
            return None

    def feed(self, epochs: int | None) -> Iterator[PyTree]:
        """Arrays, again and again; or the batches of a stream in `epochs` passes, or in as many as possible if None."""
        if self.stream is None:
            yield from itertools.repeat(self.data)
            return
        again = not isinstance(self.stream, Iterator)
        for _ in itertools.repeat(0) if epochs is None and again else range(epochs or 1):
            gave = False
            for batch in self.stream:
                gave = True
                yield batch
            if not gave:  # it cannot start again: a loader around an iterator
                return


def read_data(who: str, data: Any, *, batch_size: int | None, replacement: bool, drop_last: bool) -> Source:
    """A `Source` of arrays, an iterable of batches, or None; errors name what is wrong."""
    streamed = data is not None and _is_stream(data)
    if data is None or streamed:
        for name, value in (("batch_size", batch_size), ("replacement", replacement), ("drop_last", drop_last)):
            if value not in (None, False):
                kind = "an iterable, which gives whole batches" if streamed else "None"
                raise ValueError(f"{who}: {name} is {value!r}, but data is {kind}; leave it out, or pass arrays.")
    if data is None:
        return Source()
    if streamed:
        return _read_stream(who, data)
    size, batch_size = minibatches.check_sizes(who, data, batch_size, replacement=replacement, drop_last=drop_last)
    _check_fits(who, data)
    data = jax.device_put(data)
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), data)
    return Source(data, Sampling(size, batch_size, replacement, drop_last), None, example)


def _is_stream(data: Any) -> bool:
    """Whether `data` is an iterable of batches, not a pytree of arrays."""
    if isinstance(data, Iterator):
        return True
    leaves = jax.tree.leaves(data)
    return len(leaves) == 1 and leaves[0] is data and not hasattr(data, "shape") and isinstance(data, Iterable)


def _read_stream(who: str, data: Iterable[PyTree]) -> Source:
    if isinstance(data, (str, bytes)):
        raise TypeError(f"{who}: data is {data!r}; it must be arrays, or an iterable of batches.")
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise ValueError(f"{who}: data is empty: the iterable gives no batch.")
    if batches is data:
        data = itertools.chain([first], batches)  # an iterator cannot start again
    return Source(stream=data, example=first)


def _check_fits(who: str, data: PyTree) -> None:
    """Refuse data that would take over 90 % of the free memory of the device, if the device reports it."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(data) if not isinstance(leaf, Array))
    if needed > 0.9 * free:
        raise ValueError(
            f"{who}: data takes {needed / 1e9:.1f} GB, and the device has {free / 1e9:.1f} GB free. Stream it: pass an "
            "iterable of batches, for example gradtx.batches(key, data, batch_size)."
        )


# How long -------------------------------------------------------------------------------------------------------------


def positive(who: str, name: str, value: Any) -> int:
    """An int of at least 1."""
    return count(who, name, value, least=1)


def count(who: str, name: str, value: Any, *, least: int = 0) -> int:
    """An int of at least `least`."""
    value = minibatches.integer(who, name, value)
    if value < least:
        raise ValueError(f"{who}: {name} is {value}; it must be at least {least}.")
    return value


def total_steps(
    who: str, source: Source, *, epochs: int | None, steps: int | None, most: int | None = None, why: str = ""
) -> int | None:
    """The number of updates to make; None means until the stream ends.

    A run that ends by itself makes at most `most`; why another does not is for the error.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"{who}: epochs={epochs} and steps={steps} are both given. Give one of them.")
    if steps is not None:
        return positive(who, "steps", steps)
    if epochs is not None:
        epochs = positive(who, "epochs", epochs)
        if source.sampling is None and source.stream is None:
            raise ValueError(f"{who}: epochs={epochs} is for runs with data. Give steps=...")
        if epochs > 1 and isinstance(source.stream, Iterator):
            raise ValueError(
                f"{who}: epochs={epochs}, but data is an iterator, which can be run through once. Pass an iterable "
                "that starts again at each pass, such as a loader, or an object with __iter__."
            )
        return None if source.per_epoch is None else epochs * source.per_epoch
    if most is not None:
        return most
    if source.stream is None:
        raise ValueError(f"{who}: how long? Give steps=..." + (" or epochs=..." if source.sampling else "") + why)
    return source.per_epoch


# Runs that end by themselves ------------------------------------------------------------------------------------------


def read_problem(
    who: str, loss: Any, residuals: Any, tx: Transform, *, has_aux: bool, has_data: bool
) -> tuple[losses.Loss, losses.Outputs | None]:
    """The loss, and the residuals or outputs that it is a function of, if they are given or tx needs them."""
    if residuals is None and "residual_fn" in tx.facts.required:
        loss, residuals = None, loss
    if residuals is None:
        return losses.read_loss(who, loss, has_aux=has_aux, has_data=has_data), None
    return losses.read_outputs(who, loss, residuals, has_data=has_data)


def ends_by_itself(
    who: str,
    loss: losses.Loss,
    outputs: losses.Outputs | None,
    tx: Transform,
    source: Source,
    *,
    tolerance: Any,
    nonfinite: Any,
) -> solving.Problem | None:
    """The problem, if tx evaluates the loss by itself and the loss is always the same; else None."""
    entry, why = solving.searches(tx), _why_not(loss, tx, source)
    for name in sorted(tx.facts.required & {"residual_fn"}) if why else ():
        raise ValueError(f"{who}: {tx.name} needs {name}, the residuals of all data at each step, and {why}.")
    if why and tolerance is not None:
        raise ValueError(
            f"{who}: tolerance is {tolerance!r}, for runs that end by themselves, but {why}. Leave it out and give "
            "steps=..., with stop=... to end earlier."
        )
    if why or entry is None:
        return None
    of_squares = {"residual_fn", "cost_fn"} & tx.facts.extra == {"residual_fn"}
    if of_squares and outputs is not None and outputs.cost is not None:
        raise ValueError(
            f"{who}: {tx.name} is for half the sum of squares of the residuals, and a loss of them is given. Pass None "
            "as the loss, or use gauss_newton()."
        )
    if nonfinite is not None:
        raise ValueError(
            f"{who}: nonfinite is {nonfinite!r}, but this run ends by itself: a first loss that is not finite ends it, "
            "a later one shortens the step. Leave it out."
        )
    return solving.Problem(loss, outputs=outputs, entry=entry)


def though(loss: losses.Loss, tx: Transform, source: Source) -> str:
    """Why a run with a method that evaluates the loss does not end by itself, as the end of a sentence."""
    return "" if solving.searches(tx) is None else f"; {tx.name} would end by itself, but {_why_not(loss, tx, source)}."


def _why_not(loss: losses.Loss, tx: Transform, source: Source) -> str | None:
    """Why a run does not end by itself, or None."""
    if solving.searches(tx) is None:
        return f"{tx.name} does not evaluate the loss by itself, as lbfgs() does"
    if source.stream is not None or not (source.sampling is None or source.sampling.whole):
        return "the loss is that of another mini-batch at each step"
    if loss.wants_key:
        return "the loss takes a key, so that it is random"
    return "the loss returns more than its value (has_aux)" if loss.has_aux else None


def read_tolerance(who: str, tolerance: Any, params: PyTree) -> Any:
    """The tolerance; None is 1e-8 in float64, 1e-4 in less."""
    if tolerance is None:
        return jnp.asarray(1e-8 if tree.precision(params) == np.float64 else 1e-4)
    number = isinstance(tolerance, int | float | np.generic | np.ndarray | Array) and jnp.ndim(tolerance) == 0
    if not number or not (isinstance(tolerance, Tracer) or float(tolerance) >= 0):
        raise ValueError(f"{who}: tolerance is {tolerance!r}; it must be a number of at least 0.")
    return jnp.asarray(tolerance)


# The rest -------------------------------------------------------------------------------------------------------------


def check_callable(who: str, name: str, value: Any, of: str) -> None:
    """Refuse a value that is neither a function nor None."""
    if value is not None and not callable(value):
        raise TypeError(f"{who}: {name} is {value!r}; it must be a function of {of}.")


def choice(who: str, name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value`, which must be one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{who}: {name} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
    return value


def one_optimizer(who: str, tx: Transform) -> Transform:
    """`tx`, which must be a single optimizer, not a sweep."""
    swept = next((leaf for leaf in jax.tree.leaves(tx) if jnp.ndim(leaf) > 0), None)
    if swept is not None:
        raise ValueError(
            f"{who}: tx is a sweep of {swept.shape[0]} optimizers in one value. Pass it to gradtx.sweep, "
            "or pass one of them."
        )
    return tx


def read_key(who: str, key: Any) -> Array:
    """A typed random key; None is key 0."""
    if key is None:
        return jax.random.key(0)
    minibatches.check_key(who, key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(key)
    default = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue] - made when it runs
    if str(jax.random.key_impl(key)) != default:
        raise ValueError(
            f"{who}: key has dtype {key.dtype}; the state keeps the bits of a default key, {key_like().dtype}. "
            "Set jax_default_prng_impl, or pass another key."
        )
    return key


def key_like() -> jax.ShapeDtypeStruct:
    """The shape and dtype of a random key with JAX's default implementation."""
    return jax.eval_shape(jax.random.key, 0)


def check_loss(who: str, plan: Plan, carry: Carry, example: PyTree) -> None:
    """Trace the loss once: refuse it if it returns no real scalar, and warn of params that it does not read."""
    if isinstance(plan, solving.Problem) and plan.outputs is not None:
        losses.check_outputs(who, plan.outputs, carry["params"], example)
    if unread := losses.check_loss(who, plan.loss, carry["params"], example, key_like(), carry["model_state"]):
        warnings.warn(
            f"{who}: the loss does not read params at {', '.join(unread)}; their gradient is 0.",
            UserWarning,
            stacklevel=3,
        )
    if plan.sampled_loss is not None:
        given = carry["params"], example, key_like(), carry["model_state"]
        losses.check_sampled_loss(who, plan.sampled_loss, *given)


def evaluated_now(evaluate: Callable[..., Any], params: PyTree, model_state: PyTree) -> dict[str, Any]:
    """The results of `evaluate`, by name; a single result is named "metric"."""
    wants = "model_state" in inspect.signature(evaluate).parameters
    returned = evaluate(params, model_state=model_state) if wants else evaluate(params)
    return returned if isinstance(returned, dict) else {"metric": returned}


evaluated = jax.jit(evaluated_now, static_argnums=0)


def check_names(who: str, evaluate: Callable[..., Any], carry: Carry, recorded: Iterable[str]) -> None:
    """Trace `evaluate` once. It must return a value, and no name that the history uses for something else."""
    returned = jax.eval_shape(functools.partial(evaluated_now, evaluate), carry["params"], carry["model_state"])
    if not jax.tree.leaves(returned):
        received = repr(returned.get("metric", returned))
        raise TypeError(f"{who}: evaluate returns {received}; it must return a number, or a dict of them.")
    if taken := [name for name in (*recorded, "evaluated_at") if name in returned]:
        raise ValueError(
            f"{who}: evaluate returns an entry {taken[0]!r}, a name that the history uses for something else. "
            f"Rename it, for example to 'test_{taken[0]}'."
        )
