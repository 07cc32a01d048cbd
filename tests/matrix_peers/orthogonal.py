"""Muon and its kin: torch, Keller Jordan, optax, dion, NorMuon, Scion."""

from typing import Any

import numpy as np

from tests.matrix_peers import casts
from tests.matrix_peers.running import Case, Values, optax_path, to_torch, torch_path
from tests.records import matrix_problem as problem

LR = 2.0**-5
MATRICES = ("kernel", "wide")
YOU = [
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
]


def of_torch(module: str, name: str, *leaves: str, **arguments: Any) -> Case:
    """A torch optimizer that takes its leaves and arguments."""

    def build(weights):
        made = getattr(__import__(module, fromlist=[name]), name)
        return made(list(weights.values()), **arguments)

    return Case(f"{module}.{name}", arguments, leaves or MATRICES, torch_path(build), casts.said(module))


def torch_muon(*leaves: str, **arguments: Any) -> Case:
    case = of_torch("torch.optim", "Muon", *leaves, **{"lr": LR, "weight_decay": 0.0} | arguments)
    return case._replace(casts=casts.said("torch.optim._muon"))


def optax_muon(*leaves: str, numbers: dict[str, tuple] | None = None, **arguments: Any) -> Case:
    """`numbers`: reduction and output axes by leaf."""
    theirs = {"learning_rate": LR} | arguments

    def build():
        from optax import contrib

        chosen = {name: contrib.MuonDimensionNumbers(*own) for name, own in (numbers or {}).items()}
        return contrib.muon(**theirs, **({"muon_weight_dimension_numbers": chosen} if numbers else {}))

    said = theirs | ({"muon_weight_dimension_numbers": numbers} if numbers else {})
    return Case("optax.contrib.muon", said, leaves or MATRICES, optax_path(build))


def scion(norm: str, *leaves: str, **arguments: Any) -> Case:
    return of_torch("scion", "Scion", *leaves, norm=norm, **{"lr": LR, "momentum": 0.1} | arguments)


def dion(name: str, *leaves: str, group: dict[str, Any] | None = None, **arguments: Any) -> Case:
    """`group`: what it reads from a group of params."""

    def build(weights):
        import dion

        return getattr(dion, name)([{"params": list(weights.values()), **(group or {})}], **theirs)

    theirs = {"lr": LR} | arguments
    case = Case(f"dion.{name}", theirs | (group or {}), leaves or MATRICES, torch_path(build))
    modules = ("dion.polar_express", "dion.newton_schulz_triton", "dion.muon", "dion.dion2")
    return case._replace(casts=tuple(f"{module}: {own}" for module in modules for own in casts.said(module)))


def orthogonalized(module: str, name: str, **arguments: Any) -> Values:
    """What becomes of the first gradient, tall and wide, as a torch weight."""

    def values():
        function = getattr(__import__(module, fromlist=[name]), name)
        gradients = problem.gradient(problem.params(*MATRICES))
        return {leaf: function(to_torch(leaf, g), **arguments).numpy().T for leaf, g in gradients.items()}

    return Values(f"{module}.{name}", arguments, values, casts.said(module))


def optax_orthogonalized(**arguments: Any) -> Values:
    def values():
        import jax.numpy as jnp
        from optax import contrib

        gradients = problem.gradient(problem.params("kernel", "wide", "square"))
        coefficients = jnp.array((3.4445, -4.7750, 2.0315))
        function = contrib._muon.orthogonalize_via_newton_schulz
        return {leaf: np.asarray(function(jnp.array(g), coefficients, **arguments)) for leaf, g in gradients.items()}

    return Values("optax.contrib._muon.orthogonalize_via_newton_schulz", arguments, values)


def cases() -> dict[str, Case | Values]:
    hwio, layers = ((0, 1, 2), 3), (1, 2)
    return {
        "muon: torch": torch_muon(),
        "muon: torch, match_rms_adamw": torch_muon(adjust_lr_fn="match_rms_adamw"),
        "muon: torch, no nesterov": torch_muon("wide", nesterov=False),
        "muon: torch, decay": torch_muon("wide", weight_decay=0.5, momentum=0.875),
        "muon: torch, ns": torch_muon("wide", ns_coefficients=(2.0, -1.5, 0.5), ns_steps=9, eps=0.5),
        "muon: author": of_torch("muon", "SingleDeviceMuon", lr=LR, weight_decay=0.5),
        "muon: dion": dion("Muon", nesterov=True, weight_decay=0.5),
        "muon: dion, you, rms_norm": dion(
            "Muon", "wide", use_polar_express=False, adjust_lr="rms_norm", cautious_wd=True, weight_decay=0.5
        ),
        "muon: dion, conv": dion("Muon", "conv", flatten=True),
        "muon: dion, stack": dion("Muon", "stack"),
        "muon: dion, split_sizes": dion("Muon", "kernel", group={"split_sizes": [1, 3]}),
        "muon: dion, num_heads": dion("Muon", "kernel", group={"num_heads": 2}),
        "muon: optax": optax_muon(),
        "muon: optax, no nesterov": optax_muon("wide", nesterov=False),
        "muon: optax, adaptive": optax_muon("wide", adaptive=True, beta=0.875),
        "muon: optax, consistent_rms": optax_muon(consistent_rms=0.2, weight_decay=0.5),
        "muon: optax, spectral": optax_muon("wide", preconditioning="spectral"),
        "muon: optax, aol": optax_muon("wide", preconditioning="aol"),
        "muon: optax, schatten": optax_muon("wide", preconditioning="schatten"),
        "muon: optax, you": optax_muon("wide", ns_coeffs="dion"),
        "muon: optax, the rest": optax_muon("wide", "bias", adam_weight_decay=0.5, adam_learning_rate=2.0**-6),
        "muon: optax, dimension numbers": optax_muon("conv", "stack", numbers={"conv": hwio, "stack": layers}),
        "orthogonalize: dion, polar_express": orthogonalized("dion.polar_express", "polar_express", epsilon=1e-8),
        "orthogonalize: dion, you": orthogonalized(
            "dion.newton_schulz_triton", "zeropower_via_newtonschulz5", epsilon=1e-7
        ),
        "orthogonalize: optax, spectral": optax_orthogonalized(preconditioning="spectral"),
        "orthogonalize: optax, aol": optax_orthogonalized(preconditioning="aol"),
        "orthogonalize: optax, schatten": optax_orthogonalized(preconditioning="schatten"),
        "normuon: author": of_torch("normuon", "SingleDeviceNorMuon", lr=LR, weight_decay=0.5),
        "normuon: author, betas": of_torch("normuon", "SingleDeviceNorMuon", "wide", lr=LR, momentum=0.875, beta2=0.75),
        "normuon: dion": dion("NorMuon", weight_decay=0.5),
        "normuon: dion, rms_norm": dion("NorMuon", "wide", nesterov=True, adjust_lr="rms_norm", muon_beta2=0.75),
        "normuon: dion, stack": dion("NorMuon", "stack"),
        "scion: Spectral": scion("Spectral", scale=2.0),
        "scion: Spectral, max": scion("Spectral", norm_kwargs={"max": True}, unconstrained=True),
        "scion: Spectral, not normalized": scion("Spectral", "wide", norm_kwargs={"normalized": False, "steps": 7}),
        "scion: Sign": scion("Sign", "wide", scale=4.0),
        "scion: Sign, not normalized": scion("Sign", "wide", norm_kwargs={"normalized": False}, unconstrained=True),
        "scion: ColNorm": scion("ColNorm", "wide"),
        "scion: ColNorm, normalized": scion("ColNorm", "wide", norm_kwargs={"normalized": True}, scale=2.0),
        "scion: ColNorm, transpose": scion("ColNorm", "wide", norm_kwargs={"transpose": True}),
        "scion: RowNorm": scion("RowNorm", "wide"),
        "scion: RowNorm, not normalized": scion("RowNorm", "wide", norm_kwargs={"normalized": False}),
        "scion: BiasRMS": scion("BiasRMS", "bias", unconstrained=True),
        "scion: SpectralConv": scion("SpectralConv", "conv"),
        "scion: Auto, momentum 1": scion("Auto", "wide", "bias", momentum=1.0),
        "dion2: fraction 1": dion("Dion2", fraction=1.0, weight_decay=0.5),
        "dion2: fraction 0.5": dion("Dion2", fraction=0.5),
        "dion2: fraction 0.5, stack": dion("Dion2", "stack", fraction=0.5),
        "dion2: fraction 0.5, you": dion(
            "Dion2", fraction=0.5, use_polar_express=False, ef_decay=0.75, adjust_lr="rms_norm"
        ),
    }
