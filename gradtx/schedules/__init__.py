"""Schedules: hyperparameters that depend on time.

A schedule maps the number of updates already made (0 at the first) to a number. It stands wherever a number stands:
`adam(cosine_decay_schedule(1e-3, 10_000))`, or `adam(1e-3, b2=linear_schedule(0.9, 0.999, 1000))`. Most are a
straight line, a cosine or a power, bent at some steps:

- `linear_schedule`: from one value to another in a number of steps.
- `cosine_decay_schedule`: the same way down, slow at both ends.
- `warmup_cosine_decay_schedule`: a line up, then that cosine: what large models are trained with.

Values are hyperparameters (swept, differentiated, passed to jit); lengths and boundaries are static,
and may be longer than int32 counts. An optimizer's counter stays at the largest int32; a call takes any whole count.
"""


def __getattr__(name: str) -> object:
    words = "has none: all schedules are at the top, as gradtx.linear_schedule"
    raise AttributeError(f"gradtx.schedules has no {name!r}; it {words}.", name=name)
