"""One run: train, evaluate, and come back with the parameters and the history of the cost.

    minimize(cost, params, adam(1e-3), data, batch_size=128, epochs=10)      mini-batches
    minimize(cost, params, sgd(0.1), data, epochs=100)                       gradient descent on everything
    minimize(cost, params, sgd(0.1), data, batch_size=1, epochs=1)           stochastic gradient descent proper
    minimize(rosenbrock, start, adam(1e-2), steps=1000)                      no data at all

It uses only public parts of the library; a loop of your own loses nothing but the typing.
"""

import functools
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.core import check
from gradtx.core.foreign import as_transform
from gradtx.core.transform import Transform
from gradtx.training import advancing, inputs
from gradtx.training.advancing import Carry, Plan
from gradtx.training.losses import read_loss
from gradtx.training.progress import Progress
from gradtx.wrappers.guards import has_failed

PyTree = Any
_WHO = "gradtx.minimize"
_KEPT_BYTES = 2**24  # params up to this size are kept while the program runs, to go back to
_SECONDS_A_CALL = 0.3  # how long the program runs before the host looks at the loss, the clock and the keyboard
_known_chunks: dict[Any, int] = {}  # steps in one chunk, as the last run of a program found them


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
        Both warn with the step. To stop, a run of up to 16 MB of params keeps a copy of params and state to go back to,
        a larger one a condition in its loop.
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
    inputs.check_evaluate(_WHO, evaluate)
    inputs.check_callable(_WHO, "stop", stop, "the history")
    nonfinite = ("continue" if "nonfinite" in tx.facts else "stop") if nonfinite is None else nonfinite
    stop_at_nonfinite = inputs.choice(_WHO, "nonfinite", nonfinite, ("stop", "continue")) == "stop"
    total = inputs.total_steps(_WHO, source, epochs=epochs, steps=steps)
    chunk = None if steps_per_call is None else inputs.positive(_WHO, "steps_per_call", steps_per_call)
    every = source.per_epoch if evaluate_every is None else inputs.positive(_WHO, "evaluate_every", evaluate_every)
    every = None if evaluate is None and stop is None else every
    begin = _begin(tx, params, key, state, model_state)
    goes_back = stop_at_nonfinite and source.stream is None and _bytes(params) <= _KEPT_BYTES
    plan = Plan(read, source.sampling, stop_at_nonfinite and not goes_back, stop_when_failed="nonfinite" in tx.facts)
    given = {"params": params, "model_state": model_state if state is None else state["model_state"]}
    like = tree.shapes(given)
    inputs.check_loss(_WHO, plan, like, source.example)
    if evaluate is not None:
        inputs.check_names(_WHO, evaluate, like, advancing.records_like(plan, like, source.example))
    batches = source.passes(epochs or (1 if steps is None else None))
    first = 0 if state is None else int(state["step"])
    run = _Run(plan, tx, begin, first, goes_back, source, batches, evaluate, stop, chunk)
    with Progress("minimize", total, show=progress) as bar, _Keyboard() as keyboard:
        run.to_the_end(total, every, bar, keyboard)
    return run.result()


def _begin(tx: Transform, params: PyTree, key: Any, state: Any, model_state: PyTree) -> Callable[[], Carry]:
    """Makes the first carry, fresh or of an earlier result; copied, because the program overwrites it in place."""
    check.check_leaves(_WHO, "params", params)
    if state is None:
        return functools.partial(advancing.start, tx, params, model_state, inputs.read_key(_WHO, key))
    if key is not None or model_state is not None:
        raise ValueError(f"{_WHO}: a state brings its own key and model_state; pass either the state or these.")
    if not isinstance(state, dict) or state.keys() != {"tx", "model_state", "step", "key"}:
        received = f"a dict of {', '.join(map(str, state)) or 'nothing'}" if isinstance(state, dict) else repr(state)
        raise ValueError(f"{_WHO}: state is {received}; it must be that of an earlier result, result.state.")
    return functools.partial(advancing.go_on, state, params)


def _bytes(params: PyTree) -> int:
    return sum(np.size(leaf) * tree.dtype_of(leaf).itemsize for leaf in jax.tree.leaves(params))


class _Run:
    """A run under way: the carry, and what has been recorded.

    A loss that is not finite can end it in two ways. The program looks at each loss, and skips the update and what
    comes after. Or it does not, which is up to a third faster for a small network on a CPU, and where the losses show
    one, the chunk is run again from its start up to there (`goes_back`), which takes a copy of params and state.
    """

    def __init__(
        self,
        plan: Plan,
        tx: Transform,
        begin: Callable[[], Carry],
        first: int,
        goes_back: bool,
        source: inputs.Source,
        batches: Iterator[PyTree],
        evaluate: Callable[..., Any] | None,
        stop: Callable[..., Any] | None,
        chunk: int | None,
    ):
        self.plan, self.tx, self.begin, self.source, self.batches = plan, tx, begin, source, batches
        self.evaluate, self.stop = evaluate, stop
        self.goes_back, self.stops = goes_back, goes_back or plan.stop_at_nonfinite
        self.carry, self.ok, self.failed = begin(), True, False
        self.first = self.step = first
        self.records: list[Any] = []
        self.evaluations: list[Any] = []
        self.evaluated_at: list[int] = []
        self.fixed = chunk is not None
        self.program = plan, tuple(leaf.size for leaf in jax.tree.leaves(self.carry["params"]))
        known = 1 if source.stream is not None else _known_chunks.get(self.program, 1)  # a stream has a pace of its own
        self.chunk = min(chunk or known, plan.capacity)

    def to_the_end(self, total: int | None, every: int | None, bar: Progress, keyboard: "_Keyboard") -> None:
        """Chunk after chunk, with evaluations where they are due."""
        end = None if total is None else self.first + total
        while end is None or self.step < end:
            due = None if every is None else (self.step // every + 1) * every
            last = min(t for t in (self.step + self.chunk, end, due) if t is not None)
            begun, before = time.perf_counter(), self.step
            exhausted = self._advance(last)
            if not self.fixed and self.step > before:
                seconds = (time.perf_counter() - begun) / (self.step - before)
                self.chunk = int(min(4 * self.chunk, max(1, _SECONDS_A_CALL / seconds), self.plan.capacity))
                if len(_known_chunks) > 256:
                    _known_chunks.clear()
                _known_chunks[self.program] = self.chunk
            if self.records:
                bar.update(self.step - self.first, f"loss {self.records[-1]['loss'][-1]:.4g}")
            over = exhausted or keyboard.pressed or not self.ok or self.failed or self.step == end
            asked_to_stop = (self.step == due or over) and self._stop_after_evaluation()
            if over or asked_to_stop:
                return

    def _advance(self, last: int) -> bool:
        """Run until before step `last`; True if the data came to its end."""
        if self.source.stream is not None:
            return self._advance_on_stream(last)
        plan, data, until = self.plan, self.source.data, np.int32(last)
        order = advancing.draw_orders(plan.sampling, plan.capacity, self.carry["key"], np.int32(self.step), until)
        kept = advancing.copied(self.carry) if self.goes_back and self.step > self.first else None
        self.carry, rows = advancing.run(plan, self.tx, self.carry, data, order, until)
        self._look_for_failure()
        self._record((int(self.carry["step"]) if self.failed else last) - self.step, rows)
        if self.goes_back and not self.ok:
            before = self.begin() if kept is None else kept
            self.carry, _ = advancing.run(plan, self.tx, before, data, order, np.int32(self.step))
        return False

    def _advance_on_stream(self, last: int) -> bool:
        rows, exhausted = [], False
        while self.step + len(rows) < last:
            batch = next(self.batches, None)
            if batch is None:
                exhausted = True
                break
            self.carry, row = advancing.run_batch(self.plan, self.tx, self.carry, batch)
            rows.append(row)
        rows = jax.device_get(rows)
        self._look_for_failure()
        if rows:
            self._record(len(rows), jax.tree.map(lambda *values: np.stack(values), *rows))
        return exhausted

    def _look_for_failure(self) -> None:
        """Whether a guard of the optimizer has given up."""
        self.failed = self.plan.stop_when_failed and bool(has_failed(self.carry["tx"]))

    def _record(self, asked: int, rows: Any) -> None:
        """Write down what `asked` steps recorded, up to a loss that ends the run."""
        losses = np.asarray(rows["loss"])[:asked]
        self.ok = not self.stops or bool(np.isfinite(losses).all())
        made = asked if self.ok else int(np.argmin(np.isfinite(losses)))
        computed = made + (not self.ok)
        self.records.append(jax.tree.map(lambda row: np.asarray(row)[:computed].copy(), rows))
        self.step += made

    def _stop_after_evaluation(self) -> bool:
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
        if self.failed:
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


class _Keyboard:
    """Ctrl-C asks the run to end after this chunk; a second time, at once."""

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def __enter__(self) -> "_Keyboard":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_press)
        return self

    def _on_press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
