"""The two compositions: what they mean, their laws, and what they refuse.

Random programs of `>>` and `+` are run twice: by gradtx, and by `interpret`, which knows nothing of gradtx: it walks
the program as written and computes each part in NumPy. So it sees what flattening and `observed` do to the meaning.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from tests.records import effects, parts

SHAPES = {"a": (3,), "b": ()}
STEPS = 3

# An interpreter -------------------------------------------------------------------------------------------------------
# A program is a part's name, ("chain", programs) or ("join", programs). A part is a function of what flows through, of
# what is to be measured, the params, its memory (a dict, empty at first) and t, the step, 1 at the first.


def part(step, **numbers):
    """A transcription of `tests/records` as a part, told what to measure if it measures."""
    measures = "observed" in inspect.signature(step).parameters

    def run(u, observed, p, memory, t):
        return step(memory, u, t, p, **numbers, **({"observed": observed} if measures else {}))

    return run


def adam_and_step(u, observed, p, memory, t):
    """A whole method as a part; it is a chain, so only its first stage, a join, is told what to measure."""
    return -0.1 * parts.scale_by_adam(memory, u, t, p, observed=observed, b1=0.9, b2=0.99, eps=1e-3)


PARTS = {
    "momentum": (lambda: gradtx.scale_by_momentum(0.83), part(parts.scale_by_momentum, decay=0.83)),
    "ema": (lambda: gradtx.ema(0.71), part(parts.ema, decay=0.71)),
    "velocity": (
        lambda: gradtx.scale_by_momentum(0.62, form="sum"),
        part(parts.scale_by_momentum, decay=0.62, form="sum"),
    ),
    "rms": (lambda: gradtx.scale_by_rms(0.93, 1e-3), part(parts.scale_by_rms, decay=0.93, eps=1e-3)),
    "adagrad": (
        lambda: gradtx.scale_by_adagrad(0.1, 1e-3),
        part(parts.scale_by_adagrad, initial_accumulator_value=0.1, eps=1e-3),
    ),
    "infinity_norm": (
        lambda: gradtx.scale_by_infinity_norm(0.9, 1e-3),
        part(parts.scale_by_infinity_norm, decay=0.9, eps=1e-3),
    ),
    "adadelta": (lambda: gradtx.scale_by_adadelta(0.8, 1e-3), part(parts.scale_by_adadelta, rho=0.8, eps=1e-3)),
    "lion": (lambda: gradtx.scale_by_lion(0.87, 0.95), part(parts.scale_by_lion, b1=0.87, b2=0.95)),
    "scale": (lambda: gradtx.scale(-1.7), part(parts.scale, step_size=-1.7)),
    "decay": (lambda: gradtx.add_decayed_weights(0.31), part(effects.add_decayed_weights, weight_decay=0.31)),
    "clip": (lambda: gradtx.clip(0.57), part(effects.clip, max_delta=0.57)),
    "clip_norm": (lambda: gradtx.clip_by_global_norm(0.9), part(effects.clip_by_global_norm, max_norm=0.9)),
    "identity": (lambda: gradtx.identity(), part(parts.identity)),
    "adam": (lambda: gradtx.adam(0.1, 0.9, 0.99, 1e-3), adam_and_step),
    "foreign trace": (lambda: optax.trace(0.62), part(parts.scale_by_momentum, decay=0.62, form="sum")),
    "foreign scale": (lambda: optax.scale(0.43), part(parts.scale, step_size=0.43)),
}
OURS = [name for name in PARTS if not name.startswith("foreign")]


def interpret(program, u, observed, p, memory, t):
    """What the two compositions mean, in ten lines. What does nothing is as if it were not there."""
    if isinstance(program, str):
        return PARTS[program][1](u, u if observed is None else observed, p, memory, t)
    kind, stages = program
    incoming = u if observed is None else observed
    for index, stage in enumerate(stage for stage in stages if not does_nothing(stage)):
        told = incoming if kind == "join" else observed if index == 0 else None
        u = interpret(stage, u, told, p, memory.setdefault(index, {}), t)
    return u


def can_be_told(program) -> bool:
    """Whether a program can be told what to measure: its first part is the one that would be."""
    if isinstance(program, str):
        return not program.startswith("foreign")
    return can_be_told(next((stage for stage in program[1] if not does_nothing(stage)), "identity"))


def does_nothing(program) -> bool:
    return program == "identity" if isinstance(program, str) else all(map(does_nothing, program[1]))


def is_allowed(program) -> bool:
    if isinstance(program, str):
        return True
    kind, stages = program
    working = [stage for stage in stages if not does_nothing(stage)]
    if kind == "join" and not all(map(can_be_told, [part for stage in working[1:] for part in first_parts(stage)])):
        return False
    if kind == "join" and working and not all(map(can_be_told, first_parts(working[0])[1:])):
        return False
    return all(map(is_allowed, stages))


def first_parts(program) -> list:
    """The stages of a join inside a join are its own."""
    if isinstance(program, str) or program[0] == "chain":
        return [program]
    return [part for stage in program[1] if not does_nothing(stage) for part in first_parts(stage)]


def build(program):
    if isinstance(program, str):
        return PARTS[program][0]()
    kind, stages = program
    return getattr(gradtx, kind)(*map(build, stages))


def run(tx, params, gradients):
    state, updates = tx.init(params), []
    with jax.numpy_dtype_promotion("standard"):  # for optax's parts
        for gradient in gradients:
            update, state = tx.update(gradient, state, params)
            updates.append(update)
    return updates, state


def split(vector):
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])
    parts = np.split(np.asarray(vector), ends[:-1])
    return {name: jnp.asarray(part.reshape(shape)) for (name, shape), part in zip(SHAPES.items(), parts)}


def flat(updates):
    return np.concatenate([np.ravel(updates[name]) for name in SHAPES])


def drawn(generator, parts, depth=3):
    """A composition of two or three programs, each as likely a part as a composition one level less deep."""

    def stage():
        if depth > 1 and generator.random() < 0.5:
            return drawn(generator, parts, depth - 1)
        return str(generator.choice(parts))

    return str(generator.choice(["chain", "join"])), [stage() for _ in range(generator.integers(2, 4))]


RANDOM = np.random.default_rng(5)
START = RANDOM.normal(size=4)
STREAM = RANDOM.normal(size=(STEPS, 4))


@pytest.mark.usefixtures("x64")
def test_random_programs_mean_what_the_interpreter_says():
    refused = 0
    for seed in range(60):
        program = drawn(np.random.default_rng(seed), list(PARTS))
        if not is_allowed(program):
            refused += 1
            with pytest.raises(TypeError, match=r"cannot be on the right of \+"):
                build(program)
            continue
        actual, _ = run(build(program), split(START), [split(gradient) for gradient in STREAM])
        memory: dict = {}
        for t, gradient in enumerate(STREAM, start=1):
            expected = interpret(program, gradient, None, START, memory, t)
            said = f"seed {seed}, step {t}: {program}"
            np.testing.assert_allclose(flat(actual[t - 1]), expected, rtol=1e-9, atol=1e-12, err_msg=said)
    assert 5 < refused < 40, refused


def regrouped(generator, kind, parts):
    """One list of parts, grouped at random, with identities in between, under one composition."""
    if len(parts) == 1:
        alone = parts[0]
    else:
        cut = generator.integers(1, len(parts))
        alone = (kind, [regrouped(generator, kind, parts[:cut]), regrouped(generator, kind, parts[cut:])])
    other = str(generator.choice(["chain", "join"]))
    return [alone, (other, ["identity", alone]), (other, [alone, "identity"])][generator.integers(3)]


@pytest.mark.usefixtures("x64")
def test_both_compositions_are_associative_and_identity_is_neutral():
    """Equal as values; so they run the same operations on the same numbers."""
    for seed in range(40):
        generator = np.random.default_rng(seed)
        kind, parts = drawn(generator, OURS, depth=2)
        parts = [*parts, str(generator.choice(OURS))]
        first, second = (build(regrouped(generator, kind, parts)) for _ in range(2))
        assert first == second, f"seed {seed}"
        assert hash(first) == hash(second), f"seed {seed}"
        if seed < 8:
            params, gradients = split(START), [split(gradient) for gradient in STREAM[:2]]
            assert gradtx.tree_equal(run(first, params, gradients), run(second, params, gradients)), f"seed {seed}"


# Claims by name -------------------------------------------------------------------------------------------------------

PARAMS = {"w": jnp.asarray(START, jnp.float32)}
GRADIENTS = [{"w": jnp.asarray(gradient, jnp.float32)} for gradient in np.random.default_rng(6).normal(size=(20, 4))]


def updates_of(tx):
    return run(tx, PARAMS, GRADIENTS)[0]


def test_adam_is_momentum_and_rms_side_by_side_to_the_bit():
    """The same operations one by one: eager, so that no compiler can fuse them otherwise."""
    sides = gradtx.scale_by_momentum() + gradtx.scale_by_rms()
    assert gradtx.scale_by_adam().expand() == sides
    assert gradtx.tree_equal(run(sides, PARAMS, GRADIENTS), run(gradtx.scale_by_adam(), PARAMS, GRADIENTS))
    whole = sides >> gradtx.scale_by_learning_rate(1e-3)
    assert gradtx.tree_equal(run(whole, PARAMS, GRADIENTS), run(gradtx.adam(1e-3), PARAMS, GRADIENTS))


def test_rms_then_momentum_is_rmsprop_with_momentum_in_both_compositions():
    scaling = gradtx.scale_by_rms(0.9, 1e-8, debias=False, eps_in_sqrt=True)
    velocity = gradtx.scale_by_momentum(0.9, form="sum")
    rmsprop = gradtx.rmsprop(0.1, momentum=0.9, lr_inside_momentum=False)
    step = gradtx.scale_by_learning_rate(0.1)
    for direction in (scaling >> velocity, scaling + velocity):
        assert gradtx.tree_equal(updates_of(direction >> step), updates_of(rmsprop))
    assert not gradtx.tree_equal(updates_of(velocity + scaling >> step), updates_of(rmsprop)), "order is meant"


def test_a_scaling_after_a_direction_measures_what_flows_in_a_chain():
    chained = gradtx.scale_by_momentum() >> gradtx.scale_by_rms()
    assert not gradtx.tree_equal(updates_of(chained), updates_of(gradtx.scale_by_adam()))


def test_plus_binds_tighter_than_the_arrow():
    a, b, c = gradtx.scale_by_momentum(), gradtx.scale_by_rms(), gradtx.scale(2.0)
    assert (a + b >> c) == gradtx.chain(gradtx.join(a, b), c)
    assert (c >> a + b) == gradtx.chain(c, gradtx.join(a, b))


def test_a_state_is_one_flat_dict_by_name():
    state = gradtx.adam(0.1).init(PARAMS)
    assert list(state) == ["scale_by_momentum", "scale_by_rms", "scale_by_learning_rate"]
    twice = gradtx.clip(1.0) >> (gradtx.scale(2.0) >> gradtx.clip(0.5)) + gradtx.scale(1.0) >> gradtx.clip(0.1)
    assert sorted(twice.init(PARAMS)) == ["clip", "clip_2", "clip_3", "scale", "scale_2"]


def test_a_clip_in_front_renames_nothing():
    """A state from before goes on behind a new clip: same names, same numbers."""
    bare = gradtx.adam(0.1)
    _, state = run(bare, PARAMS, GRADIENTS[:3])
    clipped = gradtx.clip_by_global_norm(1e6) >> bare
    fresh = clipped.init(PARAMS)
    assert set(fresh) - set(state) == {"clip_by_global_norm"}
    _, continued = clipped.update(GRADIENTS[3], fresh | state, PARAMS)
    _, expected = bare.update(GRADIENTS[3], state, PARAMS)
    assert gradtx.tree_equal({name: continued[name] for name in expected}, expected)


def test_counters_of_all_stages_count_together():
    tx = gradtx.clip(1.0) >> gradtx.scale_by_momentum() + gradtx.scale_by_rms() >> gradtx.scale_by_learning_rate(0.1)
    _, state = run(tx, PARAMS, GRADIENTS[:5])
    assert [int(entry["count"]) for entry in state.values()] == [5] * 4
    assert int(gradtx.step_count(state)) == 5


# Foreign objects ------------------------------------------------------------------------------------------------------


def test_a_foreign_object_may_stand_first_and_anywhere_in_a_chain():
    with jax.numpy_dtype_promotion("standard"):
        joined = gradtx.join(optax.trace(0.9), gradtx.scale_by_rms())
        own = gradtx.scale_by_momentum(form="sum") + gradtx.scale_by_rms()
        for actual, expected in zip(updates_of(joined), updates_of(own)):
            np.testing.assert_allclose(actual["w"], expected["w"], rtol=1e-6)
        updates_of(gradtx.scale(1.0) >> optax.trace(0.9) >> gradtx.scale_by_rms())
        assert list(joined.init(PARAMS)) == ["trace", "scale_by_rms"]
