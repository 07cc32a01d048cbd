"""Keras's optimizers reached through arguments: the rows of `conventions.KERAS`, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import frameworks
from tests.parity.conventions import KERAS, Row

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("x64")]


@pytest.fixture
def keras():
    """Keras in float64 on JAX, which `tests/conftest.py` asks for."""
    module = pytest.importorskip("keras")
    if module.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend than JAX")
    before = module.config.floatx()
    module.config.set_floatx("float64")
    yield module
    module.config.set_floatx(before)


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize("row", KERAS, ids=lambda row: row.id)
def test_arguments_reach_keras(keras, row: Row, scheduled: bool):
    def theirs(params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            arguments = dict(row.theirs)
            if scheduled:
                schedule = keras.optimizers.schedules.InverseTimeDecay
                arguments["learning_rate"] = schedule(arguments["learning_rate"], 1, frameworks.DECAY_RATE)
            optimizer = getattr(keras.optimizers, row.method)(**arguments)
            w = keras.Variable(params, dtype="float64")
            optimizer.build([w])

            def step(carry, gradient):
                w, variables = carry
                (w,), variables = optimizer.stateless_apply(variables, [gradient], [w])
                return (w, variables), w

            start = w.value, [variable.value for variable in optimizer.variables]
            return np.asarray(jax.jit(lambda start, g: jax.lax.scan(step, start, g)[1])(start, jnp.asarray(gradients)))

    frameworks.assert_same_steps(row, theirs, scheduled=scheduled)


def test_every_method_of_ours_that_keras_has_is_in_the_table():
    reached = {row.factory for row in KERAS}
    methods = {"sgd", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "amsgrad", "adamax", "nadam", "nadamw", "lion"}
    assert reached == methods
