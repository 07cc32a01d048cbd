"""Adam's relatives, with other measures in place of Adam's, and Rprop.

adabelief  Adam's direction, divided by the root of the average squared error of its average
yogi       Adam's direction, divided by the root of a measure that falls no faster than it rises
radam      momentum at first, then Adam once enough gradients were seen to trust its measure
rprop      the sign of the gradient, with a step size for each element
"""

from gradtx.core.annotations import NonNegative, Positive, Unit
from gradtx.core.elementary import transform
from gradtx.core.transform import Transform
from gradtx.effects.scaling import scale_by_learning_rate
from gradtx.relatives import scale_by_belief, scale_by_radam, scale_by_rprop, scale_by_yogi


@transform
def adabelief(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    *,
    nesterov: bool = False,
) -> Transform:
    """Adam with the average squared difference between the gradient and its average.

        s <- b2 s + (1 - b2) (g - m)² + eps_root;   w <- w - lr m̂ / (sqrt(ŝ) + eps)   (lr = learning_rate)

    Source: Zhuang et al. 2020 (arXiv 2010.07468), algorithm 2. As optax.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1, b2, eps, eps_root, nesterov: as `scale_by_belief`.

    State: `mu` and `nu`, 8 bytes per parameter. Errors: as `adam`.

    >>> import gradtx
    >>> gradtx.adabelief(1e-3).expand().stages[1]
    scale_by_learning_rate(learning_rate=0.001)
    """
    return scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov) >> scale_by_learning_rate(learning_rate)


@transform
def yogi(learning_rate: NonNegative, b1: Unit = 0.9, b2: Unit = 0.999, eps: NonNegative = 1e-3) -> Transform:
    """Adam with a measure that moves up or down by (1 - b2) g².

        v <- v - (1 - b2) sign(v - g²) g²;   w <- w - lr m̂ / (sqrt(v̂) + eps)   (lr = learning_rate)

    Source: Zaheer, Reddi, Sachan, Kale, Kumar 2018 ("Adaptive methods for nonconvex optimization"), algorithm 2. As
    optax.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step]
      b1, b2, eps: as `scale_by_yogi`.

    State: `mu` and `nu`, 8 bytes per parameter. Errors: as `adam`.

    >>> import gradtx
    >>> gradtx.yogi(1e-2).expand().stages[1]
    scale_by_learning_rate(learning_rate=0.01)
    """
    return scale_by_yogi(b1, b2, eps) >> scale_by_learning_rate(learning_rate)


@transform
def radam(
    learning_rate: NonNegative,
    b1: Unit = 0.9,
    b2: Unit = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: Positive = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
) -> Transform:
    """Rectified Adam: momentum alone until enough gradients were seen, then Adam times a factor r.

        w <- w - lr r m̂ / (sqrt(v̂) + eps) where ρ >= threshold, else w - lr m̂   (lr = learning_rate)

    Source: Liu et al. 2019 (arXiv 1908.03265), algorithm 2; ρ and r: `scale_by_rectified_rms`. As optax; PyTorch:
    eps_hat=True.

    Args:
      learning_rate: >= 0, a number or a schedule. [params per step] once v is trusted, [params² per loss] before.
      b1, b2, eps, eps_root, threshold, nesterov, eps_hat: as `scale_by_radam`.

    State: `mu` and `nu`, 8 bytes per parameter. Errors: as `adam`.

    >>> import gradtx
    >>> gradtx.radam(1e-3).expand().stages[1]
    scale_by_learning_rate(learning_rate=0.001)
    """
    direction = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov, eps_hat=eps_hat)
    return direction >> scale_by_learning_rate(learning_rate)


@transform
def rprop(
    learning_rate: NonNegative,
    eta_minus: Unit = 0.5,
    eta_plus: NonNegative = 1.2,
    min_step_size: NonNegative = 1e-6,
    max_step_size: NonNegative = 50.0,
) -> Transform:
    """Resilient backpropagation: a step size for each element, which grows while the gradient keeps its sign.

        d <- clip(d eta_plus or d eta_minus);   w <- w - d sign(g)

    Source: Riedmiller and Braun 1993, as PyTorch's Rprop. optax's makes each step one update late.

    Args:
      learning_rate: d before the first update, >= 0. Only the first value of a schedule is used. [params per step]
      eta_minus, eta_plus, min_step_size, max_step_size: as `scale_by_rprop`.

    State: `step_sizes` and `prev`, 8 bytes per parameter. Errors: ValueError for an argument outside its range;
    TypeError for complex leaves.

    >>> import gradtx
    >>> gradtx.rprop(0.1).expand().stages[1]
    scale_by_learning_rate(learning_rate=1.0)
    """
    steps = scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size)
    return steps >> scale_by_learning_rate(1.0)
