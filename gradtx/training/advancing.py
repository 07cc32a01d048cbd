"""The compiled loop that every call of `minimize` and `sweep` runs.

    carry = {"params", "tx", "model_state", "step", "key", "ok"}             ("key" holds bits, which can be saved)
    while step < last:  batch of this step -> loss and gradient -> update -> apply

One program serves any number of steps, because the last step is an argument, not a shape. So a run gives the same bits
however it is cut into chunks, and nothing is compiled twice. The order of the samples in each epoch is drawn before the
loop, from the key and the number of the epoch.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradtx import tree
from gradtx.core.apply import apply_updates
from gradtx.core.rule import GRADIENTS, OF_PARAMS
from gradtx.core.state import find
from gradtx.core.transform import Transform
from gradtx.training.losses import Loss
from gradtx.training.minibatches import Batches, num_batches, sample_batches, take
from gradtx.wrappers.guards import has_failed

PyTree = Any
Carry = dict[str, Any]
_NO_EPOCH = np.uint32(2**32 - 1)  # folded into a run's key, it gives the key of the loss; all other numbers are epochs


@dataclass(frozen=True)
class Sampling:
    """How an epoch of data is cut into batches."""

    size: int
    batch_size: int
    replacement: bool = False
    drop_last: bool = False

    @property
    def per_epoch(self) -> int:
        """Updates per epoch."""
        return num_batches(self.size, self.batch_size, drop_last=self.drop_last)

    @property
    def whole(self) -> bool:
        """Whether an epoch is one batch of all the data, in its own order."""
        return self.batch_size == self.size and not self.replacement

    def epoch(self, key: Array, epoch: Array) -> Batches:
        """The index batches of one epoch."""
        key = jax.random.fold_in(key, epoch)
        return sample_batches(key, self.size, self.batch_size, replacement=self.replacement, drop_last=self.drop_last)


@dataclass(frozen=True)
class Plan:
    """What the program is compiled for, apart from shapes: its static argument."""

    loss: Loss
    sampling: Sampling | None = None
    streamed: bool = False
    stop_at_nonfinite: bool = False
    stop_when_failed: bool = False
    sampled_loss: Loss | None = None

    @property
    def capacity(self) -> int:
        """The largest number of steps in one call. The indices drawn for it take at most 64 MB, plus two epochs."""
        drawn = 1 if self.sampling is None or self.sampling.whole else self.sampling.batch_size
        return max(1, min(1024, 2**24 // drawn))


@jax.jit
def start(tx: Transform, params: PyTree, model_state: PyTree, key: Array) -> Carry:
    """The carry before the first step: a copy, so the program may overwrite it."""
    carry = {
        "params": params,
        "tx": tx.init(params),
        "model_state": model_state,
        "step": jnp.zeros((), jnp.int32),
        "key": jax.random.key_data(key),
        "ok": jnp.ones((), bool),
    }
    return own(carry)


@jax.jit
def go_on(state: Carry, params: PyTree) -> Carry:
    """The carry that continues an earlier run: a copy too."""
    return own({**state, "params": params, "ok": True})


def own(carry: Carry) -> Carry:
    """A copy without weak types, which a loop could not carry."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, tree.dtype_of(leaf), copy=True), carry)


def one_step(plan: Plan, tx: Transform, carry: Carry, batch: PyTree) -> tuple[Carry, dict[str, Any]]:
    """One update: the next carry, and the entries to record."""
    loss, params, state = plan.loss, carry["params"], carry["model_state"]
    key = _loss_key(carry["key"], carry["step"]) if loss.wants_key else None

    def value_at(params: PyTree) -> tuple[Array, Any]:
        return loss(params, batch, key, state)

    def scaled_at(params: PyTree) -> tuple[Array, Any]:
        value, rest = value_at(params)
        return _scaled(value, find(carry["tx"], "loss_scale")) if "first" in tx.facts else value, (value, rest)

    (_, (value, (aux, state))), slopes = jax.value_and_grad(scaled_at, has_aux=True)(params)
    grads = _ascent(slopes)
    # `value_fn` and `grad_fn` evaluate the loss at other params, on the same batch and with the same key. A line search
    # wants the gradient as `jax.grad` returns it, as optax's do.
    offered = {
        "value": value,
        "grad": slopes,
        "value_fn": lambda params: value_at(params)[0],
        "grad_fn": lambda params: _ascent(jax.grad(scaled_at, has_aux=True)(params)[0]),
    }
    if plan.sampled_loss is not None:
        offered["sampled_grad_fn"] = functools.partial(_sampled_gradient, plan.sampled_loss, tx, carry, batch)
    # Only foreign transforms take any argument, and the line searches of optax refuse the unknown name `grad_fn`.
    extra = {
        name: offered[name]
        for name in offered
        if name in tx.facts.extra or (tx.facts.any_extra and name not in GRADIENTS)
    }

    if "nonfinite" in tx.facts:  # a non-finite model_state must not outlive a skipped step
        state = jax.tree.map(functools.partial(jnp.where, _is_sound(state)), state, carry["model_state"])

    def moved() -> Carry:
        update = _update_and_apply if OF_PARAMS & extra.keys() else _traced_once
        after, tx_state = update(tx, grads, carry["tx"], params, extra)
        moved = carry | {"params": after, "tx": tx_state, "model_state": state, "step": carry["step"] + 1}
        return moved | {"ok": carry["ok"] & ~has_failed(tx_state)} if plan.stop_when_failed else moved

    record = {"loss": value} | aux
    if not plan.stop_at_nonfinite:
        return moved(), record
    ok = carry["ok"] & jnp.isfinite(value)
    after = jax.lax.cond(ok, moved, lambda: carry)
    return after | {"ok": ok & after["ok"]}, record


def _sampled_gradient(loss: Loss, tx: Transform, carry: Carry, batch: PyTree, params: PyTree, key: Array) -> PyTree:
    """The gradient on a batch at labels that the model draws with this key, scaled like that of the loss."""

    def value_at(params: PyTree) -> Array:
        value = loss.returned(params, batch, key, carry["model_state"])
        return _scaled(value, find(carry["tx"], "loss_scale")) if "first" in tx.facts else value

    return _ascent(jax.grad(value_at)(params))


def _scaled(value: Array, scale: Array) -> Array:
    """The loss times the scale, in at least float32."""
    wide = tree.precision(value)
    return value.astype(wide) * scale.astype(wide)


def _is_sound(state: PyTree) -> Array:
    """Whether all floating-point numbers of a tree are finite."""
    return tree.all_finite([leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)])


def _ascent(grads: PyTree) -> PyTree:
    """The direction of steepest ascent. For complex params, `jax.grad` returns its conjugate."""
    return jax.tree.map(lambda g: g.conj() if tree.is_complex(g) else g, grads)


def _update_and_apply(
    tx: Transform, grads: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, PyTree]:
    """The next params, and the next state of the optimizer."""
    updates, state = tx.update(grads, state, params, **extra)
    return apply_updates(params, updates), state


_traced_once = jax.jit(_update_and_apply)  # traced once for all batches of an epoch, also for a smaller last batch


def _loss_key(bits: Array, step: Array) -> Array:
    """The key of the loss at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(bits), _NO_EPOCH), step)


def records_like(plan: Plan, carry: Carry, batch: PyTree) -> dict[str, Any]:
    """Shapes and dtypes of what a step of one run records."""
    key = jax.eval_shape(jax.random.key, 0)
    value, (aux, _) = jax.eval_shape(plan.loss, carry["params"], batch, key, carry["model_state"])
    return {"loss": value} | aux


def draw(sampling: Sampling, capacity: int, key: Array, first: Array, last: Array | np.int32) -> Batches:
    """The index batches of all epochs that contain steps `first` to `last` - 1, which are at most `capacity` steps."""
    begin, end = first // sampling.per_epoch, -(-last // sampling.per_epoch)
    rows = -(-capacity // sampling.per_epoch) + 1
    shapes = jax.eval_shape(sampling.epoch, key, begin)
    empty = jax.tree.map(lambda like: jnp.zeros((rows, *like.shape), like.dtype), shapes)

    def fill(epoch: Array, drawn: Batches) -> Batches:
        return jax.tree.map(lambda rows, one: rows.at[epoch - begin].set(one), drawn, sampling.epoch(key, epoch))

    return jax.lax.fori_loop(begin, end, fill, empty)


class Scalars:
    """Joins the scalars of a tree into one vector per dtype, and takes them apart again.

    On a CPU, each array that a step writes costs time. Counters and the weights of averages, one by one, took a quarter
    of the step of a 64-32-10 network.
    """

    def __init__(self, like: PyTree):
        leaves, self.structure = jax.tree.flatten(like)
        self.places: dict[Any, list[int]] = {}
        for i, leaf in enumerate(leaves):
            if leaf.ndim == 0:
                self.places.setdefault(leaf.dtype, []).append(i)

    def together(self, tree: PyTree) -> tuple[list[Array], dict[int, Array]]:
        """The vectors, and all other leaves by their position."""
        leaves = dict(enumerate(jax.tree.leaves(tree)))
        return [jnp.stack([leaves.pop(i) for i in places]) for places in self.places.values()], leaves

    def apart(self, vectors: list[Array], others: dict[int, Array]) -> PyTree:
        """The tree, from the vectors and all other leaves."""
        leaves = dict(others)
        for vector, places in zip(vectors, self.places.values(), strict=True):
            leaves.update(zip(places, vector, strict=True))
        return jax.tree.unflatten(self.structure, [leaves[i] for i in sorted(leaves)])


def advance(
    plan: Plan, tx: Transform, carry: Carry, data: PyTree, last: Array | np.int32
) -> tuple[Carry, dict[str, Any]]:
    """Run steps `carry["step"]` to `last` - 1: the carry after them, and the records, with `plan.capacity` rows.

    For a stream, `data` is its next batch, and only one step is run.
    """
    if plan.streamed:
        carry, record = one_step(plan, tx, carry, data)
        return carry, jax.tree.map(lambda value: jnp.asarray(value)[None], record)
    first, sampling = carry["step"], plan.sampling
    scalars = Scalars(carry["tx"])

    def on(batch: PyTree, running: tuple[Carry, Any]) -> tuple[Carry, Any]:
        carry, rows = running
        index = carry["step"] - first
        carry, record = one_step(plan, tx, carry | {"tx": scalars.apart(*carry["tx"])}, batch)
        carry |= {"tx": scalars.together(carry["tx"])}
        return carry, jax.tree.map(lambda r, value: r.at[index].set(value), rows, record)

    def until(limit: Any) -> Any:
        return lambda running: (running[0]["step"] < limit) & running[0]["ok"]

    def epoch(sampling: Sampling, orders: Batches, running: tuple[Carry, Any]) -> tuple[Carry, Any]:
        number = running[0]["step"] // sampling.per_epoch
        begin, row = number * sampling.per_epoch, number - first // sampling.per_epoch

        def step(running: tuple[Carry, Any]) -> tuple[Carry, Any]:
            return on(take(data, orders.full[row, running[0]["step"] - begin]), running)

        def rest(running: tuple[Carry, Any]) -> tuple[Carry, Any]:
            return on(take(data, orders.rest[row]), running)

        running = jax.lax.while_loop(until(jnp.minimum(last, begin + orders.full.shape[1])), step, running)
        if orders.rest.size:
            running = jax.lax.cond(until(last)(running), rest, lambda running: running, running)
        return running

    if sampling is None or sampling.whole:
        body, batch = functools.partial(on, data), data
    else:
        orders = draw(sampling, plan.capacity, jax.random.wrap_key_data(carry["key"]), first, last)
        body, batch = functools.partial(epoch, sampling, orders), take(data, orders.full[0, 0])
    like = records_like(plan, carry, batch)
    rows = jax.tree.map(lambda leaf: jnp.zeros((plan.capacity, *leaf.shape), leaf.dtype), like)
    carry, rows = jax.lax.while_loop(until(last), body, (carry | {"tx": scalars.together(carry["tx"])}, rows))
    return carry | {"tx": scalars.apart(*carry["tx"])}, rows


copied = jax.jit(own)
run = jax.jit(advance, static_argnums=0, donate_argnums=2)
