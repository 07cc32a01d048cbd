"""What wrappers refuse: senseless orders, numbers, masks and labels, leaves without numbers, states of others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from tests.refusals import Refusal
from tests.wrappers.runs import GRADS, PARAMS, by_rank, has_the_last_word, hearing, matrices, once, takes_scaled

ADAM, SGD = gradtx.adam(0.1), gradtx.sgd(0.1)
TWO = {"matrices": ADAM, "vectors": SGD}
LABELS = {"*/kernel": "matrices", "*": "vectors"}
ONES = jnp.ones(2)


def first_update(tx, params=ONES, **extra):
    return tx.update(params, tx.init(params), params, **extra)


def orders():
    """Which wrapper refuses which other is in tests/wrappers/test_around_methods.py."""
    around = {
        "lookahead": lambda tx: gradtx.lookahead(tx),
        "schedule_free": lambda tx: gradtx.schedule_free(tx, 0.1),
        "sam": gradtx.sam,
        "conditionally_mask": lambda tx: gradtx.conditionally_mask(tx, bool),
        "accumulate": lambda tx: gradtx.accumulate(tx, 2),
        "skip_nonfinite": lambda tx: gradtx.skip_nonfinite(tx, 2),
        "stochastic_rounding": gradtx.stochastic_rounding,
        "kahan_summation": gradtx.kahan_summation,
        "master_weights": gradtx.master_weights,
        "polyak_averaging": gradtx.polyak_averaging,
    }
    low = ("stochastic_rounding", "kahan_summation", "master_weights")
    scales, last = takes_scaled() >> SGD, gradtx.clip(1.0) >> has_the_last_word()
    for name in ("lookahead", "stochastic_rounding"):
        words = (
            f"gradtx.{name}: inner is {last!r}, whose updates decide the bits of the params; they must be applied unch"
        )
        yield Refusal(f"{name} around last words", lambda n=name: around[n](last), TypeError, words)
    words = (
        f"gradtx.sam: inner is {scales!r}, which scales the gradients back; it must get them unchanged. Put sam inside"
    )
    yield Refusal("sam around scaled gradients", lambda: gradtx.sam(scales), TypeError, words)
    words = "makes its steps at some updates only; lookahead would count the others too. Put lookahead inside it"
    yield Refusal("lookahead around waiting", lambda: gradtx.lookahead(around["accumulate"](SGD)), TypeError, words)
    for name in ("lookahead", "schedule_free", "sam", "polyak_averaging", *low):
        tx, extra = around[name](SGD), {"grad_fn": None} if name == "sam" else {}
        call = lambda tx=tx, extra=extra: tx.update(ONES, tx.init(ONES), **extra)  # noqa: E731
        yield Refusal(f"{name} without params", call, ValueError, f"gradtx.{name}.update: params are missing")
    trace = gradtx.foreign(optax.trace(0.9))
    beside = [make(gradtx.scale_by_rms()) for name, make in around.items() if name not in (*low, "polyak_averaging")]
    beside += [gradtx.masked(trace, "*"), gradtx.train_only(trace, "*"), gradtx.partition({"a": trace}, {"*": "a"})]
    for tx in beside:
        words = "gradtx.join", f"{tx.name}(", "cannot be on the right of +"
        yield Refusal(f"{tx.name} right of +", lambda tx=tx: gradtx.scale_by_momentum() + tx, TypeError, *words)
    for tx in [around[name](ADAM) for name in low] + [gradtx.masked(has_the_last_word(), "*")]:
        words = (
            "gradtx.chain: scale(step_size=0.5) cannot come after",
            f"{tx.name}(",
            "Put it last, or put the others in",
        )
        yield Refusal(f"a scale behind {tx.name}", lambda tx=tx: tx >> gradtx.scale(0.5), TypeError, *words)
    for tx in (gradtx.train_only(takes_scaled(), "*"), gradtx.loss_scaling(ADAM)):
        words = f"gradtx.chain: {tx.name}(", "cannot come after clip", "scaled"
        yield Refusal(f"a clip before {tx.name}", lambda tx=tx: gradtx.clip(1.0) >> tx, TypeError, *words)
    words = "gradtx.masked: inner is takes_scaled()", "the unselected leaves would stay scaled", "Put masked inside it"
    yield Refusal("a mask around scaled gradients", lambda: gradtx.masked(takes_scaled(), "*"), TypeError, *words)


NUMBERS = {
    "exponential_averaging: decay is 1.0": lambda: gradtx.exponential_averaging(SGD, 1.0),
    "exponential_averaging: from_first is True; it must be False with debias=True": lambda: (
        gradtx.exponential_averaging(SGD, from_first=True)
    ),
    "stochastic_weight_averaging: every is 0": lambda: gradtx.stochastic_weight_averaging(SGD, 10, 0),
    "stochastic_weight_averaging: start is -1": lambda: gradtx.stochastic_weight_averaging(SGD, -1, 1),
    "lookahead: sync_period is 0": lambda: gradtx.lookahead(SGD, 0),
    "lookahead: slow_step_size is 1.5": lambda: gradtx.lookahead(SGD, 5, 1.5),
    "schedule_free: weight_lr_power is -1.0": lambda: gradtx.schedule_free(SGD, 0.1, 0.9, -1.0),
    "sam: rho is -0.1": lambda: gradtx.sam(SGD, -0.1),
    "skip_nonfinite: max_consecutive is 0": lambda: gradtx.skip_nonfinite(SGD, 0),
    "in_buckets: min_leaves is 0": lambda: gradtx.in_buckets(SGD, min_leaves=0),
    "accumulate: every is 0; it must be from 1": lambda: gradtx.accumulate(SGD, 0),
    "accumulate: every is 2147483648; it must be from 1 to 2**31 - 1": lambda: gradtx.accumulate(SGD, 2**31),
    "loss_scaling: scale is 1e+39; it must be a number that float32 can": lambda: gradtx.loss_scaling(SGD, 1e39),
    "loss_scaling: factor is 1e+39; it must be a number that": lambda: gradtx.loss_scaling(SGD, factor=1e39),
    "loss_scaling: scale is 0.0; it must be greater than 0": lambda: gradtx.loss_scaling(SGD, 0.0),
    "loss_scaling: scale is inf; it must be greater than 0": lambda: gradtx.loss_scaling(SGD, np.inf),
    "loss_scaling: factor is 1.0; it must be greater than 1": lambda: gradtx.loss_scaling(SGD, factor=1.0),
    "loss_scaling: min_scale is -1.0; it must be greater than 0": lambda: gradtx.loss_scaling(SGD, min_scale=-1.0),
    "loss_scaling: period is 0": lambda: gradtx.loss_scaling(SGD, period=0),
}


def calls():
    for wrong in (2.0, "4", None, True):
        words = f"gradtx.accumulate: every is {wrong!r}; it must be an int, or a function of the number of updates"
        yield Refusal(f"every={wrong!r}", lambda every=wrong: gradtx.accumulate(SGD, every), TypeError, words)
    for every, words in (
        (lambda made: 4.0, "shape () and dtype float32"),
        (lambda made: np.ones(2, int), "shape (2,)"),
    ):
        call = lambda every=every: first_update(gradtx.accumulate(SGD, every))  # noqa: E731
        yield Refusal(
            f"every gives {words}", call, TypeError, "gradtx.accumulate: every returned", words, "one integer"
        )
    for predicate, words in ((lambda n: n, "shape () and dtype int32"), (lambda n: jnp.ones(2, bool), "shape (2,)")):
        call = lambda given=predicate: first_update(gradtx.conditionally(gradtx.clip(1.0), given))  # noqa: E731
        yield Refusal(f"a predicate gives {words}", call, TypeError, "gradtx.conditionally: should", words, "one bool")
    yield Refusal(
        "a predicate of 3", lambda: gradtx.conditionally_mask(SGD, 3), TypeError, "gradtx.conditionally_mask: should_tr"
    )
    words = "gradtx.sam.update: the extra argument 'grad_fn' is missing"
    yield Refusal("sam without grad_fn", lambda: first_update(gradtx.sam(SGD)), TypeError, words)
    call = lambda: first_update(gradtx.sam(SGD), {"w": ONES}, grad_fn=lambda p: {"w": jnp.ones(3)})  # noqa: E731
    yield Refusal("another grad_fn", call, ValueError, "gradtx.sam: what grad_fn returns do not match params", "['w']")
    tx = gradtx.train_only(hearing(), "out/*")
    words = "gradtx.train_only.update: the extra argument 'value' is missing"
    yield Refusal("a value that is missing", lambda: once(tx), TypeError, words)
    words = "unknown extra argument 'vale'", "Did you mean 'value'"
    yield Refusal("a value misspelt", lambda: once(tx, vale=1.0), TypeError, *words)
    words = "unknown extra argument 'value'"
    yield Refusal("a value for freeze", lambda: once(gradtx.freeze("out/*"), value=1.0), TypeError, words)
    yield Refusal("a value for groups", lambda: once(gradtx.partition(TWO, LABELS), value=1.0), TypeError, words)
    # Averages that are read
    averaged = gradtx.polyak_averaging(SGD)
    words = "gradtx.averaged_params: the state holds no average", "gradtx.exponential_averaging(tx)"
    yield Refusal("no average", lambda: gradtx.averaged_params(ADAM.init(ONES)), KeyError, *words)
    two = gradtx.polyak_averaging(gradtx.clip(1.0) >> averaged)
    words = "holds 2 averages", "in ['polyak_averaging'], ['polyak_averaging']['inner']['polyak_averaging']: pass"
    yield Refusal("two averages", lambda: gradtx.averaged_params(two.init(ONES)), KeyError, *words)
    state, params = averaged.init({"a": ONES, "b": ONES}), {"a": ONES, "b": jnp.ones(4)}
    words = "gradtx.averaged_params: params do not match the average"
    yield Refusal("an average of less", lambda: gradtx.averaged_params(state, {"a": ONES}), ValueError, words)
    yield Refusal("an average of others", lambda: gradtx.averaged_params(state, params), ValueError, words, "['b']")


def masks_and_labels():
    def build(name, mask):
        return gradtx.freeze(mask) if name == "freeze" else getattr(gradtx, name)(gradtx.scale(1.0), mask)

    for name in ("masked", "train_only", "freeze"):
        leaves = "dense/bias, dense/kernel, "
        for mask, error, words in (
            ({"dense": 2, "norm": 0, "out": 0}, TypeError, "mask at 'dense/bias' is 2; it must be True or False"),
            ("*/shift", ValueError, f"mask: the pattern '*/shift' matches no leaf; the leaves: {leaves}"),
            ({"dense": True}, ValueError, "mask has the structure"),
        ):
            call = lambda name=name, mask=mask: once(build(name, mask))  # noqa: E731
            yield Refusal(f"{name} of {mask}", call, error, f"gradtx.{name}: {words}")
        tx = build(name, matrices)
        call = lambda tx=tx: tx.update(GRADS, tx.init(PARAMS))  # noqa: E731
        yield Refusal(f"{name} by a function", call, ValueError, f"gradtx.{name}.update: params are missing")
    parted = gradtx.partition(TWO, by_rank)
    call = lambda: parted.update(GRADS, parted.init(PARAMS))  # noqa: E731
    yield Refusal("a partition by a function", call, ValueError, "gradtx.partition.update: params are missing")
    words = "gradtx.partition: param_labels is", "which JSON cannot hold"
    yield Refusal("labels by a function in JSON", parted.to_config, TypeError, *words)
    for transforms, error, *words in (
        ({}, ValueError, "transforms is empty"),
        ({0: SGD}, TypeError, "a group is called 0; it must be a str"),
        ([SGD], TypeError, "transforms is ", "; it must be a dict"),
        ({"a": gradtx.sgd}, TypeError, "Call it: sgd"),
        (
            {"a": SGD, "b": takes_scaled()},
            TypeError,
            "the group 'b' scales the gradients back, and the other groups w",
        ),
    ):
        call = lambda given=transforms: gradtx.partition(given, LABELS)  # noqa: E731
        yield Refusal(f"groups of {transforms}", call, error, "gradtx.partition: ", *words)
    for labels, error, *words in (
        ({"*/kernel": "matrixes", "*": "vectors"}, ValueError, "the leaf 'dense/kernel' has the label 'matrixes', for "
         "which there is no transform; allowed: 'matrices', 'vectors'."),
        ({"*/shift": "matrices", "*": "vectors"}, ValueError, "param_labels: the pattern '*/shift' matches no"),
        ({"*/kernel": "matrices"}, ValueError, "param_labels: no pattern matches the leaf 'dense/bias'"),
        ({"dense": "matrices"}, ValueError, "param_labels has the structure"),
        (lambda path, leaf: leaf.ndim, TypeError, "param_labels at 'dense/bias' is 1; it must be a str"),
    ):  # fmt: skip
        tx = gradtx.partition(TWO, labels)
        for what, call in (("init", tx.init), ("groups", lambda params, tx=tx: gradtx.groups(tx, params))):
            name = f"{what} of labels {words[0][:40]}"
            yield Refusal(name, lambda call=call: call(PARAMS), error, f"gradtx.partition: {words[0]}")
    words = "gradtx.groups: tx is adam(", "with no groups; it must contain one partition"
    yield Refusal("groups of adam", lambda: gradtx.groups(ADAM, PARAMS), ValueError, *words)
    two = gradtx.freeze("out/*") >> gradtx.freeze("norm/*")
    words = "with groups in several places; it must contain one partition", "Pass that one"
    yield Refusal("groups in two places", lambda: gradtx.groups(two, PARAMS), ValueError, *words)
    state = gradtx.partition({"matrices": ADAM, "vectors": ADAM}, LABELS).init(PARAMS)
    words = "several entries are called 'scale_by_rms/weights'", "matrices/scale_by_rms/weights"
    yield Refusal("numbers of two groups", lambda: gradtx.find(state, "scale_by_rms/weights"), KeyError, *words)
    words = "no entry is called 'matrices/velocity'"
    yield Refusal("what no group has", lambda: gradtx.find(state, "matrices/velocity"), KeyError, words)


WHOLE_NUMBERS = {"w": ONES, "step": jnp.array(7), "seen": jnp.array([True, False])}


def leaves_without_numbers():
    trained = gradtx.train_only(ADAM, "w")
    inside = "reads all leaves: put it inside the mask."
    for tx, *words in (
        (gradtx.masked(ADAM, ("w", "step")), "gradtx.adam.init: params at ['step'] has dtype int32"),
        (gradtx.train_only(gradtx.clip(1.0) >> ADAM, "*"), "gradtx.chain.init: params at ['seen'] has dtype bool"),
        (
            gradtx.partition({"a": ADAM, "b": SGD}, {"w": "a", "*": "b"}),
            "gradtx.sgd.init: params at ['seen'] has dtype bool",
        ),
        (
            gradtx.clip(1.0) >> trained,
            "at ['seen'] has dtype bool; it must be floating-point or complex. clip(",
            inside,
        ),
        (gradtx.masked(ADAM, "w") + gradtx.scale_by_rms(), f"scale_by_rms(decay=0.999, eps=1e-08) {inside}"),
        (gradtx.skip_nonfinite(trained, 3), "gradtx.skip_nonfinite.init: params at ['seen'] has dtype bool"),
    ):
        yield Refusal(f"whole numbers in {tx!r}", lambda tx=tx: tx.init(WHOLE_NUMBERS), TypeError, *words, "mask")
    words = "gradtx.minimize: params at ['seen'] has dtype bool", "out of the parameters."
    call = lambda: gradtx.minimize(lambda p: p["w"].sum(), WHOLE_NUMBERS, trained, steps=1, progress=False)  # noqa: E731
    yield Refusal("whole numbers in minimize", call, TypeError, *words)
    none, params = np.zeros(2, jax.dtypes.float0), {"w": ONES, "n": jnp.arange(2)}
    behind = gradtx.clip(1.0) >> gradtx.freeze("n")
    state = behind.init({"w": ONES, "n": ONES})
    words = (
        "gradtx.chain.update: updates at ['n'] has dtype float0; it must be floating-point",
        f"clip(max_delta=1.0) {inside}",
    )
    yield Refusal("float0 in a clip", lambda: behind.update({"w": ONES, "n": none}, state, params), TypeError, *words)
    apply = gradtx.apply_updates
    words = "gradtx.apply_updates: updates at ['w'] has dtype float0, params float32"
    yield Refusal("float0 for a float", lambda: apply({"w": ONES}, {"w": none}), TypeError, words)
    for update in (ONES, jnp.ones(2, jnp.int16)):
        given = {"n": update}
        words = (
            f"gradtx.apply_updates: updates at ['n'] has dtype {update.dtype}, params int32;",
            "the same dtype or float0",
        )
        yield Refusal(
            f"{update.dtype} for int32", lambda given=given: apply({"n": jnp.arange(2)}, given), TypeError, *words
        )
        call = lambda given=given: gradtx.freeze("n").update(given, {}, {"n": jnp.arange(2)})  # noqa: E731
        yield Refusal(f"{update.dtype} frozen", call, TypeError, "gradtx.freeze.update: updates at ['n']")


def buckets():
    for tx in (
        gradtx.masked(ADAM, "*kernel"),
        gradtx.clip_by_leaf_norm(1.0),
        gradtx.exponential_averaging(ADAM),
        gradtx.stateless(lambda updates, params: updates),
        gradtx.skip_nonfinite(gradtx.adamw(0.1, mask="*kernel"), 2),
        gradtx.centralize(),
    ):
        for wrap in (gradtx.pack, gradtx.in_buckets):
            name = wrap.node.name
            words = f"gradtx.{name}: {tx!r}", "one by one", f"Put {name} around what does not, inside it."
            yield Refusal(f"{name} around {tx.name}", lambda wrap=wrap, tx=tx: wrap(tx), TypeError, *words)
    packed = gradtx.pack(ADAM, min_leaves=2)
    yield Refusal("buckets in buckets", lambda: gradtx.in_buckets(packed), TypeError, "gradtx.in_buckets: pack(")
    complex_ = {"z": jnp.ones(2, jnp.complex64), "y": jnp.ones(3, jnp.complex64)}
    clipped = gradtx.pack(gradtx.clip(1.0) >> ADAM, min_leaves=2)
    yield Refusal("a packed clip of complex leaves", lambda: clipped.init(complex_), TypeError, "complex", "['y']")
    own = {"a": jnp.ones(3), "b": ONES}
    state = packed.init(own)
    mu, made = "['scale_by_momentum']['mu']", "gradtx.pack.update: the state is not one that init makes"
    for words, params in {
        f"lacks {mu}['alone']['a']['(2,)']": {"a": ONES, "b": jnp.ones(3)},
        f"has {mu}['alone']['b']['(2,)']": {"a": jnp.ones(3), "c": ONES},
        f"lacks {mu}['alone']['d']['(2,)']": own | {"d": ONES},
    }.items():
        call = lambda params=params: packed.update(params, state, params)  # noqa: E731
        yield Refusal(f"a layout where {words}", call, ValueError, words, made, "Pass the state that init")
    words = made, f"lacks {mu}['alone']['a']"
    yield Refusal("a state without buckets", lambda: packed.update(own, ADAM.init(own), own), ValueError, *words)
    words = f"has {mu}['alone']['a']"
    yield Refusal("a state with buckets", lambda: ADAM.update(own, state, own), ValueError, words)
    words = "gradtx.unpacked: the state has buckets of other leaves than the params", "Pass the params that it was"
    yield Refusal("unpacked for less", lambda: gradtx.unpacked(state, {"a": ONES}), ValueError, *words)
    swapped = {"a": ONES, "b": jnp.ones(3)}
    yield Refusal("unpacked for other shapes", lambda: gradtx.unpacked(state, swapped), ValueError, *words)
    other = gradtx.adam(0.1) >> gradtx.scale(1.0)
    call = lambda: gradtx.carry_over(state, other, own | {"d": ONES})  # noqa: E731
    yield Refusal("carried over from buckets of less", call, ValueError, *words)
    words = "gradtx.packed: the state in buckets lacks ['scale_by_learning_rate']['count']"
    yield Refusal("packed from nothing", lambda: gradtx.packed({}, state), ValueError, words)
    alone = ADAM.init({"a": ONES, "b": jnp.ones(4)})
    words = "gradtx.packed: the state in buckets lacks", f"has {mu}['a']"
    yield Refusal("packed from other shapes", lambda: gradtx.packed(alone, state), ValueError, *words)


REFUSALS = [
    *orders(),
    *[Refusal(words, call, ValueError, f"gradtx.{words}") for words, call in NUMBERS.items()],
    *calls(),
    *masks_and_labels(),
    *leaves_without_numbers(),
    *buckets(),
]
