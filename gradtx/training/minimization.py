"""One run: train, evaluate, and come back with the parameters and the history of the cost.

    minimize(cost, params, adam(1e-3), data, batch_size=128, epochs=10)      mini-batches
    minimize(cost, params, sgd(0.1), data, epochs=100)                       gradient descent on everything
    minimize(cost, params, sgd(0.1), data, batch_size=1, epochs=1)           stochastic gradient descent proper
    minimize(rosenbrock, start, adam(1e-2), steps=1000)                      no data at all

It uses only public parts of the library; a loop of your own loses nothing but the typing.
"""

import contextlib
import functools
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.core import check
from gradtx.core.foreign import as_transform
from gradtx.core.transform import Transform
from gradtx.training import advancing, chunks, inputs
from gradtx.training.advancing import Carry, Plan
from gradtx.training.losses import read_loss
from gradtx.training.progress import Progress
from gradtx.wrappers.guards import has_failed

PyTree = Any
_WHO = "gradtx.minimize"
_KEPT_BYTES = 2**24  # params up to this size are kept while a chunk runs, to go back to


class Result(NamedTuple):
    """What `minimize` returns.

    Attributes:
      params: after the last update.
      state: what `minimize(..., state=state)` goes on from: the optimizer's state ("tx"), "model_state", the number of
        updates made ("step") and the key.
      history: arrays by name. "loss" has one value per step, and so has what the loss records with `has_aux`; what
        `evaluate` returns has one per evaluation, made after "evaluated_at" updates.
    """

    params: PyTree
    state: dict[str, Any]
    history: dict[str, np.ndarray[Any, Any]]


def minimize(
    loss: Callable[..., Any],
    params: PyTree,
    tx: Any,
    data: PyTree = None,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    key: Array | None = None,
    state: dict[str, Any] | None = None,
    progress: bool = True,
    has_aux: bool = False,
    model_state: PyTree = None,
    replacement: bool = False,
    drop_last: bool = False,
    evaluate: Callable[..., Any] | None = None,
    evaluate_every: int | None = None,
    stop: Callable[[dict[str, Any]], bool] | None = None,
    nonfinite: str | None = None,
    steps_per_call: int | None = None,
) -> Result:
    """Minimize a loss with any optimizer, in compiled chunks of steps.

        for each step t:  g = gradient of loss(params, batch_t);  u, state = tx.update(g, state, params);  params += u

    Data that fits stays on the device, and the loop over its batches is one compiled program, compiled once for a loss
    function and shapes: another learning rate, seed or length compiles nothing. (A lambda written in the call is a new
    function each time.)

    Args:
      loss: `loss(params)` or `loss(params, batch)`, a real scalar. A loss that names the keyword-only argument `key`
        gets a new random key each step, one that names `model_state` what it returned last (needs `has_aux`).
      params: a pytree of floating-point arrays.
      tx: a gradtx transform, or any object with `init` and `update`.
      data: a pytree of arrays with one leading axis of samples, or an iterable of batches, which is streamed.
      batch_size: samples per batch, 1 to their number; None is all of them. For arrays only.
      epochs, steps: how long, one of them. An iterable of batches without either is run through once.
      key: decides the order of the samples, `sample_batches(jax.random.fold_in(key, epoch), ...)`, and the keys of the
        loss, `fold_in(fold_in(key, 2**32 - 1), step)`; None is `jax.random.key(0)`.
      state: the state of an earlier result, to go on from; its key goes on too. k and n more steps are k + n steps,
        bit for bit, also when the state was saved and loaded in between. An iterable of batches is run through from its
        start: pass one that starts where the earlier run ended.
      progress: show steps, loss, rate and time left where standard error is a terminal; the extra `progress` has a bar.
      has_aux: the loss returns `(value, dict)`; "model_state" in it is carried on, other entries go to the history.
      model_state: what the first step is given.
      replacement, drop_last: as in `sample_batches`.
      evaluate: `evaluate(params)`, or with `*, model_state`, compiled: a number, or a dict of them, for the history.
      evaluate_every: updates between evaluations; None is an epoch, without data the end. The end is always evaluated.
      stop: asked with the history so far after each evaluation; True ends the run.
      nonfinite: "stop" ends at the first loss that is NaN or infinite, before it changes anything; "continue" goes on.
        None: "continue" with an optimizer that deals with it itself (`skip_nonfinite`, `loss_scaling`), else "stop".
        Where `skip_nonfinite` gives up, the run ends.
        Both warn with the step.
      steps_per_call: steps between looks at the clock and the keyboard, at most 1024; None is about 0.3 s.

    Returns:
      `Result(params, state, history)`. After Ctrl-C, what has been reached.

    Errors, before anything is compiled: TypeError and ValueError for a loss that is no real scalar, data without
    samples or of unequal lengths, a batch larger than the data, a sweep of optimizers, a state that does not fit.
    Warns of params that the loss does not read.

    >>> import gradtx, jax.numpy as jnp
    >>> def bowl(x):
    ...     return jnp.sum((x - 3.0) ** 2)
    >>> result = gradtx.minimize(bowl, jnp.zeros(2), gradtx.sgd(0.1), steps=50)
    >>> jnp.allclose(result.params, 3.0, atol=1e-3), result.history["loss"].shape
    (Array(True, dtype=bool), (50,))
    """
    tx = inputs.one_optimizer(_WHO, as_transform(tx, f"{_WHO}: tx"))
    source = inputs.read_data(_WHO, data, batch_size=batch_size, replacement=replacement, drop_last=drop_last)
    read = read_loss(_WHO, loss, has_aux=has_aux, has_data=data is not None)
    inputs.check_callable(_WHO, "evaluate", evaluate, "the params")
    inputs.check_callable(_WHO, "stop", stop, "the history")
    nonfinite = ("continue" if "nonfinite" in tx.facts else "stop") if nonfinite is None else nonfinite
    stops = inputs.choice(_WHO, "nonfinite", nonfinite, ("stop", "continue")) == "stop"
    total = inputs.total_steps(_WHO, source, epochs=epochs, steps=steps)
    chunk = None if steps_per_call is None else inputs.positive(_WHO, "steps_per_call", steps_per_call)
    every = source.per_epoch if evaluate_every is None else inputs.positive(_WHO, "evaluate_every", evaluate_every)
    every = None if evaluate is None and stop is None else every
    begin = _begin(tx, params, key, state, model_state)
    goes_back = source.stream is None and _bytes(params) <= _KEPT_BYTES
    plan = Plan(read, source.sampling, source.stream is not None, stops and not goes_back, "nonfinite" in tx.facts)
    like = tree.shapes({"params": params, "model_state": model_state if state is None else state["model_state"]})
    inputs.check_loss(_WHO, plan, like, source.example)
    if evaluate is not None:
        inputs.check_names(_WHO, evaluate, like, advancing.records_like(plan, like, source.example))
    feed = source.feed(epochs or (1 if steps is None else None))
    run = _Run(plan, tx, begin(), feed, stops, evaluate, stop)
    with Progress("minimize", total, show=progress) as bar, _ctrl_c() as pressed:
        run.to_the_end(total, every, chunk, bar, pressed)
    return run.result()


def _begin(tx: Transform, params: PyTree, key: Any, state: Any, model_state: PyTree) -> Callable[[], Carry]:
    """Makes the first carry, fresh or of an earlier result; copied, because the program overwrites it in place."""
    check.check_leaves(_WHO, "params", params)
    if state is None:
        return functools.partial(advancing.start, tx, params, model_state, inputs.read_key(_WHO, key))
    if key is not None or model_state is not None:
        raise ValueError(f"{_WHO}: a state brings its own key and model_state. Pass either the state or these.")
    if not isinstance(state, dict) or state.keys() != {"tx", "model_state", "step", "key"}:
        received = f"a dict of {', '.join(map(str, state)) or 'nothing'}" if isinstance(state, dict) else repr(state)
        raise ValueError(f"{_WHO}: state is {received}; it must be that of an earlier result, result.state.")
    return functools.partial(advancing.go_on, state, params)


def _bytes(params: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree.shapes(params)))


class _Run:
    """A run under way: the carry, and what has been recorded.

    A loss that is not finite can end it in two ways. The program looks at each loss, and takes no update from there
    on. Or it does not, which is faster for a small network on a CPU, and where the losses show one, the chunk is run
    again from its start up to there, which takes a copy of params and state.
    """

    def __init__(
        self,
        plan: Plan,
        tx: Transform,
        carry: Carry,
        feed: Iterator[PyTree],
        stops: bool,
        evaluate: Callable[..., Any] | None,
        stop: Callable[..., Any] | None,
    ):
        self.plan, self.tx, self.carry, self.feed = plan, tx, carry, feed
        self.stops, self.evaluate, self.stop = stops, evaluate, stop
        self.first = self.step = int(carry["step"])
        self.records: list[Any] = []
        self.evaluations: list[Any] = []
        self.evaluated_at: list[int] = []

    def to_the_end(
        self, total: int | None, every: int | None, fixed: int | None, bar: Progress, pressed: threading.Event
    ) -> None:
        """Chunk after chunk, with evaluations where they are due."""
        end = None if total is None else self.first + total
        leaves, structure = jax.tree.flatten((self.tx, self.carry))
        program = self.plan, structure, tuple(map(np.size, leaves))
        pace = chunks.Pace() if self.plan.streamed else chunks.pace(program)  # each stream has a pace of its own
        over = False
        while not over:
            size = min(fixed, self.plan.capacity) if fixed else pace.size(self.plan)
            due = None if every is None else (self.step // every + 1) * every
            until = min(t for t in (self.step + size, end, due) if t is not None)
            begun, steps = time.perf_counter(), until - self.step
            ended = self._advance(until, steps)
            pace.seconds = (time.perf_counter() - begun) / steps
            if self.records:
                bar.update(self.step - self.first, f"loss {self.records[-1]['loss'][-1]:.4g}")
            over = ended or pressed.is_set() or self.step == end
            if self.step == due or over:
                over = self._stops_after_evaluation() or over

    def _advance(self, until: int, steps: int) -> bool:
        """Run until before step `until`; True if a loss, a guard or the end of the data ended it before."""
        run = functools.partial(chunks.advance, advancing.run, self.plan, self.tx)
        kept = advancing.copied(self.carry) if self.stops and not self.plan.stop_at_nonfinite else None
        self.carry, rows = run(self.carry, self.feed, until=until, steps=steps)
        losses = rows["loss"]
        if kept is not None and not np.isfinite(losses).all():
            good = int(np.argmin(np.isfinite(losses)))
            self.carry, _ = run(kept, self.feed, until=self.step + good, steps=good)
        made = int(self.carry["step"]) - self.step
        self.step += made
        # A loss that ends the run is recorded too, and what comes after it is not.
        seen = made + int(not np.isfinite(losses[made : made + 1]).all())
        if seen:
            self.records.append(jax.tree.map(lambda row: row[:seen], rows))
        return made < steps or not self.carry["ok"]

    def _stops_after_evaluation(self) -> bool:
        if self.evaluated_at[-1:] == [self.step]:
            return False
        self.evaluated_at.append(self.step)
        if self.evaluate is not None:
            values = inputs.evaluated(self.evaluate, self.carry["params"], self.carry["model_state"])
            self.evaluations.append(jax.tree.map(lambda value: np.asarray(value)[None], values))
        return self.stop is not None and bool(self.stop(self.history()))

    def history(self) -> dict[str, Any]:
        """All that has been recorded, as arrays."""
        self.records, self.evaluations = _joined(self.records), _joined(self.evaluations)
        history = {name: value for part in (*self.records, *self.evaluations) for name, value in part.items()}
        return history | ({} if self.evaluate is None else {"evaluated_at": np.asarray(self.evaluated_at)})

    def result(self) -> Result:
        """The result, and a warning if a loss was not finite."""
        history = self.history()
        losses = history.get("loss", np.zeros(0))
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            at = self.first + int(bad[0])
            what = "the run ended there, with the params before it" if self.stops else "it went on"
            warnings.warn(f"{_WHO}: the loss was {losses[bad[0]]} after {at} updates; {what}.", RuntimeWarning, 3)
        if self.plan.stop_when_failed and has_failed(self.carry["tx"]):
            warnings.warn(
                f"{_WHO}: steps were not finite more often in a row than skip_nonfinite allows; the run ended after "
                f"{self.step} updates, with the params before those that were skipped.",
                RuntimeWarning,
                3,
            )
        state = {name: self.carry[name] for name in ("tx", "model_state", "step", "key")}
        return Result(self.carry["params"], state, history)


def _joined(parts: list[Any]) -> list[Any]:
    """The parts of a history as one."""
    return [jax.tree.map(lambda *each: np.concatenate(each), *parts)] if len(parts) > 1 else parts


@contextlib.contextmanager
def _ctrl_c() -> Generator[threading.Event]:
    """Ctrl-C sets an event, which asks the run to end after this chunk; a second time, it ends it at once."""
    pressed = threading.Event()

    def press(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():  # only the main one may handle signals
        yield pressed
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
