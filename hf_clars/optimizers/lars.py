"""LARS: Eq. 3 with the update rule of Eq. 4."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .layerwise import LayerwiseOptimizer


class LARS(LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling: `γ_k = γ_scale · η · ‖w_k‖ / ‖(1/B) Σ_i ∇_k f_i‖` (Eq. 3), update by Eq. 4.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: γ_scale, before warmup and schedule; a float or a 0-dim tensor.
        momentum: β of Eq. 4, in [0, 1).
        eta: η. You et al. (2017) use 1e-3.
        weight_decay: λ; `λ w` is added to the gradient of adapted layers.
        vectors: the learning rate of biases and norm weights, see `CLARS`.
        decay_in_denominator: `D_k = ‖g‖ + λ‖w‖`, as You et al. (2017) and the MLPerf reference do. Off, it is Eq. 3.
        foreach: compute each operation of Eq. 4 for all layers in one call (True) or layer by layer (False). None takes
            what is faster: layer by layer for large layers on a CPU, in one call otherwise.
        fused: take one pass over memory for all of it, in kernels for NVIDIA GPUs (True), or never (False). None takes
            them where they run, unless `foreach` is chosen. See `LayerwiseOptimizer` for what is left to foreach, and
            for `weights_changed()`.

    Raises:
        UserError: a hyper-parameter is negative, NaN or unknown; fused=True where it cannot be, or with foreach=True.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        eta: float = 1e-3,
        weight_decay: float = 0.0,
        vectors: str = "eta",
        decay_in_denominator: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum=momentum,
            eta=eta,
            weight_decay=weight_decay,
            vectors=vectors,
            decay_in_denominator=decay_in_denominator,
            foreach=foreach,
            fused=fused,
        )

    def _denominators(self) -> dict[Tensor, Tensor]:
        return {}  # every layer takes ‖g‖
