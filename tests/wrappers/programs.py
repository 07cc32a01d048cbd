"""Random params and random optimizers: any nesting of wrappers around a method, with a guard somewhere between."""

import functools
from typing import Any, NamedTuple

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.core.annotations import Kind

# Params ---------------------------------------------------------------------------------------------------------------


@chex.dataclass(frozen=True)
class Layer:
    kernel: Any
    bias: Any


class Leaf(NamedTuple):
    """What a leaf of the params is to be; not a leaf of JAX, so trees of these are walked by hand."""

    shape: tuple[int, ...]
    dtype: str


LEAVES = st.builds(
    Leaf,
    st.sampled_from([(), (1,), (3,), (2, 3)]),
    st.sampled_from(["float32", "bfloat16", "float16", "float32", "bfloat16", "float16", "float64", "complex64"]),
)
KEYS = st.sampled_from(["a", "b", "kernel"])


def branches(children):
    return st.one_of(
        st.dictionaries(KEYS, children, min_size=1, max_size=3),
        st.tuples(children, children),
        st.lists(children, min_size=1, max_size=2),
        st.builds(lambda kernel, bias: Layer(kernel=kernel, bias=bias), children, children),
    )


# None instead of all params means that they are missing.
TREES = LEAVES | branches(st.recursive(LEAVES | LEAVES | LEAVES | st.none(), branches, max_leaves=4))


def built(tree, seed):
    """The params: normal numbers away from 0."""
    generator = np.random.default_rng(seed)

    def leaf(spec):
        values = generator.normal(size=spec.shape)
        return jnp.asarray(values + np.sign(values)).astype(spec.dtype)

    return jax.tree.map(leaf, tree, is_leaf=lambda node: isinstance(node, Leaf))


# Transforms -----------------------------------------------------------------------------------------------------------

RATES = {"lars": 5.0, "adadelta": 1.0}
METHODS = {
    name: functools.partial(factory, learning_rate=RATES.get(name, 0.1))
    for name, factory in sorted(gradtx.registry.items())
    if factory.__module__.startswith("gradtx.optimizers") and factory.node._kind is Kind.TRANSFORM
}


def arrays(path, leaf):
    return leaf.ndim > 0


def everything(path, leaf):
    return True


def kind(path, leaf):
    return "arrays" if leaf.ndim else "scalars"


def two_groups(inner):
    return gradtx.partition({"arrays": inner, "scalars": gradtx.sgd(0.1)}, kind)


class Around(NamedTuple):
    """Something around an optimizer: how it is built, which leaves it moves, how many steps it may wait."""

    build: Any
    trains: Any = everything
    waits: int = 1


# Around the guard nothing may act that lets gradients pass it by (`masked`), or makes two of one step (`accumulate`
# would run the guard on sums).
OUTSIDE = {
    "monitor": Around(gradtx.monitor),
    "tunable": Around(gradtx.tunable),
    "pack": Around(lambda inner: gradtx.pack(inner, fewest=2)),
    "train_only": Around(lambda inner: gradtx.train_only(inner, arrays), arrays),
    "exponential_averaging": Around(lambda inner: gradtx.exponential_averaging(inner, 0.9)),
    "polyak_averaging": Around(gradtx.polyak_averaging),
    "loss_scaling": Around(lambda inner: gradtx.loss_scaling(inner, 8.0, period=3)),
    "stochastic_rounding": Around(gradtx.stochastic_rounding),
    "kahan_summation": Around(gradtx.kahan_summation),
    "master_weights": Around(gradtx.master_weights),
    "lookahead": Around(lambda inner: gradtx.lookahead(inner, 2)),
    "schedule_free": Around(lambda inner: gradtx.schedule_free(inner, 0.1)),
}
INSIDE = OUTSIDE | {
    "accumulate": Around(lambda inner: gradtx.accumulate(inner, 2), waits=2),
    "accumulate finite ones": Around(lambda inner: gradtx.accumulate(inner, 3, skip_nonfinite=True), waits=3),
    "accumulate in bfloat16": Around(lambda inner: gradtx.accumulate(inner, 2, state_dtype=jnp.bfloat16), waits=2),
    "stochastic_weight_averaging": Around(lambda inner: gradtx.stochastic_weight_averaging(inner, 1, 2)),
    "lookahead anew": Around(lambda inner: gradtx.lookahead(inner, 3, reset_state=True)),
    "masked": Around(lambda inner: gradtx.masked(inner, arrays)),
    "train all": Around(lambda inner: gradtx.train_only(inner, everything)),
    "partition": Around(two_groups),
    "conditionally": Around(lambda inner: gradtx.conditionally(inner, lambda count: count % 2 == 0)),
    "skip_nonfinite": Around(lambda inner: gradtx.skip_nonfinite(inner, 2)),
    "sam": Around(gradtx.sam),
    "static loss_scaling": Around(lambda inner: gradtx.loss_scaling(inner, 8.0, dynamic=False)),
    "clip": Around(lambda inner: gradtx.clip(1.0) >> inner),
    "clip_by_global_norm": Around(lambda inner: gradtx.clip_by_global_norm(1.0) >> inner),
    "clip_by_leaf_norm": Around(lambda inner: gradtx.clip_by_leaf_norm(1.0) >> inner),
    "clip_by_block_rms": Around(lambda inner: gradtx.clip_by_block_rms(1.0) >> inner),
    "clip_by_percentile": Around(lambda inner: gradtx.clip_by_percentile(50.0, window=3) >> inner),
    "adaptive_grad_clip": Around(lambda inner: gradtx.adaptive_grad_clip(0.1) >> inner),
    "centralize": Around(lambda inner: gradtx.centralize() >> inner),
    "zero_nonfinite": Around(lambda inner: gradtx.zero_nonfinite() >> inner),
    "add_noise": Around(lambda inner: gradtx.add_noise(0.01, 0.5) >> inner),
    "add_decayed_weights": Around(lambda inner: gradtx.add_decayed_weights(0.1) >> inner),
    "scale behind": Around(lambda inner: inner >> gradtx.scale(0.5)),
    "reduce_on_plateau": Around(lambda inner: inner >> gradtx.reduce_on_plateau(0.5, patience=2)),
}
PLACED = (
    "loss_scaling",
    "stochastic_rounding",
    "kahan_summation",
    "master_weights",
    "accumulate",
)  # what decides who stands where
STEERING = ("lookahead", "schedule_free")  # they move the params at steps at which what is inside makes none
ROUNDING = ("stochastic_rounding", "kahan_summation", "master_weights")


class Program(NamedTuple):
    """An optimizer as drawn; `outside` and `inside` the guard, outermost first."""

    method: str
    outside: tuple[str, ...]
    inside: tuple[str, ...]

    def build(self):
        tx = METHODS[self.method]()
        for name in reversed(self.inside):
            tx = wrap(INSIDE[name], tx)
        tx = wrap(Around(lambda inner: gradtx.skip_nonfinite(inner, 4)), tx)
        for name in reversed(self.outside):
            tx = wrap(OUTSIDE[name], tx)
        return tx

    @property
    def waits(self) -> int:
        return int(np.prod([INSIDE[name].waits for name in self.inside]))

    def trains(self, leaf) -> bool:
        around = [OUTSIDE[name] for name in self.outside] + [INSIDE[name] for name in self.inside]
        return all(each.trains("", leaf) for each in around)

    def guards(self, leaf) -> bool:
        """Whether the guard sees a leaf's gradient."""
        return all(OUTSIDE[name].trains("", leaf) for name in self.outside)


class RefusedError(Exception):
    """gradtx refuses to nest these."""


def wrap(around, inner):
    """The wrapper around a transform; a refusal names who refuses, and what."""
    try:
        return around.build(inner)
    except (TypeError, ValueError) as error:
        check_refusal(around.build(gradtx.sgd(0.1)).name, str(error))
        raise RefusedError from error


def nested(names, depth):
    """Some of the wrappers, outermost first; every depth as often as any other."""
    chosen = st.sampled_from(list(names))
    return st.integers(0, depth).flatmap(lambda size: st.tuples(*[chosen] * size))


def check_refusal(name, message):
    """Who refuses, what, and what to do."""
    assert message.startswith(f"gradtx.{name}: "), message
    assert any(placed in message.split(": ", 1)[1] for placed in PLACED) or "the leaves one by one" in message, message
    assert any(remedy in message for remedy in ("Put ", "put it around", "Keep one of the two")), message


PROGRAMS = st.builds(Program, st.sampled_from(list(METHODS)), nested(OUTSIDE, 2), nested(INSIDE, 4))
