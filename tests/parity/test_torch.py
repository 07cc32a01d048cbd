"""PyTorch's optimizers reached through arguments: the rows of `conventions.TORCH`, in float64."""

import numpy as np
import pytest

from tests.parity import frameworks
from tests.parity.conventions import TORCH, Row

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("x64")]


@pytest.fixture
def torch():
    """PyTorch in float64: NAdam keeps its product of mu in the default dtype, whatever the parameters are."""
    module = pytest.importorskip("torch")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(before)


RUNS = [
    pytest.param(row, scheduled, id=f"{row.id}-{'scheduled' if scheduled else 'constant'}")
    for row in TORCH
    for scheduled in (False, True)
    if not (scheduled and "lr_decay" in row.theirs)  # has its own schedule
]


@pytest.mark.parametrize(("row", "scheduled"), RUNS)
def test_arguments_reach_pytorch(torch, row: Row, scheduled: bool):
    def theirs(params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        w = torch.tensor(params, requires_grad=True)
        optimizer = getattr(torch.optim, row.method)([w], **row.theirs)
        group = optimizer.param_groups[0]
        after = []
        for made, gradient in enumerate(gradients):
            if scheduled:
                group["lr"] = row.theirs["lr"] / (1 + frameworks.DECAY_RATE * made)
            w.grad = torch.tensor(gradient)
            optimizer.step()
            after.append(w.detach().numpy().copy())
        return np.array(after)

    frameworks.assert_same_steps(row, theirs, scheduled=scheduled)


def test_every_method_of_ours_that_pytorch_has_is_in_the_table():
    reached = {row.factory for row in TORCH}
    assert reached == {"sgd", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "amsgrad", "adamax", "nadam", "nadamw"}
