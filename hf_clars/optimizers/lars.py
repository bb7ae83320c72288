"""LARS: Eq. 3, with decay in its denominator, and the update rule of Eq. 4."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .layerwise import LayerwiseOptimizer


class LARS(LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling: `γ_k = γ_scale · η · ‖w_k‖ / ‖(1/B) Σ_i ∇_k f_i‖` (Eq. 3), update by Eq. 4.

    With weight decay λ the denominator is `‖g‖ + λ‖w_k‖`, see `decay_in_denominator`; without, it is that of Eq. 3.
    `reference.py` has it in one plain loop.

    Args:
        params, lr, momentum, weight_decay, bias_and_norm, foreach, fused: see `CLARS`.
        eta: η. You et al. (2017) use 1e-3.
        decay_in_denominator: `D_k = ‖g‖ + λ‖w‖`, as You et al. (2017), the MLPerf reference and timm have it, so that a
            step moves no weight by more than `γ_scale · η` of its norm, before momentum. Off, `D_k = ‖g‖`, which is
            Eq. 3 to the letter: the paper does not mention decay. There a small gradient (behind a residual branch that
            begins at zero, or when the training data are fitted) makes `γ_k λ w` as large as it is small, and the
            weights diverge. Where `‖g‖` is zero the ratio is 1 either way.

    Raises:
        UserError: a hyper-parameter is negative, NaN or unknown; fused=True where it cannot be, or with foreach=True.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        *,
        momentum: float = 0.9,
        eta: float = 1e-3,
        weight_decay: float = 0.0,
        bias_and_norm: str = "eta",
        decay_in_denominator: bool = True,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            eta=eta,
            weight_decay=weight_decay,
            bias_and_norm=bias_and_norm,
            decay_in_denominator=decay_in_denominator,
            foreach=foreach,
            fused=fused,
        )

    def _denominators(self) -> dict[Tensor, Tensor]:
        return {}  # every layer takes ‖g‖
