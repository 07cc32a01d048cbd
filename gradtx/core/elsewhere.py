"""The gradtx spelling of optax's names: the error for `gradtx.trace` says `scale_by_momentum(decay, form="sum")`.

Each public name of optax either exists in gradtx or is listed here, with the equivalent expression or the place where
to find it. So are arguments that only optax's functions have. The page "Coming from optax" lists all names.
"""

import types
from typing import Final

MADE: Final = {
    "MultiSteps": "accumulate(inner, every)",
    "adamaxw": "scale_by_momentum(b1) + scale_by_infinity_norm(b2, eps) >> add_decayed_weights(weight_decay) "
    ">> scale_by_learning_rate(learning_rate)",
    "apply_every": "accumulate(identity(), every, use_grad_mean=False)",
    "apply_if_finite": "skip_nonfinite(inner, max_consecutive)",
    "conditionally_transform": "conditionally(inner, should_transform_fn)",
    "flatten": "pack(inner)",
    "inject_hyperparams": "adam(learning_rate)",
    "multi_transform": "partition(transforms, param_labels)",
    "named_chain": "chain(*stages)",
    "scale_by_adamax": "scale_by_momentum(b1) + scale_by_infinity_norm(b2, eps)",
    "scale_by_amsgrad": 'scale_by_momentum(b1) + scale_by_rms(b2, eps, maximum="corrected")',
    "scale_by_rss": "scale_by_adagrad(initial_accumulator_value, eps)",
    "scale_by_stddev": "scale_by_rms(decay, eps, centered=True, debias=False, eps_in_sqrt=True)",
    "selective_transform": "train_only(inner, mask)",
    "set_to_zero": 'freeze("*")',
    "sign_sgd": "scale_by_sign() >> scale_by_learning_rate(learning_rate)",
    "stateless_with_tree_map": "stateless(f)",
    "trace": 'scale_by_momentum(decay, form="sum")',
    "zero_nans": "zero_nonfinite()",
}
"""The equivalent expression, in the argument names of gradtx."""

_NOTES: Final = {
    "inject_hyperparams": "hyperparameters are leaves already: tx.replace(learning_rate=...), or in a TrainState "
    "tunable(adam(learning_rate)) and tune(state, learning_rate=...)",
    "named_chain": "stages already have names: gradtx.find(state, name)",
    "selective_transform": "the mask selects the trained leaves, freeze_mask the frozen ones",
    "stateless_with_tree_map": "f gets the trees: stateless(lambda updates, params: jax.tree.map(f, updates, params))",
}

_OTHERS: Final = {
    "a loss is any function of the params; optax.losses has this one": """
convex_kl_divergence cosine_distance cosine_similarity ctc_loss ctc_loss_with_forward_probs
generalized_kl_divergence hinge_loss huber_loss kl_divergence l2_loss log_cosh losses ntxent
safe_softmax_cross_entropy sigmoid_binary_cross_entropy sigmoid_focal_loss smooth_labels softmax_cross_entropy
softmax_cross_entropy_with_integer_labels squared_error""",
    "stay with optax for it: optax.{name}(...), alone or in gradtx.chain": """
adan fromage keep_params_nonnegative noisy_sgd normalize_by_update_norm novograd optimistic_adam
optimistic_adam_v2 optimistic_gradient_descent polyak_sgd scale_by_adan
scale_by_distance_over_gradients scale_by_novograd scale_by_optimistic_gradient
scale_by_param_block_norm scale_by_polyak scale_by_sm3 sm3""",
    "a state is plain dicts by name: gradtx.find(state, name)": """
AdaptiveGradClipState AddDecayedWeightsState AddNoiseState ApplyEvery ApplyIfFiniteState ClipByGlobalNormState
ClipState ConditionallyMaskState ConditionallyTransformState EmaState FactoredState InjectHyperparamsState
InjectStatefulHyperparamsState LookaheadState MaskedNode MaskedState MonitorState MultiStepsState
MultiTransformState NonNegativeParamsState PartitionState ScaleByAdaDeltaState ScaleByAdamState ScaleByAdanState
ScaleByAmsgradState ScaleByBacktrackingLinesearchState ScaleByBeliefState ScaleByLBFGSState ScaleByLionState
ScaleByNovogradState ScaleByRStdDevState ScaleByRmsState ScaleByRpropState ScaleByRssState ScaleBySM3State
ScaleByScheduleState ScaleByTrustRatioState ScaleByZoomLinesearchState ScaleState SnapshotState TraceState
ZeroNansState ZoomLinesearchInfo init_empty_state""",
    "stay with optax for it": """
assignment bias_correction experimental matrix_inverse_pth_root multi_normal nnls per_example_global_norm_clip
per_example_layer_norm_clip perturbations projections safe_norm
safe_root_mean_squares scale_gradient update_infinity_moment update_moment update_moment_per_elem_norm""",
    "the params are the fast weights; gradtx.find(state, 'slow') gives the slow ones": "LookaheadParams",
    "accumulate(inner, every, skip_nonfinite=True)": "ShouldSkipUpdateFunction skip_not_finite",
    "a gradtx schedule is already a value": "WrappedSchedule",
    "jnp.where(count < 2**31 - 1, count + 1, count); gradtx counts by itself": "safe_increment safe_int32_increment",
    "what gradtx also has is at the top level: gradtx.schedule_free, gradtx.sam, "
    "gradtx.reduce_on_plateau, gradtx.split_real_and_imaginary, gradtx.muon, gradtx.sophia; for the rest "
    "stay with optax.contrib": "contrib",
    "any hyperparameter may be a schedule; for one with a state of its own stay with optax": (
        "inject_stateful_hyperparams"
    ),
    "averages of the params are wrappers: gradtx.exponential_averaging(inner, decay, debias=False), with "
    "decay = 1 - step_size; for a target network stay with optax": "incremental_update",
    "gradtx.monitor(inner) keeps norms and rates; for other measures stay with optax": "measure_with_ema snapshot",
    "gradtx.accumulate(inner, every), or gradtx.minimize with a batch_size": "microbatch microbatching",
    "jnp.where on the count; for a target network stay with optax": "periodic_update",
    "gradtx.landscape.lanczos(operator)": "power_iteration",
    "gradtx.landscape: hessian, fisher, diagonal": "second_order",
    "a clip, such as gradtx.clip_by_global_norm; to skip the whole step stay with optax": "skip_large_updates",
    "what gradtx also has is at the top level: gradtx.masked, gradtx.accumulate, gradtx.partition": "transforms",
    "the state is plain dicts: jax.tree.map over gradtx.find(state, name); for shardings "
    "gradtx.state_sharding(tx, params)": "tree_map_params",
    "jax.tree and gradtx.global_norm; gradtx.find(state, name) for tree_get": "tree_utils",
    "every gradtx transform takes the extra arguments that it names": "with_extra_args_support",
}
"""What to write instead of the others."""

HINTS: Final[dict[str, str]] = {
    **{name: hint.format(name=name) for hint, names in _OTHERS.items() for name in names.split()},
    **{name: "; ".join([made, *([_NOTES[name]] if name in _NOTES else [])]) for name, made in MADE.items()},
}
"""By optax's name, what to write instead."""


ARGUMENTS: Final = {
    "inner, the first argument": "accumulate.opt lookahead.fast_optimizer sam.optimizer "
    "schedule_free.base_optimizer train_only.optimizer",
    "every": "accumulate.every_k_schedule",
    "skip_nonfinite=True": "accumulate.should_skip_update_fn",
    "stored(accumulate(...), dtype, ('accumulated',))": "accumulate.accumulator_dtype",
    "mask": "adadelta.weight_decay_mask sophia.weight_decay_mask",
    "key, an int": "add_noise.seed",
    "leave it out, or write scale_by_momentum(b1, form=...) + scale_by_rms(b2, eps, maximum='corrected', "
    "debias=...) >> scale_by_learning_rate(learning_rate)": "amsgrad.bias_correction_mu amsgrad.bias_correction_nu",
    "leave it out; the function gets the count": (
        "conditionally.forward_extra_args conditionally_mask.forward_extra_args"
    ),
    "mask, which is for both the decay and the ratio; for two masks see gradtx.lars": (
        "lars.weight_decay_mask lars.trust_ratio_mask"
    ),
    "leave it out; trees like the params are always masked": (
        "masked.mask_compatible_extra_args partition.mask_compatible_extra_args"
    ),
    "leave it out; norms and rates are recorded; for other measures stay with optax": "monitor.measures",
    "leave it out; without it the method is adam": "nadam.nesterov",
    "leave it out; without it the method is adamw": "nadamw.nesterov",
    "decay_rate, of 1 - t^(-decay_rate); for others stay with optax": "scale_by_factored_rms.decay_rate_fn",
    "rho, the radius": "sam.adv_optimizer",
    "leave it out; both gradients are taken in one update": "sam.sync_period sam.reset_state sam.opaque_mode",
    "leave it out; grad_fn takes the mean over devices": "sam.batch_axis_name",
    "leave it out for 'hard'; for the others stay with optax": "scale_by_lion.mode scale_by_lion.smooth_beta",
    "debias": "scale_by_rms.bias_correction",
    "leave it out; the gradient at the new params is always kept": "scale_by_backtracking_linesearch.store_grad",
    "leave it out; gradtx.metrics(state) has the evaluations": (
        "scale_by_backtracking_linesearch.verbose scale_by_zoom_linesearch.verbose"
    ),
    'gradtx.stored(tx, dtype) around it; fields=("z",) stores z alone, as optax does': (
        "schedule_free.state_dtype schedule_free_adamw.state_dtype schedule_free_sgd.state_dtype"
    ),
    "learning_rate=warmup_constant_schedule(0.0, learning_rate, warmup_steps)": (
        "schedule_free_adamw.warmup_steps schedule_free_sgd.warmup_steps"
    ),
    "max_consecutive": "skip_nonfinite.max_consecutive_errors",
    "estimator, 'hutchinson' or 'gauss_newton_bartlett'": "sophia.hessian_diagonal_fn",
    "leave it out; the win rate is (abs(u) < clip_threshold).mean() for what scale_by_sophia returns": (
        "sophia.verbose sophia.print_win_rate_every_n_steps"
    ),
    "mask, the opposite: it selects the trained leaves": "train_only.freeze_mask",
}
"""What to write instead of the arguments that only optax's functions have."""

REMOVED: Final = {
    "fewest": "min_leaves",
    "state_dtype": 'gradtx.stored(tx, dtype) around any transform; fields=("mu",) stores some of its statistics',
}
"""By name, the arguments that version 0.1 had, and what to write instead."""

RULE: Final = {
    "clips": 'traits=("clips",)',
    "complex": 'traits=("real",) for complex=False',
    "descends": 'traits=("descends",)',
    "discrete": 'traits=("integers",)',
    "final": 'place="last"',
    "first": 'place="first"',
    "guards": 'traits=("nonfinite",)',
    "idle": 'traits=("idle",)',
    "nonnegative": "fields={name: fields.squares()}",
    "observable": 'traits=("unobserved",) for observable=False',
    "random": 'fields={"key": fields.key(seed)}',
    "reads": "reach=",
    "state_dtype": "gradtx.stored(tx, dtype) around the transform",
    "statistics": "fields={name: fields.like()}",
    "waits": 'acts="sometimes"',
    "whole_leaves": 'traits=("leaves",)',
}
"""By name, the arguments of `Rule` that version 0.1 had, and what to write instead."""


def of_rule(error: TypeError) -> str:
    """The replacement for an argument of `Rule` that an error is about, or ""."""
    words = str(error)
    found = [name for name in RULE if "Rule.__init__" in words and f"argument {name!r}" in words]
    return f"Version 0.1 had {found[0]}. Instead: {RULE[found[0]]}." if found else ""


def argument(function: str, name: str) -> str:
    """The hint in an error about an argument that only optax's function has, or that version 0.1 had, or ""."""
    for hint, places in ARGUMENTS.items():
        if f"{function}.{name}" in places.split():
            return f" optax has it. Instead: {hint}."
    return f" Version 0.1 had it. Instead: {REMOVED[name]}." if name in REMOVED else ""


ATTRIBUTES: Final = {
    "gradient_transformation": "leave it out: an optimizer already is one",
    "has_updated": "gradtx.find(state, 'micro_step') == 0",
}
"""By attribute or method of optax's objects, what to write instead."""


def missing(name: str, caller: types.FrameType) -> AttributeError | ImportError:
    """The error for a name that gradtx does not have.

    In `from gradtx import name` Python would drop the text of an AttributeError.
    """
    import dis  # imported here, because it takes longer than this whole file

    if name in ("landscape", "plot", "testing"):
        hint = f" before it is imported: import gradtx.{name}."
    else:
        hint = f", which optax has. Instead: {HINTS[name]}." if name in HINTS else "."
    imports = dis.opname[caller.f_code.co_code[caller.f_lasti]] == "IMPORT_FROM"
    return (ImportError if imports else AttributeError)(f"gradtx has no {name!r}{hint}", name=name)
