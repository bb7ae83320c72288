"""CLARS: Eq. 5 with the update rule of Eq. 4."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .layerwise import LayerwiseOptimizer
from .loss_scale import loss_scale
from .stand_ins import with_stand_ins

Norms = Mapping[Any, Tensor] | Callable[[], Mapping[Any, Tensor]] | Any


class CLARS(LayerwiseOptimizer):
    """Complete layer-wise adaptive rate scaling: `γ_k = γ_scale · η · ‖w_k‖ / Σ_i ‖c_{k,i}‖` (Eq. 5), update by Eq. 4.

    `c_{k,i}` is sample i's contribution to `weight.grad`, so the denominator is in the units of the gradient: it
    scales with the loss, adds up over micro-batches and averages over data-parallel ranks as the gradient does.

    A layer that is not measured is taken to be like the others: its denominator is `‖g_k‖` divided by the median of
    `‖g_m‖ / Σ_i ‖c_{m,i}‖` over the measured layers m that this optimizer adapts, the same on all ranks. Where none is
    measured (an LSTM, say) it is `‖g_k‖ · η / 1e-3`, so that `γ_k` is what LARS takes with its own η of 1e-3.
    `PerSampleNorms(untracked="error")` ends the training instead. See `formulas.stand_in_denominators`.

    Several CLARS may share one `PerSampleNorms`: each uses up what was measured of its own parameters. One that steps
    in a `register_post_accumulate_grad_hook` may have a share of it as well.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: γ_scale; a float or a 0-dim tensor.
        momentum: β of Eq. 4, in [0, 1).
        eta: η; the paper uses 1e-2 and no warmup.
        weight_decay: λ; `λ w` is added to the gradient of adapted layers.
        norms: where `Σ_i ‖c_{k,i}‖` comes from. A `PerSampleNorms` attached to the model; or a mapping from parameter
            (or from name, when `params` are named) to a 0-dim tensor; or a function that returns such a mapping. A
            layer that it lacks, because it is not measured, takes a stand-in, see below.
        vectors: the learning rate of biases and norm weights (at most one dimension, or groups with
            `layer_adaptation=False`):
            `"eta"` γ_scale · η, not decayed;
            `"mlperf"` γ_scale, not decayed, as the MLPerf reference of LARS;
            `"authors"` γ_scale and decayed, as the code the authors released;
            `"paper"` Eq. 5 for every tensor, whatever its shape.
        decay_in_denominator: add `λ‖w‖` to the denominator. Off, it is Eq. 5.
        foreach: compute each operation of Eq. 4 for all layers in one call (True) or layer by layer (False). None takes
            what is faster: layer by layer for large layers on a CPU, in one call otherwise.
        fused: take one pass over memory for all of it, in kernels for NVIDIA GPUs (True), or never (False). None takes
            them where they run, unless `foreach` is chosen. See `LayerwiseOptimizer` for what is left to foreach, and
            for `weights_changed()`.
        grad_scaler: the `torch.amp.GradScaler` in use, if gradients are unscaled before `step()` (to clip or look at
            them); its scale is then taken out of the norms too.

    Raises:
        UserError: a hyper-parameter is negative, NaN or unknown; fused=True where it cannot be, or with foreach=True.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        eta: float = 1e-2,
        weight_decay: float = 0.0,
        norms: Norms,
        vectors: str = "eta",
        decay_in_denominator: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.norms = norms
        self.grad_scaler = grad_scaler
        self._scale: Tensor | None = None  # of the loss, in the step at hand
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

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # Torch's protocol for optimizers that unscale by themselves: GradScaler then always calls step() and leaves
        # `grad_scale` and `found_inf` on the optimizer. It is how an unannounced scaler is noticed at all.
        return self.grad_scaler is None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update by Eq. 4 and 5.

        Raises:
            RuntimeError: no norms were measured for the gradients at hand; gradients are sparse; or a `GradScaler`
                unscaled the gradients behind our back (pass it as `grad_scaler`).
        """
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():  # the wait is GradScaler's own, in every torch optimizer
            self._close_gradient()
            return None
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and with them what was measured of them."""
        super().zero_grad(set_to_none)
        self._close_gradient()

    def _update(self) -> None:
        # Asked in every step, also where no denominators are needed: it may have gradients to unscale.
        self._scale = self._loss_scale(next(p for g in self.param_groups for p in g["params"]).device)
        super()._update()
        self._close_gradient()

    def _denominators(self) -> Mapping[Tensor, Tensor]:
        norms = source = self.norms
        if hasattr(norms, "gradient_is_complete"):  # of a PerSampleNorms, whose backward pass may still go on
            norms.gradient_is_complete(self._parameters())
        if hasattr(norms, "denominators"):
            norms = norms.denominators
        measured = norms() if callable(norms) else norms
        if not measured and not getattr(source, "watched", False):
            raise RuntimeError(
                "CLARS.step() found no per-sample gradient norms for these gradients: attach PerSampleNorms(model) "
                "before the forward pass and hand it to CLARS(norms=...)"
            )
        by_parameter, scale = self._by_parameter(measured), self._scale
        if scale is not None:
            by_parameter = {p: d / scale.to(d.device) for p, d in by_parameter.items()}
        return with_stand_ins(self.param_groups, by_parameter, getattr(source, "settled", True))

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _by_parameter(self, measured: Mapping[Any, Tensor]) -> dict[Tensor, Tensor]:
        if not measured or not isinstance(next(iter(measured)), str):
            return dict(measured)
        named: dict[str, Tensor] = {}
        for group in self.param_groups:
            if "param_names" not in group:
                raise RuntimeError(
                    "the norms are keyed by parameter name but the optimizer does not know names: "
                    "pass CLARS model.named_parameters(), or norms keyed by parameter"
                )
            named.update(zip(group["param_names"], group["params"], strict=True))
        return {named[name]: value for name, value in measured.items() if name in named}

    def _loss_scale(self, device: torch.device) -> Tensor | None:
        """What the norms are still multiplied with; unscales the gradients where torch leaves that to us."""
        if self.grad_scaler is not None and self.grad_scaler.is_enabled():
            return loss_scale(self.grad_scaler, device)
        if not hasattr(self, "found_inf"):
            return None
        scale: Tensor | None = self.grad_scale  # type: ignore[attr-defined]
        if scale is None:
            raise RuntimeError(
                "GradScaler unscaled the gradients before CLARS.step(), so the norms would keep the loss scale: "
                "pass the scaler to CLARS(grad_scaler=...)"
            )
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(scale.to(parameter.grad.device))
        return scale

    def _close_gradient(self) -> None:
        close = getattr(self.norms, "close_gradient", None)
        if close is not None:
            close(self._parameters())
