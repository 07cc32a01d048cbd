"""One training run: train, evaluate, and return the parameters and the history of the loss.

    minimize(cost, params, adam(1e-3), data, batch_size=128, epochs=10)      mini-batches
    minimize(cost, params, sgd(0.1), data, epochs=100)                       full-batch gradient descent
    minimize(cost, params, sgd(0.1), data, batch_size=1, epochs=1)           stochastic gradient descent: single samples
    minimize(rosenbrock, start, adam(1e-2), steps=1000)                      no data at all

`minimize` uses only public parts of the library, so you can write the same loop yourself.
"""

import contextlib
import functools
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.core import check
from gradtx.core.foreign import as_transform
from gradtx.core.transform import Transform
from gradtx.training import advancing, chunks, ending, inputs, solving
from gradtx.training.advancing import Carry, Plan
from gradtx.training.ending import Result
from gradtx.training.losses import read_sampled_loss
from gradtx.training.progress import Progress
from gradtx.wrappers.guards import has_failed

PyTree = Any
_WHO = "gradtx.minimize"
_KEPT_BYTES = 2**24  # for params up to this size, a copy of the carry is kept while a chunk runs, to go back to


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
    tolerance: Any = None,
    residuals: Callable[..., Any] | None = None,
    implicit_diff: bool = True,
    sampled_loss: Callable[..., Any] | None = None,
) -> Result:
    """Minimize a loss with any optimizer, in compiled chunks of steps; with some, until it is at a minimum.

        for each step t:  g = gradient of loss(params, batch_t);  u, state = tx.update(g, state, params);  params += u

    Methods that evaluate the loss themselves (`lbfgs`, `nonlinear_cg`, `newton_cg`, `gauss_newton`,
    `levenberg_marquardt`, any direction before a line search) need no number of steps if the loss is always the same:
    `minimize(loss, params, lbfgs())`. `result.reason` says why the run ended. Such a run may also be inside `jit`,
    `scan` and `vmap`, where each member of the batch ends by itself, and has derivatives (`implicit_diff`).

    Arrays stay on the device, and the loop over their batches is one compiled program. It is compiled once for each
    loss function and its shapes; another learning rate, seed or length compiles nothing. (A lambda written in the call
    is a new function each time, so each call compiles again.)

    Args:
      loss: `loss(params)` or `loss(params, batch)`, a real scalar. If it has the keyword-only argument `key`, it gets a
        new random key at each step. If it has the keyword-only argument `model_state`, it gets the `model_state`
        that it returned at the previous step (needs `has_aux`).
      params: a pytree of floating-point or complex arrays.
      tx: a gradtx transform, or any object with `init` and `update`.
      data: a pytree of arrays that share a leading axis of samples, or an iterable of batches, which is streamed.
      batch_size: samples per batch, from 1 to the number of samples; None is all of them. For arrays only.
      epochs, steps: the length of the run; give one of them. Without either, an iterable of batches is read once. For a
        run that ends by itself they are the most updates; without either 10 000.
      key: a random key; None is `jax.random.key(0)`. It decides the order of the samples,
        `sample_batches(jax.random.fold_in(key, epoch), ...)`, and the keys of the loss,
        `fold_in(fold_in(key, 2**32 - 1), step)`.
      state: the state of an earlier result, to continue its run; it contains the key. k steps and then n more give the
        same bits as k + n steps, also if the state was saved and loaded in between. An iterable of batches is read from
        its start: pass one that starts where the earlier run ended.
      progress: show steps, loss, rate and time left if standard error is a terminal: in a bar if the extra `progress`
        is installed, else in lines of text.
      has_aux: the loss returns `(value, dict)`. The entry "model_state" of the dict is passed to the next step; all
        other entries go to the history.
      model_state: the `model_state` of the first step.
      replacement, drop_last: as in `sample_batches`.
      evaluate: `evaluate(params)` or `evaluate(params, *, model_state)`, which is compiled. It returns a number, which
        is recorded as "metric", or a dict of numbers or arrays, for the history.
      evaluate_every: updates between evaluations. None is one epoch, or the whole run if the length of an epoch is not
        known. The end of the run is always evaluated.
      stop: a function of the history so far, called after each evaluation; the run ends if it returns True.
      nonfinite: "stop" ends the run at the first loss that is NaN or infinite, before it changes anything; "continue"
        goes on. Both warn and name the step. None is "continue" with an optimizer that handles such losses itself
        (`skip_nonfinite`, `loss_scaling`), else "stop". If `skip_nonfinite` gives up, the run ends in either case.
      steps_per_call: steps per chunk, at most 1024. Progress is shown, and Ctrl-C takes effect, between chunks. None is
        as many steps as take about 0.3 s.
      sampled_loss: `sampled_loss(params, batch, *, key)`, the loss at labels that are drawn with the key from the
        model's own prediction. For optimizers that need it: `sophia(..., estimator="gauss_newton_bartlett")`.
      tolerance: >= 0, for a run that ends by itself: it ends where the largest element of the gradient is at most
        `tolerance min(1, that of the first gradient)`. None is 1e-8 for float64, else 1e-4. With bounds, only params
        that are free count.
      residuals: `residuals(params)` or `residuals(params, batch)`: residuals, or the outputs of a model, as an array or
        a tree of real arrays. `loss` is then a function of them, `loss(outputs)` or `loss(outputs, batch)`, or None for
        half the sum of their squares. `minimize(residuals, params, levenberg_marquardt())` means the same without
        `loss`.
      implicit_diff: inside a trace, whether real params of a run that ends by itself have derivatives by what the loss
        closes over, and by the data: those of the equation gradient = 0 at the minimum. The rest has none.

    A run that ends by itself ends for one of these reasons, with this word first: "gradient", it is small enough;
    "change", neither the loss nor the gradient gets smaller, except by rounding; "search", no step that was tried
    lowers the loss; "nonfinite", the first loss or gradient is not finite; "unbounded", the loss falls without limit;
    "steps", it made the most steps. A loss that is not finite later shortens the step.

    Returns:
      `Result(params, state, history)` with `evaluations` and `reason`; after Ctrl-C, the result so far.

    Errors, before anything is compiled: TypeError and ValueError for a loss that does not return a real scalar, data
    without samples or of unequal lengths, a batch larger than the data, a sweep of optimizers, a state of another
    optimizer or of other params. Warns of params that the loss does not read.

    >>> import gradtx, jax.numpy as jnp
    >>> def bowl(x):
    ...     return jnp.sum((x - 3.0) ** 2)
    >>> result = gradtx.minimize(bowl, jnp.zeros(2), gradtx.sgd(0.1), steps=50)
    >>> jnp.allclose(result.params, 3.0, atol=1e-3), result.history["loss"].shape
    (Array(True, dtype=bool), (50,))
    """
    tx = inputs.one_optimizer(_WHO, as_transform(tx, f"{_WHO}: tx"))
    source = inputs.read_data(_WHO, data, batch_size=batch_size, replacement=replacement, drop_last=drop_last)
    read, outputs = inputs.read_problem(_WHO, loss, residuals, tx, has_aux=has_aux, has_data=data is not None)
    inputs.check_callable(_WHO, "evaluate", evaluate, "the params")
    inputs.check_callable(_WHO, "stop", stop, "the history")
    problem = inputs.ends_by_itself(_WHO, read, outputs, tx, source, tolerance=tolerance, nonfinite=nonfinite)
    most, why = None if problem is None else solving.MOST_STEPS, inputs.though(read, tx, source)
    total = inputs.total_steps(_WHO, source, epochs=epochs, steps=steps, most=most, why=why)
    chunk = None if steps_per_call is None else inputs.positive(_WHO, "steps_per_call", steps_per_call)
    every = source.per_epoch if evaluate_every is None else inputs.positive(_WHO, "evaluate_every", evaluate_every)
    every = None if evaluate is None and stop is None else every
    if problem is not None:
        plan, stops = problem, False
        begin = _begin_solving(problem, tx, params, state, inputs.read_tolerance(_WHO, tolerance, params))
    else:
        nonfinite = ("continue" if "nonfinite" in tx.facts else "stop") if nonfinite is None else nonfinite
        stops = inputs.choice(_WHO, "nonfinite", nonfinite, ("stop", "continue")) == "stop"
        begin = _begin(tx, params, key, state, model_state)
        sampled = read_sampled_loss(_WHO, sampled_loss, [tx], has_data=data is not None)
        goes_back = source.stream is None and _bytes(params) <= _KEPT_BYTES
        plan = Plan(
            read, source.sampling, source.stream is not None, stops and not goes_back, "nonfinite" in tx.facts, sampled
        )
    like = tree.shapes({"params": params, "model_state": model_state if state is None else state["model_state"]})
    inputs.check_loss(_WHO, plan, like, source.example)
    if evaluate is not None:
        inputs.check_names(_WHO, evaluate, like, advancing.records_like(plan, like, source.example))
    if problem is not None and solving.is_traced(problem, tx, params, source.data, (state, tolerance)):
        return _traced(problem, tx, begin(), source.data, total or solving.MOST_STEPS, implicit_diff)
    feed = source.feed(epochs or (1 if steps is None else None))
    run = _Run(plan, tx, begin(), feed, stops, evaluate, stop)
    with Progress("minimize", total, show=progress) as bar, _ctrl_c() as pressed:
        run.to_the_end(total, every, chunk, bar, pressed)
    return run.result()


def _begin_solving(
    problem: solving.Problem, tx: Transform, params: PyTree, state: Any, tolerance: Array
) -> Callable[[], Carry]:
    """A function that makes the first carry of a run that ends by itself."""
    check.check_leaves(_WHO, "params", params)
    if state is None:
        return functools.partial(solving.compiled(solving.start), problem.entry, tx, params, tolerance)
    _check_state(state, {"tx", "model_state", "step", "ends"})
    return functools.partial(solving.compiled(solving.go_on), problem.entry, state, params, tolerance)


def _traced(problem: solving.Problem, tx: Transform, carry: Carry, data: PyTree, total: int, implicit: bool) -> Result:
    """The result of a run inside a trace."""
    carry = solving.traced(problem, tx, carry, data, total, implicit=implicit)
    state = {name: carry[name] for name in ("tx", "model_state", "step", "ends")}
    return Result(carry["params"], state, {}, carry["tx"][problem.entry]["evaluations"] + 1, carry["ends"].code)


def _check_state(state: Any, names: set[str]) -> None:
    if not isinstance(state, dict) or state.keys() != names:
        received = f"a dict of {', '.join(map(str, state)) or 'nothing'}" if isinstance(state, dict) else repr(state)
        raise ValueError(
            f"{_WHO}: state is {received}; it must be that of an earlier result, result.state. Of such a run it has "
            f"{', '.join(sorted(names))}."
        )


def _begin(tx: Transform, params: PyTree, key: Any, state: Any, model_state: PyTree) -> Callable[[], Carry]:
    """A function that makes the first carry. It copies params and state: the program overwrites the carry in place."""
    check.check_leaves(_WHO, "params", params)
    if state is None:
        return functools.partial(advancing.start, tx, params, model_state, inputs.read_key(_WHO, key))
    if key is not None or model_state is not None:
        raise ValueError(f"{_WHO}: a state brings its own key and model_state. Pass either the state or these.")
    _check_state(state, {"tx", "model_state", "step", "key"})
    return functools.partial(advancing.go_on, state, params)


def _bytes(params: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree.shapes(params)))


class _Run:
    """A run in progress: the carry, and the records so far.

    A non-finite loss can end a run in two ways. Either the program checks each loss, and makes no update from the first
    non-finite one on. Or the program checks nothing, which is faster for a small network on a CPU. Then, if a recorded
    loss is not finite, the chunk is run again from its start up to that loss, which needs a copy of the carry.
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
        self.problem = plan if isinstance(plan, solving.Problem) else None
        self.before = self._evaluations() if self.first else 0
        self.word = "steps"

    def to_the_end(
        self, total: int | None, every: int | None, fixed: int | None, bar: Progress, pressed: threading.Event
    ) -> None:
        """Run chunk after chunk, and evaluate when it is due."""
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
            self.word = "data" if ended else "interrupted" if pressed.is_set() else "steps"
            over = ended or pressed.is_set() or self.step == end
            if (self.step == due or over) and self._stops_after_evaluation() and not over:
                over, self.word = True, "stop"

    def _advance(self, until: int, steps: int) -> bool:
        """Run the steps before step `until`; True if a loss, a guard or the end of the data ended the run earlier."""
        program: Any = advancing.run if self.problem is None else solving.run
        run = functools.partial(chunks.advance, program, self.plan, self.tx)
        kept = advancing.copied(self.carry) if self.stops and not self.plan.stop_at_nonfinite else None
        self.carry, rows = run(self.carry, self.feed, until=until, steps=steps)
        losses = rows["loss"]
        if kept is not None and not np.isfinite(losses).all():
            good = int(np.argmin(np.isfinite(losses)))
            self.carry, _ = run(kept, self.feed, until=self.step + good, steps=good)
        made = int(self.carry["step"]) - self.step
        self.step += made
        # The loss that ends the run is recorded too; later losses are not.
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

    def _evaluations(self) -> int:
        """How often the loss was evaluated since the first step of all."""
        return self.step if self.problem is None else int(self.carry["tx"][self.problem.entry]["evaluations"]) + 1

    def history(self) -> dict[str, Any]:
        """All records so far, as arrays."""
        self.records, self.evaluations = _joined(self.records), _joined(self.evaluations)
        history = {name: value for part in (*self.records, *self.evaluations) for name, value in part.items()}
        return history | ({} if self.evaluate is None else {"evaluated_at": np.asarray(self.evaluated_at)})

    def result(self) -> Result:
        """The result. Warns if a loss was not finite, or if `skip_nonfinite` gave up."""
        history = self.history()
        losses = history.get("loss", np.zeros(0))
        bad = np.flatnonzero(~np.isfinite(losses))
        code = ending.CODE[self.word]
        if len(bad):
            at = self.first + int(bad[0])
            what = "the run ended there, with the params before it" if self.stops else "it went on"
            warnings.warn(f"{_WHO}: the loss was {losses[bad[0]]} after {at} updates; {what}.", RuntimeWarning, 3)
            code = ending.CODE["nonfinite"] if self.stops else code
        if self.plan.stop_when_failed and has_failed(self.carry["tx"]):
            warnings.warn(
                f"{_WHO}: more steps in a row were not finite than skip_nonfinite allows; the run ended after "
                f"{self.step} updates, with the params before the skipped steps.",
                RuntimeWarning,
                3,
            )
            code = ending.CODE["failed"]
        if self.problem is not None:
            last = np.asarray(self.carry["tx"][self.problem.entry]["value"])
            history["loss"] = np.append(losses, last).astype(last.dtype)
            code = int(self.carry["ends"].code) or code
        evaluations = self._evaluations() - self.before
        state = {name: value for name, value in self.carry.items() if name not in ("params", "ok")}
        return Result(self.carry["params"], state, history, evaluations, code)


def _joined(parts: list[Any]) -> list[Any]:
    """The parts of a history, concatenated into one."""
    return [jax.tree.map(lambda *each: np.concatenate(each), *parts)] if len(parts) > 1 else parts


@contextlib.contextmanager
def _ctrl_c() -> Generator[threading.Event]:
    """The first Ctrl-C sets an event, which ends the run after the current chunk; the second ends the run at once."""
    pressed = threading.Event()

    def press(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield pressed
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
