"""PSGD Kron: psgd-jax, with its own probes, which are written down."""

import sys
import types
from typing import Any

import numpy as np

from tests.matrix_peers import casts
from tests.matrix_peers.running import Case, Values, optax_path
from tests.records import matrix_problem as problem

LR = 2.0**-5
LEAVES = ("bias", "wide")
"""In the order of JAX's tree, in which the probes are drawn."""


def module():
    """psgd-jax names a module of optax that has gone, and uses nothing of it."""
    import optax

    if not hasattr(optax._src, "clipping"):
        optax._src.clipping = sys.modules["optax._src.clipping"] = types.ModuleType("optax._src.clipping")
    from psgd_jax import kron

    return kron


def draws(count: int) -> tuple[float, dict[str, np.ndarray]]:
    """The number that decides on balancing (below 0.01) and the probes of its update after `count` steps."""
    import jax

    key = jax.random.fold_in(jax.random.PRNGKey(5318008), count)
    _, key = jax.random.split(key)
    key, balancing = jax.random.split(key)
    key, probing = jax.random.split(key)
    keys = jax.random.split(probing, len(LEAVES))
    probes = {name: jax.random.normal(k, problem.SHAPES[name]) for name, k in zip(LEAVES, keys)}
    return float(jax.random.uniform(balancing)), {name: np.asarray(v) for name, v in probes.items()}


def probes() -> dict[str, Any]:
    made = [draws(count) for count in range(problem.STEPS)]
    by_leaf = {name: [own[name].ravel() for _, own in made] for name in LEAVES}
    return by_leaf | {"balances after steps": [count for count, (u, _) in enumerate(made) if u < 0.01]}


def kron(*, balance: bool = False, schedule: dict[str, float] | None = None, **arguments: Any) -> Case:
    """`balance`: at each update, instead of by chance. `schedule`: of the probability."""
    theirs = {"learning_rate": LR} | arguments
    said = theirs | ({"balance": "at each update"} if balance else {})
    said |= {"preconditioner_update_probability": ["precond_update_prob_schedule", schedule]} if schedule else {}

    def build():
        import jax

        made = module()
        chosen = (
            {"preconditioner_update_probability": made.precond_update_prob_schedule(**schedule)} if schedule else {}
        )
        chance = types.SimpleNamespace(**vars(jax.random) | ({"uniform": lambda key: 0.0} if balance else {}))
        made.jax = types.SimpleNamespace(**{name: getattr(jax, name) for name in dir(jax)} | {"random": chance})
        return made.kron(**theirs, **chosen)

    return Case("psgd_jax.kron", said, LEAVES, optax_path(build), casts.said("psgd_jax.kron"))


def factors(name: str, diagonal: tuple[bool, ...]) -> list[np.ndarray]:
    """Some factors that an update may start from: triangles, or diagonals."""
    found = []
    for axis, (size, flat) in enumerate(zip(problem.SHAPES[name], diagonal)):
        own = np.eye(size) + 0.25 * np.triu(problem.scattered((size, size), 60 + axis))
        found.append(own.diagonal().copy() if flat else own)
    return found


def update(name: str, diagonal: tuple[bool, ...], **arguments: Any) -> Values:
    """One update of the factors for the first gradient and the first probe, and the gradient preconditioned by them."""

    def values():
        import jax.numpy as jnp

        made, g = module(), jnp.array(problem.gradient(problem.params(name))[name])
        v, own = jnp.array(draws(0)[1][name]), [jnp.array(q) for q in factors(name, diagonal)]
        init = {"scale": 1.0, "max_size": 8192, "min_ndim_triangular": 2, "memory_save_mode": None, "dtype": None}
        start, expressions = made._init_Q_exprs(g, **init | arguments)
        if [q.ndim == 1 for q in start] != list(diagonal):
            raise ValueError(f"{name}, {arguments}: other factors are diagonal")
        found = made._update_precond(own, g, made._conjB(own, g, v), expressions, 0.1)
        preconditioned = made._precond_grad(found, g, expressions)
        return {"start": own, "updated": found, "preconditioned": preconditioned}

    return Values("psgd_jax.kron._update_precond", {"leaf": name, "precond_lr": 0.1} | arguments, values)


def bound() -> Values:
    def values():
        import jax.numpy as jnp

        matrices = {f"factor {key}": problem.factor(5, 10, key) for key in (1, 2, 3)} | {"zero": np.zeros((5, 5))}
        return {name: float(module()._norm_lower_bound(jnp.array(own @ own.T))) for name, own in matrices.items()}

    return Values("psgd_jax.kron._norm_lower_bound", {"of": "a aᵀ, a = factor(5, 10, key)"}, values)


def cases() -> dict[str, Case | Values]:
    annealed = {"max_prob": 1.0, "min_prob": 0.1, "decay": 0.1, "flat_start": 5}
    return {
        "kron: probes": Values("psgd_jax.kron", {"leaves": LEAVES}, probes),
        "kron: norm lower bound": bound(),
        "kron: one update": update("wide", (False, False)),
        "kron: one update, one_diag": update("wide", (False, True), memory_save_mode="one_diag"),
        "kron: one update, all_diag": update("wide", (True, True), memory_save_mode="all_diag"),
        "kron: one update, a vector": update("bias", (True,)),
        "kron: psgd-jax": kron(),
        "kron: psgd-jax, probability 0.3": kron(preconditioner_update_probability=0.3),
        "kron: psgd-jax, schedule": kron(schedule=annealed, b1=0.75),
        "kron: psgd-jax, one_diag": kron(memory_save_mode="one_diag"),
        "kron: psgd-jax, all_diag": kron(memory_save_mode="all_diag"),
        "kron: psgd-jax, max_size_triangular 4": kron(max_size_triangular=4, preconditioner_lr=0.5),
        "kron: psgd-jax, min_ndim_triangular 1": kron(min_ndim_triangular=1),
        "kron: psgd-jax, gradients into the update": kron(momentum_into_precond_update=False, weight_decay=0.5),
        "kron: psgd-jax, no momentum": kron(b1=0.0),
        "kron: psgd-jax, balanced": kron(balance=True, preconditioner_init_scale=0.125),
    }
