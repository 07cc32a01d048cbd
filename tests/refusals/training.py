"""What `minimize`, `sweep`, `grid` and the samplers refuse, and Flax's modules as losses, by name."""

import importlib.util
import inspect
import itertools
import sys
from unittest import mock

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import gradtx
from gradtx import adam, grid, log_uniform, minimize, sgd, sweep, uniform
from gradtx.training import inputs, linen, nnx
from gradtx.training.losses import check_loss, read_loss
from gradtx.training.minibatches import batches, num_batches, sample_batches
from tests.refusals import Refusal
from tests.training.network import DATA, X, Y, bowl, cost, init, sgds, start

KEY = np.array([0, 3], np.uint32)
V, T = ValueError, TypeError


def table(who, call, rows, **defaults):
    """A row for each change of the defaults."""
    for change, error, words in rows:
        given = defaults | change
        yield Refusal(f"{who}: {words}", lambda given=given: call(**given), error, who, words)


def minimizing():
    none = {"loss": bowl, "data": None, "batch_size": None, "steps": None}
    stream = {"batch_size": None}
    ends = none | {"tx": gradtx.lbfgs()}
    rows = [
        ({"loss": 3}, T, "loss is 3; it must be a function: loss(params) or loss(params, batch)."),
        ({"loss": lambda p, b: b["y"]}, T, "dtype float32 and shape (5,); it must be a real scalar. Take its"),
        ({"tx": sgds()}, V, "tx is a sweep of 3 optimizers in one value. Pass it to gradtx.sweep, or pass one"),
        ({"tx": 0.1}, T, "is 0.1; it must be a transform, or any object with init and update."),
        ({"tx": sgd}, T, "is the factory gradtx.sgd itself. Call it: sgd(...)."),
        ({"params": {"n": np.arange(3)}}, T, "params at ['n'] has dtype int"),
        ({"params": {"n": "a"}}, T, "params at ['n'] is 'a' of type str; it must be an array."),
        ({"data": {"x": X, "y": Y[1:]}}, V, "data['x'] has 23 samples, shape (23, 3), but data['y'] has 22,"),
        ({"batch_size": 24}, V, "batch_size is 24; it must be from 1 to the number of samples, 23. Pass None"),
        ({"drop_last": 1}, T, "drop_last is 1 of type int; it must be True or False."),
        ({"data": iter(())}, V, "batch_size is 5, but data is an iterable, which gives whole batches; leave"),
        ({"data": iter(()), "drop_last": True} | stream, V, "drop_last is True, but data is an iterable"),
        ({"data": iter(())} | stream, V, "data is empty: the iterable gives no batch."),
        ({"data": "abc"} | stream, T, "data is 'abc'; it must be arrays, or an iterable of batches"),
        ({"data": None}, V, "batch_size is 5, but data is None; leave it out, or pass arrays."),
        ({"data": None, "replacement": True} | stream, V, "replacement is True, but data is None;"),
        ({"data": iter([DATA] * 2), "steps": None, "epochs": 2} | stream, V, "epochs=2, but data is an iterator, wh"),
        ({"steps": None}, V, "how long? Give steps=... or epochs=..."),
        ({"epochs": 2}, V, "epochs=2 and steps=5 are both given. Give one of them."),
        ({"steps": 0}, V, "steps is 0; it must be at least 1."),
        ({"steps": 3.0}, T, "steps is 3.0 of type float; it must be an int."),
        ({"steps": True}, T, "steps is True of type bool; it must be an int."),
        ({"steps": None, "epochs": -1}, V, "epochs is -1; it must be at least 1."),
        ({"tx": gradtx.lbfgs(), "steps": None}, V, "lbfgs would end by itself, but the loss is that of another mini-b"),
        ({"tx": gradtx.levenberg_marquardt()}, V, "needs residual_fn, the residuals of all data at each step, and the"),
        ({"tolerance": 1e-3}, V, "tolerance is 0.001, for runs that end by themselves, but sgd does not evaluate the"),
        (ends | {"tolerance": -1.0}, V, "tolerance is -1.0; it must be a number of at least 0."),
        (ends | {"tolerance": "a"}, V, "tolerance is 'a'; it must be a number of at least 0."),
        (ends | {"nonfinite": "stop"}, V, "nonfinite is 'stop', but this run ends by itself: a first loss that is not"),
        (ends | {"loss": None}, T, "loss is None; it must be a function"),
        (ends | {"state": {"w": 1}}, V, "Of such a run it has ends, model_state, step, tx."),
        (ends | {"residuals": bowl, "tx": gradtx.levenberg_marquardt()}, V, "is for half the sum of squares"),
        (ends | {"residuals": lambda p, *, key: p["w"]}, T, "residuals takes a key or model_state"),
        (ends | {"loss": None, "residuals": lambda p: p["w"].astype(np.complex64)}, T, "complex64; they must be real"),
        (ends | {"loss": lambda p: jnp.sum(p["w"]), "tx": gradtx.levenberg_marquardt()}, T, "residuals are one number"),
        (none, V, "how long? Give steps=..."),
        (none | {"epochs": 2}, V, "epochs=2 is for runs with data. Give steps=..."),
        ({"nonfinite": "ignore"}, V, "nonfinite is 'ignore'; allowed: 'stop', 'continue'."),
        ({"steps_per_call": 0}, V, "steps_per_call is 0; it must be at least 1."),
        ({"evaluate_every": 0}, V, "evaluate_every is 0; it must be at least 1."),
        ({"evaluate": 3}, T, "evaluate is 3; it must be a function of the params."),
        ({"evaluate": lambda p: None}, T, "evaluate returns None; it must return a number, or a dict of them."),
        ({"evaluate": lambda p: {}}, T, "evaluate returns {}; it must return a number, or a dict of them."),
        ({"evaluate": lambda p: {"loss": 1.0}}, V, "an entry 'loss', a name that the history uses"),
        ({"evaluate": lambda p: {"evaluated_at": 1.0}}, V, "Rename it, for example to 'test_evaluated_at'"),
        ({"stop": 0.1}, T, "stop is 0.1; it must be a function of the history."),
        ({"key": 0}, T, "key is 0 of type int; it must be a JAX random key. Make one with jax.random.key(seed)."),
        ({"key": np.zeros((2, 2), np.uint32)}, V, "several keys; it must be one."),
        ({"state": {}}, V, "state is a dict of nothing; it must be that of an earlier result, result.state."),
        ({"state": {"w": 1}}, V, "state is a dict of w; it must be that of an earlier result, result.state."),
        ({"state": 3}, V, "state is 3; it must be that of an earlier result, result.state."),
        ({"state": {}, "key": KEY}, V, "a state brings its own key and model_state. Pass either the state or"),
        ({"state": {}, "model_state": 1.0}, V, "a state brings its own key and model_state. Pass either"),
    ]  # fmt: skip
    given = {"loss": cost, "params": start(), "tx": sgd(0.1), "data": DATA, "batch_size": 5, "steps": 5}
    yield from table("gradtx.minimize", minimize, rows, **given)

    def of_another(tx, *words):
        def call():
            state = minimize(bowl, jnp.zeros(2), adam(0.1), steps=1).state
            minimize(bowl, jnp.zeros(3), tx, steps=1, state=state)

        return Refusal(f"minimize: a state of another {words[0]}", call, ValueError, *words)

    yield of_another(sgd(0.1), "gradtx.sgd.update: the state is not one that init makes", "last update of this opt")
    yield of_another(adam(0.1), "gradtx.adam.update: the state", "['scale_by_momentum']['mu']")

    def rbg():
        minimize(bowl, jnp.zeros(2), sgd(0.1), steps=1, key=jax.random.key(0, impl="rbg"))

    def too_large(free):
        device = mock.Mock(**{"memory_stats.return_value": {"bytes_limit": 1000, "bytes_in_use": 1000 - free}})
        with mock.patch.object(inputs.jax, "devices", return_value=[device]):
            inputs.read_data("who", DATA, batch_size=5, replacement=False, drop_last=False)
            raise ValueError("it fits")

    yield Refusal("minimize: another kind of key", rbg, ValueError, "key has dtype key<rbg>; the state keeps the bits")
    size = X.nbytes + Y.nbytes
    yield Refusal("data too large", lambda: too_large(size), ValueError, "data takes 0.0 GB, and the device has 0.0 GB")
    yield Refusal("data that fits", lambda: too_large(size * 10 // 9 + 1), ValueError, "it fits")


class Stream:
    """Batches without an end that it knows."""

    def __iter__(self):
        return iter([DATA])


def sweeping():
    sizes = itertools.count(2)
    uneven = jax.tree.map(lambda _: np.ones(next(sizes) % 2 + 2), sgd(0.1, momentum=0.9))
    rows = [
        ({"txs": adam(0.1)}, V, "txs is one optimizer, adam("),
        ({"txs": []}, T, "txs is []; it must be a sweep of optimizers, or a list or dict of optimizers."),
        ({"txs": 0.1}, T, "txs is 0.1"),
        ({"txs": [3]}, T, "an optimizer in txs is 3; it must be a transform"),
        ({"txs": [uneven]}, V, "the hyperparameters of sgd have leading axes of lengths [2, 3]."),
        ({"epochs": None}, V, "how long? Give steps=... or epochs=..."),
        ({"steps": 3}, V, "epochs=1 and steps=3 are both given"),
        ({"data": Stream()}, V, "the iterable of batches has no length. Give steps=..."),
        ({"data": iter([DATA]), "epochs": None, "steps": 1}, V, "data is an iterator, which can be run through once"),
        ({"seeds": 0}, V, "seeds is 0; it must be at least 1."),
        ({"seeds": 1.5}, T, "seeds is 1.5 of type float"),
        ({"at_once": 0}, V, "at_once is 0; it must be at least 1."),
        ({"batch_size": 24}, V, "batch_size is 24"),
        ({"halve_at": (5,), "batch_size": 5}, V, "halve_at is (5,); the steps must increase, and be below"),
        ({"halve_at": (3, 2), "batch_size": 5}, V, "halve_at is (3, 2)"),
        ({"halve_at": (2, 2), "batch_size": 5}, V, "halve_at is (2, 2)"),
        ({"halve_at": (0,), "batch_size": 5}, V, "halve_at is 0; it must be at least 1."),
        ({"best_by": "accuracy"}, V, "best_by is 'accuracy'; allowed: 'final_loss', 'best_loss'."),
        ({"best_by": "b", "evaluate": lambda p: {"a": p["b"]}}, V, "allowed: 'final_loss', 'best_loss', 'a'."),
        ({"loss": lambda p, b: b["x"] @ p["w"]}, T, "real scalar"),
        ({"init": lambda key: {"w": jnp.arange(3)}}, T, "params from init at ['w'] has dtype int32"),
        ({"evaluate": 3}, T, "evaluate is 3; it must be a function of the params."),
        ({"key": 0}, T, "key is 0 of type int"),
    ]  # fmt: skip
    yield from table("gradtx.sweep", sweep, rows, loss=cost, init=init, txs=sgds(), data=DATA, epochs=1)
    words = "jax.vmap(gradtx.adam)(learning_rates)", "gradtx.grid(...)", "For a single one, use gradtx.minimize."
    yield Refusal("sweep: one alone", lambda: sweep(cost, init, adam(0.1), DATA, epochs=1), ValueError, *words)


def losses():
    def wrong(words, function, error=TypeError, *, has_data=False, has_aux=False, model_state=None, params=None):
        def call():
            loss = read_loss("who", function, has_aux=has_aux, has_data=has_data)
            given = jnp.zeros(2) if params is None else params
            check_loss("who", loss, given, None, jax.eval_shape(jax.random.key, 0), model_state)

        return Refusal(f"a loss: {words}", call, error, "who: ", words)

    yield wrong("loss is 3.0; it must be a function: loss(params) or loss(params, batch).", 3.0)
    yield wrong("takes () as positional arguments; it must be loss(params) or", lambda: 1.0)
    yield wrong("(a, b, c) as positional arguments; it must be loss(params) or lo", lambda a, b, c: a, has_data=True)
    words = "key and model_state keyword-only: loss(params, batch, *, key)"
    yield wrong(words, lambda p, b, key: p, has_data=True)
    yield wrong(words, lambda p, b, key=None: p, has_data=True)
    yield wrong(words, lambda p, model_state: p, has_data=True)
    yield wrong("wants the keyword 'rng'; only key and model_state can be passed. Close over it", lambda p, *, rng: p)
    yield wrong("the loss wants a batch, loss(p, b), and data is None. Pass data.", lambda p, b: p, ValueError)
    words = "takes no batch, and data is given; write it as loss(params, batch)."
    yield wrong(words, lambda p: p, ValueError, has_data=True)

    mean = "it must be a real scalar. Take its mean over the batch: values.mean()."
    yield wrong(f"an array of dtype float32 and shape (2,); {mean}", lambda p: p)
    yield wrong(f"shape (1,); {mean}", lambda p: p[:1])
    yield wrong("dtype complex64 and shape (); it must be a real scalar.", lambda p: p[0].astype(jnp.complex64))
    yield wrong("dtype bool and shape (); it must be a real scalar.", lambda p: p[0] > 0)
    yield wrong("the loss returns None; it must be a real scalar.", lambda p: None)
    yield wrong("it must be a real scalar. For (value, dict) pass has_aux=True.", lambda p: (bowl(p), {}))
    words = "with has_aux=True the loss must return (value, dict); it returned"
    for function in (bowl, lambda p: (bowl(p), 3.0), lambda p: [bowl(p), {}], lambda p: (bowl(p), {}, {})):
        yield wrong(words, function, has_aux=True)
    yield wrong(f"shape (2,); {mean}", lambda p: (p, {}), has_aux=True)
    words = "the dict of the loss has an entry 'loss', the value's name. Rename it."
    yield wrong(words, lambda p: (bowl(p), {"loss": p[0]}), ValueError, has_aux=True)

    def carried(p, *, model_state):
        return bowl(p), {"model_state": model_state}

    words = "the loss wants model_state, and there is none. Pass model_state=... to start from."
    yield wrong(words, carried, ValueError, has_aux=True)
    words = "a loss with model_state must return (value, {'model_state': ...}), with has_aux=True"
    yield wrong(words, lambda p, *, model_state: bowl(p), model_state=jnp.zeros(()))
    words = "the loss was given the model_state "
    for other in (jnp.zeros(2), jnp.zeros((), jnp.bfloat16), {"mean": jnp.zeros(())}, None):
        changed = lambda p, o=other: (bowl(p), {"model_state": o})  # noqa: E731
        yield wrong(words, changed, has_aux=True, model_state=jnp.zeros(()))
    words = "the model_state None, but returns ShapeDtypeStruct(shape=(2,), dtype=float32); structure, shapes"
    yield wrong(words, lambda p: (bowl(p), {"model_state": p}), has_aux=True)

    def unreadable():
        with mock.patch.object(inspect, "signature", mock.Mock(side_effect=ValueError("no signature found"))):
            read_loss("who", bowl, has_aux=False, has_data=False)

    yield Refusal("a loss without signature", unreadable, TypeError, "who: the signature of", "cannot be read; wrap it")


def sampling():
    an_int, from_1 = "it must be an int.", "it must be from 1 to 2**31 - 1, because the indices are int32."
    sizes = [
        (60_000.0, 128, TypeError, "size is 60000.0 of type float", an_int),
        (60_000, 128.0, TypeError, "batch_size is 128.0 of type float", an_int),
        (60_000, "1" * 99, TypeError, f"batch_size is '{'1' * 76}... of type str", an_int),
        (True, None, TypeError, "size is True of type bool", an_int),
        (10, np.True_, TypeError, "batch_size is np.True_ of type bool", an_int),
        (None, 128, TypeError, "size is None", an_int),
        (10, np.arange(3), TypeError, "batch_size is an array of dtype int64 and shape (3,)", an_int),
        (0, None, ValueError, "size is 0", from_1),
        (2**31, 1, ValueError, "size is 2147483648", from_1),
        (100, 101, ValueError, "batch_size is 101", "from 1 to the number of samples, 100. Pass None"),
        (100, 0, ValueError, "batch_size is 0", "from 1 to"),
    ]
    for size, batch_size, error, *words in sizes:
        for call, who in ((num_batches, ""), (lambda *given: sample_batches(KEY, *given), "")):
            who = "gradtx.num_batches: " if call is num_batches else "gradtx.sample_batches: "
            called = lambda call=call, given=(size, batch_size): call(*given)  # noqa: E731
            yield Refusal(f"{who}{words[0]}", called, error, who, *words)
    for key in (0, None, np.arange(2), np.zeros(2, np.float32), np.zeros(3, np.uint32), np.uint32(1), "key"):
        words = "gradtx.sample_batches: key is ", "must be a JAX random key. Make one with jax.random.key(seed)."
        yield Refusal(f"sampling with {key!r}", lambda key=key: sample_batches(key, 10, 2), TypeError, *words)
    keys = [lambda: jax.random.split(jax.random.key(0), 3), lambda: np.zeros((3, 2), np.uint32)]
    for make in keys:
        call = lambda make=make: sample_batches(make(), 10, 2)  # noqa: E731
        yield Refusal("sampling with keys", call, ValueError, "sample_batches: key is an array", "several keys", "vmap")
    for name in ("replacement", "drop_last"):
        call = lambda name=name: sample_batches(KEY, 10, 2, **{name: 1})  # noqa: E731
        yield Refusal(
            f"{name} is 1", call, TypeError, f"gradtx.sample_batches: {name} is 1 of type int", "True or False"
        )
    hint = "a traced value of dtype", 'jax.jit(sample_batches, static_argnames=("size", "batch_size", "replacement", '
    yield Refusal("a traced size", lambda: jax.eval_shape(sample_batches, KEY, 10), TypeError, "size is", *hint)
    flag = lambda: jax.eval_shape(lambda flag: sample_batches(KEY, 10, 2, drop_last=flag), True)  # noqa: E731
    yield Refusal("a traced flag", flag, TypeError, "drop_last is", *hint)

    data = [
        ({}, ValueError, "data is {} of type dict, a pytree without arrays; it must hold at least one."),
        (None, ValueError, "data is None of type NoneType, a pytree without arrays"),
        (np.zeros((0, 3)), ValueError, "data is empty: data has shape (0, 3)"),
        ({"x": X, "y": {"a": Y[1:]}}, ValueError, "has 23 samples, shape (23, 3), but data['y']['a'] has 22, shape ("),
        ((X, np.float32(2)), ValueError, "data[1] is a scalar, np.float32(2.0) of type float32"),
        ([1, 2, 3], ValueError, "data[0] is a scalar, 1 of type int; every leaf needs a leading axis"),
        (
            {"x": "three"},
            TypeError,
            "data['x'] is 'three' of type str; every leaf must be a NumPy or JAX array. Con",
        ),
        (
            {"x": range(3)},
            TypeError,
            "data['x'] is range(0, 3) of type range; every leaf must be a NumPy or JAX arra",
        ),
        (X, ValueError, "batch_size is 50; it must be from 1 to the number of samples, 23"),
    ]
    for given, error, words in data:
        call = lambda given=given: batches(KEY, given, 50)  # noqa: E731 - at the call, not at the first batch
        yield Refusal(f"batches: {words}", call, error, "gradtx.batches: ", words)
    for words, given in (("key is 'key'", ("key", X)), ("drop_last is 'yes' of type str", (KEY, X))):
        options = {"drop_last": "yes"} if given[0] is KEY else {}
        call = lambda given=given, options=options: batches(*given, 2, **options)  # noqa: E731
        yield Refusal(f"batches: {words}", call, TypeError, "gradtx.batches: ", words)


def grids():
    several = "no argument has several values. Pass a list, an array, or a distribution for one."
    drawn = {"learning_rate": uniform(0.1, 1)}
    both = "distributions need draws=..., how many optimizers, and key=jax.random.key(...)."
    two, rates = {"learning_rate": [0.1]}, {"learning_rate": [0.1, 0.2]}
    rows = [
        (two | {"factory": 3}, T, "factory is 3; it must make an optimizer when called, such as gradtx.adam."),
        ({"learning_rate": 0.1}, V, several),
        ({"learning_rate": np.array(0.1)}, V, several),
        ({"learning_rate": []}, V, "learning_rate has shape (0,); it must be a list of at least one number."),
        ({"learning_rate": np.ones((2, 2))}, V, "learning_rate has shape (2, 2)"),
        ({"learning_rate": ["a", "b"]}, T, "learning_rate is ['a', 'b']; a grid is over numbers."),
        (two | {"nesterov": [True]}, T, "nesterov is [True]; a grid is over numbers. Make one grid for each"),
        (two | {"how": "all"}, V, "how is 'all'; allowed: 'product', 'zip'."),
        (two | {"b1": [0.5, 0.9], "how": "zip"}, V, "equal length; the lengths are {'learning_rate': 1, 'b1': 2}"),
        (two | {"draws": 3}, V, "draws and key are for distributions"),
        (two | {"key": KEY}, V, "draws and key are for distributions"),
        (drawn | {"draws": 3}, V, both),
        (drawn | {"key": KEY}, V, both),
        (drawn | {"draws": 0, "key": KEY}, V, "draws is 0; it must be at least 1."),
        (drawn | {"draws": True, "key": KEY}, T, "draws is True of type bool; it must be an int."),
    ]  # fmt: skip
    yield from table("gradtx.grid", grid, rows, factory=adam)
    own = {"b1 is 1.5": rates | {"b1": [0.5, 1.5]}, "lerning_rate": {"lerning_rate": [0.1]}}
    for words, given in own.items():
        error = ValueError if "b1" in words else TypeError
        yield Refusal(f"a grid's factory: {words}", lambda given=given: grid(adam, **given), error, words)
    order = "low < high, both finite."
    for draw, given, error, *words in (
        (uniform, (2, 1), ValueError, "gradtx.uniform: low=2, high=1; allowed: low < high"),
        (uniform, (1, 1), ValueError, order),
        (uniform, (0, float("inf")), ValueError, order),
        (uniform, (-float("inf"), 0), ValueError, order),
        (uniform, (0, "1"), TypeError, "gradtx.uniform: high is '1'; it must be a number."),
        (uniform, (False, 1), TypeError, "gradtx.uniform: low is False; it must be a number."),
        (log_uniform, (0, 1), ValueError, "gradtx.log_uniform: low=0, high=1; allowed: 0 < low < high"),
    ):
        yield Refusal(f"{draw.__name__}{given}", lambda draw=draw, given=given: draw(*given), error, *words)


def modules():
    """Flax's, as losses."""
    network, norm = nn.Dense(1), nn.BatchNorm(use_running_average=False)
    rows = [
        (lambda: linen.init(nn.Dropout(0.5, deterministic=True), X), V, "Dropout has no parameters; there is nothing"),
        (lambda: linen.loss(network, 3), T, "cost is 3; it must be a function: cost(network, batch)"),
        (lambda: linen.loss(network, cost, rngs=True), T, "rngs is True; it must be a name or several"),
        (lambda: linen.loss(network, cost, mutable=[1]), T, "mutable is [1]; it must be a name or several"),
        (lambda: linen.loss(network, cost, mutable=("a", "params")), V, "mutable has 'params', which the optimizer"),
        (
            lambda: linen.loss(norm, cost, mutable="batch_stats")({}, DATA, model_state={"cache": {}}),
            V,
            "model_state has ['cache']; it must have mutable's ['batch_stats']",
        ),
    ]  # fmt: skip
    for wrong in (nn.Dense, None):
        rows.append((lambda wrong=wrong: linen.init(wrong, X), T, "linen.init: module is"))
        rows.append((lambda wrong=wrong: linen.loss(wrong, cost), T, "linen.loss: module is"))
    for call, error, words in rows:
        yield Refusal(f"linen: {words}", call, error, "gradtx.training.linen.", words)

    def linear():
        return flax.nnx.Linear(2, 1, rngs=flax.nnx.Rngs(0))

    def batch_norm():
        return flax.nnx.BatchNorm(2, rngs=flax.nnx.Rngs(0))

    for call in (nnx.split, lambda wrong: nnx.loss(wrong, cost), lambda wrong: nnx.update(wrong, {})):
        words = "gradtx.training.nnx: module is", "it must be an instance of flax.nnx.Module."
        yield Refusal("nnx: no module", lambda call=call: call(flax.nnx.Linear), TypeError, *words)
    dropout = lambda: nnx.split(flax.nnx.Dropout(0.5, rngs=flax.nnx.Rngs(0)))  # noqa: E731
    yield Refusal("nnx: no params", dropout, ValueError, "nnx: Dropout has no nnx.Param; there is nothing to train")
    words = "nnx.loss: cost is 3; it must be a function: cost(network, batch)"
    yield Refusal("nnx: no cost", lambda: nnx.loss(linear(), 3), TypeError, words)
    other = lambda: nnx.update(linear(), {"kernel": jnp.zeros((2, 1))})  # noqa: E731
    yield Refusal(
        "nnx: other params", other, ValueError, "nnx.update: params is {'kernel': (2, 1)}; Linear has {'bias'"
    )
    parts = lambda: nnx.update(batch_norm(), nnx.split(batch_norm())[0], {})  # noqa: E731
    yield Refusal("nnx: other state", parts, ValueError, "nnx.update: model_state is {}; BatchNorm has {'mean': (2,)")

    for module in (linen, nnx):

        def load(module=module):
            spec = importlib.util.spec_from_file_location("without_flax", module.__file__)
            with mock.patch.dict(sys.modules, {"flax": None}):
                spec.loader.exec_module(importlib.util.module_from_spec(spec))

        yield Refusal(
            f"no {module.__name__}", load, ImportError, f"{module.__name__} needs flax: pip install 'gradtx[fl"
        )

    def table():
        with mock.patch.dict(sys.modules, {"pandas": None}):
            gradtx.SweepResult({}, {}, None, 1).to_pandas()

    words = "gradtx.SweepResult.to_pandas needs pandas: pip install pandas. Or use to_csv."
    yield Refusal("no pandas", table, ImportError, words)


REFUSALS = [
    row for part in (minimizing, sweeping, losses, sampling, grids, modules) for row in part()
]  # fmt: skip
