"""gradtx: an optimizer is a value."""

import typing as _typing

# The language
from gradtx.core.annotations import Dtype as Dtype
from gradtx.core.annotations import Finite as Finite
from gradtx.core.annotations import Fraction as Fraction
from gradtx.core.annotations import Hyper as Hyper
from gradtx.core.annotations import NonNegative as NonNegative
from gradtx.core.annotations import NonNegativeInt as NonNegativeInt
from gradtx.core.annotations import Positive as Positive
from gradtx.core.annotations import PositiveInt as PositiveInt
from gradtx.core.annotations import Unit as Unit
from gradtx.core.apply import apply_updates as apply_updates
from gradtx.core.apply import tree_equal as tree_equal
from gradtx.core.buckets import packed as packed
from gradtx.core.buckets import unpacked as unpacked
from gradtx.core.carrying import CarryOver as CarryOver
from gradtx.core.carrying import carry_over as carry_over
from gradtx.core.checked import checked as checked
from gradtx.core.compose import chain as chain
from gradtx.core.compose import identity as identity
from gradtx.core.compose import join as join
from gradtx.core.compose import stateless as stateless
from gradtx.core.config import from_config as from_config
from gradtx.core import fields as fields
from gradtx.core.sums import largest as largest
from gradtx.core.sums import norm as norm
from gradtx.core.formula import per_element as per_element
from gradtx.core.formula import per_leaf as per_leaf
from gradtx.core.formula import per_matrix as per_matrix
from gradtx.core.formula import per_tree as per_tree
from gradtx.core.sums import total as total
from gradtx.core.foreign import foreign as foreign
from gradtx.core.foreign import to_optax as to_optax
from gradtx.core.protocol import EmptyState as EmptyState
from gradtx.core.protocol import GradientTransformation as GradientTransformation
from gradtx.core.protocol import GradientTransformationExtraArgs as GradientTransformationExtraArgs
from gradtx.core.protocol import MaskOrFn as MaskOrFn
from gradtx.core.protocol import OptState as OptState
from gradtx.core.protocol import ScalarOrSchedule as ScalarOrSchedule
from gradtx.core.protocol import TransformInitFn as TransformInitFn
from gradtx.core.protocol import TransformUpdateExtraArgsFn as TransformUpdateExtraArgsFn
from gradtx.core.protocol import TransformUpdateFn as TransformUpdateFn
from gradtx.core.record import registry as registry
from gradtx.core.dimensions import MuonDimensionNumbers as MuonDimensionNumbers
from gradtx.core.dimensions import hidden_matrices as hidden_matrices
from gradtx.core.routing import as_matrices as as_matrices
from gradtx.core.routing import by_shape as by_shape
from gradtx.core.routing import partition as partition
from gradtx.core.schedule import Rate as Rate
from gradtx.core.schedule import Schedule as Schedule
from gradtx.core.schedule import custom_schedule as custom_schedule
from gradtx.core.schedule import schedule as schedule
from gradtx.core.state import find as find
from gradtx.core.state import set_step_count as set_step_count
from gradtx.core.state import state_bytes as state_bytes
from gradtx.core.state import state_sharding as state_sharding
from gradtx.core.state import step_count as step_count
from gradtx.core.storage import stored as stored
from gradtx.core.rule import Params as Params
from gradtx.core.rule import Rule as Rule
from gradtx.core.rule import Updates as Updates
from gradtx.core.transform import Transform as Transform
from gradtx.core.elementary import transform as transform
from gradtx.core.tunable import tunable as tunable
from gradtx.core.views import View as View
from gradtx.core.views import through as through
from gradtx.core.tunable import tune as tune

# Schedules
from gradtx.schedules.curves import constant_schedule as constant_schedule
from gradtx.schedules.curves import cosine_decay_schedule as cosine_decay_schedule
from gradtx.schedules.pieces import cosine_onecycle_schedule as cosine_onecycle_schedule
from gradtx.schedules.curves import exponential_decay as exponential_decay
from gradtx.schedules.curves import inverse_sqrt_schedule as inverse_sqrt_schedule
from gradtx.schedules.curves import inverse_time_schedule as inverse_time_schedule
from gradtx.schedules.pieces import join_schedules as join_schedules
from gradtx.schedules.pieces import linear_onecycle_schedule as linear_onecycle_schedule
from gradtx.schedules.curves import linear_schedule as linear_schedule
from gradtx.schedules.pieces import piecewise_constant_schedule as piecewise_constant_schedule
from gradtx.schedules.pieces import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from gradtx.schedules.curves import polynomial_schedule as polynomial_schedule
from gradtx.schedules.pieces import sgdr_schedule as sgdr_schedule
from gradtx.schedules.curves import warmup_constant_schedule as warmup_constant_schedule
from gradtx.schedules.curves import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from gradtx.schedules.curves import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from gradtx.schedules.curves import warmup_stable_decay_schedule as warmup_stable_decay_schedule

# Directions
from gradtx.averages import ema as ema
from gradtx.momentum import ema_nesterov as ema_nesterov
from gradtx.momentum import scale_by_momentum as scale_by_momentum
from gradtx.momentum import scale_by_nadam_momentum as scale_by_nadam_momentum
from gradtx.momentum import scale_by_two_momenta as scale_by_two_momenta

# Scalings
from gradtx.adaptive import scale_by_adadelta as scale_by_adadelta
from gradtx.adaptive import scale_by_adagrad as scale_by_adagrad
from gradtx.adaptive import scale_by_adam as scale_by_adam
from gradtx.adaptive import scale_by_infinity_norm as scale_by_infinity_norm
from gradtx.adaptive import scale_by_lion as scale_by_lion
from gradtx.adaptive import scale_by_rms as scale_by_rms

from gradtx.matrices.attention import qk_clip as qk_clip
from gradtx.matrices.newton_schulz import polar_express as polar_express
from gradtx.matrices.orthogonal import orthogonalize as orthogonalize
from gradtx.matrices.orthogonal import scale_by_dion2 as scale_by_dion2
from gradtx.matrices.orthogonal import scale_by_fans as scale_by_fans
from gradtx.matrices.orthogonal import scale_by_lmo as scale_by_lmo
from gradtx.matrices.orthogonal import scale_by_muon as scale_by_muon
from gradtx.matrices.orthogonal import scale_by_neuron_rms as scale_by_neuron_rms
from gradtx.matrices.orthogonal import scale_by_shape as scale_by_shape
from gradtx.matrices.factored import scale_by_confidence as scale_by_confidence
from gradtx.matrices.factored import scale_by_factored_rms as scale_by_factored_rms
from gradtx.matrices.factored import scale_by_param_block_rms as scale_by_param_block_rms
from gradtx.matrices.low_rank import low_rank as low_rank
from gradtx.matrices.low_rank import scale_by_bias_correction as scale_by_bias_correction
from gradtx.matrices.low_rank import scale_by_galore as scale_by_galore
from gradtx.matrices.low_rank import scale_by_low_rank as scale_by_low_rank
from gradtx.matrices.grafting import graft as graft
from gradtx.matrices.kronecker.blocks import in_blocks as in_blocks
from gradtx.matrices.kronecker.eigenbasis import in_eigenbasis as in_eigenbasis
from gradtx.matrices.kronecker.eigenbasis import skip_first_step as skip_first_step
from gradtx.matrices.kronecker.kron import scale_by_kron as scale_by_kron
from gradtx.matrices.kronecker.shampoo import scale_by_shampoo as scale_by_shampoo
from gradtx.matrices.kronecker.soap import scale_by_kl_shampoo as scale_by_kl_shampoo
from gradtx.matrices.kronecker.soap import scale_by_soap as scale_by_soap
from gradtx.matrices.radius import brake_radius as brake_radius
from gradtx.matrices.radius import floor_updates as floor_updates
from gradtx.matrices.radius import hyperball as hyperball
from gradtx.matrices.radius import pin_radius as pin_radius
from gradtx.relatives import scale_by_belief as scale_by_belief
from gradtx.relatives import scale_by_radam as scale_by_radam
from gradtx.relatives import scale_by_rectified_rms as scale_by_rectified_rms
from gradtx.relatives import scale_by_rprop as scale_by_rprop
from gradtx.relatives import scale_by_yogi as scale_by_yogi

# Curvature
from gradtx.curvature.least_squares import levenberg_marquardt as levenberg_marquardt
from gradtx.curvature.least_squares import scale_by_gauss_newton as scale_by_gauss_newton
from gradtx.curvature.linesearches import scale_by_backtracking_linesearch as scale_by_backtracking_linesearch
from gradtx.curvature.linesearches import scale_by_hager_zhang_linesearch as scale_by_hager_zhang_linesearch
from gradtx.curvature.linesearches import scale_by_zoom_linesearch as scale_by_zoom_linesearch
from gradtx.curvature.linesearches import value_and_grad_from_state as value_and_grad_from_state
from gradtx.curvature.newton import newton_cg as newton_cg
from gradtx.curvature.nonlinear_cg import scale_by_nonlinear_cg as scale_by_nonlinear_cg
from gradtx.curvature.quasi_newton import scale_by_lbfgs as scale_by_lbfgs
from gradtx.curvature.stochastic import scale_by_adahessian as scale_by_adahessian
from gradtx.curvature.stochastic import scale_by_hessian_diagonal as scale_by_hessian_diagonal
from gradtx.curvature.stochastic import scale_by_hessian_rms as scale_by_hessian_rms
from gradtx.curvature.stochastic import scale_by_sophia as scale_by_sophia

# Effects
from gradtx.effects.clipping import adaptive_grad_clip as adaptive_grad_clip
from gradtx.effects.clipping import clip as clip
from gradtx.effects.clipping import clip_by_block_rms as clip_by_block_rms
from gradtx.effects.clipping import clip_by_global_norm as clip_by_global_norm
from gradtx.effects.clipping import clip_by_leaf_norm as clip_by_leaf_norm
from gradtx.effects.clipping import clip_by_norm_growth as clip_by_norm_growth
from gradtx.effects.clipping import clip_by_percentile as clip_by_percentile
from gradtx.effects.decay import add_decayed_weights as add_decayed_weights
from gradtx.effects.decay import decay_afterwards as decay_afterwards
from gradtx.effects.layerwise import centralize as centralize
from gradtx.effects.layerwise import scale_by_trust_ratio as scale_by_trust_ratio
from gradtx.effects.noise import add_noise as add_noise
from gradtx.effects.plateau import reduce_on_plateau as reduce_on_plateau
from gradtx.effects.scaling import scale as scale
from gradtx.effects.scaling import scale_by_learning_rate as scale_by_learning_rate
from gradtx.effects.scaling import scale_by_schedule as scale_by_schedule
from gradtx.effects.scaling import scale_by_sign as scale_by_sign
from gradtx.tree import global_norm as global_norm

# Methods
from gradtx.optimizers.adagrad_family import adadelta as adadelta
from gradtx.optimizers.adagrad_family import adagrad as adagrad
from gradtx.optimizers.adagrad_family import rmsprop as rmsprop
from gradtx.optimizers.adam_family import adam as adam
from gradtx.optimizers.adam_family import adamax as adamax
from gradtx.optimizers.adam_family import adamw as adamw
from gradtx.optimizers.adam_family import amsgrad as amsgrad
from gradtx.optimizers.adam_family import nadam as nadam
from gradtx.optimizers.adam_family import nadamw as nadamw
from gradtx.optimizers.curvature_family import adahessian as adahessian
from gradtx.optimizers.curvature_family import gauss_newton as gauss_newton
from gradtx.optimizers.curvature_family import lbfgs as lbfgs
from gradtx.optimizers.curvature_family import nonlinear_cg as nonlinear_cg
from gradtx.optimizers.curvature_family import sophia as sophia
from gradtx.optimizers.descent import sgd as sgd
from gradtx.optimizers.factored_family import adafactor as adafactor
from gradtx.optimizers.factored_family import came as came
from gradtx.optimizers.layerwise_family import lamb as lamb
from gradtx.optimizers.layerwise_family import lars as lars
from gradtx.optimizers.orthogonal_family import dion2 as dion2
from gradtx.optimizers.orthogonal_family import muon as muon
from gradtx.optimizers.orthogonal_family import normuon as normuon
from gradtx.optimizers.orthogonal_family import scion as scion
from gradtx.optimizers.low_rank_family import apollo as apollo
from gradtx.optimizers.low_rank_family import apollo_mini as apollo_mini
from gradtx.optimizers.low_rank_family import galore as galore
from gradtx.optimizers.preconditioned_family import kl_shampoo as kl_shampoo
from gradtx.optimizers.preconditioned_family import kron as kron
from gradtx.optimizers.preconditioned_family import shampoo as shampoo
from gradtx.optimizers.preconditioned_family import soap as soap
from gradtx.optimizers.relatives_family import adabelief as adabelief
from gradtx.optimizers.relatives_family import radam as radam
from gradtx.optimizers.relatives_family import rprop as rprop
from gradtx.optimizers.relatives_family import yogi as yogi
from gradtx.optimizers.sign_family import lion as lion
from gradtx.optimizers.sign_family import signum as signum

# Wrappers
from gradtx.wrappers.accumulation import accumulate as accumulate
from gradtx.wrappers.averaging import averaged_params as averaged_params
from gradtx.wrappers.averaging import exponential_averaging as exponential_averaging
from gradtx.wrappers.averaging import polyak_averaging as polyak_averaging
from gradtx.wrappers.averaging import stochastic_weight_averaging as stochastic_weight_averaging
from gradtx.wrappers.caution import cautious as cautious
from gradtx.wrappers.guards import conditionally as conditionally
from gradtx.wrappers.guards import conditionally_mask as conditionally_mask
from gradtx.wrappers.guards import skip_nonfinite as skip_nonfinite
from gradtx.wrappers.guards import zero_nonfinite as zero_nonfinite
from gradtx.wrappers.hyperparameters import hyperparameters as hyperparameters
from gradtx.wrappers.monitoring import metrics as metrics
from gradtx.wrappers.monitoring import monitor as monitor
from gradtx.wrappers.precision import kahan_summation as kahan_summation
from gradtx.wrappers.precision import loss_scaling as loss_scaling
from gradtx.wrappers.precision import master_weights as master_weights
from gradtx.wrappers.precision import stochastic_rounding as stochastic_rounding
from gradtx.wrappers.groups import Group as Group
from gradtx.wrappers.groups import Groups as Groups
from gradtx.wrappers.groups import freeze as freeze
from gradtx.wrappers.groups import groups as groups
from gradtx.wrappers.groups import masked as masked
from gradtx.wrappers.groups import train_only as train_only
from gradtx.wrappers.iterates import lookahead as lookahead
from gradtx.wrappers.iterates import schedule_free as schedule_free
from gradtx.wrappers.iterates import schedule_free_adamw as schedule_free_adamw
from gradtx.wrappers.iterates import schedule_free_sgd as schedule_free_sgd
from gradtx.wrappers.packing import in_buckets as in_buckets
from gradtx.wrappers.packing import pack as pack
from gradtx.wrappers.sharpness import sam as sam
from gradtx.wrappers.splitting import split_real_and_imaginary as split_real_and_imaginary

# Training
from gradtx.training.ending import Result as Result
from gradtx.training.grids import grid as grid
from gradtx.training.grids import log_uniform as log_uniform
from gradtx.training.grids import uniform as uniform
from gradtx.training.minibatches import Batches as Batches
from gradtx.training.minibatches import batches as batches
from gradtx.training.minibatches import num_batches as num_batches
from gradtx.training.minibatches import sample_batches as sample_batches
from gradtx.training.minibatches import take as take
from gradtx.training.minimization import minimize as minimize
from gradtx.training.sweeps import Best as Best
from gradtx.training.sweeps import SweepResult as SweepResult
from gradtx.training.sweeps import sweep as sweep

__version__ = "0.2.0"

if not _typing.TYPE_CHECKING:  # a type checker knows the names by itself

    def __getattr__(name: str) -> _typing.NoReturn:
        """Say what a name of optax is called here, or that a chapter is to be imported."""
        import sys

        from gradtx.core.elsewhere import missing

        raise missing(name, sys._getframe(1))
