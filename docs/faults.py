"""What every method does with every fault, found by running it: the tables of docs/pages/guards.md.

Each cell is a word for what was seen in the params and the state after a run, most often beside a run without the
fault; nothing is looked up by name. The rows that need the same program share it, and programs are compiled quickly
rather than well. A method that is added to `gradtx.optimizers` gets its column by itself, if gradients
are all that it needs.
"""

import concurrent.futures
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from gradtx.core.annotations import Kind

PyTree = Any
Numbers = dict[str, float]

RATE, BEFORE, AFTER, LIMIT = 1e-2, 20, 30, 5
LEAVES = {"body": 2, "head": 16}
HUGE = -1e30  # against the direction of the good ones, so that one sees whether it stays in the statistics
INTERRUPTIONS = {
    "NaN once": (np.nan, 1),
    "inf once": (-np.inf, 1),
    "1e30 once": (HUGE, 1),
    f"{LIMIT} NaNs in a row": (np.nan, LIMIT),
    "100 NaNs in a row": (np.nan, 100),
}
LOST = {"NaN", "inf", "stands still", "wrong way", "thrown", "moves it", "state changes", "differs"}


@functools.cache
def _quick() -> Any:
    """What makes XLA compile in a third of the time, where it knows these options."""
    options: Any = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
    try:
        jax.jit(jnp.negative, compiler_options=options)(1.0)
    except jax.errors.JaxRuntimeError:
        return None
    return options


# The two libraries ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Library:
    """The same things under the names that a library has for them."""

    package: Any
    promotion: str
    guarded: Callable[[Any], Any]
    frozen_behind: Callable[[Any], Any]
    update: Callable[..., tuple[PyTree, PyTree]]
    has_stopped: Callable[[PyTree], bool]
    scheduling: dict[str, Callable[[Any, dict[str, Any]], Any]]


def _gradtx_guarded(tx: Any) -> Any:
    trained = gradtx.train_only(gradtx.clip_by_global_norm(1.0) >> tx, "head")
    return gradtx.skip_nonfinite(trained, max_consecutive=LIMIT)


def _gradtx_update(tx: Any, gradient: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    offered = {"value": 1.0, "grad_fn": lambda params: params}  # everywhere the curvature 1
    extra = {name: given for name, given in offered.items() if name in tx.facts.extra}
    return tx.update(gradient, state, params, **extra)


def _optax_guarded(tx: Any) -> Any:
    clipped = optax.chain(optax.clip_by_global_norm(1.0), tx)
    trained = optax.selective_transform(clipped, freeze_mask={"body": True, "head": False})
    return optax.apply_if_finite(trained, max_consecutive_errors=LIMIT)


def _optax_frozen_behind(tx: Any) -> Any:
    return optax.chain(optax.clip_by_global_norm(1.0), tx, optax.freeze({"body": True, "head": False}))


def _optax_update(tx: Any, gradient: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    return optax.with_extra_args_support(tx).update(gradient, state, params, value=1.0)


LIBRARIES = {
    "gradtx": Library(
        package=gradtx,
        promotion="strict",
        guarded=_gradtx_guarded,
        frozen_behind=lambda tx: gradtx.clip_by_global_norm(1.0) >> tx >> gradtx.freeze("body"),
        update=_gradtx_update,
        has_stopped=lambda state: bool(gradtx.find(state, "failed")),
        scheduling={"plain": lambda factory, arguments: factory(**arguments)},
    ),
    "optax": Library(
        package=optax,
        promotion="standard",
        guarded=_optax_guarded,
        frozen_behind=_optax_frozen_behind,
        update=_optax_update,
        has_stopped=lambda state: False,  # apply_if_finite has no such state: beyond its limit it applies what comes
        scheduling={
            "plain": lambda factory, arguments: factory(**arguments),
            "inject_hyperparams": lambda factory, arguments: optax.inject_hyperparams(factory)(**arguments),
        },
    ),
}


# Running --------------------------------------------------------------------------------------------------------------


def _gradients(steps: int) -> list[dict[str, np.ndarray]]:
    """Seeded, between 0.5 and 1.5: they all point the same way."""
    draw = np.random.default_rng(0)
    return [{name: draw.uniform(0.5, 1.5, size).astype("f4") for name, size in LEAVES.items()} for _ in range(steps)]


def _faulty(gradient: PyTree, value: float) -> PyTree:
    """One element of one leaf is something else."""
    return gradient | {"head": np.concatenate([np.float32([value]), gradient["head"][1:]])}


@dataclasses.dataclass(frozen=True)
class Run:
    """The params before the first step and after each, by leaf, as float64; the last state; whether dtypes stayed."""

    path: dict[str, np.ndarray]
    state: PyTree
    kept: bool

    @property
    def head(self) -> np.ndarray:
        return self.path["head"]

    @property
    def broken(self) -> str | None:
        """NaN or inf where there is any in the last params."""
        last = np.concatenate([leaf[-1] for leaf in self.path.values()])
        return "NaN" if np.isnan(last).any() else "inf" if np.isinf(last).any() else None


class Program:
    """A method's step, compiled; it begins with params of 1. The numbers with which it is built are arguments."""

    def __init__(
        self,
        library: Library,
        build: Callable[..., Any],
        numbers: Numbers,
        leaves: Sequence[str] = ("head",),
        dtype: Any = jnp.float32,
    ) -> None:
        self.build, self.numbers, self.leaves, self.dtype, self.traces = build, numbers, leaves, dtype, 0

        def step(numbers: Numbers, params: PyTree, state: PyTree, gradient: PyTree) -> tuple[PyTree, PyTree]:
            self.traces += 1
            updates, state = library.update(build(**numbers), gradient, state, params)
            return library.package.apply_updates(params, updates), state

        self.step = jax.jit(step, compiler_options=_quick())

    def run(self, gradients: Sequence[PyTree], *numbers: Numbers) -> Run:
        """Other numbers may be given, once or for each step."""
        numbers = numbers or (self.numbers,)
        params = {leaf: jnp.ones(LEAVES[leaf], self.dtype) for leaf in self.leaves}
        state = self.build(**numbers[0]).init(params)
        dtypes, path = _dtypes((params, state)), [params]
        for index, gradient in enumerate(gradients):
            now = numbers[min(index, len(numbers) - 1)]
            params, state = self.step(now, params, state, {leaf: gradient[leaf] for leaf in self.leaves})
            path.append(params)
        stacked = {leaf: np.stack([np.asarray(p[leaf], np.float64) for p in path]) for leaf in self.leaves}
        return Run(stacked, state, _dtypes((params, state)) == dtypes)


def _dtypes(node: PyTree) -> list[Any]:
    return [jnp.result_type(leaf) for leaf in jax.tree.leaves(node)]


# What was seen --------------------------------------------------------------------------------------------------------


def _pace(path: np.ndarray, usual: np.ndarray, good: str) -> str:
    """Whether something moves as it does usually, from the first to the last of these params."""
    ratio = float(np.mean(path[-1] - path[0]) / np.mean(usual[-1] - usual[0]))
    if abs(ratio) < 0.01:
        return "stands still"
    return good if 0.5 <= ratio <= 2 else "wrong way" if ratio < 0 else "slow" if ratio < 0.5 else "fast"


def _interrupted(library: Library, program: Program, value: float, times: int, clean: Run) -> str:
    """Good steps, faulty ones, good steps; beside the good ones alone."""
    good = _gradients(BEFORE + AFTER)
    run = program.run([*good[:BEFORE], *[_faulty(good[0], value)] * times, *good[BEFORE:]])
    if run.broken:
        return run.broken
    if np.array_equal(run.head[-1], clean.head[-1]):
        return "as without"
    if np.array_equal(run.head[-1], run.head[BEFORE]):
        return "stops" if library.has_stopped(run.state) else "stands still"
    if np.abs(run.head[-1] - clean.head[-1]).max() > 1000:
        return "thrown"
    return _pace(run.head[-10:, :1], clean.head[-10:, :1], "recovers")


def _zeros(program: Program) -> str:
    run = program.run([jax.tree.map(np.zeros_like, gradient) for gradient in _gradients(BEFORE)])
    if run.broken:
        return run.broken
    if np.array_equal(run.head[-1], run.head[0]):
        return "no step"
    return "decays" if (np.diff(run.head, axis=0) <= 0).all() and (run.head >= 0).all() else "moves"


def _frozen(program: Program) -> str:
    """A huge gradient for the leaf that is held still, beside a gradient of 0 for it."""
    huge, zero = (
        program.run([g | {"body": np.full(LEAVES["body"], body, "f4")} for g in _gradients(BEFORE)])
        for body in (HUGE, 0.0)
    )
    if huge.broken:
        return huge.broken
    if not np.array_equal(huge.path["body"][-1], huge.path["body"][0]):
        return "moves it"
    return "as without" if np.array_equal(huge.head, zero.head) else _pace(huge.head, zero.head, "moves")


def _beside_float32(
    plain: Program, program: Program, rate: float, dtype: Any, gradients: Sequence[PyTree], *, strict: bool = False
) -> str:
    """The gradients in some dtype; beside the same all in float32. Strict: the dtypes of params and state stay."""
    run = program.run([jax.tree.map(lambda g: g.astype(dtype), gradient) for gradient in gradients])
    if run.broken:
        return run.broken
    if strict and not (run.kept and program.traces == 1):
        return "state changes"
    return _pace(run.head, plain.run(gradients, {"learning_rate": rate}).head, "moves")


def _scheduled(library: Library, factory: Any, form: str, hypers: Numbers) -> str:
    """Each number a schedule; beside a run in which each step is given the numbers that are due."""
    draw = np.random.default_rng(1)
    values = {name: (base * draw.uniform(0.5, 1, BEFORE)).astype("f4") for name, base in hypers.items()}
    schedules = {name: functools.partial(jnp.take, jnp.asarray(due)) for name, due in values.items()}

    def transform(names: Sequence[str]) -> Any:
        return library.scheduling[form](factory, hypers | {name: schedules[name] for name in names})

    def accepts(names: Sequence[str]) -> bool:
        params = {"head": jnp.ones(LEAVES["head"])}
        try:
            tx = transform(names)
            jax.eval_shape(lambda: library.update(tx, params, tx.init(params), params))
        except Exception:  # whatever the reason is, it says no
            return False
        return True

    names = list(hypers) if accepts(list(hypers)) else [name for name in hypers if accepts([name])]
    if not names:
        return "none"
    tx = transform(names)
    run = Program(library, lambda: tx, {}).run(_gradients(BEFORE))
    due = [hypers | {name: float(values[name][step]) for name in names} for step in range(BEFORE)]
    wanted = Program(library, factory, {}).run(_gradients(BEFORE), *due)
    if not np.allclose(run.head, wanted.head, rtol=1e-5, atol=1e-6):
        return "differs"
    return "all" if len(names) == len(hypers) else "some"


# The table ------------------------------------------------------------------------------------------------------------


def _methods() -> dict[str, Any]:
    """The named methods, without those that evaluate the loss themselves: there is none here, only gradients."""
    named = {name: f for name, f in gradtx.registry.items() if f.__module__.startswith("gradtx.optimizers.")}
    return {name: f for name, f in named.items() if "linesearch" not in inspect.signature(f).parameters}


def _hyperparameters(name: str, factory: Any) -> Numbers:
    """The numbers that a factory takes, none of them 0: its default where that is one."""
    kinds = {p.name: p.kind for p in type(_methods()[name](RATE))._parameters}
    kinds.pop("batch_size", None)  # a number of Sophia-G only
    found = {
        parameter.name: RATE if parameter.default is parameter.empty else parameter.default or 0.5
        for parameter in inspect.signature(factory).parameters.values()
        if kinds.get(parameter.name, type(parameter.default)) in (Kind.HYPER, float)
    }
    return {name: float(np.float32(number)) for name, number in found.items()}


def _precision(library: Library, program: Callable[..., Program], plain: Program) -> dict[tuple[str, str], str]:
    """What was seen of one method with params and gradients in less than float32."""
    f16, f32, bf16 = jnp.float16, jnp.float32, jnp.bfloat16

    def rate(size: float, gradients: Sequence[PyTree]) -> float:
        """With it the first step has this size."""
        first = plain.run(gradients[:1]).head
        moved = np.abs(first[1] - first[0]).mean()
        return float(np.float32(RATE * size / moved)) if moved else RATE  # optax's Rprop moves one step late

    def seen(
        size: float, gradients: Sequence[PyTree], params: Any, dtype: Any, around: Any = lambda tx: tx, **kwargs: Any
    ) -> str:
        chosen = rate(size, gradients)
        return _beside_float32(plain, program(chosen, around, ("head",), params), chosen, dtype, gradients, **kwargs)

    def rounded(form: str) -> str:
        around = getattr(library.package, form, None)
        return "-" if around is None else seen(1e-4, many, bf16, bf16, around)

    few, many = _gradients(4), _gradients(200)
    huge = [jax.tree.map(lambda g: g * np.float32(4e4), gradient) for gradient in _gradients(BEFORE)]
    return {
        ("4e4 in float16", "plain"): seen(0.05, huge, f16, f16),
        ("params bf16, gradients f32", "plain"): seen(0.05, few, bf16, f32, strict=True),
        ("params f32, gradients bf16", "plain"): seen(0.05, few, f32, bf16, strict=True),
        ("small steps in bf16", "plain"): seen(1e-4, many, bf16, bf16),
        ("small steps in bf16", "stochastic_rounding"): rounded("stochastic_rounding"),
        ("small steps in bf16", "master_weights"): rounded("master_weights"),
    }


def column(name: str, library: Library) -> dict[tuple[str, str], str]:
    """What was seen of one method: a word for each fault and form."""
    factory = getattr(library.package, name, None)
    if factory is None:
        return {}

    def program(rate: float, around: Callable[[Any], Any] = lambda tx: tx, *args: Any) -> Program:
        tx = around(factory(learning_rate=rate))
        return Program(library, lambda: tx, {}, *args)

    seen = {}
    plain = Program(library, factory, {"learning_rate": RATE})
    guarded = program(RATE, library.guarded, tuple(LEAVES))
    for form, one in {"plain": plain, "guarded": guarded}.items():
        clean = one.run(_gradients(BEFORE + AFTER))
        for fault, (value, times) in INTERRUPTIONS.items():
            seen[fault, form] = _interrupted(library, one, value, times, clean)
        seen["all gradients 0", form] = _zeros(one)
    seen["1e30 for a frozen leaf", "plain"] = _frozen(program(RATE, library.frozen_behind, tuple(LEAVES)))
    seen["1e30 for a frozen leaf", "guarded"] = _frozen(guarded)
    seen |= _precision(library, program, plain)
    for form in library.scheduling:
        seen["schedules", form] = _scheduled(library, factory, form, _hyperparameters(name, factory))
    return seen


def table(library: str = "gradtx", methods: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """The head and the rows: a fault in plain form, behind it (↳) the other forms; a column for each method."""
    methods = list(_methods()) if methods is None else list(methods)

    def observe(name: str) -> dict[tuple[str, str], str]:
        with jax.numpy_dtype_promotion(LIBRARIES[library].promotion):
            return column(name, LIBRARIES[library])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # one is compiled while another is traced
        columns = list(pool.map(observe, methods))
    keys = list(dict.fromkeys(key for seen in columns for key in seen))
    faults = list(dict.fromkeys(fault for fault, _ in keys))
    rows = [
        [fault if form == "plain" else f"↳ {form}", *(seen.get((fault, form), "-") for seen in columns)]
        for fault, form in sorted(keys, key=lambda key: faults.index(key[0]))
    ]
    return ["", *methods], rows
