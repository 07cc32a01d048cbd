"""CAME, GaLore and APOLLO with their projections, the QK-clip of MuonClip."""

import importlib
import pathlib
import sys
import types
from typing import Any

import numpy as np

from tests.matrix_peers import casts
from tests.matrix_peers.orthogonal import of_torch
from tests.matrix_peers.running import Case, Values, torch_path
from tests.records import matrix_problem as problem

LR = 2.0**-5
MATRICES = ("kernel", "wide")


def came(*leaves: str, **arguments: Any) -> Case:
    return of_torch("came_pytorch", "CAME", *leaves, **{"lr": LR} | arguments)


def optimizer_of(module: str):
    """Its AdamW: the package around it would import transformers and bitsandbytes."""
    package, _ = module.split(".")
    if module not in sys.modules:
        versions = types.ModuleType("transformers.utils.versions")
        versions.require_version = lambda wanted: None
        stubs = {name: types.ModuleType(name) for name in ("transformers", "transformers.utils", package)}
        stubs["transformers.utils.versions"] = versions
        found = next(pathlib.Path(path) / package for path in sys.path if (pathlib.Path(path) / package).is_dir())
        stubs[package].__path__ = [str(found)]
        sys.modules |= stubs
        importlib.import_module(module)
        for name in stubs.keys() - {package}:
            del sys.modules[name]
    return sys.modules[module].AdamW


def projected(module: str, *leaves: str, own: dict[str, Any], **arguments: Any) -> Case:
    """GaLore or APOLLO; `own` is of the group. A projection is (size of its side, rank) and has its first step."""
    theirs, leaves, seen = {"lr": LR} | arguments, leaves or MATRICES, {}

    def build(weights):
        seen.clear()
        seen.update({name: [] for name in weights})
        return optimizer_of(module)(
            [{"params": [weight], **own} for weight in weights.values()], **theirs, no_deprecation_warning=True
        )

    def watch(optimizer):
        for name, group in zip(seen, optimizer.param_groups):
            (weight,) = group["params"]
            state = optimizer.state[weight]
            p = state["projector"].ortho_matrix.numpy()
            if p.shape[0] == own["rank"]:
                p, side = p.T, "in"
            else:
                side = "out"
            if not seen[name] or not np.array_equal(seen[name][-1]["projection"], p):
                seen[name].append({"step": state["step"], "side": side, "projection": p.copy()})

    modules = ("galore_torch.galore_projector",) if module.startswith("galore") else ("apollo_torch.random_projector",)
    said = tuple(text for name in modules for text in casts.said(name))
    return Case(f"{module}.AdamW", theirs | own, leaves, torch_path(build, watch), said, lambda: {"projections": seen})


def galore(*leaves: str, **arguments: Any) -> Case:
    own = {"rank": 2, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    own |= {name: arguments.pop(name) for name in own if name in arguments}
    return projected("galore_torch.adamw", *leaves, own=own, **arguments)


def apollo(*leaves: str, **arguments: Any) -> Case:
    own = {"rank": 2, "proj": "random", "update_proj_gap": 200, "scale": 4.0, "proj_type": "std"}
    own |= {"scale_type": "channel"}
    own |= {name: arguments.pop(name) for name in own if name in arguments}
    return projected("apollo_torch.apollo", *leaves, own=own, **{"lr": LR / 4} | arguments)


def qk_clip(*logits: float, **arguments: Any) -> Values:
    """What a step with no gradient leaves of four kernels (6, 4), two heads each."""
    roles = ("query", "key", "query_rotary", "key_rotary")

    def values():
        import torch
        from pytorch_optimizer import MuonClip

        weights = [torch.nn.Parameter(torch.tensor(problem.scattered((6, 4), 70 + i).T)) for i in range(4)]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        groups = [
            {"params": [weight], "use_muon": True, "qk_clip": role, "attention_name": "a"}
            for weight, role in zip(weights, roles)
        ]
        MuonClip(groups, **arguments).step(attention_max_logits={"a": torch.tensor(logits)})
        return {role: weight.detach().numpy().T for role, weight in zip(roles, weights)}

    said = {"logits": logits, "kernels": "scattered((6, 4), 70 + index)"} | arguments
    return Values("pytorch_optimizer.MuonClip", said, values, casts.said("pytorch_optimizer.optimizer.muon.muon_clip"))


def cases() -> dict[str, Case | Values]:
    return {
        "came: author": came("kernel", "wide", "bias"),
        "came: author, decay": came("wide", "bias", weight_decay=0.5, betas=(0.875, 0.75, 0.5), clip_threshold=0.5),
        "came: author, eps": came("wide", "bias", eps=(2.0**-10, 2.0**-8)),
        "came: author, stack": came("stack"),
        "galore: author": galore(),
        "galore: author, reverse_std": galore(proj_type="reverse_std", weight_decay=0.5, scale=1.0),
        "galore: author, square": galore("square", rank=3, betas=(0.875, 0.75), eps=2.0**-10),
        "galore: author, no correct_bias": galore("wide", correct_bias=False),
        "galore: author, refreshed": galore(update_proj_gap=10),
        "galore: author, reverse_std, refreshed": galore("wide", proj_type="reverse_std", update_proj_gap=10),
        "apollo: author": apollo(),
        "apollo: author, tensor": apollo(scale_type="tensor", rank=1, scale=16.0, weight_decay=0.5),
        "apollo: author, scale_front": apollo("wide", scale_front=True, betas=(0.875, 0.75)),
        "apollo: author, no limiter": apollo("wide", disable_nl=True),
        "apollo: author, reverse_std": apollo(proj_type="reverse_std", scale_type="tensor"),
        "apollo: author, refreshed": apollo("wide", update_proj_gap=10),
        "apollo: author, svd": apollo("wide", proj="svd"),
        "qk_clip: pytorch_optimizer": qk_clip(150.0, 80.0),
        "qk_clip: pytorch_optimizer, alpha": qk_clip(50.0, 800.0, qk_clip_threshold=32.0, qk_clip_alpha=0.25),
    }
