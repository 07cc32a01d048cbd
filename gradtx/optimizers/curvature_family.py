"""L-BFGS ..."""

from gradtx.core.annotations import PositiveInt
from gradtx.core.elementary import transform
from gradtx.core.transform import Transform
from gradtx.curvature.linesearches import scale_by_zoom_linesearch
from gradtx.curvature.quasi_newton import scale_by_lbfgs
from gradtx.effects.scaling import scale, scale_by_learning_rate
from gradtx.core.schedule import Rate


@transform
def lbfgs(
    learning_rate: Rate | None = None,
    memory_size: PositiveInt = 10,
    scale_init_precond: bool = True,
    linesearch: Transform | None = scale_by_zoom_linesearch(20, initial_guess_strategy="one"),
) -> Transform:
    """..."""
    rate = scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)
    direction = scale_by_lbfgs(memory_size, scale_init_precond) >> rate
    return direction if linesearch is None else direction >> linesearch
