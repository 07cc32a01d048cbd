"""Who is measured by `steps`: the methods as each library writes them, and their steps as programs.

Every method has the same numbers everywhere where the library has them (Keras's eps is 1e-7 and its AdamW decays
otherwise: the same operations, other numbers).
"""

import gc
import inspect
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import gradtx
from tests.benchmarks import pairs

PyTree = Any
Arguments = dict[str, Any]

LARGEST_NORM = 1.0


class Method(NamedTuple):
    """One method in each library: class and arguments for PyTorch and Keras, None where a library has none."""

    gradtx: Any
    optax: Any
    torch: tuple[str, Arguments] | None = None
    keras: tuple[str, Arguments] | None = None
    clips: bool = False


METHODS: dict[str, Callable[[], Method]] = {
    "sgd": lambda: Method(gradtx.sgd(1e-3), optax.sgd(1e-3), ("SGD", {"lr": 1e-3}), ("SGD", {"learning_rate": 1e-3})),
    "momentum": lambda: Method(
        gradtx.sgd(1e-3, 0.9),
        optax.sgd(1e-3, 0.9),
        ("SGD", {"lr": 1e-3, "momentum": 0.9}),
        ("SGD", {"learning_rate": 1e-3, "momentum": 0.9}),
    ),
    "adam": lambda: Method(
        gradtx.adam(1e-3), optax.adam(1e-3), ("Adam", {"lr": 1e-3}), ("Adam", {"learning_rate": 1e-3})
    ),
    "clip_adamw": lambda: Method(
        gradtx.clip_by_global_norm(LARGEST_NORM) >> gradtx.adamw(1e-3, weight_decay=0.01),
        optax.chain(optax.clip_by_global_norm(LARGEST_NORM), optax.adamw(1e-3, weight_decay=0.01)),
        ("AdamW", {"lr": 1e-3, "weight_decay": 0.01}),
        ("AdamW", {"learning_rate": 1e-3, "weight_decay": 0.01, "global_clipnorm": LARGEST_NORM}),
        clips=True,
    ),
    "lion": lambda: Method(
        gradtx.lion(1e-3, weight_decay=0.01),
        optax.lion(1e-3, weight_decay=0.01),
        keras=("Lion", {"learning_rate": 1e-3, "weight_decay": 0.01}),
    ),
}


def method(name: str) -> Method:
    """One of METHODS, or any other of the registry with its defaults, beside optax's of that name."""
    if name in METHODS:
        return METHODS[name]()
    if name not in gradtx.registry:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)} and the names of gradtx.registry")

    def made(factory: Any) -> Any:
        rate = {"learning_rate": 1e-3} if "learning_rate" in inspect.signature(factory).parameters else {}
        return factory(**rate)

    theirs = getattr(optax, name, None)
    return Method(made(gradtx.registry[name]), theirs and made(theirs))


def copied(values: PyTree) -> PyTree:
    """Arrays of their own, since a step overwrites its."""
    return jax.tree.map(jnp.copy, values)


class Contender(pairs.Program):
    """A program that is also built anew, and asked what it is."""

    def __init__(self, init: Callable[[PyTree], PyTree], step: Callable[..., Any], params: PyTree, grads: PyTree):
        super().__init__(step, copied(params), init(params), grads)
        self.init, self.plain_step = init, step

    def build(self) -> dict[str, float]:
        """Seconds of each phase from a function to a program, nothing being known of it."""
        jax.clear_caches()
        gc.collect()
        jitted = jax.jit(self.plain_step, donate_argnums=(0, 1), keep_unused=True)
        times = [time.perf_counter()]
        traced = jitted.trace(self.params, self.state, self.grads)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        # Called as it is: the jitted function forgets its program when the next contender is built.
        self.step = lowered.compile()
        times.append(time.perf_counter())
        return {
            "trace": times[1] - times[0],
            "lower": times[2] - times[1],
            "compile": times[3] - times[2],
            "build": times[3] - times[0],
        }

    def eager(self) -> float:
        """Seconds of a step outside jit."""
        return pairs.seconds(lambda: self.plain_step(self.params, self.state, self.grads))

    def start(self) -> float:
        """Seconds of init outside jit."""
        return pairs.seconds(lambda: self.init(self.params))

    def peak(self) -> float:
        """Bytes that the device holds at most while the compiled step runs, as its compiler plans; nan if unknown."""
        plan = self.step.memory_analysis()
        if plan is None:
            return float("nan")
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return float(held + plan.temp_size_in_bytes)

    def kernels(self) -> float:
        """Instructions of the compiled step that do something."""
        text = self.step.as_text() or ""
        names = re.findall(r"^  (?:ROOT )?\S+ = .*?(?<=[\])}] )([a-z][a-z0-9-]*)\(", text[text.find("\nENTRY") :], re.M)
        idle = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
        return float(sum(name not in idle for name in names))


Given = tuple[PyTree, PyTree]
"""Params and gradients."""


def of_transform(tx: Any, given: Given, apply: Callable[..., Any] = gradtx.apply_updates) -> Contender:
    return Contender(tx.init, pairs.step_of(tx, apply), *given)


def packed(tx: Any) -> Any:
    """`gradtx.pack(tx)`, or tx itself if that refuses it."""
    try:
        return gradtx.pack(tx)
    except TypeError as refusal:
        print(f"unpacked: {refusal}")
        return tx


def floor(tx: Any, given: Given) -> Contender:
    """Takes params, state and gradients, and gives params and state back: what any step of this tree costs."""
    return Contender(tx.init, lambda params, state, grads: (params, state), *given)


def size_in_bytes(values: PyTree) -> int:
    return sum(one.nbytes for one in jax.tree.leaves(values))


def moved(tx: Any, state: PyTree, params: PyTree) -> int:
    """Bytes that a step must move: params and state in and out, gradients in, twice if a norm of all comes first."""
    return 2 * size_in_bytes((params, state)) + size_in_bytes(params) * (2 if tx.facts.reads == "tree" else 1)


class Bandwidth(pairs.Program):
    """x <- x + y, three streams through memory, or a copy, two, of vectors as long as the tree or than any cache."""

    def __init__(self, params: PyTree, *, copies: bool = False):
        most = 2**26 if jax.default_backend() == "cpu" else 2**28
        length = min(sum(one.size for one in jax.tree.leaves(params)), most)
        # A minus, since JAX hands on what is not changed.
        step = (lambda x, _, y: (-y, ())) if copies else (lambda x, _, y: (x + y, ()))
        super().__init__(step, jnp.zeros(length), (), jnp.ones(length), keep_unused=copies)
        self.bytes = (2 if copies else 3) * self.grads.nbytes

    def seconds_per_byte(self, times: int) -> float:
        return self.run(times) / self.bytes
