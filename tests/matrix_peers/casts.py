"""The casts to bfloat16 and float32 in the outside implementations, taken out while Python imports them."""

import importlib.abc
import importlib.machinery
import sys

BFLOAT16 = {".bfloat16()": ".clone()"}
FLOAT32 = {".float()": ".double()"}
DTYPE = {"torch.bfloat16": "torch.float64"}
DTYPE32 = {"torch.float32": "torch.float64"}

CASTS = {
    "torch.optim._muon": BFLOAT16,
    "muon": BFLOAT16,
    "normuon": BFLOAT16,
    "scion": BFLOAT16,
    "dion.polar_express": BFLOAT16,
    "dion.newton_schulz_triton": DTYPE,
    "dion.muon": DTYPE,
    "dion.dion2": DTYPE,
    "dion.megabatch_base": DTYPE32,
    "soap": {".float()": ".double()"},
    "optim.kl_opt": {"torch.float:": "torch.float64:", ".float()": ".double()", "torch.bfloat16": "torch.float64"},
    "emerging_optimizers.legacy_soap.soap": DTYPE32,
    "pytorch_optimizer.optimizer.soap": DTYPE32,
    "pytorch_optimizer.optimizer.muon.muon_clip": FLOAT32,
    "distributed_shampoo.distributed_shampoo": {"dtype=torch.float,": "dtype=torch.float64,"},
    "psgd_jax.kron": {"dtype=jnp.float32": "dtype=jnp.float64", "jnp.finfo(jnp.float32).eps": "float(2**-23)"},
    "galore_torch.galore_projector": FLOAT32,
    "apollo_torch.random_projector": FLOAT32,
    "apollo_torch.svd_projector": FLOAT32,
}
"""By module: what its text says, and what is read instead. Each must occur."""


def said(module: str) -> tuple[str, ...]:
    """What a case says about the module that it comes from."""
    return tuple(f"{old} -> {new}" for old, new in CASTS.get(module, {}).items())


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        text = self.get_source(fullname)
        for old, new in CASTS[fullname].items():
            if old not in text:
                raise ImportError(f"{fullname} has no {old!r} any more")
            text = text.replace(old, new)
        return compile(text, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname not in CASTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = Loader(fullname, spec.origin)
        return spec


def take_out() -> None:
    """From now on, for the modules that are imported later."""
    loaded = CASTS.keys() & sys.modules.keys()
    if loaded:
        raise ImportError(f"imported before their casts are taken out: {sorted(loaded)}")
    sys.meta_path.insert(0, Finder())
