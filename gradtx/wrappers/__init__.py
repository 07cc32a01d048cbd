"""Wrappers around any method: groups and masks, guards, accumulation, precision, averages of the parameters.

Each is a transform with a transform inside, `wrapper(inner, ...)`, and keeps the state of that under "inner":

- `skip_nonfinite(adam(1e-3), 5)` decides whether the inner transform runs, `accumulate(adam(1e-3), 4)` when.
- `train_only(adam(1e-3), "*/head/*")` decides on which leaves, `partition({...}, labels)` which transform for each.
- `stochastic_rounding(adam(1e-3))` decides the last bits of the new params, `exponential_averaging(adam(1e-3))` keeps
  their average.
"""
