"""What the schedules refuse."""

import gradtx
from tests.refusals import Refusal

LINE, FLAT = gradtx.linear_schedule(1.0, 0.0, 10), gradtx.constant_schedule(0.1)
WRONG = {
    "falling": (9, 5),
    "below 0": (-1, 5),
    "half a step": (2.5, 5),
    "never": (float("inf"), 5),
    "a bool": (True, 5),
    "a word": ("5", 9),
}


def boundaries():
    """Of pieces that are joined, and of those that are scaled."""
    for name, given in WRONG.items():
        words = f"boundaries is {list(given)!r}; it must be whole numbers of updates, 0 or more, in ascending order."
        joined = lambda given=given: gradtx.join_schedules([LINE, FLAT, FLAT], given)  # noqa: E731
        yield Refusal(f"join_schedules: {name}", joined, ValueError, f"gradtx.join_schedules: {words}")
        if name in ("falling", "never", "a word"):  # the keys of a dict are sorted
            continue
        scales = dict.fromkeys(given, 0.5)
        for factory, arguments in (
            ("piecewise_constant_schedule", (1.0, scales)),
            ("piecewise_interpolate_schedule", ("linear", 1.0, scales)),
        ):
            made = lambda factory=factory, arguments=arguments: getattr(gradtx, factory)(*arguments)  # noqa: E731
            yield Refusal(f"{factory}: {name}", made, (ValueError, TypeError), f"gradtx.{factory}")


REFUSALS = [
    *boundaries(),
    Refusal(
        "no cycles",
        lambda: gradtx.sgdr_schedule(()),
        ValueError,
        "gradtx.sgdr_schedule: cosine_kwargs is empty; it must have",
    ),
    Refusal(
        "a boundary too few",
        lambda: gradtx.join_schedules([LINE, FLAT], []),
        ValueError,
        "gradtx.join_schedules: boundaries has 0 entries; for 2 schedules it must have 1",
    ),
    Refusal(
        "boundaries too many",
        lambda: gradtx.join_schedules([LINE, FLAT], [1, 2, 3]),
        ValueError,
        "gradtx.join_schedules: boundaries has 3 entries; for 2 schedules it must have 1",
    ),
    Refusal(
        "no schedules",
        lambda: gradtx.join_schedules([], []),
        ValueError,
        "schedules is empty; it must have at least one",
    ),
    Refusal(
        "half a step of a line",
        lambda: gradtx.linear_schedule(1.0, 0.0, 2.5),
        TypeError,
        "gradtx.linear_schedule: transition_steps is 2.5; it must be an int",
    ),
    Refusal(
        "a warmup that never ends",
        lambda: gradtx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 10),
        ValueError,
        "gradtx.warmup_cosine_decay_schedule: decay_steps is 10; it must be more than warmup_steps, 10.",
    ),
    *(
        Refusal(
            f"{factory} of two steps",
            lambda f=factory: getattr(gradtx, f)(2, 1.0),
            ValueError,
            f"gradtx.{factory}: the ends of the parts are [0, ",
            "each part must have at least one update",
        )
        for factory in ("linear_onecycle_schedule", "cosine_onecycle_schedule")
    ),
]
