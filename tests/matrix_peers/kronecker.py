"""SOAP, Shampoo and their KL forms: the author's, pytorch_optimizer's, Meta's and NVIDIA's."""

import importlib
import sys
import types
import typing
from typing import Any

import numpy as np

from tests.matrix_peers import casts
from tests.matrix_peers.orthogonal import of_torch
from tests.matrix_peers.running import Case, Values, torch_path
from tests.records import matrix_problem as problem

LR = 2.0**-5
EPS = 2.0**-10
NEMO = "emerging_optimizers.legacy_soap.soap"
SQUARE = ("square", "bias")
"""On other kernels the first basis has a null space, where any vector is right and each LAPACK takes its own.

The second gradient is the first, as SOAP has made no step: in its own basis it is diagonal, and the elements off the
diagonal are rounding over eps. With the default of 1e-8 two right answers agree only to 1e-9.
"""


def soap(*leaves: str, **arguments: Any) -> Case:
    return of_torch("soap", "SOAP", *(leaves or SQUARE), **{"lr": LR, "eps": EPS} | arguments)


def po_soap(**arguments: Any) -> Case:
    case = of_torch("pytorch_optimizer", "SOAP", *SQUARE, **{"lr": LR, "eps": EPS} | arguments)
    return case._replace(casts=casts.said("pytorch_optimizer.optimizer.soap"))


def kl_opt(*leaves: str, **arguments: Any) -> Case:
    """The authors' KL-Shampoo and KL-SOAP. They do not sort the eigenvectors that an average begins with."""
    return of_torch("optim.kl_opt", "KLOpt", *(leaves or ("square",)), **{"lr": LR, "eps": EPS} | arguments)


def nemo_module():
    """Its package wants Python 3.12 only for what is not needed here: the registry of names, `typing.override`."""
    if "emerging_optimizers" not in sys.modules:
        folder = next(path for path in sys.path if path.endswith("Emerging-Optimizers"))
        package, registry = types.ModuleType("emerging_optimizers"), types.ModuleType("emerging_optimizers.registry")
        package.__path__, package.registry = [f"{folder}/emerging_optimizers"], registry
        registry.register_optimizer = lambda name: lambda made: made
        sys.modules |= {"emerging_optimizers": package, "emerging_optimizers.registry": registry}
        typing.override = lambda method: method
    return importlib.import_module(NEMO)


def kl_update(leaf: str, beta: float, eps: float) -> Values:
    """One update of both factors for the first gradient. Factors, bases, eigenvalues are made up, some below eps."""

    def values():
        import torch

        g = problem.gradient(problem.params(leaf))[leaf]
        bases = [problem.factor(size, 1, 80 + size) for size in g.shape]
        eigenvalues = [10.0 ** -np.arange(size) for size in g.shape]
        start = [a @ a.T for a in (problem.factor(size, 3, 90 + size) for size in g.shape)]
        factors, by_rows = [torch.tensor(own) for own in start[::-1]], slice(None, None, -1)
        update = nemo_module().update_kronecker_factors_kl_shampoo
        mine = {"eigenbasis_list": bases, "eigvals_list": eigenvalues}
        theirs = {name: [torch.tensor(own) for own in both[by_rows]] for name, both in mine.items()}
        update(factors, torch.tensor(g.T), beta, **theirs, eps=eps)
        return {"bases": bases, "eigenvalues": eigenvalues, "start": start, "updated": factors[by_rows]}

    said = {"leaf": leaf, "shampoo_beta": beta, "eps": eps, "order": ["in", "out"]}
    return Values(f"{NEMO}.update_kronecker_factors_kl_shampoo", said, values)


def shampoo(
    *leaves: str,
    graft: str | None = None,
    graft_arguments: dict[str, Any] | None = None,
    preconditioner: str = "RootInvShampoo",
    exponents: dict[int, Any] | None = None,
    **arguments: Any,
) -> Case:
    """Meta's. Without `max_preconditioner_dim` below the size of a leaf it would make a vector of it."""
    module = "distributed_shampoo.distributed_shampoo"
    theirs = {"lr": LR, "max_preconditioner_dim": 8} | arguments
    unrotated = {"ignored_basis_change_dims": {1: [0]}}
    said = theirs | {"grafting": graft and [graft, graft_arguments or {}], "preconditioner": preconditioner}

    def build(weights):
        import distributed_shampoo as d
        import torch

        if preconditioner == "EigenvalueCorrectedShampoo":
            kinds, own = ("factor_matrix_eigenvectors_dtype", "corrected_eigenvalues_dtype"), dict(unrotated)
        else:
            kinds, own = ("inv_factor_matrix_dtype",), {"inverse_exponent_override": exponents or {}}
        own |= dict.fromkeys(("factor_matrix_dtype", *kinds), torch.float64)
        grafting = graft and getattr(d, f"{graft}PreconditionerConfig")(**graft_arguments or {})
        config = getattr(d, f"{preconditioner}PreconditionerConfig")(**own)
        return d.DistributedShampoo(
            list(weights.values()), **theirs, grafting_config=grafting, preconditioner_config=config
        )

    said |= {"inverse_exponent_override": exponents} if exponents else {}
    said |= unrotated if preconditioner == "EigenvalueCorrectedShampoo" else {}
    return Case("distributed_shampoo.DistributedShampoo", said, leaves, torch_path(build), casts.said(module))


def cases() -> dict[str, Case | Values]:
    ema = {"betas": (0.9, 0.95)}
    adam = {"graft": "Adam", "graft_arguments": {"beta2": 0.75, "epsilon": 1e-6}}
    late = {"precondition_frequency": 5, "start_preconditioning_step": 10}
    return {
        "soap: author": soap(),
        "soap: author, eps 1e-8": soap("square", eps=1e-8),
        "soap: author, f 1": soap(precondition_frequency=1, weight_decay=0.5),
        "soap: author, betas": soap("square", precondition_frequency=3, betas=(0.875, 0.75), shampoo_beta=0.5),
        "soap: author, normalize_grads": soap(normalize_grads=True),
        "soap: author, no correct_bias": soap(correct_bias=False, weight_decay=0.0),
        "soap: author, one side": soap("kernel", "wide", max_precond_dim=4, precondition_frequency=2),
        "soap: author, no side": soap("wide", max_precond_dim=2, weight_decay=0.0),
        "soap: pytorch_optimizer": po_soap(),
        "soap: meta": shampoo(*SQUARE, preconditioner="EigenvalueCorrectedShampoo", epsilon=EPS, **ema),
        "shampoo: meta": shampoo("kernel", "bias", epsilon=1e-6),
        "shampoo: meta, eps 1e-12": shampoo("square"),
        "shampoo: meta, beta2, f 5": shampoo(*SQUARE, precondition_frequency=5, epsilon=1e-3, **ema),
        "shampoo: meta, Adam graft, decay": shampoo("kernel", "bias", weight_decay=0.5, epsilon=1e-6, **adam, **ema),
        "shampoo: meta, Adam graft, start 10": shampoo("wide", "bias", epsilon=1e-6, **adam, **late, **ema),
        "shampoo: meta, no graft, start 10": shampoo("wide", epsilon=1e-6, **late),
        "shampoo: meta, SGD graft": shampoo("wide", epsilon=1e-3, graft="SGD", **ema),
        "shampoo: meta, AdaGrad graft": shampoo(
            "wide", epsilon=1e-3, graft="AdaGrad", graft_arguments={"epsilon": 1e-6}, **late
        ),
        "shampoo: meta, RMSprop graft": shampoo(
            "wide", epsilon=1e-3, graft="RMSprop", graft_arguments={"beta2": 0.75, "epsilon": 1e-6}, **late
        ),
        "shampoo: meta, exponents": shampoo("wide", "bias", epsilon=1e-3, exponents={2: 0.5, 1: 0.25}, **ema),
        "shampoo: meta, one side": shampoo("wide", epsilon=1e-3, exponents={2: {0: 0.0, 1: 0.5}}, **ema),
        "shampoo: meta, no bias correction": shampoo("wide", epsilon=1e-3, use_bias_correction=False, **ema),
        "shampoo: meta, beta1 0": shampoo("wide", epsilon=1e-3, betas=(0.0, 0.95)),
        "shampoo: meta, blocks of 3": shampoo("kernel", "bias", epsilon=1e-3, max_preconditioner_dim=3, **adam, **ema),
        "shampoo: meta, merged": shampoo("wide", epsilon=1e-3, max_preconditioner_dim=1024, **ema),
        "kl_shampoo: nemo, one update": kl_update("wide", beta=0.75, eps=1e-3),
        "kl_shampoo: author": kl_opt(),
        "kl_shampoo: author, f 1": kl_opt(precondition_frequency=1, betas=(0.5, 0.75), weight_decay=0.5),
        "kl_soap: author": kl_opt(using_klsoap=True),
        "kl_soap: author, f 3": kl_opt(using_klsoap=True, precondition_frequency=3, shampoo_beta=0.875),
    }
