"""A step of PyTorch's optimizers on the same shapes, in its three implementations; needs PyTorch."""

import time
from typing import Any

import jax
import torch

from tests.benchmarks import contenders

IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def device() -> str:
    """The accelerator if JAX computes on one and PyTorch can, else the CPU."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


class Steps:
    """One optimizer with its params and gradients, which stay the same."""

    def __init__(self, method: contenders.Method, how: str, shapes: Any):
        assert method.torch is not None
        name, arguments = method.torch
        self.params = [torch.randn(one.shape, device=device()) * 0.02 for one in jax.tree.leaves(shapes)]
        for one in self.params:
            one.grad = torch.randn_like(one)
        self.optimizer = getattr(torch.optim, name)(self.params, **arguments, **IMPLEMENTATIONS[how])
        self.clips, self.foreach = method.clips, how != "for-loop"

    def run(self, times: int = 1) -> float:
        """Seconds per step, the mean over a number of steps."""
        begin = time.perf_counter()
        for _ in range(times):
            if self.clips:
                torch.nn.utils.clip_grad_norm_(self.params, contenders.LARGEST_NORM, foreach=self.foreach)
            self.optimizer.step()
        if device() == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / times


def versions() -> str:
    return f"torch {torch.__version__} on {device()}, {torch.get_num_threads()} threads"
