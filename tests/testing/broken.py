"""Transforms that break a law each, and what the law says of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.core.annotations import is_traced

INNER = gradtx.scale_by_momentum(0.9, form="sum")
SGD, MEAN = gradtx.sgd(0.5, momentum=0.25), gradtx.scale_by_momentum(0.9)
OF_A_LEAF, OF_THE_TREE = (dataclasses.replace(INNER.facts, reach=reach) for reach in ("leaf", "tree"))


@jax.tree_util.register_pytree_node_class
class Broken:
    """A transform that is right but for what it is told to do otherwise."""

    def __init__(self, inner=INNER, **otherwise):
        self.inner, self.otherwise = inner, otherwise

    def __getattr__(self, name):
        if name in self.otherwise:
            return self.otherwise[name]
        return getattr(self.inner, name)

    def __repr__(self):
        return self.otherwise.get("shown", f"broken({self.inner!r})")

    def __eq__(self, other):
        return isinstance(other, Broken) and self.inner == other.inner

    def __hash__(self):
        return hash(self.inner)

    def __reduce__(self):
        return (Broken, (self.otherwise.get("copied", self.inner),))

    def init(self, params):
        return self.otherwise.get("init", lambda tx, params: tx.init(params))(self.inner, params)

    def update(self, updates, state, params=None, **extra):
        changed = self.otherwise.get("update", lambda tx, *args: tx.update(*args))
        return changed(self.inner, updates, state, params)

    def tree_flatten(self):
        fresh = object() if self.otherwise.get("fresh") else None
        return (self.inner,), (tuple(self.otherwise.items()), fresh)

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children, **dict(aux[0]))


def of_its_own_shard(tx, updates, state, params):
    """The updates over the sum of what is seen here, which inside shard_map is one shard."""
    updates, state = tx.update(updates, state, params)
    return jax.tree.map(lambda u: u / (1 + abs(u).sum()), updates), state


@jax.tree_util.register_pytree_node_class
class OfItsOwn(Broken):
    """Each is equal to the others and has another hash."""

    def __hash__(self):
        return id(self)

    def __reduce__(self):
        return OfItsOwn, (self.inner,)


def is_mapped(tree):
    """Whether a leaf stands for one of several (a class of JAX's that has no public name)."""
    return any(type(leaf).__name__ == "BatchTracer" for leaf in jax.tree.leaves(tree))


def scaled(when):
    """An update that is a thousandth larger in some circumstances."""

    def update(tx, updates, state, params):
        result, state = tx.update(updates, state, params)
        factor = np.float32(1.001 if when(tx, updates, state) else 1)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), result), state

    return update


def changing(result=lambda u: u, state=lambda s: s):
    """An update with something done to its leaves, or to the momentum that it keeps."""

    def update(tx, updates, old, params):
        made, new = tx.update(updates, old, params)
        entry = new["scale_by_momentum"]
        return jax.tree.map(result, made), {"scale_by_momentum": entry | {"mu": jax.tree.map(state, entry["mu"])}}

    return update


def initial(**fields):
    """An init with some fields made otherwise, from the params and the right field."""

    def init(tx, params):
        entry = tx.init(params)["scale_by_momentum"]
        made = {name: make(params, entry.get(name)) for name, make in fields.items()}
        return {"scale_by_momentum": entry | made}

    return init


def squares_like_the_params(tx, params):
    entry = tx.init(params)["scale_by_rms"]
    like = jax.tree.map(lambda w: jnp.zeros_like(w, np.promote_types(w.dtype, np.float32)), params)
    return {"scale_by_rms": entry | {"nu": like}}


def init_scaled_where_traced(tx, params):
    state = tx.init(params)
    off = 1.0 if any(map(is_traced, jax.tree.leaves(params))) else 0.0
    entry = state["scale_by_momentum"]
    return {"scale_by_momentum": entry | {"mu": jax.tree.map(lambda m: m + np.float32(off), entry["mu"])}}


def elsewhere(params, mu):
    return jax.tree.map(lambda m: m if is_traced(m) else jax.device_put(m, jax.devices()[0]), mu)


def centered(tx, updates, state, params):
    return tx.update(jax.tree.map(lambda u: u - jnp.mean(u), updates), state, params)


def coupled(tx, updates, state, params):
    return tx.update(jax.tree.map(lambda u: u + updates["b"].astype(u.dtype), updates), state, params)


def placed(tx, updates, state, params):
    result, state = tx.update(updates, state, params)
    return jax.tree.map(lambda u: u * jnp.arange(1, u.size + 1, dtype=u.dtype).reshape(u.shape), result), state


def without_empty(tx, updates, state, params):
    result, state = tx.update(updates, state, params)
    return jax.tree.map(lambda u: u if u.size else jnp.ones((1,), u.dtype), result), state


def growing(tx, updates, state, params):
    result, state = tx.update(updates, state, params)
    return result, state | {"more": {"x": jnp.zeros(())}}


def growing_beside_none(tx, updates, state, params):
    return growing(tx, updates, state, params) if "none" in updates else tx.update(updates, state, params)


def refusing(words, otherwise=None):
    """An update that refuses leaves of ints in these words, and does otherwise with all others."""

    def update(tx, updates, state, params):
        if any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(updates)):
            raise TypeError(words)
        return otherwise(updates, state) if otherwise else tx.update(updates, state, params)

    return update


def keeping_the_params(tx, updates, state, params):
    entry = tx.update(updates, state, params)[1]["scale_by_momentum"]
    return updates, {"scale_by_momentum": entry | {"mu": params}}


def root_where(when):
    """An update with a root added, whose slope at 0 is infinite, in some circumstances."""

    def update(tx, updates, state, params):
        result, new = tx.update(updates, state, params)
        at = when(updates, state["scale_by_momentum"])
        return jax.tree.map(lambda r, u: r + jnp.sqrt(jnp.where(at, jnp.abs(u), 1.0)), result, updates), new

    return update


def all_zero(updates, entry):
    return sum(jnp.sum(jnp.abs(u)) for u in jax.tree.leaves(updates)) == 0


def some_zero_later(updates, entry):
    return jnp.logical_not(all_zero(updates, entry)) & jnp.any(entry["mu"]["w"] != 0)


def elsewhere_where_traced(params, mu):
    return jax.tree.map(lambda m: jnp.zeros(m.shape) if is_traced(m) else m, mu)


def taking_integers(tx, updates, state, params):
    return updates, state


def below_zero(tx, updates, state, params):
    entry = tx.update(updates, state, params)[1]["scale_by_rms"]
    return updates, {"scale_by_rms": entry | {"nu": jax.tree.map(lambda v: -v, entry["nu"])}}


COUNT = {"count": lambda params, count: jnp.full((), 7, jnp.int32)}
BREAKS = {
    "eager is otherwise": (
        "eager_is_jit",
        Broken(update=scaled(lambda tx, u, s: not any(map(is_traced, jax.tree.leaves(u))))),
        ["['updates']['b'], element", "allowed: 8 ulps"],
    ),
    "passed is otherwise": (
        "passed_is_closed_over",
        Broken(update=scaled(lambda tx, u, s: is_traced(tx.decay))),
        ["['updates']['b'], element", "allowed: 8 ulps"],
    ),
    "swept is otherwise": (
        "sweep_is_separate",
        Broken(update=scaled(lambda tx, u, s: is_mapped(tx))),
        ["allowed: 8 ulps"],
    ),
    "mapped is otherwise": ("vmap_is_loop", Broken(update=scaled(lambda tx, u, s: is_mapped(u))), ["allowed: 8 ulps"]),
    "init in a program is otherwise": ("scan_is_loop", Broken(init=init_scaled_where_traced), ["allowed: 8 ulps"]),
    "never the same": ("compiles_once", Broken(fresh=True), ["was traced again", "allowed: none"]),
    "the state is the params": (
        "donation_is_safe",
        Broken(init=initial(mu=lambda params, mu: params)),
        ["has the buffer of", "make it a copy"],
    ),
    "the state becomes the params": (
        "donation_is_safe",
        Broken(update=keeping_the_params),
        ["after update", "has the buffer of", "make it a copy"],
    ),
    "on one device where init is compiled": (
        "sharded_is_replicated",
        Broken(init=initial(mu=elsewhere_where_traced)),
        ["after jit(init)", "lies as"],
    ),
    "on one device after an update": (
        "sharded_is_replicated",
        Broken(update=changing(state=lambda m: jnp.zeros(m.shape) if is_traced(m) else m)),
        ["after jit(update)", "lies as"],
    ),
    "on one device": ("sharded_is_replicated", Broken(init=initial(mu=elsewhere)), ["after init", "lies as"]),
    "a sum over its own shard": (
        "inside_shard_map_is_outside",
        Broken(update=of_its_own_shard),
        ["at ['updates']['", "allowed: 8 ulps"],
    ),
    "float32 whatever comes": (
        "dtypes_stay",
        Broken(update=changing(lambda u: u.astype(jnp.float32))),
        ["the update at", "not bfloat16"],
    ),
    "float32 in less": (
        "dtypes_stay",
        Broken(update=changing(lambda u: u.astype(jnp.bfloat16) if u.dtype == jnp.float32 else u)),
        ["float32 gradients on float16 params", "is bfloat16, not float32"],
    ),
    "a low state": (
        "dtypes_stay",
        Broken(
            init=initial(mu=lambda params, mu: jax.tree.map(lambda m: jnp.real(m).astype(jnp.bfloat16), mu)),
            update=lambda tx, u, s, p: (u, s),
        ),
        ["allowed: 32 bits or more"],
    ),
    "single where params are double": (
        "dtypes_stay",
        Broken(
            init=initial(mu=lambda params, mu: jax.tree.map(lambda m: jnp.real(m).astype(jnp.float32), mu)),
            update=lambda tx, u, s, p: (u, s),
        ),
        ["allowed: 64 bits or more"],
    ),
    "a state that changes its dtype": (
        "dtypes_stay",
        Broken(update=changing(state=lambda m: m.astype(jnp.bfloat16))),
        ["the new state has dtype bfloat16, the old float32"],
    ),
    "a state that grows": ("dtypes_stay", Broken(update=growing), ["the new state has "]),
    "complex squares": (
        "dtypes_stay",
        Broken(gradtx.scale_by_rms(), init=squares_like_the_params, update=lambda tx, u, s, p: (u, s)),
        ["complex64 gradients on complex64 params", "in scale_by_rms/nu, ['b'] is complex; allowed: real"],
    ),
    "NaN": ("state_is_as_declared", Broken(update=changing(lambda u: u * jnp.nan)), ["not finite"]),
    "an infinite state": (
        "state_is_as_declared",
        Broken(update=changing(state=lambda m: m + jnp.inf)),
        ["'mu'", "not finite"],
    ),
    "a count from 7": (
        "state_is_as_declared",
        Broken(init=initial(**COUNT)),
        ["the count is", "allowed: int32 from 0"],
    ),
    "a count in float32": (
        "state_is_as_declared",
        Broken(
            init=initial(count=lambda params, count: jnp.float32(0)),
            update=lambda tx, u, s, p: (u, jax.tree.map(lambda x: x + 1 if x.ndim == 0 else x, s)),
        ),
        ["the count is", "allowed: int32 from 0"],
    ),
    "a negative square": (
        "state_is_as_declared",
        Broken(gradtx.scale_by_rms(), update=below_zero),
        ["scale_by_rms/nu is declared nonnegative"],
    ),
    "not a dict of dicts": (
        "state_is_as_declared",
        Broken(init=lambda tx, params: {"x": jnp.zeros(())}, update=lambda tx, u, s, p: (u, s)),
        ["it must be a dict of dicts"],
    ),
    "a tree without leaves filled": (
        "empty_leaves_pass",
        Broken(update=lambda tx, u, s, p: tx.update(u, s, p) if jax.tree.leaves(u) else ({"a": jnp.ones(1)}, s)),
        ["one has ['a'], not in the other"],
    ),
    "empty leaves filled": ("empty_leaves_pass", Broken(update=without_empty), ["size 0"]),
    "a state that grows beside None": (
        "empty_leaves_pass",
        Broken(update=growing_beside_none),
        ["with None among the params, update changes the structure of the state"],
    ),
    "integers refused without their place": (
        "integers_are_refused",
        Broken(update=refusing("int32 is not allowed")),
        ["update does not name the leaf and its dtype: int32 is not allowed"],
    ),
    "integers refused without their dtype": (
        "integers_are_refused",
        Broken(update=refusing("not allowed at ['wrong']['steps']")),
        ["update does not name the leaf and its dtype: not allowed at"],
    ),
    "bools taken by update": (
        "integers_are_refused",
        Broken(update=refusing("int32 at ['wrong']['steps']", otherwise=lambda u, s: (u, s))),
        ["update takes a leaf of dtype bool"],
    ),
    "integers taken by update": (
        "integers_are_refused",
        Broken(update=taking_integers),
        ["update takes a leaf of dtype int32"],
    ),
    "integers taken by init": (
        "integers_are_refused",
        Broken(init=lambda tx, params: {}),
        ["init takes a leaf of dtype int32"],
    ),
    "reads its leaf": ("reads_what_it_says", Broken(update=centered), ["'w'"]),
    "reads its neighbour": (
        "reads_what_it_says",
        Broken(update=changing(lambda u: u + jnp.roll(u, 1))),
        ["element (3, 0)", "no difference in any bit"],
    ),
    "reads more than its leaf": ("reads_what_it_says", Broken(facts=OF_A_LEAF, update=coupled), ["'w'"]),
    "reads the tree": ("reads_what_it_says", Broken(update=coupled), ["'w'"]),
    "knows its place": ("reads_what_it_says", Broken(update=placed), ["'w'", "allowed: 8 ulps"]),
    "another copy": ("pickles_round_trip", Broken(copied=gradtx.scale_by_momentum(0.8, form="sum")), ["becomes"]),
    "another hash": ("pickles_round_trip", OfItsOwn(), ["does not compare (or hash) equal"]),
    "another config": ("configs_round_trip", Broken(to_config=gradtx.scale(2.0).to_config), ["becomes scale"]),
    "another text": ("repr_is_code", Broken(shown="scale(step_size=2.0)"), ["becomes scale"]),
    "made of something else": (
        "expansion_is_equal",
        Broken(expand=lambda deep=False: gradtx.scale_by_momentum(0.5 if deep else 0.9, form="sum")),
        ["no difference in any bit"],
    ),
    "made of something else at once": (
        "expansion_is_equal",
        Broken(expand=lambda deep=False: gradtx.scale_by_momentum(0.9 if deep else 0.5, form="sum")),
        ["no difference in any bit"],
    ),
    "a schedule that is only right where it is constant": (
        "constant_schedule_is_constant",
        Broken(MEAN, replace=lambda decay: MEAN.replace(decay=0.9 if decay.name == "constant_schedule" else 0.4)),
        ["allowed: 8 ulps"],
    ),
    "a schedule twice as high": (
        "constant_schedule_is_constant",
        Broken(replace=lambda decay: gradtx.scale_by_momentum(0.4, form="sum")),
        ["allowed: 8 ulps"],
    ),
    "a root where all is zero": (
        "hypergradients_are_finite",
        Broken(update=root_where(all_zero)),
        ["at step 1, where all gradients are 0, the derivative by ['gradients']"],
    ),
    "a root at zero from the second step on": (
        "hypergradients_are_finite",
        Broken(update=root_where(some_zero_later)),
        ["at step 2, where some gradients are 0, the derivative by ['gradients']"],
    ),
    "a root at zero": (
        "hypergradients_are_finite",
        Broken(update=changing(lambda u: jnp.sqrt(jnp.abs(u)))),
        ["gradients are 0, the derivative by"],
    ),
}
