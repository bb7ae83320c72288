"""mNAG: Eq. 2, mini-batch Nesterov momentum with one learning rate for all layers."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .layerwise import LayerwiseOptimizer


class NAG(LayerwiseOptimizer):
    """Mini-batch Nesterov accelerated gradient: Eq. 2, which is Eq. 4 with `γ_k = γ` for every layer.

    The learning rate is inside the momentum. While it is constant this is `torch.optim.SGD(nesterov=True)`; when a
    schedule changes it, what is already under way is not rescaled, as in the paper and unlike in torch. At `momentum=0`
    it is mini-batch gradient descent, mGD.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: γ; a float or a tensor of one element. The default is that of `torch.optim.SGD`.
        momentum: β, in [0, 1).
        weight_decay: λ; `λ w` is added to the gradient of tensors of two or more dimensions (or of groups with
            `layer_adaptation=True`), as in CLARS and LARS. Biases and norm weights are not decayed.
        foreach, fused: how it is computed, see `LayerwiseOptimizer`; None takes what is faster.

    Raises:
        UserError: a hyper-parameter is negative, NaN or unknown; fused=True where it cannot be, or with foreach=True.
    """

    _uniform = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            eta=1.0,
            weight_decay=weight_decay,
            bias_and_norm="mlperf",
            decay_in_denominator=False,
            foreach=foreach,
            fused=fused,
        )

    def _denominators(self) -> dict[Tensor, Tensor]:
        return {}  # a group with uniform=False takes ‖g‖
