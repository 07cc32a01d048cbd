"""Each law notices a transform that breaks it, and says which law, which transform, which leaf and what was allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import testing
from gradtx.core.annotations import is_traced
from gradtx.testing import runs

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)), "b": jnp.float32(0.5)}
INNER = gradtx.scale_by_momentum(0.9, form="sum")
SGD = gradtx.sgd(0.5, momentum=0.25)
MEAN = gradtx.scale_by_momentum(0.9)


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
    "mapped is otherwise": (
        "vmap_is_loop",
        Broken(update=scaled(lambda tx, u, s: is_mapped(u))),
        ["allowed: 8 ulps"],
    ),
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
        ["the state at", "becomes"],
    ),
    "a state that grows": ("dtypes_stay", Broken(update=growing), ["the state becomes"]),
    "complex squares": (
        "dtypes_stay",
        Broken(gradtx.scale_by_rms(), init=squares_like_the_params, update=lambda tx, u, s, p: (u, s)),
        ["complex64 gradients on complex64 params", "in scale_by_rms, ['nu']['b'] is complex; allowed: real"],
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
        ["at scale_by_rms: 'nu' is declared nonnegative"],
    ),
    "not a dict of dicts": (
        "state_is_as_declared",
        Broken(init=lambda tx, params: {"x": jnp.zeros(())}, update=lambda tx, u, s, p: (u, s)),
        ["allowed: a dict of dicts"],
    ),
    "a tree without leaves filled": (
        "empty_leaves_pass",
        Broken(update=lambda tx, u, s, p: tx.update(u, s, p) if jax.tree.leaves(u) else ({"a": jnp.ones(1)}, s)),
        ["the structure is"],
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
    "reads more than its leaf": ("reads_what_it_says", Broken(reads="leaf", update=coupled), ["'w'"]),
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


@pytest.mark.parametrize("name", BREAKS)
def test_a_law_notices(name):
    law, tx, words = BREAKS[name]
    if law == "sharded_is_replicated" and jax.device_count() < 2:
        pytest.skip("one device is where everything lies")
    with pytest.raises(AssertionError) as caught:
        testing.LAWS[law](tx, PARAMS)
    said = str(caught.value)
    who = {"sweep_is_separate": f"{law}: broken(", "constant_schedule_is_constant": f"{law}: scale_by_momentum("}
    assert [word for word in [who.get(law, f"{law}: {tx!r}: "), *words] if word not in said] == [], said


def test_a_law_passes_on_what_is_not_about_its_subject():
    def update(tx, updates, state, params):
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(updates)):
            raise TypeError("something else")
        return tx.update(updates, state, params)

    with pytest.raises(TypeError, match="something else"):
        testing.dtypes_stay(Broken(update=update), PARAMS)


def test_the_law_of_dtypes_asks_these_of_a_step_and_compiles_none():
    asked, traced = [], []

    def update(tx, updates, state, params):
        asked.append(tuple(str(leaf["b"].dtype) for leaf in (params, updates)))
        traced.append(is_traced(tx.decay))
        assert is_traced(updates["b"])
        return tx.update(updates, state, params)

    testing.dtypes_stay(Broken(update=update), PARAMS)
    half, single, double = "bfloat16", "float32", "float64"
    pairs = [(half, half), ("float16", single), (single, "float16"), (single, double), (double, half), (double, double)]
    assert asked == [*pairs, ("complex64", "complex64")]
    assert traced == [True] + [False] * 6


def test_a_leaf_may_read_its_own():
    testing.reads_what_it_says(Broken(reads="leaf", update=centered), PARAMS)
    testing.reads_what_it_says(Broken(reads="tree", update=coupled), PARAMS)


@pytest.mark.parametrize(("name", "varied"), [("momentum", {"momentum"}), ("weight_decay", set()), (None, set())])
def test_a_sweep_is_over_the_number_of_that_name_or_over_all(name, varied):
    replaced, seen = set(), set()

    def replace(**numbers):
        replaced.update(numbers)
        return Broken(SGD.replace(**numbers), update=update)

    def update(tx, updates, state, params):
        if not is_traced(tx.momentum):
            seen.add((float(tx.learning_rate), float(tx.momentum)))
        return tx.update(updates, state, params)

    with jax.disable_jit():
        testing.sweep_is_separate(Broken(SGD, replace=replace, update=update), PARAMS, name=name, size=2)
    assert replaced == varied
    expected = {(0.5, 0.025), (0.5, 0.25)} if varied else {(0.05, 0.025), (0.5, 0.25)}
    np.testing.assert_allclose(sorted(seen), sorted(expected), rtol=1e-6)


def test_the_law_of_donation_donates_params_and_state():
    begun = []

    def init(tx, params):
        begun.append((params, tx.init(params)))
        return begun[-1][1]

    testing.donation_is_safe(Broken(init=init), PARAMS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begun[1]))  # begun[0] is that of the run to compare with
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(PARAMS))


def test_a_resumed_run_is_cut_in_the_middle():
    """What is restored may be otherwise in the first two steps of four, which have been made; and not later."""

    def rates(first, then):
        return gradtx.scale(gradtx.piecewise_constant_schedule(first, {2: then / first}))

    testing.resumed_is_uninterrupted(Broken(rates(1.0, 1.0), copied=rates(2.0, 1.0)), PARAMS)
    with pytest.raises(AssertionError, match=r"resumed_is_uninterrupted: .*no difference in any bit"):
        testing.resumed_is_uninterrupted(Broken(rates(1.0, 1.0), copied=rates(1.0, 2.0)), PARAMS)


def test_a_law_notices_a_low_state_that_is_not_the_one_meant():
    law, tx, words = BREAKS["a low state"]
    testing.LAWS[law](tx, PARAMS, lower=("mu",))
    with pytest.raises(AssertionError, match=words[0]):
        testing.LAWS[law](tx, PARAMS, lower=("nu", "m"))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_the_law_of_sharding_splits_what_the_devices_divide():
    whole = {}

    def init(tx, params):
        assert jax.sharding.get_abstract_mesh().empty  # automatic axes need no mesh that is set
        for name, leaf in params.items():
            if not is_traced(leaf):
                whole.setdefault(name, leaf.sharding.is_fully_replicated)  # of the first run, which is sharded
        return tx.init(params)

    testing.sharded_is_replicated(Broken(init=init), PARAMS | {"odd": jnp.ones(3)})
    assert whole == {"w": False, "b": True, "odd": True}


def test_every_law_is_broken_here():
    assert set(testing.LAWS) - {law for law, _, _ in BREAKS.values()} == {"resumed_is_uninterrupted"}  # just above


def test_what_is_whole_obeys():
    for law in testing.LAWS.values():
        law(INNER, PARAMS)
    testing.repr_is_code(INNER.replace(decay=jnp.float32(0.9)), PARAMS)
    testing.constant_schedule_is_constant(MEAN, PARAMS)
    testing.sweep_is_separate(gradtx.identity(), PARAMS)


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_bounds_follow_from_what_is_read_and_from_schedules():
    rate = gradtx.linear_schedule(1.0, 0.1, 10)
    assert testing.bound(gradtx.adam(0.1)) == 8
    assert testing.bound(gradtx.clip_by_global_norm(1.0) >> gradtx.adam(0.1)) == 16
    assert testing.bound(gradtx.scale_by_trust_ratio()) == 16
    assert testing.bound(gradtx.adam(rate)) == 16
    assert testing.bound(gradtx.lamb(rate)) == 32
    assert testing.bound(gradtx.monitor(gradtx.clip_by_global_norm(1.0) >> gradtx.sgd(rate))) == 32


def test_so_many_ulps_of_the_largest_element():
    eps = float(jnp.finfo(jnp.float32).eps)
    expected = {"x": np.array([0.25, 2.0], np.float32)}
    for ulps, off in ((4, 3.9), (8, 7.9)):
        near = {"x": expected["x"] + np.array([off * 2 * eps, 0], np.float32)}
        far = {"x": expected["x"] + np.array([(off + 0.3) * 2 * eps, 0], np.float32)}
        runs.assert_same("law", INNER, near, expected, ulps)
        with pytest.raises(AssertionError, match=rf"at \['x'\], element \(0,\): .*; allowed: {ulps} ulps of the"):
            runs.assert_same("law", INNER, far, expected, ulps)
    runs.assert_same("law", INNER, {"x": np.array([0.25 + 7 * eps, 2.0], np.float32)}, expected, 2, least=8.0)
    least = {"x": np.array([0.0, 3e-38], np.float32)}  # an ulp of it is below the least number of float32
    runs.assert_same("law", INNER, {"x": np.array([0.0, 3.000002e-38], np.float32)}, least, 8)
    with pytest.raises(AssertionError, match=r"8 ulps of .* these are 1"):
        runs.assert_same("law", INNER, {"x": np.array([0.0, 3.000004e-38], np.float32)}, least, 8)
    for other in ({"x": np.array([np.nan, 2.0], np.float32)}, {"x": np.array([0.25, np.inf], np.float32)}):
        with pytest.raises(AssertionError, match="ulps"):
            runs.assert_same("law", INNER, other, expected, 8)
    for other, words in (
        ({"y": expected["x"]}, "the structure is"),
        ({"x": expected["x"].astype(np.float64)}, r"float64\[2\], not float32\[2\]"),
        ({"x": expected["x"][:1]}, r"float32\[1\], not float32\[2\]"),
    ):
        with pytest.raises(AssertionError, match=words):
            runs.assert_same("law", INNER, other, expected, 8)
    with pytest.raises(AssertionError, match="no difference in any bit"):
        runs.assert_same("law", INNER, {"x": np.array([1, 3])}, {"x": np.array([1, 2])}, 8)


def test_what_reads_the_params_is_measured_by_them():
    """A decayed weight rounds in units of the weight, which may be larger than the update."""
    large, near = {"x": np.array([100.0], np.float32)}, {"x": np.array([1 + 4e-5], np.float32)}
    one = {"x": np.array([1.0], np.float32)}
    runs.assert_close("law", gradtx.add_decayed_weights(0.1), near, one, large)
    with pytest.raises(AssertionError, match="8 ulps"):
        runs.assert_close("law", gradtx.scale(2.0), near, one, large)
    small, off = {"x": np.array([1e-3], np.float32)}, {"x": np.array([1e-3 + 2e-9], np.float32)}
    for tx, params in ((gradtx.scale(2.0), large), (gradtx.add_decayed_weights(0.1), {"x": np.zeros(0)})):
        with pytest.raises(AssertionError, match="8 ulps"):
            runs.assert_close("law", tx, off, small, params)


def test_what_becomes_a_schedule_is_what_the_repr_shows():
    def constant(tx):
        return repr(runs.with_schedules(tx, lambda number: gradtx.constant_schedule(2 * number)))

    numbers = gradtx.adam(gradtx.constant_schedule(0.1), b1=jnp.float32(0.5), nesterov=True)
    assert runs.numbers_of(numbers) == {"b1": jnp.float32(0.5), "b2": 0.999, "eps": 1e-8}
    nested = constant(gradtx.clip(1.0) >> gradtx.monitor(gradtx.sgd(0.1, momentum=0.25)))
    assert nested == (
        "clip(max_delta=constant_schedule(value=2.0)) >> monitor(inner=sgd(learning_rate=constant_schedule(value=0.2), "
        "momentum=constant_schedule(value=0.5), nesterov=False), prefix=None)"
    )
    decay, eps = "decay=constant_schedule(value=1.5)", "eps=constant_schedule(value=2.0)"
    assert constant(gradtx.scale_by_rms(0.75, 1.0)) == f"scale_by_rms({decay}, {eps})"
    scale = "initial_scale=constant_schedule(value=1.0)"
    assert constant(gradtx.scale_by_rms(0.75, 1.0, initial_scale=0.5)) == f"scale_by_rms({decay}, {eps}, {scale})"


def test_gradients_are_the_same_at_every_call_and_some_elements_are_zero():
    first, again, other = (testing.gradients({"x": jnp.ones(200)}, 3, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 3
    assert gradtx.tree_equal(first, again)
    assert not gradtx.tree_equal(first, other)
    zeros = float(jnp.mean(first[0]["x"] == 0))
    assert 0.02 < zeros < 0.25
    assert 0.7 < float(jnp.std(first[0]["x"])) < 1.2
