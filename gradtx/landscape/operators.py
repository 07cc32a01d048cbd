"""Curvature as a symmetric linear operator over the params, known by its products with vectors.

A network with n params has a Hessian of n² numbers, which nobody can store, and products H v, which cost about two
gradients each. All that this chapter finds out about curvature it asks of such products:

    H v = d/dt of gradient(w + t v) at t = 0          the Hessian
    G v = Jᵀ C J v                                    Gauss-Newton: J the Jacobian of the model's outputs by the params,
                                                      C the Hessian of the cost by the outputs; no negative curvature
                                                      if the cost is convex
    F v = Jᵀ I J v                                    Fisher: I the Fisher information of what the model predicts

An operator is a value: `hessian(loss, params, data)` holds the params and the data, can be passed to compiled programs,
and `operator @ v` is a product with a tree like the params. Over mini-batches the products are averaged one batch after
another, so that a product needs the memory of a few gradients on one batch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradtx import tree
from gradtx.landscape import costs
from gradtx.training import inputs

PyTree = Any
DISTRIBUTIONS = ("categorical", "bernoulli", "normal")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params", "data"), meta_fields=("product", "batch_size")
)
@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric linear map over trees like `params`; `operator @ v` is its product with one.

    Made by `hessian`, `gauss_newton`, `fisher` and `operator`. A pytree, whose leaves are those of the params and the
    data.
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
        """What vectors over all params are kept in: float64 if a leaf of the params is, else float32."""
        return tree.precision(self.params)

    @property
    def eps(self) -> float:
        """The relative rounding of the leaf with the fewest digits, and so of the products."""
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(self.params))

    def average(self, quantity: Callable[[PyTree, PyTree], PyTree]) -> PyTree:
        """The mean of `quantity(params, batch)` over the batches."""
        return costs.over_batches(lambda batch: quantity(self.params, batch), self.data, self.batch_size)

    def times(self, v: PyTree) -> PyTree:
        """The product with a tree of the params' shapes and dtypes, unchecked, inside a compiled program."""
        return self.average(lambda params, batch: self.product(params, batch, v))

    def times_vector(self, vector: Array) -> Array:
        """The product with a vector over all params."""
        return self.flat(self.times(self.unflat(vector)))

    def flat(self, like_params: PyTree) -> Array:
        """A tree like the params as one vector."""
        return tree.join([jnp.asarray(leaf).astype(self.dtype) for leaf in jax.tree.leaves(like_params)])

    def unflat(self, vector: Array) -> PyTree:
        """A vector over all params as a tree like them."""
        leaves, structure = jax.tree.flatten(self.params)
        parts, start = list[Array](), 0
        for leaf in leaves:
            part = jax.lax.dynamic_slice_in_dim(vector, start, leaf.size)
            parts.append(part.reshape(leaf.shape).astype(leaf.dtype))
            start += leaf.size
        return jax.tree.unflatten(structure, parts)


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
            if_complex="Return its real and its imaginary part.",
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
    """The Fisher information of a distribution with these parameters, averaged over samples, times a tree like them."""

    who: str
    distribution: str

    def __call__(self, batch: PyTree, at: Any, along: Array) -> Array:
        least = 2 if self.distribution == "categorical" and batch is not None else 1
        if not isinstance(at, Array) or at.ndim < least:
            received = f"an array of shape {at.shape}" if isinstance(at, Array) else f"a {type(at).__name__}"
            raise TypeError(
                f"{self.who}: the model returns {received}; for distribution={self.distribution!r} it must return one "
                f"array with at least {least} {'axis' if least == 1 else 'axes'}, the first of samples."
            )
        kept = at.dtype
        at, along = tree.to_compute_dtype((at, along))
        match self.distribution:
            case "categorical":  # logits on the last axis, a sample at each place of the others
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
    """The operator of a rule, for what the user passed."""
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
      data: what the batches are cut from: arrays with a common leading axis of samples. None for `loss(params)`.
      batch_size: samples looked at together, 1 or more; None for all. It changes memory and speed, and the result by
        rounding only, unless the loss is not a mean over samples (batch normalisation).

    Errors: TypeError for complex, integer or bool params (by path), a loss that is random, carries a state, or returns
    no real scalar. ValueError for data or a batch size that do not fit.

    Where the loss has a kink, as that of a ReLU network where a unit's input is 0, there is no Hessian; the product is
    what JAX's derivative rules say, which take the curvature of the kink as 0.

    >>> import jax.numpy as jnp
    >>> from gradtx import landscape
    >>> H = landscape.hessian(lambda w: w[0] ** 2 - 3.0 * w[1] ** 2, jnp.ones(2))
    >>> print(H @ jnp.array([1.0, 1.0]))
    [ 2. -6.]
    """
    return hessian_of("gradtx.landscape.hessian", loss, params, data, batch_size)


def hessian_of(who: str, loss: Any, params: PyTree, data: PyTree, batch_size: int | None) -> Operator:
    """The Hessian, with errors in the name of the caller."""
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

    Source: Schraudolph 2002, Fast curvature matrix-vector products for second-order gradient descent. The generalised
    Gauss-Newton matrix: for half a sum of squares, C is 1 and this is JᵀJ.

    Args:
      model: `model(params)` or, with data, `model(params, batch)`: the outputs, an array or a tree.
      cost: `cost(outputs)` or, with data, `cost(outputs, batch)`: a real scalar, the mean over the samples.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples, or None.
      batch_size: samples looked at together, 1 or more; None for all.

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
    """The Fisher information matrix of a model's predictions about the params, as an operator.

        F v = mean over samples of Jᵀ I J v;   I = E[s sᵀ], s = d log p(y | outputs) / d outputs, y drawn from p

    The expectation is over what the model predicts, not over the labels of the data: this is not the "empirical Fisher"
    matrix of the gradients, which is another one (Kunstner, Balles, Hennig 2019). For these distributions it equals the
    Gauss-Newton matrix of the negative log-likelihood.

    Source: Amari 1998, Natural gradient works efficiently in learning; Martens 2020, sections 5 and 9.

    Args:
      model: `model(params)` or, with data, `model(params, batch)`: one array, the first axis of samples.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples, or None.
      distribution: what the outputs are: "categorical": logits on the last axis, each place of the others a sample;
        "bernoulli": each number a logit; "normal": each number a mean, with variance 1. In the latter two the numbers
        of a sample are independent, and their information adds up.
      batch_size: samples looked at together, 1 or more; None for all.

    Errors: as `hessian`; ValueError for another distribution, TypeError for outputs that are not one array.

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
    """Any symmetric linear map over trees like params, as an operator.

    Args:
      product: `product(params, v)` or, with data, `product(params, batch, v)`, linear and symmetric in v: a tree like
        the params. Over batches it is averaged.
      params: a tree of real arrays.
      data: arrays with a common leading axis of samples, or None.
      batch_size: samples looked at together, 1 or more; None for all.

    Errors: as `hessian`. That it is symmetric is not checked here; `lanczos` has wide bounds where it is not.

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
    """As it is, or, if it cannot be hashed, as a program of its own."""
    try:
        hash(function)
    except TypeError:
        return functools.partial(function)
    return function
