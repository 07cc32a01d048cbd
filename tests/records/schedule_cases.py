"""Every schedule with the arguments that change its equation; `tests/records/schedules.py` has the transcriptions."""

from tests.records.base import Scheduled

JOINED = (
    (
        Scheduled("linear_schedule", (0.0, 1.0, 10)),
        Scheduled("exponential_decay", (1.0, 5, 0.5)),
        Scheduled("constant_schedule", (0.1,)),
    ),
    (10, 30),
)
CYCLES = (
    {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20, "end_value": 0.1},
    {"init_value": 0.1, "peak_value": 0.5, "warmup_steps": 2, "decay_steps": 25, "end_value": 0.05},
)

SCHEDULES = [
    Scheduled("constant_schedule", (0.3,)),
    Scheduled("linear_schedule", (1.0, 0.1, 20)),
    Scheduled("linear_schedule", (0.0, 1.0, 20, 5)),
    Scheduled("polynomial_schedule", (1.0, 0.1, 2.0, 20, 5)),
    Scheduled("polynomial_schedule", (1.0, 0.1, 0.5, 20)),
    Scheduled("exponential_decay", (1.0, 10, 0.5)),
    Scheduled("exponential_decay", (1.0, 10, 0.5, 5, True)),
    Scheduled("exponential_decay", (1.0, 10, 0.5, 5, False, 0.2)),
    Scheduled("exponential_decay", (1.0, 10, 1.5, 5, False, 2.0)),
    Scheduled("cosine_decay_schedule", (1.0, 40)),
    Scheduled("cosine_decay_schedule", (1.0, 40, 0.1, 2.0)),
    Scheduled("warmup_constant_schedule", (0.1, 1.0, 10)),
    Scheduled("warmup_cosine_decay_schedule", (0.0, 1.0, 10, 40)),
    Scheduled("warmup_cosine_decay_schedule", (0.1, 1.0, 10, 40, 0.05, 1.5)),
    Scheduled("warmup_exponential_decay_schedule", (0.0, 1.0, 10, 8, 0.5)),
    Scheduled("warmup_exponential_decay_schedule", (0.0, 1.0, 10, 8, 0.5, 3, True, 0.1)),
    Scheduled("warmup_stable_decay_schedule", (1.0, 10, 20, 15)),
    Scheduled("warmup_stable_decay_schedule", (1.0, 10, 20, 15, 0.2, 0.1)),
    Scheduled("inverse_sqrt_schedule", (1.0, 10)),
    Scheduled("inverse_time_schedule", (1.0, 0.3)),
    Scheduled("piecewise_constant_schedule", (1.0, {10: 0.1, 20: 0.5})),
    Scheduled("piecewise_interpolate_schedule", ("linear", 1.0, {10: 0.1, 20: 0.5})),
    Scheduled("piecewise_interpolate_schedule", ("cosine", 1.0, {10: 0.1, 20: 0.5})),
    Scheduled("linear_onecycle_schedule", (50, 1.0)),
    Scheduled("linear_onecycle_schedule", (40, 1.0, 0.2, 0.7, 10.0, 100.0)),
    Scheduled("cosine_onecycle_schedule", (50, 1.0)),
    Scheduled("cosine_onecycle_schedule", (40, 1.0, 0.2, 10.0, 100.0)),
    Scheduled("sgdr_schedule", (CYCLES,)),
    Scheduled("join_schedules", JOINED),
]
