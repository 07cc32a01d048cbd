"""Which arguments reach which framework's convention: one row per call, run by the tests and printed in the docs.

A row says that `framework.method(**theirs)` and `gradtx.factory(**ours)` make the same updates. What a row leaves out
is the default on either side.
"""

from typing import Any, NamedTuple


class Schedule(NamedTuple):
    """A schedule of gradtx as an argument in this table."""

    factory: str
    arguments: dict[str, float]


class Row(NamedTuple):
    framework: str
    method: str
    theirs: dict[str, Any]
    factory: str
    ours: dict[str, Any]

    @property
    def id(self) -> str:
        options = [name for name in self.theirs if name not in ("lr", "learning_rate")]
        return "-".join([self.framework, self.method, *options])


def _torch(method: str, theirs: dict[str, Any], factory: str, ours: dict[str, Any]) -> Row:
    return Row("torch.optim", method, theirs, factory, ours)


def _keras(method: str, theirs: dict[str, Any], factory: str, ours: dict[str, Any]) -> Row:
    return Row("keras.optimizers", method, theirs, factory, ours)


def _optax(method: str, theirs: dict[str, Any], factory: str, ours: dict[str, Any] | None = None) -> Row:
    return Row("optax", method, theirs, factory, theirs if ours is None else ours)


_TORCH_ADAGRAD = {"initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False}
_TORCH_RMSPROP = {"learning_rate": 0.01, "decay": 0.99, "eps_in_sqrt": False}

TORCH = (
    _torch("SGD", {"lr": 0.1}, "sgd", {"learning_rate": 0.1}),
    _torch("SGD", {"lr": 0.1, "momentum": 0.9}, "sgd", {"learning_rate": 0.1, "momentum": 0.9}),
    _torch(
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        "sgd",
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    _torch(
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
        "sgd",
        {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.5},
    ),
    _torch("Adagrad", {"lr": 0.01}, "adagrad", {"learning_rate": 0.01, **_TORCH_ADAGRAD}),
    _torch(
        "Adagrad",
        {"lr": 0.01, "lr_decay": 0.05},
        "adagrad",
        {
            "learning_rate": Schedule("inverse_time_schedule", {"init_value": 0.01, "decay_rate": 0.05}),
            **_TORCH_ADAGRAD,
        },
    ),
    _torch(
        "Adagrad",
        {"lr": 0.01, "initial_accumulator_value": 0.1},
        "adagrad",
        {"learning_rate": 0.01, "eps": 1e-10, "eps_in_sqrt": False},
    ),
    _torch("RMSprop", {"lr": 0.01}, "rmsprop", _TORCH_RMSPROP),
    _torch("RMSprop", {"lr": 0.01, "centered": True}, "rmsprop", {**_TORCH_RMSPROP, "centered": True}),
    _torch(
        "RMSprop",
        {"lr": 0.01, "momentum": 0.9},
        "rmsprop",
        {**_TORCH_RMSPROP, "momentum": 0.9, "lr_inside_momentum": False},
    ),
    _torch(
        "RMSprop",
        {"lr": 0.01, "centered": True, "momentum": 0.9},
        "rmsprop",
        {**_TORCH_RMSPROP, "centered": True, "momentum": 0.9, "lr_inside_momentum": False},
    ),
    _torch("Adadelta", {"lr": 1.0}, "adadelta", {"learning_rate": 1.0}),
    _torch("Adadelta", {"lr": 1.0, "weight_decay": 0.01}, "adadelta", {"learning_rate": 1.0, "weight_decay": 0.01}),
    _torch("Adam", {"lr": 0.001}, "adam", {"learning_rate": 0.001}),
    _torch("Adam", {"lr": 0.001, "amsgrad": True}, "amsgrad", {"learning_rate": 0.001, "maximum": "raw"}),
    _torch("AdamW", {"lr": 0.001}, "adamw", {"learning_rate": 0.001, "weight_decay": 0.01}),
    _torch("Adamax", {"lr": 0.002}, "adamax", {"learning_rate": 0.002}),
    _torch("NAdam", {"lr": 0.002}, "nadam", {"learning_rate": 0.002, "momentum_decay": 0.004}),
    _torch(
        "NAdam",
        {"lr": 0.002, "weight_decay": 0.01, "decoupled_weight_decay": True},
        "nadamw",
        {"learning_rate": 0.002, "weight_decay": 0.01, "momentum_decay": 0.004},
    ),
)

KERAS = (
    _keras("SGD", {"learning_rate": 0.1}, "sgd", {"learning_rate": 0.1}),
    _keras(
        "SGD",
        {"learning_rate": 0.1, "momentum": 0.9},
        "sgd",
        {"learning_rate": 0.1, "momentum": 0.9, "lr_inside_momentum": True},
    ),
    _keras(
        "SGD",
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        "sgd",
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "lr_inside_momentum": True},
    ),
    _keras("Adagrad", {"learning_rate": 0.001}, "adagrad", {"learning_rate": 0.001}),
    _keras("RMSprop", {"learning_rate": 0.001}, "rmsprop", {"learning_rate": 0.001, "eps": 1e-7}),
    _keras(
        "RMSprop",
        {"learning_rate": 0.001, "centered": True},
        "rmsprop",
        {"learning_rate": 0.001, "eps": 1e-7, "centered": True},
    ),
    _keras(
        "RMSprop",
        {"learning_rate": 0.001, "momentum": 0.9},
        "rmsprop",
        {"learning_rate": 0.001, "eps": 1e-7, "momentum": 0.9},
    ),
    _keras(
        "RMSprop",
        {"learning_rate": 0.001, "centered": True, "momentum": 0.9},
        "rmsprop",
        {"learning_rate": 0.001, "eps": 1e-7, "centered": True, "momentum": 0.9},
    ),
    _keras("Adadelta", {"learning_rate": 0.001}, "adadelta", {"learning_rate": 0.001, "rho": 0.95, "eps": 1e-7}),
    _keras("Adam", {"learning_rate": 0.001}, "adam", {"learning_rate": 0.001, "eps": 1e-7, "eps_hat": True}),
    _keras(
        "Adam",
        {"learning_rate": 0.001, "amsgrad": True},
        "amsgrad",
        {"learning_rate": 0.001, "eps": 1e-7, "maximum": "raw", "eps_hat": True},
    ),
    _keras(
        "AdamW",
        {"learning_rate": 0.001},
        "adamw",
        {"learning_rate": 0.001, "eps": 1e-7, "weight_decay": 0.004, "eps_hat": True},
    ),
    _keras("Adamax", {"learning_rate": 0.001}, "adamax", {"learning_rate": 0.001, "eps": 1e-7, "eps_in_max": False}),
    _keras("Nadam", {"learning_rate": 0.001}, "nadam", {"learning_rate": 0.001, "eps": 1e-7, "momentum_decay": 1.0}),
    _keras(
        "Nadam",
        {"learning_rate": 0.001, "weight_decay": 0.004},
        "nadamw",
        {"learning_rate": 0.001, "eps": 1e-7, "weight_decay": 0.004, "momentum_decay": 1.0},
    ),
    _keras("Lion", {"learning_rate": 0.001}, "lion", {"learning_rate": 0.001, "weight_decay": 0.0}),
    _keras(
        "Lion",
        {"learning_rate": 0.001, "weight_decay": 0.01},
        "lion",
        {"learning_rate": 0.001, "weight_decay": 0.01},
    ),
)

OPTAX = (
    _optax("sgd", {"learning_rate": 0.1}, "sgd"),
    _optax("sgd", {"learning_rate": 0.1, "momentum": 0.9}, "sgd"),
    _optax("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}, "sgd"),
    _optax("adagrad", {"learning_rate": 0.01}, "adagrad"),
    _optax("rmsprop", {"learning_rate": 0.001}, "rmsprop"),
    _optax("rmsprop", {"learning_rate": 0.001, "eps_in_sqrt": False, "initial_scale": 1.0}, "rmsprop"),
    _optax("rmsprop", {"learning_rate": 0.001, "bias_correction": True}, "rmsprop"),
    _optax("rmsprop", {"learning_rate": 0.001, "centered": True, "momentum": 0.9}, "rmsprop"),
    _optax("rmsprop", {"learning_rate": 0.001, "momentum": 0.9, "nesterov": True}, "rmsprop"),
    _optax("adadelta", {"learning_rate": 1.0}, "adadelta"),
    _optax("adadelta", {"learning_rate": 1.0, "weight_decay": 0.01}, "adadelta"),
    _optax("adam", {"learning_rate": 0.001}, "adam"),
    _optax("adam", {"learning_rate": 0.001, "eps_root": 1e-6}, "adam"),
    _optax("adamw", {"learning_rate": 0.001}, "adamw"),
    _optax("amsgrad", {"learning_rate": 0.001}, "amsgrad"),
    _optax("adamax", {"learning_rate": 0.001}, "adamax"),
    _optax("nadam", {"learning_rate": 0.001}, "nadam"),
    _optax("nadamw", {"learning_rate": 0.001}, "nadamw"),
    _optax("lion", {"learning_rate": 0.001}, "lion"),
    _optax("signum", {"learning_rate": 0.001}, "signum"),
)

FRAMEWORK_ARGUMENTS = (*TORCH, *KERAS, *OPTAX)
