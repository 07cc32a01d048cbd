"""What line searches, quasi-Newton methods and trust regions refuse."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

import gradtx
from tests.refusals import Refusal

ONES = jnp.ones(3)
V, T = ValueError, TypeError


def loss(w):
    return jnp.sum(w**2)


GIVEN = {"value": 3.0, "grad": 2 * ONES, "value_fn": loss, "grad_fn": jax.grad(loss), "residual_fn": jnp.sin}
ZOOM = gradtx.scale_by_zoom_linesearch(3)
SEARCHES = (ZOOM, gradtx.scale_by_backtracking_linesearch(3), gradtx.scale_by_hager_zhang_linesearch())
WHOLE = (*SEARCHES, gradtx.scale_by_lbfgs(), gradtx.newton_cg(), gradtx.levenberg_marquardt())


def step(tx, params=ONES, without=None, **changed):
    given = {name: value for name, value in GIVEN.items() if name in tx.facts.required and name != without}
    return tx.update(params, tx.init(params), params, **(given | changed))


def in_shards(tx):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    given = {name: value for name, value in GIVEN.items() if name in tx.facts.required}

    def update(w):
        grad = {"grad": w} if "grad" in given else {}
        return tx.update(w, tx.init(w), w, axis_name="rows", **(given | grad))[0]

    return jax.shard_map(update, mesh=mesh, in_specs=PartitionSpec("rows"), out_specs=PartitionSpec("rows"))(ONES)


def from_state(state):
    return gradtx.value_and_grad_from_state(loss)(ONES, state=state)


BOUNDS = "it must be a pair (lower, upper); None is no bound."
RESIDUALS = "they must be real floating-point arrays."
FROM_STATE = "needed: one line search, or another method that keeps the loss and its gradient. Use jax.value_and_grad."

REFUSALS = [
    *(
        Refusal(f"{tx.name} without {name}", lambda tx=tx, name=name: step(tx, without=name), T, name, "is missing")
        for tx in (*SEARCHES, gradtx.lbfgs(), gradtx.nonlinear_cg(), gradtx.newton_cg(), gradtx.gauss_newton())
        for name in sorted(tx.facts.required)
    ),
    Refusal(
        "data that the loss does not name",
        lambda: step(ZOOM, inputs=ONES),
        T,
        "scale_by_zoom_linesearch.update: unknown extra argument 'inputs'. It accepts: grad, value, value_fn, and what "
        "value_fn names. Leave it out",
    ),
    Refusal(
        "residuals that are missing",
        lambda: step(gradtx.levenberg_marquardt(), without="residual_fn"),
        T,
        "gradtx.levenberg_marquardt.update: the extra argument 'residual_fn' is missing. Pass residual_fn=... to upd",
    ),
    *(
        Refusal(f"shards of {tx.name}", lambda tx=tx: in_shards(tx), V, f"gradtx.{tx.name}: it needs whole leaves")
        for tx in (*WHOLE, gradtx.scale_by_gauss_newton())
    ),
    *(
        Refusal(f"complex params of {tx.name}", lambda tx=tx: tx.init(jnp.ones(2, jnp.complex64)), T, "is complex")
        for tx in (
            gradtx.newton_cg(),
            gradtx.levenberg_marquardt(),
            gradtx.gauss_newton(),
            gradtx.lbfgs(bounds=(0.0, 1.0)),
            ZOOM.replace(bounds=(0.0, 1.0)),
        )
    ),
    Refusal(
        "another gradient",
        lambda: step(ZOOM, grad=ONES[:2]),
        V,
        "gradtx.scale_by_zoom_linesearch: grad do not match params: at the root, grad has shape (2,), params (3,)",
    ),
    Refusal("another tree of gradients", lambda: step(ZOOM, grad={"a": ONES}), V, "grad do not match params"),
    *(
        Refusal(f"bounds that are no pair of {tx.name}", lambda tx=tx: step(tx), T, "bounds is 3.0", BOUNDS)
        for tx in (gradtx.scale_by_lbfgs(bounds=3.0), *(each.replace(bounds=3.0) for each in SEARCHES))
    ),
    Refusal("three bounds", lambda: step(ZOOM.replace(bounds=(0.0, 1.0, 2.0))), T, "(0.0, 1.0, 2.0)", BOUNDS),
    Refusal(
        "bounds of another shape",
        lambda: step(gradtx.scale_by_lbfgs(bounds=(jnp.zeros(2), None))),
        V,
        "gradtx.scale_by_lbfgs: the lower bound is",
        "it must be a number, or a tree like the params whose arrays have their shapes",
    ),
    Refusal(
        "bounds of another tree", lambda: step(ZOOM.replace(bounds=(None, {"a": 1.0}))), V, "the upper bound is {'a'"
    ),
    Refusal(
        "bounds that the search does not keep to",
        lambda: gradtx.lbfgs(linesearch=gradtx.scale(0.1), bounds=(0.0, None)),
        V,
        "gradtx.lbfgs: bounds are given, and linesearch is scale(step_size=0.1), which ignores them",
    ),
    Refusal(
        "a memory of 0", lambda: gradtx.lbfgs(memory_size=0), V, "gradtx.lbfgs: memory_size is 0; it must be in [1"
    ),
    Refusal("another method", lambda: gradtx.nonlinear_cg("newton"), V, "'newton'", "'polak_ribiere', 'hager_zhang'"),
    Refusal("another guess", lambda: ZOOM.replace(initial_guess_strategy="two"), V, "'two'; allowed: 'one', 'keep'"),
    Refusal("no evaluations", lambda: gradtx.scale_by_zoom_linesearch(0), V, "max_linesearch_steps is 0", "[1, inf)"),
    Refusal("c1 of 1", lambda: ZOOM.replace(slope_rtol=1.0), V, "slope_rtol is 1.0", "[0, 1)"),
    Refusal("c2 below 0", lambda: ZOOM.replace(curv_rtol=-0.5), V, "curv_rtol is -0.5", "[0, inf]"),
    Refusal(
        "steps that never grow", lambda: ZOOM.replace(increase_factor=0.0), V, "increase_factor is 0.0", "(0, inf)"
    ),
    Refusal("a radius of 0", lambda: gradtx.newton_cg(0.0), V, "gradtx.newton_cg: initial_radius is 0.0", "(0, inf)"),
    *(
        Refusal(
            f"{tx.name} after a transform of the gradients",
            lambda tx=tx: gradtx.clip(1.0) >> tx,
            T,
            f"{tx!r} cannot come after clip(max_delta=1.0): it takes the gradients as they are. Put it first.",
        )
        for tx in (
            gradtx.newton_cg(),
            gradtx.gauss_newton(),
            gradtx.levenberg_marquardt(),
            gradtx.skip_nonfinite(gradtx.newton_cg(), 3),
        )
    ),
    *(
        Refusal(
            f"a loss of two numbers for {tx.name}",
            lambda tx=tx: step(tx, value=jnp.ones(2)),
            V,
            f"gradtx.{tx.name}: value has shape (2,); it must be one number, the loss at the params.",
        )
        for tx in (*SEARCHES, gradtx.newton_cg())
    ),
    Refusal(
        "bounds that cross",
        lambda: step(ZOOM.replace(bounds=(1.0, 0.0))),
        V,
        "gradtx.scale_by_zoom_linesearch: bounds at the root: the lower bound 1.0 is above the upper one, 0.0. Swap",
    ),
    Refusal(
        "a number and a tree of bounds that cross",
        lambda: step(ZOOM.replace(bounds=(1.0, {"a": 0.0})), {"a": ONES}, grad={"a": ONES}),
        V,
        "bounds at ['a']: the lower bound 1.0 is above the upper one, 0.0. Swap them.",
    ),
    Refusal(
        "arrays of bounds that cross",
        lambda: step(gradtx.scale_by_lbfgs(bounds=({"a": jnp.ones(2)}, {"a": jnp.array([2.0, 0.5])})), {"a": ONES[:2]}),
        V,
        "gradtx.scale_by_lbfgs: bounds at ['a']: the lower bound [1. 1.] is above the upper one, [2.  0.5]. Swap them.",
    ),
    Refusal("no products", lambda: gradtx.newton_cg(max_cg_steps=0), V, "max_cg_steps is 0", "[1, inf), or None"),
    Refusal(
        "damping below 0", lambda: gradtx.gauss_newton(-1.0), V, "gradtx.gauss_newton: damping is -1.0", "[0, inf)"
    ),
    Refusal("a size below 0", lambda: gradtx.levenberg_marquardt(dense_below=-1), V, "dense_below is -1", "[0, inf)"),
    *(
        Refusal(f"{tx.name} without params", lambda tx=tx: tx.update(ONES, tx.init(ONES)), V, "params are missing")
        for tx in (gradtx.scale_by_lbfgs(), gradtx.scale_by_nonlinear_cg())
    ),
    Refusal(
        "complex residuals",
        lambda: step(gradtx.levenberg_marquardt(), residual_fn=lambda w: jax.lax.complex(w, w)),
        T,
        "gradtx.levenberg_marquardt: the residuals at the root are complex64",
        f"{RESIDUALS} Return the real and imaginary parts.",
    ),
    Refusal(
        "residuals that are integers",
        lambda: step(gradtx.scale_by_gauss_newton(), residual_fn=lambda w: {"a": jnp.arange(3)}),
        T,
        "gradtx.scale_by_gauss_newton: the residuals at ['a'] are int32",
        RESIDUALS,
    ),
    Refusal(
        "residuals that are no arrays",
        lambda: step(gradtx.scale_by_gauss_newton(), residual_fn=lambda w: [1.0]),
        T,
        "the residuals at [0] are float",
        RESIDUALS,
    ),
    Refusal("the state of no search", lambda: from_state({}), V, "the state has no entries", FROM_STATE),
    Refusal("the state of Adam", lambda: from_state(gradtx.adam(0.1).init(ONES)), V, "scale_by_rms", FROM_STATE),
    Refusal(
        "the state of two searches",
        lambda: from_state((ZOOM >> ZOOM).init(ONES)),
        V,
        "the state has scale_by_zoom_linesearch, scale_by_zoom_linesearch_2",
        FROM_STATE,
    ),
    Refusal(
        "searches at some steps", lambda: gradtx.conditionally(gradtx.lbfgs(), loss), T, "which has a learning rate"
    ),
]
