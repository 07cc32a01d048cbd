"""What PyTorch has as an argument, and gradtx as an expression of its parts."""

from typing import Any

from tests.records.base import Peer


def torch(method: str, expression: str, **theirs: Any) -> Peer:
    return Peer("torch.optim", method, theirs, expression)


EXPRESSIONS = [
    torch("SGD", "add_decayed_weights(0.1) >> sgd(learning_rate)", lr=0.1, weight_decay=0.1),
    torch(
        "SGD",
        "add_decayed_weights(0.1) >> sgd(learning_rate, momentum=0.9, nesterov=True)",
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=0.1,
    ),
    torch("Adam", "add_decayed_weights(0.1) >> adam(learning_rate)", lr=0.001, weight_decay=0.1),
    torch(
        "RMSprop",
        "add_decayed_weights(0.1) >> rmsprop(learning_rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)",
        lr=0.01,
        weight_decay=0.1,
    ),
    torch("SGD", "scale(-1.0) >> sgd(learning_rate, momentum=0.9)", lr=0.1, momentum=0.9, maximize=True),
    torch("Adam", "scale(-1.0) >> adam(learning_rate)", lr=0.001, maximize=True),
    torch("AdamW", "scale(-1.0) >> adamw(learning_rate, weight_decay=0.01)", lr=0.001, maximize=True),
    torch(
        "Adam",
        "scale(-1.0) >> add_decayed_weights(0.1) >> adam(learning_rate)",
        lr=0.001,
        weight_decay=0.1,
        maximize=True,
    ),
    torch(
        "AdamW",
        'scale_by_momentum(0.9) + scale_by_rms(0.999, maximum="raw") >> add_decayed_weights(0.01) '
        ">> scale_by_learning_rate(learning_rate)",
        lr=0.001,
        amsgrad=True,
    ),
    torch("Adafactor", "adafactor(learning_rate, 2, eps=2.0**-52, eps_in_sum=False)", lr=0.01),
]
"""Each with the expression that makes the same updates; `learning_rate` is PyTorch's."""
