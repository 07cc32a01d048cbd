"""Schedules: hyperparameters that depend on time.

A schedule maps the number of updates already made (0 at the first) to a number. It can replace any numeric
hyperparameter: `adam(cosine_decay_schedule(1e-3, 10_000))`, or `adam(1e-3, b2=linear_schedule(0.9, 0.999, 1000))`.
Most schedules are pieces of lines, cosines or powers:

- `linear_schedule`: from one value to another in a number of steps.
- `cosine_decay_schedule`: the same along half a cosine, slow at both ends.
- `warmup_cosine_decay_schedule`: a line up, then half a cosine down, as used for large models.

Values are hyperparameters: they can be swept, differentiated and passed to jit. Lengths and boundaries are static, and
may exceed int32. An optimizer's counter stays at the largest int32; a direct call takes any whole number.
"""


def __getattr__(name: str) -> object:
    words = "all schedules are in gradtx itself, such as gradtx.linear_schedule"
    raise AttributeError(f"gradtx.schedules has no {name!r}; {words}.", name=name)
