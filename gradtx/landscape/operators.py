"""Curvature as a symmetric linear operator over the params: a matrix that is only multiplied by vectors.

The Hessian of a network with n params has n² numbers, too many to store. A product H v costs about two gradients. All
curvature in this chapter is computed from such products:

    H v = d/dt of gradient(w + t v) at t = 0    the Hessian
    G v = Jᵀ C J v                              Gauss-Newton: J is the Jacobian of the model's outputs by the params,
                                                C the Hessian of the cost by the outputs; no negative eigenvalue if
                                                the cost is convex
    F v = Jᵀ I J v                              Fisher: I is the Fisher information of the predicted distribution

An operator is a value. `hessian(loss, params, data)` holds the params and the data and can be passed to compiled
programs; `operator @ v` is its product with a tree like the params. With mini-batches the products are averaged batch
by batch, so a product needs the memory of a few gradients on one batch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.curvature.vectors import unflat
from gradtx.landscape import costs
from gradtx.training import inputs

PyTree = Any
DISTRIBUTIONS = ("categorical", "bernoulli", "normal")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params", "data"), meta_fields=("product", "batch_size")
)
@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric linear map over trees like `params`; `operator @ v` is the product with such a tree.

    Made by `hessian`, `gauss_newton`, `fisher` and `operator`. A pytree; its leaves are the params and the data.
    """

    product: Callable[[PyTree, PyTree, PyTree], PyTree]
    params: PyTree
    data: PyTree = None
    batch_size: int | None = None

    def __matmul__(self, v: PyTree) -> PyTree:
        v = costs.check_like("gradtx.landscape.Operator", "v", v, self.params)
        return _product(self, tree.cast_like(v, self.params))

    @property
    def size(self) -> int:
        """The number of params, n."""
        return sum(jnp.size(leaf) for leaf in jax.tree.leaves(self.params))

    @property
    def dtype(self) -> Any:
        """The dtype of vectors over all params: float64 if a leaf of the params is float64, else float32."""
        return tree.precision(self.params)

    @property
    def eps(self) -> float:
        """The relative rounding error of the leaf with the lowest precision, and so of the products."""
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(self.params))

    def average(self, quantity: Callable[[PyTree, PyTree], PyTree]) -> PyTree:
        """The mean of `quantity(params, batch)` over the batches."""
        return costs.over_batches(lambda batch: quantity(self.params, batch), self.data, self.batch_size)

    def times(self, v: PyTree) -> PyTree:
        """The product with a tree of the params' shapes and dtypes, for compiled programs: nothing is checked."""
        return self.average(lambda params, batch: self.product(params, batch, v))

    def times_vector(self, vector: Array) -> Array:
        """The product with a vector that has an element for each param."""
        return self.flat(self.times(self.unflat(vector)))

    def flat(self, like_params: PyTree) -> Array:
        """A tree like the params as one vector."""
        return tree.join([jnp.asarray(leaf).astype(self.dtype) for leaf in jax.tree.leaves(like_params)])

    def unflat(self, vector: Array) -> PyTree:
        """A vector with an element for each param as a tree like the params."""
        return unflat(vector, self.params)


@jax.jit
def _product(operator: Operator, v: PyTree) -> PyTree:
    return operator.times(v)


# The three, and any other ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hessian:
    """The rule of the Hessian, forward over reverse."""

    cost: costs.Cost

    def gradient(self, params: PyTree, batch: PyTree) -> PyTree:
        """The gradient of the cost."""
        return jax.grad(self.cost)(params, batch)

    def __call__(self, params: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        return jax.jvp(lambda params: self.gradient(params, batch), (params,), (v,))[1]


@dataclass(frozen=True)
class _Sandwich:
    """`Jᵀ C J v`, with J the Jacobian of the model's outputs and C given by its products."""

    who: str
    model: Callable[..., PyTree]
    middle: Callable[[PyTree, PyTree, PyTree], PyTree]

    def __call__(self, params: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        def outputs(params: PyTree) -> PyTree:
            return self.model(params) if batch is None else self.model(params, batch)

        at, along = jax.jvp(outputs, (params,), (v,))
        costs.check_real(
            self.who,
            "what the model returns",
            at,
            if_complex="Return its real and imaginary parts.",
            if_discrete="Leave it out.",
        )
        _, back = jax.vjp(outputs, params)
        return back(self.middle(batch, at, along))[0]


@dataclass(frozen=True)
class _Curved:
    """The Hessian of a cost of the outputs, times a tree like them."""

    who: str
    cost: Callable[..., Array]

    def __call__(self, batch: PyTree, at: PyTree, along: PyTree) -> PyTree:
        def value(outputs: PyTree) -> Array:
            found = self.cost(outputs) if batch is None else self.cost(outputs, batch)
            return costs.check_scalar(self.who, "cost", found)

        return jax.jvp(jax.grad(value), (at,), (along,))[1]


@dataclass(frozen=True)
class _Information:
    """The product with the Fisher information of a distribution, about its parameters, averaged over samples."""

    who: str
    distribution: str

    def __call__(self, batch: PyTree, at: Any, along: Array) -> Array:
        least = 2 if self.distribution == "categorical" and batch is not None else 1
        if not isinstance(at, Array) or at.ndim < least:
            received = f"an array of shape {at.shape}" if isinstance(at, Array) else f"a {type(at).__name__}"
            raise TypeError(
                f"{self.who}: the model returns {received}; for distribution={self.distribution!r} it must return one "
                f"array with at least {least} {'axis' if least == 1 else 'axes'}; the first is the axis of samples."
            )
        kept = at.dtype
        at, along = tree.to_compute_dtype((at, along))
        match self.distribution:
            case "categorical":  # logits on the last axis, one sample per index of the others
                p = jax.nn.softmax(at, axis=-1)
                inner = p * (along - jnp.sum(p * along, axis=-1, keepdims=True))
                samples = at.size // at.shape[-1]
            case "bernoulli":  # each number is a logit
                p = jax.nn.sigmoid(at)
                inner, samples = p * (1 - p) * along, at.shape[0]
            case _:  # each number is a mean, with variance 1
                inner, samples = along, at.shape[0]
        return (inner / samples).astype(kept)


@dataclass(frozen=True)
class _Given:
    """A user's `product(params, v)` or `product(params, batch, v)`."""

    function: Callable[..., PyTree]

    def __call__(self, params: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        found = self.function(params, v) if batch is None else self.function(params, batch, v)
        costs.check_like("gradtx.landscape.operator", "what product returns", found, params)
        return tree.cast_like(found, params)


def _made(who: str, product: Any, params: PyTree, data: PyTree, batch_size: int | None) -> Operator:
    """The operator with this product; the arguments are checked."""
    params = costs.check_params(who, params)
    data, batch_size = costs.check_data(who, data, batch_size)
    return Operator(product, params, data, batch_size)


def hessian(
    loss: Callable[..., Array], params: PyTree, data: PyTree = None, *, batch_size: int | None = None
) -> Operator:
    """The Hessian of a loss at params, as an operator.

        H v = d/dt of gradient(params + t v) at t = 0, forward over reverse

    Source: Pearlmutter 1994, Fast exact multiplication by the Hessian.

    Args:
      loss: `loss(params)`, or `loss(params, batch)`, the mean over the samples of a batch; a real scalar.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples, from which the batches are taken; None for `loss(params)`.
      batch_size: samples per batch, 1 or more; None for all samples in one batch. It changes memory and speed. It
        changes the result only by rounding, unless the loss is not a mean over samples (batch normalization).

    Errors: TypeError for complex, integer or bool params (with the path), and for a loss that takes a key or a
    model_state, or returns no real scalar. ValueError for data without a common number of samples, or a batch size
    below 1.

    A loss with kinks, such as that of a ReLU network, has no Hessian at a kink, where the input of a unit is 0. There
    the product follows JAX's derivative rules, which give a kink the curvature 0.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> H = landscape.hessian(lambda w: w[0] ** 2 - 3.0 * w[1] ** 2, jnp.ones(2))
    >>> print(H @ jnp.array([1.0, 1.0]))
    [ 2. -6.]
    """
    return hessian_of("gradtx.landscape.hessian", loss, params, data, batch_size)


def hessian_of(who: str, loss: Any, params: PyTree, data: PyTree, batch_size: int | None) -> Operator:
    """The Hessian; errors name the caller."""
    return _made(who, Hessian(costs.read_cost(who, loss, data)), params, data, batch_size)


def gauss_newton(
    model: Callable[..., PyTree],
    cost: Callable[..., Array],
    params: PyTree,
    data: PyTree = None,
    *,
    batch_size: int | None = None,
) -> Operator:
    """The Gauss-Newton matrix of a cost of a model's outputs, as an operator.

        G v = Jᵀ C J v;   J: Jacobian of model(params, batch) by the params,
                          C: Hessian of cost(outputs, batch) by the outputs

    Source: Schraudolph 2002, Fast curvature matrix-vector products for second-order gradient descent. This is the
    generalized Gauss-Newton matrix; for a cost of half a sum of squares C is the identity and it is JᵀJ.

    Args:
      model: `model(params)` or, with data, `model(params, batch)`: the outputs, an array or a tree.
      cost: `cost(outputs)` or, with data, `cost(outputs, batch)`: a real scalar, the mean over the samples.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples, or None.
      batch_size: samples per batch, 1 or more; None for all samples in one batch.

    Errors: as `hessian`.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> G = landscape.gauss_newton(lambda w: w**2, lambda y: 0.5 * jnp.sum(y**2), jnp.array([1.0, 2.0]))
    >>> print(G @ jnp.array([1.0, 1.0]))  # J = diag(2 w)
    [ 4. 16.]
    """
    who = "gradtx.landscape.gauss_newton"
    costs.check_function(who, "model", model, "the params, and a batch")
    costs.check_function(who, "cost", cost, "the model's outputs, and a batch")
    return _made(who, _Sandwich(who, _hashable(model), _Curved(who, _hashable(cost))), params, data, batch_size)


def fisher(
    model: Callable[..., Array],
    params: PyTree,
    data: PyTree = None,
    *,
    distribution: str = "categorical",
    batch_size: int | None = None,
) -> Operator:
    """The Fisher information matrix of a model's predictions, about the params, as an operator.

        F v = mean over samples of Jᵀ I J v;   I = E[s sᵀ], s = d log p(y | outputs) / d outputs, y drawn from p

    The expectation is over the predicted distribution, not over the labels of the data. So this is not the "empirical
    Fisher" matrix of the gradients (Kunstner, Balles, Hennig 2019). For these distributions it equals the Gauss-Newton
    matrix of the negative log-likelihood.

    Source: Amari 1998, Natural gradient works efficiently in learning; Martens 2020, sections 5 and 9.

    Args:
      model: `model(params)` or, with data, `model(params, batch)`: one array, with samples on the first axis.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples, or None.
      distribution: the meaning of the outputs. "categorical": logits on the last axis, one sample per index of the
        other axes. "bernoulli": each number is a logit. "normal": each number is a mean, with variance 1. In the last
        two the numbers of a sample are independent, and their information is summed.
      batch_size: samples per batch, 1 or more; None for all samples in one batch.

    Errors: as `hessian`; ValueError for an unknown distribution, TypeError for outputs that are not one array.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> F = landscape.fisher(lambda w: jnp.stack([w, w])[:, None], jnp.array(0.0), distribution="bernoulli")
    >>> print(F @ jnp.array(1.0))  # p (1 - p) at p = 1/2
    0.25
    """
    who = "gradtx.landscape.fisher"
    costs.check_function(who, "model", model, "the params, and a batch")
    inputs.choice(who, "distribution", distribution, DISTRIBUTIONS)
    return _made(who, _Sandwich(who, _hashable(model), _Information(who, distribution)), params, data, batch_size)


def operator(
    product: Callable[..., PyTree], params: PyTree, data: PyTree = None, *, batch_size: int | None = None
) -> Operator:
    """A symmetric linear map over trees like params, given by its product, as an operator.

    Args:
      product: `product(params, v)` or, with data, `product(params, batch, v)`: a tree like the params, the product of a
        symmetric matrix with v. It is averaged over the batches.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples, or None.
      batch_size: samples per batch, 1 or more; None for all samples in one batch.

    Errors: as `hessian`. Symmetry is not checked; for an asymmetric map the error bounds of `lanczos` are wide.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> A = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> found = landscape.lanczos(landscape.operator(lambda w, v: A @ v, jnp.zeros(2)))
    >>> [round(float(value), 3) for value in found.values]
    [1.0, 3.0]
    """
    who = "gradtx.landscape.operator"
    costs.check_function(who, "product", product, "the params, a batch, and a vector")
    return _made(who, _Given(_hashable(product)), params, data, batch_size)


def _hashable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; one that cannot be hashed is wrapped, so it is compiled for this operator alone."""
    try:
        hash(function)
    except TypeError:
        return functools.partial(function)
    return function
