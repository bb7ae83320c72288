"""CLARS as in the code that the paper's authors released, which differs from the paper in every part."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..formulas import capped_layer_learning_rates, heavy_ball_update_foreach_
from ..starting_rate import BASE_LEARNING_RATE
from .gradients import are_zero
from .group_rules import gamma_scale
from .layerwise import LayerwiseOptimizer

CAP = 0.1  # theirs


class AuthorsCLARS(LayerwiseOptimizer):
    """`γ_k = γ_scale · min(0.1, η · ‖w_k‖ / D_k)` with heavy-ball momentum, `b ← β b + g + λ w`, `w ← w − γ_k b`.

    `D_k` is the mean of `‖g_k‖` over gradients of a few small batches, measured after the step before by whoever trains
    (`ClarsTrainer`, with `mode="authors"`) and handed over by `measured()`. It is kept in the state, so that a
    checkpoint has it. Tensors that are not adapted have `γ_k = γ_scale` and are decayed, unless `bias_and_norm` says
    else.

    Source: github.com/slowbull/largebatch. The paper has Eq. 5 (all samples of the step itself, no cap) and Eq. 4
    (Nesterov momentum, with the learning rate inside).

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: γ_scale; a float or a tensor of one element. The default is that of linear scaling at B = 128; biases take
            it as it is.
        momentum: β, in [0, 1).
        eta: η.
        weight_decay: λ.
        bias_and_norm: the learning rate of biases and norm weights, see `CLARS`; theirs is `"authors"`.
        decay_in_denominator: add `λ‖w‖` to the denominator; theirs is without.

    Raises:
        UserError: a hyper-parameter is negative, NaN or unknown.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = BASE_LEARNING_RATE,
        *,
        momentum: float = 0.9,
        eta: float = 1e-2,
        weight_decay: float = 0.0,
        bias_and_norm: str = "authors",
        decay_in_denominator: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            eta=eta,
            weight_decay=weight_decay,
            bias_and_norm=bias_and_norm,
            decay_in_denominator=decay_in_denominator,
            foreach=None,
            fused=None,
        )

    def measured(self, norms: Mapping[Tensor, Tensor]) -> None:
        """Take `D_k` for the steps to come: parameter → 0-dim, in the units of its gradient. Waits for nothing.

        What is not finite (a step that overflowed) leaves the earlier value; where there is none, the layer rests.
        """
        for parameter, norm in norms.items():
            earlier = self.state[parameter].get("denominator", torch.full_like(norm, torch.inf))
            self.state[parameter]["denominator"] = torch.where(norm.isfinite(), norm, earlier.to(norm))

    def denominators(self) -> dict[Tensor, Tensor]:
        """Parameter → the `D_k` that was measured last; empty before the first `measured()`."""
        return {p: state["denominator"] for p, state in self.state.items() if "denominator" in state}

    def _denominators(self) -> dict[Tensor, Tensor]:
        denominators = self.denominators()
        if not denominators and not are_zero(self.param_groups):
            raise RuntimeError(
                "AuthorsCLARS.step() has no gradient norms: call measured() first, or train with ClarsTrainer"
            )
        return denominators

    def _adapted_rates(self, group: dict[str, Any], weight_norms: Tensor, denominators: Tensor) -> Tensor:
        return capped_layer_learning_rates(gamma_scale(group), group["eta"], weight_norms, denominators, CAP)

    def _apply(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        gradients: list[Tensor],
        buffers: list[Tensor],
        rates: list[Tensor],
        decay: float,
    ) -> None:
        heavy_ball_update_foreach_(weights, gradients, buffers, rates, group["momentum"], decay)
