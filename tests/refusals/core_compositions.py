"""What the language refuses before anything runs: compositions and configurations."""

import functools

import optax

import gradtx
from gradtx import Rule, Transform
from tests.refusals import Refusal
from tests.refusals.core import FOREIGN, RATE, STRING, TX, made, registered, traced

# Compositions ---------------------------------------------------------------------------------------------------------

A_PAIR = "it must be a transform, or any object with init and update."
COMPOSITIONS = []
for compose in (gradtx.chain, gradtx.join):
    who = f"gradtx.{compose.__name__}"
    lists = f"{who}: stage 0 is a %s. Pass the transforms themselves: {compose.__name__}(*transforms)."
    none = f"{who}: got no transforms. Pass at least one, or identity(), which does nothing."
    COMPOSITIONS += [
        Refusal(f"{who} of {stages}", functools.partial(compose, *stages), TypeError, words)
        for stages, words in [
            ([], none),
            ([[TX, TX]], lists % "list"),
            ([(TX, TX)], lists % "tuple"),
            ([TX, gradtx.adam], f"{who}: stage 1 is the factory gradtx.adam itself. Call it: adam(...)."),
            *(([TX, other], f"{who}: stage 1 is {other!r}; {A_PAIR}") for other in (None, 0.1, "adam", int, TX.init)),
        ]
    ]
COMPOSITIONS += [
    Refusal("optax's factory", lambda: gradtx.chain(optax.adam), TypeError, "stage 0 is <function adam", A_PAIR),
    Refusal("factory on the right", lambda: TX >> gradtx.clip, TypeError, "stage 1 is the factory gradtx.clip itself"),
    Refusal("factory on the left", lambda: gradtx.clip >> TX, TypeError, "stage 0 is the factory gradtx.clip itself"),
    Refusal("+ 1", lambda: TX + 1, TypeError, "gradtx.join: stage 1 is 1"),
    Refusal("1 +", lambda: 1 + TX, TypeError, "gradtx.join: stage 0 is 1"),
    Refusal(">> 0.1", lambda: gradtx.scale(1.0) >> 0.1, TypeError, "gradtx.chain: stage 1 is 0.1", A_PAIR),
    Refusal("+ factory", lambda: TX + gradtx.adam, TypeError, "Call it: adam"),
    Refusal("a list on the left", lambda: [TX] >> TX, TypeError, "gradtx.chain: stage 0 is a list"),
    Refusal("stages by name", lambda: gradtx.chain(stages=[TX]), TypeError, "chain"),
]
RIGHT_OF_PLUS = {
    "foreign": lambda: gradtx.scale_by_rms() + FOREIGN,
    "in a join": lambda: gradtx.join(gradtx.scale_by_rms(), gradtx.scale(1.0), FOREIGN),
    "first of a join": lambda: gradtx.scale_by_rms() + (gradtx.foreign(FOREIGN) + gradtx.scale(1.0)),
    "first of a chain": lambda: gradtx.scale_by_rms() + (FOREIGN >> gradtx.scale(1.0)),
    "behind identity": lambda: gradtx.scale_by_rms() + gradtx.chain(gradtx.identity(), FOREIGN),
    "deep": lambda: gradtx.scale(1.0) >> gradtx.scale_by_rms() + ((FOREIGN + gradtx.scale(1.0)) >> gradtx.clip(1.0)),
    "in a wrapper": lambda: gradtx.scale_by_rms() + gradtx.checked(FOREIGN),
    "in two wrappers": lambda: gradtx.scale_by_rms() + gradtx.tunable(gradtx.checked(gradtx.chain(FOREIGN))),
}
COMPOSITIONS += [
    Refusal(
        f"{name}, right of +", call, TypeError, "gradtx.join: ", "trace", "cannot be on the right of +", "Put it first"
    )
    for name, call in RIGHT_OF_PLUS.items()
]


def deaf(inner: Transform) -> Rule:
    """Names neither `observed` nor `**extra`."""

    def update(updates, state, params=None):
        updates, inner_state = inner.update(updates, state["inner"], params)
        return updates, {"inner": inner_state}

    return Rule(lambda params: {"inner": inner.init(params)}, update)


def with_extra(rate: gradtx.Unit = 0.5) -> Rule:
    return Rule(update=lambda updates, state, *, value, other=None: (updates, state))


DEAF, WITH_EXTRA = registered(deaf), registered(with_extra)
COMPOSITIONS += [
    Refusal("observed is dropped", lambda: TX + DEAF(gradtx.scale_by_rms()), TypeError, "gradtx.join: deaf"),
    Refusal("extra is dropped", lambda: DEAF(WITH_EXTRA()), TypeError, "with_extra(rate=0.5) needs value", "**extra"),
    Refusal("first, behind", lambda: TX >> made(place="first")(), TypeError, "breaks", "cannot come after adam"),
    Refusal("final, in front", lambda: made(place="last")() + TX, TypeError, "adam(", "cannot come after breaks"),
]

# Configurations -------------------------------------------------------------------------------------------------------

A_CONFIG, ARGS = "it must be a dict of 'name' and 'arguments', as from to_config", {"learning_rate": 0.1}
CONFIGS = [
    Refusal(f"the config {config}", functools.partial(gradtx.from_config, config), error, "gradtx.", *words)
    for config, error, *words in [
        *(
            (config, ValueError, f"gradtx.from_config: config is {config!r}; {A_CONFIG}")
            for config in (None, "adam", [], {})
        ),
        ({"name": "adam"}, ValueError, A_CONFIG),
        ({"name": "adam", "arguments": ARGS, "more": 1}, ValueError, A_CONFIG),
        ({"name": "adam", "arguments": None}, ValueError, A_CONFIG),
        ({"name": "adam", "arguments": [0.1]}, ValueError, A_CONFIG),
        ({"name": ["adam"], "arguments": {}}, ValueError, A_CONFIG),
        (
            *({"name": "adm", "arguments": {}}, ValueError),
            "no transform or schedule is called 'adm'. Did you mean 'adam'? Import the module that defines it first.",
        ),
        ({"name": "adam", "arguments": {}}, TypeError, "adam: missing a required argument: 'learning_rate'"),
        ({"name": "adam", "arguments": ARGS | {"b3": 0.5}}, TypeError, "'b3'"),
        ({"name": "adam", "arguments": {"learning_rate": "0.1"}}, TypeError, STRING % ("0.1", ", 0.1")),
        ({"name": "adam", "arguments": {"learning_rate": -0.1}}, ValueError, f"{RATE} is -0.1"),
        ({"name": "adam", "arguments": {"learning_rate": {"name": "sgd", "arguments": ARGS}}}, TypeError, RATE),
        ({"name": "adam", "arguments": {"learning_rate": {"nme": "sgd"}}}, ValueError, "{'nme': 'sgd'}", A_CONFIG),
        ({"name": "chain", "arguments": {}}, TypeError, "gradtx.chain: got no transforms"),
        ({"name": "chain", "arguments": {"stages": []}}, TypeError, "gradtx.chain: got no transforms"),
        ({"name": "chain", "arguments": {"stages": [0.1]}}, TypeError, "gradtx.chain: stage 0 is 0.1"),
    ]
]
JSON = "which JSON cannot hold"
CONFIGS += [
    Refusal(f"the config of {name}", call, TypeError, words, JSON)
    for name, call, words in [
        ("a function", lambda: gradtx.adam(lambda count: 0.1).to_config(), "gradtx.custom_schedule: function is "),
        ("a static function", lambda: gradtx.stateless(lambda u, p: u).to_config(), "gradtx.stateless: f is "),
        ("a foreign object", lambda: gradtx.foreign(FOREIGN).to_config(), "gradtx.foreign: object is "),
        ("a tracer", traced(lambda tx: tx.to_config() and None, gradtx.sgd(0.1)), "gradtx.sgd: learning_rate is "),
    ]
]

REFUSALS = COMPOSITIONS + CONFIGS
