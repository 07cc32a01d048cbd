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
        words = (
            f"boundaries {list(given)!r} must be whole numbers of updates, 0 or more, none smaller than the one before."
        )
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
    Refusal("no cycles", lambda: gradtx.sgdr_schedule(()), ValueError, "gradtx.sgdr_schedule: got no cycles; pass"),
    Refusal(
        "a boundary too few",
        lambda: gradtx.join_schedules([LINE, FLAT], []),
        ValueError,
        "gradtx.join_schedules: 2 schedules need 1 boundaries, got 0",
    ),
    Refusal(
        "boundaries too many",
        lambda: gradtx.join_schedules([LINE, FLAT], [1, 2, 3]),
        ValueError,
        "gradtx.join_schedules: 2 schedules need 1 boundaries, got 3",
    ),
    Refusal("no schedules", lambda: gradtx.join_schedules([], []), ValueError, "got no schedules; pass at least one"),
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
        "gradtx.warmup_cosine_decay_schedule: the warmup never ends: decay_steps=10",
        "must be more than warmup_steps=10",
    ),
    *(
        Refusal(
            f"{factory} of two steps",
            lambda f=factory: getattr(gradtx, f)(2, 1.0),
            ValueError,
            f"gradtx.{factory}: the parts, which end at [0, ",
            "must have at least one update each",
        )
        for factory in ("linear_onecycle_schedule", "cosine_onecycle_schedule")
    ),
]
